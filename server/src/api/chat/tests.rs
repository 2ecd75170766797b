//! The request parser against what it must take and what it must refuse.

use serde_json::{Value, json};

use super::request::{self, ChatRequest};
use super::{ChatMessage, Part};
use crate::answer::ToolChoice;
use crate::api::error::code::{
    INVALID_JSON, INVALID_TYPE, INVALID_VALUE, MISSING, UNSUPPORTED_PARAMETER, UNSUPPORTED_VALUE,
};
use crate::engine::Role;
use crate::engine::grammar::Grammar;

/// A valid request with some fields replaced.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "reground", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// A valid request with these messages.
fn said(messages: Value) -> Value {
    with(json!({ "messages": messages }))
}

fn parse(body: &Value) -> ChatRequest {
    request::parse(body.to_string().as_bytes()).unwrap()
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

#[test]
fn refuses_by_name() {
    let user = json!({"role": "user", "content": "hi"});
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let part = |part: Value| said(json!([{"role": "user", "content": [part]}]));
    let stops: Vec<String> = (0..5).map(|n| n.to_string()).collect();
    let tools: Vec<Value> = (0..129).map(|n| tool(&format!("f{n}"))).collect();
    let labels: Value = (0..17).map(|n| (n.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>().into();
    let schema = |schema: Value| with(json!({"response_format": {"type": "json_schema", "json_schema": schema}}));
    let cases: Vec<(Value, &str, &str)> = vec![
        // The body itself.
        (json!([]), "", INVALID_TYPE),
        (json!(null), "", INVALID_TYPE),
        (json!("hi"), "", INVALID_TYPE),
        (json!({}), "model", MISSING),
        (json!({"model": "m"}), "messages", MISSING),
        (with(json!({"model": null})), "model", MISSING),
        (with(json!({"model": 7})), "model", INVALID_TYPE),
        (with(json!({"nonsense": 1})), "nonsense", UNSUPPORTED_PARAMETER),
        (with(json!({"nonsense": null})), "nonsense", UNSUPPORTED_PARAMETER),
        (with(json!({"Temperature": 1})), "Temperature", UNSUPPORTED_PARAMETER),
        (with(json!({"best_of": 2})), "best_of", UNSUPPORTED_PARAMETER),
        // OpenAI's, unsupported.
        (with(json!({"functions": []})), "functions", UNSUPPORTED_PARAMETER),
        (with(json!({"function_call": "auto"})), "function_call", UNSUPPORTED_PARAMETER),
        (with(json!({"audio": {"voice": "a", "format": "wav"}})), "audio", UNSUPPORTED_PARAMETER),
        (with(json!({"prediction": {"type": "content"}})), "prediction", UNSUPPORTED_PARAMETER),
        (with(json!({"web_search_options": {}})), "web_search_options", UNSUPPORTED_PARAMETER),
        (with(json!({"prompt_cache_key": "k"})), "prompt_cache_key", UNSUPPORTED_PARAMETER),
        (with(json!({"store": "yes"})), "store", INVALID_TYPE),
        (with(json!({"modalities": ["audio"]})), "modalities", UNSUPPORTED_VALUE),
        (with(json!({"modalities": "text"})), "modalities", UNSUPPORTED_VALUE),
        (with(json!({"service_tier": "flex"})), "service_tier", UNSUPPORTED_VALUE),
        (with(json!({"reasoning_effort": "high"})), "reasoning_effort", UNSUPPORTED_VALUE),
        (with(json!({"verbosity": "low"})), "verbosity", UNSUPPORTED_VALUE),
        // Numbers.
        (with(json!({"temperature": -0.1})), "temperature", INVALID_VALUE),
        (with(json!({"temperature": 2.1})), "temperature", INVALID_VALUE),
        (with(json!({"temperature": 1e308})), "temperature", INVALID_VALUE),
        (with(json!({"temperature": "1"})), "temperature", INVALID_TYPE),
        (with(json!({"temperature": [1]})), "temperature", INVALID_TYPE),
        (with(json!({"temperature": true})), "temperature", INVALID_TYPE),
        (with(json!({"top_p": 0})), "top_p", INVALID_VALUE),
        (with(json!({"top_p": 1.01})), "top_p", INVALID_VALUE),
        (with(json!({"top_p": -1})), "top_p", INVALID_VALUE),
        (with(json!({"top_k": -1})), "top_k", INVALID_VALUE),
        (with(json!({"top_k": 1.5})), "top_k", INVALID_VALUE),
        (with(json!({"min_p": 1.5})), "min_p", INVALID_VALUE),
        (with(json!({"frequency_penalty": 2.5})), "frequency_penalty", INVALID_VALUE),
        (with(json!({"presence_penalty": -2.5})), "presence_penalty", INVALID_VALUE),
        (with(json!({"presence_penalty": {}})), "presence_penalty", INVALID_TYPE),
        (with(json!({"max_tokens": 0})), "max_tokens", INVALID_VALUE),
        (with(json!({"max_tokens": -5})), "max_tokens", INVALID_VALUE),
        (with(json!({"max_tokens": 1.5})), "max_tokens", INVALID_VALUE),
        (with(json!({"max_tokens": u64::MAX})), "max_tokens", INVALID_VALUE),
        (with(json!({"max_tokens": "10"})), "max_tokens", INVALID_TYPE),
        (with(json!({"max_completion_tokens": 0})), "max_completion_tokens", INVALID_VALUE),
        (with(json!({"max_tokens": 5, "max_completion_tokens": 6})), "max_tokens", INVALID_VALUE),
        (with(json!({"n": 0})), "n", INVALID_VALUE),
        (with(json!({"n": 17})), "n", INVALID_VALUE),
        (with(json!({"n": -1})), "n", INVALID_VALUE),
        (with(json!({"n": 1e9})), "n", INVALID_VALUE),
        (with(json!({"n": "2"})), "n", INVALID_TYPE),
        (with(json!({"seed": 1.5})), "seed", INVALID_VALUE),
        (with(json!({"seed": u64::MAX})), "seed", INVALID_VALUE),
        (with(json!({"seed": "x"})), "seed", INVALID_TYPE),
        (with(json!({"top_logprobs": 5})), "top_logprobs", INVALID_VALUE),
        (with(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs", INVALID_VALUE),
        (with(json!({"logprobs": true, "top_logprobs": -1})), "top_logprobs", INVALID_VALUE),
        (with(json!({"logprobs": 1})), "logprobs", INVALID_TYPE),
        // Maps and lists.
        (with(json!({"logit_bias": []})), "logit_bias", INVALID_TYPE),
        (with(json!({"logit_bias": {"x": 1}})), "logit_bias.x", INVALID_VALUE),
        (with(json!({"logit_bias": {"-1": 1}})), "logit_bias.-1", INVALID_VALUE),
        (with(json!({"logit_bias": {"5": 101}})), "logit_bias.5", INVALID_VALUE),
        (with(json!({"logit_bias": {"5": null}})), "logit_bias.5", INVALID_TYPE),
        (with(json!({"logit_bias": {"99999999999999": 1}})), "logit_bias.99999999999999", INVALID_VALUE),
        (with(json!({"stop": ""})), "stop", INVALID_VALUE),
        (with(json!({"stop": ["a", ""]})), "stop[1]", INVALID_VALUE),
        (with(json!({"stop": ["a", 7]})), "stop[1]", INVALID_TYPE),
        (with(json!({ "stop": stops })), "stop", INVALID_VALUE),
        (with(json!({"stop": 5})), "stop", INVALID_TYPE),
        (with(json!({"stop": "x".repeat(257)})), "stop", INVALID_VALUE),
        (with(json!({"metadata": "x"})), "metadata", INVALID_TYPE),
        (with(json!({"metadata": {"a": 1}})), "metadata.a", INVALID_TYPE),
        (with(json!({ "metadata": labels })), "metadata", INVALID_VALUE),
        (with(json!({"metadata": {"a": "x".repeat(513)}})), "metadata.a", INVALID_VALUE),
        (with(json!({"user": 5})), "user", INVALID_TYPE),
        (with(json!({"user": "x".repeat(257)})), "user", INVALID_VALUE),
        // Streams.
        (with(json!({"stream": "yes"})), "stream", INVALID_TYPE),
        (with(json!({"stream_options": {"include_usage": true}})), "stream_options", INVALID_VALUE),
        (with(json!({"stream": true, "stream_options": true})), "stream_options", INVALID_TYPE),
        (with(json!({"stream": true, "stream_options": {"x": 1}})), "stream_options.x", UNSUPPORTED_PARAMETER),
        (
            with(json!({"stream": true, "stream_options": {"include_usage": 1}})),
            "stream_options.include_usage",
            INVALID_TYPE,
        ),
        (
            with(json!({"stream": true, "stream_options": {"include_obfuscation": true}})),
            "stream_options.include_obfuscation",
            UNSUPPORTED_VALUE,
        ),
        // Messages.
        (said(json!([])), "messages", INVALID_VALUE),
        (said(json!({})), "messages", INVALID_TYPE),
        (said(json!("hi")), "messages", INVALID_TYPE),
        (said(json!([7])), "messages[0]", INVALID_TYPE),
        (said(json!([user, null])), "messages[1]", INVALID_TYPE),
        (said(json!([{}])), "messages[0].role", MISSING),
        (said(json!([{"role": "user"}])), "messages[0].content", MISSING),
        (said(json!([{"role": "user", "content": null}])), "messages[0].content", MISSING),
        (said(json!([{"role": "user", "content": 5}])), "messages[0].content", INVALID_TYPE),
        (said(json!([{"role": "user", "content": []}])), "messages[0].content", INVALID_VALUE),
        (said(json!([{"role": "user", "content": ["hi"]}])), "messages[0].content[0]", INVALID_TYPE),
        (said(json!([{"role": "function", "name": "f", "content": "x"}])), "messages[0].role", UNSUPPORTED_VALUE),
        (said(json!([{"role": "god", "content": "x"}])), "messages[0].role", UNSUPPORTED_VALUE),
        (said(json!([{"role": 5, "content": "x"}])), "messages[0].role", INVALID_TYPE),
        (said(json!([{"role": "user", "content": "x", "name": "bob"}])), "messages[0].name", UNSUPPORTED_PARAMETER),
        (said(json!([{"role": "user", "content": "x", "x": 1}])), "messages[0].x", UNSUPPORTED_PARAMETER),
        (
            said(json!([{"role": "user", "content": "x", "tool_calls": [call]}])),
            "messages[0].tool_calls",
            UNSUPPORTED_PARAMETER,
        ),
        (said(json!([{"role": "system", "content": "x"}])), "messages", INVALID_VALUE),
        (said(json!([user, {"role": "assistant"}])), "messages[1].content", MISSING),
        (said(json!([user, {"role": "assistant", "content": null}])), "messages[1].content", MISSING),
        (
            said(json!([user, {"role": "assistant", "content": "x", "refusal": "no"}])),
            "messages[1].refusal",
            UNSUPPORTED_PARAMETER,
        ),
        (
            said(json!([user, {"role": "assistant", "content": "x", "annotations": [1]}])),
            "messages[1].annotations",
            UNSUPPORTED_VALUE,
        ),
        (said(json!([user, {"role": "tool", "content": "x"}])), "messages[1].tool_call_id", MISSING),
        (
            said(json!([user, {"role": "tool", "content": "x", "tool_call_id": "c1"}])),
            "messages[1].tool_call_id",
            INVALID_VALUE,
        ),
        (
            said(json!([user, {"role": "assistant", "tool_calls": [{"id": "c"}]}])),
            "messages[1].tool_calls[0].type",
            MISSING,
        ),
        (
            said(json!([user, {"role": "assistant", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}]}])),
            "messages[1].tool_calls[0].function.arguments",
            INVALID_TYPE,
        ),
        (
            said(json!([{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, user])),
            "messages[0].content[0].type",
            UNSUPPORTED_VALUE,
        ),
        // Parts.
        (part(json!({})), "messages[0].content[0].type", MISSING),
        (part(json!({"type": "text"})), "messages[0].content[0].text", MISSING),
        (part(json!({"type": "text", "text": 1})), "messages[0].content[0].text", INVALID_TYPE),
        (part(json!({"type": "text", "text": "x", "y": 1})), "messages[0].content[0].y", UNSUPPORTED_PARAMETER),
        (part(json!({"type": "input_audio", "input_audio": {}})), "messages[0].content[0].type", UNSUPPORTED_VALUE),
        (part(json!({"type": "file", "file": {}})), "messages[0].content[0].type", UNSUPPORTED_VALUE),
        (part(json!({"type": "image_url"})), "messages[0].content[0].image_url", MISSING),
        (part(json!({"type": "image_url", "image_url": "data:"})), "messages[0].content[0].image_url", INVALID_TYPE),
        (part(json!({"type": "image_url", "image_url": {}})), "messages[0].content[0].image_url.url", MISSING),
        (
            part(json!({"type": "image_url", "image_url": {"url": ""}})),
            "messages[0].content[0].image_url.url",
            INVALID_VALUE,
        ),
        (
            part(json!({"type": "image_url", "image_url": {"url": 1}})),
            "messages[0].content[0].image_url.url",
            INVALID_TYPE,
        ),
        (
            part(json!({"type": "image_url", "image_url": {"url": "data:", "detail": "ultra"}})),
            "messages[0].content[0].image_url.detail",
            UNSUPPORTED_VALUE,
        ),
        // Formats.
        (with(json!({"response_format": "json"})), "response_format", INVALID_TYPE),
        (with(json!({"response_format": {}})), "response_format.type", MISSING),
        (with(json!({"response_format": {"type": "xml"}})), "response_format.type", UNSUPPORTED_VALUE),
        (with(json!({"response_format": {"type": "text", "x": 1}})), "response_format.x", UNSUPPORTED_PARAMETER),
        (with(json!({"response_format": {"type": "json_schema"}})), "response_format.json_schema", MISSING),
        (schema(json!({"schema": {}})), "response_format.json_schema.name", MISSING),
        (schema(json!({"name": "a b", "schema": {}})), "response_format.json_schema.name", INVALID_VALUE),
        (schema(json!({"name": "a"})), "response_format.json_schema.schema", MISSING),
        (schema(json!({"name": "a", "schema": true})), "response_format.json_schema.schema", INVALID_TYPE),
        (schema(json!({"name": "a", "schema": {}, "strict": 1})), "response_format.json_schema.strict", INVALID_TYPE),
        // Tools.
        (with(json!({"tools": {}})), "tools", INVALID_TYPE),
        (with(json!({ "tools": tools })), "tools", INVALID_VALUE),
        (with(json!({"tools": [{"type": "custom"}]})), "tools[0].type", UNSUPPORTED_VALUE),
        (with(json!({"tools": [{"type": "function"}]})), "tools[0].function", MISSING),
        (with(json!({"tools": [tool("")]})), "tools[0].function.name", INVALID_VALUE),
        (with(json!({"tools": [tool("a.b")]})), "tools[0].function.name", INVALID_VALUE),
        (with(json!({"tools": [tool(&"f".repeat(65))]})), "tools[0].function.name", INVALID_VALUE),
        (with(json!({"tools": [tool("f"), tool("f")]})), "tools[1]", INVALID_VALUE),
        (
            with(json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]})),
            "tools[0].function.parameters",
            INVALID_TYPE,
        ),
        (with(json!({"tool_choice": "required"})), "tool_choice", INVALID_VALUE),
        (with(json!({"tools": [tool("f")], "tool_choice": "sometimes"})), "tool_choice", UNSUPPORTED_VALUE),
        (with(json!({"tools": [tool("f")], "tool_choice": 5})), "tool_choice", INVALID_TYPE),
        (
            with(json!({"tools": [tool("f")], "tool_choice": {"type": "allowed_tools"}})),
            "tool_choice.type",
            UNSUPPORTED_VALUE,
        ),
        (with(json!({"tools": [tool("f")], "tool_choice": tool("g")})), "tool_choice.function.name", INVALID_VALUE),
        (with(json!({"tools": [tool("f")], "parallel_tool_calls": false})), "parallel_tool_calls", UNSUPPORTED_VALUE),
        (
            with(json!({"tools": [tool("f")], "response_format": {"type": "json_object"}})),
            "response_format",
            UNSUPPORTED_VALUE,
        ),
    ];
    assert!(cases.len() >= 100, "{}", cases.len());
    for (body, param, code) in cases {
        let error = request::parse(body.to_string().as_bytes()).map(drop).expect_err(&body.to_string());
        assert_eq!((error.param.as_deref().unwrap_or(""), error.code), (param, code), "{body}: {error}");
        assert_eq!(error.status.as_u16(), 400, "{body}");
        assert!(error.message.len() < 2000, "{body}");
    }
}

#[test]
fn refuses_what_is_no_json() {
    let deep = format!("{{\"model\": {}", "[".repeat(100_000));
    let deep_object = "{\"a\":".repeat(100_000);
    let cases: Vec<&[u8]> = vec![
        b"",
        b" ",
        b"{",
        b"}",
        b"nul",
        b"\x00",
        b"\xff\xfe{}",
        b"{\"model\": \"\xff\"}",
        b"{\"model\": \"\\ud800\"}",
        b"{\"model\": \"a\nb\"}",
        b"{'model': 'm'}",
        b"{\"model\": \"m\",}",
        b"{\"model\": \"m\"} {}",
        b"{\"temperature\": NaN}",
        b"{\"temperature\": Infinity}",
        b"{\"temperature\": -Infinity}",
        b"{\"temperature\": 1e999}",
        b"{\"temperature\": 01}",
        b"{\"temperature\": .5}",
        b"{\"temperature\": 0x10}",
        b"model=reground&messages=hi",
        b"--boundary\r\nContent-Disposition: form-data",
        b"<?xml version=\"1.0\"?>",
        deep.as_bytes(),
        deep_object.as_bytes(),
    ];
    for body in cases {
        let error = request::parse(body).expect_err(&String::from_utf8_lossy(&body[..body.len().min(60)]));
        assert_eq!((error.status.as_u16(), error.code), (400, INVALID_JSON), "{error}");
    }
    let error = request::parse(b"{\n \"model\": nope}").unwrap_err();
    assert!(error.message.contains("line 2 column"), "{error}");
}

#[test]
fn defaults_are_openais() {
    let request = parse(&with(json!({})));
    let expected = ChatRequest {
        model: "reground".into(),
        messages: vec![ChatMessage {
            role: Role::User,
            content: vec![Part::Text("hi".into())],
            tool_calls: Vec::new(),
            tool_call_id: None,
        }],
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        seed: None,
        max_tokens: None,
        n: 1,
        stop: Vec::new(),
        logprobs: false,
        top_logprobs: 0,
        grammar: None,
        store: None,
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        stream: false,
        include_usage: false,
        user: None,
        metadata: std::collections::BTreeMap::new(),
    };
    assert_eq!(request, expected);
    // `null` is what SDKs write for a parameter that was not given.
    let nulls: Value = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "seed",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "stop",
        "logprobs",
        "top_logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "stream",
        "stream_options",
        "user",
        "safety_identifier",
        "metadata",
        "store",
        "modalities",
        "service_tier",
        "reasoning_effort",
        "verbosity",
        "functions",
        "function_call",
        "audio",
        "prediction",
        "web_search_options",
        "prompt_cache_key",
        "prompt_cache_retention",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), Value::Null))
    .collect::<serde_json::Map<_, _>>()
    .into();
    assert_eq!(parse(&with(nulls)), expected);
    // What changes nothing.
    let idle = json!({"modalities": ["text"], "service_tier": "auto", "logit_bias": {}, "store": null, "stop": [],
        "reasoning_effort": "none", "verbosity": "medium", "parallel_tool_calls": true, "metadata": {},
        "tool_choice": "none", "tools": [], "response_format": {"type": "text"}});
    assert_eq!(parse(&with(idle)), ChatRequest { tool_choice: ToolChoice::None, ..expected });
}

