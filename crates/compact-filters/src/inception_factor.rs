//! Large kernels as two small ones.
//!
//! A convolution `W` `[N, C, h, w]` becomes two:
//! - 5 by 5 becomes 3 by 3 and 3 by 3, of which the first makes `M = sqrt(C N)` maps, so that both widen alike: `9 M (C + N)` weights;
//! - any other `h` by `w` becomes `1 x w` and `h x 1`, of which the first makes `M = N` maps: `N (w C + h N)` weights.
//!
//! With nothing between, the pair is a convolution by `W'[n, c] = sum_m B[n, m] * A[m, c]`, the convolution of its kernels, and more than `C` maps
//! for each tap of the first kernel are of no use, so that there are none. The first is without bias; stride and dilation of the second
//! kernel's axes are the second's, and so is the stride of 3 by 3.
//!
//! The least-squares start of `1 x w` and `h x 1` is the singular value decomposition of `W` as a matrix `[(c, j), (n, i)]` of taps `(i, j)`, cut
//! at the first's maps, the roots of the singular values on both sides. That of two 3 by 3 has no closed form: from a random `A` it alternates
//! between the `B` and the `A` that minimize `sum (W' - W)^2` while the other stands, so that the error falls with each step, to a minimum
//! that need not be the least. All padding then is the first's, where the pair is exactly the convolution by `W'`, borders included; from
//! scratch each kernel has its half, as in the paper.
//!
//! Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. "Rethinking the Inception Architecture for Computer Vision". CVPR 2016. arXiv:1512.00567, section 3.
//! Wu, Wan, Iandola, Jin, Keutzer. "SqueezeDet". 2016. arXiv:1612.01051, is the survey's other reference; its modules are those of `fire`.
//! Differs from the paper: besides training from scratch, the starts above; batch norm and ReLU between the two are a choice (`norm`).
//!
//! ```
//! use briquette_compact_filters::inception_factor::{InceptionFactor, factored};
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([16, 9, 9], 1, &Device::flex());
//! let input = b.input();
//! let x = factored(&mut b, "block", input, Conv::new(16, 7).same(), true);
//! let x = b.conv("dense", x, Conv::new(16, 5).same());
//! b.global_avg_pool("mean", x);
//! let net = b.finish().unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 16 * 16 * (7 + 7) + 16 * 16 * 25);
//!
//! let method: InceptionFactor = serde_json::from_value(serde_json::json!({ "layers": ["dense"] })).unwrap();
//! let net = method.plan(net).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 16 * 16 * (7 + 7) + 16 * 16 * (9 + 9));
//! ```

use briquette_core::Padding;
use briquette_core::builder::{At, Builder, Conv};
use briquette_core::error::{Error, Result};
use briquette_core::net::Node;
use briquette_parts::algebra::{Matrix, svd};
use serde::Deserialize;

use crate::chosen::Init;
use crate::rewriting::{Compact, Rewriting, Site, linear, normalized, vanishes};

/// Replaces convolutions by two of smaller kernels.
pub type InceptionFactor = Rewriting<Factors>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Factors {
    /// Whether batch norm and ReLU stand between the two convolutions.
    #[serde(default)]
    norm: bool,
    /// Steps of the fit of two 3 by 3.
    #[serde(default = "ten")]
    steps: usize,
}

fn ten() -> usize {
    10
}

/// Appends the pair for `conv`, named after the kernels: `name.3x3a` and `name.3x3b`, or such as `name.1x7` and `name.7x1`; with `norm` batch
/// norm and ReLU between them. Those behind the block are the caller's.
pub fn factored(b: &mut Builder, name: &str, at: At, conv: Conv, norm: bool) -> At {
    let channels = b.shape(at)[0];
    pair(b, name, at, factors(conv, channels, norm, false), norm)
}

fn pair(b: &mut Builder, name: &str, at: At, [first, second]: [Conv; 2], norm: bool) -> At {
    let [one, other] = if first.kernel == second.kernel { ["a", "b"] } else { [""; 2] };
    let called = |conv: &Conv, ending: &str| format!("{name}.{}x{}{ending}", conv.kernel[0], conv.kernel[1]);
    let before = called(&first, one);
    let mut x = b.conv(&before, at, first);
    if norm {
        x = normalized(b, &before, x);
    }
    b.conv(&called(&second, other), x, second)
}

