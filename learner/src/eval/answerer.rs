//! What answers: image + question → text.

use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;

use super::error::EvalError;
use crate::images;

/// Where an image comes from. Files are decoded when they are needed, so that a set of any size fits into memory.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// A file in any format that the server takes.
    File(PathBuf),
    /// An image that was just drawn.
    Memory(Arc<RgbImage>),
}

impl ImageSource {
    /// The decoded image.
    ///
    /// # Errors
    /// The file cannot be read, or is no image.
    pub fn load(&self) -> Result<Arc<RgbImage>, EvalError> {
        match self {
            Self::Memory(image) => Ok(Arc::clone(image)),
            Self::File(path) => {
                let bytes = fs_err::read(path)?;
                let image = images::decode(&bytes)
                    .map_err(|error| EvalError::Image { path: path.clone(), reason: error.to_string() })?;
                Ok(Arc::new(image))
            }
        }
    }
}

/// One question about one image.
#[derive(Clone, Debug)]
pub struct Query {
    /// The image; `None` asks without one.
    pub image: Option<ImageSource>,
    /// The user's text.
    pub question: String,
}

/// A model, a server or a test double that answers. Answers are greedy: evaluation must repeat.
pub trait Answerer {
    /// One answer to each query, in order.
    ///
    /// # Errors
    /// An image that cannot be loaded, or whatever keeps the model from answering.
    fn answer(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError>;
}

/// Asks everything in batches of `batch`, calling `progress` with the number of answers so far.
///
/// # Errors
/// What the answerer says, or [`EvalError::AnswerCount`] if it lost or invented answers.
pub fn ask_all(
    answerer: &mut dyn Answerer,
    queries: &[Query],
    batch: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<String>, EvalError> {
    let mut answers = Vec::with_capacity(queries.len());
    for chunk in queries.chunks(batch.max(1)) {
        let answered = answerer.answer(chunk)?;
        if answered.len() != chunk.len() {
            return Err(EvalError::AnswerCount { asked: chunk.len(), answered: answered.len() });
        }
        answers.extend(answered.into_iter().map(|answer| answer.trim().to_owned()));
        progress(answers.len());
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the question, losing the last one of a batch if told to.
    struct Echo {
        loses: bool,
    }

    impl Answerer for Echo {
        fn answer(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError> {
            let kept = queries.len() - usize::from(self.loses);
            Ok(queries[..kept].iter().map(|query| format!(" {}\n", query.question)).collect())
        }
    }

    #[test]
    fn answers_come_back_in_order_and_none_is_lost_silently() {
        let queries: Vec<Query> = (0..5).map(|index| Query { image: None, question: index.to_string() }).collect();
        let mut steps = Vec::new();
        let answers = ask_all(&mut Echo { loses: false }, &queries, 2, &mut |done| steps.push(done)).unwrap();
        assert_eq!(answers, ["0", "1", "2", "3", "4"]);
        assert_eq!(steps, [2, 4, 5]);
        let lost = ask_all(&mut Echo { loses: true }, &queries, 2, &mut |_| ()).unwrap_err();
        assert_eq!(lost.to_string(), "2 questions were asked and 1 answers came back");
    }

    #[test]
    fn unreadable_images_are_named() {
        let missing = ImageSource::File(PathBuf::from("no/such.png")).load().unwrap_err();
        assert!(missing.to_string().contains("no/such.png"), "{missing}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"not an image").unwrap();
        let unreadable = ImageSource::File(file.path().to_owned()).load().unwrap_err();
        assert!(unreadable.to_string().contains("not a readable image"), "{unreadable}");
        std::fs::write(file.path(), images::tests::photograph()).unwrap();
        assert_eq!(ImageSource::File(file.path().to_owned()).load().unwrap().dimensions(), (32, 48), "upright");
    }
}
