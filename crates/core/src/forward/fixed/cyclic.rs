//! Quarter turns of maps, in four views.

use briquette_runtime::layers::{Cyclic, TINY};
use burn::tensor::Tensor;

use super::Forward;
use crate::forward::Flow;

impl Forward for Cyclic {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        match inputs.remove(0) {
            Flow::Vector(x) => {
                let [n, features] = x.dims();
                Flow::Vector(compute(*self, &x.reshape([n, features, 1, 1])).flatten(1, 3))
            }
            map @ (Flow::First(_) | Flow::Last(_)) => Flow::First(compute(*self, &map.first())),
        }
    }
}

fn compute(of: Cyclic, x: &Tensor<4>) -> Tensor<4> {
    let channels = x.dims()[1] / 4;
    // What view `k` makes of `j` quarters more, turned back.
    let seen = |k: usize, j: usize| turned(x.clone().narrow(1, (k + j) % 4 * channels, channels), 4 - j);
    let views = || (0..4).map(|j| seen(0, j));
    match of {
        Cyclic::Slice => Tensor::cat((0..4).map(|k| turned(x.clone(), k)).collect(), 1),
        Cyclic::Roll => Tensor::cat((0..16).map(|block| seen(block / 4, block % 4)).collect(), 1),
        Cyclic::Stack => Tensor::cat(views().collect(), 1),
        Cyclic::Mean => sum(views()) / 4,
        Cyclic::Max => views().skip(1).fold(seen(0, 0), Tensor::max_pair),
        Cyclic::Rms => (sum(views().map(|view| view.clone() * view)) / 4 + TINY).sqrt(),
    }
}

fn sum(views: impl Iterator<Item = Tensor<4>>) -> Tensor<4> {
    views.reduce(|sum, view| sum + view).expect("there are four views")
}

/// The maps turned by quarters, counterclockwise.
fn turned(x: Tensor<4>, quarters: usize) -> Tensor<4> {
    match quarters % 4 {
        0 => x,
        1 => x.flip([3]).swap_dims(2, 3),
        2 => x.flip([2, 3]),
        _ => x.swap_dims(2, 3).flip([3]),
    }
}
