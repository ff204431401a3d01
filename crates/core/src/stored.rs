//! The parameters of a network on the host: how they are seen there, what makes a node of them again, and how they go into a container and
//! into a saved state.

mod build;
mod container;
mod state;

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor, TensorData};

pub(crate) use build::build;
pub use container::Storage;

use crate::coding::{Coding, coding_of, floats, turned};
use crate::error::{Error, Result};
use crate::net::{Node, Op};

/// One parameter of a node on the host, in Burn's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Name within its node: `weight`, `bias`, `gamma`, `beta`, `mean`, `var`, `step`, or that of a structure's parameter.
    pub name: &'static str,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values before the coding is applied.
    pub base: Vec<f32>,
    /// The coding.
    pub coding: Coding,
}

impl Stored {
    pub(crate) fn of<const D: usize>(name: &'static str, param: &Param<Tensor<D>>) -> Self {
        let shape = param.lazy_shape().as_slice().to_vec();
        Self { name, shape, base: floats(param.base()), coding: coding_of(param) }
    }

    fn plain(name: &'static str, tensor: Tensor<1>) -> Self {
        Self { name, shape: tensor.dims().to_vec(), base: floats(tensor), coding: Coding::default() }
    }

    /// The values that the network computes with.
    pub fn values(&self) -> Vec<f32> {
        self.coding.values(self.base.clone(), &self.shape)
    }

    /// Has each value stay what it is whatever becomes of the others; see [`Coding::settled`].
    pub(crate) fn settle(&mut self) {
        if self.coding.source.relative() {
            self.base = self.values();
            self.coding = std::mem::take(&mut self.coding).settled(&self.base);
        }
    }

    /// Removes the weights that `stays` leaves out, besides those that a mask removed before; the others keep their values.
    pub fn mask(&mut self, stays: Vec<bool>) {
        let relative = self.coding.source.relative();
        let values = if relative { self.values() } else { Vec::new() };
        self.coding = std::mem::take(&mut self.coding).masked(stays, &values);
        if relative && !self.coding.source.relative() {
            self.base = values;
        }
    }

    pub(crate) fn param<const D: usize>(self, device: &Device) -> Result<Param<Tensor<D>>> {
        let count: usize = self.shape.iter().product();
        if self.shape.len() != D || count != self.base.len() {
            return Err(Error::State(format!(
                "tensor '{}' of shape {:?} with {} values",
                self.name,
                self.shape,
                self.base.len()
            )));
        }
        if !self.coding.fits(&self.shape) {
            return Err(Error::State(format!("tensor '{}' of shape {:?} with the coding of another", self.name, self.shape)));
        }
        let tensor = Tensor::from_data(TensorData::new(self.base, self.shape), device);
        Ok(self.coding.attach(Param::from_tensor(tensor)))
    }
}

impl Node {
    /// The node's parameters; running statistics included.
    pub fn stored(&self) -> Vec<Stored> {
        match &self.op {
            Op::Conv2d(conv) => std::iter::once(Stored::of("weight", &conv.weight))
                .chain(conv.bias.as_ref().map(|b| Stored::of("bias", b)))
                .collect(),
            Op::Linear(linear) => std::iter::once(Stored::of("weight", &linear.weight))
                .chain(linear.bias.as_ref().map(|b| Stored::of("bias", b)))
                .collect(),
            Op::BatchNorm(norm) => vec![
                Stored::of("gamma", &norm.gamma),
                Stored::of("beta", &norm.beta),
                Stored::plain("mean", norm.running_mean.value_sync()),
                Stored::plain("var", norm.running_var.value_sync()),
            ],
            Op::Tensors(tensors) => tensors.parameters.iter().map(|parameter| parameter.values.stored(parameter.name)).collect(),
            Op::Fixed(_) => Vec::new(),
        }
    }

    /// The node's weight as the container orders it (`[out, ...]`); none for nodes without one.
    pub fn weight(&self) -> Option<Stored> {
        let weight = self.stored().into_iter().find(|stored| stored.name == "weight")?;
        Some(if matches!(self.op, Op::Linear(_)) { transposed(weight) } else { weight })
    }

