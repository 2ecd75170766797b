//! Generation: greedy answers of transformers, teacher forcing, batches.

use candle_core::Tensor;
use reground_learner::bpo::policy::Group;
use reground_learner::model::{
    Adapters, Completion, Finish, KeyValues, Lora, Model, Packed, Request, Sampling, Workers,
};

use super::fixture::{FORMATS, Fixture, ids};

fn request<'a>(group: &Group, adapter: Option<&'a Lora>, sampling: Sampling, max_tokens: usize) -> Request<'a> {
    Request { prompt: group.prompt.clone(), features: group.features.clone(), adapter, sampling, max_tokens }
}

#[test]
fn greedy_answers_of_base_and_adapter_in_one_batch() {
    for format in FORMATS {
        let fixture = Fixture::with(format);
        let lora = fixture.lora("adapter");
        let groups = fixture.groups();
        let mut requests = Vec::new();
        let mut expected = Vec::new();
        for (group, pair) in groups.iter().zip(fixture.pairs()) {
            // Base and adapter alternate, so that every adapter span is a single sequence.
            for (adapter, key) in [(None, "base_greedy_ids"), (Some(&lora), "adapter_greedy_ids")] {
                expected.push(ids(&pair[key]));
                requests.push(request(group, adapter, Sampling::greedy(), 16));
            }
        }
        for threads in [1, 2] {
            let completions = fixture.model.generate(&requests, &Workers::new(threads).unwrap()).unwrap();
            for (completion, expected) in completions.iter().zip(&expected) {
                assert_eq!(completion.ids, *expected, "{format:?}");
            }
        }
    }
}

/// Log-probabilities of an answer scored in one pass.
fn teacher_forced(model: &Model, group: &Group, adapter: Option<&Lora>, answer: &[u32]) -> Vec<f32> {
    let group = Group { answers: vec![answer.into()], ..group.clone() };
    let packed = Packed::new([&group]).unwrap();
    let hidden = model.hidden(&packed, &Adapters::all(adapter, packed.len())).unwrap();
    let rows: Vec<u32> = packed.answers[0][0].predicting().map(|row| row as u32).collect();
    let index = candle_core::Tensor::new(rows, &candle_core::Device::Cpu).unwrap();
    model.decoder().log_probs(&hidden.index_select(&index, 0).unwrap(), answer).unwrap()
}

#[test]
fn samples_equal_teacher_forcing_and_do_not_depend_on_the_batch() {
    let fixture = Fixture::load();
    let lora = fixture.lora("adapter");
    let mut groups = fixture.groups();
    // Prompts of very different lengths, one without an image.
    groups[1].prompt = fixture.model.prompt(&[reground_learner::model::Message::user("no", 0)], &[]).unwrap().into();
    groups[1].features = None;
    let workers = Workers::new(1).unwrap();
    let requests: Vec<Request<'_>> = (0..24)
        .map(|index| {
            let sampling = Sampling { temperature: 1.2, top_p: 0.95, seed: index as u64 };
            request(&groups[index % 4], (index % 3 == 0).then_some(&lora), sampling, 5 + index)
        })
        .collect();
    let together = fixture.model.generate(&requests, &workers).unwrap();
    assert!(together.iter().any(|completion| completion.ids != together[0].ids));
    for (index, (request, completion)) in requests.iter().zip(&together).enumerate() {
        let Completion { ids, log_probs, finish } = completion;
        let ended = fixture.model.tokenizer().stops().contains(ids.last().unwrap());
        assert_eq!(*finish, if ended { Finish::Stop } else { Finish::Length });
        assert!(ended || ids.len() == request.max_tokens);
        let forced = teacher_forced(&fixture.model, &groups[index % 4], request.adapter, ids);
        for (generated, forced) in log_probs.iter().zip(&forced) {
            assert!((generated - forced).abs() < 1e-4, "{index}: {generated} generated, {forced} forced");
        }
        let alone = fixture.model.generate(std::slice::from_ref(request), &workers).unwrap();
        assert_eq!(alone[0].ids, *ids, "request {index} alone and in a batch");
    }
}

