//! Operations of the network on Briquette's own CPU kernels, with their gradients.
//!
//! They extend Burn's `flex` backend and are used where a tensor lives on it; every other device keeps Burn's operations. Feature maps lie
//! channels last here, `[batch, height, width, channels]`: the network turns them around where others look at them. No method and no
//! network knows the difference. `BRIQUETTE_KERNELS=off` gives plain Burn, for comparison.

mod conv;
mod host;
mod linear;
mod norm;
mod optimize;
mod pointwise;
mod pool;
mod structured;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

use briquette_kernels::{Precision, Structure};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, ExtensionType, Flex, TensorMetadata, backend_extension};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flex::FlexTensor;

pub use conv::Steps;
pub(crate) use conv::{convolve, convolve_normalized};
pub use host::Hosted;
pub use linear::Finish;
pub(crate) use linear::linear;
pub use norm::Normalizing;
pub(crate) use norm::normalize;
pub(crate) use optimize::{adam_step, sgd_step};
pub use pointwise::{Levels, Quantizing};
pub(crate) use pointwise::{channels_first, channels_last, coarsen, cross_entropy, quantize, rectify};
pub use pool::{Shortcut, Windows};
pub(crate) use pool::{channel_means, max_pool, pad_shortcut};
pub(crate) use structured::structured;

/// A tensor that an operation may go without.
#[derive(Debug, Clone, ExtensionType)]
pub enum Maybe<B: Backend> {
    /// It does.
    Absent,
    /// It does not.
    Present(FloatTensor<B>),
}

