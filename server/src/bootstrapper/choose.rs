//! The chosen answer of a record: what is right, as far as anybody said.

use std::collections::BTreeMap;

use reground_learner::bpo::data::check_turns;
use reground_learner::bpo::pair::{Message, Source};
use reground_learner::store::rows::{Answer, Feedback, Finish, Pair, PairState, Record};
use serde_json::Value;

use crate::config::{BootstrapConfig, ChosenSource};
use crate::recorder::is_redacted;

/// Why a pair waits for a person: no trusted key wrote the chosen answer.
pub(super) const UNTRUSTED_CORRECTION: &str = "untrusted_correction";
/// Why a pair waits for a person: no trusted key called the answer right. A caller can have the model say anything.
pub(super) const UNTRUSTED_RATING: &str = "untrusted_rating";
/// Why a pair is withdrawn: what was said later contradicts it.
pub(super) const SUPERSEDED: &str = "superseded";

/// What is to be done with a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// Look again later: feedback may come yet.
    Later,
    /// It gives no pair.
    Skip(Skip),
    /// It has a chosen answer.
    Make(Choice),
}

/// Why a record gives no pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    /// Tools take part, which pairs do not know.
    Tools,
    /// The conversation is not one that chat templates can write: turns that do not alternate, nothing said at the end.
    Conversation,
    /// The answer broke off or was cut off.
    Unfinished,
    /// Whoever asked decided what the answer looks like: a format, biased tokens, texts to stop at. As an answer to the question alone it
    /// would teach that.
    Shaped,
    /// There are several answers, and nobody said which is meant.
    SeveralAnswers,
    /// Somebody called the answer wrong, and nobody said what is right.
    Disapproved,
    /// No source that counts says what is right.
    NoSource,
    /// What would be chosen has marks in the place of what redaction took out, which a model must not learn to say.
    Redacted,
    /// The grounding filter refused the model's own answer.
    NotGrounded,
    /// The generation that answered is not loaded any more.
    NotLoaded,
    /// The model cannot answer what has to be asked, or an image is damaged.
    Impossible,
    /// No rejected answer passed the filters.
    NothingKept,
}

/// A chosen answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) source: Source,
    pub(super) text: String,
    /// The feedback that chose.
    pub(super) feedback: Option<String>,
    /// Name of the API key that it came with.
    pub(super) key: String,
    /// Why a person must look at its pairs first; `None`: nobody must.
    pub(super) review: Option<&'static str>,
    /// The conversation up to the answer.
    pub(super) conversation: Vec<Message>,
    /// The answer that a correction corrects, if it ended by itself and nobody decided what it looks like.
    pub(super) corrected: Option<String>,
}

impl Skip {
    /// Its name in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Conversation => "conversation",
            Self::Unfinished => "unfinished",
            Self::Shaped => "shaped",
            Self::SeveralAnswers => "several_answers",
            Self::Disapproved => "disapproved",
            Self::NoSource => "no_source",
            Self::Redacted => "redacted",
            Self::NotGrounded => "not_grounded",
            Self::NotLoaded => "not_loaded",
            Self::Impossible => "impossible",
            Self::NothingKept => "nothing_kept",
        }
    }
}

/// Decides by all feedback to the record, oldest first.
pub(super) fn choose(record: &Record, feedback: &[Feedback], config: &BootstrapConfig, now_ms: u64) -> Decision {
    match by_source(record, feedback, config, now_ms) {
        Decision::Make(choice) if is_redacted(&choice.text) => Decision::Skip(Skip::Redacted),
        decision => decision,
    }
}

fn by_source(record: &Record, feedback: &[Feedback], config: &BootstrapConfig, now_ms: u64) -> Decision {
    let Some(conversation) = record.training_messages() else { return Decision::Skip(Skip::Tools) };
    if check_turns(&conversation).is_err() {
        return Decision::Skip(Skip::Conversation);
    }
    if let Some(said) = correction(feedback).filter(|_| config.sources.contains(&ChosenSource::Correction)) {
        // What was cut off, or had to look so, is wrong in its form, too: as a negative it teaches when not to stop.
        let is_whole = |answer: &Answer| answer.finish == Finish::Stop && !is_shaped(record);
        let corrected = match &record.answers[..] {
            [answer] if config.corrected && is_whole(answer) => Some(answer.text.trim().to_owned()),
            _ => None,
        };
        return Decision::Make(Choice {
            source: Source::Correction,
            text: said.correction.as_deref().unwrap_or_default().trim().to_owned(),
            feedback: Some(said.id.clone()),
            key: said.key.clone(),
            review: (!said.trusted).then_some(UNTRUSTED_CORRECTION),
            conversation,
            corrected,
        });
    }
    own_answer(record, feedback, config, now_ms, conversation)
}