#[test]
fn limits() {
    let fixture = Fixture::load();
    let group = fixture.group(0);
    let workers = Workers::new(1).unwrap();
    let run = |request: Request<'_>| fixture.model.generate(&[request], &workers);
    assert_eq!(run(request(&group, None, Sampling::greedy(), 0)).unwrap()[0].ids, Vec::<u32>::new());
    let positions = fixture.model.decoder().config().max_positions;
    let long = Group { prompt: vec![50; positions].into(), features: None, answers: Vec::new() };
    assert!(run(request(&long, None, Sampling::greedy(), 4)).is_err());
    let nearly = Group { prompt: vec![50; positions - 2].into(), features: None, answers: Vec::new() };
    let completion = run(request(&nearly, None, Sampling::greedy(), 9)).unwrap().remove(0);
    assert!(completion.ids.len() <= 2);
    let empty = Group { prompt: Vec::new().into(), features: None, answers: Vec::new() };
    assert!(run(request(&empty, None, Sampling::greedy(), 4)).is_err());
    let foreign = Group { prompt: vec![9_999].into(), features: None, answers: Vec::new() };
    assert!(run(request(&foreign, None, Sampling::greedy(), 4)).is_err());
    let no_features = Group { features: None, ..group.clone() };
    assert!(run(request(&no_features, None, Sampling::greedy(), 4)).is_err());
    let bad = Sampling { top_p: 2.0, ..Sampling::greedy() };
    assert!(run(request(&group, None, bad, 4)).is_err());
    assert_eq!(fixture.model.generate(&[], &workers).unwrap(), []);
}

#[test]
fn a_prompt_read_in_pieces_beside_others_is_the_prompt_read_at_once() {
    let fixture = Fixture::load();
    let lora = fixture.lora("adapter");
    let (model, decoder) = (&fixture.model, fixture.model.decoder());
    let groups: Vec<Group> = fixture.groups().into_iter().map(|group| Group { answers: Vec::new(), ..group }).collect();
    let cache = |group: &Group| {
        KeyValues::new(decoder.config(), group.prompt.len() + 1, decoder.dtype(), decoder.device()).unwrap()
    };
    let largest = |a: &Tensor, b: &Tensor| {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
    };

    let (mut at_once, mut states) = (Vec::new(), Vec::new());
    for (index, group) in groups.iter().enumerate() {
        let packed = Packed::new([group]).unwrap();
        let adapters = Adapters::all((index % 2 == 1).then_some(&lora), packed.len());
        let mut cache = cache(group);
        let embeddings = model.embed(&packed).unwrap();
        decoder.prefill(&embeddings, &packed, &adapters, &mut [&mut cache]).unwrap();
        states.push(decoder.hidden(&embeddings, &packed, &adapters).unwrap());
        at_once
            .push(decoder.step(&[7], &Adapters::all((index % 2 == 1).then_some(&lora), 1), &mut [&mut cache]).unwrap());
    }

    // Pieces of 3, 4, 5, 6 rows of the four prompts side by side, until each is through.
    let mut caches: Vec<KeyValues> = groups.iter().map(cache).collect();
    let embeddings: Vec<Tensor> =
        groups.iter().map(|group| model.embed(&Packed::new([group]).unwrap()).unwrap()).collect();
    loop {
        let (mut rows, mut pieces, mut spans, mut open) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut start, mut wanted) = (0, Vec::new());
        for (index, cache) in caches.iter_mut().enumerate() {
            let piece = (groups[index].prompt.len() - cache.len()).min(index + 3);
            if piece == 0 {
                continue;
            }
            if index % 2 == 1 {
                spans.push((start..start + piece, &lora));
            }
            pieces.push(embeddings[index].narrow(0, cache.len(), piece).unwrap());
            wanted.push(states[index].narrow(0, cache.len(), piece).unwrap());
            rows.push(piece);
            start += piece;
            open.push(cache);
        }
        if rows.is_empty() {
            break;
        }
        let adapters = Adapters::by_rows(spans);
        let read = decoder.extend(&Tensor::cat(&pieces, 0).unwrap(), &rows, &adapters, &mut open).unwrap();
        let difference = largest(&read, &Tensor::cat(&wanted, 0).unwrap());
        assert!(difference < 1e-4, "pieces of {rows:?} rows: off by {difference}");
    }
    let spans = (0..4).filter(|index| index % 2 == 1).map(|index| (index..index + 1, &lora)).collect();
    let mut all: Vec<&mut KeyValues> = caches.iter_mut().collect();
    let together = decoder.step(&[7; 4], &Adapters::by_rows(spans), &mut all).unwrap();
    for (index, alone) in at_once.iter().enumerate() {
        let difference = largest(alone, &together.narrow(0, index, 1).unwrap());
        assert!(difference < 1e-4, "prompt {index}: off by {difference}");
    }
    // A full cache takes no more.
    assert!(decoder.extend(&embeddings[0].narrow(0, 0, 1).unwrap(), &[1], &Adapters::none(), &mut all[..1]).is_err());
}
