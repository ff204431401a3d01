//! Steps of optimizers over flat slices, each in one pass.

// The loops read and write through pointers into slices of one length.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::lanes::{Isa, Lanes, Work};

/// Stochastic gradient descent: `g += decay w`, `v = momentum v + g`, `w -= rate v`, or `rate (g + momentum v)` in Nesterov's form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub rate: f32,
    /// Share of the velocity that stays.
    pub momentum: f32,
    /// Nesterov's form.
    pub nesterov: bool,
    /// Penalty that is added to the gradient.
    pub decay: f32,
}

/// Adam (Kingma & Ba, ICLR 2015): `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `w -= rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub rate: f32,
    /// Share of the first moment that stays.
    pub beta_1: f32,
    /// Share of the second moment that stays.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Penalty that is added to the gradient.
    pub decay: f32,
    /// Share of the weights that is taken away before the step, times the rate (Loshchilov & Hutter, ICLR 2019).
    pub decoupled: f32,
    /// Number of the step, from 1.
    pub time: i32,
}

/// Values of a task; every vector length divides it.
const TASK: usize = 1 << 14;

impl Sgd {
    /// One step of the weights `w` by the gradient `g`; the velocity `v` begins with zeros.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn step(&self, w: &mut [f32], g: &[f32], v: &mut [f32]) {
        assert!(w.len() == g.len() && w.len() == v.len(), "a gradient and a velocity for each weight");
        w.par_chunks_mut(TASK).zip(g.par_chunks(TASK)).zip(v.par_chunks_mut(TASK)).for_each(|((w, g), v)| {
            Isa::of_this_machine().run(SgdStep { sgd: self, w, g, v });
        });
    }
}

struct SgdStep<'a> {
    sgd: &'a Sgd,
    w: &'a mut [f32],
    g: &'a [f32],
    v: &'a mut [f32],
}

impl Work for SgdStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        assert!(self.w.len() == self.g.len() && self.w.len() == self.v.len());
        let [rate, momentum, decay] = [-self.sgd.rate, self.sgd.momentum, self.sgd.decay].map(L::splat);
        let mut at = 0;
        while at < self.w.len() {
            let count = L::COUNT.min(self.w.len() - at);
            // SAFETY: `count` values are left in each slice.
            unsafe {
                let w = load::<L>(self.w.as_ptr().add(at), count);
                let g = w.multiply_add(decay, load(self.g.as_ptr().add(at), count));
                let v = load::<L>(self.v.as_ptr().add(at), count).multiply_add(momentum, g);
                let step = if self.sgd.nesterov { v.multiply_add(momentum, g) } else { v };
                store(v, self.v.as_mut_ptr().add(at), count);
                store(step.multiply_add(rate, w), self.w.as_mut_ptr().add(at), count);
            }
            at += count;
        }
    }
}

impl Adam {
    /// One step of the weights `w` by the gradient `g`; the moments `m` and `v` begin with zeros.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn step(&self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        assert!(w.len() == g.len() && w.len() == m.len() && w.len() == v.len(), "a gradient and moments for each weight");
        let moments = m.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK));
        w.par_chunks_mut(TASK).zip(g.par_chunks(TASK)).zip(moments).for_each(|((w, g), (m, v))| {
            Isa::of_this_machine().run(AdamStep { adam: self, w, g, m, v });
        });
    }
}

