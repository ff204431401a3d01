//! Residual blocks, found by walking a network, and the share that their branches have in their sums.

use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op};
use briquette_core::{Activation, Layer, layers};
use briquette_parts::refuse;

/// A sum of what comes out of some layers and of what goes around them, and perhaps channels that are put behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// What is added.
    pub(crate) branch: Part,
    /// What is put behind the sum, where the block makes more channels of its own than it adds.
    pub(crate) more: Option<Part>,
}

/// What may be left out of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its last node.
    pub(crate) end: usize,
    /// What the network is without it.
    pub(crate) without: Without,
}

/// What a network is without a part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Without {
    /// Who reads the sum reads what goes around.
    Past {
        /// The sum.
        sum: usize,
        /// What goes around.
        shortcut: usize,
    },
    /// There are channels of zeros in its place.
    Zeros {
        /// Who puts the part's channels behind the sum.
        concat: usize,
    },
}

impl Block {
    /// Its parts.
    pub(crate) fn parts(self) -> impl Iterator<Item = Part> {
        [Some(self.branch), self.more].into_iter().flatten()
    }

    /// Its sum, and what goes around it, where that is all of the block's output without the branch.
    pub(crate) fn detour(self) -> Option<(usize, usize)> {
        match (self.branch.without, self.more) {
            (Without::Past { sum, shortcut }, None) => Some((sum, shortcut)),
            (Without::Past { .. } | Without::Zeros { .. }, _) => None,
        }
    }
}

/// The residual blocks of a network, in order: sums of two values of which one comes from more layers than the other, and these serve the sum alone, or it
/// and the channels that a concatenation puts behind it. In front of both may be anything, such as the norm and the rectifier of a pre-activation that a
/// projection reads as well.
pub(crate) fn blocks(net: &Net) -> Vec<Block> {
    (0..net.nodes.len()).filter_map(|sum| block(net, sum)).collect()
}

fn block(net: &Net, sum: usize) -> Option<Block> {
    let (Layer::Add(layers::Add), &[a, b]) = (net.nodes[sum].op.layer(), &net.nodes[sum].inputs[..]) else { return None };
    let weighted = |nodes: &[usize]| nodes.iter().filter(|node| net.nodes[**node].dense().is_some()).count();
    let (own_a, own_b) = (beyond(net, a, b), beyond(net, b, a));
    let (end, shortcut, own) = match weighted(&own_a).cmp(&weighted(&own_b)) {
        std::cmp::Ordering::Greater => (a, b, own_a),
        std::cmp::Ordering::Less => (b, a, own_b),
        std::cmp::Ordering::Equal => return None,
    };
    let serve = |own: &[usize], ends: &[usize]| {
        let reads = |node: usize| net.nodes[node].inputs.iter().any(|input| own.contains(input));
        (0..net.nodes.len()).all(|node| !reads(node) || own.contains(&node) || ends.contains(&node))
    };
    let more = (sum + 1..net.nodes.len()).find_map(|concat| {
        let (Layer::Concat(layers::Concat), &[first, end]) = (net.nodes[concat].op.layer(), &net.nodes[concat].inputs[..]) else {
            return None;
        };
        let all: Vec<usize> = own.iter().copied().chain(beyond(net, end, shortcut)).collect();
        // What is there without the block is none of its new channels.
        let found = first == sum && all.contains(&end) && !all.contains(&sum) && serve(&all, &[sum, concat]);
        found.then_some(Part { end, without: Without::Zeros { concat } })
    });
    let branch = Part { end, without: Without::Past { sum, shortcut } };
    (more.is_some() || serve(&own, &[sum])).then_some(Block { branch, more })
}

/// What a node depends on, itself among it, and the other does not.
fn beyond(net: &Net, end: usize, other: usize) -> Vec<usize> {
    let [own, others] = [end, other].map(|end| before(net, end));
    (0..net.nodes.len()).filter(|node| own[*node] && !others[*node]).collect()
}

/// The nodes that a sample does not need that takes the shortcut alone, in order: the branch, the sum, and a rectifier that alone reads the sum.
pub(crate) fn members(net: &Net, end: usize, sum: usize, shortcut: usize) -> Vec<usize> {
    let readers: Vec<usize> = (0..net.nodes.len()).filter(|node| net.nodes[*node].inputs.contains(&sum)).collect();
    let rectifier = match readers[..] {
        [only] if matches!(net.nodes[only].op.layer(), Layer::Activation(Activation::Relu)) => Some(only),
        _ => None,
    };
    beyond(net, end, shortcut).into_iter().chain([sum]).chain(rectifier).collect()
}

/// The node and all that it depends on.
fn before(net: &Net, end: usize) -> Vec<bool> {
    let mut found = vec![false; net.nodes.len()];
    found[end] = true;
    for node in (0..=end).rev() {
        if found[node] {
            net.nodes[node].inputs.iter().for_each(|input| found[*input] = true);
        }
    }
    found
}

