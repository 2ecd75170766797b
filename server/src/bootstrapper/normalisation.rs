//! How the served model normalises pixels, by which the noise of image weakening is scaled.

use std::path::Path;

use hf_hub::{Cache, Repo, RepoType};
use reground_learner::bootstrap::distort::Normalisation;
use reground_learner::pocket::shipped;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::ModelConfig;
use crate::engine::source::BUILTIN;

/// What a preprocessor says of it.
#[derive(Deserialize)]
struct Settings {
    do_normalize: bool,
    do_rescale: bool,
    /// By what pixels of 0 to 255 are multiplied.
    rescale_factor: Option<f64>,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

/// Where newer checkpoints have the settings.
#[derive(Deserialize)]
struct Processor {
    image_processor: Settings,
}

/// That of the model of the configuration, which is on this machine by now; 0.5 and 0.5 where its files do not say.
pub(super) fn normalisation(model: &ModelConfig) -> Normalisation {
    let settings = read::<Settings>(model, "preprocessor_config.json");
    let settings = settings.or_else(|| Some(read::<Processor>(model, "processor_config.json")?.image_processor));
    settings.map_or_else(Normalisation::default, |settings| settings.normalisation())
}

impl Settings {
    /// In pixel values of 0 to 1.
    fn normalisation(&self) -> Normalisation {
        let (mean, std) = if self.do_normalize { (self.image_mean, self.image_std) } else { ([0.0; 3], [1.0; 3]) };
        let factor = if self.do_rescale { self.rescale_factor.unwrap_or(1.0) } else { 1.0 };
        let of_one = |values: [f64; 3]| values.map(|value| (value / (255.0 * factor)) as f32);
        Normalisation { mean: of_one(mean), std: of_one(std) }
    }
}

/// One of the model's files, if it is there and is what it should be.
fn read<T: DeserializeOwned>(model: &ModelConfig, name: &str) -> Option<T> {
    if model.source == BUILTIN {
        let (_, bytes) = shipped::FILES.into_iter().find(|(file, _)| *file == name)?;
        return serde_json::from_slice(bytes).ok();
    }
    let directory = Path::new(&model.source);
    let path = if directory.is_dir() {
        directory.join(name)
    } else {
        let revision = if model.revision.is_empty() { "main" } else { model.revision.as_str() };
        let repo = Repo::with_revision(model.source.clone(), RepoType::Model, revision.to_owned());
        Cache::from_env().repo(repo).get(name)?
    };
    serde_json::from_slice(&fs_err::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(source: &str) -> Normalisation {
        normalisation(&ModelConfig { source: source.to_owned(), ..ModelConfig::default() })
    }

    #[test]
    fn it_is_what_the_preprocessor_says_or_a_half() {
        assert_eq!(of(BUILTIN), Normalisation::default());
        assert_eq!(of("nobody/has-this"), Normalisation::default());
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().to_str().unwrap();
        assert_eq!(of(source), Normalisation::default());
        let write = |name: &str, settings: &Value| {
            std::fs::write(directory.path().join(name), settings.to_string()).unwrap();
        };
        let settings = |rescale: f64| {
            json!({"do_normalize": true, "do_rescale": true, "rescale_factor": rescale, "size": {"longest_edge": 64},
                "image_mean": [0.5, 0.25, 0.125], "image_std": [0.25, 0.5, 1.0]})
        };
        let said = Normalisation { mean: [0.5, 0.25, 0.125], std: [0.25, 0.5, 1.0] };
        write("processor_config.json", &json!({"image_processor": settings(1.0 / 255.0)}));
        assert_eq!(of(source), said);
        // Pixels of 0 to 2 are normalised, so that it is half of it for those of 0 to 1.
        write("preprocessor_config.json", &settings(2.0 / 255.0));
        assert_eq!(of(source), Normalisation { mean: said.mean.map(|m| m / 2.0), std: said.std.map(|s| s / 2.0) });
        let mut plain = settings(1.0 / 255.0);
        plain["do_normalize"] = json!(false);
        write("preprocessor_config.json", &plain);
        assert_eq!(of(source), Normalisation { mean: [0.0; 3], std: [1.0; 3] });
        write("preprocessor_config.json", &json!({"image_mean": "none"}));
        assert_eq!(of(source), said);
    }
}
