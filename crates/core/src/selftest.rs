//! Whether a device computes what it should.
//!
//! A driver or a compiler of kernels that is at fault does not stop a training: it trains to nothing, or to less than it could, and says nothing.
//! So a device other than `flex` is held against `flex` before it gets work.

use briquette_runtime::layers::Window;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use crate::builder::{Builder, Conv};
use crate::coding::floats;
use crate::error::{Error, Result};
use crate::net::Net;
use crate::training::cross_entropy;

/// Computes a product, a reduction, the outputs of a small network with convolutions, batch norms and pooling, and the gradients of all of its
/// parameters, on `device` and on `flex`.
///
/// # Errors
/// Says which of them differs from that of `flex` by more than 2 % of its norm, and by how much.
pub fn check(device: &Device) -> Result<()> {
    let (expected, found) = (answers(&Device::flex())?, answers(device)?);
    for ((what, expected), (_, found)) in expected.iter().zip(&found) {
        let off = distance(expected, found);
        if off.is_nan() || off > TOLERANCE {
            let by = if off.is_finite() { format!("by {:.1} % of its norm", 100.0 * off) } else { "beyond measure".into() };
            let detail = "the driver or its compiler is at fault; take another device, or `flex`";
            return Err(Error::Invalid(format!("computes wrongly: {what} differs from that of the CPU {by}; {detail}")));
        }
    }
    Ok(())
}

/// What products in tensor cores, which round factors, stay below.
const TOLERANCE: f64 = 0.02;

/// The norm of the difference, over that of what is expected: one rectifier that rounding turns on counts for little.
fn distance(expected: &[f32], found: &[f32]) -> f64 {
    if expected.len() != found.len() || expected.iter().chain(found).any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut expected.iter().zip(found).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    off / norm(&mut expected.iter().map(|v| f64::from(*v))).max(1e-6)
}

fn answers(device: &Device) -> Result<Vec<(&'static str, Vec<f32>)>> {
    // Sizes that no tile divides.
    let (left, right) = (matrix(device, [33, 300], 1), matrix(device, [300, 65], 2));
    let product = left.clone().matmul(right);
    let mut all = vec![("a product", floats(product.clone())), ("a reduction", floats(product.exp().sum_dim(0).log()))];

    let net = network(device)?.train();
    let images = matrix(&device.clone().autodiff(), [BATCH, CHANNELS * SIDE * SIDE], 3).reshape([BATCH, CHANNELS, SIDE, SIDE]);
    let labels: Vec<u16> = (0..BATCH).map(|i| (i % CLASSES) as u16).collect();
    let logits = net.forward(images);
    all.push(("a convolution", floats(logits.clone().inner())));
    let gradients = GradientsParams::from_grads(cross_entropy(logits, &labels, 0.0).backward(), &net);
    let mut gathered = Gathered(&gradients, Vec::new());
    net.visit(&mut gathered);
    all.push(("a gradient", gathered.1));
    Ok(all)
}

const BATCH: usize = 8;
const CHANNELS: usize = 3;
const SIDE: usize = 12;
const CLASSES: usize = 5;

/// Two convolutions, one of them strided, batch norms, pooling and a fully connected layer.
fn network(device: &Device) -> Result<Net> {
    let mut b = Builder::new([CHANNELS, SIDE, SIDE], 5, device);
    let mut x = b.conv("conv1", b.input(), Conv::new(16, 3).same().no_bias());
    x = b.batch_norm("norm1", x);
    x = b.relu("relu1", x);
    x = b.max_pool("pool1", x, Window::square(2));
    x = b.conv("conv2", x, Conv::new(24, 3).same().stride(2).no_bias());
    x = b.batch_norm("norm2", x);
    x = b.relu("relu2", x);
    x = b.global_avg_pool("pool2", x);
    b.linear("fc", x, CLASSES);
    b.finish()
}

/// Values between -1 and 1 that follow from their places alone.
fn matrix(device: &Device, shape: [usize; 2], seed: usize) -> Tensor<2> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    Tensor::from_data(TensorData::new((0..shape[0] * shape[1]).map(value).collect(), shape), device)
}

/// The gradients of all parameters, each over its own largest value, so that none hides behind another.
struct Gathered<'a>(&'a GradientsParams, Vec<f32>);

impl ModuleVisitor for Gathered<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.0.get::<D>(param.id) {
            let gradient = floats(gradient);
            let most = gradient.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
            self.1.extend(gradient.iter().map(|g| g / most.max(f32::MIN_POSITIVE)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flex_agrees_with_itself_and_every_answer_tells_something() {
        check(&Device::flex()).unwrap();
        for (what, values) in answers(&Device::flex()).unwrap() {
            let (least, most) = values.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
            assert!(most - least > 0.1 * most.abs().max(least.abs()), "{what}: {least} to {most}");
        }
    }

    #[test]
    fn what_is_off_is_told_from_rounding() {
        assert!(distance(&[1.0, -2.0], &[1.01, -2.0]) < TOLERANCE);
        assert!(distance(&[1.0, -2.0], &[1.1, -2.0]) > TOLERANCE);
        assert!(distance(&[0.0, 0.0], &[1.0, 0.0]) > TOLERANCE);
        assert_eq!(distance(&[1.0], &[f32::NAN]), f64::INFINITY);
        assert_eq!(distance(&[1.0, 1.0], &[1.0]), f64::INFINITY);
    }
}
