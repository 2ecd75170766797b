//! Decoded images in memory, and how many bytes of them there may be.
//!
//! Decoded, an image can be a thousand times as large as it came, and it waits with its request for a place in front of the engine. So
//! each keeps its share of `images.decoded_bytes` until the last holder of its pixels lets go of them. Nobody waits for a share: a request
//! that waits would hold what it came with, and no queue would count it.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::DynamicImage;

use super::error::ImageError;
use crate::config::ImagesConfig;

/// A decoded image: upright, 8-bit RGB where it came with a request. Clones share the pixels.
#[derive(Clone)]
pub struct Pixels {
    image: Arc<DynamicImage>,
    /// `None`: it came with no request, and whoever decoded it has one at a time.
    share: Option<Arc<Share>>,
}

impl Pixels {
    pub(super) fn new(image: DynamicImage, share: Option<Share>) -> Self {
        Self { image: Arc::new(image), share: share.map(Arc::new) }
    }

    /// Whether more than half of what images may take is taken, by its key or by all: whoever could do without a copy that lives
    /// longer takes none.
    #[must_use]
    pub fn are_scarce(&self) -> bool {
        self.share.as_ref().is_some_and(|share| share.room.is_scarce(&share.key))
    }

    /// How many hold these pixels.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.image)
    }
}

impl Deref for Pixels {
    type Target = DynamicImage;

    fn deref(&self) -> &DynamicImage {
        &self.image
    }
}

impl From<Arc<DynamicImage>> for Pixels {
    fn from(image: Arc<DynamicImage>) -> Self {
        Self { image, share: None }
    }
}

impl From<DynamicImage> for Pixels {
    fn from(image: DynamicImage) -> Self {
        Self::new(image, None)
    }
}

impl fmt::Debug for Pixels {
    /// Without the image: nothing that logs may show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pixels({} x {})", self.image.width(), self.image.height())
    }
}

/// Bytes that the decoded images of all requests may take together, and those of one key.
pub(super) struct Room {
    limit: u64,
    limit_per_key: u64,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: u64,
    /// Keys that have none are not in it.
    by_key: HashMap<Arc<str>, u64>,
}

/// The bytes of one image. Dropping it gives them back.
pub(super) struct Share {
    room: Arc<Room>,
    key: Arc<str>,
    bytes: u64,
}

impl Room {
    pub(super) fn new(config: &ImagesConfig) -> Self {
        Self { limit: config.decoded_bytes, limit_per_key: config.decoded_bytes_per_key, taken: Mutex::default() }
    }

    /// Takes the bytes of all images of a request, or nothing: a request that has some of its images never waits for the others.
    pub(super) fn take(self: &Arc<Self>, key: &Arc<str>, images: &[u64]) -> Result<Vec<Share>, ImageError> {
        let wanted = images.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        let mut taken = self.taken();
        let all = taken.all.saturating_add(wanted);
        let of_key = taken.of(key).saturating_add(wanted);
        if of_key > self.limit_per_key {
            return Err(ImageError::NoRoom { limit: self.limit_per_key, whose: "this key" });
        }
        if all > self.limit {
            return Err(ImageError::NoRoom { limit: self.limit, whose: "all keys" });
        }
        taken.all = all;
        taken.by_key.insert(key.clone(), of_key);
        Ok(images.iter().map(|bytes| Share { room: self.clone(), key: key.clone(), bytes: *bytes }).collect())
    }

    fn is_scarce(&self, key: &str) -> bool {
        let taken = self.taken();
        taken.all > self.limit / 2 || taken.of(key) > self.limit_per_key / 2
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn of(&self, key: &str) -> u64 {
        self.by_key.get(key).copied().unwrap_or_default()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all -= self.bytes;
        let left = taken.of(&self.key) - self.bytes;
        if left == 0 {
            taken.by_key.remove(&self.key);
        } else {
            taken.by_key.insert(self.key.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(limit: u64, limit_per_key: u64) -> Arc<Room> {
        let config =
            ImagesConfig { decoded_bytes: limit, decoded_bytes_per_key: limit_per_key, ..ImagesConfig::default() };
        Arc::new(Room::new(&config))
    }

    #[test]
    fn a_key_leaves_room_for_others_and_what_goes_is_free_again() {
        let room = room(100, 60);
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let mut shares = room.take(&ann, &[20, 40]).unwrap();
        assert_eq!(room.take(&ann, &[1]).err(), Some(ImageError::NoRoom { limit: 60, whose: "this key" }));
        let of_bob = room.take(&bob, &[40]).unwrap();
        drop(shares.pop());
        assert_eq!(room.take(&bob, &[20, 21]).err(), Some(ImageError::NoRoom { limit: 60, whose: "this key" }));
        let more = room.take(&ann, &[40]).unwrap();
        assert_eq!(room.take(&bob, &[1]).err(), Some(ImageError::NoRoom { limit: 100, whose: "all keys" }));
        drop((shares, of_bob, more));
        let taken = room.taken();
        assert_eq!((taken.all, taken.by_key.len()), (0, 0));
    }

    #[test]
    fn pixels_are_scarce_from_half_on() {
        let room = room(100, 60);
        let key: Arc<str> = "ann".into();
        let share = room.take(&key, &[30]).unwrap().pop();
        let pixels = Pixels::new(DynamicImage::new_rgb8(5, 2), share);
        assert!(!pixels.are_scarce() && !Pixels::from(DynamicImage::new_rgb8(5, 2)).are_scarce());
        let more = room.take(&key, &[1]).unwrap();
        assert!(pixels.clone().are_scarce());
        drop(more);
        assert!(!pixels.are_scarce());
        assert_eq!(format!("{pixels:?}"), "Pixels(5 x 2)");
    }
}
