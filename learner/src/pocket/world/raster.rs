//! From a scene to pixels: anti-aliased by supersampling, with jitter, so that no two pictures of a scene are alike.

use image::{Rgb, RgbImage};
use rand::Rng;

use super::kind::{Colour, Kind};
use super::scene::{Instance, Scene};
use super::shape::{self, Ink};
use crate::pocket::random::Stream;

/// Width and height of a picture in pixels.
pub const SIDE: usize = 64;

/// Samples per pixel and direction.
const SAMPLES: usize = 3;

/// The colour of [`Ink::Accent`].
const ACCENT: [f32; 3] = [0.34, 0.27, 0.20];

/// A drawn scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// `[SIDE * SIDE]` pixels row by row, each red, green, blue from 0 to 1.
    pixels: Vec<[f32; 3]>,
    /// Which instance covers each pixel most, as an index into `instances`.
    cover: Vec<Option<usize>>,
    instances: Vec<Instance>,
}

/// Where and how one instance is drawn.
struct Pose {
    centre: (f32, f32),
    radius: f32,
    turn: (f32, f32),
    mirrored: bool,
    light: f32,
}

impl Pose {
    fn sample(instance: Instance, random: &mut Stream) -> Self {
        let (row, column) = instance.place.cell();
        let cell = SIDE as f32 / 3.0;
        let mut centre = |cell_index: usize| (cell_index as f32 + 0.5) * cell + random.random_range(-1.5..1.5);
        let (centre_y, centre_x) = (centre(row), centre(column));
        let turn: f32 = random.random_range(-0.17..0.17);
        Self {
            centre: (centre_x, centre_y),
            radius: random.random_range(8.6..10.4),
            turn: turn.sin_cos(),
            mirrored: random.random_bool(0.5),
            light: random.random_range(0.92..1.06),
        }
    }

    /// Picture coordinates to the unit box of the shape.
    fn unit(&self, x: f32, y: f32) -> (f32, f32) {
        let (x, y) = ((x - self.centre.0) / self.radius, (y - self.centre.1) / self.radius);
        let (sine, cosine) = self.turn;
        let turned = (x * cosine + y * sine, y * cosine - x * sine);
        if self.mirrored { (-turned.0, turned.1) } else { turned }
    }
}

impl Picture {
    /// Draws a scene; `random` decides background, noise and each object's pose.
    pub fn draw(scene: &Scene, random: &mut Stream) -> Self {
        let mut picture =
            Self { pixels: background(random), cover: vec![None; SIDE * SIDE], instances: scene.instances().collect() };
        for index in 0..picture.instances.len() {
            let pose = Pose::sample(picture.instances[index], random);
            picture.paint(index, &pose);
        }
        for pixel in &mut picture.pixels {
            let grain: f32 = random.random_range(-0.015..0.015);
            for channel in pixel {
                *channel = (*channel + grain).clamp(0.0, 1.0);
            }
        }
        picture
    }

    fn paint(&mut self, index: usize, pose: &Pose) {
        let Instance { kind, colour, .. } = self.instances[index];
        // The unit box turned by up to ten degrees fits into 1.2 radii.
        let reach = pose.radius * 1.2;
        let span = |centre: f32| {
            let low = (centre - reach).floor().max(0.0) as usize;
            let high = ((centre + reach).ceil() as usize).min(SIDE);
            low..high
        };
        for y in span(pose.centre.1) {
            for x in span(pose.centre.0) {
                let (sum, hits) = sample_pixel(kind, colour, pose, x, y);
                if hits == 0 {
                    continue;
                }
                let share = hits as f32 / (SAMPLES * SAMPLES) as f32;
                let pixel = &mut self.pixels[y * SIDE + x];
                for channel in 0..3 {
                    let ink = sum[channel] / hits as f32;
                    pixel[channel] = pixel[channel] * (1.0 - share) + ink * share;
                }
                if share >= 0.5 {
                    self.cover[y * SIDE + x] = Some(index);
                }
            }
        }
    }

    /// The picture as an 8-bit image.
    pub fn image(&self) -> RgbImage {
        RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            let pixel = self.pixels[y as usize * SIDE + x as usize];
            Rgb(pixel.map(|channel| (channel * 255.0).round() as u8))
        })
    }

    /// `[3 * SIDE * SIDE]` values channel by channel, normalised to -1..1 *from the 8-bit image*, so that training sees
    /// exactly what a server decodes from the PNG.
    pub fn normalised(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(3 * SIDE * SIDE);
        for channel in 0..3 {
            values.extend(self.pixels.iter().map(|pixel| (pixel[channel] * 255.0).round() / 255.0 * 2.0 - 1.0));
        }
        values
    }

    /// What stands in each `patch` x `patch` square, row by row: the instance that covers most of its pixels, if at
    /// least a quarter of the square is covered.
    pub fn patches(&self, patch: usize) -> Vec<Option<(Kind, Colour)>> {
        let across = SIDE / patch;
        (0..across * across)
            .map(|square| {
                let (top, left) = (square / across * patch, square % across * patch);
                let mut counts = vec![0usize; self.instances.len()];
                for y in top..top + patch {
                    for x in left..left + patch {
                        if let Some(index) = self.cover[y * SIDE + x] {
                            counts[index] += 1;
                        }
                    }
                }
                let (index, &count) = counts.iter().enumerate().max_by_key(|(_, count)| **count)?;
                let instance = self.instances[index];
                (count * 4 >= patch * patch).then_some((instance.kind, instance.colour))
            })
            .collect()
    }
}

