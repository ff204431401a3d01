//! The networks of the first papers on binary weights: batch norm behind every layer, the last too, and pools in front of it.
//!
//! Courbariaux, Bengio, David. "BinaryConnect: Training Deep Neural Networks with Binary Weights during Propagations". NIPS 2015.

use briquette_runtime::Window;

use super::{Arch, Wanted};
use crate::builder::{At, Builder, Conv};

const PAPER: &str = "Courbariaux, Bengio, David, NIPS 2015";

/// The network for MNIST, three hidden layers of 1024.
pub(super) const MLP: Arch = Arch { name: "mlp", paper: PAPER, input: [1, 28, 28], classes: 10, build: mlp };

/// With one hidden layer.
pub(super) const MLP_1: Arch = Arch { name: "mlp1", paper: PAPER, input: [1, 28, 28], classes: 10, build: mlp_1 };

/// The network for CIFAR-10.
pub(super) const CNN: Arch = Arch { name: "courbariaux-cnn", paper: PAPER, input: [3, 32, 32], classes: 10, build: cnn };

fn mlp(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let x = b.flatten("flatten", x);
    fully_connected(b, x, wanted, 3)
}

fn mlp_1(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let x = b.flatten("flatten", x);
    fully_connected(b, x, wanted, 1)
}

fn cnn(b: &mut Builder, mut x: At, wanted: &Wanted) -> At {
    for (index, filters) in [128, 128, 256, 256, 512, 512].into_iter().enumerate() {
        let i = index + 1;
        x = b.conv(&format!("conv{i}"), x, Conv::new(wanted.scaled(filters), 3).same().no_bias());
        if i % 2 == 0 {
            x = b.max_pool(&format!("pool{}", i / 2), x, Window::square(2));
        }
        x = b.batch_norm(&format!("conv{i}-norm"), x);
        x = b.relu(&format!("conv{i}-relu"), x);
    }
    let x = b.flatten("flatten", x);
    fully_connected(b, x, wanted, 2)
}

/// Hidden layers of 1024, and the classes.
fn fully_connected(b: &mut Builder, mut x: At, wanted: &Wanted, hidden: usize) -> At {
    for i in 1..=hidden {
        x = b.linear(&format!("fc{i}"), x, wanted.scaled(1024));
        x = b.batch_norm(&format!("fc{i}-norm"), x);
        x = b.relu(&format!("fc{i}-relu"), x);
    }
    let last = hidden + 1;
    x = b.linear(&format!("fc{last}"), x, wanted.classes);
    b.batch_norm(&format!("fc{last}-norm"), x)
}
