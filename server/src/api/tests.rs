//! The routes over HTTP, above an engine that repeats what it is told.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::body::{self, BoxBody, MessageBody};
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::header::HeaderMap;
use actix_web::middleware::from_fn;
use actix_web::test::{self, TestRequest};
use actix_web::{App as ActixApp, Error, HttpResponse, rt, web};
use futures::future::poll_fn;
use serde_json::{Value, json};

use super::observe::{catch_panic, observe};
use super::routes::configure;
use super::testing::{self, Watch, data_url, open_server};
use crate::config::{Config, Role};

const CHAT: &str = "/v1/chat/completions";

/// An actix service with all routes.
macro_rules! serve {
    ($server:expr) => {
        test::init_service(ActixApp::new().configure(configure($server.app.clone()))).await
    };
}

/// What came back.
struct Reply {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Status, code and parameter of an error.
    fn error(&self) -> (u16, String, String) {
        let body = self.json();
        let fields: Vec<&str> = body["error"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["message", "type", "param", "code"], "{body}");
        let text = |name: &str| body["error"][name].as_str().unwrap_or("").to_owned();
        assert!(!text("message").is_empty());
        (self.status, text("code"), text("param"))
    }

    /// The events of a stream, without `[DONE]`; and whether that came.
    fn events(&self) -> (Vec<Value>, bool) {
        let mut events: Vec<&str> =
            self.text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        let done = events.last() == Some(&"[DONE]");
        if done {
            events.pop();
        }
        (events.iter().map(|event| serde_json::from_str(event).unwrap()).collect(), done)
    }
}

async fn send<S, R, B>(service: &S, request: R) -> Reply
where
    S: Service<R, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let response = test::call_service(service, request).await;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = body::to_bytes(response.into_body()).await.unwrap_or_else(|_| panic!("the body broke"));
    Reply { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

fn ask(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "reground", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn post(path: &str, body: &Value) -> TestRequest {
    TestRequest::post().uri(path).set_json(body)
}

/// A request with the content of a stream's chunks, and whether the choice ended.
fn text_of(events: &[Value], choice: u64) -> (String, Value) {
    let (mut text, mut finish) = (String::new(), Value::Null);
    for event in events {
        for part in event["choices"].as_array().unwrap().iter().filter(|part| part["index"] == choice) {
            text.push_str(part["delta"]["content"].as_str().unwrap_or(""));
            if !part["finish_reason"].is_null() {
                finish = part["finish_reason"].clone();
            }
        }
    }
    (text, finish)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    panic!("waited in vain until {what}");
}

fn active(watch: &Watch) -> usize {
    watch.active.load(Ordering::SeqCst)
}

/// The next write of a body, as text.
async fn next(body: &mut Pin<Box<BoxBody>>) -> Option<String> {
    let bytes = poll_fn(|cx| body.as_mut().poll_next(cx)).await?;
    Some(String::from_utf8(bytes.map_err(|_| "the body broke").unwrap().to_vec()).unwrap())
}

#[actix_web::test]
async fn an_answer_has_openais_shape() {
    let server = open_server().await;
    let service = serve!(server);
    let request = post(CHAT, &ask("hello", json!({}))).insert_header(("x-request-id", "mine-1"));
    let reply = send(&service, request.to_request()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
    assert_eq!(reply.header("x-reground-generation"), Some("base"));
    let mut body = reply.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    body["id"] = json!("");
    body["created"] = json!(0);
    let expected = json!({
        "id": "", "object": "chat.completion", "created": 0, "model": "reground", "system_fingerprint": "base",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "hello", "refusal": null}, "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
        },
    });
    assert_eq!(body, expected);
}

#[actix_web::test]
async fn several_choices_have_seeds_and_log_probabilities_of_their_own() {
    let server = open_server().await;
    let service = serve!(server);
    let more = json!({"n": 3, "seed": -1, "max_tokens": 2, "logprobs": true, "top_logprobs": 2});
    let reply = send(&service, post(CHAT, &ask("höhe", more)).to_request()).await;
    let body = reply.json();
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3, "{body}");
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(index), &json!("length")));
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!((tokens[0]["token"].as_str(), &tokens[0]["bytes"]), (Some("h"), &json!([104])));
        assert_eq!(tokens[0]["logprob"], json!(-0.5));
        // Half a character: the text is a replacement, the bytes are exact.
        assert_eq!((tokens[1]["token"].as_str(), &tokens[1]["bytes"]), (Some("\u{fffd}"), &json!([0xc3])));
        assert_eq!(tokens[1]["top_logprobs"].as_array().unwrap().len(), 2);
    }
    assert_eq!(body["usage"]["completion_tokens"], 6);
    assert_eq!(body["usage"]["prompt_tokens"], 7);
    let mut seeds: Vec<u64> = server.watch.asked.lock().unwrap().iter().map(|asked| asked.sampling.seed).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [0, 1, u64::MAX]);
}

