//! Statistics of batch norms for weights that the training did not see.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::Tensor;

use super::probe;
use crate::coding::floats;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::net::{Net, Op, Value};
use crate::values::plain;

/// Batches, and images in each, that are enough for statistics.
const STATISTICS: (usize, usize) = (40, 100);

/// The network whose batch norms hold the means and variances of what they read from up to 4000 training images, in batches that are each
/// normalized by their own moments as in a training: for each channel `m = E[x]` and `v = E[x^2] - m^2` over all images and places, summed in
/// double precision. Weights are those of an evaluation, after masks, codebooks and grids, nothing is drawn and nothing dropped, and only the
/// statistics change. A network without batch norms comes back as it is.
///
/// # Errors
/// [`Error::Stopped`] when the host asks to stop, and a batch norm that reads numbers that are not finite.
pub fn renew(net: Net, cx: &mut Context<'_>) -> Result<Net> {
    let norms: BTreeMap<usize, usize> = net
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| matches!(node.op, Op::BatchNorm(_)))
        .map(|(index, node)| (index, node.inputs[0]))
        .collect();
    if norms.is_empty() {
        return Ok(net);
    }
    let device = net.device();
    let mut normalizing = net.probed();
    for node in &mut normalizing.nodes {
        if let Op::BatchNorm(norm) = &mut node.op {
            norm.training = Param::from_bool(true);
        }
    }
    let mut sums: BTreeMap<usize, Moments> = BTreeMap::new();
    probe(cx, "statistics", STATISTICS, &device.clone().autodiff(), |images, _| {
        normalizing.trace(images, |index, value| {
            for (norm, _) in norms.iter().filter(|(_, input)| **input == index) {
                sums.entry(*norm).or_default().add(&value);
            }
            value
        });
        Ok(())
    })?;
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let Some([mean, variance]) = sums.remove(&index).map(Moments::of_all) else { return Ok(node) };
        if !mean.iter().chain(&variance).all(|moment| moment.is_finite()) {
            return Err(Error::node(&node.name, "reads numbers that are not finite, of which there are no statistics"));
        }
        let mut parameters = node.parameters();
        for parameter in &mut parameters {
            match parameter.name {
                "mean" => parameter.base.clone_from(&mean),
                "var" => parameter.base.clone_from(&variance),
                _ => {}
            }
        }
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}

/// Sums over all rows, and over their squares, for each channel.
#[derive(Default)]
struct Moments {
    rows: f64,
    sums: Vec<[f64; 2]>,
}

impl Moments {
    fn add(&mut self, value: &Value) {
        let rows = match value.clone() {
            Value::Map(x) => {
                let [batch, channels, height, width] = x.dims();
                plain(x).permute([0, 2, 3, 1]).reshape([batch * height * width, channels])
            }
            Value::Vector(x) => plain(x),
        };
        let [count, channels] = rows.dims();
        // About the batch's own mean: squares of large means would leave nothing of small variances in single precision.
        let mean = rows.clone().mean_dim(0);
        let variance = (rows - mean.clone()).square().mean_dim(0);
        let own = floats(Tensor::cat(vec![mean, variance], 0));
        self.sums.resize(channels, [0.0; 2]);
        for (channel, [first, second]) in self.sums.iter_mut().enumerate() {
            let (mean, variance) = (f64::from(own[channel]), f64::from(own[channels + channel]));
            *first += count as f64 * mean;
            *second += count as f64 * (variance + mean * mean);
        }
        self.rows += count as f64;
    }

    /// Mean and variance.
    fn of_all(self) -> [Vec<f32>; 2] {
        let mean = |[first, _]: &[f64; 2]| first / self.rows;
        let variance = |sums: &[f64; 2]| (sums[1] / self.rows - mean(sums).powi(2)).max(0.0);
        [self.sums.iter().map(|sums| mean(sums) as f32).collect(), self.sums.iter().map(|sums| variance(sums) as f32).collect()]
    }
}

#[cfg(test)]
mod tests {
    use briquette_data::Dataset;
    use burn::tensor::Device;

    use super::*;
    use crate::builder::{Builder, Conv};
    use crate::coding::{Coding, Rounding, Source};
    use crate::context::{Data, Silent};
    use crate::{Grid, layers};

