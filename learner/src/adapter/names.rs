//! Module names across layouts.
//!
//! The language model of a multimodal checkpoint sits under different names in older hub checkpoints, in transformers 5
//! and in PEFT files saved from either. What follows the prefix (`layers.3.self_attn.q_proj`) is the same everywhere.

/// Prefixes that a language model's layers are found under. Order matters where one is the end of another.
const PREFIXES: [&str; 5] = [
    "model.text_model.",
    "model.language_model.",
    "language_model.model.",
    "text_model.",
    "model.",
];

/// Which names an adapter is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// The names of the checkpoint: what the modules of the adapter in memory are called.
    #[default]
    Checkpoint,
    /// transformers 5 and later, where LLaVA-like models keep their language model under `model.language_model`.
    /// Idefics3 has the same names in both.
    Transformers5,
}

impl Naming {
    /// The name of a checkpoint's module in this layout.
    pub fn rename(self, module: &str) -> String {
        match self {
            Self::Checkpoint => module.to_owned(),
            Self::Transformers5 => match module.strip_prefix("language_model.model.") {
                Some(rest) => format!("model.language_model.{rest}"),
                None => module.to_owned(),
            },
        }
    }
}

/// The names under which `module` may be known in a checkpoint, itself first.
pub(super) fn candidates(module: &str) -> Vec<String> {
    let mut names = vec![module.to_owned()];
    if let Some(rest) = PREFIXES
        .iter()
        .find_map(|prefix| module.strip_prefix(prefix))
    {
        names.extend(
            PREFIXES
                .iter()
                .map(|prefix| format!("{prefix}{rest}"))
                .filter(|name| name != module),
        );
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_finds_the_others() {
        let names = candidates("model.language_model.layers.0.mlp.up_proj");
        assert_eq!(names[0], "model.language_model.layers.0.mlp.up_proj");
        assert!(names.contains(&"model.text_model.layers.0.mlp.up_proj".to_owned()));
        assert!(names.contains(&"language_model.model.layers.0.mlp.up_proj".to_owned()));
        assert_eq!(candidates("lm_head"), ["lm_head"]);
        assert_eq!(
            Naming::Transformers5.rename("language_model.model.layers.0.mlp.up_proj"),
            "model.language_model.layers.0.mlp.up_proj"
        );
        assert_eq!(
            Naming::Transformers5.rename("model.text_model.norm"),
            "model.text_model.norm"
        );
    }
}
