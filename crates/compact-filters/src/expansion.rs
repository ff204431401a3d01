//! What `crelu` and `multi-bias` share: of each filter of a convolution come several maps, each rectified by itself, so that fewer filters
//! do. It stands where the rectifier was that the maps of the convolution come to, through a batch norm or what else keeps channels apart.

use std::collections::{BTreeMap, BTreeSet};

use briquette_core::builder::he_normal;
use briquette_core::coding::Coding;
use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::{Net, Node, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use briquette_core::{Activation, Layer};
use briquette_runtime::layers::{self, Arity, Channels, Extent};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::chosen::{Init, chosen, finite};

/// A method: it replaces the rectifiers of convolutions in one group, each of whose filters then makes several maps.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Expanding<F> {
    /// Convolutions, by name; without it all whose maps are rectified.
    #[serde(default)]
    layers: Layers,
    /// Of these, the layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Where the filters begin.
    #[serde(default)]
    init: Init,
    /// Training afterwards.
    tune: Option<Recipe>,
    /// What only this form has to set.
    #[serde(flatten)]
    form: F,
}

/// How the maps come about.
pub trait Expansion: std::fmt::Debug + Send + DeserializeOwned + 'static {
    /// [`Method::NAME`].
    const NAME: &'static str;
    /// [`Method::PAPER`].
    const PAPER: &'static str;
    /// [`Method::EXAMPLE`].
    const EXAMPLE: &'static str;
    /// What tells the maps of one filter apart in front of the rectifier.
    const CHANGE: &'static str;

    /// Refuses settings without sense.
    ///
    /// # Errors
    /// Names the setting.
    fn check(&self, init: Init) -> Result<()>;

    /// Maps of one filter.
    fn copies(&self) -> usize;

    /// Old filters, `copies` together, of which one becomes each new filter.
    fn together(&self, filters: &[&[f32]]) -> Vec<Vec<usize>>;

    /// What becomes of a tensor's values for filters that become one; `shift` says whether this tensor is what is added last.
    fn merged(&self, tensor: &str, values: &[f32], shift: bool) -> f32;

    /// Whether a layer that does the same to each channel commutes with that change, so that the change can come behind it.
    fn passes(&self, layer: &Layer) -> bool;

    /// The nodes in front of the rectifier.
    ///
    /// # Errors
    /// When a node cannot be made.
    fn nodes(&self, net: &Net, at: &Rectifier<'_>) -> Result<Vec<Node>>;
}

/// A rectifier in front of which nodes are put.
#[derive(Debug, Clone, Copy)]
pub struct Rectifier<'a> {
    /// Its name.
    pub name: &'a str,
    /// The node that the first of the new ones reads.
    pub input: usize,
    /// The index of the first new node.
    pub first: usize,
    /// The filters that are left.
    pub filters: usize,
    /// What the settings say.
    pub init: Init,
    /// For each of these filters what was added to the maps of the old ones; none where nothing was, or where their values do not matter.
    pub shifts: Option<&'a [Vec<f32>]>,
}

impl<F: Expansion> Method for Expanding<F> {
    const NAME: &'static str = F::NAME;
    const FAMILY: &'static str = "compact filters";
    const PAPER: &'static str = F::PAPER;
    const EXAMPLE: &'static str = F::EXAMPLE;
}

impl<F: Expansion> Pass for Expanding<F> {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.rewritten(net, self.init, cx.seed)?;
        tune(net, self.tune.as_ref(), cx)
    }

    /// The filters have no values yet.
    fn plan(&self, net: Net) -> Result<Net> {
        self.rewritten(net, Init::Random, 0)
    }
}

impl<F: Expansion> Expanding<F> {
    /// The network whose new layers have the values of `start`; their structure follows from the settings.
    fn rewritten(&self, net: Net, start: Init, seed: u64) -> Result<Net> {
        self.form.check(self.init)?;
        self.tune.iter().try_for_each(Recipe::check)?;
        let shapes = net.shapes()?;
        let sites = chosen(&net, [&self.layers, &self.except], |index| site(&net, &shapes, index, &self.form, self.init))?;
        expanded(net, &self.form, &sites, [self.init, start], seed)
    }
}

