//! What the methods of this crate share: which layers they factorize, with which ranks, what becomes of a layer that would not gain, and the
//! training afterwards. A method adds the form of the chain and its factors.

use std::io::Read as _;

use briquette_core::coding::Coding;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op};
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use briquette_core::streams::stream;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use briquette_kernels::Structure;
use briquette_parts::clock;
use briquette_parts::refuse;
use briquette_runtime::layers;
use burn::tensor::Device;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::chain::{Layer, Link, any};
use crate::kernel::Kernel;
use crate::norm::{self, Norm};
use crate::ranks::{Budget, Ranks, Spectrum};
use crate::resolve::{Able, Choice, Form, Priced};

/// A method: it puts chains of one form in the place of layers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Factorized<F> {
    /// The layers, by name; without, all that the form can take.
    #[serde(default)]
    layers: Layers,
    /// Of these, the layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// How many channels lie between the links.
    ranks: Ranks,
    /// When a layer is left as it is.
    #[serde(default)]
    break_even: BreakEven,
    /// What becomes of masks and shared weights.
    #[serde(default)]
    coded: Coded,
    /// When the network is trained.
    #[serde(default)]
    order: Order,
    /// Training afterwards.
    tune: Option<Recipe>,
    /// What only this form has to set.
    #[serde(flatten)]
    form: F,
}

/// When a layer is left as it is, with a note in the report.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakEven {
    /// Where the chain would take as many weights or multiply-accumulates, or more.
    #[default]
    Counted,
    /// There, and where it would take as long in the engine, or longer: one image on one thread, measured. Another run may choose otherwise.
    Measured,
    /// Never.
    Off,
}

/// What becomes of the coding of a layer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coded {
    /// A layer that is pruned or shares its weights is refused.
    #[default]
    Refuse,
    /// Its effective weights are factorized, and the factors are neither pruned nor shared.
    Dissolve,
}

/// When the network is trained.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Once, after all layers are factorized.
    #[default]
    Whole,
    /// After each layer, from the input to the output.
    LayerByLayer,
}

/// What a method says of its form. All is of one group of a layer, and of a fully connected layer as of a convolution of one pixel.
pub trait Factorization: std::fmt::Debug + Send + DeserializeOwned + 'static {
    /// [`Method::NAME`].
    const NAME: &'static str;
    /// [`Method::PAPER`].
    const PAPER: &'static str;
    /// [`Method::EXAMPLE`].
    const EXAMPLE: &'static str;

    /// Refuses settings without sense.
    ///
    /// # Errors
    /// Names the setting.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Why a layer cannot be taken; none if it can.
    fn refuses(&self, layer: &Layer) -> Option<String>;

    /// The largest value of each rank, with which the chain can reproduce the layer or comes as near as it can.
    fn limits(&self, layer: &Layer) -> Vec<usize>;

    /// The ranks that a chain has where these are asked for: large ones may not go with small ones. The default takes them as they are.
    fn within(&self, _layer: &Layer, ranks: &[usize]) -> Vec<usize> {
        ranks.to_vec()
    }

    /// How many singular values the spectrum of each rank has, where that are fewer than the limit.
    fn known(&self, layer: &Layer) -> Vec<usize> {
        self.limits(layer)
    }

    /// The chain for these ranks, which are [within](Factorization::within) what goes together.
    fn links(&self, layer: &Layer, ranks: &[usize]) -> Vec<Link>;

    /// The structural matrix that comes in the place of a fully connected layer; none where a chain does, as by default.
    ///
    /// # Errors
    /// When the settings make no such matrix.
    fn structure(&self, _layer: &Layer, _ranks: &[usize]) -> Result<Option<Structure>> {
        Ok(None)
    }

    /// The singular values that each rank cuts off.
    fn spectra(&self, layer: &Layer, kernel: &Kernel) -> Vec<Spectrum>;

    /// The kernels of the chain, or the parameters of the structural matrix, in order, as one.
    ///
    /// # Errors
    /// When there are none for this kernel.
    fn factors(&self, layer: &Layer, kernel: &Kernel, ranks: &[usize], seed: u64) -> Result<Factors>;

    /// Kernels that are nearer to what the layer computes of images, by group and link, and what they miss of it in words; the default leaves them
    /// as they are, and what they miss is the [residual](Factors::residual).
    ///
    /// # Errors
    /// When an image cannot be read, or the user asks to stop.
    fn adapted(
        &self,
        _site: &Site<'_>,
        kernels: Vec<Vec<Kernel>>,
        _cx: &mut Context<'_>,
    ) -> Result<(Vec<Vec<Kernel>>, Option<String>)> {
        Ok((kernels, None))
    }

    /// Where batch norms come.
    fn norm(&self) -> Norm {
        Norm::None
    }

    /// Shortens what is no recipe for a trial run.
    fn shorten(&mut self) {}
}

