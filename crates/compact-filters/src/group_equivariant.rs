//! Group-equivariant convolutions.
//!
//! A channel of a layer has a map for each element of a group `G` of symmetries of the square: four quarter turns (p4), or eight with mirror images
//! (p4m). With `(a x)` an image that an element moved, a layer `f` has `f(a x)[s] = a f(x)[a^-1 s]`: where its input turns, its maps turn and change
//! places, and nothing else. The first convolution lifts, `y[o, t] = sum over i of (t W[o, i]) * x[i]`, and further ones read all maps,
//! `y[o, t] = sum over i, s of (t W[o, i, t^-1 s]) * x[i, s]`, with as many weights `W` as a plain convolution of `|G|` times the channels and a
//! `|G|`-th of the filters. As map `t` of channel `c` is channel `c |G| + t`, they are plain convolutions with filters of few base values
//! ([`Places::Turns`]). Bias and batch norm are one for all maps of a channel, which stand under each other for it ([`Regroup`]). In front of what
//! knows no maps, the largest or the mean over the group stays, which turns with the image and nothing else.
//!
//! Element `4 m + r` turns by `r` quarters counterclockwise and then, for `m = 1`, mirrors top to bottom, as in the authors' program. A stride is exact
//! only where `size + 2 padding - kernel` is a multiple of it. With `exact = false` others are taken too, and the report says of each by how much
//! the maps behind it fail to turn with the image ([`violation`]).
//!
//! Cohen, Welling. "Group Equivariant Convolutional Networks". ICML 2016. arXiv:1602.07576.
//! Differs from the paper: besides training from scratch, filters can begin as the least-squares fit to those of a trained network, whose maps are
//! then taken as families of `|G|`: the mean over the group of filters turned back. A bias in front of a batch norm, which takes it out, is dropped.
//!
//! ```
//! use briquette_core::cost::Cost;
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::Arch;
//! use briquette_compact_filters::group_equivariant::GroupEquivariant;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet5")?;
//! let net = arch.build(&arch.wanted(), &Device::flex())?;
//! let method: GroupEquivariant = serde_json::from_value(serde_json::json!({ "group": "p4" }))?;
//! let cost = Cost::of(&method.plan(net)?)?;
//! let weights = |layer: &str| cost.layers.iter().find(|found| found.name == layer).map(|found| found.weights);
//! // 10 and 25 channels of four maps in the place of 20 and 50 filters.
//! assert_eq!(weights("conv1"), Some(10 * 25));
//! assert_eq!(weights("conv2"), Some(25 * 40 * 25));
//! # Ok(())
//! # }
//! ```

use briquette_core::Layer;
use briquette_core::builder::{At, Builder, Conv};
use briquette_core::coding::floats;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::layers::{ChannelPool, PadShortcut, Reduction, Regroup};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::{Recipe, probe, tune};
use briquette_core::types::Layers;
use briquette_parts::yes;
use briquette_runtime::Places;
use burn::tensor::Tensor;
use serde::Deserialize;

use crate::chosen::Init;
use crate::symmetric::{Asked, Broken, Symmetry, rewritten};

/// Gives convolutions the form that turns with their input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GroupEquivariant {
    /// The symmetries.
    group: Group,
    /// Convolutions to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Convolutions that are left alone.
    #[serde(default)]
    except: Layers,
    /// Channels as a share of filters: without it `1 / sqrt |G|`, which keeps the number of weights, or for a fit `1 / |G|`, the only one.
    width: Option<f64>,
    /// Where filters begin; at random without it.
    #[serde(default = "scratch")]
    init: Init,
    /// What stays of the maps of a channel behind the last convolution.
    #[serde(default = "largest")]
    pool: Reduction,
    /// Whether strides are refused that break the symmetry.
    #[serde(default = "yes")]
    exact: bool,
    /// Training afterwards.
    tune: Option<Recipe>,
}

fn scratch() -> Init {
    Init::Random
}

fn largest() -> Reduction {
    Reduction::Max
}

/// A group of symmetries of the square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Four quarter turns.
    P4,
    /// These, and each of them mirrored.
    P4m,
}

impl Group {
    /// Number of elements.
    pub fn order(self) -> usize {
        match self {
            Group::P4 => 4,
            Group::P4m => 8,
        }
    }

    /// How filters follow from base filters, of inputs that have a map for each element or one.
    pub fn rule(self, grouped: bool) -> Places {
        Places::Turns { mirrored: self == Group::P4m, grouped }
    }

