//! Networks that are built anew node by node, with gates, routes and merges between.

use std::collections::HashMap;

use briquette_core::builder::{At, Builder};
use briquette_core::coding::floats;
use briquette_core::error::{Error, Result};
use briquette_core::layers::{Gate, Merge, Route};
use briquette_core::net::{Net, Node, Op, Value};
use briquette_core::objective::Taps;
use briquette_core::{Layer, layers};
use briquette_runtime::branches::Branch;
use burn::tensor::{Device, Tensor, TensorData};

/// A network under construction of the nodes of another, which are copied in their order, and of others.
#[derive(Debug, Default)]
pub(crate) struct Wiring {
    nodes: Vec<Node>,
    /// Where the value of each node that was copied is read now.
    now: Vec<usize>,
}

impl Wiring {
    /// Adds a node that reads others by their new places; its own.
    pub(crate) fn push(&mut self, name: String, inputs: Vec<usize>, layer: impl Into<Layer>) -> usize {
        self.nodes.push(Node { op: Op::fixed(layer), name, inputs });
        self.nodes.len() - 1
    }

    /// Adds nodes that read one another by their place behind the node at `read`, which is 0 to them; the places of all, that of `read` the first.
    pub(crate) fn append(&mut self, nodes: Vec<Node>, read: usize) -> Vec<usize> {
        let places: Vec<usize> = std::iter::once(read).chain(self.nodes.len()..self.nodes.len() + nodes.len()).collect();
        let moved = nodes.into_iter().map(|node| Node { inputs: node.inputs.iter().map(|at| places[*at]).collect(), ..node });
        self.nodes.extend(moved);
        places
    }

    /// Copies the next node, which reads what `read` makes of the old place of each of its inputs.
    pub(crate) fn copy(&mut self, node: Node, mut read: impl FnMut(&mut Self, usize) -> usize) {
        let inputs = node.inputs.iter().map(|input| read(self, *input)).collect();
        self.nodes.push(Node { inputs, ..node });
        self.now.push(self.nodes.len() - 1);
    }

    /// Where the value of an old node is read.
    pub(crate) fn now(&self, old: usize) -> usize {
        self.now[old]
    }

    /// Has what is copied from here on read another value in the place of an old node's.
    pub(crate) fn redirect(&mut self, old: usize, to: usize) {
        self.now[old] = to;
    }

    /// The place of the node that was added last.
    pub(crate) fn last(&self) -> usize {
        self.nodes.len() - 1
    }

    pub(crate) fn finish(self) -> Result<Net> {
        let net = Net { nodes: self.nodes };
        net.shapes()?;
        Ok(net)
    }
}

/// The nodes that `build` adds to a value of this shape, which read one another by their place behind that value, 0.
pub(crate) fn beside(
    shape: &[usize],
    seed: u64,
    device: &Device,
    build: impl FnOnce(&mut Builder, At) -> At,
) -> Result<Vec<Node>> {
    let (input, flat) = match *shape {
        [channels, height, width] => ([channels, height, width], 0),
        _ => ([shape.iter().product(), 1, 1], 1),
    };
    let mut b = Builder::new(input, seed, device);
    let mut x = b.input();
    if flat == 1 {
        x = b.flatten("flat", x);
    }
    x = build(&mut b, x);
    // A network ends in a vector.
    let closed = b.shape(x).len() > 1;
    if closed {
        b.flatten("closed", x);
    }
    let mut nodes = b.finish()?.nodes;
    nodes.truncate(nodes.len() - usize::from(closed));
    let behind = nodes.into_iter().skip(1 + flat);
    Ok(behind.map(|node| Node { inputs: node.inputs.iter().map(|input| input - flat).collect(), ..node }).collect())
}

/// What decides about parts of a network.
#[derive(Debug)]
pub(crate) struct Control {
    /// The node that it reads.
    pub(crate) behind: usize,
    /// What it computes, as [`beside`] gives it.
    pub(crate) nodes: Vec<Node>,
}

/// A part of a network that runs for those samples alone whose logit is not below that of the gate's threshold: they leave at the gate, and are back behind
/// the part. For the others something else stands in its place.
#[derive(Debug)]
pub(crate) struct Part {
    /// What the names of its new nodes begin with.
    pub(crate) name: String,
    /// Its logit, by its place behind what the control reads.
    pub(crate) logit: usize,
    /// Its nodes in order; others read the last of them alone.
    pub(crate) nodes: Vec<usize>,
    /// What the others read in place of the part.
    pub(crate) instead: usize,
    /// What is computed of that for them, as [`beside`] gives it; it goes on as it is where that is nothing.
    pub(crate) detour: Vec<Node>,
}

