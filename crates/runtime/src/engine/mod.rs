//! Runs a model on the CPU: in 32-bit floats, and in integers where weights and inputs lie on grids.
//!
//! A batch is cut into chunks of fixed size, a chunk goes through the network step by step, and a step is cut into tasks whose
//! size does not depend on the number of threads: every thread count gives the same bits.

mod convolve;
mod kernel;
mod lower;
mod matrix;
mod operation;
mod pool;
mod quantized;
mod structured;
mod threads;
mod turn;

use std::time::Instant;

pub(crate) use self::convolve::{Epilogue, Geometry, product};
pub(crate) use self::operation::{Codes, Lies, Operation, PIECE, decoded};
pub(crate) use self::pool::Pool;
pub(crate) use self::structured::StructuredProduct;
pub(crate) use self::threads::Threads;

use self::lower::Program;
use crate::{Error, Model, activations};

/// Samples that go through the network together, if their feature maps stay within
/// [`MAX_ACTIVATIONS_HELD`](activations::MAX_ACTIVATIONS_HELD).
const CHUNK: usize = 32;

/// Names and milliseconds of the steps of a run.
pub type StepTimes = Vec<(String, f64)>;

/// Names of the steps of a run, and how many samples each computed for.
pub type StepSamples = Vec<(String, usize)>;

/// A model made ready to run: decoded weights, a list of steps, and threads.
#[derive(Debug)]
pub struct Engine {
    program: Program,
    threads: Threads,
    input: Vec<usize>,
    output: Vec<usize>,
}

impl Engine {
    /// Decodes the weights and fuses batch normalization and activations into the layers before them.
    ///
    /// # Errors
    /// When the model does not pass [`Model::check`], which also bounds its feature maps, or for zero threads.
    pub fn new(model: &Model, threads: usize) -> Result<Engine, Error> {
        let shapes = model.check()?;
        Ok(Engine {
            program: Program::lower(model, &shapes, true),
            threads: Threads::new(threads)?,
            input: shapes[0].clone(),
            output: shapes[shapes.len() - 1].clone(),
        })
    }

    /// Shape of one input sample.
    pub fn input_shape(&self) -> &[usize] {
        &self.input
    }

    /// Shape of one output.
    pub fn output_shape(&self) -> &[usize] {
        &self.output
    }

    /// The outputs `[batch, output...]` for `input` `[batch, input...]`, both contiguous.
    ///
    /// # Errors
    /// When the input has another length.
    pub fn run(&self, input: &[f32], batch: usize) -> Result<Vec<f32>, Error> {
        self.run_chunks(input, batch, &mut |_, _, work| work())
    }

    /// As [`Engine::run`], with the milliseconds that each step took; a step bears the name of its first node, and nodes that
    /// became part of another step are not listed.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_timed(&self, input: &[f32], batch: usize) -> Result<(Vec<f32>, StepTimes), Error> {
        let mut times: StepTimes = self.program.steps.iter().map(|step| (step.name.clone(), 0.0)).collect();
        let output = self.run_chunks(input, batch, &mut |step, _, work| {
            let start = Instant::now();
            work();
            times[step].1 += start.elapsed().as_secs_f64() * 1e3;
        })?;
        Ok((output, times))
    }

    /// As [`Engine::run`], with the number of samples that each step computed for, by the name of its first node: in a network that skips work, fewer
    /// than the batch has. A route computes for those that it looks at, unless none takes it.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_counted(&self, input: &[f32], batch: usize) -> Result<(Vec<f32>, StepSamples), Error> {
        let mut samples: StepSamples = self.program.steps.iter().map(|step| (step.name.clone(), 0)).collect();
        let output = self.run_chunks(input, batch, &mut |step, count, work| {
            samples[step].1 += count;
            work();
        })?;
        Ok((output, samples))
    }

    /// Bytes of the weights as they are held, of the activations at the fullest moment of a run with this batch, and of its
    /// result. The threads' scratch memory comes on top.
    pub fn peak_bytes(&self, batch: usize) -> usize {
        let activations = self.program.peak_elements().saturating_mul(batch.min(self.chunk()));
        let result = batch.saturating_mul(self.output.iter().product());
        activations.saturating_add(result).saturating_mul(4).saturating_add(self.program.weight_bytes())
    }

    /// Samples that go through the network together.
    fn chunk(&self) -> usize {
        activations::samples_together(self.program.peak_elements(), CHUNK)
    }

    fn run_chunks(&self, input: &[f32], batch: usize, around: Around<'_>) -> Result<Vec<f32>, Error> {
        let sample: usize = self.input.iter().product();
        let expected = sample.saturating_mul(batch);
        if input.len() != expected {
            return Err(Error::Input { batch, shape: self.input.clone(), expected, found: input.len() });
        }
        let mut output = Vec::with_capacity(batch * self.output.iter().product::<usize>());
        let mut free = Vec::new();
        for chunk in input.chunks(self.chunk() * sample) {
            output.extend(self.program.run(chunk, chunk.len() / sample, &self.threads, &mut free, around));
        }
        Ok(output)
    }
}

/// Is called with the number of every step that has samples, how many, and its work, which it must do.
type Around<'a> = &'a mut dyn FnMut(usize, usize, &mut dyn FnMut());

#[cfg(test)]
mod tests;
