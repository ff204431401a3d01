//! Krizhevsky, Sutskever, Hinton. "ImageNet Classification with Deep Convolutional Neural Networks". NIPS 2012.
//! In the form of Caffe's reference model: one tower, convolutions 2, 4 and 5 in two groups, inputs of 227 by 227.
//!
//! `alexnet-one-tower` is the network of Krizhevsky. "One Weird Trick for Parallelizing Convolutional Neural Networks". 2014
//! (arXiv:1404.5997), in torchvision's form: no groups, no normalization, and means that make maps of other images 6 by 6.

use briquette_runtime::{Padding, Window, layers};

use super::{Arch, Wanted, conv_relu};
use crate::builder::{At, Builder, Conv};

pub(super) const ALEXNET: Arch = Arch {
    name: "alexnet",
    paper: "Krizhevsky, Sutskever, Hinton, NIPS 2012",
    input: [3, 227, 227],
    classes: 1000,
    build: alexnet,
};

pub(super) const ALEXNET_ONE_TOWER: Arch =
    Arch { name: "alexnet-one-tower", paper: "Krizhevsky, 2014", input: [3, 224, 224], classes: 1000, build: one_tower };

fn alexnet(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let pool = Window::new([3, 3], [2, 2]);
    // Two groups need even numbers of channels at every width.
    let even = |channels: usize| wanted.scaled(channels).next_multiple_of(2);
    let norm = |b: &mut Builder, name: &str, x: At| {
        b.fixed(name, &[x], layers::LocalResponseNorm { size: 5, alpha: 1e-4, beta: 0.75, k: 2.0 })
    };
    let conv = |b: &mut Builder, i: usize, x: At, conv: Conv| {
        let x = b.conv(&format!("conv{i}"), x, conv);
        b.relu(&format!("relu{i}"), x)
    };
    let x = conv(b, 1, x, Conv::new(even(96), 11).stride(4));
    let x = norm(b, "norm1", x);
    let x = b.max_pool("pool1", x, pool);
    let x = conv(b, 2, x, Conv::new(even(256), 5).same().groups(2));
    let x = norm(b, "norm2", x);
    let x = b.max_pool("pool2", x, pool);
    let x = conv(b, 3, x, Conv::new(even(384), 3).same());
    let x = conv(b, 4, x, Conv::new(even(384), 3).same().groups(2));
    let x = conv(b, 5, x, Conv::new(even(256), 3).same().groups(2));
    let x = b.max_pool("pool5", x, pool);
    let mut x = b.flatten("flatten", x);
    for i in [6, 7] {
        x = b.linear(&format!("fc{i}"), x, wanted.scaled(4096));
        x = b.relu(&format!("relu{i}"), x);
        x = b.fixed(&format!("drop{i}"), &[x], layers::Dropout { p: 0.5 });
    }
    b.linear("fc8", x, wanted.classes)
}

fn one_tower(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let pool = Window::new([3, 3], [2, 2]);
    let conv1 = Conv { padding: Padding::all(2), ..Conv::new(wanted.scaled(64), 11).stride(4) };
    let mut x = conv_relu(b, "conv1", x, conv1);
    x = b.max_pool("pool1", x, pool);
    x = conv_relu(b, "conv2", x, Conv::new(wanted.scaled(192), 5).same());
    x = b.max_pool("pool2", x, pool);
    for (i, filters) in [(3, 384), (4, 256), (5, 256)] {
        x = conv_relu(b, &format!("conv{i}"), x, Conv::new(wanted.scaled(filters), 3).same());
    }
    x = b.max_pool("pool5", x, pool);
    if b.shape(x)[1..] != [6, 6] {
        x = b.fixed("mean", &[x], layers::AdaptiveAvgPool { output: [6, 6] });
    }
    x = b.flatten("flatten", x);
    for i in [6, 7] {
        x = b.fixed(&format!("drop{i}"), &[x], layers::Dropout { p: 0.5 });
        x = b.linear(&format!("fc{i}"), x, wanted.scaled(4096));
        x = b.relu(&format!("fc{i}.relu"), x);
    }
    b.linear("fc8", x, wanted.classes)
}