    /// Gradient of a parameter in the layout of [`Node::weight`]; none for what this network does not have or the loss did not reach.
    pub fn gradient(&self, parameter: &str, grads: &Gradients) -> Option<Vec<f32>> {
        match (&self.op, parameter) {
            (Op::Conv2d(conv), "weight") => conv.weight.val().grad(grads).map(floats),
            (Op::Conv2d(conv), "bias") => conv.bias.as_ref()?.val().grad(grads).map(floats),
            (Op::Linear(linear), "weight") => linear.weight.val().grad(grads).map(|gradient| floats(gradient.transpose())),
            (Op::Linear(linear), "bias") => linear.bias.as_ref()?.val().grad(grads).map(floats),
            (Op::Tensors(tensors), name) => tensors.get(name)?.gradient(grads),
            (Op::BatchNorm(norm), "gamma") => norm.gamma.val().grad(grads).map(floats),
            (Op::BatchNorm(norm), "beta") => norm.beta.val().grad(grads).map(floats),
            (Op::Conv2d(_) | Op::Linear(_) | Op::BatchNorm(_) | Op::Fixed(_), _) => None,
        }
    }

    /// The node's parameters in the layout of [`Node::weight`].
    pub fn parameters(&self) -> Vec<Stored> {
        self.stored().into_iter().map(|stored| self.laid_out(stored)).collect()
    }

    /// A parameter of this node from Burn's layout in that of [`Node::weight`].
    pub(crate) fn laid_out(&self, stored: Stored) -> Stored {
        if matches!(self.op, Op::Linear(_)) && stored.name == "weight" { transposed(stored) } else { stored }
    }
}

