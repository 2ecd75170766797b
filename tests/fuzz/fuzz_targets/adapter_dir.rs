//! Adapter directories: any bytes as `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The input is the settings, a zero byte, and the tensors; without a zero byte, the settings are sound and the input is
//! the tensors. Wrong is a panic, a message without end, a rank beyond the limit, and what AddressSanitizer and
//! libFuzzer's own limits find.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use reground_learner::adapter::{CONFIG_FILE, MAX_RANK, PeftAdapter, WEIGHTS_FILE};

const SETTINGS: &[u8] = br#"{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj","v_proj"]}"#;

fuzz_target!(|data: &[u8]| {
    let (settings, tensors) = match data.iter().position(|byte| *byte == 0) {
        Some(zero) if data.starts_with(b"{") => (&data[..zero], &data[zero + 1..]),
        _ => (SETTINGS, data),
    };
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join(CONFIG_FILE), settings).expect("a file");
    fs::write(directory.path().join(WEIGHTS_FILE), tensors).expect("a file");
    match PeftAdapter::read(directory.path()) {
        Ok(adapter) => {
            assert!(!adapter.modules.is_empty());
            assert!(adapter.modules.values().all(|module| module.r <= MAX_RANK));
        }
        // Names of tensors may be in it, but they are the file's own and no longer than it.
        Err(error) => assert!(error.to_string().len() < 4 * data.len() + 4096, "{error}"),
    }
});
