//! Stored completions: GET, POST and DELETE /v1/chat/completions[/{id}[/messages]].
//!
//! Those that were asked for with `store: true`. A `client` key sees its own, an `admin` key all; to anybody else an answer
//! does not exist.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use reground_learner::bpo::pair::Part;
use reground_learner::store::rows::{Answer, Finish, Record, RecordedMessage};
use reground_learner::store::{Deleted, Query, Store, StoreError};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::App;
use super::auth::Caller;
use super::blocking::blocking;
use super::body::JsonBody;
use super::chat::request::metadata;
use super::error::{ApiError, ErrorBody, code, shown};
use super::json::{self, Fields, Path};
use super::paging::{MOST, Paging, page};
use crate::config::Role;
use crate::recorder::Recorder;

/// New labels of a stored completion.
#[derive(Debug, ToSchema)]
pub(super) struct SetMetadata {
    /// At most 16 pairs, which replace those that are there.
    pub metadata: BTreeMap<String, String>,
}

pub(super) fn no_completion(id: &str) -> ApiError {
    let message = format!("there is no recorded completion `{}`", shown(id));
    ApiError::not_found(code::COMPLETION_NOT_FOUND, message)
}

/// Deletes a record with all that hangs on it.
pub(super) fn delete_record(store: &Store, id: &str) -> Result<Deleted, ApiError> {
    store.delete_record(id).map_err(|error| match error {
        StoreError::Missing { .. } => no_completion(id),
        other => other.into(),
    })
}

/// The caller's stored completion.
fn find(recorder: &Recorder, caller: &Caller, id: &str) -> Result<Record, ApiError> {
    let found = recorder.store().get::<Record>(id)?;
    found.filter(|record| record.stored && may_see(caller, record)).ok_or_else(|| no_completion(id))
}

fn may_see(caller: &Caller, record: &Record) -> bool {
    caller.role == Role::Admin || *record.key == *caller.name
}

/// Lists stored completions.
#[utoipa::path(get, path = "/v1/chat/completions", tag = "chat",
    params(
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 20"),
        ("order" = Option<String>, Query, description = "`asc` (default) or `desc`"),
        ("model" = Option<String>, Query, description = "As it was asked for"),
        ("metadata[key]" = Option<String>, Query, description = "Only those with this label"),
    ),
    responses((status = 200, description = "A page", body = serde_json::Value),
        (status = 400, description = "A parameter is refused", body = ErrorBody)))]
pub(super) async fn list(
    app: web::Data<App>,
    caller: Caller,
    parameters: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let recorder = app.recorder.clone();
    // The rarest first: labels, then the key, then all that are stored.
    let (mut by, mut labels, mut model) = (Vec::new(), Vec::new(), None);
    let paging = Paging::OLDEST_FIRST.read(parameters.into_inner(), MOST, |name, value| {
        match name.strip_prefix("metadata[").and_then(|name| name.strip_suffix(']')) {
            Some(key) => {
                // As they were written down.
                let (mut key, mut value) = (key.to_owned(), value.to_owned());
                recorder.rules().text(&mut key);
                recorder.rules().text(&mut value);
                by.push(("metadata", format!("{key}={value}")));
                labels.push((key, value));
            }
            None if name == "model" => model = Some(value.to_owned()),
            None => return Ok(false),
        }
        Ok(true)
    })?;
    let (items, more) = blocking(move || {
        if caller.role == Role::Client {
            by.push(("key", caller.name.to_string()));
        }
        by.push(("stored", "true".to_owned()));
        let mut query = Query { by, after: paging.after, limit: MOST, newest_first: paging.newest_first };
        let mut items = Vec::new();
        loop {
            let found = recorder.store().list_readable::<Record>(&query)?;
            query.after = found.rows.last().map(|record| record.id.clone());
            for record in found.rows {
                if model.as_ref().is_some_and(|model| *model != record.model) {
                    continue;
                }
                // The index has key and value in one: `a=b` with `c` is there what `a` with `b=c` is.
                if labels.iter().any(|(key, value)| record.metadata.get(key) != Some(value)) {
                    continue;
                }
                if items.len() == paging.limit {
                    return Ok((items, true));
                }
                items.push(shape(&record));
            }
            if !found.more {
                return Ok((items, false));
            }
        }
    })
    .await?;
    Ok(page(items, more))
}

