//! The optimizer of agents and policies.

/// Adam with the usual constants.
#[derive(Debug)]
pub(crate) struct Adam {
    rate: f32,
    steps: i32,
    /// Means of gradients and of their squares.
    moments: Vec<[f32; 2]>,
}

impl Adam {
    pub(crate) fn new(values: usize, rate: f32) -> Self {
        Self { rate, steps: 0, moments: vec![[0.0; 2]; values] }
    }

    pub(crate) fn step(&mut self, values: &mut [f32], gradient: &[f32]) {
        self.steps += 1;
        let [first, second] = [0.9_f32, 0.999].map(|beta| 1.0 - beta.powi(self.steps));
        for ((value, slope), [mean, square]) in values.iter_mut().zip(gradient).zip(&mut self.moments) {
            *mean += 0.1 * (slope - *mean);
            *square += 0.001 * (slope * slope - *square);
            *value -= self.rate * (*mean / first) / ((*square / second).sqrt() + 1e-8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_steps_of_adam_are_those_by_hand() {
        let (mut adam, mut values) = (Adam::new(1, 0.1), [1.0_f32]);
        adam.step(&mut values, &[4.0]);
        // Both moments are their corrections of 4 and 16.
        assert!((values[0] - 0.9).abs() < 1e-6);
        adam.step(&mut values, &[-2.0]);
        // (0.9 * 0.4 - 0.2) / 0.19 over the root of (0.999 * 0.016 + 0.004) / 0.001999.
        assert!((f64::from(values[0]) - (0.9 - 0.1 * 0.842_105_26 / 3.161_803)).abs() < 1e-6, "{values:?}");
    }
}
