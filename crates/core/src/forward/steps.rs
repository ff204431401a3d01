//! Which nodes are computed in one step.

use briquette_runtime::{Activation, Layer};

use crate::net::{Net, Op};

/// One or several nodes that are computed together.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    /// The node that reads `inputs`.
    pub(super) node: usize,
    /// The last node, whose activation comes out.
    pub(super) output: usize,
    pub(super) inputs: Vec<usize>,
    /// A batch norm after the node.
    pub(super) norm: Option<usize>,
    /// An activation that is added.
    pub(super) residual: Option<usize>,
    /// Whether a rectifier ends it.
    pub(super) rectify: bool,
    /// Activations that no later step reads.
    pub(super) last_uses: Vec<usize>,
}

/// The steps of a network in order. Nodes are joined where our kernels compute them together: `fused` says whether for a training.
pub(super) fn steps(net: &Net, fused: Option<bool>) -> Vec<Step> {
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); net.nodes.len()];
    for (index, node) in net.nodes.iter().enumerate() {
        node.inputs.iter().for_each(|&input| readers[input].push(index));
    }
    let next = |index: usize| match readers[index][..] {
        [only] => Some((only, net.nodes[only].op.layer())),
        _ => None,
    };
    let mut absorbed = vec![false; net.nodes.len()];
    let mut steps = Vec::new();
    for (index, node) in net.nodes.iter().enumerate().skip(1) {
        if absorbed[index] {
            continue;
        }
        let mut step = Step {
            node: index,
            output: index,
            inputs: node.inputs.clone(),
            norm: None,
            residual: None,
            rectify: false,
            last_uses: Vec::new(),
        };
        if let Some(training) = fused {
            if let (Op::Conv2d(_), false, Some((norm, Layer::BatchNorm(_)))) = (&node.op, training, next(step.output)) {
                (step.norm, step.output) = (Some(norm), norm);
            }
            let normalizes = step.norm.is_some() || matches!(node.op, Op::BatchNorm(_));
            if let (true, Some((sum, Layer::Add(_)))) = (normalizes, next(step.output))
                && let [a, b] = net.nodes[sum].inputs[..]
                && a != b
                && !absorbed[sum]
            {
                (step.residual, step.output) = (Some(if a == step.output { b } else { a }), sum);
            }
            let rectifies = matches!(node.op, Op::Conv2d(_) | Op::Linear(_) | Op::BatchNorm(_));
            if let (true, Some((relu, Layer::Activation(Activation::Relu)))) = (rectifies, next(step.output)) {
                (step.rectify, step.output) = (true, relu);
            }
        }
        let mut last = index;
        while last != step.output {
            last = readers[last][0];
            absorbed[last] = true;
        }
        steps.push(step);
    }
    // A step waits for its residual, which may be computed after its first node.
    steps.sort_by_key(|step| step.output);
    let mut seen = vec![false; net.nodes.len()];
    for step in steps.iter_mut().rev() {
        for &index in step.inputs.iter().chain(&step.residual) {
            if !std::mem::replace(&mut seen[index], true) {
                step.last_uses.push(index);
            }
        }
    }
    steps
}
