//! Adapters on disk, and which of them answers.

use std::path::PathBuf;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::adapters::confine;
use super::auth::Admin;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody, code};
use super::json::{self, Fields, Path as JsonPath};
use crate::engine::GenerationId;
use crate::rollout::{Change, LibraryError, Manifest, Origin, ProbeError, RolloutError, Route};

/// Changes of the route that are listed.
const MOST_CHANGES: usize = 100;

/// An adapter that this server keeps.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Adapter {
    /// `adapter`.
    pub object: &'static str,
    /// `live`, `canary`, `previous`, `loaded` or `stored`.
    pub state: &'static str,
    /// What is known of it.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// The adapters and who answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AdapterList {
    /// `list`.
    pub object: &'static str,
    /// Oldest first.
    pub data: Vec<Adapter>,
    /// Who answers.
    pub route: RouteBody,
}

/// Who answers.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct RouteBody {
    /// Answers whoever asks for no generation by name.
    pub live: String,
    /// What a rollback goes to.
    pub previous: Option<String>,
    /// What a share of the callers gets.
    pub canary: Option<CanaryBody>,
}

/// A generation on trial.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct CanaryBody {
    /// What is tried.
    pub generation: String,
    /// Share of the callers, 1 to 99.
    pub percent: u8,
}

/// Changes of the route.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangeList {
    /// `list`.
    pub object: &'static str,
    /// Newest first, 100 at most.
    pub data: Vec<ChangeBody>,
}

/// One change of the route.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangeBody {
    /// Seconds since 1970.
    pub at: u64,
    /// The name of the key, or `reground`.
    pub by: String,
    /// `activate`, `canary`, `rollback` or `fallback`.
    pub what: String,
    /// The route before.
    pub before: RouteBody,
    /// The route after.
    pub after: RouteBody,
}

/// Which adapter to take in.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct ImportAdapter {
    /// A directory in PEFT format, below `model.adapter_root`, or relative to it.
    pub path: String,
}

/// What a change is based on.
#[derive(Debug, ToSchema)]
pub(super) struct ChangeRequest {
    /// What the caller takes for live. If another generation is, the change is refused with 409.
    #[schema(value_type = Option<String>)]
    pub expected_generation: Option<GenerationId>,
}

/// How large the share is.
#[derive(Debug, ToSchema)]
pub(super) struct CanaryRequest {
    /// Share of the callers, 0 to 99 percent; 0 ends the trial.
    pub percent: u8,
    /// What the caller takes for live.
    #[schema(value_type = Option<String>)]
    pub expected_generation: Option<GenerationId>,
}

impl From<Route> for RouteBody {
    fn from(route: Route) -> Self {
        let canary = route
            .canary
            .map(|canary| CanaryBody { generation: canary.generation.to_string(), percent: canary.percent });
        Self { live: route.live.to_string(), previous: route.previous.map(|id| id.to_string()), canary }
    }
}

impl From<Change> for ChangeBody {
    fn from(change: Change) -> Self {
        let Change { at_ms, by, what, before, after } = change;
        Self { at: at_ms / 1000, by, what, before: before.into(), after: after.into() }
    }
}

impl App {
    fn adapter(&self, manifest: Manifest, route: &Route) -> Adapter {
        let id = GenerationId::from(manifest.id.as_str());
        let state = if route.live == id {
            "live"
        } else if route.canary.as_ref().is_some_and(|canary| canary.generation == id) {
            "canary"
        } else if route.previous.as_ref() == Some(&id) {
            "previous"
        } else if self.generations.get(&id).is_some() {
            "loaded"
        } else {
            "stored"
        };
        Adapter { object: "adapter", state, manifest }
    }
}

/// Lists the adapters that this server keeps, and who answers.
#[utoipa::path(get, path = "/v1/adapters", tag = "adapters",
    responses(
        (status = 200, description = "The adapters and the route", body = AdapterList),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
    ))]
pub(super) async fn list(_: Admin, app: web::Data<App>) -> Result<web::Json<AdapterList>, ApiError> {
    let route = app.rollout.route();
    let manifests = app.rollout.adapters().await?;
    let data = manifests.into_iter().map(|manifest| app.adapter(manifest, &route)).collect();
    Ok(web::Json(AdapterList { object: "list", data, route: route.into() }))
}

/// Shows an adapter.
#[utoipa::path(get, path = "/v1/adapters/{id}", tag = "adapters",
    params(("id" = String, Path, description = "The adapter's id")),
    responses(
        (status = 200, description = "The adapter", body = Adapter),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
    ))]
pub(super) async fn get(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<web::Json<Adapter>, ApiError> {
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
pub(super) async fn import(
    Admin(caller): Admin,
    app: web::Data<App>,
    body: JsonBody,
) -> Result<web::Json<Adapter>, ApiError> {
    let path = body
        .parse(|bytes| {
            let mut fields = Fields::of(json::parse(bytes)?, &JsonPath::Root)?;
            let path = fields.required("path", json::string)?;
            fields.finish()?;
            Ok(path)
        })
        .await?;
    let root = app.config.model.adapter_root.clone();
    let directory: PathBuf = web::block(move || confine(&root, &path, "path"))
        .await
        .map_err(|_| ApiError::internal("the thread that looked for the adapter is gone"))??;
    let base = app.generations.info().source.clone();
    let origin = Origin { by: caller.name.to_string(), base, ..Origin::default() };
    let manifest = app.rollout.import(directory, origin).await?;
    Ok(web::Json(app.adapter(manifest, &app.rollout.route())))
}

/// Removes an adapter that is neither live nor previous nor canary.
#[utoipa::path(delete, path = "/v1/adapters/{id}", tag = "adapters",
    params(("id" = String, Path, description = "The adapter's id")),
    responses(
        (status = 200, description = "Removed", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "It is in use", body = ErrorBody),
    ))]
