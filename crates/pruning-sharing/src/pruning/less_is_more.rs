//! Less is more: neurons that vanish while the network trains.
//!
//! Minimizes the loss plus `lambda sum_n ||w_n||`, where `w_n` are the incoming weights of neuron (or filter) `n` with its bias, by
//! forward-backward splitting: a step of the optimizer on the loss, then the proximal step of the penalty (see
//! [`proximal`](crate::pruning::proximal)), by which groups become exactly zero. Neurons without incoming weights are removed physically.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::less_is_more::LessIsMore;
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! let x = b.linear("hidden", x, 50);
//! let x = b.relu("relu", x);
//! b.linear("output", x, 2);
//! let all = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1]).unwrap();
//! let data = Data { train: all.clone(), valid: all.clone(), test: all };
//!
//! let train = r#"{ "epochs": 300, "optimizer": "sgd", "lr": 0.3, "choose": "last" }"#;
//! let settings = format!(r#"{{ "lambda": {{ "hidden": 0.05 }}, "train": {train} }}"#);
//! let method: LessIsMore = serde_json::from_str(&settings).unwrap();
//! let net = method.run(b.finish().unwrap(), &mut Context::new(&Device::flex(), 1, &data, &mut Silent)).unwrap();
//! assert!(net.nodes[2].op.weight_shape().unwrap()[0] < 25);
//! ```
//!
//! Zhou, Alvarez, Porikli. "Less Is More: Towards Compact CNNs". ECCV 2016.
//! Differs from the paper: the tensor low-rank penalty beside the group sparsity is left out, and the group has the neuron's bias too, so
//! that an empty neuron gives nothing; what a batch norm behind it gives goes into what reads it, so that its removal changes no output.

use std::collections::BTreeSet;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::surgery::ChannelGroup;
use briquette_core::training::{Extras, Recipe, fit, renew, tune};
use briquette_core::types::{Fit, Layers, PerLayer};
use serde::Deserialize;

use crate::pruning::empty::remove_empty;
use crate::pruning::proximal::{Groups, Penalty, Proximal};

/// Trains neurons to zero and removes them, physically.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LessIsMore {
    /// Strength of the penalty, for all layers or by name.
    lambda: PerLayer<f64>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// The training with the penalty; `choose = "last"` keeps it from returning an early epoch with more neurons.
    train: Recipe,
    /// Whether the statistics of batch norms are estimated anew when what is empty is gone.
    #[serde(default)]
    renew: bool,
    /// Training of what is left, without the penalty.
    tune: Option<Recipe>,
}

impl Method for LessIsMore {
    const NAME: &'static str = "less-is-more";
    const FAMILY: &'static str = "pruning and sharing";
    const PAPER: &'static str = "Zhou, Alvarez, Porikli, ECCV 2016";
    const EXAMPLE: &'static str = "lambda = { fc1 = 1e-2 }\ntrain = { epochs = 10, choose = \"last\" }";
}

impl Pass for LessIsMore {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let mut proximal = Proximal::new(self.penalties(&net)?);
        let net = fit(net, &self.train, Extras { projections: vec![&mut proximal], ..Extras::default() }, cx)?;
        let net = remove_empty(net, "lower its `lambda`")?;
        let net = if self.renew { renew(net, cx)? } else { net };
        tune(net, self.tune.as_ref(), cx)
    }

    /// How many neurons go only the training can tell.
    fn plan(&self, net: Net) -> Result<Net> {
        self.train.check()?;
        self.penalties(&net)?;
        Ok(net)
    }

    fn estimate(&self) -> Option<&'static str> {
        Some("nothing is removed here; how much is follows from the training")
    }
}

