//! Noise while a network trains.

use briquette_runtime::layers::Noise;

use super::Forward;
use crate::chance;
use crate::forward::Flow;
use crate::gating::softplus;

impl Forward for Noise {
    fn forward(&self, mut inputs: Vec<Flow>) -> Flow {
        let (x, s) = (inputs.remove(0).vector(), inputs.remove(0).vector());
        if !x.device().is_autodiff() {
            return Flow::Vector(x);
        }
        let noise = chance::normal_like(&x);
        Flow::Vector(x + noise * softplus(s).add_scalar(self.epsilon))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::coding::floats;

    #[test]
    fn training_adds_noise_of_the_deviation_that_the_second_input_asks_for() {
        let (layer, device) = (Noise { epsilon: 0.25 }, Device::flex().autodiff());
        let (rows, raw) = (4000, [-200.0_f32, 0.0, 2.0]);
        let run = |device: &Device| {
            let s = Tensor::<1>::from_floats(raw, device).reshape([1, 3]).repeat_dim(0, rows);
            chance::seed(4);
            floats(layer.forward(vec![Flow::Vector(Tensor::ones([rows, 3], device)), Flow::Vector(s)]).vector())
        };
        let found = run(&device);
        for (column, deviation) in [0.25, 0.25 + 2.0_f64.ln(), 0.25 + (1.0 + 2.0_f64.exp()).ln()].into_iter().enumerate() {
            let values = || found.iter().skip(column).step_by(3).map(|value| f64::from(*value) - 1.0);
            let (mean, square) =
                (values().sum::<f64>() / rows as f64, values().map(|value| value * value).sum::<f64>() / rows as f64);
            assert!(mean.abs() < 0.06 * deviation && (square.sqrt() / deviation - 1.0).abs() < 0.05, "{mean} {square}");
        }
        assert!(run(&Device::flex()).iter().all(|value| *value == 1.0));
    }
}
