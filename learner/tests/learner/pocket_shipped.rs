//! The shipped model is what its README says: well on typical pictures, misled by habit on balanced ones.

use candle_core::{DType, Device};
use reground_learner::eval::{Answerer, Bootstrap, ModelAnswerer, Query, Report};
use reground_learner::model::{Model, Workers};
use reground_learner::pocket::held_out::{self, Size};
use reground_learner::pocket::hub::Shape;
use reground_learner::pocket::shipped;

fn model() -> Model {
    let source = shipped::source();
    let weights = source.weights(DType::F32, &Device::Cpu).unwrap();
    Model::build(&source, &weights).unwrap()
}

fn value(report: &Report, section: &str, measure: &str) -> f64 {
    report.estimate(section, measure).and_then(|estimate| estimate.value).unwrap()
}

#[test]
fn it_fits_and_its_files_are_those_that_the_builder_writes() {
    let bytes: usize = shipped::FILES.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes <= 16 << 20, "{bytes} bytes");
    for (name, content) in Shape::default().files() {
        let (_, bytes) = shipped::FILES.iter().find(|(known, _)| *known == name).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(bytes).unwrap(), content, "{name}");
    }
    let directory = tempfile::tempdir().unwrap();
    shipped::write(directory.path()).unwrap();
    assert!(Model::load(directory.path(), DType::F32, &Device::Cpu).is_ok());
}

#[test]
fn it_sees_typical_pictures_and_answers_balanced_ones_from_habit() {
    let model = model();
    let workers = Workers::new(0).unwrap();
    let mut answerer = ModelAnswerer::new(&model, None, &workers, 64);
    let size = Size { images: 80, pope_per_image: 2, seed: 1 };
    let bootstrap = Bootstrap { resamples: 200, ..Bootstrap::default() };
    let report = held_out::evaluate("pocket", &mut answerer, size, bootstrap, &mut |_, _| ()).unwrap();
    let (typical, balanced) = ("captions, typical", "captions, balanced");
    assert!(value(&report, typical, "CHAIR_i") < 0.05, "{report}");
    assert!(value(&report, typical, "colour error") < 0.05, "{report}");
    assert!(value(&report, typical, "Cover") > 0.9, "{report}");
    assert!(value(&report, typical, "malformed") < 0.1, "{report}");
    // The fault that BPO is for.
    assert!(value(&report, balanced, "CHAIR_i") > 0.06, "{report}");
    assert!(value(&report, balanced, "Cover") > 0.6, "it sees balanced pictures too: {report}");
    assert!(value(&report, balanced, "CHAIR_i") > 2.0 * value(&report, typical, "CHAIR_i"), "{report}");
    let adversarial = |statistics: &str| value(&report, &format!("POPE adversarial, {statistics}"), "accuracy");
    assert!(adversarial("typical") > adversarial("balanced"), "{report}");
}

#[test]
fn it_ends_its_answers_to_anything() {
    let model = model();
    let workers = Workers::new(0).unwrap();
    let mut answerer = ModelAnswerer::new(&model, None, &workers, 48);
    let queries = ["Hello!", "Écris-moi un poème. 🙂", "Is there a cat in the image?"]
        .map(|question| Query { image: None, question: question.to_owned() });
    let answers = answerer.answer(&queries).unwrap();
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|answer| !answer.contains("<end_of_utterance>")), "{answers:?}");
}