/// A network of which parts run for some samples alone.
#[derive(Debug)]
pub(crate) struct Parted {
    pub(crate) net: Net,
    /// Of each part, the node that holds its logit.
    pub(crate) logits: Vec<usize>,
    /// Of each part, its gate.
    pub(crate) gates: Vec<usize>,
    /// Of each part, the name of a step that the samples reach for which it runs.
    pub(crate) reached: Vec<String>,
}

/// Has the parts run for the samples of which the control says so, by gates behind it.
pub(crate) fn part(net: Net, control: Control, mut parts: Vec<Part>, gate: Gate) -> Result<Parted> {
    let (mut wiring, mut logits, mut gates) = (Wiring::default(), Vec::new(), Vec::new());
    let mut routed: HashMap<(usize, usize), usize> = HashMap::new();
    let mut reached = vec![String::new(); parts.len()];
    let mut control_nodes = Some(control.nodes);
    for (index, node) in net.nodes.into_iter().enumerate() {
        let inside = parts.iter().position(|part| part.nodes.contains(&index));
        wiring.copy(node, |wiring, input| match inside {
            Some(of) if !parts[of].nodes.contains(&input) => *routed.entry((of, input)).or_insert_with(|| {
                let name = format!("{}.run{input}", parts[of].name);
                reached[of].clone_from(&name);
                let inputs = vec![wiring.now(input), gates[of]];
                wiring.push(name, inputs, Route { leaving: true })
            }),
            Some(_) | None => wiring.now(input),
        });
        if let Some(nodes) = control_nodes.take_if(|_| index == control.behind) {
            let places = wiring.append(nodes, wiring.now(index));
            for part in &parts {
                logits.push(places[part.logit]);
                gates.push(wiring.push(format!("{}.gate", part.name), vec![places[part.logit]], gate));
            }
        }
        if let Some(of) = inside.filter(|of| parts[*of].nodes.last() == Some(&index)) {
            let (part, run) = (&mut parts[of], wiring.now(index));
            let inputs = vec![wiring.now(part.instead), gates[of]];
            let skip = wiring.push(format!("{}.skip", part.name), inputs, Route { leaving: false });
            wiring.append(std::mem::take(&mut part.detour), skip);
            let skip = wiring.last();
            let merge = wiring.push(format!("{}.merge", part.name), vec![run, skip, gates[of]], Merge);
            wiring.redirect(index, merge);
        }
    }
    Ok(Parted { net: wiring.finish()?, logits, gates, reached })
}

/// The logits of a training in which each of these gates goes by what `decide` makes of the values that all samples have in the node of `read` at the same
/// place; `taps` meets these decisions in place of the gate's own.
pub(crate) fn decided(
    net: &Net,
    images: Tensor<4>,
    (read, gates): (&[usize], &[usize]),
    taps: &mut Taps,
    mut decide: impl FnMut(&[f32]) -> Vec<bool>,
) -> Tensor<2> {
    let mut decisions: Vec<Vec<bool>> = vec![Vec::new(); gates.len()];
    let logits = net.trace(images, |node, mut value| {
        if let Some(of) = read.iter().position(|read| *read == node) {
            decisions[of] = decide(&floats(value.clone().vector()));
        }
        if let Some(of) = gates.iter().position(|gate| *gate == node) {
            let decided: Vec<f32> = decisions[of].iter().map(|leaves| f32::from(u8::from(*leaves))).collect();
            let shape = [decided.len(), 1];
            value = Value::Vector(Tensor::from_data(TensorData::new(decided, shape), &value.device()));
        }
        taps.meet(node, &value);
        value
    });
    logits.vector()
}

/// Refuses a network in which gates decide already.
pub(crate) fn ungated(net: &Net, instead: &str) -> Result<()> {
    match net.nodes.iter().find(|node| node.op.layer().kind().branch() == Branch::Decides) {
        Some(gate) => Err(Error::node(&gate.name, format!("already decides which samples go on; {instead}"))),
        None => Ok(()),
    }
}

/// The last node of those that normalize the input: what looks at images reads it.
pub(crate) fn images(net: &Net) -> usize {
    let normalizes = |node: &Node| matches!(node.op.layer(), Layer::Normalize(layers::Normalize { .. })) && node.inputs == [0];
    net.nodes.iter().position(normalizes).unwrap_or(0)
}
