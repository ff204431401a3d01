//! Fully connected layers and their gradients.
//!
//! The loops are those of a convolution by one pixel: a row of the input is a pixel, its features are the channels.

use rayon::prelude::*;

use crate::buffer::{Target, filled};
use crate::conv::{Correlation, Epilogue, FilterPanel, Job, Outer, Segment, jobs, packed_len, panels, parts};
use crate::lanes::Isa;
use crate::operand::{Half, Operand, Precision, Single};
use crate::{Error, count};

/// `y = x w` for `x` of `[rows, inputs]` and `w` of `[inputs, outputs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Number of rows.
    pub rows: usize,
    /// Features of a row of the input.
    pub inputs: usize,
    /// Features of a row of the output.
    pub outputs: usize,
    /// Precision of the factors.
    pub precision: Precision,
}

/// Rows of a task.
const ROWS: usize = 96;

impl Linear {
    /// `y = x w`, and what the epilogue makes of it: `[rows, outputs]`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn forward(&self, x: &[f32], w: &[f32], epilogue: &Epilogue<'_>) -> Result<Vec<f32>, Error> {
        self.forward_on(Isa::of_this_machine(), x, w, epilogue)
    }

    fn forward_on(&self, isa: Isa, x: &[f32], w: &[f32], epilogue: &Epilogue<'_>) -> Result<Vec<f32>, Error> {
        let [_, _, len] = self.lengths()?;
        self.check(x.len(), w.len(), len)?;
        epilogue.check(self.outputs, len)?;
        let shape = [self.rows, self.inputs, self.outputs];
        Ok(match self.precision {
            Precision::F32 => product::<Single>(isa, x, w, shape, false, epilogue),
            Precision::Bf16 => product::<Half>(isa, x, w, shape, false, epilogue),
        })
    }

    /// The gradient of the loss by the input, `[rows, inputs]`, from that by the output.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn input_gradient(&self, dy: &[f32], w: &[f32]) -> Result<Vec<f32>, Error> {
        self.input_gradient_on(Isa::of_this_machine(), dy, w)
    }

    fn input_gradient_on(&self, isa: Isa, dy: &[f32], w: &[f32]) -> Result<Vec<f32>, Error> {
        self.check(self.lengths()?[0], w.len(), dy.len())?;
        let (shape, plain) = ([self.rows, self.outputs, self.inputs], Epilogue::default());
        Ok(match self.precision {
            Precision::F32 => product::<Single>(isa, dy, w, shape, true, &plain),
            Precision::Bf16 => product::<Half>(isa, dy, w, shape, true, &plain),
        })
    }

    /// The gradient of the loss by the weights, `[inputs, outputs]`.
    ///
    /// # Errors
    /// When a slice has not the length that the shapes ask for.
    pub fn weight_gradient(&self, x: &[f32], dy: &[f32]) -> Result<Vec<f32>, Error> {
        self.weight_gradient_on(Isa::of_this_machine(), x, dy)
    }

    fn weight_gradient_on(&self, isa: Isa, x: &[f32], dy: &[f32]) -> Result<Vec<f32>, Error> {
        self.check(x.len(), self.lengths()?[1], dy.len())?;
        Ok(match self.precision {
            Precision::F32 => self.outer::<Single>(isa, x, dy),
            Precision::Bf16 => self.outer::<Half>(isa, x, dy),
        })
    }

    fn outer<O: Operand>(&self, isa: Isa, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let x = O::values(x);
        let (lanes, depth) = (isa.lanes(), self.inputs);
        let segments = [Segment { offset: 0, len: depth, weight: 0 }];
        let (bases, places) = rows(depth);
        let tasks: Vec<usize> = (0..self.rows).step_by(ROWS).collect();
        let total = packed_len(self.outputs, lanes, depth);
        let parts = parts(total, tasks.len());
        let mut partial = vec![0.0; parts * total];
        let panels = panels(self.outputs, lanes);
        let each = tasks.len().div_ceil(parts).max(1);
        jobs(&mut partial, (parts, 1), &panels, lanes, depth).into_par_iter().for_each(
            |Job { part, panels: mut mine, .. }| {
                for row in tasks.chunks(each).nth(part).into_iter().flatten() {
                    let count = ROWS.min(self.rows - row);
                    isa.run(Outer::<O> {
                        source: &x[row * depth..],
                        pixels: vec![(&bases[..count], &places[..count], &segments)],
                        dy: &dy[row * self.outputs..],
                        row: self.outputs,
                        filter: 0,
                        panels: mine.iter_mut().map(|(panel, to)| (*panel, &mut **to)).collect(),
                    });
                }
            },
        );
        let mut dw = vec![0.0; depth * self.outputs];
        dw.par_chunks_mut(self.outputs.max(1)).enumerate().for_each(|(input, dw)| {
            for (panel, to) in panels.iter().zip(dw.chunks_mut(2 * lanes)) {
                let start = panel.first * depth + input * panel.vectors * lanes;
                to.copy_from_slice(&partial[start..][..panel.filters]);
                for part in 1..parts {
                    let more = &partial[part * total + start..][..panel.filters];
                    to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
                }
            }
        });
        dw
    }

    /// Values of the input, of the weights and of the output.
    fn lengths(&self) -> Result<[usize; 3], Error> {
        let &Self { rows, inputs, outputs, .. } = self;
        // What the rows of a task reach has places of 32 bits.
        if inputs.max(outputs) > u32::MAX as usize / ROWS {
            return Err(Error(format!("rows of so many features are too long: {self:?}")));
        }
        Ok([count(&[rows, inputs])?, count(&[inputs, outputs])?, count(&[rows, outputs])?])
    }

    fn check(&self, x: usize, w: usize, y: usize) -> Result<(), Error> {
        let wanted = self.lengths()?;
        if [x, w, y] == wanted {
            return Ok(());
        }
        Err(Error(format!("input, weights and output have {x}, {w} and {y} values, {self:?} takes {wanted:?}")))
    }
}

