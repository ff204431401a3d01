//! The part of a container that describes the network without its weights.

use std::collections::BTreeMap;

use briquette_kernels::Structure;

use crate::bytes::{Put as _, Reader};
use crate::{Activation, Error, Grid, Layer, Model, StepGradient, Window};

/// Tensor names that take one byte.
const TENSORS: [&str; 6] = ["weight", "bias", "gamma", "beta", "mean", "var"];

/// A node as the topology describes it: the tensors follow elsewhere.
pub(crate) struct Outline {
    pub(crate) name: String,
    pub(crate) inputs: Vec<usize>,
    pub(crate) layer: Layer,
    pub(crate) tensors: Vec<String>,
}

/// Appends metadata and nodes.
pub(crate) fn write(model: &Model, out: &mut Vec<u8>) -> Result<(), Error> {
    out.put_varint(model.meta.len());
    for (key, value) in &model.meta {
        out.put_text(key)?;
        out.put_text(value)?;
    }
    out.put_varint(model.nodes.len());
    for (position, node) in model.nodes.iter().enumerate() {
        out.put_text(&node.name)?;
        write_layer(&node.layer, out)?;
        out.put_varint(node.inputs.len());
        for input in &node.inputs {
            if *input >= position {
                let error = Error::Wiring { detail: format!("input {input} is not an earlier node") };
                return Err(error.within(format!("node {position} {:?}", node.name)));
            }
            out.put_varint(position - input);
        }
        out.put_varint(node.tensors.len());
        for (name, _) in &node.tensors {
            match TENSORS.iter().position(|known| known == name) {
                Some(known) => out.put_varint(known + 1),
                None => {
                    out.put_varint(0);
                    out.put_text(name)?;
                }
            }
        }
    }
    Ok(())
}

/// Reads what [`write`] wrote, to the end.
pub(crate) fn read(mut reader: Reader<'_>) -> Result<(BTreeMap<String, String>, Vec<Outline>), Error> {
    let reader = &mut reader;
    let mut meta = BTreeMap::new();
    for _ in 0..reader.varint()? {
        let (key, value) = (reader.text()?, reader.text()?);
        if meta.last_key_value().is_some_and(|(last, _): (&String, _)| last.as_str() >= key) {
            return Err(Error::corrupt(format!("the metadata key {key:?} is out of order")));
        }
        meta.insert(key.to_owned(), value.to_owned());
    }
    let mut nodes = Vec::new();
    for position in 0..reader.varint()? {
        nodes.push(read_node(reader, position).map_err(|error| error.within(format!("node {position}")))?);
    }
    reader.end()?;
    Ok((meta, nodes))
}

fn read_node(reader: &mut Reader<'_>, position: usize) -> Result<Outline, Error> {
    let name = reader.text()?.to_owned();
    let layer = read_layer(reader)?;
    let mut inputs = Vec::new();
    for _ in 0..reader.varint()? {
        let distance = reader.varint()?;
        match position.checked_sub(distance) {
            Some(input) if distance > 0 => inputs.push(input),
            _ => return Err(Error::corrupt(format!("an input {distance} node(s) before node {position}"))),
        }
    }
    let mut tensors = Vec::new();
    for _ in 0..reader.varint()? {
        tensors.push(match reader.varint()? {
            0 => reader.text()?.to_owned(),
            known => match TENSORS.get(known - 1) {
                Some(name) => (*name).to_owned(),
                None => return Err(Error::corrupt(format!("tensor name {known}"))),
            },
        });
    }
    Ok(Outline { name, inputs, layer, tensors })
}

