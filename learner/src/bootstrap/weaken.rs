//! Negative 1, image weakening: the answer that the model gives to the distorted image.
//!
//! Where the picture is hard to see, the model answers from the statistics of its text, which is the very fault that is to
//! be trained away.

use std::sync::Arc;

use super::distort::{DistortError, Distortion, Normalisation};
use crate::generator::{Generated, Generator, GeneratorError, Piece, Question, Turn};
use thiserror::Error;

/// The paper's temperature for decoding from a distorted image.
pub const TEMPERATURE: f64 = 0.2;

/// Why there is no weakened answer.
#[derive(Debug, Error)]
pub enum WeakenError {
    /// A conversation without an image has nothing to weaken.
    #[error("the conversation has no image, so there is nothing to weaken")]
    NoImage,
    /// The distortion is not possible.
    #[error(transparent)]
    Distort(#[from] DistortError),
    /// The model did not answer.
    #[error(transparent)]
    Generator(#[from] GeneratorError),
}

/// How answers are weakened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weakening {
    /// What makes ṽ out of v; stored with the pair, so that ṽ can be made again. Its seed also decides the draws of the
    /// answer.
    pub distortion: Distortion,
    /// Longest side, pixels, to which an image is shrunk before it is distorted: `data.distortion_edge` of the run that the
    /// pair is for.
    pub edge: u32,
    /// How the model normalises pixels.
    pub normalisation: Normalisation,
    /// 0 is greedy. [`TEMPERATURE`] is the paper's.
    pub temperature: f64,
    /// Most tokens of the answer.
    pub max_tokens: usize,
}

/// `turns` with ṽ in the place of v. With several images each gets the same distortion, as training does it.
///
/// # Errors
/// No image in `turns`, or a strength that its kind does not allow.
pub fn distorted(
    turns: &[Turn],
    distortion: &Distortion,
    edge: u32,
    normalisation: &Normalisation,
) -> Result<Vec<Turn>, WeakenError> {
    if turns.iter().all(|turn| turn.images().next().is_none()) {
        return Err(WeakenError::NoImage);
    }
    let turn = |turn: &Turn| {
        let distorted = |piece: &Piece| match piece {
            Piece::Image(image) => Ok(Piece::Image(Arc::new(distortion.apply_within(image, edge, normalisation)?))),
            Piece::Text(_) => Ok(piece.clone()),
        };
        let content = turn.content.iter().map(distorted).collect::<Result<_, DistortError>>()?;
        Ok(Turn { speaker: turn.speaker, content })
    };
    turns.iter().map(turn).collect()
}

/// The question whose answer is the negative: `turns`, [`distorted`].
///
/// # Errors
/// As [`distorted`].
pub fn question(turns: &[Turn], weakening: &Weakening) -> Result<Question, WeakenError> {
    let Weakening { distortion, edge, normalisation, temperature, max_tokens } = *weakening;
    let turns = distorted(turns, &distortion, edge, &normalisation)?;
    let seed = distortion.seed;
    Ok(Question { generation: None, turns, temperature, top_p: 1.0, seed, max_tokens, answer: None })
}

/// The live generation's answer to the distorted images of `turns`, whose last turn is the user's.
///
/// # Errors
/// As [`question`], and whatever keeps the model from answering.
pub async fn weaken(
    generator: &dyn Generator,
    turns: &[Turn],
    weakening: &Weakening,
) -> Result<Generated, WeakenError> {
    let generated = generator.generate(question(turns, weakening)?).await?;
    // Templates put their own space before an answer; a second one would tell the rejected answer by its first token.
    Ok(Generated { text: generated.text.trim().to_owned(), ..generated })
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, Rgb, RgbImage};

    use super::*;
    use crate::bootstrap::distort::DistortionKind;

    fn weakening() -> Weakening {
        Weakening {
            distortion: Distortion { kind: DistortionKind::Noise, strength: 80.0, seed: 5 },
            edge: 64,
            normalisation: Normalisation::default(),
            temperature: TEMPERATURE,
            max_tokens: 9,
        }
    }

    fn turn(images: Vec<Arc<DynamicImage>>) -> Turn {
        Turn::user(images, "What is it?")
    }

    #[test]
    fn the_question_differs_by_its_images_alone() {
        let image = Arc::new(DynamicImage::from(RgbImage::from_pixel(8, 6, Rgb([10, 120, 200]))));
        let asked = question(&[turn(vec![Arc::clone(&image)])], &weakening()).unwrap();
        assert_eq!((asked.temperature, asked.seed, asked.max_tokens), (0.2, 5, 9));
        assert_eq!(asked.turns[0].text(), "What is it?");
        let distorted = asked.turns[0].images().next().unwrap();
        assert_eq!((distorted.width(), distorted.height()), (8, 6));
        assert_ne!(distorted.to_rgb8(), image.to_rgb8());
        let again = question(&[turn(vec![image])], &weakening()).unwrap();
        assert_eq!(again.turns[0].images().next().unwrap().to_rgb8(), distorted.to_rgb8());
    }

    #[test]
    fn text_alone_cannot_be_weakened() {
        assert!(matches!(question(&[turn(Vec::new())], &weakening()), Err(WeakenError::NoImage)));
        let mut wrong = weakening();
        wrong.distortion.strength = -1.0;
        let image = Arc::new(DynamicImage::from(RgbImage::new(2, 2)));
        assert!(matches!(question(&[turn(vec![image])], &wrong), Err(WeakenError::Distort(_))));
    }
}
