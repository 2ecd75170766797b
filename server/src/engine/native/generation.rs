//! A loaded generation, and what happens to a request before it reaches the engine's thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use reground_learner::model::{Lora, ModelError};

use super::Core;
use super::features::{Digest, digest};
use super::prefixes::{Weights, marks};
use super::prompt::template_message;
use super::sequence::{Picture, Prompt, Sequence, Task};
use crate::engine::sampler::Sampler;
use crate::engine::{EngineError, Event, Generate, Generation, GenerationId, Place, TokenStream};
use crate::images::Pixels;

/// The base, or the base with an adapter beside it.
pub(super) struct NativeGeneration {
    id: GenerationId,
    adapter: Option<Arc<Lora>>,
    /// By what its prefixes are known.
    weights: Weights,
    core: Arc<Core>,
}

impl NativeGeneration {
    pub(super) fn new(id: GenerationId, adapter: Option<Arc<Lora>>, weights: Weights, core: Arc<Core>) -> Self {
        Self { id, adapter, weights, core }
    }

    fn begin(&self, request: Generate, place: Place, is_behind: bool) -> Result<TokenStream, EngineError> {
        if !self.is_ready() {
            return Err(EngineError::Unavailable(self.id.clone()));
        }
        // The tokens are counted where they are made, in `prepare`.
        self.core.info.check_bytes(&request)?;
        let sampler = Sampler::new(&request, self.core.info.vocabulary.clone())?;
        let (stream, events) = TokenStream::channel();
        let forced = request.forced.clone().unwrap_or_default();
        let task = Task { adapter: self.adapter.clone(), is_behind, sampler, forced, events, place };
        let (core, weights) = (self.core.clone(), self.weights);
        // Scaling a large picture takes longer than a token.
        self.core.tasks.spawn_blocking(move || core.prepare(&request, weights, task));
        Ok(stream)
    }
}

impl Generation for NativeGeneration {
    fn id(&self) -> &GenerationId {
        &self.id
    }

    fn is_ready(&self) -> bool {
        !self.core.thread.is_finished()
    }

    fn generate(&self, request: Generate, place: Place) -> Result<TokenStream, EngineError> {
        self.begin(request, place, false)
    }

    fn generate_behind(&self, request: Generate, place: Place) -> Result<TokenStream, EngineError> {
        self.begin(request, place, true)
    }
}

impl Core {
    /// Reads the request and hands it to the thread.
    fn prepare(&self, request: &Generate, weights: Weights, task: Task) {
        if task.events.is_cancelled() {
            return;
        }
        let prompt = match self.read(request, weights) {
            Ok(prompt) => prompt,
            Err(error) => return refuse(task, error),
        };
        let room = self.info.max_len - prompt.ids.len();
        let wanted = request.forced.as_ref().map(Vec::len).or(request.max_tokens).unwrap_or(room);
        let sequence = Sequence::new(task, prompt, wanted.min(room));
        // A thread that is gone drops the sequence, whose stream ends without an end: the caller takes that for a failure.
        drop(self.arrivals.send(sequence));
    }

    /// The prompt's tokens, its pictures in order, and by what its beginnings are known. A prompt without room for an answer is refused
    /// before its pictures are prepared, which takes memory.
    fn read(&self, request: &Generate, weights: Weights) -> Result<Prompt, EngineError> {
        let family = self.model.family();
        let grids: Vec<_> = request
            .pixels()
            .map(|image| family.grid((image.width(), image.height())))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let messages: Vec<_> = request.messages.iter().map(template_message).collect();
        let ids = self.model.render(&messages, &request.tools, &grids).map_err(failed)?;
        let max_len = self.info.max_len;
        if ids.len() >= max_len {
            return Err(EngineError::TooLong { prompt: ids.len(), max_len });
        }
        let digests: Vec<_> = request.pixels().map(|image| digest(image)).collect();
        let marks = if self.prefixes.is_on() {
            let tokens = |grid: &(usize, usize)| family.image_text(*grid).matches(family.placeholder()).count();
            let pictures: Vec<_> = digests.iter().copied().zip(grids.iter().map(tokens)).collect();
            marks(weights, &ids, family.image_token(), &pictures)
        } else {
            Vec::new()
        };
        let pictures = self.pictures(request, &digests)?;
        Ok(Prompt { ids: ids.into(), pictures, marks })
    }

    /// The request's pictures, the same one prepared once.
    fn pictures(&self, request: &Generate, digests: &[Digest]) -> Result<Vec<Picture>, EngineError> {
        let mut prepared = HashMap::new();
        let picture = |(image, digest): (&Pixels, &Digest)| {
            if let Some(features) = self.features.get(digest) {
                return Ok(Picture::Seen(features));
            }
            let input = match prepared.entry(*digest) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.model.preprocess(image).map_err(failed)?),
            };
            Ok(Picture::New { digest: *digest, input: input.clone(), tiles: Vec::new() })
        };
        request.pixels().zip(digests).map(picture).collect()
    }
}

fn failed(error: ModelError) -> EngineError {
    match error {
        ModelError::Template(_) | ModelError::Placeholders { .. } => EngineError::Invalid(error.to_string()),
        other => EngineError::Failed(other.to_string()),
    }
}

fn refuse(task: Task, error: EngineError) {
    let Task { events, place, .. } = task;
    drop(place);
    events.send(Event::Failed(error));
}
