//! What methods with binary weights share: which layers become binary, the two values of their weights, the signs in front of them, and
//! what happens to the weights underneath after each step of the optimizer.
//!
//! A binary weight is `alpha sign(w)`, where the `w` underneath is real and trained by the gradient that the binary weight has: the straight-
//! through estimator. A `w` of 0 counts as positive.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::coding::{self, Rounding, Source, Weight};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::quantize::{Quantize, mean};
use briquette_core::stored::Stored;
use briquette_core::training::{Extras, Projection, Recipe, Settle, fit, renew};
use briquette_core::types::Layers;
use briquette_core::{Grid, Layer, StepGradient};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use briquette_parts::observers;
use briquette_parts::quantizers::{Per, grid, inner, on_grids};
use briquette_parts::refuse;

/// Smallest scale: weights that are all 0 have a sign, too.
const SMALLEST: f64 = 1e-12;

/// The two values of a binary weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// `-1` and `1`.
    One,
    /// `-alpha_c` and `alpha_c` with the mean `alpha_c` of `|w|` over the weights of output `c`.
    PerFilter,
}

/// Indices of the layers that become binary: the convolutions and fully connected layers among those of `layers` and not of `except`;
/// `method` is the one that asks.
///
/// # Errors
/// A selector that fits no layer, no layer left, or one that is named but is none of these, or whose weights an earlier pass shares or prunes.
pub fn layers(net: &Net, (layers, except): (&Layers, &Layers), method: &str) -> Result<Vec<usize>> {
    plain(net, layers.without(except, net)?, method)
}

/// As [`layers`], but that the first and the last layer stay real where neither list is given.
///
/// # Errors
/// As [`layers`].
pub fn inner_layers(net: &Net, which: (&Layers, &Layers), method: &str) -> Result<Vec<usize>> {
    plain(net, inner(net, which)?, method)
}

fn plain(net: &Net, chosen: BTreeSet<usize>, method: &str) -> Result<Vec<usize>> {
    if chosen.is_empty() {
        let detail =
            "no convolution or fully connected layer is left between the first and the last; set `except = []` for these";
        return Err(Error::Invalid(format!("{method}: {detail}")));
    }
    refuse::shared(net, &chosen, method)?;
    refuse::pruned(net, &chosen, method)?;
    Ok(chosen.into_iter().collect())
}

/// Makes tensors of rank 2 or more in any Burn module binary, those that `choose` takes. Masks stay.
pub fn binarize<M: Module>(module: M, scale: Scale, rounding: Rounding, choose: impl Fn(&Weight) -> bool) -> M {
    let paths: Vec<String> = coding::weights(&module).into_iter().filter(&choose).map(|weight| weight.path).collect();
    let two = |weight: &Weight| match scale {
        Scale::One => Grid::uniform(2, 2.0, 0.5),
        Scale::PerFilter => grid(weight, 2, Per::Channel, |_| observers::Scale { step: 2.0, zero: 0.5 }),
    };
    let module = on_grids(module, (rounding, false), |weight| choose(weight).then(|| two(weight)));
    coding::adjust_kept(module, |path, base, mask, steps| match scale {
        Scale::PerFilter if paths.iter().any(|chosen| chosen == path) => {
            let steps = least_squares_kept(&base, mask.as_ref());
            (base, steps)
        }
        Scale::PerFilter | Scale::One => (base, steps),
    })
}

/// [`binarize`] for these layers of a network.
pub fn binarize_layers(net: Net, layers: &[usize], scale: Scale, rounding: Rounding) -> Net {
    binarize(net, scale, rounding, |weight| weight.node().is_some_and(|node| layers.contains(&node)))
}

/// The steps `2 alpha_c` for weights `[before, channels, behind]`: the mean `alpha_c` of `|w|` in a channel minimizes
/// `sum (w - alpha_c sign(w))^2`.
pub fn least_squares(base: &Tensor<3>) -> Tensor<1> {
    least_squares_kept(base, None)
}

/// [`least_squares`] over what a mask, 1 or 0 for each weight, keeps.
fn least_squares_kept(base: &Tensor<3>, mask: Option<&Tensor<3>>) -> Tensor<1> {
    let channels = base.dims()[1];
    mean(&base.clone().abs(), mask).reshape([channels]).mul_scalar(2.0).clamp_min(2.0 * SMALLEST)
}