    /// The element `a^-1 s`.
    fn undone(self, a: usize, s: usize) -> usize {
        let ([mirrored, turns], [own_mirrored, own_turns]) = ([a / 4, a % 4], [s / 4, s % 4]);
        // Behind a mirror turns go the other way.
        let turns = if mirrored == own_mirrored { own_turns + 4 - turns } else { own_turns + turns };
        4 * (mirrored ^ own_mirrored) + turns % 4
    }

    /// What makes one map of those of a channel.
    pub fn pooling(self, reduction: Reduction) -> ChannelPool {
        ChannelPool { grid: [1, self.order()], window: [1, self.order()], reduction }
    }
}

impl Method for GroupEquivariant {
    const NAME: &'static str = "group-equivariant";
    const FAMILY: &'static str = "transferred and compact filters";
    const PAPER: &'static str = "Cohen, Welling, ICML 2016, arXiv:1602.07576";
    const EXAMPLE: &'static str = "group = \"p4\"\nexact = false\ntune = { epochs = 10 }";
}

impl Pass for GroupEquivariant {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let (net, broken) = self.turned(&net, cx.seed)?;
        let net = tune(net, self.tune.as_ref(), cx)?;
        let mut off = vec![0.0; broken.len()];
        if !broken.is_empty() {
            let device = cx.device.clone();
            probe(cx, "equivariance", (1, SAMPLE), &device, |images, _| {
                for (off, layer) in off.iter_mut().zip(&broken) {
                    *off = violation(&net, &images, &layer.name, self.group)?;
                }
                Ok(())
            })?;
        }
        for (Broken { name, stride, size }, off) in broken.iter().zip(off) {
            cx.note(format!(
                "{name}: stride {stride} on {size} x {size} breaks the symmetry: where images turn, its maps differ from turned ones by {:.1} % of \
                 their largest value",
                100.0 * off
            ));
        }
        Ok(net)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.turned(&net, 0).map(|(net, _)| net)
    }
}

/// Training images of which the report says how far a network is from its symmetry.
const SAMPLE: usize = 16;

impl GroupEquivariant {
    fn turned(&self, net: &Net, seed: u64) -> Result<(Net, Vec<Broken>)> {
        self.tune.iter().try_for_each(Recipe::check)?;
        let order = self.group.order() as f64;
        let width = match (self.init, self.width) {
            (Init::Random, Some(width)) if width > 0.0 && width <= 1.0 => width,
            (Init::Random, Some(width)) => return Err(Error::Invalid(format!("`width` lies in (0, 1], not {width}"))),
            (Init::Random, None) => order.sqrt().recip(),
            (Init::Fit, None) => order.recip(),
            (Init::Fit, Some(_)) => {
                let detail =
                    "`init` \"fit\" keeps the number of maps, so that `width` is 1 over that of the elements; leave it out";
                return Err(Error::Invalid(detail.into()));
            }
        };
        let asked = Asked { layers: &self.layers, except: &self.except, init: self.init, exact: self.exact, seed };
        rewritten(net, &Turning { group: self.group, width, pool: self.pool }, &asked)
    }
}

struct Turning {
    group: Group,
    width: f64,
    pool: Reduction,
}

impl Symmetry for Turning {
    const METHOD: &'static str = GroupEquivariant::NAME;

    fn maps(&self) -> usize {
        self.group.order()
    }

    fn apart(&self) -> bool {
        false
    }

    fn channels(&self, filters: usize) -> usize {
        ((filters as f64 * self.width).round() as usize).max(1)
    }

    fn groups(&self) -> usize {
        1
    }

    fn rule(&self, first: bool) -> Places {
        self.group.rule(!first)
    }

    fn leave(&self) -> Layer {
        self.group.pooling(self.pool).into()
    }

    /// Channels are added in proportion, and joined ones keep their maps together.
    fn between(&self, layer: &Layer, input: usize, output: usize) -> Option<Layer> {
        match *layer {
            Layer::Concat(_) => Some(layer.clone()),
            Layer::PadShortcut(PadShortcut { stride, before, after }) => {
                let more = output.checked_sub(input)?;
                let front = (more * before).checked_div(before + after).unwrap_or(0);
                let order = self.group.order();
                Some(PadShortcut { stride, before: front * order, after: (more - front) * order }.into())
            }
            _ => None,
        }
    }
}

/// A convolution from maps that images have to those of the group, of `conv.filters` channels.
///
/// # Panics
/// If it does not fit its input.
pub fn lift(b: &mut Builder, name: &str, at: At, conv: Conv, group: Group) -> At {
    convolution(b, name, at, conv, group, group.rule(false))
}

/// A convolution from maps of the group to maps of the group, of `conv.filters` channels.
///
/// # Panics
/// If it does not fit its input, as where this has no whole number of channels.
pub fn convolve(b: &mut Builder, name: &str, at: At, conv: Conv, group: Group) -> At {
    convolution(b, name, at, conv, group, group.rule(true))
}

