//! Where a model comes from: inside the binary, a directory, or the hub.

use std::path::{Path, PathBuf};

use hf_hub::api::tokio::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};
use reground_learner::pocket::shipped;
use serde_json::Value;
use tracing::{info, warn};

use super::EngineError;
use super::prepared::Prepared;

/// The model inside the binary, as `model.source` names it.
pub const BUILTIN: &str = "builtin";

/// A checkpoint in a directory that an engine can load. Keep it: a prepared directory goes when this does.
#[derive(Debug)]
pub struct ModelFiles {
    /// Where the checkpoint is.
    pub directory: PathBuf,
    /// What was asked for.
    pub source: String,
    /// The name of the file with the weights, if that is GGUF.
    pub gguf: Option<String>,
    _prepared: Option<Prepared>,
}

impl ModelFiles {
    /// Finds the model: `builtin` (the pocket model), a directory, or a hub id that is downloaded into the hub's usual cache.
    ///
    /// # Errors
    /// There is no such model, or it cannot be downloaded and is not in the cache.
    pub async fn open(source: &str, revision: &str) -> Result<Self, EngineError> {
        if source == BUILTIN {
            return Self::builtin();
        }
        let path = Path::new(source);
        let directory = if path.is_dir() {
            path.canonicalize().map_err(|error| EngineError::Load(format!("{source}: {error}")))?
        } else if is_hub_id(source) {
            download(source, revision).await?
        } else {
            return Err(EngineError::Load(format!(
                "model `{source}` is neither `builtin`, nor a directory, nor a hub id (`owner/name`)"
            )));
        };
        if !directory.join("config.json").is_file() {
            return Err(EngineError::Load(format!(
                "{} holds no config.json, so it is no checkpoint",
                directory.display()
            )));
        }
        Ok(Self { directory, source: source.into(), gguf: None, _prepared: None })
    }

    /// As [`Self::open`], or a GGUF file. What such a file does not hold in a form that is read here must lie beside it: the model's own
    /// config.json, tokenizer.json and tokenizer_config.json.
    ///
    /// # Errors
    /// As [`Self::open`], or one of these files is missing.
    pub async fn open_text(source: &str, revision: &str) -> Result<Self, EngineError> {
        if !source.ends_with(".gguf") {
            return Self::open(source, revision).await;
        }
        let file = Path::new(source).canonicalize().map_err(|error| EngineError::Load(format!("{source}: {error}")))?;
        let (Some(directory), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else {
            return Err(EngineError::Load(format!("{source} is no file with a name in UTF-8")));
        };
        for needed in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            if !directory.join(needed).is_file() {
                return Err(EngineError::Load(format!(
                    "{source}: {needed} is missing beside it; take it from the repository of the model that the file was made of"
                )));
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            source: source.into(),
            gguf: Some(name.to_owned()),
            _prepared: None,
        })
    }

    fn builtin() -> Result<Self, EngineError> {
        let prepared = prepared_directory()?;
        shipped::write(prepared.path()).map_err(|error| EngineError::Load(error.to_string()))?;
        Ok(Self {
            directory: prepared.path().to_owned(),
            source: BUILTIN.into(),
            gguf: None,
            _prepared: Some(prepared),
        })
    }

    /// `model_type` of config.json; empty if there is none.
    ///
    /// # Errors
    /// config.json cannot be read.
    pub fn model_type(&self) -> Result<String, EngineError> {
        let config = read_json(&self.directory.join("config.json"))?;
        Ok(config["model_type"].as_str().unwrap_or_default().to_owned())
    }

    /// Whether large images are cut into tiles: mistralrs serves them whole, see [`Self::for_mistralrs`].
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn splits_images(&self) -> Result<bool, EngineError> {
        let preprocessor = self.directory.join("preprocessor_config.json");
        let is_set = || Ok(read_json(&preprocessor)?["do_image_splitting"] == true);
        if self.model_type()? == "idefics3" && preprocessor.is_file() { is_set() } else { Ok(false) }
    }

