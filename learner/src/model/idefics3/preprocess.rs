//! From an image to pixel values: resize, split into tiles, rescale, normalise.
//!
//! Step for step what mistralrs 0.8.1 does before its Idefics3 engine, with the same filters of the `image` crate, because
//! the log-probabilities of an answer are compared between the two.

use candle_core::{Device, Tensor};
use image::imageops::FilterType;
use image::{DynamicImage, GenericImageView, RgbImage};
use serde::Deserialize;
use serde_json::Value;

use super::config::Idefics3Config;
use crate::model::error::ModelError;
use crate::model::source::Source;

/// Sides are cut to this after the first resize.
const MAX_SIDE: usize = 4096;

#[derive(Clone, Debug, Deserialize)]
struct Edge {
    longest_edge: Option<u32>,
    height: Option<u32>,
    width: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
struct File {
    do_image_splitting: Option<bool>,
    do_normalize: Option<bool>,
    do_rescale: Option<bool>,
    do_resize: Option<bool>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    rescale_factor: Option<f64>,
    resample: Option<usize>,
    max_image_size: Option<Edge>,
    size: Option<Edge>,
}

/// The settings of `preprocessor_config.json`.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    resize_to: Option<Edge>,
    filter: FilterType,
    tile: u32,
    /// Whether an image larger than a tile is split into several.
    pub split: bool,
    rescale: f32,
    /// Mean of each channel after rescaling, subtracted. 0 if the model does not normalise.
    pub mean: [f32; 3],
    /// Deviation of each channel after rescaling, divided by. 1 if the model does not normalise.
    pub std: [f32; 3],
}

fn refuse(key: &'static str, value: impl ToString, why: &str) -> ModelError {
    ModelError::Config { file: "preprocessor_config.json", key, value: value.to_string(), why: why.to_owned() }
}

impl Preprocessor {
    /// Reads `preprocessor_config.json`, or the `image_processor` part of `processor_config.json` (transformers 5).
    ///
    /// # Errors
    /// Neither is there, or a setting is not known.
    pub fn load(source: &Source, config: &Idefics3Config) -> Result<Self, ModelError> {
        let value: Value = match source.json("preprocessor_config.json")? {
            Some(value) => value,
            None => source
                .json::<Value>("processor_config.json")?
                .and_then(|mut value| value.get_mut("image_processor").map(Value::take))
                .ok_or_else(|| ModelError::MissingFile { file: "preprocessor_config.json".to_owned() })?,
        };
        let file: File = serde_json::from_value(value).map_err(ModelError::json("preprocessor_config.json"))?;
        let filter = match file.resample {
            Some(0 | 4) => FilterType::Nearest,
            Some(1) => FilterType::Lanczos3,
            Some(2) | None => FilterType::Triangle,
            Some(3) => FilterType::CatmullRom,
            Some(other) => {
                return Err(refuse("resample", other, "not one of Pillow's filters 0 … 4"));
            }
        };
        let tile = file.max_image_size.as_ref().and_then(|edge| edge.longest_edge).unwrap_or(364);
        if tile as usize > config.vision.image_size || tile == 0 {
            return Err(refuse("max_image_size", tile, "larger than the vision tower's image_size"));
        }
        let normalise = file.do_normalize == Some(true);
        let floats = |values: [f64; 3]| values.map(|value| value as f32);
        Ok(Self {
            resize_to: if file.do_resize == Some(true) {
                Some(file.size.ok_or_else(|| refuse("size", "missing", "needed when do_resize is on"))?)
            } else {
                None
            },
            filter,
            tile,
            split: file.do_image_splitting.unwrap_or(true),
            rescale: if file.do_rescale == Some(true) { file.rescale_factor.unwrap_or(1.0) as f32 } else { 1.0 },
            mean: if normalise { floats(file.image_mean.unwrap_or(CLIP_MEAN)) } else { [0.0; 3] },
            std: if normalise { floats(file.image_std.unwrap_or(CLIP_STD)) } else { [1.0; 3] },
        })
    }

