//! What is answered.

use serde::Serialize;
use utoipa::ToSchema;

use crate::answer::{Comparison, Side};
use crate::api::App;
use crate::engine::GenerationId;
use crate::rollout::{Change, Manifest, Route, Share, Trial};
use crate::watch::{Figures, Report, Verdict};

/// An adapter that this server keeps.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct Adapter {
    /// `adapter`.
    pub object: &'static str,
    /// `live`, `canary`, `shadow`, `previous`, `loaded` or `stored`.
    pub state: &'static str,
    /// What is known of it.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// The adapters and who answers.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct AdapterList {
    /// `list`.
    pub object: &'static str,
    /// Oldest first.
    pub data: Vec<Adapter>,
    /// Who answers.
    pub route: RouteBody,
    /// What is watched since it got traffic, as of the last look.
    pub watched: Vec<WatchedBody>,
    /// How the shadow's answers differ from the live ones, if there is a shadow.
    pub shadow: Option<ComparisonBody>,
}

/// Who answers.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::api) struct RouteBody {
    /// Answers whoever asks for no generation by name.
    pub live: String,
    /// What a rollback goes to.
    pub previous: Option<String>,
    /// What a share of the callers gets.
    pub canary: Option<ShareBody>,
    /// What answers a share of the queries a second time, for the counters alone.
    pub shadow: Option<ShareBody>,
    /// Whether `live` stays until a person says otherwise.
    pub pinned: bool,
}

/// A generation on trial.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::api) struct ShareBody {
    /// What is tried.
    pub generation: String,
    /// Of the callers (canary) or of the queries (shadow), 1 to 100.
    pub percent: u8,
}

/// Something that is watched.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct WatchedBody {
    /// What got traffic.
    pub generation: String,
    /// What it is compared with.
    pub against: String,
    /// `live` or `canary`.
    pub trial: &'static str,
    /// Since when, seconds since 1970.
    pub began: u64,
    /// `watching`, `passed` (the window is over), or `held` (a signal breaches its threshold, and the generation is pinned).
    pub state: &'static str,
    /// What is compared.
    pub signals: Vec<SignalBody>,
}

/// What a signal says.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct SignalBody {
    /// `failures`, `first_token`, `per_token`, `ratings` or `grounding`.
    pub signal: &'static str,
    /// Of the generation that is watched: a share, seconds (geometric mean), a mean rating, nats per token.
    pub new: Option<f64>,
    /// Measurements behind it.
    pub new_count: u64,
    /// Of the other one.
    pub old: Option<f64>,
    /// Measurements behind it.
    pub old_count: u64,
    /// What `[watch]` allows.
    pub threshold: f64,
    /// `off`, `too_few`, `fine` or `breach`.
    pub verdict: &'static str,
}

/// How a shadow's answers differ from the live ones.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ComparisonBody {
    /// What answers a second time.
    pub generation: String,
    /// What it is compared with.
    pub live: String,
    /// Queries that both answered.
    pub compared: u64,
    /// Second answers that failed.
    pub failed: u64,
    /// Share of the answers that are the same, token by token.
    pub same: Option<f64>,
    /// Share of the live answer's tokens up to the first one that differs, in the mean.
    pub common: Option<f64>,
    /// How the live answers are.
    pub of_live: SideBody,
    /// How the shadow's are.
    pub of_shadow: SideBody,
}

/// How the answers of one generation are, in the mean.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct SideBody {
    /// Tokens of an answer.
    pub tokens: f64,
    /// Log-probability of a token, nats.
    pub logprob: f64,
    /// Seconds to the first token, the queue left out; geometric mean.
    pub first_token_s: Option<f64>,
    /// Seconds per token after it; geometric mean.
    pub per_token_s: Option<f64>,
}

/// Changes of the route.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ChangeList {
    /// `list`.
    pub object: &'static str,
    /// Newest first, 100 at most.
    pub data: Vec<ChangeBody>,
}

