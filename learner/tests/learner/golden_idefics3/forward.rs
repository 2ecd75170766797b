//! Pixel values, prompts, logits, log-probabilities.

use candle_core::{Device, Tensor};
use reground_learner::model::{Adapters, Packed};

use super::fixture::{FORMATS, Fixture, distance, floats, ids};

#[test]
fn pixel_values_and_prompts() {
    let fixture = Fixture::load();
    for (index, pair) in fixture.pairs().iter().enumerate() {
        let image = fixture.image(index);
        let expected = fixture.tensors[&format!("pixel_values_{index}")].squeeze(0).unwrap();
        assert!(distance(&fixture.model.pixels(&image).unwrap(), &expected) < 1e-6);
        let messages = fixture.messages(index);
        let text = fixture.model.prompt_text(&messages, std::slice::from_ref(&image)).unwrap();
        let prompt = fixture.model.prompt(&messages, std::slice::from_ref(&image)).unwrap();
        assert_eq!(prompt, ids(&pair["prompt_ids"]), "{text}");
        let group = fixture.group(index);
        assert_eq!(*group.answers[0], *ids(&pair["chosen_ids"]));
        assert_eq!(*group.answers[1], *ids(&pair["rejected_ids"]));
    }
}

#[test]
fn logits_of_base_and_adapter() {
    for format in FORMATS {
        let fixture = Fixture::with(format);
        let lora = fixture.lora("adapter");
        for index in 0..fixture.pairs().len() {
            let mut group = fixture.group(index);
            group.answers.truncate(1);
            let packed = Packed::new([&group]).unwrap();
            for (adapter, name) in [(None, "logits_chosen"), (Some(&lora), "adapter_logits_chosen")] {
                let adapters = Adapters::all(adapter, packed.len());
                let hidden = fixture.model.hidden(&packed, &adapters).unwrap();
                let logits = fixture.model.decoder().logits(&hidden).unwrap();
                let difference = distance(&logits, &fixture.tensors[&format!("{name}_{index}")]);
                assert!(difference < 1e-4, "{name}_{index}, {format:?}: {difference}");
            }
        }
    }
}

#[test]
fn log_probabilities_with_shared_prompts_in_one_batch() {
    let fixture = Fixture::load();
    let lora = fixture.lora("adapter");
    let groups = fixture.groups();
    let packed = Packed::new(&groups).unwrap();
    for (adapter, name) in [(None, "base"), (Some(&lora), "adapter")] {
        let adapters = Adapters::all(adapter, packed.len());
        let hidden = fixture.model.hidden(&packed, &adapters).unwrap();
        for (index, pair) in fixture.pairs().iter().enumerate() {
            for (answer, kind) in ["chosen", "rejected"].iter().enumerate() {
                let rows: Vec<u32> = packed.answers[index][answer].predicting().map(|row| row as u32).collect();
                let hidden = hidden.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
                let log_probs = fixture.model.decoder().log_probs(&hidden, &groups[index].answers[answer]).unwrap();
                let expected = floats(&pair[format!("{name}_logp_{kind}")]);
                assert_eq!(log_probs.len(), expected.len());
                for (value, expected) in log_probs.iter().zip(expected) {
                    assert!((f64::from(*value) - expected).abs() < 1e-4, "{name} {kind} {index}: {value} {expected}");
                }
            }
        }
    }
}

#[test]
fn adapters_by_rows_share_a_batch_and_the_base_stays_bit_for_bit() {
    let fixture = Fixture::load();
    let lora = fixture.lora("adapter");
    let groups = fixture.groups();
    let packed = Packed::new(&groups).unwrap();
    let run = |adapters: Adapters<'_>| fixture.model.hidden(&packed, &adapters).unwrap();
    let base = run(Adapters::none());
    let all = run(Adapters::all(Some(&lora), packed.len()));
    // The second and third group with the adapter, the others without.
    let (start, end) = (packed.answers[0][1].rows.end, packed.answers[2][1].rows.end);
    let mixed = run(Adapters::by_rows(vec![(start..end, &lora)]));
    let rows = |x: &Tensor, start: usize, end: usize| x.narrow(0, start, end - start).unwrap();
    for (from, to) in [(0, start), (end, packed.len())] {
        let (ours, base) = (rows(&mixed, from, to), rows(&base, from, to));
        assert_eq!(ours.to_vec2::<f32>().unwrap(), base.to_vec2::<f32>().unwrap());
    }
    assert!(distance(&rows(&mixed, start, end), &rows(&all, start, end)) < 1e-5);
    assert!(distance(&rows(&all, start, end), &rows(&base, start, end)) > 1e-2);
    let again = run(Adapters::all(None, packed.len()));
    assert_eq!(again.to_vec2::<f32>().unwrap(), base.to_vec2::<f32>().unwrap());
}
