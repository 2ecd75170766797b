//! `DIR/report.html`: what a run did, as one page that needs no network and no script.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::chart::{Chart, Series};
use super::files;
use super::history::Line;
use super::metrics::{Evaluation, StepMetrics};

/// What the page says above its plots.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Name of the run.
    pub title: String,
    /// One sentence: finished, paused, or failed and why.
    pub outcome: String,
    /// Facts for the table: name and value.
    pub facts: Vec<(String, String)>,
    /// `run.toml` as it was.
    pub config: String,
}

/// Writes the page of a run to `path`, whole or not at all.
///
/// # Errors
/// Anything the file system says.
pub fn write(path: &Path, summary: &Summary, lines: &[Line]) -> io::Result<()> {
    let page = render(summary, lines);
    files::write_atomic(path, |file| file.write_all(page.as_bytes()))
}

/// The page as text.
pub fn render(summary: &Summary, lines: &[Line]) -> String {
    let steps =
        lines.iter().filter_map(|line| if let Line::Step(step) = line { Some(step) } else { None }).collect::<Vec<_>>();
    let evaluations = lines
        .iter()
        .filter_map(|line| if let Line::Evaluated(one) = line { Some(one) } else { None })
        .collect::<Vec<_>>();
    let mut page = String::new();
    let title = escape(&summary.title);
    let _ = write!(page, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    let _ = write!(page, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    let _ = write!(page, "<title>{title}</title><style>{STYLE}</style></head><body>");
    let _ = write!(page, "<h1>{title}</h1><p class=\"outcome\">{}</p>", escape(&summary.outcome));
    let _ = write!(page, "<table>");
    for (name, value) in summary.facts.iter().chain(&last_numbers(&steps, &evaluations)) {
        let _ = write!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    let _ = write!(page, "</table><div class=\"charts\">");
    for chart in charts(&steps, &evaluations) {
        page.push_str(&chart.svg());
    }
    let _ = writeln!(
        page,
        "</div><details><summary>run.toml</summary><pre>{}</pre></details></body></html>",
        escape(&summary.config)
    );
    page
}

fn charts(steps: &[&StepMetrics], evaluations: &[&Evaluation]) -> Vec<Chart> {
    let train = |name: &str, value: fn(&StepMetrics) -> Option<f64>| Series {
        name: name.to_owned(),
        points: steps.iter().filter_map(|step| Some((step.step as f64, value(step)?))).collect(),
    };
    let held_out = |name: &str, value: fn(&Evaluation) -> Option<f64>| Series {
        name: name.to_owned(),
        points: evaluations.iter().filter_map(|one| Some((one.step as f64, value(one)?))).collect(),
    };
    let chart = |title: &str, series: Vec<Series>| Chart { title: title.to_owned(), series };
    let mut charts = vec![
        chart("loss (nats)", vec![train("train", |s| Some(s.loss)), held_out("held out", |e| Some(e.loss))]),
        chart("rewards/margins", vec![train("train", |s| s.rewards_margins), held_out("held out", |e| Some(e.margin))]),
        chart(
            "rewards/accuracies",
            vec![train("train", |s| s.rewards_accuracies), held_out("held out", |e| Some(e.accuracy))],
        ),
        chart("rewards", vec![train("chosen", |s| Some(s.rewards_chosen)), train("rejected", |s| s.rewards_rejected)]),
        chart(
            "image-conditional accuracy",
            vec![
                train("train", |s| s.image_conditional_accuracy),
                held_out("held out", |e| e.image_conditional_accuracy),
            ],
        ),
        chart(
            "fall of the chosen answers (nats per token)",
            vec![train("train", |s| Some(s.chosen_drop)), held_out("held out", |e| Some(e.chosen_drop))],
        ),
        chart("grad_norm", vec![train("before clipping", |s| Some(s.grad_norm))]),
        chart("learning_rate", vec![train("learning rate", |s| Some(s.learning_rate))]),
        chart("pairs/s", vec![train("pairs/s", |s| Some(s.pairs_per_second))]),
    ];
    for chart in &mut charts {
        chart.series.retain(|series| !series.points.is_empty());
    }
    charts.retain(|chart| !chart.series.is_empty());
    charts
}

fn last_numbers(steps: &[&StepMetrics], evaluations: &[&Evaluation]) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    if let Some(last) = steps.last() {
        fact("steps", last.step.to_string());
        fact("last loss", format!("{:.4}", last.loss));
        let speed = steps.iter().map(|step| step.pairs_per_second).sum::<f64>() / steps.len() as f64;
        fact("mean pairs/s", format!("{speed:.2}"));
        if let Some(bytes) = last.peak_memory_bytes {
            fact("peak memory", format!("{:.2} GB", bytes as f64 / 1e9));
        }
    }
    if let Some(last) = evaluations.last() {
        fact("held-out loss", format!("{:.4}", last.loss));
        fact("held-out accuracy", format!("{:.3}", last.accuracy));
        fact("held-out margin", format!("{:.3}", last.margin));
        if let Some(share) = last.image_conditional_accuracy {
            fact("held-out image-conditional accuracy", format!("{share:.3}"));
        }
    }
    facts
}

/// Text for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c1c1a;--paper:#fdfdfb;--faint:#8a8a84;--line:#dcdcd4;--s0:#0b6cb5;--s1:#c2501b}\
@media(prefers-color-scheme:dark){:root{--ink:#e9e8e2;--paper:#191a1b;--faint:#92928c;--line:#37383a;--s0:#6cb6f2;--s1:#f0965f}}\
body{margin:2rem auto;max-width:72rem;padding:0 1rem;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
h1{font-size:1.3rem;margin:0}.outcome{margin:.3rem 0 1rem}\
table{border-collapse:collapse;margin-bottom:1.5rem}th{text-align:left;font-weight:400;color:var(--faint);padding-right:1.5rem}\
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1.5rem}\
svg{width:100%;height:auto;font:11px system-ui,sans-serif}svg text{fill:var(--ink)}svg .faint{fill:var(--faint)}\
svg .grid{stroke:var(--line)}svg path{fill:none;stroke-width:1.6}\
.c0{stroke:var(--s0)}.c1{stroke:var(--s1)}svg .k0{fill:var(--s0)}svg .k1{fill:var(--s1)}\
pre{overflow:auto;background:color-mix(in srgb,var(--ink) 6%,transparent);padding:1rem}details{margin-top:2rem}";

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let step = |step: u64| StepMetrics {
            step,
            loss: 0.69 / step as f64,
            rewards_margins: Some(step as f64 * 0.1),
            learning_rate: 1e-6,
            grad_norm: 1.0,
            ..StepMetrics::default()
        };
        let mut lines = (1..=30).map(|at| Line::Step(step(at))).collect::<Vec<_>>();
        lines.push(Line::Evaluated(Evaluation { step: 30, loss: 0.1, accuracy: 0.9, ..Evaluation::default() }));
        lines
    }

    #[test]
    fn one_page_without_network_or_script_in_both_schemes() {
        let summary = Summary {
            title: "run <1> & \"2\"".to_owned(),
            outcome: "finished".to_owned(),
            facts: vec![("base".to_owned(), "<script>alert(1)</script>".to_owned())],
            config: "a = \"<b>\"".to_owned(),
        };
        let page = render(&summary, &lines());
        assert!(
            !page.contains("<script")
                && !page.contains("http://")
                && !page.contains("https://")
                && !page.contains("src=")
        );
        assert!(page.contains("run &lt;1&gt; &amp; &quot;2&quot;") && page.contains("prefers-color-scheme:dark"));
        for name in ["loss (nats)", "rewards/margins", "rewards/accuracies", "grad_norm", "learning_rate"] {
            assert!(page.contains(&format!(">{name}</text>")), "{name}");
        }
        assert!(!page.contains("image-conditional accuracy</text>"), "no plot without a number");
        assert!(!page.contains("NaN") && !page.contains("inf"));
        for tag in ["svg", "table", "details", "pre", "text", "div"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn a_run_that_failed_at_once_has_a_page_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        write(&path, &Summary { outcome: "failed".to_owned(), ..Summary::default() }, &[]).unwrap();
        assert!(fs_err::read_to_string(path).unwrap().contains("failed"));
    }
}
