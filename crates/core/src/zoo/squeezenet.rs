//! Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer. "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and < 0.5MB model size".
//! 2016 (arXiv:1602.07360), and the authors' version 1.1.
//!
//! In torchvision's form, for images of 224 by 224. The authors' take 227 by 227, where they have the same shapes but for conv10, which
//! version 1.0 pads by 1: of 13 by 13 maps it makes 15 by 15, whose border enters the mean.

use briquette_runtime::{Window, layers};

use super::{Arch, Wanted, conv_relu};
use crate::builder::{At, Builder, Conv};

const PAPER: &str = "Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, 2016";

pub(super) const SQUEEZENET_1_0: Arch = Arch {
    name: "squeezenet1.0",
    paper: PAPER,
    input: [3, 224, 224],
    classes: 1000,
    build: |b, x, wanted| squeezenet(b, x, wanted, Conv::new(wanted.scaled(96), 7), [4, 8]),
};

pub(super) const SQUEEZENET_1_1: Arch = Arch {
    name: "squeezenet1.1",
    paper: PAPER,
    input: [3, 224, 224],
    classes: 1000,
    build: |b, x, wanted| squeezenet(b, x, wanted, Conv::new(wanted.scaled(64), 3), [3, 5]),
};

/// Filters that squeeze in fire modules 2 to 9; four times as many of either kernel expand.
const SQUEEZE: [usize; 8] = [16, 16, 32, 32, 48, 48, 64, 64];

/// `pools` are the modules with a pool behind them.
fn squeezenet(b: &mut Builder, x: At, wanted: &Wanted, conv1: Conv, pools: [usize; 2]) -> At {
    let pool = Window { ceil: true, ..Window::new([3, 3], [2, 2]) };
    let mut x = conv_relu(b, "conv1", x, conv1.stride(2));
    x = b.max_pool("pool1", x, pool);
    for (squeeze, i) in SQUEEZE.into_iter().zip(2..) {
        let (name, expand) = (format!("fire{i}"), wanted.scaled(4 * squeeze));
        x = fire(b, &name, x, wanted.scaled(squeeze), &[Conv::new(expand, 1), Conv::new(expand, 3).same()]);
        x = b.relu(&format!("{name}.relu"), x);
        if pools.contains(&i) {
            x = b.max_pool(&format!("pool{i}"), x, pool);
        }
    }
    x = b.fixed("drop9", &[x], layers::Dropout { p: 0.5 });
    x = conv_relu(b, "conv10", x, Conv::new(wanted.classes, 1));
    b.global_avg_pool("pool10", x)
}

/// Appends a fire module without the rectifier behind it: `name.squeeze` by one pixel to `squeeze` maps with its ReLU, the convolutions `expand`, which
/// read these side by side and are named after their kernels, such as `name.expand3x3`, and `name.concat` of several. The squeeze has a bias if one
/// of them has.
///
/// # Panics
/// As [`Builder::push`], as where two have the same kernel or make maps of different sizes.
pub fn fire(b: &mut Builder, name: &str, at: At, squeeze: usize, expand: &[Conv]) -> At {
    let bias = expand.iter().any(|conv| conv.bias);
    let x = conv_relu(b, &format!("{name}.squeeze"), at, Conv { bias, ..Conv::new(squeeze, 1) });
    let expanded = expand.iter().map(|conv| b.conv(&format!("{name}.expand{}x{}", conv.kernel[0], conv.kernel[1]), x, *conv));
    let expanded: Vec<At> = expanded.collect();
    if let [only] = expanded[..] { only } else { b.fixed(&format!("{name}.concat"), &expanded, layers::Concat) }
}