/// The kernels of a chain for one group.
#[derive(Debug)]
pub struct Factors {
    /// One for each link.
    pub kernels: Vec<Kernel>,
    /// `||W - W~||^2`, the energy that the chain lacks.
    pub residual: f64,
    /// What the user should know of them.
    pub note: Option<String>,
}

/// The layer that is being factorized, in its network.
#[derive(Debug)]
pub struct Site<'a> {
    /// The network before the pass.
    pub original: &'a Net,
    /// The network in which the layers before this one are factorized.
    pub net: &'a Net,
    /// The layer's name.
    pub name: &'a str,
    /// What it is.
    pub layer: Layer,
    /// Its chain.
    pub links: &'a [Link],
}

/// A layer that is to be factorized.
struct Chosen {
    name: String,
    layer: Layer,
    ranks: Vec<usize>,
    links: Vec<Link>,
    structure: Option<Structure>,
}

/// Under which key a run keeps what a measurement has chosen.
const KEPT: &str = "ranks";

impl Chosen {
    /// Whether it takes fewer weights and fewer multiply-accumulates than the layer.
    fn gains(&self) -> bool {
        let [weights, macs] = self.cost();
        weights < self.layer.weights() as u64 && macs < self.layer.macs()
    }

    /// A network of what comes in the layer's place alone.
    fn alone(&self) -> Result<Net> {
        let Some(structure) = self.structure else { return self.layer.alone(Some(&self.links)) };
        let op = structured("0", structure, &filled(&structure), None, &Device::flex())?;
        Ok(clock::alone([self.layer.shape[1], 1, 1], true, vec![op]))
    }

    /// Weights and multiply-accumulates.
    fn cost(&self) -> [u64; 2] {
        match &self.structure {
            Some(structure) => [structure.count() as u64, structure.macs()],
            None => [self.layer.weights_of(&self.links) as u64, self.layer.macs_of(&self.links)],
        }
    }
}

impl<F: Factorization> Method for Factorized<F> {
    const NAME: &'static str = F::NAME;
    const FAMILY: &'static str = "low-rank factorization";
    const PAPER: &'static str = F::PAPER;
    const EXAMPLE: &'static str = F::EXAMPLE;
}

impl<F: Factorization> Pass for Factorized<F> {
    fn run(&self, mut net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let chosen = self.settled(&net, cx)?;
        let original = net.deep_clone();
        for of in &chosen {
            net = self.replaced(net, of, &original, cx)?;
            if self.order == Order::LayerByLayer {
                net = norm::placed(net, &[(&of.name, &of.links)], self.form.norm(), cx)?;
                net = tune(net, self.tune.as_ref(), cx)?;
            }
        }
        if self.order == Order::LayerByLayer {
            return Ok(net);
        }
        let chains: Vec<(&str, &[Link])> = chosen.iter().map(|of| (of.name.as_str(), of.links.as_slice())).collect();
        let net = norm::placed(net, &chains, self.form.norm(), cx)?;
        if let Ranks::Budget(Budget::Ms(ms), ..) = self.ranks {
            let taken = clock::turns(std::slice::from_ref(&net))?[0];
            cx.note(format!("the network takes {taken:.3} ms in the engine, of {ms} asked for"));
        }
        tune(net, self.tune.as_ref(), cx)
    }

    /// The factors have no values yet.
    fn plan(&self, mut net: Net) -> Result<Net> {
        let device = net.device();
        for of in self.chosen(&net, None)? {
            let index = net.index(&of.name)?;
            let bias = bias(&net, index);
            let kernels: Vec<Vec<Kernel>> = match &of.structure {
                Some(structure) => vec![vec![filled(structure)]],
                None => vec![of.links.iter().map(Link::filled).collect(); of.layer.groups],
            };
            net = net.rewrite(index, chain(&of, &kernels, bias, &device)?)?;
            net = norm::planned(net, &of.name, &of.links, self.form.norm())?;
        }
        Ok(net)
    }

    fn estimate(&self) -> Option<&'static str> {
        let measured = self.measures().then_some("what is measured may come out otherwise in the run");
        self.ranks.estimate().or(measured)
    }

    fn shorten(&mut self) {
        self.form.shorten();
        self.ranks.shorten();
    }
}

