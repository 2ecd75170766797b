//! `reground eval`: a model, with or without an adapter, on evaluation sets in files; no server is asked.
//!
//! What a set is, its first entry says:
//! - `objects`: captions (CHAIR and its company), and if wanted POPE's three kinds of questions made from the annotations;
//! - `label`: POPE's questions as they are;
//! - anything else: preference data in one of the shapes that training takes ([`crate::bpo::data`]).
//!
//! AMBER is several files that belong together, so its directory is named instead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::amber::{self, AmberItem, Relations};
use super::chair::Truth;
use super::error::EvalError;
use super::measure::{Bootstrap, Measure};
use super::mention::{CaptionReader, Synonyms};
use super::model_answerer::ModelAnswerer;
use super::pope::PopeItem;
use super::pope_sampling::{Absent, Frequencies, questions};
use super::report::Report;
use super::run::{self, Asker};
use super::set::{CaptionItem, image_in, read_jsonl};
use super::{preference, stored_pairs};
use crate::adapter::{AdapterConfig, PeftAdapter, TargetModules};
use crate::bootstrap::distort::Distortion;
use crate::bpo::config::RunConfig;
use crate::bpo::launch::POCKET;
use crate::model::{ALL_LINEAR, DeviceChoice, Dtype, Lora, LoraPolicy, Model, PolicyOptions, Quantisation, Source};
use crate::pocket::held_out::PocketReader;

/// How captions are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reader {
    /// By the names that the set annotates. Attributes are not read.
    #[default]
    Annotated,
    /// By a file of synonyms, as CHAIR's `synonyms.txt`. Attributes are not read.
    Synonyms(PathBuf),
    /// As captions of the pocket world, with colours, numbers and places.
    Pocket,
}

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Offline {
    /// Checkpoint directory, or [`POCKET`].
    pub model: PathBuf,
    /// In how many bits its linear layers are held, as `model.isq` serves it; `None` measures it in full precision. On the CPU.
    pub isq: Option<Quantisation>,
    /// PEFT directory of an adapter on it.
    pub adapter: Option<PathBuf>,
    /// The sets' files.
    pub sets: Vec<PathBuf>,
    /// AMBER's `data` directory: `query/query_all.json`, `annotations.json`, `relation.json`, `safe_words.txt`.
    pub amber: Option<PathBuf>,
    /// Directory of images; `None` is the one that a set's file is in.
    pub images: Option<PathBuf>,
    /// How captions are read.
    pub reader: Reader,
    /// Present objects that POPE asks for per captioned image, and as many absent ones; 0 asks none.
    pub pope_per_image: usize,
    /// What makes ṽ of a pair's image; its seed is mixed with the pair's id.
    pub distortion: Distortion,
    /// Items of each set, from its start, and of AMBER's queries of each type; 0 takes all.
    pub limit: usize,
    /// Longest answer, tokens.
    pub max_tokens: usize,
    /// Questions asked at once.
    pub batch: usize,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Threads; 0 for all cores.
    pub threads: usize,
    /// Confidence intervals.
    pub bootstrap: Bootstrap,
}

impl Default for Offline {
    fn default() -> Self {
        Self {
            model: PathBuf::from(POCKET),
            isq: None,
            adapter: None,
            sets: Vec::new(),
            amber: None,
            images: None,
            reader: Reader::default(),
            pope_per_image: 0,
            distortion: RunConfig::default().data.distortion,
            limit: 0,
            max_tokens: 256,
            batch: 16,
            device: DeviceChoice::Auto,
            threads: 0,
            bootstrap: Bootstrap::default(),
        }
    }
}

enum Set {
    Captions(Vec<CaptionItem>),
    Pope(Vec<PopeItem>),
    Pairs,
}

