//! LeNet-300-100 and LeNet-5 as Han et al. and the compression literature use them, and the network with one hidden layer of HashedNets.
//!
//! LeCun, Bottou, Bengio, Haffner. "Gradient-Based Learning Applied to Document Recognition". Proc. IEEE 86(11), 1998. LeNet-5 is the
//! form of Caffe's example: ReLU after the hidden fully connected layer only, max pooling.

use briquette_runtime::Window;

use super::{Arch, Wanted};
use crate::builder::{At, Builder, Conv};

const PAPER: &str = "LeCun, Bottou, Bengio, Haffner, Proc. IEEE 1998";

pub(super) const LENET_300_100: Arch =
    Arch { name: "lenet300", paper: PAPER, input: [1, 28, 28], classes: 10, build: lenet_300_100 };

pub(super) const LENET_5: Arch = Arch { name: "lenet5", paper: PAPER, input: [1, 28, 28], classes: 10, build: lenet_5 };

/// LeNet-5 with a batch norm behind every layer, in the order that binary networks want: convolution, pool, norm, rectifier.
pub(super) const LENET_5_NORM: Arch =
    Arch { name: "lenet5-norm", paper: PAPER, input: [1, 28, 28], classes: 10, build: lenet_5_norm };

pub(super) const MLP_1000: Arch = Arch {
    name: "mlp1000",
    paper: "Chen, Wilson, Tyree, Weinberger, Chen, ICML 2015",
    input: [1, 28, 28],
    classes: 10,
    build: mlp_1000,
};

fn mlp_1000(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let x = b.flatten("flatten", x);
    let x = b.linear("fc1", x, wanted.scaled(1000));
    let x = b.relu("relu1", x);
    b.linear("fc2", x, wanted.classes)
}

fn lenet_300_100(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let x = b.flatten("flatten", x);
    let x = b.linear("fc1", x, wanted.scaled(300));
    let x = b.relu("relu1", x);
    let x = b.linear("fc2", x, wanted.scaled(100));
    let x = b.relu("relu2", x);
    b.linear("fc3", x, wanted.classes)
}

fn lenet_5(b: &mut Builder, x: At, wanted: &Wanted) -> At {
    let x = b.conv("conv1", x, Conv::new(wanted.scaled(20), 5));
    let x = b.max_pool("pool1", x, Window::square(2));
    let x = b.conv("conv2", x, Conv::new(wanted.scaled(50), 5));
    let x = b.max_pool("pool2", x, Window::square(2));
    let x = b.flatten("flatten", x);
    let x = b.linear("fc1", x, wanted.scaled(500));
    let x = b.relu("relu1", x);
    b.linear("fc2", x, wanted.classes)
}

fn lenet_5_norm(b: &mut Builder, mut x: At, wanted: &Wanted) -> At {
    for (i, filters) in [(1, 20), (2, 50)] {
        x = b.conv(&format!("conv{i}"), x, Conv::new(wanted.scaled(filters), 5).no_bias());
        x = b.max_pool(&format!("pool{i}"), x, Window::square(2));
        x = b.batch_norm(&format!("norm{i}"), x);
        x = b.relu(&format!("relu{i}"), x);
    }
    x = b.flatten("flatten", x);
    x = b.linear("fc1", x, wanted.scaled(500));
    x = b.batch_norm("norm3", x);
    x = b.relu("relu3", x);
    x = b.linear("fc2", x, wanted.classes);
    b.batch_norm("norm4", x)
}
