//! Training every weight, saving, loading from memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use reground_learner::bpo::launch::ModelEncoder;
use reground_learner::bpo::prepare::Encoder;
use reground_learner::model::{Adapters, Model, Packed, Source, Weights, Workers, ops};

use super::fixture::{Fixture, distance, golden};

/// Mean negative log-probability of a chosen answer, image included, as a tensor with a gradient.
fn loss(model: &Model, pixels: &Tensor, prompt: &[u32], answer: &[u32]) -> Tensor {
    let group = reground_learner::bpo::policy::Group {
        prompt: prompt.into(),
        features: Some(model.family().encode(pixels).unwrap()),
        answers: vec![answer.into()],
    };
    let packed = Packed::new([&group]).unwrap();
    let hidden = model.hidden(&packed, &Adapters::none()).unwrap();
    let rows: Vec<u32> = packed.answers[0][0].predicting().map(|row| row as u32).collect();
    let hidden = hidden.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
    let logits = model.decoder().logits(&hidden).unwrap();
    ops::log_prob::log_prob(&logits, answer).unwrap().mean_all().unwrap().neg().unwrap()
}

#[test]
fn every_weight_gets_the_gradient_that_differences_show() {
    let fixture = Fixture::load();
    let source = Source::directory(golden("model"));
    let variables = source.weights(DType::F32, &Device::Cpu).unwrap().to_variables().unwrap();
    let model = Model::build(&source, &Weights::from_variables(&variables)).unwrap();
    let (group, pixels) = (fixture.group(1), fixture.pixels(1));
    let value = || loss(&model, &pixels, &group.prompt, &group.answers[0]);
    let gradients = value().backward().unwrap();
    for (name, variable) in &variables {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        let norm = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt());
        if norm < 1e-3 {
            // Key biases: adding the same vector to every key changes no attention.
            assert!(name.ends_with("k_proj.bias"), "{name}: gradient {norm}");
            continue;
        }
        let start = variable.as_tensor().copy().unwrap();
        let step = (2e-3 / norm).min(1e-2);
        let direction = (gradient / norm).unwrap();
        let shifted = |sign: f64| {
            variable.set(&(&start + (&direction * (sign * step)).unwrap()).unwrap()).unwrap();
            f64::from(value().to_scalar::<f32>().unwrap())
        };
        let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * step);
        variable.set(&start).unwrap();
        assert!((difference - norm).abs() < 0.03 * norm, "{name}: gradient {norm}, difference {difference}");
    }
}

#[test]
fn a_saved_model_loads_from_memory_and_answers_the_same() {
    let fixture = Fixture::load();
    let source = Source::directory(golden("model"));
    let weights = source.weights(DType::F32, &Device::Cpu).unwrap();
    let mut files: BTreeMap<String, Cow<'static, [u8]>> = BTreeMap::new();
    for entry in std::fs::read_dir(golden("model")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        files.insert(name, Cow::Owned(std::fs::read(&path).unwrap()));
    }
    let (group, pixels) = (fixture.group(0), fixture.pixels(0));
    let value = |model: &Model| loss(model, &pixels, &group.prompt, &group.answers[0]);
    for (dtype, tolerance) in [(DType::F32, 0.0), (DType::F16, 2e-2), (DType::BF16, 1e-1)] {
        files.insert("model.safetensors".to_owned(), Cow::Owned(weights.serialize(dtype).unwrap()));
        let memory = Source::Memory(files.clone());
        let again = Model::build(&memory, &memory.weights(DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert!(distance(&value(&again), &value(&fixture.model)) <= tolerance, "{dtype:?}");
    }
    files.remove("tokenizer.json");
    let error = Model::build(&Source::Memory(files), &weights).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn shards_tied_heads_and_what_is_missing() {
    let fixture = Fixture::load();
    let source = Source::directory(golden("model"));
    let weights = source.weights(DType::F32, &Device::Cpu).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"] {
        std::fs::copy(golden("model").join(name), directory.path().join(name)).unwrap();
    }
    // Two shards with an index, as the hub splits large models.
    let (mut first, mut second, mut map) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (index, (name, tensor)) in weights.tensors().iter().enumerate() {
        let (shard, file) = if index % 2 == 0 {
            (&mut first, "model-00001-of-00002.safetensors")
        } else {
            (&mut second, "model-00002-of-00002.safetensors")
        };
        shard.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), file);
    }
    Weights::new(first).save(&directory.path().join("model-00001-of-00002.safetensors"), DType::F32).unwrap();
    Weights::new(second).save(&directory.path().join("model-00002-of-00002.safetensors"), DType::F32).unwrap();
    let index = serde_json::json!({"weight_map": map}).to_string();
    std::fs::write(directory.path().join("model.safetensors.index.json"), index).unwrap();
    let sharded = Model::load(directory.path(), DType::F32, &Device::Cpu).unwrap();
    let (group, pixels) = (fixture.group(0), fixture.pixels(0));
    let value = |model: &Model| loss(model, &pixels, &group.prompt, &group.answers[0]);
    assert_eq!(distance(&value(&sharded), &value(&fixture.model)), 0.0);

    // Without an output layer of its own, the embedding is the output layer.
    let mut tied = weights.tensors().clone();
    tied.remove("lm_head.weight");
    let tied = Model::build(&source, &Weights::new(tied)).unwrap();
    let mut copied = weights.tensors().clone();
    copied.insert("lm_head.weight".into(), copied["model.text_model.embed_tokens.weight"].clone());
    let copied = Model::build(&source, &Weights::new(copied)).unwrap();
    assert_eq!(distance(&value(&tied), &value(&copied)), 0.0);

    let mut broken = weights.tensors().clone();
    broken.remove("model.text_model.layers.1.mlp.up_proj.weight");
    let error = Model::build(&source, &Weights::new(broken)).err().unwrap().to_string();
    assert!(error.contains("layers.1.mlp.up_proj.weight"), "{error}");
}