/// Measures everything. `pocket` gives the files of the model that ships with the project; `progress` is called with a
/// section's name and the answers or pairs done.
///
/// # Errors
/// A model, adapter, set or image that cannot be used; sets are read before the model is loaded.
pub fn evaluate(
    settings: &Offline,
    pocket: &dyn Fn() -> Option<Source>,
    progress: &mut dyn FnMut(&str, usize),
) -> Result<Report, EvalError> {
    if settings.sets.is_empty() && settings.amber.is_none() {
        return Err(EvalError::Empty("the list of sets".to_owned()));
    }
    let synonyms = match &settings.reader {
        Reader::Synonyms(path) => Some(Synonyms::from_file(path)?),
        _ => None,
    };
    let sets = settings
        .sets
        .iter()
        .map(|path| Ok((path, read(path, settings.limit)?)))
        .collect::<Result<Vec<_>, EvalError>>()?;
    let amber = settings.amber.as_deref().map(|data| read_amber(data, settings.limit)).transpose()?;
    let (policy, adapted) = load(settings, pocket)?;
    let model = Arc::clone(policy.model());
    let adapter = adapted.then(|| policy.lora());
    let mut answerer = ModelAnswerer::new(&model, adapter, policy.workers(), settings.max_tokens);
    let subject = match &settings.adapter {
        Some(adapter) => format!("{} + {}", settings.model.display(), adapter.display()),
        None => settings.model.display().to_string(),
    };
    let bootstrap = settings.bootstrap;
    let mut report = Report::new(subject, bootstrap);
    if let Some(Amber { data, queries, relations }) = &amber {
        let directory = settings.images.as_deref().unwrap_or(data);
        let mut done = |done| progress("AMBER", done);
        let mut asker = Asker { answerer: &mut answerer, batch: settings.batch, progress: &mut done };
        for (kind, measures) in run::amber(&mut asker, queries, relations, &|name| image_in(directory, name))? {
            report.add(format!("AMBER {kind}"), &measures, bootstrap);
        }
    }
    for (path, set) in &sets {
        let name = path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into());
        let directory = settings.images.as_deref().or(path.parent()).unwrap_or(Path::new(""));
        let image = |name: &str| image_in(directory, name);
        let mut ask = |section: String, work: &mut Work<'_>| -> Result<(), EvalError> {
            let mut done = |done| progress(&section, done);
            let mut asker = Asker { answerer: &mut answerer, batch: settings.batch, progress: &mut done };
            let measures = work(&mut asker)?;
            report.add(section, &measures, bootstrap);
            Ok(())
        };
        match set {
            Set::Captions(items) => {
                let annotated = names(items);
                let reader: &dyn CaptionReader = match &settings.reader {
                    Reader::Annotated => &annotated,
                    Reader::Synonyms(_) => synonyms.as_ref().unwrap_or(&annotated),
                    Reader::Pocket => &PocketReader,
                };
                ask(name.clone(), &mut |asker| run::captions(asker, items, reader, &image))?;
                for kind in Absent::ALL.into_iter().filter(|_| settings.pope_per_image > 0) {
                    let items = sampled(items, reader, kind, settings)?;
                    let section = format!("POPE {}, {name}", kind.name());
                    ask(section, &mut |asker| run::pope(asker, &items, &image))?;
                }
            }
            Set::Pope(items) => ask(name, &mut |asker| run::pope(asker, items, &image))?,
            Set::Pairs => {
                let data = stored_pairs::Data { path, images: directory, limit: settings.limit };
                let pairs = stored_pairs::score(&policy, data, settings.distortion, &mut |done| progress(&name, done))?;
                report.add(name, &preference::measures(&pairs, RunConfig::default().loss.resolve().beta), bootstrap);
            }
        }
    }
    Ok(report)
}

struct Amber<'a> {
    data: &'a Path,
    queries: Vec<AmberItem>,
    relations: Relations,
}

fn read_amber(data: &Path, limit: usize) -> Result<Amber<'_>, EvalError> {
    let relations = Relations::read(&data.join("relation.json"), &data.join("safe_words.txt"))?;
    let mut queries = amber::read(&data.join("query/query_all.json"), &data.join("annotations.json"))?;
    if limit > 0 {
        let mut taken: BTreeMap<String, usize> = BTreeMap::new();
        queries.retain(|query| {
            let taken = taken.entry(query.truth.kind().to_owned()).or_default();
            *taken += 1;
            *taken <= limit
        });
    }
    Ok(Amber { data, queries, relations })
}

/// One section of the report.
type Work<'a> = dyn FnMut(&mut Asker<'_>) -> Result<Vec<Measure>, EvalError> + 'a;

