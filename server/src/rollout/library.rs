//! The adapters of this server on disk: `adapters/<id>/`, PEFT's two files and a manifest, never changed once they are there.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use reground_learner::adapter::{AdapterError, CONFIG_FILE, PeftAdapter, WEIGHTS_FILE};
use reground_learner::bpo::files;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::engine::GenerationId;

/// Name of the manifest inside an adapter's directory.
const MANIFEST: &str = "manifest.json";
/// Largest file of an adapter in bytes: rank 1024 over a model of 70 B parameters is below it.
const MAX_BYTES: u64 = 64 << 30;

/// What is known of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The adapter's id, which is its generation's.
    pub id: String,
    /// When it was taken in, in seconds since 1970.
    pub created: u64,
    /// The key that brought it, or `reground` for a run's result.
    pub by: String,
    /// The model that it was taken in for, as `model.source` names it.
    pub base: String,
    /// BLAKE3 over that model's files; none of what earlier versions took in.
    #[serde(default)]
    pub base_digest: Option<String>,
    /// BLAKE3 of `adapter_config.json`.
    pub config_digest: String,
    /// BLAKE3 of `adapter_model.safetensors`.
    pub weights_digest: String,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// The adapter that its training continued.
    pub parent: Option<String>,
    /// The run that made it.
    pub run: Option<String>,
    /// BLAKE3 of the data it was trained on.
    pub dataset_digest: Option<String>,
}

/// What a new adapter brings beside its files.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// See [`Manifest::by`].
    pub by: String,
    /// See [`Manifest::base`].
    pub base: String,
    /// See [`Manifest::base_digest`].
    pub base_digest: Option<String>,
    /// See [`Manifest::parent`].
    pub parent: Option<String>,
    /// See [`Manifest::run`].
    pub run: Option<String>,
    /// See [`Manifest::dataset_digest`].
    pub dataset_digest: Option<String>,
}

/// Why an adapter is not there or not taken.
#[derive(Debug, Error)]
pub enum LibraryError {
    /// No adapter has the id.
    #[error("there is no adapter `{0}`")]
    Unknown(String),
    /// The files are not those that were taken in.
    #[error("the files of adapter `{id}` changed since it was taken in: {what}")]
    Changed {
        /// The adapter.
        id: String,
        /// Which file.
        what: &'static str,
    },
    /// Another model is served than the one that the adapter was taken in for.
    #[error("adapter `{id}` was taken in for another model than is served now (its files differ; it was `{base}`)")]
    OtherBase {
        /// The adapter.
        id: String,
        /// See [`Manifest::base`].
        base: String,
    },
    /// The files are no adapter that can be served.
    #[error(transparent)]
    Invalid(#[from] AdapterError),
    /// A file is too large.
    #[error("{} has {bytes} bytes; at most {MAX_BYTES} are taken", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file system failed.
    #[error("adapters cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// Whether a failure of the file system may be over soon: what is gone, malformed or of no use does not mend by waiting.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::Other
    )
}

/// The directory of adapters.
pub(super) struct Library {
    root: PathBuf,
}

impl Library {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Copies an adapter in. It is checked before, and it is there whole or not at all.
    pub(super) fn import(&self, from: &Path, origin: Origin) -> Result<Manifest, LibraryError> {
        files::make_directories(&self.root)?;
        let id = format!("ad-{}", Uuid::now_v7());
        let beside = files::beside(&self.root.join(&id))?;
        let result = self.import_as(id, &beside, from, origin);
        if result.is_err() {
            // What is left of it has a name that nobody lists.
            let _ = fs_err::remove_dir_all(&beside);
        }
        result
    }

    fn import_as(&self, id: String, beside: &Path, from: &Path, origin: Origin) -> Result<Manifest, LibraryError> {
        fs_err::create_dir(beside)?;
        let (config_digest, _) = copy(&from.join(CONFIG_FILE), &beside.join(CONFIG_FILE))?;
        let (weights_digest, bytes) = copy(&from.join(WEIGHTS_FILE), &beside.join(WEIGHTS_FILE))?;
        // The copy is what is checked: the original can change at any moment.
        PeftAdapter::read(beside)?;
        let Origin { by, base, base_digest, parent, run, dataset_digest } = origin;
        let created = crate::api::unix_seconds();
        let manifest = Manifest {
            id,
            created,
            by,
            base,
            base_digest,
            config_digest,
            weights_digest,
            bytes,
            parent,
            run,
            dataset_digest,
        };
        files::write_atomic(&beside.join(MANIFEST), |file| {
            serde_json::to_writer_pretty(file, &manifest).map_err(io::Error::other)
        })?;
        let place = self.root.join(&manifest.id);
        fs_err::rename(beside, &place)?;
        files::sync_parent(&place)?;
        Ok(manifest)
    }

