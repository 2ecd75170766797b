//! POPE: yes/no questions about objects that are there and objects that are not.

use serde::{Deserialize, Serialize};

use super::measure::Measure;

/// A yes/no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The object is (said to be) there.
    Yes,
    /// It is not.
    No,
}

/// A line of POPE's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PopeItem {
    /// Number of the question.
    pub question_id: u64,
    /// The image's file name.
    pub image: String,
    /// The question.
    pub text: String,
    /// The right answer.
    pub label: Verdict,
}

/// How an answer was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Understood {
    /// The verdict under POPE's rule.
    pub verdict: Verdict,
    /// Whether the answer has neither a word for yes nor one for no, so that the rule decided by default.
    pub unclear: bool,
}

/// Understands an answer by the rule of POPE's own script: only the first sentence counts, and it means no if it has one
/// of the words "no" and "not"; anything else means yes.
pub fn understand(answer: &str) -> Understood {
    let sentence = answer.split('.').next().unwrap_or_default();
    let words: Vec<String> = sentence
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let has = |wanted: &[&str]| words.iter().any(|word| wanted.contains(&word.as_str()));
    let verdict = if has(&["no", "not"]) { Verdict::No } else { Verdict::Yes };
    Understood { verdict, unclear: verdict == Verdict::Yes && !has(&["yes"]) }
}

/// An answer to a labelled question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered<'a> {
    /// The image's file name.
    pub image: &'a str,
    /// The right answer.
    pub label: Verdict,
    /// What was answered.
    pub understood: Understood,
}

/// All measures of answers to labelled questions, in the order of the tables; positive means yes. One item a picture.
pub fn measures(answers: &[Answered<'_>]) -> Vec<Measure> {
    measures_of(Verdict::Yes, answers)
}

/// As [`measures`], with another meaning of positive in precision, recall and F1.
pub fn measures_of(positive: Verdict, answers: &[Answered<'_>]) -> Vec<Measure> {
    let number = |hit: bool| f64::from(u8::from(hit));
    let of = |name: &str, value: &dyn Fn(&Answered<'_>) -> (f64, f64)| {
        Measure::by_picture(name, answers.iter().map(|answer| (answer.image, value(answer))))
    };
    let counted = |name: &str, value: &dyn Fn(bool, bool) -> (f64, f64)| {
        of(name, &|answer| value(answer.label == positive, answer.understood.verdict == positive))
    };
    vec![
        counted("accuracy", &|label, said| (number(label == said), 1.0)),
        counted("precision", &|label, said| (number(label && said), number(said))),
        counted("recall", &|label, said| (number(label && said), number(label))),
        // F1 = 2 TP / (2 TP + FP + FN) = 2 TP / (said + is positive).
        counted("F1", &|label, said| (2.0 * number(label && said), number(label) + number(said))),
        of("yes share", &|answer| (number(answer.understood.verdict == Verdict::Yes), 1.0)),
        of("unclear", &|answer| (number(answer.understood.unclear), 1.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verdict(answer: &str) -> (Verdict, bool) {
        let Understood { verdict, unclear } = understand(answer);
        (verdict, unclear)
    }

    #[test]
    fn answers_are_understood_by_popes_rule() {
        assert_eq!(verdict("Yes, there is an apple."), (Verdict::Yes, false));
        assert_eq!(verdict("No, there is no apple."), (Verdict::No, false));
        assert_eq!(verdict("There is not. Yes."), (Verdict::No, false));
        assert_eq!(verdict("Yes. There is no doubt."), (Verdict::Yes, false));
        assert_eq!(verdict("I know a notable apple"), (Verdict::Yes, true));
        assert_eq!(verdict(""), (Verdict::Yes, true));
    }

    #[test]
    fn values_counted_by_hand() {
        // TP 2, FN 1, FP 1, TN 2, one of the yeses unclear.
        let said = |image, label, answer: &str| Answered { image, label, understood: understand(answer) };
        let answers = [
            said("a", Verdict::Yes, "yes"),
            said("b", Verdict::Yes, "perhaps"),
            said("b", Verdict::Yes, "no"),
            said("a", Verdict::No, "yes"),
            said("a", Verdict::No, "no"),
            said("b", Verdict::No, "it is not"),
        ];
        assert_eq!(measures(&answers)[0], Measure::new("accuracy", [(2.0, 3.0), (2.0, 3.0)]), "one item a picture");
        let values: Vec<(String, Option<f64>)> =
            measures(&answers).iter().map(|measure| (measure.name().to_owned(), measure.value())).collect();
        let expected = [
            ("accuracy", 4.0 / 6.0),
            ("precision", 2.0 / 3.0),
            ("recall", 2.0 / 3.0),
            ("F1", 2.0 / 3.0),
            ("yes share", 0.5),
            ("unclear", 1.0 / 6.0),
        ];
        for ((name, value), (expected_name, expected)) in values.iter().zip(expected) {
            assert_eq!(name, expected_name);
            assert!((value.unwrap() - expected).abs() < 1e-12, "{name}: {value:?}");
        }
    }

    proptest! {
        #[test]
        fn f1_is_the_harmonic_mean(answers in prop::collection::vec((any::<bool>(), any::<bool>()), 1..50)) {
            let verdict = |yes| if yes { Verdict::Yes } else { Verdict::No };
            let answers: Vec<Answered<'_>> = answers
                .into_iter()
                .map(|(label, said)| {
                    let understood = Understood { verdict: verdict(said), unclear: false };
                    Answered { image: if said { "a" } else { "b" }, label: verdict(label), understood }
                })
                .collect();
            let measures = measures(&answers);
            if let (Some(precision), Some(recall), Some(f1)) = (measures[1].value(), measures[2].value(), measures[3].value())
                && precision + recall > 0.0
            {
                prop_assert!((f1 - 2.0 * precision * recall / (precision + recall)).abs() < 1e-12);
            }
        }
    }
}
