//! A compressed network in memory.

use std::collections::BTreeMap;

use crate::{Coded, Layer};

/// A compressed network: its nodes in order of execution and free text about it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Model {
    /// Node 0 is the input, the last node is the output; inputs refer to earlier nodes only.
    pub nodes: Vec<Node>,
    /// Facts for people and tools: where the network comes from, its classes, its accuracy.
    pub meta: BTreeMap<String, String>,
}

/// One operation of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique within the model.
    pub name: String,
    /// Positions of the nodes whose outputs it takes.
    pub inputs: Vec<usize>,
    /// What it computes.
    pub layer: Layer,
    /// Its tensors by name, as the layer's documentation lists them.
    pub tensors: Vec<(String, Coded)>,
}

impl Node {
    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Coded> {
        self.tensors.iter().find(|(own, _)| own == name).map(|(_, coded)| coded)
    }
}
