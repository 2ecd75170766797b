//! `adapter_config.json`: what of PEFT's settings this project represents, and the refusal of the rest.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::error::AdapterError;
use super::pattern;
use super::{MAX_RANK, lora_scale};

/// Which modules an adapter is for: PEFT writes either form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Whole module paths, or their last components.
    List(Vec<String>),
    /// One regular expression that the whole path must match.
    Regex(String),
    /// PEFT's `"all-linear"`: every linear layer except the output layer.
    AllLinear,
}

impl TargetModules {
    /// Those of `modules` that are named; `None` if the expression cannot be evaluated here (look-around, back-references).
    pub fn named<'a>(&self, modules: impl IntoIterator<Item = &'a str>) -> Option<BTreeSet<&'a str>> {
        let modules = modules.into_iter();
        Some(match self {
            Self::List(entries) => {
                modules.filter(|module| entries.iter().any(|entry| pattern::listed(entry, module))).collect()
            }
            Self::Regex(expression) => {
                let regex = pattern::full(expression).ok()?;
                modules.filter(|module| regex.is_match(module)).collect()
            }
            Self::AllLinear => modules.collect(),
        })
    }
}

/// The settings of a LoRA adapter that matter for its meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank of modules that no pattern names, 1 … [`MAX_RANK`].
    pub r: usize,
    /// α of modules that no pattern names.
    pub lora_alpha: f64,
    /// Dropout probability on the input of `lora_A` while training, 0 … 1.
    pub lora_dropout: f64,
    /// Scale α/√r instead of α/r.
    pub use_rslora: bool,
    /// Which modules the adapter is for.
    pub target_modules: TargetModules,
    /// Ranks by pattern (PEFT's suffix rule); the first pattern that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// α by pattern, in the same way.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Name or path of the base as the trainer knew it. Not trusted for anything.
    pub base_model: Option<String>,
}

/// Settings that say where an adapter came from or how it starts, and change nothing about a finished one.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

