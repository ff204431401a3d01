//! The exact state of a network: topology, values and codings, to go on from later. In the order of its nodes, each is a description and the
//! arrays of its tensors: what the mask keeps as bits, indices in as few bytes as their range takes, and values underneath only where the
//! network can still come to depend on them.

use std::io::{Read, Write};

use briquette_runtime::{Grid, Layer, MAX_ELEMENTS_TOTAL, MAX_EXPANSION, Places, Product, Stage};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Stored;
use super::build::assemble;
use super::container::known;
use crate::archive::{Reader, Writer};
use crate::coding::{Coding, Rounding, Source};
use crate::error::{Error, Result};
use crate::net::{Net, Node};

#[derive(Serialize, Deserialize)]
struct NodeState {
    name: String,
    inputs: Vec<usize>,
    layer: Layer,
    tensors: Vec<TensorState>,
}

/// A tensor in Burn's layout, but for its numbers.
#[derive(Serialize, Deserialize)]
struct TensorState {
    name: String,
    shape: Vec<usize>,
    masked: bool,
    source: Outline,
}

/// A [`Source`], but for its numbers.
#[derive(Serialize, Deserialize)]
enum Outline {
    Free,
    Codebook {
        centroids: usize,
    },
    Grid {
        levels: u32,
        axis: Option<usize>,
        channels: usize,
        rounding: Rounding,
        learned: bool,
    },
    Ternary,
    /// The places follow from rule and shape.
    Shared {
        rule: Places,
        values: usize,
    },
    Product {
        width: usize,
        columns: usize,
        taps: usize,
        transposed: bool,
        /// Centroids of a block, by stage.
        centroids: Vec<usize>,
    },
}

impl Outline {
    fn of(source: &Source) -> Self {
        match source {
            Source::Free => Outline::Free,
            Source::Codebook { centroids, .. } => Outline::Codebook { centroids: centroids.len() },
            Source::Grid { grid, rounding, learned } => Outline::Grid {
                levels: grid.levels,
                axis: grid.axis,
                channels: grid.steps.len(),
                rounding: *rounding,
                learned: *learned,
            },
            Source::Ternary { .. } => Outline::Ternary,
            Source::Shared { rule, values, .. } => Outline::Shared { rule: *rule, values: values.len() },
            Source::Product { product, transposed } => Outline::Product {
                width: product.width,
                columns: product.columns,
                taps: product.taps,
                transposed: *transposed,
                centroids: product.stages.iter().map(|stage| product.centroids(stage)).collect(),
            },
        }
    }

    /// Whether the values underneath count; those of shared weights are never seen again.
    fn has_values(&self) -> bool {
        matches!(self, Outline::Free | Outline::Grid { .. } | Outline::Ternary)
    }

    /// The source with its numbers, for a tensor of this shape and so many numbers, which begins at `start`. Where a number of the tensor need
    /// not have a byte, no more of them are made than a container could hold.
    fn read(&self, shape: &[usize], count: usize, start: u64, from: &mut Reader<'_>) -> Result<Source> {
        let accounted = |from: &Reader<'_>| {
            let bytes = from.taken() - start;
            let most = bytes.saturating_add(1).saturating_mul(MAX_EXPANSION as u64);
            let detail = || format!("a tensor of shape {shape:?} in {bytes} bytes, which may stand for {most} numbers at most");
            if count as u64 <= most { Ok(()) } else { Err(Error::State(detail())) }
        };
        Ok(match *self {
            Outline::Free => Source::Free,
            Outline::Codebook { centroids } => {
                Source::Codebook { centroids: from.numbers(centroids)?, assignment: indices(from, count, centroids)? }
            }
            Outline::Grid { levels, axis, channels, rounding, learned } => {
                let grid = Grid { levels, axis, steps: from.numbers(channels)?, zeros: from.numbers(channels)? };
                Source::Grid { grid, rounding, learned }
            }
            Outline::Ternary => match from.numbers(3)?[..] {
                [n, p, share] => Source::Ternary { scales: [n, p], share },
                _ => Source::Free,
            },
            Outline::Shared { rule, values } => {
                let values = from.numbers(values)?;
                accounted(from)?;
                Source::shared(rule, values, shape).map_err(|error| Error::State(error.to_string()))?
            }
            Outline::Product { width, columns, taps, transposed, ref centroids } => {
                if width == 0 || columns == 0 {
                    return Err(Error::State(format!("a product of {columns} columns in blocks of {width}")));
                }
                let indexed = count / columns * columns.div_ceil(width);
                let stage = |centroids: &usize| {
                    let beyond = || Error::State(format!("{centroids} centroids of {columns} numbers"));
                    let values = from.numbers(centroids.checked_mul(columns).ok_or_else(beyond)?)?;
                    let indices = indices(from, indexed, *centroids)?.into_iter().map(|index| index as u16).collect();
                    Ok(Stage { centroids: values, indices })
                };
                let stages = centroids.iter().map(stage).collect::<Result<_>>()?;
                accounted(from)?;
                Source::Product { product: Product { width, columns, taps, stages }, transposed }
            }
        })
    }
}

