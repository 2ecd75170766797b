//! The route and its history in the store: what was acknowledged is there after a crash.

use reground_learner::store::rows::{self, Audit, RolloutState};
use reground_learner::store::{Query, Store, StoreError};
use serde_json::Value;

use super::route::{Route, Share};
use super::watched::Watched;

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
    /// `activate`, `canary`, `shadow`, `pin`, `rollback`, `watch`, `fallback`, `undo`.
    pub what: String,
    /// Why, where nobody asked.
    pub why: Option<String>,
    /// The route before.
    pub before: Route,
    /// The route after.
    pub after: Route,
}

/// What is about to be changed.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) what: &'static str,
    pub(super) by: String,
    pub(super) why: Option<String>,
    pub(super) route: Route,
    pub(super) watched: Vec<Watched>,
}

/// The route that was live when the server stopped, and what was watched; `None` if nothing was ever changed.
pub(super) fn route(store: &Store) -> Result<Option<(Route, Vec<Watched>)>, StoreError> {
    let state = store.get::<RolloutState>(RolloutState::ID)?;
    Ok(state.map(|mut state| {
        let watched = std::mem::take(&mut state.watched).into_iter().map(Watched::from).collect();
        (Route::from(state), watched)
    }))
}

/// Writes a change and its audit, both at once; it survives a power cut once this returns.
pub(super) fn write(store: &Store, entry: &Entry) -> Result<(), StoreError> {
    let share = |share: &Share| rows::Share { adapter: share.generation.to_string(), percent: share.percent };
    let change = |state: &mut RolloutState| {
        let route = &entry.route;
        state.live = route.live.to_string();
        state.previous = route.previous.as_ref().map(ToString::to_string);
        state.canary = route.canary.as_ref().map(share);
        state.shadow = route.shadow.as_ref().map(share);
        state.pinned = route.pinned;
        state.watched = entry.watched.iter().map(Into::into).collect();
        state.why.clone_from(&entry.why);
        Ok(())
    };
    store.change_rollout(None, &entry.by, entry.what, change).map(drop)
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
        let state = |state: Value| serde_json::from_value::<RolloutState>(state).ok();
        let (before, mut after) = (state(audit.before)?, state(audit.after)?);
        let why = after.why.take();
        Some(Self { at_ms: audit.at_ms, by: audit.who, what, why, before: before.into(), after: after.into() })
    }
}

impl From<RolloutState> for Route {
    fn from(state: RolloutState) -> Self {
        let share = |share: rows::Share| Share { generation: share.adapter.as_str().into(), percent: share.percent };
        Self {
            live: state.live.as_str().into(),
            previous: state.previous.as_deref().map(Into::into),
            canary: state.canary.map(share),
            shadow: state.shadow.map(share),
            pinned: state.pinned,
        }
    }
}

#[cfg(test)]
mod tests {
    use reground_learner::store::Options;

    use super::*;
    use crate::rollout::observed::Behaviour;
    use crate::rollout::watched::Trial;

    #[test]
    fn what_was_written_is_read_again_newest_first() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path(), Options::default()).unwrap();
        assert_eq!(route(&store).unwrap(), None);
        assert_eq!(changes(&store, 5).unwrap(), []);
        let share = |id: &str, percent| Some(Share { generation: id.into(), percent });
        let first = Route {
            canary: share("ad-2", 7),
            shadow: share("ad-3", 100),
            pinned: true,
            ..Route::of("ad-1".into(), Some("base".into()))
        };
        let second = Route::of("ad-2".into(), Some("ad-1".into()));
        let before = Behaviour { failures: [0.0, 1.0].into_iter().collect(), ..Behaviour::default() };
        let watched =
            Watched { generation: "ad-2".into(), against: "ad-1".into(), trial: Trial::Canary, began_ms: 5, before };
        let entry = |what, by: &str, route: &Route, watched| {
            let why = (by == "reground").then(|| "too many failures".to_owned());
            Entry { what, by: by.to_owned(), why, route: route.clone(), watched }
        };
        write(&store, &entry("canary", "ann", &first, vec![watched.clone()])).unwrap();
        assert_eq!(route(&store).unwrap(), Some((first.clone(), vec![watched])));
        write(&store, &entry("watch", "reground", &second, Vec::new())).unwrap();
        assert_eq!(route(&store).unwrap(), Some((second.clone(), Vec::new())));
        let seen = changes(&store, 5).unwrap();
        let told: Vec<_> = seen.iter().map(|change| (change.what.as_str(), change.by.as_str())).collect();
        assert_eq!(told, [("watch", "reground"), ("canary", "ann")]);
        assert_eq!((&seen[0].before, &seen[0].after), (&first, &second));
        assert_eq!((&seen[1].before, &seen[1].after), (&Route::default(), &first));
        assert_eq!((seen[0].why.as_deref(), seen[1].why.as_deref()), (Some("too many failures"), None));
        assert_eq!(changes(&store, 1).unwrap(), [seen[0].clone()]);
    }
}
