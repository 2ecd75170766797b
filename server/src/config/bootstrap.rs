//! `[bootstrap]`.

use reground_learner::bootstrap::distort::{DistortError, Distortion, DistortionKind};
use reground_learner::bpo::pair::Source;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret};

/// How pairs are made of what was asked and answered.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapConfig {
    /// Make pairs at all. It is work for idle moments: a live query pre-empts it.
    pub enabled: bool,
    /// Where chosen answers may come from.
    pub sources: Vec<ChosenSource>,
    /// `accepted`: least mean rating of an answer, 0 to 1, above 0.
    pub accepted_rating: f64,
    /// `self`: seconds that feedback gets before an answer may be chosen without any.
    pub self_after_s: u64,
    /// `self`: least margin between the clean and the distorted image, nats per token.
    pub self_margin: f64,
    /// `self`: how the image of that copy is distorted: so that little of it can be seen.
    pub self_distortion: DistortionKind,
    /// `self`: how strongly, in the unit of the kind.
    pub self_strength: f64,
    /// `self`: answers that are drawn anew.
    pub self_samples: usize,
    /// `self`: how many of them must make the same claim.
    pub self_agree: usize,
    /// `self`: their temperature.
    pub self_temperature: f64,
    /// Pair a correction with the answer that it corrects, too.
    pub corrected: bool,
    /// Negatives by image weakening, of each record.
    pub weakened: usize,
    /// Negatives by error injection, of each record.
    pub injected: usize,
    /// Draws until such a negative passes the filters.
    pub attempts: usize,
    /// How images are weakened.
    pub distortion: DistortionKind,
    /// How strongly, in the unit of the kind.
    pub strength: f64,
    /// Longest side, pixels, at which an image is distorted: `data.distortion_edge` of the runs.
    pub distortion_edge: u32,
    /// Temperature of the answer to the distorted image.
    pub weaken_temperature: f64,
    /// Who rewrites right answers into wrong ones.
    pub injector: Injector,
    /// Temperature of the rewriting.
    pub inject_temperature: f64,
    /// Smallest set of likeliest tokens that the rewriting draws from, by its probability.
    pub inject_top_p: f64,
    /// `injector = "endpoint"`: its base URL, as SDKs take it (`http://127.0.0.1:8000/v1`).
    pub endpoint: String,
    /// `injector = "endpoint"`: the name of the model there.
    pub endpoint_model: String,
    /// `injector = "endpoint"`: its API key as `env:NAME` or `file:PATH`; without one none is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_key: Option<Secret>,
    /// `injector = "endpoint"`: seconds for one answer.
    pub endpoint_timeout_s: u64,
    /// What is done where the generation that answered is not loaded any more.
    pub when_unloaded: WhenUnloaded,
    /// Most words of an answer.
    pub max_words: usize,
    /// Largest factor between the answers' numbers of words.
    pub max_length_ratio: f64,
    /// Most tokens of a negative.
    pub max_tokens: usize,
    /// Most pairs with a chosen answer of one source; 0: no limit.
    pub max_per_source: usize,
    /// Most pairs that came with one API key; 0: no limit.
    pub max_per_key: usize,
    /// Most pairs of one question template; 0: no limit.
    pub max_per_template: usize,
}

/// A source of chosen answers in live traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChosenSource {
    /// What somebody wrote instead of the answer.
    Correction,
    /// The answer, with positive feedback.
    Accepted,
    /// The answer, when it passes the grounding filter.
    #[serde(rename = "self")]
    OwnAnswer,
}

/// Who rewrites right answers into wrong ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Injector {
    /// The served model's own language model, without an image.
    #[default]
    #[serde(rename = "self")]
    Served,
    /// A text model behind an OpenAI-compatible endpoint.
    Endpoint,
    /// Another text model in this process; not built yet.
    Model,
}

/// What is done where the generation that answered is not loaded any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenUnloaded {
    /// The live generation makes the negatives; the pair says so.
    #[default]
    Live,
    /// No pair is made.
    Skip,
}

impl From<ChosenSource> for Source {
    fn from(source: ChosenSource) -> Self {
        match source {
            ChosenSource::Correction => Self::Correction,
            ChosenSource::Accepted => Self::Accepted,
            ChosenSource::OwnAnswer => Self::OwnAnswer,
        }
    }
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            sources: vec![ChosenSource::Correction, ChosenSource::Accepted],
            accepted_rating: 0.5,
            self_after_s: 60,
            self_margin: 0.3,
            self_distortion: DistortionKind::Noise,
            self_strength: 500.0,
            self_samples: 4,
            self_agree: 3,
            self_temperature: 0.7,
            corrected: true,
            weakened: 1,
            injected: 1,
            attempts: 3,
            distortion: DistortionKind::Noise,
            strength: 80.0,
            distortion_edge: 512,
            weaken_temperature: 0.2,
            injector: Injector::Served,
            inject_temperature: 0.8,
            inject_top_p: 0.95,
            endpoint: String::new(),
            endpoint_model: String::new(),
            endpoint_key: None,
            endpoint_timeout_s: 120,
            when_unloaded: WhenUnloaded::Live,
            max_words: 350,
            max_length_ratio: 2.0,
            max_tokens: 1024,
            max_per_source: 0,
            max_per_key: 0,
            max_per_template: 0,
        }
    }
}

