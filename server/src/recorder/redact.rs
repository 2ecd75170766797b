//! What must not be written down: replaced by its name before a record is stored.

use std::borrow::Cow;

use regex::Regex;
use reground_learner::bpo::pair::Part;
use reground_learner::store::rows::{Feedback, Record};
use serde_json::Value;

/// Rules that replace what must not be stored.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// What every mark begins with.
const MARK: &str = "[redacted:";

/// Whether a rule has taken something out of a text: a mark stands in its place.
#[must_use]
pub fn is_redacted(text: &str) -> bool {
    text.contains(MARK)
}

/// Whether a match of a pattern is what the rule looks for.
type Counts = fn(&str) -> bool;

#[derive(Clone, Debug)]
struct Rule {
    /// What stands in the place: `[redacted:email]`.
    mark: String,
    pattern: Regex,
    /// Whether a match is one; patterns alone take order numbers for cards.
    counts: Counts,
}

/// The built-in rules: name, pattern, what a match must satisfy besides.
const BUILT_IN: [(&str, &str, Counts); 4] = [
    // Before the others: what is inside a key must not be taken for a telephone number.
    (
        "key",
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)|\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[A-Za-z0-9_-]{35}|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
        |_| true,
    ),
    ("email", r"(?i)\b[a-z0-9][a-z0-9._%+-]*@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b", |_| true),
    ("card", r"\b\d(?:[ -]?\d){12,18}\b", is_card),
    ("phone", r"(?:\+\d{1,3}[ ./-]?)?(?:\(\d{1,5}\)|\b\d{2,5})(?:[ ./-]?\d{2,4}){2,4}\b", is_phone),
];

impl Rules {
    /// Built-in rules by name (`email`, `phone`, `card`, `key`) and more patterns, which are called `custom`.
    ///
    /// # Errors
    /// The name of an unknown rule, or what is wrong with a pattern.
    pub fn new(built_in: &[String], patterns: &[String]) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (name, pattern, counts) in BUILT_IN {
            if built_in.iter().any(|wanted| wanted == name) {
                let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
                rules.push(Rule { mark: format!("{MARK}{name}]"), pattern, counts });
            }
        }
        if let Some(unknown) = built_in.iter().find(|name| BUILT_IN.iter().all(|(known, ..)| known != name)) {
            return Err(format!("`{unknown}` is none of email, phone, card, key"));
        }
        for pattern in patterns {
            let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
            rules.push(Rule { mark: format!("{MARK}custom]"), pattern, counts: |_| true });
        }
        Ok(Self { rules })
    }

    /// Replaces what the rules find; gives the number of places.
    pub fn text(&self, text: &mut String) -> usize {
        let mut places = 0;
        for rule in &self.rules {
            let replaced = rule.pattern.replace_all(text, |found: &regex::Captures<'_>| {
                let found = &found[0];
                if (rule.counts)(found) {
                    places += 1;
                    Cow::from(rule.mark.as_str())
                } else {
                    Cow::from(found.to_owned())
                }
            });
            if let Cow::Owned(replaced) = replaced {
                *text = replaced;
            }
        }
        places
    }

    /// Everything in a record that somebody wrote, also the keys and values of tools. An answer that was changed loses its
    /// tokens: they spell what was taken out.
    pub fn record(&self, record: &mut Record) -> usize {
        let mut places = 0;
        for said in &mut record.messages {
            for part in &mut said.content {
                if let Part::Text { text } = part {
                    places += self.text(text);
                }
            }
            places += said.tool_calls.iter_mut().map(|call| self.value(call)).sum::<usize>();
        }
        for answer in &mut record.answers {
            let changed =
                self.text(&mut answer.text) + answer.tool_calls.iter_mut().map(|call| self.value(call)).sum::<usize>();
            if changed > 0 {
                answer.token_ids.clear();
                answer.token_logprobs.clear();
            }
            places += changed;
        }
        places += record.tools.iter_mut().map(|tool| self.value(tool)).sum::<usize>();
        places += record.parameters.values_mut().map(|value| self.value(value)).sum::<usize>();
        places += record.metadata.values_mut().map(|value| self.text(value)).sum::<usize>();
        places += record.user.iter_mut().map(|user| self.text(user)).sum::<usize>();
        record.redactions += places;
        places
    }

    /// Everything in feedback that somebody wrote.
    pub fn feedback(&self, feedback: &mut Feedback) -> usize {
        let texts = feedback.correction.iter_mut().chain(&mut feedback.comment);
        texts.map(|text| self.text(text)).sum()
    }

    fn value(&self, value: &mut Value) -> usize {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(values) => values.iter_mut().map(|value| self.value(value)).sum(),
            Value::Object(fields) => fields.values_mut().map(|value| self.value(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

/// Luhn's check (ISO/IEC 7812-1, annex B): doubled every second digit from the right, the digits' sum ends with 0.
fn is_card(text: &str) -> bool {
    let sum: u32 = digits(text)
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => *digit,
            (_, doubled) => doubled / 10 + doubled % 10,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// E.164 has at most 15 digits; fewer than 8 without a country's code are prices and years. Dates are none.
fn is_phone(text: &str) -> bool {
    let count = digits(text).len();
    let parts: Vec<&str> = text.split(['-', '/', '.']).collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let is_date = matches!(lengths[..], [4, 2, 2] | [2, 2, 4]);
    let separated = text.contains(|c: char| !c.is_ascii_digit());
    (8..=15).contains(&count) && !is_date && separated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let all = ["email", "phone", "card", "key"].map(str::to_owned);
        Rules::new(&all, &[r"project-\w+".to_owned()]).unwrap()
    }

    fn redacted(text: &str) -> String {
        let mut text = text.to_owned();
        rules().text(&mut text);
        text
    }

    #[test]
    fn what_is_private_goes() {
        for (given, left) in [
            ("write to ann.lee+x@mail.example.org!", "write to [redacted:email]!"),
            ("call +49 30 1234567 or (030) 123-4567", "call [redacted:phone] or [redacted:phone]"),
            ("card 4111 1111 1111 1111.", "card [redacted:card]."),
            ("key sk-abcdefghijklmnop1234, AKIAIOSFODNN7EXAMPLE", "key [redacted:key], [redacted:key]"),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----", "[redacted:key]"),
            ("the project-zeus plan", "the [redacted:custom] plan"),
        ] {
            assert_eq!(redacted(given), left);
            assert!(is_redacted(left) && !is_redacted(given));
        }
    }

    #[test]
    fn what_is_not_stays() {
        for text in [
            "3 red circles and 12 squares",
            "in 1999 or 2024-05-17 or 17.05.2024",
            "order 1234567890123456",
            "a @ b, 3.14159, 1920x1080",
            "task-skill-abc",
        ] {
            assert_eq!(redacted(text), text);
        }
    }

    #[test]
    fn a_wrong_rule_is_named() {
        assert!(Rules::new(&["mail".to_owned()], &[]).unwrap_err().contains("`mail`"));
        assert!(Rules::new(&[], &["(".to_owned()]).is_err());
    }
}
