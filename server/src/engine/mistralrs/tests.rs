//! What every engine must do.

use super::MistralrsEngine;
use crate::config::ModelConfig;
use crate::engine::conformance::{conforms_to_all, golden_files, pocket_files};
use crate::engine::source::ModelFiles;

fn engine(files: ModelFiles) -> MistralrsEngine {
    MistralrsEngine::new(&ModelConfig::default(), files).unwrap()
}

conforms_to_all!(async { engine(golden_files().await) }, async { engine(pocket_files().await) });
