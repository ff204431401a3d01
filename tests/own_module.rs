//! Methods of `briquette-pruning-sharing` on a Burn module that knows nothing of Briquette.

use std::collections::BTreeSet;

use briquette_core::coding::{Weight, weights};
use briquette_pruning_sharing::{kmeans_sharing, magnitude};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor, activation};

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

    let mut mine = mine.train();
    let mut optimizer = SgdConfig::new().init();
    let images = Tensor::<4>::random([16, 1, 8, 8], Distribution::Normal(0.0, 1.0), &device.clone().autodiff());
    let before = weights(&mine);
    let loss = |mine: &Mine| (mine.forward(images.clone()) - 1.0).powi_scalar(2).mean();
    let first: f32 = loss(&mine).into_scalar();
    for _ in 0..30 {
        let gradients = GradientsParams::from_grads(loss(&mine).backward(), &mine);
        mine = optimizer.step(0.05, mine, gradients);
    }
    let last: f32 = loss(&mine).into_scalar();
    assert!(last < 0.5 * first, "the loss went from {first} to {last}");

    let after = weights(&mine);
    assert_eq!(after.iter().map(nonzero).collect::<Vec<_>>(), [54, 216 * 20 / 4, 20]);
    assert_eq!(after.iter().map(distinct).collect::<Vec<_>>(), [54, 8, 20]);
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before.values, after.values, "{} does not train", after.path);
        let moved = before.values.iter().zip(&after.values).any(|(old, new)| (*old == 0.0) != (*new == 0.0));
        assert!(!moved, "{}: the pruned weights are others", after.path);
    }
}
