//! Scenes: what stands where, sampled typical or balanced.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

use super::habit::Strength;
use super::kind::{Colour, Kind, Place};
use crate::pocket::random::Stream;

/// The most objects in a typical or balanced scene.
pub const MAX_OBJECTS: u8 = 4;

/// How often an object that belongs to nothing else joins a typical scene.
const STRANGER: f64 = 0.25;

/// Which frequencies scenes are drawn with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistics {
    /// What is usual is frequent, as in text from the web.
    Typical(Strength),
    /// Kinds, colours, places and numbers independent and equally likely.
    Balanced,
    /// Up to nine single objects of different kinds, otherwise balanced: most to see per picture, for training the eye.
    Crowded,
}

impl Statistics {
    /// The typical world at its default strength.
    pub fn typical() -> Self {
        Self::Typical(Strength::default())
    }

    /// `typical`, `balanced` or `crowded`, the name used in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Typical(_) => "typical",
            Self::Balanced => "balanced",
            Self::Crowded => "crowded",
        }
    }
}

/// One drawn object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// What it is.
    pub kind: Kind,
    /// The colour of its main surface.
    pub colour: Colour,
    /// The cell it stands in; no two objects share one.
    pub place: Place,
}

/// All objects of one kind in a scene; they share a colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they are.
    pub kind: Kind,
    /// Their colour.
    pub colour: Colour,
    /// The cells they stand in, one each, at least one.
    pub places: Vec<Place>,
}

impl Group {
    /// How many there are.
    pub fn count(&self) -> u8 {
        self.places.len() as u8
    }

    /// The place that text speaks of: only a single object has one.
    pub fn place(&self) -> Option<Place> {
        match self.places.as_slice() {
            [place] => Some(*place),
            _ => None,
        }
    }
}

/// One to four objects (nine if crowded) on a three-by-three grid, at most one group per kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    /// The groups, in the order in which captions name them.
    pub groups: Vec<Group>,
}

impl Scene {
    /// Samples a scene.
    pub fn sample(statistics: Statistics, random: &mut Stream) -> Self {
        match statistics {
            Statistics::Typical(strength) => Self::typical(strength, random),
            Statistics::Balanced => Self::balanced(random),
            Statistics::Crowded => Self::crowded(random),
        }
    }

    fn typical(strength: Strength, random: &mut Stream) -> Self {
        let main = any(Kind::ALL, random);
        let mut kinds = vec![main];
        if random.random_bool(strength.companion) {
            kinds.push(main.habit().companion);
        }
        if random.random_bool(STRANGER) {
            let others: Vec<Kind> =
                Kind::ALL.iter().copied().filter(|&kind| kind != main && kind != main.habit().companion).collect();
            kinds.push(any(&others, random));
        }
        let mut room = MAX_OBJECTS;
        let mut numbered = Vec::new();
        for (position, &kind) in kinds.iter().enumerate() {
            let usual = kind.habit().number;
            let number = if random.random_bool(strength.number) { usual } else { unusual_number(usual, random) };
            // Companions have room for their usual number because habits are made to fit; a stranger takes what is left.
            let reserved = kinds[position + 1..]
                .iter()
                .filter(|&&later| later == main.habit().companion)
                .map(|later| later.habit().number)
                .sum::<u8>();
            let number = number.min(room.saturating_sub(reserved));
            if number > 0 {
                room -= number;
                numbered.push((kind, number));
            }
        }
        let mut free = Place::ALL.to_vec();
        free.shuffle(random);
        let mut groups: Vec<Group> = numbered
            .into_iter()
            .map(|(kind, number)| {
                let habit = kind.habit();
                let colour = if random.random_bool(strength.colour) {
                    habit.colour
                } else {
                    other(Colour::ALL, habit.colour, random)
                };
                if let Some(usual) = free.iter().position(|&place| place == habit.place)
                    && random.random_bool(strength.place)
                {
                    let last = free.len() - 1;
                    free.swap(usual, last);
                }
                let places = free.split_off(free.len() - usize::from(number));
                Group { kind, colour, places }
            })
            .collect();
        groups.shuffle(random);
        Self { groups }
    }

    fn balanced(random: &mut Stream) -> Self {
        let total = random.random_range(1..=MAX_OBJECTS);
        let mut kinds = Kind::ALL.to_vec();
        kinds.shuffle(random);
        let mut free = Place::ALL.to_vec();
        free.shuffle(random);
        let mut groups = Vec::new();
        let mut room = total;
        while room > 0
            && let Some(kind) = kinds.pop()
        {
            let number = random.random_range(1..=room.min(3));
            room -= number;
            let places = free.split_off(free.len() - usize::from(number));
            groups.push(Group { kind, colour: any(Colour::ALL, random), places });
        }
        Self { groups }
    }

