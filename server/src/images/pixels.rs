//! Decoded images in memory, and how many bytes of them there may be.
//!
//! Decoded, an image can be a thousand times as large as it came, and it waits with its request for a place in front of the engine. So
//! each keeps its share of `images.decoded_bytes` until the last holder of its pixels lets go of them.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use image::DynamicImage;

use crate::room::Share;

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
        self.share.as_ref().is_some_and(|share| share.is_scarce())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Room;

    #[test]
    fn pixels_are_scarce_from_half_on() {
        let room = Arc::new(Room::new(100, 60));
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