/// The two convolutions in the place of one. `whole` gives all padding to the first of two 3 by 3.
fn factors(conv: Conv, channels: usize, norm: bool, whole: bool) -> [Conv; 2] {
    let (Padding([rows, columns]), [height, width]) = (conv.padding, conv.kernel);
    let (mut first, mut second) = (Conv { bias: false, ..conv }, conv);
    if conv.kernel == STACKED {
        let before = |sides: [usize; 2]| sides.map(|side| if whole { side } else { side.div_ceil(2) });
        let behind = |sides: [usize; 2]| [0, 1].map(|end| sides[end] - before(sides)[end]);
        first = Conv { kernel: [SMALL; 2], stride: [1; 2], padding: Padding([rows, columns].map(before)), ..first };
        second = Conv { kernel: [SMALL; 2], padding: Padding([rows, columns].map(behind)), ..second };
    } else {
        let [vertical, horizontal] = conv.stride;
        first = Conv { kernel: [1, width], stride: [1, horizontal], padding: Padding([[0; 2], columns]), ..first };
        second = Conv { kernel: [height, 1], stride: [vertical, 1], padding: Padding([rows, [0; 2]]), ..second };
    }
    if conv.kernel == STACKED {
        first.filters = (channels as f64 * conv.filters as f64).sqrt().round() as usize;
    }
    if !norm {
        first.filters = first.filters.min(channels * first.kernel.iter().product::<usize>());
    }
    [first, second]
}

/// The kernel that becomes two squares.
const STACKED: [usize; 2] = [5; 2];
/// Their side.
const SMALL: usize = 3;

impl Factors {
    fn pair(&self, site: &Site) -> [Conv; 2] {
        factors(site.conv, site.channels, self.norm, site.init == Init::Fit)
    }
}

impl Compact for Factors {
    const NAME: &'static str = "inception-factor";
    const PAPER: &'static str = "Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016, arXiv:1512.00567; \
                                  Wu, Wan, Iandola, Jin, Keutzer, 2016, arXiv:1612.01051";
    const EXAMPLE: &'static str = "tune = { epochs = 10 }";

    fn check(&self, init: Init) -> Result<()> {
        if self.steps == 0 {
            return Err(Error::Invalid("`steps` is 0; the fit takes 1 or more".into()));
        }
        linear(self.norm, init)
    }

    fn width(&self, site: &Site) -> std::result::Result<usize, String> {
        match site.conv.kernel {
            [1, _] | [_, 1] => Err("has a kernel of one row or column, which has no two factors".into()),
            _ => Ok(self.pair(site)[0].filters),
        }
    }

    fn build(&self, b: &mut Builder, name: &str, at: At, site: &Site) -> At {
        pair(b, name, at, self.pair(site), self.norm)
    }

    fn fit(&self, site: &Site, weight: &[f32], block: &[Node]) -> Vec<Vec<f32>> {
        let (filters, channels, maps) = (site.conv.filters, site.channels, self.pair(site)[0].filters);
        let start = block[0].weight().expect("the first is a convolution").values();
        if site.conv.kernel == STACKED {
            return stacked(weight, [filters, channels, maps], &start, self.steps);
        }
        let [height, width] = site.conv.kernel;
        let found = svd(&Matrix::from_fn(channels * width, filters * height, |row, column| {
            let ([c, j], [n, i]) = ([row / width, row % width], [column / height, column % height]);
            f64::from(weight[((n * channels + c) * height + i) * width + j])
        }));
        let none = |map: usize| vanishes(found.s[map], found.s[0]);
        let scaled = |value: f64, map: usize| if none(map) { 0.0 } else { (value * found.s[map].sqrt()) as f32 };
        // Where both were zero, neither would learn.
        let first = (0..maps * channels * width).map(|at| match (at / (channels * width), at % (channels * width)) {
            (map, _) if none(map) => start[at],
            (map, row) => scaled(found.u[(row, map)], map),
        });
        let second = (0..filters * maps * height).map(|at| {
            let (n, map, i) = (at / (maps * height), at / height % maps, at % height);
            scaled(found.v[(n * height + i, map)], map)
        });
        vec![first.collect(), second.collect()]
    }

    fn shorten(&mut self) {
        self.steps = self.steps.min(2);
    }
}

