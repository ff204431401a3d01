//! What an unknown name may have meant.

use std::collections::BTreeSet;
use std::fmt;

/// Names that there are, for who has named another; as text, the end of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Those that resemble it, up to three, the closest first.
    Close(Vec<String>),
    /// None does, and these are all.
    All(Vec<String>),
    /// None does, and there are too many to tell.
    Nothing,
}

impl Hint {
    /// What to say of `name` where these are known.
    pub fn of<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let mut seen = BTreeSet::new();
        let known: Vec<&str> = known.into_iter().filter(|other| seen.insert(*other)).collect();
        let close = nearest(name, known.iter().copied());
        if !close.is_empty() {
            Hint::Close(close)
        } else if (1..=FEW).contains(&known.len()) {
            Hint::All(known.into_iter().map(str::to_string).collect())
        } else {
            Hint::Nothing
        }
    }
}

/// So many names are listed where none is close.
const FEW: usize = 12;

/// From this similarity of Jaro and Winkler on a name is close: it shares most of its letters, nearly in the same order.
const CLOSE: f64 = 0.75;

/// Up to three names among `known` that resemble `name`, the closest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let scored = known.into_iter().map(|other| (strsim::jaro_winkler(name, other), other));
    let mut close: Vec<(f64, &str)> = scored.filter(|(score, _)| *score > CLOSE).collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    close.into_iter().take(3).map(|(_, name)| name.to_string()).collect()
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |names: &[String]| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
        match self {
            Hint::Close(names) if names.len() == 1 => write!(f, "; did you mean {}?", listed(names)),
            Hint::Close(names) => write!(f, "; did you mean one of {}?", listed(names)),
            Hint::All(names) => write!(f, "; known: {}", listed(names)),
            Hint::Nothing => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_close_is_suggested_and_a_short_list_is_shown() {
        let hint = |name: &str, known: &[&str]| Hint::of(name, known.iter().copied()).to_string();
        let methods = ["magnitude", "huffman", "filter-l1"];
        assert_eq!(hint("magnitud", &methods), "; did you mean 'magnitude'?");
        assert_eq!(hint("fc_1", &["fc1", "fc2", "conv"]), "; did you mean one of 'fc1', 'fc2'?");
        assert_eq!(hint("backbone", &["conv"]), "; known: 'conv'");
        assert_eq!(hint("x", &methods), "; known: 'magnitude', 'huffman', 'filter-l1'");
        assert_eq!(hint("x", &[]), "");
        let many: Vec<String> = (0..20).map(|i| format!("layer{i}")).collect();
        assert_eq!(Hint::of("backbone", many.iter().map(String::as_str)), Hint::Nothing);
    }
}
