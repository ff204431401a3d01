//! Filter pruning by the geometric median.
//!
//! Scores filter `i` of a layer by the sum of its distances to the layer's other filters, `s_i = sum_j ||W_i - W_j||_2`, and removes the
//! lowest: the filters nearest to the geometric median, which the others can replace, whatever their norm.
//!
//! He, Liu, Wang, Hu, Yang. "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration". CVPR 2019.
//! arXiv:1811.00250.
//! Differs from the paper: filters are cut at once instead of being set to zero after each epoch while they go on training, filters joined
//! by a residual go together, by the mean of their scores, each divided by the mean of its layer, and fully connected layers are cut too unless they are excepted.
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::pruning::fpgm::Fpgm;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: Fpgm = serde_json::from_value(serde_json::json!({ "ratio": { "fc1": 0.5 } }))?;
//! let cut = method.plan(net)?;
//! assert_eq!(cut.weighted().filter_map(|(_, node)| Some(node.weight()?.shape[0])).collect::<Vec<_>>(), [15, 10, 10]);
//! # Ok(())
//! # }
//! ```

use briquette_core::context::Context;
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::stored::Stored;
use serde::Deserialize;

use briquette_parts::channels::{Channels, FilterScores};

/// Removes the filters nearest to the geometric median of their layer, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Fpgm {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
}

impl Method for Fpgm {
    const NAME: &'static str = "fpgm";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "He, Liu, Wang, Hu, Yang, CVPR 2019, arXiv:1811.00250";
    const EXAMPLE: &'static str = "ratio = 0.4";
}

impl Pass for Fpgm {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.plan(net)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let scores = FilterScores::of_weights(&net, distances).relative();
        self.channels.cut(Self::NAME, net, |_, group| scores.means(group))
    }
}

/// For every filter, the sum of its Euclidean distances to the others of its layer.
fn distances(weight: &Stored) -> Vec<f64> {
    let values = weight.values();
    let filters: Vec<&[f32]> = values.chunks_exact(values.len() / weight.shape[0]).collect();
    let mut sums = vec![0.0; filters.len()];
    for (i, a) in filters.iter().enumerate() {
        for (j, b) in filters.iter().enumerate().skip(i + 1) {
            let distance = a.iter().zip(*b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
            sums[i] += distance;
            sums[j] += distance;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_handmade::{get, refusal, run, set, small};

    #[test]
    fn the_filter_amid_the_others_goes_and_a_small_one_apart_stays() {
        // The third filter has the largest norm but one and lies nearest to all others, the last has the smallest norm.
        let corner = [[9.0, 10.0], [11.0, 10.0], [10.0, 10.0], [0.0, 0.1]];
        let filters: Vec<f32> = corner.iter().flat_map(|[a, b]| [*a, *b, 0.0, 0.0]).collect();
        let net = set(small(), "conv1", "weight", &filters);
        let scores = distances(&net.nodes[1].weight().unwrap());
        let far = (9.9_f64.powi(2) + 81.0).sqrt();
        assert!((scores[0] - (1.0 + 2.0 + far)).abs() < 1e-5, "{scores:?}");
        let net = run::<Fpgm>(net, serde_json::json!({ "ratio": { "conv1": 0.25 } })).unwrap();
        assert_eq!(get(&net, "conv1", "weight"), [&filters[..8], &filters[12..]].concat());
        assert_eq!(net.nodes[net.index("conv2").unwrap()].op.weight_shape().unwrap(), [3, 3, 2, 2]);
    }

    #[test]
    fn layers_that_cannot_be_cut_are_named() {
        let output = refusal::<Fpgm>(small(), serde_json::json!({ "ratio": { "fc2": 0.5 } }));
        assert!(output.contains("node 'fc2': its channels cannot be cut"), "{output}");
        let nothing = refusal::<Fpgm>(small(), serde_json::json!({ "ratio": 1.0 }));
        assert!(nothing.contains("node 'conv1': would keep none of its 4 channels; remove less"), "{nothing}");
    }
}
