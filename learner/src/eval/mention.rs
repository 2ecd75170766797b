//! From a caption to what it mentions.

use std::collections::HashMap;
use std::path::Path;

use super::error::EvalError;

/// One mention of an object, with the attributes that the caption gives it. Names are canonical.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mention {
    /// The object's canonical name.
    pub object: String,
    /// The colour it is said to have.
    pub colour: Option<String>,
    /// How many are said to be there.
    pub count: Option<u32>,
    /// Where it is said to be.
    pub place: Option<String>,
}

/// What a caption says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Mentions in order; the same object may be mentioned more than once.
    pub mentions: Vec<Mention>,
    /// Whether the text is not a caption at all (garbled); readers that cannot tell say `false`.
    pub malformed: bool,
}

/// Reads captions.
pub trait CaptionReader {
    /// What `caption` says.
    fn read(&self, caption: &str) -> Said;

    /// The name that mentions of the annotated object `name` have. Unknown names stand for themselves.
    fn canonical(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// A reader that looks for known names: CHAIR's method, for photographs and free text.
///
/// Words are compared in lower case with their plural ending removed; of several names that fit, the longest wins, so
/// that "hot dog" is not a dog.
#[derive(Clone, Debug)]
pub struct Synonyms {
    /// Singular words of a name → canonical name.
    names: HashMap<Vec<String>, String>,
    longest: usize,
}

impl Synonyms {
    /// From groups of names; the first of each group is the canonical one. A name in two groups belongs to the first.
    pub fn new<G, N>(groups: G) -> Self
    where
        G: IntoIterator<Item = N>,
        N: IntoIterator<Item = String>,
    {
        let mut names = HashMap::new();
        for group in groups {
            let mut canonical: Option<String> = None;
            for name in group {
                let words = singular_words(&name);
                if words.is_empty() {
                    continue;
                }
                let canonical = canonical.get_or_insert_with(|| name.trim().to_lowercase());
                names.entry(words).or_insert_with(|| canonical.clone());
            }
        }
        let longest = names.keys().map(Vec::len).max().unwrap_or(0);
        Self { names, longest }
    }

    /// Reads CHAIR's `synonyms.txt`: one object a line, names separated by commas, canonical name first. Empty lines and
    /// lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// An unreadable file, a line with an empty name, or a file without names.
    pub fn from_file(path: &Path) -> Result<Self, EvalError> {
        let text = fs_err::read_to_string(path)?;
        let mut groups = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let group: Vec<String> = line.split(',').map(|name| name.trim().to_owned()).collect();
            if let Some(position) = group.iter().position(String::is_empty) {
                return Err(EvalError::Line {
                    path: path.to_owned(),
                    line: index + 1,
                    reason: format!("name {} of {} is empty", position + 1, group.len()),
                });
            }
            groups.push(group);
        }
        if groups.is_empty() {
            return Err(EvalError::Empty(path.display().to_string()));
        }
        Ok(Self::new(groups))
    }
}

impl CaptionReader for Synonyms {
    fn read(&self, caption: &str) -> Said {
        let words = singular_words(caption);
        let mut mentions = Vec::new();
        let mut position = 0;
        while position < words.len() {
            let reach = self.longest.min(words.len() - position);
            let found = (1..=reach)
                .rev()
                .find_map(|length| self.names.get(&words[position..position + length]).map(|name| (name, length)));
            if let Some((name, _)) = found {
                mentions.push(Mention { object: name.clone(), ..Mention::default() });
            }
            position += found.map_or(1, |(_, length)| length);
        }
        Said { mentions, malformed: false }
    }

    fn canonical(&self, name: &str) -> String {
        self.names.get(&singular_words(name)).cloned().unwrap_or_else(|| name.to_lowercase())
    }
}

fn singular_words(text: &str) -> Vec<String> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '\'')
        .filter(|word| !word.is_empty())
        .map(|word| singular(&word.to_lowercase()))
        .collect()
}

/// A word without its English plural ending. It errs on the side of changing nothing ("bus", "glass").
fn singular(word: &str) -> String {
    const IRREGULAR: [(&str, &str); 8] = [
        ("people", "person"),
        ("men", "man"),
        ("women", "woman"),
        ("children", "child"),
        ("mice", "mouse"),
        ("geese", "goose"),
        ("knives", "knife"),
        ("leaves", "leaf"),
    ];
    if let Some((_, singular)) = IRREGULAR.iter().find(|(plural, _)| *plural == word) {
        return (*singular).to_owned();
    }
    if let Some(stem) = word.strip_suffix("ies").filter(|stem| stem.len() > 2) {
        return format!("{stem}y");
    }
    // "boxes" and "buses" lose two letters, "houses" one.
    let hisses = |stem: &str| {
        ["ss", "x", "z", "ch", "sh"].iter().any(|ending| stem.ends_with(ending))
            || (stem.ends_with("us") && !stem.ends_with("ous"))
    };
    if let Some(stem) = word.strip_suffix("es").filter(|stem| hisses(stem)) {
        return stem.to_owned();
    }
    match word.strip_suffix('s') {
        Some(stem) if stem.len() > 2 && !stem.ends_with(['s', 'u', 'i']) => stem.to_owned(),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn coco() -> Synonyms {
        let groups = ["person, girl, man, cyclist", "dog, puppy", "hot dog", "bus, buses", "wine glass", "mouse"];
        Synonyms::new(groups.map(|group| group.split(", ").map(str::to_owned).collect::<Vec<_>>()))
    }

    fn objects(caption: &str) -> Vec<String> {
        coco().read(caption).mentions.into_iter().map(|mention| mention.object).collect()
    }

    #[test]
    fn plurals_synonyms_and_long_names() {
        assert_eq!(
            objects("Two GIRLS walk their puppies, and a man eats a hot dog."),
            ["person", "dog", "person", "hot dog"]
        );
        assert_eq!(objects("Buses and wine glasses; mice!"), ["bus", "wine glass", "mouse"]);
        assert_eq!(objects("Nothing known, but a doghouse."), Vec::<String>::new());
        assert_eq!(coco().canonical("Puppies"), "dog");
        assert_eq!(coco().canonical("Cat"), "cat");
    }

    #[test]
    fn singular_forms() {
        for (plural, expected) in [
            ("apples", "apple"),
            ("houses", "house"),
            ("boxes", "box"),
            ("benches", "bench"),
            ("fishes", "fish"),
            ("glasses", "glass"),
            ("buses", "bus"),
            ("bus", "bus"),
            ("cherries", "cherry"),
            ("people", "person"),
            ("grass", "grass"),
        ] {
            assert_eq!(singular(plural), expected);
        }
    }

    #[test]
    fn a_bad_list_names_file_and_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# names\nperson, girl\ndog,, puppy\n").unwrap();
        let error = Synonyms::from_file(file.path()).unwrap_err().to_string();
        assert!(error.ends_with(":3: name 2 of 3 is empty"), "{error}");
        std::fs::write(file.path(), "# nothing\n").unwrap();
        assert!(matches!(Synonyms::from_file(file.path()), Err(EvalError::Empty(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC*") {
            let _ = coco().read(&text);
        }
    }
}
