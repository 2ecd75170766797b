//! What must not be written down: replaced by its name before a record is stored.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;

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

/// Where in a match of a pattern the rule's own is.
type Parts = fn(&str) -> Vec<Range<usize>>;

#[derive(Clone, Debug)]
struct Rule {
    /// What stands in the place: `[redacted:email]`.
    mark: String,
    pattern: Regex,
    /// What of a match it is; patterns alone take order numbers for cards.
    parts: Parts,
}

/// The built-in rules: name, pattern, what of a match goes. A boundary is one of ASCII: to Unicode the letters of a script without spaces
/// are part of the word that they touch.
const BUILT_IN: [(&str, &str, Parts); 4] = [
    // Before the others: what is inside a key must not be taken for a telephone number.
    (
        "key",
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)|(?-u:\b)_*(?:(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}(?-u:\b|_)|gh[pousr]_[A-Za-z0-9]{36,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{35}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)",
        whole,
    ),
    // No boundary tells an address from a word that it touches without a space: the word goes, too.
    (
        "email",
        r"[\p{L}\p{N}][\p{L}\p{M}\p{N}._%+-]*@[\p{L}\p{M}\p{N}-]+(?:\.[\p{L}\p{M}\p{N}-]+)*\.[\p{L}\p{M}]{2,}",
        whole,
    ),
    ("card", r"[A-Za-z]?\d(?:[ -]?\d){12,}[A-Za-z]?", cards),
    // A day and its hour first, or their figures would be taken for the beginning of a number.
    (
        "phone",
        r"(?-u:\b)(?:(?:19|20)\d\d[./-](?:0[1-9]|1[0-2])[./-](?:0[1-9]|[12]\d|3[01])|(?:0[1-9]|[12]\d|3[01])[./-](?:0[1-9]|[12]\d|3[01])[./-](?:19|20)\d\d)(?:[T ]\d\d:\d\d(?::\d\d)?)?(?-u:\b)|(?:\+\d{1,3}[ ./-]?)?(?:\(\d{1,5}\)|(?-u:\b)\d{2,5})(?:[ ./-]?\d{2,4}){2,4}(?-u:\b)",
        phone,
    ),
];

