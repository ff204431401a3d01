//! Which samples reach which node: networks that skip work.
//!
//! A gate decides for each sample, a route keeps those that take a branch, and a merge brings both branches together again. Between, a value holds its
//! samples alone, closely packed and in their order, and a node whose input has none is not run. Which nodes see which samples follows from the wiring:
//! every value lies on a path of decisions.

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

/// The decisions that samples had to pass: the gate's node, and whether they left there.
pub type Path = Vec<(usize, bool)>;

/// The path of every node's value. Nodes read earlier ones, as many as their layers take.
///
/// # Errors
/// The node, and why samples do not meet there.
pub fn paths<'a>(nodes: impl Iterator<Item = (&'a Layer, &'a [usize])>) -> Result<Vec<Path>, (usize, String)> {
    let (mut paths, mut gates): (Vec<Path>, Vec<bool>) = (Vec::new(), Vec::new());
    for (position, (layer, inputs)) in nodes.enumerate() {
        let branch = layer.kind().branch();
        let of = |input: usize| paths[inputs[input]].clone();
        let behind = |gate: usize, leaving: bool| {
            let mut path = paths[gate].clone();
            path.push((gate, leaving));
            path
        };
        let decides = |gate: usize| gates[gate];
        let (fits, path) = match (branch, inputs) {
            (Branch::Stays | Branch::Decides, []) => (true, Path::new()),
            (Branch::Stays | Branch::Decides, _) => (inputs.iter().all(|input| paths[*input] == of(0)), of(0)),
            (Branch::Keeps { leaving }, &[_, gate]) => (decides(gate) && of(0) == of(1), behind(gate, leaving)),
            (Branch::Joins, &[_, _, gate]) => {
                (decides(gate) && of(0) == behind(gate, true) && of(1) == behind(gate, false), paths[gate].clone())
            }
            (Branch::Keeps { .. } | Branch::Joins, _) => (false, Path::new()),
        };
        if !fits {
            let why = match branch {
                Branch::Stays | Branch::Decides => "its inputs hold different samples; merge them first",
                Branch::Keeps { .. } => "a route takes a value and the decision of a gate that saw the same samples",
                Branch::Joins => "a merge takes what left at a gate, what went on there, and that gate's decision",
            };
            return Err((position, why.into()));
        }
        paths.push(path);
        gates.push(branch == Branch::Decides);
    }
    match paths.last() {
        Some(path) if !path.is_empty() => {
            Err((paths.len() - 1, "the output is that of some samples only; merge it with that of the others".into()))
        }
        _ => Ok(paths),
    }
}
