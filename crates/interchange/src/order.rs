//! Which module of a checkpoint is which layer, by names and by order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use briquette_core::net::{Net, Node, Op};

use crate::Checkpoint;
use crate::names::{below, natural, numbered, partners, shared};

/// What a module or a layer is, as far as its weight tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Convolution,
    FullyConnected,
    BatchNorm,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Convolution, Kind::FullyConnected, Kind::BatchNorm];

    fn name(self) -> &'static str {
        match self {
            Kind::Convolution => "convolution",
            Kind::FullyConnected => "fully connected layer",
            Kind::BatchNorm => "batch norm",
        }
    }
}

/// A module of the file, or a layer of the network: its name and what it is.
#[derive(Debug, Clone)]
struct Unit<'a> {
    name: &'a str,
    kind: Kind,
    shape: Vec<usize>,
}

/// A layer and its place in the network.
type Layer<'a> = (usize, Unit<'a>);

/// Layers' positions to the prefixes of their tensors' names.
pub(crate) type Prefixes = BTreeMap<usize, String>;

/// Finds each layer's module: by name where all layers bear those of the file, otherwise by order. Modules go to the layers of their kind
/// and shape in natural order of their names.
///
/// # Errors
/// Modules without a layer and layers without a module, the network several times over, and orders that do not follow from the file: then the
/// mapping that would be is in the text.
pub(crate) fn find(net: &Net, checkpoint: &Checkpoint) -> Result<Prefixes, String> {
    let layers = layers(net);
    let modules = modules(checkpoint);
    match by_name(&layers, &modules)[..] {
        [prefix] => {
            let full = |name: &str| if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
            Ok(layers.iter().map(|(index, layer)| (*index, full(layer.name))).collect())
        }
        [] => by_order(net, &layers, &modules),
        ref several => Err(chosen("holds the network more than once", several)),
    }
}

fn layers(net: &Net) -> Vec<Layer<'_>> {
    net.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, unit(node)?))).collect()
}

fn unit(node: &Node) -> Option<Unit<'_>> {
    let (kind, shape) = match &node.op {
        Op::Conv2d(_) => (Kind::Convolution, node.op.weight_shape()?),
        Op::Linear(_) => (Kind::FullyConnected, node.op.weight_shape()?),
        Op::BatchNorm(norm) => (Kind::BatchNorm, norm.gamma.lazy_shape().as_slice().to_vec()),
        Op::Tensors(_) | Op::Fixed(_) => return None,
    };
    Some(Unit { name: &node.name, kind, shape })
}

/// The modules of the file, in natural order of their names.
fn modules(checkpoint: &Checkpoint) -> Vec<Unit<'_>> {
    let tensors = &checkpoint.tensors;
    let mut modules: Vec<Unit<'_>> = tensors
        .iter()
        .filter(|(name, _)| !checkpoint.keeps_books(name))
        .filter_map(|(name, tensor)| {
            let (prefix, "weight") = name.rsplit_once('.')? else { return None };
            let kind = match tensor.shape.len() {
                4 => Kind::Convolution,
                2 => Kind::FullyConnected,
                1 if tensors.contains_key(&format!("{prefix}.running_mean")) => Kind::BatchNorm,
                _ => return None,
            };
            Some(Unit { name: prefix, kind, shape: tensor.shape.clone() })
        })
        .collect();
    modules.sort_by(|a, b| natural(a.name, b.name));
    modules
}

/// The prefixes below which every layer finds a module of its name, kind and shape.
fn by_name<'a>(layers: &[Layer<'_>], modules: &[Unit<'a>]) -> Vec<&'a str> {
    let Some((_, first)) = layers.first() else { return Vec::new() };
    let known: BTreeMap<&str, &Unit<'_>> = modules.iter().map(|module| (module.name, module)).collect();
    let prefix = |module: &Unit<'a>| match module.name.strip_suffix(first.name)? {
        "" => Some(""),
        before => before.strip_suffix('.'),
    };
    let holds = |prefix: &&str| {
        layers.iter().all(|(_, layer)| {
            let name = if prefix.is_empty() { layer.name.to_string() } else { format!("{prefix}.{}", layer.name) };
            known.get(&*name).is_some_and(|module| (module.kind, &module.shape) == (layer.kind, &layer.shape))
        })
    };
    let prefixes: BTreeSet<&str> = modules.iter().filter_map(prefix).filter(holds).collect();
    prefixes.into_iter().collect()
}

fn by_order(net: &Net, layers: &[Layer<'_>], modules: &[Unit<'_>]) -> Result<Prefixes, String> {
    let of = |kind: Kind| modules.iter().filter(move |module| module.kind == kind);
    for kind in Kind::ALL {
        let (found, wanted) = (of(kind).count(), layers.iter().filter(|(_, layer)| layer.kind == kind).count());
        if found != wanted {
            let detail = format!("holds {found} module(s) of the kind '{}', the network has {wanted}", kind.name());
            return Err(match &parts(layers, modules)[..] {
                [] => format!(
                    "{detail}; name the right architecture, or say by a table (`--table FILE`, `[model.table]`) which module is which layer"
                ),
                several => chosen(&detail, several),
            });
        }
    }
    let mut dealt: Vec<(&Layer<'_>, &Unit<'_>)> = Vec::new();
    let mut taken = BTreeSet::new();
    for layer in layers {
        let next = of(layer.1.kind).find(|module| module.shape == layer.1.shape && !taken.contains(module.name));
        let Some(module) = next else {
            let left = of(layer.1.kind).find(|module| !taken.contains(module.name)).expect("there are as many modules as layers");
            let (has, wants) = (&left.shape, &layer.1.shape);
            return Err(format!("tensor '{}.weight' has shape {has:?}, layer '{}' takes {wants:?}", left.name, layer.1.name));
        };
        taken.insert(module.name);
        dealt.push((layer, module));
    }
    match doubt(net, &dealt) {
        Some(doubt) => Err(format!(
            "{doubt}. If the mapping below is right, give it as a table, with `--table FILE` or as `[model.table]` in a config; otherwise \
             put it right there:\n{}",
            as_table(&dealt)
        )),
        None => Ok(dealt.into_iter().map(|(layer, module)| (layer.0, module.name.to_string())).collect()),
    }
}

