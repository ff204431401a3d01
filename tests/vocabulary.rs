//! One word for one thing: `docs/vocabulary.md` lists every key that a config can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates whose types a config is read into.
const READ: [&str; 10] = [
    "compact-filters",
    "core",
    "data",
    "distillation",
    "dynamic-nets",
    "low-rank",
    "parts",
    "pruning-sharing",
    "runner",
    "search",
];

/// Files whose types are read from other files than configs.
const OTHERS: [&str; 1] = ["data/src/manifest.rs"];

/// Keys that no field bears: `method` is taken out of a pass's table before the rest is read.
const TAKEN: [&str; 1] = ["method"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The keys in the first cells of the page's tables.
fn vocabulary() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/vocabulary.md")).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').step_by(2)).map(str::to_string).collect()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") && !OTHERS.iter().any(|other| path.ends_with(other)) {
            found.push(path);
        }
    }
}

/// A struct or an enum that serde reads: its attributes, and the lines of its body, which rustfmt indents by four.
struct Read {
    place: String,
    attributes: String,
    is_struct: bool,
    body: Vec<String>,
}

fn read() -> Vec<Read> {
    let mut paths = Vec::new();
    READ.iter().for_each(|name| files(&root().join("crates").join(name).join("src"), &mut paths));
    let mut all = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for block in text.split("#[derive(").skip(1) {
            let Some((attributes, rest)) = block.split_once(" {\n") else { continue };
            let mut lines = attributes.lines();
            let head = attributes.lines().last().unwrap_or_default();
            let words: Vec<&str> = head.split_whitespace().collect();
            let kind = words.iter().find(|word| ["struct", "enum"].contains(word));
            if let (Some(kind), true) = (kind, lines.next().is_some_and(|derived| derived.contains("Deserialize"))) {
                all.push(Read {
                    place: format!("{}: {head}", path.strip_prefix(root()).unwrap().display()),
                    attributes: attributes.into(),
                    is_struct: *kind == "struct",
                    body: rest.lines().take_while(|line| *line != "}").map(str::to_string).collect(),
                });
            }
        }
    }
    all
}

/// The keys of a type: a struct's fields but those that hold another struct's or none, an enum's variants with a value and their fields.
fn keys(read: &Read) -> Vec<String> {
    let mut keys = Vec::new();
    let mut apart = false;
    for line in &read.body {
        let (deep, text) = match (line.strip_prefix("        "), line.strip_prefix("    ")) {
            (Some(text), _) => (true, text),
            (None, Some(text)) => (false, text),
            (None, None) => continue,
        };
        apart |= text.starts_with("#[serde(") && (text.contains("flatten") || text.contains("skip"));
        let name = ["pub ", "pub(crate) "].iter().find_map(|public| text.strip_prefix(public)).unwrap_or(text);
        let end = name.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(name.len());
        let (name, after) = name.split_at(end);
        let is_key =
            if read.is_struct || deep { after.starts_with(": ") } else { after.starts_with('(') || after.starts_with(" {") };
        if is_key && !name.is_empty() && !std::mem::take(&mut apart) {
            keys.push(kebab(name));
        }
    }
    keys
}

/// `weight_decay` and `WeightDecay` are `weight-decay` in a config.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            text.push('-');
        }
        text.push(if c == '_' { '-' } else { c.to_ascii_lowercase() });
    }
    text
}

#[test]
fn every_key_of_a_config_is_in_the_vocabulary_and_the_other_way_round() {
    let known = vocabulary();
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    for read in read().iter().filter(|read| read.attributes.contains("rename_all = \"kebab-case\"")) {
        for key in keys(read) {
            held.entry(key).or_insert_with(|| read.place.clone());
        }
    }
    assert!(held.len() > 100 && held.contains_key("weight-decay") && held.contains_key("calibration-images"), "{held:?}");
    let missing: Vec<_> = held.iter().filter(|(key, _)| !known.contains(*key)).collect();
    assert!(missing.is_empty(), "docs/vocabulary.md does not list {missing:?}");
    let gone: Vec<_> = known.iter().filter(|key| !held.contains_key(*key) && !TAKEN.contains(&key.as_str())).collect();
    assert!(gone.is_empty(), "docs/vocabulary.md lists {gone:?}, which no setting bears");
}

/// Plans and trial runs look for the recipes of a method there.
#[test]
fn recipes_stand_under_train_and_tune() {
    let mut found = 0;
    for read in read() {
        for line in read.body.iter().filter(|line| line.ends_with(" Recipe,") || line.ends_with("Recipe>,")) {
            let name = line.split(':').next().unwrap_or_default().split_whitespace().last().unwrap_or_default();
            assert!(["train", "tune"].contains(&name), "{}: {line}", read.place);
            found += 1;
        }
    }
    assert!(found > 30, "{found}");
}

#[test]
fn every_struct_of_a_config_is_read_in_kebab_case() {
    let strict = |read: &&Read| read.attributes.contains("deny_unknown_fields") && !read.body.is_empty();
    let wrong: Vec<String> = read()
        .iter()
        .filter(strict)
        .filter(|read| !read.attributes.contains("rename_all = \"kebab-case\""))
        .map(|read| read.place.clone())
        .collect();
    assert!(wrong.is_empty(), "without rename_all = \"kebab-case\": {wrong:#?}");
}
