//! Normalization across channels.

use super::shape::map;
use super::{Channels, Constants, Kind, Parameters, Runnable, Setting, Sign, Storable};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Operation, Threads};
use crate::{Error, Node};

/// Across channels: `y_c = x_c / (k + alpha / size * sum of x_j^2 over the size channels around c)^beta`
/// (Krizhevsky, Sutskever, Hinton, NIPS 2012, with alpha divided by size as in Caffe and PyTorch).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LocalResponseNorm {
    /// Channels in the window.
    pub size: usize,
    /// Scale of the sum.
    pub alpha: f64,
    /// Exponent.
    pub beta: f64,
    /// Added constant.
    pub k: f64,
}

impl Kind for LocalResponseNorm {
    fn name(&self) -> &'static str {
        "local-response-norm"
    }

    fn check(&self) -> Result<(), String> {
        let Self { size, alpha, beta, k } = self;
        if *size == 0 {
            return Err("a window of 0 channels".into());
        }
        if ![alpha, beta, k].iter().all(|value| value.is_finite()) {
            return Err(format!("alpha {alpha}, beta {beta} and k {k}; they are finite"));
        }
        Ok(())
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        map(inputs[0]).map(|shape| shape.to_vec())
    }

    /// Masked neighbours stay in the window, cut ones let others in.
    fn channels(&self) -> Channels {
        Channels::Disturbed("turns a masked channel into something else than zeros")
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn settings(&self) -> Vec<Setting> {
        [("alpha", self.alpha), ("beta", self.beta), ("k", self.k)].map(|(name, number)| Setting::finite(name, [number])).to_vec()
    }
}

impl Storable for LocalResponseNorm {
    fn write(&self, out: &mut Vec<u8>) {
        out.put_varint(self.size);
        [self.alpha, self.beta, self.k].into_iter().for_each(|value| out.put_f64(value));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { size: reader.varint()?, alpha: reader.f64()?, beta: reader.f64()?, k: reader.f64()? })
    }
}

impl Runnable for LocalResponseNorm {
    fn operation(&self, _: &Node, input: &[usize], _: &[usize]) -> Box<dyn Operation> {
        let Self { size, alpha, beta, k } = *self;
        Box::new(Normalization { channels: input[0], size, alpha: alpha as f32, beta: beta as f32, k: k as f32 })
    }
}

#[derive(Debug)]
struct Normalization {
    channels: usize,
    size: usize,
    alpha: f32,
    beta: f32,
    k: f32,
}

impl Normalization {
    /// One sample `[channels, h, w]`.
    fn sample(&self, input: &[f32], output: &mut [f32]) {
        let area = output.len() / self.channels;
        for (channel, out) in output.chunks_mut(area).enumerate() {
            out.fill(0.0);
            let first = channel.saturating_sub(self.size / 2);
            let end = channel.saturating_add(self.size.div_ceil(2)).min(self.channels);
            for other in input[first * area..end * area].chunks(area) {
                out.iter_mut().zip(other).for_each(|(sum, x)| *sum += x * x);
            }
            let scale = self.alpha / self.size as f32;
            let own = &input[channel * area..][..area];
            out.iter_mut().zip(own).for_each(|(sum, x)| *sum = x / (self.k + scale * *sum).powf(self.beta));
        }
    }
}

impl Operation for Normalization {
    fn run(&self, inputs: &[&[f32]], batch: usize, output: &mut [f32], threads: &Threads) {
        let sample = output.len() / batch;
        threads.pieces(output, sample, |number, out| self.sample(&inputs[0][number * sample..][..sample], out));
    }
}
