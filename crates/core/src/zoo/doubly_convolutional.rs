//! Zhai, Cheng, Lu, Zhang. "Doubly Convolutional Neural Networks". NIPS 2016 (arXiv:1610.09716): the plain network that the paper compares
//! with on CIFAR-10, in the form of the authors' code: eight convolutions of 128 filters with batch norm, a pool and dropout behind
//! each pair, and a fully connected layer on the means of the last maps.

use briquette_runtime::{Window, layers};

use super::{Arch, Wanted, conv_norm_relu};
use crate::builder::{At, Builder, Conv};

pub(super) const CNN_8: Arch =
    Arch { name: "cnn8", paper: "Zhai, Cheng, Lu, Zhang, NIPS 2016", input: [3, 32, 32], classes: 10, build: cnn_8 };

fn cnn_8(b: &mut Builder, mut x: At, wanted: &Wanted) -> At {
    for i in 1..=8 {
        x = conv_norm_relu(b, &format!("conv{i}"), x, Conv::new(wanted.scaled(128), 3).same());
        if i % 2 == 0 {
            x = b.max_pool(&format!("pool{}", i / 2), x, Window::square(2));
            x = b.fixed(&format!("drop{}", i / 2), &[x], layers::Dropout { p: 0.5 });
        }
    }
    x = b.global_avg_pool("pool", x);
    b.linear("fc", x, wanted.classes)
}