impl Rules {
    /// Built-in rules by name (`email`, `phone`, `card`, `key`) and more patterns, which are called `custom`.
    ///
    /// # Errors
    /// The name of an unknown rule, or what is wrong with a pattern.
    pub fn new(built_in: &[String], patterns: &[String]) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (name, pattern, parts) in BUILT_IN {
            if built_in.iter().any(|wanted| wanted == name) {
                let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
                rules.push(Rule { mark: format!("{MARK}{name}]"), pattern, parts });
            }
        }
        if let Some(unknown) = built_in.iter().find(|name| BUILT_IN.iter().all(|(known, ..)| known != name)) {
            return Err(format!("`{unknown}` is none of email, phone, card, key"));
        }
        for pattern in patterns {
            let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
            rules.push(Rule { mark: format!("{MARK}custom]"), pattern, parts: whole });
        }
        Ok(Self { rules })
    }

    /// Replaces what the rules find; gives the number of places.
    pub fn text(&self, text: &mut String) -> usize {
        let mut places = 0;
        for rule in &self.rules {
            let (before, mut left, mut copied) = (places, String::new(), 0);
            for found in rule.pattern.find_iter(text.as_str()) {
                for part in (rule.parts)(found.as_str()) {
                    left.push_str(&text[copied..found.start() + part.start]);
                    left.push_str(&rule.mark);
                    copied = found.start() + part.end;
                    places += 1;
                }
            }
            if places > before {
                left.push_str(&text[copied..]);
                *text = left;
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
            places += said.tool_call_id.iter_mut().map(|id| self.text(id)).sum::<usize>();
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
        places += self.labels(&mut record.metadata);
        places += record.user.iter_mut().map(|user| self.text(user)).sum::<usize>();
        record.redactions += places;
        places
    }

    /// Everything in feedback that somebody wrote.
    pub fn feedback(&self, feedback: &mut Feedback) -> usize {
        let texts = feedback.correction.iter_mut().chain(&mut feedback.comment);
        texts.map(|text| self.text(text)).sum()
    }

    /// Labels, their names as well. Of two names that are alike without what was taken out, the later one stays.
    pub fn labels(&self, labels: &mut BTreeMap<String, String>) -> usize {
        let mut places = 0;
        for (mut name, mut value) in std::mem::take(labels) {
            places += self.text(&mut name) + self.text(&mut value);
            labels.insert(name, value);
        }
        places
    }

    fn value(&self, value: &mut Value) -> usize {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(values) => values.iter_mut().map(|value| self.value(value)).sum(),
            // As with labels.
            Value::Object(fields) => {
                let mut places = 0;
                for (mut name, mut value) in std::mem::take(fields) {
                    places += self.text(&mut name) + self.value(&mut value);
                    fields.insert(name, value);
                }
                places
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }
}

fn whole(found: &str) -> Vec<Range<usize>> {
    iter::once(0..found.len()).collect()
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

/// Cards among digits with spaces or hyphens between them: a card's date, its check value or another number may stand beside it.
fn cards(found: &str) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for group in found.split([' ', '-']) {
        let start = groups.last().map_or(0, |before| before.end + 1);
        groups.push(start..start + group.len());
    }
    // Digits that touch a letter are part of a word.
    groups.retain(|group| !found[group.clone()].contains(|c: char| c.is_ascii_alphabetic()));
    let mut cards: Vec<Range<usize>> = Vec::new();
    for (first, begin) in groups.iter().enumerate() {
        let runs = groups[first..].iter().map(|end| begin.start..end.end);
        let runs = runs.take_while(|run| figures(&found[run.clone()]) <= 19);
        let is_one = |run: &Range<usize>| {
            let number = &found[run.clone()];
            (number.len() == found.len() || is_grouped(number)) && is_card(number)
        };
        if let Some(card) = runs.filter(is_one).last() {
            match cards.last_mut() {
                Some(before) if before.end > card.start => before.end = before.end.max(card.end),
                _ => cards.push(card),
            }
        }
    }
    cards
}

/// Number of digits, of whatever script.
fn figures(text: &str) -> usize {
    text.chars().filter(|c| c.is_numeric()).count()
}

/// Whether it is written as cards are, 4-4-4-4 or 4-6-5. Among many short numbers some always pass Luhn's check.
fn is_grouped(number: &str) -> bool {
    let mut lengths = number.split([' ', '-']).map(str::len);
    lengths.next().is_some_and(|first| first >= 4) && lengths.all(|length| length >= 3)
}

/// 13 to 19 digits that pass Luhn's check (ISO/IEC 7812-1, annex B): doubled every second digit from the right, the digits' sum ends
/// with 0. Digits of other scripts count as 0: they cannot be checked, and go.
fn is_card(number: &str) -> bool {
    let sum: u32 = digits(number)
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| match (place % 2, digit * 2) {
            (0, _) => *digit,
            (_, doubled) => doubled / 10 + doubled % 10,
        })
        .sum();
    (13..=19).contains(&figures(number)) && sum.is_multiple_of(10)
}

fn phone(found: &str) -> Vec<Range<usize>> {
    if is_phone(found) { whole(found) } else { Vec::new() }
}

/// E.164 has at most 15 digits; fewer than 8 without a country's code are prices and years. Dates are none, and days are no part of one.
fn is_phone(text: &str) -> bool {
    let words = text.split([' ', 'T']).filter(|word| !is_day(word));
    let count: usize = words.map(|word| digits(word).len()).sum();
    let parts: Vec<&str> = text.split(['-', '/', '.']).collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let is_date = matches!(lengths[..], [4, 2, 2] | [2, 2, 4]);
    let separated = text.contains(|c: char| !c.is_ascii_digit());
    (8..=15).contains(&count) && !is_date && separated
}

/// A day of this century or the last: 2024-05-17, 17.05.2024, 05/17/2024.
fn is_day(word: &str) -> bool {
    let parts: Vec<&str> = word.split(['-', '/', '.']).collect();
    let (year, others) = match parts[..] {
        [year, month, day] if year.len() == 4 => (year, [month, day]),
        [day, month, year] if year.len() == 4 => (year, [day, month]),
        _ => return false,
    };
    let number = |text: &str| text.parse().unwrap_or(0_u32);
    let is_in_month = |part: &str| part.len() == 2 && (1..=31).contains(&number(part));
    (1900..=2099).contains(&number(year)) && others.into_iter().all(is_in_month)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            ("4111 1111 1111 1111 12/25", "[redacted:card] 12/25"),
            ("4111111111111111 123", "[redacted:card] 123"),
            ("2 4111 1111 1111 1111", "2 [redacted:card]"),
            ("3782 822463 10005 1234", "[redacted:card] 1234"),
            ("4111 1111 1111 1111 5500 0000 0000 0004", "[redacted:card] [redacted:card]"),
            ("卡号4111111111111111。_4111-1111-1111-1111_", "卡号[redacted:card]。_[redacted:card]_"),
            ("我的邮箱是ann@example.com请回复", "[redacted:email]"),
            ("_ann@example.com_", "_[redacted:email]_"),
            ("josé@example.com, ann@müller.de", "[redacted:email], [redacted:email]"),
            ("密钥sk-abcdefghijklmnop1234", "密钥[redacted:key]"),
            ("_sk-abcdefghijklmnop1234 钥AKIAIOSFODNN7EXAMPLE请", "[redacted:key] 钥[redacted:key]请"),
            ("电话030-123-4567请", "电话[redacted:phone]请"),
            ("2024-05-17 10:30 555-123-4567", "2024-05-17 10:30 [redacted:phone]"),
            ("91-98-7654-3210 or 030 1234-56-78", "[redacted:phone] or [redacted:phone]"),
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
            "task-management-application, users_pk_constraint_identifier",
            "2024-05-17 10:30",
            "2024-05-17T10:30:00Z, 17.05.2024 10.30 and 2024/05/17 10",
            "10:30 2024-05-17",
            "17.05.2024-20.05.2024",
            "123e4567-e89b-12d3-a456-426614174000",
        ] {
            assert_eq!(redacted(text), text);
        }
    }

    #[test]
    fn counting_is_no_card() {
        // Three runs of these pass Luhn's check.
        assert!(cards("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17").is_empty());
    }

    #[test]
    fn names_go_as_values_do() {
        let mut value = json!({"ann@example.org": {"to": ["bob@example.org", 1]}, "n": 2});
        assert_eq!(rules().value(&mut value), 2);
        assert_eq!(value, json!({"[redacted:email]": {"to": ["[redacted:email]", 1]}, "n": 2}));
        let mut labels = BTreeMap::from([("ann@example.org".to_owned(), "4111 1111 1111 1111".to_owned())]);
        assert_eq!(rules().labels(&mut labels), 2);
        assert_eq!(labels, BTreeMap::from([("[redacted:email]".to_owned(), "[redacted:card]".to_owned())]));
    }

    #[test]
    fn a_wrong_rule_is_named() {
        assert!(Rules::new(&["mail".to_owned()], &[]).unwrap_err().contains("`mail`"));
        assert!(Rules::new(&[], &["(".to_owned()]).is_err());
    }
}