    /// All adapters, oldest first.
    pub(super) fn list(&self) -> Result<Vec<Manifest>, LibraryError> {
        let entries = match fs_err::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut manifests = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            // One broken adapter must not hide the others; asking for it by name says what is wrong.
            manifests.extend(name.to_str().and_then(|id| self.get(id).ok()));
        }
        manifests.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(manifests)
    }

    /// What is known of an adapter.
    pub(super) fn get(&self, id: &str) -> Result<Manifest, LibraryError> {
        let unknown = || LibraryError::Unknown(id.chars().take(128).collect());
        let directory = self.directory(id).ok_or_else(unknown)?;
        let bytes = fs_err::read(directory.join(MANIFEST)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => unknown(),
            _ => error.into(),
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| io::Error::other(format!("{MANIFEST} of `{id}`: {error}")).into())
    }

    /// The directory of an adapter whose files are still those that were taken in, for the model of this digest.
    pub(super) fn verified(&self, id: &str, base_digest: Option<&str>) -> Result<PathBuf, LibraryError> {
        let manifest = self.get(id)?;
        if let (Some(own), Some(served)) = (manifest.base_digest.as_deref(), base_digest)
            && own != served
        {
            return Err(LibraryError::OtherBase { id: id.to_owned(), base: manifest.base });
        }
        let directory = self.root.join(id);
        for (file, digest) in [(CONFIG_FILE, &manifest.config_digest), (WEIGHTS_FILE, &manifest.weights_digest)] {
            let changed = || LibraryError::Changed { id: id.to_owned(), what: file };
            let mut hasher = blake3::Hasher::new();
            let read = fs_err::File::open(directory.join(file)).and_then(|file| io::copy(&mut &file, &mut hasher));
            match read {
                Ok(_) if hasher.finalize().to_hex().as_str() == digest => {}
                // What is there cannot be read now, which says nothing about what it is.
                Err(error) if is_passing(&error) => return Err(error.into()),
                _ => return Err(changed()),
            }
        }
        Ok(directory)
    }

    /// Takes an adapter away.
    pub(super) fn remove(&self, id: &str) -> Result<(), LibraryError> {
        self.get(id)?;
        let place = self.root.join(id);
        // Renamed first: a crash half way leaves nothing that looks like an adapter.
        let beside = files::beside(&place)?;
        fs_err::rename(&place, &beside)?;
        files::sync_parent(&place)?;
        Ok(fs_err::remove_dir_all(beside)?)
    }

    /// Where an adapter of this id would be; `None` for what is no id.
    fn directory(&self, id: &str) -> Option<PathBuf> {
        let rest = id.strip_prefix("ad-")?;
        let well_formed = rest.len() <= 64 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (well_formed && id != GenerationId::base().as_str()).then(|| self.root.join(id))
    }
}

/// Copies a file and makes it durable; its BLAKE3 digest and size.
fn copy(from: &Path, to: &Path) -> Result<(String, u64), LibraryError> {
    let mut source = fs_err::File::open(from)?;
    let size = source.metadata()?.len();
    if size > MAX_BYTES {
        return Err(LibraryError::TooLarge { path: from.to_owned(), bytes: size });
    }
    let mut target = fs_err::File::create_new(to)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let part = buffer.get(..count).unwrap_or_default();
        hasher.update(part);
        target.write_all(part)?;
        bytes += count as u64;
    }
    target.sync_all()?;
    Ok((hasher.finalize().to_hex().to_string(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::source::golden;

    #[test]
    fn an_adapter_is_taken_in_listed_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let library = Library::new(place.path().join("adapters"));
        assert_eq!(library.list().unwrap(), []);
        let origin = Origin { by: "test".into(), run: Some("ftjob-1".into()), ..Origin::default() };
        let manifest = library.import(&golden("adapter"), origin).unwrap();
        assert!(manifest.id.starts_with("ad-") && manifest.bytes > 0);
        assert_eq!(library.list().unwrap(), std::slice::from_ref(&manifest));
        assert_eq!(library.get(&manifest.id).unwrap(), manifest);
        assert!(PeftAdapter::read(&library.verified(&manifest.id, Some("a")).unwrap()).is_ok());
        library.remove(&manifest.id).unwrap();
        assert!(matches!(library.get(&manifest.id), Err(LibraryError::Unknown(_))));
        assert_eq!(fs_err::read_dir(place.path().join("adapters")).unwrap().count(), 0);
    }

    #[test]
    fn an_adapter_belongs_to_the_model_that_it_was_taken_in_for() {
        let place = tempfile::tempdir().unwrap();
        let library = Library::new(place.path().join("adapters"));
        let origin = Origin { base: "a-model".into(), base_digest: Some("a".into()), ..Origin::default() };
        let id = library.import(&golden("adapter"), origin).unwrap().id;
        library.verified(&id, Some("a")).unwrap();
        let error = library.verified(&id, Some("b")).unwrap_err();
        assert!(matches!(error, LibraryError::OtherBase { .. }) && error.to_string().contains("a-model"), "{error}");
    }

    #[test]
    fn what_is_no_adapter_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let library = Library::new(place.path().join("adapters"));
        let bad = place.path().join("bad");
        fs_err::create_dir(&bad).unwrap();
        assert!(matches!(library.import(&bad, Origin::default()), Err(LibraryError::Io(_))));
        fs_err::copy(golden("adapter").join(CONFIG_FILE), bad.join(CONFIG_FILE)).unwrap();
        let weights = fs_err::read(golden("adapter").join(WEIGHTS_FILE)).unwrap();
        fs_err::write(bad.join(WEIGHTS_FILE), &weights[..weights.len() / 2]).unwrap();
        assert!(matches!(library.import(&bad, Origin::default()), Err(LibraryError::Invalid(_))));
        assert_eq!(fs_err::read_dir(place.path().join("adapters")).unwrap().count(), 0);
    }

    #[test]
    fn changed_files_are_noticed_and_ids_do_not_lead_out() {
        let place = tempfile::tempdir().unwrap();
        let library = Library::new(place.path().join("adapters"));
        let manifest = library.import(&golden("adapter"), Origin::default()).unwrap();
        let weights = place.path().join("adapters").join(&manifest.id).join(WEIGHTS_FILE);
        let mut bytes = fs_err::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs_err::write(&weights, bytes).unwrap();
        let error = library.verified(&manifest.id, None).unwrap_err();
        assert!(matches!(error, LibraryError::Changed { what: WEIGHTS_FILE, .. }), "{error}");
        for id in ["", "base", "..", "ad-../x", "ad-a/b", &format!("ad-{}", "x".repeat(65))] {
            assert!(matches!(library.get(id), Err(LibraryError::Unknown(_))), "{id}");
        }
    }
}