#[actix_web::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = open_server().await;
    let service = serve!(server);
    let more = json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let reply = send(&service, post(CHAT, &ask("hello", more)).to_request()).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(reply.header("x-reground-generation"), Some("base"));
    let (events, done) = reply.events();
    assert!(done);
    for choice in 0..2 {
        assert_eq!(text_of(&events, choice), ("hello".to_owned(), json!("stop")));
    }
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": "", "refusal": null}));
    assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event["object"] == "chat.completion.chunk"));
    let (last, others) = events.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
    assert!(others.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));

    let more = json!({"stream": true, "logprobs": true});
    let (events, done) = send(&service, post(CHAT, &ask("hi", more)).to_request()).await.events();
    assert!(done && events.iter().all(|event| event.get("usage").is_none()));
    let tokens: Vec<&Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .map(|token| &token["token"])
        .collect();
    assert_eq!(tokens, [&json!("h"), &json!("i")]);
    assert_eq!(events.last().unwrap()["choices"][0]["delta"], json!({}));
}

#[actix_web::test]
async fn tool_calls_are_calls_in_both_shapes() {
    let server = open_server().await;
    let service = serve!(server);
    let call = r#"{"name": "look", "arguments": {"at": 1}}"#;
    let tools = json!([{"type": "function", "function": {"name": "look"}}]);
    let body = send(&service, post(CHAT, &ask(call, json!({ "tools": tools }))).to_request()).await.json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let first = &choice["message"]["tool_calls"][0];
    assert_eq!((&first["type"], &first["function"]["name"]), (&json!("function"), &json!("look")));
    assert!(first["id"].as_str().unwrap().starts_with("call_") && first.get("index").is_none());

    let streamed = json!({"tools": tools, "stream": true});
    let (events, done) = send(&service, post(CHAT, &ask(call, streamed)).to_request()).await.events();
    assert!(done);
    let calls: Vec<&Value> =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!((calls.len(), &calls[0]["index"]), (1, &json!(0)));
    let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"at": 1}));
    assert_eq!(text_of(&events, 0), (String::new(), json!("tool_calls")));
}

#[actix_web::test]
async fn an_error_has_its_status_before_the_first_piece_and_is_the_last_event_after_it() {
    let server = open_server().await;
    let service = serve!(server);
    for stream in [false, true] {
        let reply = send(&service, post(CHAT, &ask("!refuse", json!({ "stream": stream }))).to_request()).await;
        assert_eq!(reply.error(), (400, "invalid_value".into(), String::new()));
    }
    let reply = send(&service, post(CHAT, &ask("!fail now", json!({}))).to_request()).await;
    assert_eq!(reply.error(), (500, "internal_error".into(), String::new()));
    let reply = send(&service, post(CHAT, &ask("!fail now", json!({"stream": true}))).to_request()).await;
    assert_eq!(reply.status, 200);
    let (events, done) = reply.events();
    let (last, before) = events.split_last().unwrap();
    assert!(!done);
    assert_eq!(text_of(before, 0), ("!fa".to_owned(), Value::Null));
    assert_eq!((&last["error"]["code"], &last["error"]["type"]), (&json!("internal_error"), &json!("server_error")));
    // The next one is answered.
    assert_eq!(send(&service, post(CHAT, &ask("hi", json!({}))).to_request()).await.status, 200);
}

