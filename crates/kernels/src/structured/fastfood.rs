//! Blocks of diagonal matrices between Walsh-Hadamard transforms.

use super::transform::hadamard;
use super::{Draws, Operator};

/// `y_b = S_b H G_b P_b H B_b x`.
pub(super) struct Fastfood {
    inputs: usize,
    outputs: usize,
    size: usize,
    s: Vec<f32>,
    g: Vec<f32>,
    b: Vec<f32>,
    /// Where each value of `P v` comes from.
    places: Vec<u32>,
}

/// The values on the way through one block.
struct Way {
    /// `P H B x`.
    permuted: Vec<f32>,
    /// `H G P H B x`.
    mixed: Vec<f32>,
}

impl Fastfood {
    pub(super) fn new(inputs: usize, outputs: usize, seed: u64, [s, g, b]: [&[f32]; 3]) -> Self {
        let size = inputs.next_power_of_two();
        let mut draws = Draws(seed);
        let places = (0..g.len() / size).flat_map(|_| draws.permutation(size)).collect();
        Self { inputs, outputs, size, s: s.to_vec(), g: g.to_vec(), b: b.to_vec(), places }
    }

    fn way(&self) -> Way {
        Way { permuted: vec![0.0; self.size], mixed: vec![0.0; self.size] }
    }

    fn block(&self, block: usize) -> (&[f32], &[f32], &[u32]) {
        let of_size = block * self.size..(block + 1) * self.size;
        (&self.g[of_size.clone()], &self.b[block * self.inputs..][..self.inputs], &self.places[of_size])
    }

    fn go(&self, block: usize, x: &[f32], way: &mut Way) {
        let (g, b, places) = self.block(block);
        way.mixed[..self.inputs].iter_mut().zip(x).zip(b).for_each(|((to, x), b)| *to = x * b);
        way.mixed[self.inputs..].fill(0.0);
        hadamard(&mut way.mixed);
        way.permuted.iter_mut().zip(places).for_each(|(to, place)| *to = way.mixed[*place as usize]);
        way.mixed.iter_mut().zip(&way.permuted).zip(g).for_each(|((to, v), g)| *to = v * g);
        hadamard(&mut way.mixed);
    }
}

impl Operator for Fastfood {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let mut way = self.way();
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            for (block, (y, s)) in y.chunks_mut(self.size).zip(self.s.chunks(self.size)).enumerate() {
                self.go(block, x, &mut way);
                y.iter_mut().zip(s).zip(&way.mixed).for_each(|((y, s), v)| *y = s * v);
            }
        }
    }

    fn sums(&self) -> usize {
        self.s.len() + self.g.len() + self.b.len()
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let mut way = self.way();
        let (mut d, mut unpermuted) = (vec![0.0; self.size], vec![0.0; self.size]);
        let (ds, rest) = sums.split_at_mut(self.s.len());
        let (dg, db) = rest.split_at_mut(self.g.len());
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(self.inputs));
        for ((x, dy), dx) in rows {
            dx.fill(0.0);
            for (block, (dy, s)) in dy.chunks(self.size).zip(self.s.chunks(self.size)).enumerate() {
                self.go(block, x, &mut way);
                let (g, b, places) = self.block(block);
                let (dg, db) = (&mut dg[block * self.size..][..self.size], &mut db[block * self.inputs..][..self.inputs]);
                let ds = &mut ds[block * self.size..][..s.len()];
                ds.iter_mut().zip(dy).zip(&way.mixed).for_each(|((ds, dy), v)| *ds += dy * v);
                d.fill(0.0);
                d.iter_mut().zip(dy).zip(s).for_each(|((d, dy), s)| *d = dy * s);
                hadamard(&mut d);
                dg.iter_mut().zip(&d).zip(&way.permuted).for_each(|((dg, d), v)| *dg += d * v);
                for ((d, g), place) in d.iter().zip(g).zip(places) {
                    unpermuted[*place as usize] = d * g;
                }
                hadamard(&mut unpermuted);
                let of_input = unpermuted.iter().zip(x).zip(b).zip(db).zip(&mut *dx);
                of_input.for_each(|((((d, x), b), db), dx)| {
                    *db += d * x;
                    *dx += d * b;
                });
            }
        }
    }

    fn held(&self) -> usize {
        self.sums() + self.places.len()
    }
}
