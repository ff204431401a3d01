//! Which samples reach which node: networks that skip work.
//!
//! A gate decides for each sample, a route keeps those that take a branch, and a merge brings both branches together again. Between, a value holds its
//! samples alone, closely packed and in their order, and a node whose input has none is not run. Which nodes see which samples follows from the wiring:
//! every value lies on a path of decisions.

use std::collections::HashMap;

use crate::Layer;

/// What a layer does to the samples of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// Computes for all of them.
    Stays,
    /// Decides which leave.
    Decides,
    /// Keeps those of the first input that leave, or those that go on, as the second decides.
    Keeps {
        /// Which.
        leaving: bool,
    },
    /// Brings those that left, the first input, and those that went on, the second, together as the third decided.
    Joins,
}

impl Branch {
    /// Of a layer's inputs those that hold values: all but the decision by which a route or a merge goes.
    pub fn values<T>(self, inputs: &[T]) -> &[T] {
        match self {
            Branch::Stays | Branch::Decides => inputs,
            Branch::Keeps { .. } | Branch::Joins => inputs.split_last().map_or(inputs, |(_, values)| values),
        }
    }
}

/// The decisions that samples had to pass to reach each node, as a tree: a file may nest as many gates as it has nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    /// Of every node, its place in the tree; 0 is the path of all samples.
    of: Vec<usize>,
    /// The path before, the gate's node, and whether samples left there.
    steps: Vec<Option<(usize, usize, bool)>>,
}

impl Paths {
    /// The decisions on the way to a node, the first first: the gate's node, and whether samples left there.
    pub fn to(&self, node: usize) -> Vec<(usize, bool)> {
        let (mut path, mut at) = (Vec::new(), self.of[node]);
        while let Some((before, gate, leaving)) = self.steps[at] {
            path.push((gate, leaving));
            at = before;
        }
        path.reverse();
        path
    }
}

/// The paths of the nodes' values. Nodes read earlier ones, as many as their layers take.
///
/// # Errors
/// The node, and why samples do not meet there.
pub fn paths<'a>(nodes: impl Iterator<Item = (&'a Layer, &'a [usize])>) -> Result<Paths, (usize, String)> {
    let mut paths = Paths { of: Vec::new(), steps: vec![None] };
    let mut gates: Vec<bool> = Vec::new();
    let mut known: HashMap<(usize, usize, bool), usize> = HashMap::new();
    for (position, (layer, inputs)) in nodes.enumerate() {
        let branch = layer.kind().branch();
        let of = |input: usize| paths.of[inputs[input]];
        let fits = match (branch, inputs) {
            (Branch::Stays | Branch::Decides, _) => inputs.iter().all(|input| paths.of[*input] == of(0)),
            (Branch::Keeps { .. }, &[_, gate]) => gates[gate] && of(0) == of(1),
            (Branch::Joins, &[_, _, gate]) => {
                let behind = |leaving: bool| known.get(&(of(2), gate, leaving)).copied();
                gates[gate] && Some(of(0)) == behind(true) && Some(of(1)) == behind(false)
            }
            (Branch::Keeps { .. } | Branch::Joins, _) => false,
        };
        if !fits {
            let why = match branch {
                Branch::Stays | Branch::Decides => "its inputs hold different samples; merge them first",
                Branch::Keeps { .. } => "a route takes a value and the decision of a gate that saw the same samples",
                Branch::Joins => "a merge takes what left at a gate, what went on there, and that gate's decision",
            };
            return Err((position, why.into()));
        }
        let path = match (branch, inputs) {
            (Branch::Keeps { leaving }, &[_, gate]) => {
                let step = (of(1), gate, leaving);
                *known.entry(step).or_insert_with(|| {
                    paths.steps.push(Some(step));
                    paths.steps.len() - 1
                })
            }
            (Branch::Joins, &[_, _, gate]) => paths.of[gate],
            (Branch::Stays | Branch::Decides | Branch::Keeps { .. } | Branch::Joins, []) => 0,
            (Branch::Stays | Branch::Decides | Branch::Keeps { .. } | Branch::Joins, &[first, ..]) => paths.of[first],
        };
        paths.of.push(path);
        gates.push(branch == Branch::Decides);
    }
    match paths.of.last() {
        Some(path) if *path != 0 => {
            Err((paths.of.len() - 1, "the output is that of some samples only; merge it with that of the others".into()))
        }
        _ => Ok(paths),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Gate, Input, Measure, Merge, Route};

    #[test]
    fn decisions_nest_and_a_file_of_many_gates_takes_memory_as_it_has_nodes() {
        let gate: Layer = Gate { measure: Measure::Entropy, threshold: 0.5 }.into();
        let (on, off): (Layer, Layer) = (Route { leaving: false }.into(), Route { leaving: true }.into());
        let (input, merge): (Layer, Layer) = (Input { shape: vec![2] }.into(), Merge.into());
        // Node 0, gate 1, on 2, gate 3, both routes 4 and 5, merge 6, off 7, merge 8.
        let nodes: [(&Layer, &[usize]); 9] = [
            (&input, &[]),
            (&gate, &[0]),
            (&on, &[0, 1]),
            (&gate, &[2]),
            (&off, &[2, 3]),
            (&on, &[2, 3]),
            (&merge, &[4, 5, 3]),
            (&off, &[0, 1]),
            (&merge, &[7, 6, 1]),
        ];
        let found = paths(nodes.into_iter()).unwrap();
        assert_eq!((found.to(5), found.to(6), found.to(8)), (vec![(1, false), (3, false)], vec![(1, false)], vec![]));
        let many: Vec<[Vec<usize>; 2]> = (0..50_000).map(|i| [vec![2 * i], vec![2 * i, 2 * i + 1]]).collect();
        let chain = many.iter().flat_map(|[read, both]| [(&gate, read.as_slice()), (&on, both.as_slice())]);
        let (node, why) = paths(std::iter::once((&input, &[][..])).chain(chain)).unwrap_err();
        assert!(node == 100_000 && why.starts_with("the output is that of some samples only"), "{node} {why}");
    }
}