/// One stored completion.
#[utoipa::path(get, path = "/v1/chat/completions/{completion_id}", tag = "chat",
    params(("completion_id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The completion", body = serde_json::Value),
        (status = 404, description = "No such stored completion of this key", body = ErrorBody)))]
pub(super) async fn get(app: web::Data<App>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let recorder = app.recorder.clone();
    let record = blocking(move || find(&recorder, &caller, &id)).await?;
    Ok(HttpResponse::Ok().json(shape(&record)))
}

/// Replaces the labels of a stored completion.
#[utoipa::path(post, path = "/v1/chat/completions/{completion_id}", tag = "chat", request_body = SetMetadata,
    params(("completion_id" = String, Path, description = "Its id")),
    responses((status = 200, description = "The completion as it is now", body = serde_json::Value),
        (status = 404, description = "No such stored completion of this key", body = ErrorBody)))]
pub(super) async fn update(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    let recorder = app.recorder.clone();
    let set = body.parse(SetMetadata::parse).await?;
    let record = blocking(move || {
        find(&recorder, &caller, &id)?;
        let mut labels = set.metadata;
        recorder.rules().labels(&mut labels);
        Ok(recorder.store().update::<Record>(&id, |record| record.metadata = labels)?)
    })
    .await?;
    Ok(HttpResponse::Ok().json(shape(&record)))
}

/// Deletes a completion with its feedback, its pairs and its images. An admin can delete any record.
#[utoipa::path(delete, path = "/v1/chat/completions/{completion_id}", tag = "chat",
    params(("completion_id" = String, Path, description = "Its id")),
    responses((status = 200, description = "Deleted; `adapters` were trained on it", body = serde_json::Value),
        (status = 404, description = "No such completion of this key", body = ErrorBody)))]
pub(super) async fn delete(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let recorder = app.recorder.clone();
    let asked = id.clone();
    let deleted = blocking(move || {
        if caller.role == Role::Client {
            find(&recorder, &caller, &id)?;
        }
        delete_record(recorder.store(), &id)
    })
    .await?;
    Ok(HttpResponse::Ok().json(json!({
        "object": "chat.completion.deleted", "id": asked, "deleted": true, "adapters": deleted.adapters,
    })))
}

/// The messages that a stored completion answered.
#[utoipa::path(get, path = "/v1/chat/completions/{completion_id}/messages", tag = "chat",
    params(
        ("completion_id" = String, Path, description = "Its id"),
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 20"),
        ("order" = Option<String>, Query, description = "`asc` (default) or `desc`"),
    ),
    responses((status = 200, description = "A page", body = serde_json::Value),
        (status = 404, description = "No such stored completion of this key", body = ErrorBody)))]
pub(super) async fn messages(
    app: web::Data<App>,
    caller: Caller,
    id: web::Path<String>,
    parameters: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let recorder = app.recorder.clone();
    let paging = Paging::OLDEST_FIRST.read(parameters.into_inner(), MOST, |_, _| Ok(false))?;
    let record = blocking(move || find(&recorder, &caller, &id)).await?;
    let said = record.messages.iter().enumerate();
    let mut items: Vec<Value> = said.map(|(index, said)| message(&record, index, said)).collect();
    if paging.newest_first {
        items.reverse();
    }
    if let Some(after) = &paging.after {
        let behind = items.iter().position(|item| item["id"] == **after).map_or(items.len(), |at| at + 1);
        items.drain(..behind);
    }
    let more = items.len() > paging.limit;
    items.truncate(paging.limit);
    Ok(page(items, more))
}

impl SetMetadata {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(body)?, &Path::Root)?;
        let metadata = fields.required("metadata", metadata)?;
        fields.finish()?;
        Ok(Self { metadata })
    }
}

