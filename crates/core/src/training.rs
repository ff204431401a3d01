//! The training loop that every method shares.
//!
//! One call to [`fit`] trains a network on a plain device and returns it on that device. Everything random follows from the seed, the
//! stage and the epoch, and the state is handed to the host after each epoch, so that an interrupted training goes on from there and
//! ends with the same weights.

mod distill;
mod kept;
mod optimizer;
mod probe;
mod recipe;
mod renew;
mod state;
mod tally;
#[cfg(test)]
mod tests;
mod watched;

use std::collections::BTreeMap;
use std::time::Instant;

use briquette_data::{Batch, Dataset, Loader};
use briquette_runtime::activations::samples_together;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData, activation};

pub use distill::{BEFORE_FIRST_PASS, BEFORE_PASS, Cache, Distill, Teacher};
pub use optimizer::Descent;
pub use probe::probe;
pub use recipe::{Choose, Loss, Optimizer, Precision, Recipe, Schedule};
pub use renew::renew;

use crate::archive::Archive;
use crate::chance;
use crate::coding::floats;
use crate::context::{Context, Epoch, Event, Host, Saved};
use crate::error::{Error, Result};
use crate::extension;
use crate::net::{Net, Value};
use crate::objective::{Objective, Seen, Taps};
use crate::scan::Measured;
use crate::streams::stream;
use crate::task::Task;
use state::State;
use tally::Tally;
use watched::Watched;

/// What a method does around each optimizer step.
pub trait Projection {
    /// Sees the gradients before the step that takes the rate `lr`.
    fn see(&mut self, _net: &Net, _gradients: &GradientsParams, _lr: f64) {}

    /// The projected network after the step. `step` counts from 0 over the whole training, of `steps`.
    fn project(&mut self, net: Net, step: usize, steps: usize) -> Net;

    /// Keeps in the training's state what outlives a step.
    ///
    /// # Errors
    /// Those of the archive.
    fn keep(&mut self, _archive: &mut Archive<'_>) -> Result<()> {
        Ok(())
    }
}

/// How a method computes the logits while it trains, in the place of [`Net::forward`]; it draws from [`chance`] alone, and keeps nothing.
pub trait Forward {
    /// `[batch, classes]` for images `[batch, channels, height, width]`; `taps` meets the outputs of all nodes.
    fn forward(&self, net: &Net, images: Tensor<4>, taps: &mut Taps) -> Tensor<2>;
}

/// How the network that a method hands on comes from the one in training, where the two differ: other weights than those of the training's
/// forward pass, batch norms with statistics for them ([`renew`]). Validation sees this network, so that it decides between epochs; the training
/// goes on with, and [`fit`] returns, the network in training, of which the method then makes the same once more.
pub trait Settle {
    /// The network as it is used, of the one in training.
    ///
    /// # Errors
    /// As the method says, and [`Error::Stopped`] when the host asks to stop.
    fn settle(&self, net: Net, cx: &mut Context<'_>) -> Result<Net>;
}

/// What a method adds to the training.
#[derive(Default)]
pub struct Extras<'a> {
    /// Terms beside the recipe's loss.
    pub objectives: Vec<&'a mut dyn Objective>,
    /// Projections, in order.
    pub projections: Vec<&'a mut dyn Projection>,
    /// The training's own way through the network.
    pub forward: Option<&'a dyn Forward>,
    /// What is validated instead of the network in training.
    pub settle: Option<&'a dyn Settle>,
}

impl<'a> Extras<'a> {
    /// These and more objectives.
    fn with<'b>(self, more: impl Iterator<Item = &'b mut (dyn Objective + 'b)>) -> Extras<'b>
    where
        'a: 'b,
    {
        let objectives = self.objectives.into_iter().map(|objective| objective as &mut dyn Objective).chain(more).collect();
        let projections = self.projections.into_iter().map(|projection| projection as &mut dyn Projection).collect();
        Extras { objectives, projections, forward: self.forward, settle: self.settle }
    }
}

impl Extras<'_> {
    fn keep(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        self.objectives.iter_mut().try_for_each(|objective| objective.keep(archive))?;
        self.projections.iter_mut().try_for_each(|projection| projection.keep(archive))
    }
}

impl std::fmt::Debug for Extras<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Extras({} objectives, {} projections)", self.objectives.len(), self.projections.len())
    }
}

/// Accuracy and loss on a data set.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Share of samples whose largest logit is their label's.
    pub accuracy: f64,
    /// Share of samples whose label is among the five largest logits.
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
}

impl From<Score> for Measured {
    fn from(score: Score) -> Self {
        Self { accuracy: score.accuracy, loss: Some(score.loss).filter(|loss| loss.is_finite()) }
    }
}

