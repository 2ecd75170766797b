//! Sampling, limits, formats, tools: wrong types, negative, huge, contradicting.

use serde_json::{Value, json};

use super::case::{Case, question};

const VALUE: &str = "invalid_value";
const TYPE: &str = "invalid_type";
const UNSUPPORTED: &str = "unsupported_value";
const PARAMETER: &str = "unsupported_parameter";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = numbers();
    cases.extend(texts());
    cases.extend(models());
    cases.extend(formats());
    cases.extend(tools());
    cases.extend(not_supported());
    cases.extend(at_the_edge());
    cases
}

fn set(parameter: &str, value: &Value) -> Case {
    let shown: String = value.to_string().chars().take(110).collect();
    Case::with(format!("{parameter}: {shown}"), parameter, value.clone())
}

fn numbers() -> Vec<Case> {
    let ranges: [(&str, Vec<Value>, &[&str]); 13] = [
        ("temperature", vec![json!(-0.1), json!(2.1), json!(1e300), json!(-1e300)], &["0", "2"]),
        ("top_p", vec![json!(-0.5), json!(1.5), json!(0)], &["0", "1"]),
        ("min_p", vec![json!(-0.5), json!(1.5)], &["0", "1"]),
        ("frequency_penalty", vec![json!(-3), json!(3)], &["-2", "2"]),
        ("presence_penalty", vec![json!(-3), json!(1e9)], &["-2", "2"]),
        ("n", vec![json!(0), json!(-1), json!(1000), json!(u64::MAX), json!(1.5)], &["1", "16"]),
        ("max_tokens", vec![json!(0), json!(-5), json!(1e30), json!(0.5)], &["1"]),
        ("max_completion_tokens", vec![json!(0), json!(i64::MIN)], &["1"]),
        ("top_k", vec![json!(-1), json!(1e30)], &["0"]),
        ("seed", vec![json!(1.5), json!(u64::MAX), json!(1e300)], &["whole number"]),
        ("stop", vec![json!(["a", "b", "c", "d", "e"])], &["4"]),
        ("user", vec![json!("x".repeat(257))], &["256"]),
        ("top_logprobs", vec![json!(2)], &["logprobs"]),
    ];
    let mut cases: Vec<Case> = ranges
        .iter()
        .flat_map(|(name, values, says)| values.iter().map(move |value| set(name, value).wrong(VALUE, name, says)))
        .collect();
    for name in ["temperature", "top_p", "n", "max_tokens", "seed", "presence_penalty"] {
        for value in [json!("1"), json!(true), json!([1]), json!({"a": 1})] {
            cases.push(set(name, &value).wrong(TYPE, name, &[name, "must be"]));
        }
    }
    let mut more = question();
    more["logprobs"] = json!(true);
    for value in [json!(21), json!(-1), json!(1e9)] {
        more["top_logprobs"] = value.clone();
        cases.push(Case::chat(format!("top_logprobs: {value} with logprobs"), &more).wrong(
            VALUE,
            "top_logprobs",
            &["0", "20"],
        ));
    }
    let mut both = question();
    both["max_completion_tokens"] = json!(5);
    cases.push(Case::chat("two limits that differ", &both).wrong(VALUE, "max_tokens", &["max_completion_tokens"]));
    cases
}

fn texts() -> Vec<Case> {
    let pairs = |count: usize| -> Value { (0..count).map(|at| (format!("k{at}"), json!("v"))).collect() };
    vec![
        set("stop", &json!("")).wrong(VALUE, "stop", &["empty"]),
        set("stop", &json!([""])).wrong(VALUE, "stop[0]", &["empty"]),
        set("stop", &json!(5)).wrong(TYPE, "stop", &["string"]),
        set("stop", &json!([5])).wrong(TYPE, "stop[0]", &["string"]),
        set("stop", &json!("x".repeat(300))).wrong(VALUE, "stop", &["256"]),
        set("stream", &json!("yes")).wrong(TYPE, "stream", &["true or false"]),
        set("stream", &json!(1)).wrong(TYPE, "stream", &["true or false"]),
        set("logprobs", &json!("yes")).wrong(TYPE, "logprobs", &["true or false"]),
        set("logprobs", &json!(5)).wrong(TYPE, "logprobs", &["true or false"]),
        set("stream_options", &json!({"include_usage": true})).wrong(VALUE, "stream_options", &["stream"]),
        set("user", &json!(5)).wrong(TYPE, "user", &["string"]),
        set("metadata", &json!("a")).wrong(TYPE, "metadata", &["object"]),
        set("metadata", &json!({"a": 5})).wrong(TYPE, "metadata.a", &["string"]),
        set("metadata", &json!({"a": {"b": "c"}})).wrong(TYPE, "metadata.a", &["string"]),
        set("metadata", &pairs(17)).wrong(VALUE, "metadata", &["16"]),
        set("metadata", &json!({"a": "x".repeat(513)})).wrong(VALUE, "metadata.a", &["512"]),
        set("logit_bias", &json!([1])).wrong(TYPE, "logit_bias", &["object"]),
        set("logit_bias", &json!({"word": 1})).wrong(VALUE, "logit_bias.word", &["token"]),
        set("logit_bias", &json!({"-1": 1})).wrong(VALUE, "logit_bias.-1", &["token"]),
        set("logit_bias", &json!({"5": "1"})).wrong(TYPE, "logit_bias.5", &["number"]),
        set("logit_bias", &json!({"5": 101})).wrong(VALUE, "logit_bias.5", &["-100", "100"]),
        set("logit_bias", &json!({"5": -1e30})).wrong(VALUE, "logit_bias.5", &["-100", "100"]),
        set("logit_bias", &json!({"342": 1})).wrong(VALUE, "logit_bias.342", &["341"]),
        set("logit_bias", &json!({"4294967295": 1})).wrong(VALUE, "logit_bias.4294967295", &["341"]),
    ]
}

