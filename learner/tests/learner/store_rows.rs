//! Rows to test with.

use std::collections::BTreeMap;

use reground_learner::bpo::pair::{ImageRef, Message, NegativeKind, Part, PreferencePair, Role, Source};
use reground_learner::store::rows::{
    AdapterRow, AdapterState, Answer, BootstrapState, Feedback, Finish, Pair, PairState, Record, RecordedMessage, Run,
    RunState, Timings,
};
use reground_learner::store::{Options, id};

/// Whatever the disk of the machine that tests.
pub(crate) fn options() -> Options {
    Options { min_free_bytes: 0, ..Options::default() }
}

/// The bytes of the `n`-th image, which the store never decodes, and their reference.
pub(crate) fn image(n: u8) -> (Vec<u8>, ImageRef) {
    let bytes = vec![n; 2_000 + usize::from(n)];
    let digest = blake3::hash(&bytes).to_hex().to_string();
    (bytes, ImageRef { digest, width: 1, height: 1 })
}

pub(crate) fn record(images: &[u8]) -> Record {
    let mut content: Vec<Part> = (0..images.len()).map(|index| Part::Image { index }).collect();
    content.push(Part::Text { text: "What is it?".into() });
    Record {
        id: id::new("chatcmpl"),
        created_ms: id::now_ms(),
        model: "pocket".into(),
        generation: "base".into(),
        key: "local".into(),
        user: None,
        conversation: "c".into(),
        stored: false,
        metadata: BTreeMap::new(),
        images: images.iter().map(|n| image(*n).1).collect(),
        messages: vec![RecordedMessage { role: "user".into(), content, ..RecordedMessage::default() }],
        tools: Vec::new(),
        parameters: serde_json::Map::new(),
        answers: vec![Answer { text: "A circle.".into(), finish: Finish::Stop, ..Answer::default() }],
        prompt_tokens: 3,
        timings: Timings::default(),
        config_digest: String::new(),
        redactions: 0,
        bootstrap: BootstrapState::Waiting,
    }
}

pub(crate) fn pair(record: &Record) -> Pair {
    let said = &record.messages[0];
    Pair {
        data: PreferencePair {
            id: id::new("pair"),
            images: record.images.clone(),
            conversation: vec![Message { role: Role::User, content: said.content.clone() }],
            chosen: "A circle.".into(),
            rejected: Some("A square.".into()),
            distortion: None,
            source: Source::OwnAnswer,
            negative: Some(NegativeKind::ImageWeakened),
        },
        created_ms: id::now_ms(),
        record: Some(record.id.clone()),
        generation: Some("base".into()),
        feedback: None,
        key: Some("local".into()),
        filters: BTreeMap::from([("grounding".into(), 0.5)]),
        made: None,
        state: PairState::New,
        reason: None,
        reviews: Vec::new(),
        runs: Vec::new(),
    }
}

pub(crate) fn feedback(record: &str) -> Feedback {
    Feedback {
        id: id::new("fb"),
        created_ms: id::now_ms(),
        record: record.to_owned(),
        key: "local".into(),
        trusted: true,
        rating: Some(1.0),
        correction: None,
        comment: None,
    }
}

pub(crate) fn run() -> Run {
    Run {
        id: id::new("ftjob"),
        created_ms: id::now_ms(),
        started_ms: None,
        finished_ms: None,
        state: RunState::Queued,
        trigger: "pairs".into(),
        parent: "base".into(),
        dataset_digest: None,
        pairs: 0,
        request: serde_json::Value::Null,
        adapter: None,
        restarts: 0,
        error: None,
        refused: false,
    }
}

pub(crate) fn adapter() -> AdapterRow {
    AdapterRow {
        id: id::new("ad"),
        created_ms: id::now_ms(),
        run: None,
        parent: "base".into(),
        base_digest: String::new(),
        dataset_digest: None,
        state: AdapterState::New,
        gate: None,
    }
}