#[actix_web::test]
async fn a_client_that_leaves_cancels_its_answers() {
    let server = open_server().await;
    let service = serve!(server);
    let request = post(CHAT, &ask("!hang on", json!({"stream": true, "n": 2}))).to_request();
    let response = test::call_service(&service, request).await;
    let mut body = Box::pin(BoxBody::new(response.into_body()));
    assert!(next(&mut body).await.unwrap().contains("assistant"));
    assert_eq!(active(&server.watch), 2);
    drop(body);
    until("the streams are cancelled", || active(&server.watch) == 0).await;

    // Before the first byte there is only the handler's future to drop.
    let waiting = test::call_service(&service, post(CHAT, &ask("!mute", json!({}))).to_request());
    assert!(tokio::time::timeout(Duration::from_millis(100), waiting).await.is_err());
    until("the answer is cancelled", || active(&server.watch) == 0).await;
    assert_eq!(send(&service, post(CHAT, &ask("hi", json!({}))).to_request()).await.status, 200);
}

#[actix_web::test]
async fn an_idle_stream_is_kept_alive_and_ends_with_an_error_when_the_server_goes() {
    let mut config = Config::default();
    config.server.keep_alive_s = 1;
    let server = testing::server(config, &[], true).await;
    let service = serve!(server);
    let request = post(CHAT, &ask("!hang on", json!({"stream": true}))).to_request();
    let mut body = Box::pin(BoxBody::new(test::call_service(&service, request).await.into_body()));
    let mut text = String::new();
    while !text.contains(": keep-alive") {
        text.push_str(&next(&mut body).await.unwrap());
    }
    assert!(text.ends_with(": keep-alive\n\n"), "{text}");
    server.app.shutdown.cancel();
    let reply = send(&service, TestRequest::get().uri("/ready").to_request()).await;
    assert_eq!((reply.error().0, reply.header("retry-after")), (503, Some("5")));
    let reply = send(&service, post(CHAT, &ask("hi", json!({}))).to_request()).await;
    assert_eq!(reply.error(), (503, "shutting_down".into(), String::new()));
    server.closing.cancel();
    let last = next(&mut body).await.unwrap();
    assert!(last.starts_with("data: {\"error\":") && last.contains("shutting_down"), "{last}");
    assert_eq!(next(&mut body).await, None);
}

