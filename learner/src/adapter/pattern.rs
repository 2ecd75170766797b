//! PEFT's rules for matching module paths.
//!
//! Python's `re` and Rust's `regex` agree on everything that adapters are seen to use; look-around and back-references
//! exist only in Python, and a pattern that needs them does not compile here.

use regex::{Regex, RegexBuilder};

/// Bytes that a compiled pattern may take. Those of real adapters take a few thousand; one of nested repetitions takes tens of
/// milliseconds to compile, and a small file holds hundreds of them.
const MAX_SIZE: usize = 256 << 10;

/// A pattern of `rank_pattern` / `alpha_pattern`: PEFT's `re.match(rf"(.*\.)?({key})$", module)`.
pub(super) fn suffix(pattern: &str) -> Result<Regex, regex::Error> {
    compile(&format!(r"^(?:.*\.)?(?:{pattern})$"))
}

/// A `target_modules` that is one string: PEFT's `re.fullmatch`.
pub(super) fn full(pattern: &str) -> Result<Regex, regex::Error> {
    compile(&format!(r"^(?:{pattern})$"))
}

fn compile(expression: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(expression).size_limit(MAX_SIZE).build()
}

/// An entry of a `target_modules` list: the whole path, or its last components.
pub(super) fn listed(entry: &str, module: &str) -> bool {
    module == entry || module.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_entry_matches_whole_components() {
        assert!(listed("q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(listed("layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(!listed("proj", "model.layers.0.self_attn.q_proj"));
        assert!(!listed("1.self_attn.q_proj", "model.layers.11.self_attn.q_proj"));
    }

    #[test]
    fn a_rank_pattern_is_anchored_at_the_end_only() {
        let pattern = suffix(r"layers\.[01]\.self_attn\.q_proj").unwrap();
        assert!(pattern.is_match("model.text_model.layers.1.self_attn.q_proj"));
        assert!(!pattern.is_match("model.text_model.layers.2.self_attn.q_proj"));
        assert!(!pattern.is_match("model.text_model.layers.1.self_attn.q_proj.extra"));
        let anchored = suffix("^model.layers.0.q_proj").unwrap();
        assert!(anchored.is_match("model.layers.0.q_proj"));
        assert!(!anchored.is_match("vision.model.layers.0.q_proj"));
    }

    #[test]
    fn a_pattern_that_is_slow_to_compile_is_refused() {
        // The first took thirty milliseconds to compile.
        for slow in [r"(\w{40}){3}", r"(.{99}){99}"] {
            assert!(suffix(slow).is_err() && full(slow).is_err(), "{slow}");
        }
        let long = (0..99).map(|layer| format!(r"model\.layers\.{layer}\.self_attn\.[qkvo]_proj")).collect::<Vec<_>>();
        for fine in [r".*\.(text|vision)_model\.\w+\.\d+\.(q|k|v|o)_proj", &long.join("|")] {
            assert!(suffix(fine).is_ok() && full(fine).is_ok(), "{fine}");
        }
    }
}