pub(super) async fn remove(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    app.rollout.remove(&id).await?;
    Ok(HttpResponse::Ok().json(serde_json::json!({"id": *id, "object": "adapter", "deleted": true})))
}

/// Makes an adapter live, or `base`. What was live becomes `previous` and stays loaded.
#[utoipa::path(post, path = "/v1/adapters/{id}/activate", tag = "adapters", request_body = ChangeRequest,
    params(("id" = String, Path, description = "The adapter's id, or `base`")),
    responses(
        (status = 200, description = "It is live", body = RouteBody),
        (status = 400, description = "The adapter is not fit for traffic", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "Another generation is live than expected, or it is live already", body = ErrorBody),
    ))]
pub(super) async fn activate(
    Admin(caller): Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let ChangeRequest { expected_generation } = body.parse(ChangeRequest::parse).await?;
    let route =
        app.rollout.activate(&GenerationId::from(id.as_str()), expected_generation.as_ref(), &caller.name).await?;
    Ok(web::Json(route.into()))
}

/// Gives a share of the callers an adapter; a caller stays with what it got until the route changes.
#[utoipa::path(post, path = "/v1/adapters/{id}/canary", tag = "adapters", request_body = CanaryRequest,
    params(("id" = String, Path, description = "The adapter's id")),
    responses(
        (status = 200, description = "The trial began, changed or ended", body = RouteBody),
        (status = 400, description = "The adapter is not fit for traffic", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "Another generation is live than expected, or it is live itself", body = ErrorBody),
    ))]
pub(super) async fn canary(
    Admin(caller): Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let CanaryRequest { percent, expected_generation } = body.parse(CanaryRequest::parse).await?;
    let id = GenerationId::from(id.as_str());
    let route = app.rollout.canary(&id, percent, expected_generation.as_ref(), &caller.name).await?;
    Ok(web::Json(route.into()))
}

/// Goes back to what was live before, at once: it is loaded still.
#[utoipa::path(post, path = "/v1/adapters/rollback", tag = "adapters", request_body = ChangeRequest,
    responses(
        (status = 200, description = "It is live again", body = RouteBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 409, description = "Another generation is live than expected, or there is nothing to go back to",
            body = ErrorBody),
    ))]
pub(super) async fn rollback(
    Admin(caller): Admin,
    app: web::Data<App>,
    body: JsonBody,
) -> Result<web::Json<RouteBody>, ApiError> {
    let ChangeRequest { expected_generation } = body.parse(ChangeRequest::parse).await?;
    Ok(web::Json(app.rollout.rollback(expected_generation.as_ref(), &caller.name).await?.into()))
}

/// Lists who changed the route, when, and from what to what.
#[utoipa::path(get, path = "/v1/adapters/changes", tag = "adapters",
    responses(
        (status = 200, description = "The last changes", body = ChangeList),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
    ))]
pub(super) async fn changes(_: Admin, app: web::Data<App>) -> Result<web::Json<ChangeList>, ApiError> {
    let changes = app.rollout.changes(MOST_CHANGES).await?;
    Ok(web::Json(ChangeList { object: "list", data: changes.into_iter().map(ChangeBody::from).collect() }))
}

impl ChangeRequest {
    /// An empty body is `{}`.
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let body = if body.is_empty() { b"{}" } else { body };
        let mut fields = Fields::of(json::parse(body)?, &JsonPath::Root)?;
        let expected_generation = expected(&mut fields)?;
        fields.finish()?;
        Ok(Self { expected_generation })
    }
}

impl CanaryRequest {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(body)?, &JsonPath::Root)?;
        let percent = fields.required("percent", |v, at| json::integer(v, at, 0..=99))?;
        let expected_generation = expected(&mut fields)?;
        fields.finish()?;
        let percent = u8::try_from(percent).map_err(|_| ApiError::invalid("percent", "`percent` must be 0 to 99"))?;
        Ok(Self { percent, expected_generation })
    }
}

fn expected(fields: &mut Fields<'_>) -> Result<Option<GenerationId>, ApiError> {
    let id = fields.optional("expected_generation", |v, at| json::short_string(v, at, 128))?;
    Ok(id.as_deref().map(GenerationId::from))
}

impl From<RolloutError> for ApiError {
    fn from(error: RolloutError) -> Self {
        let message = error.to_string();
        match error {
            RolloutError::Stale { .. } => Self::conflict(message).at("expected_generation"),
            RolloutError::NoPrevious { .. } | RolloutError::AlreadyLive(_) | RolloutError::InUse(_) => {
                Self::conflict(message)
            }
            RolloutError::Library(LibraryError::Unknown(_)) => Self::not_found(code::ADAPTER_NOT_FOUND, message),
            RolloutError::Library(LibraryError::Changed { .. }) => Self::bad_request(code::ADAPTER_CHANGED, message),
            RolloutError::Library(LibraryError::Invalid(_) | LibraryError::TooLarge { .. }) => {
                Self::bad_request(code::INVALID_ADAPTER, message)
            }
            RolloutError::Probe(ProbeError::Inert | ProbeError::NotFinite) => {
                Self::bad_request(code::INVALID_ADAPTER, message)
            }
            RolloutError::Probe(ProbeError::Engine(error)) => error.into(),
            RolloutError::Load(error) => error.into(),
            RolloutError::Probe(ProbeError::Admission(_) | ProbeError::Deadline) => {
                Self::unavailable(code::DEADLINE, message, 5)
            }
            RolloutError::Library(LibraryError::Io(_)) | RolloutError::Ledger(_) => {
                Self::unavailable(code::STORAGE, message, 5)
            }
        }
    }
}
