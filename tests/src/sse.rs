//! Server-sent events out of a stream of bytes.

/// Cuts bytes into events; what is not complete waits for more.
#[derive(Debug, Default)]
pub(crate) struct Events {
    rest: Vec<u8>,
}

/// One event, or a comment that only keeps the connection open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The `data` lines.
    Data(String),
    /// A line that begins with a colon.
    Comment,
}

impl Events {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next complete event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let end = self.rest.windows(2).position(|pair| pair == b"\n\n")?;
        let block: Vec<u8> = self.rest.drain(..end + 2).collect();
        let text = String::from_utf8_lossy(&block);
        let data: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .map(|line| line.strip_prefix(' ').unwrap_or(line))
            .collect();
        Some(if data.is_empty() { Event::Comment } else { Event::Data(data.join("\n")) })
    }

    /// What came of an event that is not complete.
    pub(crate) fn torn(&self) -> Option<String> {
        (!self.rest.is_empty()).then(|| String::from_utf8_lossy(&self.rest).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_in_pieces_of_any_size() {
        let text = b"data: {\"a\":1}\n\n: keep-alive\n\ndata: [DONE]\n\n";
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut seen = Vec::new();
            for piece in text.chunks(size) {
                events.push(piece);
                while let Some(event) = events.next() {
                    seen.push(event);
                }
            }
            assert_eq!(seen, [Event::Data("{\"a\":1}".into()), Event::Comment, Event::Data("[DONE]".into())]);
            assert_eq!(events.torn(), None);
        }
    }
}
