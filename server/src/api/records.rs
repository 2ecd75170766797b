//! /v1/records: everything that was written down, for the operator. Stored completions are what callers see of it.

use actix_web::{HttpResponse, web};
use reground_learner::store::Query;
use reground_learner::store::rows::{Feedback, Pair, Record};
use serde_json::{Value, json};

use super::App;
use super::auth::Admin;
use super::blocking::blocking;
use super::completions::{delete_record, no_completion};
use super::error::{ApiError, ErrorBody};
use super::paging::{MOST, Paging, page};

/// Lists records.
#[utoipa::path(get, path = "/v1/records", tag = "records",
    params(
        ("bootstrap" = Option<String>, Query, description = "`waiting`, `done` or `skipped`: how far pairs are made of them"),
        ("generation" = Option<String>, Query, description = "Answered by this generation"),
        ("key" = Option<String>, Query, description = "Came with the API key of this name"),
        ("conversation" = Option<String>, Query, description = "Turns of this conversation"),
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 20"),
        ("order" = Option<String>, Query, description = "`asc` (default) or `desc`"),
    ),
    responses((status = 200, description = "A page", body = serde_json::Value),
        (status = 400, description = "A parameter is refused", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody)))]
pub(super) async fn list(
    _: Admin,
    app: web::Data<App>,
    parameters: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    const INDEXES: [&str; 4] = ["bootstrap", "generation", "key", "conversation"];
    let mut by = Vec::new();
    let paging = Paging::OLDEST_FIRST.read(parameters.into_inner(), MOST, |name, value| {
        let index = INDEXES.into_iter().find(|index| *index == name);
        by.extend(index.map(|index| (index, value.to_owned())));
        Ok(index.is_some())
    })?;
    let Paging { after, limit, newest_first } = paging;
    let (store, query) = (app.recorder.store().clone(), Query { by, after, limit, newest_first });
    let found = blocking(move || Ok(store.list_readable::<Record>(&query)?)).await?;
    Ok(page(found.rows.iter().map(shape).collect(), found.more))
}

/// One record with what was said of it and the ids of its pairs.
#[utoipa::path(get, path = "/v1/records/{id}", tag = "records",
    params(("id" = String, Path, description = "The completion's id")),
    responses((status = 200, description = "The record", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "No such record", body = ErrorBody)))]
pub(super) async fn get(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let store = app.recorder.store().clone();
    let shown = blocking(move || {
        let record = store.get::<Record>(&id)?.ok_or_else(|| no_completion(&id))?;
        let mut shown = shape(&record);
        shown["feedback"] = json!(store.list_readable::<Feedback>(&Query::by("record", id.as_str()))?.rows);
        let pairs = store.list_readable::<Pair>(&Query::by("record", id.as_str()))?.rows;
        shown["pairs"] = pairs.into_iter().map(|pair| pair.data.id).collect();
        Ok(shown)
    })
    .await?;
    Ok(HttpResponse::Ok().json(shown))
}

/// Deletes a record with its feedback, its pairs and every image that nobody else needs; names the adapters that were trained
/// on it.
#[utoipa::path(delete, path = "/v1/records/{id}", tag = "records",
    params(("id" = String, Path, description = "The completion's id")),
    responses((status = 200, description = "What went with it", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "No such record", body = ErrorBody)))]
pub(super) async fn delete(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let (store, asked) = (app.recorder.store().clone(), id.clone());
    let deleted = blocking(move || delete_record(&store, &id)).await?;
    let mut shown = json!(deleted);
    (shown["id"], shown["object"], shown["deleted"]) = (json!(asked), json!("record.deleted"), json!(true));
    Ok(HttpResponse::Ok().json(shown))
}

fn shape(record: &Record) -> Value {
    let mut shape = json!(record);
    shape["object"] = json!("record");
    shape
}