/// The last batch norm or layer of weights on a branch that ends at this node, whose factor is the branch's: behind it nothing stands but what keeps
/// positive factors, and up to the end each node has one reader alone, so that no two branches have the same.
///
/// # Errors
/// Names the node that does not or has others, and a layer whose weights an earlier pass shares; `method` is who asks.
pub(crate) fn scaling(net: &Net, end: usize, method: &str) -> Result<usize> {
    let mut at = end;
    loop {
        let node = &net.nodes[at];
        if net.nodes.iter().filter(|reader| reader.inputs.contains(&at)).count() > 1 {
            let detail =
                "is read by more than a residual branch, whose factor it would hand on to all; have it end in a layer of its own";
            return Err(Error::node(&node.name, detail));
        }
        match (&node.op, &node.inputs[..]) {
            (Op::BatchNorm(_), _) => return Ok(at),
            (Op::Conv2d(_) | Op::Linear(_), _) => {
                refuse::shared(net, [&at], method)?;
                return Ok(at);
            }
            (Op::Tensors(_) | Op::Fixed(_), &[before]) if node.op.layer().kind().homogeneous() => at = before,
            (Op::Tensors(_) | Op::Fixed(_), _) => {
                let detail = "ends a residual branch, whose factor it does not keep; only a batch norm or a layer of weights can take it up";
                return Err(Error::node(&node.name, detail));
            }
        }
    }
}

/// The network whose nodes, batch norms and layers of weights, give these factors of what they gave.
pub(crate) fn scaled(mut net: Net, factors: &[(usize, f64)]) -> Result<Net> {
    let device = net.device();
    for &(index, factor) in factors {
        let node = net.nodes[index].clone();
        let mut parameters = node.parameters();
        for stored in parameters.iter_mut().filter(|stored| ["weight", "bias", "gamma", "beta"].contains(&stored.name)) {
            stored.base.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
        }
        net.nodes[index] = node.with(parameters, &device)?;
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use briquette_core::builder::{At, Builder, Conv};
    use briquette_core::zoo::{Arch, Wanted};
    use burn::tensor::Device;

    use super::*;

    fn narrow(name: &str) -> Net {
        let arch = Arch::named(name).unwrap();
        arch.build(&Wanted { width: 0.25, ..arch.wanted() }, &Device::flex()).unwrap()
    }

    /// With shortcuts that pad, that project, and that begin before or behind the first norm.
    #[test]
    fn blocks_of_every_family_are_found() {
        for (name, count) in [
            ("resnet20", 9),
            ("resnet56", 27),
            ("resnet18", 8),
            ("resnet50", 16),
            ("wrn-16-2", 6),
            ("mobilenet-v2", 11),
            ("vgg11-cifar", 0),
        ] {
            let net = narrow(name);
            let found = blocks(&net);
            assert_eq!(found.len(), count, "{name}");
            for part in found.into_iter().flat_map(Block::parts) {
                scaling(&net, part.end, "this").unwrap();
            }
        }
        let net = narrow("resnet18");
        let index = |name: &str| net.index(name).unwrap();
        let without = Without::Past { sum: index("layer2.0.add"), shortcut: index("layer2.0.shortcut.norm") };
        let branch = Part { end: index("layer2.0.conv2.norm"), without };
        assert_eq!(blocks(&net)[2], Block { branch, more: None });
    }

    /// A residual block whose sum is followed by a concatenation of itself and what `behind` adds for it.
    fn wide(behind: impl FnOnce(&mut Builder, At, At) -> At) -> Net {
        let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
        let x = b.conv("conv1", b.input(), Conv::new(4, 3).same());
        let x = b.batch_norm("norm1", x);
        let hidden = b.conv("conv2", x, Conv::new(4, 3).same());
        let branch = b.batch_norm("norm2", hidden);
        let sum = b.add("add", &[branch, x]);
        let more = behind(&mut b, x, hidden);
        let wide = b.fixed("wide", &[sum, more], layers::Concat);
        let x = b.flatten("flatten", wide);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    }

    #[test]
    fn what_goes_around_and_behind_the_sum_as_well_is_no_part_of_the_block() {
        let net = wide(|_, x, _| x);
        let index = |name: &str| net.index(name).unwrap();
        let without = Without::Past { sum: index("add"), shortcut: index("norm1") };
        assert_eq!(blocks(&net), [Block { branch: Part { end: index("norm2"), without }, more: None }]);
        let net = wide(|b, _, hidden| b.batch_norm("new", hidden));
        let more = blocks(&net)[0].more;
        assert_eq!(
            more,
            Some(Part { end: net.index("new").unwrap(), without: Without::Zeros { concat: net.index("wide").unwrap() } })
        );
    }

    #[test]
    fn layers_that_others_read_take_up_no_factor() {
        // The channels behind the sum come from the branch's convolution.
        let net = wide(|b, _, hidden| b.relu("new", hidden));
        let [branch, more] = <[Part; 2]>::try_from(blocks(&net)[0].parts().collect::<Vec<_>>()).unwrap();
        assert_eq!(scaling(&net, branch.end, "this").unwrap(), net.index("norm2").unwrap());
        let error = scaling(&net, more.end, "this").unwrap_err().to_string();
        assert!(error.starts_with("node 'conv2': is read by more than a residual branch"), "{error}");
    }

    #[test]
    fn sums_of_equals_and_of_what_others_read_are_no_blocks() {
        let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
        let x = b.flatten("flatten", b.input());
        let (one, two) = (b.linear("one", x, 4), b.linear("two", x, 4));
        let sum = b.add("equals", &[one, two]);
        let read = b.linear("read", sum, 4);
        let sum = b.add("of-read", &[read, sum]);
        let sum = b.add("again", &[sum, read]);
        b.linear("fc", sum, 3);
        assert_eq!(blocks(&b.finish().unwrap()), []);
    }
}