/// Where a convolution is expanded.
#[derive(Debug, Clone)]
struct Site {
    /// The batch norms between convolution and rectifier.
    norms: Vec<String>,
    rectifier: String,
    /// What reads the rectified maps, each channel of them as so many columns.
    readers: Vec<(String, usize)>,
}

/// The network with the layers of these sites expanded. What the settings say, `init`, decided which are; new values begin as `values` says.
fn expanded(
    mut net: Net,
    by: &impl Expansion,
    sites: &BTreeMap<String, Site>,
    [init, values]: [Init; 2],
    seed: u64,
) -> Result<Net> {
    for (name, site) in sites {
        let (device, index) = (net.device(), net.index(name)?);
        let parameters = finite(&net.nodes[index])?;
        let old = parameters[0].shape[0];
        let filters = old / by.copies();
        let together = match values {
            Init::Fit => {
                let rows: Vec<&[f32]> = parameters[0].base.chunks(parameters[0].base.len() / old).collect();
                by.together(&rows)
            }
            Init::Random => Vec::new(),
        };
        let last = site.norms.last().unwrap_or(name);
        let shifting = |stored: &Stored| ["beta", "bias"].contains(&stored.name);
        let shift = net.nodes[net.index(last)?].parameters().into_iter().find(shifting).map(|shift| shift.base);
        let shifts: Option<Vec<Vec<f32>>> =
            shift.map(|shift| together.iter().map(|old| old.iter().map(|filter| shift[*filter]).collect()).collect());
        for made in site.norms.iter().chain([name]) {
            let index = net.index(made)?;
            let node = net.nodes.remove(index);
            let fewer = node.parameters().into_iter().map(|stored| match values {
                Init::Fit => {
                    let shift = made == last && shifting(&stored);
                    merged(stored, &together, |tensor, values| by.merged(tensor, values, shift))
                }
                Init::Random => fresh(stored, made, filters, seed),
            });
            let fewer = fewer.collect();
            net.nodes.insert(index, node.with(fewer, &device)?);
        }
        if values == Init::Fit {
            let order: Vec<usize> = (0..by.copies()).flat_map(|copy| together.iter().map(move |old| old[copy])).collect();
            for (reader, spread) in &site.readers {
                net = reordered(net, reader, *spread, &order)?;
            }
        }
        let at = net.index(&site.rectifier)?;
        let input = net.nodes[at].inputs[0];
        let shifts = shifts.filter(|_| values == Init::Fit);
        let front = Rectifier { name: &site.rectifier, input, first: at, filters, init, shifts: shifts.as_deref() };
        let new = by.nodes(&net, &front)?;
        let end = at + new.len() - 1;
        net = net.insert(at, new, |node, read| (node.name == site.rectifier && read == input).then_some(end))?;
    }
    Ok(net)
}

