//! What earlier passes promised of the weights, checked after later ones: a masked weight stays zero, shared weights stay shared.

use std::collections::{BTreeMap, BTreeSet};

use crate::coding::Source;
use crate::error::{Error, Result};
use crate::net::Net;

/// The codings of a network at one moment, by layer.
#[derive(Debug, Default)]
pub struct Promises(BTreeMap<String, Promise>);

#[derive(Debug)]
struct Promise {
    shape: Vec<usize>,
    mask: Option<Vec<bool>>,
    /// Most distinct values besides zero, by the coding.
    values: Option<usize>,
    /// Whether these are those of a filter, not of the layer: folded norms give each filter a step of its own.
    by_filter: bool,
}

impl Promises {
    /// What the codings of this network promise.
    pub fn of(net: &Net) -> Self {
        let promise = |name: &str, weight: crate::stored::Stored| {
            let by_filter = matches!(&weight.coding.source, Source::Grid { grid, .. } if grid.axis.unwrap_or(0) == 0);
            let values = match &weight.coding.source {
                Source::Free => None,
                Source::Codebook { centroids, .. } => Some(centroids.len()),
                Source::Grid { grid, .. } if by_filter => Some(grid.levels as usize),
                Source::Grid { grid, .. } => Some(grid.levels as usize * grid.steps.len()),
                Source::Ternary { .. } => Some(3),
                Source::Shared { values, .. } => Some(2 * values.len()),
                Source::Product { product, .. } => {
                    let sums = product.stages.iter().map(|stage| product.centroids(stage));
                    Some(sums.fold(product.columns, usize::saturating_mul))
                }
            };
            (name.to_string(), Promise { shape: weight.shape, mask: weight.coding.mask, values, by_filter })
        };
        Self(net.nodes.iter().filter_map(|node| Some(promise(&node.name, node.weight()?))).collect())
    }

    /// Whether the network, after a further pass, still keeps them. A layer that is gone or has another shape owes no mask.
    ///
    /// # Errors
    /// Names the first layer that does not.
    pub fn check(&self, net: &Net) -> Result<()> {
        for node in &net.nodes {
            let (Some(promise), Some(weight)) = (self.0.get(&node.name), node.weight()) else { continue };
            let values = weight.values();
            if let Some(mask) = promise.mask.as_ref().filter(|_| promise.shape == weight.shape) {
                let back = mask.iter().zip(&values).filter(|(keep, value)| !**keep && **value != 0.0).count();
                if back > 0 {
                    return Err(Error::node(
                        &node.name,
                        format!("{back} pruned weights came back; a pass must respect earlier masks"),
                    ));
                }
            }
            let Some(most) = promise.values else { continue };
            let row = if promise.by_filter { values.len() / weight.shape[0].max(1) } else { values.len() };
            let distinct = |row: &[f32]| row.iter().filter(|v| **v != 0.0).map(|v| v.to_bits()).collect::<BTreeSet<_>>().len();
            if let Some(found) = values.chunks(row.max(1)).map(distinct).find(|found| *found > most) {
                let detail = format!(
                    "{found} values where an earlier pass shared {most}; a pass must respect earlier codebooks and grids"
                );
                return Err(Error::node(&node.name, detail));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use briquette_runtime::Grid;
    use burn::tensor::Device;

    use super::*;
    use crate::coding::{Coding, Rounding};
    use crate::zoo::Arch;

    fn coded(coding: Coding) -> Net {
        let arch = Arch::named("lenet300").unwrap();
        let mut net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let index = net.index("fc3").unwrap();
        let node = net.nodes.remove(index);
        let mut parameters = node.parameters();
        parameters[0].coding = coding;
        net.nodes.insert(index, node.with(parameters, &Device::flex()).unwrap());
        net
    }

    #[test]
    fn weights_that_come_back_and_codebooks_that_dissolve_are_found() {
        let mask = Some((0..1000).map(|i| i % 3 == 0).collect::<Vec<bool>>());
        let source = Source::Codebook { centroids: vec![-1.0, 1.0], assignment: vec![1; 1000] };
        let free = coded(Coding::default());
        let masked = coded(Coding { mask: mask.clone(), source: Source::Free });
        let shared = coded(Coding { mask, source });
        assert!(Promises::of(&masked).check(&shared).is_ok());
        assert!(Promises::of(&shared).check(&shared).is_ok());
        let back = Promises::of(&masked).check(&free).unwrap_err().to_string();
        assert_eq!(back, "node 'fc3': 666 pruned weights came back; a pass must respect earlier masks");
        let dissolved = Promises::of(&shared).check(&masked).unwrap_err().to_string();
        assert!(dissolved.starts_with("node 'fc3': 334 values where an earlier pass shared 2"), "{dissolved}");
    }
    #[test]
    fn a_grid_promises_its_levels_to_each_filter_whatever_the_steps() {
        let grid = |levels, axis, steps: Vec<f32>| {
            let zeros = vec![(levels - 1) as f32 / 2.0; steps.len()];
            let grid = Grid { levels, axis, steps, zeros };
            coded(Coding { mask: None, source: Source::Grid { grid, rounding: Rounding::Nearest, learned: false } })
        };
        let whole = grid(3, None, vec![0.05]);
        let scaled = grid(3, Some(0), (1..=10).map(|filter| 0.01 * filter as f32).collect());
        assert!(Promises::of(&whole).check(&scaled).is_ok() && Promises::of(&scaled).check(&whole).is_ok());
        let finer = Promises::of(&whole).check(&grid(9, None, vec![0.01])).unwrap_err().to_string();
        assert!(finer.contains("values where an earlier pass shared 3"), "{finer}");
    }
}