    /// The checkpoint as mistralrs can load it. 0.8.1 panics when Idefics3 splits an image, and reads the older place of
    /// `rope_theta` only. Where a checkpoint needs it, a directory of links with those two settings changed stands in for it.
    ///
    /// # Errors
    /// A file cannot be read, or there is no place for the links.
    pub fn for_mistralrs(self) -> Result<Self, EngineError> {
        let Self { directory, source, gguf, _prepared } = self;
        let mut changed = Vec::new();
        let config = read_json(&directory.join("config.json"))?;
        let is_idefics3 = config["model_type"] == "idefics3";
        let preprocessor = directory.join("preprocessor_config.json");
        if is_idefics3 && preprocessor.is_file() {
            let mut settings = read_json(&preprocessor)?;
            if settings["do_image_splitting"] == true {
                warn!(
                    "{source}: image splitting is switched off, since mistralrs 0.8.1 cannot serve it; small details of large images are lost."
                );
                settings["do_image_splitting"] = false.into();
                changed.push(("preprocessor_config.json", settings));
            }
        }
        if is_idefics3 && config["text_config"]["rope_theta"].is_null() {
            let theta = config["text_config"]["rope_parameters"]["rope_theta"].clone();
            if !theta.is_null() {
                let mut config = config;
                config["text_config"]["rope_theta"] = theta;
                changed.push(("config.json", config));
            }
        }
        if changed.is_empty() {
            return Ok(Self { directory, source, gguf, _prepared });
        }
        let prepared = prepared_directory()?;
        let entries = fs_err::read_dir(&directory).map_err(|error| EngineError::Load(error.to_string()))?;
        for entry in entries {
            let entry = entry.map_err(|error| EngineError::Load(error.to_string()))?;
            let target = prepared.path().join(entry.file_name());
            match changed.iter().find(|(name, _)| *name == entry.file_name()) {
                Some((_, settings)) => write(&target, settings.to_string().as_bytes())?,
                None => fs_err::os::unix::fs::symlink(entry.path(), target)
                    .map_err(|error| EngineError::Load(error.to_string()))?,
            }
        }
        Ok(Self { directory: prepared.path().to_owned(), source, gguf, _prepared: Some(prepared) })
    }
}

fn prepared_directory() -> Result<Prepared, EngineError> {
    Prepared::new().map_err(|error| EngineError::Load(format!("no temporary directory: {error}")))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    fs_err::write(path, bytes).map_err(|error| EngineError::Load(error.to_string()))
}

