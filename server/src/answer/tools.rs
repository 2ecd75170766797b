//! Tool calls, out of the text that models write.
//!
//! Models are trained on different notations. Two cover most families: `<tool_call>{"name": …, "arguments": …}</tool_call>`
//! (Hermes, Qwen), and the bare object (Llama, with `parameters`). A call that the caller demands is not left to the
//! model: its JSON schema becomes the grammar of the answer.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::engine::grammar::Grammar;

/// Which tools the model may, must or must not call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// None: tools are not shown.
    None,
    /// At least one.
    Required,
    /// This one.
    Function(String),
}

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// `call_` and a UUIDv7.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// The grammar of a demanded call: one object with the name of a tool and arguments after its schema.
pub(super) fn grammar(tools: &[Value], choice: &ToolChoice) -> Option<Grammar> {
    let allowed = |name: &str| match choice {
        ToolChoice::Required => true,
        ToolChoice::Function(wanted) => wanted == name,
        ToolChoice::Auto | ToolChoice::None => false,
    };
    let calls: Vec<Value> = tools
        .iter()
        .map(|tool| &tool["function"])
        .filter(|function| function["name"].as_str().is_some_and(allowed))
        .map(|function| {
            let parameters = match &function["parameters"] {
                Value::Null => json!({"type": "object"}),
                schema => schema.clone(),
            };
            json!({
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        })
        .collect();
    (!calls.is_empty()).then(|| Grammar::JsonSchema(json!({"anyOf": calls})))
}

/// The calls in an answer and the text before them; no calls if any part of the text after the first one is no call.
pub(super) fn parse(text: &str, tools: &[Value]) -> (String, Vec<ToolCall>) {
    const OPEN: &str = "<tool_call>";
    const CLOSE: &str = "</tool_call>";
    let nothing = || (text.to_owned(), Vec::new());
    if let Some(call) = parse_call(text, tools) {
        return (String::new(), vec![call]);
    }
    let Some((before, mut rest)) = text.split_once(OPEN) else { return nothing() };
    let mut calls = Vec::new();
    loop {
        let (inside, after) = rest.split_once(CLOSE).unwrap_or((rest, ""));
        let Some(call) = parse_call(inside, tools) else { return nothing() };
        calls.push(call);
        match after.trim_start().strip_prefix(OPEN) {
            Some(next) => rest = next,
            None if after.trim().is_empty() => break,
            None => return nothing(),
        }
    }
    (before.trim_end().to_owned(), calls)
}

fn parse_call(text: &str, tools: &[Value]) -> Option<ToolCall> {
    let call: Value = serde_json::from_str(text.trim()).ok()?;
    let name = call["name"].as_str()?;
    let known = tools.iter().any(|tool| tool["function"]["name"] == name);
    let arguments = call.get("arguments").or_else(|| call.get("parameters"))?;
    (known && arguments.is_object()).then(|| ToolCall {
        id: format!("call_{}", Uuid::now_v7().simple()),
        name: name.to_owned(),
        arguments: arguments.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<Value> {
        ["weather", "time"]
            .map(|name| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}))
            .into()
    }

    fn names(text: &str) -> Vec<String> {
        parse(text, &tools()).1.into_iter().map(|call| call.name).collect()
    }

    #[test]
    fn reads_the_notations_of_models() {
        assert_eq!(names(r#"{"name": "weather", "arguments": {"city": "Oslo"}}"#), ["weather"]);
        assert_eq!(names(r#" {"name": "time", "parameters": {}}"#), ["time"]);
        let two = "Let me look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>\n<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>";
        assert_eq!(names(two), ["weather", "time"]);
        assert_eq!(parse(two, &tools()).0, "Let me look.");
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "The weather is fine.",
            r#"{"name": "unknown", "arguments": {}}"#,
            r#"{"name": "weather", "arguments": "Oslo"}"#,
            r#"{"name": "weather"}"#,
            "<tool_call>not json</tool_call>",
            "<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call> and more",
        ] {
            assert_eq!(parse(text, &tools()), (text.to_owned(), Vec::new()), "{text}");
        }
    }

    #[test]
    fn a_demanded_call_has_a_grammar() {
        assert_eq!(grammar(&tools(), &ToolChoice::Auto), None);
        let Some(Grammar::JsonSchema(schema)) = grammar(&tools(), &ToolChoice::Function("time".into())) else {
            panic!()
        };
        assert_eq!(schema["anyOf"].as_array().unwrap().len(), 1);
        assert_eq!(schema["anyOf"][0]["properties"]["name"]["const"], "time");
        let Some(Grammar::JsonSchema(schema)) = grammar(&tools(), &ToolChoice::Required) else { panic!() };
        assert_eq!(schema["anyOf"].as_array().unwrap().len(), 2);
    }
}
