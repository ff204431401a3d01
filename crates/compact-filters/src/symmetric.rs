//! What the methods of symmetric networks share: the walk over a network that gives each channel several maps, one for each element of a group or
//! for each view, and what can be done to such maps. A method adds the form of its convolutions.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::builder::he_normal;
use briquette_core::coding::{Coding, Source};
use briquette_core::error::{Error, Result};
use briquette_core::layers::{self, Regroup};
use briquette_core::net::{Net, Node, Op};
use briquette_core::stored::Stored;
use briquette_core::types::Layers;
use briquette_core::{Layer, Padding, Window};
use briquette_parts::refuse;
use briquette_runtime::Places;
use burn::tensor::Device;

use crate::chosen::{Init, chosen, uncoded};

/// How a method's convolutions make maps.
pub(crate) trait Symmetry {
    /// The method's name.
    const METHOD: &'static str;

    /// Maps of a channel.
    fn maps(&self) -> usize;

    /// Whether the maps of a channel lie apart, as in [`Regroup`].
    fn apart(&self) -> bool;

    /// Channels, of several maps each, in the place of so many filters.
    fn channels(&self, filters: usize) -> usize;

    /// Groups of a convolution.
    fn groups(&self) -> usize;

    /// How its filters follow from base filters; `first` of a convolution that reads a map for each channel.
    fn rule(&self, first: bool) -> Places;

    /// What stands in front of the first convolutions.
    fn enter(&self) -> Option<Layer> {
        None
    }

    /// What stands behind each convolution and its batch norm.
    fn behind(&self) -> Option<Layer> {
        None
    }

    /// What makes one map of those of a channel.
    fn leave(&self) -> Layer;

    /// What the layer becomes between maps, from `input` to so many `output` channels; none where it cannot stand there.
    fn between(&self, layer: &Layer, input: usize, output: usize) -> Option<Layer> {
        let _ = (layer, input, output);
        None
    }
}

/// What is asked of the walk.
pub(crate) struct Asked<'a> {
    pub(crate) layers: &'a Layers,
    pub(crate) except: &'a Layers,
    pub(crate) init: Init,
    /// Whether strides that break the symmetry are refused.
    pub(crate) exact: bool,
    pub(crate) seed: u64,
}

/// A layer of several maps whose steps leave out what is at one end, so that its output does not turn with its input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Its name.
    pub(crate) name: String,
    /// Its stride.
    pub(crate) stride: usize,
    /// Height and width of the maps that it reads.
    pub(crate) size: usize,
}

/// The network with its convolutions in a symmetric form, and the layers that break the symmetry.
///
/// # Errors
/// Names a layer that has no such form, and where `layers` names it one that is pruned or shares its weights; what is not finite; and another
/// number of outputs, as where the last convolution makes them.
pub(crate) fn rewritten<S: Symmetry>(net: &Net, symmetry: &S, asked: &Asked<'_>) -> Result<(Net, Vec<Broken>)> {
    let is_conv = |index: usize| matches!(net.nodes[index].op, Op::Conv2d(_));
    let fit = |index| match is_conv(index) {
        true => Ok(index),
        false => Err("is no convolution; name convolutions alone in `layers`".into()),
    };
    let chosen: BTreeSet<usize> = chosen(net, [asked.layers, asked.except], fit)?.into_values().collect();
    if chosen.is_empty() {
        return Err(Error::Invalid(format!("{}: the network has no convolution to work on", S::METHOD)));
    }
    let mut walk = Walk {
        net,
        symmetry,
        chosen,
        asked,
        old: net.shapes()?,
        device: net.device(),
        nodes: Vec::new(),
        shapes: Vec::new(),
        placed: vec![None; net.nodes.len()],
        entered: BTreeMap::new(),
        left: BTreeMap::new(),
        broken: Vec::new(),
    };
    for index in 0..net.nodes.len() {
        walk.step(index)?;
    }
    let (before, made, broken) = (walk.old, Net { nodes: walk.nodes }, walk.broken);
    let outputs = |shapes: &[Vec<usize>]| shapes.last().map_or(0, |shape| shape.iter().product::<usize>());
    let (before, after) = (outputs(&before), outputs(&made.shapes()?));
    if before != after {
        return Err(Error::Invalid(format!(
            "{}: the network would have {after} outputs instead of {before}; name the convolution that makes them in `except`",
            S::METHOD
        )));
    }
    Ok((made, broken))
}

