//! Cross-layer equalization.
//!
//! Where the channels of one layer reach only one other, through functions with `f(s x) = s f(x)`, dividing the filter of a channel and its
//! bias by `s` and multiplying what reads the channel by `s` leaves the network's output. With `r1` and `r2` the largest absolute weights
//! that make and that read the channel, `s = sqrt(r1 / r2)` makes both `sqrt(r1 r2)`, so that all channels use a common grid well.
//!
//! Nagel, van Baalen, Blankevoort, Welling. "Data-Free Quantization Through Weight Equalization and Bias Correction". ICCV 2019.
//! arXiv:1906.04721, section 4.1.

use briquette_core::error::Result;
use briquette_core::net::{Net, Op};
use briquette_core::{Activation, Layer};

/// Equalizes every pair of layers, in order and again, until nothing moves by more than a thousandth. Fold batch norms first.
///
/// # Errors
/// When the network does not hold together.
pub fn equalize(mut net: Net) -> Result<Net> {
    let pairs: Vec<(usize, usize)> = (0..net.nodes.len()).filter_map(|first| Some((first, reader(&net, first)?))).collect();
    for _ in 0..ROUNDS {
        let mut moved = 0.0_f32;
        for pair in &pairs {
            let largest;
            (net, largest) = equalize_pair(net, *pair)?;
            moved = moved.max(largest);
        }
        if moved < 1e-3 {
            break;
        }
    }
    Ok(net)
}

/// Rounds after which equalization ends, whatever still moves.
const ROUNDS: usize = 20;

/// The layer that alone reads what a layer makes.
fn reader(net: &Net, first: usize) -> Option<usize> {
    let linear = |node: usize| matches!(net.nodes[node].op, Op::Conv2d(_) | Op::Linear(_));
    let mut node = Some(first).filter(|first| linear(*first))?;
    loop {
        let mut readers = (0..net.nodes.len()).filter(|&reader| net.nodes[reader].inputs.contains(&node));
        let (Some(only), None) = (readers.next(), readers.next()) else { return None };
        node = only;
        match net.nodes[node].op.layer() {
            Layer::Linear | Layer::Conv2d { .. } => return Some(node),
            Layer::Activation(Activation::Relu | Activation::LeakyRelu { .. })
            | Layer::MaxPool(_)
            | Layer::AvgPool { .. }
            | Layer::AdaptiveAvgPool { .. }
            | Layer::GlobalAvgPool
            | Layer::Flatten
            | Layer::Dropout { .. } => {}
            _ => return None,
        }
    }
}

/// Also says by how much the logarithm of a factor differs from 0 at most.
fn equalize_pair(mut net: Net, (first, second): (usize, usize)) -> Result<(Net, f32)> {
    let device = net.device();
    let [mut makers, mut readers] = [first, second].map(|node| net.nodes[node].parameters());
    let channels = makers[0].shape[0];
    let groups = match net.nodes[second].op.layer() {
        Layer::Conv2d { groups, .. } => groups,
        _ => 1,
    };
    let channel = reads(&readers[0].shape, groups, channels);
    let row = makers[0].base.len() / channels;
    let (mut made, mut read) = (vec![0.0_f32; channels], vec![0.0_f32; channels]);
    makers[0].values().iter().enumerate().for_each(|(i, w)| made[i / row] = made[i / row].max(w.abs()));
    readers[0].values().iter().enumerate().for_each(|(i, w)| read[channel(i)] = read[channel(i)].max(w.abs()));
    let factor = |(made, read): (&f32, &f32)| if *made > 0.0 && *read > 0.0 { (made / read).sqrt() } else { 1.0 };
    let factors: Vec<f32> = made.iter().zip(&read).map(factor).collect();
    for stored in &mut makers {
        let row = stored.base.len() / channels;
        stored.base.iter_mut().enumerate().for_each(|(i, value)| *value /= factors[i / row]);
    }
    readers[0].base.iter_mut().enumerate().for_each(|(i, value)| *value *= factors[channel(i)]);
    for (node, parameters) in [(first, makers), (second, readers)] {
        let old = net.nodes.remove(node);
        net.nodes.insert(node, old.with(parameters, &device)?);
    }
    Ok((net, factors.iter().map(|factor| factor.ln().abs()).fold(0.0, f32::max)))
}

