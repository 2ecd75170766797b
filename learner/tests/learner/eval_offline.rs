//! `reground eval`'s work on the golden model: sets in files, figures known from elsewhere, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use reground_learner::eval::offline::evaluate;
use reground_learner::eval::{Bootstrap, EvalError, Offline, Reader, Report};
use reground_learner::model::Quantisation;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3").join(name)
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(golden("expected.json")).unwrap()).unwrap()
}

fn settings(sets: &[PathBuf]) -> Offline {
    Offline {
        model: golden("model"),
        sets: sets.to_vec(),
        images: Some(golden("")),
        max_tokens: 16,
        threads: 1,
        bootstrap: Bootstrap { resamples: 100, ..Bootstrap::default() },
        ..Offline::default()
    }
}

fn measure(settings: &Offline) -> Result<Report, EvalError> {
    evaluate(settings, &|| None, &mut |_, _| ())
}

fn write(directory: &Path, name: &str, lines: &[Value]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path
}

/// The golden pairs as the BPO authors write theirs.
fn pairs(directory: &Path) -> PathBuf {
    let row = |pair: &Value| {
        json!({"image": pair["image"], "prompt": format!("<image>\n{}", pair["question"].as_str().unwrap()),
            "completions": [
                {"response": pair["chosen"].as_str().unwrap().trim(), "score": 1, "type": "gt"},
                {"response": pair["rejected"].as_str().unwrap().trim(), "score": 0, "type": "llm-hal"}]})
    };
    let expected = expected();
    write(directory, "pairs.jsonl", &expected["pairs"].as_array().unwrap().iter().map(row).collect::<Vec<_>>())
}

fn sum(pair: &Value, key: &str) -> f64 {
    pair[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).sum()
}

#[test]
fn preferences_have_the_golden_log_probabilities() {
    let directory = tempfile::tempdir().unwrap();
    let base = settings(&[pairs(directory.path())]);
    let adapted = Offline { adapter: Some(golden("adapter")), threads: 2, ..base.clone() };
    let expected = expected();
    let golden = expected["pairs"].as_array().unwrap();
    let mean = |value: &dyn Fn(&Value) -> f64| golden.iter().map(value).sum::<f64>() / golden.len() as f64;
    for (settings, prefix) in [(base, "base"), (adapted, "adapter")] {
        let report = measure(&settings).unwrap();
        let value = |name: &str| report.estimate("pairs", name).unwrap().value.unwrap();
        let (chosen, rejected) = (format!("{prefix}_logp_chosen"), format!("{prefix}_logp_rejected"));
        let close = |name: &str, wanted: f64| {
            assert!((value(name) - wanted).abs() < 1e-3, "{prefix}: {name} {} not {wanted}", value(name));
        };
        close("chosen log-probability", mean(&|pair| sum(pair, &chosen)));
        close("chosen drift", mean(&|pair| sum(pair, &chosen) - sum(pair, "base_logp_chosen")));
        let preferred = |pair: &Value| f64::from(u8::from(sum(pair, &chosen) > sum(pair, &rejected)));
        close("preference accuracy", mean(&preferred));
        let conditional = report.estimate("pairs", "image-conditional accuracy").unwrap();
        assert_eq!(conditional.items, golden.len());
        assert!((0.0..=1.0).contains(&conditional.value.unwrap()));
        assert!(conditional.low <= conditional.value && conditional.value <= conditional.high);
    }
}

#[test]
fn captions_and_questions_are_answered_and_measured() {
    let directory = tempfile::tempdir().unwrap();
    let image = |name: &str, objects: Value| json!({"image": name, "objects": objects});
    let captions = [
        image("image_0.png", json!(["circle", "square"])),
        image("image_1.png", json!(["square", "triangle"])),
        image("image_2.png", json!([{"object": "triangle", "colour": "red"}, "star"])),
    ];
    let captions = write(directory.path(), "captions.jsonl", &captions);
    let question = |id: u64, label: &str| json!({"question_id": id, "image": "image_0.png", "text": "Is there a cat?", "label": label});
    let pope = write(directory.path(), "coco_pope_random.jsonl", &[question(1, "yes"), question(2, "no")]);
    let mut seen = Vec::new();
    let settings = Offline { pope_per_image: 1, ..settings(&[captions.clone(), pope]) };
    let report = evaluate(&settings, &|| None, &mut |name, done| seen.push((name.to_owned(), done))).unwrap();
    let sections: Vec<&str> = report.sections.iter().map(|section| section.name.as_str()).collect();
    let sampled = ["POPE random, captions", "POPE popular, captions", "POPE adversarial, captions"];
    assert_eq!(sections, ["captions", sampled[0], sampled[1], sampled[2], "coco_pope_random"]);
    assert_eq!(report.estimate("captions", "Cover").unwrap().items, 3);
    for section in sampled {
        assert_eq!(report.estimate(section, "accuracy").unwrap().items, 3, "{section}: one item a picture");
    }
    // The same question about the same image has one answer, and one of the two labels is right.
    assert_eq!(report.estimate("coco_pope_random", "accuracy").unwrap().value, Some(0.5));
    assert!(seen.contains(&("captions".to_owned(), 3)), "{seen:?}");
    // A random model's captions are none of the pocket.
    let settings = Offline { reader: Reader::Pocket, limit: 2, pope_per_image: 0, sets: vec![captions], ..settings };
    let report = measure(&settings).unwrap();
    let malformed = report.estimate("captions", "malformed").unwrap();
    assert_eq!((malformed.value, malformed.items), (Some(1.0), 2));
}

