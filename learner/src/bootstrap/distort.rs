//! Image weakening: ṽ as a pure function of (image, kind, strength, seed).
//!
//! ```text
//! x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε        ε ~ N(0, 1), on the normalised image
//! β_s = sigmoid(−6 + 12 s / 999) · (0.5e-2 − 1e-5) + 1e-5,   s = 0 … 999
//! ᾱ_t = Π_{s ≤ t} (1 − β_s)
//! ```
//!
//! The schedule is that of visual contrastive decoding (arXiv 2311.16922), which BPO takes over with t = 900. In pixel values
//! p of 0 to 1 the formula reads `mean + √ᾱ (p − mean) + √(1−ᾱ) · std · ε`, so noise made here and then normalised equals
//! noise on the normalised image, but for the rounding to 8 bits and the cut at black and white.
//!
//! Distort at the model's input size: noise made at a larger size is averaged away when the image shrinks.

use image::{DynamicImage, Rgb, RgbImage, imageops};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Steps of the diffusion schedule.
pub const STEPS: usize = 1000;

/// How much of a pixel and of its two neighbours in a row comes back into it, about, when the row is enlarged to blocks
/// and shrunk again by a bicubic or Lanczos filter.
const BLEED: [f32; 3] = [0.1, 0.8, 0.1];

/// Why an image cannot be distorted so.
#[derive(Debug, Error, PartialEq)]
pub enum DistortError {
    /// A strength outside what its kind allows.
    #[error("a distortion of kind {kind} has strength {strength}, it must be {allowed}")]
    Strength {
        /// The kind's name in JSON.
        kind: &'static str,
        /// What was asked for.
        strength: f64,
        /// What it may be.
        allowed: &'static str,
    },
    /// There is nothing to distort.
    #[error("an image of {width}x{height} pixels has nothing to distort")]
    Empty {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
}

/// The ways to weaken an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistortionKind {
    /// Diffusion noise; strength is the step t, a whole number from 0 to 999 (the paper: 900).
    Noise,
    /// Gaussian blur; strength is σ in pixels, above 0.
    Blur,
    /// Squares of one colour; strength is their side in pixels, a whole number of at least 2.
    Pixelate,
    /// Square patches in random order; strength is their side in pixels, a whole number of at least 1.
    Shuffle,
    /// A random rectangle of the image's shape, enlarged to its size; strength is the share of the area kept, 0 to 0.2.
    Crop,
    /// The mean colour everywhere; strength is ignored.
    Blank,
}

/// How to make ṽ out of v. Stored with the pair, so that ṽ can be made again at any time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distortion {
    /// The kind.
    pub kind: DistortionKind,
    /// Its strength, in the unit of its kind.
    pub strength: f64,
    /// Where its randomness comes from.
    #[serde(default)]
    pub seed: u64,
}

/// Mean and standard deviation by which a model normalises pixels of 0 to 1, per channel (red, green, blue).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalisation {
    /// `image_mean` of the model's preprocessor.
    pub mean: [f32; 3],
    /// `image_std` of the model's preprocessor.
    pub std: [f32; 3],
}

impl Default for Normalisation {
    /// 0.5 and 0.5, what SigLIP and Idefics3 use.
    fn default() -> Self {
        Self { mean: [0.5; 3], std: [0.5; 3] }
    }
}

/// ᾱ_t for every step t.
pub fn alpha_bars() -> [f64; STEPS] {
    let mut product = 1.0;
    std::array::from_fn(|step| {
        let at = -6.0 + 12.0 * step as f64 / (STEPS - 1) as f64;
        let beta = (1.0 / (1.0 + (-at).exp())) * (0.5e-2 - 1e-5) + 1e-5;
        product *= 1.0 - beta;
        product
    })
}

impl Distortion {
    /// Checks the strength against the kind.
    ///
    /// # Errors
    /// [`DistortError::Strength`].
    pub fn validate(&self) -> Result<(), DistortError> {
        let strength = self.strength;
        let whole = strength.fract() == 0.0;
        let (kind, ok, allowed) = match self.kind {
            DistortionKind::Noise => {
                ("noise", whole && (0.0..STEPS as f64).contains(&strength), "a whole number from 0 to 999")
            }
            DistortionKind::Blur => ("blur", strength > 0.0 && strength <= 1000.0, "above 0 and at most 1000"),
            DistortionKind::Pixelate => {
                ("pixelate", whole && (2.0..=65536.0).contains(&strength), "a whole number of at least 2")
            }
            DistortionKind::Shuffle => {
                ("shuffle", whole && (1.0..=65536.0).contains(&strength), "a whole number of at least 1")
            }
            DistortionKind::Crop => ("crop", (0.0..=0.2).contains(&strength), "between 0 and 0.2"),
            DistortionKind::Blank => ("blank", strength.is_finite(), "a number"),
        };
        if ok { Ok(()) } else { Err(DistortError::Strength { kind, strength, allowed }) }
    }

