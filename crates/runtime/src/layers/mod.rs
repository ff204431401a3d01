//! What a node of a network computes, without its weights: one description that the engine runs, the container stores, and
//! `briquette-core` asks for shapes, costs and channels.
//!
//! A kind of layer is one file here and one line in the list below. [`Kind`] is what everybody may ask it; `Storable` and `Runnable` are what the
//! container and the engine need. None of the three has an answer for a kind that gives none where one is needed.

mod activation;
mod adaptive_avg_pool;
mod add;
mod affine;
mod avg_pool;
mod batch_norm;
mod channel_pool;
mod channel_slice;
mod clip;
mod concat;
mod conv2d;
mod cyclic;
mod detail_preserving_pool;
mod dropout;
mod experts;
mod flatten;
mod gate;
mod global_avg_pool;
mod input;
mod linear;
mod local_response_norm;
mod max_pool;
mod mean_magnitude;
mod merge;
mod multiply;
mod negate;
mod noise;
mod normalize;
mod pad;
mod pad_shortcut;
mod permute;
mod quantize;
mod regroup;
mod route;
mod shape;
mod softmax;
mod spatial_sampling;
mod structured;
mod window;

use std::fmt::Debug;

pub use activation::Activation;
pub use adaptive_avg_pool::AdaptiveAvgPool;
pub use add::Add;
pub use affine::Affine;
pub use avg_pool::AvgPool;
pub use batch_norm::BatchNorm;
pub use channel_pool::{ChannelPool, Reduction};
pub use channel_slice::ChannelSlice;
pub use clip::Clip;
pub use concat::Concat;
pub use conv2d::Conv2d;
pub(crate) use cyclic::before_turns;
pub use cyclic::{Cyclic, TINY};
pub use detail_preserving_pool::DetailPreservingPool;
pub use dropout::Dropout;
pub use experts::{Experts, largest};
pub use flatten::Flatten;
pub use gate::{Gate, Measure};
pub use global_avg_pool::GlobalAvgPool;
pub use input::Input;
pub use linear::Linear;
pub use local_response_norm::LocalResponseNorm;
pub use max_pool::MaxPool;
pub use mean_magnitude::MeanMagnitude;
pub use merge::Merge;
pub use multiply::Multiply;
pub use negate::Negate;
pub use noise::Noise;
pub use normalize::Normalize;
pub use pad::Pad;
pub use pad_shortcut::PadShortcut;
pub use permute::Permute;
pub use quantize::{Quantize, StepGradient};
pub use regroup::Regroup;
pub use route::Route;
pub use shape::ShapeError;
pub use softmax::Softmax;
pub use spatial_sampling::SpatialSampling;
pub use structured::Structured;
pub use window::{MAX_WINDOW, Window};

use crate::activations::MAX_ACTIVATIONS;
use crate::branches::Branch;
use crate::bytes::Reader;
use crate::engine::{Codes, Operation};
use crate::{Error, Node};

/// Every kind of layer with the byte that stands for it in a container.
macro_rules! layers {
    ($($tag:literal $kind:ident,)*) => {
        /// An operation and its hyper-parameters. Feature maps are `[channels, height, width]`, vectors are `[features]`; the batch
        /// dimension is left out everywhere.
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Layer {
            $(#[doc = concat!("[`", stringify!($kind), "`].")] $kind($kind),)*
        }

        impl Layer {
            /// What is to know of it.
            pub fn kind(&self) -> &dyn Kind {
                match self {
                    $(Layer::$kind(layer) => layer,)*
                }
            }

            pub(crate) fn runnable(&self) -> &dyn Runnable {
                match self {
                    $(Layer::$kind(layer) => layer,)*
                }
            }

            pub(crate) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Layer::$kind(layer) => {
                        out.push($tag);
                        layer.write(out);
                    })*
                }
            }

            pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
                match reader.byte()? {
                    $($tag => $kind::read(reader).map(Layer::$kind),)*
                    tag => Err(Error::corrupt(format!("layer {tag}"))),
                }
            }
        }

        $(impl From<$kind> for Layer {
            fn from(layer: $kind) -> Self {
                Layer::$kind(layer)
            }
        })*
    };
}

layers! {
    0 Input,
    1 Normalize,
    2 Conv2d,
    3 Linear,
    4 BatchNorm,
    5 LocalResponseNorm,
    6 Activation,
    7 Softmax,
    8 MaxPool,
    9 AvgPool,
    10 AdaptiveAvgPool,
    11 GlobalAvgPool,
    12 Add,
    13 Concat,
    14 ChannelSlice,
    15 PadShortcut,
    16 Flatten,
    17 Dropout,
    18 Structured,
    19 Quantize,
    20 MeanMagnitude,
    21 Multiply,
    22 Negate,
    23 Pad,
    24 Clip,
    25 Gate,
    26 Route,
    27 Merge,
    28 Affine,
    29 ChannelPool,
    30 Regroup,
    31 Cyclic,
    32 Permute,
    33 SpatialSampling,
    34 DetailPreservingPool,
    35 Experts,
    36 Noise,
}

