//! What a network costs after a cut, from shapes alone.

use super::cut::Chosen;
use super::{ChannelGroup, Keep, cut};
use crate::cost::{Cost, LayerCost};
use crate::error::{Error, Result};
use crate::net::Net;

impl Net {
    /// The cost of what [`Net::keep`] makes of these cuts, without making it: no weight is read.
    ///
    /// # Errors
    /// As [`Net::keep`].
    pub fn cost_after(&self, cuts: &[(&ChannelGroup, Keep)]) -> Result<Cost> {
        let (chosen, none) = (self.chosen(cuts)?, Chosen::default());
        let (mut shapes, mut layers) = (Vec::<Vec<usize>>::with_capacity(self.nodes.len()), Vec::new());
        for (index, node) in self.nodes.iter().enumerate() {
            let input = node.inputs.first().map_or(&none, |&input| &chosen[input]);
            let layer = cut::layer(node, input, &chosen[index]);
            let tensors = cut::tensor_shapes(node, input, &chosen[index]);
            let weight = node.dense().and_then(|_| tensors.iter().find(|(name, _)| *name == "weight"));
            let inputs: Vec<&[usize]> = node.inputs.iter().map(|&input| shapes[input].as_slice()).collect();
            let shape = layer.output_shape(&inputs, weight.map(|(_, shape)| shape.as_slice()));
            let shape = shape.map_err(|source| Error::Shape { node: node.name.clone(), source })?;
            // A cut takes a weight out of its rule.
            let base_values = node.op.base_values().filter(|_| tensors == node.op.tensor_shapes());
            layers.extend(LayerCost::of((index, &node.name), layer.kind(), &tensors, base_values, &shape));
            shapes.push(shape);
        }
        Ok(Cost { layers })
    }
}