    /// ṽ, of the size of `image`.
    ///
    /// # Errors
    /// A strength that its kind does not allow, or an image without pixels.
    pub fn apply(&self, image: &RgbImage, normalisation: &Normalisation) -> Result<RgbImage, DistortError> {
        self.validate()?;
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(DistortError::Empty { width, height });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        Ok(match self.kind {
            DistortionKind::Noise => noise(image, self.strength as usize, normalisation, &mut rng),
            DistortionKind::Blur => imageops::blur(image, self.strength as f32),
            DistortionKind::Pixelate => pixelate(image, self.strength as u32),
            DistortionKind::Shuffle => shuffle(image, self.strength as u32, &mut rng),
            DistortionKind::Crop => crop(image, self.strength, &mut rng),
            DistortionKind::Blank => RgbImage::from_pixel(width, height, mean_colour(image, 0, 0, width, height)),
        })
    }

    /// ṽ as training and decoding see it: made at no more than `edge` pixels on the longest side, since noise made at a
    /// larger size is averaged away when the model shrinks it, and brought back to the size of `image`, so that a model that
    /// cuts images into tiles by their size makes as many of ṽ as of v.
    ///
    /// The way back must not average noise away either, as a bilinear enlargement and the model's own reduction to `edge`
    /// do. So pixels of noise become blocks, sharpened before by what a bicubic or Lanczos reduction will blur. Less is left
    /// where much is cut at black and white, as at the paper's step 900, and where the model reduces bilinearly.
    ///
    /// # Errors
    /// As [`Distortion::apply`].
    pub fn apply_within(
        &self,
        image: &DynamicImage,
        edge: u32,
        normalisation: &Normalisation,
    ) -> Result<DynamicImage, DistortError> {
        let (width, height) = (image.width(), image.height());
        let small = if width.max(height) > edge {
            image.resize(edge, edge, imageops::FilterType::Triangle).to_rgb8()
        } else {
            image.to_rgb8()
        };
        let distorted = self.apply(&small, normalisation)?;
        if distorted.dimensions() == (width, height) {
            return Ok(DynamicImage::from(distorted));
        }
        let (distorted, filter) = match self.kind {
            DistortionKind::Noise => (sharpened(&distorted), imageops::FilterType::Nearest),
            _ => (distorted, imageops::FilterType::Triangle),
        };
        Ok(DynamicImage::from(distorted).resize_exact(width, height, filter))
    }
}

fn noise(image: &RgbImage, step: usize, by: &Normalisation, rng: &mut ChaCha8Rng) -> RgbImage {
    let alpha_bar = alpha_bars()[step.min(STEPS - 1)];
    let (keep, add) = (alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32);
    let mut normal = Normal::default();
    let mut out = image.clone();
    for pixel in out.pixels_mut() {
        for (channel, value) in pixel.0.iter_mut().enumerate() {
            let (mean, std) = (by.mean[channel], by.std[channel]);
            let moved = mean + keep * (f32::from(*value) / 255.0 - mean) + add * std * normal.sample(rng);
            *value = (moved * 255.0).round().clamp(0.0, 255.0) as u8;
        }
    }
    out
}

/// What [`BLEED`] in both directions nearly makes `image` of: `2 x − blurred(x)`, the first two terms of the inverse.
fn sharpened(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let around = |at: u32, side: u32| [at.saturating_sub(1), at, (at + 1).min(side - 1)];
    RgbImage::from_fn(width, height, |x, y| {
        let (columns, rows) = (around(x, width), around(y, height));
        Rgb(std::array::from_fn(|channel| {
            let value = |x: u32, y: u32| f32::from(image.get_pixel(x, y).0[channel]);
            let row = |y: u32| BLEED.iter().zip(columns).map(|(part, x)| part * value(x, y)).sum::<f32>();
            let blurred = BLEED.iter().zip(rows).map(|(part, y)| part * row(y)).sum::<f32>();
            (2.0 * value(x, y) - blurred).round().clamp(0.0, 255.0) as u8
        }))
    })
}

