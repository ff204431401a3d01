//! Which layers are quantized, the grids of their weights, and where the quantizers of their inputs stand.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::coding::{self, Coding, Rounding, Source, Weight};
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node};
use briquette_core::quantize::Quantize;
use briquette_core::types::{Bits, Fit, Layers, PerLayer};
use briquette_core::{Grid, StepGradient, layers};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use rayon::prelude::*;
use serde::Deserialize;

use super::observers::{Scale, search};
use super::refuse;

/// What has a step of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// The whole weight.
    Tensor,
    /// Each filter, or each row of a fully connected layer.
    #[default]
    Channel,
}

/// Whether a grid lies evenly about 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Symmetry {
    /// `2^bits - 1` levels, 0 in the middle.
    #[default]
    Symmetric,
    /// `2^bits` levels from the least weight to the largest.
    Affine,
}

/// How far a weight's grid reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// To the largest weight.
    #[default]
    MinMax,
    /// As far as the squared error is least.
    Mse,
}

/// The convolutions and fully connected layers that are quantized, with their bits: those that `bits` names among the `chosen`.
///
/// # Errors
/// Selectors that fit no layer, layers that are named but not chosen, bits that `allowed` does not allow (`range` says which it does), layers whose weights are shared or not finite, and a
/// network in which no layer is left.
pub fn layers(
    method: &str,
    net: &Net,
    bits: &PerLayer<Bits>,
    chosen: &BTreeSet<usize>,
    (allowed, range): (impl Fn(u32) -> bool, &str),
) -> Result<BTreeMap<usize, u32>> {
    refuse::weightless(net, bits)?;
    let mut layers = BTreeMap::new();
    for (index, bits) in bits.resolve_within(net, chosen)? {
        let node = &net.nodes[index];
        let Some(weight) = node.weight() else { continue };
        if !allowed(bits.get()) {
            return Err(Error::node(&node.name, format!("{method} takes {range} bits, not {}", bits.get())));
        }
        refuse::not_finite(&node.name, &weight.values())?;
        layers.insert(index, bits.get());
    }
    refuse::shared(net, layers.keys(), method)?;
    match layers.is_empty() {
        true => Err(Error::Invalid(format!("{method}: no layer is left to quantize; name one in `bits` or shorten `except`"))),
        false => Ok(layers),
    }
}

/// How many levels the value has that each of the quantized layers reads, where `activations` gives bits for it.
///
/// # Errors
/// As [`layers()`]; a layer that is named but whose weights are not quantized.
pub fn activation_levels(
    method: &str,
    net: &Net,
    activations: Option<&PerLayer<Bits>>,
    layers: &BTreeMap<usize, u32>,
    (allowed, range): (impl Fn(u32) -> bool, &str),
) -> Result<BTreeMap<usize, u32>> {
    let mut levels = BTreeMap::new();
    for (layer, (fit, bits)) in activations.map_or(Ok(BTreeMap::new()), |activations| activations.fits(net))? {
        if !allowed(bits.get()) {
            return Err(Error::Invalid(format!("{method}: `activations` takes {range} bits, not {}", bits.get())));
        }
        if layers.contains_key(&layer) {
            levels.insert(layer, 1 << bits.get());
        } else if fit == Fit::Name {
            let detail = "has bits for the activations that it reads, but its weights are left alone; quantize both or neither";
            return Err(Error::node(&net.nodes[layer].name, detail));
        }
    }
    Ok(levels)
}

/// As [`Layers::without`], without the first and the last where neither list is given.
///
/// # Errors
/// As [`Layers::without`].
pub fn inner(net: &Net, (layers, except): (&Layers, &Layers)) -> Result<BTreeSet<usize>> {
    let mut chosen = layers.without(except, net)?;
    if !layers.given() && !except.given() {
        chosen.pop_first();
        chosen.pop_last();
    }
    Ok(chosen)
}

/// The first and the last convolution or fully connected layer.
pub fn ends(net: &Net) -> Vec<usize> {
    let layers: Vec<usize> = net.own_weights().map(|(index, _)| index).collect();
    layers.first().into_iter().chain(layers.last()).copied().collect()
}

