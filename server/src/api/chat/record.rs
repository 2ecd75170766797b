//! What is written down of a request.

use std::sync::Arc;

use actix_web::{HttpMessage, HttpRequest};
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
/// `store: true` where nothing is recorded, or nothing of this key, or together with the header that forbids it.
pub(super) fn wanted(app: &App, request: &ChatRequest, http: &HttpRequest) -> Result<Option<Arc<Recorder>>, ApiError> {
    let refused = |why: String| {
        ApiError::bad_request(code::UNSUPPORTED_VALUE, format!("`store` must be false: {why}")).at("store")
    };
    let recorder = &app.recorder;
    let may_record = |caller: &Caller| app.config.auth.records(&caller.name);
    let never = if !recorder.config().enabled {
        Some("this server records nothing")
    } else if !http.extensions().get::<Caller>().is_some_and(may_record) {
        Some("nothing that is asked with this key is recorded")
    } else {
        None
    };
    if let Some(why) = never {
        return match request.store {
            Some(true) => Err(refused(why.into())),
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

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::api::chat::request;
    use crate::api::testing;
    use crate::config::{Config, Role as KeyRole};

    fn asked(store: Value) -> ChatRequest {
        let mut body = json!({"model": "reground", "messages": [{"role": "user", "content": "hi"}]});
        body["store"] = store;
        request::parse(body.to_string().as_bytes()).unwrap()
    }

    #[actix_web::test]
    async fn nothing_is_recorded_of_a_key_that_forbids_it() {
        let server = testing::server(Config::default(), &[("app", "sk-app", KeyRole::Client)], true).await;
        let http = TestRequest::default().to_http_request();
        http.extensions_mut().insert(server.app.keyring.find("sk-app").unwrap());
        let mut app = server.app.into_inner();
        let app = Arc::get_mut(&mut app).unwrap();
        for store in [json!(null), json!(true)] {
            assert!(wanted(app, &asked(store), &http).unwrap().is_some());
        }
        let mut config = Config::clone(&app.config);
        config.auth.keys[0].record = false;
        app.config = Arc::new(config);
        for store in [json!(null), json!(false)] {
            assert!(wanted(app, &asked(store), &http).unwrap().is_none());
        }
        let refused = wanted(app, &asked(json!(true)), &http).err().unwrap();
        assert_eq!(refused.param.as_deref(), Some("store"), "{}", refused.message);
    }
}