/// The dotted prefixes below which the file holds as many modules of each kind and shape as the network has.
fn parts<'a>(layers: &[Layer<'_>], modules: &[Unit<'a>]) -> Vec<&'a str> {
    let mut wanted: Vec<(Kind, &[usize])> = layers.iter().map(|(_, layer)| (layer.kind, &layer.shape[..])).collect();
    wanted.sort_unstable();
    let above = |name: &'a str| name.match_indices('.').map(move |(at, _)| &name[..at]);
    let prefixes: BTreeSet<&str> = modules.iter().flat_map(|module| above(module.name)).collect();
    let fits = |prefix: &&str| {
        let inside = modules.iter().filter(|module| below(module.name, prefix).is_some());
        let mut found: Vec<(Kind, &[usize])> = inside.map(|module| (module.kind, &module.shape[..])).collect();
        found.sort_unstable();
        found == wanted
    };
    let fitting: Vec<&str> = prefixes.into_iter().filter(fits).collect();
    // Of `ema` and `ema.module`, which hold the same, the first is enough.
    fitting
        .iter()
        .copied()
        .filter(|prefix| !fitting.iter().any(|other| other != prefix && below(prefix, other).is_some()))
        .collect()
}

/// A refusal that leads to `--prefix`.
fn chosen(detail: &str, prefixes: &[&str]) -> String {
    let list: Vec<String> = prefixes.iter().map(|prefix| format!("'{prefix}'")).collect();
    let (it, first) = if let [one] = &list[..] {
        (format!("it fits below {one}"), one)
    } else {
        (format!("it fits below each of {}", list.join(", ")), &list[0])
    };
    format!("{detail}; {it}: choose by `--prefix {first}`, or `prefix` of a config's model")
}

/// Why the mapping does not follow from the file, if so: names that say otherwise, or two modules that could change places.
fn doubt(net: &Net, dealt: &[(&Layer<'_>, &Unit<'_>)]) -> Option<String> {
    let common = shared(dealt.iter().map(|(_, module)| module.name));
    let own = |module: &Unit<'_>| below(module.name, common).unwrap_or(module.name).to_string();
    let misnamed = dealt.iter().find_map(|((_, layer), module)| {
        let other = dealt.iter().find(|((_, other), _)| (other.kind, other.name) == (module.kind, &own(module)))?.0;
        (other.1.name != layer.name)
            .then(|| format!("'{}' would go by its place to '{}', by its name to '{}'", module.name, layer.name, other.1.name))
    });
    if misnamed.is_some() {
        return misnamed.map(|how| format!("order and names disagree: {how}"));
    }

    let module_of: BTreeMap<usize, &str> = dealt.iter().map(|((index, _), module)| (*index, module.name)).collect();
    let pinned = |((index, layer), module): &(&Layer<'_>, &Unit<'_>)| {
        let partner = || weighted_before(net, *index).and_then(|before| module_of.get(&before).copied());
        own(module) == layer.name || (layer.kind == Kind::BatchNorm && partner().is_some_and(|of| partners(of, module.name)))
    };
    let free: Vec<&(&Layer<'_>, &Unit<'_>)> = dealt.iter().filter(|pair| !pinned(pair)).collect();
    for (position, (_, later)) in free.iter().enumerate() {
        let earlier = free[..position].iter().map(|(_, module)| module).filter(|module| module.kind == later.kind);
        if let Some(earlier) =
            earlier.clone().find(|earlier| natural(earlier.name, later.name).is_gt() && numbered(earlier.name, later.name))
        {
            return Some(format!("order and names disagree: '{}' would come before '{}'", earlier.name, later.name));
        }
        let alike = earlier.rev().find(|earlier| earlier.shape == later.shape);
        if let Some(earlier) = alike.filter(|earlier| !numbered(earlier.name, later.name)) {
            let shape = &later.shape;
            return Some(format!(
                "'{}' and '{}' have one shape, {shape:?}, and their names tell no order",
                earlier.name, later.name
            ));
        }
    }
    None
}

/// The convolution or fully connected layer whose outputs a batch norm gets, through layers without parameters.
fn weighted_before(net: &Net, mut index: usize) -> Option<usize> {
    loop {
        let &[input] = &net.nodes[index].inputs[..] else { return None };
        match &net.nodes[input].op {
            Op::Conv2d(_) | Op::Linear(_) => return Some(input),
            Op::Tensors(_) if net.nodes[input].op.structure().is_some() => return None,
            Op::Fixed(_) | Op::Tensors(_) => index = input,
            Op::BatchNorm(_) => return None,
        }
    }
}

fn as_table(dealt: &[(&Layer<'_>, &Unit<'_>)]) -> String {
    let mut lines = String::new();
    for ((_, layer), module) in dealt {
        writeln!(lines, "{:?} = {:?}", layer.name, module.name).expect("text takes all");
    }
    lines.trim_end().to_string()
}