/// The grid of a weight.
pub fn weight_grid(weight: &Weight, bits: u32, per: Per, symmetry: Symmetry, reach: Reach) -> Grid {
    let levels = match symmetry {
        Symmetry::Symmetric => (1 << bits) - 1,
        Symmetry::Affine => 1 << bits,
    };
    let scale = |values: &[f32]| {
        let ends = values.iter().fold([0.0_f64; 2], |ends, v| [ends[0].min(f64::from(*v)), ends[1].max(f64::from(*v))]);
        let largest = ends[1].max(-ends[0]);
        let range = if symmetry == Symmetry::Symmetric { [-largest, largest] } else { ends };
        let error = |range| {
            let scale = Scale::spanning(range, levels);
            values.iter().map(|v| (f64::from(*v) - scale.round(f64::from(*v), levels)).powi(2)).sum()
        };
        Scale::spanning(if reach == Reach::Mse { search(range, error) } else { range }, levels)
    };
    let middle =
        |scale: Scale| if symmetry == Symmetry::Symmetric { Scale { zero: (levels - 1) as f32 / 2.0, ..scale } } else { scale };
    grid(weight, levels, per, |values| middle(scale(values)))
}

/// The grid with the scale that `scale` finds for those of the values that share one which no mask removed.
pub fn grid(weight: &Weight, levels: u32, per: Per, scale: impl Fn(&[f32]) -> Scale + Send + Sync) -> Grid {
    let (filters, fan_in) = (weight.filters(), weight.fan_in().max(1));
    let scales: Vec<Scale> = match (per, &weight.coding.mask) {
        (Per::Tensor, _) => vec![scale(&weight.left())],
        (Per::Channel, None) => filters.par_chunks(fan_in).map(scale).collect(),
        (Per::Channel, Some(mask)) => {
            let mask = weight.filtered(mask);
            let left = |(filter, mask): (&[f32], &[bool])| {
                filter.iter().zip(mask).filter(|(_, keep)| **keep).map(|(value, _)| *value).collect::<Vec<_>>()
            };
            filters.par_chunks(fan_in).zip(mask.par_chunks(fan_in)).map(|filter| scale(&left(filter))).collect()
        }
    };
    Grid {
        levels,
        axis: (per == Per::Channel).then_some(weight.filter_axis()),
        steps: scales.iter().map(|scale| scale.step).collect(),
        zeros: scales.iter().map(|scale| scale.zero).collect(),
    }
}

/// Puts each tensor of rank 2 or more in any Burn module on the grid that `grid` gives for it; tensors for which it gives none are left
/// alone. Masks stay. Learned steps are parameters of the module, which an optimizer moves with the others.
pub fn on_grids<M: Module>(module: M, (rounding, learned): (Rounding, bool), grid: impl Fn(&Weight) -> Option<Grid>) -> M {
    let source = |weight: Weight| {
        let source = Source::Grid { grid: grid(&weight)?, rounding, learned };
        Some((weight.path, Coding { mask: weight.coding.mask, source }))
    };
    let codings = coding::weights(&module).into_iter().filter_map(source).collect();
    coding::recode(module, codings)
}

/// A value that quantized layers read.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The node that puts it out.
    pub value: usize,
    /// Names of the nodes that read it quantized.
    pub readers: Vec<String>,
    /// Number of codes.
    pub levels: u32,
    /// Whether the network's structure rules out negative values.
    pub unsigned: bool,
}

/// One site for each value and number of levels that the layers read.
pub fn sites(net: &Net, levels: impl IntoIterator<Item = (usize, u32)>) -> Vec<Site> {
    let mut readers: BTreeMap<(usize, u32), Vec<String>> = BTreeMap::new();
    for (layer, levels) in levels {
        readers.entry((net.nodes[layer].inputs[0], levels)).or_default().push(net.nodes[layer].name.clone());
    }
    let site = |((value, levels), readers)| Site { value, readers, levels, unsigned: never_negative(net, value) };
    readers.into_iter().map(site).collect()
}

