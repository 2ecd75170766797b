//! The order between keys: round-robin over the keys that wait, first come first served within one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What waits, in the order it will be served.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    /// The keys that have something waiting, each once; the front is served next.
    turns: VecDeque<Arc<str>>,
    /// What waits of each key, oldest (smallest number) first; never empty.
    lanes: HashMap<Arc<str>, VecDeque<(u64, T)>>,
    waiting: usize,
    next_number: u64,
}

/// Names one thing in the queue.
#[derive(Clone, Debug)]
pub(super) struct Position {
    key: Arc<str>,
    number: u64,
}

impl<T> FairQueue<T> {
    pub(super) fn new() -> Self {
        Self { turns: VecDeque::new(), lanes: HashMap::new(), waiting: 0, next_number: 0 }
    }

    /// How much waits.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// How much of one key waits.
    pub(super) fn len_of(&self, key: &str) -> usize {
        self.lanes.get(key).map_or(0, VecDeque::len)
    }

    /// Puts something behind everything of its key; a key that had nothing waiting gets its turn after all that had.
    pub(super) fn push(&mut self, key: &str, item: T) -> Position {
        let key: Arc<str> = self.lanes.get_key_value(key).map_or_else(|| key.into(), |(key, _)| Arc::clone(key));
        let number = self.next_number;
        self.next_number += 1;
        let lane = self.lanes.entry(Arc::clone(&key)).or_default();
        if lane.is_empty() {
            self.turns.push_back(Arc::clone(&key));
        }
        lane.push_back((number, item));
        self.waiting += 1;
        Position { key, number }
    }

    /// Takes the next.
    pub(super) fn pop(&mut self) -> Option<T> {
        let key = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let (_, item) = lane.pop_front()?;
        self.waiting -= 1;
        if lane.is_empty() {
            self.lanes.remove(&key);
        } else {
            self.turns.push_back(key);
        }
        Some(item)
    }

    /// Takes something out of turn; `None` if it is not there any more.
    pub(super) fn remove(&mut self, position: &Position) -> Option<T> {
        let lane = self.lanes.get_mut(&position.key)?;
        let index = lane.binary_search_by_key(&position.number, |(number, _)| *number).ok()?;
        let (_, item) = lane.remove(index)?;
        self.waiting -= 1;
        if lane.is_empty() {
            self.lanes.remove(&position.key);
            self.turns.retain(|key| *key != position.key);
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn drain<T>(queue: &mut FairQueue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn keys_take_turns() {
        let mut queue = FairQueue::new();
        for item in ["a1", "a2", "a3", "b1", "c1", "c2"] {
            queue.push(&item[..1], item);
        }
        assert_eq!((queue.len(), queue.len_of("a"), queue.len_of("z")), (6, 3, 0));
        assert_eq!(drain(&mut queue), ["a1", "b1", "c1", "a2", "c2", "a3"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_key_that_comes_back_waits_for_its_turn() {
        let mut queue = FairQueue::new();
        queue.push("a", "a1");
        queue.push("b", "b1");
        queue.push("b", "b2");
        assert_eq!(queue.pop(), Some("a1"));
        queue.push("a", "a2");
        assert_eq!(drain(&mut queue), ["b1", "a2", "b2"]);
    }

    #[test]
    fn what_is_removed_leaves_no_gap() {
        let mut queue = FairQueue::new();
        let first = queue.push("a", "a1");
        let second = queue.push("a", "a2");
        queue.push("b", "b1");
        assert_eq!(queue.remove(&first), Some("a1"));
        assert_eq!(queue.remove(&first), None);
        assert_eq!(queue.remove(&second), Some("a2"));
        assert_eq!((queue.len(), queue.len_of("a")), (1, 0));
        queue.push("a", "a3");
        assert_eq!(drain(&mut queue), ["b1", "a3"]);
    }

    /// What a property test does to the queue.
    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Pop,
        Remove(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..4_u8).prop_map(Step::Push),
            2 => Just(Step::Pop),
            1 => any::<usize>().prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// Against a plain list: nothing is lost or served twice, a key's things keep their order, and no key is served
        /// twice while another one waits all the time in between.
        #[test]
        fn any_history_is_fair(steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = FairQueue::new();
            let mut model: Vec<(u8, usize, Position)> = Vec::new();
            // For each key, the keys served since it began to wait or was served itself.
            let mut passed: HashMap<u8, HashSet<u8>> = HashMap::new();
            for (id, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(key) => {
                        let position = queue.push(&key.to_string(), (key, id));
                        model.push((key, id, position));
                    }
                    Step::Pop => match queue.pop() {
                        None => prop_assert!(model.is_empty()),
                        Some((key, id)) => {
                            let oldest = model.iter().position(|(other, ..)| *other == key).unwrap();
                            prop_assert_eq!(model[oldest].1, id);
                            model.remove(oldest);
                            passed.remove(&key);
                            let waiting: HashSet<u8> = model.iter().map(|(other, ..)| *other).filter(|other| *other != key).collect();
                            for other in waiting {
                                prop_assert!(passed.entry(other).or_default().insert(key), "{key} overtook {other} twice");
                            }
                        }
                    },
                    Step::Remove(index) if !model.is_empty() => {
                        let (key, id, position) = model.remove(index % model.len());
                        prop_assert_eq!(queue.remove(&position), Some((key, id)));
                    }
                    Step::Remove(_) => {}
                }
                passed.retain(|key, _| model.iter().any(|(other, ..)| other == key));
                prop_assert_eq!(queue.len(), model.len());
            }
            let mut left: Vec<_> = drain(&mut queue).into_iter().map(|(_, id)| id).collect();
            left.sort_unstable();
            prop_assert_eq!(left, model.into_iter().map(|(_, id, _)| id).collect::<Vec<_>>());
            prop_assert!(queue.lanes.is_empty() && queue.turns.is_empty());
        }
    }
}
