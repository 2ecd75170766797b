//! What can be wrong with a data file, and with one entry of it.

use std::path::PathBuf;

use thiserror::Error;

/// Why a file could not be read as a whole.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file system refused.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a plain file.
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    /// More than `max_file_bytes`.
    #[error("{path} has {bytes} bytes, the limit is {limit} (max_file_bytes)")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Nothing but white space.
    #[error("{0} is empty")]
    Empty(PathBuf),
    /// Bytes that open another kind of file.
    #[error("{path} is {what}; what is read is JSON text in UTF-8")]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: &'static str,
    },
    /// A JSON array that stops or goes on where it should not.
    #[error("{path}:{line}: {what}")]
    Array {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry that cannot be used, where `on_error = "fail"`.
    #[error("{path}:{line}: {fault}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// Line on which the entry starts, from 1.
        line: u64,
        /// What is wrong with it.
        fault: Box<Fault>,
    },
    /// More bad entries than `max_errors`.
    #[error("{path}: more than {limit} entries cannot be used (max_errors); the last one, line {line}: {fault}")]
    TooManyFaults {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: usize,
        /// Line on which the last entry starts, from 1.
        line: u64,
        /// What is wrong with it.
        fault: Box<Fault>,
    },
    /// Every entry was bad.
    #[error("{path} has no usable entry: {faults} cannot be used")]
    NothingUsable {
        /// The file.
        path: PathBuf,
        /// Entries refused.
        faults: usize,
    },
    /// An image could not be stored, which is no fault of the entry's.
    #[error("cannot store an image: {0}")]
    Blob(std::io::Error),
    /// The content is not what was frozen.
    #[error("{path} has digest {got}, the run was frozen with {want}")]
    Digest {
        /// The file.
        path: PathBuf,
        /// BLAKE3 of what is there.
        got: String,
        /// BLAKE3 that was promised.
        want: String,
    },
}

/// Why one entry cannot be used.
#[derive(Debug, Error)]
pub enum Fault {
    /// Bytes that are no UTF-8.
    #[error("not UTF-8 at byte {0} of the entry")]
    NotUtf8(usize),
    /// More than `max_entry_bytes`.
    #[error("the entry has {bytes} bytes, the limit is {limit} (max_entry_bytes)")]
    EntryTooLong {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// Not JSON, or a field that is missing, unknown or of the wrong type.
    #[error("{0}")]
    Json(String),
    /// JSON that is none of the shapes this reads.
    #[error(
        "none of the known shapes: a preference has \"input\", LLaVA data has \"conversations\", BPO data has \"completions\""
    )]
    UnknownShape,
    /// A message whose content cannot be read.
    #[error("{place}: {what}")]
    Content {
        /// Where, as `input.messages[2].content[0]`.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// No message at all.
    #[error("the conversation has no message")]
    NoMessage,
    /// A conversation that the user does not end.
    #[error("the conversation ends with a message of role {0}, an answer can only follow the user")]
    NotTheUsersTurn(&'static str),
    /// A system message that is not the first, or a second one.
    #[error("message {0} is a system message, only the first may be")]
    SystemNotFirst(usize),
    /// Two messages of one speaker in a row.
    #[error("messages {0} and {1} are both of role {2}")]
    SameSpeakerTwice(usize, usize, &'static str),
    /// A preferred or non-preferred output that is not one assistant message.
    #[error("{field} must be exactly one message of role assistant, it has {got}")]
    NotOneAnswer {
        /// `preferred_output` or `non_preferred_output`.
        field: &'static str,
        /// What it has.
        got: String,
    },
    /// An answer of nothing.
    #[error("the {0} answer is empty")]
    EmptyAnswer(&'static str),
    /// An answer over `max_answer_words`.
    #[error("the {which} answer has {words} words, the limit is {limit} (max_answer_words)")]
    AnswerTooLong {
        /// `chosen` or `rejected`.
        which: &'static str,
        /// Its words.
        words: usize,
        /// The limit.
        limit: usize,
    },
    /// More answers in one entry than there may be.
    #[error("the entry has {answers} answers, the limit is {limit}")]
    TooManyAnswers {
        /// Answers given.
        answers: usize,
        /// The limit.
        limit: usize,
    },
    /// An entry that would take too much memory, since every answer takes a copy of the conversation.
    #[error("the entry has {answers} answers in {bytes} bytes, the limit of answers times bytes is {limit}")]
    TooManyCopies {
        /// Answers given.
        answers: usize,
        /// Size of the entry.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Answers that do not differ in content.
    #[error("the chosen and the rejected answer are the same but for case, spacing and punctuation")]
    SameAnswers,
    /// Scores that prefer nothing.
    #[error("all {0} completions have the same score, none is preferred")]
    NoPreference(usize),
    /// A completion without a usable score.
    #[error("completions[{0}].score is not a finite number")]
    Score(usize),
    /// Fewer or more placeholders than images.
    #[error("the text has {placeholders} <image> placeholders for {images} images")]
    Placeholders {
        /// `<image>` in the text.
        placeholders: usize,
        /// Images given.
        images: usize,
    },
    /// A placeholder typed as text, which the model would take for an image that is not there.
    #[error("{0} holds the literal text <image>; images go into image_url parts")]
    LiteralPlaceholder(String),
    /// More than `max_images`.
    #[error("{images} images, the limit is {limit} (max_images)")]
    TooManyImages {
        /// Images given.
        images: usize,
        /// The limit.
        limit: usize,
    },
    /// A web address, which training does not fetch.
    #[error("{0} is a web address: training reads data URLs and files, it fetches nothing")]
    RemoteImage(String),
    /// A data URL that is no base64 image.
    #[error("data URL of the image: {0}")]
    DataUrl(String),
    /// A path where no image directory is configured.
    #[error("image {0} is a path, and no image directory is configured (image_root)")]
    NoImageRoot(String),
    /// A path that leaves the image directory.
    #[error("image {0} is outside the image directory")]
    OutsideRoot(String),
    /// A digest that the blob store does not have, or a path without a file.
    #[error("image {name} is missing: {why}")]
    ImageMissing {
        /// As written in the entry.
        name: String,
        /// What the system said.
        why: String,
    },
    /// Bytes that no decoder takes.
    #[error("image {name} cannot be decoded: {why}")]
    ImageUnreadable {
        /// As written in the entry, shortened.
        name: String,
        /// What the decoder said.
        why: String,
    },
    /// More than `max_image_bytes` or `max_image_pixels`.
    #[error("image {name} has {got} {unit}, the limit is {limit}")]
    ImageTooLarge {
        /// As written in the entry, shortened.
        name: String,
        /// Its size.
        got: u64,
        /// `bytes` or `pixels`.
        unit: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The image store failed; ends the file.
    #[error("cannot store an image: {0}")]
    Blob(#[from] std::io::Error),
}