#[actix_web::test]
async fn what_takes_too_long_or_finds_no_place_says_so() {
    let mut config = Config::default();
    config.admission.deadline_s = 5;
    config.admission.queue = 1;
    config.admission.queue_per_key = 1;
    let server = testing::server(config, &[], true).await;
    let service = std::rc::Rc::new(serve!(server));
    let slow: Vec<_> = (0..3)
        .map(|_| {
            let service = service.clone();
            rt::spawn(async move { send(&*service, post(CHAT, &ask("!mute", json!({}))).to_request()).await })
        })
        .collect();
    until("two run and one waits", || {
        let queue = server.app.generations.live().unwrap().admission.snapshot();
        (queue.running, queue.waiting) == (2, 1)
    })
    .await;
    for body in [json!({}), json!({"stream": true}), json!({"n": 3})] {
        let reply = send(&*service, post(CHAT, &ask("hi", body)).to_request()).await;
        assert_eq!(reply.error(), (429, "rate_limit_exceeded".into(), String::new()));
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    let metrics = send(&*service, TestRequest::get().uri("/metrics").to_request()).await.text;
    assert!(metrics.contains("reground_queue_running_requests{generation=\"base\"}"), "{metrics}");
    for reply in slow {
        let reply = reply.await.unwrap();
        assert_eq!(reply.error(), (504, "deadline_exceeded".into(), String::new()));
        assert_eq!(reply.header("x-should-retry"), Some("false"));
    }
}

#[actix_web::test]
async fn bodies_under_way_have_a_limit() {
    let mut config = Config::default();
    (config.server.body_limit, config.server.bodies_limit, config.server.bodies_limit_per_key) = (1024, 3000, 2000);
    let keys = [("alice", "sk-alice", Role::Client), ("bob", "sk-bob", Role::Client)];
    let server = testing::server(config, &keys, true).await;
    let service = serve!(server);
    let asks = async |token: &str| {
        let request = post(CHAT, &ask("hi", json!({}))).insert_header(("authorization", format!("Bearer {token}")));
        send(&service, request.to_request()).await
    };
    let mut of_alice = server.app.bodies.share(&"alice".into());
    of_alice.grow(1990).unwrap();
    let reply = asks("sk-alice").await;
    assert_eq!(reply.error(), (429, "rate_limit_exceeded".into(), String::new()), "{}", reply.text);
    assert_eq!(reply.header("retry-after"), Some("5"));
    assert_eq!(asks("sk-bob").await.status, 200);
    drop(of_alice);
    assert_eq!(asks("sk-alice").await.status, 200);
}

#[actix_web::test]
async fn decoded_images_that_wait_have_a_limit() {
    let mut config = Config::default();
    // A picture of 2 x 2 pixels fits with its file, two do not.
    (config.images.max_pixels, config.images.max_per_request) = (6, 1);
    (config.images.decoded_bytes, config.images.decoded_bytes_per_key) = (120, 120);
    let keys = [("alice", "sk-alice", Role::Client)];
    let server = testing::server(config, &keys, true).await;
    let service = std::rc::Rc::new(serve!(server));
    let about = |text: &str| {
        let content = json!([{"type": "image_url", "image_url": {"url": data_url()}}, {"type": "text", "text": text}]);
        let body = ask("", json!({"messages": [{"role": "user", "content": content}]}));
        post(CHAT, &body).insert_header(("authorization", "Bearer sk-alice")).to_request()
    };
    let (under_way, asked) = (service.clone(), about("!mute"));
    let under_way = rt::spawn(async move { send(&*under_way, asked).await });
    until("one is inside", || server.watch.active.load(Ordering::SeqCst) == 1).await;
    let reply = send(&*service, about("hi")).await;
    assert_eq!(reply.error(), (429, "rate_limit_exceeded".into(), String::new()), "{}", reply.text);
    assert_eq!(reply.header("retry-after"), Some("5"));
    under_way.abort();
    assert!(under_way.await.is_err());
    // The engine of this test keeps what it was asked.
    server.watch.asked.lock().unwrap().clear();
    until("it is gone", || server.watch.active.load(Ordering::SeqCst) == 0).await;
    // The record keeps the file until it is written.
    for _ in 0..1000 {
        if send(&*service, about("hi")).await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    panic!("the images of a request that is over still take their bytes");
}

#[actix_web::test]
async fn engines_are_asked_about_long_texts_where_blocking_is_allowed() {
    let server = open_server().await;
    let service = serve!(server);
    let long = ask(&"x".repeat(5000), json!({"max_tokens": 1}));
    assert_eq!(send(&service, post(CHAT, &long).to_request()).await.status, 200);
    let asked_by = server.watch.thread.lock().unwrap().unwrap();
    assert_ne!(asked_by, std::thread::current().id());
}

#[actix_web::test]
async fn keys_open_what_their_role_says() {
    let keys = [("alice", "sk-alice", Role::Client), ("root", "sk-root", Role::Admin)];
    let server = testing::server(Config::default(), &keys, true).await;
    let service = serve!(server);
    let chat = ask("hi", json!({}));
    let adapter = json!({"lora_name": "a", "lora_path": "a"});
    let cases = [
        (TestRequest::get().uri("/health"), [200, 200, 200]),
        (TestRequest::get().uri("/ready"), [401, 200, 200]),
        (TestRequest::get().uri("/v1/models"), [401, 200, 200]),
        (TestRequest::get().uri("/openapi.json"), [401, 200, 200]),
        (TestRequest::get().uri("/nowhere"), [401, 404, 404]),
        (TestRequest::put().uri("/v1/models"), [401, 405, 405]),
        (post(CHAT, &chat), [401, 200, 200]),
        (TestRequest::get().uri("/metrics"), [401, 403, 200]),
        // The admin gets past the role, to "no adapter root".
        (post("/v1/load_lora_adapter", &adapter), [401, 403, 403]),
        (post("/v1/unload_lora_adapter", &json!({"lora_name": "a"})), [401, 403, 404]),
    ];
    for (template, statuses) in cases {
        let (method, uri) = {
            let request = template.to_request();
            (request.method().clone(), request.uri().clone())
        };
        for (key, status) in [None, Some("sk-alice"), Some("sk-root")].into_iter().zip(statuses) {
            let mut request = TestRequest::default().method(method.clone()).uri(uri.path());
            if uri.path() == CHAT {
                request = request.set_json(&chat);
            } else if method == "POST" {
                request = request.set_json(&adapter);
                if uri.path().contains("unload") {
                    request = request.set_json(json!({"lora_name": "a"}));
                }
            }
            if let Some(key) = key {
                request = request.insert_header(("authorization", format!("Bearer {key}")));
            }
            let reply = send(&service, request.to_request()).await;
            assert_eq!(reply.status, status, "{method} {uri} as {key:?}: {}", reply.text);
            assert!(reply.header("x-request-id").is_some());
            assert_eq!(reply.header("www-authenticate").is_some(), status == 401, "{uri}");
        }
    }
}

#[actix_web::test]
async fn whatever_is_wrong_the_error_is_ours() {
    let mut config = Config::default();
    config.server.body_limit = 2000;
    let server = testing::server(config, &[], true).await;
    let service = serve!(server);
    let json_type = ("content-type", "application/json");
    let chat = |payload: &str| TestRequest::post().uri(CHAT).insert_header(json_type).set_payload(payload.to_owned());
    let valid = ask("hi", json!({})).to_string();
    let typed = |kind: &'static str| chat(&valid).insert_header(("content-type", kind));
    let large = "x".repeat(2001);
    let cases: Vec<(TestRequest, u16, &str, &str)> = vec![
        (TestRequest::get().uri("/"), 404, "unknown_url", ""),
        (TestRequest::get().uri("/v1/chat"), 404, "unknown_url", ""),
        (TestRequest::post().uri("/v1/models/"), 404, "unknown_url", ""),
        (TestRequest::get().uri("/v1/models/%ff%fe"), 404, "model_not_found", "model"),
        (TestRequest::get().uri("/v1/models/gpt-4"), 404, "model_not_found", "model"),
        (TestRequest::put().uri(CHAT), 405, "method_not_allowed", ""),
        (TestRequest::delete().uri("/health"), 405, "method_not_allowed", ""),
        (chat(""), 400, "invalid_json", ""),
        (chat("{"), 400, "invalid_json", ""),
        (chat("[]"), 400, "invalid_type", ""),
        (chat(&large), 413, "body_too_large", ""),
        (chat(&valid).insert_header(("content-length", "999999999")), 413, "body_too_large", ""),
        (typed("text/plain"), 415, "unsupported_media_type", ""),
        (typed("application/x-www-form-urlencoded"), 415, "unsupported_media_type", ""),
        (TestRequest::post().uri(CHAT).set_payload(valid.clone()), 415, "unsupported_media_type", ""),
        (chat(&valid).insert_header(("content-encoding", "gzip")), 415, "unsupported_media_type", ""),
        (post(CHAT, &ask("hi", json!({"model": "gpt-4"}))), 404, "model_not_found", "model"),
        (post(CHAT, &ask("hi", json!({"model": "reground@nowhere"}))), 404, "model_not_found", "model"),
        (post(CHAT, &ask("hi", json!({"model": "regrounds"}))), 404, "model_not_found", "model"),
        (post(CHAT, &ask("hi", json!({"max_tokens": 1001}))), 400, "invalid_value", "max_tokens"),
        (post(CHAT, &ask("hi", json!({"logit_bias": {"342": 1}}))), 400, "invalid_value", "logit_bias.342"),
        (post(CHAT, &ask("a <image> b", json!({}))), 400, "control_token", "messages[0].content"),
    ];
    for (index, (request, status, code, param)) in cases.into_iter().enumerate() {
        let reply = send(&service, request.to_request()).await;
        assert_eq!(reply.error(), (status, code.to_owned(), param.to_owned()), "case {index}: {}", reply.text);
        assert_eq!(reply.header("allow").is_some(), status == 405, "case {index}");
        assert!(reply.header("x-request-id").unwrap().starts_with("req-"));
    }
    let reply = send(&service, typed("Application/JSON; charset=utf-8").to_request()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[actix_web::test]
async fn what_this_model_cannot_take_is_refused_by_its_place() {
    let server = open_server().await;
    let service = serve!(server);
    let said = |messages: Value| ask("", json!({ "messages": messages }));
    let text = |text: &str| json!({"type": "text", "text": text});
    let image = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    let user = json!({"role": "user", "content": "hi"});
    let call = |arguments: &str| {
        json!({"role": "assistant", "tool_calls":
            [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]})
    };
    let tool = |text: &str| json!({"type": "function", "function": {"name": "f", "description": text}});
    let schema = |schema: Value| {
        ask("hi", json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}))
    };
    let bad_tool =
        json!({"type": "function", "function": {"name": "g", "parameters": {"properties": {"a": {"$ref": "#/gone"}}}}});
    let token = "control_token";
    let cases: Vec<(Value, &str, &str)> = vec![
        (said(json!([{"role": "system", "content": "<image>"}, user])), token, "messages[0].content"),
        (said(json!([user, {"role": "user", "content": [text("<ima"), text("ge>")]}])), token, "messages[1].content"),
        (said(json!([user, call("\"<image>\"")])), token, "messages[1].tool_calls"),
        (ask("hi", json!({"tools": [tool("see <end_of_utterance>")]})), token, "tools[0]"),
        (
            said(
                json!([user, {"role": "user", "content": [text("a"), image(&data_url()), image("data:image/png;base64,AAAA")]}]),
            ),
            "unsupported_image_format",
            "messages[1].content[2].image_url.url",
        ),
        (
            said(json!([{"role": "user", "content": [image("http://127.0.0.1/a.png")]}])),
            "image_url_not_allowed",
            "messages[0].content[0].image_url.url",
        ),
        (schema(json!({"type": "nothing"})), "invalid_value", "response_format.json_schema.schema"),
        (
            ask("hi", json!({"tools": [tool("x"), bad_tool], "tool_choice": "required"})),
            "invalid_value",
            "tools[1].function.parameters",
        ),
    ];
    for (body, code, param) in cases {
        let reply = send(&service, post(CHAT, &body).to_request()).await;
        assert_eq!(reply.error(), (400, code.to_owned(), param.to_owned()), "{}", reply.text);
    }
    assert!(server.watch.asked.lock().unwrap().is_empty());
    let body = said(json!([{"role": "user", "content": [image(&data_url()), text("so"), text("!")]}]));
    let reply = send(&service, post(CHAT, &body).to_request()).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "so!");

    let server = testing::server(Config::default(), &[], false).await;
    let service = serve!(server);
    let answered = json!({"role": "tool", "content": "x", "tool_call_id": "c"});
    for (body, param) in [
        (ask("hi", json!({"tools": [tool("x")]})), "tools"),
        (said(json!([user, call("{}"), answered])), "messages[1]"),
    ] {
        let reply = send(&service, post(CHAT, &body).to_request()).await;
        assert_eq!(reply.error(), (400, "unsupported_value".into(), param.into()), "{}", reply.text);
    }
}

#[actix_web::test]
async fn adapters_come_and_go_as_generations() {
    let root = tempfile::tempdir().unwrap();
    fs_err::create_dir(root.path().join("one")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs_err::write(root.path().join("one").join(file), "{}").unwrap();
    }
    let mut config = Config::default();
    config.model.adapter_root = root.path().to_owned();
    let server = testing::server(config, &[], true).await;
    let service = serve!(server);
    let load = |body: Value| send(&service, post("/v1/load_lora_adapter", &body).to_request());
    let unload = |name: &str| {
        let body = json!({ "lora_name": name });
        let request = post("/v1/unload_lora_adapter", &body).to_request();
        send(&service, request)
    };
    let reply = load(json!({"lora_name": "a-1", "lora_path": "one", "load_inplace": false})).await;
    assert_eq!((reply.status, &*reply.text), (200, "Success: LoRA adapter 'a-1' added successfully."));
    for (body, error) in [
        (json!({"lora_name": "a-1", "lora_path": "one"}), (409, "conflict", "lora_name")),
        (json!({"lora_name": "a b", "lora_path": "one"}), (400, "invalid_value", "lora_name")),
        (json!({"lora_name": "a-2", "lora_path": "two"}), (404, "adapter_not_found", "lora_path")),
        (json!({"lora_name": "a-2", "lora_path": "../one"}), (400, "invalid_value", "lora_path")),
        (json!({"lora_name": "a-2"}), (400, "missing_required_parameter", "lora_path")),
        (json!({"lora_name": "a-2", "lora_path": "one", "x": 1}), (400, "unsupported_parameter", "x")),
        (
            json!({"lora_name": "a-2", "lora_path": "one", "load_inplace": true}),
            (400, "unsupported_value", "load_inplace"),
        ),
    ] {
        let (status, code, param) = error;
        assert_eq!(load(body).await.error(), (status, code.to_owned(), param.to_owned()));
    }
    let models = send(&service, TestRequest::get().uri("/v1/models").to_request()).await.json();
    let listed: Vec<_> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (model["id"].as_str().unwrap(), model["generation"].as_str().unwrap(), model["live"] == true))
        .collect();
    assert_eq!(listed, [("reground", "base", true), ("reground@a-1", "a-1", false), ("reground@base", "base", true)]);
    let one = send(&service, TestRequest::get().uri("/v1/models/reground@a-1").to_request()).await.json();
    assert_eq!((&one["id"], &one["object"]), (&json!("reground@a-1"), &json!("model")));
    let pinned = post(CHAT, &ask("hi", json!({"model": "reground@a-1"}))).to_request();
    let reply = send(&service, pinned).await;
    assert_eq!(reply.header("x-reground-generation"), Some("a-1"));
    assert_eq!(reply.json()["system_fingerprint"], "a-1");
    assert_eq!(unload("base").await.error().0, 409);
    assert_eq!(unload("a-1").await.text, "Success: LoRA adapter 'a-1' removed successfully.");
    assert_eq!(unload("a-1").await.error(), (404, "adapter_not_found".into(), "lora_name".into()));
}

