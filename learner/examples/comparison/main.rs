//! The paper's comparison on the pocket: what do bootstrapped negatives add to supervised tuning on the same answers?
//!
//! ```text
//! cargo run --release -p reground-learner --example comparison -- --out DIR
//!     [--model DIR] [--annotations 1600,100] [--rows sft,anchored] [--seeds 3] [--steps 100] [--images 1000] [--threads 0] [--unseen 0]
//! ```
//!
//! Every row of a block sees the same chosen answers in the same order for the same number of steps; with few annotations a run
//! takes half of `--steps`. The learning rate of a row is chosen on validation pictures with seed 0. `--annotations 1600:one`
//! stands for annotations that name one object of the picture, `1600:self` for no annotation but what the pocket says by itself and
//! the grounding filter lets pass, `1600:typical` for annotations of the world that the pocket was pretrained on; what is measured is
//! balanced always. Each finished cell is a JSON file in DIR: a command that was
//! interrupted goes on where it was when it is repeated, and commands with other annotations or rows may work in the same DIR
//! at once. The table is written after every column of cells, so that an interrupted study is a smaller one. Figures repeat
//! with the same number of threads (0: all cores), which decides dropout.
//!
//! `--unseen N` instead makes N annotations of the first block that no seed is trained on, and leaves their pairs in DIR:
//! `unseen-image_weakened.jsonl` and `unseen-injected.jsonl`, for `reground eval --images DIR/blobs`.

mod annotations;
mod block;
mod cell;
mod maker;
mod own;
mod plot;
mod row;
mod table;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use reground_learner::adapter::{AdapterConfig, TargetModules};
use reground_learner::bpo::data::blobs::BlobDir;
use reground_learner::bpo::pair::NegativeKind;
use reground_learner::model::{ALL_LINEAR, Lora, LoraPolicy, Model, PolicyOptions, Source};
use reground_learner::pocket::shipped;

use annotations::Annotations;
use block::{Block, Kind};
use cell::{Bench, Cell, Split};
use maker::Maker;
use row::Row;

const USAGE: &str = "usage: comparison --out DIR [--model DIR] [--annotations 1600,100] [--rows sft,anchored] [--seeds 3] [--steps 100] [--images 1000] [--threads 0] [--unseen 0]";

struct Options {
    out: PathBuf,
    source: Source,
    blocks: Vec<Block>,
    /// Only these; empty for all.
    rows: Vec<Row>,
    seeds: u64,
    steps: u64,
    images: usize,
    threads: usize,
    /// Annotations that are only written down; 0: a study.
    unseen: usize,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut out = None;
        let mut source = shipped::source();
        let mut blocks = [1600, 100].map(|annotations| Block { annotations, kind: Kind::Balanced }).to_vec();
        let mut rows = Vec::new();
        let (mut seeds, mut steps, mut images, mut threads, mut unseen) = (3, 100, 1000, 0, 0);
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value\n{USAGE}"))?;
            match name.as_str() {
                "--out" => out = Some(PathBuf::from(value)),
                "--model" => source = Source::directory(value),
                "--annotations" => blocks = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--rows" => rows = value.split(',').map(str::parse).collect::<Result<_>>()?,
                "--seeds" => seeds = value.parse()?,
                "--steps" => steps = value.parse()?,
                "--images" => images = value.parse()?,
                "--threads" => threads = value.parse()?,
                "--unseen" => unseen = value.parse()?,
                _ => bail!("unknown option {name}\n{USAGE}"),
            }
        }
        Ok(Self { out: out.context(USAGE)?, source, blocks, rows, seeds, steps, images, threads, unseen })
    }
}

fn main() -> Result<()> {
    let Options { out, source, blocks, rows, seeds, steps, images, threads, unseen } =
        Options::parse(std::env::args().skip(1))?;
    fs_err::create_dir_all(&out)?;
    let weights = source.weights(DType::F32, &Device::Cpu)?;
    let model = Arc::new(Model::build(&source, &weights)?);
    // Only its base is asked.
    let targets = TargetModules::List(ALL_LINEAR.map(str::to_owned).to_vec());
    let config = AdapterConfig { target_modules: targets, ..AdapterConfig::uniform(1, 1.0) };
    let lora = Lora::init(model.decoder(), config, 0)?;
    let policy = LoraPolicy::new(model, lora, PolicyOptions { threads, ..PolicyOptions::default() })?;
    let blobs = BlobDir::new(out.join("blobs"));
    if unseen > 0 {
        let block = Block { annotations: unseen, ..*blocks.first().context("no block")? };
        let maker = Maker { policy: &policy, blobs: &blobs, seed: seeds };
        let annotations = maker.make(block)?;
        for kind in [NegativeKind::ImageWeakened, NegativeKind::Injected] {
            let name = serde_json::to_value(kind)?;
            let name = format!("unseen-{}.jsonl", name.as_str().context("a word")?);
            fs_err::write(out.join(name), annotations.preference_data(kind))?;
        }
        return Ok(());
    }
    let bench = Bench { source: &source, model: policy.model(), workers: policy.workers(), out: &out, steps, images };

    let made: RefCell<BTreeMap<(Block, u64), Rc<Annotations>>> = RefCell::default();
    let annotated = |block: Block, seed: u64| -> Result<Rc<Annotations>> {
        if let Some(known) = made.borrow().get(&(block, seed)) {
            return Ok(Rc::clone(known));
        }
        let maker = Maker { policy: &policy, blobs: &blobs, seed };
        let new = Rc::new(maker.make(block)?);
        eprintln!("{} of seed {seed}; given up {}, rejected {:?}", block.title(), new.given_up, new.rejections);
        for (chosen, weakened, injected) in new.examples().take(3) {
            eprintln!("  chosen    {chosen}\n  weakened  {weakened}\n  injected  {injected}");
        }
        made.borrow_mut().insert((block, seed), Rc::clone(&new));
        Ok(new)
    };

    let mut cells = Vec::new();
    for seed in 0..seeds {
        for &block in &blocks {
            for &row in block.rows().iter().filter(|row| rows.is_empty() || rows.contains(row)) {
                let data = || annotated(block, seed);
                let rate = rate(&bench, row, block, &|| annotated(block, 0))?;
                cells.push(bench.cell(row, (&data, block, seed), rate, Split::Test)?);
            }
            table::write(&out, &cells, &blocks)?;
        }
    }
    println!("{}", table::markdown(&cells, &blocks));
    Ok(())
}

/// The rate with the best validation score on seed 0.
fn rate(bench: &Bench<'_>, row: Row, block: Block, data: &dyn Fn() -> Result<Rc<Annotations>>) -> Result<f64> {
    let tried = block
        .rates(row)
        .iter()
        .map(|&rate| bench.cell(row, (data, block, 0), rate, Split::Validation))
        .collect::<Result<Vec<Cell>>>()?;
    Ok(tried.iter().max_by(|a, b| a.score().total_cmp(&b.score())).map_or(0.0, |best| best.rate))
}
