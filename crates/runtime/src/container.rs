//! The file: magic, version, one section with the topology, one section for every node that has tensors. `docs/container.md` is
//! the specification.

use std::error::Error as _;

use crate::bytes::{Put as _, Reader};
use crate::topology::{self, Outline};
use crate::{Coded, Error, Model, Node, lfs};

/// The first bytes of every container.
pub(crate) const MAGIC: &str = "BRIQ";
/// The format that is written and read.
pub(crate) const VERSION: u8 = 4;
/// Most dimensions of a tensor.
pub(crate) const MAX_RANK: usize = 8;
/// Most elements of all tensors of a model together.
pub const MAX_ELEMENTS_TOTAL: usize = 1 << 30;
/// A stream or tensor of `n` bytes may stand for at most `(n + 1) * MAX_EXPANSION` symbols or elements.
pub const MAX_EXPANSION: usize = 1 << 12;

impl Model {
    /// The container's bytes; the same model gives the same bytes.
    ///
    /// # Errors
    /// When an input is not an earlier node, or a text or the number of elements is beyond the format's limits.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut elements = 0;
        for (name, coded) in self.nodes.iter().flat_map(|node| &node.tensors) {
            count(&mut elements, coded).map_err(|error| error.within(name))?;
        }
        let mut out = MAGIC.as_bytes().to_vec();
        out.push(VERSION);
        let mut body = Vec::new();
        topology::write(self, &mut body)?;
        put_section(&mut out, &body);
        for node in self.nodes.iter().filter(|node| !node.tensors.is_empty()) {
            body.clear();
            node.tensors.iter().for_each(|(_, coded)| coded.write(&mut body));
            put_section(&mut out, &body);
        }
        Ok(out)
    }

    /// Reads a container. Any bytes may be given: every length is checked against what is there before memory is taken for it,
    /// and each tensor is decoded once, so that later uses cannot fail. Whether the network makes sense is [`Model::check`]'s
    /// question.
    ///
    /// # Errors
    /// The first fault, with the part it is in.
    pub fn from_bytes(bytes: &[u8]) -> Result<Model, Error> {
        let (model, faults) = read(bytes);
        match faults.into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(model),
        }
    }

    /// Whether bytes begin as those of every container do.
    pub fn is_begun(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC.as_bytes())
    }

    /// Every fault of a container and of the model in it, values that are not finite included, one line each; none if it is whole.
    pub fn verify(bytes: &[u8]) -> Vec<String> {
        let (model, mut faults) = read(bytes);
        if faults.is_empty() {
            faults.extend(model.check().err());
        }
        let unusable = model.not_finite();
        faults.iter().map(chain).chain(unusable.iter().map(ToString::to_string)).collect()
    }
}

/// The model, as far as it can be read, and every fault.
fn read(bytes: &[u8]) -> (Model, Vec<Error>) {
    let mut reader = Reader::new(bytes);
    if reader.bytes(MAGIC.len()).ok() != Some(MAGIC.as_bytes()) {
        if lfs::is_pointer(bytes) {
            return (Model::default(), vec![Error::LfsPointer]);
        }
        return (Model::default(), vec![Error::Magic]);
    }
    match reader.byte() {
        Ok(VERSION) => {}
        Ok(found) => return (Model::default(), vec![Error::Version { found }]),
        Err(error) => return (Model::default(), vec![error.within("version")]),
    }
    let mut faults = Vec::new();
    let topology = section(&mut reader).and_then(|body| body).and_then(|body| topology::read(Reader::new(body)));
    let (meta, outlines) = match topology {
        Ok(topology) => topology,
        Err(error) => return (Model::default(), vec![error.within("topology")]),
    };
    let mut model = Model { meta, nodes: Vec::new() };
    let mut elements = 0;
    for (position, outline) in outlines.into_iter().enumerate() {
        let part = format!("node {position} {:?}", outline.name);
        let Outline { name, inputs, layer, tensors } = outline;
        let coded = if tensors.is_empty() {
            Ok(Vec::new())
        } else {
            match section(&mut reader) {
                Ok(body) => body.and_then(|body| read_tensors(body, &tensors, &mut elements)),
                Err(error) => {
                    faults.push(error.within(part));
                    return (model, faults);
                }
            }
        };
        let coded = coded.unwrap_or_else(|error| {
            faults.push(error.within(part));
            Vec::new()
        });
        model.nodes.push(Node { name, inputs, layer, tensors: coded });
    }
    faults.extend(reader.end().err());
    (model, faults)
}