/// Writes indices below `end`.
fn put_indices(to: &mut Writer<'_>, indices: impl Iterator<Item = u32>, end: usize) -> Result<()> {
    match end {
        0..=0x100 => to.numbers(indices.map(|index| index as u8)),
        0x101..=0x1_0000 => to.numbers(indices.map(|index| index as u16)),
        _ => to.numbers(indices),
    }
}

fn indices(from: &mut Reader<'_>, count: usize, end: usize) -> Result<Vec<u32>> {
    Ok(match end {
        0..=0x100 => from.numbers::<u8>(count)?.into_iter().map(u32::from).collect(),
        0x101..=0x1_0000 => from.numbers::<u16>(count)?.into_iter().map(u32::from).collect(),
        _ => from.numbers(count)?,
    })
}

impl Stored {
    fn write(self, to: &mut Writer<'_>) -> Result<()> {
        if let Some(mask) = &self.coding.mask {
            to.bits(mask)?;
        }
        match self.coding.source {
            Source::Free => {}
            Source::Codebook { centroids, assignment } => {
                let end = centroids.len();
                to.numbers(centroids)?;
                put_indices(to, assignment.into_iter(), end)?;
            }
            Source::Grid { grid, .. } => {
                to.numbers(grid.steps)?;
                to.numbers(grid.zeros)?;
            }
            Source::Ternary { scales: [n, p], share } => to.numbers([n, p, share])?,
            Source::Shared { values, .. } => to.numbers(values)?,
            Source::Product { product, .. } => {
                for stage in &product.stages {
                    to.numbers(stage.centroids.iter().copied())?;
                    put_indices(to, stage.indices.iter().map(|index| u32::from(*index)), product.centroids(stage))?;
                }
            }
        }
        to.numbers(self.base)
    }

    fn read(state: &TensorState, layer: &Layer, from: &mut Reader<'_>) -> Result<Self> {
        let (name, shape) = (known(layer, &state.name)?, state.shape.clone());
        let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        let count = count.filter(|count| *count <= MAX_ELEMENTS_TOTAL).ok_or_else(|| {
            Error::State(format!(
                "tensor '{name}' of shape {shape:?}, of which there may be {MAX_ELEMENTS_TOTAL} numbers at most"
            ))
        })?;
        let start = from.taken();
        let mask = state.masked.then(|| from.bits(count)).transpose()?;
        let coding = Coding { mask, source: state.source.read(&shape, count, start, from)? };
        if !coding.fits(&shape) {
            return Err(Error::State(format!("tensor '{name}' of shape {shape:?} with the coding of another")));
        }
        let base = if state.source.has_values() { from.numbers(count)? } else { coding.values(Vec::new(), &shape) };
        Ok(Self { name, shape, base, coding })
    }
}

impl Node {
    fn write(&self, to: &mut Writer<'_>) -> Result<()> {
        let mut stored = self.stored();
        let outline = |stored: &mut Stored| {
            let source = Outline::of(&stored.coding.source);
            if !source.has_values() {
                stored.base = Vec::new();
            }
            TensorState {
                name: stored.name.to_string(),
                shape: stored.shape.clone(),
                masked: stored.coding.mask.is_some(),
                source,
            }
        };
        let tensors = stored.iter_mut().map(outline).collect();
        to.describe(&NodeState { name: self.name.clone(), inputs: self.inputs.clone(), layer: self.op.layer(), tensors })?;
        stored.into_iter().try_for_each(|stored| stored.write(to))
    }

    fn read(from: &mut Reader<'_>, device: &Device) -> Result<Self> {
        let NodeState { name, inputs, layer, tensors } = from.describe()?;
        layer.check().map_err(|source| Error::Shape { node: name.clone(), source })?;
        let parameters = tensors.iter().map(|state| Stored::read(state, &layer, from)).collect::<Result<_>>()?;
        assemble(name, inputs, &layer, parameters, device)
    }
}

