//! Forward-backward splitting for group sparsity: after each step of the optimizer, the proximal step of `t * sum_g ||w_g||`, where `t` is
//! the learning rate times the strength of the penalty: `w_g <- max(0, 1 - t / ||w_g||) w_g`. Groups whose norm falls to `t` are exactly zero
//! from then on, until a gradient lifts them beyond it.
//!
//! Combettes, Wajs. "Signal Recovery by Proximal Forward-Backward Splitting". Multiscale Modeling & Simulation 4(4), 2005.
//! With SGD a group stays empty while its gradient's norm is below the strength, with momentum `m` below `1 - m` times the strength. With
//! Adam, which scales each weight's step, the threshold is still the same for all weights, so that strengths have to be measured against the
//! root of the group's size instead.

use std::collections::HashMap;

use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Node, Op};
use briquette_core::training::Projection;
use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use briquette_core::values::{plain, replace};
use briquette_parts::refuse;

/// Which weights of a layer vanish together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// Those of one filter or neuron, with its bias.
    Filters,
    /// Those that read one input channel.
    Channels,
    /// Those at one input channel and place in the kernel: a column of the weight as a matrix `[out, in * kh * kw]`; of a convolution in
    /// groups, a column of the matrix of each group.
    Columns,
    /// All weights of all layers of the penalty, as one group; of batch norms the shifts.
    Whole,
}

/// `strength * sum_g ||w_g||` over groups in some layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Penalty {
    /// The groups.
    pub groups: Groups,
    /// Indices of the layers.
    pub layers: Vec<usize>,
    /// The factor, often called lambda.
    pub strength: f64,
}

impl Penalty {
    /// Refuses layers whose weights an earlier pass shares, and strengths that are no penalty; `method` names the setting's owner.
    ///
    /// # Errors
    /// Names the layer or the strength.
    pub fn check(&self, method: &str, net: &Net) -> Result<()> {
        if !(self.strength.is_finite() && self.strength >= 0.0) {
            return Err(Error::Invalid(format!("{method}: strengths must be 0 or more, not {}", self.strength)));
        }
        refuse::shared(net, &self.layers, method)
    }

    /// The network after the proximal step with the threshold `t = rate * strength`.
    pub fn shrink(&self, net: Net, rate: f64) -> Net {
        let threshold = rate * self.strength;
        if threshold == 0.0 {
            return net;
        }
        let weights: Vec<Weight> = self.layers.iter().filter_map(|layer| Weight::of(&net.nodes[*layer])).collect();
        let squares: Vec<Tensor<4>> = weights.iter().map(|weight| weight.squares(self.groups)).collect();
        let all = || squares.iter().cloned().reduce(|a, b| a + b);
        let mut values = HashMap::new();
        for (weight, own) in weights.into_iter().zip(&squares) {
            let squares = if self.groups == Groups::Whole { all() } else { Some(own.clone()) };
            let Some(squares) = squares else { continue };
            // A norm of zero gives minus infinity and with it the factor 0.
            let factors = (squares.sqrt().recip().mul_scalar(-threshold) + 1.0).clamp_min(0.0);
            values.insert(weight.id, flat(weight.base * factors.clone()));
            if let (Groups::Filters, Some((id, bias))) = (self.groups, weight.bias) {
                values.insert(id, flat(bias * factors));
            }
        }
        replace(net, values)
    }
}

/// Penalties as a training takes them, one after the other: exact where groups are disjoint or one holds the other whole, the smaller first.
#[derive(Debug)]
pub struct Proximal {
    penalties: Vec<Penalty>,
    rate: f64,
}

impl Proximal {
    /// In this order.
    pub fn new(penalties: Vec<Penalty>) -> Self {
        Self { penalties, rate: 0.0 }
    }
}

impl Projection for Proximal {
    fn see(&mut self, _: &Net, _: &GradientsParams, lr: f64) {
        self.rate = lr;
    }

    fn project(&mut self, net: Net, _: usize, _: usize) -> Net {
        self.penalties.iter().fold(net, |net, penalty| penalty.shrink(net, self.rate))
    }
}

/// A layer's weight in four dimensions, of which Burn puts those of fully connected layers in another order.
struct Weight {
    id: ParamId,
    base: Tensor<4>,
    /// With the mask.
    effective: Tensor<4>,
    /// The bias along the dimension of the outputs.
    bias: Option<(ParamId, Tensor<4>)>,
    outputs: usize,
    inputs: usize,
    /// Groups of channels.
    groups: usize,
}

impl Weight {
    fn of(node: &Node) -> Option<Self> {
        if let Some(dense) = node.dense() {
            let mut along = [1; 4];
            along[dense.outputs] = -1;
            return Some(Self {
                id: dense.id(),
                base: plain(dense.base()),
                effective: plain(dense.weight()),
                bias: dense.bias.map(|bias| (bias.id, plain(bias.val()).reshape(along))),
                outputs: dense.outputs,
                inputs: dense.inputs,
                groups: dense.groups,
            });
        }
        // The shift of a norm goes with the branch that it ends.
        let Op::BatchNorm(norm) = &node.op else { return None };
        let shift = plain(norm.beta.val()).reshape([-1, 1, 1, 1]);
        let (base, effective) = (shift.clone(), shift);
        Some(Self { id: norm.beta.id, base, effective, bias: None, outputs: 0, inputs: 1, groups: 1 })
    }

