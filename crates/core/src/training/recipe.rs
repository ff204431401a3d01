//! The settings of a training, and the learning rate that follows from them.

use briquette_data::Augment;
use burn::tensor::Tensor;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Distill, cross_entropy, square_hinge};
use crate::error::{Error, Result};

/// How a network is trained or tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Recipe {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
    /// L2 penalty added to the gradient (SGD, Adam) or decoupled decay (AdamW).
    pub weight_decay: f64,
    /// Whether biases and normalization parameters decay too.
    pub decay_all: bool,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Epochs of linear warm-up from zero.
    pub warmup: f64,
    /// What is minimized, besides what a method adds.
    pub loss: Loss,
    /// Share of the target spread evenly over all classes; of the cross-entropy only.
    pub label_smoothing: f64,
    /// Largest norm of the whole gradient.
    pub clip: Option<f64>,
    /// Precision of the factors of convolutions and fully connected layers and of their gradients; weights, sums and everything else are
    /// single.
    pub precision: Precision,
    /// Augmentation of the training images.
    pub augment: Augment,
    /// Which epoch's weights are kept.
    pub choose: Choose,
    /// What the network learns from teachers, beside the task or in its place: one loss, or a list of them.
    #[serde(deserialize_with = "one_or_several")]
    pub distill: Vec<Distill>,
}

/// A value, or a list of such values.
pub(super) fn one_or_several<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<T>, D::Error> {
    use serde_json::Value;
    let all = match Value::deserialize(deserializer)? {
        Value::Null => Vec::new(),
        Value::Array(several) => several,
        one => vec![one],
    };
    all.into_iter().map(|one| serde_json::from_value(one).map_err(D::Error::custom)).collect()
}

/// Optimizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam (Kingma & Ba, ICLR 2015).
    Adam,
    /// Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019).
    Adamw,
}

/// Losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Of the soft-max of the logits.
    CrossEntropy,
    /// The mean over samples and classes of `max(0, 1 - t z)^2` for the logit `z` and the target `t`, 1 for the label's class and -1 for the
    /// others: an L2 support vector machine on the last features.
    SquareHinge,
}

/// Precisions of factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision.
    F32,
    /// bf16, on the kernels of the `flex` device: faster on machines with AVX-512 BF16, the same numbers on all.
    Bf16,
}

impl From<Precision> for briquette_kernels::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// Learning-rate schedules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Always the same.
    Constant,
    /// Half a cosine from the highest rate to zero.
    Cosine,
    /// Multiplied by `factor` at each of these shares of the epochs.
    Step {
        /// Shares in `[0, 1]`, for example `[0.5, 0.75]`.
        at: Vec<f64>,
        /// Factor at each.
        factor: f64,
    },
}

/// Which epoch's weights a training returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// The most accurate on the validation split, the later of equals.
    Best,
    /// The last.
    Last,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch: 64,
            lr: 1e-3,
            optimizer: Optimizer::Adam,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
            decay_all: false,
            schedule: Schedule::Cosine,
            warmup: 0.0,
            loss: Loss::CrossEntropy,
            label_smoothing: 0.0,
            clip: None,
            precision: Precision::F32,
            augment: Augment::default(),
            choose: Choose::Best,
            distill: Vec::new(),
        }
    }
}

impl Recipe {
    /// Refuses settings that cannot train.
    ///
    /// # Errors
    /// Names the setting and its range.
    pub fn check(&self) -> Result<()> {
        let rules = [
            (self.batch >= 1, "batch must be at least 1"),
            (self.lr.is_finite() && self.lr > 0.0, "lr must be positive"),
            ((0.0..1.0).contains(&self.momentum), "momentum lies in [0, 1)"),
            (self.weight_decay >= 0.0, "weight-decay must not be negative"),
            ((0.0..1.0).contains(&self.label_smoothing), "label-smoothing lies in [0, 1)"),
            (
                self.loss == Loss::CrossEntropy || self.label_smoothing == 0.0,
                "label-smoothing is of the cross-entropy; leave out one of `loss` and `label-smoothing`",
            ),
            (self.warmup >= 0.0, "warmup must not be negative"),
            (self.clip.is_none_or(|clip| clip > 0.0), "clip must be positive"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Error::Invalid(format!("training settings: {rule}"))),
            None => Ok(()),
        }
    }

    /// The task's loss of logits `[batch, classes]`.
    pub fn loss_of(&self, logits: Tensor<2>, labels: &[u16]) -> Tensor<1> {
        match self.loss {
            Loss::CrossEntropy => cross_entropy(logits, labels, self.label_smoothing),
            Loss::SquareHinge => square_hinge(logits, labels),
        }
    }

    /// The learning rate after `epoch` epochs, which may be a fraction.
    pub fn rate(&self, epoch: f64) -> f64 {
        if epoch < self.warmup {
            return self.lr * epoch / self.warmup;
        }
        let share = ((epoch - self.warmup) / (self.epochs as f64 - self.warmup).max(1e-9)).clamp(0.0, 1.0);
        self.lr
            * match &self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share).cos()),
                Schedule::Step { at, factor } => factor.powi(at.iter().filter(|at| share >= **at).count() as i32),
            }
    }

    /// The same recipe for a trial run: at most one epoch.
    pub fn shrink(&mut self) {
        self.epochs = self.epochs.min(1);
        self.warmup = self.warmup.min(0.2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_meet_their_corner_points() {
        let mut recipe = Recipe { epochs: 10, lr: 1.0, warmup: 2.0, ..Recipe::default() };
        assert_eq!(recipe.rate(0.0), 0.0);
        assert_eq!(recipe.rate(1.0), 0.5);
        assert_eq!(recipe.rate(2.0), 1.0);
        assert!((recipe.rate(6.0) - 0.5).abs() < 1e-12);
        assert!(recipe.rate(10.0) < 1e-12);
        recipe.warmup = 0.0;
        recipe.schedule = Schedule::Step { at: vec![0.5, 0.75], factor: 0.1 };
        assert_eq!(recipe.rate(4.9), 1.0);
        assert!((recipe.rate(5.0) - 0.1).abs() < 1e-12);
        assert!((recipe.rate(9.0) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn unknown_settings_are_refused() {
        let error = serde_json::from_str::<Recipe>(r#"{"epoch": 3}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `epoch`"));
    }
}
