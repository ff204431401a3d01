//! What a network costs: parameters, non-zeros and multiply-accumulates, layer by layer.

use briquette_runtime::Model;
use briquette_runtime::branches::Paths;
use briquette_runtime::layers::{Extent, Kind, Role};
use burn::tensor::Device;

use crate::error::{Error, Result};
use crate::net::Net;

/// The cost of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// One entry per node that carries parameters, in order.
    pub layers: Vec<LayerCost>,
}

/// The cost of one node.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerCost {
    /// Index of the node.
    pub node: usize,
    /// The node's name.
    pub name: String,
    /// The operation's name.
    pub kind: &'static str,
    /// Shape of the weight, `[out, in / groups, kh, kw]` or `[out, in]`; the number of weights where they are of another shape, as those of
    /// structural matrices; empty without any.
    pub shape: Vec<usize>,
    /// Weights and what is trained beside them, such as biases; running statistics and steps of grids not.
    pub params: usize,
    /// Weights alone: base values where a rule makes the weight of as many as its shape says ([`Places`](briquette_runtime::Places) but for the hash).
    pub weights: usize,
    /// Multiply-accumulates of one sample, masked weights included.
    pub macs: u64,
}

impl Cost {
    /// The cost of a container's network.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn of_model(model: &Model) -> Result<Self> {
        Self::of(&Net::assembled(model, &Device::flex())?)
    }

    /// Counts from shapes alone; no weight is read.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn of(net: &Net) -> Result<Self> {
        let shapes = net.shapes()?;
        let layers = net.nodes.iter().zip(&shapes).enumerate();
        let layers = layers.filter_map(|(index, (node, shape))| {
            LayerCost::of((index, &node.name), node.op.layer().kind(), &node.op.tensor_shapes(), node.op.base_values(), shape)
        });
        Ok(Self { layers: layers.collect() })
    }

    /// Weights and what is trained beside them.
    pub fn params(&self) -> usize {
        self.layers.iter().map(|layer| layer.params).sum()
    }

    /// Values of convolutions and fully connected layers, without biases and normalization: what papers count as weights.
    pub fn weights(&self) -> usize {
        self.layers.iter().map(|layer| layer.weights).sum()
    }

    /// Multiply-accumulates of one sample.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|layer| layer.macs).sum()
    }

    /// Multiply-accumulates of a sample on the mean, where `share` says of a node by its name which part of all samples reached it: what
    /// [`Engine::run_counted`](briquette_runtime::Engine::run_counted) counts over the size of the batch. Nodes without products are not asked about, as the engine does
    /// not count those that become part of another step.
    ///
    /// # Errors
    /// Names a layer of which `share` knows nothing or tells what is no share: silence would count as none or as all.
    pub fn expected_macs(&self, share: impl Fn(&str) -> Option<f64>) -> Result<f64> {
        let expected = |layer: &LayerCost| match share(&layer.name) {
            Some(share) if (0.0..=1.0).contains(&share) => Ok(layer.macs as f64 * share),
            Some(other) => Err(Error::node(&layer.name, format!("a share of {other} of the samples; it lies in [0, 1]"))),
            None => Err(Error::node(&layer.name, "nothing says how many samples reached it; count a run of this very network")),
        };
        self.layers.iter().filter(|layer| layer.macs > 0).map(expected).sum()
    }

    /// Multiply-accumulates of a sample that leaves at those gates, by their nodes, of which `leaves` says so; `paths` are those of the network.
    pub fn macs_along(&self, paths: &Paths, leaves: impl Fn(usize) -> bool) -> u64 {
        let reached = |layer: &&LayerCost| paths.to(layer.node).into_iter().all(|(gate, leaving)| leaves(gate) == leaving);
        self.layers.iter().filter(reached).map(|layer| layer.macs).sum()
    }

    #[cfg(test)]
    pub(crate) fn of_zoo(name: &str) -> Self {
        let arch = crate::zoo::Arch::named(name).expect("a name of the zoo");
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).expect("the zoo builds");
        Self::of(&net).expect("the zoo holds together")
    }
}

