//! How much the loss curves along each weight.

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::training::{cross_entropy, probe};
use burn::tensor::Device;
use rayon::prelude::*;
use serde::Deserialize;

use super::gauss_newton::factors;

/// A number for each weight of each layer, by node, in the layout of [`Node::weight`](briquette_core::net::Node::weight).
pub type PerWeight = BTreeMap<usize, Vec<f64>>;

/// Estimates of the diagonal of the loss's Hessian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curvature {
    /// That of [`diagonal`].
    #[default]
    Diagonal,
    /// That of [`second_moment`], which needs no more than gradients.
    Adam,
    /// The same for all weights.
    Flat,
}

impl Curvature {
    /// The curvature at `net` over `samples` training images, drawn for `what`; nothing is estimated when it is flat.
    ///
    /// # Errors
    /// As [`probe`], and with the layer's name when the estimate is not finite.
    pub fn estimate(self, net: &Net, samples: usize, what: &str, cx: &mut Context<'_>) -> Result<PerWeight> {
        let found = match self {
            Curvature::Diagonal => diagonal(net, (samples, None), what, cx)?,
            Curvature::Adam => second_moment(net, samples, what, cx)?,
            Curvature::Flat => PerWeight::new(),
        };
        match found.iter().find_map(|(node, h)| Some((node, h.iter().find(|h| !h.is_finite())?))) {
            Some((node, bad)) => {
                let detail = format!("the loss has the curvature {bad} there; check its weights and the images");
                Err(Error::node(&net.nodes[*node].name, detail))
            }
            None => Ok(found),
        }
    }
}

/// Refuses layers, by index, of whose curvature nothing is known, for no gradient of the loss came to them.
///
/// # Errors
/// Names the layer.
pub fn reached<'a>(net: &Net, curvature: &PerWeight, layers: impl IntoIterator<Item = &'a usize>) -> Result<()> {
    match layers.into_iter().find(|layer| !curvature.contains_key(layer)) {
        Some(layer) => {
            let detail = "no gradient of the loss reaches it, so that its curvature is not known; name it in `except`";
            Err(Error::node(&net.nodes[*layer].name, detail))
        }
        None => Ok(()),
    }
}

/// The diagonal of the Gauss-Newton matrix of the mean loss: `h_ii = mean over samples of sum_k p_k (dL_k/dw_i)^2`, the squares of its
/// [`factors`], which say what `labels` are.
///
/// # Errors
/// As [`factors`].
pub fn diagonal(net: &Net, size: (usize, Option<usize>), what: &str, cx: &mut Context<'_>) -> Result<PerWeight> {
    let mut sums = PerWeight::new();
    let layers: Vec<usize> = net.own_weights().map(|(index, _)| index).collect();
    let seen = factors(net, &layers, what, size, cx, |factor| {
        let sums = sums.entry(factor.layer).or_insert_with(|| vec![0.0; factor.gradient.len()]);
        sums.par_iter_mut().zip(factor.gradient).with_min_len(1 << 14).for_each(|(sum, g)| {
            let x = factor.scale * f64::from(*g);
            *sum += x * x;
        });
    })?;
    sums.values_mut().flatten().for_each(|sum| *sum /= seen as f64);
    Ok(sums)
}

/// The square root of the second moment of the gradients of mini-batches, as Adam keeps it: `sqrt(v_t / (1 - beta^t))` with
/// `v_t = beta v_(t-1) + (1 - beta) g_t^2` and `beta = 0.999`, the weights standing still.
///
/// # Errors
/// As [`probe`].
pub fn second_moment(net: &Net, samples: usize, what: &str, cx: &mut Context<'_>) -> Result<PerWeight> {
    let probed = net.probed();
    let device: Device = net.device().autodiff();
    let (mut moments, mut steps) = (PerWeight::new(), 0);
    probe(cx, what, (samples.div_ceil(MINI_BATCH), MINI_BATCH), &device, |images, labels| {
        let grads = cross_entropy(probed.forward(images), labels, 0.0).backward();
        for (index, node) in probed.own_weights() {
            let Some(gradient) = node.gradient("weight", &grads) else { continue };
            let moments = moments.entry(index).or_insert_with(|| vec![0.0; gradient.len()]);
            moments.iter_mut().zip(gradient).for_each(|(v, g)| *v = BETA * *v + (1.0 - BETA) * f64::from(g).powi(2));
        }
        steps += 1;
        Ok(())
    })?;
    let weight = 1.0 - BETA.powi(steps);
    moments.values_mut().flatten().for_each(|v| *v = (*v / weight).sqrt());
    Ok(moments)
}

/// Decay of the second moment.
const BETA: f64 = 0.999;

