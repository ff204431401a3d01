//! Networks of the papers, each reading like its paper's table. All take a width multiplier and end in logits.

mod alexnet;
mod courbariaux;
mod lenet;
mod resnet;
mod vgg;

use burn::tensor::Device;

use crate::builder::{At, Builder};
use crate::error::{Error, Result};
use crate::net::Net;

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
    /// Factor on the number of channels and hidden features, rounded, at least 1.
    pub width: f64,
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
    courbariaux::CNN,
    lenet::LENET_300_100,
    lenet::LENET_5,
    lenet::LENET_5_NORM,
    courbariaux::MLP,
    courbariaux::MLP_1,
    lenet::MLP_1000,
    resnet::RESNET_18,
    resnet::RESNET_20,
    resnet::RESNET_32,
    resnet::RESNET_34,
    resnet::RESNET_44,
    resnet::RESNET_50,
    resnet::RESNET_56,
    resnet::RESNET_110,
    vgg::VGG_11,
    vgg::VGG_11_CIFAR,
    vgg::VGG_13,
    vgg::VGG_13_CIFAR,
    vgg::VGG_16,
    vgg::VGG_16_CIFAR,
    vgg::VGG_19,
    vgg::VGG_19_CIFAR,
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
        Wanted { width: 1.0, classes: self.classes, normalization: None, seed: 0 }
    }

    /// Builds the network with fresh weights.
    ///
    /// # Errors
    /// A width or a number of classes that makes no network.
    pub fn build(&self, wanted: &Wanted, device: &Device) -> Result<Net> {
        if !(wanted.width > 0.0 && wanted.width <= 16.0) || wanted.classes < 2 {
            let detail = format!("width {} must lie in (0, 16] and classes {} be at least 2", wanted.width, wanted.classes);
            return Err(Error::Invalid(format!("model '{}': {detail}", self.name)));
        }
        let mut builder = Builder::new(self.input, wanted.seed, device);
        let mut at = builder.input();
        if let Some((mean, std)) = &wanted.normalization {
            if mean.len() != self.input[0] || std.len() != self.input[0] {
                let detail = format!("takes {} channels, the normalization has {}", self.input[0], mean.len());
                return Err(Error::Invalid(format!("model '{}' {detail}", self.name)));
            }
            at = builder.normalize(at, mean, std);
        }
        (self.build)(&mut builder, at, wanted);
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Cost;

    /// Name, parameters (biases and batch norm included, running statistics not), weights alone, multiply-accumulates.
    /// LeNets, VGG-16 CIFAR, Courbariaux's networks, ResNet-56/110: Appendix B of the survey reference. AlexNet, VGG, ResNet-18/34/50: torchvision's counts for
    /// the same definitions (AlexNet there is the one-tower form; ours keeps the two-group convolutions of the 2012 paper).
    const PUBLISHED: &[(&str, usize, Option<usize>, Option<u64>)] = &[
        ("lenet300", 266_610, Some(266_200), Some(266_200)),
        ("lenet5", 431_080, Some(430_500), Some(2_293_000)),
        ("courbariaux-cnn", 14_031_774, Some(14_022_016), None),
        ("mlp1", 816_158, Some(813_056), None),
        ("mlp", 2_919_454, Some(2_910_208), None),
        ("mlp1000", 795_010, Some(794_000), Some(794_000)),
        ("resnet20", 269_722, None, None),
        ("resnet32", 464_154, None, None),
        ("resnet44", 658_586, None, None),
        ("resnet56", 853_018, None, Some(125_485_696)),
        ("resnet18", 11_689_512, None, Some(1_814_073_344)),
        ("resnet34", 21_797_672, None, Some(3_663_761_408)),
        ("resnet50", 25_557_032, None, Some(4_089_184_256)),
        ("vgg16", 138_357_544, None, Some(15_470_264_320)),
        ("vgg11", 132_863_336, None, None),
        ("vgg13", 133_047_848, None, None),
        ("vgg19", 143_667_240, None, None),
        ("alexnet", 60_965_224, None, None),
    ];

    #[test]
    fn parameters_and_macs_are_the_published_ones() {
        for (name, params, weights, macs) in PUBLISHED {
            let arch = Arch::named(name).unwrap();
            let cost = Cost::of(&arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
            assert_eq!(cost.params(), *params, "{name}: parameters");
            assert!(weights.is_none_or(|weights| cost.weights() == weights), "{name}: weights {}", cost.weights());
            assert!(macs.is_none_or(|macs| cost.macs() == macs), "{name}: MACs {}", cost.macs());
        }
    }

    #[test]
    fn vgg_16_on_cifar_counts_as_in_li_et_al() {
        let arch = Arch::named("vgg16-cifar").unwrap();
        let cost = Cost::of(&arch.build(&arch.wanted(), &Device::flex()).unwrap()).unwrap();
        assert_eq!(format!("{:.2}", cost.weights() as f64 / 1e6), "14.98");
        assert_eq!(format!("{:.1}", cost.macs() as f64 / 1e6), "313.5");
        assert_eq!(format!("{:.3}", Cost::of_zoo("resnet110").params() as f64 / 1e6), "1.728");
    }

    #[test]
    fn width_scales_channels_and_bad_widths_are_refused() {
        let arch = Arch::named("resnet20").unwrap();
        let half = arch.build(&Wanted { width: 0.5, ..arch.wanted() }, &Device::flex()).unwrap();
        assert_eq!(half.nodes[1].op.weight_shape().unwrap()[0], 8);
        assert!(arch.build(&Wanted { width: 0.0, ..arch.wanted() }, &Device::flex()).is_err());
        assert!(Arch::named("resnet21").unwrap_err().to_string().contains("resnet20"));
    }
}