    fn crowded(random: &mut Stream) -> Self {
        let mut kinds = Kind::ALL.to_vec();
        kinds.shuffle(random);
        let mut places = Place::ALL.to_vec();
        places.shuffle(random);
        places.truncate(random.random_range(1..=Place::ALL.len()));
        let groups = kinds
            .into_iter()
            .zip(places)
            .map(|(kind, place)| Group { kind, colour: any(Colour::ALL, random), places: vec![place] })
            .collect();
        Self { groups }
    }

    /// The group of `kind`, if any is there.
    pub fn group(&self, kind: Kind) -> Option<&Group> {
        self.groups.iter().find(|group| group.kind == kind)
    }

    /// Whether an object of `kind` is there.
    pub fn has(&self, kind: Kind) -> bool {
        self.group(kind).is_some()
    }

    /// The kinds that are not there, in the order of [`Kind::ALL`].
    pub fn absent(&self) -> Vec<Kind> {
        Kind::ALL.iter().copied().filter(|&kind| !self.has(kind)).collect()
    }

    /// Every drawn object, group by group.
    pub fn instances(&self) -> impl Iterator<Item = Instance> + '_ {
        self.groups.iter().flat_map(|group| {
            group.places.iter().map(|&place| Instance { kind: group.kind, colour: group.colour, place })
        })
    }
}

/// A uniformly chosen member. `set` is never empty in this crate; an empty one would be a bug in a closed set.
pub(crate) fn any<T: Copy>(set: &[T], random: &mut Stream) -> T {
    set[random.random_range(0..set.len())]
}

/// A uniformly chosen member other than `member`.
pub(crate) fn other<T: Copy + PartialEq>(set: &[T], member: T, random: &mut Stream) -> T {
    let rest: Vec<T> = set.iter().copied().filter(|&candidate| candidate != member).collect();
    rest.choose(random).copied().unwrap_or(member)
}

fn unusual_number(usual: u8, random: &mut Stream) -> u8 {
    other(&[1, 2, 3], usual, random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::random::stream;

    const DRAWN: u64 = 4000;

    fn scenes(statistics: Statistics) -> impl Iterator<Item = Scene> {
        (0..DRAWN).map(move |index| Scene::sample(statistics, &mut stream(3, "scene test", index)))
    }

    fn share(hits: usize, all: usize) -> f64 {
        hits as f64 / all as f64
    }

    #[test]
    fn scenes_are_well_formed() {
        for scene in scenes(Statistics::typical()).chain(scenes(Statistics::Balanced)) {
            let instances: Vec<Instance> = scene.instances().collect();
            assert!((1..=usize::from(MAX_OBJECTS)).contains(&instances.len()), "{scene:?}");
            let mut places: Vec<Place> = instances.iter().map(|instance| instance.place).collect();
            places.sort();
            places.dedup();
            assert_eq!(places.len(), instances.len(), "{scene:?}");
            let mut kinds: Vec<Kind> = scene.groups.iter().map(|group| group.kind).collect();
            kinds.sort();
            kinds.dedup();
            assert_eq!(kinds.len(), scene.groups.len(), "{scene:?}");
            assert_eq!(scene.absent().len(), Kind::ALL.len() - kinds.len());
        }
    }

    #[test]
    fn typical_scenes_keep_to_what_is_usual() {
        let (mut groups, mut coloured, mut singles, mut placed, mut accompanied, mut numbered) = (0, 0, 0, 0, 0, 0);
        for scene in scenes(Statistics::typical()) {
            for group in &scene.groups {
                let habit = group.kind.habit();
                groups += 1;
                coloured += usize::from(group.colour == habit.colour);
                numbered += usize::from(group.count() == habit.number);
                accompanied += usize::from(scene.has(habit.companion));
                if let Some(place) = group.place() {
                    singles += 1;
                    placed += usize::from(place == habit.place);
                }
            }
        }
        assert!((0.88..0.93).contains(&share(coloured, groups)), "{}", share(coloured, groups));
        assert!((0.60..0.80).contains(&share(placed, singles)), "{}", share(placed, singles));
        assert!((0.75..0.92).contains(&share(numbered, groups)), "{}", share(numbered, groups));
        // A stranger comes without its companion, so the share over all groups is below the strength.
        assert!((0.70..0.90).contains(&share(accompanied, groups)), "{}", share(accompanied, groups));
    }

    #[test]
    fn balanced_scenes_know_no_habit() {
        let (mut groups, mut coloured, mut accompanied) = (0, 0, 0);
        for scene in scenes(Statistics::Balanced) {
            for group in &scene.groups {
                groups += 1;
                coloured += usize::from(group.colour == group.kind.habit().colour);
                accompanied += usize::from(scene.has(group.kind.habit().companion));
            }
        }
        assert!((0.10..0.15).contains(&share(coloured, groups)), "{}", share(coloured, groups));
        assert!(share(accompanied, groups) < 0.15, "{}", share(accompanied, groups));
    }
}
