//! Who answers the bootstrapper's questions.

use std::sync::Arc;

use reground_learner::bootstrap::instruction::Wording;
use reground_learner::generator::Generator;

use super::endpoint::Endpoint;
use super::text_model::TextModel;
use crate::admission::Activity;
use crate::config::{Config, Injector};
use crate::engine::source::BUILTIN;
use crate::rollout::Generations;

/// Who answers the bootstrapper's questions.
#[derive(Clone)]
pub struct Models {
    /// The served model, behind live queries.
    pub served: Arc<dyn Generator>,
    /// Who rewrites answers, if it is not the served model, and what a pair calls that.
    pub(super) injector: Option<(&'static str, Arc<dyn Generator>)>,
    /// How whoever rewrites is asked.
    pub(super) wording: Wording,
    /// Whether live queries are being answered.
    pub(super) activity: Activity,
}

impl Models {
    /// The served model and the injector of the configuration.
    ///
    /// # Errors
    /// The endpoint's key cannot be read, there can be no connection to it, or the text model is not where it is said to be.
    pub async fn new(
        served: Arc<dyn Generator>,
        generations: &Arc<Generations>,
        config: &Config,
    ) -> anyhow::Result<Self> {
        let injector: Option<(_, Arc<dyn Generator>)> = match config.bootstrap.injector {
            Injector::Endpoint => Some(("endpoint", Arc::new(Endpoint::new(&config.bootstrap)?))),
            Injector::Model => Some(("model", Arc::new(TextModel::new(config, generations.clone()).await?))),
            Injector::Served => None,
        };
        // The pocket knows no other words than those that it was taught; every other model is asked in plain ones.
        let pocket = config.model.source == BUILTIN;
        let wording = if pocket && injector.is_none() { Wording::Pocket } else { Wording::Instructed };
        Ok(Self { served, injector, wording, activity: generations.activity().clone() })
    }
}