fn convolution(b: &mut Builder, name: &str, at: At, conv: Conv, group: Group, rule: Places) -> At {
    let maps = Conv { filters: conv.filters * group.order(), bias: false, ..conv };
    let at = b.shared_conv(name, at, maps, rule);
    if !conv.bias {
        return at;
    }
    let name = format!("{name}.bias");
    by_channel(b, &name, at, group, |b, at| b.affine(&name, at, false, 0.0))
}

/// A batch norm over all maps of each channel.
pub fn batch_norm(b: &mut Builder, name: &str, at: At, group: Group) -> At {
    by_channel(b, name, at, group, |b, at| b.batch_norm(name, at))
}

/// Layers that treat all maps of a channel alike.
pub fn by_channel(b: &mut Builder, name: &str, at: At, group: Group, layers: impl FnOnce(&mut Builder, At) -> At) -> At {
    let join = Regroup { maps: group.order(), apart: false, back: false };
    let at = b.fixed(&format!("{name}.join"), &[at], join);
    let at = layers(b, at);
    b.fixed(&format!("{name}.split"), &[at], Regroup { back: true, ..join })
}

/// One map of those of each channel.
pub fn pool(b: &mut Builder, name: &str, at: At, group: Group, reduction: Reduction) -> At {
    b.fixed(name, &[at], group.pooling(reduction))
}

/// By how much the maps of the layer `maps`, one for each element of the group and channel, fail to turn with images `x`, `[batch, channels, size, size]`:
/// the largest `|f(a x)[s] - a f(x)[a^-1 s]|` over all elements `a` and `s`, as a share of the largest `|f(x)|`, where `f` is the network up to there. But for
/// rounding it is 0 where no stride leaves out what is at one end.
///
/// ```
/// use briquette_compact_filters::group_equivariant::{Group, lift, violation};
/// use briquette_core::builder::{Builder, Conv};
/// use burn::tensor::{Device, Int, Tensor};
///
/// # fn main() -> briquette_core::Result<()> {
/// let off = |size: usize| {
///     let device = Device::flex();
///     let mut b = Builder::new([1, size, size], 1, &device);
///     let input = b.input();
///     let x = lift(&mut b, "lift", input, Conv::new(2, 3).same().stride(2), Group::P4m);
///     b.global_avg_pool("mean", x);
///     let image = Tensor::<1, Int>::arange(0..(size * size) as i64, &device).float().sin().reshape([1, 1, size, size]);
///     violation(&b.finish()?, &image, "lift", Group::P4m)
/// };
/// assert!(off(7)? < 1e-5 && off(6)? > 0.1);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Images that are not square, no such layer, a layer without maps of the group, and values that are not finite.
pub fn violation(net: &Net, images: &Tensor<4>, maps: &str, group: Group) -> Result<f32> {
    let (order, index, [batch, _, height, width]) = (group.order(), net.index(maps)?, images.dims());
    let refused = |detail: &str| Err(Error::node(maps, detail));
    match net.shapes()?[index][..] {
        [channels, h, w] if channels.is_multiple_of(order) && h == w && height == width => {}
        _ => return refused("has no maps of the group on squares"),
    }
    let seen = |images: Tensor<4>| {
        let mut seen = None;
        net.trace(images, |node, value| {
            if node == index {
                seen = Some(value.clone().map());
            }
            value
        });
        seen.expect("every node is computed")
    };
    let still = seen(images.clone());
    let [_, channels, side, _] = still.dims();
    let largest = floats(still.clone().abs()).into_iter().fold(0.0, f32::max);
    let elements = still.reshape([batch * channels / order, order, side, side]);
    let mut most = 0.0_f32;
    for a in 0..order {
        let found = seen(moved(images.clone(), a));
        let of = |s: usize| moved(elements.clone().slice_dim(1, group.undone(a, s)..group.undone(a, s) + 1), a);
        let expected = Tensor::cat((0..order).map(of).collect(), 1).reshape([batch, channels, side, side]);
        let off = floats((found - expected).abs());
        if !off.iter().all(|value| value.is_finite()) {
            return refused("makes values that are not finite");
        }
        most = off.into_iter().fold(most, f32::max);
    }
    Ok(if largest > 0.0 { most / largest } else { 0.0 })
}

/// Maps `[.., .., size, size]` moved by an element of the group.
fn moved(maps: Tensor<4>, element: usize) -> Tensor<4> {
    let turned = (0..element % 4).fold(maps, |maps, _| maps.permute([0, 1, 3, 2]).flip([2]));
    if element < 4 { turned } else { turned.flip([2]) }
}

#[cfg(test)]
mod tests;
