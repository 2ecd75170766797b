//! The learner's own model as an [`Answerer`].

use std::sync::Arc;

use candle_core::Tensor;
use image::DynamicImage;

use super::answerer::{Answerer, ImageSource, Query};
use super::error::EvalError;
use crate::model::{Lora, Message, Model, ModelError, Request, Sampling, Workers};

/// A model, with or without an adapter, answering greedily.
pub struct ModelAnswerer<'a> {
    model: &'a Model,
    adapter: Option<&'a Lora>,
    workers: &'a Workers,
    max_tokens: usize,
}

impl<'a> ModelAnswerer<'a> {
    /// An answerer whose answers end after at most `max_tokens` tokens.
    pub fn new(model: &'a Model, adapter: Option<&'a Lora>, workers: &'a Workers, max_tokens: usize) -> Self {
        Self { model, adapter, workers, max_tokens }
    }

    fn requests(&self, queries: &[Query]) -> Result<Vec<Request<'a>>, EvalError> {
        let mut seen: Option<Seen> = None;
        queries
            .iter()
            .map(|query| {
                let (images, features) = match &query.image {
                    None => (Vec::new(), None),
                    Some(source) => {
                        // Questions about one image come one after the other.
                        let current = match seen.take().filter(|seen| same(&seen.source, source)) {
                            Some(seen) => seen,
                            None => self.see(source)?,
                        };
                        let found = (vec![current.input.clone()], Some(current.features.clone()));
                        seen = Some(current);
                        found
                    }
                };
                let messages = [Message::user(query.question.as_str(), images.len())];
                let prompt = self.model.prompt(&messages, &images).map_err(failed)?;
                Ok(Request {
                    prompt: Arc::from(prompt),
                    features,
                    adapter: self.adapter,
                    sampling: Sampling::greedy(),
                    max_tokens: self.max_tokens,
                })
            })
            .collect()
    }

    fn see(&self, source: &ImageSource) -> Result<Seen, EvalError> {
        let image = DynamicImage::ImageRgb8(source.load()?.as_ref().clone());
        let input = self.model.preprocess(&image).map_err(failed)?;
        let features = self.model.encode_image(&input).map_err(failed)?;
        Ok(Seen { source: source.clone(), input, features })
    }
}

/// An image that was just looked at.
struct Seen {
    source: ImageSource,
    input: crate::model::ImageInput,
    features: Tensor,
}

fn same(a: &ImageSource, b: &ImageSource) -> bool {
    match (a, b) {
        (ImageSource::File(a), ImageSource::File(b)) => a == b,
        (ImageSource::Memory(a), ImageSource::Memory(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

fn failed(error: ModelError) -> EvalError {
    EvalError::Answer(Box::new(error))
}

impl Answerer for ModelAnswerer<'_> {
    fn answer(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError> {
        let requests = self.requests(queries)?;
        let completions = self.model.generate(&requests, self.workers).map_err(failed)?;
        let tokenizer = self.model.tokenizer();
        completions.iter().map(|completion| tokenizer.decode(&completion.ids).map_err(failed)).collect()
    }
}