/// Scales the real weights of each of these layers to a mean magnitude of 1/2 and clips them to [-1, 1]. The binary papers start from weights drawn
/// evenly from [-1, 1], whose mean magnitude that is, and read the probability of a sign off them; what batch norm follows has no scale of its
/// own, so that weights of another size, trained ones above all, have to be brought there first. By the largest weight instead, one outlier
/// would leave the others near 0, where signs are tosses of a coin.
///
/// # Errors
/// When the network does not hold together.
pub fn spread(net: Net, layers: &[usize]) -> Result<Net> {
    with_weights(net, layers, |weight| {
        let mean = weight.base.iter().map(|w| f64::from(w.abs())).sum::<f64>() / weight.base.len().max(1) as f64;
        let scale = 0.5 / mean.max(SMALLEST);
        weight.base.iter_mut().for_each(|w| *w = (scale * f64::from(*w)).clamp(-1.0, 1.0) as f32);
    })
}

/// The network with changed weights in these layers.
///
/// # Errors
/// When the network does not hold together.
pub fn with_weights(net: Net, layers: &[usize], change: impl Fn(&mut Stored)) -> Result<Net> {
    let device = net.device();
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        if !layers.contains(&index) {
            return Ok(node);
        }
        let mut parameters = node.parameters();
        parameters.iter_mut().filter(|parameter| parameter.name == "weight").for_each(&change);
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}

/// Paths of the weights of these layers, with the layers.
pub fn paths(net: &Net, layers: &[usize]) -> BTreeMap<String, usize> {
    let own = |weight: Weight| weight.node().filter(|node| layers.contains(node)).map(|node| (weight.path, node));
    coding::weights(net).into_iter().filter_map(own).collect()
}

/// The gradient of a layer's weight, flat, in the order in which the weight lies.
pub fn gradient(net: &Net, layer: usize, gradients: &GradientsParams) -> Option<Tensor<1>> {
    net.nodes[layer].dense()?.gradient(gradients).map(|gradient| gradient.reshape([-1]))
}

/// What happens after each step: the weights underneath are clipped to [-1, 1], beyond which they would have no effect on their sign but
/// take long to come back, and scales follow from them.
#[derive(Debug)]
pub struct Bounds {
    scale: Scale,
    /// By the path of a weight, the factor on what a step changes.
    rates: BTreeMap<String, f64>,
    /// The weights before the step, where the factor is not 1.
    before: BTreeMap<String, Tensor<3>>,
}

impl Bounds {
    /// For the binary layers of a network. With `glorot` the steps of a layer with `m` inputs and `n` outputs, times the pixels of its
    /// kernel, are `sqrt((m + n) / 1.5)` times as long: the inverse of the range from which Glorot and Bengio (AISTATS 2010) draw weights.
    pub fn new(net: &Net, layers: &[usize], scale: Scale, glorot: bool) -> Self {
        let rate = |layer: usize| match net.nodes[layer].op.weight_shape().as_deref() {
            Some([outputs, inputs, kernel @ ..]) if glorot => {
                (((outputs + inputs) * kernel.iter().product::<usize>()) as f64 / 1.5).sqrt()
            }
            _ => 1.0,
        };
        let rates = paths(net, layers).into_iter().map(|(path, layer)| (path, rate(layer))).collect();
        Self { scale, rates, before: BTreeMap::new() }
    }
}

impl Projection for Bounds {
    fn see(&mut self, net: &Net, _: &GradientsParams, _: f64) {
        if self.before.is_empty() && self.rates.values().any(|rate| *rate != 1.0) {
            coding::adjust(net.clone(), |path, base, steps| {
                self.before.insert(path.to_string(), base.clone());
                (base, steps)
            });
        }
    }

    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        coding::adjust(net, |path, base, steps| {
            let Some(rate) = self.rates.get(path) else { return (base, steps) };
            let base = match self.before.remove(path) {
                Some(before) => before.clone() + (base - before).mul_scalar(*rate),
                None => base,
            };
            let base = base.clamp(-1.0, 1.0);
            if *rate != 1.0 {
                self.before.insert(path.to_string(), base.clone());
            }
            let steps = match self.scale {
                Scale::One => steps,
                Scale::PerFilter => least_squares(&base),
            };
            (base, steps)
        })
    }
}

