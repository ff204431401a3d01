//! Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam. "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
//! Applications". 2017 (arXiv:1704.04861).
//!
//! The width is the paper's multiplier alpha, the size its resolution. Strided convolutions are padded by 1 on all sides, where TensorFlow
//! pads below and on the right alone: the same counts, but weights of the one are not for the other.

use super::{Arch, Wanted, conv_norm_relu};
use crate::builder::{At, Builder, Conv};

pub(super) const MOBILENET_V1: Arch =
    Arch { name: "mobilenet-v1", paper: "Howard et al., 2017", input: [3, 224, 224], classes: 1000, build: mobilenet_v1 };

/// Filters of the pointwise convolution and stride of the depthwise one.
const BLOCKS: [(usize, usize); 13] = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
];

fn mobilenet_v1(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let mut x = conv_norm_relu(b, "conv1", x, Conv::new(wanted.scaled(32), 3).same().stride(2));
    for ((filters, stride), i) in BLOCKS.into_iter().zip(1..) {
        let channels = b.shape(x)[0];
        let depthwise = Conv::new(channels, 3).same().stride(stride).groups(channels);
        x = conv_norm_relu(b, &format!("block{i}.depthwise"), x, depthwise);
        x = conv_norm_relu(b, &format!("block{i}.pointwise"), x, Conv::new(wanted.scaled(filters), 1));
    }
    x = b.global_avg_pool("pool", x);
    b.linear("fc", x, wanted.classes)
}
