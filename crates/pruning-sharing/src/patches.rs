//! What the methods that cut channels by the next layer's output have in common: which groups they may cut, and the way through the network, each
//! layer seeing its inputs as already cut. What the next layer reads and computes at sampled places is in [`briquette_parts::moments`].

#[cfg(test)]
pub(crate) mod tests;

use std::marker::PhantomData;

use briquette_core::coding::Coding;
use briquette_core::context::{Context, Event};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::surgery::{ChannelGroup, Keep};
use briquette_core::{Layer, layers};
use serde::Deserialize;

use briquette_parts::channels::{Channels, only_reader, pairs};
use briquette_parts::moments::{Moments, Reading, Sample, moments};

/// A method: it cuts the channels that `C` does not choose by what the next layer computes of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ByNextLayer<C> {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
    /// Training images that the output is sampled from.
    calibration_images: Option<usize>,
    /// Places of each layer's output in an image.
    #[serde(default = "ten")]
    positions: usize,
    /// Most memory for the products of the inputs of one layer, in MiB.
    #[serde(default = "two_gibi")]
    memory_mib: usize,
    #[serde(skip)]
    choice: PhantomData<C>,
}

/// How a method chooses.
pub trait Choice: std::fmt::Debug + Send + 'static {
    /// [`Method::NAME`].
    const NAME: &'static str;
    /// [`Method::PAPER`].
    const PAPER: &'static str;
    /// Images that are sampled where the config does not say.
    const IMAGES: usize;

    /// Marks the `count` channels that stay and gives the weights, `[out, channel, tap]`, of the layer that reads them.
    fn choose(moments: &Moments, count: usize) -> (Vec<bool>, Vec<f64>);
}

impl<C: Choice> Method for ByNextLayer<C> {
    const NAME: &'static str = C::NAME;
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = C::PAPER;
    const EXAMPLE: &'static str = "ratio = 0.5";
}

impl<C: Choice> Pass for ByNextLayer<C> {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let sample = Sample { images: self.calibration_images.unwrap_or(C::IMAGES), positions: self.positions, hold_back: true };
        let groups = self.counts(&net)?;
        let net = cut(C::NAME, groups, net, sample, cx, C::choose)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let (groups, counts): (Vec<ChannelGroup>, Vec<usize>) = self.counts(&net)?.into_iter().unzip();
        let keeps = groups.iter().zip(counts).map(|(group, count)| group.best(&vec![0.0; group.len()], count)).collect();
        net.keep(&pairs(&groups, keeps))
    }

    fn shorten(&mut self) {
        self.calibration_images = Some(self.calibration_images.unwrap_or(C::IMAGES).min(50));
    }
}

impl<C: Choice> ByNextLayer<C> {
    /// What is cut, in the order of the layers, and how many units of each group stay.
    fn counts(&self, net: &Net) -> Result<Vec<(ChannelGroup, usize)>> {
        if self.calibration_images == Some(0) || self.positions == 0 {
            return Err(Error::Invalid(format!("{}: `calibration-images` and `positions` must be at least 1", C::NAME)));
        }
        let counts = counts(C::NAME, &self.channels, net)?;
        for node in counts.iter().filter(|(group, count)| *count < group.len()).filter_map(|(group, _)| reader(net, group)) {
            let node = &net.nodes[node];
            let width: usize = node.op.weight_shape().map_or(0, |shape| shape[1..].iter().product());
            // The products, and again as many while a system of those that stay is solved.
            let bytes = 16 * (width as u128).pow(2);
            if bytes > (self.memory_mib as u128) << 20 {
                let detail = format!(
                    "reads {width} numbers, whose products take {} MiB, `memory-mib` allows {}; raise it, or name the layer before it in `except`",
                    bytes.div_ceil(1 << 20),
                    self.memory_mib
                );
                return Err(Error::node(&node.name, detail));
            }
        }
        Ok(counts)
    }
}

fn ten() -> usize {
    10
}

fn two_gibi() -> usize {
    2048
}

