//! Which generation answers whom.

use crate::engine::GenerationId;

/// Who answers: the live generation, or for a share of the callers the canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Answers whoever asks for none by name.
    pub live: GenerationId,
    /// What a rollback goes to.
    pub previous: Option<GenerationId>,
    /// What a share of the callers gets instead of `live`.
    pub canary: Option<Share>,
    /// What answers a share of the queries that `live` answers a second time, for the counters alone.
    pub shadow: Option<Share>,
    /// Whether `live` stays until a person says otherwise.
    pub pinned: bool,
}

/// A generation on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What is tried.
    pub generation: GenerationId,
    /// Of the callers (a canary: 1 to 99), or of the queries (a shadow: 1 to 100).
    pub percent: u8,
}

/// Who asks, as far as the canary is concerned: the same caller gets the same generation until the route changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sticky(blake3::Hash);

impl Sticky {
    /// The caller of this name: a user, a conversation, a key.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::of_parts([name])
    }

    /// The caller whose name these parts make together.
    #[must_use]
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part.as_bytes());
        }
        Self(hasher.finalize())
    }

    /// A number below 100 that depends on the caller and on the canary, so that it is not always the same callers who try
    /// what is new.
    fn percentile(self, canary: &GenerationId) -> u64 {
        let digest = blake3::keyed_hash(self.0.as_bytes(), canary.as_str().as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) % 100
    }
}

impl Default for Route {
    /// The base alone.
    fn default() -> Self {
        Self::of(GenerationId::base(), None)
    }
}

impl Route {
    /// All that is live, and what a rollback goes to.
    #[must_use]
    pub fn of(live: GenerationId, previous: Option<GenerationId>) -> Self {
        Self { live, previous, canary: None, shadow: None, pinned: false }
    }

    /// Who answers this caller.
    #[must_use]
    pub fn pick(&self, who: Sticky) -> &GenerationId {
        match &self.canary {
            Some(canary) if who.percentile(&canary.generation) < u64::from(canary.percent) => &canary.generation,
            _ => &self.live,
        }
    }

    /// Everything that answers, callers or counters: it must be loaded.
    pub fn answering(&self) -> impl Iterator<Item = &GenerationId> {
        let trials = self.canary.iter().chain(&self.shadow).map(|share| &share.generation);
        std::iter::once(&self.live).chain(trials)
    }

    /// Everything that the route names.
    pub fn generations(&self) -> impl Iterator<Item = &GenerationId> {
        self.answering().chain(&self.previous)
    }

    /// Whether the route names a generation.
    #[must_use]
    pub fn uses(&self, id: &GenerationId) -> bool {
        self.generations().any(|used| used == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_canary(percent: u8) -> Route {
        Route { canary: Some(Share { generation: "ad-2".into(), percent }), ..Route::default() }
    }

    #[test]
    fn a_canary_gets_its_share_and_keeps_its_callers() {
        let callers: Vec<Sticky> = (0..10_000).map(|n| Sticky::of(&format!("user-{n}"))).collect();
        let tries = |percent| {
            let route = with_canary(percent);
            callers.iter().map(|who| route.pick(*who).as_str() == "ad-2").collect::<Vec<_>>()
        };
        let share = |tried: &[bool]| tried.iter().filter(|tried| **tried).count() as f64 / 10_000.0;
        let (ten, thirty) = (tries(10), tries(30));
        // Five standard errors of a share of 0.1 and 0.3.
        assert!((share(&ten) - 0.1).abs() < 0.015, "{}", share(&ten));
        assert!((share(&thirty) - 0.3).abs() < 0.023, "{}", share(&thirty));
        assert!(ten.iter().zip(&thirty).all(|(ten, thirty)| !ten || *thirty), "a larger share keeps who was in");
        assert_eq!(ten, tries(10));
    }

    #[test]
    fn without_a_canary_all_get_what_is_live() {
        let route = Route { live: "ad-1".into(), ..Route::default() };
        assert!((0..100).all(|n| route.pick(Sticky::of(&n.to_string())).as_str() == "ad-1"));
    }

    #[test]
    fn a_route_names_what_must_stay() {
        let shadow = Some(Share { generation: "ad-4".into(), percent: 100 });
        let route = Route { live: "ad-1".into(), previous: Some(GenerationId::base()), shadow, ..with_canary(5) };
        assert!(["ad-1", "base", "ad-2", "ad-4"].iter().all(|id| route.uses(&GenerationId::from(*id))));
        assert!(!route.uses(&"ad-3".into()));
        assert!(!route.answering().any(|id| *id == GenerationId::base()), "a previous one can be unloaded");
    }
}
