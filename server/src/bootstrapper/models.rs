//! Who answers the bootstrapper's questions.

use std::sync::Arc;

use reground_learner::bootstrap::instruction::Wording;
use reground_learner::generator::Generator;

use super::endpoint::Endpoint;
use crate::config::{BootstrapConfig, ConfigError, Injector};

/// Who answers the bootstrapper's questions.
#[derive(Clone)]
pub struct Models {
    /// The served model, behind live queries.
    pub served: Arc<dyn Generator>,
    /// Who rewrites answers, if it is not the served model.
    pub(super) injector: Option<Arc<dyn Generator>>,
    /// How whoever rewrites is asked.
    pub(super) wording: Wording,
}

impl Models {
    /// The served model, which is the pocket model if `pocket`, and the injector of the configuration.
    ///
    /// # Errors
    /// The endpoint's key cannot be read, or there can be no connection to it.
    pub fn new(served: Arc<dyn Generator>, pocket: bool, config: &BootstrapConfig) -> Result<Self, ConfigError> {
        let injector: Option<Arc<dyn Generator>> = match config.injector {
            Injector::Endpoint => Some(Arc::new(Endpoint::new(config)?)),
            Injector::Served | Injector::Model => None,
        };
        // The pocket knows no other words than those that it was taught; every other model is asked in plain ones.
        let wording = if pocket && injector.is_none() { Wording::Pocket } else { Wording::Instructed };
        Ok(Self { served, injector, wording })
    }
}