/// The two kernels `A` `[maps, channels, 3, 3]` and `B` `[filters, maps, 3, 3]` after so many steps from `A = start`, both of the same norm.
fn stacked(weight: &[f32], [filters, channels, maps]: [usize; 3], start: &[f32], steps: usize) -> Vec<Vec<f32>> {
    let (taps, area) = (SMALL * SMALL, STACKED[0] * STACKED[1]);
    let target = |n: usize, c: usize, tap: usize| f64::from(weight[(n * channels + c) * area + tap]);
    let by_channel = Matrix::from_fn(channels * area, filters, |row, n| target(n, row / area, row % area));
    let by_filter = Matrix::from_fn(filters * area, channels, |row, c| target(row / area, c, row % area));
    // Columns of both are the taps of each map.
    let mut first =
        Matrix::from_fn(maps * taps, channels, |row, c| f64::from(start[(row / taps * channels + c) * taps + row % taps]));
    let mut second = least_squares(&shifted(&first, maps), &by_channel);
    for _ in 1..steps {
        // The other of two that are both zero would not learn.
        if second.norm() == 0.0 {
            break;
        }
        first = least_squares(&shifted(&second, maps), &by_filter);
        second = least_squares(&shifted(&first, maps), &by_channel);
    }
    let balance = (second.norm() / first.norm()).sqrt();
    let balance = if balance.is_normal() { balance } else { 1.0 };
    let value = |matrix: &Matrix, map: usize, tap: usize, outer: usize, by: f64| (matrix[(map * taps + tap, outer)] * by) as f32;
    let first =
        (0..maps * channels * taps).map(|at| value(&first, at / (channels * taps), at % taps, at / taps % channels, balance));
    let second =
        (0..filters * maps * taps).map(|at| value(&second, at / taps % maps, at % taps, at / (maps * taps), 1.0 / balance));
    vec![first.collect(), second.collect()]
}

/// For one kernel `[(map, tap), outer]` the matrix `[(outer, place), (map, tap)]` by which the other's taps make the large kernel: at each
/// place the tap of the first that is left when the other's is taken.
fn shifted(kernel: &Matrix, maps: usize) -> Matrix {
    let (taps, area) = (SMALL * SMALL, STACKED[0] * STACKED[1]);
    Matrix::from_fn(kernel.ncols() * area, maps * taps, |row, column| {
        let (outer, place, map, tap) = (row / area, row % area, column / taps, column % taps);
        let left = |place: usize, tap: usize| place.checked_sub(tap).filter(|left| *left < SMALL);
        match (left(place / STACKED[1], tap / SMALL), left(place % STACKED[1], tap % SMALL)) {
            (Some(i), Some(j)) => kernel[(map * taps + i * SMALL + j, outer)],
            _ => 0.0,
        }
    })
}

/// `X` that minimizes `||D X - T||^2`, but for a share of `X` in the error so small that it only chooses among equals.
fn least_squares(design: &Matrix, target: &Matrix) -> Matrix {
    let (mut gram, right) = (design.tr_mul(design), design.tr_mul(target));
    let ridge = gram.trace() / gram.nrows() as f64 * 1e-10;
    for at in 0..gram.nrows() {
        gram[(at, at)] += ridge;
    }
    gram.cholesky().map_or_else(|| Matrix::zeros(right.nrows(), right.ncols()), |gram| gram.solve(&right))
}

#[cfg(test)]
mod tests {
    use briquette_core::cost::Cost;
    use briquette_handmade::{refusal, run};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::rewriting::proof::{self, holds, keeps, learns, learns_from_zeros};

    #[test]
    fn a_replaced_layer_is_planned_stored_and_trained() {
        for settings in [json!({}), json!({ "init": "random" }), json!({ "norm": true, "init": "random" })] {
            for kernel in [3, 5] {
                holds::<InceptionFactor>(kernel, &settings);
                learns::<InceptionFactor>(kernel, &settings);
            }
        }
    }

