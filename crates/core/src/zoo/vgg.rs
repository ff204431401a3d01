//! Simonyan, Zisserman. "Very Deep Convolutional Networks for Large-Scale Image Recognition". ICLR 2015.
//!
//! The CIFAR form is Zagoruyko's (torch.ch, 2015), which Li et al. 2017 prune: batch norm after each convolution and one hidden fully
//! connected layer of 512 with batch norm. Dropout is left out, as in Li et al.

use briquette_runtime::Window;
use briquette_runtime::layers;

use super::{Arch, Wanted};
use crate::builder::{At, Builder, Conv};

const PAPER: &str = "Simonyan, Zisserman, ICLR 2015";

macro_rules! vgg {
    ($full:ident, $name:literal, $cifar:ident, $cifar_name:literal, $stages:expr) => {
        pub(super) const $full: Arch = Arch {
            name: $name,
            paper: PAPER,
            input: [3, 224, 224],
            classes: 1000,
            build: |b, x, wanted| imagenet(b, x, wanted, $stages),
        };
        pub(super) const $cifar: Arch = Arch {
            name: $cifar_name,
            paper: PAPER,
            input: [3, 32, 32],
            classes: 10,
            build: |b, x, wanted| cifar(b, x, wanted, $stages),
        };
    };
}

// Convolutions in each of the five stages of 64, 128, 256, 512 and 512 filters.
vgg!(VGG_11, "vgg11", VGG_11_CIFAR, "vgg11-cifar", [1, 1, 2, 2, 2]);
vgg!(VGG_13, "vgg13", VGG_13_CIFAR, "vgg13-cifar", [2, 2, 2, 2, 2]);
vgg!(VGG_16, "vgg16", VGG_16_CIFAR, "vgg16-cifar", [2, 2, 3, 3, 3]);
vgg!(VGG_19, "vgg19", VGG_19_CIFAR, "vgg19-cifar", [2, 2, 4, 4, 4]);

const FILTERS: [usize; 5] = [64, 128, 256, 512, 512];

fn imagenet(b: &mut Builder, mut x: At, wanted: &Wanted, stages: [usize; 5]) -> At {
    for (stage, (convolutions, filters)) in stages.into_iter().zip(FILTERS).enumerate() {
        for i in 1..=convolutions {
            x = b.conv(&format!("conv{}_{i}", stage + 1), x, Conv::new(wanted.scaled(filters), 3).same());
            x = b.relu(&format!("relu{}_{i}", stage + 1), x);
        }
        x = b.max_pool(&format!("pool{}", stage + 1), x, Window::square(2));
    }
    x = b.flatten("flatten", x);
    for i in [6, 7] {
        x = b.linear(&format!("fc{i}"), x, wanted.scaled(4096));
        x = b.relu(&format!("relu{i}"), x);
        x = b.fixed(&format!("drop{i}"), &[x], layers::Dropout { p: 0.5 });
    }
    b.linear("fc8", x, wanted.classes)
}

fn cifar(b: &mut Builder, mut x: At, wanted: &Wanted, stages: [usize; 5]) -> At {
    let mut index = 0;
    for (stage, (convolutions, filters)) in stages.into_iter().zip(FILTERS).enumerate() {
        for _ in 0..convolutions {
            index += 1;
            x = b.conv(&format!("conv{index}"), x, Conv::new(wanted.scaled(filters), 3).same());
            x = b.batch_norm(&format!("norm{index}"), x);
            x = b.relu(&format!("relu{index}"), x);
        }
        x = b.max_pool(&format!("pool{}", stage + 1), x, Window::square(2));
    }
    x = b.flatten("flatten", x);
    x = b.linear("fc1", x, wanted.scaled(512));
    x = b.batch_norm("norm-fc1", x);
    x = b.relu("relu-fc1", x);
    b.linear("fc2", x, wanted.classes)
}
