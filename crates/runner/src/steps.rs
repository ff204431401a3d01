//! A network that takes steps on random images.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use briquette_core::extension;
use briquette_core::net::Net;
use briquette_core::training::{Descent, Optimizer, Recipe, cross_entropy};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use crate::timing::median;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Whole training steps with SGD and momentum.
    Train,
    /// The forward pass in evaluation form.
    Infer,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Train => "train",
            Mode::Infer => "infer",
        })
    }
}

/// The network, and the images on which it takes steps, on the device where it lies.
#[derive(Debug)]
pub struct Steps {
    /// Taken out during a step.
    net: Option<Net>,
    device: Device,
    optimizer: Descent,
    mode: Mode,
    pixels: TensorData,
    labels: Vec<u16>,
    /// Seconds of the last turn by operation, and in all.
    seconds: BTreeMap<&'static str, f64>,
    total: f64,
}

impl Steps {
    /// Random images, so many in a step.
    ///
    /// # Errors
    /// When the network does not hold together.
    pub fn new(net: &Net, batch: usize, mode: Mode) -> Result<Self> {
        let (shape, classes) = (net.input_shape(), net.shapes()?.last().map_or(1, |shape| shape[0]));
        let pixels: Vec<f32> = (0..batch * shape.iter().product::<usize>()).map(|i| ((i * 7919) % 256) as f32 / 255.0).collect();
        let recipe = Recipe { optimizer: Optimizer::Sgd, momentum: 0.9, ..Recipe::default() };
        let net = net.deep_clone();
        let device = net.device().inner();
        Ok(Self {
            optimizer: recipe.optimizer(),
            device: if mode == Mode::Train { device.autodiff() } else { device },
            net: Some(if mode == Mode::Train { net.train() } else { net }),
            mode,
            pixels: TensorData::new(pixels, [batch, shape[0], shape[1], shape[2]]),
            labels: (0..batch).map(|i| (i % classes) as u16).collect(),
            seconds: BTreeMap::new(),
            total: 0.0,
        })
    }

    /// Seconds of each of `count` steps after one that finds cold caches and is not counted.
    pub fn run(&mut self, count: usize) -> Vec<f64> {
        self.step();
        extension::take_profile();
        let times: Vec<f64> = (0..count).map(|_| self.step()).collect();
        (self.seconds, self.total) = (extension::take_profile(), times.iter().sum());
        times
    }

    /// As [`queued`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn run_queued(&mut self, count: usize) -> Result<f64> {
        let device = self.device.clone();
        let seconds = queued(&device, count, || {
            self.step();
        })?;
        // A kernel that did not start is found by who reads what depends on it, not by who waits.
        let net = self.net.as_ref().expect("a step puts the network back");
        net.forward(Tensor::<4>::from_data(self.pixels.clone(), &self.device)).try_into_data()?;
        Ok(seconds)
    }

    /// Where the time of the last turn went: into our kernels, and into the rest.
    pub fn shares(&self) -> BTreeMap<String, f64> {
        let rest = self.total - self.seconds.values().sum::<f64>();
        let all = self.seconds.iter().map(|(part, seconds)| (*part, *seconds)).chain([("rest", rest)]);
        all.map(|(part, seconds)| (part.to_string(), seconds / self.total)).collect()
    }

    fn step(&mut self) -> f64 {
        let mut net = self.net.take().expect("a step puts the network back");
        let images = Tensor::<4>::from_data(self.pixels.clone(), &self.device);
        let began = Instant::now();
        let logits = net.forward(images);
        if self.mode == Mode::Train {
            let grads = cross_entropy(logits, &self.labels, 0.0).backward();
            let grads = GradientsParams::from_grads(grads, &net);
            net = self.optimizer.step(0.01, net, grads);
        }
        let elapsed = began.elapsed().as_secs_f64();
        self.net = Some(net);
        elapsed
    }
}

/// Mean seconds of `count` steps, all of them given to the device before it is waited for, after one that is not counted.
///
/// # Errors
/// When the device fails.
pub fn queued(device: &Device, count: usize, mut step: impl FnMut()) -> Result<f64> {
    step();
    device.sync()?;
    let began = Instant::now();
    for _ in 0..count {
        step();
    }
    device.sync()?;
    Ok(began.elapsed().as_secs_f64() / count as f64)
}

/// Time that training takes per image, from a few steps on random images.
///
/// # Errors
/// When the network does not hold together.
pub fn seconds_per_image(net: &Net) -> Result<f64> {
    Ok(median(Steps::new(net, TRIAL_BATCH, Mode::Train)?.run(2)) / TRIAL_BATCH as f64)
}

const TRIAL_BATCH: usize = 32;
