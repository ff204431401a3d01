//! L1-norm filter pruning.
//!
//! Scores filter `i` of a layer by `s_i = sum_j |W_ij|`, the weights as the network computes with them, and removes the lowest of each
//! channel group, with them the batch-norm entries and the channels of the next layers that they feed.
//!
//! Li, Kadav, Durdanovic, Samet, Graf. "Pruning Filters for Efficient ConvNets". ICLR 2017. arXiv:1608.08710.
//! Differs from the paper: filters joined by a residual go together, by the mean of their scores, each divided by the mean of its layer,
//! instead of following the shortcut's selection.
//!
//! ```
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_pruning_sharing::pruning::filter_l1::FilterL1;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let method: FilterL1 = serde_json::from_value(serde_json::json!({ "ratio": { "fc1": 0.5 } }))?;
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

/// Removes the weakest filters of channel groups, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterL1 {
    /// Which groups, how much of them, and the training afterwards.
    #[serde(flatten)]
    channels: Channels,
}

impl Method for FilterL1 {
    const NAME: &'static str = "filter-l1";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Li, Kadav, Durdanovic, Samet, Graf, ICLR 2017, arXiv:1608.08710";
    const EXAMPLE: &'static str = "ratio = 0.5";
}

impl Pass for FilterL1 {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.plan(net)?;
        self.channels.tune(net, cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let scores = FilterScores::of_weights(&net, norms).relative();
        self.channels.cut(Self::NAME, net, |_, group| scores.means(group))
    }
}

/// Sum of the absolute weights of every filter.
fn norms(weight: &Stored) -> Vec<f64> {
    let values = weight.values();
    let fan_in = values.len() / weight.shape[0];
    values.chunks_exact(fan_in).map(|filter| filter.iter().map(|v| f64::from(v.abs())).sum()).collect()
}

#[cfg(test)]
mod tests {
    use briquette_core::coding::{Coding, Source};
    use briquette_core::cost::Cost;
    use briquette_core::stored::Storage;
    use briquette_core::zoo::Arch;
    use burn::tensor::Device;

    use super::*;
    use briquette_handmade::{set, small};

    fn lenet5() -> Net {
        let arch = Arch::named("lenet5").unwrap();
        arch.build(&arch.wanted(), &Device::flex()).unwrap()
    }

    fn planned(settings: serde_json::Value) -> Result<Net> {
        serde_json::from_value::<FilterL1>(settings).unwrap().plan(lenet5())
    }

    #[test]
    fn the_filters_of_the_smallest_norm_go() {
        let norms = |net: &Net| -> Vec<f32> {
            let weight = net.nodes[net.index("conv1").unwrap()].weight().unwrap();
            weight.base.chunks(25).map(|filter| filter.iter().map(|v| v.abs()).sum()).collect()
        };
        let before = norms(&lenet5());
        let net = planned(serde_json::json!({ "ratio": { "conv1": 0.25 } })).unwrap();
        let mut sorted = before.clone();
        sorted.sort_by(f32::total_cmp);
        let kept: Vec<f32> = before.into_iter().filter(|norm| *norm >= sorted[5]).collect();
        assert_eq!(norms(&net), kept);
        assert_eq!(net.nodes[net.index("conv2").unwrap()].op.weight_shape().unwrap(), [50, 15, 5, 5]);
    }

    #[test]
    fn masked_and_shared_weights_count_as_what_the_network_computes_with() {
        let mut net = small();
        let index = net.index("conv1").unwrap();
        net = set(net, "conv1", "weight", &[[1.0; 4], [0.75; 4], [0.5; 4], [0.25; 4]].concat());
        let coded = |coding: Coding| {
            let mut net = net.deep_clone();
            let node = net.nodes.remove(index);
            let mut parameters = node.parameters();
            parameters[0].coding = coding;
            net.nodes.insert(index, node.with(parameters, &Device::flex()).unwrap());
            norms(&net.nodes[index].weight().unwrap())
        };
        let mask = (0..16).map(|i| i >= 4).collect();
        assert_eq!(coded(Coding { mask: Some(mask), source: Source::Free }), [0.0, 3.0, 2.0, 1.0]);
        let assignment = (0..16).map(|i| u32::from(i >= 12)).collect();
        let source = Source::Codebook { centroids: vec![0.5, -2.0], assignment };
        assert_eq!(coded(Coding { mask: None, source }), [2.0, 2.0, 2.0, 8.0]);
    }

    #[test]
    fn a_ratio_over_all_layers_takes_its_share_of_every_stage() {
        let arch = Arch::named("resnet20").unwrap();
        let net = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let method: FilterL1 = serde_json::from_value(serde_json::json!({ "ratio": 0.5 })).unwrap();
        let cut = method.plan(net.deep_clone()).unwrap();
        for stage in ["layer1", "layer2", "layer3"] {
            let filters = |net: &Net| net.nodes[net.index(&format!("{stage}.1.conv2")).unwrap()].op.weight_shape().unwrap()[0];
            let left = filters(&cut) as f64 / filters(&net) as f64;
            assert!((0.25..=0.75).contains(&left), "{stage} keeps {left}");
        }
    }

    #[test]
    fn a_budget_is_met_and_almost_used_up() {
        let macs = |net: &Net| Cost::of(net).unwrap().macs() as f64;
        let bytes = |net: &Net| net.to_model(Storage::default()).unwrap().to_bytes().unwrap().len() as f64;
        for unit in ["macs", "bytes"] {
            let count = |net: &Net| if unit == "macs" { macs(net) } else { bytes(net) };
            let full = count(&lenet5());
            for share in [0.05, 0.3, 0.5, 0.9] {
                let left = count(&planned(serde_json::json!({ "budget": { unit: share } })).unwrap()) / full;
                assert!(left <= share && left > share - 0.07, "{share}: {left}");
            }
        }
        let error = planned(serde_json::json!({ "budget": { "macs": 1e-6 } })).unwrap_err().to_string();
        assert!(error.contains("even one filter per group leaves more than 0.000001"), "{error}");
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let refused = |settings| planned(settings).unwrap_err().to_string();
        let both = refused(serde_json::json!({ "ratio": 0.5, "budget": { "macs": 0.5 } }));
        assert_eq!(both, "filter-l1 takes exactly one of `ratio` and `budget`");
        let output = refused(serde_json::json!({ "ratio": { "fc2": 0.5 } }));
        assert!(output.contains("node 'fc2': its channels cannot be cut"), "{output}");
        let unknown = refused(serde_json::json!({ "ratio": 0.5, "except": ["conf*"] }));
        assert!(unknown.contains("unknown layer 'conf*'"), "{unknown}");
    }
}
