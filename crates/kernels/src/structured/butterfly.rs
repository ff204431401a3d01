//! Blocks of butterfly factors.

use super::Operator;

/// `y_b = F_L ... F_1 x`.
pub(super) struct Butterfly {
    inputs: usize,
    outputs: usize,
    size: usize,
    factors: Vec<f32>,
}

/// The size of the factors for as many inputs: a power of two, at least two.
pub(super) fn size(inputs: usize) -> usize {
    inputs.next_power_of_two().max(2)
}

impl Butterfly {
    pub(super) fn new(inputs: usize, outputs: usize, factors: &[f32]) -> Self {
        Self { inputs, outputs, size: size(inputs), factors: factors.to_vec() }
    }

    fn levels(&self) -> usize {
        self.size.ilog2() as usize
    }

    /// The values before each factor of a block, and after the last.
    fn go(&self, block: usize, x: &[f32], way: &mut [f32]) {
        way[..x.len()].copy_from_slice(x);
        way[x.len()..self.size].fill(0.0);
        for level in 0..self.levels() {
            let (before, after) = way[level * self.size..][..2 * self.size].split_at_mut(self.size);
            self.pairs(level).zip(self.factor(block, level).chunks_exact(4)).for_each(|((i, j), f)| {
                after[i] = f[0] * before[i] + f[1] * before[j];
                after[j] = f[2] * before[i] + f[3] * before[j];
            });
        }
    }

    fn factor(&self, block: usize, level: usize) -> &[f32] {
        &self.factors[(block * self.levels() + level) * 2 * self.size..][..2 * self.size]
    }

    /// The features that a factor mixes.
    fn pairs(&self, level: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let half = 1 << level;
        (0..self.size).step_by(2 * half).flat_map(move |first| (first..first + half).map(move |i| (i, i + half)))
    }

    fn way(&self) -> Vec<f32> {
        vec![0.0; (self.levels() + 1) * self.size]
    }
}

impl Operator for Butterfly {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let mut way = self.way();
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            for (block, y) in y.chunks_mut(self.size).enumerate() {
                self.go(block, x, &mut way);
                y.copy_from_slice(&way[self.levels() * self.size..][..y.len()]);
            }
        }
    }

    fn sums(&self) -> usize {
        self.factors.len()
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let (mut way, mut d) = (self.way(), vec![0.0; self.size]);
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(self.inputs));
        for ((x, dy), dx) in rows {
            dx.fill(0.0);
            for (block, dy) in dy.chunks(self.size).enumerate() {
                self.go(block, x, &mut way);
                d[..dy.len()].copy_from_slice(dy);
                d[dy.len()..].fill(0.0);
                for level in (0..self.levels()).rev() {
                    let before = &way[level * self.size..][..self.size];
                    let sums = &mut sums[(block * self.levels() + level) * 2 * self.size..][..2 * self.size];
                    let of_pairs = self.factor(block, level).chunks_exact(4).zip(sums.chunks_exact_mut(4));
                    for ((i, j), (f, sums)) in self.pairs(level).zip(of_pairs) {
                        sums[0] += d[i] * before[i];
                        sums[1] += d[i] * before[j];
                        sums[2] += d[j] * before[i];
                        sums[3] += d[j] * before[j];
                        (d[i], d[j]) = (f[0] * d[i] + f[2] * d[j], f[1] * d[i] + f[3] * d[j]);
                    }
                }
                dx.iter_mut().zip(&d).for_each(|(dx, d)| *dx += d);
            }
        }
    }

    fn held(&self) -> usize {
        self.factors.len()
    }
}
