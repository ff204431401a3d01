//! Networks of the papers on compact filters.
//!
//! Cohen, Welling. "Group Equivariant Convolutional Networks". ICML 2016. arXiv:1602.07576: for rotated digits, seven convolutions of 20 filters, and
//! the same with 10 channels of four maps. Dropout, which the authors' program has in the plain network alone, is left to the config.

use briquette_core::Window;
use briquette_core::builder::{At, Builder, Conv};
use briquette_core::layers::Reduction;
use briquette_core::zoo::{Arch, Wanted};

use crate::group_equivariant::{Group, by_channel, convolve, lift, pool};

const COHEN: &str = "Cohen, Welling, ICML 2016";

pub(crate) const P4CNN: Arch = Arch { name: "p4cnn", paper: COHEN, input: [1, 28, 28], classes: 10, build: p4cnn };

pub(crate) const Z2CNN: Arch = Arch { name: "z2cnn", paper: COHEN, input: [1, 28, 28], classes: 10, build: z2cnn };

fn z2cnn(b: &mut Builder, mut x: At, wanted: &Wanted) -> At {
    for i in 1..=6 {
        x = b.conv(&format!("conv{i}"), x, Conv::new(wanted.scaled(20), 3));
        x = b.batch_norm(&format!("norm{i}"), x);
        x = b.relu(&format!("relu{i}"), x);
        if i == 2 {
            x = b.max_pool("pool", x, Window::square(2));
        }
    }
    x = b.conv("conv7", x, Conv::new(wanted.classes, 4));
    b.flatten("flatten", x)
}

fn p4cnn(b: &mut Builder, mut x: At, wanted: &Wanted) -> At {
    let group = Group::P4;
    for i in 1..=6 {
        let (name, conv) = (format!("conv{i}"), Conv::new(wanted.scaled(10), 3).no_bias());
        x = if i == 1 { lift(b, &name, x, conv, group) } else { convolve(b, &name, x, conv, group) };
        x = by_channel(b, &format!("norm{i}"), x, group, |b, x| {
            let x = b.affine(&format!("{name}.bias"), x, false, 0.0);
            b.batch_norm(&format!("norm{i}"), x)
        });
        x = b.relu(&format!("relu{i}"), x);
        if i == 2 {
            x = b.max_pool("pool", x, Window::square(2));
        }
    }
    x = convolve(b, "conv7", x, Conv::new(wanted.classes, 4), group);
    x = pool(b, "group-pool", x, group, Reduction::Max);
    b.flatten("flatten", x)
}

#[cfg(test)]
mod tests {
    use briquette_core::cost::Cost;
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn parameters_are_those_of_the_authors_networks() {
        let counts = |arch: &Arch| {
            let cost = Cost::of(&arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
            (cost.weights(), cost.params())
        };
        assert_eq!(counts(&Z2CNN), (21_380, 21_750));
        assert_eq!(counts(&P4CNN), (24_490, 24_680));
    }
}
