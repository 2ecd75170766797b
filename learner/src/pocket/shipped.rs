//! The pocket model inside the binary.

use crate::model::Source;

/// The files of the hub checkpoint by name, as `pocket build` wrote them.
pub const FILES: [(&str, &[u8]); 7] = [
    ("config.json", include_bytes!("../../assets/pocket/config.json")),
    ("generation_config.json", include_bytes!("../../assets/pocket/generation_config.json")),
    ("model.safetensors", include_bytes!("../../assets/pocket/model.safetensors")),
    ("preprocessor_config.json", include_bytes!("../../assets/pocket/preprocessor_config.json")),
    ("processor_config.json", include_bytes!("../../assets/pocket/processor_config.json")),
    ("tokenizer.json", include_bytes!("../../assets/pocket/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../assets/pocket/tokenizer_config.json")),
];

/// The checkpoint as a [`Source`] to load a model from, without a file system.
pub fn source() -> Source {
    Source::memory(FILES)
}

/// Writes the checkpoint into `directory`, for whatever loads models from directories only.
///
/// # Errors
/// What the file system says.
pub fn write(directory: &std::path::Path) -> std::io::Result<()> {
    fs_err::create_dir_all(directory)?;
    FILES.iter().try_for_each(|(name, bytes)| fs_err::write(directory.join(name), bytes))
}
