//! What a record holds while it waits, and what is left of one that is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::{DynamicImage, Rgb, RgbImage};
use reground_learner::store::rows::{BootstrapState, Feedback, Record, Timings};
use reground_learner::store::{Options, Query, Store, id};
use tempfile::TempDir;
use tokio::time::Instant;

use super::{Draft, Recorder};
use crate::config::RecordConfig;
use crate::images::{Format, ReadImage};

fn recorder(config: &RecordConfig) -> (TempDir, Arc<Store>, Arc<Recorder>) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { min_free_bytes: 0, ..Options::default() };
    let store = Arc::new(Store::open(directory.path(), options).unwrap());
    let recorder = Recorder::start(store.clone(), config, String::new()).unwrap();
    (directory, store, recorder)
}

fn image() -> ReadImage {
    of_shade(0)
}

/// An image of its own for each shade.
fn of_shade(shade: u8) -> ReadImage {
    let image = DynamicImage::from(RgbImage::from_pixel(4, 3, Rgb([shade; 3])));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let bytes = png.into_inner();
    let digest = blake3::hash(&bytes).to_hex().to_string();
    ReadImage { bytes: bytes.into(), digest, format: Format::Png, image: image.into() }
}

fn record() -> Record {
    Record {
        id: id::new("chatcmpl"),
        created_ms: 0,
        model: "pocket".into(),
        generation: String::new(),
        key: "app".into(),
        user: None,
        conversation: "c".into(),
        stored: true,
        metadata: BTreeMap::new(),
        images: Vec::new(),
        messages: Vec::new(),
        tools: Vec::new(),
        parameters: serde_json::Map::new(),
        answers: Vec::new(),
        prompt_tokens: 0,
        timings: Timings::default(),
        config_digest: String::new(),
        redactions: 0,
        bootstrap: BootstrapState::Waiting,
    }
}

fn feedback(record: &str) -> Feedback {
    Feedback {
        id: id::new("fb"),
        created_ms: 0,
        record: record.to_owned(),
        key: "app".into(),
        trusted: true,
        rating: Some(1.0),
        correction: None,
        comment: None,
    }
}

/// Has an image answered, with feedback meanwhile; gives the record's id once all is written.
fn answered(recorder: &Arc<Recorder>, store: &Store) -> String {
    let record = record();
    let id = record.id.clone();
    let mut draft = Draft::new(recorder.clone(), record, 1, &[image()], Instant::now());
    draft.begun("base", 3);
    assert_eq!(recorder.under_way(&id).as_deref(), Some("app"));
    store.add_feedback(&feedback(&id), true).unwrap();
    drop(draft);
    recorder.close();
    id
}

#[test]
fn a_record_waits_without_pixels() {
    let (_directory, _, recorder) = recorder(&RecordConfig::default());
    let read = image();
    let draft = Draft::new(recorder, record(), 1, std::slice::from_ref(&read), Instant::now());
    assert_eq!(read.image.holders(), 1);
    drop(draft);
}

#[test]
fn a_record_is_stored_with_what_was_said_meanwhile() {
    let (_directory, store, recorder) = recorder(&RecordConfig::default());
    let id = answered(&recorder, &store);
    let image = store.need::<Record>(&id).unwrap().images[0].clone();
    assert_eq!((image.width, image.height), (4, 3));
    assert_eq!(store.count::<Feedback>(&Query::by("record", id)).unwrap(), 1);
}

/// More at once than is written at once, each with an image of its own and feedback meanwhile.
#[test]
fn many_that_come_at_once_are_all_stored() {
    const COUNT: u8 = 150;
    let (_directory, store, recorder) = recorder(&RecordConfig::default());
    let drafts: Vec<Draft> = (0..COUNT)
        .map(|shade| {
            let mut draft = Draft::new(recorder.clone(), record(), 1, &[of_shade(shade)], Instant::now());
            draft.begun("base", 3);
            draft
        })
        .collect();
    drop(drafts);
    recorder.close();
    assert_eq!(store.count::<Record>(&Query::default()).unwrap(), usize::from(COUNT));
    assert_eq!(store.stats().unwrap().blobs, usize::from(COUNT));
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
    assert_eq!(recorder.shared.waiting.load(std::sync::atomic::Ordering::Acquire), 0);
}

#[test]
fn what_was_said_of_a_dropped_record_goes_with_it() {
    let (_directory, store, recorder) = recorder(&RecordConfig { queue_bytes: 0, ..RecordConfig::default() });
    let id = answered(&recorder, &store);
    assert!(store.get::<Record>(&id).unwrap().is_none());
    assert!(recorder.under_way(&id).is_none());
    assert_eq!(store.count::<Feedback>(&Query::default()).unwrap(), 0);
}