struct AdamStep<'a> {
    adam: &'a Adam,
    w: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Work for AdamStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Adam { rate, beta_1, beta_2, epsilon, decay, decoupled, time } = *self.adam;
        assert!(self.w.len() == self.g.len() && self.w.len() == self.m.len() && self.w.len() == self.v.len());
        // The corrections of both moments, taken out of the roots.
        let root = (1.0 - beta_2.powi(time)).sqrt();
        let step = L::splat(-rate * root / (1.0 - beta_1.powi(time)));
        let [epsilon, decay, kept] = [epsilon * root, decay, 1.0 - rate * decoupled].map(L::splat);
        let [beta_1, new_1, beta_2, new_2] = [beta_1, 1.0 - beta_1, beta_2, 1.0 - beta_2].map(L::splat);
        let mut at = 0;
        while at < self.w.len() {
            let count = L::COUNT.min(self.w.len() - at);
            // SAFETY: `count` values are left in each slice.
            unsafe {
                let w = load::<L>(self.w.as_ptr().add(at), count);
                let g = w.multiply_add(decay, load(self.g.as_ptr().add(at), count));
                let m = load::<L>(self.m.as_ptr().add(at), count).multiply_add(beta_1, g.multiply(new_1));
                let v = load::<L>(self.v.as_ptr().add(at), count).multiply_add(beta_2, g.multiply(g).multiply(new_2));
                let w = m.divide(v.root().add(epsilon)).multiply_add(step, w.multiply(kept));
                store(m, self.m.as_mut_ptr().add(at), count);
                store(v, self.v.as_mut_ptr().add(at), count);
                store(w, self.w.as_mut_ptr().add(at), count);
            }
            at += count;
        }
    }
}

/// # Safety
/// `count` floats are readable, at most a vector.
#[inline(always)]
unsafe fn load<L: Lanes>(from: *const f32, count: usize) -> L {
    // SAFETY: as the caller vouches.
    unsafe { if count == L::COUNT { L::load(from) } else { L::load_some(from, count) } }
}

/// # Safety
/// `count` floats are writable, at most a vector.
#[inline(always)]
unsafe fn store<L: Lanes>(vector: L, to: *mut f32, count: usize) {
    // SAFETY: as the caller vouches.
    unsafe { if count == L::COUNT { vector.store(to) } else { vector.store_some(to, count) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_their_formulas() {
        let g: Vec<f32> = (0..40_003).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let start: Vec<f32> = g.iter().rev().copied().collect();
        for nesterov in [false, true] {
            let sgd = Sgd { rate: 0.1, momentum: 0.9, nesterov, decay: 0.01 };
            let (mut w, mut v) = (start.clone(), vec![0.0; g.len()]);
            sgd.step(&mut w, &g, &mut v);
            sgd.step(&mut w, &g, &mut v);
            for i in (0..g.len()).step_by(997) {
                let (mut wanted, mut velocity) = (f64::from(start[i]), 0.0);
                for _ in 0..2 {
                    let g = f64::from(g[i]) + 0.01 * wanted;
                    velocity = 0.9 * velocity + g;
                    wanted -= 0.1 * if nesterov { g + 0.9 * velocity } else { velocity };
                }
                assert!((f64::from(w[i]) - wanted).abs() < 1e-5, "{i}: {} {wanted}", w[i]);
            }
        }
        let adam = Adam { rate: 0.1, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-5, decay: 0.01, decoupled: 0.02, time: 1 };
        let (mut w, mut m, mut v) = (start.clone(), vec![0.0; g.len()], vec![0.0; g.len()]);
        adam.step(&mut w, &g, &mut m, &mut v);
        Adam { time: 2, ..adam }.step(&mut w, &g, &mut m, &mut v);
        for i in (0..g.len()).step_by(997) {
            let (mut wanted, mut first, mut second) = (f64::from(start[i]), 0.0, 0.0);
            for time in 1..=2 {
                let g = f64::from(g[i]) + 0.01 * wanted;
                (first, second) = (0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g);
                let root = (second / (1.0 - 0.999_f64.powi(time))).sqrt();
                wanted = wanted * (1.0 - 0.1 * 0.02) - 0.1 * first / (1.0 - 0.9_f64.powi(time)) / (root + 1e-5);
            }
            assert!((f64::from(w[i]) - wanted).abs() < 2e-4, "{i}: {} {wanted}", w[i]);
        }
    }
}
