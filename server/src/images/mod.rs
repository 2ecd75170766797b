//! Images as they come in: checked from the outside in, decoded last.
//!
//! An image is the largest and most dangerous thing that a stranger sends, so each step refuses what the next one must not
//! see: the URL before anything is fetched, the length before base64 is decoded, the header before a pixel is, and the
//! memory that decoding needs is reserved before it is used.
//!
//! # Layout
//! - [`ImageReader`], [`ReadImage`]: from a URL to pixels; the budget of one request (`reader`, `budget`).
//! - [`ImageError`], [`FailedImage`]: why not, with what is allowed (`error`).
//! - [`Format`]: the five formats, told by their first bytes; the others by name (`format`).
//! - `data_url`: `data:image/png;base64,…`.
//! - `fetch`: http(s) with its rules; [`Resolver`], [`Transport`]: the two things that touch the network (`network`,
//!   `direct`); [`is_public`]: which addresses may be spoken to (`address`).
//! - [`Pixels`]: a decoded image with its share of what all of them may take (`pixels`).
//! - `decode`: header checks, decoding, colour, orientation; `jpeg`, `webp`: what their decoders do not check themselves;
//!   `decoders`: how much is decoded at once.

mod address;
mod budget;
mod data_url;
mod decode;
mod decoders;
mod direct;
mod error;
mod fetch;
#[cfg(test)]
mod fixtures;
mod format;
mod jpeg;
mod network;
mod pixels;
mod reader;
mod webp;

pub use address::is_public;
pub use direct::{DirectTransport, SystemResolver};
pub use error::{FailedImage, ImageError};
pub use format::Format;
pub use network::{Hop, Reply, Resolver, Transport, TransportError};
pub use pixels::Pixels;
pub use reader::{ImageReader, ReadImage};
