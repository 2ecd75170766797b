//! POST /v1/chat/completions.
//!
//! # Layout
//! - [`request`]: OpenAI's request, checked by hand; [`messages`], [`tools`] and [`mod@format`] are its larger parts.
//! - [`query`]: what depends on the model and the images; from a request to queries.
//! - [`record`]: what is written down of a request.
//! - [`choices`]: the answers to one request, all under way at once.
//! - [`response`]: one body; [`stream`]: server-sent events.
//! - [`schema`]: the request as OpenAPI describes it.

mod choices;
mod format;
mod messages;
mod query;
mod record;
pub mod request;
pub mod response;
pub mod schema;
pub mod stream;
#[cfg(test)]
mod tests;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

pub use messages::{ChatMessage, Part};
pub(super) use query::generation as pinned_generation;
pub use request::ChatRequest;

use self::choices::Choices;
use self::query::Asker;
use super::App;
use super::auth::Caller;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use super::observe::Arrival;
use crate::answer::AnswerError;
use crate::engine::grammar::Grammar;
use crate::images::ReadImage;

/// How the answer is written.
struct Head {
    id: String,
    created: u64,
    model: String,
    n: usize,
    logprobs: bool,
    stream: bool,
    include_usage: bool,
}

/// Answers a conversation.
///
/// The header `x-reground-generation` and `system_fingerprint` name the generation that answered. The same `seed`, request
/// and generation give the same answer, whatever else runs.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "chat",
    request_body = schema::ChatCompletionRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events that end with `data: [DONE]`",
            content((response::ChatCompletion = "application/json"), (stream::ChatCompletionChunk = "text/event-stream")),
            headers(("x-reground-generation" = String, description = "The generation that answered"),
                ("server-timing" = String, description = "Not of a stream: milliseconds in the queue and in the engine"))),
        (status = 400, description = "A parameter is refused; `param` names it", body = ErrorBody),
        (status = 404, description = "No such model or generation", body = ErrorBody),
        (status = 413, description = "The body is too large", body = ErrorBody),
        (status = 415, description = "The body is no JSON by its Content-Type", body = ErrorBody),
        (status = 429, description = "The queue is full, or requests under way hold as many decoded images as they may", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until a place is likely"))),
        (status = 500, description = "The engine failed", body = ErrorBody),
        (status = 503, description = "The engine is being rebuilt, or the server is going down", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds"))),
        (status = 504, description = "The answer was not ready in time", body = ErrorBody),
    ))]
pub(super) async fn create(
    app: web::Data<App>,
    caller: Caller,
    arrival: Arrival,
    http: HttpRequest,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    let (head, choices) = begin(&app, caller, arrival.0, &http, body).await?;
    if head.stream {
        stream::respond(head, choices, Duration::from_secs(app.config.server.keep_alive_s)).await
    } else {
        response::respond(head, choices).await
    }
}

/// From the body to the answers under way.
async fn begin(
    app: &Arc<App>,
    caller: Caller,
    arrival: Instant,
    http: &HttpRequest,
    body: JsonBody,
) -> Result<(Head, Choices), ApiError> {
    if app.shutdown.is_cancelled() {
        return Err(AnswerError::ShuttingDown.into());
    }
    let checker = app.clone();
    let (mut request, pinned, sticky) = body
        .parse(move |bytes| {
            let request = request::parse(bytes)?;
            let pinned = query::generation(&request.model, &checker.config.model.name, &checker.generations)?;
            query::check(&request, checker.generations.info())?;
            // Here, because a large body is parsed off the async threads, and hashing it takes as long.
            let sticky = query::sticky(&request);
            Ok((request, pinned, sticky))
        })
        .await?;
    let recorder = record::wanted(app, &request, http)?;
    check_grammar(app, &request).await?;
    let deadline = arrival + app.deadline();
    let images = read_images(app, &mut request, &caller.name, deadline).await?;
    // Several choices are one answer: a generation that goes live between them must not come into it.
    let lease = if request.n > 1 && pinned.is_none() {
        let entered = app.generations.enter(sticky, &caller.name, deadline).await;
        Some(entered.map_err(|error| AnswerError::refused(error, arrival))?)
    } else {
        None
    };
    // Drawn here, so that the record has it.
    request.seed.get_or_insert_with(rand::random);
    let id = format!("chatcmpl-{}", Uuid::now_v7());
    let draft = recorder.and_then(|recorder| record::draft(recorder, &request, &id, &caller, &images, arrival));
    let images = images.into_iter().map(|read| read.image).collect();
    let asker = Asker { key: caller.name, deadline, generation: pinned, lease, sticky };
    let queries = query::queries(&mut request, images, &asker);
    let choices = Choices::start(&app.answerer, queries, arrival, draft);
    Ok((Head::of(id, request), choices))
}

/// A schema that cannot be enforced, of the answer or of a tool's arguments, is refused before it waits in the queue. Compiling one can
/// take a while, which must not hold up other requests' tokens.
async fn check_grammar(app: &Arc<App>, request: &ChatRequest) -> Result<(), ApiError> {
    let asked = request.grammar.clone().filter(|grammar| matches!(grammar, Grammar::JsonSchema(_)));
    let demanded = tools::Demanded::of(&request.tools, &request.tool_choice);
    if asked.is_none() && demanded.is_none() {
        return Ok(());
    }
    let vocabulary = app.generations.info().vocabulary.clone();
    let check = move || {
        if let Some(grammar) = asked {
            let compiled = grammar.matcher(&vocabulary);
            compiled.map_err(|error| ApiError::from(error).at("response_format.json_schema.schema"))?;
        }
        demanded.map_or(Ok(()), |demanded| demanded.check(&vocabulary))
    };
    web::block(check).await.map_err(|_| ApiError::internal("the thread that compiled the schema is gone"))?
}

async fn read_images(
    app: &App,
    request: &mut ChatRequest,
    key: &Arc<str>,
    deadline: Instant,
) -> Result<Vec<ReadImage>, ApiError> {
    let urls = query::image_urls(request);
    if urls.is_empty() {
        return Ok(Vec::new());
    }
    match timeout_at(deadline, app.images.read_all(key, &urls)).await {
        Ok(read) => read.map_err(|failed| query::failed_image(request, &failed)),
        Err(_) => Err(AnswerError::Deadline { after: app.deadline() }.into()),
    }
}

impl Head {
    fn of(id: String, request: ChatRequest) -> Self {
        Self {
            id,
            created: super::unix_seconds(),
            model: request.model,
            n: request.n,
            logprobs: request.logprobs,
            stream: request.stream,
            include_usage: request.include_usage,
        }
    }
}