/// What an old node's output has become.
#[derive(Clone, Copy)]
struct Placed {
    /// The new node.
    index: usize,
    /// Whether it has several maps for a channel.
    several: bool,
    /// How many features of a vector are pixels of one channel.
    pixels: usize,
}

struct Walk<'a, S> {
    net: &'a Net,
    symmetry: &'a S,
    chosen: BTreeSet<usize>,
    asked: &'a Asked<'a>,
    /// Shapes of the old nodes.
    old: Vec<Vec<usize>>,
    device: Device,
    nodes: Vec<Node>,
    shapes: Vec<Vec<usize>>,
    placed: Vec<Option<Placed>>,
    /// What stands in front of convolutions, and behind the last maps, by what it reads.
    entered: BTreeMap<usize, usize>,
    left: BTreeMap<usize, usize>,
    broken: Vec<Broken>,
}

impl<S: Symmetry> Walk<'_, S> {
    fn step(&mut self, index: usize) -> Result<()> {
        if self.placed[index].is_some() {
            return Ok(());
        }
        let node = &self.net.nodes[index];
        let inputs: Vec<Placed> = node.inputs.iter().filter_map(|input| self.placed[*input]).collect();
        let several = inputs.iter().any(|input| input.several);
        if self.chosen.contains(&index) {
            return self.convolution(index, inputs[0]);
        }
        let placed = match (&node.op, node.op.layer()) {
            (Op::BatchNorm(_), _) if several => {
                let at = self.normalized(index, inputs[0].index, None)?;
                Placed { index: at, ..inputs[0] }
            }
            (_, Layer::Flatten(_) | Layer::GlobalAvgPool(_) | Layer::Conv2d(_) | Layer::Linear(_)) if several => {
                let inputs = inputs.into_iter().map(|input| self.leave(&node.name, input)).collect::<Result<Vec<Placed>>>()?;
                self.copy(index, &inputs)?
            }
            (_, layer) if several => {
                let layer = self.standing(index, &layer, &inputs)?;
                let at = self.push(node.name.clone(), inputs.iter().map(|input| input.index).collect(), Op::fixed(layer))?;
                Placed { index: at, ..inputs[0] }
            }
            _ => self.copy(index, &inputs)?,
        };
        self.placed[index] = Some(placed);
        Ok(())
    }

    /// The convolution, with its bias or batch norm.
    fn convolution(&mut self, index: usize, input: Placed) -> Result<()> {
        let (node, maps) = (&self.net.nodes[index], self.symmetry.maps());
        let refused = |detail: &str| Err(Error::node(&node.name, detail));
        let (Layer::Conv2d(layer), Some(weight)) = (node.op.layer(), node.weight()) else {
            return refused("is no convolution");
        };
        refuse::not_finite(&node.name, &weight.base)?;
        let [filters, _, kh, kw] = weight.shape[..] else { return refused("is no convolution of maps") };
        if layer.groups != 1 {
            return refused("has groups of channels, which have no symmetric form; name it in `except`");
        }
        let square = |pair: [usize; 2]| pair[0] == pair[1];
        if kh != kw || !square(layer.stride) || !square(layer.dilation) {
            return refused(
                "has a kernel, stride or dilation that is longer on one side, which does not turn; name it in `except`",
            );
        }
        self.turns(index, layer.padding, (kh - 1) * layer.dilation[0] + 1, layer.stride[0])?;
        let mut from = input.index;
        if let (false, Some(enter)) = (input.several, self.symmetry.enter()) {
            from = match self.entered.get(&input.index) {
                Some(entered) => *entered,
                None => self.push(format!("{}.slice", node.name), vec![input.index], Op::fixed(enter))?,
            };
            self.entered.insert(input.index, from);
        }
        let (groups, rule) = (self.symmetry.groups(), self.symmetry.rule(!input.several));
        let fan_in = self.shapes[from][0] / groups;
        let shape = [self.symmetry.channels(filters) * maps, fan_in, kh, kw];
        let values = match self.asked.init {
            Init::Random => he_normal(self.asked.seed, &node.name, rule.count(&shape)?.unwrap_or_default(), fan_in * kh * kw),
            Init::Fit if shape[..] == weight.shape[..] => nearest(rule, &weight)?,
            Init::Fit => {
                let detail = format!(
                    "is {:?} and would become {shape:?}, where a fit keeps all maps; its numbers of filters and channels must be \
                     multiples of {maps}, or `init` \"random\"",
                    weight.shape
                );
                return refused(&detail);
            }
        };
        let coding = Coding { mask: None, source: Source::shared(rule, values, &shape)? };
        let weight = Stored { name: "weight", shape: shape.to_vec(), base: vec![0.0; shape.iter().product()], coding };
        let layer = Layer::Conv2d(layers::Conv2d { groups, ..layer });
        let turned = node.clone().replaced(&layer, vec![weight], &self.device)?;
        let mut at = self.push(turned.name, vec![from], turned.op)?;
        let bias = node.stored().into_iter().find(|stored| stored.name == "bias").map(|bias| bias.values());
        let norm = self.norm_behind(index);
        if let Some(norm) = norm {
            at = self.normalized(norm, at, bias.as_deref())?;
        } else if let Some(bias) = bias {
            let shift = match self.asked.init {
                Init::Random => vec![0.0; shape[0] / maps],
                Init::Fit => means(&bias, maps),
            };
            let shift = Stored { name: "shift", shape: vec![shift.len()], base: shift, coding: Coding::default() };
            let affine = node.clone().replaced(&layers::Affine.into(), vec![shift], &self.device)?;
            at = self.by_channel(&format!("{}.bias", node.name), at, affine.op)?;
        }
        if let Some(behind) = self.symmetry.behind() {
            at = self.push(format!("{}.roll", node.name), vec![at], Op::fixed(behind))?;
        }
        let placed = Placed { index: at, several: true, pixels: 1 };
        self.placed[index] = Some(placed);
        if let Some(norm) = norm {
            self.placed[norm] = Some(placed);
        }
        Ok(())
    }

    /// The batch norm that alone reads a node.
    fn norm_behind(&self, index: usize) -> Option<usize> {
        let mut readers = (0..self.net.nodes.len()).filter(|reader| self.net.nodes[*reader].inputs.contains(&index));
        let only = readers.next().filter(|_| readers.next().is_none())?;
        matches!(self.net.nodes[only].op, Op::BatchNorm(_)).then_some(only)
    }

    /// The batch norm over all maps of each channel, of a network whose norm read a `bias` besides.
    fn normalized(&mut self, norm: usize, at: usize, bias: Option<&[f32]>) -> Result<usize> {
        let (node, maps) = (&self.net.nodes[norm], self.symmetry.maps());
        let channels = self.shapes[at][0] / maps;
        let mut parameters = node.parameters();
        for stored in &mut parameters {
            if let (Some(bias), "mean") = (bias, stored.name) {
                stored.base.iter_mut().zip(bias).for_each(|(mean, bias)| *mean -= bias);
            }
            stored.base = match self.asked.init {
                Init::Fit if stored.base.len() == channels * maps => means(&stored.base, maps),
                Init::Fit | Init::Random => vec![neutral(stored.name); channels],
            };
            stored.shape = vec![channels];
        }
        let norm = node.clone().with(parameters, &self.device)?;
        self.by_channel(&norm.name, at, norm.op)
    }

    /// An operation on each channel, all of whose maps stand under each other.
    fn by_channel(&mut self, name: &str, at: usize, op: Op) -> Result<usize> {
        let join = Regroup { maps: self.symmetry.maps(), apart: self.symmetry.apart(), back: false };
        let at = self.push(format!("{name}.join"), vec![at], Op::fixed(join))?;
        let at = self.push(name.into(), vec![at], op)?;
        self.push(format!("{name}.split"), vec![at], Op::fixed(Regroup { back: true, ..join }))
    }

    /// What a layer without parameters becomes where it reads several maps of each channel.
    fn standing(&mut self, index: usize, layer: &Layer, inputs: &[Placed]) -> Result<Layer> {
        let net = self.net;
        let (name, kind) = (&net.nodes[index].name, layer.kind().name());
        if !inputs.iter().all(|input| input.several) {
            let detail =
                format!("({kind}) joins channels of several maps with others; have its branches begin behind one convolution");
            return Err(Error::node(name, detail));
        }
        match layer {
            Layer::MaxPool(pool) => self.window(index, &pool.window)?,
            Layer::AvgPool(pool) => self.window(index, &pool.window)?,
            Layer::Pad(pad) => self.turns(index, pad.padding, 1, 1)?,
            Layer::PadShortcut(pad) => self.turns(index, Padding::NONE, 1, pad.stride)?,
            _ => {}
        }
        let maps = self.symmetry.maps();
        let from = inputs.first().map_or(0, |input| self.shapes[input.index][0] / maps);
        let changed = match layer {
            Layer::Activation(_)
            | Layer::MaxPool(_)
            | Layer::AvgPool(_)
            | Layer::Dropout(_)
            | Layer::Clip(_)
            | Layer::Negate(_)
            | Layer::Pad(_)
            | Layer::Add(_)
            | Layer::Multiply(_) => Some(layer.clone()),
            Layer::AdaptiveAvgPool(pool) => (pool.output[0] == pool.output[1]).then(|| layer.clone()),
            other => self.symmetry.between(other, from, self.symmetry.channels(self.old[index][0])),
        };
        changed.ok_or_else(|| {
            let detail = format!(
                "({kind}) cannot stand between channels of several maps; leave out the convolutions before it in `except`"
            );
            Error::node(name, detail)
        })
    }

    /// Whether the windows of a pool turn with the maps that it reads.
    fn window(&mut self, index: usize, window: &Window) -> Result<()> {
        if window.kernel[0] != window.kernel[1] || window.stride[0] != window.stride[1] {
            let detail = "has a window or stride that is longer on one side, which does not turn";
            return Err(Error::node(&self.net.nodes[index].name, detail));
        }
        self.turns(index, window.padding, window.kernel[0], window.stride[0])
    }

    /// Whether windows over the maps that a node reads turn with them. Where only a stride is in the way, and need not be exact, that is kept for the
    /// report.
    fn turns(
        &mut self,
        index: usize,
        Padding([[top, bottom], [left, right]]): Padding,
        span: usize,
        stride: usize,
    ) -> Result<()> {
        let (node, input) = (&self.net.nodes[index], &self.old[self.net.nodes[index].inputs[0]]);
        let refused = |detail: String| Err(Error::node(&node.name, detail));
        let &[_, height, width] = &input[..] else { return refused(format!("reads {input:?}, no map that turns")) };
        if height != width {
            return refused(format!("reads maps of {height} by {width}; only squares turn, so crop or pad the images"));
        }
        if [bottom, left, right] != [top; 3] {
            return refused(
                "is padded more on one side than on others, as kernels of even length are to keep the size, which does not turn"
                    .into(),
            );
        }
        let exact = stride == 0 || (height + 2 * top).saturating_sub(span).is_multiple_of(stride);
        if !exact && self.asked.exact {
            return refused(format!(
                "in steps of {stride} leaves out what is at one end of {height} pixels, so that its output does not turn with its input; \
                 choose another size or stride, or take it with `exact = false`"
            ));
        }
        if !exact {
            self.broken.push(Broken { name: node.name.clone(), stride, size: height });
        }
        Ok(())
    }

    /// One map of those of each channel, where there are several.
    fn leave(&mut self, reader: &str, input: Placed) -> Result<Placed> {
        if !input.several {
            return Ok(input);
        }
        let index = match self.left.get(&input.index) {
            Some(left) => *left,
            None => self.push(format!("{reader}.pool"), vec![input.index], Op::fixed(self.symmetry.leave()))?,
        };
        self.left.insert(input.index, index);
        Ok(Placed { index, several: false, ..input })
    }

    /// The node as it was, for inputs of perhaps other channels.
    fn copy(&mut self, index: usize, inputs: &[Placed]) -> Result<Placed> {
        let node = &self.net.nodes[index];
        let mut copied = node.clone();
        let mut pixels = inputs.first().map_or(1, |input| input.pixels);
        if let (Layer::Flatten(_), Some(&read)) = (node.op.layer(), node.inputs.first()) {
            pixels *= self.old[read][1..].iter().product::<usize>();
        }
        if let (Some(&read), Some(input)) = (node.inputs.first(), inputs.first()) {
            let (before, now) = (self.old[read][0], self.shapes[input.index][0]);
            if before != now && !node.stored().is_empty() {
                copied = self.adapted(node, [before, now], input.pixels)?;
            }
        }
        let at = self.push(copied.name, inputs.iter().map(|input| input.index).collect(), copied.op)?;
        Ok(Placed { index: at, several: false, pixels })
    }

    /// A layer that reads `now` channels or features where it read `before`. It begins anew, or after a fit reads of each channel the sum that it
    /// had of its maps.
    fn adapted(&self, node: &Node, [before, now]: [usize; 2], pixels: usize) -> Result<Node> {
        let maps = self.symmetry.maps();
        let fits = self.asked.init == Init::Fit && before == now * maps;
        let mut parameters = node.parameters();
        let grouped = matches!(node.op.layer(), Layer::Conv2d(layers::Conv2d { groups, .. }) if groups != 1);
        let (dense, norm) = (node.dense().is_some() && !grouped, matches!(node.op, Op::BatchNorm(_)));
        if !dense && !norm {
            let detail =
                format!("read {before} channels and would read {now}, which its form does not take; put its pass after this one");
            return Err(Error::node(&node.name, detail));
        }
        uncoded(node).map_err(|why| Error::node(&node.name, why))?;
        for stored in &mut parameters {
            match stored.name {
                "weight" => {
                    refuse::not_finite(&node.name, &stored.base)?;
                    let (outputs, taps) = (stored.shape[0], stored.base.len() / (stored.shape[0] * before));
                    stored.shape[1] = now;
                    stored.base = match fits {
                        true => summed(&stored.base, maps, pixels * taps),
                        false => he_normal(self.asked.seed, &node.name, outputs * now * taps, now * taps),
                    };
                }
                _ if norm => {
                    stored.base = match fits {
                        true => summed(&stored.base, maps, pixels).into_iter().map(|sum| sum / maps as f32).collect(),
                        false => vec![neutral(stored.name); now],
                    };
                    stored.shape = vec![now];
                }
                _ if fits => {}
                _ => stored.base.fill(0.0),
            }
        }
        node.clone().with(parameters, &self.device)
    }

    fn push(&mut self, name: String, inputs: Vec<usize>, op: Op) -> Result<usize> {
        let read: Vec<&[usize]> = inputs.iter().map(|&input| self.shapes[input].as_slice()).collect();
        let shape = op.layer().output_shape(&read, op.weight_shape().as_deref());
        self.shapes.push(shape.map_err(|source| Error::Shape { node: name.clone(), source })?);
        self.nodes.push(Node { op, name, inputs });
        Ok(self.nodes.len() - 1)
    }
}

