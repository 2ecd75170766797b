//! `tools`, `tool_choice` and `parallel_tool_calls`.

use serde_json::Value;

use crate::answer::ToolChoice;
use crate::answer::tools::grammar;
use crate::api::error::{ApiError, shown};
use crate::api::json::{self, Fields, Path};
use crate::engine::Vocabulary;
use crate::engine::grammar::Grammar;

/// Most tools of one request.
const MAX_TOOLS: usize = 128;

/// A call that the caller demands.
pub(super) struct Demanded {
    tools: Vec<Value>,
    choice: ToolChoice,
    grammar: Grammar,
}

impl Demanded {
    /// `None`: the model may do without.
    pub(super) fn of(tools: &[Value], choice: &ToolChoice) -> Option<Self> {
        let grammar = grammar(tools, choice)?;
        Some(Self { tools: tools.to_vec(), choice: choice.clone(), grammar })
    }

    /// Compiles its grammar, which can take a while.
    ///
    /// # Errors
    /// It cannot be enforced; the first tool whose schema alone cannot is named.
    pub(super) fn check(&self, vocabulary: &Vocabulary) -> Result<(), ApiError> {
        // Without a look at each tool, which could be a hundred times the work that one schema may make.
        self.grammar.check_size().map_err(|error| ApiError::from(error).at("tools"))?;
        let Err(error) = self.grammar.matcher(vocabulary) else { return Ok(()) };
        let alone = |tool| grammar(std::slice::from_ref(tool), &self.choice)?.matcher(vocabulary).err();
        let at_fault = self.tools.iter().enumerate().find_map(|(index, tool)| Some((index, alone(tool)?)));
        Err(match at_fault {
            Some((index, error)) => ApiError::from(error).at(format_args!("tools[{index}].function.parameters")),
            None => ApiError::from(error).at("tools"),
        })
    }
}

/// Takes the three parameters, which must fit each other.
pub(super) fn take(fields: &mut Fields<'_>) -> Result<(Vec<Value>, ToolChoice), ApiError> {
    let tools = fields.optional("tools", tools)?.unwrap_or_default();
    let choice = fields.optional("tool_choice", |value, at| choice(value, at, &tools))?.unwrap_or_default();
    let parallel = fields.optional("parallel_tool_calls", json::boolean)?.unwrap_or(true);
    if !parallel && !tools.is_empty() {
        let message = "`parallel_tool_calls` must be true: this server cannot keep a model from calling several tools";
        return Err(ApiError::unsupported("parallel_tool_calls", message));
    }
    Ok((tools, choice))
}

fn tools(value: Value, at: &Path<'_>) -> Result<Vec<Value>, ApiError> {
    let tools = json::array(value, at)?;
    if tools.len() > MAX_TOOLS {
        let message = format!("`{at}` has {} tools; allowed: at most {MAX_TOOLS}", tools.len());
        return Err(ApiError::invalid(at, message));
    }
    let mut names = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let at = at.index(index);
        let name = check_tool(tool.clone(), &at)?;
        if names.contains(&name) {
            return Err(ApiError::invalid(at, format!("`{at}` has the name `{name}`, which another tool has already")));
        }
        names.push(name);
    }
    Ok(tools)
}

/// Checks one tool; its name.
fn check_tool(tool: Value, at: &Path<'_>) -> Result<String, ApiError> {
    let mut fields = Fields::of(tool, at)?;
    fields.required("type", |v, at| json::one_of(v, at, &[("function", ())]))?;
    let name = fields.required("function", |value, at| {
        let mut fields = Fields::of(value, at)?;
        let name = fields.required("name", json::name)?;
        fields.optional("description", json::string)?;
        fields.optional("parameters", json::object)?;
        // Forced calls are always held to the schema; without `strict` the caller only asks for less.
        fields.optional("strict", json::boolean)?;
        fields.finish()?;
        Ok(name)
    })?;
    fields.finish()?;
    Ok(name)
}

fn choice(value: Value, at: &Path<'_>, tools: &[Value]) -> Result<ToolChoice, ApiError> {
    let choice = match value {
        Value::String(ref word) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            other => {
                let message = format!(
                    "`{at}` cannot be `{}`; allowed: none, auto, required, or {{\"type\": \"function\", …}}",
                    shown(other)
                );
                return Err(ApiError::unsupported(at, message));
            }
        },
        Value::Object(_) => function(value, at, tools)?,
        other => return Err(json::wrong_type(&other, at, "a string or an object")),
    };
    if choice == ToolChoice::Required && tools.is_empty() {
        return Err(ApiError::invalid(at, "`tool_choice: \"required\"` needs `tools`"));
    }
    Ok(choice)
}

fn function(value: Value, at: &Path<'_>, tools: &[Value]) -> Result<ToolChoice, ApiError> {
    let mut fields = Fields::of(value, at)?;
    fields.required("type", |v, at| json::one_of(v, at, &[("function", ())]))?;
    let name = fields.required("function", |value, at| {
        let mut fields = Fields::of(value, at)?;
        let name = fields.required("name", json::string)?;
        fields.finish()?;
        Ok(name)
    })?;
    fields.finish()?;
    if tools.iter().any(|tool| tool["function"]["name"] == name.as_str()) {
        return Ok(ToolChoice::Function(name));
    }
    let message = format!("`{at}` names the function `{}`, which is not among `tools`", shown(&name));
    Err(ApiError::invalid(at.key("function").key("name"), message))
}
