//! Ids: a prefix that says of what, and a UUIDv7, so that the order of ids is the order in which things came to be.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// A new id behind a prefix: `chatcmpl-…`, `fb-…`, `pair-…`, `ftjob-…`, `ad-…`, `file-…`, `audit-…`.
#[must_use]
pub fn new(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::now_v7())
}

/// Whether `id` can be one: 1 to 128 letters, digits, `-`, `_` or `.`, with a letter or digit first, so that it names no other directory
/// than its own.
#[must_use]
pub fn is_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.as_bytes()[0].is_ascii_alphanumeric()
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Now, in milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_ids_is_the_order_of_time() {
        let ids: Vec<String> = (0..10_000).map(|_| new("pair")).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().all(|id| is_id(id)));
        assert!(!is_id("") && !is_id("a/b") && !is_id(&"a".repeat(129)));
        assert!(!is_id(".") && !is_id("..") && !is_id(".hidden") && is_id("a..b"));
    }
}
