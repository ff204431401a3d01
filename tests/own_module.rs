//! Methods of `briquette-pruning-sharing` on a Burn module that knows nothing of Briquette.

use std::collections::BTreeSet;

use briquette_core::coding::{Source, Weight, adjust, weights};
use briquette_parts::blocks::Blocks;
use briquette_pruning_sharing::pruning::soft_weight_sharing::SoftWeightSharing;
use briquette_pruning_sharing::pruning::{magnitude, n_m};
use briquette_pruning_sharing::quantization::fixed_point::{Per, Reach, Symmetry};
use briquette_pruning_sharing::quantization::{fixed_point, kmeans_sharing, learned_step};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Gradients, Tensor, activation};

#[derive(Module, Debug)]
struct Mine {
    features: Conv2d,
    head: Head,
}

#[derive(Module, Debug)]
struct Head {
    hidden: Linear,
    output: Linear,
}

impl Mine {
    fn new(device: &Device) -> Self {
        Self {
            features: Conv2dConfig::new([1, 6], [3, 3]).init(device),
            head: Head { hidden: LinearConfig::new(6 * 6 * 6, 20).init(device), output: LinearConfig::new(20, 4).init(device) },
        }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let features = activation::relu(self.features.forward(images)).flatten(1, 3);
        self.head.output.forward(activation::relu(self.head.hidden.forward(features)))
    }
}

fn nonzero(weight: &Weight) -> usize {
    weight.values.iter().filter(|v| **v != 0.0).count()
}

fn distinct(weight: &Weight) -> usize {
    weight.values.iter().filter(|v| **v != 0.0).map(|v| v.to_bits()).collect::<BTreeSet<_>>().len()
}

/// Thirty steps, which halve the loss; `more` adds to it, and learns of its gradients, and `after` follows each step.
fn trained(
    mine: Mine,
    mut more: impl FnMut(&Mine, Option<&Gradients>) -> Option<Tensor<1>>,
    after: impl Fn(Mine) -> Mine,
) -> Mine {
    let mut mine = mine.train();
    let mut optimizer = SgdConfig::new().init();
    let device = Device::flex().autodiff();
    let images = Tensor::<4>::random([16, 1, 8, 8], Distribution::Normal(0.0, 1.0), &device);
    let loss = |mine: &Mine| (mine.forward(images.clone()) - 1.0).powi_scalar(2).mean();
    let first: f32 = loss(&mine).into_scalar();
    for _ in 0..30 {
        let whole = match more(&mine, None) {
            Some(term) => loss(&mine) + term,
            None => loss(&mine),
        };
        let gradients = whole.backward();
        more(&mine, Some(&gradients));
        let gradients = GradientsParams::from_grads(gradients, &mine);
        mine = after(optimizer.step(0.05, mine, gradients));
    }
    let last: f32 = loss(&mine).into_scalar();
    assert!(last < 0.5 * first, "the loss went from {first} to {last}");
    mine
}

#[test]
fn a_plain_module_is_pruned_and_shared_and_trains_on() {
    let device = Device::flex();
    device.seed(4);
    let mine = Mine::new(&device);
    let names: Vec<String> = weights(&mine).into_iter().map(|weight| weight.path).collect();
    assert_eq!(names, ["features.weight", "head.hidden.weight", "head.output.weight"]);

    let mine = magnitude::prune(mine, |weight| (!weight.path.starts_with("features")).then_some(0.25));
    let mine =
        kmeans_sharing::share(mine, |weight| (weight.path == "head.hidden.weight").then_some(8), kmeans_sharing::Init::Density);

    let before = weights(&mine);
    let mine = trained(mine, |_, _| None, |mine| mine);
    let after = weights(&mine);
    assert_eq!(after.iter().map(nonzero).collect::<Vec<_>>(), [54, 216 * 20 / 4, 20]);
    assert_eq!(after.iter().map(distinct).collect::<Vec<_>>(), [54, 8, 20]);
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before.values, after.values, "{} does not train", after.path);
        let moved = before.values.iter().zip(&after.values).any(|(old, new)| (*old == 0.0) != (*new == 0.0));
        assert!(!moved, "{}: the pruned weights are others", after.path);
    }
}

#[test]
fn a_plain_module_on_grids_trains_on_with_its_steps() {
    let device = Device::flex();
    device.seed(4);
    let mine = n_m::prune(Mine::new(&device), |weight| {
        (weight.path == "head.hidden.weight").then(|| (2, Blocks::along_channels(weight, 4)))
    });
    let mine = learned_step::round(mine, |weight| weight.path.starts_with("head").then_some(3), Per::Channel);
    let fixed = |weight: &Weight| weight.path.starts_with("features").then_some(4);
    let mine = fixed_point::round(mine, fixed, Per::Channel, Symmetry::Symmetric, Reach::MinMax);
    let before = weights(&mine);
    let mine = trained(mine, |_, _| None, |mine| adjust(mine, |_, base, steps| (base, steps.clamp_min(1e-6))));
    let after = weights(&mine);

    assert!(after[1].filters().chunks(4).all(|block| block.iter().filter(|w| **w != 0.0).count() <= 2));
    let steps = |weight: &Weight| {
        let Source::Grid { grid, .. } = &weight.coding.source else { panic!("{} is on no grid", weight.path) };
        grid.steps.clone()
    };
    for ((before, after), (levels, filters, learned)) in
        before.iter().zip(&after).zip([(15, 6, false), (8, 20, true), (8, 4, true)])
    {
        assert_ne!(before.values, after.values, "{} does not train", after.path);
        assert_eq!((steps(after).len(), steps(before) != steps(after)), (filters, learned), "{}", after.path);
        for filter in after.filters().chunks(after.fan_in()) {
            let found: BTreeSet<u32> = filter.iter().map(|w| (w + 0.0).to_bits()).collect();
            assert!(found.len() <= levels, "{}: {} values", after.path, found.len());
        }
    }
}

#[test]
fn the_weights_of_a_plain_module_gather_at_the_means_of_a_mixture() {
    let flat = |mine: &Mine| {
        let head = [&mine.head.hidden, &mine.head.output].map(|layer| layer.weight.val().flatten(0, 1));
        Vec::from_iter(head.into_iter().chain([mine.features.weight.val().flatten(0, 3)]))
    };
    // The squared distance of the weights from the means, after a training with so strong a prior.
    let off = |tau: f64| -> f32 {
        let device = Device::flex();
        device.seed(4);
        let settings = serde_json::json!({
            "components": 32, "pi-zero": 0.1, "tau": tau, "rate": 0.02, "prior": { "alpha": 2.0, "beta": 1e-4 }, "train": { "lr": 0.05 }
        });
        let method: SoftWeightSharing = serde_json::from_value(settings).unwrap();
        let mine = Mine::new(&device);
        let mut mixture = method.mixture(&flat(&mine), 16).unwrap();
        let learn = |mine: &Mine, gradients: Option<&Gradients>| match gradients {
            None => Some(mixture.term(flat(mine))),
            Some(gradients) => {
                mixture.learn(gradients, 0.05);
                None
            }
        };
        let mine = trained(mine, learn, |mine| mine);
        let (soft, hard) = (weights(&mine), weights(&mixture.harden(mine.clone()).unwrap()));
        assert!(hard.iter().all(|weight| distinct(weight) <= 32));
        soft.iter().zip(&hard).flat_map(|(a, b)| a.values.iter().zip(&b.values)).map(|(a, b)| (a - b).powi(2)).sum()
    };
    let (free, held) = (off(1e-9), off(0.01));
    assert!(held < 0.5 * free, "{held} and {free}");
}
