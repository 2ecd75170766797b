//! Named tensors that layers are built from.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor, Var};

use super::error::ModelError;
use super::weight::Weight;
use crate::adapter::{ModuleShapes, module_shapes};

/// Tensors by checkpoint name. They may be variables: layers built from variables are trainable, since the operations in
/// [`super::ops`] compute a weight's gradient exactly when the weight is one.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
    /// Those that are held in fewer bits; no other module than the decoder takes such.
    quantised: BTreeMap<String, Arc<QTensor>>,
}

impl Weights {
    /// Tensors by name.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self::with_quantised(tensors, BTreeMap::new())
    }

    /// Tensors by name, some of them weights of linear layers in fewer bits. What saves or trains tensors does not see those.
    pub(super) fn with_quantised(tensors: BTreeMap<String, Tensor>, quantised: BTreeMap<String, Arc<QTensor>>) -> Self {
        Self { tensors, quantised }
    }

    /// The tensors behind variables. An optimiser that sets a variable changes every layer built from it.
    pub fn from_variables(variables: &BTreeMap<String, Var>) -> Self {
        Self::new(variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect())
    }

    /// A variable of each tensor, for training every weight.
    ///
    /// # Errors
    /// A failed copy.
    pub fn to_variables(&self) -> Result<BTreeMap<String, Var>, ModelError> {
        self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(tensor)?))).collect()
    }

    /// A tensor of the expected shape.
    ///
    /// # Errors
    /// It is missing or has another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let tensor = self.tensors.get(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        fits(name, tensor.dims(), shape)?;
        Ok(tensor.clone())
    }

    /// The weight of a linear layer, `[out, in]`, however it is held.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(super) fn linear(&self, name: &str, shape: [usize; 2]) -> Result<Weight, ModelError> {
        match self.quantised.get(name) {
            Some(blocks) => {
                fits(name, blocks.shape().dims(), &shape)?;
                Ok(Weight::Quantised(blocks.clone()))
            }
            None => Ok(Weight::Full(self.get(name, &shape)?)),
        }
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Shapes of the linear layers, for [`crate::adapter::PeftAdapter::resolved`].
    pub fn module_shapes(&self) -> ModuleShapes {
        module_shapes(self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.dims())))
    }

    /// Writes `model.safetensors` as `dtype` (bf16 for shipping), the older hub names unchanged.
    ///
    /// # Errors
    /// A failed conversion, or what the file system says.
    pub fn save(&self, path: &Path, dtype: DType) -> Result<(), ModelError> {
        let bytes = self.serialize(dtype)?;
        fs_err::write(path, bytes)?;
        Ok(())
    }

    /// The bytes of [`Weights::save`].
    ///
    /// # Errors
    /// A failed conversion.
    pub fn serialize(&self, dtype: DType) -> Result<Vec<u8>, ModelError> {
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let tensor = if tensor.dtype().is_float() { tensor.to_dtype(dtype)? } else { tensor.clone() };
                Ok((name.clone(), tensor.to_device(&Device::Cpu)?.contiguous()?))
            })
            .collect::<Result<BTreeMap<_, _>, candle_core::Error>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::tensor::serialize(tensors, Some(metadata)).map_err(|error| ModelError::Safetensors {
            file: "model.safetensors".to_owned(),
            reason: error.to_string(),
        })
    }
}

fn fits(name: &str, found: &[usize], expected: &[usize]) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::Shape { name: name.to_owned(), found: found.to_vec(), expected: expected.to_vec() })
}
