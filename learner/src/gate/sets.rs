//! Evaluation sets: the pocket's own and the operator's.

use std::path::Path;

use super::held_out::Measured;
use super::rule::Rule;
use super::unchanged::{self, Answers};
use super::{EvaluationSet, GateConfig, SetKind};
use crate::eval::measure::Better;
use crate::eval::mention::{CaptionReader, Synonyms};
use crate::eval::pope::PopeItem;
use crate::eval::run::{self, Asker};
use crate::eval::set::{CaptionItem, image_in, read_jsonl};
use crate::eval::{Answerer, EvalError, Measure};
use crate::pocket::held_out::{Size, habits};

/// Questions that are asked at once.
const BATCH: usize = 32;

/// All sets, asked of one policy: the measures, and the answers that only a comparison makes sense of.
pub(super) fn ask(
    dir: &Path,
    answerer: &mut dyn Answerer,
    config: &GateConfig,
) -> Result<(Measured, Vec<Answers>), EvalError> {
    let mut asker = Asker { answerer, batch: BATCH, progress: &mut |_| () };
    let (mut measured, mut answers) = (Vec::new(), Vec::new());
    if config.pocket_images > 0 {
        let size = Size { images: config.pocket_images, seed: config.seed, ..Size::default() };
        for (set, measures) in habits(&mut asker, size)? {
            keep(&format!("pocket {set}"), measures, config, &mut measured);
        }
    }
    for set in &config.sets {
        match set.kind {
            SetKind::Unchanged => answers.push(unchanged::ask(dir, &mut asker, set)?),
            SetKind::Pope => keep(&set.name, pope(dir, &mut asker, set)?, config, &mut measured),
            SetKind::Captions => keep(&set.name, captions(dir, &mut asker, set)?, config, &mut measured),
        }
    }
    Ok((measured, answers))
}

fn captions(dir: &Path, asker: &mut Asker<'_>, set: &EvaluationSet) -> Result<Vec<Measure>, EvalError> {
    let items: Vec<CaptionItem> = read_jsonl(&dir.join(&set.file))?;
    let names = match &set.synonyms {
        Some(path) => Synonyms::from_file(&dir.join(path))?,
        None => Synonyms::new(items.iter().flat_map(|item| &item.objects).map(|truth| [truth.object.clone()])),
    };
    let images = dir.join(&set.images);
    run::captions(asker, &items, &names as &dyn CaptionReader, &|name| image_in(&images, name))
}

fn pope(dir: &Path, asker: &mut Asker<'_>, set: &EvaluationSet) -> Result<Vec<Measure>, EvalError> {
    let images = dir.join(&set.images);
    run::pope(asker, &read_jsonl::<PopeItem>(&dir.join(&set.file))?, &|name| image_in(&images, name))
}

/// The measures that have a rule. The others are for a report, not for a gate.
fn keep(set: &str, measures: Vec<Measure>, config: &GateConfig, measured: &mut Measured) {
    for measure in measures {
        let name = format!("{set}: {}", measure.name());
        let rule = match measure.name() {
            "CHAIR_i" => Rule::worse(name, Better::Lower, config.chair_margin),
            "Cover" => Rule::worse(name, Better::Higher, config.cover_margin),
            "malformed" => Rule::worse(name, Better::Lower, config.broken_margin).against_collapse(),
            "mean length" => Rule::factor(name, config.max_length_ratio).against_collapse(),
            "accuracy" => Rule::worse(name, Better::Higher, config.pope_margin),
            _ => continue,
        };
        measured.push((rule, measure));
    }
}
