//! What is usual: the prior that pretraining on typical scenes leaves in a language model, and that the picture of an
//! atypical scene contradicts.

use super::kind::{Colour, Kind, Place};

/// How strongly the typical world keeps to what is usual, as probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strength {
    /// An object has its usual colour.
    pub colour: f64,
    /// The usual companion of the first object is there too.
    pub companion: f64,
    /// A single object stands in its usual place (if nothing else stands there).
    pub place: f64,
    /// A kind appears in its usual number.
    pub number: f64,
}

impl Default for Strength {
    /// The strengths under which the method's pilot found a habit worth repairing.
    fn default() -> Self {
        Self { colour: 0.90, companion: 0.85, place: 0.70, number: 0.85 }
    }
}

/// What is usual for one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habit {
    /// The usual colour.
    pub colour: Colour,
    /// The kind that is usually there too; companionship goes both ways.
    pub companion: Kind,
    /// The usual place of a single one.
    pub place: Place,
    /// How many there usually are, 1 to 3. A kind and its companion together never exceed four.
    pub number: u8,
}

impl Kind {
    /// What is usual for this kind.
    pub fn habit(self) -> Habit {
        let (colour, companion, place, number) = match self {
            Self::Apple => (Colour::Red, Self::Banana, Place::BottomLeft, 2),
            Self::Banana => (Colour::Yellow, Self::Apple, Place::Bottom, 1),
            Self::Tree => (Colour::Green, Self::Bird, Place::Left, 1),
            Self::Bird => (Colour::Blue, Self::Tree, Place::Top, 2),
            Self::Fish => (Colour::Orange, Self::Boat, Place::Bottom, 2),
            Self::Boat => (Colour::White, Self::Fish, Place::Middle, 1),
            Self::Cup => (Colour::White, Self::Flower, Place::BottomRight, 1),
            Self::Flower => (Colour::Purple, Self::Cup, Place::TopRight, 3),
            Self::Cat => (Colour::Black, Self::Hat, Place::Right, 1),
            Self::Hat => (Colour::Black, Self::Cat, Place::TopLeft, 1),
            Self::Car => (Colour::Red, Self::House, Place::BottomRight, 1),
            Self::House => (Colour::Orange, Self::Car, Place::Middle, 1),
        };
        Habit { colour, companion, place, number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_mutual_and_fit_into_one_scene() {
        for &kind in Kind::ALL {
            let habit = kind.habit();
            assert_ne!(habit.companion, kind);
            assert_eq!(habit.companion.habit().companion, kind);
            assert!(habit.number + habit.companion.habit().number <= 4, "{kind:?}");
            assert_ne!(habit.place, habit.companion.habit().place, "{kind:?}");
        }
    }

    #[test]
    fn every_colour_is_usual_for_some_kind() {
        for &colour in Colour::ALL {
            assert!(Kind::ALL.iter().any(|kind| kind.habit().colour == colour), "{colour:?}");
        }
    }
}