impl LessIsMore {
    /// One penalty for each layer that is named and whose neurons may go.
    fn penalties(&self, net: &Net) -> Result<Vec<Penalty>> {
        let groups = net.channel_groups()?;
        let free: BTreeSet<usize> =
            groups.iter().filter(|group| group.frozen.is_none()).flat_map(ChannelGroup::producers).collect();
        let why = "its neurons cannot go: they are the output, or something that cannot lose them reads them";
        self.layers.all_done(net, |layer| free.contains(&layer), why)?;
        if let Some((layer, _)) =
            self.lambda.fits(net)?.iter().find(|(layer, (fit, _))| *fit == Fit::Name && !free.contains(layer))
        {
            return Err(Error::node(&net.nodes[*layer].name, why));
        }
        let named = self
            .lambda
            .resolve_within(net, &self.layers.without(&self.except, net)?)?
            .into_iter()
            .filter(|(layer, _)| free.contains(layer));
        let penalty = |(layer, strength)| Penalty { groups: Groups::Filters, layers: vec![layer], strength };
        let penalties: Vec<Penalty> = named.map(penalty).collect();
        penalties.iter().try_for_each(|penalty| penalty.check(Self::NAME, net))?;
        if penalties.iter().all(|penalty| penalty.strength == 0.0) {
            return Err(Error::Invalid("less-is-more: no layer whose neurons may go has a `lambda` above 0".into()));
        }
        Ok(penalties)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_handmade::{get, refusal, run, set, small};

    /// Minimizes `sum_n ||X w_n - y_n||^2 / 2 + lambda ||w_n||` over the rows `w_n` of `fc2` by forward-backward splitting.
    fn split(x: &[[f32; 5]], y: &[Vec<f32>], lambda: f64, steps: usize) -> Vec<f32> {
        let rate = 0.3_f32;
        let zeros = |net| set(net, "fc2", "bias", &[0.0; 3]);
        let mut net = zeros(set(small(), "fc2", "weight", &[0.7; 15]));
        let penalty = Penalty { groups: Groups::Filters, layers: vec![net.index("fc2").unwrap()], strength: lambda };
        for _ in 0..steps {
            let mut weights = get(&net, "fc2", "weight");
            for (w, y) in weights.chunks_mut(5).zip(y) {
                let rest: Vec<f32> =
                    x.iter().zip(y).map(|(x, y)| x.iter().zip(&*w).map(|(x, w)| x * w).sum::<f32>() - y).collect();
                let slope = |i: usize| x.iter().zip(&rest).map(|(x, rest)| x[i] * rest).sum::<f32>();
                (0..5).map(slope).collect::<Vec<_>>().iter().zip(w).for_each(|(slope, w)| *w -= rate * slope);
            }
            net = penalty.shrink(set(net, "fc2", "weight", &weights), f64::from(rate));
        }
        get(&net, "fc2", "weight")
    }

    #[test]
    fn the_splitting_converges_to_the_group_lasso_of_an_orthogonal_design() {
        // The columns of X are unit vectors at right angles: w_n = max(0, 1 - lambda / ||z_n||) z_n with z_n = X^T y_n.
        let x: Vec<[f32; 5]> = (0..8_usize)
            .map(|row| std::array::from_fn(|c| (1.0 - 2.0 * (((row & (c + 1)).count_ones() % 2) as f32)) / 8.0_f32.sqrt()))
            .collect();
        let y: Vec<Vec<f32>> =
            (1..4).map(|n| (0..8).map(|row| ((row * n * 5 + row) % 7) as f32 / (4.0 * n as f32) - 0.4).collect()).collect();
        let z = |n: usize, c: usize| x.iter().zip(&y[n]).map(|(x, y)| f64::from(x[c] * y)).sum::<f64>();
        let norm = |n: usize| (0..5).map(|c| z(n, c).powi(2)).sum::<f64>().sqrt();
        let lambda = (norm(1) + norm(2)) / 2.0;
        let found = split(&x, &y, lambda, 60);
        for (n, c) in (0..3).flat_map(|n| (0..5).map(move |c| (n, c))) {
            let expected = (1.0 - lambda / norm(n)).max(0.0) * z(n, c);
            assert!((f64::from(found[5 * n + c]) - expected).abs() < 1e-5, "{n} {c}: {} and {expected}", found[5 * n + c]);
        }
        let empty = found.chunks(5).filter(|w| w.iter().all(|w| *w == 0.0)).count();
        assert!((1..3).contains(&empty), "exact zeros and survivors: {found:?}");
    }

    #[test]
    fn the_training_empties_neurons_which_go_with_what_reads_them() {
        let width = |lambda: f64| {
            let train = serde_json::json!({ "epochs": 60, "batch": 5, "optimizer": "sgd", "lr": 0.1, "choose": "last" });
            let settings =
                serde_json::json!({ "lambda": { "fc1": lambda }, "train": train, "tune": { "epochs": 1, "batch": 20 } });
            let net = run::<LessIsMore>(small(), settings).unwrap();
            let shape = |name: &str| net.nodes[net.index(name).unwrap()].op.weight_shape().unwrap();
            assert_eq!(shape("fc1")[0], shape("fc2")[1]);
            shape("fc1")[0]
        };
        assert_eq!(width(1e-6), 5);
        assert!((1..5).contains(&width(0.07)), "{}", width(0.07));
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        let output = refusal::<LessIsMore>(small(), serde_json::json!({ "lambda": { "fc2": 0.1 }, "train": {} }));
        assert!(output.starts_with("node 'fc2': its neurons cannot go"), "{output}");
        let none = refusal::<LessIsMore>(small(), serde_json::json!({ "lambda": 0.0, "train": {} }));
        assert_eq!(none, "less-is-more: no layer whose neurons may go has a `lambda` above 0");
        let train = serde_json::json!({ "epochs": 20, "batch": 20, "lr": 0.05, "choose": "last" });
        let all = run::<LessIsMore>(small(), serde_json::json!({ "lambda": { "fc1": 100.0 }, "train": train })).unwrap_err();
        assert_eq!(all.to_string(), "node 'fc1': no weight of it is left; lower its `lambda`");
    }
}
