//! Bias correction.
//!
//! Rounded weights and inputs shift the mean output of a layer. The shift of each channel, `E[y'] - E[y]` over some training images, where
//! `y` is what the layer put out before and `y'` what it does now, is subtracted from the bias. Layers are corrected in order, each with
//! those before it corrected already.
//!
//! Nagel, van Baalen, Blankevoort, Welling. "Data-Free Quantization Through Weight Equalization and Bias Correction". ICCV 2019.
//! arXiv:1906.04721, section 4.2 and appendix D.

use std::collections::BTreeMap;

use briquette_core::coding::{Coding, floats};
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::{Net, Value};
use briquette_core::stored::Stored;
use briquette_core::training::probe;

use briquette_parts::observers::Calibration;

/// The mean output of each channel, by the layer's name.
pub type Means = BTreeMap<String, Vec<f64>>;

/// The mean output of each channel of these layers over some training images.
///
/// # Errors
/// When a layer is not there, or the host asks to stop.
pub fn output_means(net: &Net, layers: &[String], amount: Calibration, cx: &mut Context<'_>) -> Result<Means> {
    let indices: BTreeMap<usize, &String> = layers.iter().map(|name| Ok((net.index(name)?, name))).collect::<Result<_>>()?;
    let mut sums: BTreeMap<usize, (Vec<f64>, f64)> = BTreeMap::new();
    let device = cx.device.clone();
    probe(cx, "calibration", amount.batches(), &device, |images, _| {
        net.trace(images, |node, value| {
            if indices.contains_key(&node) {
                let (values, [channels, pixels]) = match &value {
                    Value::Map(x) => (floats(x.clone()), [x.dims()[1], x.dims()[2] * x.dims()[3]]),
                    Value::Vector(x) => (floats(x.clone()), [x.dims()[1], 1]),
                };
                let (sums, count) = sums.entry(node).or_insert_with(|| (vec![0.0; channels], 0.0));
                for (i, plane) in values.chunks_exact(pixels.max(1)).enumerate() {
                    sums[i % channels] += plane.iter().map(|value| f64::from(*value)).sum::<f64>();
                }
                *count += (values.len() / channels) as f64;
            }
            value
        });
        Ok(())
    })?;
    let mean = |(node, (sums, count)): (usize, (Vec<f64>, f64))| {
        (indices[&node].clone(), sums.into_iter().map(|sum| sum / count.max(1.0)).collect())
    };
    Ok(sums.into_iter().map(mean).collect())
}

/// The network with biases that restore these means.
///
/// # Errors
/// As [`output_means`].
pub fn correct(mut net: Net, wanted: &Means, amount: Calibration, cx: &mut Context<'_>) -> Result<Net> {
    let device = net.device();
    let mut order: Vec<(usize, &String)> = wanted.keys().map(|name| Ok((net.index(name)?, name))).collect::<Result<_>>()?;
    order.sort_unstable();
    for (index, name) in order {
        let found = output_means(&net, std::slice::from_ref(name), amount, cx)?;
        let Some(found) = found.get(name) else { continue };
        let node = net.nodes.remove(index);
        let mut parameters = node.parameters();
        if !parameters.iter().any(|stored| stored.name == "bias") {
            let base = vec![0.0; found.len()];
            parameters.push(Stored { name: "bias", shape: vec![found.len()], base, coding: Coding::default() });
        }
        for stored in parameters.iter_mut().filter(|stored| stored.name == "bias") {
            let shifts = found.iter().zip(&wanted[name]).map(|(found, wanted)| found - wanted);
            stored.base.iter_mut().zip(shifts).for_each(|(bias, shift)| *bias = (f64::from(*bias) - shift) as f32);
        }
        net.nodes.insert(index, node.with(parameters, &device)?);
    }
    Ok(net)
}
