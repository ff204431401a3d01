//! What the methods that cut channels share: which groups they may cut, how many units of each, and the training afterwards. A method
//! adds a score for every unit.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use briquette_core::Layer;
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::{Net, Op};
use briquette_core::rank::{Scores, highest_of_all};
use briquette_core::stored::Stored;
use briquette_core::surgery::{ChannelGroup, Keep};
use briquette_core::training::{Recipe, renew, tune};
use briquette_core::types::{Budget, Fit, Layers, PerLayer, Ratio};
use serde::Deserialize;

/// The settings; a method's struct flattens them into its own and denies unknown fields there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Channels {
    /// Share of filters removed, for all groups or by selectors of the layers that produce a group's channels.
    ratio: Option<PerLayer<Ratio>>,
    /// How much of the network's cost stays: the one ratio for all groups that reaches it is found by bisection.
    budget: Option<Budget>,
    /// Layers whose groups may be cut, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers whose groups are left alone.
    #[serde(default)]
    except: Layers,
    /// Whether the statistics of batch norms are estimated anew after the cut.
    #[serde(default)]
    renew: bool,
    /// Training afterwards.
    tune: Option<Recipe>,
}

impl Channels {
    /// The groups that may be cut.
    ///
    /// # Errors
    /// When `layers` or `except` names what is not there, or `layers` what cannot be cut.
    pub fn groups(&self, net: &Net) -> Result<Vec<ChannelGroup>> {
        groups(net, &self.layers, &self.except)
    }

    /// The groups that may be cut and of which `fits` holds.
    ///
    /// # Errors
    /// As [`Channels::groups`]; where `layers` names a layer that makes channels of none of them, with what keeps the method from it.
    pub fn groups_where(&self, net: &Net, fits: impl Fn(&ChannelGroup) -> bool, why: &str) -> Result<Vec<ChannelGroup>> {
        let groups: Vec<ChannelGroup> = self.groups(net)?.into_iter().filter(fits).collect();
        let cut: BTreeSet<usize> = groups.iter().flat_map(ChannelGroup::producers).collect();
        self.layers.all_done(net, |node| cut.contains(&node), why)?;
        Ok(groups)
    }

    /// The nodes that `layers` and `except` leave.
    ///
    /// # Errors
    /// When they name what is not there.
    pub fn chosen(&self, net: &Net) -> Result<BTreeSet<usize>> {
        self.layers.without(&self.except, net)
    }

    /// Every layer whose filters may go, with the node behind it that `follower` finds.
    ///
    /// # Errors
    /// Names the first layer for which it finds none, with what is `missing`.
    pub fn followed(
        &self,
        net: &Net,
        follower: impl Fn(&Net, usize) -> Option<usize>,
        missing: &str,
    ) -> Result<BTreeMap<usize, usize>> {
        let found = |node: usize| follower(net, node).ok_or_else(|| Error::node(&net.nodes[node].name, missing));
        let groups = self.groups(net)?;
        groups.iter().flat_map(ChannelGroup::producers).map(|node| Ok((node, found(node)?))).collect()
    }

    /// Removes the units of the lowest scores from every group that may be cut. All scores come from the network as it is.
    ///
    /// # Errors
    /// When the settings, of the method of this name, do not fit the network, or its weights are not finite: then scores say nothing.
    pub fn cut(&self, method: &str, net: Net, score: impl Fn(&Net, &ChannelGroup) -> Vec<f64>) -> Result<Net> {
        net.finite()?;
        let groups = self.groups(&net)?;
        let scores: Vec<Vec<f64>> = groups.iter().map(|group| score(&net, group)).collect();
        let keeps = self.keeps(method, &net, &groups, &scores)?;
        net.keep(&pairs(&groups, keeps))
    }