#[actix_web::test]
async fn readiness_follows_the_engine() {
    let server = open_server().await;
    let service = serve!(server);
    let get = |path: &str| {
        let request = TestRequest::get().uri(path).to_request();
        send(&service, request)
    };
    assert_eq!(get("/ready").await.json(), json!({"status": "ready", "generation": "base"}));
    server.watch.down.store(true, Ordering::SeqCst);
    assert_eq!(get("/ready").await.error(), (503, "engine_unavailable".into(), String::new()));
    assert_eq!(get("/health").await.json(), json!({"status": "ok"}));
    let reply = send(&service, post(CHAT, &ask("hi", json!({}))).to_request()).await;
    assert_eq!((reply.error().0, reply.header("retry-after")), (503, Some("1")));
}

#[actix_web::test]
async fn prometheus_hears_of_requests_and_answers() {
    let server = open_server().await;
    let service = serve!(server);
    send(&service, post(CHAT, &ask("hello", json!({}))).to_request()).await;
    send(&service, TestRequest::get().uri("/v1/models/a/b").to_request()).await;
    send(&service, TestRequest::get().uri("/nowhere/at-all").to_request()).await;
    let reply = send(&service, TestRequest::get().uri("/metrics").to_request()).await;
    assert!(reply.header("content-type").unwrap().starts_with("text/plain"));
    for line in [
        "reground_requests_total{route=\"/v1/chat/completions\",status=\"200\"}",
        "reground_requests_total{route=\"/v1/models/{model}\",status=\"404\"}",
        "reground_requests_total{route=\"unmatched\",status=\"404\"}",
        "reground_request_duration_seconds_bucket{route=\"/v1/chat/completions\",le=\"0.005\"}",
        "reground_first_token_seconds_count{generation=\"base\"}",
        "reground_output_rate_tokens_per_second_count{generation=\"base\"}",
        "reground_output_tokens_total{generation=\"base\"}",
        "reground_prompt_tokens_total{generation=\"base\"}",
        "reground_answers_total{generation=\"base\",outcome=\"stop\"}",
        "reground_queue_waiting_requests{generation=\"base\"} 0",
    ] {
        assert!(reply.text.contains(line), "{line} is missing in\n{}", reply.text);
    }
    assert!(!reply.text.contains("at-all"));
}