    /// The tiles of one image, row by row; the last one is the whole image.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub fn tiles(&self, image: &DynamicImage) -> Result<Vec<RgbImage>, ModelError> {
        let mut image = DynamicImage::ImageRgb8(image.to_rgb8());
        let (rows, columns) = self.grid(image.dimensions())?;
        let (width, height) = self.resized(image.dimensions())?;
        if self.resize_to.is_some() {
            image = image.resize_exact(width, height, self.filter);
        }
        let mut tiles = Vec::with_capacity(rows * columns + 1);
        if self.split {
            let (width, height) = multiple_of_tile((width, height), self.tile);
            image = image.resize_exact(width, height, self.filter);
            for (row, column) in (0..rows as u32).flat_map(|row| (0..columns as u32).map(move |column| (row, column))) {
                tiles.push(image.crop_imm(column * self.tile, row * self.tile, self.tile, self.tile).into_rgb8());
            }
        }
        // The whole image last. One that was too small to be cut has the size of a tile by now.
        let is_tile = self.split && (rows, columns) == (0, 0);
        let whole = if is_tile { image } else { image.resize_exact(self.tile, self.tile, FilterType::Lanczos3) };
        tiles.push(whole.into_rgb8());
        Ok(tiles)
    }

    /// Pixel values of tiles, `[tiles, 3, edge, edge]`, f32: rescaled and normalised.
    ///
    /// # Errors
    /// Tiles of another size; a failed tensor operation.
    pub fn pixels(&self, tiles: &[RgbImage], device: &Device) -> candle_core::Result<Tensor> {
        let edge = self.tile as usize;
        let mut values = Vec::with_capacity(tiles.len() * 3 * edge * edge);
        for tile in tiles {
            for channel in 0..3 {
                let (mean, std) = (self.mean[channel], self.std[channel]);
                let shades = tile.as_raw().iter().skip(channel).step_by(3);
                values.extend(shades.map(|v| (f32::from(*v) * self.rescale - mean) / std));
            }
        }
        Tensor::from_vec(values, (tiles.len(), 3, edge, edge), device)
    }

    /// Rows and columns of the grid that an image of this width and height is cut into; `(0, 0)` if it is not.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub fn grid(&self, size: (u32, u32)) -> Result<(usize, usize), ModelError> {
        if !self.split {
            return Ok((0, 0));
        }
        let (width, height) = multiple_of_tile(self.resized(size)?, self.tile);
        if width <= self.tile && height <= self.tile {
            return Ok((0, 0));
        }
        Ok((height.div_ceil(self.tile) as usize, width.div_ceil(self.tile) as usize))
    }

    /// Width and height after the first resize.
    fn resized(&self, image: (u32, u32)) -> Result<(u32, u32), ModelError> {
        let Some(size) = &self.resize_to else { return Ok(image) };
        match (size.longest_edge, size.height, size.width) {
            (Some(edge), _, _) => Ok(longest_edge(image, edge as usize)),
            (None, Some(height), Some(width)) => Ok((width, height)),
            _ => Err(refuse("size", "incomplete", "needs longest_edge, or height and width")),
        }
    }
}

/// mistralrs' default, which is CLIP's.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Width and height with the longer side at `edge`, the other one even, then both at most [`MAX_SIDE`].
///
/// The f32 arithmetic is part of the definition: other precision rounds other sizes.
fn longest_edge((width, height): (u32, u32), edge: usize) -> (u32, u32) {
    let ratio = width as f32 / height as f32;
    let even = |side: usize| (side + side % 2).max(1);
    let (height, width) = if width >= height {
        (even((edge as f32 / ratio).round() as usize), edge)
    } else {
        (edge, even((edge as f32 * ratio).round() as usize))
    };
    let ratio = width as f32 / height as f32;
    let (height, width) = if width >= height && width > MAX_SIDE {
        ((MAX_SIDE as f32 / ratio).round() as usize, MAX_SIDE)
    } else if height > width && height > MAX_SIDE {
        (MAX_SIDE, (MAX_SIDE as f32 * ratio).round() as usize)
    } else {
        (height, width)
    };
    (width.max(1) as u32, height.max(1) as u32)
}

/// Width and height, both rounded up to multiples of the tile, the longer one first.
fn multiple_of_tile((width, height): (u32, u32), tile: u32) -> (u32, u32) {
    let ratio = width as f32 / height as f32;
    let up = |side: u32| (side as f32 / tile as f32).ceil() as u32 * tile;
    if width >= height {
        let width = up(width);
        (width, up((width as f32 / ratio) as u32))
    } else {
        let height = up(height);
        (up((height as f32 * ratio) as u32), height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocessor(split: bool) -> Preprocessor {
        Preprocessor {
            resize_to: Some(Edge { longest_edge: Some(128), height: None, width: None }),
            filter: FilterType::Lanczos3,
            tile: 64,
            split,
            rescale: 1.0 / 255.0,
            mean: [0.5; 3],
            std: [0.5; 3],
        }
    }

    #[test]
    fn sizes_and_splits() {
        let sizes =
            [(64, 64, 2, 2), (200, 100, 1, 2), (100, 200, 2, 1), (1, 1, 2, 2), (2000, 1, 1, 2), (300, 299, 2, 2)];
        for (width, height, rows, columns) in sizes {
            let image = DynamicImage::new_rgb8(width, height);
            for (preprocessor, grid, count) in
                [(preprocessor(true), (rows, columns), rows * columns + 1), (preprocessor(false), (0, 0), 1)]
            {
                assert_eq!(preprocessor.grid((width, height)).unwrap(), grid, "{width} × {height}");
                let tiles = preprocessor.tiles(&image).unwrap();
                assert_eq!(preprocessor.pixels(&tiles, &Device::Cpu).unwrap().dims(), [count, 3, 64, 64]);
            }
        }
    }

    #[test]
    fn other_colour_types_are_converted() {
        for image in
            [DynamicImage::new_rgba8(70, 40), DynamicImage::new_luma16(70, 40), DynamicImage::new_luma8(70, 40)]
        {
            let preprocessor = preprocessor(false);
            let pixels = preprocessor.pixels(&preprocessor.tiles(&image).unwrap(), &Device::Cpu).unwrap();
            let values = pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|value| *value == -1.0), "black is −1 after normalisation");
        }
    }
}