impl LayerCost {
    /// The cost of a layer with these tensors and this output, the weight made of so many base values; none where it has no parameters.
    pub(crate) fn of(
        (node, name): (usize, &str),
        kind: &dyn Kind,
        tensors: &[(&'static str, Vec<usize>)],
        base_values: Option<usize>,
        output: &[usize],
    ) -> Option<Self> {
        let known = kind.tensors();
        let shapes = |role: Role| {
            let found = |name: &str| tensors.iter().find(|(own, _)| *own == name).map(|(_, shape)| shape);
            let of_role = known.iter().filter(move |tensor| tensor.role == role);
            of_role.filter_map(move |tensor| Some((&tensor.shape, found(tensor.name)?)))
        };
        let count = |role: Role| shapes(role).map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
        let (multiplied, beside) = (count(Role::Weight), count(Role::Beside));
        let weights = base_values.unwrap_or(multiplied);
        let free = shapes(Role::Weight).find(|(extent, _)| **extent == Extent::Free);
        let counted = if multiplied > 0 { vec![multiplied] } else { Vec::new() };
        (weights + beside > 0).then(|| Self {
            node,
            name: name.into(),
            kind: kind.name(),
            shape: free.map_or(counted, |(_, shape)| shape.clone()),
            params: weights + beside,
            weights,
            macs: kind.macs(multiplied, output),
        })
    }
}

#[cfg(test)]
mod tests {
    use briquette_runtime::layers::{Channels, Constants, Parameters, Sign, Tensor};

    use super::*;
    use crate::builder::{Builder, Conv};

    /// A kind of layer that nobody has met: two weights of three dimensions, a shift, and statistics.
    #[derive(Debug)]
    struct New;

    impl Kind for New {
        fn name(&self) -> &'static str {
            "new"
        }

        fn tensors(&self) -> Vec<Tensor> {
            let tensor = |name, shape, role| Tensor { name, shape, role, required: true };
            vec![
                tensor("query", Extent::Exactly(vec![2, 3, 4]), Role::Weight),
                tensor("key", Extent::Exactly(vec![2, 3, 4]), Role::Weight),
                tensor("shift", Extent::Outputs, Role::Beside),
                tensor("seen", Extent::Outputs, Role::Apart),
            ]
        }

        fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> std::result::Result<Vec<usize>, String> {
            Ok(inputs[0].to_vec())
        }

        fn channels(&self) -> Channels {
            Channels::Mixed { why: "is new", fixed: true }
        }

        fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
            vec![None; of.channels]
        }

        fn sign(&self) -> Sign {
            Sign::Any
        }
    }

    #[test]
    fn a_layer_costs_what_its_kind_says_of_its_tensors_and_no_kind_costs_nothing_by_default() {
        let tensors = [("query", vec![2, 3, 4]), ("key", vec![2, 3, 4]), ("shift", vec![5]), ("seen", vec![5])];
        let cost = LayerCost::of((7, "layer"), &New, &tensors, None, &[5, 6, 6]).unwrap();
        assert_eq!((cost.params, cost.weights, cost.macs, cost.shape), (48 + 5, 48, 48 * 36, vec![48]));
    }

    #[test]
    fn a_layer_with_products_of_which_nobody_knows_who_reached_it_has_no_expected_cost() {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(2, 1));
        let x = b.batch_norm("norm", x);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        let cost = Cost::of(&b.finish().unwrap()).unwrap();
        // The norm, which becomes part of the convolution, is not asked about.
        let of = |known: &[(&str, f64)]| {
            cost.expected_macs(|name| known.iter().find(|(own, _)| *own == name).map(|(_, share)| *share))
        };
        assert_eq!(of(&[("conv", 1.0), ("fc", 0.25)]).unwrap(), 32.0 + 24.0);
        let refused = |known: &[(&str, f64)]| of(known).unwrap_err().to_string();
        let silent = "node 'fc': nothing says how many samples reached it; count a run of this very network";
        assert_eq!(refused(&[("conv", 1.0), ("fc2", 0.25)]), silent);
        for share in [1.5, -0.1, f64::NAN] {
            assert!(refused(&[("conv", share), ("fc", 0.5)]).contains("it lies in [0, 1]"));
        }
    }
}