/// The base values of a rule that come nearest to a weight, by least squares: the means over the places of each.
fn nearest(rule: Places, weight: &Stored) -> Result<Vec<f32>> {
    let count = rule.count(&weight.shape)?.unwrap_or_default();
    let mut sums = vec![(0.0_f64, 0.0_f64); count];
    for (place, value) in rule.all(&weight.shape, count).into_iter().zip(&weight.base) {
        let (sum, times) = &mut sums[place as usize / 2];
        *sum += if place % 2 == 0 { f64::from(*value) } else { -f64::from(*value) };
        *times += 1.0;
    }
    Ok(sums.into_iter().map(|(sum, times)| (sum / times) as f32).collect())
}

/// The mean of every so many values.
fn means(values: &[f32], count: usize) -> Vec<f32> {
    values.chunks(count).map(|values| values.iter().sum::<f32>() / count as f32).collect()
}

/// Of `[.., maps, inner]` the sums over the maps, `[.., inner]`.
fn summed(values: &[f32], maps: usize, inner: usize) -> Vec<f32> {
    let channel = |values: &[f32]| (0..inner).map(|at| values.iter().skip(at).step_by(inner).sum::<f32>()).collect::<Vec<_>>();
    values.chunks(maps * inner).flat_map(channel).collect()
}

/// What a tensor of a batch norm holds that changes nothing.
fn neutral(tensor: &str) -> f32 {
    if ["gamma", "var"].contains(&tensor) { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_summed_pixel_by_pixel_and_averaged_one_after_the_other() {
        // Two channels of two maps of three pixels.
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(summed(&values, 2, 3), [3.0, 5.0, 7.0, 15.0, 17.0, 19.0]);
        assert_eq!(means(&values, 4), [1.5, 5.5, 9.5]);
    }

    #[test]
    fn the_nearest_base_values_are_means_over_their_places() {
        let weight = Stored { name: "weight", shape: vec![4, 1], base: vec![1.0, 2.0, 4.0, 8.0], coding: Coding::default() };
        assert_eq!(nearest(Places::Tiles { times: 2 }, &weight).unwrap(), [2.5, 5.0]);
        let turned = Stored { shape: vec![4, 1, 1, 1], ..weight };
        assert_eq!(nearest(Places::Turns { mirrored: false, grouped: false }, &turned).unwrap(), [3.75]);
    }
}