impl<F: Factorization> Factorized<F> {
    /// The network with a chain in the place of one layer.
    fn replaced(&self, net: Net, of: &Chosen, original: &Net, cx: &mut Context<'_>) -> Result<Net> {
        let (index, device) = (net.index(&of.name)?, net.device());
        let (mut kernels, mut residual, mut energy) = (Vec::new(), 0.0, 0.0);
        for (group, kernel) in groups(&net, index, &of.layer)?.into_iter().enumerate() {
            let seed = stream(cx.seed, &format!("{} group {group}", of.name));
            let found = self.form.factors(&of.layer, &kernel, &of.ranks, seed)?;
            (residual, energy) = (residual + found.residual, energy + kernel.energy());
            found.note.into_iter().for_each(|note| cx.note(format!("{}: {note}", of.name)));
            kernels.push(found.kernels);
        }
        let site = Site { original, net: &net, name: &of.name, layer: of.layer, links: &of.links };
        let (kernels, missed) = self.form.adapted(&site, kernels, cx)?;
        let (before, [after, _]) = (of.layer.weights(), of.cost());
        let share = if energy > 0.0 { 100.0 * (residual / energy).sqrt() } else { 0.0 };
        let missed = missed.unwrap_or_else(|| format!("{share:.2} % of the kernel's norm missing"));
        cx.note(format!("{}: {}, {after} weights instead of {before}, {missed}", of.name, shown(&of.ranks, of.layer.groups)));
        let nodes = chain(of, &kernels, bias(&net, index), &device)?;
        net.rewrite(index, nodes)
    }

    /// Whether times decide.
    fn measures(&self) -> bool {
        self.break_even == BreakEven::Measured || matches!(self.ranks, Ranks::Budget(Budget::Ms(_), ..))
    }

    /// The layers that are factorized. What a measurement has chosen is kept, for a run that goes on would measure something else.
    fn settled(&self, net: &Net, cx: &mut Context<'_>) -> Result<Vec<Chosen>> {
        if !self.measures() {
            return self.chosen(net, Some(cx));
        }
        let unread = |error: String| Error::State(format!("ranks: {error}"));
        let mut kept: Option<Vec<(String, Vec<usize>)>> = None;
        if let Some(mut saved) = cx.host.saved(KEPT)? {
            let mut text = String::new();
            saved.bytes.read_to_string(&mut text).map_err(|error| unread(error.to_string()))?;
            kept = Some(serde_json::from_str(&text).map_err(|error| unread(error.to_string()))?);
        }
        if let Some(kept) = kept {
            let shapes = net.shapes()?;
            let chosen = kept.into_iter().map(|(name, ranks)| {
                let node = &net.nodes[net.index(&name)?];
                let layer = Layer::of(node, &shapes[node.inputs[0]]).ok_or_else(|| unread(format!("of '{name}'")))?;
                self.of(name, layer, ranks)
            });
            return chosen.collect();
        }
        let chosen = self.chosen(net, Some(cx))?;
        let kept: Vec<(&str, &[usize])> = chosen.iter().map(|of| (of.name.as_str(), of.ranks.as_slice())).collect();
        let text = serde_json::to_string(&kept).map_err(|error| unread(error.to_string()))?;
        cx.host.save(KEPT, &mut |to| to.write_all(text.as_bytes()).map_err(|error| unread(error.to_string())))?;
        Ok(chosen)
    }

    /// A layer with what comes in its place.
    fn of(&self, name: String, layer: Layer, ranks: Vec<usize>) -> Result<Chosen> {
        let structure = self.form.structure(&layer, &ranks)?;
        let links = if structure.is_some() { Vec::new() } else { self.form.links(&layer, &ranks) };
        Ok(Chosen { name, layer, ranks, links, structure })
    }

