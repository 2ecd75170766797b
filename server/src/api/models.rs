//! GET /v1/models and /v1/models/{model}.

use actix_web::web;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::auth::Caller;
use super::chat::pinned_generation;
use super::error::{ApiError, ErrorBody};

/// The model, or one of its generations.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct Model {
    /// What callers put into `model`: the name alone for the live generation, `name@generation` for one of them.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When the server started, in seconds since 1970.
    pub created: u64,
    /// `reground`.
    pub owned_by: &'static str,
    /// The generation that answers to this id now.
    pub generation: String,
    /// Whether that is the live generation.
    pub live: bool,
}

/// All ids that can be asked for.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The name alone first, then the generations by id.
    pub data: Vec<Model>,
}

impl App {
    fn model(&self, id: String, generation: String) -> Model {
        let live = self.generations.route().live.as_str() == generation;
        Model { id, object: "model", created: self.started, owned_by: "reground", generation, live }
    }

    fn models(&self) -> ModelList {
        let name = &self.config.model.name;
        let live = self.generations.route().live.to_string();
        let mut data = vec![self.model(name.clone(), live)];
        let generations = self.generations.list().into_iter();
        data.extend(generations.map(|id| self.model(format!("{name}@{id}"), id.to_string())));
        ModelList { object: "list", data }
    }
}

/// Lists the model and its generations.
#[utoipa::path(get, path = "/v1/models", tag = "models",
    responses((status = 200, description = "The model and its generations", body = ModelList)))]
pub(super) async fn list(_: Caller, app: web::Data<App>) -> web::Json<ModelList> {
    web::Json(app.models())
}

/// Shows one id that can be asked for.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "`name` or `name@generation`")),
    responses(
        (status = 200, description = "What answers to this id", body = Model),
        (status = 404, description = "No such model or generation", body = ErrorBody),
    ))]
pub(super) async fn get(
    _: Caller,
    app: web::Data<App>,
    model: web::Path<String>,
) -> Result<web::Json<Model>, ApiError> {
    let id = model.into_inner();
    let pinned = pinned_generation(&id, &app.config.model.name, &app.generations)?;
    let generation = pinned.unwrap_or_else(|| app.generations.route().live);
    Ok(web::Json(app.model(id, generation.to_string())))
}
