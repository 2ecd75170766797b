//! What is measured before and after, through the API.

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use reground_learner::eval::measure::Better;
use reground_learner::eval::run::Asker;
use reground_learner::eval::{Answerer, Bootstrap, EvalError, Measure, Query, Report};
use reground_learner::pocket::held_out::{Size, habits};
use tokio::runtime::Handle;

use super::Demo;
use super::user::User;

/// Questions that are asked at once.
const BATCH: usize = 16;
/// The measures that are shown, and which way each gets better.
const SHOWN: [(&str, Better); 8] = [
    ("CHAIR_i", Better::Lower),
    ("CHAIR_s", Better::Lower),
    ("Cover", Better::Higher),
    ("colour error", Better::Lower),
    ("number error", Better::Lower),
    ("place error", Better::Lower),
    ("malformed", Better::Lower),
    ("accuracy", Better::Higher),
];

/// Measures by set.
pub(super) struct Measured(Vec<(String, Vec<Measure>)>);

/// Asks about the held-out pictures.
pub(super) async fn measure(user: &User, demo: &Demo, bar: &ProgressBar) -> Result<Measured> {
    let size = Size { images: demo.images, pope_per_image: 1, seed: demo.seed };
    // The evaluation blocks on each batch of answers; other tasks of this thread go elsewhere meanwhile.
    let sets = tokio::task::block_in_place(|| {
        let api = &mut Api { user, bar };
        habits(&mut Asker { answerer: api, batch: BATCH, progress: &mut |_| () }, size)
    })?;
    bar.finish_and_clear();
    Ok(Measured(sets))
}

/// The server as what answers an evaluation.
struct Api<'a> {
    user: &'a User,
    bar: &'a ProgressBar,
}

impl Answerer for Api<'_> {
    fn answer(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError> {
        let (user, bar) = (self.user, self.bar);
        let ask = |query: &Query| {
            let (image, question) = (query.image.clone(), query.question.clone());
            async move {
                let image = image.map(|image| image.load()).transpose()?;
                let asked = user.ask(image.as_deref(), &question, false).await;
                bar.inc(1);
                Ok(asked.map_err(|error| EvalError::Answer(error.into()))?.1)
            }
        };
        let asked: Vec<_> = queries.iter().map(ask).collect();
        Handle::current().block_on(stream::iter(asked).buffered(BATCH).try_collect())
    }
}

impl Measured {
    /// Each measure with its interval.
    pub(super) fn report(&self, subject: &str) -> Report {
        let mut report = Report::new(subject, Bootstrap::default());
        for (set, measures) in &self.0 {
            report.add(set, measures, Bootstrap::default());
        }
        report
    }

    /// Both, in percent, with the interval of the difference on the same pictures.
    pub(super) fn table(before: &Self, after: &Self) -> String {
        let bootstrap = Bootstrap::default();
        let mut rows = vec![["set", "measure, %", "before", "after", "difference", "95 % interval"].map(str::to_owned)];
        for ((set, first), (_, second)) in before.0.iter().zip(&after.0) {
            for (name, better) in SHOWN {
                let of = |measures: &[Measure]| measures.iter().find(|measure| measure.name() == name).cloned();
                let (Some(first), Some(second)) = (of(first), of(second)) else { continue };
                let Ok(change) = second.compare(&first, bootstrap) else { continue };
                let arrow = match better {
                    Better::Lower => "↓",
                    Better::Higher => "↑",
                };
                rows.push([
                    set.clone(),
                    format!("{name} {arrow}"),
                    percent(first.value()),
                    percent(second.value()),
                    percent(change.difference),
                    format!("{} … {}", percent(change.low), percent(change.high)),
                ]);
            }
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        let line = |row: &[String; 6]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{:.1}", value * 100.0))
}
