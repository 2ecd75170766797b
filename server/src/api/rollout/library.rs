//! The adapters that this server keeps.

use std::path::PathBuf;

use actix_web::{HttpResponse, web};

use super::bodies::{Adapter, AdapterList};
use super::requests::ImportAdapter;
use crate::api::App;
use crate::api::adapters::confine;
use crate::api::auth::Admin;
use crate::api::body::JsonBody;
use crate::api::error::{ApiError, ErrorBody};
use crate::rollout::Origin;

/// Lists the adapters that this server keeps, and who answers.
#[utoipa::path(get, path = "/v1/adapters", tag = "adapters",
    responses(
        (status = 200, description = "The adapters and the route", body = AdapterList),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
    ))]
pub(in crate::api) async fn list(_: Admin, app: web::Data<App>) -> Result<web::Json<AdapterList>, ApiError> {
    let route = app.rollout.route();
    let manifests = app.rollout.adapters().await?;
    let data = manifests.into_iter().map(|manifest| app.adapter(manifest, &route)).collect();
    Ok(web::Json(AdapterList {
        object: "list",
        data,
        route: route.into(),
        watched: app.watcher.reports().into_iter().map(Into::into).collect(),
        shadow: app.answerer.shadow().comparison().map(Into::into),
    }))
}

/// Shows an adapter.
#[utoipa::path(get, path = "/v1/adapters/{id}", tag = "adapters",
    params(("id" = String, Path, description = "The adapter's id")),
    responses(
        (status = 200, description = "The adapter", body = Adapter),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
    ))]
pub(in crate::api) async fn get(
    _: Admin,
    app: web::Data<App>,
    id: web::Path<String>,
) -> Result<web::Json<Adapter>, ApiError> {
    let manifest = app.rollout.adapter(&id).await?;
    Ok(web::Json(app.adapter(manifest, &app.rollout.route())))
}

/// Takes in a PEFT adapter: its files are copied and checked. Traffic does not change.
#[utoipa::path(post, path = "/v1/adapters", tag = "adapters", request_body = ImportAdapter,
    responses(
        (status = 200, description = "Taken in", body = Adapter),
        (status = 400, description = "The path or the adapter is refused", body = ErrorBody),
        (status = 403, description = "Not an admin's key, or no `model.adapter_root` is set", body = ErrorBody),
        (status = 404, description = "There is no adapter at the path", body = ErrorBody),
    ))]
pub(in crate::api) async fn import(
    Admin(caller): Admin,
    app: web::Data<App>,
    body: JsonBody,
) -> Result<web::Json<Adapter>, ApiError> {
    let ImportAdapter { path } = body.parse(ImportAdapter::parse).await?;
    let root = app.config.model.adapter_root.clone();
    let directory: PathBuf = web::block(move || confine(&root, &path, "path"))
        .await
        .map_err(|_| ApiError::internal("the thread that looked for the adapter is gone"))??;
    let base = app.generations.info().source.clone();
    let origin = Origin { by: caller.name.to_string(), base, ..Origin::default() };
    let manifest = app.rollout.import(directory, origin).await?;
    Ok(web::Json(app.adapter(manifest, &app.rollout.route())))
}

/// Removes an adapter that the route does not name.
#[utoipa::path(delete, path = "/v1/adapters/{id}", tag = "adapters",
    params(("id" = String, Path, description = "The adapter's id")),
    responses(
        (status = 200, description = "Removed", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "It is in use", body = ErrorBody),
    ))]
pub(in crate::api) async fn remove(
    _: Admin,
    app: web::Data<App>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    app.rollout.remove(&id).await?;
    Ok(HttpResponse::Ok().json(serde_json::json!({"id": *id, "object": "adapter", "deleted": true})))
}