fn message(record: &Record, index: usize, said: &RecordedMessage) -> Value {
    let text: String = said
        .content
        .iter()
        .filter_map(|part| if let Part::Text { text } = part { Some(text.as_str()) } else { None })
        .collect();
    let part = |part: &Part| match part {
        Part::Text { text } => json!({"type": "text", "text": text}),
        Part::Image { index } => {
            let digest = record.images.get(*index).map_or("", |image| image.digest.as_str());
            json!({"type": "image_url", "image_url": {"url": format!("blob:{digest}")}})
        }
    };
    json!({
        "id": format!("{}-{index}", record.id),
        "role": said.role,
        "content": text,
        "content_parts": said.content.iter().map(part).collect::<Vec<_>>(),
        "tool_calls": said.tool_calls,
        "tool_call_id": said.tool_call_id,
    })
}

fn shape(record: &Record) -> Value {
    let choice = |(index, answer): (usize, &Answer)| {
        let finish = match answer.finish {
            Finish::Stop => Some("stop"),
            Finish::Length => Some("length"),
            Finish::ToolCalls => Some("tool_calls"),
            // OpenAI has no word for an answer that did not come to its end.
            Finish::Cancelled | Finish::Failed => None,
        };
        let content = (!answer.text.is_empty() || answer.tool_calls.is_empty()).then_some(&answer.text);
        let mut said = json!({"role": "assistant", "content": content, "refusal": null});
        if !answer.tool_calls.is_empty() {
            said["tool_calls"] = json!(answer.tool_calls);
        }
        json!({"index": index, "message": said, "logprobs": null, "finish_reason": finish})
    };
    let completion: usize = record.answers.iter().map(|answer| answer.completion_tokens).sum();
    let mut shape = json!({
        "id": record.id,
        "object": "chat.completion",
        "created": record.created_ms / 1000,
        "model": record.model,
        "system_fingerprint": record.generation,
        "request_id": null,
        "metadata": record.metadata,
        "user": record.user,
        "tools": record.tools,
        "choices": record.answers.iter().enumerate().map(choice).collect::<Vec<_>>(),
        "usage": {
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": record.prompt_tokens + completion,
        },
    });
    for (name, value) in &record.parameters {
        shape[name] = value.clone();
    }
    shape
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use reground_learner::store::id;
    use reground_learner::store::rows::{BootstrapState, Timings};

    use super::*;
    use crate::api::testing::{Server, open_server};

    /// Stores a completion with one label; gives its id.
    fn labelled(server: &Server, key: &str, value: &str) -> String {
        let mut record = Record {
            id: id::new("chatcmpl"),
            created_ms: 0,
            model: "reground".into(),
            generation: "base".into(),
            key: "local".into(),
            user: None,
            conversation: "c".into(),
            stored: true,
            metadata: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            images: Vec::new(),
            messages: Vec::new(),
            tools: Vec::new(),
            parameters: serde_json::Map::new(),
            answers: Vec::new(),
            prompt_tokens: 0,
            timings: Timings::default(),
            config_digest: String::new(),
            redactions: 0,
            bootstrap: BootstrapState::Waiting,
        };
        server.app.recorder.rules().record(&mut record);
        server.app.recorder.store().add_record(&record, &[] as &[Vec<u8>]).unwrap();
        record.id
    }

    async fn found(server: &Server, key: &str, value: &str) -> Vec<String> {
        let caller = Caller { name: "local".into(), role: Role::Admin, trusted: true };
        let parameters = vec![(format!("metadata[{key}]"), value.to_owned())];
        let reply = list(server.app.clone(), caller, web::Query(parameters)).await.unwrap();
        let body: Value = serde_json::from_slice(&to_bytes(reply.into_body()).await.unwrap()).unwrap();
        body["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    }

    #[actix_web::test]
    async fn labels_are_found_as_they_were_given() {
        let server = open_server().await;
        let customer = labelled(&server, "customer", "ann@example.org");
        let whole = labelled(&server, "a=b", "c");
        let split = labelled(&server, "a", "b=c");
        assert_eq!(found(&server, "customer", "ann@example.org").await, [customer]);
        assert_eq!(found(&server, "a=b", "c").await, [whole]);
        assert_eq!(found(&server, "a", "b=c").await, [split]);
        assert_eq!(found(&server, "a", "b").await, [""; 0]);
    }
}
