//! `pocket sheet`: the drawn world at a glance.

use std::path::Path;

use anyhow::{Context, Result};
use image::{RgbImage, imageops};
use reground_learner::pocket::random::stream;
use reground_learner::pocket::text::{Caption, Detail};
use reground_learner::pocket::world::{Colour, Group, Kind, Picture, Place, SIDE, Scene, Statistics};

/// Draws every kind in every colour, then rows of typical and of balanced scenes, enlarged.
pub(crate) fn draw(path: &Path) -> Result<()> {
    const SCALE: u32 = 2;
    const COLUMNS: usize = 12;
    let mut pictures = Vec::new();
    for (row, &colour) in Colour::ALL.iter().enumerate() {
        for (column, &kind) in Kind::ALL.iter().enumerate() {
            let scene = Scene { groups: vec![Group { kind, colour, places: vec![Place::Middle] }] };
            pictures.push(Picture::draw(&scene, &mut stream(0, "sheet", (row * COLUMNS + column) as u64)));
        }
    }
    for statistics in [Statistics::typical(), Statistics::Balanced] {
        for index in 0..2 * COLUMNS as u64 {
            let mut random = stream(0, statistics.name(), index);
            let scene = Scene::sample(statistics, &mut random);
            println!("{} {index}: {}", statistics.name(), Caption::of(&scene, Detail::Full, &mut random));
            pictures.push(Picture::draw(&scene, &mut random));
        }
    }
    let side = SIDE as u32 * SCALE;
    let mut sheet = RgbImage::new(side * COLUMNS as u32, side * pictures.len().div_ceil(COLUMNS) as u32);
    for (index, picture) in pictures.iter().enumerate() {
        let large = imageops::resize(&picture.image(), side, side, imageops::FilterType::Nearest);
        let (column, row) = (index % COLUMNS, index / COLUMNS);
        imageops::replace(&mut sheet, &large, i64::from(side) * column as i64, i64::from(side) * row as i64);
    }
    sheet.save(path).with_context(|| format!("writing {}", path.display()))
}
