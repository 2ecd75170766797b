//! A whole run directory on the toy model: data in, adapter, result and report out.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::mpsc;

use candle_core::{Device, Tensor};
use image::{DynamicImage, ImageFormat, RgbImage};
use reground_learner::bpo::TrainError;
use reground_learner::bpo::config::RunConfig;
use reground_learner::bpo::data::blobs::{BlobDir, Blobs};
use reground_learner::bpo::data::{self, OnError, ReadOptions};
use reground_learner::bpo::dataset;
use reground_learner::bpo::examples::ExampleError;
use reground_learner::bpo::pair::{Message, Part};
use reground_learner::bpo::policy::Policy;
use reground_learner::bpo::prepare::Encoder;
use reground_learner::bpo::progress::{Collected, Event, Progress, Silent};
use reground_learner::bpo::run::{Parts, train};
use reground_learner::bpo::trainer::{Control, Outcome};
use serde_json::{Value, json};

use super::bpo_toy::{PauseAfter, Toy, VOCABULARY, WIDTH, bits};

/// Letters as tokens; an image as its mean colour.
struct Letters;

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte) % (VOCABULARY as u32 - 1)).collect()
}

impl Encoder for Letters {
    type Image = Tensor;

    fn preprocess(&self, image: &DynamicImage) -> Result<Tensor, ExampleError> {
        let image = image.to_rgb8();
        let mut sums = [0f32; WIDTH];
        for pixel in image.pixels() {
            for (sum, value) in sums.iter_mut().zip(pixel.0) {
                *sum += f32::from(value) / 255.0 / (image.width() * image.height()) as f32;
            }
        }
        Ok(Tensor::from_vec(sums.to_vec(), (1, WIDTH), &Device::Cpu)?)
    }

    fn features(&self, image: &Tensor) -> Result<Tensor, ExampleError> {
        Ok(image.clone())
    }

    fn prompt(&self, conversation: &[Message], images: &[Tensor]) -> Result<Vec<u32>, ExampleError> {
        let mut prompt = vec![12; images.len()];
        for part in conversation.iter().flat_map(|message| &message.content) {
            if let Part::Text { text } = part {
                if text.contains('\u{0}') {
                    return Err("a zero".into());
                }
                prompt.extend(ids(text));
            }
        }
        Ok(prompt)
    }

    fn answer(&self, text: &str) -> Result<Vec<u32>, ExampleError> {
        Ok([ids(text), vec![12]].concat())
    }
}

const COLOURS: [(&str, [u8; 3]); 3] = [("red", [230, 20, 20]), ("green", [20, 230, 20]), ("blue", [20, 20, 230])];

fn config() -> RunConfig {
    let text = "
        seed = 5
        [loss]
        conditional = 0.5
        [optimizer]
        learning_rate = 0.02
        [train]
        batch = 4
        micro_batch = 3
        epochs = 3
        [data]
        blobs = 'blobs'
        held_out = 0.25
        distortion = { kind = 'noise', strength = 700 }
        [evaluation]
        every = 4
        [checkpoint]
        every = 3
    ";
    toml::from_str(text).unwrap()
}

/// Imports preference rows about coloured squares and freezes them, as the server and the command line do.
fn prepare(dir: &Path, rows: usize) -> String {
    fs::create_dir_all(dir.join("images")).unwrap();
    let mut lines = String::new();
    for row in 0..rows {
        let (name, colour) = COLOURS[row % 3];
        let file = format!("{row}.png");
        let mut bytes = Cursor::new(Vec::new());
        let shade = image::Rgb(colour.map(|value| value.saturating_sub(row as u8)));
        RgbImage::from_pixel(6, 6, shade).write_to(&mut bytes, ImageFormat::Png).unwrap();
        fs::write(dir.join("images").join(&file), bytes.into_inner()).unwrap();
        let row = json!({"image": file, "prompt": "<image>\nWhich colour?", "completions": [
            {"score": 1, "response": format!("it is {name}"), "type": "gt"},
            {"score": 0, "response": format!("it is {}", COLOURS[(row + 1) % 3].0), "type": "llm-hal"}]});
        lines.push_str(&format!("{row}\n"));
    }
    fs::write(dir.join("bpo.jsonl"), lines).unwrap();
    let options =
        ReadOptions { image_root: Some(dir.join("images")), on_error: OnError::Fail, ..ReadOptions::default() };
    let mut pairs = Vec::new();
    data::read(&dir.join("bpo.jsonl"), &options, &BlobDir::new(dir.join("blobs")), &mut |pair| pairs.push(pair))
        .unwrap();
    dataset::freeze(&dir.join("dataset.jsonl"), &pairs).unwrap().0
}