fn models() -> Vec<Case> {
    let unknown = |name: &str| set("model", &json!(name)).refused(404, "model_not_found", &["reground"]).at("model");
    let mut nobody = question();
    nobody.as_object_mut().map(|body| body.remove("model"));
    vec![
        Case::chat("model: none", &nobody).wrong("missing_required_parameter", "model", &["model"]),
        set("model", &json!(null)).wrong("missing_required_parameter", "model", &["model"]),
        set("model", &json!(5)).wrong(TYPE, "model", &["string"]),
        set("model", &json!(["reground"])).wrong(TYPE, "model", &["string"]),
        unknown(""),
        unknown("gpt-4o"),
        unknown("Reground"),
        unknown("reground "),
        unknown("@base"),
        unknown("../../etc/passwd"),
        unknown("reground\u{0}"),
        unknown("reground@base@base"),
        set("model", &json!("reground@nope")).refused(404, "model_not_found", &["nope", "base"]).at("model"),
        set("model", &json!("reground@")).refused(404, "model_not_found", &["base"]).at("model"),
        set("model", &json!("reground@../adapter")).refused(404, "model_not_found", &["base"]).at("model"),
        unknown(&"m".repeat(10_000)),
        unknown(&format!("reground{}", "\u{202e}")),
    ]
}

fn formats() -> Vec<Case> {
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let refused = |name: &str, body: Value| {
        Case::with(format!("schema: {name}"), "response_format", schema(body)).wrong(
            VALUE,
            "response_format.json_schema.schema",
            &["schema"],
        )
    };
    vec![
        set("response_format", &json!("json")).wrong(TYPE, "response_format", &["object"]),
        set("response_format", &json!({})).wrong("missing_required_parameter", "response_format.type", &["type"]),
        set("response_format", &json!({"type": "xml"})).wrong(
            UNSUPPORTED,
            "response_format.type",
            &["text", "json_object", "json_schema"],
        ),
        set("response_format", &json!({"type": "json_schema"})).wrong(
            "missing_required_parameter",
            "response_format.json_schema",
            &["missing"],
        ),
        set("response_format", &json!({"type": "json_schema", "json_schema": {"schema": {}}})).wrong(
            "missing_required_parameter",
            "response_format.json_schema.name",
            &["missing"],
        ),
        set("response_format", &json!({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}})).wrong(
            VALUE,
            "response_format.json_schema.name",
            &["64"],
        ),
        set("response_format", &json!({"type": "json_schema", "json_schema": {"name": "n", "schema": "string"}}))
            .wrong(TYPE, "response_format.json_schema.schema", &["object"]),
        set("response_format", &json!({"type": "text", "surprise": 1})).wrong(
            PARAMETER,
            "response_format.surprise",
            &["surprise"],
        ),
        refused("an unknown type", json!({"type": "frob"})),
        refused("a broken pattern", json!({"type": "string", "pattern": "("})),
        refused("a reference to nowhere", json!({"$ref": "#/$defs/nope"})),
        refused("a reference to the network", json!({"$ref": "http://127.0.0.1:1/schema.json"})),
        refused("a reference to a file", json!({"$ref": "file:///etc/passwd"})),
        refused("nothing fits", json!({"enum": []})),
        refused("false everywhere", json!({"type": "object", "properties": {"a": false}, "required": ["a"]})),
        refused("minimum above maximum", json!({"type": "integer", "minimum": 5, "maximum": 1})),
        refused("a chain of 20,000 references", chain(20_000)),
        refused("remainders without end", json!({"type": "integer", "minimum": 0, "multipleOf": 9_999_999})),
        refused("patterns whose ways multiply", json!({"allOf": (2..30).map(counted).collect::<Vec<_>>()})),
        refused("bounds without a character's boundary", json!({"type": "number", "minimum": "é".repeat(60)})),
        // Longer than a thread's usual stack holds.
        Case::with("schema: a chain of 1,000 references", "response_format", schema(chain(999))),
    ]
}

