//! Reading a JSON body by hand: limits before parsing, and errors that name the path.
//!
//! Derived deserialisation would be shorter, but its messages name a line, not `messages[1].content[0].image_url.url`,
//! and it either ignores unknown fields or refuses them without saying which.

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{ApiError, code, shown};

/// Deepest nesting of arrays and objects. JSON schemas of tools need about ten.
const MAX_DEPTH: usize = 64;

/// Most values in one body. A parsed value takes about a hundred bytes, the shortest one is two bytes of body: without
/// this limit a body within its size limit could take fifty times its size in memory.
const MAX_VALUES: usize = 200_000;

/// Parses a body.
///
/// # Errors
/// 400 with the position: no JSON, too deeply nested, or too many values.
pub(super) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad_request(code::INVALID_JSON, "the body is empty; it must be a JSON object"));
    }
    check_limits(body)?;
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(code::INVALID_JSON, format!("the body is no JSON: {error}")))
}

/// Depth and number of values, counted without building any. Bytes that are no JSON are left to the parser.
fn check_limits(body: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut values) = (0_usize, 1_usize);
    let mut bytes = body.iter().enumerate();
    while let Some((position, byte)) = bytes.next() {
        match byte {
            b'"' => {
                // To the closing quote, over escaped ones.
                while let Some((_, byte)) = bytes.next() {
                    match byte {
                        b'\\' => {
                            bytes.next();
                        }
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'[' | b'{' => {
                depth += 1;
                values += 1;
                if depth > MAX_DEPTH {
                    let message = format!("the body nests deeper than {MAX_DEPTH} levels at byte {position}");
                    return Err(ApiError::bad_request(code::INVALID_JSON, message));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if values > MAX_VALUES {
            let message = format!("the body has more than {MAX_VALUES} values at byte {position}");
            return Err(ApiError::bad_request(code::INVALID_JSON, message));
        }
    }
    Ok(())
}

/// Where a value stands in the body. Written out only when an error needs it.
#[derive(Clone, Copy)]
pub(super) enum Path<'a> {
    /// The body itself.
    Root,
    /// A field of an object.
    Key(&'a Path<'a>, &'a str),
    /// An element of an array.
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub(super) fn key(&'a self, key: &'a str) -> Self {
        Self::Key(self, key)
    }

    pub(super) fn index(&'a self, index: usize) -> Self {
        Self::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(&shown(key)),
            Self::Key(parent, key) => write!(f, "{parent}.{}", shown(key)),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// An object that is taken apart field by field; what is left over is refused by name.
pub(super) struct Fields<'a> {
    at: &'a Path<'a>,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// # Errors
    /// The value is no object.
    pub(super) fn of(value: Value, at: &'a Path<'a>) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { at, map, known: Vec::new() }),
            other => Err(wrong_type(&other, at, "an object")),
        }
    }

    /// A field that may be absent or `null`.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value, &Path<'_>) -> Result<T, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        self.known.push(key);
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value, &self.at.key(key)).map(Some),
        }
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// It is absent or `null`, or those of `read`.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Value, &Path<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let at = self.at.key(key);
        self.optional(key, read)?
            .ok_or_else(|| ApiError::bad_request(code::MISSING, format!("`{at}` is missing")).at(at))
    }

    /// A field of OpenAI's that this server does not support: `null` is taken, anything else is refused.
    ///
    /// # Errors
    /// It is there.
    pub(super) fn refused(&mut self, key: &'static str, reason: &str) -> Result<(), ApiError> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(()),
            Some(_) => {
                let at = self.at.key(key);
                let message = format!("`{at}` is not supported: {reason}");
                Err(ApiError::bad_request(code::UNSUPPORTED_PARAMETER, message).at(at))
            }
        }
    }

    /// Ends the object.
    ///
    /// # Errors
    /// A field is left over that nobody asked for.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(unknown) => {
                let at = self.at.key(unknown);
                let message = format!("unknown parameter `{at}`; known here: {}", self.known.join(", "));
                Err(ApiError::bad_request(code::UNSUPPORTED_PARAMETER, message).at(at))
            }
        }
    }
}

/// 400: the value has another type than it must have.
pub(super) fn wrong_type(value: &Value, at: &Path<'_>, expected: &str) -> ApiError {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let error = |name: &dyn fmt::Display| {
        ApiError::bad_request(code::INVALID_TYPE, format!("{name} must be {expected}, not {found}"))
    };
    match at {
        Path::Root => error(&"the body"),
        at => error(&format_args!("`{at}`")).at(at),
    }
}

/// A string.
pub(super) fn string(value: Value, at: &Path<'_>) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&other, at, "a string")),
    }
}

