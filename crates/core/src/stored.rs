//! A network as plain numbers: how it goes into a container, into a saved state, and back onto a device.

mod state;

use std::collections::BTreeMap;

use briquette_runtime::{Coded, Coder, Hashed, Layer, Model, NotFinite, Plan, Structure, ValueFormat, layers};
use burn::module::{Param, ParamId, RunningState};
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, BatchNormConfig, Linear};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::coding::{Coding, Rounding, Source, coding_of, floats, turned};
use crate::error::{Error, Result};
use crate::kernels;
use crate::net::{Net, Node, Op, Structured, explicit};
use crate::quantize::Quantize;

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
    fn of<const D: usize>(name: &'static str, param: &Param<Tensor<D>>) -> Self {
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

    fn param<const D: usize>(self, device: &Device) -> Result<Param<Tensor<D>>> {
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
            Op::Structured(structured) => {
                let names = structured.structure.parameters().into_iter().map(|parameter| parameter.name);
                let tensors = names.zip(&structured.tensors).map(|(name, tensor)| Stored::of(name, tensor));
                tensors.chain(structured.bias.as_ref().map(|b| Stored::of("bias", b))).collect()
            }
            Op::Quantize(quantize) => vec![Stored::of(quantize.train.tensor(), &quantize.scale)],
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
            (Op::Structured(structured), "bias") => structured.bias.as_ref()?.val().grad(grads).map(floats),
            (Op::Structured(structured), name) => {
                let position = structured.structure.parameters().iter().position(|parameter| parameter.name == name)?;
                structured.tensors[position].val().grad(grads).map(floats)
            }
            (Op::BatchNorm(norm), "gamma") => norm.gamma.val().grad(grads).map(floats),
            (Op::BatchNorm(norm), "beta") => norm.beta.val().grad(grads).map(floats),
            _ => None,
        }
    }

    /// The same node with other parameters, in the layout of [`Node::weight`].
    ///
    /// # Errors
    /// When a parameter is missing or has the wrong rank.
    pub fn with(self, parameters: Vec<Stored>, device: &Device) -> Result<Self> {
        let layer = self.op.layer();
        self.replaced(&layer, parameters, device)
    }

    /// Another layer under the same name and between the same neighbours; parameters as [`Node::with`] takes them.
    ///
    /// # Errors
    /// When a parameter is missing or has the wrong rank, or when the layer does not run on the device.
    pub fn replaced(self, layer: &Layer, parameters: Vec<Stored>, device: &Device) -> Result<Self> {
        build(self.name, self.inputs, layer, parameters, device)
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

/// A node from its description and its parameters in the container's layout.
pub(crate) fn build(name: String, inputs: Vec<usize>, layer: &Layer, parameters: Vec<Stored>, device: &Device) -> Result<Node> {
    let turn = |stored: Stored| {
        if *layer == Layer::Linear(layers::Linear) && stored.name == "weight" { transposed(stored) } else { stored }
    };
    assemble(name, inputs, layer, parameters.into_iter().map(turn).collect(), device)
}

/// A node from its description and its parameters in Burn's layout.
fn assemble(name: String, inputs: Vec<usize>, layer: &Layer, parameters: Vec<Stored>, device: &Device) -> Result<Node> {
    layer.check().map_err(|source| Error::Shape { node: name.clone(), source })?;
    let mut parameters: BTreeMap<&str, Stored> = parameters.into_iter().map(|stored| (stored.name, stored)).collect();
    let mut need = |key: &str| parameters.remove(key).ok_or_else(|| Error::node(&name, format!("has no tensor '{key}'")));
    let op = match layer {
        Layer::Conv2d(layers::Conv2d { stride, padding, dilation, groups }) => {
            let weight = need("weight")?;
            let kernel_size = match weight.shape[..] {
                [_, _, kh, kw] => [kh, kw],
                _ => return Err(Error::node(&name, format!("weight must have 4 dimensions, has shape {:?}", weight.shape))),
            };
            Op::Conv2d(Conv2d {
                weight: weight.param(device)?,
                bias: need("bias").ok().map(|bias| bias.param(device)).transpose()?,
                stride: *stride,
                kernel_size,
                dilation: *dilation,
                groups: *groups,
                padding: explicit(*padding),
            })
        }
        Layer::Linear(_) => Op::Linear(Linear {
            weight: need("weight")?.param(device)?,
            bias: need("bias").ok().map(|bias| bias.param(device)).transpose()?,
        }),
        Layer::BatchNorm(layers::BatchNorm { epsilon }) => {
            let gamma = need("gamma")?;
            let norm: BatchNorm = BatchNormConfig::new(gamma.base.len().max(1)).with_epsilon(*epsilon).init(device);
            let state =
                |stored: Stored| Ok::<_, Error>(RunningState::new(stored.param::<1>(device)?.val().set_require_grad(false)));
            Op::BatchNorm(BatchNorm {
                gamma: gamma.param(device)?,
                beta: need("beta")?.param(device)?,
                running_mean: state(need("mean")?)?,
                running_var: state(need("var")?)?,
                ..norm
            })
        }
        Layer::Structured(layers::Structured { structure }) => {
            structure.check().map_err(|error| Error::node(&name, error.to_string()))?;
            if !kernels::is_flex(device) {
                let detail = "structural matrices are computed on the CPU device `flex` only; set `device = \"flex\"`";
                return Err(Error::node(&name, detail));
            }
            let names = structure.parameters().into_iter().map(|parameter| parameter.name);
            Op::Structured(Structured {
                tensors: names.map(|name| need(name)?.param(device)).collect::<Result<_>>()?,
                bias: need("bias").ok().map(|bias| bias.param(device)).transpose()?,
                structure: *structure,
            })
        }
        Layer::Quantize(layers::Quantize { levels, zero, train }) => {
            Op::Quantize(Quantize::new(need(train.tensor())?.param(device)?, *levels, *zero, *train))
        }
        fixed => Op::fixed(fixed.clone()),
    };
    Ok(Node { op, name, inputs })
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

/// How a network's tensors are written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// Coder of codebook indices and gaps.
    pub coder: Coder,
    /// Format of values that no codebook holds.
    pub float: ValueFormat,
}

impl Default for Storage {
    fn default() -> Self {
        Self { coder: Coder::Packed, float: ValueFormat::F32 }
    }
}

/// Refuses finite values of a tensor that rounding to 16-bit floats made infinite.
fn representable(node: &str, tensor: &str, coded: &Coded) -> Result<()> {
    let values = coded.decode();
    match values.iter().filter(|value| !value.is_finite()).count() {
        0 => Ok(()),
        lost => {
            let of = values.len();
            let detail =
                format!("{lost} of {of} value(s) of '{tensor}' are beyond 65504, the largest 16-bit float; store floats as f32");
            Err(Error::node(node, detail))
        }
    }
}

impl Net {
    /// The network as a container's contents: weights with a mask without those that it removed, weights with a codebook as indices.
    ///
    /// # Errors
    /// When a weight cannot be coded as asked, values are not finite, or too large for 16-bit floats where these are asked for.
    pub fn to_model(&self, storage: Storage) -> Result<Model> {
        self.shapes()?;
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let mut unusable = Vec::new();
        for node in &self.nodes {
            let mut tensors = Vec::new();
            let layer = node.op.layer();
            unusable.extend(NotFinite::settings(&node.name, &layer));
            for stored in node.parameters() {
                let (shape, values, mask) = (&stored.shape, stored.values(), stored.coding.mask.as_deref());
                if let Some(found) = NotFinite::of(&node.name, &layer, stored.name, &values) {
                    unusable.push(found);
                    continue;
                }
                let plan = |values| Plan { values, coder: storage.coder };
                let coded = match &stored.coding.source {
                    Source::Free if matches!(node.op, Op::Quantize(_)) => {
                        Coded::encode(shape, &values, mask, &plan(ValueFormat::F32))
                    }
                    Source::Free => Coded::encode(shape, &values, mask, &plan(storage.float)),
                    Source::Codebook { .. } | Source::Ternary { .. } => {
                        Coded::encode(shape, &values, mask, &plan(ValueFormat::Codebook))
                    }
                    Source::Grid { grid, .. } => Coded::on_grid(shape, &values, mask, grid, storage.coder),
                    Source::Hashed { seed, buckets, .. } => {
                        let hashed = Hashed { seed: *seed, buckets: buckets.clone() };
                        Coded::hashed(shape, &values, mask, &hashed, &plan(storage.float))
                    }
                    Source::Product { product, .. } => Coded::product(shape, &values, mask, product, &plan(storage.float)),
                }?;
                if storage.float == ValueFormat::F16 {
                    representable(&node.name, stored.name, &coded)?;
                }
                tensors.push((stored.name.to_string(), coded));
            }
            nodes.push(briquette_runtime::Node { name: node.name.clone(), inputs: node.inputs.clone(), layer, tensors });
        }
        briquette_runtime::Error::unless_finite(unusable)?;
        Ok(Model { nodes, meta: BTreeMap::new() })
    }

    /// The network that a container holds. Masks and codebooks come back as such, so that tuning goes on from there; a weight that is
    /// zero without a mask, like the code of 0 on a grid, stays free to become another.
    ///
    /// # Errors
    /// When the container's network does not hold together, as [`Model::check`] finds, or has values that are not finite.
    pub fn from_model(model: &Model, device: &Device) -> Result<Self> {
        model.finite()?;
        Self::assembled(model, device)
    }

    /// [`Net::from_model`], whatever the values are.
    pub(crate) fn assembled(model: &Model, device: &Device) -> Result<Self> {
        // What Burn takes on trust, such as the lengths of a norm's statistics, a file may have wrong.
        model.check()?;
        let mut nodes = Vec::with_capacity(model.nodes.len());
        for node in &model.nodes {
            let parameters = node.tensors.iter().map(|(name, coded)| {
                let values = coded.decode();
                let mask = coded.mask();
                let source = match coded.summary().value_format {
                    ValueFormat::Codebook => Source::codebook(&values, mask.as_deref()),
                    ValueFormat::Grid => coded.grid().map_or(Source::Free, |grid| Source::Grid {
                        grid: grid.clone(),
                        rounding: Rounding::Nearest,
                        learned: false,
                    }),
                    ValueFormat::Hashed => coded.as_hashed().map_or(Source::Free, |Hashed { seed, buckets }| {
                        let places = (0..values.len()).map(|i| Hashed::place(seed, i, buckets.len())).collect();
                        Source::Hashed { seed, buckets, places }
                    }),
                    ValueFormat::Product => {
                        coded.as_product().map_or(Source::Free, |product| Source::Product { product, transposed: false })
                    }
                    ValueFormat::F32 | ValueFormat::F16 => Source::Free,
                };
                Ok(Stored { name: known(name)?, shape: coded.shape().to_vec(), base: values, coding: Coding { mask, source } })
            });
            let parameters: Vec<Stored> = parameters.collect::<Result<_>>()?;
            nodes.push(build(node.name.clone(), node.inputs.clone(), &node.layer, parameters, device)?);
        }
        let net = Net { nodes };
        net.shapes()?;
        Ok(net)
    }

    /// Gives every parameter the id that follows from its path, so that a saved optimizer state finds its parameters again.
    pub(crate) fn with_stable_ids(self) -> Self {
        use burn::module::{Module, ModuleMapper};

        #[derive(Default)]
        struct Ids(Vec<String>);

        impl ModuleMapper for Ids {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.0.push(name.to_string());
            }

            fn exit_module(&mut self, _: &str, _: &str) {
                self.0.pop();
            }

            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let id = crate::builder::stream(0, &self.0.join("."));
                let (_, value, mapper) = param.consume();
                Param::from_mapped_value(ParamId::from(id), value, mapper)
            }
        }

        self.map(&mut Ids::default())
    }
}