    /// As [`Channels::cut`]; with `global`, which takes the place of `ratio` and `budget`, that share of the units of all groups stays over
    /// one threshold, every layer always keeping a filter.
    ///
    /// # Errors
    /// When the settings do not fit the network or each other, or weights are not finite.
    pub fn cut_or_rank(
        &self,
        method: &str,
        global: Option<Ratio>,
        net: Net,
        score: impl Fn(&Net, &ChannelGroup) -> Vec<f64>,
    ) -> Result<Net> {
        net.finite()?;
        let groups = self.groups(&net)?;
        let scores: Vec<Vec<f64>> = groups.iter().map(|group| score(&net, group)).collect();
        let keeps = self.keeps_or_ranks(method, global, &net, &groups, &scores)?;
        net.keep(&pairs(&groups, keeps))
    }

    /// Which units of each group stay after [`Channels::cut_or_rank`].
    ///
    /// # Errors
    /// As [`Channels::cut_or_rank`].
    pub fn keeps_or_ranks(
        &self,
        method: &str,
        global: Option<Ratio>,
        net: &Net,
        groups: &[ChannelGroup],
        scores: &[Vec<f64>],
    ) -> Result<Vec<Keep>> {
        let Some(share) = self.ranked(method, global)? else { return self.keeps(method, net, groups, scores) };
        let all: usize = scores.iter().map(Vec::len).sum();
        let ranked: Vec<Scores<'_, f64>> = scores.iter().map(|scores| Scores { scores: scores.clone(), open: None }).collect();
        let stay = highest_of_all(&ranked, (share.get() * all as f64).round() as usize);
        let keeps = groups
            .iter()
            .zip(scores)
            .zip(stay)
            .map(|((group, scores), stay)| group.best(scores, stay.into_iter().filter(|stays| *stays).count()));
        Ok(keeps.collect())
    }

    /// The network's shape after a cut whose scores only data can tell: the last units of each group go, and with `global` the same share
    /// of each stays.
    ///
    /// # Errors
    /// As [`Channels::cut_or_rank`].
    pub fn plan(&self, method: &str, global: Option<Ratio>, net: Net) -> Result<Net> {
        let Some(share) = self.ranked(method, global)? else { return self.plan_equal(method, net) };
        let groups = self.groups(&net)?;
        let kept = |group: &ChannelGroup| ((share.get() * group.len() as f64).round() as usize).max(1);
        let keeps = groups.iter().map(|group| group.best(&vec![0.0; group.len()], kept(group))).collect();
        net.keep(&pairs(&groups, keeps))
    }

    /// As [`Channels::plan`], for methods without `global`.
    ///
    /// # Errors
    /// As [`Channels::cut`].
    pub fn plan_equal(&self, method: &str, net: Net) -> Result<Net> {
        self.cut(method, net, |_, group| vec![0.0; group.len()])
    }

    /// Which units of each group stay.
    ///
    /// # Errors
    /// As [`Channels::cut`].
    pub fn keeps(&self, method: &str, net: &Net, groups: &[ChannelGroup], scores: &[Vec<f64>]) -> Result<Vec<Keep>> {
        let ratios: Vec<f64> = match (&self.ratio, self.budget) {
            (Some(ratio), None) => named(method, ratio, net, groups)?,
            (None, Some(budget)) => for_budget(method, net, groups, scores, budget)?,
            _ => return Err(Error::Invalid(format!("{method} takes exactly one of `ratio` and `budget`"))),
        };
        Ok(weakest_go(groups, scores, &ratios))
    }

    /// What of [`Channels::plan`] is an estimate.
    pub fn estimate(&self, global: Option<Ratio>) -> Option<&'static str> {
        global.map(|_| "every group loses the same share here; the order over all groups follows from training and data")
    }

    /// Whether neither `ratio` nor `budget` is given.
    pub fn open(&self) -> bool {
        self.ratio.is_none() && self.budget.is_none()
    }

    /// Estimates the statistics of batch norms anew and trains, as `renew` and `tune` say.
    ///
    /// # Errors
    /// As [`tune`].
    pub fn tune(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = if self.renew { renew(net, cx)? } else { net };
        tune(net, self.tune.as_ref(), cx)
    }

    fn ranked(&self, method: &str, global: Option<Ratio>) -> Result<Option<Ratio>> {
        if global.is_some() == self.open() {
            Ok(global)
        } else {
            Err(Error::Invalid(format!("{method} takes exactly one of `ratio`, `budget` and `global`")))
        }
    }
}

