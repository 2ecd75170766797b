//! The BPO authors' data: scored completions of one prompt.
//!
//! ```json
//! {"image": "coco/train2017/000000000009.jpg", "prompt": "What do you see happening in this image?\n<image>",
//!  "completions": [{"score": 1, "response": "…", "type": "gt"},
//!                  {"score": 0, "response": "…", "type": "llm-hal"}]}
//! ```
//!
//! `conversations` may stand in for `prompt`, and `text` for `response`. The best score is chosen; every lower one gives a
//! pair, except where its text equals the chosen one. (The authors also pair the lower ones among themselves; a pair of two
//! wrong answers teaches which mistake is nicer, so it is left out.) Types: `llm-hal` is error injection, `mllm-hal` image
//! weakening. A single completion is an annotation.

use serde::Deserialize;
use serde_json::Value;

use super::Fault;
use super::draft::{Draft, check_size};
use super::llava::{Images, Turn, messages};
use crate::bpo::pair::{Message, NegativeKind, PreferencePair};

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    image: Images,
    prompt: Option<String>,
    conversations: Option<Vec<Turn>>,
    completions: Vec<Completion>,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(alias = "text")]
    response: String,
    score: Value,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

/// `bytes`: size of the entry.
pub(super) fn parse(value: Value, bytes: usize) -> Result<Vec<Draft>, Fault> {
    let row: Row = serde_json::from_value(value).map_err(|error| Fault::Json(error.to_string()))?;
    check_size(row.completions.len(), bytes)?;
    let images = row.image.into_names();
    let conversation = conversation(row.prompt, row.conversations, images.len())?;
    let ranked = rank(row.completions)?;
    let Some((chosen, best)) = ranked.first().map(|(completion, score)| (completion.response.clone(), *score)) else {
        return Err(Fault::Content { place: "completions".to_owned(), what: "it is empty".to_owned() });
    };
    let draft = |rejected: Option<&Completion>| Draft {
        images: images.clone(),
        conversation: conversation.clone(),
        chosen: chosen.clone(),
        rejected: rejected.map(|completion| completion.response.clone()),
        negative: rejected.map(negative),
    };
    if ranked.len() == 1 {
        return Ok(vec![draft(None)]);
    }
    let lower = ranked.iter().filter(|(_, score)| *score < best).map(|(completion, _)| completion).collect::<Vec<_>>();
    if lower.is_empty() {
        return Err(Fault::NoPreference(ranked.len()));
    }
    let different = |completion: &&&Completion| !PreferencePair::same_content(&completion.response, &chosen);
    let drafts = lower.iter().filter(different).map(|completion| draft(Some(completion))).collect::<Vec<_>>();
    if drafts.is_empty() { Err(Fault::SameAnswers) } else { Ok(drafts) }
}

fn conversation(prompt: Option<String>, turns: Option<Vec<Turn>>, images: usize) -> Result<Vec<Message>, Fault> {
    let turns = match (prompt, turns) {
        (Some(value), None) => vec![Turn::human(value)],
        (None, Some(turns)) => turns,
        (Some(_), Some(_)) => {
            return Err(Fault::Json("prompt and conversations are both there, one is needed".to_owned()));
        }
        (None, None) => {
            return Err(Fault::Json("missing field `prompt` (or `conversations`)".to_owned()));
        }
    };
    messages(turns, images)
}

/// Best first; equal scores keep their order.
fn rank(completions: Vec<Completion>) -> Result<Vec<(Completion, f64)>, Fault> {
    let mut ranked = Vec::new();
    for (at, completion) in completions.into_iter().enumerate() {
        let score = completion.score.as_f64().filter(|score| score.is_finite()).ok_or(Fault::Score(at))?;
        ranked.push((completion, score));
    }
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(ranked)
}

fn negative(completion: &Completion) -> NegativeKind {
    match completion.kind.as_deref() {
        Some("llm-hal") => NegativeKind::Injected,
        Some("mllm-hal") => NegativeKind::ImageWeakened,
        _ => NegativeKind::Given,
    }
}
