//! Where the exits branch off.

use briquette_core::builder::{Builder, Conv};
use briquette_core::error::{Error, Result};
use briquette_core::layers::{Gate, Merge, Route};
use briquette_core::net::{Net, Node, Op};
use briquette_core::{Layer, layers};
use briquette_runtime::branches::Branch;
use burn::tensor::Device;

use super::{Exits, Head};

/// A network with exits.
#[derive(Debug)]
pub(super) struct Wired {
    pub(super) net: Net,
    /// Names of the nodes that hold the logits of the exits, that of the output the last.
    pub(super) logits: Vec<String>,
    /// The exits' gates, in order, but the last exit's, which has none.
    pub(super) gates: Vec<usize>,
}

/// The network with an exit behind each node that `exits` names. What is computed up to there and read behind it goes through a route, so that any node
/// will do, inside a residual block too.
pub(super) fn wire(net: Net, exits: &Exits, gate: Gate, seed: u64) -> Result<Wired> {
    let (shapes, device) = (net.shapes()?, net.device());
    let after = places(&net, &exits.after)?;
    let last = net.nodes.len() - 1;
    let classes = shapes[last][0];
    let read_last =
        (0..net.nodes.len()).map(|index| net.nodes.iter().rposition(|node| node.inputs.contains(&index))).collect::<Vec<_>>();
    let output = net.nodes[last].name.clone();
    let (mut nodes, mut now, mut made) = (Vec::<Node>::new(), Vec::<usize>::new(), Vec::new());
    for (index, node) in net.nodes.into_iter().enumerate() {
        let name = node.name.clone();
        nodes.push(Node { inputs: node.inputs.iter().map(|input| now[*input]).collect(), ..node });
        now.push(nodes.len() - 1);
        let Some(exit) = after.iter().position(|place| *place == index) else { continue };
        let exit = format!("exit{}", exit + 1);
        let named = |part: &str| format!("{exit}.{part}");
        let head = head(&exit, exits.head, &shapes[index], classes, seed, &device)
            .map_err(|error| Error::node(&name, error.to_string()))?;
        let (begin, read) = (nodes.len(), now[index]);
        let place = |input: usize| if input == 0 { read } else { begin + input - 1 };
        nodes.extend(
            head.into_iter().map(|node| Node { inputs: node.inputs.iter().map(|input| place(*input)).collect(), ..node }),
        );
        let logits = nodes.len() - 1;
        let mut push = |name: String, inputs: Vec<usize>, layer: Layer| {
            nodes.push(Node { op: Op::fixed(layer), name, inputs });
            nodes.len() - 1
        };
        let gate = push(named("gate"), vec![logits], gate.into());
        let leave = push(named("leave"), vec![logits, gate], Route { leaving: true }.into());
        for earlier in (0..=index).filter(|earlier| read_last[*earlier] > Some(index)) {
            let name = format!("{exit}.on{earlier}");
            now[earlier] = push(name, vec![now[earlier], gate], Route { leaving: false }.into());
        }
        made.push((named("fc"), gate, leave));
    }
    let mut out = nodes.len() - 1;
    for (exit, (_, gate, leave)) in made.iter().enumerate().rev() {
        nodes.push(Node { op: Op::fixed(Merge), name: format!("exit{}.merge", exit + 1), inputs: vec![*leave, out, *gate] });
        out = nodes.len() - 1;
    }
    let gates = made.iter().map(|(_, gate, _)| *gate).collect();
    let logits = made.into_iter().map(|(logits, _, _)| logits).chain([output]).collect();
    let net = Net { nodes };
    net.shapes()?;
    Ok(Wired { net, logits, gates })
}

/// The nodes that are meant, in order.
fn places(net: &Net, after: &[String]) -> Result<Vec<usize>> {
    let refuse = |name: &str, detail: &str| Err(Error::node(name, detail));
    if after.is_empty() {
        return Err(Error::Invalid("`after` of `exits` names no node".into()));
    }
    let last = net.nodes.len() - 1;
    if let Some(gate) = net.nodes.iter().find(|node| node.op.layer().kind().branch() == Branch::Decides) {
        return refuse(&gate.name, "already decides which samples go on; name all exits in one pass");
    }
    if let Layer::Softmax(_) = net.nodes[last].op.layer() {
        return refuse(&net.nodes[last].name, "gives probabilities, where the exits give logits; leave it out of the network");
    }
    let mut places = Vec::new();
    for name in after {
        let place = net.behind(name)?;
        if place == last {
            return refuse(name, "is the output, which is the last exit anyway");
        }
        if places.contains(&place) {
            return refuse(name, "has an exit behind it already");
        }
        places.push(place);
    }
    match places.windows(2).position(|pair| pair[0] > pair[1]) {
        Some(at) => {
            refuse(&after[at + 1], "comes before the exit that is named in front of it; name exits from the first to the last")
        }
        None => Ok(places),
    }
}

/// The nodes of a head, which read one another by their place behind the node that it reads, 0.
fn head(exit: &str, form: Head, shape: &[usize], classes: usize, seed: u64, device: &Device) -> Result<Vec<Node>> {
    let (input, flat) = match *shape {
        [channels, height, width] => ([channels, height, width], 0),
        _ => ([shape.iter().product(), 1, 1], 1),
    };
    let mut b = Builder::new(input, seed, device);
    let mut x = b.input();
    let named = |part: &str| format!("{exit}.{part}");
    if flat == 1 {
        x = b.flatten("flat", x);
    } else {
        if form == Head::Conv {
            x = b.conv(&named("conv"), x, Conv::new(input[0], 3).same().no_bias());
            x = b.batch_norm(&named("norm"), x);
            x = b.relu(&named("relu"), x);
        }
        x = b.fixed(&named("pool"), &[x], layers::GlobalAvgPool);
    }
    b.linear(&named("fc"), x, classes);
    let nodes = b.finish()?.nodes.into_iter().skip(1 + flat);
    Ok(nodes.map(|node| Node { inputs: node.inputs.iter().map(|input| input - flat).collect(), ..node }).collect())
}
