//! Pruning by the average percentage of zeros.
//!
//! Scores filter `f` by `1 - APoZ_f`, with `APoZ_f` the share of zeros among the outputs of the ReLU behind the filter, over all pixels of
//! `calibration-images` training images, and removes the lowest: units that are seldom active.
//!
//! Hu, Peng, Tai, Tang. "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures". arXiv:1607.03250,
//! 2016.
//! Differs from the paper: one round of cutting and tuning (repeat the pass for more), by shares of each group instead of one deviation
//! above the mean, and layers joined by a residual are cut together by their mean score.
//!
//! ```
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::apoz::Apoz;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let method: Apoz = serde_json::from_value(serde_json::json!({ "ratio": 0.5 }))?;
//! let cut = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut Silent))?;
//! assert_eq!(cut.weighted().filter_map(|(_, node)| Some(node.weight()?.shape[0])).collect::<Vec<_>>(), [15, 5, 10]);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Value};
use briquette_core::pass::{Method, Pass};
use briquette_core::training::probe;
use briquette_core::{Activation, Layer};
use burn::tensor::Tensor;
use serde::Deserialize;

use briquette_parts::channels::{Channels, FilterScores};

/// Removes the units that are most often zero, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Apoz {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
    /// Training images on which zeros are counted.
    #[serde(default = "thousand")]
    calibration_images: usize,
    /// Images at a time.
    #[serde(default = "hundred")]
    batch: usize,
}

impl Method for Apoz {
    const NAME: &'static str = "apoz";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Hu, Peng, Tai, Tang, arXiv:1607.03250";
    const EXAMPLE: &'static str = "ratio = 0.3";
}

impl Pass for Apoz {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let behind = self.check(&net)?;
        let scores = activity(&net, &behind, (self.calibration_images.div_ceil(self.batch), self.batch), cx)?;
        let net = self.channels.cut(Self::NAME, net, |_, group| scores.means(group))?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.check(&net)?;
        self.channels.plan_equal(Self::NAME, net)
    }

    fn shorten(&mut self) {
        self.calibration_images = self.calibration_images.min(2 * self.batch);
    }
}

impl Apoz {
    /// For every layer whose filters may go, the ReLU behind it, if the settings make sense.
    fn check(&self, net: &Net) -> Result<BTreeMap<usize, usize>> {
        if self.calibration_images == 0 || self.batch == 0 {
            return Err(Error::Invalid("apoz: `calibration-images` and `batch` must be at least 1".into()));
        }
        let missing = "no ReLU follows its filters, so that their zeros cannot be counted; name it in `except`";
        self.channels.followed(net, rectifier, missing)
    }
}

/// The ReLU that a node's channels reach, through nodes that keep channels in their places.
fn rectifier(net: &Net, mut node: usize) -> Option<usize> {
    loop {
        node = net.nodes.iter().position(|reader| reader.inputs.contains(&node))?;
        let layer = net.nodes[node].op.layer();
        if matches!(layer, Layer::Activation(Activation::Relu | Activation::Relu6)) {
            return Some(node);
        }
        if !matches!(layer, Layer::BatchNorm(_) | Layer::Add(_) | Layer::MaxPool(_) | Layer::AvgPool(_) | Layer::Dropout(_)) {
            return None;
        }
    }
}

/// For the filters of each layer, the share of outputs that are not zero of the ReLU `behind` it.
fn activity(net: &Net, behind: &BTreeMap<usize, usize>, batches: (usize, usize), cx: &mut Context<'_>) -> Result<FilterScores> {
    let net = net.deep_clone();
    let mut active: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let seen = probe(cx, Apoz::NAME, batches, &net.device(), |images, _| {
        let count = images.dims()[0] as f64;
        net.trace(images, |index, value| {
            if behind.values().any(|relu| *relu == index) {
                let shares = briquette_core::coding::floats(active_shares(value.clone()));
                let sums = active.entry(index).or_insert_with(|| vec![0.0; shares.len()]);
                sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += f64::from(share) * count);
            }
            value
        });
        Ok(())
    })?;
    let mean = |relu: &usize| active.get(relu).map(|sums| sums.iter().map(|sum| sum / seen as f64).collect());
    Ok(FilterScores(behind.iter().filter_map(|(node, relu)| Some((*node, mean(relu)?))).collect()))
}