/// Swaps the two dimensions of a matrix together with its coding. Burn keeps `[in, out]`, the field writes `[out, in]`.
fn transposed(stored: Stored) -> Stored {
    let [rows, columns] = stored.shape[..] else { return stored };
    Stored {
        base: turned(&stored.base, rows, columns),
        coding: stored.coding.transposed(rows, columns),
        shape: vec![columns, rows],
        name: stored.name,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use briquette_runtime::{Coded, Coder, Grid, Model, Permission, Places, Product, StepGradient, ValueFormat};

    use super::*;
    use crate::coding::{Rounding, Source};
    use crate::net::Net;
    use crate::quantize::Quantize;
    use crate::zoo::{Arch, Wanted};

    /// ResNet-20, narrow, with one layer of each coding.
    pub(crate) fn coded() -> Net {
        let arch = Arch::named("resnet20").unwrap();
        let net = arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
        let device = net.device();
        let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
            let mut parameters = node.parameters();
            for stored in parameters.iter_mut().filter(|stored| stored.name == "weight") {
                let count = stored.base.len();
                let mask = (index % 2 == 0).then(|| (0..count).map(|i| i % 3 == 0).collect());
                let assignment = (0..count).map(|i| (i % 4) as u32).collect();
                let codebook = Source::Codebook { centroids: vec![-0.3, -0.1, 0.15, 0.4], assignment };
                let out = stored.shape[0];
                let steps = (0..out).map(|c| 0.01 + 0.001 * c as f32).collect();
                let grid = Grid { levels: 15, axis: Some(0), steps, zeros: vec![7.0; out] };
                let on_grid = Source::Grid { grid, rounding: Rounding::Nearest, learned: true };
                let places = Places::Hash { seed: 7 }.all(&[count], 3);
                let hashed = Source::Shared { rule: Places::Hash { seed: 7 }, values: vec![0.3, -0.2, 0.1], places };
                // Of every second convolution the taps share their centroids.
                let taps = if index % 10 == 4 { stored.shape[2..].iter().product::<usize>() } else { 1 };
                let (columns, width) = (count / out / taps, 5.min(count / out / taps));
                let stage = briquette_runtime::Stage {
                    centroids: (0..3 * columns).map(|i| (i % 23) as f32 * 0.02 - 0.2).collect(),
                    indices: (0..columns.div_ceil(width) * out * taps).map(|i| (i * i % 3) as u16).collect(),
                };
                let product = Product { width, columns, taps, stages: vec![stage.clone(), stage] };
                let product = Source::Product { product, transposed: false };
                let source = [codebook, Source::Free, on_grid, hashed, product].into_iter().nth(index % 5).unwrap();
                stored.coding = Coding { mask, source };
            }
            node.with(parameters, &device).unwrap()
        });
        let net = Net { nodes: nodes.collect() };
        let step = Param::from_tensor(Tensor::from_floats([0.1], &device));
        let last = net.nodes.len() - 1;
        net.interpose(last, "quantize".into(), Quantize::new(step, 16, 0.0, StepGradient::Learned).into()).unwrap()
    }

    #[test]
    fn containers_whose_tensors_do_not_fit_their_layer_become_no_network() {
        let net = coded();
        let refused = |node: &str, tensor: &str, values: &[f32]| {
            let mut model = net.to_model(Storage::default()).unwrap();
            let tensors = &mut model.nodes.iter_mut().find(|other| other.name == node).unwrap().tensors;
            let (_, coded) = tensors.iter_mut().find(|(name, _)| name == tensor).unwrap();
            *coded = Coded::encode(&[values.len()], values, None, &Permission::default()).unwrap();
            let mut error: &dyn std::error::Error = &Net::from_model(&model, &Device::flex()).unwrap_err();
            let mut said = error.to_string();
            while let Some(source) = error.source() {
                said += &format!(": {source}");
                error = source;
            }
            assert!(said.contains(node), "{said}");
            said
        };
        for tensor in ["beta", "mean", "var"] {
            let said = refused("conv1.norm", tensor, &[1.0; 5]);
            assert!(said.contains(&format!("{tensor} has the shape [5], expected [4]")), "{said}");
        }
        let said = refused("quantize", "step", &[-0.25]);
        assert!(said.contains("a step of -0.25; it must be positive"), "{said}");
    }

    fn values(net: &Net) -> Vec<Vec<f32>> {
        net.nodes.iter().flat_map(Node::parameters).map(|stored| stored.values()).collect()
    }

    #[test]
    fn a_container_gives_the_same_network_back_with_its_codings() {
        let net = coded();
        for coder in [Coder::Packed, Coder::Huffman, Coder::Entropy] {
            let bytes = net.to_model(Storage { coder, float: ValueFormat::F32 }).unwrap().to_bytes().unwrap();
            let back = Net::from_model(&Model::from_bytes(&bytes).unwrap(), &Device::flex()).unwrap();
            assert_eq!(values(&net), values(&back));
            assert!(crate::promises::Promises::of(&net).check(&back).is_ok());
            for ((_, old), (_, new)) in net.weighted().zip(back.weighted()) {
                let kind = |node: &Node| std::mem::discriminant(&node.weight().unwrap().coding.source);
                assert_eq!(kind(old), kind(new), "{}", old.name);
                let mask = |node: &Node| node.weight().unwrap().coding.mask;
                assert_eq!(mask(old), mask(new), "{}", old.name);
            }
        }
    }

    #[test]
    fn a_weight_that_is_zero_without_a_mask_is_not_masked_by_a_container() {
        let arch = Arch::named("lenet300").unwrap();
        let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex()).unwrap();
        let grid = Source::Grid { grid: Grid::uniform(15, 0.02, 7.0), rounding: Rounding::Nearest, learned: false };
        for (source, masked) in [Source::Free, grid].into_iter().flat_map(|source| [(source.clone(), false), (source, true)]) {
            let node = net.nodes[net.index("fc2").unwrap()].clone();
            let mut parameters = node.parameters();
            let weight = &mut parameters[0];
            weight.base[..20].fill(0.0);
            let mask = masked.then(|| (0..weight.base.len()).map(|i| i % 2 == 0).collect());
            weight.coding = Coding { mask, source };
            let (coding, values) = (weight.coding.clone(), weight.values());
            assert!(values.iter().step_by(2).filter(|w| **w == 0.0).count() >= 10);
            let mut changed = net.deep_clone();
            let index = changed.index("fc2").unwrap();
            changed.nodes[index] = node.with(parameters, &Device::flex()).unwrap();
            let bytes = changed.to_model(Storage::default()).unwrap().to_bytes().unwrap();
            let back = Net::from_model(&Model::from_bytes(&bytes).unwrap(), &Device::flex()).unwrap();
            let weight = back.nodes[index].weight().unwrap();
            assert_eq!((&weight.coding, weight.values()), (&coding, values));
        }
    }
}
