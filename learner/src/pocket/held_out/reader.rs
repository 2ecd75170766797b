//! From a caption of the pocket to its mentions.

use crate::eval::mention::{CaptionReader, Mention, Said};
use crate::pocket::text::read_caption;

/// Reads the pocket's captions with all their attributes, and sees when one is garbled.
#[derive(Clone, Copy, Debug, Default)]
pub struct PocketReader;

impl CaptionReader for PocketReader {
    fn read(&self, caption: &str) -> Said {
        let reading = read_caption(caption);
        let mentions = reading
            .claims
            .iter()
            .map(|claim| Mention {
                object: claim.kind.word().to_owned(),
                colour: claim.colour.map(|colour| colour.word().to_owned()),
                count: claim.count.map(u32::from),
                place: claim.place.map(|place| place.word().to_owned()),
            })
            .collect();
        Said { mentions, malformed: reading.malformed.is_some() }
    }
}
