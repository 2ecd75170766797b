//! Bad data: every case ends in one clear sentence with file and line, and never in a panic or a silent pair.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use reground_learner::bpo::data::blobs::BlobDir;
use reground_learner::bpo::data::{self, DataError, OnError, ReadOptions, ReadReport, Shape};
use reground_learner::bpo::pair::{NegativeKind, Part, PreferencePair, Role, Source};
use serde_json::{Value, json};

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 9]))
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

/// A good preference row about `image`, for a case to spoil.
fn row(image: &str) -> Value {
    json!({
        "input": {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": "What colour is the banana?"}]}]},
        "preferred_output": [{"role": "assistant", "content": "It is green."}],
        "non_preferred_output": [{"role": "assistant", "content": "It is yellow."}],
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut row = row("ok.png");
    *row.pointer_mut(pointer).unwrap() = value;
    row
}

fn without(parent: &str, key: &str) -> Value {
    let mut row = row("ok.png");
    row.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
    row
}

struct World {
    dir: tempfile::TempDir,
    options: ReadOptions,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("images");
        fs::create_dir_all(root.join("folder")).unwrap();
        fs::write(root.join("ok.png"), png(8, 6)).unwrap();
        fs::write(root.join("cut.png"), &png(64, 64)[..90]).unwrap();
        fs::write(root.join("text.png"), "not a picture at all").unwrap();
        fs::write(root.join("none.png"), "").unwrap();
        fs::write(root.join("wide.png"), png(400, 300)).unwrap();
        fs::write(dir.path().join("secret.png"), png(4, 4)).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path().join("secret.png"), root.join("link.png")).unwrap();
        let options = ReadOptions {
            image_root: Some(root),
            on_error: OnError::Fail,
            max_answer_words: 20,
            max_images: 2,
            max_image_pixels: 100_000,
            max_entry_bytes: 20_000,
            max_file_bytes: 200_000,
            ..ReadOptions::default()
        };
        Self { dir, options }
    }

    fn read(&self, content: &[u8], options: &ReadOptions) -> Result<(ReadReport, Vec<PreferencePair>), DataError> {
        let path = self.dir.path().join("pairs.jsonl");
        fs::write(&path, content).unwrap();
        self.read_path(&path, options)
    }

    fn read_path(&self, path: &Path, options: &ReadOptions) -> Result<(ReadReport, Vec<PreferencePair>), DataError> {
        let blobs = BlobDir::new(self.dir.path().join("blobs"));
        let mut pairs = Vec::new();
        let report = data::read(path, options, &blobs, &mut |pair| pairs.push(pair))?;
        Ok((report, pairs))
    }
}

/// What is wrong with one entry, and a part of the sentence that says so.
fn bad_entries() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let text = |value: Value| value.to_string().into_bytes();
    let question = "/input/messages/0/content";
    let user = |text: &str| json!({"role": "user", "content": text});
    let llava = |image: Value, turns: Value| json!({"image": image, "conversations": turns});
    let human = |value: &str| json!({"from": "human", "value": value});
    let gpt = |value: &str| json!({"from": "gpt", "value": value});
    let bpo = |completions: Value| json!({"image": "ok.png", "prompt": "What is it?", "completions": completions});
    let many = (0..257).flat_map(|_| [human("a?"), gpt("b")]).collect::<Vec<_>>();
    vec![
        ("not JSON", b"{\"input\": ".to_vec(), "EOF while parsing"),
        ("not UTF-8", b"{\"input\": \"\xff\xfe\"}".to_vec(), "not UTF-8 at byte 11"),
        ("a number", b"17".to_vec(), "none of the known shapes"),
        ("another schema", text(json!({"prompt": "a", "chosen": "b", "rejected": "c"})), "none of the known shapes"),
        ("no rejected output", text(without("", "non_preferred_output")), "missing field `non_preferred_output`"),
        ("no input", text(without("", "input")), "missing field `input`"),
        ("output of the wrong type", text(with("/preferred_output", json!("green"))), "invalid type: string"),
        (
            "an unknown key",
            text(json!({"input": {"messages": [], "tools": []}, "preferred_output": [], "non_preferred_output": []})),
            "unknown field `tools`",
        ),
        ("no message", text(with("/input/messages", json!([]))), "no message"),
        (
            "ends with the assistant",
            text(with("/input/messages", json!([user("a"), {"role": "assistant", "content": "b"}]))),
            "ends with a message of role assistant",
        ),
        (
            "two users in a row",
            text(with("/input/messages", json!([user("a"), user("b")]))),
            "messages 0 and 1 are both of role user",
        ),
        (
            "late system message",
            text(with("/input/messages", json!([user("a"), {"role": "system", "content": "b"}]))),
            "message 1 is a system message",
        ),
        ("unknown role", text(with("/input/messages/0/role", json!("tool"))), "input.messages[0]: role \"tool\""),
        ("empty question", text(with(question, json!("  "))), "messages[0]: it is empty"),
        (
            "content of the wrong type",
            text(with(question, json!(3))),
            "input.messages[0].content: it must be a string or a list",
        ),
        (
            "unknown part",
            text(with(question, json!([{"type": "input_audio"}]))),
            "input.messages[0].content[0]: a part of type \"input_audio\"",
        ),
        ("part without type", text(with(question, json!([{"text": "a"}]))), "content[0]: it has no type"),
        (
            "image_url without url",
            text(with(question, json!([{"type": "image_url", "image_url": {}}]))),
            "image_url has no url",
        ),
        ("typed placeholder", text(with(question, json!("what is <image> here?"))), "holds the literal text <image>"),
        ("empty answer", text(with("/preferred_output/0/content", json!(" \n"))), "the chosen answer is empty"),
        (
            "empty rejected answer",
            text(with("/non_preferred_output/0/content", json!(""))),
            "the rejected answer is empty",
        ),
        (
            "two answers",
            text(with(
                "/preferred_output",
                json!([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]),
            )),
            "preferred_output must be exactly one message of role assistant, it has 2 messages",
        ),
        ("an answer by the user", text(with("/preferred_output/0/role", json!("user"))), "it has role \"user\""),
        (
            "chosen = rejected",
            text(with("/non_preferred_output/0/content", json!("it is GREEN"))),
            "the same but for case",
        ),
        (
            "answer over the limit",
            text(with("/preferred_output/0/content", json!("word ".repeat(21)))),
            "the chosen answer has 21 words, the limit is 20",
        ),
        (
            "entry over the limit",
            text(with("/preferred_output/0/content", json!("x".repeat(20_000)))),
            "the limit is 20000 (max_entry_bytes)",
        ),
        ("missing image", text(row("gone.png")), "image gone.png is missing: there is no such file"),
        ("image is a directory", text(row("folder")), "image folder is missing: it is not a file"),
        ("image cut off", text(row("cut.png")), "image cut.png cannot be decoded"),
        ("image is text", text(row("text.png")), "no known image format"),
        ("image of no bytes", text(row("none.png")), "no known image format"),
        ("image too large", text(row("wide.png")), "image wide.png has 120000 pixels, the limit is 100000"),
        ("path traversal", text(row("../secret.png")), "image ../secret.png is outside the image directory"),
        ("absolute path", text(row("/etc/hostname")), "outside the image directory"),
        ("file URL", text(row("file:///etc/hostname")), "outside the image directory"),
        ("backslash path", text(row("..\\secret.png")), "outside the image directory"),
        #[cfg(unix)]
        ("link out of the root", text(row("link.png")), "image link.png is outside the image directory"),
        ("web address", text(row("https://example.org/a.png")), "is a web address"),
        ("data URL of text", text(row("data:text/plain;base64,QQ==")), "its type is not image"),
        ("data URL without base64", text(row("data:image/png,abc")), "it is not base64"),
        ("data URL with bad base64", text(row("data:image/png;base64,@@@")), "Invalid symbol"),
        ("data URL of rubbish", text(row("data:image/png;base64,QUJDRA==")), "no known image format"),
        ("unknown blob", text(row(&format!("blob:{}", "a".repeat(64)))), "is missing"),
        ("blob that is a path", text(row("blob:../../secret.png")), "64 lower-case hexadecimal digits"),
        (
            "too many images",
            text(with(question, json!(vec![json!({"type": "image_url", "image_url": {"url": "ok.png"}}); 3]))),
            "3 images, the limit is 2",
        ),
        (
            "image in the system message",
            text(with("/input/messages/0/role", json!("system"))),
            "a system message cannot hold an image",
        ),
        ("llava without an answer", text(llava(json!("ok.png"), json!([human("<image> a?")]))), "no answer of gpt"),
        (
            "llava with an unknown speaker",
            text(llava(json!("ok.png"), json!([{"from": "bot", "value": "a"}]))),
            "from \"bot\"",
        ),
        (
            "llava with a placeholder too many",
            text(llava(json!("ok.png"), json!([human("<image><image> a?"), gpt("b")]))),
            "2 <image> placeholders for 1 images",
        ),
        (
            "llava placeholder without image",
            text(llava(json!([]), json!([human("<image> a?"), gpt("b")]))),
            "1 <image> placeholders for 0 images",
        ),
        (
            "llava image of the wrong type",
            text(llava(json!(7), json!([human("a?"), gpt("b")]))),
            "image must be a path",
        ),
        (
            "llava with too many answers",
            text(llava(json!("ok.png"), json!(many))),
            "the entry has 257 answers, the limit is 256",
        ),
        (
            "bpo with too many completions",
            text(bpo(json!(vec![json!({"response": "a", "score": 1}); 257]))),
            "the entry has 257 answers, the limit is 256",
        ),
        ("bpo without completions", text(bpo(json!([]))), "completions: it is empty"),
        (
            "bpo with equal scores",
            text(bpo(json!([{"response": "a", "score": 1}, {"response": "b", "score": 1}]))),
            "all 2 completions have the same score",
        ),
        ("bpo with a score of text", text(bpo(json!([{"response": "a", "score": "high"}]))), "completions[0].score"),
        (
            "bpo with one text twice",
            text(bpo(json!([{"response": "a b", "score": 1}, {"response": "A, b.", "score": 0}]))),
            "the same but for case",
        ),
        (
            "bpo without a prompt",
            text(json!({"image": "ok.png", "completions": [{"response": "a", "score": 1}]})),
            "missing field `prompt`",
        ),
    ]
}

