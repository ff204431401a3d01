//! Networks that hold values no network can compute with.

use briquette_runtime::NotFinite;

use crate::error::{Error, Result};
use crate::net::{Net, Node};

impl Node {
    /// The node's tensors and settings that hold NaN or infinite values.
    pub fn not_finite(&self) -> Vec<NotFinite> {
        let layer = self.op.layer();
        let tensors = self.stored().into_iter();
        let found = tensors.filter_map(|stored| NotFinite::of(&self.name, &layer, stored.name, &stored.values()));
        NotFinite::settings(&self.name, &layer).into_iter().chain(found).collect()
    }
}

impl Net {
    /// Refuses a network with NaN or infinite values in it.
    ///
    /// # Errors
    /// Names every tensor, and every setting of a layer, that holds them, with their number.
    pub fn finite(&self) -> Result<()> {
        let found = self.nodes.iter().flat_map(Node::not_finite).collect();
        briquette_runtime::Error::unless_finite(found).map_err(Error::from)
    }
}

#[cfg(test)]
mod tests {
    use briquette_runtime::{Coder, Model, ValueFormat};
    use burn::tensor::Device;

    use crate::builder::{Builder, Conv};
    use crate::net::Net;
    use crate::stored::Storage;

    /// A convolution and its norm, with one value of the given tensor replaced.
    fn net(node: usize, tensor: &str, value: f32) -> Net {
        let device = Device::flex();
        let mut b = Builder::new([1, 2, 2], 3, &device);
        let conv = b.conv("conv", b.input(), Conv::new(4, 1));
        let norm = b.batch_norm("norm", conv);
        b.global_avg_pool("pool", norm);
        let mut net = b.finish().unwrap();
        let mut parameters = net.nodes[node].parameters();
        parameters.iter_mut().find(|stored| stored.name == tensor).unwrap().base[2] = value;
        let old = net.nodes.remove(node);
        net.nodes.insert(node, old.with(parameters, &device).unwrap());
        net
    }

    #[test]
    fn nothing_that_is_not_finite_is_stored_read_or_folded() {
        for (node, tensor, value, said) in [
            (1, "weight", f32::NAN, "1 of 4 value(s) of 'conv.weight' are not finite"),
            (1, "bias", f32::INFINITY, "1 of 4 value(s) of 'conv.bias' are not finite"),
            // Folded, an infinite variance would leave filters of zeros, a negative one NaN.
            (2, "var", f32::INFINITY, "1 of 4 value(s) of 'norm.var' are not finite"),
            (2, "var", -1.0, "1 of 4 value(s) of 'norm.var' are not finite"),
        ] {
            let refused = |error: crate::Error| assert!(error.to_string().contains(said), "{error}");
            refused(net(node, tensor, value).to_model(Storage::default()).unwrap_err());
            refused(net(node, tensor, value).fold_norms().unwrap_err());
            // Other writers may store it all the same.
            let mut model = net(node, tensor, 1.0).to_model(Storage::default()).unwrap();
            let at = model.nodes[node].tensors.iter().position(|(name, _)| name == tensor).unwrap();
            let coded = &mut model.nodes[node].tensors[at].1;
            let mut values = coded.decode();
            values[2] = value;
            *coded = briquette_runtime::Coded::encode(coded.shape(), &values, None, &briquette_runtime::Permission::default())
                .unwrap();
            let model = Model::from_bytes(&model.to_bytes().unwrap()).unwrap();
            refused(Net::from_model(&model, &Device::flex()).unwrap_err());
        }
    }

    #[test]
    fn values_beyond_half_precision_are_refused_and_not_made_infinite() {
        let half = Storage { coder: Coder::Packed, float: ValueFormat::F16 };
        let refused = net(2, "var", 1e5).to_model(half).unwrap_err().to_string();
        assert!(
            refused.contains("'norm'") && refused.contains("1 of 4 value(s) of 'var'") && refused.contains("f32"),
            "{refused}"
        );
        assert!(net(2, "var", 65504.0).to_model(half).is_ok());
        assert!(net(2, "var", 1e5).to_model(Storage::default()).is_ok());
    }
}
