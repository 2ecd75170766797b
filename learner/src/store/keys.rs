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

/// What the keys of all rows with a value begin with.
pub(super) fn index(kind: &str, index: &str, value: &str) -> String {
    format!("x/{kind}/{index}/{}/", escaped(value))
}

/// What the keys of all that need a blob begin with.
pub(super) fn blob(digest: &str) -> String {
    format!("b/{digest}/")
}

/// That a row needs a blob.
pub(super) fn needs(digest: &str, kind: &str, id: &str) -> String {
    format!("b/{digest}/{kind}/{id}")
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
        let long = |end: &str| index("record", "metadata", &("x".repeat(300) + end));
        assert_ne!(long("a"), long("b"));
        assert_eq!(id(b"x/record/metadata/a%2Fb/chatcmpl-1"), "chatcmpl-1");
    }
}