    fn data() -> Data {
        let pixels = (0..250_usize * 16).map(|i| (i * i * 31 % 251) as u8).collect();
        let all = Dataset::from_memory("handmade", [1, 4, 4], 2, pixels, (0..250).map(|i| i % 2).collect()).unwrap();
        Data { train: all.clone(), valid: all.clone(), test: all }
    }

    fn net() -> Net {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.fixed("drop", &[b.input()], layers::Dropout { p: 0.5 });
        let x = b.conv("conv", x, Conv::new(3, 2).no_bias());
        let x = b.batch_norm("norm1", x);
        let x = b.relu("relu", x);
        let x = b.flatten("flatten", x);
        let x = b.linear("fc", x, 4);
        b.batch_norm("norm2", x);
        b.finish().unwrap()
    }

    fn renewed(net: Net) -> Net {
        let (data, mut silent) = (data(), Silent);
        renew(net, &mut Context::new(&Device::flex(), 5, &data, &mut silent)).unwrap()
    }

    fn get(net: &Net, node: &str, parameter: &str) -> Vec<f32> {
        let parameters = net.nodes[net.index(node).unwrap()].parameters();
        parameters.into_iter().find(|stored| stored.name == parameter).unwrap().values()
    }

    fn with(net: Net, layer: &str, change: impl Fn(&mut crate::stored::Stored)) -> Net {
        let nodes = net.nodes.into_iter().map(|node| {
            let mut parameters = node.parameters();
            if node.name == layer {
                parameters.iter_mut().filter(|stored| stored.name == "weight").for_each(&change);
            }
            node.with(parameters, &Device::flex()).unwrap()
        });
        Net { nodes: nodes.collect() }
    }

    fn near(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3 * (0.1 + b.abs()))
    }

    #[test]
    fn statistics_are_the_moments_over_all_images_with_nothing_dropped() {
        let net = renewed(net());
        let all = super::super::images(
            &briquette_data::Loader::ordered(&data().train, 250).next().unwrap().unwrap(),
            [1, 4, 4],
            &Device::flex(),
        );
        let mut read = Vec::new();
        net.trace(all, |index, value| {
            if index == net.index("conv").unwrap() {
                read = floats(value.clone().map());
            }
            value
        });
        for channel in 0..3 {
            let own: Vec<f64> = (0..250 * 27).filter(|i| i / 9 % 3 == channel).map(|i| f64::from(read[i])).collect();
            let mean = own.iter().sum::<f64>() / own.len() as f64;
            let variance = own.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / own.len() as f64;
            let found = [get(&net, "norm1", "mean")[channel], get(&net, "norm1", "var")[channel]];
            assert!(near(&found, &[mean as f32, variance as f32]), "{found:?} and {mean}, {variance}");
        }
    }

    #[test]
    fn a_norm_takes_the_scale_of_weights_back() {
        let net = renewed(net());
        let scaled = renewed(with(net.deep_clone(), "conv", |stored| stored.base.iter_mut().for_each(|w| *w *= 20.0)));
        let means = [get(&net, "norm1", "mean"), get(&scaled, "norm1", "mean")];
        assert!(near(&means[1], &means[0].iter().map(|mean| 20.0 * mean).collect::<Vec<f32>>()));
        for parameter in ["mean", "var"] {
            assert!(near(&get(&scaled, "norm2", parameter), &get(&net, "norm2", parameter)), "{parameter}");
        }
    }

    #[test]
    fn statistics_are_of_the_weights_of_an_evaluation_not_of_drawn_ones() {
        let grid = |rounding| {
            let source = Source::Grid { grid: Grid::uniform(2, 2.0, 0.5), rounding, learned: false };
            let drawn = with(net(), "conv", |stored| stored.coding = Coding { mask: None, source: source.clone() });
            let net = renewed(drawn);
            ["mean", "var"].map(|parameter| get(&net, "norm1", parameter))
        };
        assert_eq!(grid(Rounding::Stochastic), grid(Rounding::Nearest));
    }

    #[test]
    fn numbers_that_are_not_finite_are_named() {
        let net = with(net(), "conv", |stored| stored.base[4] = f32::INFINITY);
        let (data, mut silent) = (data(), Silent);
        let error = renew(net, &mut Context::new(&Device::flex(), 5, &data, &mut silent)).unwrap_err().to_string();
        assert!(error.starts_with("node 'norm1': reads numbers that are not finite"), "{error}");
    }
}