#[test]
fn each_bad_entry_has_its_sentence_with_file_and_line() {
    let world = World::new();
    let cases = bad_entries();
    assert!(cases.len() >= 50, "{}", cases.len());
    for (name, entry, message) in cases {
        let mut file = format!("{}\n\n", row("ok.png")).into_bytes();
        file.extend(&entry);
        let error = world.read(&file, &world.options).expect_err(name).to_string();
        assert!(error.contains(message), "{name}: {error}");
        assert!(error.contains("pairs.jsonl:3: "), "{name}: {error}");
        assert!(
            !error.contains("secret.png") || error.contains("../secret.png") || error.contains("..\\secret.png"),
            "{name}: {error}"
        );
    }
}

#[test]
fn an_entry_whose_answers_would_multiply_it_is_refused() {
    let world = World::new();
    let options = ReadOptions { max_entry_bytes: 2 << 20, max_file_bytes: 2 << 20, ..world.options.clone() };
    let entry = |completions: usize| {
        let lower = (1..completions).map(|at| json!({"response": format!("No, {at}."), "score": 0}));
        let all = std::iter::once(json!({"response": "Yes.", "score": 1})).chain(lower).collect::<Vec<_>>();
        json!({"image": "ok.png", "prompt": "x".repeat(1 << 20), "completions": all}).to_string()
    };
    let (report, _) = world.read(entry(3).as_bytes(), &options).unwrap();
    assert_eq!(report.pairs, 2);
    let error = world.read(entry(128).as_bytes(), &options).unwrap_err().to_string();
    assert!(error.contains("pairs.jsonl:1: the entry has 128 answers in 10"), "{error}");
    assert!(error.contains("the limit of answers times bytes is 134217728"), "{error}");
}