    /// The layers that are factorized, with their ranks: those that follow from weights and data, or without a context what they are likely to be.
    fn chosen(&self, net: &Net, mut cx: Option<&mut Context<'_>>) -> Result<Vec<Chosen>> {
        self.form.check()?;
        self.tune.iter().try_for_each(Recipe::check)?;
        let contradiction = match (self.order, self.break_even, &self.ranks) {
            (Order::LayerByLayer, ..) if self.tune.is_none() => {
                "`order = \"layer-by-layer\"` says when to train; it needs `tune`"
            }
            (_, BreakEven::Measured, Ranks::Budget(Budget::Macs(_) | Budget::Bytes(_), ..)) => {
                "a layer that a measurement leaves as it is would break a budget of `macs` or `bytes`; set one of `ms`, or leave out `break-even`"
            }
            (.., Ranks::Budget(Budget::Bytes(_), ..)) if self.coded == Coded::Dissolve => {
                "a budget of `bytes` does not know what a dissolved coding took; set one of `macs`"
            }
            _ => "",
        };
        if !contradiction.is_empty() {
            return Err(Error::Invalid(format!("{}: {contradiction}", F::NAME)));
        }
        let shapes = net.shapes()?;
        let (mut able, mut refused) = (Vec::new(), None);
        for index in self.layers.without(&self.except, net)? {
            let node = &net.nodes[index];
            match Layer::of(node, &shapes[node.inputs[0]]) {
                Some(layer) if self.form.refuses(&layer).is_none() => able.push((index, layer)),
                other => {
                    let why = other.and_then(|layer| self.form.refuses(&layer));
                    let why = why.unwrap_or_else(|| "is no convolution and not fully connected".into());
                    self.layers.all_done(net, |done| done != index, &why)?;
                    if let Ranks::Layers(rules) = &self.ranks {
                        rules.all_done(net, |done| done != index, &why)?;
                    }
                    refused.get_or_insert(Error::node(&node.name, why));
                }
            }
        }
        if let (true, Some(error)) = (able.is_empty(), refused) {
            return Err(error);
        }
        let able: Vec<Able> =
            able.into_iter().map(|(index, layer)| Able { index, layer, limits: self.form.limits(&layer) }).collect();
        let form = Planned { method: self, exact: cx.is_some() };
        let choices = self.ranks.resolve(net, &able, &form, cx.as_deref_mut())?;
        let mut note = |text: String| {
            if let Some(cx) = &mut cx {
                cx.note(text);
            }
        };
        if choices.iter().all(|choice| matches!(choice, Choice::Unnamed)) {
            return Err(Error::Invalid(format!("{}: `ranks` names no layer that it takes; add `rest`", F::NAME)));
        }
        let mut chosen = Vec::new();
        for (Able { index, layer, .. }, choice) in able.into_iter().zip(choices) {
            let name = net.nodes[index].name.clone();
            let ranks = match choice {
                Choice::Unnamed => {
                    self.layers.all_done(
                        net,
                        |done| done != index,
                        "is named in `layers`, but has no rank in `ranks`; add it or `rest`",
                    )?;
                    continue;
                }
                Choice::Dense => {
                    note(format!("{name} is left as it is: a chain would cost no less, or the budget has room for it"));
                    continue;
                }
                Choice::Ranks(ranks, why) => {
                    why.into_iter().for_each(|why| note(format!("{name}: {why}")));
                    ranks
                }
            };
            let of = self.of(name, layer, self.form.within(&layer, &ranks))?;
            if let Some(why) = self.lost(&of)? {
                note(format!("{} is left as it is: with {} {why}", of.name, shown(&of.ranks, layer.groups)));
                continue;
            }
            if self.coded == Coded::Refuse {
                refuse::pruned(net, [&index], F::NAME)?;
                refuse::shared(net, [&index], F::NAME)?;
            } else if net.nodes[index].weight().is_some_and(|weight| weight.coding != Coding::default()) {
                note(format!("{}: its mask or shared weights are dissolved", of.name));
            }
            chosen.push(of);
        }
        Ok(chosen)
    }

    /// What a layer would lose by a chain; none if it gains.
    fn lost(&self, of: &Chosen) -> Result<Option<String>> {
        if self.break_even == BreakEven::Off {
            return Ok(None);
        }
        let ([weights, macs], [were, had]) = (of.cost(), [of.layer.weights() as u64, of.layer.macs()]);
        if !of.gains() {
            return Ok(Some(format!(
                "its chain would take {weights} weights and {macs} multiply-accumulates, not {were} and {had}"
            )));
        }
        if self.break_even == BreakEven::Measured {
            let times = clock::turns(&[of.layer.alone(None)?, of.alone()?])?;
            if times[1] >= times[0] {
                return Ok(Some(format!("its chain would take {:.3} ms in the engine, not {:.3}", times[1], times[0])));
            }
        }
        Ok(None)
    }
}

/// A form as the rules for ranks see it, with the weights of a network or without.
struct Planned<'a, F> {
    method: &'a Factorized<F>,
    exact: bool,
}

