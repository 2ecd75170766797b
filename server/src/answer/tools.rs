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

/// The grammar of a demanded call: one object with the name of a tool and arguments after its schema, which are an object whatever
/// the schema says.
pub(crate) fn grammar(tools: &[Value], choice: &ToolChoice) -> Option<Grammar> {
    let allowed = |name: &str| match choice {
        ToolChoice::Required => true,
        ToolChoice::Function(wanted) => wanted == name,
        ToolChoice::Auto | ToolChoice::None => false,
    };
    let calls: Vec<Value> = tools
        .iter()
        .map(|tool| &tool["function"])
        .filter(|function| function["name"].as_str().is_some_and(allowed))
        .enumerate()
        .map(|(at, function)| {
            let arguments = match &function["parameters"] {
                Value::Null => json!({"type": "object"}),
                schema => {
                    let mut schema = schema.clone();
                    rebase(&mut schema, &format!("#/anyOf/{at}/properties/arguments/allOf/0"));
                    json!({"type": "object", "allOf": [schema]})
                }
            };
            json!({
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        })
        .collect();
    (!calls.is_empty()).then(|| Grammar::JsonSchema(json!({"anyOf": calls})))
}

/// Has the references of a schema to places in itself (`#`, `#/$defs/Place`) find them where the schema is put, a JSON pointer.
fn rebase(schema: &mut Value, place: &str) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(|schema| rebase(schema, place)),
        Value::Object(keywords) => {
            for (keyword, value) in keywords {
                match (keyword.as_str(), value) {
                    ("$ref", Value::String(reference)) => {
                        if let Some(inside) = reference.strip_prefix('#') {
                            *reference = format!("{place}{inside}");
                        }
                    }
                    // Values, not schemas.
                    ("const" | "enum" | "default" | "examples", _) => {}
                    // What stands here are names, which can be those of keywords.
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                        Value::Object(named),
                    ) => named.values_mut().for_each(|schema| rebase(schema, place)),
                    (_, value) => rebase(value, place),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
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
    use crate::engine::Vocabulary;
    use crate::engine::source::golden;

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

    fn tool(name: &str, parameters: Value) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    }

    /// Whether the grammar of a demanded call of one of these tools lets a model write this, and then end.
    fn allows(tools: &[Value], call: &Value) -> bool {
        let vocabulary = Vocabulary::read(&golden("model"), None).unwrap();
        let mut matcher = grammar(tools, &ToolChoice::Required).unwrap().matcher(&vocabulary).unwrap();
        let id_of = |byte: u8| (0..).find(|id| vocabulary.bytes(*id) == [byte]).unwrap();
        let tokens: Vec<u32> = call.to_string().bytes().map(id_of).collect();
        matcher.try_consume_tokens(&tokens).unwrap() == tokens.len() && matcher.is_accepting().unwrap()
    }

    #[test]
    fn references_are_found_where_the_schema_is_put() {
        // What pydantic writes of models in models, and of one that has itself inside.
        let trip = json!({
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/City"}, "const": {"$ref": "#/$defs/City"}},
            "required": ["to"],
            "additionalProperties": false,
            "$defs": {"City": {"type": "object", "properties": {"zip": {"type": "integer"}}, "required": ["zip"]}},
        });
        let tree = json!({
            "type": "object",
            "properties": {"leaf": {"type": "integer"}, "left": {"$ref": "#"}},
            "additionalProperties": false,
        });
        let node = json!({"$ref": "#/$defs/Node", "$defs": {"Node": tree}});
        let tools =
            [tool("time", json!({"type": "object"})), tool("trip", trip), tool("tree", tree), tool("node", node)];
        let said = |name: &str, arguments: Value| allows(&tools, &json!({"name": name, "arguments": arguments}));
        assert!(said("trip", json!({"to": {"zip": 1}})));
        assert!(said("trip", json!({"to": {"zip": 1}, "const": {"zip": 2}})));
        assert!(!said("trip", json!({"to": {"zip": "x"}})) && !said("trip", json!({"to": 1})));
        assert!(said("tree", json!({"left": {"left": {"leaf": 3}}})) && !said("tree", json!({"left": {"leaf": "x"}})));
        assert!(said("node", json!({"leaf": 3})) && !said("node", json!({"leaf": "x"})));
    }

    #[test]
    fn what_only_looks_like_a_reference_stays() {
        let mut schema = json!({
            "properties": {"$ref": {"const": {"$ref": "#/a"}}, "enum": {"$ref": "#/b"}},
            "items": [{"$ref": "other#/c"}, {"enum": [{"$ref": "#/d"}]}],
        });
        rebase(&mut schema, "#/at");
        assert_eq!(
            schema,
            json!({
                "properties": {"$ref": {"const": {"$ref": "#/a"}}, "enum": {"$ref": "#/at/b"}},
                "items": [{"$ref": "other#/c"}, {"enum": [{"$ref": "#/d"}]}],
            })
        );
    }

    #[test]
    fn arguments_are_an_object_whatever_the_schema_says() {
        for parameters in [json!({}), json!({"description": "any"}), json!({"type": ["object", "null"]})] {
            let tools = [tool("time", parameters.clone())];
            assert!(allows(&tools, &json!({"name": "time", "arguments": {"zone": "UTC"}})), "{parameters}");
            for arguments in [json!(3), json!("x"), json!([]), Value::Null] {
                assert!(!allows(&tools, &json!({"name": "time", "arguments": arguments})), "{parameters}");
            }
        }
    }
}
