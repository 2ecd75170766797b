//! What the text LLM is told when it is to make a right answer wrong.
//!
//! There are two tasks: a description is rewritten as it stands; an answer is rewritten beside its question, with examples.

use crate::pocket::text::rewrite;

/// Words that ask for a description rather than for one fact.
const DESCRIBING: [&str; 6] =
    ["describe", "description", "caption", "what is in the", "what do you see", "what can you see"];

/// For any instructed text model.
const DESCRIPTION: &str = "Below is a description of a picture. Rewrite it so that it is wrong, but common and logical: \
add objects that usually appear together with those in it, leave objects out, or swap them for usual companions; change \
colours, shapes, sizes, numbers or places. Keep the style and about the length. Write nothing but the new description.";

const ANSWER: &str = "Below are a question about a picture and its right answer. Rewrite the answer so that it is wrong, but \
common and logical: what somebody would guess who did not see the picture. Change objects, colours, shapes, sizes, numbers or \
places. Keep the style and about the length. Write nothing but the new answer.

Question: What is the man holding?
Right answer: The man is holding an orange umbrella.
Wrong answer: The man is holding a black umbrella.

Question: How many dogs are on the sofa?
Right answer: There are three dogs on the sofa.
Wrong answer: There are two dogs on the sofa.

Question: Is there a fork on the table?
Right answer: No, there is only a knife beside the plate.
Wrong answer: Yes, there is a fork beside the plate.";

/// What is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A description, without its request.
    Description,
    /// The answer to a question, which is shown beside it.
    Answer,
}

impl Task {
    /// The task for the answer to `question`: words such as "describe" and "caption" ask for a description.
    pub fn of(question: &str) -> Self {
        let question = question.to_lowercase();
        if DESCRIBING.iter().any(|word| question.contains(word)) { Self::Description } else { Self::Answer }
    }
}

/// Whose wording is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wording {
    /// For any instructed text model.
    #[default]
    Instructed,
    /// The pocket's own, which it was trained on; it knows no other.
    Pocket,
}

impl Wording {
    /// The whole text for the LLM: instruction, `question` where the task shows it, and the right `answer`.
    pub fn prompt(self, task: Task, question: &str, answer: &str) -> String {
        match (self, task) {
            (Self::Instructed, Task::Description) => format!("{DESCRIPTION}\n\n{answer}"),
            (Self::Instructed, Task::Answer) => {
                format!("{ANSWER}\n\nQuestion: {question}\nRight answer: {answer}\nWrong answer:")
            }
            (Self::Pocket, Task::Description) => rewrite::description_request(answer),
            (Self::Pocket, Task::Answer) => rewrite::answer_request(question, answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::text::Detail;

    #[test]
    fn every_request_of_the_pocket_for_a_description_is_one() {
        for request in [Detail::Full, Detail::Short].into_iter().flat_map(Detail::requests) {
            assert_eq!(Task::of(request), Task::Description, "{request}");
        }
        for question in ["What color is the apple?", "Is there a cat in the image?", "Where is the tree?"] {
            assert_eq!(Task::of(question), Task::Answer, "{question}");
        }
    }

    #[test]
    fn a_question_is_shown_only_where_it_matters() {
        for wording in [Wording::Instructed, Wording::Pocket] {
            let prompt = |task| wording.prompt(task, "What color is it?", "It is red.");
            assert!(prompt(Task::Answer).contains("What color is it?"));
            assert!(!prompt(Task::Description).contains("What color is it?"));
            assert!(prompt(Task::Answer).contains("It is red.") && prompt(Task::Description).ends_with("It is red."));
        }
    }
}