/// Where the layer is expanded, or why it cannot be.
fn site<E: Expansion>(net: &Net, shapes: &[Vec<usize>], index: usize, by: &E, init: Init) -> std::result::Result<Site, String> {
    let copies = by.copies();
    let Layer::Conv2d(layers::Conv2d { groups: 1, .. }) = net.nodes[index].op.layer() else {
        return Err("is no convolution in one group; leave it out".into());
    };
    let filters = shapes[index][0];
    if !filters.is_multiple_of(copies) {
        return Err(format!("has {filters} filters, no multiple of {copies}; leave it out"));
    }
    let (mut end, mut norms) = (index, Vec::new());
    let rectifier = loop {
        let mut readers = readers(net, end);
        let (Some(next), None) = (readers.next(), readers.next()) else {
            return Err("its maps are not read by one layer alone before they are rectified; leave it out".into());
        };
        let node = &net.nodes[next];
        match node.op.layer() {
            Layer::Activation(Activation::Relu) => break next,
            Layer::BatchNorm(_) => norms.push(node.name.clone()),
            layer if apart(&layer) && (init == Init::Random || by.passes(&layer)) => {}
            layer => {
                let kind = layer.kind().name();
                if apart(&layer) {
                    return Err(format!(
                        "its maps are read before they are rectified by '{}' ({kind}), which does not commute with {}; set `init = \"random\"`, or leave it out",
                        node.name,
                        E::CHANGE
                    ));
                }
                return Err(format!("its maps are read by '{}' ({kind}) before they are rectified; leave it out", node.name));
            }
        }
        end = next;
    };
    if unread(net, rectifier) {
        return Err("its channels are the network's output; leave it out".into());
    }
    let readers = if init == Init::Fit { in_order(net, shapes, rectifier)? } else { Vec::new() };
    Ok(Site { norms, rectifier: net.nodes[rectifier].name.clone(), readers })
}

fn readers(net: &Net, of: usize) -> impl Iterator<Item = usize> {
    (0..net.nodes.len()).filter(move |reader| net.nodes[*reader].inputs.contains(&of))
}

/// Whether a layer does the same to each channel of its one input.
fn apart(layer: &Layer) -> bool {
    let kind = layer.kind();
    let alike = kind.tensors().iter().all(|tensor| tensor.shape != Extent::Outputs);
    kind.arity() == Arity::One && kind.channels() == Channels::Kept && alike
}

/// Whether what a node makes comes to the network's output without a layer that mixes its channels.
fn unread(net: &Net, of: usize) -> bool {
    let (mut open, mut seen) = (vec![of], BTreeSet::new());
    while let Some(node) = open.pop() {
        if node + 1 == net.nodes.len() {
            return true;
        }
        let mixes = |reader: usize| {
            matches!(net.nodes[reader].op.layer(), Layer::Conv2d(layers::Conv2d { groups: 1, .. }) | Layer::Linear(_))
        };
        open.extend(readers(net, node).filter(|reader| !mixes(*reader) && seen.insert(*reader)));
    }
    false
}

/// What reads the channels of a node, which can take them in another order, each channel as so many columns.
fn in_order(net: &Net, shapes: &[Vec<usize>], of: usize) -> std::result::Result<Vec<(String, usize)>, String> {
    let (mut found, mut open) = (Vec::new(), vec![(of, 1)]);
    while let Some((node, spread)) = open.pop() {
        for reader in readers(net, node) {
            let layer = net.nodes[reader].op.layer();
            match &layer {
                Layer::Conv2d(layers::Conv2d { groups: 1, .. }) | Layer::Linear(_) => {
                    let name = &net.nodes[reader].name;
                    if net.nodes[reader].weight().is_some_and(|weight| weight.coding != Coding::default()) {
                        return Err(format!(
                            "its channels, whose order `init = \"fit\"` changes, are read by '{name}', which is pruned, quantized or shares its weights; put the pass \
                             before those, or set `init = \"random\"`"
                        ));
                    }
                    found.push((name.clone(), spread));
                }
                layer if apart(layer) => open.push((reader, spread)),
                layer if layer.kind().channels() == Channels::Spread => {
                    open.push((reader, spread * shapes[node][1..].iter().product::<usize>()));
                }
                layer => {
                    let (name, kind) = (&net.nodes[reader].name, layer.kind().name());
                    return Err(format!(
                        "its channels, whose order `init = \"fit\"` changes, are read by '{name}' ({kind}); set `init = \"random\"`, or leave it out"
                    ));
                }
            }
        }
    }
    Ok(found)
}

/// A tensor `[filters, ...]` with one row for the filters that become one.
fn merged(stored: Stored, together: &[Vec<usize>], by: impl Fn(&str, &[f32]) -> f32) -> Stored {
    let row = stored.base.len() / stored.shape[0];
    let value = |old: &Vec<usize>, at: usize| {
        let values: Vec<f32> = old.iter().map(|filter| stored.base[filter * row + at]).collect();
        by(stored.name, &values)
    };
    let base = together.iter().flat_map(|old| (0..row).map(|at| value(old, at)).collect::<Vec<_>>()).collect();
    with_rows(stored, together.len(), base)
}

