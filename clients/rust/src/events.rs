//! Server-sent events out of a stream of bytes.

/// Cuts bytes into the data of events; comments are left out, what is not complete waits for more.
#[derive(Debug, Default)]
pub(crate) struct Events {
    rest: Vec<u8>,
    /// Bytes at the start of `rest` in which no event ends.
    searched: usize,
}

impl Events {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The data of the next complete event.
    pub(crate) fn next(&mut self) -> Option<String> {
        loop {
            let from = self.searched.saturating_sub(1);
            let Some(end) = self.rest[from..].windows(2).position(|pair| pair == b"\n\n") else {
                self.searched = self.rest.len();
                return None;
            };
            let block: Vec<u8> = self.rest.drain(..from + end + 2).collect();
            self.searched = 0;
            let text = String::from_utf8_lossy(&block);
            let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
            let data: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_in_pieces_of_any_size() {
        let text = "data: {\"a\":\"\u{e9}\"}\n\n: keep-alive\n\ndata: x\ndata: y\n\n".as_bytes();
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut seen = Vec::new();
            for piece in text.chunks(size) {
                events.push(piece);
                while let Some(data) = events.next() {
                    seen.push(data);
                }
            }
            assert_eq!(seen, ["{\"a\":\"\u{e9}\"}", "x\ny"], "in pieces of {size}");
        }
    }
}