#[test]
fn skipping_keeps_every_good_entry_and_counts_the_bad() {
    let world = World::new();
    let options = ReadOptions { on_error: OnError::Skip, ..world.options.clone() };
    let cases = bad_entries();
    let mut file = Vec::new();
    for (at, (_, entry, _)) in cases.iter().enumerate() {
        file.extend(entry);
        file.push(b'\n');
        let mut good = row("ok.png");
        *good.pointer_mut("/preferred_output/0/content").unwrap() = json!(format!("It is number {at}."));
        file.extend(good.to_string().bytes());
        file.push(b'\n');
    }
    let (report, pairs) = world.read(&file, &options).unwrap();
    assert_eq!((report.entries, report.pairs, report.faults), (2 * cases.len(), cases.len(), cases.len()));
    assert_eq!(pairs.len(), cases.len());
    for (at, skipped) in report.skipped.iter().enumerate() {
        assert_eq!(skipped.line, 2 * at as u64 + 1);
        assert!(skipped.reason.contains(cases[at].2), "{}", skipped.reason);
    }
    let strict = ReadOptions { max_errors: 3, ..options };
    let error = world.read(&file, &strict).unwrap_err().to_string();
    assert!(error.contains("more than 3 entries cannot be used"), "{error}");
}

#[test]
fn each_bad_file_has_its_sentence() {
    let world = World::new();
    let good = row("ok.png").to_string();
    let huge = format!("{}\n", good).repeat(200_000 / good.len() + 1);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "is empty"),
        ("blank", b" \n\n".to_vec(), "is empty"),
        ("an empty array", b"[]".to_vec(), "is empty"),
        ("huge", huge.into_bytes(), "the limit is 200000 (max_file_bytes)"),
        ("gzip", b"\x1f\x8b\x08\x00".to_vec(), "compressed with gzip"),
        ("zip", b"PK\x03\x04".to_vec(), "a zip archive"),
        ("parquet", b"PAR1".to_vec(), "a Parquet file"),
        ("UTF-16", b"\xff\xfe{\x00".to_vec(), "is UTF-16"),
        ("an open array", format!("[{good}").into_bytes(), ":1: the array is not closed"),
        ("rubbish after an array", format!("[{good}]\nx").into_bytes(), ":2: something follows the end"),
    ];
    for (name, content, message) in cases {
        let error = world.read(&content, &world.options).expect_err(name).to_string();
        assert!(error.contains(message), "{name}: {error}");
    }
    let skip = ReadOptions { on_error: OnError::Skip, ..world.options.clone() };
    assert!(world.read(b"1\n2\n", &skip).unwrap_err().to_string().contains("no usable entry: 2"));
    assert!(world.read_path(world.dir.path(), &skip).unwrap_err().to_string().contains("is not a file"));
    assert!(world.read_path(Path::new("/nowhere.jsonl"), &skip).unwrap_err().to_string().contains("cannot read"));
    let no_root = ReadOptions { image_root: None, ..world.options.clone() };
    assert!(
        world.read(good.as_bytes(), &no_root).unwrap_err().to_string().contains("no image directory is configured")
    );
    let small = ReadOptions { max_image_bytes: 20, ..world.options.clone() };
    assert!(world.read(good.as_bytes(), &small).unwrap_err().to_string().contains("bytes, the limit is 20"));
}