fn write_layer(layer: &Layer, out: &mut Vec<u8>) -> Result<(), Error> {
    let tag = tag(layer);
    out.push(tag);
    match layer {
        Layer::Input { shape } => {
            out.put_varint(shape.len());
            put_sizes(out, shape);
        }
        Layer::Normalize { mean, std } => {
            for list in [mean, std] {
                out.put_varint(list.len());
                list.iter().for_each(|value| out.put_f32(*value));
            }
        }
        Layer::Conv2d { stride, padding, dilation, groups } => {
            [stride, padding, dilation].into_iter().for_each(|pair| put_sizes(out, pair));
            out.put_varint(*groups);
        }
        Layer::BatchNorm { epsilon: value }
        | Layer::Activation(Activation::LeakyRelu { slope: value })
        | Layer::Dropout { p: value } => {
            out.put_f64(*value);
        }
        Layer::LocalResponseNorm { size, alpha, beta, k } => {
            out.put_varint(*size);
            [alpha, beta, k].into_iter().for_each(|value| out.put_f64(*value));
        }
        Layer::MaxPool(window) => put_window(out, window),
        Layer::AvgPool { window, count_padding } => {
            put_window(out, window);
            out.push(u8::from(*count_padding));
        }
        Layer::AdaptiveAvgPool { output } => put_sizes(out, output),
        Layer::ChannelSlice { start, len } => put_sizes(out, &[*start, *len]),
        Layer::PadShortcut { stride, before, after } => put_sizes(out, &[*stride, *before, *after]),
        Layer::Structured(structure) => put_structure(out, structure),
        Layer::Quantize { levels, zero, train } => {
            out.put_varint(*levels as usize);
            out.put_varint((zero * 2.0) as usize);
            out.push(match train {
                StepGradient::Fixed => 0,
                StepGradient::Learned => 1,
                StepGradient::Clip => 2,
            });
        }
        Layer::Custom { kernel, config } => {
            out.put_text(kernel)?;
            out.put_text(config)?;
        }
        Layer::Linear
        | Layer::Activation(_)
        | Layer::Softmax
        | Layer::GlobalAvgPool
        | Layer::Add
        | Layer::Concat
        | Layer::Flatten
        | Layer::MeanMagnitude
        | Layer::Multiply => {}
    }
    Ok(())
}

fn tag(layer: &Layer) -> u8 {
    match layer {
        Layer::Input { .. } => 0,
        Layer::Normalize { .. } => 1,
        Layer::Conv2d { .. } => 2,
        Layer::Linear => 3,
        Layer::BatchNorm { .. } => 4,
        Layer::LocalResponseNorm { .. } => 5,
        Layer::Activation(Activation::Relu) => 6,
        Layer::Activation(Activation::LeakyRelu { .. }) => 7,
        Layer::Activation(Activation::Relu6) => 8,
        Layer::Activation(Activation::Sigmoid) => 9,
        Layer::Activation(Activation::Tanh) => 10,
        Layer::Activation(Activation::Gelu) => 11,
        Layer::Activation(Activation::Silu) => 12,
        Layer::Softmax => 13,
        Layer::MaxPool(_) => 14,
        Layer::AvgPool { .. } => 15,
        Layer::AdaptiveAvgPool { .. } => 16,
        Layer::GlobalAvgPool => 17,
        Layer::Add => 18,
        Layer::Concat => 19,
        Layer::ChannelSlice { .. } => 20,
        Layer::PadShortcut { .. } => 21,
        Layer::Flatten => 22,
        Layer::Dropout { .. } => 23,
        Layer::Custom { .. } => 24,
        Layer::Structured(_) => 25,
        Layer::Quantize { .. } => 26,
        Layer::MeanMagnitude => 27,
        Layer::Multiply => 28,
    }
}

