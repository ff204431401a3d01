//! Diagonal matrices between cosine transforms.

use std::sync::Arc;

use rustdct::{DctPlanner, TransformType2And3};

use super::{Draws, Operator};

/// `y = A_K C^T D_K C P_K ... A_1 C^T D_1 C x`.
pub(super) struct Acdc {
    inputs: usize,
    outputs: usize,
    size: usize,
    layers: usize,
    cosines: Arc<dyn TransformType2And3<f32>>,
    /// All `a`, then all `d`.
    diagonals: Vec<f32>,
    /// Where each value of `P_k v` comes from, from the second layer on.
    places: Vec<u32>,
}

impl Acdc {
    pub(super) fn new(inputs: usize, outputs: usize, layers: usize, seed: u64, [a, d]: [&[f32]; 2]) -> Self {
        let size = inputs.max(outputs);
        let mut draws = Draws(seed);
        let places = (1..layers).flat_map(|_| draws.permutation(size)).collect();
        let cosines = DctPlanner::new().plan_dct2(size);
        Self { inputs, outputs, size, layers, cosines, diagonals: [a, d].concat(), places }
    }

    fn scratch(&self) -> Vec<f32> {
        vec![0.0; self.cosines.get_scratch_len()]
    }

    /// The orthonormal DCT-II, `C`.
    fn analyse(&self, values: &mut [f32], scratch: &mut [f32]) {
        self.cosines.process_dct2_with_scratch(values, scratch);
        let scale = (2.0 / self.size as f32).sqrt();
        values.iter_mut().for_each(|value| *value *= scale);
        values[0] *= std::f32::consts::FRAC_1_SQRT_2;
    }

    /// Its transpose.
    fn synthesise(&self, values: &mut [f32], scratch: &mut [f32]) {
        values[0] *= std::f32::consts::SQRT_2;
        let scale = (2.0 / self.size as f32).sqrt();
        values.iter_mut().for_each(|value| *value *= scale);
        self.cosines.process_dct3_with_scratch(values, scratch);
    }

    fn layer(&self, layer: usize) -> (&[f32], &[f32], &[u32]) {
        let (a, d) = self.diagonals.split_at(self.layers * self.size);
        let places = if layer == 0 { &[][..] } else { &self.places[(layer - 1) * self.size..][..self.size] };
        (&a[layer * self.size..][..self.size], &d[layer * self.size..][..self.size], places)
    }

    /// Takes `values` through all layers; `way` gets what the two diagonals of each layer see.
    fn go(&self, x: &[f32], values: &mut [f32], mut way: Option<&mut [f32]>, scratch: &mut [f32]) {
        values[..x.len()].copy_from_slice(x);
        values[x.len()..].fill(0.0);
        let mut before = vec![0.0; if self.layers > 1 { self.size } else { 0 }];
        for layer in 0..self.layers {
            let (a, d, places) = self.layer(layer);
            if !places.is_empty() {
                before.copy_from_slice(values);
                values.iter_mut().zip(places).for_each(|(to, place)| *to = before[*place as usize]);
            }
            let mut keep = |at: usize, values: &[f32]| {
                if let Some(way) = &mut way {
                    way[(2 * layer + at) * self.size..][..self.size].copy_from_slice(values);
                }
            };
            self.analyse(values, scratch);
            keep(0, values);
            values.iter_mut().zip(d).for_each(|(value, d)| *value *= d);
            self.synthesise(values, scratch);
            keep(1, values);
            values.iter_mut().zip(a).for_each(|(value, a)| *value *= a);
        }
    }
}

impl Operator for Acdc {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (mut values, mut scratch) = (vec![0.0; self.size], self.scratch());
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            self.go(x, &mut values, None, &mut scratch);
            y.copy_from_slice(&values[..self.outputs]);
        }
    }

    fn sums(&self) -> usize {
        self.diagonals.len()
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let (mut values, mut scratch) = (vec![0.0; self.size], self.scratch());
        let (mut way, mut before) = (vec![0.0; 2 * self.layers * self.size], vec![0.0; self.size]);
        let (da, dd) = sums.split_at_mut(self.layers * self.size);
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(self.inputs));
        for ((x, dy), dx) in rows {
            self.go(x, &mut values, Some(&mut way), &mut scratch);
            values[..self.outputs].copy_from_slice(dy);
            values[self.outputs..].fill(0.0);
            for layer in (0..self.layers).rev() {
                let (a, d, places) = self.layer(layer);
                let through = |diagonal: &[f32], sums: &mut [f32], at: usize, values: &mut [f32]| {
                    let seen = &way[(2 * layer + at) * self.size..][..self.size];
                    let sums = &mut sums[layer * self.size..][..self.size];
                    for (((value, diagonal), seen), sum) in values.iter_mut().zip(diagonal).zip(seen).zip(sums) {
                        *sum += *value * seen;
                        *value *= diagonal;
                    }
                };
                through(a, da, 1, &mut values);
                self.analyse(&mut values, &mut scratch);
                through(d, dd, 0, &mut values);
                self.synthesise(&mut values, &mut scratch);
                if !places.is_empty() {
                    before.copy_from_slice(&values);
                    places.iter().zip(&before).for_each(|(place, value)| values[*place as usize] = *value);
                }
            }
            dx.copy_from_slice(&values[..self.inputs]);
        }
    }

    fn held(&self) -> usize {
        self.diagonals.len() + self.places.len()
    }
}