/// The share of each channel's outputs above zero, over samples and pixels.
fn active_shares(value: Value) -> Tensor<2> {
    let channels: Tensor<2> = match value {
        Value::Map(x) => x.swap_dims(0, 1).flatten(1, 3),
        Value::Vector(x) => x.transpose(),
    };
    channels.greater_scalar(0.0).float().mean_dim(1)
}

fn thousand() -> usize {
    1000
}

fn hundred() -> usize {
    100
}

#[cfg(test)]
mod tests {
    use briquette_core::context::Silent;

    use super::*;
    use briquette_handmade::{context, get, images, refusal, run, set, small};

    /// All filters of `conv1` hand on the upper left pixel of their window above different levels; the last is never active.
    fn levels() -> Net {
        let filter = [1.0, 0.0, 0.0, 0.0];
        let net = set(small(), "conv1", "weight", &[filter, filter, filter, filter].concat());
        set(net, "norm1", "beta", &[-0.5, 5.0, -0.2, -9.0])
    }

    #[test]
    fn zeros_are_counted_over_images_and_pixels() {
        let (data, mut silent) = (images(), Silent);
        let net = levels();
        let apoz: Apoz = serde_json::from_value(serde_json::json!({ "ratio": 0.3 })).unwrap();
        let scores = activity(&net, &apoz.check(&net).unwrap(), (3, 16), &mut context(&data, &mut silent)).unwrap().0;
        // The 3 by 3 windows of an image of 4 by 4 begin at these pixels; 1e-5 is what the normalization adds to a variance of 1.
        let corners = |i: usize| (0..9).map(move |p| data_pixel(i, p / 3 * 4 + p % 3));
        let share = |level: f64| {
            let all = (0..40).flat_map(corners);
            all.filter(|pixel| pixel / (1.0_f64 + 1e-5).sqrt() > level).count() as f64 / 360.0
        };
        let expected = [share(0.5), 1.0, share(0.2), 0.0];
        let found = &scores[&net.index("conv1").unwrap()];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
    }

    fn data_pixel(image: usize, pixel: usize) -> f64 {
        f64::from(images().train.pixel(image).unwrap()[pixel]) / 255.0
    }

    #[test]
    fn what_is_seldom_active_goes() {
        let settings = |share: f64| serde_json::json!({ "ratio": { "conv1": share } });
        let kept = |share| get(&run::<Apoz>(levels(), settings(share)).unwrap(), "norm1", "beta");
        assert_eq!(kept(0.25), [-0.5, 5.0, -0.2]);
        assert_eq!(kept(0.5), [5.0, -0.2]);
        assert_eq!(kept(0.75), [5.0]);
    }

    #[test]
    fn the_relu_is_found_behind_norms_pools_and_sums() {
        let zoo = |name: &str| {
            let arch = briquette_core::zoo::Arch::named(name).unwrap();
            arch.build(&arch.wanted(), &burn::tensor::Device::flex()).unwrap()
        };
        let net = zoo("resnet20");
        let behind = |name: &str| net.nodes[rectifier(&net, net.index(name).unwrap()).unwrap()].name.clone();
        assert_eq!((behind("layer1.0.conv1"), behind("layer1.0.conv2")), ("layer1.0.relu1".into(), "layer1.0.relu2".into()));
        let without = refusal::<Apoz>(zoo("lenet5"), serde_json::json!({ "ratio": 0.3 }));
        assert!(without.starts_with("node 'conv1': no ReLU follows its filters"), "{without}");
        let planned = serde_json::from_value::<Apoz>(serde_json::json!({ "ratio": 0.3, "except": ["conv*"] })).unwrap();
        assert!(planned.plan(zoo("lenet5")).is_ok());
    }
}