fn read_layer(reader: &mut Reader<'_>) -> Result<Layer, Error> {
    Ok(match reader.byte()? {
        0 => {
            let rank = reader.varint()?;
            Layer::Input { shape: (0..rank).map(|_| reader.varint()).collect::<Result<_, _>>()? }
        }
        1 => {
            let mut floats = || -> Result<Vec<f32>, Error> {
                let count = reader.varint()?;
                (0..count).map(|_| reader.f32()).collect()
            };
            Layer::Normalize { mean: floats()?, std: floats()? }
        }
        2 => {
            let [stride, padding, dilation] = [sizes(reader)?, sizes(reader)?, sizes(reader)?];
            Layer::Conv2d { stride, padding, dilation, groups: reader.varint()? }
        }
        3 => Layer::Linear,
        4 => Layer::BatchNorm { epsilon: reader.f64()? },
        5 => {
            let size = reader.varint()?;
            Layer::LocalResponseNorm { size, alpha: reader.f64()?, beta: reader.f64()?, k: reader.f64()? }
        }
        6 => Layer::Activation(Activation::Relu),
        7 => Layer::Activation(Activation::LeakyRelu { slope: reader.f64()? }),
        8 => Layer::Activation(Activation::Relu6),
        9 => Layer::Activation(Activation::Sigmoid),
        10 => Layer::Activation(Activation::Tanh),
        11 => Layer::Activation(Activation::Gelu),
        12 => Layer::Activation(Activation::Silu),
        13 => Layer::Softmax,
        14 => Layer::MaxPool(window(reader)?),
        15 => {
            let window = window(reader)?;
            let count_padding = match reader.byte()? {
                0 => false,
                1 => true,
                other => return Err(Error::corrupt(format!("a truth value of {other}"))),
            };
            Layer::AvgPool { window, count_padding }
        }
        16 => Layer::AdaptiveAvgPool { output: sizes(reader)? },
        17 => Layer::GlobalAvgPool,
        18 => Layer::Add,
        19 => Layer::Concat,
        20 => sizes(reader).map(|[start, len]| Layer::ChannelSlice { start, len })?,
        21 => sizes(reader).map(|[stride, before, after]| Layer::PadShortcut { stride, before, after })?,
        22 => Layer::Flatten,
        23 => Layer::Dropout { p: reader.f64()? },
        24 => Layer::Custom { kernel: reader.text()?.to_owned(), config: reader.text()?.to_owned() },
        25 => Layer::Structured(structure(reader)?),
        26 => {
            let (levels, zero) = (reader.varint()?, reader.varint()?);
            let levels = u32::try_from(levels).map_err(|_| Error::corrupt(format!("a quantizer of {levels} levels")))?;
            let train = match reader.byte()? {
                0 => StepGradient::Fixed,
                1 => StepGradient::Learned,
                2 => StepGradient::Clip,
                other => return Err(Error::corrupt(format!("training {other} of a step"))),
            };
            let zero = zero as f32 / 2.0;
            Grid::uniform(levels, 1.0, zero).check(&[])?;
            Layer::Quantize { levels, zero, train }
        }
        27 => Layer::MeanMagnitude,
        28 => Layer::Multiply,
        tag => return Err(Error::corrupt(format!("layer {tag}"))),
    })
}

fn put_sizes(out: &mut Vec<u8>, sizes: &[usize]) {
    sizes.iter().for_each(|size| out.put_varint(*size));
}

fn put_window(out: &mut Vec<u8>, window: &Window) {
    [window.kernel, window.stride, window.padding].iter().for_each(|pair| put_sizes(out, pair));
}

fn put_structure(out: &mut Vec<u8>, structure: &Structure) {
    let (tag, rest, seed): (u8, Vec<usize>, Option<u64>) = match *structure {
        Structure::Circulant { seed, .. } => (0, Vec::new(), Some(seed)),
        Structure::Fastfood { seed, .. } => (1, Vec::new(), Some(seed)),
        Structure::Acdc { layers, seed, .. } => (2, vec![layers], Some(seed)),
        Structure::ToeplitzLike { rank, .. } => (3, vec![rank], None),
        Structure::Kronecker { left, right, terms, .. } => (4, [left, right].concat().into_iter().chain([terms]).collect(), None),
        Structure::Butterfly { .. } => (5, Vec::new(), None),
        Structure::TwoLevelToeplitz { columns, .. } => (6, vec![columns], None),
    };
    out.push(tag);
    put_sizes(out, &structure.features());
    put_sizes(out, &rest);
    out.extend(seed.into_iter().flat_map(u64::to_le_bytes));
}

fn structure(reader: &mut Reader<'_>) -> Result<Structure, Error> {
    let tag = reader.byte()?;
    let [inputs, outputs] = sizes(reader)?;
    let seed = |reader: &mut Reader<'_>| reader.array().map(u64::from_le_bytes);
    let structure = match tag {
        0 => Structure::Circulant { inputs, outputs, seed: seed(reader)? },
        1 => Structure::Fastfood { inputs, outputs, seed: seed(reader)? },
        2 => Structure::Acdc { inputs, outputs, layers: reader.varint()?, seed: seed(reader)? },
        3 => Structure::ToeplitzLike { inputs, outputs, rank: reader.varint()? },
        4 => Structure::Kronecker { inputs, outputs, left: sizes(reader)?, right: sizes(reader)?, terms: reader.varint()? },
        5 => Structure::Butterfly { inputs, outputs },
        6 => Structure::TwoLevelToeplitz { inputs, outputs, columns: reader.varint()? },
        tag => return Err(Error::corrupt(format!("structural matrix {tag}"))),
    };
    structure.check().map_err(|error| Error::corrupt(error.to_string()))?;
    Ok(structure)
}

