//! The outline of each kind in a unit box.
//!
//! Coordinates run from -1 (left, top) to 1 (right, bottom). Kinds are told apart by silhouette, never by colour: any
//! kind may have any colour, and the accents (stalks, trunks, wheels) are small.

use super::kind::Kind;

/// What covers a point of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// The object's colour.
    Main,
    /// A darker shade of it (lighter for dark colours), for details inside the outline.
    Detail,
    /// A fixed grey-brown, whatever the object's colour.
    Accent,
}

/// What covers the point (x, y) of `kind`, or nothing.
pub fn ink(kind: Kind, x: f32, y: f32) -> Option<Ink> {
    match kind {
        Kind::Apple => first(&[
            (ellipse(x, y, 0.38, -0.82, 0.26, 0.13), Ink::Detail),
            (segment(x, y, 0.0, -0.45, 0.08, -0.95, 0.07), Ink::Accent),
            (
                (ellipse(x, y, -0.34, 0.22, 0.56, 0.72) || ellipse(x, y, 0.34, 0.22, 0.56, 0.72))
                    && !ellipse(x, y, 0.0, -0.55, 0.18, 0.20),
                Ink::Main,
            ),
        ]),
        Kind::Banana => first(&[
            (segment(x, y, 0.82, -0.72, 0.95, -0.92, 0.10), Ink::Accent),
            (ellipse(x, y, -0.02, -0.28, 1.0, 1.0) && !ellipse(x, y, -0.10, -0.72, 1.02, 0.98) && y > -0.75, Ink::Main),
        ]),
        Kind::Tree => first(&[
            (triangle(x, y, [(0.0, -1.0), (-0.5, -0.3), (0.5, -0.3)]), Ink::Main),
            (triangle(x, y, [(0.0, -0.65), (-0.68, 0.15), (0.68, 0.15)]), Ink::Main),
            (triangle(x, y, [(0.0, -0.25), (-0.85, 0.62), (0.85, 0.62)]), Ink::Main),
            (rectangle(x, y, -0.15, 0.6, 0.15, 1.0), Ink::Accent),
        ]),
        Kind::Bird => first(&[
            (circle(x, y, 0.58, -0.42, 0.08), Ink::Detail),
            (triangle(x, y, [(0.78, -0.48), (0.78, -0.2), (1.0, -0.3)]), Ink::Accent),
            (triangle(x, y, [(-0.35, -0.02), (0.25, 0.05), (-0.45, 0.42)]), Ink::Detail),
            (circle(x, y, 0.5, -0.34, 0.33), Ink::Main),
            (ellipse(x, y, -0.02, 0.15, 0.62, 0.42), Ink::Main),
            (triangle(x, y, [(-0.4, 0.0), (-1.0, -0.35), (-0.95, 0.2)]), Ink::Main),
            (segment(x, y, -0.1, 0.5, -0.15, 0.95, 0.06), Ink::Accent),
            (segment(x, y, 0.2, 0.5, 0.15, 0.95, 0.06), Ink::Accent),
        ]),
        Kind::Fish => first(&[
            (circle(x, y, 0.55, -0.12, 0.10), Ink::Detail),
            (segment(x, y, 0.22, -0.35, 0.22, 0.35, 0.05), Ink::Detail),
            (ellipse(x, y, 0.22, 0.0, 0.78, 0.50), Ink::Main),
            (triangle(x, y, [(-0.35, 0.0), (-1.0, -0.62), (-1.0, 0.62)]), Ink::Main),
        ]),
        Kind::Boat => first(&[
            (triangle(x, y, [(0.02, -1.0), (0.02, 0.2), (0.78, 0.2)]), Ink::Main),
            (triangle(x, y, [(-0.14, -0.7), (-0.14, 0.2), (-0.68, 0.2)]), Ink::Detail),
            (segment(x, y, -0.06, -1.0, -0.06, 0.4, 0.07), Ink::Accent),
            (y > 0.38 && y < 0.9 && x.abs() < 1.0 - (y - 0.38) * 0.8, Ink::Main),
        ]),
        Kind::Cup => first(&[
            (rectangle(x, y, -0.68, -0.52, 0.38, -0.34), Ink::Detail),
            (y > -0.7 && y < 0.85 && (x + 0.15).abs() < 0.62 - (y + 0.7) * 0.06, Ink::Main),
            (ring(x, y, 0.48, 0.0, 0.46, 0.26), Ink::Main),
        ]),
        Kind::Flower => {
            let petals = (0..5).any(|petal| {
                let angle = petal as f32 * std::f32::consts::TAU / 5.0 - std::f32::consts::FRAC_PI_2;
                circle(x, y, angle.cos() * 0.44, -0.35 + angle.sin() * 0.44, 0.27)
            });
            first(&[
                (circle(x, y, 0.0, -0.35, 0.22), Ink::Detail),
                (petals, Ink::Main),
                (segment(x, y, 0.0, 0.0, 0.0, 1.0, 0.08), Ink::Accent),
                (ellipse(x, y, 0.28, 0.65, 0.26, 0.12), Ink::Accent),
            ])
        }
        Kind::Cat => first(&[
            (circle(x, y, -0.32, 0.02, 0.13) || circle(x, y, 0.32, 0.02, 0.13), Ink::Detail),
            (triangle(x, y, [(-0.13, 0.3), (0.13, 0.3), (0.0, 0.46)]), Ink::Detail),
            (segment(x, y, 0.25, 0.42, 0.98, 0.32, 0.04) || segment(x, y, -0.25, 0.42, -0.98, 0.32, 0.04), Ink::Accent),
            (ellipse(x, y, 0.0, 0.2, 0.80, 0.70), Ink::Main),
            (triangle(x, y, [(-0.78, 0.05), (-0.82, -0.95), (-0.12, -0.42)]), Ink::Main),
            (triangle(x, y, [(0.78, 0.05), (0.82, -0.95), (0.12, -0.42)]), Ink::Main),
        ]),
        Kind::Hat => first(&[
            (rectangle(x, y, -0.55, 0.12, 0.55, 0.36), Ink::Detail),
            (y > -0.8 && y < 0.5 && x.abs() < 0.52 + (0.5 - y) * 0.06, Ink::Main),
            (ellipse(x, y, 0.0, 0.55, 1.0, 0.24), Ink::Main),
        ]),
        Kind::Car => first(&[
            (circle(x, y, -0.52, 0.5, 0.12) || circle(x, y, 0.52, 0.5, 0.12), Ink::Detail),
            (circle(x, y, -0.52, 0.5, 0.28) || circle(x, y, 0.52, 0.5, 0.28), Ink::Accent),
            (rectangle(x, y, -0.40, -0.38, -0.06, -0.04) || rectangle(x, y, 0.06, -0.38, 0.36, -0.04), Ink::Detail),
            (y > -0.55 && y < 0.05 && x.abs() < 0.48 + (y + 0.55) * 0.35, Ink::Main),
            (rectangle(x, y, -1.0, -0.05, 1.0, 0.5), Ink::Main),
        ]),
        Kind::House => first(&[
            (rectangle(x, y, -0.16, 0.38, 0.16, 1.0), Ink::Accent),
            (rectangle(x, y, -0.52, 0.12, -0.26, 0.4) || rectangle(x, y, 0.26, 0.12, 0.52, 0.4), Ink::Detail),
            (rectangle(x, y, -0.72, -0.1, 0.72, 1.0), Ink::Main),
            (rectangle(x, y, 0.42, -0.9, 0.64, -0.3), Ink::Main),
            (triangle(x, y, [(0.0, -0.98), (-1.0, -0.08), (1.0, -0.08)]), Ink::Detail),
        ]),
    }
}

