//! He, Zhang, Ren, Sun. "Deep Residual Learning for Image Recognition". CVPR 2016.
//!
//! The CIFAR nets (6n + 2 layers, 16-32-64 filters) use option A: parameter-free shortcuts that sub-sample and pad with zero channels.
//! The ImageNet nets use option B, projections where the shape changes; in the bottleneck of ResNet-50 the 3x3 convolution carries the
//! stride, as in torchvision.

use briquette_runtime::{Layer, Padding, Window, layers};

use super::{Arch, Wanted, conv_norm};
use crate::builder::{At, Builder, Conv};

const PAPER: &str = "He, Zhang, Ren, Sun, CVPR 2016";

macro_rules! cifar {
    ($($id:ident = $name:literal, $blocks:literal;)*) => {$(
        pub(super) const $id: Arch = Arch {
            name: $name,
            paper: PAPER,
            input: [3, 32, 32],
            classes: 10,
            build: |b, x, wanted| cifar(b, x, wanted, $blocks),
        };
    )*};
}

macro_rules! imagenet {
    ($($id:ident = $name:literal, $block:ident, $blocks:expr;)*) => {$(
        pub(super) const $id: Arch = Arch {
            name: $name,
            paper: PAPER,
            input: [3, 224, 224],
            classes: 1000,
            build: |b, x, wanted| imagenet(b, x, wanted, $block, $blocks),
        };
    )*};
}

cifar! {
    RESNET_20 = "resnet20", 3;
    RESNET_32 = "resnet32", 5;
    RESNET_44 = "resnet44", 7;
    RESNET_56 = "resnet56", 9;
    RESNET_110 = "resnet110", 18;
}

imagenet! {
    RESNET_18 = "resnet18", basic, [2, 2, 2, 2];
    RESNET_34 = "resnet34", basic, [3, 4, 6, 3];
    RESNET_50 = "resnet50", bottleneck, [3, 4, 6, 3];
}

fn cifar(b: &mut Builder, x: At, wanted: &Wanted, blocks: usize) -> At {
    let x = cifar_features(b, x, wanted, blocks);
    b.linear("fc", x, wanted.classes)
}

/// The pooled features of a CIFAR net with so many blocks in each of its three stages.
pub fn cifar_features(b: &mut Builder, x: At, wanted: &Wanted, blocks: usize) -> At {
    let mut x = conv_norm(b, "conv1", x, Conv::new(wanted.scaled(16), 3).same());
    x = b.relu("relu1", x);
    for (stage, filters) in [16, 32, 64].map(|filters| wanted.scaled(filters)).into_iter().enumerate() {
        for block in 0..blocks {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let missing = filters - b.shape(x)[0].min(filters);
            let shortcut = if stride == 1 && missing == 0 {
                x
            } else {
                let layer = Layer::PadShortcut(layers::PadShortcut { stride, before: missing / 2, after: missing - missing / 2 });
                b.fixed(&format!("{name}.shortcut"), &[x], layer)
            };
            x = basic(b, &name, x, filters, stride);
            x = b.add(&format!("{name}.add"), &[x, shortcut]);
            x = b.relu(&format!("{name}.relu2"), x);
        }
    }
    b.global_avg_pool("pool", x)
}

type Body = fn(&mut Builder, &str, At, usize, usize) -> At;

fn imagenet(b: &mut Builder, x: At, wanted: &Wanted, body: Body, blocks: [usize; 4]) -> At {
    let x = stages(b, x, wanted, body, blocks);
    b.linear("fc", x, wanted.classes)
}

/// The pooled features of an ImageNet net with so many basic blocks in each of its four stages.
pub fn imagenet_features(b: &mut Builder, x: At, wanted: &Wanted, blocks: [usize; 4]) -> At {
    stages(b, x, wanted, basic, blocks)
}

fn stages(b: &mut Builder, x: At, wanted: &Wanted, body: Body, blocks: [usize; 4]) -> At {
    let mut x = conv_norm(b, "conv1", x, Conv { padding: Padding::all(3), ..Conv::new(wanted.scaled(64), 7).stride(2) });
    x = b.relu("relu1", x);
    x = b.max_pool("pool1", x, Window { padding: Padding::all(1), ..Window::new([3, 3], [2, 2]) });
    for (stage, filters) in [64, 128, 256, 512].map(|filters| wanted.scaled(filters)).into_iter().enumerate() {
        for block in 0..blocks[stage] {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let out = body(b, &name, x, filters, stride);
            let shortcut = if b.shape(out) == b.shape(x) {
                x
            } else {
                let filters = b.shape(out)[0];
                conv_norm(b, &format!("{name}.shortcut"), x, Conv::new(filters, 1).stride(stride))
            };
            x = b.add(&format!("{name}.add"), &[out, shortcut]);
            x = b.relu(&format!("{name}.relu"), x);
        }
    }
    b.global_avg_pool("pool", x)
}

fn basic(b: &mut Builder, name: &str, x: At, filters: usize, stride: usize) -> At {
    let x = conv_norm(b, &format!("{name}.conv1"), x, Conv::new(filters, 3).same().stride(stride));
    let x = b.relu(&format!("{name}.relu1"), x);
    conv_norm(b, &format!("{name}.conv2"), x, Conv::new(filters, 3).same())
}

fn bottleneck(b: &mut Builder, name: &str, x: At, filters: usize, stride: usize) -> At {
    let x = conv_norm(b, &format!("{name}.conv1"), x, Conv::new(filters, 1));
    let x = b.relu(&format!("{name}.relu1"), x);
    let x = conv_norm(b, &format!("{name}.conv2"), x, Conv::new(filters, 3).same().stride(stride));
    let x = b.relu(&format!("{name}.relu2"), x);
    conv_norm(b, &format!("{name}.conv3"), x, Conv::new(4 * filters, 1))
}
