//! L1-norm filter pruning.
//!
//! Scores filter `i` of a layer by `s_i = sum_j |W_ij|` and removes the lowest of each channel group, with them the batch-norm entries and
//! the channels of the next layers that they feed.
//!
//! Li, Kadav, Durdanovic, Samet, Graf. "Pruning Filters for Efficient ConvNets". ICLR 2017. arXiv:1608.08710.
//! Differs from the paper: layers joined by a residual are scored together instead of following the shortcut's selection.

use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result, nearest};
use briquette_core::net::Net;
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::surgery::{ChannelGroup, Keep};
use briquette_core::training::{Extras, Recipe, fit};
use briquette_core::types::{PerLayer, Ratio};
use serde::Deserialize;

/// Removes the weakest filters of channel groups, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterL1 {
    /// Share of filters removed, for all groups or by the name of any layer that produces the group's channels.
    ratio: Option<PerLayer<Ratio>>,
    /// Share of the multiply-accumulates that stays: the one ratio for all groups that reaches it is found by bisection.
    macs: Option<Ratio>,
    /// Layers whose groups are left alone; a trailing `*` stands for any ending.
    #[serde(default)]
    except: Vec<String>,
    /// Training afterwards.
    tune: Option<Recipe>,
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
        match &self.tune {
            Some(recipe) => fit(net, recipe, Extras::default(), cx),
            None => Ok(net),
        }
    }

    fn plan(&self, net: Net) -> Result<Net> {
        let groups = self.groups(&net)?;
        let ratios: Vec<f64> = match (&self.ratio, self.macs) {
            (Some(ratio), None) => named(ratio, &net, &groups)?,
            (None, Some(macs)) => for_budget(&net, &groups, macs.get())?,
            _ => return Err(Error::Invalid("filter-l1 takes exactly one of `ratio` and `macs`".into())),
        };
        cut(net, &groups, &ratios)
    }

    fn trainings(&self) -> Vec<&Recipe> {
        self.tune.iter().collect()
    }

    fn shrink(&mut self) {
        if let Some(recipe) = &mut self.tune {
            recipe.shrink(1);
        }
    }
}

impl FilterL1 {
    /// The groups that may be cut.
    fn groups(&self, net: &Net) -> Result<Vec<ChannelGroup>> {
        let hit = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        if let Some(wrong) = self.except.iter().find(|pattern| !net.nodes.iter().any(|node| hit(pattern, &node.name))) {
            let nearest = nearest(wrong, net.weighted().map(|(_, node)| node.name.as_str()));
            return Err(Error::Unknown { what: "layer", name: wrong.clone(), nearest });
        }
        let spared = |group: &ChannelGroup| {
            group.producers().any(|node| self.except.iter().any(|pattern| hit(pattern, &net.nodes[node].name)))
        };
        Ok(net.channel_groups()?.into_iter().filter(|group| group.frozen.is_none() && !spared(group)).collect())
    }
}

fn named(ratio: &PerLayer<Ratio>, net: &Net, groups: &[ChannelGroup]) -> Result<Vec<f64>> {
    let each = match ratio {
        PerLayer::All(ratio) => return Ok(vec![ratio.get(); groups.len()]),
        PerLayer::Each(each) => each,
    };
    let mut ratios = vec![0.0; groups.len()];
    for (name, ratio) in each {
        let node = net.index(name)?;
        let group = groups.iter().position(|group| group.producers().any(|producer| producer == node));
        let Some(group) = group else {
            return Err(Error::node(name, "its channels cannot be cut: they are the output, or the group is excepted or frozen"));
        };
        ratios[group] = ratio.get();
    }
    Ok(ratios)
}

/// Sum of the absolute weights of every filter of each unit.
fn strengths(net: &Net, group: &ChannelGroup) -> Vec<f64> {
    let mut score = vec![0.0; group.len()];
    let weights: std::collections::BTreeMap<usize, _> =
        group.producers().filter_map(|node| Some((node, net.nodes[node].weight()?))).collect();
    for (unit, score) in score.iter_mut().enumerate() {
        for &(node, filter) in group.filters(unit) {
            let Some(weight) = weights.get(&node) else { continue };
            let fan_in = weight.base.len() / weight.shape[0];
            let values = weight.base[filter * fan_in..][..fan_in].iter();
            *score += values.map(|v| f64::from(v.abs())).sum::<f64>();
        }
    }
    score
}

/// Removes a share of each group's units, the weakest first. All scores come from the network as it is.
fn cut(net: Net, groups: &[ChannelGroup], ratios: &[f64]) -> Result<Net> {
    let cuts = groups.iter().zip(ratios).map(|(group, ratio)| {
        let kept = group.len() - (ratio * group.len() as f64).round() as usize;
        (group, Keep::top(&strengths(&net, group), kept))
    });
    let cuts: Vec<_> = cuts.collect();
    net.keep(&cuts)
}

/// One ratio for all groups, the smallest at which no more than `share` of the multiply-accumulates remain. A group always keeps one
/// unit.
fn for_budget(net: &Net, groups: &[ChannelGroup], share: f64) -> Result<Vec<f64>> {
    let limit = share * Cost::of(net)?.macs() as f64;
    let capped = |ratio: f64| -> Vec<f64> { groups.iter().map(|group| ratio.min(1.0 - 1.0 / group.len() as f64)).collect() };
    let fits =
        |ratio: f64| -> Result<bool> { Ok(Cost::of(&cut(net.deep_clone(), groups, &capped(ratio))?)?.macs() as f64 <= limit) };
    if !fits(1.0)? {
        let detail = format!("filter-l1: even one filter per group leaves more than {share} of the multiply-accumulates");
        return Err(Error::Invalid(detail));
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..BISECTIONS {
        let middle = (low + high) / 2.0;
        if fits(middle)? { high = middle } else { low = middle }
    }
    Ok(capped(high))
}

/// Fine enough to tell one filter in a thousand.
const BISECTIONS: usize = 11;

#[cfg(test)]
mod tests {
    use briquette_core::zoo::Arch;
    use burn::tensor::Device;

    use super::*;

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
    fn a_budget_is_met_and_almost_used_up() {
        let full = Cost::of(&lenet5()).unwrap().macs() as f64;
        for share in [0.05, 0.3, 0.5, 0.9] {
            let macs = Cost::of(&planned(serde_json::json!({ "macs": share })).unwrap()).unwrap().macs() as f64;
            assert!(macs <= share * full && macs > (share - 0.07) * full, "{share}: {}", macs / full);
        }
        let error = planned(serde_json::json!({ "macs": 1e-6 })).unwrap_err().to_string();
        assert!(error.contains("even one filter per group leaves more than 0.000001"), "{error}");
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let refused = |settings| planned(settings).unwrap_err().to_string();
        let both = refused(serde_json::json!({ "ratio": 0.5, "macs": 0.5 }));
        assert_eq!(both, "filter-l1 takes exactly one of `ratio` and `macs`");
        let output = refused(serde_json::json!({ "ratio": { "fc2": 0.5 } }));
        assert!(output.contains("node 'fc2': its channels cannot be cut"), "{output}");
        let unknown = refused(serde_json::json!({ "ratio": 0.5, "except": ["conf*"] }));
        assert!(unknown.contains("unknown layer 'conf*'"), "{unknown}");
    }
}