/// Images of a mini-batch of [`second_moment`].
const MINI_BATCH: usize = 10;

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use briquette_core::context::Silent;
    use briquette_core::net::Value;
    use briquette_core::training::{Extras, fit};

    use super::*;
    use briquette_handmade::{context, get, images, set, stirred};

    const WHAT: &str = "curvature";
    const SAMPLES: usize = 6;

    #[test]
    fn the_curvature_of_a_piecewise_linear_network_is_the_diagonal_of_its_hessian() {
        let (data, mut silent) = (images(), Silent);
        let mut cx = context(&data, &mut silent);
        let net = stirred();
        let found = diagonal(&net, (SAMPLES, None), WHAT, &mut cx).unwrap();
        // The slope of the loss by a layer's weights, and which rectifiers are active.
        let mut look = |net: &Net, layer: &str| -> (Vec<f32>, Vec<bool>) {
            let (net, mut slope, mut active) = (net.probed(), Vec::new(), Vec::new());
            let index = net.index(layer).unwrap();
            probe(&mut cx, WHAT, (1, SAMPLES), &Device::flex().autodiff(), |images, labels| {
                let logits = net.trace(images, |i, value| {
                    if net.nodes[i].name.starts_with("relu") {
                        let values = match value.clone() {
                            Value::Map(x) => floats(x.inner()),
                            Value::Vector(x) => floats(x.inner()),
                        };
                        active.extend(values.into_iter().map(|v| v > 0.0));
                    }
                    value
                });
                let grads = cross_entropy(logits.vector(), labels, 0.0).backward();
                slope = net.nodes[index].gradient("weight", &grads).unwrap();
                Ok(())
            })
            .unwrap();
            (slope, active)
        };
        let (mut compared, mut all) = (0, 0);
        for layer in ["conv1", "conv2", "fc1", "fc2"] {
            let weights = get(&net, layer, "weight");
            let curvature = &found[&net.index(layer).unwrap()];
            let largest = curvature.iter().copied().fold(0.0, f64::max);
            all += weights.len();
            for i in 0..weights.len() {
                let mut moved = |step: f32| {
                    let mut weights = weights.clone();
                    weights[i] += step;
                    look(&set(net.deep_clone(), layer, "weight", &weights), layer)
                };
                let ((low, low_active), (high, high_active)) = (moved(-1e-3), moved(1e-3));
                // Across a kink the difference is none of the second derivative.
                if low_active == high_active {
                    let difference = f64::from(high[i] - low[i]) / 2e-3;
                    assert!((difference - curvature[i]).abs() < 0.01 * largest, "{layer} {i}: {} and {difference}", curvature[i]);
                    compared += 1;
                }
            }
        }
        assert!(compared * 10 > all * 8, "{compared} of {all} weights stay clear of kinks");
    }

    #[test]
    fn the_second_moment_is_that_of_the_gradients_of_mini_batches() {
        let (data, mut silent) = (images(), Silent);
        let mut cx = context(&data, &mut silent);
        let net = stirred();
        let found = second_moment(&net, 20, WHAT, &mut cx).unwrap();
        let (probed, fc2) = (net.probed(), net.index("fc2").unwrap());
        let mut gradients = Vec::new();
        probe(&mut cx, WHAT, (2, MINI_BATCH), &Device::flex().autodiff(), |images, labels| {
            let grads = cross_entropy(probed.forward(images), labels, 0.0).backward();
            gradients.push(probed.nodes[fc2].gradient("weight", &grads).unwrap());
            Ok(())
        })
        .unwrap();
        for (i, h) in found[&fc2].iter().enumerate() {
            // The first of two has the weight beta (1 - beta) of 1 - beta^2, the second 1 - beta.
            let [first, second] = [0, 1].map(|step: usize| f64::from(gradients[step][i]).powi(2));
            let expected = ((BETA * first + second) / (1.0 + BETA)).sqrt();
            assert!((h - expected).abs() < 1e-9 + 1e-6 * expected, "{i}: {h} and {expected}");
        }
    }

    #[test]
    fn the_stand_in_of_adam_ranks_weights_much_like_the_diagonal() {
        let (data, mut silent) = (images(), Silent);
        let mut cx = context(&data, &mut silent);
        let recipe =
            serde_json::from_value(serde_json::json!({ "epochs": 30, "batch": 10, "lr": 0.01, "choose": "last" })).unwrap();
        let net = fit(stirred(), &recipe, Extras::default(), &mut cx).unwrap();
        let ranks = |found: PerWeight| {
            let values: Vec<f64> = found.into_values().flatten().collect();
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
            let mut ranks = vec![0.0; values.len()];
            order.iter().enumerate().for_each(|(rank, &i)| ranks[i] = rank as f64 - (values.len() - 1) as f64 / 2.0);
            ranks
        };
        let [a, b] =
            [Curvature::Diagonal, Curvature::Adam].map(|curvature| ranks(curvature.estimate(&net, 40, WHAT, &mut cx).unwrap()));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let correlation = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
        // It is 0.89 here.
        assert!(correlation > 0.6, "Spearman's correlation is {correlation:.2}");
    }
}
