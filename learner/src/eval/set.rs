//! Evaluation sets: JSONL beside images, so that an operator can bring COCO, POPE or home-made files.
//!
//! - **Caption sets** (CHAIR): one image a line,
//!   `{"image": "0001.png", "objects": ["dog", {"object": "apple", "colour": "red", "count": 2, "places": ["top", "left"]}],
//!   "question": "Describe the image."}`; `question` may be left out.
//! - **POPE sets**: `{"question_id": 1, "image": "0001.png", "text": "Is there a dog in the image?", "label": "no"}`, the
//!   files of the POPE repository as they are.
//!
//! Image names are relative to an image directory and may not lead out of it.

use std::io::Write;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::answerer::ImageSource;
use super::chair::Truth;
use super::error::EvalError;

/// The request of a caption set's line that has none of its own.
pub const DEFAULT_REQUEST: &str = "Describe the image.";

/// A line of a caption set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionItem {
    /// The image's file name.
    pub image: String,
    /// What is there.
    pub objects: Vec<Truth>,
    /// What to ask.
    #[serde(default = "default_request")]
    pub question: String,
}

fn default_request() -> String {
    DEFAULT_REQUEST.to_owned()
}

/// Reads a JSONL file; empty lines are skipped.
///
/// # Errors
/// An unreadable file, a line that is not the expected JSON (with its number), or a file without items.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, EvalError> {
    let bytes = fs_err::read(path)?;
    let mut items = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let bad = |reason: String| EvalError::Line { path: path.to_owned(), line: index + 1, reason };
        let text = std::str::from_utf8(line).map_err(|error| bad(format!("not UTF-8: {error}")))?;
        if text.trim().is_empty() {
            continue;
        }
        items.push(serde_json::from_str(text).map_err(|error| bad(error.to_string()))?);
    }
    if items.is_empty() {
        return Err(EvalError::Empty(path.display().to_string()));
    }
    Ok(items)
}

/// Writes a JSONL file.
///
/// # Errors
/// What the file system says.
pub fn write_jsonl<T: Serialize>(path: &Path, items: &[T]) -> Result<(), EvalError> {
    let mut bytes = Vec::new();
    for item in items {
        serde_json::to_writer(&mut bytes, item).map_err(std::io::Error::from)?;
        bytes.write_all(b"\n")?;
    }
    Ok(fs_err::write(path, bytes)?)
}

/// The image `name` in `directory`.
///
/// # Errors
/// A name that leads out of the directory: evaluation sets come from elsewhere and must not read what they like.
pub fn image_in(directory: &Path, name: &str) -> Result<ImageSource, EvalError> {
    let inside = !name.is_empty()
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if inside {
        Ok(ImageSource::File(directory.join(name)))
    } else {
        Err(EvalError::File {
            path: PathBuf::from(name),
            reason: format!("image names are relative to {} and stay inside it", directory.display()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::pope::{PopeItem, Verdict};

    fn written(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn pope_files_are_read_as_they_are() {
        let file = written(
            b"{\"question_id\": 1, \"image\": \"COCO_val2014_000000310196.jpg\", \"text\": \"Is there a snowboard in the image?\", \"label\": \"yes\"}\n\n\
              {\"question_id\": 2, \"image\": \"b.jpg\", \"text\": \"Is there a dog in the image?\", \"label\": \"no\"}\n",
        );
        let items: Vec<PopeItem> = read_jsonl(file.path()).unwrap();
        assert_eq!(items.len(), 2);
        assert_eq!((items[0].question_id, items[0].label), (1, Verdict::Yes));
        assert_eq!(items[1].image, "b.jpg");
    }

    #[test]
    fn caption_sets_take_names_or_attributes_and_survive_writing() {
        let file = written(br#"{"image": "a.png", "objects": ["dog", {"object": "apple", "colour": "red", "count": 2, "places": ["top"]}]}"#);
        let items: Vec<CaptionItem> = read_jsonl(file.path()).unwrap();
        assert_eq!(items[0].question, DEFAULT_REQUEST);
        assert_eq!(items[0].objects[0], Truth::named("dog"));
        assert_eq!((items[0].objects[1].count, items[0].objects[1].places.len()), (Some(2), 1));
        let copy = tempfile::NamedTempFile::new().unwrap();
        write_jsonl(copy.path(), &items).unwrap();
        assert_eq!(read_jsonl::<CaptionItem>(copy.path()).unwrap(), items);
    }

    #[test]
    fn bad_lines_are_named_by_file_and_line() {
        let good = r#"{"image": "a.png", "objects": []}"#;
        for (content, expected) in [
            (format!("{good}\n{{\"image\": 3}}"), ":2: "),
            (format!("{good}\n{good}\nnot json"), ":3: "),
            (r#"{"image": "a.png", "objects": [], "objcts": []}"#.to_owned(), "unknown field `objcts`"),
            (r#"{"image": "a.png"}"#.to_owned(), "missing field `objects`"),
            ("\n".to_owned(), "has no items"),
        ] {
            let file = written(content.as_bytes());
            let error = read_jsonl::<CaptionItem>(file.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(&file.path().display().to_string()), "{error}");
        }
        let file = written(b"\xff\xfe\n");
        let error = read_jsonl::<CaptionItem>(file.path()).unwrap_err().to_string();
        assert!(error.contains(":1: not UTF-8"), "{error}");
        let error = read_jsonl::<CaptionItem>(Path::new("no/such.jsonl")).unwrap_err().to_string();
        assert!(error.contains("no/such.jsonl"), "{error}");
    }

    #[test]
    fn images_stay_inside_their_directory() {
        let directory = Path::new("images");
        assert!(
            matches!(image_in(directory, "sub/a.png"), Ok(ImageSource::File(path)) if path == directory.join("sub/a.png"))
        );
        for name in ["../a.png", "/etc/passwd", "sub/../../a.png", ""] {
            assert!(image_in(directory, name).is_err(), "{name}");
        }
    }
}
