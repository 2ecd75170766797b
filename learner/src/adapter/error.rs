//! Why an adapter was refused.

use std::path::PathBuf;

/// A reason to refuse an adapter. Messages name the file, module or setting and the values that did not fit.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file could not be read or written; the message of the source names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// `adapter_config.json` or an index is not the JSON that it should be.
    #[error("{path}: not a valid JSON document of the expected form: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// `peft_type` names another method than LoRA.
    #[error("peft_type is {found}, only LORA can be used")]
    PeftType {
        /// The value in the file, as JSON.
        found: String,
    },
    /// A setting asks for something that two matrices and a scale cannot represent.
    #[error("setting {key} = {value} cannot be represented: {why}")]
    Unsupported {
        /// Name of the setting.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What it would need.
        why: &'static str,
    },
    /// A setting has a value outside its range.
    #[error("setting {key} = {value} is out of range: {expected}")]
    OutOfRange {
        /// Name of the setting.
        key: String,
        /// Its value.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A pattern of `rank_pattern` or `alpha_pattern` is not a regular expression that can be evaluated here.
    #[error("setting {key}: pattern {pattern:?} cannot be evaluated: {reason}")]
    Pattern {
        /// `rank_pattern`, `alpha_pattern`.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// What the regular expression engine said.
        reason: String,
    },
    /// The header of a safetensors file is larger than anything real.
    #[error("{path}: the safetensors header claims {length} bytes, the limit is {limit}")]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Claimed length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file ends before what its header promises, or goes on after it.
    #[error("{path}: the file has {actual} bytes, its safetensors header describes {expected}")]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes by the header.
        expected: u64,
        /// Bytes on disk.
        actual: u64,
    },
    /// The safetensors file is damaged in another way.
    #[error("{path}: not a valid safetensors file: {reason}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The adapter has no tensors at all.
    #[error("{path}: the adapter holds no LoRA tensors")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A tensor name that is not `base_model.model.<module>.lora_A.weight` or `….lora_B.weight`.
    #[error("tensor {name} is not a LoRA matrix of a linear layer")]
    UnexpectedTensor {
        /// Name in the file.
        name: String,
    },
    /// One matrix of a pair is not there.
    #[error("module {module} has no {missing}")]
    MissingHalf {
        /// Module path.
        module: String,
        /// `lora_A` or `lora_B`.
        missing: &'static str,
    },
    /// Shapes do not fit the rank, each other or the base.
    #[error("module {module}: {tensor} has shape {found:?}, expected {expected}")]
    Shape {
        /// Module path.
        module: String,
        /// `lora_A` or `lora_B`.
        tensor: &'static str,
        /// Shape in the file.
        found: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// A matrix holds NaN or an infinity.
    #[error("module {module}: {tensor} holds a value that is not finite")]
    NotFinite {
        /// Module path.
        module: String,
        /// `lora_A` or `lora_B`.
        tensor: &'static str,
    },
    /// A matrix is stored in a type that is not f32, f16 or bf16.
    #[error("module {module}: {tensor} is stored as {dtype}, only F32, F16 and BF16 can be used")]
    DType {
        /// Module path.
        module: String,
        /// `lora_A` or `lora_B`.
        tensor: &'static str,
        /// The type in the file.
        dtype: String,
    },
    /// A module with matrices is not among `target_modules`.
    #[error("module {module} has LoRA matrices but target_modules does not name it")]
    NotTargeted {
        /// Module path.
        module: String,
    },
    /// The base has no linear layer of that name: the adapter belongs to another model.
    #[error("the base has no linear layer {module}: is the adapter for another model?")]
    NoSuchModule {
        /// Module path, as in the adapter.
        module: String,
    },
    /// Two names in the adapter mean the same layer of the base.
    #[error("modules {first} and {second} are the same layer of the base")]
    Duplicate {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// The directory to write already exists; adapters never change.
    #[error("{path} already exists: an adapter is written once")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A checkpoint directory has no safetensors files.
    #[error("{path} holds no safetensors checkpoint")]
    NoCheckpoint {
        /// The directory.
        path: PathBuf,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