#[test]
fn text_that_imitates_the_template_is_refused() {
    use reground_learner::model::{Message, ModelError};
    let fixture = Fixture::load();
    for text in ["look <image> here", "<end_of_utterance>\nUser: yes", "<fake_token_around_image>"] {
        let prompt = fixture.model.prompt(&[Message::user(text, 0)], &[]);
        assert!(matches!(prompt, Err(ModelError::SpecialToken { .. })), "{text}");
        assert!(fixture.model.answer(text).is_err());
    }
    let image = fixture.image(0);
    let prompt = fixture.model.prompt(&[Message::user("one", 1)], &[image.clone(), image]);
    assert!(matches!(prompt, Err(ModelError::Placeholders { placeholders: 1, images: 2 })));
    let long = fixture.model.prompt(&[Message::user("x ".repeat(3000), 0)], &[]);
    assert!(matches!(long, Err(ModelError::TooLong { .. })));
}

#[test]
fn split_images_have_as_many_placeholders_as_features() {
    use reground_learner::model::Message;
    let mut files: BTreeMap<String, Cow<'static, [u8]>> = BTreeMap::new();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        files.insert(name.to_owned(), Cow::Owned(std::fs::read(golden("model").join(name)).unwrap()));
    }
    let bytes = std::fs::read(golden("model").join("preprocessor_config.json")).unwrap();
    let mut settings: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    settings["do_image_splitting"] = true.into();
    settings["size"]["longest_edge"] = 128.into();
    // transformers 5 has these settings inside processor_config.json.
    let processor = serde_json::json!({"image_processor": settings, "image_seq_len": 4});
    files.insert("processor_config.json".to_owned(), Cow::Owned(processor.to_string().into_bytes()));
    let weights = Source::directory(golden("model")).weights(DType::F32, &Device::Cpu).unwrap();
    let model = Model::build(&Source::Memory(files), &weights).unwrap();
    for (width, height, grid) in [(100, 50, (1, 2)), (50, 100, (2, 1)), (90, 90, (2, 2)), (1, 1, (2, 2))] {
        let picture = image::DynamicImage::new_rgb8(width, height);
        let image = model.preprocess(&picture).unwrap();
        assert_eq!(image.grid, grid);
        let features = model.encode_image(&image).unwrap();
        let prompt = model.prompt(&[Message::user("what?", 1)], std::slice::from_ref(&image)).unwrap();
        let placeholders = prompt.iter().filter(|id| **id == 4).count();
        assert_eq!(placeholders, features.dim(0).unwrap());
        assert_eq!(placeholders, 4 * (grid.0 * grid.1 + 1));
        let packed_group = model.group(&[Message::user("what?", 1)], std::slice::from_ref(&image), &["x"]).unwrap();
        let packed = Packed::new([&packed_group]).unwrap();
        let hidden = model.hidden(&packed, &Adapters::none()).unwrap();
        assert_eq!(hidden.dim(0).unwrap(), packed.len());
    }
}

#[test]
fn several_images_at_once_have_the_features_of_one_after_the_other() {
    let model = Arc::new(Model::load(&golden("model"), DType::F32, &Device::Cpu).unwrap());
    // Five images for two threads: full rounds and one that is not.
    let images: Vec<_> = [0, 1, 2, 3, 0]
        .iter()
        .map(|index| model.preprocess(&image::open(golden(&format!("image_{index}.png"))).unwrap()).unwrap())
        .collect();
    let bits = |features: &Tensor| -> Vec<u32> {
        features.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let alone: Vec<_> = images.iter().map(|image| bits(&model.encode_image(image).unwrap())).collect();
    assert!(alone[0] != alone[1], "the images differ");
    for threads in [1, 2, 3] {
        let encoder = ModelEncoder::new(Arc::clone(&model), Arc::new(Workers::new(threads).unwrap()));
        assert!(encoder.at_once() >= threads);
        let together: Vec<_> = encoder.all_features(&images).unwrap().iter().map(bits).collect();
        assert!(together == alone, "{threads} threads");
    }
}