/// What the `flex` backend learns. Maps are channels last.
#[backend_extension(Autodiff, Flex)]
pub trait Extension: Backend {
    /// `[batch, channels, height, width]` to `[batch, height, width, channels]`.
    fn channels_last(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `[batch, height, width, channels]` to `[batch, channels, height, width]`.
    fn channels_first(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Convolution of `x` with `weight` `[filters, channels / groups, kh, kw]`, with a bias for each filter; rectified if the steps say so.
    fn convolve(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Maybe<Self>,
        steps: Steps,
    ) -> FloatTensor<Self>;

    /// Convolution, then a factor and a summand for each filter, and a residual sum; carries no gradient.
    fn convolve_affine(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        steps: Steps,
    ) -> FloatTensor<Self>;

    /// `x` `[rows, inputs]` times `weight` `[inputs, outputs]`, with a bias for each output, rectified if it says so.
    fn multiply(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Maybe<Self>,
        finish: Finish,
    ) -> FloatTensor<Self>;

    /// `x` `[rows, inputs]` times a structural matrix of these parameters, one after the other.
    fn multiply_structured(x: FloatTensor<Self>, parameters: FloatTensor<Self>, structure: Structure) -> FloatTensor<Self>;

    /// Mean and variance of each channel of `x` over the batch, `[2, channels]`; carries no gradient.
    fn batch_moments(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `(x - mean) / sqrt(variance + epsilon) * gamma + beta + residual`, rectified or not, with the gradient for moments that are those of
    /// `x` itself.
    fn batch_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        normalizing: Normalizing,
    ) -> FloatTensor<Self>;

    /// The largest value of each window.
    fn pool_max(x: FloatTensor<Self>, windows: Windows) -> FloatTensor<Self>;

    /// The mean of each channel of each image, `[batch, channels]`.
    fn pool_channels(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Every few rows and columns, between channels of zeros.
    fn shortcut(x: FloatTensor<Self>, shortcut: Shortcut) -> FloatTensor<Self>;

    /// `max(x, 0)`.
    fn rectify(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The nearest values of a grid of this step `[1]`.
    fn quantize(x: FloatTensor<Self>, step: FloatTensor<Self>, rule: Quantizing) -> FloatTensor<Self>;

    /// The same values, whose gradient is rounded to fewer values, up or down by uniform noise in `[0, 1)` of the same shape.
    fn coarsen(x: FloatTensor<Self>, noise: FloatTensor<Self>, levels: Levels) -> FloatTensor<Self>;

    /// The mean over the rows of `-sum_k t_k log softmax(logits)_k`.
    fn softmax_cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self>;

    /// A step of gradient descent: the weights and the velocity afterwards.
    fn descend(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        step: optimize::Sgd,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// A step of Adam: the weights and both moments afterwards.
    fn descend_adaptively(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: optimize::Adam,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl Extension for Flex {
    fn channels_last(x: FlexTensor) -> FlexTensor {
        pointwise::last(&x)
    }

    fn channels_first(x: FlexTensor) -> FlexTensor {
        pointwise::first(&x)
    }

    fn convolve(x: FlexTensor, weight: FlexTensor, bias: Maybe<Self>, steps: Steps) -> FlexTensor {
        conv::forward(&x, &weight, &bias, steps)
    }

    fn convolve_affine(
        x: FlexTensor,
        weight: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        residual: Maybe<Self>,
        steps: Steps,
    ) -> FlexTensor {
        conv::affine(&x, &weight, [&scale, &shift], &residual, steps)
    }

    fn multiply(x: FlexTensor, weight: FlexTensor, bias: Maybe<Self>, finish: Finish) -> FlexTensor {
        linear::forward(&x, &weight, &bias, finish)
    }

    fn multiply_structured(x: FlexTensor, parameters: FlexTensor, structure: Structure) -> FlexTensor {
        structured::forward(&x, &parameters, structure)
    }

    fn batch_moments(x: FlexTensor) -> FlexTensor {
        norm::moments(&x)
    }

    fn batch_normalize(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        moments: FlexTensor,
        residual: Maybe<Self>,
        normalizing: Normalizing,
    ) -> FlexTensor {
        norm::forward(&x, [&gamma, &beta, &moments], &residual, normalizing)
    }

    fn pool_max(x: FlexTensor, windows: Windows) -> FlexTensor {
        pool::largest(&x, windows).0
    }

    fn pool_channels(x: FlexTensor) -> FlexTensor {
        pool::means(&x)
    }

    fn shortcut(x: FlexTensor, shortcut: Shortcut) -> FlexTensor {
        pool::shorten(&x, shortcut)
    }

    fn rectify(x: FlexTensor) -> FlexTensor {
        pointwise::rectified(&x)
    }

    fn quantize(x: FlexTensor, step: FlexTensor, rule: Quantizing) -> FlexTensor {
        pointwise::quantized(&x, &step, rule)
    }

    fn coarsen(x: FlexTensor, _: FlexTensor, _: Levels) -> FlexTensor {
        x
    }

    fn softmax_cross_entropy(logits: FlexTensor, targets: FlexTensor) -> FlexTensor {
        pointwise::loss(&logits, &targets).0
    }

    fn descend(w: FlexTensor, g: FlexTensor, v: FlexTensor, step: optimize::Sgd) -> (FlexTensor, FlexTensor) {
        optimize::descend(w, &g, v, step)
    }

    fn descend_adaptively(
        w: FlexTensor,
        g: FlexTensor,
        m: FlexTensor,
        v: FlexTensor,
        step: optimize::Adam,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        optimize::descend_adaptively(w, &g, m, v, step)
    }
}

impl<C: CheckpointStrategy> Extension for Autodiff<Flex, C> {
    fn channels_last(x: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::record_last::<C>(x)
    }

    fn channels_first(x: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::record_first::<C>(x)
    }

    fn convolve(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Maybe<Self>, steps: Steps) -> FloatTensor<Self> {
        conv::record::<C>(x, weight, bias, steps)
    }

    fn convolve_affine(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: Maybe<Self>,
        steps: Steps,
    ) -> FloatTensor<Self> {
        let residual = residual.primitive();
        let [weight, scale, shift] = [weight, scale, shift].map(FloatTensor::<Self>::into_primitive);
        Self::from_inner(conv::affine(x.primitive(), &weight, [&scale, &shift], &residual, steps))
    }

    fn multiply(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Maybe<Self>, finish: Finish) -> FloatTensor<Self> {
        linear::record::<C>(x, weight, bias, finish)
    }

    fn multiply_structured(x: FloatTensor<Self>, parameters: FloatTensor<Self>, structure: Structure) -> FloatTensor<Self> {
        structured::record::<C>(x, parameters, structure)
    }

    fn batch_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(norm::moments(x.primitive()))
    }

    fn batch_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        residual: Maybe<Self>,
        normalizing: Normalizing,
    ) -> FloatTensor<Self> {
        norm::record::<C>([x, gamma, beta], moments.into_primitive(), residual, normalizing)
    }

    fn pool_max(x: FloatTensor<Self>, windows: Windows) -> FloatTensor<Self> {
        pool::record_largest::<C>(x, windows)
    }

    fn pool_channels(x: FloatTensor<Self>) -> FloatTensor<Self> {
        pool::record_means::<C>(x)
    }

    fn shortcut(x: FloatTensor<Self>, shortcut: Shortcut) -> FloatTensor<Self> {
        pool::record_shortcut::<C>(x, shortcut)
    }

    fn rectify(x: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::record_rectified::<C>(x)
    }

    fn quantize(x: FloatTensor<Self>, step: FloatTensor<Self>, rule: Quantizing) -> FloatTensor<Self> {
        pointwise::record_quantized::<C>(x, step, rule)
    }

    fn coarsen(x: FloatTensor<Self>, noise: FloatTensor<Self>, levels: Levels) -> FloatTensor<Self> {
        pointwise::record_coarse::<C>(x, noise.into_primitive(), levels)
    }

    fn softmax_cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::record_loss::<C>(logits, targets.primitive())
    }

    fn descend(
        w: FloatTensor<Self>,
        g: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: optimize::Sgd,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [w, g, v] = [w, g, v].map(FloatTensor::<Self>::into_primitive);
        let (w, v) = optimize::descend(w, &g, v, step);
        (Self::from_inner(w), Self::from_inner(v))
    }

    fn descend_adaptively(
        w: FloatTensor<Self>,
        g: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: optimize::Adam,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [w, g, m, v] = [w, g, m, v].map(FloatTensor::<Self>::into_primitive);
        let (w, m, v) = optimize::descend_adaptively(w, &g, m, v, step);
        (Self::from_inner(w), Self::from_inner(m), Self::from_inner(v))
    }
}

impl Maybe<Flex> {
    /// Hands the tensor's values to `read`, if there is one.
    fn with_values<R>(&self, read: impl FnOnce(Option<&[f32]>) -> R) -> R {
        match self {
            Maybe::Absent => read(None),
            Maybe::Present(tensor) => with_values(tensor, |values| read(Some(values))),
        }
    }
}

impl<C: CheckpointStrategy> Maybe<Autodiff<Flex, C>> {
    /// The tensor without its place in the graph.
    fn primitive(&self) -> Maybe<Flex> {
        match self {
            Maybe::Absent => Maybe::Absent,
            Maybe::Present(tensor) => Maybe::Present(tensor.primitive().clone()),
        }
    }
}

impl Maybe<Dispatch> {
    fn of<const D: usize>(tensor: Option<Tensor<D>>) -> Self {
        tensor.map_or(Maybe::Absent, |tensor| Maybe::Present(tensor.into_dispatch()))
    }
}

static ENABLED: LazyLock<AtomicBool> =
    LazyLock::new(|| AtomicBool::new(std::env::var_os("BRIQUETTE_KERNELS").is_none_or(|wanted| wanted != "off")));

/// Turns our kernels on or off for the whole process: for benchmarks that compare.
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Whether our kernels take this tensor.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && serve(&x.device().inner())
}

/// Whether our kernels serve this device.
pub(crate) fn serve(device: &Device) -> bool {
    ENABLED.load(Ordering::Relaxed) && is_flex(device)
}

/// Whether tensors of this device can be handed to our kernels, be they turned on or off.
pub(crate) fn is_flex(device: &Device) -> bool {
    *device == Device::flex()
}

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::F32) };
}