impl<F: Factorization> Form for Planned<'_, F> {
    fn priced(&self, layer: &Layer, ranks: &[usize]) -> Result<Option<Priced>> {
        let of = self.method.of(String::new(), *layer, self.method.form.within(layer, ranks))?;
        if self.method.break_even != BreakEven::Off && !of.gains() {
            return Ok(None);
        }
        let [weights, macs] = of.cost();
        let beside = norm::values(layer, &of.links, self.method.form.norm());
        Ok(Some(Priced { ranks: of.ranks, weights, macs, beside, nodes: of.links.len().max(1) }))
    }

    fn alone(&self, layer: &Layer, ranks: &[usize]) -> Result<Net> {
        self.method.of(String::new(), *layer, self.method.form.within(layer, ranks))?.alone()
    }

    fn replaced(&self, net: &Net, able: &Able, ranks: &[usize], cx: &mut Context<'_>) -> Result<Net> {
        let of = self.method.of(net.nodes[able.index].name.clone(), able.layer, ranks.to_vec())?;
        self.method.replaced(net.deep_clone(), &of, net, cx)
    }

    fn spectra(&self, net: &Net, able: &Able) -> Result<Vec<Spectrum>> {
        let form = &self.method.form;
        if !self.exact {
            return Ok(form.known(&able.layer).into_iter().map(Spectrum::flat).collect());
        }
        let of_groups: Vec<Vec<Spectrum>> =
            groups(net, able.index, &able.layer)?.iter().map(|kernel| form.spectra(&able.layer, kernel)).collect();
        let of_rank = |rank: usize| Spectrum::together(&of_groups.iter().map(|group| group[rank].clone()).collect::<Vec<_>>());
        Ok((0..able.limits.len()).map(of_rank).collect())
    }
}

/// The bias of a layer.
fn bias(net: &Net, index: usize) -> Option<Vec<f32>> {
    let parameters = net.nodes[index].parameters();
    parameters.into_iter().find(|parameter| parameter.name == "bias").map(|bias| bias.values())
}

/// The nodes of a chain, by the kernels of each group; the bias comes last.
fn chain(of: &Chosen, kernels: &[Vec<Kernel>], mut bias: Option<Vec<f32>>, device: &Device) -> Result<Vec<(String, Op)>> {
    if let Some(structure) = of.structure {
        return Ok(vec![(of.name.clone(), structured(&of.name, structure, &kernels[0][0], bias, device)?)]);
    }
    let last = of.links.iter().rposition(|link| !link.moves);
    // What moves behind the last weights moves their biases, too.
    for at in (last.map_or(0, |last| last + 1)..of.links.len()).rev() {
        let count = of.links[at].shape[0];
        bias = bias.map(|bias| {
            let mut before = bias.clone();
            for (place, value) in bias.into_iter().enumerate() {
                before[place / count * count + kernels[place / count][at].values[place % count] as usize] = value;
            }
            before
        });
    }
    let links = of.links.iter().enumerate().map(|(at, link)| {
        let name = format!("{}.{}", of.name, link.name);
        let of_groups: Vec<&Kernel> = kernels.iter().map(|group| &group[at]).collect();
        let bias = if Some(at) == last { bias.take() } else { None };
        let op = link.op(&name, &of.layer, &of_groups, bias, device)?;
        Ok((name, op))
    });
    links.collect()
}

/// Parameters of a structural matrix that are not zero.
fn filled(structure: &Structure) -> Kernel {
    Kernel::new([1, 1, 1, structure.count()], (0..structure.count()).map(any).collect())
}

/// A structural matrix of these parameters.
fn structured(name: &str, structure: Structure, values: &Kernel, bias: Option<Vec<f32>>, device: &Device) -> Result<Op> {
    let mut values = values.values.iter().map(|value| *value as f32);
    let parameter =
        |name: &'static str, shape: Vec<usize>, base: Vec<f32>| Stored { name, shape, base, coding: Coding::default() };
    let mut stored: Vec<Stored> = structure
        .parameters()
        .into_iter()
        .map(|own| parameter(own.name, own.shape.to_vec(), values.by_ref().take(own.count()).collect()))
        .collect();
    stored.extend(bias.map(|bias| parameter("bias", vec![bias.len()], bias)));
    Op::built(name, &layers::Structured { structure }.into(), stored, device)
}

/// The kernels of a node's groups, from the weights that it computes with.
fn groups(net: &Net, index: usize, layer: &Layer) -> Result<Vec<Kernel>> {
    let node = &net.nodes[index];
    let weight = node.weight().ok_or_else(|| Error::node(&node.name, "has no weights of its own"))?;
    let values = weight.values();
    refuse::not_finite(&node.name, &values)?;
    let each = values.chunks_exact(layer.shape.iter().product());
    Ok(each.map(|group| Kernel::new(layer.shape, group.iter().copied().map(f64::from).collect())).collect())
}

/// Ranks in words: those of all groups together.
fn shown(ranks: &[usize], groups: usize) -> String {
    let each: Vec<String> = ranks.iter().map(|rank| (rank * groups).to_string()).collect();
    if let [rank] = &each[..] { format!("rank {rank}") } else { format!("ranks {}", each.join(", ")) }
}

#[cfg(test)]
mod tests;