/// A schema that is one of many references away.
fn chain(links: usize) -> Value {
    let link = |at| (format!("a{at}"), json!({"$ref": format!("#/$defs/a{}", at + 1)}));
    let mut definitions: serde_json::Map<_, _> = (0..links).map(link).collect();
    definitions.insert(format!("a{links}"), json!({"type": "null"}));
    json!({"$ref": "#/$defs/a0", "$defs": definitions})
}

/// A string with so many letters a.
fn counted(letters: usize) -> Value {
    json!({"type": "string", "pattern": format!("(.*a){{{letters}}}")})
}

fn tools() -> Vec<Case> {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let many: Vec<Value> = (0..129).map(|at| tool(&format!("f{at}"))).collect();
    let choice = |choice: Value| {
        let mut body = question();
        body["tools"] = json!([tool("f")]);
        body["tool_choice"] = choice;
        body
    };
    vec![
        set("tools", &json!({})).wrong(TYPE, "tools", &["array"]),
        set("tools", &json!([5])).wrong(TYPE, "tools[0]", &["object"]),
        set("tools", &json!([{}])).wrong("missing_required_parameter", "tools[0].type", &["missing"]),
        set("tools", &json!([{"type": "code_interpreter"}])).wrong(UNSUPPORTED, "tools[0].type", &["function"]),
        set("tools", &json!([{"type": "function"}])).wrong(
            "missing_required_parameter",
            "tools[0].function",
            &["missing"],
        ),
        set("tools", &json!([tool("a b")])).wrong(VALUE, "tools[0].function.name", &["letters"]),
        set("tools", &json!([tool("")])).wrong(VALUE, "tools[0].function.name", &["letters"]),
        set("tools", &json!([tool("f"), tool("f")])).wrong(VALUE, "tools[1]", &["f"]),
        set("tools", &json!(many)).wrong(VALUE, "tools", &["128"]),
        set("tool_choice", &json!("required")).wrong(VALUE, "tool_choice", &["tools"]),
        set("tool_choice", &json!("sometimes")).wrong(UNSUPPORTED, "tool_choice", &["none", "auto", "required"]),
        set("tool_choice", &json!(5)).wrong(TYPE, "tool_choice", &["string or an object"]),
        Case::chat(
            "tool_choice: a function that is not there",
            &choice(json!({"type": "function", "function": {"name": "g"}})),
        )
        .wrong(VALUE, "tool_choice.function.name", &["g"]),
        // The golden checkpoint's chat template has no place for tools.
        set("tools", &json!([tool("f")])).wrong(UNSUPPORTED, "tools", &["template"]),
    ]
}

fn not_supported() -> Vec<Case> {
    let refused = [
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("audio", json!({"voice": "alloy", "format": "mp3"})),
        ("prediction", json!({"type": "content", "content": "a"})),
        ("web_search_options", json!({})),
    ];
    let mut cases: Vec<Case> =
        refused.iter().map(|(name, value)| set(name, value).wrong(PARAMETER, name, &[name, "not supported"])).collect();
    cases.push(set("modalities", &json!(["audio"])).wrong(UNSUPPORTED, "modalities", &["text"]));
    cases.push(set("service_tier", &json!("flex")).wrong(UNSUPPORTED, "service_tier", &["auto"]));
    cases.push(set("store", &json!("yes")).wrong("invalid_type", "store", &["true or false"]));
    cases
}

/// What is allowed, just.
fn at_the_edge() -> Vec<Case> {
    let mut long = question();
    long["logprobs"] = json!(true);
    long["top_logprobs"] = json!(20);
    let pairs: Value = (0..16).map(|at| (format!("{at}").repeat(32), json!("v".repeat(512)))).collect();
    vec![
        set("temperature", &json!(2)),
        set("temperature", &json!(1e-300)),
        set("temperature", &json!(null)),
        set("top_p", &json!(1e-300)),
        set("top_p", &json!(1)),
        set("n", &json!(16)),
        set("max_tokens", &json!(1)),
        set("frequency_penalty", &json!(-2)),
        set("presence_penalty", &json!(2)),
        set("seed", &json!(i64::MIN)),
        set("seed", &json!(i64::MAX)),
        set("seed", &json!(-1)),
        set("stop", &json!(["a", "b", "c", "\u{10ffff}"])),
        set("stop", &json!([])),
        set("logit_bias", &json!({})),
        set("logit_bias", &json!({"341": -100})),
        set("metadata", &pairs),
        set("user", &json!("\u{1F600}".repeat(256))),
        Case::chat("20 alternatives", &long),
    ]
}