impl Net {
    /// Gives every parameter the id that follows from its path, so that a saved optimizer state finds its parameters again.
    pub(crate) fn with_stable_ids(self) -> Self {
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
                let id = crate::streams::stream(0, &self.0.join("."));
                let (_, value, mapper) = param.consume();
                Param::from_mapped_value(ParamId::from(id), value, mapper)
            }
        }

        self.map(&mut Ids::default())
    }

    /// Writes the exact state, one node after the other.
    pub(crate) fn write(&self, to: &mut Writer<'_>) -> Result<()> {
        to.describe(&self.nodes.len())?;
        self.nodes.iter().try_for_each(|node| node.write(to))
    }

    /// Reads what [`Net::write`] has written.
    pub(crate) fn read(from: &mut Reader<'_>, device: &Device) -> Result<Self> {
        let count: usize = from.describe()?;
        let net = Net { nodes: (0..count).map(|_| Node::read(from, device)).collect::<Result<_>>()? };
        net.shapes()?;
        Ok(net)
    }

    /// Writes the exact state: topology, values and codings, to go on from later.
    ///
    /// # Errors
    /// When the bytes cannot be written.
    pub fn write_state(&self, to: &mut dyn Write) -> Result<()> {
        let mut writer = Writer::new(to);
        self.write(&mut writer)?;
        writer.finish()
    }

    /// Reads what [`Net::write_state`] has written.
    ///
    /// # Errors
    /// When the bytes are not those of a network, or damaged.
    pub fn read_state(from: &mut dyn Read, device: &Device) -> Result<Self> {
        let mut reader = Reader::new(from)?;
        let net = Self::read(&mut reader, device)?;
        reader.finish()?;
        Ok(net)
    }

    /// [`Net::write_state`] into memory.
    ///
    /// # Panics
    /// Never: memory takes all bytes.
    pub fn to_state(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_state(&mut bytes).expect("a vector takes all bytes");
        bytes
    }

    /// [`Net::read_state`] of bytes in memory.
    ///
    /// # Errors
    /// As [`Net::read_state`].
    pub fn from_state(mut bytes: &[u8], device: &Device) -> Result<Self> {
        Self::read_state(&mut bytes, device)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::coded;
    use super::*;
    use crate::builder::Builder;

    #[test]
    fn a_state_gives_everything_back_and_a_damaged_one_is_refused() {
        let net = coded();
        let state = net.to_state();
        let back = Net::from_state(&state, &Device::flex()).unwrap();
        assert!(back.to_state() == state);
        for len in [0, 7, 8, 100, state.len() / 2, state.len() - 1] {
            assert!(matches!(Net::from_state(&state[..len], &Device::flex()), Err(Error::State(_))), "cut to {len} bytes");
        }
    }

    #[test]
    fn a_forged_shape_makes_no_more_of_a_tensor_than_its_bytes_account_for() {
        let state = include_bytes!("../../../../fuzz/corpus/state/shared-shape");
        let error = Net::from_state(state, &Device::flex()).unwrap_err().to_string();
        let said = "a tensor of shape [8192, 16384] in 4 bytes, which may stand for 20480 numbers at most";
        assert_eq!(error, format!("saved state: {said}"));
    }

    #[test]
    fn a_state_is_no_larger_than_what_the_network_is_made_of() {
        let side = 200;
        let mut b = Builder::new([1, 1, side], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc", x, side);
        let net = b.finish().unwrap();
        let state = |coding: Coding| coded_as(&net, coding).to_state().len();
        let (count, rest) = (side * side, 4 * side + 1000);
        let mask = || Some((0..count).map(|i| i % 10 == 0).collect::<Vec<bool>>());
        let book = |size: usize| Source::Codebook {
            centroids: (0..size).map(|c| c as f32).collect(),
            assignment: (0..count).map(|i| (i % size) as u32).collect(),
        };
        assert!(state(Coding { mask: mask(), source: Source::Free }) < 4 * count + count / 8 + rest);
        assert!(state(Coding { mask: mask(), source: book(32) }) < count + count / 8 + rest);
        assert!(state(Coding { mask: None, source: book(300) }) < 2 * count + 4 * 300 + rest);
        assert!(
            state(Coding { mask: None, source: Source::shared(Places::Hash { seed: 1 }, vec![0.5; 50], &[side, side]).unwrap() })
                < rest
        );
    }

    /// The network with this coding of its last weight, as Burn stores it.
    fn coded_as(net: &Net, coding: Coding) -> Net {
        let mut net = net.deep_clone();
        let node = net.nodes.pop().unwrap();
        let mut parameters = node.stored();
        parameters[0].coding = coding;
        net.nodes.push(assemble(node.name, node.inputs, &node.op.layer(), parameters, &Device::flex()).unwrap());
        net
    }

    const SIDES: [usize; 2] = [6, 4];

    /// Any coding of a matrix of six by four.
    fn coding() -> impl Strategy<Value = Coding> {
        let count = SIDES[0] * SIDES[1];
        let value = || any::<u32>().prop_map(|bits| f32::from_bits(bits & 0xbf7f_ffff));
        let values = move |len| prop::collection::vec(value(), len);
        let codebook = (1..40_usize).prop_flat_map(move |size| {
            (values(size), prop::collection::vec(0..size as u32, count))
                .prop_map(|(centroids, assignment)| Source::Codebook { centroids, assignment })
        });
        let grid = (2..300_u32, prop::option::of(0..2_usize), any::<bool>(), 0..4_usize).prop_flat_map(
            move |(levels, axis, learned, rounding)| {
                let channels = axis.map_or(1, |axis| SIDES[axis]);
                prop::collection::vec(1e-6_f32..10.0, channels).prop_map(move |steps| {
                    let rounding = [Rounding::Nearest, Rounding::Stochastic, Rounding::Tanh, Rounding::Threshold][rounding];
                    let zeros = vec![(levels - 1) as f32 / 2.0; steps.len()];
                    Source::Grid { grid: Grid { levels, axis, steps, zeros }, rounding, learned }
                })
            },
        );
        let ternary = (values(2), 0.0_f32..1.0).prop_map(|(s, share)| Source::Ternary { scales: [s[0], s[1]], share });
        let hashed = (any::<u64>(), (1..30_usize).prop_flat_map(values))
            .prop_map(|(seed, values)| Source::shared(Places::Hash { seed }, values, &SIDES).unwrap());
        let product =
            (1..7_usize, 1..4_usize, 1..5_usize, any::<bool>()).prop_flat_map(move |(width, stages, centroids, transposed)| {
                let [rows, columns] = if transposed { [SIDES[1], SIDES[0]] } else { SIDES };
                let width = width.min(columns);
                let indices = prop::collection::vec(0..centroids as u16, columns.div_ceil(width) * rows);
                let stage = (values(centroids * columns), indices).prop_map(|(centroids, indices)| Stage { centroids, indices });
                prop::collection::vec(stage, stages)
                    .prop_map(move |stages| Source::Product { product: Product { width, columns, taps: 1, stages }, transposed })
            });
        let source = prop_oneof![Just(Source::Free), codebook, grid, ternary, hashed, product];
        let mask = prop::option::of(prop::collection::vec(any::<bool>(), count));
        (mask, source).prop_map(|(mask, source)| Coding { mask, source })
    }

    fn matrix() -> Net {
        let mut b = Builder::new([1, 1, SIDES[0]], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc", x, SIDES[1]);
        b.finish().unwrap()
    }

    proptest! {
        #[test]
        fn a_network_of_any_coding_comes_back_bit_by_bit(coding in coding()) {
            let net = coded_as(&matrix(), coding.clone());
            let back = Net::from_state(&net.to_state(), &Device::flex()).unwrap();
            let [before, after] = [&net, &back].map(|net| net.nodes[2].stored());
            prop_assert_eq!(&after[0].coding, &before[0].coding);
            prop_assert_eq!(&after[0].coding.source, &coding.source);
            let bits = |stored: &Stored| stored.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&after[0]), bits(&before[0]));
            if Outline::of(&coding.source).has_values() {
                prop_assert_eq!(&after[0].base, &before[0].base);
            }
            prop_assert!(back.to_state() == net.to_state());
        }

        #[test]
        fn a_damaged_state_is_one_error(coding in coding(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
            let mut state = coded_as(&matrix(), coding).to_state();
            let at = at.index(state.len());
            if cut { state.truncate(at) } else { state[at] ^= 1 << bit }
            prop_assert!(Net::from_state(&state, &Device::flex()).is_err());
        }
    }
}