impl AdapterConfig {
    /// Parses the settings.
    ///
    /// # Errors
    /// Another `peft_type`, a setting that changes the math in a way that is not represented, a rank or α out of range.
    /// A setting that is not known here is refused unless it is off (null, false, empty).
    pub fn parse(settings: &Map<String, Value>) -> Result<Self, AdapterError> {
        let mut config = Self {
            r: 0,
            lora_alpha: f64::NAN,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: TargetModules::AllLinear,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model: settings.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        };
        match settings.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            found => {
                return Err(AdapterError::PeftType { found: render(found.unwrap_or(&Value::Null)) });
            }
        }
        for (key, value) in settings {
            match key.as_str() {
                "peft_type" => {}
                "r" => config.r = rank(key, value)?,
                "lora_alpha" => config.lora_alpha = finite(key, value)?,
                "lora_dropout" => config.lora_dropout = dropout(key, value)?,
                "use_rslora" => config.use_rslora = value.as_bool().unwrap_or(false),
                "target_modules" => config.target_modules = target_modules(value)?,
                "rank_pattern" => {
                    for (name, value) in entries(key, value)? {
                        config.rank_pattern.push((checked("rank_pattern", name)?, rank(key, value)?));
                    }
                }
                "alpha_pattern" => {
                    for (name, value) in entries(key, value)? {
                        config.alpha_pattern.push((checked("alpha_pattern", name)?, finite(key, value)?));
                    }
                }
                "bias" => refuse(key, value, value.is_null() || value == "none", "biases are not trained here")?,
                "init_lora_weights" => refuse(
                    key,
                    value,
                    value.is_null()
                        || value.is_boolean()
                        || value == "gaussian"
                        || value == "eva"
                        || value == "orthogonal",
                    "this initialisation changes the base weights as well",
                )?,
                key if HARMLESS.contains(&key) => {}
                key => refuse(key, value, is_off(value), "it is not part of plain LoRA")?,
            }
        }
        if config.r == 0 {
            return Err(out_of_range("r", "missing", &format!("1 … {MAX_RANK}")));
        }
        if config.lora_alpha.is_nan() {
            return Err(out_of_range("lora_alpha", "missing", "a finite number"));
        }
        Ok(config)
    }

    /// Rank and α of each of `modules`, patterns included.
    ///
    /// # Errors
    /// A pattern that does not compile.
    pub fn ranks_and_alphas<'a>(
        &self,
        modules: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeMap<&'a str, (usize, f64)>, AdapterError> {
        let modules: Vec<&str> = modules.into_iter().collect();
        let ranks = first_matches("rank_pattern", &self.rank_pattern, &modules)?;
        let alphas = first_matches("alpha_pattern", &self.alpha_pattern, &modules)?;
        let of = |module| {
            let r = ranks.get(module).copied().unwrap_or(self.r);
            (module, (r, alphas.get(module).copied().unwrap_or(self.lora_alpha)))
        };
        Ok(modules.into_iter().map(of).collect())
    }

    /// Factor of `B·A·x` for a module: α/r, or α/√r with rsLoRA.
    pub fn scale(&self, r: usize, alpha: f64) -> f64 {
        lora_scale(alpha, r, self.use_rslora)
    }

    /// The settings as PEFT, vLLM and mistralrs read them.
    pub fn to_json(&self) -> Value {
        let target_modules = match &self.target_modules {
            TargetModules::List(entries) => json!(entries),
            TargetModules::Regex(expression) => json!(expression),
            TargetModules::AllLinear => json!("all-linear"),
        };
        json!({
            "alpha_pattern": self.alpha_pattern.iter().cloned().collect::<BTreeMap<_, _>>(),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": self.rank_pattern.iter().cloned().collect::<BTreeMap<_, _>>(),
            "revision": null,
            "target_modules": target_modules,
            "task_type": null,
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

/// An integral α is written as an integer: some readers (mistralrs) parse nothing else.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!(value) }
}

/// The value of each module that a pattern matches, by the first one that does. Every pattern is compiled once, and no two are
/// held at a time: both are a matter of some hundred kilobytes and milliseconds where somebody means harm.
fn first_matches<'a, T: Copy>(
    key: &'static str,
    patterns: &[(String, T)],
    modules: &[&'a str],
) -> Result<BTreeMap<&'a str, T>, AdapterError> {
    let mut found = BTreeMap::new();
    for (name, value) in patterns {
        let regex = compiled(key, name)?;
        for &module in modules {
            if !found.contains_key(module) && regex.is_match(module) {
                found.insert(module, *value);
            }
        }
    }
    Ok(found)
}

fn compiled(key: &'static str, name: &str) -> Result<Regex, AdapterError> {
    pattern::suffix(name).map_err(|error| AdapterError::Pattern {
        key,
        pattern: name.to_owned(),
        reason: error.to_string(),
    })
}

fn checked(key: &'static str, name: &str) -> Result<String, AdapterError> {
    compiled(key, name).map(|_| name.to_owned())
}

fn target_modules(value: &Value) -> Result<TargetModules, AdapterError> {
    match value {
        Value::String(all) if all == "all-linear" => Ok(TargetModules::AllLinear),
        Value::String(expression) => Ok(TargetModules::Regex(expression.clone())),
        Value::Array(entries) => entries
            .iter()
            .map(|entry| entry.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(TargetModules::List)
            .ok_or_else(|| out_of_range("target_modules", &render(value), "a list of strings or one string")),
        Value::Null => Ok(TargetModules::AllLinear),
        other => Err(out_of_range("target_modules", &render(other), "a list of strings or one string")),
    }
}

fn entries<'a>(key: &str, value: &'a Value) -> Result<Vec<(&'a String, &'a Value)>, AdapterError> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => Ok(map.iter().collect()),
        other => Err(out_of_range(key, &render(other), "an object from patterns to numbers")),
    }
}

