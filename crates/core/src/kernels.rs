//! Operations of the network on Briquette's own CPU kernels, with their gradients.
//!
//! They extend Burn's `flex` backend and are used where a tensor lives on it; every other device keeps Burn's operations. No method and
//! no network knows the difference. `BRIQUETTE_KERNELS=off` gives plain Burn, for comparison.

mod conv;
mod norm;
mod pool;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flex::FlexTensor;

pub use conv::Steps;
pub(crate) use conv::convolve;
pub(crate) use norm::normalize;
pub use pool::Windows;
pub(crate) use pool::max_pool;

/// What the `flex` backend learns. Extensions cannot take options, hence two of one kind.
#[backend_extension(Autodiff, Flex)]
pub trait Kernels: Backend {
    /// Convolution of `x` `[batch, channels, height, width]` with `weight` `[filters, channels / groups, kh, kw]`.
    fn convolve(x: FloatTensor<Self>, weight: FloatTensor<Self>, steps: Steps) -> FloatTensor<Self>;
    /// The same, with a bias for each filter.
    fn convolve_biased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        steps: Steps,
    ) -> FloatTensor<Self>;

    /// Mean and variance of each channel of `x` over the batch, `[2, channels]`; carries no gradient.
    fn batch_moments(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`, with the gradient for moments that are those of `x` itself.
    fn batch_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// The largest value of each window.
    fn pool_max(x: FloatTensor<Self>, window: Windows) -> FloatTensor<Self>;
}

impl Kernels for Flex {
    fn convolve(x: FlexTensor, weight: FlexTensor, steps: Steps) -> FlexTensor {
        conv::forward(x, weight, None, steps)
    }

    fn convolve_biased(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, steps: Steps) -> FlexTensor {
        conv::forward(x, weight, Some(bias), steps)
    }

    fn batch_moments(x: FlexTensor) -> FlexTensor {
        norm::moments(&x)
    }

    fn batch_normalize(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, moments: FlexTensor, epsilon: f32) -> FlexTensor {
        norm::forward(&x, &gamma, &beta, &moments, epsilon)
    }

    fn pool_max(x: FlexTensor, windows: Windows) -> FlexTensor {
        pool::forward(&x, windows).0
    }
}

impl<C: CheckpointStrategy> Kernels for Autodiff<Flex, C> {
    fn convolve(x: FloatTensor<Self>, weight: FloatTensor<Self>, steps: Steps) -> FloatTensor<Self> {
        let guards = [x.node(), weight.node()];
        conv::record::<C, 2>(guards, x.into_primitive(), weight.into_primitive(), None, steps)
    }

    fn convolve_biased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        steps: Steps,
    ) -> FloatTensor<Self> {
        let guards = [x.node(), weight.node(), bias.node()];
        conv::record::<C, 3>(guards, x.into_primitive(), weight.into_primitive(), Some(bias.into_primitive()), steps)
    }

    fn batch_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(norm::moments(&x.into_primitive()))
    }

    fn batch_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        norm::record::<C>(x, gamma, beta, moments.into_primitive(), epsilon)
    }

    fn pool_max(x: FloatTensor<Self>, windows: Windows) -> FloatTensor<Self> {
        pool::record::<C>(x, windows)
    }
}

static ENABLED: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(std::env::var_os("BRIQUETTE_KERNELS").is_none_or(|wanted| wanted != "off")));

/// Turns our kernels on or off for the whole process: for benchmarks that compare.
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Whether our kernels take this tensor.
fn takes(x: &Tensor<4>) -> bool {
    ENABLED.load(Ordering::Relaxed) && x.dtype() == DType::F32 && x.device().inner() == Device::flex()
}

/// Hands the tensor's values to `read` in order.
fn with_values<R>(tensor: &FlexTensor, read: impl FnOnce(&[f32]) -> R) -> R {
    let tensor = tensor.to_contiguous();
    let start = tensor.layout().start_offset();
    read(&tensor.storage::<f32>()[start..][..tensor.layout().num_elements()])
}

fn made(shape: [usize; 4], make: impl FnOnce(&mut [f32])) -> FlexTensor {
    let mut values = vec![0.0; shape.iter().product()];
    make(&mut values);
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The shapes were checked by [`Net::shapes`](crate::Net::shapes) before the network ran.
const CHECKED: &str = "the shapes of a network are checked before it runs";
