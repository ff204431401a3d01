//! Sums of Kronecker products.

use super::Operator;

/// `y = sum_t (A_t (x) B_t) x`: with `x` as a matrix `X` of as many rows as `A` has columns, `Y = sum_t A_t (X B_t^T)`.
pub(super) struct Kronecker {
    inputs: usize,
    outputs: usize,
    left: [usize; 2],
    right: [usize; 2],
    terms: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Kronecker {
    pub(super) fn new(inputs: usize, outputs: usize, sides: [[usize; 2]; 2], terms: usize, [a, b]: [&[f32]; 2]) -> Self {
        Self { inputs, outputs, left: sides[0], right: sides[1], terms, a: a.to_vec(), b: b.to_vec() }
    }

    /// Both factors of each term.
    fn factors(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        self.a.chunks_exact(self.a.len() / self.terms).zip(self.b.chunks_exact(self.b.len() / self.terms))
    }

    /// `X B^T`, `[columns of A, rows of B]`; zeros stand where `x` ends.
    fn turn(&self, x: &[f32], b: &[f32], product: &mut [f32]) {
        product.fill(0.0);
        for (x, product) in x.chunks(self.right[1]).zip(product.chunks_exact_mut(self.right[0])) {
            for (b, to) in b.chunks_exact(self.right[1]).zip(product) {
                *to = b.iter().zip(x).map(|(b, x)| b * x).sum();
            }
        }
    }
}

impl Operator for Kronecker {
    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let mut turned = vec![0.0; self.left[1] * self.right[0]];
        for (x, y) in x.chunks_exact(self.inputs).zip(y.chunks_exact_mut(self.outputs)) {
            y.fill(0.0);
            for (a, b) in self.factors() {
                self.turn(x, b, &mut turned);
                for (y, a) in y.chunks_mut(self.right[0]).zip(a.chunks_exact(self.left[1])) {
                    for (a, v) in a.iter().zip(turned.chunks_exact(self.right[0])) {
                        y.iter_mut().zip(v).for_each(|(y, v)| *y += a * v);
                    }
                }
            }
        }
    }

    fn sums(&self) -> usize {
        self.a.len() + self.b.len()
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let mut turned = vec![0.0; self.left[1] * self.right[0]];
        let mut back = turned.clone();
        let (da, db) = sums.split_at_mut(self.a.len());
        let rows = x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)).zip(dx.chunks_exact_mut(self.inputs));
        for ((x, dy), dx) in rows {
            dx.fill(0.0);
            let of_terms = da.chunks_exact_mut(self.a.len() / self.terms).zip(db.chunks_exact_mut(self.b.len() / self.terms));
            for ((a, b), (da, db)) in self.factors().zip(of_terms) {
                self.turn(x, b, &mut turned);
                back.fill(0.0);
                let of_rows = a.chunks_exact(self.left[1]).zip(da.chunks_exact_mut(self.left[1]));
                for (dy, (a, da)) in dy.chunks(self.right[0]).zip(of_rows) {
                    let columns = turned.chunks_exact(self.right[0]).zip(back.chunks_exact_mut(self.right[0]));
                    for ((a, da), (v, dv)) in a.iter().zip(da).zip(columns) {
                        *da += dy.iter().zip(v).map(|(dy, v)| dy * v).sum::<f32>();
                        dv.iter_mut().zip(dy).for_each(|(dv, dy)| *dv += a * dy);
                    }
                }
                let of_rows = x.chunks(self.right[1]).zip(dx.chunks_mut(self.right[1]));
                for (dv, (x, dx)) in back.chunks_exact(self.right[0]).zip(of_rows) {
                    let of_rows = b.chunks_exact(self.right[1]).zip(db.chunks_exact_mut(self.right[1]));
                    for (dv, (b, db)) in dv.iter().zip(of_rows) {
                        db.iter_mut().zip(x).for_each(|(db, x)| *db += dv * x);
                        dx.iter_mut().zip(b).for_each(|(dx, b)| *dx += dv * b);
                    }
                }
            }
        }
    }

    fn held(&self) -> usize {
        self.sums()
    }
}