/// The correction that counts: the latest of a trusted key, else the latest.
fn correction(feedback: &[Feedback]) -> Option<&Feedback> {
    let mut said = feedback.iter().rev().filter(|feedback| feedback.correction.is_some());
    said.clone().find(|feedback| feedback.trusted).or_else(|| said.next())
}

fn own_answer(
    record: &Record,
    feedback: &[Feedback],
    config: &BootstrapConfig,
    now_ms: u64,
    conversation: Vec<Message>,
) -> Decision {
    let answer = match &record.answers[..] {
        [answer] => answer,
        _ => return Decision::Skip(Skip::SeveralAnswers),
    };
    if answer.finish != Finish::Stop {
        return Decision::Skip(Skip::Unfinished);
    }
    if is_shaped(record) {
        return Decision::Skip(Skip::Shaped);
    }
    let rated = rating(feedback);
    // A correction that does not count as a source says at least that the answer is not right.
    if rated.as_ref().is_some_and(|rated| rated.mean < 0.0) || correction(feedback).is_some() {
        return Decision::Skip(Skip::Disapproved);
    }
    let disputed = rated.as_ref().is_some_and(|rated| rated.lowest < 0.0);
    let choice = |source, feedback, review| Choice {
        source,
        text: answer.text.trim().to_owned(),
        feedback,
        key: record.key.clone(),
        review,
        conversation,
        corrected: None,
    };
    let accepted = rated.filter(|rated| rated.mean >= config.accepted_rating);
    if let Some(rated) = accepted.filter(|_| config.sources.contains(&ChosenSource::Accepted)) {
        let review = (!rated.trusted).then_some(UNTRUSTED_RATING);
        return Decision::Make(choice(Source::Accepted, Some(rated.latest), review));
    }
    if !config.sources.contains(&ChosenSource::OwnAnswer) || !can_be_scored(record, answer) {
        return Decision::Skip(Skip::NoSource);
    }
    if disputed {
        return Decision::Skip(Skip::Disapproved);
    }
    if feedback.is_empty() && now_ms.saturating_sub(record.created_ms) < config.self_after_s * 1000 {
        return Decision::Later;
    }
    Decision::Make(choice(Source::OwnAnswer, None, None))
}

/// Whether the request says what the answer looks like.
fn is_shaped(record: &Record) -> bool {
    ["response_format", "logit_bias", "stop"].iter().any(|name| match record.parameters.get(*name) {
        None | Some(Value::Null) => false,
        Some(Value::Array(values)) => !values.is_empty(),
        Some(_) => true,
    })
}

/// Grounding needs a picture, and the tokens, which redaction takes away.
fn can_be_scored(record: &Record, answer: &Answer) -> bool {
    !record.images.is_empty() && !answer.token_ids.is_empty()
}

struct Rated {
    /// Over the latest rating of each key.
    mean: f64,
    /// The lowest of them.
    lowest: f64,
    /// The latest feedback with a rating.
    latest: String,
    /// Whether a trusted key's latest rating is positive.
    trusted: bool,
}

fn rating(feedback: &[Feedback]) -> Option<Rated> {
    let rated = || feedback.iter().filter_map(|said| Some((said, said.rating?)));
    let latest: BTreeMap<&str, (f64, bool)> =
        rated().map(|(said, rating)| (said.key.as_str(), (rating, said.trusted))).collect();
    let mean = latest.values().map(|(rating, _)| rating).sum::<f64>() / latest.len() as f64;
    let lowest = latest.values().map(|(rating, _)| *rating).fold(f64::INFINITY, f64::min);
    let trusted = latest.values().any(|(rating, trusted)| *trusted && *rating > 0.0);
    rated().next_back().map(|(said, _)| Rated { mean, lowest, latest: said.id.clone(), trusted })
}

impl Choice {
    /// Whether an older pair of the record was made for this very choice, or a person has decided about it since.
    pub(super) fn made(&self, pair: &Pair) -> bool {
        if is_withdrawn(pair) {
            return false;
        }
        match self.source {
            Source::Correction => pair.feedback == self.feedback,
            // What waits for a person is made anew once a trusted key vouches for it, and the other way round.
            _ => {
                let same = pair.data.source == self.source && pair.reason.as_deref() == self.review;
                same || !pair.reviews.is_empty()
            }
        }
    }
}

/// Whether a pair was withdrawn by the bootstrapper, not by a person.
pub(super) fn is_withdrawn(pair: &Pair) -> bool {
    pair.state == PairState::Discarded && pair.reason.as_deref() == Some(SUPERSEDED)
}

/// Whether a pair goes when its record gives another choice, or none: what a person decided stays.
pub(super) fn can_be_withdrawn(pair: &Pair) -> bool {
    pair.reviews.is_empty() && pair.state != PairState::Discarded
}
