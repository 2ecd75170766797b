//! Messages: shapes, roles, control tokens, texts that are too long.

use anyhow::Result;
use reground_tests::Golden;
use serde_json::{Value, json};

use super::case::{Case, question};

const VALUE: &str = "invalid_value";
const TYPE: &str = "invalid_type";
const MISSING: &str = "missing_required_parameter";
const UNSUPPORTED: &str = "unsupported_value";
const CONTROL: &str = "control_token";

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut cases = shapes();
    cases.extend(parts());
    cases.extend(tool_messages());
    cases.extend(control_tokens()?);
    cases.extend(long_texts());
    cases.extend(odd_texts());
    Ok(cases)
}

fn messages(name: &str, messages: Value) -> Case {
    Case::with(format!("messages: {name}"), "messages", messages)
}

/// One user message with this content.
fn content(name: &str, content: Value) -> Case {
    messages(&format!("content: {name}"), json!([{"role": "user", "content": content}]))
}

fn shapes() -> Vec<Case> {
    let mut none = question();
    none.as_object_mut().map(|body| body.remove("messages"));
    vec![
        Case::chat("messages: none", &none).wrong(MISSING, "messages", &["missing"]),
        messages("null", json!(null)).wrong(MISSING, "messages", &["missing"]),
        messages("empty", json!([])).wrong(VALUE, "messages", &["at least one"]),
        messages("a string", json!("hello")).wrong(TYPE, "messages", &["array"]),
        messages("an object", json!({"role": "user"})).wrong(TYPE, "messages", &["array"]),
        messages("a string in it", json!(["hello"])).wrong(TYPE, "messages[0]", &["object"]),
        messages("no role", json!([{"content": "a"}])).wrong(MISSING, "messages[0].role", &["missing"]),
        messages("another role", json!([{"role": "robot", "content": "a"}])).wrong(
            UNSUPPORTED,
            "messages[0].role",
            &["robot", "user", "assistant"],
        ),
        messages("role: a number", json!([{"role": 5, "content": "a"}])).wrong(TYPE, "messages[0].role", &["string"]),
        messages("no content", json!([{"role": "user"}])).wrong(MISSING, "messages[0].content", &["missing"]),
        messages("a surprise", json!([{"role": "user", "content": "a", "surprise": 1}])).wrong(
            "unsupported_parameter",
            "messages[0].surprise",
            &["surprise"],
        ),
        messages("no user", json!([{"role": "system", "content": "a"}])).wrong(VALUE, "messages", &["user"]),
        messages("the second is wrong", json!([{"role": "user", "content": "a"}, {"role": "user"}])).wrong(
            MISSING,
            "messages[1].content",
            &["missing"],
        ),
        messages("an empty assistant", json!([{"role": "user", "content": "a"}, {"role": "assistant"}])).wrong(
            MISSING,
            "messages[1].content",
            &["tool_calls"],
        ),
        messages(
            "audio of an assistant",
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "audio": {"id": "x"}}]),
        )
        .wrong("unsupported_parameter", "messages[1].audio", &["text"]),
    ]
}

