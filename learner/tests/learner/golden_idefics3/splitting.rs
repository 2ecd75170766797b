//! Split images, against transformers (`learner/scripts/split_golden`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use reground_learner::bpo::policy::Group;
use reground_learner::model::{Adapters, Message, Model, Packed, Source};

use super::fixture::{distance, golden};

/// The golden model with images of up to 256 pixels in tiles of 64, as the script sets it.
fn model() -> Model {
    let mut files: BTreeMap<String, Cow<'static, [u8]>> = BTreeMap::new();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"] {
        files.insert(name.to_owned(), std::fs::read(golden("model").join(name)).unwrap().into());
    }
    let bytes = std::fs::read(golden("model").join("preprocessor_config.json")).unwrap();
    let mut settings: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    settings["do_image_splitting"] = true.into();
    settings["size"]["longest_edge"] = 256.into();
    files.insert("preprocessor_config.json".to_owned(), settings.to_string().into_bytes().into());
    let weights = Source::directory(golden("model")).weights(DType::F32, &Device::Cpu).unwrap();
    Model::build(&Source::Memory(files), &weights).unwrap()
}

#[test]
fn split_images_have_transformers_prompts_and_logits() {
    let model = model();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/learner/golden_idefics3/split");
    let expected = candle_core::safetensors::load(directory.join("expected.safetensors"), &Device::Cpu).unwrap();
    for (index, grid) in [(3, 4), (1, 4)].into_iter().enumerate() {
        let picture = image::open(directory.join(format!("picture_{index}.png"))).unwrap();
        let image = model.preprocess(&picture).unwrap();
        assert_eq!(image.grid, grid);
        let prompt = model.prompt(&[Message::user("what is left?", 1)], std::slice::from_ref(&image)).unwrap();
        let ids: Vec<i64> = expected[&format!("input_ids_{index}")].to_vec1().unwrap();
        assert_eq!(prompt.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(), ids);

        let pixels = expected[&format!("pixel_values_{index}")].to_dtype(DType::F32).unwrap();
        let made = model.pixels(&image).unwrap();
        assert_eq!(made.dims(), pixels.dims());
        // The filters of Pillow and of the image crate differ by a little at edges; another order of tiles would be far off.
        let mean = (&made - &pixels).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(mean < 0.01, "picture {index}: pixels differ by {mean} on average");

        let group = Group {
            prompt: prompt.into(),
            features: Some(model.family().encode(&pixels).unwrap()),
            answers: Vec::new(),
        };
        let packed = Packed::new([&group]).unwrap();
        let hidden = model.hidden(&packed, &Adapters::none()).unwrap();
        let wanted = &expected[&format!("logits_{index}")];
        let rows = wanted.dim(0).unwrap();
        let last: Tensor = hidden.narrow(0, packed.len() - rows, rows).unwrap();
        let difference = distance(&model.decoder().logits(&last).unwrap(), wanted);
        assert!(difference < 1e-4, "picture {index}: logits differ by {difference}");
    }
}
