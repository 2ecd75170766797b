//! Tokens to text, stop strings held back until they are sure not to come.

/// Builds the text of one answer.
///
/// White space before the first word is dropped: models write it as part of their first token, and no reader wants it.
/// Bytes that are no UTF-8 become U+FFFD, but only once it is sure that no later token completes them.
#[derive(Debug)]
pub(super) struct TextBuilder {
    stop: Vec<String>,
    /// Text that arrived and was not given out: it may turn out to begin a stop string.
    held: String,
    /// Bytes at the end that do not form a character yet.
    partial: Vec<u8>,
    begun: bool,
    stopped: bool,
}

impl TextBuilder {
    /// A builder that ends the text before the first of the stop strings, none of which is empty.
    #[must_use]
    pub(super) fn new(stop: Vec<String>) -> Self {
        Self { stop, held: String::new(), partial: Vec::new(), begun: false, stopped: false }
    }

    /// Takes a token's bytes and returns the text that is certain now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.partial.extend_from_slice(bytes);
        self.decode(false);
        self.release(false)
    }

    /// The rest of the text.
    pub(super) fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        self.decode(true);
        self.release(true)
    }

    /// Whether a stop string came.
    #[must_use]
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Moves complete characters from `partial` to `held`.
    fn decode(&mut self, last: bool) {
        let mut text = String::new();
        let mut rest = Vec::new();
        let mut chunks = self.partial.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            // Only the last bytes can still become a character, and only if they begin one.
            if !last && chunks.peek().is_none() && could_begin_character(chunk.invalid()) {
                rest = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.partial = rest;
        if !self.begun {
            text = text.trim_start().to_owned();
            self.begun = !text.is_empty();
        }
        self.held.push_str(&text);
    }

    /// Gives out what cannot be part of a stop string any more.
    fn release(&mut self, last: bool) -> String {
        let first_stop = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first_stop {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = if last { 0 } else { self.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0) };
        let certain = self.held.len() - keep;
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Length in bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).skip(1).filter(|&length| text.ends_with(&stop[..length])).max().unwrap_or(0)
}

/// Whether more bytes could make a character of these.
fn could_begin_character(bytes: &[u8]) -> bool {
    let length = match bytes.first() {
        Some(0xC2..=0xDF) => 2,
        Some(0xE0..=0xEF) => 3,
        Some(0xF0..=0xF4) => 4,
        _ => return false,
    };
    bytes.len() < length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(stop: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let mut builder = TextBuilder::new(stop.iter().map(ToString::to_string).collect());
        let mut pieces: Vec<String> = tokens.iter().map(|token| builder.push(token)).collect();
        pieces.push(builder.finish());
        (pieces, builder.is_stopped())
    }

    #[test]
    fn characters_wait_for_their_last_byte() {
        let (pieces, _) = build(&[], &[b"a\xC3", b"\xA9", b"\xF0\x9F", b"\x98\x80"]);
        assert_eq!(pieces, ["a", "é", "", "😀", ""]);
    }

    #[test]
    fn bytes_that_are_no_text_become_replacements() {
        let (pieces, _) = build(&[], &[b"a\xFF", b"b\xE2\x82", b"c\xE2"]);
        assert_eq!(pieces, ["a\u{FFFD}", "b", "\u{FFFD}c", "\u{FFFD}"]);
    }

    #[test]
    fn leading_space_is_dropped_and_inner_space_kept() {
        let (pieces, _) = build(&[], &[b" ", b"\n the", b" cat ", b" sat"]);
        assert_eq!(pieces.concat(), "the cat  sat");
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let (pieces, stopped) = build(&["STOP", "x"], &[b"go S", b"TO", b"P now"]);
        assert_eq!((pieces.concat().as_str(), stopped), ("go ", true));
        assert_eq!(pieces[0], "go ");
    }

    #[test]
    fn what_only_looked_like_a_stop_string_comes_late() {
        let (pieces, stopped) = build(&["STOP"], &[b"a ST", b"ART", b" ST"]);
        assert_eq!((pieces.as_slice(), stopped), (["a ", "START", " ", "ST"].map(String::from).as_slice(), false));
    }

    #[test]
    fn the_earliest_stop_string_wins() {
        assert_eq!(build(&["b", "ab"], &[b"xaby"]).0.concat(), "x");
    }

    proptest! {
        /// However the bytes are cut into tokens, the text is the same.
        #[test]
        fn cuts_do_not_matter(bytes in proptest::collection::vec(any::<u8>(), 0..60), cuts in proptest::collection::vec(0_usize..60, 0..8), stop in "[ab]{1,3}") {
            let whole = build(&[&stop], &[&bytes]).0.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let tokens: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let text = build(&[&stop], &tokens).0.concat();
            prop_assert!(!text.contains(&stop));
            prop_assert_eq!(text, whole);
        }

        /// Without stop strings the text is what the standard library makes of the bytes.
        #[test]
        fn agrees_with_lossy_decoding(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let tokens: Vec<&[u8]> = bytes.chunks(1).collect();
            let text = build(&[], &tokens).0.concat();
            let lossy = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(text, lossy.trim_start());
        }
    }
}
