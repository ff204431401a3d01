//! Sandler, Howard, Zhu, Zhmoginov, Chen. "MobileNetV2: Inverted Residuals and Linear Bottlenecks". CVPR 2018 (arXiv:1801.04381).
//!
//! Strided convolutions are padded by 1 on all sides, as in torchvision; TensorFlow pads below and on the right alone.

use briquette_runtime::{Activation, Layer, layers};

use super::{Arch, Wanted, conv_norm};
use crate::builder::{At, Builder, Conv};

pub(super) const MOBILENET_V2: Arch = Arch {
    name: "mobilenet-v2",
    paper: "Sandler, Howard, Zhu, Zhmoginov, Chen, CVPR 2018",
    input: [3, 224, 224],
    classes: 1000,
    build: mobilenet_v2,
};

/// Expansion, filters, number of blocks and stride of the first of them.
const STAGES: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

fn mobilenet_v2(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let mut x = conv_norm_relu6(b, "conv1", x, Conv::new(scaled(32, wanted.width), 3).same().stride(2));
    let mut i = 0;
    for (expansion, filters, blocks, stride) in STAGES {
        for block in 0..blocks {
            i += 1;
            let conv = Conv::new(scaled(filters, wanted.width), 3).same().stride(if block == 0 { stride } else { 1 });
            x = inverted_residual(b, &format!("block{i}"), x, conv, expansion, true);
        }
    }
    x = conv_norm_relu6(b, "conv2", x, Conv::new(scaled(1280, wanted.width.max(1.0)), 1));
    x = b.global_avg_pool("pool", x);
    x = b.fixed("drop", &[x], layers::Dropout { p: 0.2 });
    b.linear("fc", x, wanted.classes)
}

/// Appends an inverted residual: `name.expand` to `expand` times the channels, left out for 1, `name.depthwise` with the geometry of `conv` and the linear
/// `name.project` to its filters, each with its batch norm, and `name.add` where the stride is 1 and the shape is kept, so that the input is added.
/// Without `norm` the projection has a batch norm only where the input is added: for blocks that one follows. Biases are those of the batch norms.
///
/// # Panics
/// As [`Builder::push`].
pub fn inverted_residual(b: &mut Builder, name: &str, at: At, conv: Conv, expand: usize, norm: bool) -> At {
    let hidden = expand * b.shape(at)[0];
    let wide = match expand {
        1 => at,
        _ => conv_norm_relu6(b, &format!("{name}.expand"), at, Conv::new(hidden, 1)),
    };
    let depthwise = Conv { filters: hidden, groups: hidden, ..conv };
    let wide = conv_norm_relu6(b, &format!("{name}.depthwise"), wide, depthwise);
    let projection = format!("{name}.project");
    let mut x = b.conv(&projection, wide, Conv::new(conv.filters, 1).no_bias());
    let residual = conv.stride == [1; 2] && b.shape(x) == b.shape(at);
    if norm || residual {
        x = b.batch_norm(&format!("{projection}.norm"), x);
    }
    if residual { b.add(&format!("{name}.add"), &[x, at]) } else { x }
}

fn conv_norm_relu6(b: &mut Builder, name: &str, x: At, conv: Conv) -> At {
    let x = conv_norm(b, name, x, conv);
    b.fixed(&format!("{name}.relu"), &[x], Layer::Activation(Activation::Relu6))
}

/// `channels` times the width, rounded to a multiple of 8 that is not below 90 % of it.
fn scaled(channels: usize, width: f64) -> usize {
    let exact = channels as f64 * width;
    let nearest = (((exact + 4.0) as usize) / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * exact { nearest + 8 } else { nearest }
}
