//! Layers on the kernels of the trainings, and on those of few weights.

use briquette_kernels::Precision;
use briquette_kernels::conv::{self, Conv2d, Packed};
use briquette_kernels::sparse::Sparse;

use super::convolve::{Epilogue, Geometry};
use super::operation::{Lies, Operation, PIECE};
use super::threads::Threads;
use crate::Activation;

/// A convolution, or a fully connected layer as one of a single pixel, and what follows its sums.
#[derive(Debug)]
pub(crate) struct Kernel {
    form: Form,
    epilogue: Epilogue,
    filters: usize,
    /// Products of one sample.
    macs: usize,
    /// Whether a second input is added.
    adds: bool,
}

#[derive(Debug)]
enum Form {
    /// All weights in panels; maps lie channels last.
    Panels(Packed),
    /// The weights that are not zero; maps lie channels first.
    Lines(Sparse),
}

/// Fewest filters of a group of channels that fill vectors well enough.
const FILTERS: usize = 8;

/// Most groups, each of which is a product of its own.
const GROUPS: usize = 1 << 12;

/// Products that one thread computes sooner than it wakes another.
const SMALL: usize = 1 << 20;

impl Kernel {
    /// All weights `[filters, channels / groups, kh, kw]`; none where the groups are too narrow or too many, or an image or a filter too large, for the kernels.
    pub(crate) fn dense(geometry: &Geometry, weight: &[f32], epilogue: &Epilogue, filters: usize) -> Option<Self> {
        let Geometry { channels, groups, .. } = *geometry;
        let depthwise = groups == channels && groups == filters;
        if groups > 1 && !depthwise && (filters / groups < FILTERS || groups > GROUPS) {
            return None;
        }
        let form = Form::Panels(Packed::new(shape(geometry, filters), weight).ok()?);
        Some(Self::new(form, geometry, weight.len(), epilogue, filters))
    }

    /// The weights that are not zero; none where the padding is much larger than an image.
    pub(crate) fn sparse(geometry: &Geometry, weight: &[f32], epilogue: &Epilogue, filters: usize) -> Option<Self> {
        let form = Form::Lines(Sparse::new(shape(geometry, filters), weight).ok()?);
        let kept = weight.iter().filter(|weight| **weight != 0.0).count();
        Some(Self::new(form, geometry, kept, epilogue, filters))
    }

    fn new(form: Form, geometry: &Geometry, weights: usize, epilogue: &Epilogue, filters: usize) -> Self {
        Self { form, epilogue: epilogue.clone(), filters, macs: weights.saturating_mul(geometry.positions()), adds: false }
    }
}

/// As the kernels describe it.
fn shape(geometry: &Geometry, filters: usize) -> Conv2d {
    let &Geometry { channels, input: [height, width], kernel, stride, padding, dilation, groups, .. } = geometry;
    let input = [height, width, channels];
    Conv2d { batch: 1, input, filters, kernel, stride, padding, dilation, groups, precision: Precision::F32 }
}

impl Operation for Kernel {
    fn lies(&self) -> Lies {
        match self.form {
            Form::Panels(_) => Lies::Last,
            Form::Lines(_) => Lies::First,
        }
    }

    fn bytes(&self) -> usize {
        let weights = match &self.form {
            Form::Panels(packed) => packed.bytes(),
            Form::Lines(sparse) => sparse.bytes(),
        };
        weights + 4 * self.epilogue.bias.len()
    }

    fn activation(&mut self) -> Option<&mut Option<Activation>> {
        Some(&mut self.epilogue.activation)
    }

    fn fold(&mut self, scale: &[f32], shift: &[f32]) -> bool {
        if self.adds {
            return false;
        }
        let Some(scale) = self.epilogue.fold(self.filters, scale, shift) else { return false };
        match &mut self.form {
            Form::Panels(packed) => packed.scale_filters(&scale),
            Form::Lines(sparse) => sparse.scale_filters(&scale),
        }
        true
    }

    fn adds(&mut self) -> bool {
        let free = self.epilogue.activation.is_none() && !self.adds;
        self.adds |= free;
        free
    }

    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let (bias, activation) = (&self.epilogue.bias, self.epilogue.activation);
        let epilogue = conv::Epilogue {
            bias: (!bias.is_empty()).then_some(bias.as_slice()),
            residual: inputs.get(1).copied(),
            rectify: activation == Some(Activation::Relu),
            scale: None,
        };
        let forward = |output: &mut [f32], parallel: bool| match &self.form {
            Form::Panels(packed) => packed.forward(inputs[0], &epilogue, output, parallel),
            Form::Lines(sparse) => sparse.forward(inputs[0], &epilogue, output, parallel),
        };
        let done = if self.macs.saturating_mul(batch) < SMALL {
            forward(output, false)
        } else {
            threads.inside(|threads| forward(output, threads > 1))
        };
        done.expect("the shapes were checked");
        if let Some(activation) = activation.filter(|_| !epilogue.rectify) {
            threads.pieces(output, PIECE, |_, out| activation.apply(out));
        }
    }
}