/// A tensor of so many filters as at the start of a training.
fn fresh(stored: Stored, name: &str, filters: usize, seed: u64) -> Stored {
    let row = stored.base.len() / stored.shape[0];
    let base = match stored.name {
        "weight" => he_normal(seed, name, filters * row, row),
        "gamma" | "var" => vec![1.0; filters],
        _ => vec![0.0; filters],
    };
    with_rows(stored, filters, base)
}

fn with_rows(mut stored: Stored, rows: usize, base: Vec<f32>) -> Stored {
    stored.shape[0] = rows;
    Stored { base, ..stored }
}

/// The network whose layer `reader` reads in the place of each channel what was the channel `order` says.
fn reordered(mut net: Net, reader: &str, spread: usize, order: &[usize]) -> Result<Net> {
    let (device, index) = (net.device(), net.index(reader)?);
    let node = net.nodes.remove(index);
    let mut parameters = node.parameters();
    for weight in parameters.iter_mut().filter(|stored| stored.name == "weight") {
        let taps: usize = weight.shape[2..].iter().product::<usize>() * spread;
        let columns = weight.base.chunks(taps * order.len());
        weight.base = columns.flat_map(|row| order.iter().flat_map(move |old| &row[old * taps..][..taps])).copied().collect();
    }
    net.nodes.insert(index, node.with(parameters, &device)?);
    Ok(net)
}

/// A node without parameters.
pub(crate) fn fixed(name: String, inputs: &[usize], layer: impl Into<Layer>) -> Node {
    Node { op: Op::fixed(layer), name, inputs: inputs.to_vec() }
}

/// A node that scales and shifts each channel.
pub(crate) fn affine(net: &Net, name: String, input: usize, scale: Option<Vec<f32>>, shift: Vec<f32>) -> Result<Node> {
    let stored = |name, base: Vec<f32>| Stored { name, shape: vec![base.len()], base, coding: Coding::default() };
    let tensors = scale.map(|scale| stored("scale", scale)).into_iter().chain([stored("shift", shift)]).collect();
    fixed(name, &[input], layers::Negate).replaced(&layers::Affine.into(), tensors, &net.device())
}

