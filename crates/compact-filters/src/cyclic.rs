//! Cyclic symmetry: four turned views of an image through one set of filters.
//!
//! View `k` is the image turned by `k` quarters counterclockwise. All convolutions treat the four views with the same filters, and behind the last
//! of them the views are turned back and pooled. Behind each convolution they are rolled: view `k` gets, as blocks of channels `j`, what view `k + j`
//! has, turned back by `j` quarters, so that `N / 4` filters make `N` channels, the next layer sees as many as before, and every layer has exactly a
//! quarter of its weights. Bias and batch norm are one for all views of a channel.
//!
//! The views are four blocks of channels, `[4 C, h, w]`, where the paper stacks them along the batch: the network then stays one of an image, and
//! a convolution is one in four groups that have the same filters ([`Places::Tiles`]). See [`layers::Cyclic`](Views) for the operations.
//!
//! Dieleman, De Fauw, Kavukcuoglu. "Exploiting Cyclic Symmetry in Convolutional Neural Networks". ICML 2016. arXiv:1602.02660.
//! Differs from the paper: views are blocks of channels, and every convolution is rolled, where the authors' networks for plankton roll in front of
//! pooling alone. Numbers of filters are rounded up to multiples of four; where that gives a layer other inputs, it begins anew. A bias in front of a
//! batch norm, which takes it out, is dropped.
//!
//! ```
//! use briquette_compact_filters::cyclic::Cyclic;
//! use briquette_core::cost::Cost;
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::Arch;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet5")?;
//! let net = arch.build(&arch.wanted(), &Device::flex())?;
//! let method: Cyclic = serde_json::from_value(serde_json::json!({}))?;
//! let cost = Cost::of(&method.plan(net)?)?;
//! let weights = |layer: &str| cost.layers.iter().find(|found| found.name == layer).map(|found| found.weights);
//! // 5 and 13 filters in the place of 20 and 50.
//! assert_eq!(weights("conv1"), Some(5 * 25));
//! assert_eq!(weights("conv2"), Some(13 * 20 * 25));
//! # Ok(())
//! # }
//! ```
//!
//! Networks can be built of the operations, too: sliced, rolled between convolutions, and at the end pooled, or stacked where all four views are wanted
//! side by side.
//!
//! ```
//! use briquette_core::builder::{Builder, Conv};
//! use briquette_core::layers::Cyclic;
//! use briquette_runtime::Places;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 9, 9], 1, &Device::flex());
//! let image = b.input();
//! let x = b.fixed("slice", &[image], Cyclic::Slice);
//! let x = b.shared_conv("conv1", x, Conv::new(4 * 2, 3).groups(4).no_bias(), Places::Tiles { times: 4 });
//! let x = b.relu("relu1", x);
//! // Of two filters, eight maps for each of the four views.
//! let x = b.fixed("roll", &[x], Cyclic::Roll);
//! assert_eq!(b.shape(x), [4 * 8, 7, 7]);
//! let pooled = b.fixed("pool", &[x], Cyclic::Rms);
//! let stacked = b.fixed("stack", &[x], Cyclic::Stack);
//! assert_eq!((b.shape(pooled), b.shape(stacked)), (&[8, 7, 7][..], &[4 * 8, 7, 7][..]));
//! ```

use briquette_core::Layer;
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::layers::Cyclic as Views;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use briquette_parts::yes;
use briquette_runtime::Places;
use serde::Deserialize;

use crate::chosen::Init;
use crate::symmetric::{Asked, Symmetry, rewritten};

/// Has convolutions treat four turned views with a quarter of the filters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cyclic {
    /// Convolutions to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Convolutions that are left alone.
    #[serde(default)]
    except: Layers,
    /// What stays of the four views.
    #[serde(default)]
    pool: Pool,
    /// Whether strides are refused that break the symmetry.
    #[serde(default = "yes")]
    exact: bool,
    /// Training afterwards.
    tune: Option<Recipe>,
}

/// How views become one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// Their mean.
    Mean,
    /// Their largest value.
    Max,
    /// The root of the mean of their squares, as in the authors' networks.
    #[default]
    Rms,
}

impl Method for Cyclic {
    const NAME: &'static str = "cyclic";
    const FAMILY: &'static str = "transferred and compact filters";
    const PAPER: &'static str = "Dieleman, De Fauw, Kavukcuoglu, ICML 2016, arXiv:1602.02660";
    const EXAMPLE: &'static str = "exact = false\ntune = { epochs = 10 }";
}

impl Pass for Cyclic {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.rolled(&net, cx.seed)?;
        tune(net, self.tune.as_ref(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.rolled(&net, 0)
    }
}

impl Cyclic {
    fn rolled(&self, net: &Net, seed: u64) -> Result<Net> {
        self.tune.iter().try_for_each(Recipe::check)?;
        let asked = Asked { layers: &self.layers, except: &self.except, init: Init::Random, exact: self.exact, seed };
        // Whatever its strides, a network of views computes of a turned image what it computes of the image, view for view.
        rewritten(net, &FourViews { pool: self.pool }, &asked).map(|(net, _)| net)
    }
}

struct FourViews {
    pool: Pool,
}

impl Symmetry for FourViews {
    const METHOD: &'static str = Cyclic::NAME;

    fn maps(&self) -> usize {
        4
    }

    fn apart(&self) -> bool {
        true
    }

    fn channels(&self, filters: usize) -> usize {
        filters.div_ceil(4)
    }

    fn groups(&self) -> usize {
        4
    }

    fn rule(&self, _: bool) -> Places {
        Places::Tiles { times: 4 }
    }

    fn enter(&self) -> Option<Layer> {
        Some(Views::Slice.into())
    }

    fn behind(&self) -> Option<Layer> {
        Some(Views::Roll.into())
    }

    fn leave(&self) -> Layer {
        match self.pool {
            Pool::Mean => Views::Mean,
            Pool::Max => Views::Max,
            Pool::Rms => Views::Rms,
        }
        .into()
    }
}

#[cfg(test)]
mod tests;