/// What the first entry of a file says about it.
fn read(path: &Path, limit: usize) -> Result<Set, EvalError> {
    let text = fs_err::read(path)?;
    // A JSON array is preference data; the other sets are JSONL.
    let first = match serde_json::Deserializer::from_slice(&text).into_iter::<Value>().next() {
        Some(Ok(first)) => first,
        Some(Err(error)) => {
            let (path, line) = (path.to_owned(), error.line().max(1));
            return Err(EvalError::Line { path, line, reason: error.to_string() });
        }
        None => return Err(EvalError::Empty(path.display().to_string())),
    };
    let has = |key: &str| first.get(key).is_some();
    Ok(if has("objects") {
        Set::Captions(first_of(path, limit)?)
    } else if has("label") {
        Set::Pope(first_of(path, limit)?)
    } else if first.is_array() || has("input") || has("completions") || has("conversations") {
        Set::Pairs
    } else {
        let reason =
            "its first entry has neither `objects` (captions) nor `label` (POPE) nor the keys of preference data";
        return Err(EvalError::File { path: path.to_owned(), reason: reason.to_owned() });
    })
}

fn first_of<T: for<'de> Deserialize<'de>>(path: &Path, limit: usize) -> Result<Vec<T>, EvalError> {
    let mut items = read_jsonl(path)?;
    if limit > 0 {
        items.truncate(limit);
    }
    Ok(items)
}

/// The annotated names as a reader.
fn names(items: &[CaptionItem]) -> Synonyms {
    Synonyms::new(items.iter().flat_map(|item| &item.objects).map(|truth| [truth.object.clone()]))
}

/// POPE's questions of one kind about captioned images, with the set itself as the world that frequencies come from.
fn sampled(
    items: &[CaptionItem],
    reader: &dyn CaptionReader,
    kind: Absent,
    settings: &Offline,
) -> Result<Vec<PopeItem>, EvalError> {
    let objects = |objects: &[Truth]| objects.iter().map(|truth| reader.canonical(&truth.object)).collect();
    let images: Vec<(String, BTreeSet<String>)> =
        items.iter().map(|item| (item.image.clone(), objects(&item.objects))).collect();
    let frequencies = Frequencies::count(images.iter().map(|(_, objects)| objects));
    let items = questions(&images, &frequencies, kind, settings.pope_per_image, settings.bootstrap.seed, |object| {
        let article = if object.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        format!("Is there {article} {object} in the image?")
    });
    if items.is_empty() {
        return Err(EvalError::Empty(format!("the set of POPE's {} questions", kind.name())));
    }
    Ok(items)
}

/// The model with its adapter, and whether it has one.
fn load(settings: &Offline, pocket: &dyn Fn() -> Option<Source>) -> Result<(LoraPolicy, bool), EvalError> {
    let what = settings.model.display().to_string();
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| EvalError::Load { what: what.clone(), source };
    let source = if settings.model == Path::new(POCKET) {
        pocket().ok_or_else(|| failed("this program has no pocket model inside; name a checkpoint directory".into()))?
    } else if settings.model.is_dir() {
        Source::directory(&settings.model)
    } else {
        return Err(failed("it is no directory".into()));
    };
    let device = settings.device.open().map_err(|error| failed(error.into()))?;
    let dtype = Dtype::Auto.on(&device).map_err(|error| failed(error.into()))?;
    let model = match settings.isq {
        None => source.weights(dtype, &device).and_then(|weights| Model::build(&source, &weights)),
        Some(quantisation) if device.is_cpu() => Model::quantised(&source, quantisation),
        Some(quantisation) => {
            let device = settings.device;
            return Err(failed(format!("isq = {quantisation} is for the CPU only, and the device is {device}").into()));
        }
    };
    let model = Arc::new(model.map_err(|error| failed(error.into()))?);
    let lora = match &settings.adapter {
        Some(path) => {
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| EvalError::Load {
                what: path.display().to_string(),
                source,
            };
            let read = PeftAdapter::read(path).map_err(|error| failed(error.into()))?;
            Lora::load(model.decoder(), &read).map_err(|error| failed(error.into()))?
        }
        // A policy has an adapter; a new one changes nothing.
        None => {
            let targets = TargetModules::List(ALL_LINEAR.map(str::to_owned).to_vec());
            let config = AdapterConfig { target_modules: targets, ..AdapterConfig::uniform(1, 1.0) };
            Lora::init(model.decoder(), config, 0).map_err(|error| failed(error.into()))?
        }
    };
    let options = PolicyOptions::on(&device, settings.threads);
    let policy = LoraPolicy::new(model, lora, options).map_err(|error| failed(error.into()))?;
    Ok((policy, settings.adapter.is_some()))
}