fn known(name: &str) -> Result<&'static str> {
    let names = || ["weight", "bias", "gamma", "beta", "mean", "var", "step", "alpha"].into_iter().chain(Structure::NAMES);
    names().find(|known| *known == name).ok_or_else(|| Error::unknown("tensor", name, names()))
}

#[cfg(test)]
pub(crate) mod tests {
    use briquette_runtime::{Grid, Product, StepGradient};

    use super::*;
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
                let places = (0..count).map(|i| Hashed::place(7, i, 3)).collect();
                let hashed = Source::Hashed { seed: 7, buckets: vec![0.3, -0.2, 0.1], places };
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
        net.interpose(last, "quantize".into(), Op::Quantize(Quantize::new(step, 16, 0.0, StepGradient::Learned))).unwrap()
    }

    #[test]
    fn containers_whose_tensors_do_not_fit_their_layer_become_no_network() {
        let net = coded();
        let refused = |node: &str, tensor: &str, values: &[f32]| {
            let mut model = net.to_model(Storage::default()).unwrap();
            let tensors = &mut model.nodes.iter_mut().find(|other| other.name == node).unwrap().tensors;
            let (_, coded) = tensors.iter_mut().find(|(name, _)| name == tensor).unwrap();
            *coded = Coded::encode(&[values.len()], values, None, &Plan::default()).unwrap();
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