fn write_adapter(toy: &Toy, path: &Path) -> Result<(), ExampleError> {
    fs::create_dir(path)?;
    fs::write(path.join("bits"), format!("{:?}", bits(&toy.parameters())))?;
    Ok(())
}

const START: &str = "cpu f32";

fn run(dir: &Path, config: &RunConfig, control: &Control, progress: &mut dyn Progress) -> Result<Outcome, TrainError> {
    run_from(START, dir, config, control, progress)
}

fn run_from(
    start: &str,
    dir: &Path,
    config: &RunConfig,
    control: &Control,
    progress: &mut dyn Progress,
) -> Result<Outcome, TrainError> {
    let mut toy = Toy { dropout: 0.1, ..Toy::new() };
    let parts =
        Parts { policy: &mut toy, encoder: &Letters, base_digest: "letters", start, write_adapter: &write_adapter };
    train(dir, config, parts, control, progress)
}

fn result(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("result.json")).unwrap()).unwrap()
}

#[test]
fn from_imported_rows_to_an_adapter_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let digest = prepare(dir.path(), 24);
    let mut config = config();
    config.data.digest.clone_from(&digest);
    let mut events = Collected::default();
    let outcome = run(dir.path(), &config, &Control::default(), &mut events).unwrap();
    let Outcome::Finished { step, .. } = outcome else { panic!("{outcome:?}") };
    let result = result(dir.path());
    assert_eq!((result["outcome"].as_str(), result["step"].as_u64()), (Some("finished"), Some(step)));
    assert_eq!(
        (result["dataset_digest"].as_str(), result["base_digest"].as_str()),
        (Some(digest.as_str()), Some("letters"))
    );
    let (examples, held_out) = (result["examples"].as_u64().unwrap(), result["held_out"].as_u64().unwrap());
    assert_eq!(examples + held_out, 24);
    assert!(held_out > 0 && step == (examples.div_ceil(4)) * 3);
    let page = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains("Finished after step") && page.contains("image-conditional accuracy"));
    assert!(matches!(events.0.last().unwrap(), Event::Finished { .. }));
    let mut evaluated =
        events.0.iter().filter_map(|event| if let Event::Evaluated(one) = event { Some(one) } else { None });
    assert!(evaluated.next_back().unwrap().image_conditional_accuracy.is_some());
}

#[test]
fn a_paused_run_goes_on_to_the_same_adapter_and_a_finished_one_repeats_it() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&whole, &parts] {
        prepare(dir.path(), 24);
    }
    let config = config();
    run(whole.path(), &config, &Control::default(), &mut Silent).unwrap();
    let control = Control::default();
    let paused = run(parts.path(), &config, &control, &mut PauseAfter { step: 5, control: &control }).unwrap();
    assert_eq!(paused, Outcome::Paused { step: 5 });
    assert_eq!(result(parts.path())["outcome"], "paused");
    assert!(!parts.path().join("adapter").exists());
    let adapter = |dir: &Path| fs::read_to_string(dir.join("adapter/bits")).unwrap();
    for _ in 0..2 {
        run(parts.path(), &config, &Control::default(), &mut Silent).unwrap();
        assert_eq!(adapter(parts.path()), adapter(whole.path()));
    }
}

#[test]
fn a_paused_run_is_not_mixed_with_another_start_or_other_pairs() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), 24);
    let control = Control::default();
    let paused = run(dir.path(), &config(), &control, &mut PauseAfter { step: 5, control: &control }).unwrap();
    assert_eq!(paused, Outcome::Paused { step: 5 });
    let refused = |start: &str| {
        let error = run_from(start, dir.path(), &config(), &Control::default(), &mut Silent).unwrap_err();
        assert!(matches!(error, TrainError::OtherRun { .. }), "{error}");
    };
    refused("cuda bf16");

    // An image that cannot be read any more: without its pair all the others would come in another order.
    let dataset = fs::read_to_string(dir.path().join("dataset.jsonl")).unwrap();
    let first: Value = serde_json::from_str(dataset.lines().next().unwrap()).unwrap();
    let digest = first["images"][0]["digest"].as_str().unwrap();
    let blob = dir.path().join("blobs").join(&digest[..2]).join(digest);
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, "not what it was").unwrap();
    refused(START);
    fs::write(&blob, bytes).unwrap();
    let outcome = run(dir.path(), &config(), &Control::default(), &mut Silent).unwrap();
    assert!(matches!(outcome, Outcome::Finished { .. }), "{outcome:?}");
}