/// The groups that may be cut because one layer makes their channels and one reads them, and how many units of each stay.
///
/// # Errors
/// When there are none, or the settings, of the method of this name, do not fit the network.
fn counts(method: &str, channels: &Channels, net: &Net) -> Result<Vec<(ChannelGroup, usize)>> {
    let why = "its channels are not read by one layer alone, or by one in groups; use filter-l1 for it";
    let groups = channels.groups_where(net, |group| reader(net, group).is_some(), why)?;
    if groups.is_empty() {
        let detail = format!("{method}: no layer's channels are read by one layer alone; use filter-l1 for this network");
        return Err(Error::Invalid(detail));
    }
    for node in groups.iter().filter_map(|group| reader(net, group)).map(|node| &net.nodes[node]) {
        if node.weight().is_some_and(|weight| weight.coding != Coding::default()) {
            let detail = format!("its weights are masked or shared; put {method} before the pass that does so");
            return Err(Error::node(&node.name, detail));
        }
    }
    let equal: Vec<Vec<f64>> = groups.iter().map(|group| vec![0.0; group.len()]).collect();
    let keeps = channels.keeps(method, net, &groups, &equal)?;
    Ok(groups.into_iter().zip(keeps.iter().map(Keep::count)).collect())
}

/// Cuts groups one after the other, of each so many units staying. `choose` gets the moments of the layer that reads the group's channels, its inputs as the cuts before have left
/// them, and how many channels stay; it marks these and returns the layer's new weights, `[out, channel, tap]`.
///
/// # Errors
/// When the images give a layer inputs that are not finite.
fn cut(
    method: &str,
    groups: Vec<(ChannelGroup, usize)>,
    net: Net,
    sample: Sample,
    cx: &mut Context<'_>,
    choose: impl Fn(&Moments, usize) -> (Vec<bool>, Vec<f64>),
) -> Result<Net> {
    let original = net.deep_clone();
    let mut net = net;
    for (group, count) in groups.into_iter().filter(|(group, count)| *count < group.len()) {
        let Some(reader) = reader(&net, &group) else { continue };
        let reading = Reading::of(&net, &group, reader);
        let moments = moments(&net, &original, &reading, sample, method, cx)?;
        let (stays, weights) = choose(&moments, count);
        if let Some(missed) = moments.missed(&weights) {
            let (name, percent) = (&net.nodes[reader].name, 100.0 * missed);
            let detail = format!(
                "{method}: '{name}' misses {percent:.2} % of its output on images that its {} rows for {} inputs left out",
                moments.rows,
                moments.width()
            );
            cx.host.event(Event::Note(&detail));
        }
        let device = net.device();
        let node = net.nodes.remove(reader);
        let mut parameters = node.parameters();
        for stored in parameters.iter_mut().filter(|stored| stored.name == "weight") {
            let rows = stored.base.chunks_exact_mut(moments.width()).zip(weights.chunks_exact(moments.width()));
            rows.for_each(|(row, weights)| reading.places.iter().zip(weights).for_each(|(&i, w)| row[i] = *w as f32));
        }
        net.nodes.insert(reader, node.with(parameters, &device)?);
        // A group of the network as it now is, of the same name and the same channels.
        let groups = net.channel_groups()?;
        let now = groups.iter().filter(|now| now.name == group.name);
        let cuts: Vec<(&ChannelGroup, Keep)> = now.map(|now| (now, Keep::new(stays.clone()))).collect();
        net = net.keep(&cuts)?;
    }
    Ok(net)
}

/// The layer that alone reads the channels that one layer makes.
fn reader(net: &Net, group: &ChannelGroup) -> Option<usize> {
    let keeps_channels = |layer: &Layer| matches!(layer.kind().channels(), layers::Channels::Kept | layers::Channels::Spread);
    let one_group = |node: &usize| net.nodes[*node].op.layer().kind().channels() == layers::Channels::Made { groups: 1 };
    only_reader(net, group, keeps_channels).filter(one_group)
}