/// Trains `net` on the training split and returns the weights of the epoch that the recipe chooses.
///
/// # Errors
/// [`Error::Stopped`] when the host asks to stop, [`Error::Diverged`] when the loss is not finite, [`Error::Data`] when an image cannot be read: the
/// state of the last whole epoch is with the host. Settings that cannot train, data of other images or classes than the network's, and the host's own failures.
pub fn fit(net: Net, recipe: &Recipe, extras: Extras<'_>, cx: &mut Context<'_>) -> Result<Net> {
    recipe.check()?;
    let task = Task::of(&net)?;
    [&cx.data.train, &cx.data.valid].into_iter().try_for_each(|data| task.check(data))?;
    if recipe.precision == Precision::Bf16 && !extension::serve(&cx.device) {
        let detail = "precision = \"bf16\" takes the CPU kernels of the device `flex`, which are off or not there; leave it out";
        return Err(Error::Invalid(format!("training settings: {detail}")));
    }
    let key = format!("training-{}", cx.stage);
    let seed = stream(cx.seed, &key);
    cx.stage += 1;
    if recipe.epochs == 0 {
        return Ok(net);
    }
    let device = cx.device.clone();
    let draws = recipe.draws(cx.distillations)?;
    let mut taught = recipe.taught(&net, seed, cx)?;
    let mut extras = extras.with(taught.iter_mut().map(|teaching| teaching as &mut dyn Objective));
    let watched = Watched::by(&extras.objectives, &net)?;
    let mut optimizer = recipe.optimizer();
    let mut state = match cx.host.saved(&key)? {
        None => State::start(&net),
        Some(Saved { name, mut bytes }) => State::read(&mut bytes, &device, &mut optimizer, &mut extras).map_err(|error| {
            let Error::State(detail) = error else { return error };
            Error::State(format!("{name}: {detail}; remove the file, and this training begins anew"))
        })?,
    };
    let other =
        |saved: &Net| saved.nodes.len() != net.nodes.len() || saved.nodes.iter().zip(&net.nodes).any(|(a, b)| a.differs(b));
    if other(&state.net) || state.best.as_ref().is_some_and(other) {
        return Err(Error::State(format!("that of {key} is of another network; remove the file, and this training begins anew")));
    }
    // Of a large network the one at the start would be another copy.
    drop(net);
    let mut net = state.net.deep_clone().train();
    let steps_per_epoch = cx.data.train.len().div_ceil(recipe.batch).max(1);
    while state.curve.len() < recipe.epochs {
        let epoch = state.curve.len();
        chance::seed(stream(seed, &format!("dropout-{epoch}")));
        let began = Instant::now();
        let what = format!("epoch {}/{}", epoch + 1, recipe.epochs);
        let (train, order) = (&cx.data.train, stream(seed, &format!("order-{epoch}")));
        let mut loader = Loader::train(train, recipe.batch, recipe.augment.clone(), order, train.workers(recipe.batch));
        let draw = draws.map(|draws| epoch % draws);
        if let Some(draw) = draw {
            // Of no run's seed, so that all runs draw alike.
            loader = loader.drawn(stream(0, &format!("draw-{draw}")));
        }
        let (mut tally, mut seen, mut lr) = (Tally::new(&device, [1]), 0, 0.0);
        let finite = |loss: f64, lr| if loss.is_finite() { Ok(()) } else { Err(Error::Diverged { epoch, loss, lr }) };
        for (index, batch) in loader.enumerate() {
            if cx.host.stop_requested() {
                return Err(Error::Stopped);
            }
            let batch = batch?;
            lr = recipe.rate((epoch * steps_per_epoch + index) as f64 / steps_per_epoch as f64);
            let images = images(&batch, train.shape, &device.clone().autodiff());
            let mut taps = watched.taps();
            let logits = extension::in_precision(recipe.precision.into(), || match extras.forward {
                Some(own) => own.forward(&net, images.clone(), &mut taps),
                None => net.tapped(images.clone(), &mut taps),
            });
            let task = recipe.loss_of(logits.clone(), &batch.labels);
            let (labels, ids) = (&batch.labels[..], &batch.ids[..]);
            let done = epoch as f64 + index as f64 / steps_per_epoch as f64;
            let step = Seen { net: &net, images: &images, labels, ids, logits: &logits, taps: &[], epoch: done, draw };
            let loss = watched.loss(&mut extras.objectives, task, taps, step)?;
            finite(tally.add(&logits.inner(), &batch.labels, loss.clone().inner()), lr)?;
            let mut grads = loss.backward();
            extras.objectives.iter_mut().for_each(|objective| objective.learn(&mut grads, lr));
            let mut grads = GradientsParams::from_grads(grads, &net);
            if let Some(limit) = recipe.clip {
                grads = clip(grads, &net, limit);
            }
            extras.projections.iter_mut().for_each(|projection| projection.see(&net, &grads, lr));
            net = optimizer.step(lr, net, grads);
            for projection in &mut extras.projections {
                net = projection.project(net, epoch * steps_per_epoch + index, recipe.epochs * steps_per_epoch);
            }
            seen += batch.len;
            cx.host.event(Event::Step { what: &what, done: seen, total: train.len(), loss: tally.loss_so_far() });
        }
        let (train_loss, [train_accuracy]) = tally.means();
        finite(train_loss, lr)?;
        let seconds = began.elapsed().as_secs_f64();
        let last = std::mem::replace(&mut state.net, net.valid());
        let valid = match extras.settle {
            Some(settle) => evaluate(&settle.settle(state.net.deep_clone(), cx)?, &cx.data.valid, &device, cx.host)?,
            None => evaluate(&state.net, &cx.data.valid, &device, cx.host)?,
        };
        let row = Epoch {
            epoch,
            of: recipe.epochs,
            lr,
            train_loss,
            train_accuracy,
            valid_accuracy: valid.accuracy,
            seconds,
            images_per_s: seen as f64 / seconds.max(1e-9),
        };
        cx.host.event(Event::Epoch(&row));
        if recipe.choose == Choose::Last || valid.accuracy >= state.best_accuracy {
            state.best_accuracy = valid.accuracy;
            state.best = None;
        } else {
            state.best.get_or_insert(last);
        }
        state.curve.push(row);
        cx.host.save(&key, &mut |to| state.write(&optimizer, &mut extras, to))?;
        extras.objectives.iter_mut().try_for_each(|objective| objective.epoch_ended(cx.host))?;
    }
    // Whether the last epoch ran just now or in an earlier process, whatever draws next does so alike.
    chance::seed(seed);
    cx.curve.extend(state.curve);
    Ok(state.best.unwrap_or(state.net))
}