/// One change of the route.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::api) struct ChangeBody {
    /// Seconds since 1970.
    pub at: u64,
    /// The name of the key, or `reground`.
    pub by: String,
    /// `activate`, `canary`, `shadow`, `pin`, `unpin`, `rollback`, `watch` (taken back by itself), `fallback` (it did not load
    /// at the start) or `undo` (the disk failed when it was written down).
    pub what: String,
    /// With `watch`: the signal, its figures and the threshold.
    pub why: Option<String>,
    /// The route before.
    pub before: RouteBody,
    /// The route after.
    pub after: RouteBody,
}

impl From<Route> for RouteBody {
    fn from(route: Route) -> Self {
        let share = |share: Share| ShareBody { generation: share.generation.to_string(), percent: share.percent };
        Self {
            live: route.live.to_string(),
            previous: route.previous.map(|id| id.to_string()),
            canary: route.canary.map(share),
            shadow: route.shadow.map(share),
            pinned: route.pinned,
        }
    }
}

impl From<Change> for ChangeBody {
    fn from(change: Change) -> Self {
        let Change { at_ms, by, what, why, before, after } = change;
        Self { at: at_ms / 1000, by, what, why, before: before.into(), after: after.into() }
    }
}

impl From<Report> for WatchedBody {
    fn from(report: Report) -> Self {
        let Report { watched, state, figures } = report;
        Self {
            generation: watched.generation.to_string(),
            against: watched.against.to_string(),
            trial: match watched.trial {
                Trial::Live => "live",
                Trial::Canary => "canary",
            },
            began: watched.began_ms / 1000,
            state: state.as_str(),
            signals: figures.into_iter().map(SignalBody::from).collect(),
        }
    }
}

impl From<Figures> for SignalBody {
    fn from(figures: Figures) -> Self {
        let Figures { signal, new, new_count, old, old_count, threshold, verdict } = figures;
        let known = |value, count| (count > 0 && verdict != Verdict::Off).then_some(value);
        Self {
            signal: signal.as_str(),
            new: known(new, new_count),
            new_count,
            old: known(old, old_count),
            old_count,
            threshold,
            verdict: verdict.as_str(),
        }
    }
}

impl From<Comparison> for ComparisonBody {
    fn from(comparison: Comparison) -> Self {
        let Comparison { shadow, live, same, common, of_live, of_shadow, failed } = comparison;
        let compared = same.count();
        let known = |mean| (compared > 0).then_some(mean);
        Self {
            generation: shadow.to_string(),
            live: live.to_string(),
            compared,
            failed,
            same: known(same.mean()),
            common: known(common.mean()),
            of_live: of_live.into(),
            of_shadow: of_shadow.into(),
        }
    }
}

impl From<Side> for SideBody {
    fn from(side: Side) -> Self {
        let Side { tokens, logprob, first_token, per_token } = side;
        Self {
            tokens: tokens.mean(),
            logprob: logprob.mean(),
            first_token_s: (first_token.count() > 0).then(|| first_token.mean().exp()),
            per_token_s: (per_token.count() > 0).then(|| per_token.mean().exp()),
        }
    }
}

impl App {
    /// An adapter and what it is to the route.
    pub(super) fn adapter(&self, manifest: Manifest, route: &Route) -> Adapter {
        let id = GenerationId::from(manifest.id.as_str());
        let tries = |share: &Option<Share>| share.as_ref().is_some_and(|share| share.generation == id);
        let state = if route.live == id {
            "live"
        } else if tries(&route.canary) {
            "canary"
        } else if tries(&route.shadow) {
            "shadow"
        } else if route.previous.as_ref() == Some(&id) {
            "previous"
        } else if self.generations.get(&id).is_some() {
            "loaded"
        } else {
            "stored"
        };
        Adapter { object: "adapter", state, manifest }
    }
}
