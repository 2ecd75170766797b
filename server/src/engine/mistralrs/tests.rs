//! What every engine must do.

use super::MistralrsEngine;
use crate::config::ModelConfig;
use crate::engine::conformance::{conforms_to_all, golden_files};

async fn engine() -> MistralrsEngine {
    MistralrsEngine::new(&ModelConfig::default(), golden_files().await).unwrap()
}

conforms_to_all!(engine());
