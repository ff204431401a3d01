//! Networks of the papers, each reading like its paper's table. All take a width multiplier and end in logits.

mod alexnet;
mod all_cnn;
mod courbariaux;
mod doubly_convolutional;
mod googlenet;
mod lenet;
mod mobilenet_v1;
mod mobilenet_v2;
mod nin;
mod resnet;
mod squeezenet;
#[cfg(test)]
mod tests;
mod vgg;
mod wide_resnet;

use burn::tensor::Device;

use crate::builder::{At, Builder, Conv};
use crate::error::{Error, Result};
use crate::net::Net;

pub use self::mobilenet_v2::inverted_residual;
pub use self::resnet::{cifar_features, imagenet_features};
pub use self::squeezenet::fire;

/// A network that a config can name.
#[derive(Debug, Clone, Copy)]
pub struct Arch {
    /// Name in a config.
    pub name: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// `[channels, height, width]` of its input.
    pub input: [usize; 3],
    /// Classes of the paper's data set.
    pub classes: usize,
    /// Appends its layers to the input.
    pub build: fn(&mut Builder, At, &Wanted) -> At,
}

/// What may differ from the paper.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Factor on the number of channels and hidden features, rounded, at least 1. MobileNet V2 rounds to multiples of 8, and does not
    /// narrow its last convolution.
    pub width: f64,
    /// Height and width of the input; the paper's without it.
    pub size: Option<usize>,
    /// Number of classes.
    pub classes: usize,
    /// Channel means and deviations of the input in pixels / 255; they become the network's first node.
    pub normalization: Option<(Vec<f32>, Vec<f32>)>,
    /// Seed of the weights.
    pub seed: u64,
}

impl Wanted {
    /// `channels` times the width.
    pub fn scaled(&self, channels: usize) -> usize {
        ((channels as f64 * self.width).round() as usize).max(1)
    }
}

/// Every network of this crate's zoo.
pub const ZOO: &[Arch] = &[
    alexnet::ALEXNET,
    alexnet::ALEXNET_ONE_TOWER,
    all_cnn::ALL_CNN_C,
    doubly_convolutional::CNN_8,
    courbariaux::CNN,
    googlenet::GOOGLENET,
    googlenet::GOOGLENET_2014,
    lenet::LENET_300_100,
    lenet::LENET_5,
    lenet::LENET_5_NORM,
    courbariaux::MLP,
    courbariaux::MLP_1,
    lenet::MLP_1000,
    mobilenet_v1::MOBILENET_V1,
    mobilenet_v2::MOBILENET_V2,
    nin::NIN,
    nin::NIN_NORM,
    resnet::RESNET_18,
    resnet::RESNET_20,
    resnet::RESNET_32,
    resnet::RESNET_34,
    resnet::RESNET_44,
    resnet::RESNET_50,
    resnet::RESNET_56,
    resnet::RESNET_110,
    squeezenet::SQUEEZENET_1_0,
    squeezenet::SQUEEZENET_1_1,
    vgg::VGG_11,
    vgg::VGG_11_CIFAR,
    vgg::VGG_13,
    vgg::VGG_13_CIFAR,
    vgg::VGG_16,
    vgg::VGG_16_CIFAR,
    vgg::VGG_19,
    vgg::VGG_19_CIFAR,
    wide_resnet::WRN_16_1,
    wide_resnet::WRN_16_2,
    wide_resnet::WRN_16_4,
    wide_resnet::WRN_16_8,
    wide_resnet::WRN_28_10,
    wide_resnet::WRN_40_1,
    wide_resnet::WRN_40_2,
    wide_resnet::WRN_40_4,
];

impl Arch {
    /// The architecture of this name in [`ZOO`].
    ///
    /// # Errors
    /// An unknown name, with the nearest ones.
    pub fn named(name: &str) -> Result<&'static Arch> {
        Self::within(ZOO, name)
    }

    /// The architecture of this name among these.
    ///
    /// # Errors
    /// An unknown name, with the nearest ones.
    pub fn within(zoo: impl IntoIterator<Item = &'static Arch> + Clone, name: &str) -> Result<&'static Arch> {
        let found = zoo.clone().into_iter().find(|arch| arch.name == name);
        found.ok_or_else(|| Error::unknown("model", name, zoo.into_iter().map(|arch| arch.name)))
    }

    /// The paper's network with its own classes and no normalization.
    pub fn wanted(&self) -> Wanted {
        Wanted { width: 1.0, size: None, classes: self.classes, normalization: None, seed: 0 }
    }

    /// `[channels, height, width]` of the input that is wanted.
    pub fn shape(&self, wanted: &Wanted) -> [usize; 3] {
        let [channels, height, width] = self.input;
        wanted.size.map_or([channels, height, width], |size| [channels, size, size])
    }

    /// Builds the network with fresh weights.
    ///
    /// # Errors
    /// A width or a number of classes that makes no network, and images too small for its windows or too large for its maps.
    pub fn build(&self, wanted: &Wanted, device: &Device) -> Result<Net> {
        if !(wanted.width > 0.0 && wanted.width <= 16.0) || wanted.classes < 2 {
            let detail = format!("width {} must lie in (0, 16] and classes {} be at least 2", wanted.width, wanted.classes);
            return Err(Error::Invalid(format!("model '{}': {detail}", self.name)));
        }
        let mut builder = Builder::new(self.shape(wanted), wanted.seed, device);
        let mut at = builder.input();
        if let Some((mean, std)) = &wanted.normalization {
            if mean.len() != self.input[0] || std.len() != self.input[0] {
                let detail = format!("takes {} channels, the normalization has {}", self.input[0], mean.len());
                return Err(Error::Invalid(format!("model '{}' {detail}", self.name)));
            }
            at = builder.normalize(at, mean, std);
        }
        (self.build)(&mut builder, at, wanted);
        builder.finish().map_err(|error| match wanted.size {
            None => error,
            Some(size) => {
                let [_, height, width] = self.input;
                let detail = format!("takes no images of {size} by {size} (its paper's are {height} by {width}): {error}");
                Error::Invalid(format!("model '{}' {detail}", self.name))
            }
        })
    }
}

/// A convolution and its rectifier, named after it.
fn conv_relu(b: &mut Builder, name: &str, x: At, conv: Conv) -> At {
    let x = b.conv(name, x, conv);
    b.relu(&format!("{name}.relu"), x)
}

/// A convolution without bias and its batch norm, named after it.
fn conv_norm(b: &mut Builder, name: &str, x: At, conv: Conv) -> At {
    let x = b.conv(name, x, conv.no_bias());
    b.batch_norm(&format!("{name}.norm"), x)
}

/// A convolution without bias, its batch norm and its rectifier, named after it.
fn conv_norm_relu(b: &mut Builder, name: &str, x: At, conv: Conv) -> At {
    let x = conv_norm(b, name, x, conv);
    b.relu(&format!("{name}.relu"), x)
}
