//! The drawn world: kinds of objects, colours and places, scenes made of them, and their pictures.
//!
//! # Layout
//! - [`kind`]: the closed sets [`Kind`], [`Colour`] and [`Place`].
//! - [`habit`]: what is usual for each kind, and how strongly the typical world keeps to it.
//! - [`scene`]: a [`Scene`] and how one is sampled under a [`Statistics`].
//! - [`shape`]: the outline of each kind.
//! - [`raster`]: from a scene to 64x64 pixels and per-patch labels.
//! - [`annotation`]: what a scene holds, as plain JSON.

pub mod annotation;
pub mod habit;
pub mod kind;
pub mod raster;
pub mod scene;
pub mod shape;

pub use annotation::{AnnotatedObject, Annotation};
pub use kind::{Colour, Kind, Place};
pub use raster::{Picture, SIDE};
pub use scene::{Group, Instance, Scene, Statistics};
