//! What a step computes.

use std::fmt::Debug;

use super::convolve::Geometry;
use super::threads::Threads;
use crate::{Activation, Coded, Grid, Node};

/// Floats of an element-wise task.
pub(crate) const PIECE: usize = 1 << 14;

/// How maps lie that an operation takes and makes. Vectors, and maps of one pixel or one channel, lie alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lies {
    /// `[channels, height, width]`.
    First,
    /// `[height, width, channels]`.
    Last,
    /// All the one way or all the other.
    Either,
}

/// An operation with its weights.
pub(crate) trait Operation: Debug + Send + Sync {
    /// How its maps lie.
    fn lies(&self) -> Lies {
        Lies::First
    }

    /// Told, where they may lie [either](Lies::Either) way, that they lie channels last.
    fn lie_last(&mut self) {}

    /// Has it add a second input to what it computes; false when it cannot.
    fn adds(&mut self) -> bool {
        false
    }

    /// Whether it changes its first input in place.
    fn in_place(&self) -> bool {
        false
    }

    /// Bytes of its weights.
    fn bytes(&self) -> usize {
        0
    }

    /// Where an activation goes that it computes at its end, if it can.
    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        None
    }

    /// Takes over the scale and shift of each channel that follow, or of each run of channels where there are fewer; false when it cannot.
    fn fold(&mut self, scale: &[f32], shift: &[f32]) -> bool {
        let _ = (scale, shift);
        false
    }

    /// Computes `output` from `inputs`; an operation that works in place finds its first input in `output` and only the others
    /// in `inputs`.
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads);
}

/// What a layer does to codes of a grid.
#[derive(Debug)]
pub(crate) enum Codes {
    /// Makes them.
    Made(Grid),
    /// Hands them on, of several values where all lie on one grid.
    Kept,
    /// Can take them, if its weight lies on a grid too, as a convolution of this geometry.
    Taken(Geometry),
    /// Makes other values of them.
    Lost,
}

/// The values of a tensor, none where the node has no such.
pub(crate) fn decoded(node: &Node, name: &str) -> Vec<f32> {
    node.tensor(name).map(Coded::decode).unwrap_or_default()
}
