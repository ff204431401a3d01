//! A perceptron with two hidden layers of rectifiers, and its gradient.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Three fully connected layers, rectifiers behind the first two.
#[derive(Debug, Clone)]
pub(super) struct Perceptron {
    sizes: [usize; 4],
    /// Of each layer in turn the weights `[in, out]`, then the biases.
    pub(super) values: Vec<f32>,
}

/// What each layer read of a batch, and what the last put out.
pub(super) struct Trace([Vec<f32>; 4]);

impl Trace {
    pub(super) fn outputs(&self) -> &[f32] {
        &self.0[3]
    }
}

impl Perceptron {
    /// With weights and biases uniform within `1 / sqrt(inputs)`.
    pub(super) fn new(sizes: [usize; 4], rng: &mut ChaCha8Rng) -> Self {
        let mut values = Vec::new();
        for pair in sizes.windows(2) {
            let (inputs, outputs) = (pair[0], pair[1]);
            let reach = 1.0 / (inputs as f32).sqrt();
            values.extend((0..(inputs + 1) * outputs).map(|_| reach * (2.0 * rng.random::<f32>() - 1.0)));
        }
        Self { sizes, values }
    }

    /// Where a layer's weights begin, and how many inputs and outputs it has.
    fn layer(&self, layer: usize) -> (usize, usize, usize) {
        let begin = (0..layer).map(|before| (self.sizes[before] + 1) * self.sizes[before + 1]).sum();
        (begin, self.sizes[layer], self.sizes[layer + 1])
    }

    pub(super) fn outputs(&self, inputs: Vec<f32>) -> Vec<f32> {
        let [.., outputs] = self.trace(inputs).0;
        outputs
    }

    /// Of inputs `[batch, in]`.
    pub(super) fn trace(&self, inputs: Vec<f32>) -> Trace {
        let mut trace = Trace([inputs, Vec::new(), Vec::new(), Vec::new()]);
        for layer in 0..3 {
            let (begin, inputs, outputs) = self.layer(layer);
            let (weights, biases) = self.values[begin..begin + (inputs + 1) * outputs].split_at(inputs * outputs);
            let mut found = Vec::with_capacity(trace.0[layer].len() / inputs * outputs);
            for row in trace.0[layer].chunks_exact(inputs) {
                let from = found.len();
                found.extend_from_slice(biases);
                for (x, weights) in row.iter().zip(weights.chunks_exact(outputs)).filter(|(x, _)| **x != 0.0) {
                    add_scaled(&mut found[from..], *x, weights);
                }
            }
            if layer < 2 {
                found.iter_mut().for_each(|x| *x = x.max(0.0));
            }
            trace.0[layer + 1] = found;
        }
        trace
    }

    /// The gradients of a sum over the outputs with these slopes: by the values, and by the inputs.
    pub(super) fn backward(&self, trace: &Trace, slopes: Vec<f32>) -> (Vec<f32>, Vec<f32>) {
        let (mut gradient, mut slopes) = (vec![0.0; self.values.len()], slopes);
        for layer in (0..3).rev() {
            let (begin, inputs, outputs) = self.layer(layer);
            let weights = &self.values[begin..begin + inputs * outputs];
            let (of_weights, of_biases) = gradient[begin..begin + (inputs + 1) * outputs].split_at_mut(inputs * outputs);
            let mut before = Vec::with_capacity(trace.0[layer].len());
            for (row, slopes) in trace.0[layer].chunks_exact(inputs).zip(slopes.chunks_exact(outputs)) {
                add_scaled(of_biases, 1.0, slopes);
                let each = row.iter().zip(weights.chunks_exact(outputs)).zip(of_weights.chunks_exact_mut(outputs));
                for ((x, weights), own) in each {
                    // What a rectifier has shut neither reads nor hands on.
                    let shut = layer > 0 && *x == 0.0;
                    if !shut {
                        add_scaled(own, *x, slopes);
                    }
                    before.push(if shut { 0.0 } else { dot(weights, slopes) });
                }
            }
            slopes = before;
        }
        (gradient, slopes)
    }
}

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn add_scaled(to: &mut [f32], factor: f32, values: &[f32]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += factor * value);
}

/// In eight sums side by side, which the processor adds at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (mut left, mut right) = (a.chunks_exact(8), b.chunks_exact(8));
    for (a, b) in left.by_ref().zip(right.by_ref()) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let net = Perceptron::new([3, 10, 9, 1], &mut rng);
        let inputs: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin()).collect();
        let slopes = [0.5_f32, -1.0, 2.0, 0.25];
        let sum = |net: &Perceptron, inputs: &[f32]| -> f64 {
            let outputs = net.outputs(inputs.to_vec());
            outputs.iter().zip(slopes).map(|(output, slope)| f64::from(output * slope)).sum()
        };
        let (gradient, of_inputs) = net.backward(&net.trace(inputs.clone()), slopes.to_vec());
        // Piecewise linear in each number: one side of the point belongs to the same piece.
        let (apart, here) = (1e-3_f32, sum(&net, &inputs));
        let slope = |found: f32, moved: &dyn Fn(f32) -> f64| {
            let sides = [apart, -apart].map(|by| (moved(by) - here) / f64::from(by));
            let near = |side: f64| (f64::from(found) - side).abs() < 5e-3 * side.abs().max(0.1);
            assert!(sides.into_iter().any(near), "{found} and {sides:?}");
        };
        for (at, found) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut net = net.clone();
                net.values[at] += by;
                sum(&net, &inputs)
            };
            slope(*found, &moved);
        }
        for (at, found) in of_inputs.iter().enumerate() {
            let moved = |by: f32| {
                let mut inputs = inputs.clone();
                inputs[at] += by;
                sum(&net, &inputs)
            };
            slope(*found, &moved);
        }
    }
}
