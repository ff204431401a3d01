//! Cross-layer equalization.
//!
//! Where the channels of one layer reach only one other, through functions with `f(s x) = s f(x)`, dividing the filter of a channel and its
//! bias by `s` and multiplying what reads the channel by `s` leaves the network's output. With `r1` and `r2` the largest absolute weights
//! that make and that read the channel, `s = sqrt(r1 / r2)` makes both `sqrt(r1 r2)`, so that all channels use a common grid well.
//!
//! Nagel, van Baalen, Blankevoort, Welling. "Data-Free Quantization Through Weight Equalization and Bias Correction". ICCV 2019.
//! arXiv:1906.04721, section 4.1.

use briquette_core::coding::Source;
use briquette_core::error::Result;
use briquette_core::net::Net;

/// Equalizes every pair of layers, in order and again, until nothing moves by more than a thousandth. Fold batch norms first. Weights that are
/// shared or on a grid cannot take a factor for each channel: pairs with such a layer stay as they are, and a sentence for each says so.
///
/// # Errors
/// When the network does not hold together.
pub fn equalize(mut net: Net) -> Result<(Net, Vec<String>)> {
    let coded = |node: usize| net.nodes[node].weight().is_some_and(|weight| weight.coding.source != Source::Free);
    let (mut pairs, mut left) = (Vec::new(), Vec::new());
    for (first, second) in (0..net.nodes.len()).filter_map(|first| Some((first, reader(&net, first)?))) {
        match [first, second].into_iter().find(|node| coded(*node)) {
            None => pairs.push((first, second)),
            Some(which) => {
                let [first, second, which] = [first, second, which].map(|node| &net.nodes[node].name);
                left.push(format!("the channels between {first} and {second} are not equalized, for {which} shares its weights"));
            }
        }
    }
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
    Ok((net, left))
}

/// Rounds after which equalization ends, whatever still moves.
const ROUNDS: usize = 20;

/// The layer that alone reads what a layer makes.
fn reader(net: &Net, first: usize) -> Option<usize> {
    let linear = |node: usize| net.nodes[node].dense().is_some();
    let mut node = Some(first).filter(|first| linear(*first))?;
    loop {
        let mut readers = (0..net.nodes.len()).filter(|&reader| net.nodes[reader].inputs.contains(&node));
        let (Some(only), None) = (readers.next(), readers.next()) else { return None };
        node = only;
        if linear(node) {
            return Some(node);
        }
        if !net.nodes[node].op.layer().kind().homogeneous() {
            return None;
        }
    }
}

/// Also says by how much the logarithm of a factor differs from 0 at most.
fn equalize_pair(mut net: Net, (first, second): (usize, usize)) -> Result<(Net, f32)> {
    let device = net.device();
    let [mut makers, mut readers] = [first, second].map(|node| net.nodes[node].parameters());
    let channels = makers[0].shape[0];
    let groups = net.nodes[second].dense().map_or(1, |dense| dense.groups);
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
    use briquette_core::Grid;
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::coding::{Coding, Rounding};
    use briquette_core::net::Node;
    use briquette_core::stored::Stored;
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_runtime::{Places, Product, Stage};
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::codebooks::recode_layers;
    use briquette_handmade::{get, outputs, set, small, stirred};

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
        let net = equalize(net).unwrap().0;
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
        let x = b.max_pool("pool", x, briquette_core::Window::square(7));
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 10);
        for net in [residual, b.finish().unwrap()] {
            let pixels = Tensor::<4>::random([2, 3, 32, 32], burn::tensor::Distribution::Uniform(0.0, 1.0), &Device::flex());
            let expected = briquette_core::coding::floats(net.forward(pixels.clone()));
            let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let before = net.nodes[1].weight().unwrap().base;
            let net = equalize(net).unwrap().0;
            assert!(net.nodes.iter().filter_map(Node::weight).any(|weight| weight.base != before));
            let found = briquette_core::coding::floats(net.forward(pixels));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max);
            assert!(worst <= 1e-5, "{worst}");
        }
    }

    #[test]
    fn the_function_stays_whatever_codings_the_two_layers_have() {
        let net = stirred().fold_norms().unwrap();
        let codings = |weight: &Stored| {
            let (count, out) = (weight.base.len(), weight.shape[0]);
            let grid = |axis: Option<usize>, learned| {
                let channels = axis.map_or(1, |_| out);
                let steps = (0..channels).map(|c| 0.05 + 0.01 * c as f32).collect();
                let grid = Grid { levels: 15, axis, steps, zeros: vec![7.0; channels] };
                Source::Grid { grid, rounding: Rounding::Nearest, learned }
            };
            let (columns, assignment) = (count / out, (0..count).map(|i| (i * i % 3) as u32).collect());
            let stage = Stage {
                centroids: (0..2 * columns).map(|i| (i % 7) as f32 * 0.2 - 0.5).collect(),
                indices: (0..out).map(|i| (i % 2) as u16).collect(),
            };
            let places = Places::Hash { seed: 3 }.all(&[count], 3);
            [
                Source::Free,
                Source::Codebook { centroids: vec![-0.6, 0.2, 0.9], assignment },
                grid(None, false),
                grid(Some(0), true),
                Source::Ternary { scales: [0.4, 0.7], share: 0.1 },
                Source::Shared { rule: Places::Hash { seed: 3 }, values: vec![0.3, -0.8, 0.1], places },
                Source::Product { product: Product { width: columns, columns, taps: 1, stages: vec![stage] }, transposed: false },
            ]
        };
        let weight = |net: &Net, layer: &str| net.nodes[net.index(layer).unwrap()].weight().unwrap();
        let choices = [codings(&weight(&net, "conv2")), codings(&weight(&net, "fc1"))];
        for (first, second, masked) in (0..7).flat_map(|a| (0..7).flat_map(move |b| [(a, b, false), (a, b, true)])) {
            let coded = ["conv2", "fc1"].iter().zip([&choices[0][first], &choices[1][second]]).map(|(layer, source)| {
                let mask = masked.then(|| (0..weight(&net, layer).base.len()).map(|i| i % 4 != 1).collect());
                (net.index(layer).unwrap(), Coding { mask, source: source.clone() })
            });
            let coded = recode_layers(net.deep_clone(), coded.collect()).unwrap();
            let (expected, before) = (outputs(&coded), [weight(&coded, "conv2"), weight(&coded, "fc1")]);
            let (found, notes) = equalize(coded).unwrap();
            let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let worst = outputs(&found).iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max);
            assert!(worst <= 1e-5, "{first} {second}: {worst}");
            let after = [weight(&found, "conv2"), weight(&found, "fc1")];
            for ((before, after), own) in before.iter().zip(&after).zip([first, second]) {
                assert_eq!(before.coding, after.coding);
                // A layer whose partner is free takes its part.
                assert_eq!(before.values() == after.values(), own > 0, "{first} {second}");
            }
            let named = if first > 0 { "conv2" } else { "fc1" };
            let note = format!("the channels between conv2 and fc1 are not equalized, for {named} shares its weights");
            assert_eq!(notes.contains(&note), first + second > 0, "{notes:?}");
        }
    }

    #[test]
    fn empty_channels_stay_as_they_are() {
        let mut weights = get(&small(), "fc1", "weight");
        let width = weights.len() / 5;
        weights[..width].fill(0.0);
        let net = set(small().fold_norms().unwrap(), "fc1", "weight", &weights);
        let expected = outputs(&net);
        let found = outputs(&equalize(net).unwrap().0);
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0)));
    }
}
