//! Who answers the bootstrapper's questions, and what has to be known of it.

use std::sync::Arc;

use reground_learner::bootstrap::distort::Normalisation;
use reground_learner::bootstrap::instruction::Wording;
use reground_learner::generator::Generator;

use super::endpoint::Endpoint;
use super::normalisation::normalisation;
use super::text_model::TextModel;
use crate::admission::Activity;
use crate::config::{Config, Injector};
use crate::engine::source::BUILTIN;
use crate::recorder::Rules;
use crate::rollout::Generations;

/// Who answers the bootstrapper's questions, and what has to be known of it.
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
    /// How the served model normalises pixels. Runs distort with its numbers.
    pub(super) normalisation: Normalisation,
    /// What must not be written down, whoever says it.
    pub(super) rules: Rules,
}

impl Models {
    /// The served model and the injector of the configuration.
    ///
    /// # Errors
    /// The endpoint's key cannot be read, there can be no connection to it, the text model is not where it is said to
    /// be, or a redaction rule is wrong.
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
        let rules = Rules::new(&config.record.redact, &config.record.redact_patterns).map_err(anyhow::Error::msg)?;
        let (activity, normalisation) = (generations.activity().clone(), normalisation(&config.model));
        Ok(Self { served, injector, wording, activity, normalisation, rules })
    }
}
