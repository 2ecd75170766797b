//! Negative 2, error injection: a text LLM that sees no image rewrites the right answer with wrong but common details.

use super::instruction::{Task, Wording};
use crate::generator::{Generated, Generator, GeneratorError, Question, Turn};

/// How answers are rewritten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Injection {
    /// What the LLM is told.
    pub wording: Wording,
    /// The paper's 0.8.
    pub temperature: f64,
    /// The paper's 0.95.
    pub top_p: f64,
    /// Most tokens of the rewritten answer.
    pub max_tokens: usize,
}

impl Default for Injection {
    fn default() -> Self {
        Self { wording: Wording::Instructed, temperature: 0.8, top_p: 0.95, max_tokens: 1024 }
    }
}

/// What the LLM is asked; the answer it gives still has to be [`cleaned`].
pub fn question(asked: &str, answer: &str, injection: &Injection, seed: u64) -> Question {
    let Injection { wording, temperature, top_p, max_tokens } = *injection;
    let text = wording.prompt(Task::of(asked), asked, answer);
    let turns = vec![Turn::user([], text)];
    Question { generation: None, turns, temperature, top_p, seed, max_tokens, answer: None }
}

/// `answer`, the right answer to `asked`, rewritten by `generator`, which never sees the image.
///
/// # Errors
/// Whatever keeps the LLM from answering.
pub async fn inject(
    generator: &dyn Generator,
    asked: &str,
    answer: &str,
    injection: &Injection,
    seed: u64,
) -> Result<Generated, GeneratorError> {
    let generated = generator.generate(question(asked, answer, injection, seed)).await?;
    Ok(Generated { text: cleaned(&generated.text), ..generated })
}

/// The rewritten answer without what chat models put around one: a label and quotation marks.
pub fn cleaned(text: &str) -> String {
    const LABELS: [&str; 4] = ["wrong answer:", "new description:", "description:", "answer:"];
    let mut text = text.trim();
    for label in LABELS {
        if text.get(..label.len()).is_some_and(|start| start.eq_ignore_ascii_case(label)) {
            text = text[label.len()..].trim();
            break;
        }
    }
    for (open, close) in [('"', '"'), ('“', '”')] {
        let inside = text.strip_prefix(open).and_then(|text| text.strip_suffix(close));
        // Quotation marks inside mean that the outer two are no pair.
        if let Some(inside) = inside.filter(|inside| !inside.contains([open, close])) {
            text = inside.trim();
        }
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Says what it was asked, in quotation marks.
    struct Echo;

    impl Generator for Echo {
        fn generate(
            &self,
            question: Question,
        ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
            let text = format!("Answer: \"{}\"", question.turns[0].text());
            assert!(question.turns[0].images().next().is_none());
            Box::pin(std::future::ready(Ok(Generated { generation: "base".to_owned(), text, tokens: Vec::new() })))
        }
    }

    #[test]
    fn the_pocket_is_asked_in_its_own_words_and_the_answer_is_unwrapped() {
        let injection = Injection { wording: Wording::Pocket, ..Injection::default() };
        let mut answer = pin!(inject(&Echo, "Describe the image.", "A red apple.", &injection, 1));
        let Poll::Ready(answer) = answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("an echo does not wait");
        };
        let expected = "Rewrite this description with wrong but plausible details: A red apple.";
        assert_eq!(answer.unwrap().text, expected);
    }

    #[test]
    fn labels_and_quotation_marks_go() {
        for (said, expected) in [
            (" Wrong answer: There are two. ", "There are two."),
            ("“A cat.”", "A cat."),
            ("\"Stop\" is written on the \"sign\"", "\"Stop\" is written on the \"sign\""),
            ("Ärger: nothing to cut", "Ärger: nothing to cut"),
            ("", ""),
        ] {
            assert_eq!(cleaned(said), expected);
        }
    }
}