#[test]
fn what_cannot_be_prepared_is_counted_or_fatal() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), 12);
    let path = dir.path().join("dataset.jsonl");
    let mut lines = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .collect::<Vec<_>>();
    lines[1]["images"][0]["digest"] = json!("f".repeat(64));
    lines[2]["conversation"][0]["content"][1]["text"] = json!("a \u{0}");
    lines[3]["chosen"] = json!("it is ".repeat(40));
    lines[4]["rejected"] = json!("no");
    lines[5]["conversation"][0]["content"][1]["text"] = json!("why ".repeat(60));
    let damaged = lines[6]["images"][0]["digest"].as_str().unwrap().to_owned();
    fs::write(dir.path().join("blobs").join(&damaged[..2]).join(&damaged), "not what it was").unwrap();
    let mut text = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    text.push_str("\n{ half a line\n");
    fs::write(&path, text).unwrap();

    let mut config = config();
    (config.data.held_out, config.data.max_answer_tokens, config.data.max_prompt_tokens) = (0.0, 100, 200);
    let mut events = Collected::default();
    run(dir.path(), &config, &Control::default(), &mut events).unwrap();
    let result = result(dir.path());
    assert_eq!(
        result["dropped"],
        json!({
            "answer over data.max_answer_tokens": 1,
            "answers' lengths differ by more than loss.max_length_ratio": 1,
            "cannot be prepared": 3,
            "line cannot be read": 1,
            "prompt over data.max_prompt_tokens": 1,
        })
    );
    assert_eq!(result["examples"], 6);
    assert!(
        events
            .0
            .iter()
            .any(|event| matches!(event, Event::Warning { message } if message.contains("dataset.jsonl:13: ")))
    );

    config.data.on_error = OnError::Fail;
    let error = run(dir.path(), &config, &Control::default(), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("dataset.jsonl:13: "), "{error}");
    let text = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    fs::write(&path, text).unwrap();
    let error = run(dir.path(), &config, &Control::default(), &mut Silent).unwrap_err().to_string();
    assert!(error.starts_with("pair-") && error.contains(&"f".repeat(64)), "{error}");
}

#[test]
fn a_run_that_cannot_start_says_why_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = Collected::default();
    let error = run(dir.path(), &config(), &Control::default(), &mut events).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("dataset.jsonl"), "{error}");
    assert_eq!(result(dir.path())["reason"], error);
    assert!(fs::read_to_string(dir.path().join("report.html")).unwrap().contains("Failed after step 0"));
    assert_eq!(events.0.last(), Some(&Event::Failed { reason: error }));

    prepare(dir.path(), 6);
    let mut wrong = config();
    wrong.data.digest = "0".repeat(64);
    let error = run(dir.path(), &wrong, &Control::default(), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("the run was frozen with 0000"), "{error}");
    let mut strict = config();
    strict.data.max_answer_tokens = 2;
    let error = run(dir.path(), &strict, &Control::default(), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("no pair is left to train on") && error.contains("max_answer_tokens"), "{error}");
}

#[test]
fn one_process_at_a_time() {
    struct Hold(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl Progress for Hold {
        fn event(&mut self, event: &Event) {
            if matches!(event, Event::Step(step) if step.step == 1) {
                self.0.send(()).unwrap();
                self.1.recv().unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), 12);
    let (started, has_started) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            run(dir.path(), &config(), &Control::default(), &mut Hold(started, may_go_on))
                .map_err(|error| error.to_string())
        });
        has_started.recv().unwrap();
        let error = run(dir.path(), &config(), &Control::default(), &mut Silent).unwrap_err();
        assert!(matches!(error, TrainError::Locked(_)), "{error}");
        go_on.send(()).unwrap();
        first.join().unwrap().unwrap();
    });
}

#[test]
fn text_without_images_trains_too() {
    let dir = tempfile::tempdir().unwrap();
    let row = |at: usize| {
        json!({"input": {"messages": [{"role": "user", "content": format!("{at} and one?")}]},
        "preferred_output": [{"role": "assistant", "content": "more"}], "non_preferred_output": [{"role": "assistant", "content": "less"}]})
    };
    fs::write(dir.path().join("rows.jsonl"), (0..9).map(|at| format!("{}\n", row(at))).collect::<String>()).unwrap();
    let blobs = BlobDir::new(dir.path().join("blobs"));
    assert!(blobs.get(&"0".repeat(64)).is_err());
    let mut pairs = Vec::new();
    data::read(&dir.path().join("rows.jsonl"), &ReadOptions::default(), &blobs, &mut |pair| pairs.push(pair)).unwrap();
    dataset::freeze(&dir.path().join("dataset.jsonl"), &pairs).unwrap();
    let outcome = run(dir.path(), &config(), &Control::default(), &mut Silent).unwrap();
    assert!(matches!(outcome, Outcome::Finished { .. }));
    assert!(!fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap().contains("image_conditional_accuracy"));
}