/// The groups of channels that may be cut: those of which `layers`, or nothing, names a layer that makes them, and `except` names none.
///
/// # Errors
/// When `layers` or `except` names what is not there, or `layers` what cannot be cut.
pub fn groups(net: &Net, layers: &Layers, except: &Layers) -> Result<Vec<ChannelGroup>> {
    let (chosen, spared) = (layers.without(except, net)?, except.nodes(net)?);
    let free = |group: &ChannelGroup| {
        let mut producers = group.producers();
        group.frozen.is_none()
            && producers.any(|node| chosen.contains(&node))
            && !group.producers().any(|node| spared.contains(&node))
    };
    let groups: Vec<ChannelGroup> = net.channel_groups()?.into_iter().filter(free).collect();
    let cut: BTreeSet<usize> = groups.iter().flat_map(ChannelGroup::producers).collect();
    layers.all_done(net, |node| cut.contains(&node), UNCUTTABLE)?;
    Ok(groups)
}

/// A score for each filter of each layer, by node.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct FilterScores(pub BTreeMap<usize, Vec<f64>>);

impl FilterScores {
    /// Scores from the weights `[out, ...]` of each layer.
    pub fn of_weights(net: &Net, score: impl Fn(&Stored) -> Vec<f64>) -> Self {
        Self(net.weighted().filter_map(|(index, node)| Some((index, score(&node.weight()?)))).collect())
    }

    /// The scores as multiples of the mean of their layer's, by which filters of different sizes can be compared.
    pub fn relative(mut self) -> Self {
        for scores in self.0.values_mut() {
            let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            scores.iter_mut().filter(|_| mean > 0.0).for_each(|score| *score /= mean);
        }
        self
    }

    /// For each unit of the group, the mean over its filters that have a score: where a shortcut joins stages, a unit is not worth more
    /// because more layers have filters in it.
    pub fn means(&self, group: &ChannelGroup) -> Vec<f64> {
        let mean = |unit| self.filters(group, unit).sum::<f64>() / self.filters(group, unit).count().max(1) as f64;
        (0..group.len()).map(mean).collect()
    }

    fn filters(&self, group: &ChannelGroup, unit: usize) -> impl Iterator<Item = f64> {
        group.filters(unit).iter().filter_map(|(node, filter)| Some(self.0.get(node)?[*filter]))
    }
}

/// The groups with what stays of them, as [`Net::keep`] takes them.
pub fn pairs(groups: &[ChannelGroup], keeps: Vec<Keep>) -> Vec<(&ChannelGroup, Keep)> {
    groups.iter().zip(keeps).collect()
}

/// The batch norm that reads a layer directly.
pub fn norm_after(net: &Net, layer: usize) -> Option<usize> {
    net.nodes.iter().position(|node| node.inputs == [layer] && matches!(node.op, Op::BatchNorm(_)))
}

/// The first convolution or fully connected layer behind the one layer that makes a group's channels, where nothing else reads them on the
/// way and every node between satisfies `passes`.
pub fn only_reader(net: &Net, group: &ChannelGroup, passes: impl Fn(&Layer) -> bool) -> Option<usize> {
    let producers: Vec<usize> = group.producers().collect();
    let [mut node] = producers[..] else { return None };
    loop {
        let mut readers = (0..net.nodes.len()).filter(|&reader| net.nodes[reader].inputs.contains(&node));
        let (Some(only), None) = (readers.next(), readers.next()) else { return None };
        let layer = net.nodes[only].op.layer();
        if matches!(layer, Layer::Linear(_) | Layer::Conv2d(_)) {
            return Some(only);
        }
        if !passes(&layer) {
            return None;
        }
        node = only;
    }
}

