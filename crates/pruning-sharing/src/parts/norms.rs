//! Statistics of batch norms for weights that the training did not see.

use std::collections::BTreeMap;

use briquette_core::coding::floats;
use briquette_core::error::Result;
use briquette_core::net::{Net, Op, Value};
use briquette_core::pass::Context;
use briquette_core::training::probe;
use burn::module::Module;
use burn::tensor::Tensor;

use briquette_core::values::plain;

/// Batches, and images in each, that are enough for statistics.
pub const STATISTICS: (usize, usize) = (40, 100);

/// The network whose batch norms hold the means of the means and variances of up to `batches` batches of `batch` training images, each
/// normalized by its own as in a training.
///
/// # Errors
/// [`Error::Stopped`](briquette_core::error::Error::Stopped) when the host asks to stop.
pub fn renewed(net: Net, cx: &mut Context<'_>, size: (usize, usize)) -> Result<Net> {
    let device = cx.device.clone();
    let trained = net.deep_clone().train();
    let norms: BTreeMap<usize, usize> = net
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| matches!(node.op, Op::BatchNorm(_)))
        .map(|(index, node)| (index, node.inputs[0]))
        .collect();
    let mut sums: BTreeMap<usize, Tensor<2>> = BTreeMap::new();
    let mut count = 0;
    probe(cx, "statistics", size, &device.clone().autodiff(), |images, _| {
        trained.trace(images, |index, value| {
            for (norm, _) in norms.iter().filter(|(_, input)| **input == index) {
                let new = statistics(value.clone());
                let sum = match sums.remove(norm) {
                    Some(old) => old + new,
                    None => new,
                };
                sums.insert(*norm, sum);
            }
            value
        });
        count += 1;
        Ok(())
    })?;
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let Some(sum) = sums.remove(&index) else { return Ok(node) };
        let means = floats(sum.div_scalar(f64::from(count)));
        let channels = means.len() / 2;
        let mut parameters = node.parameters();
        for parameter in &mut parameters {
            match parameter.name {
                "mean" => parameter.base = means[..channels].to_vec(),
                "var" => parameter.base = means[channels..].to_vec(),
                _ => {}
            }
        }
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}

/// Mean and variance of each channel, `[2, channels]`.
fn statistics(value: Value) -> Tensor<2> {
    let rows = match value {
        Value::Map(x) => {
            let [batch, channels, height, width] = x.dims();
            plain(x).permute([0, 2, 3, 1]).reshape([batch * height * width, channels])
        }
        Value::Vector(x) => plain(x),
    };
    let mean = rows.clone().mean_dim(0);
    let variance = (rows - mean.clone()).square().mean_dim(0);
    Tensor::cat(vec![mean, variance], 0)
}

#[cfg(test)]
mod tests {
    use briquette_core::pass::Silent;

    use super::*;
    use crate::handmade::{context, get, images, outputs, set, small};

    #[test]
    fn a_norm_takes_the_scale_of_weights_back() {
        let (data, mut silent) = (images(), Silent);
        let mut anew = |net: Net| renewed(net, &mut context(&data, &mut silent), (1, 40)).unwrap();
        let net = anew(small());
        let weights: Vec<f32> = get(&net, "conv1", "weight").iter().map(|w| 20.0 * w).collect();
        let scaled = anew(set(net.deep_clone(), "conv1", "weight", &weights));
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-3 * (1.0 + b.abs()));
        assert!(near(&outputs(&scaled), &outputs(&net)));
        let means = [get(&net, "norm1", "mean"), get(&scaled, "norm1", "mean")];
        assert!(near(&means[1], &means[0].iter().map(|mean| 20.0 * mean).collect::<Vec<f32>>()));
        assert!(get(&net, "norm1", "var").iter().all(|var| *var > 0.0 && *var != 1.0));
    }
}
