//! From what an entry calls an image to a checked image in the blob store.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::{Component, Path};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fs_err as fs;
use image::{ImageReader, Limits};

use super::blobs::{Blobs, is_digest};
use super::{Fault, ReadOptions};
use crate::bpo::pair::ImageRef;

/// Checks images once and keeps them.
pub(super) struct Importer<'a> {
    options: &'a ReadOptions,
    blobs: &'a dyn Blobs,
    /// Images decoded before, by digest: a data set repeats each image many times.
    known: HashMap<String, ImageRef>,
}

impl<'a> Importer<'a> {
    pub(super) fn new(options: &'a ReadOptions, blobs: &'a dyn Blobs) -> Self {
        Self { options, blobs, known: HashMap::new() }
    }

    /// `data:image/…;base64,…`, `blob:<digest>`, or a path under the image directory.
    pub(super) fn import(&mut self, name: &str) -> Result<ImageRef, Fault> {
        let scheme = name.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        let bytes = match scheme.as_deref() {
            Some("data") => self.data_url(name)?,
            Some("http" | "https" | "ftp") => return Err(Fault::RemoteImage(short(name))),
            Some("file") => return Err(Fault::OutsideRoot(short(name))),
            Some("blob") => {
                let digest = name.split_once(':').map_or("", |(_, digest)| digest);
                if !is_digest(digest) {
                    return Err(missing(name, "what follows blob: must be 64 lower-case hexadecimal digits"));
                }
                if let Some(known) = self.known.get(digest) {
                    return Ok(known.clone());
                }
                self.blobs.get(digest).map_err(|error| missing(name, error))?
            }
            _ => self.file(name)?,
        };
        let digest = blake3::hash(&bytes).to_hex().to_string();
        if let Some(known) = self.known.get(&digest) {
            return Ok(known.clone());
        }
        let (width, height) = self.check(name, &bytes)?;
        let image = ImageRef { digest: self.blobs.put(&bytes)?, width, height };
        self.known.insert(digest, image.clone());
        Ok(image)
    }

    fn data_url(&self, url: &str) -> Result<Vec<u8>, Fault> {
        let wrong = |what: &str| Fault::DataUrl(what.to_owned());
        let (head, body) = url.split_once(',').ok_or_else(|| wrong("it has no comma"))?;
        let head = head.to_ascii_lowercase();
        if !head.starts_with("data:image/") {
            return Err(wrong("its type is not image/…"));
        }
        if !head.ends_with(";base64") {
            return Err(wrong("it is not base64"));
        }
        let bytes = STANDARD.decode(body).map_err(|error| Fault::DataUrl(error.to_string()))?;
        self.limit(url, bytes.len() as u64)?;
        Ok(bytes)
    }

    fn file(&self, name: &str) -> Result<Vec<u8>, Fault> {
        let root = self.options.image_root.as_deref().ok_or_else(|| Fault::NoImageRoot(short(name)))?;
        let relative = Path::new(name);
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        // A backslash is a letter on Unix and a separator elsewhere: one data set, one meaning.
        if name.is_empty() || !inside || name.contains(['\\', '\0']) {
            return Err(Fault::OutsideRoot(short(name)));
        }
        let root = fs::canonicalize(root).map_err(|error| missing(name, error))?;
        // The real path decides: a link may point anywhere.
        let path = fs::canonicalize(root.join(relative)).map_err(|error| missing(name, bare(&error)))?;
        if !path.starts_with(&root) {
            return Err(Fault::OutsideRoot(short(name)));
        }
        let file = fs::File::open(&path).map_err(|error| missing(name, bare(&error)))?;
        let about = file.metadata().map_err(|error| missing(name, bare(&error)))?;
        if !about.is_file() {
            return Err(missing(name, "it is not a file"));
        }
        self.limit(name, about.len())?;
        let mut bytes = Vec::new();
        // The file may grow after it was measured.
        file.take(self.options.max_image_bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| missing(name, bare(&error)))?;
        self.limit(name, bytes.len() as u64)?;
        Ok(bytes)
    }

    fn limit(&self, name: &str, bytes: u64) -> Result<(), Fault> {
        let limit = self.options.max_image_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(Fault::ImageTooLarge { name: short(name), got: bytes, unit: "bytes", limit })
    }

    /// Decodes it whole: a file that is cut off is found here and not in the middle of a run.
    fn check(&self, name: &str, bytes: &[u8]) -> Result<(u32, u32), Fault> {
        let unreadable = |why: String| Fault::ImageUnreadable { name: short(name), why };
        let reader = || {
            ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| unreadable(error.to_string()))
        };
        if reader()?.format().is_none() {
            return Err(unreadable("its first bytes are those of no known image format".to_owned()));
        }
        let (width, height) = reader()?.into_dimensions().map_err(|error| unreadable(error.to_string()))?;
        let (pixels, limit) = (u64::from(width) * u64::from(height), self.options.max_image_pixels);
        if pixels > limit {
            return Err(Fault::ImageTooLarge { name: short(name), got: pixels, unit: "pixels", limit });
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(limit.saturating_mul(16).saturating_add(1 << 20));
        let mut reader = reader()?;
        reader.limits(limits);
        reader.decode().map_err(|error| unreadable(error.to_string()))?;
        Ok((width, height))
    }
}

/// What is left of an error once the path, which may be private, is taken out.
fn bare(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        kind => kind.to_string(),
    }
}

fn missing(name: &str, why: impl ToString) -> Fault {
    Fault::ImageMissing { name: short(name), why: why.to_string() }
}

/// A data URL is a whole image: the message shows its beginning.
fn short(name: &str) -> String {
    match name.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}