/// What a layer answers for.
pub trait Kind: Debug {
    /// The kind's name, as it is printed.
    fn name(&self) -> &'static str;

    /// Whether its settings are ones that a layer can have, whatever its inputs.
    ///
    /// # Errors
    /// The setting, and what it may be.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// How many inputs it takes.
    fn arity(&self) -> Arity {
        Arity::One
    }

    /// The tensors that it has, and those that it may have.
    fn tensors(&self) -> Vec<Tensor> {
        Vec::new()
    }

    /// Shape of the output for as many inputs as it takes, of these shapes, and a weight of the shape `weight` where it has one.
    ///
    /// # Errors
    /// What does not fit, with both sides.
    fn shape(&self, inputs: &[&[usize]], weight: Option<&[usize]>) -> Result<Vec<usize>, String>;

    /// Multiply-accumulates of one sample for so many [weights](Role::Weight) and this output shape: without an answer of its own, each weight is
    /// multiplied once for every pixel. Only products with weights count, as in the papers' tables; normalization, pooling and activations are free.
    fn macs(&self, weights: usize, output: &[usize]) -> u64 {
        weights as u64 * output.iter().skip(1).product::<usize>() as u64
    }

    /// What it does to the samples of its inputs.
    fn branch(&self) -> Branch {
        Branch::Stays
    }

    /// What it does to the channels of its inputs.
    fn channels(&self) -> Channels;

    /// What it becomes when the channels of its first input and of its output are there so many times each, 0 where they go; none where it stays as it is.
    fn with_channels(&self, input: &[usize], output: &[usize]) -> Option<Layer> {
        let _ = (input, output);
        None
    }

    /// Its constant channels, of inputs with these: the value that a channel has at every pixel and for every image, where it has one.
    fn constants(&self, inputs: &[&Constants], of: &Parameters<'_>) -> Constants;

    /// Which signs its output can have.
    fn sign(&self) -> Sign;

    /// Whether `f(a x) = a f(x)` for every positive `a`, for each channel of its one input by itself.
    fn homogeneous(&self) -> bool {
        false
    }

    /// Its settings that are numbers, and which of them it can compute with.
    fn settings(&self) -> Vec<Setting> {
        Vec::new()
    }

    /// Whether it can compute with this value of one of its tensors.
    fn usable(&self, tensor: &str, value: f32) -> bool {
        let _ = tensor;
        value.is_finite()
    }
}

/// What the container needs of a layer.
pub(crate) trait Storable: Sized {
    /// Appends its settings.
    fn write(&self, out: &mut Vec<u8>);

    /// Reads what [`Storable::write`] wrote.
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error>;
}

/// What the engine needs of a layer of a checked model.
pub(crate) trait Runnable {
    /// What runs it, given the node's tensors and the shapes of its first input and of its output; not asked of an identity.
    fn operation(&self, node: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation>;

    /// Whether its first input goes on as it is.
    fn identity(&self) -> bool {
        false
    }

    /// Makes it part of the operation before it; false where that cannot be.
    fn merge(&self, node: &Node, before: &mut dyn Operation) -> bool {
        let _ = (node, before);
        false
    }

    /// What it does to codes of a grid.
    fn codes(&self, node: &Node, input: &[usize], output: &[usize]) -> Codes {
        let _ = (node, input, output);
        Codes::Lost
    }
}

/// How many inputs a layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// None.
    Zero,
    /// One.
    One,
    /// Two.
    Two,
    /// Three.
    Three,
    /// Two or more.
    More,
}

impl Arity {
    fn takes(self, inputs: usize) -> Result<(), &'static str> {
        let (fits, said) = match self {
            Arity::Zero => (inputs == 0, "no"),
            Arity::One => (inputs == 1, "one"),
            Arity::Two => (inputs == 2, "two"),
            Arity::Three => (inputs == 3, "three"),
            Arity::More => (inputs >= 2, "two or more"),
        };
        if fits { Ok(()) } else { Err(said) }
    }
}

/// A tensor that a layer takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: &'static str,
    /// What shape it has.
    pub shape: Extent,
    /// What it is to who counts parameters.
    pub role: Role,
    /// Whether it has to be there.
    pub required: bool,
}

impl Tensor {
    fn required(name: &'static str, shape: Extent, role: Role) -> Self {
        Self { name, shape, role, required: true }
    }

    /// A bias, which may be left out.
    fn bias() -> Self {
        Self { name: "bias", shape: Extent::Outputs, role: Role::Beside, required: false }
    }
}

/// What a tensor is to who counts a network's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Weights, of which products are made.
    Weight,
    /// Parameters beside the weights: biases, scales and shifts.
    Beside,
    /// No parameters: running statistics, and the steps of grids, of activations as of weights.
    Apart,
}