/// The filters put together greedily: time and again the two that are most alike and not yet taken, and with them, up to `count`, the ones
/// most like the first of them. `alike` makes a measure of the cosine of two filters, which is 0 where one of them is.
pub(crate) fn greedily(filters: &[&[f32]], count: usize, alike: impl Fn(f64) -> f64) -> Vec<Vec<usize>> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norms: Vec<f64> = filters.iter().map(|filter| dot(filter, filter).sqrt()).collect();
    let measure = |i: usize, j: usize| {
        let norm = norms[i] * norms[j];
        alike(if norm > 0.0 { dot(filters[i], filters[j]) / norm } else { 0.0 })
    };
    let mut pairs: Vec<(f64, usize, usize)> = (0..filters.len())
        .flat_map(|i| (i + 1..filters.len()).map(move |j| (i, j)))
        .map(|(i, j)| (measure(i, j), i, j))
        .collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut taken, mut together) = (vec![false; filters.len()], Vec::new());
    for &(_, i, j) in &pairs {
        if taken[i] || taken[j] {
            continue;
        }
        let mut others: Vec<usize> = (0..filters.len()).filter(|other| ![i, j].contains(other) && !taken[*other]).collect();
        if count > 2 {
            others.sort_by(|a, b| measure(i, *b).total_cmp(&measure(i, *a)));
        }
        let found: Vec<usize> = [i, j].into_iter().chain(others.into_iter().take(count - 2)).collect();
        found.iter().for_each(|filter| taken[*filter] = true);
        together.push(found);
    }
    together
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{At, Builder, Conv};
    use briquette_core::pass::Pass;
    use briquette_core::zoo::Arch;
    use briquette_handmade::{refusal, run};
    use briquette_runtime::Window;
    use burn::tensor::Device;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;
    use crate::crelu::Crelu;
    use crate::multi_bias::MultiBias;

    #[test]
    fn filters_of_zeros_are_like_none() {
        let filters: [&[f32]; 4] = [&[0.0], &[0.0], &[1.0], &[-1.0]];
        assert_eq!(greedily(&filters, 2, |cosine| -cosine), [[2, 3], [0, 1]]);
        assert_eq!(greedily(&filters, 2, |cosine| cosine), [[0, 1], [2, 3]]);
    }

    fn classes_stay<P: Pass + DeserializeOwned>(init: &str) {
        for (name, last, hidden) in [("nin", "cccp6", "cccp5"), ("all-cnn-c", "conv9", "conv8")] {
            let arch = Arch::named(name).unwrap();
            let net = || arch.build(&arch.wanted(), &Device::flex()).unwrap();
            let filters = |net: &Net, layer: &str| net.nodes[net.index(layer).unwrap()].op.weight_shape().unwrap()[0];
            let plan = |settings| serde_json::from_value::<P>(settings).unwrap().plan(net());
            let halved = plan(json!({ "init": init })).unwrap();
            assert_eq!(filters(&halved, last), 10);
            assert_eq!(filters(&halved, hidden), filters(&net(), hidden) / 2);
            let named = plan(json!({ "init": init, "layers": [last] })).unwrap_err().to_string();
            assert_eq!(named, format!("node '{last}': its channels are the network's output; leave it out"));
        }
    }

    #[test]
    fn convolutions_that_make_the_classes_keep_their_filters() {
        for init in ["fit", "random"] {
            classes_stay::<Crelu>(init);
            classes_stay::<MultiBias>(init);
        }
    }

    /// A layer between convolution and rectifier.
    fn between(layer: impl FnOnce(&mut Builder, At) -> At) -> Net {
        let mut b = Builder::new([1, 4, 4], 11, &Device::flex());
        let x = b.conv("conv", b.input(), Conv::new(4, 3).same());
        let x = layer(&mut b, x);
        let x = b.relu("relu", x);
        let x = b.flatten("flatten", x);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    }

    #[test]
    fn only_layers_that_commute_stand_in_front_of_the_rectifier() {
        let most = || between(|b, x| b.max_pool("pool", x, Window::square(2)));
        let window = Window { padding: briquette_core::Padding([[1; 2]; 2]), ..Window::square(2) };
        let mean = |count_padding| between(|b, x| b.fixed("pool", &[x], layers::AvgPool { window, count_padding }));
        let crelu = |net: Net| run::<Crelu>(net, json!({})).map(drop).map_err(|error| error.to_string());
        let biases = |net: Net| run::<MultiBias>(net, json!({})).map(drop).map_err(|error| error.to_string());
        let refused = |kind: &str, change: &str| {
            Err(format!(
                "node 'conv': its maps are read before they are rectified by 'pool' ({kind}), which does not commute with {change}; \
                 set `init = \"random\"`, or leave it out"
            ))
        };
        assert_eq!(crelu(most()), refused("max-pool", "a change of sign"));
        assert_eq!((crelu(mean(true)), crelu(mean(false))), (Ok(()), Ok(())));
        assert_eq!((biases(most()), biases(mean(false))), (Ok(()), Ok(())));
        assert_eq!(biases(mean(true)), refused("avg-pool", "a shift"));
        let clipped = between(|b, x| b.fixed("tanh", &[x], Activation::Tanh));
        assert!(refusal::<Crelu>(clipped.deep_clone(), json!({})).contains("does not commute with a change of sign"));
        assert!(refusal::<MultiBias>(clipped, json!({})).contains("does not commute with a shift"));
    }
}
