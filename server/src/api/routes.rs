//! Every route, in one table, and what stands around all of them.

use std::collections::BTreeMap;

use actix_cors::Cors;
use actix_web::dev::HttpServiceFactory;
use actix_web::middleware::{Condition, from_fn};
use actix_web::{HttpRequest, HttpResponse, Route as Handler, web};

use super::auth::require_key;
use super::error::ApiError;
use super::observe::{REQUEST_ID, catch_panic, observe};
use super::{
    App, GENERATION, adapters, chat, completions, feedback, files, fine_tuning, health, metrics, models, openapi,
    pairs, records, rollout,
};

/// What logs and metrics say of a path that is no route.
pub(super) const UNMATCHED: &str = "unmatched";

/// A method of a path.
pub(super) struct Route {
    pub(super) method: &'static str,
    /// As actix matches it. OpenAPI has the same without the regular expressions.
    pub(super) pattern: &'static str,
    handler: fn() -> Handler,
}

/// Every route. A test holds it equal to the OpenAPI description.
pub(super) const ROUTES: &[Route] = &[
    Route { method: "POST", pattern: "/v1/chat/completions", handler: || web::post().to(chat::create) },
    Route { method: "GET", pattern: "/v1/chat/completions", handler: || web::get().to(completions::list) },
    Route {
        method: "GET",
        pattern: "/v1/chat/completions/{completion_id}",
        handler: || web::get().to(completions::get),
    },
    Route {
        method: "POST",
        pattern: "/v1/chat/completions/{completion_id}",
        handler: || web::post().to(completions::update),
    },
    Route {
        method: "DELETE",
        pattern: "/v1/chat/completions/{completion_id}",
        handler: || web::delete().to(completions::delete),
    },
    Route {
        method: "GET",
        pattern: "/v1/chat/completions/{completion_id}/messages",
        handler: || web::get().to(completions::messages),
    },
    Route { method: "POST", pattern: "/v1/feedback", handler: || web::post().to(feedback::create) },
    Route { method: "GET", pattern: "/v1/models", handler: || web::get().to(models::list) },
    // A model's name may have slashes.
    Route { method: "GET", pattern: "/v1/models/{model:.+}", handler: || web::get().to(models::get) },
    Route { method: "POST", pattern: "/v1/load_lora_adapter", handler: || web::post().to(adapters::load) },
    Route { method: "POST", pattern: "/v1/unload_lora_adapter", handler: || web::post().to(adapters::unload) },
    Route { method: "GET", pattern: "/v1/adapters", handler: || web::get().to(rollout::library::list) },
    Route { method: "POST", pattern: "/v1/adapters", handler: || web::post().to(rollout::library::import) },
    Route { method: "GET", pattern: "/v1/adapters/changes", handler: || web::get().to(rollout::route::changes) },
    Route { method: "POST", pattern: "/v1/adapters/rollback", handler: || web::post().to(rollout::route::rollback) },
    Route { method: "GET", pattern: "/v1/adapters/{id}", handler: || web::get().to(rollout::library::get) },
    Route { method: "DELETE", pattern: "/v1/adapters/{id}", handler: || web::delete().to(rollout::library::remove) },
    Route {
        method: "POST",
        pattern: "/v1/adapters/{id}/activate",
        handler: || web::post().to(rollout::route::activate),
    },
    Route { method: "POST", pattern: "/v1/adapters/{id}/canary", handler: || web::post().to(rollout::route::canary) },
    Route { method: "POST", pattern: "/v1/adapters/{id}/shadow", handler: || web::post().to(rollout::route::shadow) },
    Route { method: "POST", pattern: "/v1/adapters/{id}/pin", handler: || web::post().to(rollout::route::pin) },
    Route { method: "GET", pattern: "/v1/records", handler: || web::get().to(records::list) },
    Route { method: "GET", pattern: "/v1/records/{id}", handler: || web::get().to(records::get) },
    Route { method: "DELETE", pattern: "/v1/records/{id}", handler: || web::delete().to(records::delete) },
    Route { method: "GET", pattern: "/v1/pairs", handler: || web::get().to(pairs::list) },
    Route { method: "POST", pattern: "/v1/pairs/export", handler: || web::post().to(pairs::export) },
    Route { method: "GET", pattern: "/v1/pairs/{id}", handler: || web::get().to(pairs::get) },
    Route { method: "POST", pattern: "/v1/pairs/{id}/review", handler: || web::post().to(pairs::review) },
    Route { method: "GET", pattern: "/v1/files", handler: || web::get().to(files::list) },
    Route { method: "POST", pattern: "/v1/files", handler: || web::post().to(files::create) },
    Route { method: "GET", pattern: "/v1/files/{file_id}", handler: || web::get().to(files::get) },
    Route { method: "DELETE", pattern: "/v1/files/{file_id}", handler: || web::delete().to(files::remove) },
    Route { method: "GET", pattern: "/v1/files/{file_id}/content", handler: || web::get().to(files::content) },
    Route { method: "GET", pattern: "/v1/fine_tuning/jobs", handler: || web::get().to(fine_tuning::list) },
    Route { method: "POST", pattern: "/v1/fine_tuning/jobs", handler: || web::post().to(fine_tuning::create) },
    Route { method: "GET", pattern: "/v1/fine_tuning/jobs/{job_id}", handler: || web::get().to(fine_tuning::get) },
    Route {
        method: "POST",
        pattern: "/v1/fine_tuning/jobs/{job_id}/cancel",
        handler: || web::post().to(fine_tuning::cancel),
    },
    Route {
        method: "POST",
        pattern: "/v1/fine_tuning/jobs/{job_id}/pause",
        handler: || web::post().to(fine_tuning::pause),
    },
    Route {
        method: "POST",
        pattern: "/v1/fine_tuning/jobs/{job_id}/resume",
        handler: || web::post().to(fine_tuning::resume),
    },
    Route {
        method: "GET",
        pattern: "/v1/fine_tuning/jobs/{job_id}/events",
        handler: || web::get().to(fine_tuning::events),
    },
    Route {
        method: "GET",
        pattern: "/v1/fine_tuning/jobs/{job_id}/checkpoints",
        handler: || web::get().to(fine_tuning::checkpoints),
    },
    Route { method: "GET", pattern: "/health", handler: || web::get().to(health::health) },
    Route { method: "GET", pattern: "/ready", handler: || web::get().to(health::ready) },
    Route { method: "GET", pattern: "/metrics", handler: || web::get().to(metrics::show) },
    Route { method: "GET", pattern: "/openapi.json", handler: || web::get().to(openapi::show) },
];

