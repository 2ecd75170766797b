//! The keys in sled. Text, so that a dump of the store reads by itself:
//!
//! `r/<kind>/<id>` a row · `x/<kind>/<index>/<value>/<id>` where it can be found · `b/<digest>/<kind>/<id>` who needs a blob.

/// A row.
pub(super) fn row(kind: &str, id: &str) -> String {
    format!("r/{kind}/{id}")
}

/// What the keys of all rows of a kind begin with.
pub(super) fn rows(kind: &str) -> String {
    format!("r/{kind}/")
}

/// What the keys of all indexes of a kind begin with.
pub(super) fn all_indexes(kind: &str) -> String {
    format!("x/{kind}/")
}

/// What the keys of an index begin with.
pub(super) fn indexes(kind: &str, index: &str) -> String {
    format!("x/{kind}/{index}/")
}

/// The value, as it is escaped, in a key of an index.
pub(super) fn value(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()?.rsplit('/').nth(1)
}

/// What the keys of all rows with a value begin with.
pub(super) fn index(kind: &str, index: &str, value: &str) -> String {
    format!("{}{}/", indexes(kind, index), escaped(value))
}

/// What the keys of all needs of blobs begin with.
pub(super) const NEEDS: &str = "b/";

/// What the keys of all that need a blob begin with.
pub(super) fn blob(digest: &str) -> String {
    format!("b/{digest}/")
}

/// That a row needs a blob.
pub(super) fn needs(digest: &str, kind: &str, id: &str) -> String {
    format!("b/{digest}/{kind}/{id}")
}

/// Digest, kind and id of a need; `None` for another key.
pub(super) fn needed(key: &[u8]) -> Option<(&str, &str, &str)> {
    let mut parts = std::str::from_utf8(key).ok()?.strip_prefix(NEEDS)?.splitn(3, '/');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// The last part of a key: ids have no slash.
pub(super) fn id(key: &[u8]) -> &str {
    std::str::from_utf8(key).ok().and_then(|key| key.rsplit('/').next()).unwrap_or_default()
}

/// A value without slashes. Long ones, which clients could send, are cut to a digest.
fn escaped(value: &str) -> String {
    if value.len() > 200 {
        return format!("%{}", blake3::hash(value.as_bytes()).to_hex());
    }
    value.replace('%', "%25").replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_reaches_into_another() {
        assert_eq!(index("record", "metadata", "a/b=c%"), "x/record/metadata/a%2Fb=c%25/");
        assert_eq!(value(b"x/feedback/record/chatcmpl-1/fb-1"), Some("chatcmpl-1"));
        let long = |end: &str| index("record", "metadata", &("x".repeat(300) + end));
        assert_ne!(long("a"), long("b"));
        assert_eq!(needed(needs("d1", "file", "file-1").as_bytes()), Some(("d1", "file", "file-1")));
        assert_eq!(needed(b"x/record/key"), None);
        assert_eq!(id(b"x/record/metadata/a%2Fb/chatcmpl-1"), "chatcmpl-1");
    }
}