#[actix_web::test]
async fn browsers_may_call_from_configured_origins_only() {
    let mut config = Config::default();
    config.server.cors_origins = vec!["https://app.example".into()];
    let keys = [("alice", "sk-alice", Role::Client)];
    let server = testing::server(config, &keys, true).await;
    let service = serve!(server);
    let preflight = |origin: &'static str| {
        TestRequest::default()
            .method(actix_web::http::Method::OPTIONS)
            .uri(CHAT)
            .insert_header(("origin", origin))
            .insert_header(("access-control-request-method", "POST"))
            .insert_header(("access-control-request-headers", "authorization,content-type"))
            .to_request()
    };
    let reply = send(&service, preflight("https://app.example")).await;
    assert_eq!(reply.status, 200, "a preflight has no key: {}", reply.text);
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://app.example"));
    let reply = send(&service, preflight("https://evil.example")).await;
    assert_eq!(reply.header("access-control-allow-origin"), None);
    // An error can be read by the page too.
    let request = TestRequest::get().uri("/v1/models").insert_header(("origin", "https://app.example")).to_request();
    let reply = send(&service, request).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (401, Some("https://app.example")));

    let server = open_server().await;
    let service = serve!(server);
    assert_eq!(
        send(&service, preflight("https://app.example")).await.error().0,
        403,
        "nor, without keys, may they send"
    );
}