/// AMBER's files, with a query of each of two types for two pictures.
fn amber(directory: &Path) -> PathBuf {
    let data = directory.join("data");
    fs::create_dir_all(data.join("query")).unwrap();
    let image = |id: u64| format!("image_{}.png", id % 2);
    let query = |id: u64, query: &str| json!({"id": id, "image": image(id), "query": query});
    let write = |name: &str, content: Value| fs::write(data.join(name), content.to_string()).unwrap();
    let asked =
        [query(1, "Describe this image."), query(2, "Describe this image."), query(3, "A cat?"), query(4, "A dog?")];
    write("query/query_all.json", json!(asked));
    let described = |id: u64| json!({"id": id, "type": "generative", "truth": ["circle"], "hallu": ["star"]});
    let judged = |id: u64, truth: &str| json!({"id": id, "type": "discriminative-hallucination", "truth": truth});
    write("annotations.json", json!([described(1), described(2), judged(3, "no"), judged(4, "yes")]));
    write("relation.json", json!({"circle": ["ring"], "star": []}));
    fs::write(data.join("safe_words.txt"), "line\n").unwrap();
    data
}

#[test]
fn amber_is_measured_by_type_of_query() {
    let directory = tempfile::tempdir().unwrap();
    let data = amber(directory.path());
    let settings = Offline { amber: Some(data.clone()), ..settings(&[]) };
    let report = measure(&settings).unwrap();
    let items = |report: &Report, section: &str, name: &str| report.estimate(section, name).unwrap().items;
    assert_eq!(items(&report, "AMBER generative", "Hal"), 2);
    assert_eq!(items(&report, "AMBER discriminative-hallucination", "accuracy"), 2);
    // A random model says nothing about stars, nor that there are none.
    assert_eq!(report.estimate("AMBER generative", "Cog").unwrap().value, Some(0.0));
    assert_eq!(report.estimate("AMBER discriminative-hallucination", "accuracy").unwrap().value, Some(0.5));
    let report = measure(&Offline { limit: 1, ..settings.clone() }).unwrap();
    assert_eq!(items(&report, "AMBER generative", "Hal"), 1);
    assert_eq!(items(&report, "AMBER discriminative-hallucination", "accuracy"), 1);

    fs::remove_file(data.join("safe_words.txt")).unwrap();
    assert!(measure(&settings).unwrap_err().to_string().contains("safe_words.txt"));
}

#[test]
fn what_cannot_be_measured_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let good = write(directory.path(), "good.jsonl", &[json!({"image": "image_0.png", "objects": ["circle"]})]);
    let none = "{\"image\": \"image_0.png\", \"conversations\": [{\"from\": \"human\", \"value\": \"<image>\\nx\"}, {\"from\": \"gpt\", \"value\": \"y\"}]}";
    for (set, named) in [
        (file("empty.jsonl", "\n"), "has no items"),
        (file("broken.jsonl", "{\"objects\""), ":1: "),
        (file("other.jsonl", "{\"a\": 1}"), "neither `objects`"),
        (file("line.jsonl", "{\"image\": \"a\", \"objects\": []}\n{\"image\": 3, \"objects\": []}"), ":2: "),
        (file("gone.jsonl", "{\"image\": \"gone.png\", \"objects\": [\"x\"]}"), "gone.png"),
        (file("out.jsonl", "{\"image\": \"../x.png\", \"objects\": [\"x\"]}"), "stay inside it"),
        (file("annotations.jsonl", none), "no entry has a rejected answer"),
        (file("pair.jsonl", "{\"image\": \"gone.png\", \"prompt\": \"<image>x\", \"completions\": []}"), "pair.jsonl"),
        (directory.path().join("missing.jsonl"), "missing.jsonl"),
    ] {
        let error = measure(&settings(&[set])).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    let fine = settings(&[good]);
    let refused = |settings: Offline| measure(&settings).unwrap_err().to_string();
    assert!(refused(Offline { sets: Vec::new(), ..fine.clone() }).contains("list of sets"));
    assert!(refused(Offline { model: "no/such".into(), ..fine.clone() }).contains("cannot load no/such"));
    assert!(refused(Offline { model: "pocket".into(), ..fine.clone() }).contains("no pocket model inside"));
    assert!(refused(Offline { adapter: Some("no/such".into()), ..fine.clone() }).contains("cannot load no/such"));
    assert!(refused(Offline { reader: Reader::Synonyms("no.txt".into()), ..fine }).contains("no.txt"));
}

/// What rounded weights cost is seen with the same sets.
#[test]
fn weights_in_fewer_bits_are_measured() {
    let directory = tempfile::tempdir().unwrap();
    let exact = settings(&[pairs(directory.path())]);
    let value = |settings: &Offline| {
        let report = measure(settings).unwrap();
        report.estimate("pairs", "chosen log-probability").unwrap().value.unwrap()
    };
    let full = value(&exact);
    let rounded = [Quantisation::Q8, Quantisation::Q4].map(|isq| value(&Offline { isq: Some(isq), ..exact.clone() }));
    let [eight, four] = rounded.map(|value| (value - full).abs());
    assert!(0.0 < eight && eight < 0.02 && eight < four && four < 4.0, "{full}, off by {eight} and {four}");
}