/// [`fit`] with nothing added, where there is a recipe.
///
/// # Errors
/// As [`fit`].
pub fn tune(net: Net, recipe: Option<&Recipe>, cx: &mut Context<'_>) -> Result<Net> {
    match recipe {
        Some(recipe) => fit(net, recipe, Extras::default(), cx),
        None => Ok(net),
    }
}

/// Accuracy and loss of `net` on `data`.
///
/// # Errors
/// [`Error::Stopped`] when the host asks to stop. Data of other images or classes than the network's, and images that cannot be read.
pub fn evaluate(net: &Net, data: &Dataset, device: &Device, host: &mut dyn Host) -> Result<Score> {
    Ok(evaluate_counted(net, data, device, host)?.0)
}

/// [`evaluate`], and the share of the images that reached each step of the forward pass, by the name of its first node: what
/// [`Cost::expected_macs`](crate::cost::Cost::expected_macs) asks for. No shares of no images.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_counted(
    net: &Net,
    data: &Dataset,
    device: &Device,
    host: &mut dyn Host,
) -> Result<(Score, BTreeMap<String, f64>)> {
    let (mut tally, mut reached) = (Tally::new(device, [1, 5]), BTreeMap::<String, usize>::new());
    over(net, data, (device, host), |net, batch, images| {
        let (logits, samples) = net.forward_counted(images);
        samples.into_iter().for_each(|(step, samples)| *reached.entry(step).or_default() += samples);
        tally.add(&logits, &batch.labels, cross_entropy(logits.clone(), &batch.labels, 0.0));
        Ok(tally.loss_so_far())
    })?;
    let (loss, [accuracy, top5]) = tally.means();
    let share = |(step, samples)| (step, samples as f64 / data.len() as f64);
    Ok((Score { accuracy, top5, loss }, reached.into_iter().map(share).collect()))
}

/// Shows `see` each batch of `data` in order, with its logits and the outputs of the nodes `wanted` in evaluation form; it says the loss so far.
///
/// # Errors
/// As [`evaluate`].
pub fn predict(
    net: &Net,
    data: &Dataset,
    (device, host): (&Device, &mut dyn Host),
    wanted: &[usize],
    mut see: impl FnMut(&Batch, Tensor<2>, Vec<Value>) -> f64,
) -> Result<()> {
    over(net, data, (device, host), |net, batch, images| {
        let mut taps = Taps::of(wanted.to_vec());
        let logits = net.tapped(images, &mut taps);
        Ok(see(batch, logits, taps.values()?))
    })
}