#[actix_web::test]
async fn a_handler_that_panics_is_an_internal_error() {
    async fn panics() -> HttpResponse {
        panic!("on purpose")
    }
    let resource = web::resource("/panic").route(web::get().to(panics)).wrap(from_fn(catch_panic));
    let scope = web::scope("").service(resource).wrap(from_fn(observe));
    let service = test::init_service(ActixApp::new().service(scope)).await;
    let reply = send(&service, TestRequest::get().uri("/panic").to_request()).await;
    assert_eq!(reply.error(), (500, "internal_error".into(), String::new()));
    assert!(reply.header("x-request-id").is_some());
}

#[actix_web::test]
async fn a_generation_is_observed_as_its_answers_go() {
    let server = open_server().await;
    let service = serve!(server);
    for (text, more, status) in [
        ("hello", json!({}), 200),
        ("hello", json!({"stream": true}), 200),
        ("hello", json!({"n": 2}), 200),
        ("!fail at once", json!({}), 500),
        ("!fail later", json!({"stream": true}), 200),
        // That is the caller's fault.
        ("!refuse", json!({}), 400),
    ] {
        let reply = send(&service, post(CHAT, &ask(text, more)).to_request()).await;
        assert_eq!(reply.status, status, "{text}: {}", reply.text);
    }
    let seen = server.app.generations.live().unwrap().observed.all();
    assert_eq!(seen.failures.count(), 6);
    assert!((seen.failures.mean() - 2.0 / 6.0).abs() < 1e-12);
    assert_eq!((seen.first_token.count(), seen.per_token.count()), (6, 6));
}