fn sizes<const N: usize>(reader: &mut Reader<'_>) -> Result<[usize; N], Error> {
    let mut sizes = [0; N];
    for size in &mut sizes {
        *size = reader.varint()?;
    }
    Ok(sizes)
}

fn window(reader: &mut Reader<'_>) -> Result<Window, Error> {
    Ok(Window { kernel: sizes(reader)?, stride: sizes(reader)?, padding: sizes(reader)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_comes_back() {
        let window = Window { kernel: [3, 2], stride: [2, 1], padding: [1, 0] };
        let mut layers = vec![
            Layer::Input { shape: vec![3, 224, 200] },
            Layer::Normalize { mean: vec![0.5, 0.25], std: vec![0.1, 0.2] },
            Layer::Conv2d { stride: [1, 2], padding: [3, 4], dilation: [5, 6], groups: 300 },
            Layer::Linear,
            Layer::BatchNorm { epsilon: 1e-5 },
            Layer::LocalResponseNorm { size: 5, alpha: 1e-4, beta: 0.75, k: 2.0 },
            Layer::Softmax,
            Layer::MaxPool(window),
            Layer::AvgPool { window, count_padding: true },
            Layer::AdaptiveAvgPool { output: [6, 7] },
            Layer::GlobalAvgPool,
            Layer::Add,
            Layer::Concat,
            Layer::ChannelSlice { start: 3, len: 9 },
            Layer::PadShortcut { stride: 2, before: 8, after: 7 },
            Layer::Flatten,
            Layer::Dropout { p: 0.5 },
            Layer::Quantize { levels: 16, zero: 7.5, train: StepGradient::Learned },
            Layer::Custom { kernel: "circulant".into(), config: "{}".into() },
            Layer::MeanMagnitude,
            Layer::Multiply,
        ];
        layers.extend(
            [
                Activation::Relu,
                Activation::LeakyRelu { slope: 0.01 },
                Activation::Relu6,
                Activation::Sigmoid,
                Activation::Tanh,
                Activation::Gelu,
                Activation::Silu,
            ]
            .map(Layer::Activation),
        );
        let mut tags: Vec<u8> = layers.iter().map(tag).collect();
        tags.sort_unstable();
        // The structural matrices, tag 25, follow.
        assert_eq!(tags, (0..29).filter(|tag| *tag != 25).collect::<Vec<u8>>());
        let (inputs, outputs, seed) = (6, 300, u64::MAX - 1);
        layers.extend(
            [
                Structure::Circulant { inputs, outputs, seed },
                Structure::Fastfood { inputs, outputs, seed },
                Structure::Acdc { inputs, outputs, layers: 7, seed },
                Structure::ToeplitzLike { inputs, outputs, rank: 4 },
                Structure::TwoLevelToeplitz { inputs, outputs, columns: 1 },
                Structure::Kronecker { inputs, outputs, left: [20, 2], right: [15, 3], terms: 5 },
                Structure::Butterfly { inputs, outputs },
            ]
            .map(Layer::Structured),
        );
        for layer in layers {
            let mut bytes = Vec::new();
            write_layer(&layer, &mut bytes).unwrap();
            let mut reader = Reader::new(&bytes);
            assert_eq!(read_layer(&mut reader).unwrap(), layer);
            assert!(reader.end().is_ok());
        }
    }

    #[test]
    fn a_structural_matrix_of_no_sense_is_corrupt() {
        for structure in [
            Structure::Circulant { inputs: 0, outputs: 3, seed: 0 },
            Structure::ToeplitzLike { inputs: 1 << 24, outputs: 1 << 24, rank: usize::MAX >> 1 },
            Structure::Kronecker { inputs: 9, outputs: 9, left: [1, 1], right: [1, 1], terms: 1 },
        ] {
            let mut bytes = Vec::new();
            write_layer(&Layer::Structured(structure), &mut bytes).unwrap();
            assert!(matches!(read_layer(&mut Reader::new(&bytes)), Err(Error::Corrupt { .. })), "{structure:?}");
        }
    }
}
