//! An adapter in memory.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::config::{AdapterConfig, TargetModules};
use super::error::AdapterError;
use super::header::ModuleShapes;
use super::names::candidates;

/// Most rows or columns of a matrix; vocabularies, the widest of what is adapted, have a quarter of it.
const MAX_SIDE: usize = 1 << 20;

/// Factor of `B·A·x`: α/r, or α/√r with rsLoRA (arXiv 2312.03732).
pub fn lora_scale(alpha: f64, r: usize, rslora: bool) -> f64 {
    let r = r as f64;
    alpha / if rslora { r.sqrt() } else { r }
}

/// The update of one linear layer: `y = W·x + scale · B·(A·x)`.
#[derive(Clone, Debug)]
pub struct LoraWeights {
    /// `lora_A`, `[r, in]`, f32.
    pub a: Tensor,
    /// `lora_B`, `[out, r]`, f32.
    pub b: Tensor,
    /// α/r, or α/√r with rsLoRA.
    pub scale: f64,
    /// Rank.
    pub r: usize,
    /// α, as in the settings.
    pub alpha: f64,
}

impl LoraWeights {
    /// The update that a merge adds to the base weight: `scale · B·A`, `[out, in]`, f32.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn delta(&self) -> candle_core::Result<Tensor> {
        self.b.matmul(&self.a)? * self.scale
    }
}

/// A LoRA adapter: its settings and the two matrices of each module.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    /// The settings.
    pub config: AdapterConfig,
    /// The matrices by module path (`model.text_model.layers.0.self_attn.q_proj`), on the CPU. After
    /// [`PeftAdapter::read`] the paths are as in the file; after [`PeftAdapter::resolved`] as in the checkpoint.
    pub modules: BTreeMap<String, LoraWeights>,
}

impl PeftAdapter {
    /// An adapter of given matrices. Modules whose rank or α differ from the settings' get patterns of their own, and
    /// `target_modules` becomes the list of whole paths: a list of last names would also mean the vision tower's
    /// projections, for which there are no matrices (PEFT warns about that, mistralrs fails).
    pub fn new(mut config: AdapterConfig, modules: BTreeMap<String, LoraWeights>) -> Self {
        config.target_modules = TargetModules::List(modules.keys().cloned().collect());
        config.rank_pattern.clear();
        config.alpha_pattern.clear();
        for (module, weights) in &modules {
            if weights.r != config.r {
                config.rank_pattern.push((regex::escape(module), weights.r));
            }
            if weights.alpha != config.lora_alpha {
                config.alpha_pattern.push((regex::escape(module), weights.alpha));
            }
        }
        Self { config, modules }
    }

    /// The same adapter with its modules named as in the base whose linear layers are `base`
    /// ([`super::checkpoint_shapes`]). Names of other layouts (transformers 5, older checkpoints) are translated.
    ///
    /// # Errors
    /// A module that the base does not have, shapes that do not fit it, two modules that mean the same layer.
    pub fn resolved(self, base: &ModuleShapes) -> Result<Self, AdapterError> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let mut modules = BTreeMap::new();
        for (module, weights) in self.modules {
            let (name, &(rows, columns)) = candidates(&module)
                .iter()
                .find_map(|name| base.get_key_value(name))
                .ok_or_else(|| AdapterError::NoSuchModule { module: module.clone() })?;
            if weights.a.dims() != [weights.r, columns] {
                return Err(AdapterError::Shape {
                    module,
                    tensor: "lora_A",
                    found: weights.a.dims().to_vec(),
                    expected: format!("[{}, {columns}] for the base's weight [{rows}, {columns}]", weights.r),
                });
            }
            if weights.b.dims() != [rows, weights.r] {
                return Err(AdapterError::Shape {
                    module,
                    tensor: "lora_B",
                    found: weights.b.dims().to_vec(),
                    expected: format!("[{rows}, {}] for the base's weight [{rows}, {columns}]", weights.r),
                });
            }
            if let Some(first) = names.insert(name.clone(), module.clone()) {
                return Err(AdapterError::Duplicate { first, second: module });
            }
            modules.insert(name.clone(), weights);
        }
        let renamed = names.iter().any(|(name, module)| name != module);
        // Patterns speak of the names in the file, so renamed modules need settings of their own.
        Ok(if renamed { Self::new(self.config, modules) } else { Self { config: self.config, modules } })
    }

    /// Whether every module has its place in the base: [`PeftAdapter::resolved`] without the result.
    ///
    /// # Errors
    /// As there.
    pub fn check_against(&self, base: &ModuleShapes) -> Result<(), AdapterError> {
        self.clone().resolved(base).map(drop)
    }

    /// BLAKE3 of all that what the adapter does depends on: modules, scales and matrices.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn digest(&self) -> candle_core::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        for (module, weights) in &self.modules {
            hasher.update(&(module.len() as u64).to_le_bytes()).update(module.as_bytes());
            hasher.update(&weights.scale.to_le_bytes());
            for matrix in [&weights.a, &weights.b] {
                let (rows, columns) = matrix.dims2()?;
                hasher.update(&(rows as u64).to_le_bytes()).update(&(columns as u64).to_le_bytes());
                let values = matrix.flatten_all()?.to_vec1::<f32>()?;
                hasher.update(&values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>());
            }
        }
        Ok(hasher.finalize())
    }

    /// Number of values in all matrices.
    pub fn parameter_count(&self) -> usize {
        self.modules.values().map(|weights| weights.a.elem_count() + weights.b.elem_count()).sum()
    }

    /// Checks the shapes of one module's matrices: `[r, in]` and `[out, r]`, and neither side over [`MAX_SIDE`].
    pub(super) fn check_shapes(module: &str, a: &[usize], b: &[usize], r: usize) -> Result<(), AdapterError> {
        let shape = |tensor, found: &[usize], expected: String| AdapterError::Shape {
            module: module.to_owned(),
            tensor,
            found: found.to_vec(),
            expected,
        };
        let side = |side: usize| (1..=MAX_SIDE).contains(&side);
        if !matches!(*a, [rank, width] if rank == r && side(rank) && side(width)) {
            return Err(shape("lora_A", a, format!("[{r}, in] by the rank in the settings, in at most {MAX_SIDE}")));
        }
        if !matches!(*b, [height, rank] if rank == r && side(height)) {
            return Err(shape("lora_B", b, format!("[out, {r}] by the rank in the settings, out at most {MAX_SIDE}")));
        }
        Ok(())
    }

    /// Checks one module: ranks agree with the settings' (r, α, scale) and each other, every value is finite.
    pub(super) fn check_module(
        module: &str,
        a: Tensor,
        b: Tensor,
        (r, alpha, scale): (usize, f64, f64),
    ) -> Result<LoraWeights, AdapterError> {
        Self::check_shapes(module, a.dims(), b.dims(), r)?;
        let a = a.to_dtype(DType::F32)?;
        let b = b.to_dtype(DType::F32)?;
        for (tensor, values) in [("lora_A", &a), ("lora_B", &b)] {
            // A sum cannot tell: two infinities of different sign make a NaN, but large finite values overflow it.
            if !values.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()) {
                return Err(AdapterError::NotFinite { module: module.to_owned(), tensor });
            }
        }
        Ok(LoraWeights { a, b, scale, r, alpha })
    }
}