/// Reads one of a checkpoint's JSON files.
pub(super) fn read_json(path: &Path) -> Result<Value, EngineError> {
    let text = fs_err::read(path).map_err(|error| EngineError::Load(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| EngineError::Load(format!("{}: {error}", path.display())))
}

/// `owner/name`, of the characters that the hub allows.
fn is_hub_id(source: &str) -> bool {
    let well_formed = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(source.split_once('/'), Some((owner, name)) if well_formed(owner) && well_formed(name))
}

/// Downloads what an engine needs of a hub repository; files that are in the cache already are not loaded again.
async fn download(id: &str, revision: &str) -> Result<PathBuf, EngineError> {
    let revision = if revision.is_empty() { "main" } else { revision };
    let repo = Repo::with_revision(id.into(), RepoType::Model, revision.into());
    let cached = Cache::from_env().repo(repo.clone()).get("config.json");
    let failed = |error: &dyn std::fmt::Display| {
        EngineError::Load(format!(
            "model `{id}` ({revision}) cannot be downloaded from the hub ({error}) and is not complete in its cache; give a directory, or `builtin`"
        ))
    };
    let api = ApiBuilder::from_env().build().map_err(|error| failed(&error))?.repo(repo);
    let files = match api.info().await {
        Ok(info) => info.siblings,
        Err(error) => {
            let directory = cached.as_deref().and_then(Path::parent).filter(|directory| is_complete(directory));
            let Some(directory) = directory else { return Err(failed(&error)) };
            warn!("The hub does not answer ({error}); {id} is taken from the cache as it is.");
            return Ok(directory.to_owned());
        }
    };
    let mut directory = None;
    for file in files.iter().map(|file| file.rfilename.as_str()).filter(|name| is_needed(name)) {
        info!("Fetching {file} of {id} unless the cache has it.");
        let path = api.get(file).await.map_err(|error| failed(&error))?;
        if file == "config.json" {
            directory = path.parent().map(Path::to_owned);
        }
    }
    directory.ok_or_else(|| {
        EngineError::Load(format!("hub repository `{id}` ({revision}) holds no config.json, so it is no checkpoint"))
    })
}

fn is_needed(name: &str) -> bool {
    let top_level = !name.contains('/');
    top_level && (name.ends_with(".json") || name.ends_with(".safetensors") || name.ends_with(".jinja"))
}

fn is_complete(directory: &Path) -> bool {
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    directory.join("tokenizer.json").is_file() && weights.iter().any(|name| directory.join(name).is_file())
}

/// A directory of the golden files.
#[cfg(test)]
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_builtin_checkpoint_is_the_pocket_model() {
        let files = ModelFiles::open("builtin", "").await.unwrap();
        for (name, bytes) in shipped::FILES {
            assert!(fs_err::read(files.directory.join(name)).unwrap() == bytes, "{name}");
        }
        let directory = files.directory.clone();
        drop(files);
        assert!(!directory.exists(), "the copy goes with its owner");
    }

    #[tokio::test]
    async fn image_splitting_is_switched_off_in_a_copy() {
        let directory = tempfile::tempdir().unwrap();
        for entry in fs_err::read_dir(golden("model")).unwrap() {
            let entry = entry.unwrap();
            fs_err::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        }
        let preprocessor = directory.path().join("preprocessor_config.json");
        let mut settings = read_json(&preprocessor).unwrap();
        settings["do_image_splitting"] = true.into();
        fs_err::write(&preprocessor, settings.to_string()).unwrap();

        let files = ModelFiles::open(directory.path().to_str().unwrap(), "").await.unwrap();
        assert_eq!(files.directory, directory.path().canonicalize().unwrap());
        assert_eq!(files.model_type().unwrap(), "idefics3");
        assert!(files.splits_images().unwrap());
        let files = files.for_mistralrs().unwrap();
        assert!(!files.splits_images().unwrap());
        assert_ne!(files.directory, directory.path());
        assert_eq!(read_json(&files.directory.join("preprocessor_config.json")).unwrap()["do_image_splitting"], false);
        assert_eq!(read_json(&preprocessor).unwrap()["do_image_splitting"], true, "the original stays");
        assert!(files.directory.join("model.safetensors").is_file());
    }

    #[tokio::test]
    async fn what_is_no_model_is_named() {
        let empty = tempfile::tempdir().unwrap();
        for (source, part) in [
            ("../../etc/passwd", "neither"),
            ("a/b/c", "neither"),
            ("", "neither"),
            ("https://example.com/model", "neither"),
            (empty.path().to_str().unwrap(), "no config.json"),
            ("nowhere.gguf", "neither"),
        ] {
            let error = ModelFiles::open(source, "").await.unwrap_err().to_string();
            assert!(error.contains(part), "{source}: {error}");
        }
    }

    #[tokio::test]
    async fn a_gguf_file_needs_its_tokenizer_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tiny.gguf");
        let open = || ModelFiles::open_text(file.to_str().unwrap(), "");
        assert!(open().await.unwrap_err().to_string().contains("tiny.gguf"));
        fs_err::write(&file, b"GGUF").unwrap();
        for missing in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            let error = open().await.unwrap_err().to_string();
            assert!(error.contains(&format!("{missing} is missing beside it")), "{error}");
            fs_err::write(directory.path().join(missing), b"{}").unwrap();
        }
        assert_eq!(open().await.unwrap().gguf.as_deref(), Some("tiny.gguf"));
    }
}
