//! The description of every route: `reground openapi` prints it, GET /openapi.json serves it.

use actix_web::web;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi as _};

use super::auth::Caller;
use super::{
    adapters, chat, completions, error, feedback, files, fine_tuning, health, metrics, models, pairs, records, rollout,
};

/// The name of the security scheme.
const KEY: &str = "key";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Reground",
        description = "An OpenAI-compatible inference server that learns from what it serves. \
            Every error is `{\"error\": {\"message\", \"type\", \"param\", \"code\"}}`."
    ),
    paths(
        chat::create,
        completions::list,
        completions::get,
        completions::update,
        completions::delete,
        completions::messages,
        feedback::create,
        models::list,
        models::get,
        adapters::load,
        adapters::unload,
        rollout::library::list,
        rollout::library::get,
        rollout::library::import,
        rollout::library::remove,
        rollout::route::activate,
        rollout::route::canary,
        rollout::route::shadow,
        rollout::route::pin,
        rollout::route::rollback,
        rollout::route::changes,
        records::list,
        records::get,
        records::delete,
        pairs::list,
        pairs::get,
        pairs::review,
        pairs::export,
        files::create,
        files::list,
        files::get,
        files::content,
        files::remove,
        fine_tuning::create,
        fine_tuning::list,
        fine_tuning::get,
        fine_tuning::cancel,
        fine_tuning::pause,
        fine_tuning::resume,
        fine_tuning::events,
        fine_tuning::checkpoints,
        health::health,
        health::ready,
        metrics::show,
        show
    ),
    components(schemas(error::ErrorBody)),
    security(("key" = [])),
    modifiers(&Everywhere)
)]
struct Description;

/// What holds for every route: the key, and the errors that come from around the handlers.
struct Everywhere;

/// The description.
#[must_use]
pub fn openapi() -> OpenApi {
    Description::openapi()
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = serde_json::Value)))]
pub(super) async fn show(_: Caller) -> web::Json<OpenApi> {
    web::Json(openapi())
}

impl Modify for Everywhere {
    fn modify(&self, description: &mut OpenApi) {
        let scheme = SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("An API key of the configuration. With none configured, no key is needed."))
                .build(),
        );
        description.components.get_or_insert_default().add_security_scheme(KEY, scheme);
        for (path, item) in &mut description.paths.paths {
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().filter_map(Option::as_mut) {
                add_errors(path, operation);
            }
        }
    }
}

fn add_errors(path: &str, operation: &mut Operation) {
    let responses = &mut operation.responses.responses;
    let mut add = |status: &str, text: &str| {
        responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(response(text)));
    };
    if path != "/health" {
        add("401", "No API key, or one that is not known");
    }
    if operation.request_body.is_some() && path != "/v1/files" {
        add("400", "A parameter is refused; `param` names it");
        add("408", "The body did not arrive in time");
        add("413", "The body is too large");
        add("415", "The body is no JSON by its Content-Type");
    }
    if matches!(path, "/metrics") {
        add("403", "Not an admin's key");
    }
    add("500", "The server failed");
}

fn response(text: &str) -> Response {
    let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name("ErrorBody"))));
    ResponseBuilder::new().description(text).content("application/json", body).build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::routes::{ROUTES, documented};

    #[test]
    fn every_route_is_described_and_every_description_is_a_route() {
        let served: BTreeSet<_> =
            ROUTES.iter().map(|route| (documented(route.pattern), route.method.to_lowercase())).collect();
        let description = serde_json::to_value(openapi()).unwrap();
        let described: BTreeSet<_> = description["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(served, described);
    }

    #[test]
    fn every_operation_has_its_errors_and_every_reference_a_target() {
        let description = serde_json::to_value(openapi()).unwrap();
        for (path, item) in description["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let responses = operation["responses"].as_object().unwrap();
                assert!(responses.contains_key("200") && responses.contains_key("500"), "{method} {path}");
                assert_eq!(responses.contains_key("401"), path != "/health", "{method} {path}");
                assert!(operation["summary"].is_string(), "{method} {path}");
            }
        }
        let text = description.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(description["components"]["schemas"][name].is_object(), "{name} is referred to and not described");
        }
    }
}
