//! What the trainer needs of its data: token ids and image features, one example at a time.

use super::policy::Group;

/// What went wrong while an example was prepared.
pub type ExampleError = Box<dyn std::error::Error + Send + Sync>;

/// One pair, ready for a policy.
#[derive(Clone, Debug)]
pub struct Example {
    /// Prompt with the clean image; answers are the chosen one of an annotation, and chosen and rejected of a pair.
    pub clean: Group,
    /// Prompt with the distorted image and the chosen answer; `None` when it was not asked for or there is no image.
    pub distorted: Option<Group>,
}

/// A set of examples, made when they are asked for. Caching image features is the implementation's business.
pub trait Examples {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of example `index`: prompt once, plus all its answers. Cheap; data order is made from it.
    fn tokens(&self, index: usize) -> usize;

    /// Whether example `index` has a rejected answer. Cheap.
    fn has_rejected(&self, index: usize) -> bool;

    /// Says which examples are asked for next, so that what they need can be made for all of them at once. Nothing depends
    /// on it but time.
    ///
    /// # Errors
    /// As [`Examples::example`] of any of them.
    fn prepare(&self, _indices: &[usize], _distorted: bool) -> Result<(), ExampleError> {
        Ok(())
    }

    /// Example `index`, with its distorted image when `distorted` asks for it.
    ///
    /// # Errors
    /// Its image is gone, damaged, or the model cannot take it.
    fn example(&self, index: usize, distorted: bool) -> Result<Example, ExampleError>;
}

/// Examples that are in memory already.
#[derive(Clone, Debug, Default)]
pub struct InMemory(pub Vec<Example>);

impl Examples for InMemory {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn tokens(&self, index: usize) -> usize {
        let group = &self.0[index].clean;
        group.prompt.len() + group.answers.iter().map(|answer| answer.len()).sum::<usize>()
    }

    fn has_rejected(&self, index: usize) -> bool {
        self.0[index].clean.answers.len() > 1
    }

    fn example(&self, index: usize, distorted: bool) -> Result<Example, ExampleError> {
        let example = self.0.get(index).ok_or_else(|| format!("there is no example {index}"))?;
        Ok(Example { clean: example.clean.clone(), distorted: example.distorted.clone().filter(|_| distorted) })
    }
}
