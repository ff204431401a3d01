//! Lin, Chen, Yan. "Network In Network". ICLR 2014 (arXiv:1312.4400): the network for CIFAR-10.
//!
//! `nin` is the authors' model for Caffe, with their names: a rectifier behind every layer, the last too, and dropout behind both pools.
//! `nin-norm` is that of Zagoruyko and Komodakis' repository (BMVC 2016): batch norm in place of biases and dropout, and a fully connected
//! layer on the means of the last 192 maps.

use briquette_runtime::{Window, layers};

use super::{Arch, Wanted, conv_norm_relu, conv_relu};
use crate::builder::{At, Builder, Conv};

const PAPER: &str = "Lin, Chen, Yan, ICLR 2014";

pub(super) const NIN: Arch = Arch { name: "nin", paper: PAPER, input: [3, 32, 32], classes: 10, build: nin };

pub(super) const NIN_NORM: Arch = Arch { name: "nin-norm", paper: PAPER, input: [3, 32, 32], classes: 10, build: nin_norm };

/// Name, filters and kernel of each layer; a pool follows each row.
const LAYERS: [[(&str, usize, usize); 3]; 3] = [
    [("conv1", 192, 5), ("cccp1", 160, 1), ("cccp2", 96, 1)],
    [("conv2", 192, 5), ("cccp3", 192, 1), ("cccp4", 192, 1)],
    [("conv3", 192, 3), ("cccp5", 192, 1), ("cccp6", 192, 1)],
];

fn nin(b: &mut Builder, mut x: At, wanted: &Wanted) -> At {
    for (stage, row) in LAYERS.into_iter().enumerate() {
        for (name, filters, kernel) in row {
            let filters = if name == "cccp6" { wanted.classes } else { wanted.scaled(filters) };
            x = conv_relu(b, name, x, Conv::new(filters, kernel).same());
        }
        x = pool(b, stage, x);
        if stage < 2 {
            x = b.fixed(&format!("drop{}", stage + 1), &[x], layers::Dropout { p: 0.5 });
        }
    }
    x
}

fn nin_norm(b: &mut Builder, mut x: At, wanted: &Wanted) -> At {
    for (stage, row) in LAYERS.into_iter().enumerate() {
        for (name, filters, kernel) in row {
            x = conv_norm_relu(b, name, x, Conv::new(wanted.scaled(filters), kernel).same());
        }
        x = pool(b, stage, x);
    }
    b.linear("fc", x, wanted.classes)
}

fn pool(b: &mut Builder, stage: usize, x: At) -> At {
    let window = Window { ceil: true, ..Window::new([3, 3], [2, 2]) };
    match stage {
        0 => b.max_pool("pool1", x, window),
        1 => b.fixed("pool2", &[x], layers::AvgPool { window, count_padding: false }),
        _ => b.global_avg_pool("pool3", x),
    }
}