/// Puts a quantizer behind the value of each site, from which the site's readers then read; everybody else reads the value itself.
///
/// # Errors
/// When a quantizer does not fit there.
pub fn place(net: Net, quantizers: &[(Site, Scale)], train: StepGradient) -> Result<Net> {
    let (device, mut net) = (net.device(), net);
    // From the back, so that the indices of sites still to come stay.
    let mut order: Vec<&(Site, Scale)> = quantizers.iter().collect();
    order.sort_by_key(|(site, _)| std::cmp::Reverse((site.value, site.levels)));
    for (site, scale) in order {
        let own = site.value + 1;
        let value = scale.step * train.steps(site.levels, scale.zero);
        let tensor = Param::from_tensor(Tensor::from_floats([value], &device));
        let mut name = format!("{}-quantized", net.nodes[site.value].name);
        if net.nodes.iter().any(|node| node.name == name) {
            name = format!("{name}-{}", site.levels);
        }
        let op = Quantize::new(tensor, site.levels, scale.zero, train).into();
        let node = Node { op, name, inputs: vec![site.value] };
        net = net.insert(own, vec![node], |reader, input| {
            (input == site.value && site.readers.contains(&reader.name)).then_some(own)
        })?;
    }
    Ok(net)
}

/// Whether a node's output has no negative values, whatever the weights.
fn never_negative(net: &Net, node: usize) -> bool {
    match net.nodes[node].op.layer().kind().sign() {
        layers::Sign::NotNegative => true,
        layers::Sign::AsInputs => net.nodes[node].inputs.iter().all(|input| never_negative(net, *input)),
        layers::Sign::Any => false,
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::Layer;
    use briquette_core::zoo::{Arch, Wanted};
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{outputs, set, small};

    fn bits(text: &str) -> PerLayer<Bits> {
        serde_json::from_str(text).unwrap()
    }

    const EIGHT: (fn(u32) -> bool, &str) = (|bits| matches!(bits, 2..=8), "2 to 8");

    #[test]
    fn values_that_several_layers_read_have_one_quantizer_and_others_read_them_as_they_are() {
        let arch = Arch::named("resnet20").unwrap();
        let wanted = Wanted { width: 0.25, normalization: Some((vec![0.5; 3], vec![0.2; 3])), ..arch.wanted() };
        let net = arch.build(&wanted, &Device::flex()).unwrap();
        let found = sites(&net, net.weighted().map(|(index, _)| (index, 256)));
        // 19 convolutions and the classifier; nobody shares, for shortcuts are no layers.
        assert_eq!(found.len(), 20);
        assert_eq!(found.iter().filter(|site| !site.unsigned).count(), 1);
        let before: Vec<String> = net.nodes.iter().map(|node| node.name.clone()).collect();
        let adds = |net: &Net| -> Vec<Vec<String>> {
            let sums = net.nodes.iter().filter(|node| matches!(node.op.layer(), Layer::Add(_)));
            sums.map(|node| node.inputs.iter().map(|input| net.nodes[*input].name.clone()).collect()).collect()
        };
        let sums = adds(&net);
        let scale = Scale { step: 0.1, zero: 0.0 };
        let placed = place(net, &found.into_iter().map(|site| (site, scale)).collect::<Vec<_>>(), StepGradient::Fixed).unwrap();
        assert_eq!(adds(&placed), sums);
        for (_, node) in placed.weighted() {
            assert!(placed.nodes[node.inputs[0]].op.quantize().is_some(), "{}", node.name);
        }
        let left: Vec<String> =
            placed.nodes.iter().filter(|node| node.op.quantize().is_none()).map(|node| node.name.clone()).collect();
        assert_eq!(left, before);
    }

    #[test]
    fn readers_of_one_value_share_a_quantizer_unless_their_levels_differ() {
        use briquette_core::builder::{Builder, Conv};
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let one = b.conv("one", b.input(), Conv::new(2, 1));
        let two = b.conv("two", b.input(), Conv::new(2, 1));
        let three = b.conv("three", b.input(), Conv::new(2, 1));
        let sum = b.add("sum", &[one, two, three]);
        b.global_avg_pool("pool", sum);
        let net = b.finish().unwrap();
        let found = sites(&net, [(1, 16), (2, 16), (3, 256)]);
        assert_eq!(found.iter().map(|site| site.readers.len()).collect::<Vec<_>>(), [2, 1]);
        let placed: Vec<_> = found.into_iter().map(|site| (site, Scale { step: 0.1, zero: 0.0 })).collect();
        let net = place(net, &placed, StepGradient::Fixed).unwrap();
        let read = |layer: &str| net.nodes[net.nodes[net.index(layer).unwrap()].inputs[0]].op.layer();
        let levels = |layer: &str| {
            let Layer::Quantize(layers::Quantize { levels, .. }) = read(layer) else { panic!("{layer} reads no quantizer") };
            levels
        };
        assert_eq!((levels("one"), levels("two"), levels("three"), net.nodes.len()), (16, 16, 256, 8));
    }

    #[test]
    fn fine_quantizers_change_little() {
        let net = small();
        let expected = outputs(&net);
        let found = sites(&net, net.weighted().map(|(index, _)| (index, 65536)));
        let placed: Vec<_> = found.into_iter().map(|site| (site, Scale { step: 1e-3, zero: 0.0 })).collect();
        let found = outputs(&place(net, &placed, StepGradient::Fixed).unwrap());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-2));
    }

    #[test]
    fn grids_of_weights_hold_their_extremes_and_zero_rows_have_a_step() {
        let values = vec![0.5, -1.0, 0.25, 0.0, 0.0, 0.0, 3.0, 1.0, 2.0];
        let mut weight = Weight { path: String::new(), shape: vec![3, 3, 1, 1], values, coding: Coding::default() };
        let grid = weight_grid(&weight, 3, Per::Channel, Symmetry::Symmetric, Reach::MinMax);
        assert_eq!((grid.levels, grid.axis, grid.zeros.clone()), (7, Some(0), vec![3.0; 3]));
        assert!(grid.steps.iter().zip([1.0 / 3.0, 1e-8, 1.0]).all(|(a, b)| (a - b).abs() < 1e-7), "{:?}", grid.steps);
        grid.check(&[3, 3, 1, 1]).unwrap();
        let affine = weight_grid(&weight, 2, Per::Tensor, Symmetry::Affine, Reach::MinMax);
        assert_eq!((affine.levels, affine.axis, affine.steps[0], affine.zeros[0]), (4, None, 4.0 / 3.0, 1.0));
        let error = |grid: &Grid| -> f32 { weight.values.iter().map(|v| (v - grid.value(0, grid.nearest(0, *v))).powi(2)).sum() };
        let of = |reach| error(&weight_grid(&weight, 2, Per::Tensor, Symmetry::Symmetric, reach));
        assert!(of(Reach::Mse) < of(Reach::MinMax));
        // A matrix has its outputs in columns.
        weight.shape = vec![3, 3];
        let grid = weight_grid(&weight, 3, Per::Channel, Symmetry::Symmetric, Reach::MinMax);
        assert_eq!((grid.axis, grid.steps), (Some(1), vec![1.0, 1.0 / 3.0, 2.0 / 3.0]));
    }

    #[test]
    fn what_cannot_be_quantized_is_named() {
        let refused = |net: &Net, text: &str, except: &[&str]| {
            let except: Layers = except.iter().copied().collect();
            let chosen = Layers::default().without(&except, net).unwrap();
            layers("fixed-point", net, &bits(text), &chosen, EIGHT).unwrap_err().to_string()
        };
        assert_eq!(refused(&small(), r#"{ "fc1": 9 }"#, &[]), "node 'fc1': fixed-point takes 2 to 8 bits, not 9");
        assert!(refused(&small(), r#"{ "conv": 8 }"#, &["conv*"]).starts_with("fixed-point: no layer is left to quantize"));
        assert!(refused(&small(), r#"{ "fc3": 8 }"#, &[]).contains("unknown layer 'fc3'"));
        let net = set(small(), "fc2", "weight", &[f32::NAN; 15]);
        assert!(refused(&net, "8", &[]).starts_with("node 'fc2': holds the weight NaN"));
        let net = on_grids(small(), (Rounding::Nearest, false), |weight| {
            Some(weight_grid(weight, 8, Per::Channel, Symmetry::Symmetric, Reach::MinMax))
        });
        let shared = refused(&net, "8", &[]);
        assert!(shared.ends_with("put fixed-point before the pass that shares them"), "{shared}");
        let chosen = Layers::default().without(&["conv1"].into_iter().collect(), &small()).unwrap();
        assert_eq!(layers("fixed-point", &small(), &bits("4"), &chosen, EIGHT).unwrap().len(), 3);
        assert_eq!(ends(&small()), [1, 9]);
    }
}