fn read_tensors(body: &[u8], names: &[String], elements: &mut usize) -> Result<Vec<(String, Coded)>, Error> {
    let mut reader = Reader::new(body);
    let mut tensors = Vec::new();
    for name in names {
        let coded = Coded::read(&mut reader).and_then(|coded| count(elements, &coded).map(|()| coded));
        tensors.push((name.clone(), coded.map_err(|error| error.within(name))?));
    }
    reader.end()?;
    Ok(tensors)
}

/// Adds the tensor's elements to those of the model.
fn count(elements: &mut usize, coded: &Coded) -> Result<(), Error> {
    *elements = elements.saturating_add(coded.shape().iter().product());
    match *elements {
        found if found > MAX_ELEMENTS_TOTAL => {
            Err(Error::Limit { what: "elements of the model", found: found as u64, limit: MAX_ELEMENTS_TOTAL as u64 })
        }
        _ => Ok(()),
    }
}

/// Length, body, and the CRC-32 of both.
fn put_section(out: &mut Vec<u8>, body: &[u8]) {
    let start = out.len();
    out.put_varint(body.len());
    out.extend_from_slice(body);
    let checksum = crc32fast::hash(&out[start..]);
    out.extend(checksum.to_le_bytes());
}

/// The next section's body, or inside that its checksum's fault; the outer error is one after which no section can be found.
fn section<'a>(reader: &mut Reader<'a>) -> Result<Result<&'a [u8], Error>, Error> {
    let whole = reader.rest();
    let length = reader.varint()?;
    let body = reader.bytes(length)?;
    let computed = crc32fast::hash(&whole[..whole.len() - reader.left()]);
    let stored = u32::from_le_bytes(reader.array()?);
    Ok(if stored == computed { Ok(body) } else { Err(Error::Checksum { stored, computed }) })
}

