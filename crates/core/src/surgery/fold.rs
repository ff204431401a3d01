//! Batch norms become part of the layers before them.

use briquette_runtime::Grid;

use crate::coding::{Coding, Source};
use crate::error::{Error, Result};
use crate::net::{Net, Node, Op};
use crate::stored::Stored;

impl Net {
    /// Folds every batch norm into the convolution or fully connected layer whose output it alone reads: with `a = gamma / sqrt(var + epsilon)`
    /// the layer's weights become `a w` and its bias `beta + a (bias - mean)`, filter by filter. Outputs are those of evaluation, but for
    /// rounding; masks stay. Weights on a grid keep their codes: the filter's step becomes `|a| step`, and where `a` is negative the codes are
    /// mirrored. What was underneath them is then lost. Norms behind anything else stay as well.
    ///
    /// # Errors
    /// Names a layer whose weights are shared, and tensors with values that are not finite.
    pub fn fold_norms(mut self) -> Result<Self> {
        self.finite()?;
        let device = self.device();
        while let Some((norm, layer)) = self.foldable() {
            let parameters = folded(&self.nodes[layer], &self.nodes[norm])?;
            let old = self.nodes.remove(layer);
            self.nodes.insert(layer, old.with(parameters, &device)?);
            self = self.bypass(norm, layer)?;
        }
        Ok(self)
    }

    /// A batch norm and the layer that it can be folded into.
    fn foldable(&self) -> Option<(usize, usize)> {
        let readers = |index: usize| self.nodes.iter().filter(|node| node.inputs.contains(&index)).count();
        self.nodes.iter().enumerate().find_map(|(norm, node)| {
            let (Op::BatchNorm(_), &[layer]) = (&node.op, &node.inputs[..]) else { return None };
            let linear = self.nodes[layer].dense().is_some();
            (linear && readers(layer) == 1).then_some((norm, layer))
        })
    }
}

/// The layer's parameters with the norm in them.
fn folded(layer: &Node, norm: &Node) -> Result<Vec<Stored>> {
    let Op::BatchNorm(own) = &norm.op else { return Ok(layer.parameters()) };
    let epsilon = own.epsilon;
    let norm = norm.parameters();
    let of_norm = |name: &str| norm.iter().find(|stored| stored.name == name).map_or(&[][..], |stored| &stored.base);
    let [gamma, beta, mean, var] = ["gamma", "beta", "mean", "var"].map(of_norm);
    let scale: Vec<f64> = gamma.iter().zip(var).map(|(g, v)| f64::from(*g) / (f64::from(*v) + epsilon).sqrt()).collect();
    let mut parameters = layer.parameters();
    if !parameters.iter().any(|stored| stored.name == "bias") {
        let (shape, base) = (vec![scale.len()], vec![0.0; scale.len()]);
        parameters.push(Stored { name: "bias", shape, base, coding: Coding::default() });
    }
    for stored in &mut parameters {
        if stored.coding.source != Source::Free {
            // What lies on the grid would have other codes by a rule that looks at all weights together.
            stored.settle();
            stored.base = stored.values();
            match &mut stored.coding.source {
                Source::Grid { grid, .. } if stored.name == "weight" && grid.axis.unwrap_or(0) == 0 => {
                    *grid = scaled(grid, &scale)
                }
                Source::Free
                | Source::Codebook { .. }
                | Source::Grid { .. }
                | Source::Ternary { .. }
                | Source::Shared { .. }
                | Source::Product { .. } => {
                    let detail = "its weights are shared; put fold-norms before the pass that did that";
                    return Err(Error::node(&layer.name, detail));
                }
            }
        }
        let row = stored.base.len() / scale.len();
        let biased = stored.name == "bias";
        for (filter, values) in stored.base.chunks_exact_mut(row).enumerate() {
            let (a, shift) = (scale[filter], if biased { f64::from(mean[filter]) } else { 0.0 });
            let after = if biased { f64::from(beta[filter]) } else { 0.0 };
            values.iter_mut().for_each(|value| *value = (after + a * (f64::from(*value) - shift)) as f32);
        }
    }
    Ok(parameters)
}

/// The grid of filters that are multiplied by a factor each.
fn scaled(grid: &Grid, factors: &[f64]) -> Grid {
    let last = (grid.levels - 1) as f32;
    let channel = |filter: usize| if grid.axis.is_some() { filter } else { 0 };
    let step = |(filter, a): (usize, &f64)| ((f64::from(grid.steps[channel(filter)]) * a.abs()) as f32).max(f32::MIN_POSITIVE);
    let zero =
        |(filter, a): (usize, &f64)| if *a < 0.0 { last - grid.zeros[channel(filter)] } else { grid.zeros[channel(filter)] };
    Grid {
        levels: grid.levels,
        axis: Some(0),
        steps: factors.iter().enumerate().map(step).collect(),
        zeros: factors.iter().enumerate().map(zero).collect(),
    }
}