#[test]
fn good_entries_of_all_three_shapes() {
    let world = World::new();
    let llava = json!({"id": 1, "image": "ok.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."},
        {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Dark."}]});
    let bpo = json!({"image": "ok.png", "prompt": "What do you see?\n<image>", "completions": [
        {"score": 0, "response": "A dog.", "type": "llm-hal"}, {"score": 1, "response": "A square.", "type": "gt"},
        {"score": 0.5, "text": "A cat.", "type": "mllm-hal"}]});
    let file = format!("\u{feff}[{}, {}, {}]", row(&data_url(&png(5, 5))), llava, bpo);
    let (report, pairs) = world.read(file.as_bytes(), &world.options).unwrap();
    assert_eq!((report.entries, report.pairs, report.annotations), (3, 3, 2));

    let preference = &pairs[0];
    assert_eq!((preference.images[0].width, preference.images[0].height), (5, 5));
    assert_eq!(preference.negative, Some(NegativeKind::Given));
    assert_eq!(preference.conversation[0].content[0], Part::Image { index: 0 });

    assert_eq!(
        (pairs[1].chosen.as_str(), pairs[1].conversation.len(), pairs[1].source),
        ("A square.", 1, Source::Annotation)
    );
    assert_eq!(pairs[1].conversation[0].content[1], Part::Text { text: "What is it?".to_owned() });
    assert_eq!((pairs[2].chosen.as_str(), pairs[2].conversation.len()), ("Dark.", 3));
    assert_eq!(pairs[2].conversation[1].role, Role::Assistant);

    let rejected = pairs[3..]
        .iter()
        .map(|pair| (pair.chosen.as_str(), pair.rejected.as_deref(), pair.negative))
        .collect::<Vec<_>>();
    assert_eq!(
        rejected,
        [
            ("A square.", Some("A cat."), Some(NegativeKind::ImageWeakened)),
            ("A square.", Some("A dog."), Some(NegativeKind::Injected)),
        ]
    );
    assert_eq!(
        pairs[3].conversation[0].content,
        [Part::Text { text: "What do you see?".to_owned() }, Part::Image { index: 0 }]
    );
    assert!(pairs.iter().all(|pair| pair.id.starts_with("pair-") && pair.id.len() == 37));
}

#[test]
fn a_forced_shape_says_what_it_misses_and_repeats_are_dropped() {
    let world = World::new();
    let forced = ReadOptions { shape: Shape::Bpo, ..world.options.clone() };
    let error = world.read(row("ok.png").to_string().as_bytes(), &forced).unwrap_err().to_string();
    assert!(error.contains("missing field `completions`"), "{error}");
    let twice = format!("{}\n{}\n", row("ok.png"), row("ok.png"));
    let (report, pairs) = world.read(twice.as_bytes(), &world.options).unwrap();
    assert_eq!((report.entries, report.pairs, report.duplicates, pairs.len()), (2, 1, 1, 1));
}

#[test]
fn an_image_is_kept_once_and_can_be_named_by_its_digest() {
    let world = World::new();
    let (_, pairs) = world.read(row("ok.png").to_string().as_bytes(), &world.options).unwrap();
    let by_digest = row(&format!("blob:{}", pairs[0].images[0].digest));
    let (_, again) = world.read(by_digest.to_string().as_bytes(), &world.options).unwrap();
    assert_eq!(again[0].images, pairs[0].images);
    assert_eq!(again[0].id, pairs[0].id, "the id comes from the content");
}

#[test]
fn a_bad_answer_keeps_no_other_of_its_entry_out() {
    let world = World::new();
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let entry = json!({"image": "ok.png", "conversations": [
        turn("human", "<image>\nWhat is it?"), turn("gpt", "A hat."),
        turn("human", "Which colour?"), turn("gpt", " "),
        turn("human", "Whose?"), turn("gpt", "Mine."),
        turn("human", "Since when?"), turn("gpt", &"word ".repeat(21)),
    ]});
    let skip = ReadOptions { on_error: OnError::Skip, ..world.options.clone() };
    let (report, pairs) = world.read(entry.to_string().as_bytes(), &skip).unwrap();
    assert_eq!(pairs.iter().map(|pair| pair.chosen.as_str()).collect::<Vec<_>>(), ["A hat.", "Mine."]);
    let reasons: Vec<_> = report.skipped.iter().map(|skipped| (skipped.line, skipped.reason.as_str())).collect();
    let long = "the chosen answer has 21 words, the limit is 20 (max_answer_words)";
    assert_eq!(reasons, [(1, "the chosen answer is empty"), (1, long)]);
    assert_eq!((report.entries, report.annotations, report.faults), (1, 2, 2));
    assert!(world.read(entry.to_string().as_bytes(), &world.options).is_err());

    // What is wrong with all of them is told once.
    let entry = entry.to_string().replace("ok.png", "gone.png").replace("\" \"", "\"Red.\"").replace("word ", "x");
    let (report, _) = world.read(format!("{entry}\n{}", row("ok.png")).as_bytes(), &skip).unwrap();
    assert_eq!((report.faults, report.skipped[0].reason.contains("gone.png")), (1, true), "{report:?}");
}
