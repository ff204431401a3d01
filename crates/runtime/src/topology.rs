//! The part of a container that describes the network without its weights.

use std::collections::BTreeMap;

use crate::bytes::{Put as _, Reader};
use crate::{Error, Layer, Model};

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
        node.layer.write(out);
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
    let layer = Layer::read(reader)?;
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