/// Runs `work` with the factors of convolutions and fully connected layers, and later of their gradients, in this precision: a setting of a
/// training, which the network's layers know nothing of.
pub(crate) fn in_precision<R>(precision: Precision, work: impl FnOnce() -> R) -> R {
    let before = PRECISION.replace(precision);
    let result = work();
    PRECISION.set(before);
    result
}

fn precision() -> Precision {
    PRECISION.get()
}

static PROFILE: Mutex<BTreeMap<&'static str, f64>> = Mutex::new(BTreeMap::new());

/// Seconds that our kernels took, by operation, since this was last asked; gradients end in `'`.
pub fn take_profile() -> BTreeMap<&'static str, f64> {
    std::mem::take(&mut PROFILE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Does the work and adds its time to the profile.
fn timed<R>(kind: &'static str, work: impl FnOnce() -> R) -> R {
    let began = Instant::now();
    let result = work();
    *PROFILE.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += began.elapsed().as_secs_f64();
    result
}

/// Hands the tensor's values to `read` in order.
fn with_values<R>(tensor: &FlexTensor, read: impl FnOnce(&[f32]) -> R) -> R {
    let tensor = tensor.to_contiguous();
    let start = tensor.layout().start_offset();
    read(&tensor.storage::<f32>()[start..][..tensor.layout().num_elements()])
}

/// Lets `change` change the tensor's values, which are copied first if anybody else holds them.
fn with_values_mut<R>(tensor: FlexTensor, change: impl FnOnce(&mut [f32]) -> R) -> (FlexTensor, R) {
    let mut tensor = if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() };
    let (start, len) = (tensor.layout().start_offset(), tensor.layout().num_elements());
    let result = change(&mut tensor.storage_mut::<f32>()[start..][..len]);
    (tensor, result)
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The shapes were checked by [`Net::shapes`](crate::Net::shapes) before the network ran.
const CHECKED: &str = "the shapes of a network are checked before it runs";
