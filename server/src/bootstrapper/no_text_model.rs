//! Builds without mistralrs load no text model.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use reground_learner::generator::{Generated, Generator, GeneratorError, Question};

use crate::config::Config;
use crate::rollout::Generations;

/// Nothing: there is no value of it.
pub(super) enum TextModel {}

impl TextModel {
    #[expect(clippy::unused_async, reason = "as the one that loads a model")]
    pub(super) async fn new(_: &Config, _: Arc<Generations>) -> anyhow::Result<Self> {
        anyhow::bail!("bootstrap.injector = \"model\" needs mistralrs, and this build was made without that feature")
    }
}

impl Generator for TextModel {
    fn generate(&self, _: Question) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
        match *self {}
    }
}
