//! The closed sets of the world: twelve kinds of objects, eight colours, nine places.

use serde::{Deserialize, Serialize};

macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every member, in a fixed order; [`Self::index`] is the position in it.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The position in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }

            /// The word for it in text and in JSON.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// The member that `word` names, if it is one.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|member| member.word() == word)
            }
        }
    };
}

closed_set! {
    /// A kind of object.
    Kind {
        /// Round with a stalk and a leaf.
        Apple = "apple",
        /// A crescent.
        Banana = "banana",
        /// A trunk under three tiers of branches.
        Tree = "tree",
        /// A body with a beak, a tail and a wing.
        Bird = "bird",
        /// An ellipse with a tail fin.
        Fish = "fish",
        /// A hull under a sail.
        Boat = "boat",
        /// A mug with a handle.
        Cup = "cup",
        /// Petals around a centre, on a stem.
        Flower = "flower",
        /// A head with pointed ears.
        Cat = "cat",
        /// A top hat with a band.
        Hat = "hat",
        /// A body on two wheels.
        Car = "car",
        /// Walls under a roof.
        House = "house",
    }
}

closed_set! {
    /// The colour of an object's main surface.
    Colour {
        /// Red.
        Red = "red",
        /// Orange.
        Orange = "orange",
        /// Yellow.
        Yellow = "yellow",
        /// Green.
        Green = "green",
        /// Blue.
        Blue = "blue",
        /// Purple.
        Purple = "purple",
        /// White.
        White = "white",
        /// Black.
        Black = "black",
    }
}

closed_set! {
    /// A cell of the three-by-three grid over the picture, row by row.
    Place {
        /// First row, first column.
        TopLeft = "top left",
        /// First row, second column.
        Top = "top",
        /// First row, third column.
        TopRight = "top right",
        /// Second row, first column.
        Left = "left",
        /// Second row, second column.
        Middle = "middle",
        /// Second row, third column.
        Right = "right",
        /// Third row, first column.
        BottomLeft = "bottom left",
        /// Third row, second column.
        Bottom = "bottom",
        /// Third row, third column.
        BottomRight = "bottom right",
    }
}

impl Kind {
    /// The plural of [`Kind::word`]. A fish is always "a fish, two fishes", so that number stays visible in the noun.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Apple => "apples",
            Self::Banana => "bananas",
            Self::Tree => "trees",
            Self::Bird => "birds",
            Self::Fish => "fishes",
            Self::Boat => "boats",
            Self::Cup => "cups",
            Self::Flower => "flowers",
            Self::Cat => "cats",
            Self::Hat => "hats",
            Self::Car => "cars",
            Self::House => "houses",
        }
    }

    /// The noun for `count` objects of this kind.
    pub fn noun(self, count: u8) -> &'static str {
        if count == 1 { self.word() } else { self.plural() }
    }
}

impl Colour {
    /// Red, green and blue of a surface in plain light, 0 to 1.
    pub fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [0.85, 0.12, 0.12],
            Self::Orange => [0.98, 0.52, 0.05],
            Self::Yellow => [0.97, 0.88, 0.15],
            Self::Green => [0.15, 0.62, 0.20],
            Self::Blue => [0.15, 0.30, 0.88],
            Self::Purple => [0.56, 0.18, 0.68],
            Self::White => [0.96, 0.96, 0.96],
            Self::Black => [0.08, 0.08, 0.08],
        }
    }
}

impl Place {
    /// Row and column in the grid, each 0 to 2 from the top left.
    pub fn cell(self) -> (usize, usize) {
        (self.index() / 3, self.index() % 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_one_member_each() {
        for &kind in Kind::ALL {
            assert_eq!(Kind::from_word(kind.word()), Some(kind));
            assert_ne!(kind.word(), kind.plural());
        }
        for &place in Place::ALL {
            assert_eq!(Place::from_word(place.word()), Some(place));
        }
        assert_eq!((Kind::ALL.len(), Colour::ALL.len(), Place::ALL.len()), (12, 8, 9));
        assert_eq!(Colour::from_word("grey"), None);
    }

    #[test]
    fn cells_run_row_by_row() {
        assert_eq!(Place::TopLeft.cell(), (0, 0));
        assert_eq!(Place::Right.cell(), (1, 2));
        assert_eq!(Place::Bottom.cell(), (2, 1));
    }
}