impl BootstrapConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(self.accepted_rating > 0.0 && self.accepted_rating <= 1.0) {
            return Err(ConfigError::value(
                "bootstrap.accepted_rating",
                self.accepted_rating,
                "above 0 and at most 1: what nobody called right is not accepted",
            ));
        }
        ConfigError::range("bootstrap.self_margin", self.self_margin, -100.0..=100.0)?;
        ConfigError::range("bootstrap.self_samples", self.self_samples, 0..=64)?;
        ConfigError::range("bootstrap.self_agree", self.self_agree, 0..=self.self_samples)?;
        ConfigError::range("bootstrap.self_temperature", self.self_temperature, 0.0..=2.0)?;
        ConfigError::range("bootstrap.weakened", self.weakened, 0..=16)?;
        ConfigError::range("bootstrap.injected", self.injected, 0..=16)?;
        ConfigError::range("bootstrap.attempts", self.attempts, 1..=16)?;
        for (name, kind, strength) in [
            ("bootstrap.strength", self.distortion, self.strength),
            ("bootstrap.self_strength", self.self_distortion, self.self_strength),
        ] {
            if let Err(DistortError::Strength { allowed, .. }) = (Distortion { kind, strength, seed: 0 }).validate() {
                let allowed = format!("{allowed}, for this kind of distortion");
                return Err(ConfigError::value(name, strength, allowed));
            }
        }
        ConfigError::range("bootstrap.distortion_edge", self.distortion_edge, 1..=65_535)?;
        ConfigError::range("bootstrap.weaken_temperature", self.weaken_temperature, 0.0..=2.0)?;
        ConfigError::range("bootstrap.inject_temperature", self.inject_temperature, 0.0..=2.0)?;
        ConfigError::range("bootstrap.inject_top_p", self.inject_top_p, 0.01..=1.0)?;
        ConfigError::range("bootstrap.endpoint_timeout_s", self.endpoint_timeout_s, 1..=3600)?;
        ConfigError::range("bootstrap.max_words", self.max_words, 1..=100_000)?;
        ConfigError::range("bootstrap.max_length_ratio", self.max_length_ratio, 1.0..=1000.0)?;
        ConfigError::range("bootstrap.max_tokens", self.max_tokens, 1..=100_000)?;
        self.validate_injector()
    }

    fn validate_injector(&self) -> Result<(), ConfigError> {
        match self.injector {
            Injector::Served => Ok(()),
            Injector::Model => {
                let allowed = "`self` or `endpoint`: another text model beside the served one cannot be loaded yet";
                Err(ConfigError::value("bootstrap.injector", "model", allowed))
            }
            Injector::Endpoint => {
                let url = url::Url::parse(&self.endpoint).ok();
                if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some()) {
                    let allowed =
                        "an http or https URL such as http://127.0.0.1:8000/v1, for `injector = \"endpoint\"`";
                    return Err(ConfigError::value("bootstrap.endpoint", &self.endpoint, allowed));
                }
                if self.endpoint_model.is_empty() {
                    let allowed = "the name of a model of the endpoint, for `injector = \"endpoint\"`";
                    return Err(ConfigError::value("bootstrap.endpoint_model", "", allowed));
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut BootstrapConfig)) -> String {
        let mut config = BootstrapConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        assert!(BootstrapConfig::default().validate().is_ok());
        for (said, named) in [
            (refused(|config| config.accepted_rating = 0.0), "bootstrap.accepted_rating"),
            (refused(|config| config.self_agree = 5), "bootstrap.self_agree"),
            (refused(|config| config.strength = 1000.0), "from 0 to 999"),
            (refused(|config| config.self_strength = -1.0), "bootstrap.self_strength"),
            (refused(|config| config.injector = Injector::Model), "cannot be loaded yet"),
            (refused(|config| config.injector = Injector::Endpoint), "bootstrap.endpoint "),
        ] {
            assert!(said.contains(named), "{said}");
        }
        let endpoint = |config: &mut BootstrapConfig, url: &str| {
            config.injector = Injector::Endpoint;
            config.endpoint = url.to_owned();
        };
        assert!(refused(|config| endpoint(config, "file:///etc/passwd")).contains("bootstrap.endpoint "));
        assert!(refused(|config| endpoint(config, "http://127.0.0.1:1/v1")).contains("endpoint_model"));
    }
}