/// The network as it is used after a training whose forward pass draws, or which is tested by the real weights underneath: nothing is drawn any
/// more, by later trainings neither, and batch norms have the statistics of what the weights in use make.
#[derive(Debug)]
pub struct Settled {
    /// The layers whose weights are drawn.
    pub layers: Vec<usize>,
    /// Whether the real weights take the place of the nearest values.
    pub real: bool,
}

impl Settle for Settled {
    fn settle(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = with_weights(net, &self.layers, |weight| match &mut weight.coding.source {
            Source::Grid { rounding, .. } if !self.real => *rounding = Rounding::Nearest,
            source @ (Source::Free
            | Source::Codebook { .. }
            | Source::Grid { .. }
            | Source::Ternary { .. }
            | Source::Shared { .. }
            | Source::Product { .. }) => *source = Source::Free,
        })?;
        renew(net, cx)
    }
}

/// Trains a network as [`fit`] does and hands it on as it is used, which is also what was validated: as it is, or as `settled` makes it.
///
/// # Errors
/// As [`fit`].
pub fn fit_settled<'a>(
    net: Net,
    recipe: &Recipe,
    extras: Extras<'a>,
    settled: Option<&'a Settled>,
    cx: &mut Context<'_>,
) -> Result<Net> {
    let settle = settled.map(|settled| settled as &dyn Settle);
    let net = fit(net, recipe, Extras { settle, ..extras }, cx)?;
    match settle {
        Some(settle) => settle.settle(net, cx),
        None => Ok(net),
    }
}

/// [`fit_settled`] for a network whose `binary` layers keep their bounds and scales ([`Bounds`]).
///
/// # Errors
/// As [`fit`].
pub fn train(
    net: Net,
    binary: &[usize],
    (scale, glorot): (Scale, bool),
    recipe: &Recipe,
    settled: Option<&Settled>,
    cx: &mut Context<'_>,
) -> Result<Net> {
    let mut bounds = Bounds::new(&net, binary, scale, glorot);
    fit_settled(net, recipe, Extras { projections: vec![&mut bounds], ..Extras::default() }, settled, cx)
}

/// Puts the sign of the activations directly in front of each of these layers, unless it reads the network's input. The gradient of the
/// sign is 1 where `|x| <= 1` and 0 elsewhere. A rectifier or another activation in front of a layer, or of the pools in front of it, goes,
/// for all that read it: the signs of what it gives would all be 1. Returns the layers' indices in the new network.
///
/// # Errors
/// When the network does not hold together.
pub fn signs(mut net: Net, layers: &[usize]) -> Result<(Net, Vec<usize>)> {
    let names: Vec<String> = layers.iter().map(|layer| net.nodes[*layer].name.clone()).collect();
    for name in &names {
        match source(&net, net.index(name)?) {
            Before::Input => continue,
            Before::Activation(activation) => {
                let input = net.nodes[activation].inputs[0];
                net = net.bypass(activation, input)?;
            }
            Before::Other => {}
        }
        let step = Param::from_tensor(Tensor::from_floats([2.0], &net.device()));
        let sign = Quantize::new(step, 2, 0.5, StepGradient::Fixed);
        let layer = net.index(name)?;
        net = net.interpose(layer, format!("{name}-sign"), sign.into())?;
    }
    let layers = names.iter().map(|name| net.index(name)).collect::<Result<_>>()?;
    Ok((net, layers))
}

/// What a layer reads, through pools and the like.
enum Before {
    Input,
    Activation(usize),
    Other,
}

