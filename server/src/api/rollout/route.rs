//! Who answers, and who changed that.

use actix_web::web;

use super::bodies::{ChangeBody, ChangeList, RouteBody};
use super::requests::{ChangeRequest, PinRequest, ShareRequest};
use crate::api::App;
use crate::api::auth::Admin;
use crate::api::body::JsonBody;
use crate::api::error::{ApiError, ErrorBody};
use crate::engine::GenerationId;

/// Changes of the route that are listed.
const MOST_CHANGES: usize = 100;

/// Makes an adapter live, or `base`. What was live becomes `previous`; a canary, a shadow and what was pinned end.
#[utoipa::path(post, path = "/v1/adapters/{id}/activate", tag = "adapters", request_body = ChangeRequest,
    params(("id" = String, Path, description = "The adapter's id, or `base`")),
    responses(
        (status = 200, description = "It is live", body = RouteBody),
        (status = 400, description = "The adapter is not fit for traffic", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "Another generation is live than expected, or it is live already", body = ErrorBody),
    ))]
pub(in crate::api) async fn activate(
    Admin(caller): Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let ChangeRequest { expected_generation } = body.parse(ChangeRequest::parse).await?;
    let id = GenerationId::from(id.as_str());
    Ok(web::Json(app.rollout.activate(&id, expected_generation.as_ref(), &*caller.name).await?.into()))
}

/// Gives a share of the callers an adapter; a caller stays with what it got until the route changes.
#[utoipa::path(post, path = "/v1/adapters/{id}/canary", tag = "adapters", request_body = ShareRequest,
    params(("id" = String, Path, description = "The adapter's id")),
    responses(
        (status = 200, description = "The trial began, changed or ended", body = RouteBody),
        (status = 400, description = "The adapter is not fit for traffic", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "Another generation is live than expected, or it is live itself", body = ErrorBody),
    ))]
pub(in crate::api) async fn canary(
    Admin(caller): Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let ShareRequest { percent, expected_generation } = body.parse(|body| ShareRequest::parse(body, 99)).await?;
    let id = GenerationId::from(id.as_str());
    let route = app.rollout.canary(&id, percent, expected_generation.as_ref(), &*caller.name).await?;
    Ok(web::Json(route.into()))
}

/// Has an adapter answer a share of the queries a second time, in moments that no live query needs. Nobody gets these answers and nothing
/// records them: they are compared with the live ones, which `GET /v1/adapters` and `/metrics` show.
#[utoipa::path(post, path = "/v1/adapters/{id}/shadow", tag = "adapters", request_body = ShareRequest,
    params(("id" = String, Path, description = "The adapter's id, or `base`")),
    responses(
        (status = 200, description = "It began, changed or ended", body = RouteBody),
        (status = 400, description = "The adapter is not fit for traffic", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "Another generation is live than expected, or it is live itself", body = ErrorBody),
    ))]
pub(in crate::api) async fn shadow(
    Admin(caller): Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let ShareRequest { percent, expected_generation } = body.parse(|body| ShareRequest::parse(body, 100)).await?;
    let id = GenerationId::from(id.as_str());
    let route = app.rollout.shadow(&id, percent, expected_generation.as_ref(), &*caller.name).await?;
    Ok(web::Json(route.into()))
}

/// Pins the live generation, or ends that: while it is pinned, no run, no watch and nothing else takes its place by itself. Who activates
/// another one or rolls back still does, and that ends it.
#[utoipa::path(post, path = "/v1/adapters/{id}/pin", tag = "adapters", request_body = PinRequest,
    params(("id" = String, Path, description = "The live generation's id")),
    responses(
        (status = 200, description = "It is pinned, or not any more", body = RouteBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 409, description = "It is not live", body = ErrorBody),
    ))]
pub(in crate::api) async fn pin(
    Admin(caller): Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let PinRequest { pinned, expected_generation } = body.parse(PinRequest::parse).await?;
    let id = GenerationId::from(id.as_str());
    let route = app.rollout.pin(&id, pinned, expected_generation.as_ref(), &*caller.name).await?;
    Ok(web::Json(route.into()))
}

/// Goes back to what was live before: at once if it is loaded still.
#[utoipa::path(post, path = "/v1/adapters/rollback", tag = "adapters", request_body = ChangeRequest,
    responses(
        (status = 200, description = "It is live again", body = RouteBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 409, description = "Another generation is live than expected, or there is nothing to go back to",
            body = ErrorBody),
    ))]
pub(in crate::api) async fn rollback(
    Admin(caller): Admin,
    app: web::Data<App>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let ChangeRequest { expected_generation } = body.parse(ChangeRequest::parse).await?;
    Ok(web::Json(app.rollout.rollback(expected_generation.as_ref(), &*caller.name).await?.into()))
}

/// Lists who changed the route, when, and from what to what.
#[utoipa::path(get, path = "/v1/adapters/changes", tag = "adapters",
    responses(
        (status = 200, description = "The last changes", body = ChangeList),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
    ))]
pub(in crate::api) async fn changes(_: Admin, app: web::Data<App>) -> Result<web::Json<ChangeList>, ApiError> {
    let changes = app.rollout.changes(MOST_CHANGES).await?;
    Ok(web::Json(ChangeList { object: "list", data: changes.into_iter().map(ChangeBody::from).collect() }))
}