/// A string of at most so many characters.
pub(super) fn short_string(value: Value, at: &Path<'_>, most: usize) -> Result<String, ApiError> {
    let text = string(value, at)?;
    if text.chars().nth(most).is_some() {
        return Err(ApiError::invalid(at, format!("`{at}` has more than {most} characters")));
    }
    Ok(text)
}

/// The name of a function or a schema: 1 to 64 letters, digits, `_` or `-`.
pub(super) fn name(value: Value, at: &Path<'_>) -> Result<String, ApiError> {
    let name = string(value, at)?;
    let well_formed = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if well_formed {
        Ok(name)
    } else {
        let message = format!("`{at}` must be 1 to 64 letters, digits, `_` or `-`, not `{}`", shown(&name));
        Err(ApiError::invalid(at, message))
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: Value, at: &Path<'_>) -> Result<bool, ApiError> {
    match value {
        Value::Bool(value) => Ok(value),
        other => Err(wrong_type(&other, at, "true or false")),
    }
}

/// An array.
pub(super) fn array(value: Value, at: &Path<'_>) -> Result<Vec<Value>, ApiError> {
    match value {
        Value::Array(values) => Ok(values),
        other => Err(wrong_type(&other, at, "an array")),
    }
}

/// A JSON object, kept as it is.
pub(super) fn object(value: Value, at: &Path<'_>) -> Result<Value, ApiError> {
    match value {
        Value::Object(_) => Ok(value),
        other => Err(wrong_type(&other, at, "an object")),
    }
}

/// A whole number in a range.
pub(super) fn integer(value: Value, at: &Path<'_>, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    let Value::Number(number) = &value else { return Err(wrong_type(&value, at, "a whole number")) };
    match number.as_i64() {
        Some(number) if range.contains(&number) => Ok(number),
        _ => {
            let (low, high) = (range.start(), range.end());
            let message = format!("`{at}` must be a whole number from {low} to {high}, not {number}");
            Err(ApiError::invalid(at, message))
        }
    }
}

/// A whole number in a range of sizes.
pub(super) fn size(value: Value, at: &Path<'_>, range: RangeInclusive<u32>) -> Result<usize, ApiError> {
    let range = i64::from(*range.start())..=i64::from(*range.end());
    let number = integer(value, at, range)?;
    usize::try_from(number).map_err(|_| ApiError::invalid(at, format!("`{at}` must not be {number}")))
}

/// A number in a range.
pub(super) fn number(value: Value, at: &Path<'_>, range: RangeInclusive<f64>) -> Result<f64, ApiError> {
    let Value::Number(number) = &value else { return Err(wrong_type(&value, at, "a number")) };
    match number.as_f64() {
        Some(number) if range.contains(&number) => Ok(number),
        _ => {
            let (low, high) = (range.start(), range.end());
            Err(ApiError::invalid(at, format!("`{at}` must be from {low} to {high}, not {number}")))
        }
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(value: Value, at: &Path<'_>, words: &[(&str, T)]) -> Result<T, ApiError> {
    let text = string(value, at)?;
    words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let allowed: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        ApiError::unsupported(at, format!("`{at}` cannot be `{}`; allowed: {}", shown(&text), allowed.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn depth_and_number_of_values_are_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(64).as_bytes()).is_ok());
        assert!(parse(nested(65).as_bytes()).unwrap_err().message.contains("64 levels"));
        assert!(parse("[".repeat(5_000_000).as_bytes()).is_err());
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert!(parse(many.as_bytes()).unwrap_err().message.contains("200000 values"));
        // Brackets and commas inside strings do not count.
        let text = format!("\"{}\\\"[\"", "[,".repeat(300_000));
        assert!(parse(text.as_bytes()).is_ok());
    }

    #[test]
    fn a_path_reads_as_one_would_write_it() {
        let messages = Path::Root.key("messages");
        let second = messages.index(1);
        let url = second.key("url");
        assert_eq!(url.to_string(), "messages[1].url");
    }

    #[test]
    fn fields_left_over_are_named() {
        let mut fields = Fields::of(json!({"a": 1, "b": null}), &Path::Root).unwrap();
        assert_eq!(fields.optional("a", |value, _| Ok(value)).unwrap(), Some(json!(1)));
        let error = fields.finish().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("b"));
        assert!(error.message.ends_with("known here: a"), "{}", error.message);
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let at = Path::Root.key("x");
        assert_eq!(integer(json!(5), &at, 1..=5).unwrap(), 5);
        for wrong in [json!(6), json!(5.0), json!(1e30), json!(u64::MAX)] {
            assert_eq!(integer(wrong, &at, 1..=5).unwrap_err().code, code::INVALID_VALUE);
        }
        assert!(number(json!(2), &at, 0.0..=2.0).is_ok());
        assert_eq!(number(json!("2"), &at, 0.0..=2.0).unwrap_err().code, code::INVALID_TYPE);
    }
}