/// Has `see` run the network, in evaluation form, on each batch of `data` in order; it says the loss so far.
fn over(
    net: &Net,
    data: &Dataset,
    (device, host): (&Device, &mut dyn Host),
    mut see: impl FnMut(&Net, &Batch, Tensor<4>) -> Result<f64>,
) -> Result<()> {
    Task::of(net)?.check(data)?;
    let batch = samples_together(net.fullest(&net.shapes()?)?, EVALUATION_BATCH);
    let (net, mut seen) = (net.valid(), 0);
    for batch in Loader::ordered(data, batch) {
        if host.stop_requested() {
            return Err(Error::Stopped);
        }
        let batch = batch?;
        let loss = see(&net, &batch, images(&batch, data.shape, device))?;
        seen += batch.len;
        host.event(Event::Step { what: "evaluation", done: seen, total: data.len(), loss });
    }
    Ok(())
}

/// Number of samples whose label is among the `k` largest of their logits; `logits` is `[labels.len(), classes]`, flat.
pub fn hits(logits: &[f32], labels: &[u16], k: usize) -> usize {
    let classes = logits.len() / labels.len().max(1);
    let rows = logits.chunks_exact(classes.max(1));
    let ahead = |row: &[f32], label: usize| {
        row.iter().enumerate().filter(|&(i, v)| *v > row[label] || (*v == row[label] && i < label)).count()
    };
    rows.zip(labels).filter(|(row, label)| row[**label as usize].is_finite() && ahead(row, **label as usize) < k).count()
}

/// Images per batch of an evaluation, unless their feature maps take too much memory.
const EVALUATION_BATCH: usize = 200;

/// The images of a batch, `[batch, channels, height, width]`, pixels / 255.
pub fn images(batch: &Batch, shape: [usize; 3], device: &Device) -> Tensor<4> {
    let [c, h, w] = shape;
    Tensor::from_data(TensorData::new(batch.images.clone(), [batch.len, c, h, w]), device)
}

/// Mean of `-sum_k t_k log softmax(logits)_k` with targets `t = (1 - smoothing) * one-hot + smoothing / classes`.
pub fn cross_entropy(logits: Tensor<2>, labels: &[u16], smoothing: f64) -> Tensor<1> {
    let [n, classes] = logits.dims();
    let (off, on) = ((smoothing / classes as f64) as f32, (1.0 - smoothing + smoothing / classes as f64) as f32);
    let mut targets = vec![off; n * classes];
    for (row, label) in labels.iter().enumerate() {
        targets[row * classes + *label as usize] = on;
    }
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [n, classes]), &logits.device());
    if extension::takes(&logits) {
        return extension::cross_entropy(logits, targets);
    }
    (activation::log_softmax(logits, 1) * targets).sum().mul_scalar(-1.0 / n as f64)
}

/// Mean over samples and classes of `max(0, 1 - t z)^2`, where `t` is 1 for the label's class and -1 for the others.
pub fn square_hinge(logits: Tensor<2>, labels: &[u16]) -> Tensor<1> {
    let [n, classes] = logits.dims();
    let mut targets = vec![-1.0_f32; n * classes];
    for (row, label) in labels.iter().enumerate() {
        targets[row * classes + *label as usize] = 1.0;
    }
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [n, classes]), &logits.device());
    (logits * targets).neg().add_scalar(1.0).clamp_min(0.0).square().mean()
}

/// Scales all gradients by `limit / norm` when the norm of all of them together exceeds `limit`.
fn clip(mut grads: GradientsParams, net: &Net, limit: f64) -> GradientsParams {
    /// The squares of each gradient, summed: `[1]` each.
    struct Squares<'a>(&'a GradientsParams, Vec<Tensor<1>>);

    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.get::<D>(param.id) {
                self.1.push(grad.powi_scalar(2).sum());
            }
        }
    }

    struct Scale<'a>(&'a mut GradientsParams, Factor);

    enum Factor {
        Here(f64),
        There(Box<Tensor<1>>),
    }

    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.0.remove::<D>(param.id) {
                let scaled = match &self.1 {
                    Factor::Here(factor) => grad.mul_scalar(*factor),
                    Factor::There(factor) => grad * Tensor::clone(factor).reshape([1; D]),
                };
                self.0.register(param.id, scaled);
            }
        }
    }

    let mut squares = Squares(&grads, Vec::new());
    net.visit(&mut squares);
    let squares = squares.1;
    let factor = match squares.first() {
        None => return grads,
        Some(first) if extension::is_flex(&first.device()) => {
            let norm = squares.into_iter().map(|sum| f64::from(floats(sum)[0])).sum::<f64>().sqrt();
            match norm > limit {
                true => Factor::Here(limit / norm),
                false => return grads,
            }
        }
        // To ask whether the norm exceeds the limit would be to wait for the device.
        Some(_) => Factor::There(Box::new(Tensor::cat(squares, 0).sum().sqrt().recip().mul_scalar(limit).clamp_max(1.0))),
    };
    net.visit(&mut Scale(&mut grads, factor));
    grads
}
