//! Which JSON schemas are little work to compile.
//!
//! `llguidance` has limits of its own, but not for everything: some schemas of a few hundred bytes keep its compiler busy for hours, in
//! all memory that there is.

use std::collections::HashMap;

use serde_json::{Number, Value};

use super::EngineError;

/// Most values of a schema; OpenAI's 5,000 properties are some 15,000.
const MAX_VALUES: usize = 20_000;
/// Most entries of one object or list in it: what it takes to compile the properties of an object grows with their square.
const MAX_WIDTH: usize = 1_000;
/// Most bytes of its keys and strings, descriptions included.
const MAX_TEXT: usize = 256 << 10;
/// Most values of all `enum`s and schemas of all `anyOf`, `oneOf` and `allOf`: each is combined with what else is said beside it.
const MAX_ALTERNATIVES: usize = 1_000;
/// Most `$ref`s: the compiler follows a chain of them by calling itself.
const MAX_REFERENCES: usize = 1_000;
/// Largest least common multiple of all `multipleOf`s, in units of their last decimal: the compiler makes a state of each remainder.
const MAX_MULTIPLE: u64 = 10_000;
/// Most patterns and formats that one string has to match at once: their ways to go on are multiplied.
const MAX_PATTERNS: usize = 2;
/// Where there are two: the most repetitions in a pattern, each of which may be a way to go on.
const MAX_REPEATS: usize = 50;
/// As well: the longest pattern, bytes.
const MAX_PATTERN: usize = 1_000;
/// Most `patternProperties`: each is compared with each.
const MAX_PATTERN_PROPERTIES: usize = 50;

/// Whether a schema is small.
///
/// # Errors
/// It is not; by what is said.
pub(super) fn check_size(schema: &Value) -> Result<(), EngineError> {
    let (mut values, mut width, mut text, mut alternatives, mut references) = (0, 0, 0, 0, 0);
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        values += 1;
        match value {
            Value::String(string) => text += string.len(),
            Value::Array(items) => {
                width = width.max(items.len());
                open.extend(items);
            }
            Value::Object(fields) => {
                width = width.max(fields.len());
                for (key, value) in fields {
                    text += key.len();
                    match key.as_str() {
                        "enum" | "anyOf" | "oneOf" | "allOf" => alternatives += value.as_array().map_or(0, Vec::len),
                        "$ref" => references += 1,
                        _ => {}
                    }
                    open.push(value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    within("values", values, MAX_VALUES)?;
    within("entries in one object or list", width, MAX_WIDTH)?;
    within("bytes of keys and strings", text, MAX_TEXT)?;
    within("alternatives in enum, anyOf, oneOf and allOf", alternatives, MAX_ALTERNATIVES)?;
    within("$refs", references, MAX_REFERENCES)
}

fn within(what: &str, count: usize, most: usize) -> Result<(), EngineError> {
    if count <= most {
        return Ok(());
    }
    Err(EngineError::Invalid(format!("the JSON schema has {count} {what}; allowed: at most {most}")))
}

/// Whether what a small schema says is little work. Calls itself for each `$ref`.
///
/// # Errors
/// It is not; by what is said.
pub(super) fn check_work(schema: &Value) -> Result<(), EngineError> {
    let (mut multiple, mut repeats, mut longest, mut named) = (1, 0, 0, 0);
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                for (key, value) in fields {
                    match (key.as_str(), value) {
                        ("multipleOf", Value::Number(number)) => multiple = common(multiple, units(number)),
                        ("pattern", Value::String(pattern)) => {
                            repeats = repeats.max(most_repeats(pattern));
                            longest = longest.max(pattern.len());
                        }
                        ("patternProperties", Value::Object(patterns)) => named += patterns.len(),
                        _ => {}
                    }
                    open.push(value);
                }
            }
            _ => {}
        }
    }
    if multiple > MAX_MULTIPLE {
        let message = format!(
            "the JSON schema has values of `multipleOf` whose least common multiple, without its decimal point, is above {MAX_MULTIPLE}"
        );
        return Err(EngineError::Invalid(message));
    }
    within("patternProperties", named, MAX_PATTERN_PROPERTIES)?;
    let patterns = Patterns { root: schema, behind: HashMap::new() }.most(schema);
    within("patterns and formats that one string has to match", patterns, MAX_PATTERNS)?;
    if patterns > 1 {
        within("repetitions in a pattern beside another", repeats, MAX_REPEATS)?;
        within("bytes of a pattern beside another", longest, MAX_PATTERN)?;
    }
    Ok(())
}

/// A number without its decimal point, 0.25 being 25.
fn units(number: &Number) -> u64 {
    let Some(mut value) = number.as_f64().filter(|value| *value > 0.0) else { return 1 };
    if value < 1e-15 {
        return u64::MAX;
    }
    while value.fract() != 0.0 && value < 1e18 {
        value *= 10.0;
    }
    value as u64
}

fn common(a: u64, b: u64) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor.max(1)).saturating_mul(b)
}