fn rank(key: &str, value: &Value) -> Result<usize, AdapterError> {
    value
        .as_u64()
        .and_then(|rank| usize::try_from(rank).ok())
        .filter(|rank| (1..=MAX_RANK).contains(rank))
        .ok_or_else(|| out_of_range(key, &render(value), &format!("1 … {MAX_RANK}")))
}

fn finite(key: &str, value: &Value) -> Result<f64, AdapterError> {
    value
        .as_f64()
        .filter(|number| number.is_finite())
        .ok_or_else(|| out_of_range(key, &render(value), "a finite number"))
}

fn dropout(key: &str, value: &Value) -> Result<f64, AdapterError> {
    finite(key, value).and_then(|probability| {
        if (0.0..1.0).contains(&probability) {
            Ok(probability)
        } else {
            Err(out_of_range(key, &render(value), "0 up to but not including 1"))
        }
    })
}

fn refuse(key: &str, value: &Value, fine: bool, why: &'static str) -> Result<(), AdapterError> {
    if fine {
        return Ok(());
    }
    Err(AdapterError::Unsupported { key: key.to_owned(), value: render(value), why })
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(entries) => entries.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn out_of_range(key: &str, value: &str, expected: &str) -> AdapterError {
    AdapterError::OutOfRange { key: key.to_owned(), value: value.to_owned(), expected: expected.to_owned() }
}

/// A value for a message: a hostile file must not put megabytes into a log.
fn render(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: Value) -> Result<AdapterConfig, AdapterError> {
        let mut settings = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]});
        for (key, value) in change.as_object().unwrap() {
            settings[key] = value.clone();
        }
        AdapterConfig::parse(settings.as_object().unwrap())
    }

    #[test]
    fn plain_lora_with_patterns() {
        let config = parse(json!({
            "rank_pattern": {r"layers\.0\..*": 2}, "alpha_pattern": {"k_proj": 16.0}, "use_rslora": true, "lora_dropout": 0.05,
        }))
        .unwrap();
        let (q, k) = ("m.layers.0.self_attn.q_proj", "m.layers.1.self_attn.k_proj");
        assert_eq!(config.ranks_and_alphas([q, k]).unwrap(), BTreeMap::from([(q, (2, 8.0)), (k, (4, 16.0))]));
        assert_eq!(config.scale(4, 16.0), 8.0);
        let again = AdapterConfig::parse(config.to_json().as_object().unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_it_cannot_represent_is_refused_by_name() {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("lora_bias", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("layer_replication", json!([[0, 2]])),
            ("trainable_token_indices", json!([1])),
            ("target_parameters", json!(["x"])),
            ("use_qalora", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("invented_next_year", json!({"on": 1})),
        ] {
            match parse(json!({ key: value })) {
                Err(AdapterError::Unsupported { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
        assert!(matches!(parse(json!({"peft_type": "IA3"})), Err(AdapterError::PeftType { .. })));
        assert!(parse(json!({"invented_next_year": null, "use_dora": false, "modules_to_save": []})).is_ok());
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let patterns = [(r"q_proj".to_owned(), 1), (r"layers\.0\..*".to_owned(), 2)];
        let modules = ["layers.0.q_proj", "layers.0.k_proj", "layers.1.k_proj"];
        let found = first_matches("rank_pattern", &patterns, &modules).unwrap();
        assert_eq!(found, BTreeMap::from([(modules[0], 1), (modules[1], 2)]));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for change in [
            json!({"r": 0}),
            json!({"r": 1_000_000}),
            json!({"r": -4}),
            json!({"r": "4"}),
            json!({"lora_alpha": null}),
            json!({"lora_dropout": 1.0}),
            json!({"rank_pattern": {"q_proj": 0}}),
            json!({"target_modules": 3}),
        ] {
            assert!(matches!(parse(change.clone()), Err(AdapterError::OutOfRange { .. })), "{change}");
        }
        assert!(matches!(parse(json!({"alpha_pattern": {"(": 2}})), Err(AdapterError::Pattern { .. })));
    }
}