    /// The squared norm of each group, with dimensions of size 1 for those that it spans, or once for each of its weights.
    fn squares(&self, groups: Groups) -> Tensor<4> {
        let squares = self.effective.clone().square();
        match groups {
            Groups::Filters => {
                let weights = squares.sum_dims(&[self.inputs, 2, 3]);
                self.bias.as_ref().map_or(weights.clone(), |(_, bias)| weights + bias.clone().square())
            }
            Groups::Channels => squares.sum_dims(&[self.outputs, 2, 3]),
            Groups::Columns if self.groups > 1 => {
                let [outputs, inputs, height, width] = squares.dims();
                let of_group = squares.reshape([self.groups, outputs / self.groups, inputs * height * width]).sum_dim(1);
                let each = of_group.repeat_dim(1, outputs / self.groups);
                each.reshape([outputs, inputs, height, width])
            }
            Groups::Columns => squares.sum_dim(self.outputs),
            Groups::Whole => squares.sum_dims(&[0, 1, 2, 3]),
        }
    }
}

fn flat(tensor: Tensor<4>) -> Tensor<1> {
    tensor.reshape([-1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_core::builder::{Builder, Conv};
    use briquette_handmade::{get, set, small};
    use briquette_parts::masks::mask_layers;
    use burn::module::Module;
    use burn::tensor::Device;

    fn penalty(net: &Net, groups: Groups, layers: &[&str], strength: f64) -> Penalty {
        Penalty { groups, layers: layers.iter().map(|name| net.index(name).unwrap()).collect(), strength }
    }

    fn near(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} and {expected:?}");
    }

    /// Rows (3, 4), (0.3, 0.4) and zeros in `fc2`, and 2 in the last bias.
    fn rows() -> Net {
        let weights = [[3.0, 4.0, 0.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0, 0.0], [0.0; 5]].concat();
        set(set(small(), "fc2", "weight", &weights), "fc2", "bias", &[0.0, 0.0, 2.0])
    }

    #[test]
    fn a_group_loses_the_threshold_of_its_norm_and_a_smaller_one_vanishes() {
        for trained in [false, true] {
            let net = if trained { rows().train() } else { rows() };
            let filters = penalty(&net, Groups::Filters, &["fc2"], 2.0).shrink(net.deep_clone(), 0.5);
            near(&get(&filters, "fc2", "weight"), &[vec![2.4, 3.2], vec![0.0; 13]].concat());
            near(&get(&filters, "fc2", "bias"), &[0.0, 0.0, 1.0]);
            // The columns' norms are the roots of 9.09 and 16.16.
            let channels = penalty(&net, Groups::Channels, &["fc2"], 2.0).shrink(net, 0.5);
            let (a, b) = (1.0 - 1.0 / 9.09_f32.sqrt(), 1.0 - 1.0 / 16.16_f32.sqrt());
            let expected = [vec![3.0 * a, 4.0 * b, 0.0, 0.0, 0.0, 0.3 * a, 0.4 * b], vec![0.0; 8]].concat();
            near(&get(&channels, "fc2", "weight"), &expected);
            near(&get(&channels, "fc2", "bias"), &[0.0, 0.0, 2.0]);
        }
    }

    #[test]
    fn columns_of_a_convolution_are_channels_at_one_place_and_layers_shrink_together() {
        // [out 4, in 1, 2, 2]: the first place has norm 2 over the filters, the second 4.
        let weights = [[1.0, 2.0, 0.0, 0.0]; 4].concat();
        let net = set(set(rows(), "conv1", "weight", &weights), "fc2", "weight", &[4.0 / 15.0_f32.sqrt(); 15]);
        let columns = penalty(&net, Groups::Columns, &["conv1"], 1.0).shrink(net.deep_clone(), 1.0);
        near(&get(&columns, "conv1", "weight"), &[[0.5, 1.5, 0.0, 0.0]; 4].concat());
        // Squares 20 and 16: together a norm of 6.
        let whole = penalty(&net, Groups::Whole, &["conv1", "fc2"], 1.0).shrink(net.deep_clone(), 3.0);
        near(&get(&whole, "conv1", "weight"), &[[0.5, 1.0, 0.0, 0.0]; 4].concat());
        near(&get(&whole, "fc2", "weight"), &[2.0 / 15.0_f32.sqrt(); 15]);
    }

    #[test]
    fn columns_of_a_convolution_in_groups_are_those_of_each_group() {
        let mut b = Builder::new([2, 3, 3], 1, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4, 1).groups(2));
        b.global_avg_pool("pool", x);
        // [out 4, in 1, 1, 1]: the first two filters read one channel, with the norm 5, the others the other, with the norm 0.5.
        let net = set(b.finish().unwrap(), "conv", "weight", &[3.0, 4.0, 0.3, 0.4]);
        let columns = penalty(&net, Groups::Columns, &["conv"], 1.0).shrink(net, 1.0);
        near(&get(&columns, "conv", "weight"), &[2.4, 3.2, 0.0, 0.0]);
    }

    #[test]
    fn masked_weights_count_for_nothing_and_the_mask_stays() {
        let net = rows();
        let fc2 = net.index("fc2").unwrap();
        let net = mask_layers(net, |i, _| (i == fc2).then(|| (0..15).map(|w| w != 1).collect())).unwrap();
        let shrunk = penalty(&net, Groups::Filters, &["fc2"], 1.0).shrink(net, 1.0);
        near(&get(&shrunk, "fc2", "weight")[..5], &[2.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(shrunk.nodes[fc2].weight().unwrap().coding.mask.is_some());
    }
}
