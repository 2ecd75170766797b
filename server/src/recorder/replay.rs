//! What was recorded, as the engine is asked it again.

use std::io::ErrorKind;
use std::sync::Arc;

use image::DynamicImage;
use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::bpo::pair::{Message, Part, Role};
use reground_learner::generator::{Piece, Speaker, Turn};
use reground_learner::store::rows::Record;
use reground_learner::store::{Store, StoreError};

use crate::images::{ImageError, ImageReader};

/// The images of a record as the model saw them; `None` if one is missing or damaged.
///
/// # Errors
/// The store failed, or the server stops: why, as text.
pub async fn images(
    store: &Arc<Store>,
    reader: &ImageReader,
    record: &Record,
) -> Result<Option<Vec<Arc<DynamicImage>>>, String> {
    let mut images = Vec::with_capacity(record.images.len());
    for image in &record.images {
        let (store, digest) = (store.clone(), image.digest.clone());
        let read = move || match Blobs::get(&*store, &digest) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(StoreError::from(error)),
        };
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.map_err(|_| "the thread that used the store is gone".to_owned())?;
        let Some(bytes) = read.map_err(|error| error.to_string())? else {
            tracing::warn!(record.id, "An image of a record is missing or damaged");
            return Ok(None);
        };
        match reader.stored(bytes).await {
            Ok(image) => images.push(Arc::new(image)),
            Err(ImageError::ShuttingDown) => return Err(ImageError::ShuttingDown.to_string()),
            Err(error) => {
                tracing::warn!(record.id, %error, "An image of a record cannot be decoded");
                return Ok(None);
            }
        }
    }
    Ok(Some(images))
}

/// The conversation as the engine is asked it.
#[must_use]
pub fn turns(conversation: &[Message], images: &[Arc<DynamicImage>]) -> Vec<Turn> {
    let turn = |message: &Message| Turn {
        speaker: match message.role {
            Role::System => Speaker::System,
            Role::User => Speaker::User,
            Role::Assistant => Speaker::Assistant,
        },
        content: message
            .content
            .iter()
            .filter_map(|part| match part {
                Part::Image { index } => images.get(*index).cloned().map(Piece::Image),
                Part::Text { text } => Some(Piece::Text(text.clone())),
            })
            .collect(),
    };
    conversation.iter().map(turn).collect()
}

/// What a message says.
#[must_use]
pub fn text(message: &Message) -> String {
    let texts = message.content.iter().filter_map(|part| match part {
        Part::Text { text } => Some(text.as_str()),
        Part::Image { .. } => None,
    });
    texts.collect()
}
