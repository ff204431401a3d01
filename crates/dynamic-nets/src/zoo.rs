//! Networks of the papers on networks that skip work.
//!
//! Yamada, Iwamura, Kise. "Deep Pyramidal Residual Networks with Separated Stochastic Depth". 2016. arXiv:1612.01230, of the networks of Han, Kim, Kim,
//! "Deep Pyramidal Residual Networks", CVPR 2017 (arXiv:1610.02915): `pyramidnet-d-a` has `d = 6 n + 2` layers, and block `l` of its `L = 3 n` makes
//! `16 + floor(a l / L)` channels of those that it reads. A block is a batch norm, a convolution, batch norm and rectifier, and two convolutions beside
//! each other, each with its batch norm: one makes as many channels as the block reads and is added to these, the other makes the channels that
//! are new and is put behind the sum. Where maps become smaller, the shortcut is the mean of each 2 by 2 pixels. The "alpha 90" of the authors' Torch code
//! is another network: it adds 5 channels in each of 54 blocks and ends at 286, PyramidNet's `a = 270`, where `pyramidnet-110-90` ends at 106.

use briquette_core::Window;
use briquette_core::builder::{At, Builder, Conv};
use briquette_core::layers::{AvgPool, Concat};
use briquette_core::zoo::{Arch, Wanted};

macro_rules! pyramid {
    ($($id:ident = $name:literal, $depth:literal, $alpha:literal;)*) => {$(
        pub(crate) const $id: Arch = Arch {
            name: $name,
            paper: "Yamada, Iwamura, Kise, arXiv:1612.01230",
            input: [3, 32, 32],
            classes: 10,
            build: |b, x, wanted| pyramid(b, x, wanted, ($depth - 2) / 6, $alpha),
        };
    )*};
}

pyramid! {
    PYRAMIDNET_20_48 = "pyramidnet-20-48", 20, 48;
    PYRAMIDNET_110_90 = "pyramidnet-110-90", 110, 90;
}

/// Channels behind block `l` of `blocks`, from those in front of the first, `l = 0`, on.
pub(crate) fn channels(l: usize, blocks: usize, alpha: usize) -> usize {
    16 + alpha * l / blocks
}

fn pyramid(b: &mut Builder, x: At, wanted: &Wanted, blocks: usize, alpha: usize) -> At {
    let mut x = b.conv("conv1", x, Conv::new(wanted.scaled(16), 3).same().no_bias());
    x = b.batch_norm("conv1.norm", x);
    for block in 0..3 * blocks {
        let stride = if block > 0 && block % blocks == 0 { 2 } else { 1 };
        let filters = wanted.scaled(channels(block + 1, 3 * blocks, alpha));
        x = widening(b, &format!("layer{}.{}", block / blocks + 1, block % blocks), x, filters, stride);
    }
    x = b.batch_norm("norm", x);
    x = b.relu("relu", x);
    x = b.global_avg_pool("pool", x);
    b.linear("fc", x, wanted.classes)
}

fn widening(b: &mut Builder, name: &str, x: At, filters: usize, stride: usize) -> At {
    let at = |part: &str| format!("{name}.{part}");
    let conv_norm = |b: &mut Builder, part: &str, x: At, conv: Conv| {
        let x = b.conv(&at(part), x, conv.same().no_bias());
        b.batch_norm(&at(&format!("{part}.norm")), x)
    };
    let old = b.shape(x)[0];
    let shortcut = if stride == 1 {
        x
    } else {
        let window = Window { ceil: true, ..Window::square(stride) };
        b.fixed(&at("shortcut"), &[x], AvgPool { window, count_padding: false })
    };
    let read = b.batch_norm(&at("norm"), x);
    let hidden = conv_norm(b, "conv1", read, Conv::new(filters, 3).stride(stride));
    let hidden = b.relu(&at("relu"), hidden);
    let branch = conv_norm(b, "conv2.old", hidden, Conv::new(old, 3));
    let sum = b.add(&at("add"), &[branch, shortcut]);
    if filters == old {
        return sum;
    }
    let new = conv_norm(b, "conv2.new", hidden, Conv::new(filters - old, 3));
    b.fixed(&at("wide"), &[sum, new], Concat)
}

#[cfg(test)]
mod tests {
    use briquette_core::cost::Cost;
    use burn::tensor::Device;

    use super::*;

    /// `pyramid-sep-drop-schedule` of the reference values.
    #[test]
    fn channels_grow_as_in_the_reference() {
        let of = |blocks: usize, alpha: usize| (0..=blocks).map(|l| channels(l, blocks, alpha)).collect::<Vec<_>>();
        let first =
            [16, 17, 19, 21, 22, 24, 26, 27, 29, 31, 32, 34, 36, 37, 39, 41, 42, 44, 46, 47, 49, 51, 52, 54, 56, 57, 59, 61];
        let [narrow, wide] = [of(54, 90), of(90, 150)];
        assert_eq!((&narrow[..28], &wide[..28]), (&first[..], &first[..]));
        assert_eq!((&narrow[51..], &wide[87..]), (&[101, 102, 104, 106][..], &[161, 162, 164, 166][..]));
    }

    /// Counted by hand: block `l` from `c` to `d` channels has `9 c d + 9 d d` weights; norms have 2 parameters for each channel.
    #[test]
    fn a_network_has_the_weights_of_its_table() {
        let net = PYRAMIDNET_20_48.build(&PYRAMIDNET_20_48.wanted(), &Device::flex()).unwrap();
        let channels: Vec<usize> = (0..=9).map(|l| 16 + 48 * l / 9).collect();
        let pairs = || channels.windows(2).map(|pair| (pair[0], pair[1]));
        let weights: usize = 9 * 3 * 16 + pairs().map(|(c, d)| 9 * c * d + 9 * d * d).sum::<usize>() + 64 * 10;
        let norms: usize = 16 + pairs().map(|(c, d)| c + d + d).sum::<usize>() + 64;
        let cost = Cost::of(&net).unwrap();
        assert_eq!((cost.weights(), cost.params()), (weights, weights + 2 * norms + 10));
        assert_eq!(net.shapes().unwrap()[net.index("relu").unwrap()], [64, 8, 8]);
    }
}
