//! Bytes of memory that requests take, of all together and of each key.
//!
//! Nobody waits for a share: a request that waits would hold what it came with, and no queue would count it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that all requests may take together, and those of one key.
pub(crate) struct Room {
    limit: u64,
    limit_per_key: u64,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: u64,
    /// Keys that have none are not in it.
    by_key: HashMap<Arc<str>, u64>,
}

/// What a request may not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom {
    /// The limit that was reached, in bytes.
    pub(crate) limit: u64,
    /// `all keys` or `this key`.
    pub(crate) whose: &'static str,
}

/// Bytes that are taken. Dropping it gives them back.
pub(crate) struct Share {
    room: Arc<Room>,
    key: Arc<str>,
    bytes: u64,
}

impl Room {
    pub(crate) fn new(limit: u64, limit_per_key: u64) -> Self {
        Self { limit, limit_per_key, taken: Mutex::default() }
    }

    /// Takes all of `shares`, or nothing: a request that has some never waits for the others.
    pub(crate) fn take(self: &Arc<Self>, key: &Arc<str>, shares: &[u64]) -> Result<Vec<Share>, NoRoom> {
        self.add(key, shares.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)))?;
        Ok(shares.iter().map(|bytes| Share { room: self.clone(), key: key.clone(), bytes: *bytes }).collect())
    }

    /// A share of nothing yet.
    pub(crate) fn share(self: &Arc<Self>, key: &Arc<str>) -> Share {
        Share { room: self.clone(), key: key.clone(), bytes: 0 }
    }

    fn add(&self, key: &Arc<str>, bytes: u64) -> Result<(), NoRoom> {
        let mut taken = self.taken();
        let all = taken.all.saturating_add(bytes);
        let of_key = taken.of(key).saturating_add(bytes);
        if of_key > self.limit_per_key {
            return Err(NoRoom { limit: self.limit_per_key, whose: "this key" });
        }
        if all > self.limit {
            return Err(NoRoom { limit: self.limit, whose: "all keys" });
        }
        taken.all = all;
        taken.by_key.insert(key.clone(), of_key);
        Ok(())
    }

    fn is_scarce(&self, key: &str) -> bool {
        let taken = self.taken();
        taken.all > self.limit / 2 || taken.of(key) > self.limit_per_key / 2
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn of(&self, key: &str) -> u64 {
        self.by_key.get(key).copied().unwrap_or_default()
    }
}

impl Share {
    /// Takes `bytes` more, or nothing.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), NoRoom> {
        self.room.add(&self.key, bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Whether more than half of the room is taken, by its key or by all.
    pub(crate) fn is_scarce(&self) -> bool {
        self.room.is_scarce(&self.key)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all -= self.bytes;
        let left = taken.of(&self.key) - self.bytes;
        if left == 0 {
            taken.by_key.remove(&self.key);
        } else {
            taken.by_key.insert(self.key.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leaves_room_for_others_and_what_goes_is_free_again() {
        let room = Arc::new(Room::new(100, 60));
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let mut shares = room.take(&ann, &[20, 40]).unwrap();
        assert_eq!(room.take(&ann, &[1]).err(), Some(NoRoom { limit: 60, whose: "this key" }));
        let of_bob = room.take(&bob, &[40]).unwrap();
        drop(shares.pop());
        assert_eq!(room.take(&bob, &[20, 21]).err(), Some(NoRoom { limit: 60, whose: "this key" }));
        let more = room.take(&ann, &[40]).unwrap();
        assert_eq!(room.take(&bob, &[1]).err(), Some(NoRoom { limit: 100, whose: "all keys" }));
        drop((shares, of_bob, more));
        let taken = room.taken();
        assert_eq!((taken.all, taken.by_key.len()), (0, 0));
    }

    #[test]
    fn a_share_grows_as_far_as_there_is_room() {
        let room = Arc::new(Room::new(100, 60));
        let mut share = room.share(&"ann".into());
        share.grow(30).unwrap();
        assert!(!share.is_scarce());
        share.grow(30).unwrap();
        assert!(share.is_scarce());
        assert_eq!(share.grow(1), Err(NoRoom { limit: 60, whose: "this key" }));
        assert_eq!(share.grow(u64::MAX), Err(NoRoom { limit: 60, whose: "this key" }));
        drop(share);
        let taken = room.taken();
        assert_eq!((taken.all, taken.by_key.len()), (0, 0));
    }
}
