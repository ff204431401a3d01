//! A trained network seen through some of the training images: for scores that need activations or gradients.

use briquette_data::{Augment, Loader};
use briquette_runtime::{Layer, layers};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::images;
use crate::context::{Context, Event};
use crate::error::{Error, Result};
use crate::net::{Net, Op};
use crate::streams::stream;

impl Net {
    /// A copy that carries gradients and computes what evaluation computes: batch norms apply their running statistics and leave them as
    /// they are, nothing is dropped, and the effective weights take the place of masks and codebooks, so that every weight has a gradient.
    pub fn probed(&self) -> Self {
        let mut net = self.deep_clone().materialize();
        for node in &mut net.nodes {
            match &mut node.op {
                Op::BatchNorm(norm) => norm.training = Param::from_bool(false),
                Op::Fixed(fixed) => {
                    if let Layer::Dropout(layers::Dropout { p }) = &mut fixed.layer {
                        *p = 0.0;
                    }
                }
                Op::Conv2d(_) | Op::Linear(_) | Op::Tensors(_) => {}
            }
        }
        net.train()
    }
}

/// Hands up to `batches` batches of `batch` training images `[batch, channels, height, width]` on `device`, with their labels, to
/// `visit`: in an order that follows from the pass's seed and `what`, without augmentation. Returns the number of images.
///
/// # Errors
/// [`Error::Stopped`] when the host asks to stop, [`Error::Data`] when an image cannot be read, and the errors of `visit`.
pub fn probe(
    cx: &mut Context<'_>,
    what: &str,
    (batches, batch): (usize, usize),
    device: &Device,
    mut visit: impl FnMut(Tensor<4>, &[u16]) -> Result<()>,
) -> Result<usize> {
    let train = &cx.data.train;
    let total = train.len().min(batches * batch);
    let mut seen = 0;
    for batch in Loader::train(train, batch.max(1), Augment::default(), stream(cx.seed, what), 0).take(batches) {
        if cx.host.stop_requested() {
            return Err(Error::Stopped);
        }
        let batch = batch?;
        visit(images(&batch, train.shape, device), &batch.labels)?;
        seen += batch.len;
        cx.host.event(Event::Step { what, done: seen, total, loss: 0.0 });
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::coding::floats;
    use crate::training::cross_entropy;
    use crate::zoo::{Arch, Wanted};

    #[test]
    fn a_probed_network_computes_what_evaluation_computes_and_every_weight_has_its_gradient() {
        let arch = Arch::named("resnet20").unwrap();
        let net = arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap();
        let device = net.device();
        let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
            let mut parameters = node.parameters();
            for stored in &mut parameters {
                if stored.name == "weight" && index % 2 == 0 {
                    stored.coding.mask = Some((0..stored.base.len()).map(|i| i % 3 != 0).collect());
                }
                if stored.name == "mean" {
                    stored.base.fill(0.1);
                }
            }
            node.with(parameters, &device).unwrap()
        });
        let net = Net { nodes: nodes.collect() };
        let pixels = |device: &Device| Tensor::<4>::ones([2, 3, 32, 32], device) * 0.3;
        let expected = floats(net.forward(pixels(&device)));

        let probed = net.probed();
        let logits = probed.forward(pixels(&device.clone().autodiff()));
        // A frozen batch norm in a training graph runs on Burn's operations, in an evaluation on ours: equal but for rounding.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
        assert!(floats(logits.clone().inner()).iter().zip(&expected).all(near));
        let grads = cross_entropy(logits, &[1, 7], 0.0).backward();
        for (_, node) in probed.weighted() {
            let gradient = node.gradient("weight", &grads).unwrap();
            assert_eq!(gradient.len(), node.weight().unwrap().base.len(), "{}", node.name);
            assert!(gradient.iter().any(|g| *g != 0.0), "{}", node.name);
        }
        assert_eq!(floats(net.forward(pixels(&device))), expected, "the network itself is left alone");
    }

    #[test]
    fn a_probed_network_drops_nothing() {
        let mut b = Builder::new([1, 4, 4], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let x = b.fixed("drop", &[x], layers::Dropout { p: 0.5 });
        b.linear("fc", x, 3);
        let net = b.finish().unwrap();
        let pixels = |device: &Device| Tensor::<4>::ones([5, 1, 4, 4], device);
        let probed = net.probed().forward(pixels(&Device::flex().autodiff()));
        assert_eq!(floats(probed.inner()), floats(net.forward(pixels(&Device::flex()))));
    }
}