/// The share of each group that goes: what the table has for its layers, of which the closest selector decides.
fn named(method: &str, ratio: &PerLayer<Ratio>, net: &Net, groups: &[ChannelGroup]) -> Result<Vec<f64>> {
    if let PerLayer::All(ratio) = ratio {
        return Ok(vec![ratio.get(); groups.len()]);
    }
    let fits = ratio.fits(net)?;
    let cut: BTreeSet<usize> = groups.iter().flat_map(ChannelGroup::producers).collect();
    if let Some((node, _)) = fits.iter().find(|(node, (fit, _))| *fit == Fit::Name && !cut.contains(*node)) {
        return Err(Error::node(&net.nodes[*node].name, format!("{UNCUTTABLE}, or not of the kind that {method} cuts")));
    }
    let share = |group: &ChannelGroup| {
        let mut found: Vec<(Fit, f64, usize)> =
            group.producers().filter_map(|node| fits.get(&node).map(|(fit, ratio)| (*fit, ratio.get(), node))).collect();
        found.sort_by_key(|(fit, ..)| Reverse(*fit));
        let Some(&(fit, ratio, node)) = found.first() else { return Ok(None) };
        match found.iter().find(|(other, value, _)| *other == fit && *value != ratio) {
            Some((_, other, with)) => {
                let [name, with] = [node, *with].map(|node| &net.nodes[node].name);
                Err(Error::node(
                    name,
                    format!("is cut together with '{with}', but by {ratio} and not by {other}; give both one ratio"),
                ))
            }
            None => Ok(Some(ratio)),
        }
    };
    let shares: Vec<Option<f64>> = groups.iter().map(share).collect::<Result<_>>()?;
    match shares.iter().all(Option::is_none) {
        true => Err(Error::Invalid(format!("{method}: `ratio` names no layer whose channels can be cut"))),
        false => Ok(shares.into_iter().map(|share| share.unwrap_or(0.0)).collect()),
    }
}

/// Why a layer that is named cannot be cut.
const UNCUTTABLE: &str = "its channels cannot be cut: they are the output, excepted or frozen";

/// A share of each group's units goes, the weakest first; every layer keeps one filter unless all are to go.
fn weakest_go(groups: &[ChannelGroup], scores: &[Vec<f64>], ratios: &[f64]) -> Vec<Keep> {
    let kept = |group: &ChannelGroup, ratio: f64| group.len() - (ratio * group.len() as f64).round() as usize;
    groups.iter().zip(scores).zip(ratios).map(|((group, scores), ratio)| group.best(scores, kept(group, *ratio))).collect()
}