/// Box-Muller, both halves used.
#[derive(Default)]
struct Normal {
    spare: Option<f32>,
}

impl Normal {
    fn sample(&mut self, rng: &mut ChaCha8Rng) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // 1 − u is in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        self.spare = Some((radius * sin) as f32);
        (radius * cos) as f32
    }
}

fn mean_colour(image: &RgbImage, left: u32, top: u32, width: u32, height: u32) -> Rgb<u8> {
    let mut sums = [0u64; 3];
    for y in top..top + height {
        for x in left..left + width {
            for (sum, value) in sums.iter_mut().zip(image.get_pixel(x, y).0) {
                *sum += u64::from(value);
            }
        }
    }
    let count = (u64::from(width) * u64::from(height)).max(1);
    Rgb(sums.map(|sum| ((sum + count / 2) / count) as u8))
}

fn pixelate(image: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut out = image.clone();
    for top in (0..height).step_by(side as usize) {
        for left in (0..width).step_by(side as usize) {
            let (w, h) = (side.min(width - left), side.min(height - top));
            let colour = mean_colour(image, left, top, w, h);
            for y in top..top + h {
                for x in left..left + w {
                    out.put_pixel(x, y, colour);
                }
            }
        }
    }
    out
}

/// Whole patches trade places; what is left over at the right and bottom edge stays where it is.
fn shuffle(image: &RgbImage, side: u32, rng: &mut ChaCha8Rng) -> RgbImage {
    let (columns, rows) = (image.width() / side, image.height() / side);
    let mut order = (0..columns * rows).collect::<Vec<_>>();
    order.shuffle(rng);
    let mut out = image.clone();
    for (to, from) in order.into_iter().enumerate() {
        let to = to as u32;
        for y in 0..side {
            for x in 0..side {
                let pixel = image.get_pixel(from % columns * side + x, from / columns * side + y);
                out.put_pixel(to % columns * side + x, to / columns * side + y, *pixel);
            }
        }
    }
    out
}

