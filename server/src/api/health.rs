//! GET /health and /ready.

use actix_web::web;
use reground_learner::store;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody, code};

/// That all is well.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `ready`.
    pub status: &'static str,
    /// The live generation; not in /health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// Why nothing can be recorded now, in /ready and only then: serving goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// Answers as long as the process runs. The one route that needs no key.
#[utoipa::path(get, path = "/health", tag = "operation", security(()),
    responses((status = 200, description = "The process runs", body = Health)))]
pub(super) async fn health() -> web::Json<Health> {
    web::Json(Health { status: "ok", generation: None, store: None })
}

/// Whether a request sent now would be answered.
#[utoipa::path(get, path = "/ready", tag = "operation",
    responses(
        (status = 200, description = "The live generation answers", body = Health),
        (status = 503, description = "The engine is being rebuilt, or the server is going down", body = ErrorBody),
    ))]
pub(super) async fn ready(_: Caller, app: web::Data<App>) -> Result<web::Json<Health>, ApiError> {
    if app.shutdown.is_cancelled() {
        return Err(ApiError::unavailable(code::SHUTTING_DOWN, "the server is shutting down", 5));
    }
    let live = app.generations.route().live;
    // While it is being replaced requests wait, which is no reason to send them elsewhere.
    if app.generations.live().is_some_and(|lease| !lease.generation.is_ready()) {
        let message = format!("the engine of the live generation `{live}` is being restarted");
        return Err(ApiError::unavailable(code::UNAVAILABLE, message, 1));
    }
    let store = match app.recorder.store().health() {
        store::Health::Degraded(why) => Some(why),
        store::Health::Healthy => None,
    };
    Ok(web::Json(Health { status: "ready", generation: Some(live.to_string()), store }))
}
