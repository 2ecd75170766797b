//! Which generation answers whom.

use serde::{Deserialize, Serialize};

use crate::engine::GenerationId;

/// Who answers: the live generation, or for a share of the callers the canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Answers whoever asks for none by name.
    pub live: GenerationId,
    /// What a rollback goes to. It stays loaded.
    pub previous: Option<GenerationId>,
    /// What a share of the callers gets instead of `live`.
    pub canary: Option<Canary>,
}

/// A generation on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// What is tried.
    pub generation: GenerationId,
    /// Share of the callers who get it, 1 to 99 percent.
    pub percent: u8,
}

/// Who asks, as far as the canary is concerned: the same caller gets the same generation until the route changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sticky(blake3::Hash);

impl Sticky {
    /// The caller of this name: a user, a conversation, a key.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(blake3::hash(name.as_bytes()))
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
        Self { live: GenerationId::base(), previous: None, canary: None }
    }
}

impl Route {
    /// Who answers this caller.
    #[must_use]
    pub fn pick(&self, who: Sticky) -> &GenerationId {
        match &self.canary {
            Some(canary) if who.percentile(&canary.generation) < u64::from(canary.percent) => &canary.generation,
            _ => &self.live,
        }
    }

    /// Everything that must stay loaded.
    pub fn generations(&self) -> impl Iterator<Item = &GenerationId> {
        let canary = self.canary.as_ref().map(|canary| &canary.generation);
        std::iter::once(&self.live).chain(&self.previous).chain(canary)
    }

    /// Whether the route needs a generation.
    #[must_use]
    pub fn uses(&self, id: &GenerationId) -> bool {
        self.generations().any(|used| used == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_canary(percent: u8) -> Route {
        Route { canary: Some(Canary { generation: "ad-2".into(), percent }), ..Route::default() }
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
        let route = Route { live: "ad-1".into(), previous: Some(GenerationId::base()), ..with_canary(5) };
        assert!(["ad-1", "base", "ad-2"].iter().all(|id| route.uses(&GenerationId::from(*id))));
        assert!(!route.uses(&"ad-3".into()));
    }
}