#[test]
fn everything_at_its_limits_is_taken() {
    let request = parse(&with(json!({
        "temperature": 2, "top_p": 1e-9, "top_k": 5, "min_p": 1, "frequency_penalty": -2, "presence_penalty": 2.0,
        "logit_bias": {"0": -100, "341": 100}, "seed": i64::MIN, "max_tokens": 5, "max_completion_tokens": 5, "n": 16,
        "stop": ["a", "b", "c", "d"], "logprobs": true, "top_logprobs": 20, "stream": true,
        "stream_options": {"include_usage": true, "include_obfuscation": false}, "safety_identifier": "someone",
        "metadata": {"run": "7"},
        "response_format": {"type": "json_schema", "json_schema":
            {"name": "n", "description": "d", "strict": true, "schema": {"type": "object"}}},
    })));
    assert_eq!((request.n, request.max_tokens, request.top_logprobs), (16, Some(5), 20));
    assert_eq!(request.logit_bias, [(0, -100.0), (341, 100.0)]);
    assert_eq!(request.seed, Some(i64::MIN.cast_unsigned()));
    assert!(request.stream && request.include_usage && request.logprobs);
    assert_eq!(request.stop.len(), 4);
    assert_eq!(request.user.as_deref(), Some("someone"));
    assert_eq!(request.metadata["run"], "7");
    assert_eq!(request.grammar, Some(Grammar::JsonSchema(json!({"type": "object"}))));
    assert_eq!(parse(&with(json!({"stop": "one"}))).stop, ["one"]);
    let text = "x".repeat(10_000_000);
    assert!(request::parse(said(json!([{"role": "user", "content": text}])).to_string().as_bytes()).is_ok());
}

#[test]
fn a_conversation_with_images_and_tools_is_taken() {
    let call = json!({"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"at\": 1}"}});
    let request = parse(&with(json!({
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}},
            ]},
            // The way the SDK gives an answer back.
            {"role": "assistant", "content": null, "refusal": null, "audio": null, "function_call": null,
                "annotations": [], "tool_calls": [call]},
            {"role": "tool", "content": "a cat", "tool_call_id": "c1"},
        ],
        "tools": [{"type": "function", "function":
            {"name": "look", "description": "Looks.", "strict": false, "parameters": {"type": "object"}}}],
        "tool_choice": tool("look"),
    })));
    let roles: Vec<Role> = request.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool]);
    assert_eq!(request.messages[1].content[1], Part::Image("data:image/png;base64,AAAA".into()));
    assert_eq!(request.messages[2].tool_calls, [call]);
    assert_eq!(request.messages[3].tool_call_id.as_deref(), Some("c1"));
    assert_eq!(request.tool_choice, ToolChoice::Function("look".into()));
    assert_eq!(request.tools.len(), 1);
}
