//! Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich. "Going Deeper with Convolutions". CVPR 2015
//! (arXiv:1409.4842), without the auxiliary heads.
//!
//! `googlenet-2014` is the paper's, its local response normalization and pools those of Caffe's model. `googlenet` is torchvision's: batch
//! norm in place of biases and of that normalization, 3x3 where the paper has 5x5, and a last pool of 2 by 2. Torchvision's weights
//! are for pixels in [-1, 1], a mean and a deviation of 0.5.

use briquette_runtime::{Padding, Window, layers};

use super::{Arch, Wanted, conv_relu};
use crate::builder::{At, Builder, Conv};

const PAPER: &str = "Szegedy et al., CVPR 2015";

pub(super) const GOOGLENET: Arch = Arch {
    name: "googlenet",
    paper: PAPER,
    input: [3, 224, 224],
    classes: 1000,
    build: |b, x, wanted| googlenet(b, x, wanted, &TORCHVISION),
};

pub(super) const GOOGLENET_2014: Arch = Arch {
    name: "googlenet-2014",
    paper: PAPER,
    input: [3, 224, 224],
    classes: 1000,
    build: |b, x, wanted| googlenet(b, x, wanted, &PUBLISHED),
};

/// Where the two differ.
struct Form {
    /// A convolution and what stands behind it.
    conv: fn(&mut Builder, &str, At, Conv) -> At,
    /// Whether responses are normalized around the second and third convolution.
    response_norm: bool,
    /// Kernel of the third branch.
    third: usize,
    /// Window of the pool in front of module 5a.
    pool4: usize,
    /// Dropout in front of the last layer.
    dropout: f64,
}

const PUBLISHED: Form = Form { conv: conv_relu, response_norm: true, third: 5, pool4: 3, dropout: 0.4 };

const TORCHVISION: Form = Form { conv: conv_norm_relu, response_norm: false, third: 3, pool4: 2, dropout: 0.2 };

/// Filters of each module: first branch; second branch, reduced and behind it; third branch likewise; behind the pool.
const MODULES: [(&str, [usize; 6]); 9] = [
    ("3a", [64, 96, 128, 16, 32, 32]),
    ("3b", [128, 128, 192, 32, 96, 64]),
    ("4a", [192, 96, 208, 16, 48, 64]),
    ("4b", [160, 112, 224, 24, 64, 64]),
    ("4c", [128, 128, 256, 24, 64, 64]),
    ("4d", [112, 144, 288, 32, 64, 64]),
    ("4e", [256, 160, 320, 32, 128, 128]),
    ("5a", [256, 160, 320, 32, 128, 128]),
    ("5b", [384, 192, 384, 48, 128, 128]),
];

fn googlenet(b: &mut Builder, x: At, wanted: &Wanted, form: &Form) -> At {
    let pool = |size: usize| Window { ceil: true, ..Window::new([size; 2], [2, 2]) };
    let norm = |b: &mut Builder, name: &str, x: At| match form.response_norm {
        true => b.fixed(name, &[x], layers::LocalResponseNorm { size: 5, alpha: 1e-4, beta: 0.75, k: 1.0 }),
        false => x,
    };
    let x = (form.conv)(b, "conv1", x, Conv { padding: Padding::all(3), ..Conv::new(wanted.scaled(64), 7).stride(2) });
    let x = b.max_pool("pool1", x, pool(3));
    let x = norm(b, "norm1", x);
    let x = (form.conv)(b, "conv2", x, Conv::new(wanted.scaled(64), 1));
    let x = (form.conv)(b, "conv3", x, Conv::new(wanted.scaled(192), 3).same());
    let x = norm(b, "norm2", x);
    let mut x = b.max_pool("pool2", x, pool(3));
    for (module, filters) in MODULES {
        x = match module {
            "4a" => b.max_pool("pool3", x, pool(3)),
            "5a" => b.max_pool("pool4", x, pool(form.pool4)),
            _ => x,
        };
        x = inception(b, &format!("inception{module}"), x, filters.map(|filters| wanted.scaled(filters)), form);
    }
    x = b.global_avg_pool("pool5", x);
    x = b.fixed("drop", &[x], layers::Dropout { p: form.dropout });
    b.linear("fc", x, wanted.classes)
}

fn inception(b: &mut Builder, name: &str, x: At, filters: [usize; 6], form: &Form) -> At {
    let [one, reduced3, three, reduced5, five, pooled] = filters;
    let conv = |b: &mut Builder, branch: &str, x: At, filters: usize, kernel: usize| {
        (form.conv)(b, &format!("{name}.{branch}"), x, Conv::new(filters, kernel).same())
    };
    let first = conv(b, "branch1", x, one, 1);
    let second = conv(b, "branch2.reduce", x, reduced3, 1);
    let second = conv(b, "branch2.conv", second, three, 3);
    let third = conv(b, "branch3.reduce", x, reduced5, 1);
    let third = conv(b, "branch3.conv", third, five, form.third);
    let fourth = Window { padding: Padding::all(1), ..Window::new([3, 3], [1, 1]) };
    let fourth = b.max_pool(&format!("{name}.branch4.pool"), x, fourth);
    let fourth = conv(b, "branch4.conv", fourth, pooled, 1);
    b.fixed(&format!("{name}.concat"), &[first, second, third, fourth], layers::Concat)
}

/// Torchvision's batch norm is steadied by 0.001.
fn conv_norm_relu(b: &mut Builder, name: &str, x: At, conv: Conv) -> At {
    let x = b.conv(name, x, conv.no_bias());
    let x = b.batch_norm_with(&format!("{name}.norm"), x, 1e-3);
    b.relu(&format!("{name}.relu"), x)
}