/// A fault and all its causes in one line.
fn chain(fault: &Error) -> String {
    let causes = std::iter::successors(fault.source(), |cause: &&dyn std::error::Error| (*cause).source());
    causes.fold(fault.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Activation, Coder, Layer, Padding, Permission, ValueFormat, Window, layers};

    /// A small network with every kind of tensor.
    pub(crate) fn example() -> Model {
        let permission = |values, coder| Permission { values, coder };
        let plain = Permission::default();
        let value = |i: usize| (i * 11 % 9) as f32 * 0.125 - 0.5;
        let tensor = |name: &str, shape: &[usize], permission: Permission| {
            let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
            (name.to_owned(), Coded::encode(shape, &values, None, &permission).unwrap())
        };
        let masked = |shape: &[usize], gone: usize, coder| {
            let mask: Vec<bool> = (0..shape.iter().product()).map(|i| i * 7 % 5 >= gone).collect();
            let values: Vec<f32> = (0..mask.len()).map(value).collect();
            ("weight".to_owned(), Coded::encode(shape, &values, Some(&mask), &permission(ValueFormat::Codebook, coder)).unwrap())
        };
        let grid = crate::Grid { levels: 5, axis: Some(0), steps: vec![0.25; 5], zeros: vec![2.0, 1.5, 2.0, 0.0, 4.0] };
        let channel = grid.channel_of(&[5, 5]);
        let quantized: Vec<f32> = (0..25).map(|i| grid.value(channel(i), (i * 7 % 5) as u16)).collect();
        let quantized = Coded::on_grid(
            &[5, 5],
            &quantized,
            Some(&quantized.iter().map(|v| *v != 0.0).collect::<Vec<_>>()),
            &grid,
            Coder::Entropy,
        )
        .unwrap();
        let hash = crate::Shared { places: crate::Places::Hash { seed: 7 }, values: vec![0.5, -0.25, 1.5] };
        let mask: Vec<bool> = (0..30).map(|i| i % 4 != 2).collect();
        let values: Vec<f32> =
            hash.expand(&[6, 5]).iter().zip(&mask).map(|(value, keep)| if *keep { *value } else { 0.0 }).collect();
        let hashed = Coded::shared(&[6, 5], &values, Some(&mask), &hash, &permission(ValueFormat::F16, Coder::Packed));
        let stage = |offset: u16| crate::Stage {
            centroids: (0..12).map(|i| f32::from(i * 5 % 7 + offset) * 0.25 - 0.5).collect(),
            indices: (0..10).map(|i| (i * 3 % 4 + offset) % 2).collect(),
        };
        let pieces = crate::Product { width: 4, columns: 6, taps: 1, stages: vec![stage(0), stage(1)] };
        let product = Coded::product(&[5, 6], &pieces.values(), None, &pieces, &permission(ValueFormat::F32, Coder::Huffman));
        let node = |name: &str, input: Option<usize>, layer, tensors| Node {
            name: name.into(),
            inputs: input.into_iter().collect(),
            layer,
            tensors,
        };
        let conv = Layer::Conv2d(layers::Conv2d { stride: [1, 1], padding: Padding::all(1), dilation: [1, 1], groups: 1 });
        let variance = Coded::encode(&[4], &[1.0, 0.5, 2.0, 1.5], None, &plain).unwrap();
        Model {
            nodes: vec![
                node("input", None, Layer::Input(layers::Input { shape: vec![2, 6, 6] }), vec![]),
                node(
                    "conv",
                    Some(0),
                    conv,
                    vec![
                        masked(&[4, 2, 3, 3], 3, Coder::Entropy),
                        tensor("bias", &[4], permission(ValueFormat::F16, Coder::Packed)),
                    ],
                ),
                node(
                    "bn",
                    Some(1),
                    Layer::BatchNorm(layers::BatchNorm { epsilon: 1e-5 }),
                    vec![
                        tensor("gamma", &[4], plain),
                        tensor("beta", &[4], plain),
                        tensor("mean", &[4], plain),
                        ("var".into(), variance),
                    ],
                ),
                node("relu", Some(2), Layer::Activation(Activation::Relu), vec![]),
                node("pool", Some(3), Layer::MaxPool(layers::MaxPool { window: Window::square(2) }), vec![]),
                node("flat", Some(4), Layer::Flatten(layers::Flatten), vec![]),
                node(
                    "fc",
                    Some(5),
                    Layer::Linear(layers::Linear),
                    vec![
                        masked(&[5, 36], 1, Coder::Huffman),
                        tensor("bias", &[5], permission(ValueFormat::Codebook, Coder::Packed)),
                    ],
                ),
                node("fc2", Some(6), Layer::Linear(layers::Linear), vec![("weight".into(), quantized)]),
                node("fc3", Some(7), Layer::Linear(layers::Linear), vec![("weight".into(), hashed.unwrap())]),
                node("fc4", Some(8), Layer::Linear(layers::Linear), vec![("weight".into(), product.unwrap())]),
            ],
            meta: [("data".to_owned(), "synthetic".to_owned())].into(),
        }
    }

    #[test]
    fn a_model_comes_back_and_gives_the_same_bytes() {
        let model = example();
        let bytes = model.to_bytes().unwrap();
        assert_eq!(bytes, example().to_bytes().unwrap());
        let back = Model::from_bytes(&bytes).unwrap();
        assert_eq!(back, model);
        assert_eq!(back.to_bytes().unwrap(), bytes);
        assert_eq!(Model::verify(&bytes), Vec::<String>::new());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = example().to_bytes().unwrap();
        for length in 0..bytes.len() {
            assert!(Model::from_bytes(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
            assert!(!Model::verify(&bytes[..length]).is_empty());
        }
    }

    #[test]
    fn every_flipped_byte_is_an_error() {
        let bytes = example().to_bytes().unwrap();
        for position in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff, 0x55, 0x10] {
                let mut broken = bytes.clone();
                broken[position] ^= flip;
                assert!(Model::from_bytes(&broken).is_err(), "byte {position} ^ {flip:#x}");
            }
        }
    }

    #[test]
    fn the_specification_s_example() {
        let values = [0.0, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0, -0.5, 0.0, 0.0, 0.0, 1.5];
        let permission = Permission { values: ValueFormat::Codebook, coder: Coder::Entropy };
        let weight = Coded::encode(&[2, 6], &values, Some(&values.map(|value| value != 0.0)), &permission).unwrap();
        let input =
            Node { name: "x".into(), inputs: vec![], layer: Layer::Input(layers::Input { shape: vec![6] }), tensors: vec![] };
        let fc = Node {
            name: "fc".into(),
            inputs: vec![0],
            layer: Layer::Linear(layers::Linear),
            tensors: vec![("weight".into(), weight)],
        };
        let bytes = Model { nodes: vec![input, fc], meta: Default::default() }.to_bytes().unwrap();
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let written = "42 52 49 51 04 11 00 02 01 78 00 01 06 00 00 02 66 63 03 01 01 01 01 63 85 76 86 12 12 02 02 06 02 03 02 \
                       92 00 00 00 00 bf 00 00 c0 3f a0 04 62 30 22";
        assert_eq!(hex.join(" "), written);
    }

    #[test]
    fn containers_of_other_versions_are_refused_by_number() {
        for version in [1, 2, 3, 5] {
            let mut bytes = example().to_bytes().unwrap();
            bytes[4] = version;
            let error = Model::from_bytes(&bytes).unwrap_err().to_string();
            assert_eq!(error, format!("container version {version} is not known, this build reads version 4"));
        }
    }

    #[test]
    fn garbage_behind_the_end_is_an_error() {
        let mut bytes = example().to_bytes().unwrap();
        bytes.push(0);
        assert!(matches!(Model::from_bytes(&bytes), Err(Error::Trailing { bytes: 1 })));
    }

    #[test]
    fn verify_finds_the_faults_of_all_sections() {
        let mut bytes = example().to_bytes().unwrap();
        let end = bytes.len() - 6;
        bytes[end] ^= 1;
        let variance = bytes.windows(4).position(|window| window == 1.5_f32.to_le_bytes()).unwrap();
        bytes[variance] ^= 1;
        let faults = Model::verify(&bytes);
        assert_eq!(faults.len(), 2);
        assert!(faults[0].starts_with("node 2 \"bn\": checksum"), "{faults:?}");
        assert!(faults[1].starts_with("node 9 \"fc4\": checksum"), "{faults:?}");
    }

    /// What a forger can reach who also repairs the checksums: whatever happens, no panic and no huge allocation.
    #[test]
    fn forged_sections_never_panic() {
        let model = example();
        let mut topology = Vec::new();
        topology::write(&model, &mut topology).unwrap();
        let sections: Vec<Vec<u8>> = std::iter::once(topology)
            .chain(model.nodes.iter().filter(|node| !node.tensors.is_empty()).map(|node| {
                let mut body = Vec::new();
                node.tensors.iter().for_each(|(_, coded)| coded.write(&mut body));
                body
            }))
            .collect();
        for (which, section) in sections.iter().enumerate() {
            for position in 0..section.len() {
                for value in 0..=255 {
                    let mut bytes = MAGIC.as_bytes().to_vec();
                    bytes.push(VERSION);
                    for (i, body) in sections.iter().enumerate() {
                        let mut body = body.clone();
                        if i == which {
                            body[position] = value;
                        }
                        put_section(&mut bytes, &body);
                    }
                    if let Ok(model) = Model::from_bytes(&bytes) {
                        assert!(model.to_bytes().is_ok());
                        let _ = model.check();
                    }
                }
            }
        }
    }
}