/// A product of `[rows, depth]` with a matrix `[depth, width]`, or, `turned`, `[width, depth]`.
fn product<O: Operand>(
    isa: Isa,
    from: &[f32],
    w: &[f32],
    [count, depth, width]: [usize; 3],
    turned: bool,
    epilogue: &Epilogue<'_>,
) -> Vec<f32> {
    let (from, packed) = (O::values(from), pack::<O>(w, [depth, width], isa.lanes(), turned));
    let segments = [Segment { offset: 0, len: depth, weight: 0 }];
    let (bases, places) = rows(depth);
    let panels = panels(width, isa.lanes());
    let tasks: Vec<usize> = (0..count).step_by(ROWS).collect();
    let some = panels.len().div_ceil(TASKS.div_ceil(tasks.len().max(1))).max(1);
    let jobs: Vec<(usize, &[FilterPanel])> =
        tasks.iter().flat_map(|row| panels.chunks(some).map(move |panels| (*row, panels))).collect();
    let write = |to: Target<'_>| {
        jobs.into_par_iter().for_each(|(row, panels)| {
            let some = ROWS.min(count - row);
            let correlation = Correlation::<O> {
                source: &from[row * depth..],
                pixels: vec![(&bases[..some], &places[..some], &segments)],
                start: row,
                panels,
                weights: &packed,
                depth: depth.div_ceil(O::PER),
                epilogue,
                filter: 0,
                row: width,
                to,
            };
            correlation.on(isa);
        });
    };
    #[allow(unsafe_code)]
    // SAFETY: the tasks cover every row, the panels every column.
    unsafe {
        filled(count * width, write)
    }
}

/// Where the rows of a task begin, and their numbers.
fn rows(depth: usize) -> (Vec<u32>, Vec<u32>) {
    ((0..ROWS as u32).map(|row| row * depth as u32).collect(), (0..ROWS as u32).collect())
}

/// Least number of tasks, where there is as much to do.
const TASKS: usize = 8;

