//! Zagoruyko, Komodakis. "Wide Residual Networks". BMVC 2016 (arXiv:1605.07146): WRN-d-k has d = 6n + 4 layers and k times the filters.
//!
//! Pre-activation: batch norm and rectifier come before each convolution. Where the number of channels changes, the first of them feed both the
//! convolutions and a 1x1 projection; elsewhere the sum itself goes around the block. The dropout between the convolutions, which the
//! paper adds for some results, is left out.

use super::{Arch, Wanted};
use crate::builder::{At, Builder, Conv};

macro_rules! wide {
    ($($id:ident = $name:literal, $depth:literal, $factor:literal;)*) => {$(
        pub(super) const $id: Arch = Arch {
            name: $name,
            paper: "Zagoruyko, Komodakis, BMVC 2016",
            input: [3, 32, 32],
            classes: 10,
            build: |b, x, wanted| wide_resnet(b, x, wanted, ($depth - 4) / 6, $factor),
        };
    )*};
}

wide! {
    WRN_16_1 = "wrn-16-1", 16, 1;
    WRN_16_2 = "wrn-16-2", 16, 2;
    WRN_16_4 = "wrn-16-4", 16, 4;
    WRN_16_8 = "wrn-16-8", 16, 8;
    WRN_28_10 = "wrn-28-10", 28, 10;
    WRN_40_1 = "wrn-40-1", 40, 1;
    WRN_40_2 = "wrn-40-2", 40, 2;
    WRN_40_4 = "wrn-40-4", 40, 4;
}

fn wide_resnet(b: &mut Builder, x: At, wanted: &Wanted, blocks: usize, factor: usize) -> At {
    let mut x = b.conv("conv1", x, Conv::new(wanted.scaled(16), 3).same().no_bias());
    for (stage, filters) in [16, 32, 64].map(|filters| wanted.scaled(filters * factor)).into_iter().enumerate() {
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = basic(b, &format!("layer{}.{block}", stage + 1), x, filters, stride);
        }
    }
    x = norm_relu(b, "norm", "relu", x);
    x = b.global_avg_pool("pool", x);
    b.linear("fc", x, wanted.classes)
}

fn basic(b: &mut Builder, name: &str, x: At, filters: usize, stride: usize) -> At {
    let at = |part: &str| format!("{name}.{part}");
    let active = norm_relu(b, &at("norm1"), &at("relu1"), x);
    let shortcut = if stride == 1 && b.shape(x)[0] == filters {
        x
    } else {
        b.conv(&at("shortcut"), active, Conv::new(filters, 1).stride(stride).no_bias())
    };
    let out = b.conv(&at("conv1"), active, Conv::new(filters, 3).same().stride(stride).no_bias());
    let out = norm_relu(b, &at("norm2"), &at("relu2"), out);
    let out = b.conv(&at("conv2"), out, Conv::new(filters, 3).same().no_bias());
    b.add(&at("add"), &[out, shortcut])
}

fn norm_relu(b: &mut Builder, norm: &str, relu: &str, x: At) -> At {
    let x = b.batch_norm(norm, x);
    b.relu(relu, x)
}
