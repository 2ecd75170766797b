//! The route and its history in the store: what was acknowledged is there after a crash.

use reground_learner::store::rows::{self, Audit, RolloutState};
use reground_learner::store::{Query, Store, StoreError};
use serde_json::Value;

use super::route::{Canary, Route};

/// What the audit calls a change of the route, before the name of the change.
const ACTION: &str = "rollout.";
/// Rows of the audit that are read at once while changes of the route are looked for.
const PAGE: usize = 256;

/// One change of the route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The name of the key that asked for it, or `reground`.
    pub by: String,
    /// `activate`, `canary`, `rollback`, `fallback`.
    pub what: String,
    /// The route before.
    pub before: Route,
    /// The route after.
    pub after: Route,
}

/// The route that was live when the server stopped; `None` if none was ever changed.
pub(super) fn route(store: &Store) -> Result<Option<Route>, StoreError> {
    Ok(store.get::<RolloutState>(RolloutState::ID)?.map(Route::from))
}

/// Writes a change and its audit, both at once; it survives a power cut once this returns.
pub(super) fn write(store: &Store, what: &str, by: &str, after: &Route) -> Result<(), StoreError> {
    let change = |state: &mut RolloutState| {
        state.live = after.live.to_string();
        state.previous = after.previous.as_ref().map(ToString::to_string);
        state.canary = after
            .canary
            .as_ref()
            .map(|canary| rows::Canary { adapter: canary.generation.to_string(), percent: canary.percent });
        Ok(())
    };
    store.change_rollout(None, by, what, change).map(drop)
}

/// The last changes, newest first.
pub(super) fn changes(store: &Store, most: usize) -> Result<Vec<Change>, StoreError> {
    let mut query = Query { limit: PAGE, newest_first: true, ..Query::default() };
    let mut changes = Vec::new();
    loop {
        let page = store.list_readable::<Audit>(&query)?;
        query.after = page.rows.last().map(|row| row.id.clone());
        changes.extend(page.rows.into_iter().filter_map(Change::of));
        if changes.len() >= most || !page.more {
            changes.truncate(most);
            return Ok(changes);
        }
    }
}

impl Change {
    /// `None` for an audit of something else.
    fn of(audit: Audit) -> Option<Self> {
        let what = audit.action.strip_prefix(ACTION)?.to_owned();
        let route = |state: Value| serde_json::from_value::<RolloutState>(state).map(Route::from).ok();
        Some(Self { at_ms: audit.at_ms, by: audit.who, what, before: route(audit.before)?, after: route(audit.after)? })
    }
}

impl From<RolloutState> for Route {
    fn from(state: RolloutState) -> Self {
        let canary =
            |canary: rows::Canary| Canary { generation: canary.adapter.as_str().into(), percent: canary.percent };
        Self {
            live: state.live.as_str().into(),
            previous: state.previous.as_deref().map(Into::into),
            canary: state.canary.map(canary),
        }
    }
}

#[cfg(test)]
mod tests {
    use reground_learner::store::Options;

    use super::*;

    #[test]
    fn what_was_written_is_read_again_newest_first() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path(), Options::default()).unwrap();
        assert_eq!(route(&store).unwrap(), None);
        assert_eq!(changes(&store, 5).unwrap(), []);
        let canary = Some(Canary { generation: "ad-2".into(), percent: 7 });
        let first = Route { live: "ad-1".into(), previous: Some("base".into()), canary };
        let second = Route { live: "ad-2".into(), previous: Some("ad-1".into()), canary: None };
        write(&store, "canary", "ann", &first).unwrap();
        write(&store, "activate", "bob", &second).unwrap();
        assert_eq!(route(&store).unwrap(), Some(second.clone()));
        let seen = changes(&store, 5).unwrap();
        let told: Vec<_> = seen.iter().map(|change| (change.what.as_str(), change.by.as_str())).collect();
        assert_eq!(told, [("activate", "bob"), ("canary", "ann")]);
        assert_eq!((&seen[0].before, &seen[0].after), (&first, &second));
        assert_eq!((&seen[1].before, &seen[1].after), (&Route::default(), &first));
        assert_eq!(changes(&store, 1).unwrap(), [seen[0].clone()]);
    }
}