fn crop(image: &RgbImage, share: f64, rng: &mut ChaCha8Rng) -> RgbImage {
    let (width, height) = image.dimensions();
    let kept = |side: u32| ((f64::from(side) * share.sqrt()).floor() as u32).clamp(1, side);
    let (w, h) = (kept(width), kept(height));
    let (left, top) = (rng.random_range(0..=width - w), rng.random_range(0..=height - h));
    let view = imageops::crop_imm(image, left, top, w, h).to_image();
    imageops::resize(&view, width, height, imageops::FilterType::Triangle)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [(DistortionKind, f64); 6] = [
        (DistortionKind::Noise, 500.0),
        (DistortionKind::Blur, 3.0),
        (DistortionKind::Pixelate, 7.0),
        (DistortionKind::Shuffle, 8.0),
        (DistortionKind::Crop, 0.1),
        (DistortionKind::Blank, 0.0),
    ];

    fn picture() -> RgbImage {
        RgbImage::from_fn(50, 34, |x, y| Rgb([(x * 5) as u8, (y * 7) as u8, ((x * y) % 251) as u8]))
    }

    fn distort(kind: DistortionKind, strength: f64, seed: u64) -> RgbImage {
        Distortion { kind, strength, seed }.apply(&picture(), &Normalisation::default()).unwrap()
    }

    #[test]
    fn schedule_is_the_table_of_the_method() {
        let bars = alpha_bars();
        for (step, root) in [(500, 0.863), (700, 0.593), (800, 0.467), (900, 0.365), (999, 0.285)] {
            assert!((bars[step].sqrt() - root).abs() < 5e-4, "t = {step}: {}", bars[step].sqrt());
        }
        assert!(bars.windows(2).all(|pair| pair[1] < pair[0]) && bars[0] < 1.0);
    }

    #[test]
    fn same_inputs_give_the_same_image_and_another_seed_another() {
        for (kind, strength) in KINDS {
            let first = distort(kind, strength, 7);
            assert_eq!(first, distort(kind, strength, 7), "{kind:?}");
            assert_eq!(first.dimensions(), picture().dimensions());
            assert_ne!(first, picture(), "{kind:?}");
            let random = matches!(kind, DistortionKind::Noise | DistortionKind::Shuffle | DistortionKind::Crop);
            assert_eq!(first != distort(kind, strength, 8), random, "{kind:?}");
        }
    }

    #[test]
    fn noise_has_the_mean_and_spread_of_the_formula() {
        // Grey 0.6 at t = 300 with std 0.2: 0.5 + √ᾱ · 0.1, spread √(1−ᾱ) · 0.2; far enough from black and white not to be cut.
        let image = RgbImage::from_pixel(200, 200, Rgb([153; 3]));
        let normalisation = Normalisation { mean: [0.5; 3], std: [0.2, 0.1, 0.2] };
        let step = 300;
        let out = Distortion { kind: DistortionKind::Noise, strength: step as f64, seed: 1 }
            .apply(&image, &normalisation)
            .unwrap();
        let bar = alpha_bars()[step];
        for (channel, std) in [(0, 0.2), (1, 0.1), (2, 0.2)] {
            let values = out.pixels().map(|pixel| f64::from(pixel.0[channel]) / 255.0).collect::<Vec<_>>();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            assert!((mean - (0.5 + bar.sqrt() * 0.1)).abs() < 2e-3, "{mean}");
            assert!((spread - (1.0 - bar).sqrt() * std).abs() < 2e-3, "{spread}");
        }
    }

    #[test]
    fn noise_on_a_large_picture_reaches_the_model_as_noise_on_a_small_one() {
        const EDGE: u32 = 96;
        let spread = |image: &RgbImage| {
            let values = image.as_raw().iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
        };
        let distortion = Distortion { kind: DistortionKind::Noise, strength: 300.0, seed: 1 };
        let seen = |side: u32, filter: imageops::FilterType| {
            let image = DynamicImage::from(RgbImage::from_pixel(side, side, Rgb([128; 3])));
            let distorted = distortion.apply_within(&image, EDGE, &Normalisation::default()).unwrap();
            assert_eq!((distorted.width(), distorted.height()), (side, side));
            spread(&distorted.resize_exact(EDGE, EDGE, filter).to_rgb8())
        };
        for filter in [imageops::FilterType::CatmullRom, imageops::FilterType::Lanczos3] {
            let small = seen(EDGE, filter);
            for side in [120, 192, 300, 384] {
                let kept = seen(side, filter) / small;
                assert!((kept - 1.0).abs() < 0.15, "{kept} of the noise is left of {side} pixels under {filter:?}");
            }
        }
    }

    #[test]
    fn shuffle_moves_pixels_but_keeps_them_all() {
        let histogram = |image: &RgbImage| {
            let mut pixels = image.pixels().map(|pixel| pixel.0).collect::<Vec<_>>();
            pixels.sort_unstable();
            pixels
        };
        assert_eq!(histogram(&distort(DistortionKind::Shuffle, 8.0, 3)), histogram(&picture()));
    }

    #[test]
    fn blank_and_pixelate_are_means() {
        let two = RgbImage::from_fn(4, 2, |x, _| if x < 2 { Rgb([0, 10, 200]) } else { Rgb([100, 30, 100]) });
        let at =
            |kind, strength| Distortion { kind, strength, seed: 0 }.apply(&two, &Normalisation::default()).unwrap();
        assert!(at(DistortionKind::Blank, 0.0).pixels().all(|pixel| pixel.0 == [50, 20, 150]));
        assert_eq!(at(DistortionKind::Pixelate, 2.0), two);
    }

    #[test]
    fn crop_of_nothing_is_one_pixel() {
        let out = distort(DistortionKind::Crop, 0.0, 5);
        assert!(out.pixels().all(|pixel| pixel == out.get_pixel(0, 0)));
    }

    #[test]
    fn wrong_strengths_are_named() {
        let cases = [
            (DistortionKind::Noise, 1000.0),
            (DistortionKind::Noise, 1.5),
            (DistortionKind::Blur, 0.0),
            (DistortionKind::Pixelate, 1.0),
            (DistortionKind::Shuffle, 0.0),
            (DistortionKind::Crop, 0.21),
            (DistortionKind::Crop, f64::NAN),
            (DistortionKind::Blank, f64::INFINITY),
        ];
        for (kind, strength) in cases {
            let error = Distortion { kind, strength, seed: 0 }.validate().unwrap_err();
            assert!(error.to_string().contains("it must be"), "{error}");
        }
        let error = Distortion { kind: DistortionKind::Blank, strength: 0.0, seed: 0 }
            .apply(&RgbImage::new(0, 3), &Normalisation::default());
        assert_eq!(error.unwrap_err(), DistortError::Empty { width: 0, height: 3 });
    }

    #[test]
    fn a_patch_larger_than_the_image_changes_nothing() {
        assert_eq!(distort(DistortionKind::Shuffle, 64.0, 1), picture());
    }
}