/// A matrix `[depth, width]` in panels of its columns, or, `turned`, one `[width, depth]` in panels of its rows.
fn pack<O: Operand>(w: &[f32], [depth, width]: [usize; 2], lanes: usize, turned: bool) -> Vec<O::Weight> {
    let places = depth.div_ceil(O::PER);
    let mut packed = vec![O::Weight::default(); packed_len(width, lanes, places)];
    if depth == 0 {
        return packed;
    }
    packed.par_chunks_mut(2 * lanes * places).zip(panels(width, lanes)).for_each(|(to, panel)| {
        let columns = panel.vectors * lanes;
        if turned {
            for (lane, row) in w[panel.first * depth..].chunks_exact(depth).take(panel.filters).enumerate() {
                for (to, some) in to[lane..].iter_mut().step_by(columns).zip(row.chunks(O::PER)) {
                    *to = O::weight(some[0], some.get(1).copied().unwrap_or(0.0));
                }
            }
        } else {
            let some = panel.first..panel.first + panel.filters;
            for (to, rows) in to.chunks_exact_mut(columns).zip(w.chunks(O::PER * width)) {
                let (first, second) = rows.split_at(width);
                let second = (!second.is_empty()).then(|| &second[some.clone()]);
                O::weights(&first[some.clone()], second, to);
            }
        }
    });
    packed
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::operand::round_to_bf16;

    #[test]
    fn all_three_products_follow_the_definition_on_every_instruction_set() {
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let sizes = [0, 1, 2, 3, 7, 16, 17, 31, 64, 100, 257];
            let mut size = |least: usize| sizes[rng.random_range(least..sizes.len())];
            let precision = if seed % 2 == 0 { Precision::F32 } else { Precision::Bf16 };
            let linear = Linear { rows: size(0), inputs: size(1), outputs: size(1), precision };
            let Linear { rows, inputs, outputs, .. } = linear;
            let mut noise = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (mut x, mut w, mut dy) = (noise(rows * inputs), noise(inputs * outputs), noise(rows * outputs));
            let bias = noise(outputs);
            if precision == Precision::Bf16 {
                // The definition is that of factors that bf16 holds.
                [&mut x, &mut w, &mut dy].into_iter().for_each(|values| round_to_bf16(values));
            }
            let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
            for (row, i, o) in (0..rows).flat_map(|row| (0..inputs).flat_map(move |i| (0..outputs).map(move |o| (row, i, o)))) {
                let (x, w, dy) = (x[row * inputs + i], w[i * outputs + o], dy[row * outputs + o]);
                y[row * outputs + o] += f64::from(x) * f64::from(w);
                dx[row * inputs + i] += f64::from(dy) * f64::from(w);
                dw[i * outputs + o] += f64::from(dy) * f64::from(x);
            }
            y.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(bias[i % outputs]));
            let near = |found: Vec<f32>, wanted: &[f64]| {
                let scale = wanted.iter().fold(1.0_f64, |most, v| most.max(v.abs()));
                let far = found.iter().zip(wanted).position(|(a, b)| (f64::from(*a) - b).abs() > 1e-5 * scale);
                assert!(found.len() == wanted.len() && far.is_none(), "{linear:?}: {far:?}");
            };
            for isa in Isa::all() {
                near(linear.forward_on(isa, &x, &w, &Epilogue::biased(&bias)).unwrap(), &y);
                near(linear.input_gradient_on(isa, &dy, &w).unwrap(), &dx);
                near(linear.weight_gradient_on(isa, &x, &dy).unwrap(), &dw);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_shapes() {
        let linear = Linear { rows: 2, inputs: 3, outputs: 4, precision: Precision::F32 };
        let error = linear.forward(&[0.0; 6], &[0.0; 11], &Epilogue::default()).unwrap_err().to_string();
        assert!(error.contains("have 6, 11 and 8 values") && error.contains("takes [6, 12, 8]"), "{error}");
        let error = linear.forward(&[0.0; 6], &[0.0; 12], &Epilogue::biased(&[0.0; 3])).unwrap_err().to_string();
        assert_eq!(error, "a bias of 3 values for 4 filters and 8 results");
    }
}
