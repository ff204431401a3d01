//! Which layers a setting is about.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::net::{Net, Node, Op};

/// A node's name, a wildcard in which `*` stands for any characters (`layer1.*`), or a kind: `conv` for convolutions, `fc` for fully
/// connected layers and the structural matrices in their place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(String);

/// How closely a selector fits a node; the closest decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// `rest` in a table.
    Rest,
    /// A kind.
    Kind,
    /// A wildcard of so many characters besides its stars.
    Wildcard(usize),
    /// The node's name.
    Name,
}

impl Selector {
    /// How closely this fits the node, if it does.
    pub fn fit(&self, node: &Node) -> Option<Fit> {
        if self.0 == node.name {
            Some(Fit::Name)
        } else if kind(node) == Some(self.0.as_str()) {
            Some(Fit::Kind)
        } else {
            let literal = self.0.len() - self.0.matches('*').count();
            (self.0.contains('*') && fits(&self.0, &node.name)).then_some(Fit::Wildcard(literal))
        }
    }

    /// As a config has it.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The indices of the nodes that it fits, each with how closely.
    ///
    /// # Errors
    /// When it fits none, with the nearest names.
    pub fn nodes(&self, net: &Net) -> Result<Vec<(usize, Fit)>> {
        let found: Vec<(usize, Fit)> =
            net.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, self.fit(node)?))).collect();
        if found.is_empty() {
            return Err(Error::unknown("layer", &self.0, known(net)));
        }
        Ok(found)
    }
}

impl From<&str> for Selector {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// Why a layer is refused by what prunes or shares weights.
pub const WEIGHTLESS: &str = "has no weights of its own, for its matrix is structural; leave it out";

/// What selectors call layers of the node's kind.
fn kind(node: &Node) -> Option<&'static str> {
    match &node.op {
        Op::Conv2d(_) => Some("conv"),
        Op::Linear(_) => Some("fc"),
        Op::Tensors(_) => node.op.structure().map(|_| "fc"),
        Op::BatchNorm(_) | Op::Fixed(_) => None,
    }
}

/// What a selector may say of this network: the names of its layers, and the kinds that it has of them.
pub(super) fn known(net: &Net) -> impl Iterator<Item = &str> {
    let kinds: BTreeSet<&str> = net.weighted().filter_map(|(_, node)| kind(node)).collect();
    net.weighted().map(|(_, node)| node.name.as_str()).chain(kinds)
}

/// Whether a text fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(left) = text.strip_prefix(start) else { return false };
    (0..=left.len()).filter(|&at| left.is_char_boundary(at)).any(|at| fits(rest, &left[at..]))
}

/// The settings `layers` and `except`: a list of selectors, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Layers(Option<Vec<Selector>>);

impl Layers {
    /// Whether the setting is there.
    pub fn given(&self) -> bool {
        self.0.is_some()
    }

    /// Number of selectors.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Vec::len)
    }

    /// Whether there is no selector.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The nodes that the list names; none without a list.
    ///
    /// # Errors
    /// A selector that fits no node.
    pub fn nodes(&self, net: &Net) -> Result<BTreeSet<usize>> {
        let mut found = BTreeSet::new();
        for selector in self.0.iter().flatten() {
            found.extend(selector.nodes(net)?.into_iter().map(|(index, _)| index));
        }
        Ok(found)
    }

    /// The nodes with weights of their own that this list names, or all of them without a list, less those that `except` names.
    ///
    /// # Errors
    /// A selector that fits no node, or one of this list that fits none with weights of its own, an empty list, and nothing that is left.
    pub fn without(&self, except: &Self, net: &Net) -> Result<BTreeSet<usize>> {
        let own: BTreeSet<usize> = net.own_weights().map(|(index, _)| index).collect();
        let mut chosen = if self.given() { BTreeSet::new() } else { own.clone() };
        if self.0.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Invalid("`layers` names no layer; leave it out for all".into()));
        }
        for selector in self.0.iter().flatten() {
            let found: Vec<usize> = selector.nodes(net)?.into_iter().map(|(index, _)| index).collect();
            if !found.iter().any(|index| own.contains(index)) {
                let made = net.weighted().any(|(index, _)| found.contains(&index));
                let why = if made { WEIGHTLESS } else { "holds no weights; name a layer that does in `layers`" };
                return Err(Error::node(selector.text(), why));
            }
            chosen.extend(found.into_iter().filter(|index| own.contains(index)));
        }
        let spared = except.nodes(net)?;
        chosen.retain(|index| !spared.contains(index));
        match chosen.is_empty() {
            true if except.given() => Err(Error::Invalid("`except` leaves no layer; shorten it".into())),
            true => Err(Error::Invalid("no layer has weights of its own; put the pass before the one that replaced them".into())),
            false => Ok(chosen),
        }
    }

    /// Refuses a list that names a node, by its very name, of which `done` does not hold; `why` says what keeps a method from it.
    ///
    /// # Errors
    /// Names the node.
    pub fn all_done(&self, net: &Net, done: impl Fn(usize) -> bool, why: &str) -> Result<()> {
        for selector in self.0.iter().flatten() {
            let missed = selector.nodes(net)?.into_iter().find(|(index, fit)| *fit == Fit::Name && !done(*index));
            if let Some((index, _)) = missed {
                return Err(Error::node(&net.nodes[index].name, why));
            }
        }
        Ok(())
    }
}