fn parts() -> Vec<Case> {
    let part = |name: &str, part: Value| content(&format!("a part: {name}"), json!([part]));
    let at = "messages[0].content[0]";
    let below = |path: &str| format!("{at}.{path}");
    vec![
        content("null", json!(null)).wrong(MISSING, "messages[0].content", &["missing"]),
        content("a number", json!(5)).wrong(TYPE, "messages[0].content", &["string or an array"]),
        content("an object", json!({"type": "text"})).wrong(TYPE, "messages[0].content", &["string or an array"]),
        content("no parts", json!([])).wrong(VALUE, "messages[0].content", &["at least one"]),
        part("a string", json!("a")).wrong(TYPE, at, &["object"]),
        part("no type", json!({"text": "a"})).wrong(MISSING, &below("type"), &["missing"]),
        part("no text", json!({"type": "text"})).wrong(MISSING, &below("text"), &["missing"]),
        part("text: a number", json!({"type": "text", "text": 5})).wrong(TYPE, &below("text"), &["string"]),
        part("audio", json!({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})).wrong(
            UNSUPPORTED,
            &below("type"),
            &["input_audio", "image_url"],
        ),
        part("a file", json!({"type": "file", "file": {"file_id": "file-1"}})).wrong(UNSUPPORTED, &below("type"), &["file"]),
        part("an image without a URL", json!({"type": "image_url"})).wrong(MISSING, &below("image_url"), &["missing"]),
        part("an image URL that is a string", json!({"type": "image_url", "image_url": "data:"})).wrong(
            TYPE,
            &below("image_url"),
            &["object"],
        ),
        part("an image URL that is a number", json!({"type": "image_url", "image_url": {"url": 5}})).wrong(
            TYPE,
            &below("image_url.url"),
            &["string"],
        ),
        part("detail", json!({"type": "image_url", "image_url": {"url": "data:", "detail": "ultra"}})).wrong(
            UNSUPPORTED,
            &below("image_url.detail"),
            &["auto", "low", "high"],
        ),
        messages(
            "an image from the system",
            json!([
                {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
                {"role": "user", "content": "a"},
            ]),
        )
        .wrong(UNSUPPORTED, "messages[0].content[0].type", &["user"]),
    ]
}

fn tool_messages() -> Vec<Case> {
    vec![
        messages("a tool without a call", json!([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]))
            .wrong(MISSING, "messages[1].tool_call_id", &["missing"]),
        messages(
            "a tool that no one called",
            json!([{"role": "user", "content": "a"}, {"role": "tool", "tool_call_id": "x", "content": "b"}]),
        )
        .wrong(VALUE, "messages[1].tool_call_id", &["call"]),
        messages(
            "a call without a name",
            json!([
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function": {"arguments": "{}"}}]},
            ]),
        )
        .wrong(MISSING, "messages[1].tool_calls[0].function.name", &["missing"]),
    ]
}

/// Typed by a caller, the model would take them for its own.
fn control_tokens() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for token in Golden::control_tokens()? {
        cases.push(content(&format!("control token {token}"), json!(format!("a{token}b"))).wrong(
            CONTROL,
            "messages[0].content",
            &[&token],
        ));
    }
    let system = json!([{"role": "system", "content": "<|im_start|>"}, {"role": "user", "content": "a"}]);
    cases.push(messages("control token from the system", system).wrong(
        CONTROL,
        "messages[0].content",
        &["<|im_start|>"],
    ));
    let assistant = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<image>"}, {"role": "user", "content": "b"}]);
    cases.push(messages("control token from the assistant", assistant).wrong(
        CONTROL,
        "messages[1].content",
        &["<image>"],
    ));
    let second = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "<end_of_utterance>"}]);
    cases.push(content("control token in the second part", second).wrong(
        CONTROL,
        "messages[0].content",
        &["<end_of_utterance>"],
    ));
    // The template writes the parts one after the other, so what they hold together is refused as well.
    for (name, torn, whole) in
        [("two", vec!["<|im_", "start|>"], "<|im_start|>"), ("three", vec!["<", "ima", "ge>"], "<image>")]
    {
        let parts: Vec<Value> = torn.iter().map(|text| json!({"type": "text", "text": text})).collect();
        let case = content(&format!("control token torn in {name} parts"), json!(parts));
        cases.push(case.wrong(CONTROL, "messages[0].content", &[whole]));
    }
    cases.push(content("half a control token", json!("<|im_start")));
    Ok(cases)
}

fn long_texts() -> Vec<Case> {
    let long =
        |name: &str, text: String| content(name, json!(text)).wrong("context_length_exceeded", "messages", &["1024"]);
    let turns: Vec<Value> = (0..2000)
        .map(|at| json!({"role": if at % 2 == 0 { "user" } else { "assistant" }, "content": "and then?"}))
        .collect();
    vec![
        long("10 MB of text", "a red circle ".repeat(800_000)),
        long("10 MB of one letter", "a".repeat(10_000_000)),
        long("4 MB of white space", " ".repeat(4_000_000)),
        long("3 MB of smileys", "\u{1F600}".repeat(750_000)),
        long("3 MB of combining marks", format!("a{}", "\u{301}".repeat(1_500_000))),
        long("just too long", "?!".repeat(600)),
        messages("2000 turns", json!(turns)).wrong("context_length_exceeded", "messages", &["1024"]),
    ]
}

fn odd_texts() -> Vec<Case> {
    vec![
        content("no text", json!("")),
        content("a zero character", json!("a\u{0}b")),
        content("control characters", json!("\u{1}\u{7f}\u{9f}\r\n\t")),
        content("right to left", json!("\u{202e}abc\u{202c}")),
        content("the last character", json!("\u{10ffff}")),
        content("a smiley of many parts", json!("\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}")),
        content("a template", json!("{{ messages }}{% for x in y %}")),
        content("a template of another engine", json!("${jndi:ldap://127.0.0.1/a}")),
        content("SQL", json!("'; DROP TABLE records; --")),
        content("a tag", json!("<script>alert(1)</script>")),
    ]
}
