//! Springenberg, Dosovitskiy, Brox, Riedmiller. "Striving for Simplicity: The All Convolutional Net". ICLR 2015 workshop
//! (arXiv:1412.6806): model C with strided convolutions in place of pools.
//!
//! The paper leaves the padding of the seventh convolution open; as in the experiments of Cohen and Welling it is padded, so that the last
//! maps are 8 by 8. The last layer has a rectifier, too, as in the paper's table.

use briquette_runtime::layers;

use super::{Arch, Wanted, conv_relu};
use crate::builder::{At, Builder, Conv};

pub(super) const ALL_CNN_C: Arch = Arch {
    name: "all-cnn-c",
    paper: "Springenberg, Dosovitskiy, Brox, Riedmiller, ICLR 2015",
    input: [3, 32, 32],
    classes: 10,
    build: all_cnn_c,
};

fn all_cnn_c(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let mut x = b.fixed("drop0", &[x], layers::Dropout { p: 0.2 });
    let mut i = 0;
    for filters in [96, 192].map(|filters| wanted.scaled(filters)) {
        for stride in [1, 1, 2] {
            i += 1;
            x = conv_relu(b, &format!("conv{i}"), x, Conv::new(filters, 3).same().stride(stride));
        }
        x = b.fixed(&format!("drop{i}"), &[x], layers::Dropout { p: 0.5 });
    }
    x = conv_relu(b, "conv7", x, Conv::new(wanted.scaled(192), 3).same());
    x = conv_relu(b, "conv8", x, Conv::new(wanted.scaled(192), 1));
    x = conv_relu(b, "conv9", x, Conv::new(wanted.classes, 1));
    b.global_avg_pool("pool", x)
}