/// Which channel each weight of `[out, in / groups, ...]` reads, out of `channels`, each of which a flattening may have spread over several
/// inputs.
fn reads(shape: &[usize], groups: usize, channels: usize) -> impl Fn(usize) -> usize + use<> {
    let (outputs, inputs, taps) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
    let spread = inputs * groups / channels;
    move |i| {
        let group = i / (inputs * taps) / (outputs / groups);
        (group * inputs + i / taps % inputs) / spread
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::net::Node;
    use briquette_core::zoo::{Arch, Wanted};
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::handmade::{get, outputs, set, small, stirred};

    #[test]
    fn equalized_networks_put_out_the_same_and_makers_match_readers() {
        let net = stirred().fold_norms().unwrap();
        let net = set(net, "conv2", "bias", &[0.2, -0.1, 0.4]);
        let net = set(
            net,
            "conv1",
            "weight",
            &(0..16).map(|i| [0.01, 1.0, 30.0, 0.4][i / 4] * (i as f32 - 7.5) / 8.0).collect::<Vec<_>>(),
        );
        let expected = outputs(&net);
        let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let net = equalize(net).unwrap();
        let worst = outputs(&net).iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "{worst}");
        // fc1 to fc2: row i of the one against column i of the other.
        let (rows, columns) = (get(&net, "fc1", "weight"), get(&net, "fc2", "weight"));
        let width = rows.len() / 5;
        for i in 0..5 {
            let made = rows[i * width..][..width].iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            let read = (0..3).fold(0.0_f32, |m, o| m.max(columns[o * 5 + i].abs()));
            assert!((made / read - 1.0).abs() < 5e-3, "{i}: {made} {read}");
        }
    }

    #[test]
    fn residual_depthwise_and_pooled_layers_put_out_the_same() {
        let arch = Arch::named("resnet20").unwrap();
        let residual = arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap().fold_norms().unwrap();
        assert_eq!((0..residual.nodes.len()).filter(|node| reader(&residual, *node).is_some()).count(), 9);
        let mut b = Builder::new([3, 32, 32], 5, &Device::flex());
        let x = b.conv("first", b.input(), Conv::new(4, 3));
        let x = b.relu("relu", x);
        let x = b.conv("depthwise", x, Conv { groups: 4, ..Conv::new(8, 3) });
        let x = b.conv("grouped", x, Conv { groups: 2, ..Conv::new(6, 1) });
        let x = b.max_pool("pool", x, briquette_core::Window { kernel: [7; 2], stride: [7; 2], padding: [0; 2] });
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 10);
        for net in [residual, b.finish().unwrap()] {
            let pixels = Tensor::<4>::random([2, 3, 32, 32], burn::tensor::Distribution::Uniform(0.0, 1.0), &Device::flex());
            let expected = briquette_core::coding::floats(net.forward(pixels.clone()));
            let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let before = net.nodes[1].weight().unwrap().base;
            let net = equalize(net).unwrap();
            assert!(net.nodes.iter().filter_map(Node::weight).any(|weight| weight.base != before));
            let found = briquette_core::coding::floats(net.forward(pixels));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max);
            assert!(worst <= 1e-5, "{worst}");
        }
    }

    #[test]
    fn empty_channels_stay_as_they_are() {
        let mut weights = get(&small(), "fc1", "weight");
        let width = weights.len() / 5;
        weights[..width].fill(0.0);
        let net = set(small().fold_norms().unwrap(), "fc1", "weight", &weights);
        let expected = outputs(&net);
        let found = outputs(&equalize(net).unwrap());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0)));
    }
}