/// One ratio for all groups, the smallest at which no more than the budget remains. A group always keeps one unit.
fn for_budget(method: &str, net: &Net, groups: &[ChannelGroup], scores: &[Vec<f64>], budget: Budget) -> Result<Vec<f64>> {
    let price = budget.price();
    let limit = budget.share() * price.of(net)?;
    let capped = |ratio: f64| -> Vec<f64> { groups.iter().map(|group| ratio.min(1.0 - 1.0 / group.len() as f64)).collect() };
    let fits = |ratio: f64| -> Result<bool> {
        let keeps = weakest_go(groups, scores, &capped(ratio));
        Ok(price.after(net, &pairs(groups, keeps))? <= limit)
    };
    if !fits(1.0)? {
        let (share, unit) = (budget.share(), price.unit());
        let detail = format!("{method}: even one filter per group leaves more than {share} of the {unit}");
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
    use briquette_core::builder::{Builder, Conv};
    use briquette_core::cost::Cost;

    use super::*;
    use briquette_handmade::{get, run, small};
    use briquette_pruning_sharing::pruning::fpgm::Fpgm;

    #[test]
    fn unknown_settings_are_refused_beside_the_shared_ones() {
        let error = serde_json::from_value::<Fpgm>(serde_json::json!({ "ratio": 0.5, "ration": 0.5 })).unwrap_err().to_string();
        assert!(error.contains("unknown field `ration`"), "{error}");
        let error = serde_json::from_value::<Fpgm>(serde_json::json!({ "ratio": { "conv1": 1.5 } })).unwrap_err().to_string();
        assert!(error.contains("a ratio lies in [0, 1], not 1.5"), "{error}");
    }

    #[test]
    fn one_threshold_ranks_all_groups_and_leaves_each_its_best() {
        let channels = Channels::default();
        let share = |value| Some(Ratio::try_from(value).unwrap());
        let widths =
            |net: &Net| ["conv1", "conv2", "fc1"].map(|n| net.nodes[net.index(n).unwrap()].op.weight_shape().unwrap()[0]);
        // Scores 0 to 3 for conv1, 10 to 12 for conv2 and 20 to 24 for fc1.
        let score = |_: &Net, group: &ChannelGroup| {
            let start = ["conv1", "conv2", "fc1"].iter().position(|name| *name == group.name).unwrap() * 10;
            (start..start + group.len()).map(|score| score as f64).collect()
        };
        let ranked = |value| widths(&channels.cut_or_rank("slimming", share(value), small(), score).unwrap());
        assert_eq!(ranked(1.0), [4, 3, 5]);
        assert_eq!(ranked(0.75), [1, 3, 5]);
        assert_eq!(ranked(0.5), [1, 1, 4]);
        assert_eq!(ranked(0.0), [1, 1, 1]);
        // Equal scores: as many stay as wanted.
        let equal = |value: f64| {
            let cut = channels.cut_or_rank("slimming", share(value), small(), |_, group| vec![1.0; group.len()]).unwrap();
            widths(&cut).iter().sum::<usize>()
        };
        assert_eq!([0.25, 0.5, 0.75].map(equal), [3, 6, 9]);
        assert_eq!(widths(&channels.plan("slimming", share(0.5), small()).unwrap()), [2, 2, 3]);
        let neither = channels.plan("slimming", None, small()).unwrap_err().to_string();
        assert_eq!(neither, "slimming takes exactly one of `ratio`, `budget` and `global`");
    }

    #[test]
    fn norms_are_renewed_after_the_cut_where_the_settings_say_so() {
        let statistics = |settings: serde_json::Value| {
            let net = run::<Fpgm>(two_norms(), settings).unwrap();
            ["mean", "var"].map(|name| get(&net, "norm2", name))
        };
        let [mean, var] = statistics(serde_json::json!({ "ratio": { "conv1": 0.5 }, "renew": true }));
        assert_eq!(statistics(serde_json::json!({ "ratio": { "conv1": 0.5 } })), [vec![0.0; 2], vec![1.0; 2]]);
        // Those of what the second convolution makes of the two channels that are left.
        let cut = run::<Fpgm>(two_norms(), serde_json::json!({ "ratio": { "conv1": 0.5 } })).unwrap();
        let data = briquette_handmade::images();
        let mut silent = briquette_core::context::Silent;
        let expected = renew(cut, &mut briquette_handmade::context(&data, &mut silent)).unwrap();
        assert_eq!((&mean, &var), (&get(&expected, "norm2", "mean"), &get(&expected, "norm2", "var")));
        assert!(mean.iter().all(|mean| *mean != 0.0));
    }

    fn two_norms() -> Net {
        let mut b = Builder::new([1, 4, 4], 3, &burn::tensor::Device::flex());
        let mut x = b.conv("conv1", b.input(), Conv::new(4, 2));
        x = b.relu("relu1", x);
        x = b.conv("conv2", x, Conv::new(2, 2).no_bias());
        x = b.batch_norm("norm2", x);
        x = b.global_avg_pool("pool", x);
        b.linear("fc", x, 3);
        b.finish().unwrap()
    }

    #[test]
    fn ratios_by_layer_take_names_wildcards_kinds_and_rest() {
        let cut = |settings: serde_json::Value| -> Result<[usize; 3]> {
            let channels: Channels = serde_json::from_value(settings).unwrap();
            let net = channels.plan_equal("fpgm", small())?;
            Ok(["conv1", "conv2", "fc1"].map(|n| net.nodes[net.index(n).unwrap()].op.weight_shape().unwrap()[0]))
        };
        let ratio = |ratio: serde_json::Value| cut(serde_json::json!({ "ratio": ratio }));
        assert_eq!(ratio(serde_json::json!({ "conv": 0.5, "rest": 0.2 })).unwrap(), [2, 1, 4]);
        assert_eq!(ratio(serde_json::json!({ "conv": 0.5, "conv1": 0.25 })).unwrap(), [3, 1, 5]);
        assert_eq!(ratio(serde_json::json!({ "f*": 0.4 })).unwrap(), [4, 3, 3], "of the last layer nothing goes");
        let cut_of = |layers: &[&str]| cut(serde_json::json!({ "ratio": 0.5, "layers": layers }));
        assert_eq!(cut_of(&["conv"]).unwrap(), [2, 1, 5]);
        let output = cut_of(&["conv", "fc2"]).unwrap_err().to_string();
        assert_eq!(output, "node 'fc2': its channels cannot be cut: they are the output, excepted or frozen");
        let none = cut(serde_json::json!({ "ratio": { "fc1": 0.5, "fc2": 0.5 }, "except": ["fc1"] })).unwrap_err().to_string();
        assert!(none.starts_with("node 'fc1': its channels cannot be cut"), "{none}");
        let none = cut(serde_json::json!({ "ratio": { "fc": 0.5 }, "except": ["fc1"] })).unwrap_err().to_string();
        assert_eq!(none, "fpgm: `ratio` names no layer whose channels can be cut");
    }

    #[test]
    fn layers_that_are_cut_together_have_one_ratio() {
        let arch = briquette_core::zoo::Arch::named("resnet20").unwrap();
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).unwrap();
        let groups = net.channel_groups().unwrap();
        let joined = groups.iter().find(|group| group.producers().count() > 1).unwrap();
        let names: Vec<&str> = joined.producers().map(|node| net.nodes[node].name.as_str()).collect();
        let two = serde_json::json!({ "ratio": { names[0]: 0.5, names[1]: 0.25 } });
        let error =
            serde_json::from_value::<Channels>(two).unwrap().plan_equal("fpgm", net.deep_clone()).unwrap_err().to_string();
        assert!(error.contains("is cut together with") && error.contains("give both one ratio"), "{error}");
    }

    #[test]
    fn a_budget_leaves_every_layer_a_filter() {
        let arch = briquette_core::zoo::Arch::named("resnet20").unwrap();
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).unwrap();
        let full = Cost::of(&net).unwrap().macs() as f64;
        let channels: Channels = serde_json::from_value(serde_json::json!({ "budget": { "macs": 0.3 } })).unwrap();
        // The units of the first stage, which the most layers share, score lowest.
        let score =
            |_: &Net, group: &ChannelGroup| (0..group.len()).map(|unit| -(group.filters(unit).len() as f64)).collect::<Vec<_>>();
        let cut = channels.cut("slimming", net, score).unwrap();
        let macs = Cost::of(&cut).unwrap().macs() as f64;
        assert!(macs <= 0.3 * full && macs > 0.2 * full, "{}", macs / full);
    }

    #[test]
    fn a_unit_of_several_filters_has_their_mean_however_many_and_however_large_they_are() {
        let net = small();
        let groups = net.channel_groups().unwrap();
        let conv1 = net.index("conv1").unwrap();
        let scores = FilterScores([(conv1, vec![1.0, 2.0, 3.0, 6.0])].into());
        assert_eq!(scores.means(&groups[0]), [1.0, 2.0, 3.0, 6.0]);
        assert_eq!(scores.relative().means(&groups[0]), [1.0 / 3.0, 2.0 / 3.0, 1.0, 2.0]);
        let arch = briquette_core::zoo::Arch::named("resnet20").unwrap();
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).unwrap();
        let groups = net.channel_groups().unwrap();
        let joined = groups.iter().find(|group| group.filters(0).len() > 1).unwrap();
        let scores = FilterScores::of_weights(&net, |weight| vec![weight.base.len() as f64; weight.shape[0]]);
        assert_eq!(scores.relative().means(joined), vec![1.0; joined.len()]);
    }
}
