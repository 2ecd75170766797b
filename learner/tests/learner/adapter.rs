//! Adapters: the golden one is read and written back, damaged and foreign ones are refused with a reason.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use reground_learner::adapter::{
    AdapterConfig, AdapterError, CONFIG_FILE, LoraWeights, Naming, PeftAdapter, TargetModules, WEIGHTS_FILE,
    checkpoint_shapes,
};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3").join(name)
}

/// A copy of the golden adapter that a test may damage.
fn copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        std::fs::copy(golden("adapter").join(file), directory.path().join(file)).unwrap();
    }
    directory
}

fn change_settings(directory: &Path, change: impl FnOnce(&mut Value)) {
    let path = directory.join(CONFIG_FILE);
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut settings);
    std::fs::write(path, settings.to_string()).unwrap();
}

fn change_tensors(directory: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = directory.join(WEIGHTS_FILE);
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn refusal(directory: &Path) -> AdapterError {
    PeftAdapter::read(directory).expect_err("a damaged adapter must be refused")
}

const Q0: &str = "model.text_model.layers.0.self_attn.q_proj";

#[test]
fn a_digest_tells_adapters_that_do_something_else_apart() {
    let golden = PeftAdapter::read(&golden("adapter")).unwrap();
    let digest = golden.digest().unwrap();
    assert_eq!(PeftAdapter::read(copy().path()).unwrap().digest().unwrap(), digest);
    let changed = |change: &dyn Fn(&mut PeftAdapter)| {
        let mut adapter = golden.clone();
        change(&mut adapter);
        adapter.digest().unwrap() != digest
    };
    assert!(changed(&|adapter| adapter.modules.get_mut(Q0).unwrap().scale = 2.5));
    assert!(changed(&|adapter| drop(adapter.modules.remove(Q0))));
    assert!(changed(&|adapter| {
        let weights = adapter.modules.remove(Q0).unwrap();
        adapter.modules.insert(Q0.replace("q_proj", "k_proj"), weights);
    }));
    let halves: [fn(&mut LoraWeights) -> &mut Tensor; 2] = [|weights| &mut weights.a, |weights| &mut weights.b];
    for half in halves {
        assert!(changed(&|adapter| {
            let matrix = half(adapter.modules.get_mut(Q0).unwrap());
            *matrix = (&*matrix + 1e-3).unwrap();
        }));
        // The same numbers in another shape.
        assert!(changed(&|adapter| {
            let matrix = half(adapter.modules.get_mut(Q0).unwrap());
            *matrix = matrix.reshape((matrix.dims()[0] / 2, matrix.dims()[1] * 2)).unwrap();
        }));
    }
}

#[test]
fn the_golden_adapter_is_read_and_fits_its_base() {
    let adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    assert_eq!(adapter.modules.len(), 3 * 7);
    let weights = &adapter.modules[Q0];
    assert_eq!((weights.r, weights.alpha, weights.scale), (4, 8.0, 2.0));
    assert_eq!(weights.a.dims(), [4, 64]);
    assert_eq!(weights.b.dims(), [64, 4]);
    assert_eq!(weights.delta().unwrap().dims(), [64, 64]);
    assert!(matches!(adapter.config.target_modules, TargetModules::Regex(_)));

    let base = checkpoint_shapes(&golden("model")).unwrap();
    assert_eq!(base["model.text_model.layers.0.mlp.down_proj"], (64, 128));
    adapter.check_against(&base).unwrap();
    assert_eq!(adapter.clone().resolved(&base).unwrap().config, adapter.config);
}

#[test]
fn written_and_read_again_it_is_the_same() {
    let parent = tempfile::tempdir().unwrap();
    let adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    let mut modules = adapter.modules.clone();
    // One module with a rank and α of its own, which only patterns can express.
    let special = modules.get_mut(Q0).unwrap();
    special.a = special.a.narrow(0, 0, 2).unwrap().contiguous().unwrap();
    special.b = special.b.narrow(1, 0, 2).unwrap().contiguous().unwrap();
    (special.r, special.alpha, special.scale) = (2, 6.0, 3.0);
    let adapter = PeftAdapter::new(adapter.config, modules);

    let directory = parent.path().join("ad-1");
    adapter.write(&directory, Naming::Checkpoint).unwrap();
    let again = PeftAdapter::read(&directory).unwrap();
    assert_eq!(again.config, adapter.config);
    for (module, weights) in &adapter.modules {
        let read = &again.modules[module];
        assert_eq!((read.r, read.alpha, read.scale), (weights.r, weights.alpha, weights.scale), "{module}");
        for (left, right) in [(&read.a, &weights.a), (&read.b, &weights.b)] {
            assert_eq!(left.to_vec2::<f32>().unwrap(), right.to_vec2::<f32>().unwrap(), "{module}");
        }
    }
    assert!(matches!(adapter.write(&directory, Naming::Checkpoint), Err(AdapterError::Exists { .. })));
    let left: Vec<_> = std::fs::read_dir(parent.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing temporary stays behind");
}

#[test]
fn half_precision_files_become_f32() {
    for dtype in [DType::F16, DType::BF16] {
        let directory = copy();
        change_tensors(directory.path(), |tensors| {
            for tensor in tensors.values_mut() {
                *tensor = tensor.to_dtype(dtype).unwrap();
            }
        });
        let adapter = PeftAdapter::read(directory.path()).unwrap();
        assert!(adapter.modules.values().all(|weights| weights.a.dtype() == DType::F32));
    }
}

#[test]
fn names_of_other_layouts_find_the_base() {
    let directory = copy();
    change_tensors(directory.path(), |tensors| {
        *tensors = tensors
            .drain()
            .map(|(name, tensor)| (name.replace("model.text_model.", "model.language_model."), tensor))
            .collect();
    });
    change_settings(directory.path(), |settings| {
        settings["target_modules"] =
            json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    });
    let adapter = PeftAdapter::read(directory.path()).unwrap();
    assert!(adapter.modules.contains_key("model.language_model.layers.0.self_attn.q_proj"));
    let resolved = adapter.resolved(&checkpoint_shapes(&golden("model")).unwrap()).unwrap();
    assert!(resolved.modules.contains_key(Q0));
    assert!(resolved.config.target_modules.named([Q0]).unwrap().contains(Q0));
}

#[test]
fn damaged_files_are_refused() {
    let cut = copy();
    let bytes = std::fs::read(cut.path().join(WEIGHTS_FILE)).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(cut.path().join(WEIGHTS_FILE), &bytes[..length]).unwrap();
        assert!(matches!(refusal(cut.path()), AdapterError::Length { .. }), "{length}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    std::fs::write(cut.path().join(WEIGHTS_FILE), longer).unwrap();
    assert!(matches!(refusal(cut.path()), AdapterError::Length { .. }));

    let mut oversize = bytes.clone();
    oversize[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    std::fs::write(cut.path().join(WEIGHTS_FILE), oversize).unwrap();
    assert!(matches!(refusal(cut.path()), AdapterError::HeaderTooLarge { .. }));

    let mut garbage = bytes;
    garbage[8..40].fill(b'x');
    std::fs::write(cut.path().join(WEIGHTS_FILE), garbage).unwrap();
    assert!(matches!(refusal(cut.path()), AdapterError::Json { .. }));

    std::fs::remove_file(cut.path().join(WEIGHTS_FILE)).unwrap();
    assert!(matches!(refusal(cut.path()), AdapterError::Io(_)));

    let settings = copy();
    std::fs::write(settings.path().join(CONFIG_FILE), "{\"r\": 4").unwrap();
    assert!(matches!(refusal(settings.path()), AdapterError::Json { .. }));
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let name = |half: &str| format!("base_model.model.{Q0}.{half}.weight");
    let zeros = |rows: usize, columns: usize| Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap();
    type Change<'a> = Box<dyn FnOnce(&mut HashMap<String, Tensor>) + 'a>;
    let cases: Vec<(&str, Change<'_>)> = vec![
        ("has no lora_B", Box::new(|t| drop(t.remove(&name("lora_B"))))),
        ("has no lora_A", Box::new(|t| drop(t.remove(&name("lora_A"))))),
        ("is not a LoRA matrix", Box::new(|t| drop(t.insert("base_model.model.lm_head.weight".into(), zeros(2, 2))))),
        ("is not a LoRA matrix", Box::new(|t| drop(t.insert("model.x.lora_A.weight".into(), zeros(2, 2))))),
        ("by the rank in the settings", Box::new(|t| drop(t.insert(name("lora_A"), zeros(5, 64))))),
        ("by the rank in the settings", Box::new(|t| drop(t.insert(name("lora_B"), zeros(64, 5))))),
        ("not finite", Box::new(|t| drop(t.insert(name("lora_A"), (zeros(4, 64) + f64::NAN).unwrap())))),
        ("not finite", Box::new(|t| drop(t.insert(name("lora_B"), (zeros(64, 4) + f64::INFINITY).unwrap())))),
        ("is stored as I64", Box::new(|t| drop(t.insert(name("lora_A"), zeros(4, 64).to_dtype(DType::I64).unwrap())))),
        (
            "target_modules does not name",
            Box::new(|t| {
                drop(t.insert("base_model.model.lm_head.lora_A.weight".into(), zeros(4, 64)));
                drop(t.insert("base_model.model.lm_head.lora_B.weight".into(), zeros(342, 4)));
            }),
        ),
        ("no LoRA tensors", Box::new(HashMap::clear)),
    ];
    for (message, change) in cases {
        let directory = copy();
        change_tensors(directory.path(), change);
        let error = refusal(directory.path()).to_string();
        assert!(error.contains(message), "{error:?} does not say {message:?}");
    }
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let base = checkpoint_shapes(&golden("model")).unwrap();
    let adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    let smaller: BTreeMap<_, _> =
        base.iter().filter(|(name, _)| !name.contains("layers.2.")).map(|(n, s)| (n.clone(), *s)).collect();
    assert!(matches!(adapter.check_against(&smaller), Err(AdapterError::NoSuchModule { .. })));
    let mut wider = base;
    wider.insert(Q0.to_owned(), (64, 128));
    assert!(matches!(adapter.check_against(&wider), Err(AdapterError::Shape { .. })));
}

#[test]
fn settings_are_written_the_way_other_readers_need_them() {
    let adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    let written = PeftAdapter::new(AdapterConfig::uniform(4, 8.0), adapter.modules);
    let settings = written.config.to_json();
    assert_eq!(settings["peft_type"], "LORA");
    assert_eq!(settings["lora_alpha"], json!(8), "an integer, as mistralrs parses it");
    let targets = settings["target_modules"].as_array().unwrap();
    assert_eq!(targets.len(), 21);
    assert!(targets.contains(&json!(Q0)), "whole paths, so that the vision tower's q_proj is not meant");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]

    /// Whatever bytes a file holds, reading ends in an adapter or an error that can be shown.
    #[test]
    fn damage_anywhere_is_never_a_panic(
        offset in 0_usize..6_000,
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..16),
        in_settings: bool,
    ) {
        let directory = copy();
        let path = directory.path().join(if in_settings { CONFIG_FILE } else { WEIGHTS_FILE });
        let mut content = std::fs::read(&path).unwrap();
        let offset = offset % content.len();
        let end = (offset + bytes.len()).min(content.len());
        content[offset..end].copy_from_slice(&bytes[..end - offset]);
        std::fs::write(&path, content).unwrap();
        match PeftAdapter::read(directory.path()) {
            Ok(adapter) => {
                for weights in adapter.modules.values() {
                    proptest::prop_assert!(weights.scale.is_finite() && weights.r > 0);
                    proptest::prop_assert_eq!(weights.a.dims()[0], weights.b.dims()[1]);
                }
            }
            Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
        }
    }
}

/// The file is as long as its header says, and has holes in the place of what nobody would want to read.
#[test]
fn a_header_that_cannot_be_right_is_refused_before_the_file_is_read() {
    let write = |a: &[u64], b: &[u64], data: u64| {
        let directory = copy();
        let bytes = |shape: &[u64]| 4 * shape.iter().product::<u64>();
        let end = bytes(a) + bytes(b);
        let name = |half: &str| format!("base_model.model.{Q0}.lora_{half}.weight");
        let header = json!({
            name("A"): {"dtype": "F32", "shape": a, "data_offsets": [0, bytes(a)]},
            name("B"): {"dtype": "F32", "shape": b, "data_offsets": [bytes(a), end + data]},
        });
        let header = header.to_string();
        let path = directory.path().join(WEIGHTS_FILE);
        let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        std::fs::write(&path, &start).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(start.len() as u64 + end + data).unwrap();
        change_settings(directory.path(), |settings| settings["target_modules"] = json!([Q0]));
        directory
    };
    assert!(PeftAdapter::read(write(&[4, 64], &[64, 4], 0).path()).is_ok());
    // No machine has the memory for any of these files.
    let cases: [(&[u64], &[u64], u64); 4] = [
        (&[4, 1 << 36], &[64, 4], 0),
        (&[4, 64], &[1 << 36, 4], 0),
        (&[1 << 20, 1 << 20], &[64, 4], 0),
        (&[4, 64], &[64, 4], 1 << 40),
    ];
    for (a, b, data) in cases {
        let error = refusal(write(a, b, data).path());
        let expected = matches!(error, AdapterError::Shape { .. } | AdapterError::Safetensors { .. });
        assert!(expected, "{a:?} {b:?} {data}: {error}");
    }
}