fn source(net: &Net, layer: usize) -> Before {
    let mut node = layer;
    while let Some(&input) = net.nodes[node].inputs.first() {
        node = input;
        let layer = net.nodes[node].op.layer();
        if matches!(layer, Layer::Activation(_)) {
            return Before::Activation(node);
        }
        if matches!(layer, Layer::Input(_) | Layer::Normalize(_)) {
            return Before::Input;
        }
        if !(layer.kind().homogeneous() || matches!(layer, Layer::ChannelSlice(_))) {
            return Before::Other;
        }
    }
    Before::Input
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::floats;
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, Distribution};

    use super::*;
    use briquette_handmade::{get, outputs, set, small};

    #[test]
    fn the_scale_of_a_pruned_filter_is_the_mean_of_what_is_left() {
        let weights = Tensor::<4>::from_floats([[[[0.5, -1.5, 0.1]]], [[[0.1, 0.2, -0.4]]]], &burn::tensor::Device::flex());
        let pruned = crate::pruning::magnitude::prune(Param::from_tensor(weights), |_| Some(0.5));
        let binary = binarize(pruned, Scale::PerFilter, Rounding::Nearest, |_| true);
        let found = coding::weights(&binary)[0].values.clone();
        let wanted = [1.0, -1.0, 0.0, 0.0, 0.0, -0.4];
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn the_mean_magnitude_is_the_least_squares_scale() {
        let base = Tensor::<3>::random([3, 2, 4], Distribution::Normal(0.0, 1.0), &Device::flex());
        let steps = floats(least_squares(&base));
        let values = floats(base);
        for (c, step) in steps.iter().enumerate() {
            let own: Vec<f32> = (0..24).filter(|i| i / 4 % 2 == c).map(|i| values[i]).collect();
            let error = |alpha: f32| own.iter().map(|w| f64::from(w - alpha * w.signum()).powi(2)).sum::<f64>();
            let alpha = step / 2.0;
            for other in (0..200).map(|i| i as f32 * 0.01) {
                assert!(error(alpha) <= error(other) + 1e-6, "{alpha} and {other}");
            }
        }
    }

    #[test]
    fn any_module_becomes_binary_and_a_matrix_has_a_scale_for_each_output() {
        let device = Device::flex();
        let module = LinearConfig::new(5, 3).init(&device);
        let before = coding::weights(&module).remove(0).values;
        let after = coding::weights(&binarize(module, Scale::PerFilter, Rounding::Nearest, |_| true)).remove(0).values;
        for output in 0..3 {
            let alpha = (0..5).map(|i| before[3 * i + output].abs()).sum::<f32>() / 5.0;
            for i in (0..5).map(|i| 3 * i + output) {
                assert!((after[i] - alpha * before[i].signum()).abs() < 1e-6, "{after:?} {before:?}");
            }
        }
    }

    #[test]
    fn weights_fill_their_range_and_their_signs_stay() {
        let (net, all) = (small(), Layers::default());
        let layers = layers(&net, (&all, &["conv1"].into_iter().collect()), "it").unwrap();
        let (conv1, fc1) = (get(&net, "conv1", "weight"), get(&net, "fc1", "weight"));
        let net = spread(binarize_layers(net, &layers, Scale::One, Rounding::Nearest), &layers).unwrap();
        assert_eq!(get(&net, "conv1", "weight"), conv1);
        let base = net.nodes[net.index("fc1").unwrap()].weight().unwrap().base;
        let mean = fc1.iter().map(|w| w.abs()).sum::<f32>() / fc1.len() as f32;
        assert!(base.iter().zip(&fc1).all(|(new, old)| (new - (old / (2.0 * mean)).clamp(-1.0, 1.0)).abs() < 1e-6));
        assert_eq!(get(&net, "fc1", "weight"), fc1.iter().map(|w| w.signum()).collect::<Vec<f32>>());
    }

    #[test]
    fn signs_stand_in_front_of_the_layers_and_rectifiers_go() {
        let net = small();
        let all = layers(&net, (&Layers::default(), &Layers::default()), "it").unwrap();
        let (net, moved) = signs(net, &all).unwrap();
        let names: Vec<&str> = net.nodes.iter().map(|node| node.name.as_str()).collect();
        let expected = ["input", "conv1", "norm1", "conv2-sign", "conv2", "flatten", "fc1-sign", "fc1", "fc2-sign", "fc2"];
        assert_eq!(names, expected);
        assert_eq!(moved, [1, 4, 7, 9]);
        assert!(outputs(&net).iter().all(|output| output.is_finite()));
    }

    #[test]
    fn pruned_and_shared_layers_are_refused() {
        let zero = set(small(), "fc1", "weight", &[[0.0; 30], [1.0; 30]].concat());
        let (pruned, all) = (briquette_parts::masks::mask_zeros(zero, |_| true).unwrap(), Layers::default());
        let error = layers(&pruned, (&all, &all), "binary-connect").unwrap_err().to_string();
        assert_eq!(error, "node 'fc1': is pruned; put binary-connect before the pass that prunes it, or name it in `except`");
        let none = layers(&small(), (&all, &["*"].into_iter().collect()), "binary-connect").unwrap_err().to_string();
        assert_eq!(none, "`except` leaves no layer; shorten it");
    }
}