/// The largest number in braces.
fn most_repeats(pattern: &str) -> usize {
    let inside = pattern.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    inside.flat_map(|range| range.split(',')).filter_map(|number| number.trim().parse().ok()).max().unwrap_or(0)
}

/// Counts patterns that one string may have to match at once.
struct Patterns<'a> {
    root: &'a Value,
    /// What was found behind a `$ref`; 0 while it is looked at.
    behind: HashMap<&'a str, usize>,
}

impl<'a> Patterns<'a> {
    fn most(&mut self, schema: &'a Value) -> usize {
        let fields = match schema {
            Value::Array(items) => return items.iter().map(|item| self.most(item)).max().unwrap_or(0),
            Value::Object(fields) => fields,
            _ => return 0,
        };
        // Of the schema's own and of what it says of parts; and of what is combined with either.
        let (mut own, mut parts, mut beside) = (0, 0, 0_usize);
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("pattern" | "format", Value::String(_)) => own += 1,
                ("allOf", Value::Array(all)) => {
                    beside = all.iter().fold(beside, |sum, one| sum.saturating_add(self.most(one)));
                }
                ("anyOf" | "oneOf", _) => beside = beside.saturating_add(self.most(value)),
                ("$ref", Value::String(name)) => beside = beside.saturating_add(self.behind(name)),
                ("properties" | "patternProperties" | "dependentSchemas", Value::Object(named)) => {
                    parts = named.values().fold(parts, |most, one| most.max(self.most(one)));
                }
                ("$defs" | "definitions" | "const" | "enum" | "default" | "examples", _) => {}
                _ => parts = parts.max(self.most(value)),
            }
        }
        own.max(parts).saturating_add(beside)
    }

    fn behind(&mut self, name: &'a str) -> usize {
        if let Some(found) = self.behind.get(name) {
            return *found;
        }
        self.behind.insert(name, 0);
        let found = name.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let found = found.map_or(0, |schema| self.most(schema));
        self.behind.insert(name, found);
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::engine::Vocabulary;
    use crate::engine::grammar::Grammar;
    use crate::engine::source::golden;

    /// Refused or not, what is as large as is allowed neither overflows a stack nor takes for ever.
    #[test]
    fn the_largest_schemas_do_no_harm() {
        let vocabulary = Vocabulary::read(&golden("model"), Some(342)).unwrap();
        let numbered = |prefix: &str, count: usize, value: &Value| -> Value {
            (0..count).map(|at| (format!("{prefix}{at}"), value.clone())).collect::<Map<_, _>>().into()
        };
        let mut chain: Map<String, Value> = (0..MAX_REFERENCES - 1)
            .map(|at| (format!("a{at}"), json!({"$ref": format!("#/$defs/a{}", at + 1)})))
            .collect();
        chain.insert(format!("a{}", MAX_REFERENCES - 1), json!({"type": "null"}));
        for schema in [
            json!({"$ref": "#/$defs/a0", "$defs": chain}),
            json!({"type": "object", "properties": numbered("p", 9, &json!({
                "type": "object", "properties": numbered("q", MAX_WIDTH, &json!({"type": "null"}))}))}),
            json!({"const": numbered("", 18, &numbered("", MAX_WIDTH, &json!(0))),
                "enum": (0..MAX_ALTERNATIVES).collect::<Vec<_>>()}),
            json!({"properties": numbered("p", MAX_WIDTH, &json!(true)),
                "anyOf": vec![json!({"required": ["p1"]}); MAX_ALTERNATIVES]}),
            json!({"type": "integer", "minimum": 3, "multipleOf": MAX_MULTIPLE - 1}),
            json!({"type": "string", "allOf": [{"pattern": format!("(.*a){{{MAX_REPEATS}}}")},
                {"pattern": format!("(.*b){{{MAX_REPEATS}}}")}]}),
            json!({"type": "string", "minLength": 9, "pattern": "(.*a){1000}"}),
        ] {
            let grammar = Grammar::JsonSchema(schema);
            grammar.check_size().unwrap();
            let error = grammar.matcher(&vocabulary).err();
            assert!(matches!(error, None | Some(EngineError::Invalid(_))), "{error:?}");
        }
    }

    #[test]
    fn a_schema_that_is_too_large_is_refused_with_what_is_allowed() {
        let vocabulary = Vocabulary::read(&golden("model"), Some(342)).unwrap();
        let references = json!([vec![json!({"$ref": "#/$defs/a"}); 501], vec![json!({"$ref": "#/$defs/a"}); 501]]);
        for (schema, what) in [
            (json!({"const": vec![vec![0; 999]; 20]}), "20002 values; allowed: at most 20000"),
            (json!({"required": vec!["a"; MAX_WIDTH + 1]}), "1001 entries in one object or list"),
            (json!({"description": "a".repeat(MAX_TEXT)}), "bytes of keys and strings"),
            (json!({"anyOf": [{"enum": (0..MAX_ALTERNATIVES).collect::<Vec<_>>()}]}), "1001 alternatives"),
            (json!({"prefixItems": [references]}), "1002 $refs; allowed: at most 1000"),
        ] {
            let error = Grammar::JsonSchema(schema).matcher(&vocabulary).err().unwrap();
            assert!(matches!(&error, EngineError::Invalid(why) if why.contains(what)), "{error:?} instead of {what}");
        }
    }

    #[test]
    fn what_is_much_work_is_refused_with_what_is_allowed() {
        let pattern = |text: &str| json!({"type": "string", "pattern": text});
        let refused = |schema: Value, what: &str| {
            let error = check_work(&schema).unwrap_err().to_string();
            assert!(error.contains(what), "{error:?} instead of {what}");
        };
        refused(json!({"type": "integer", "minimum": 0, "multipleOf": 9_999_999}), "above 10000");
        refused(json!({"type": "number", "minimum": 3, "multipleOf": 7.951_165_7e-16}), "above 10000");
        refused(json!({"allOf": [{"multipleOf": 997}, {"multipleOf": 0.101}]}), "above 10000");
        refused(
            json!({"allOf": (2..30).map(|k| pattern(&format!("(.*a){{{k}}}"))).collect::<Vec<_>>()}),
            "28 patterns",
        );
        refused(json!({"allOf": [pattern("(.*a){2,51}"), pattern("b")]}), "51 repetitions");
        let defs = json!({"a": {"$ref": "#/$defs/b", "pattern": "a"}, "b": {"$ref": "#/$defs/c", "pattern": "b"}, "c": pattern("c")});
        refused(json!({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": defs}), "3 patterns");
        refused(json!({"allOf": [pattern(&"a".repeat(1001)), pattern("b")]}), "1001 bytes of a pattern");
        let named: Map<_, _> = (0..51).map(|at| (format!("^{at}$"), json!(true))).collect();
        refused(json!({"patternProperties": named}), "51 patternProperties");
        refused(json!({"anyOf": [{"anyOf": [pattern("a")], "pattern": "b"}], "format": "date"}), "3 patterns");
    }

    #[test]
    fn what_people_ask_for_is_little_work() {
        let date = json!({"type": "string", "format": "date"});
        let name = json!({"type": "string", "pattern": "^[a-z]{1,200}$", "maxLength": 100});
        let optional = |schema: &Value| json!({"anyOf": [schema, {"type": "null"}], "default": null});
        for schema in [
            json!({"type": "object", "properties": {"a": date, "b": name, "c": optional(&date), "d": optional(&name),
                "e": {"type": "number", "multipleOf": 0.25}, "f": {"type": "integer", "multipleOf": 60}}}),
            json!({"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"more": date}}],
                "$defs": {"base": {"properties": {"at": date}}}}),
            json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object",
                "properties": {"name": date, "next": {"$ref": "#/$defs/node"}}}}}),
        ] {
            check_work(&schema).unwrap();
        }
    }
}
