//! Networks in containers.

use std::collections::BTreeMap;

use briquette_runtime::{Coded, Coder, Layer, Model, NotFinite, Permission, Shared, ValueFormat};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{Stored, build};
use crate::coding::{Coding, Rounding, Source};
use crate::error::{Error, Result};
use crate::net::Net;

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
                let permission = |values| Permission { values, coder: storage.coder };
                let coded = match &stored.coding.source {
                    Source::Free if node.op.quantize().is_some() => {
                        Coded::encode(shape, &values, mask, &permission(ValueFormat::F32))
                    }
                    Source::Free => Coded::encode(shape, &values, mask, &permission(storage.float)),
                    Source::Codebook { .. } | Source::Ternary { .. } => {
                        Coded::encode(shape, &values, mask, &permission(ValueFormat::Codebook))
                    }
                    Source::Grid { grid, .. } => Coded::on_grid(shape, &values, mask, grid, storage.coder),
                    Source::Shared { rule, values: base, .. } => {
                        let shared = Shared { places: *rule, values: base.clone() };
                        Coded::shared(shape, &values, mask, &shared, &permission(storage.float))
                    }
                    Source::Product { product, .. } => Coded::product(shape, &values, mask, product, &permission(storage.float)),
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
                    ValueFormat::Shared => coded.as_shared().map_or(Source::Free, |Shared { places: rule, values }| {
                        let places = rule.all(coded.shape(), values.len());
                        Source::Shared { rule, values, places }
                    }),
                    ValueFormat::Product => {
                        coded.as_product().map_or(Source::Free, |product| Source::Product { product, transposed: false })
                    }
                    ValueFormat::F32 | ValueFormat::F16 => Source::Free,
                };
                Ok(Stored {
                    name: known(&node.layer, name)?,
                    shape: coded.shape().to_vec(),
                    base: values,
                    coding: Coding { mask, source },
                })
            });
            let parameters: Vec<Stored> = parameters.collect::<Result<_>>()?;
            nodes.push(build(node.name.clone(), node.inputs.clone(), &node.layer, parameters, device)?);
        }
        let net = Net { nodes };
        net.shapes()?;
        Ok(net)
    }
}

/// The name of a tensor of the layer.
pub(super) fn known(layer: &Layer, name: &str) -> Result<&'static str> {
    let tensors = layer.kind().tensors();
    let names = || tensors.iter().map(|tensor| tensor.name);
    names().find(|known| *known == name).ok_or_else(|| Error::unknown("tensor", name, names()))
}