fn sample_pixel(kind: Kind, colour: Colour, pose: &Pose, x: usize, y: usize) -> ([f32; 3], usize) {
    let mut sum = [0.0; 3];
    let mut hits = 0;
    let offset = |step: usize| (step as f32 + 0.5) / SAMPLES as f32;
    for step in 0..SAMPLES * SAMPLES {
        let (unit_x, unit_y) = pose.unit(x as f32 + offset(step % SAMPLES), y as f32 + offset(step / SAMPLES));
        if let Some(ink) = shape::ink(kind, unit_x, unit_y) {
            let rgb = surface(colour, ink, pose.light);
            for channel in 0..3 {
                sum[channel] += rgb[channel];
            }
            hits += 1;
        }
    }
    (sum, hits)
}

fn surface(colour: Colour, ink: Ink, light: f32) -> [f32; 3] {
    let main = colour.rgb();
    let detail = match colour {
        // A darker black would not show.
        Colour::Black => main.map(|channel| channel + 0.38),
        _ => main.map(|channel| channel * 0.62),
    };
    let rgb = match ink {
        Ink::Main => main,
        Ink::Detail => detail,
        Ink::Accent => ACCENT,
    };
    rgb.map(|channel| (channel * light).clamp(0.0, 1.0))
}

/// A soft vertical gradient of two greys, dark enough for white objects and light enough for black ones.
fn background(random: &mut Stream) -> Vec<[f32; 3]> {
    let mut tone = || {
        let grey: f32 = random.random_range(0.46..0.64);
        [0, 1, 2].map(|_: i32| grey + random.random_range(-0.035..0.035))
    };
    let (top, bottom) = (tone(), tone());
    (0..SIDE * SIDE)
        .map(|pixel| {
            let share = (pixel / SIDE) as f32 / (SIDE - 1) as f32;
            [0, 1, 2].map(|channel: usize| top[channel] * (1.0 - share) + bottom[channel] * share)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::random::stream;
    use crate::pocket::world::{Place, Statistics};

    fn draw(index: u64) -> (Scene, Picture) {
        let mut random = stream(1, "raster test", index);
        let scene = Scene::sample(Statistics::Balanced, &mut random);
        let picture = Picture::draw(&scene, &mut random);
        (scene, picture)
    }

    #[test]
    fn drawing_repeats_from_a_seed_and_pixels_match_the_image() {
        let (_, first) = draw(5);
        assert_eq!(first, draw(5).1);
        assert_ne!(first, draw(6).1);
        let image = first.image();
        let values = first.normalised();
        for (x, y, pixel) in image.enumerate_pixels() {
            for channel in 0..3 {
                let value = values[channel * SIDE * SIDE + y as usize * SIDE + x as usize];
                assert!((f32::from(pixel.0[channel]) / 255.0 * 2.0 - 1.0 - value).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn patch_labels_show_each_object_where_it_stands() {
        for index in 0..50 {
            let (scene, picture) = draw(index);
            let patches = picture.patches(8);
            assert_eq!(patches.len(), 64);
            for instance in scene.instances() {
                let (row, column) = instance.place.cell();
                let near = |cell: usize, position: usize| {
                    let centre = (cell as f32 + 0.5) * SIDE as f32 / 3.0;
                    ((position as f32 + 0.5) * 8.0 - centre).abs() < 12.0
                };
                let labelled = patches
                    .iter()
                    .enumerate()
                    .filter(|(square, _)| near(row, square / 8) && near(column, square % 8))
                    .filter(|(_, label)| **label == Some((instance.kind, instance.colour)))
                    .count();
                assert!(labelled >= 2, "{instance:?} has {labelled} patches in {scene:?}");
            }
        }
    }

    #[test]
    fn the_main_colour_is_visible() {
        for &colour in Colour::ALL {
            let scene = Scene {
                groups: vec![crate::pocket::world::Group { kind: Kind::Hat, colour, places: vec![Place::Middle] }],
            };
            let image = Picture::draw(&scene, &mut stream(2, "colour test", colour.index() as u64)).image();
            let centre = image.get_pixel(32, 28).0.map(|channel| f32::from(channel) / 255.0);
            let nearest =
                Colour::ALL.iter().min_by(|a, b| distance(a.rgb(), centre).total_cmp(&distance(b.rgb(), centre)));
            assert_eq!(nearest, Some(&colour), "{centre:?}");
        }
    }

    fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
    }
}
