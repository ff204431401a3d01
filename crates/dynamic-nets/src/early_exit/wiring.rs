//! Where the exits branch off.

use briquette_core::builder::Conv;
use briquette_core::error::{Error, Result};
use briquette_core::layers::{Gate, Merge, Route};
use briquette_core::net::{Net, Node};
use briquette_core::{Layer, layers};
use burn::tensor::Device;

use super::{Exits, Head};
use crate::wiring::{Wiring, beside, ungated};

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
    let (mut wiring, mut made) = (Wiring::default(), Vec::new());
    for (index, node) in net.nodes.into_iter().enumerate() {
        let name = node.name.clone();
        wiring.copy(node, |wiring, input| wiring.now(input));
        let Some(exit) = after.iter().position(|place| *place == index) else { continue };
        let exit = format!("exit{}", exit + 1);
        let named = |part: &str| format!("{exit}.{part}");
        let head = head(&exit, exits.head, &shapes[index], classes, seed, &device)
            .map_err(|error| Error::node(&name, error.to_string()))?;
        wiring.append(head, wiring.now(index));
        let logits = wiring.last();
        let gate = wiring.push(named("gate"), vec![logits], gate);
        let leave = wiring.push(named("leave"), vec![logits, gate], Route { leaving: true });
        for earlier in (0..=index).filter(|earlier| read_last[*earlier] > Some(index)) {
            let inputs = vec![wiring.now(earlier), gate];
            let on = wiring.push(format!("{exit}.on{earlier}"), inputs, Route { leaving: false });
            wiring.redirect(earlier, on);
        }
        made.push((named("fc"), gate, leave));
    }
    let mut out = wiring.last();
    for (exit, (_, gate, leave)) in made.iter().enumerate().rev() {
        out = wiring.push(format!("exit{}.merge", exit + 1), vec![*leave, out, *gate], Merge);
    }
    let gates = made.iter().map(|(_, gate, _)| *gate).collect();
    let logits = made.into_iter().map(|(logits, _, _)| logits).chain([output]).collect();
    Ok(Wired { net: wiring.finish()?, logits, gates })
}

/// The nodes that are meant, in order.
fn places(net: &Net, after: &[String]) -> Result<Vec<usize>> {
    let refuse = |name: &str, detail: &str| Err(Error::node(name, detail));
    if after.is_empty() {
        return Err(Error::Invalid("`after` of `exits` names no node".into()));
    }
    let last = net.nodes.len() - 1;
    ungated(net, "name all exits in one pass")?;
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
    let named = |part: &str| format!("{exit}.{part}");
    beside(shape, seed, device, |b, mut x| {
        if let &[channels, _, _] = shape {
            if form == Head::Conv {
                x = b.conv(&named("conv"), x, Conv::new(channels, 3).same().no_bias());
                x = b.batch_norm(&named("norm"), x);
                x = b.relu(&named("relu"), x);
            }
            x = b.fixed(&named("pool"), &[x], layers::GlobalAvgPool);
        }
        b.linear(&named("fc"), x, classes)
    })
}
