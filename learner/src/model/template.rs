//! The chat template of a checkpoint, rendered as transformers and mistralrs render it.

use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::Value as Json;

use super::conversation::Message;
use super::error::ModelError;
use super::source::Source;

const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: [Option<String>; 3],
}

impl ChatTemplate {
    /// Finds the template in `chat_template.jinja`, `chat_template.json`, `processor_config.json` or
    /// `tokenizer_config.json`, in this order.
    ///
    /// # Errors
    /// There is none, or it does not compile.
    pub fn load(source: &Source) -> Result<Self, ModelError> {
        let settings: Json = source.json("tokenizer_config.json")?.unwrap_or(Json::Null);
        let text = match source.read("chat_template.jinja")? {
            Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            None => {
                let mut found = None;
                for file in ["chat_template.json", "processor_config.json"] {
                    if found.is_none() {
                        found = source.json::<Json>(file)?.as_ref().and_then(template_text);
                    }
                }
                found.or_else(|| template_text(&settings))
            }
        };
        let text =
            text.ok_or_else(|| ModelError::MissingFile { file: "chat_template in tokenizer_config.json".to_owned() })?;
        let tokens = ["bos_token", "eos_token", "unk_token"].map(|key| token_text(settings.get(key)));
        Self::new(&text, tokens)
    }

    /// Compiles a template. `tokens` are the texts of the beginning, end and unknown tokens, which templates may use.
    ///
    /// # Errors
    /// A template that does not compile.
    pub fn new(text: &str, tokens: [Option<String>; 3]) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_lstrip_blocks(true);
        environment.set_trim_blocks(true);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // minijinja has no negative step in slices, and transformers' own markers mean nothing when rendering.
        let text =
            text.replace("[::-1]", "|reverse").replace("{% generation %}", "").replace("{% endgeneration %}", "");
        environment.add_template_owned(NAME, text)?;
        Ok(Self { environment, tokens })
    }

    /// The text of a conversation; with `answer_next`, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// What the template raises.
    pub fn render(&self, messages: &[Message], answer_next: bool) -> Result<String, ModelError> {
        self.render_with(messages, &[], answer_next)
    }

    /// As [`ChatTemplate::render`], of messages in whatever shape the template reads (tool calls, for example), with tools as
    /// OpenAI writes them.
    ///
    /// # Errors
    /// What the template raises.
    pub fn render_with<M: Serialize>(
        &self,
        messages: &[M],
        tools: &[Json],
        answer_next: bool,
    ) -> Result<String, ModelError> {
        let tools = (!tools.is_empty()).then_some(tools);
        let [bos_token, eos_token, unk_token] = &self.tokens;
        Ok(self.environment.get_template(NAME)?.render(context! {
            messages,
            tools,
            add_generation_prompt => answer_next,
            bos_token,
            eos_token,
            unk_token,
        })?)
    }
}

/// A template stands as one string, or as a list of named ones of which `default` is meant.
fn template_text(settings: &Json) -> Option<String> {
    match settings.get("chat_template")? {
        Json::String(text) => Some(text.clone()),
        Json::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str().map(str::to_owned)),
        _ => None,
    }
}

/// A special token stands as a string, or as an object with its content.
pub(super) fn token_text(value: Option<&Json>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smolvlm_style() {
        let text = "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}\
            {% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}\
            {% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}\
            {% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n\
            {% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";
        let template = ChatTemplate::new(text, Default::default()).unwrap();
        assert_eq!(
            template.render(&[Message::user("What?", 1)], true).unwrap(),
            "<|im_start|>User:<image>What?<end_of_utterance>\nAssistant:"
        );
        assert_eq!(
            template.render(&[Message::user("What?", 0), Message::assistant("That.")], false).unwrap(),
            "<|im_start|>User: What?<end_of_utterance>\nAssistant: That.<end_of_utterance>\n"
        );
    }

    #[test]
    fn python_methods_and_raised_errors() {
        let template =
            ChatTemplate::new("{{ messages[0].role.upper() }}{{ bos_token }}", [Some("<s>".into()), None, None])
                .unwrap();
        assert_eq!(template.render(&[Message::user("x", 0)], false).unwrap(), "USER<s>");
        let template = ChatTemplate::new("{{ raise_exception('no system messages') }}", Default::default()).unwrap();
        assert!(template.render(&[], false).unwrap_err().to_string().contains("no system messages"));
    }
}