impl<'a> FromIterator<&'a str> for Layers {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        Self(Some(names.into_iter().map(Selector::from).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{Builder, Conv};

    /// conv1, layer1.0.conv, layer1.1.conv, layer2.0.conv, then fc and fc2.
    fn net() -> Net {
        let mut b = Builder::new([1, 4, 4], 1, &burn::tensor::Device::flex());
        let mut x = b.input();
        for name in ["conv1", "layer1.0.conv", "layer1.1.conv", "layer2.0.conv"] {
            x = b.conv(name, x, Conv::new(2, 1));
        }
        let x = b.flatten("flatten", x);
        let x = b.linear("fc", x, 4);
        b.linear("fc2", x, 3);
        b.finish().unwrap()
    }

    fn chosen(layers: Option<&[&str]>, except: Option<&[&str]>) -> Result<Vec<String>> {
        let read = |names: Option<&[&str]>| names.map_or(Layers::default(), |names| names.iter().copied().collect());
        let net = net();
        Ok(read(layers).without(&read(except), &net)?.into_iter().map(|index| net.nodes[index].name.clone()).collect())
    }

    #[test]
    fn names_wildcards_and_kinds_select_layers() {
        assert_eq!(chosen(Some(&["layer1.*"]), None).unwrap(), ["layer1.0.conv", "layer1.1.conv"]);
        assert_eq!(chosen(Some(&["*.0.*"]), None).unwrap(), ["layer1.0.conv", "layer2.0.conv"]);
        assert_eq!(chosen(Some(&["fc"]), None).unwrap(), ["fc", "fc2"]);
        assert_eq!(chosen(Some(&["conv"]), Some(&["layer*"])).unwrap(), ["conv1"]);
        assert_eq!(chosen(None, Some(&["conv", "fc2"])).unwrap(), ["fc"]);
        assert_eq!(chosen(None, Some(&[])).unwrap().len(), 6);
    }

    #[test]
    fn what_selects_nothing_is_refused_with_the_nearest_names() {
        let refused = |layers: &[&str]| chosen(Some(layers), None).unwrap_err().to_string();
        assert!(
            refused(&["layer3.*"]).starts_with("unknown layer 'layer3.*'; did you mean one of 'layer1."),
            "{}",
            refused(&["layer3.*"])
        );
        assert_eq!(refused(&["flatten"]), "node 'flatten': holds no weights; name a layer that does in `layers`");
        assert_eq!(refused(&[]), "`layers` names no layer; leave it out for all");
        assert_eq!(chosen(None, Some(&["*"])).unwrap_err().to_string(), "`except` leaves no layer; shorten it");
        let both = chosen(Some(&["fc"]), Some(&["fc*"])).unwrap_err().to_string();
        assert_eq!(both, "`except` leaves no layer; shorten it");
        assert!(chosen(None, Some(&["cov1"])).unwrap_err().to_string().starts_with("unknown layer 'cov1'; did you mean"));
        let names = "'conv1', 'layer1.0.conv', 'layer1.1.conv', 'layer2.0.conv', 'fc', 'fc2', 'conv'";
        assert_eq!(refused(&["backbone"]), format!("unknown layer 'backbone'; known: {names}"));
        let mut dense = net();
        dense.nodes.retain(|node| !matches!(node.op, Op::Conv2d(_)));
        let error = Selector::from("conv").nodes(&dense).unwrap_err().to_string();
        assert_eq!(error, "unknown layer 'conv'; known: 'fc', 'fc2'", "a kind that no layer is of is not suggested");
    }

    #[test]
    fn what_is_named_and_not_done_is_refused() {
        let layers: Layers = ["conv*", "fc2"].into_iter().collect();
        let net = net();
        let fc2 = net.index("fc2").unwrap();
        assert!(layers.all_done(&net, |index| index == fc2, "is too small").is_ok(), "a wildcard takes what there is");
        let error = layers.all_done(&net, |index| index != fc2, "is too small").unwrap_err().to_string();
        assert_eq!(error, "node 'fc2': is too small");
    }
}
