//! The Gauss-Newton matrix of the cross-entropy, as the factors of a sum.

use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::Context;
use briquette_core::training::{cross_entropy, probe};
use burn::tensor::Device;

/// Hands to `visit`, for each of `samples` training images, each class `k` and each layer (by its index), the vector
/// `x = sqrt(p_k) dL_k/dw` in the order of [`Node::weight`](briquette_core::net::Node::weight), where `p_k` is the network's own
/// probability of class `k` and `L_k = -log p_k` the loss if `k` were the label; no label is needed. The Gauss-Newton matrix, which is also
/// the Fisher information, is `H = (1/P) sum x x^T` over all of them, with `P`, the number of images, as returned.
///
/// # Errors
/// Gradients that are not finite, and the errors of [`probe`].
pub fn factors(
    net: &Net,
    what: &str,
    samples: usize,
    cx: &mut Context<'_>,
    mut visit: impl FnMut(usize, Vec<f64>),
) -> Result<usize> {
    let probed = net.probed();
    let device: Device = net.device().autodiff();
    probe(cx, what, (samples, 1), &device, |image, _| {
        let classes = probed.forward(image.clone()).dims()[1];
        for class in 0..classes {
            let loss = cross_entropy(probed.forward(image.clone()), &[class as u16], 0.0);
            let root = (-0.5 * f64::from(loss.clone().into_scalar::<f32>())).exp();
            let grads = loss.backward();
            for (index, node) in probed.weighted() {
                let Some(gradient) = node.gradient("weight", &grads) else { continue };
                let factor: Vec<f64> = gradient.into_iter().map(|g| root * f64::from(g)).collect();
                if factor.iter().any(|x| !x.is_finite()) {
                    let detail = "the loss has a gradient that is not finite; check the weights and the training images";
                    return Err(Error::node(&node.name, detail));
                }
                visit(index, factor);
            }
        }
        Ok(())
    })
}