/// Puts all routes and the middleware around them into an actix server:
/// `actix_web::App::new().configure(api::configure(app.clone()))`.
///
/// The server should be built with `h1_allow_half_closed(false)`: only then is a request dropped, and its answer
/// cancelled, when the client leaves before the first byte of it.
pub fn configure(app: web::Data<App>) -> impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static {
    move |service| {
        let origins = &app.config.server.cors_origins;
        let mut scope = web::scope("");
        for resource in resources() {
            scope = scope.service(resource);
        }
        let scope = scope
            .default_service(web::to(unknown))
            .wrap(from_fn(require_key))
            .wrap(Condition::new(!origins.is_empty(), cors(origins)))
            .wrap(from_fn(observe));
        service.app_data(app.clone()).service(scope);
    }
}

/// The label of the route that a request goes to.
pub(super) fn of(request: &HttpRequest) -> String {
    request
        .match_pattern()
        .filter(|pattern| !pattern.is_empty())
        .map_or_else(|| UNMATCHED.to_owned(), |pattern| documented(&pattern))
}

/// A pattern as OpenAPI writes it.
pub(super) fn documented(pattern: &str) -> String {
    pattern.replace(":.+}", "}")
}

/// One resource a path: it knows which methods there are, so that others get a 405 that says so.
fn resources() -> Vec<impl HttpServiceFactory + 'static> {
    let mut by_pattern: BTreeMap<&str, Vec<&Route>> = BTreeMap::new();
    for route in ROUTES {
        by_pattern.entry(route.pattern).or_default().push(route);
    }
    let resource = |(pattern, routes): (&str, Vec<&Route>)| {
        let allowed = routes.iter().map(|route| route.method).collect::<Vec<_>>().join(", ");
        let mut resource = web::resource(pattern);
        for route in routes {
            resource = resource.route((route.handler)());
        }
        let refuse = move |request: HttpRequest| {
            let error = ApiError::method_not_allowed(request.method(), &allowed);
            async move { Err::<HttpResponse, _>(error) }
        };
        resource.default_service(web::to(refuse)).wrap(from_fn(catch_panic))
    };
    by_pattern.into_iter().map(resource).collect()
}

async fn unknown(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Err(ApiError::unknown_route(request.method(), request.path()))
}

fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default()
        .allow_any_header()
        .allowed_methods(["GET", "POST", "DELETE"])
        .expose_headers([REQUEST_ID, GENERATION, actix_web::http::header::RETRY_AFTER])
        // Other origins get an answer without CORS headers, which browsers then hide; programs do not care.
        .block_on_origin_mismatch(false)
        .max_age(3600);
    if origins.iter().any(|origin| origin == "*") {
        return cors.allow_any_origin().send_wildcard();
    }
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}