/// What shape a tensor has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// `[outputs, inputs / groups, ...]`, which [`Kind::shape`] judges.
    Free,
    /// A value for each channel of the output.
    Outputs,
    /// This one.
    Exactly(Vec<usize>),
}

/// What a layer does to channels; features of vectors are channels too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Brings in those of the network's input.
    Source,
    /// Makes new ones, each from all channels of its group.
    Made {
        /// Number of groups.
        groups: usize,
    },
    /// Hands each on; of zeros it makes zeros.
    Kept,
    /// Hands each on, but of zeros it makes something else, for this reason.
    Disturbed(&'static str),
    /// Joins those of the same place, of all inputs; an input of a single channel goes with all of them.
    Joined,
    /// Puts those of all inputs behind each other.
    Concatenated,
    /// Hands on `len` of them from `start`.
    Sliced {
        /// First channel.
        start: usize,
        /// How many.
        len: usize,
    },
    /// Hands all on between new ones of zeros.
    Surrounded {
        /// New ones in front.
        before: usize,
        /// New ones behind.
        after: usize,
    },
    /// Makes of so many in a row so many new ones; of zeros it makes zeros.
    Blocked {
        /// Channels that belong together.
        from: usize,
        /// What becomes of them.
        to: usize,
    },
    /// Makes a feature of each pixel of each.
    Spread,
    /// Makes new ones of all of them in a way that, for this reason, asks for all of them.
    Mixed {
        /// Why those of the input have to stay.
        why: &'static str,
        /// Whether those that it makes have to stay, too.
        fixed: bool,
    },
}

/// For each channel the value that it has everywhere, where it has one.
pub type Constants = Vec<Option<f64>>;

/// The shape of a tensor and its values, one after the other.
pub type ShapeAndValues = (Vec<usize>, Vec<f32>);

/// What [`Kind::constants`] may ask about a node.
pub struct Parameters<'a> {
    /// Channels of the output.
    pub channels: usize,
    /// Pixels of a channel of the first input.
    pub pixels: usize,
    /// Shape and values of a tensor, as the forward pass sees them.
    pub tensor: &'a dyn Fn(&str) -> Option<ShapeAndValues>,
}

impl Debug for Parameters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parameters").field("channels", &self.channels).field("pixels", &self.pixels).finish_non_exhaustive()
    }
}

impl Parameters<'_> {
    fn unknown(&self) -> Constants {
        vec![None; self.channels]
    }
}

/// Which signs an output can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// Nothing below zero.
    NotNegative,
    /// Nothing below zero where none of the inputs has.
    AsInputs,
    /// Both.
    Any,
}

/// A setting of a layer that is a number or a list of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// How many numbers.
    pub of: usize,
    /// With how many of them nobody can compute.
    pub unusable: usize,
}

impl Setting {
    fn finite(name: &'static str, numbers: impl IntoIterator<Item = f64>) -> Self {
        Self::new(name, numbers, f64::is_finite)
    }

    fn new(name: &'static str, numbers: impl IntoIterator<Item = f64>, usable: impl Fn(f64) -> bool) -> Self {
        let (mut of, mut unusable) = (0, 0);
        for number in numbers {
            of += 1;
            unusable += usize::from(!usable(number));
        }
        Self { name, of, unusable }
    }
}

impl Layer {
    /// As [`Kind::check`].
    ///
    /// # Errors
    /// As [`Kind::check`].
    pub fn check(&self) -> Result<(), ShapeError> {
        self.kind().check().map_err(|detail| ShapeError::Mismatch { layer: self.kind().name(), detail })
    }

    /// Shape of the output for inputs of these shapes and weights of the shape `weight`, where it has them.
    ///
    /// # Errors
    /// When a setting, the number of inputs or a shape does not fit.
    pub fn output_shape(&self, inputs: &[&[usize]], weight: Option<&[usize]>) -> Result<Vec<usize>, ShapeError> {
        let (kind, layer) = (self.kind(), self.kind().name());
        let bad = |detail: String| ShapeError::Mismatch { layer, detail };
        self.check()?;
        let taken = kind.arity().takes(inputs.len());
        taken.map_err(|expected| ShapeError::Arity { layer, expected, found: inputs.len() })?;
        let shape = kind.shape(inputs, weight).map_err(bad)?;
        match shape.iter().copied().fold(1_usize, usize::saturating_mul) {
            0 => Err(bad(format!("the output {shape:?} is empty"))),
            n if n > MAX_ACTIVATIONS => {
                Err(bad(format!("the output {shape:?} of one sample has more values than the limit of {MAX_ACTIVATIONS}")))
            }
            _ => Ok(shape),
        }
    }

    /// As [`Kind::macs`].
    pub fn macs(&self, weights: usize, output: &[usize]) -> u64 {
        self.kind().macs(weights, output)
    }
}

#[cfg(test)]
mod tests;