    /// `inception.factor` of the reference values.
    #[test]
    fn weights_fall_by_the_papers_ratios_at_equal_width() {
        for (kernel, ratio) in [(5, 25.0 / 18.0), (7, 3.5), (3, 1.5)] {
            let mut b = Builder::new([24, 9, 9], 1, &Device::flex());
            let x = b.conv("mix", b.input(), Conv::new(24, kernel).same());
            b.global_avg_pool("mean", x);
            let net = b.finish().unwrap();
            let before = Cost::of(&net).unwrap();
            let after = Cost::of(&proof::planned::<InceptionFactor>(net, &json!({ "init": "random" }))).unwrap();
            assert_eq!(before.weights() as f64 / after.weights() as f64, ratio);
            assert_eq!(before.macs() as f64 / after.macs() as f64, ratio);
        }
    }

    #[test]
    fn a_pair_in_the_place_of_zeros_learns() {
        learns_from_zeros::<InceptionFactor>(3);
        learns_from_zeros::<InceptionFactor>(5);
    }

    #[test]
    fn as_many_maps_as_the_rank_change_nothing() {
        let conv = Conv { stride: [2, 1], padding: Padding([[1, 0], [2, 1]]), dilation: [1, 2], ..Conv::new(12, 3) };
        for bias in [true, false] {
            keeps::<InceptionFactor>(Conv { bias, ..conv }, &json!({}));
        }
    }

    /// On one channel nine maps, of which 81 filters make that many, can be the taps of the first kernel, with which the second makes any
    /// kernel of 5 by 5.
    #[test]
    fn two_squares_are_the_large_kernel_at_the_borders_too() {
        let conv = Conv { stride: [1, 2], padding: Padding([[1, 3], [2, 4]]), ..Conv::new(81, 5) };
        let kernel: Vec<f32> = (0..81 * 25).map(|i| ((i * i * 7 + 3) % 1009) as f32 / 500.0 - 1.0).collect();
        for conv in [conv, Conv { dilation: [1, 2], ..conv }] {
            let dense = proof::alone([1, 4, 4], conv, &kernel);
            let pair = run::<InceptionFactor>(dense.deep_clone(), json!({ "layers": ["mix"] })).unwrap();
            let x: Vec<f32> = (0..16).map(|i| ((i * i * 5 + 1) % 13) as f32 - 6.0).collect();
            proof::near(&proof::output(&pair, &x), &proof::output(&dense, &x));
        }
    }

    #[test]
    fn the_error_of_two_squares_falls_with_each_step() {
        let [filters, channels, maps] = [3, 4, 3];
        let wave = |i: usize| ((i * i * 7 + 3) % 17) as f32 / 8.0 - 1.0;
        let weight: Vec<f32> = (0..filters * channels * 25).map(wave).collect();
        let start: Vec<f32> = (0..maps * channels * 9).map(|i| wave(i + 5)).collect();
        let error = |steps: usize| {
            let [first, second] = &stacked(&weight, [filters, channels, maps], &start, steps)[..] else { panic!("two kernels") };
            let mut off = weight.clone();
            for at in 0..filters * channels * maps * 81 {
                let (q, r, m, c, n) = (at % 9, at / 9 % 9, at / 81 % maps, at / 81 / maps % channels, at / 81 / maps / channels);
                let place = (q / 3 + r / 3) * 5 + q % 3 + r % 3;
                off[(n * channels + c) * 25 + place] -= second[(n * maps + m) * 9 + q] * first[(m * channels + c) * 9 + r];
            }
            off.iter().map(|off| off * off).sum::<f32>()
        };
        let errors = [1, 2, 3, 10, 40].map(error);
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{errors:?}");
        assert!(errors[4] < 0.8 * errors[0], "{errors:?}");
    }

    #[test]
    fn layers_and_settings_without_sense_are_refused() {
        let refused = |net, settings| refusal::<InceptionFactor>(net, settings);
        assert!(refused(proof::net(3), json!({ "norm": true })).starts_with("`norm` puts a rectifier between"));
        assert_eq!(refused(proof::net(5), json!({ "steps": 0 })), "`steps` is 0; the fit takes 1 or more");
        let row = proof::alone([1, 4, 4], Conv { kernel: [1, 3], ..Conv::new(8, 3) }, &[]);
        let why = refused(row, json!({ "layers": ["mix"] }));
        assert_eq!(why, "node 'mix': has a kernel of one row or column, which has no two factors");
        let wide = proof::alone([1, 4, 4], Conv::new(8, 3), &[]);
        assert!(refused(wide, json!({})).starts_with("node 'mix': has 80 parameters"));
    }
}
