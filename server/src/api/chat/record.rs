//! What is written down of a request.

use std::sync::Arc;

use actix_web::HttpRequest;
use reground_learner::bpo::pair;
use reground_learner::store::rows::{BootstrapState, Record, RecordedMessage, Timings};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{ChatRequest, Part};
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{ApiError, code};
use crate::engine::Role;
use crate::engine::grammar::Grammar;
use crate::images::ReadImage;
use crate::recorder::{Draft, Recorder};

/// The recorder, if the request lets itself be recorded.
///
/// # Errors
/// `store: true` where nothing is recorded, or together with the header that forbids it.
pub(super) fn wanted(app: &App, request: &ChatRequest, http: &HttpRequest) -> Result<Option<Arc<Recorder>>, ApiError> {
    let refused = |why: String| {
        ApiError::bad_request(code::UNSUPPORTED_VALUE, format!("`store` must be false: {why}")).at("store")
    };
    let recorder = &app.recorder;
    if !recorder.config().enabled {
        return match request.store {
            Some(true) => Err(refused("this server records nothing".into())),
            _ => Ok(None),
        };
    }
    let header = recorder.config().opt_out_header.as_str();
    match (request.store, http.headers().contains_key(header)) {
        (Some(true), true) => Err(refused(format!("the header {header} forbids it"))),
        (Some(false), _) | (_, true) => Ok(None),
        (_, false) => Ok(Some(recorder.clone())),
    }
}

/// The beginning of a record; `None` where the conversation is not among those that are sampled.
pub(super) fn draft(
    recorder: Arc<Recorder>,
    request: &ChatRequest,
    id: &str,
    caller: &Caller,
    images: &[ReadImage],
    arrival: Instant,
) -> Option<Draft> {
    let stored = request.store == Some(true);
    let conversation = conversation(request, caller, images);
    if !stored && !recorder.samples(&conversation) {
        return None;
    }
    let record = Record {
        id: id.to_owned(),
        created_ms: 0,
        model: request.model.clone(),
        generation: String::new(),
        key: caller.name.to_string(),
        user: request.user.clone(),
        conversation,
        stored,
        metadata: request.metadata.clone(),
        images: Vec::new(),
        messages: messages(request),
        tools: request.tools.clone(),
        parameters: parameters(request),
        answers: Vec::new(),
        prompt_tokens: 0,
        timings: Timings::default(),
        config_digest: String::new(),
        redactions: 0,
        bootstrap: BootstrapState::Waiting,
    };
    Some(Draft::new(recorder, record, request.n, images, arrival))
}

/// What all turns of a conversation have in common: who asks, and everything up to the first thing that the user says.
fn conversation(request: &ChatRequest, caller: &Caller, images: &[ReadImage]) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(&caller.name);
    add(request.user.as_deref().unwrap_or_default());
    let mut images = images.iter();
    for said in &request.messages {
        add(said.role.as_str());
        for part in &said.content {
            match part {
                Part::Text(text) => add(text),
                Part::Image(_) => add(images.next().map_or("", |image| &image.digest)),
            }
        }
        if said.role == Role::User {
            break;
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

fn messages(request: &ChatRequest) -> Vec<RecordedMessage> {
    let mut images = 0..;
    let mut part = |part: &Part| match part {
        Part::Text(text) => pair::Part::Text { text: text.clone() },
        Part::Image(_) => pair::Part::Image { index: images.next().unwrap_or_default() },
    };
    let said = request.messages.iter().map(|said| RecordedMessage {
        role: said.role.as_str().to_owned(),
        content: said.content.iter().map(&mut part).collect(),
        tool_calls: said.tool_calls.clone(),
        tool_call_id: said.tool_call_id.clone(),
    });
    said.collect()
}

fn parameters(request: &ChatRequest) -> Map<String, Value> {
    let all = json!({
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "seed": request.seed.map(u64::cast_signed),
        "max_completion_tokens": request.max_tokens,
        "stop": request.stop,
        "logit_bias": (!request.logit_bias.is_empty()).then(|| {
            request.logit_bias.iter().map(|(id, bias)| (id.to_string(), Value::from(*bias))).collect::<Map<_, _>>()
        }),
        // Which kind; a schema can be larger than everything else in the record.
        "response_format": request.grammar.as_ref().map(|grammar| json!({"type": match grammar {
            Grammar::JsonObject => "json_object",
            Grammar::JsonSchema(_) => "json_schema",
        }})),
    });
    match all {
        Value::Object(parameters) => parameters,
        _ => Map::new(),
    }
}