/// How fast a generation is must not depend on whether clients have its answers streamed.
#[actix_web::test]
async fn a_plain_answer_is_timed_by_its_tokens() {
    let server = open_server().await;
    let service = serve!(server);
    let reply = send(&service, post(CHAT, &ask("!slow answer", json!({}))).to_request()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let seen = server.app.generations.live().unwrap().observed.all();
    let per_token = seen.per_token.mean().exp();
    assert!(per_token >= 0.0019, "{per_token} s per token, though all of them were read at once");
}

#[actix_web::test]
async fn a_query_is_answered_a_second_time_for_the_counters_alone() {
    let server = open_server().await;
    let service = serve!(server);
    let _shadow = server.app.answerer.shadow().start();
    let adapter = crate::engine::source::golden("adapter");
    let id = server.app.rollout.import(adapter, crate::rollout::Origin::default()).await.unwrap().id;
    let path = format!("/v1/adapters/{id}/shadow");
    let reply = send(&service, post(&path, &json!({"percent": 101})).to_request()).await;
    assert_eq!(reply.error(), (400, "invalid_value".into(), "percent".into()));
    let reply = send(&service, post(&path, &json!({"percent": 100})).to_request()).await;
    assert_eq!(reply.json()["shadow"], json!({"generation": id, "percent": 100}));
    for (text, more) in [
        ("hello", json!({"n": 2})),
        ("stop here please", json!({"stop": "here", "stream": true})),
        // Nobody's answer is compared with one that never came.
        ("!fail now", json!({})),
        ("!refuse", json!({})),
    ] {
        send(&service, post(CHAT, &ask(text, more)).to_request()).await;
    }
    let compared = || server.app.answerer.shadow().comparison().unwrap();
    until("three answers are compared", || compared().same.count() == 3).await;
    let compared = compared();
    assert_eq!((compared.same.mean(), compared.common.mean(), compared.failed), (1.0, 1.0, 0), "an echo says the same");
    assert_eq!(compared.of_live.tokens, compared.of_shadow.tokens);
    assert!(
        (compared.of_live.logprob.mean() + 0.5).abs() < 1e-9 && (compared.of_shadow.logprob.mean() + 0.75).abs() < 1e-9
    );
}