fn first(layers: &[(bool, Ink)]) -> Option<Ink> {
    layers.iter().find(|(covered, _)| *covered).map(|&(_, ink)| ink)
}

fn ellipse(x: f32, y: f32, centre_x: f32, centre_y: f32, radius_x: f32, radius_y: f32) -> bool {
    ((x - centre_x) / radius_x).powi(2) + ((y - centre_y) / radius_y).powi(2) <= 1.0
}

fn circle(x: f32, y: f32, centre_x: f32, centre_y: f32, radius: f32) -> bool {
    ellipse(x, y, centre_x, centre_y, radius, radius)
}

fn ring(x: f32, y: f32, centre_x: f32, centre_y: f32, outer: f32, inner: f32) -> bool {
    circle(x, y, centre_x, centre_y, outer) && !circle(x, y, centre_x, centre_y, inner)
}

fn rectangle(x: f32, y: f32, left: f32, top: f32, right: f32, bottom: f32) -> bool {
    (left..=right).contains(&x) && (top..=bottom).contains(&y)
}

/// Whether the point lies within `radius` of the segment from (from_x, from_y) to (to_x, to_y).
fn segment(x: f32, y: f32, from_x: f32, from_y: f32, to_x: f32, to_y: f32, radius: f32) -> bool {
    let (along_x, along_y) = (to_x - from_x, to_y - from_y);
    let share = ((x - from_x) * along_x + (y - from_y) * along_y) / (along_x * along_x + along_y * along_y);
    let share = share.clamp(0.0, 1.0);
    circle(x, y, from_x + share * along_x, from_y + share * along_y, radius)
}

fn triangle(x: f32, y: f32, corners: [(f32, f32); 3]) -> bool {
    let side = |from: usize, to: usize| {
        let ((from_x, from_y), (to_x, to_y)) = (corners[from], corners[to]);
        (x - from_x) * (to_y - from_y) - (y - from_y) * (to_x - from_x)
    };
    let sides = [side(0, 1), side(1, 2), side(2, 0)];
    sides.iter().all(|&side| side >= 0.0) || sides.iter().all(|&side| side <= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The covered points of a 40x40 grid over the unit box.
    fn silhouette(kind: Kind) -> Vec<bool> {
        let at = |step: usize| (step as f32 + 0.5) / 20.0 - 1.0;
        (0..1600).map(|cell| ink(kind, at(cell % 40), at(cell / 40)).is_some()).collect()
    }

    #[test]
    fn outlines_fill_a_fair_part_of_the_box_mostly_with_the_main_colour() {
        for &kind in Kind::ALL {
            let at = |step: usize| (step as f32 + 0.5) / 20.0 - 1.0;
            let inks: Vec<Ink> = (0..1600).filter_map(|cell| ink(kind, at(cell % 40), at(cell / 40))).collect();
            let main = inks.iter().filter(|&&ink| ink == Ink::Main).count();
            assert!(inks.len() > 300, "{kind:?} covers {} of 1600", inks.len());
            assert!(main * 2 > inks.len(), "{kind:?}: {main} of {}", inks.len());
        }
    }

    #[test]
    fn any_two_outlines_differ_clearly() {
        for &first in Kind::ALL {
            for &second in Kind::ALL.iter().filter(|&&second| second > first) {
                let (a, b) = (silhouette(first), silhouette(second));
                let common = a.iter().zip(&b).filter(|(a, b)| **a && **b).count();
                let either = a.iter().zip(&b).filter(|(a, b)| **a || **b).count();
                let overlap = common as f64 / either as f64;
                assert!(overlap < 0.80, "{first:?} and {second:?} overlap by {overlap:.2}");
            }
        }
    }
}
