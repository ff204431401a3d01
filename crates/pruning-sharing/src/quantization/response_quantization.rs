//! Quantized CNN: product quantization that minimizes the error of a layer's response.
//!
//! What is stored is that of [product quantization](crate::quantization::product_quantization) in one stage, a convolution's blocks lying over its channels
//! with centroids that all taps share, but centroids and indices minimize `sum_n |y_n - Q x_n|^2` over sampled inputs `x` of the layer, with `y`
//! the response of the network before any quantization. Layer follows layer, each seeing its inputs as the quantized layers before it make
//! them, so that it also corrects their errors.
//!
//! With `A = sum x x^T` and `T = sum y x^T`, the error depends on the centroid `d` of output `r` and tap `t` in a block, given all others, as
//! `d^T A_tt d - 2 d . g_rt`, where `A_tt` are the rows and columns of `A` for that tap and block and `g_rt = T_rt - sum q A` over all other
//! weights `q` of the output. Block by block, each output and tap goes to its best centroid. Then each centroid in turn becomes the solution
//! `H^-1 b` of its own least squares: over the outputs that have it, at the set of taps `S` in each, `H = sum of A_tt'` with `t` and `t'` in `S`,
//! and `b = sum of g` against all weights but those of `S`. No step raises the error, from the start of plain product quantization; sweeps over
//! all blocks end when one gains less than a ten-thousandth of the error.
//!
//! Wu, Leng, Wang, Hu, Cheng. "Quantized Convolutional Neural Networks for Mobile Devices". CVPR 2016. arXiv:1512.06473.
//! Differs from the paper: second moments of the sample take the place of the sample; centroids may be trained afterwards. With
//! `share-taps = false` a convolution's blocks run over its taps, channel after channel, each with centroids of its own.
//!
//! ```
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::quantization::response_quantization::ResponseQuantization;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let mut host = Silent;
//! let method: ResponseQuantization = serde_json::from_value(serde_json::json!({ "centroids": { "fc2": 4 }, "width": 5 }))?;
//! let quantized = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! let weight = quantized.nodes[quantized.index("fc2").unwrap()].weight().unwrap();
//! let mut first: Vec<f32> = weight.values().chunks(30).map(|row| row[0]).collect();
//! first.sort_by(f32::total_cmp);
//! first.dedup();
//! assert!(first.len() <= 4);
//! # Ok(())
//! # }
//! ```

use briquette_runtime::layers;
use std::collections::BTreeMap;

use briquette_core::Layer;
use briquette_core::coding::{Coding, Source};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Method, Pass};
use briquette_core::training::tune;
use briquette_runtime::Product;
use rayon::prelude::*;
use serde::Deserialize;

use crate::quantization::products::Products;
use briquette_parts::codebooks::recode_layers;
use briquette_parts::moments::{Moments, Reading, Sample, moments, solve};
use briquette_parts::vectors::{Pieces, quantize};

/// Puts the weights of each layer together from centroids of blocks, by the error of its response.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ResponseQuantization {
    /// Which layers, how they are cut up, and the training of the centroids.
    #[serde(flatten)]
    products: Products,
    /// Training images that responses are sampled from.
    #[serde(default = "images")]
    calibration_images: usize,
    /// Places of a convolution's response in an image.
    #[serde(default = "positions")]
    positions: usize,
    /// Most memory for the moments of one layer's inputs and responses, in MiB.
    #[serde(default = "gibi")]
    memory_mib: usize,
}

fn images() -> usize {
    500
}

fn positions() -> usize {
    10
}

fn gibi() -> usize {
    1 << 10
}

impl Method for ResponseQuantization {
    const NAME: &'static str = "response-quantization";
    const FAMILY: &'static str = "quantization and binarization";
    const PAPER: &'static str = "Wu, Leng, Wang, Hu, Cheng, CVPR 2016, arXiv:1512.06473";
    const EXAMPLE: &'static str = "centroids = { fc = 8 }\nwidth = 4";
}

impl Pass for ResponseQuantization {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let sample = Sample { images: self.calibration_images, positions: self.positions, hold_back: false };
        let original = net.deep_clone();
        let mut net = net;
        for (layer, pieces) in self.layers(&original)? {
            let moments = moments(&net, &original, &Reading::whole(&net, layer), sample, Self::NAME, cx)?;
            let product = refined(&moments, plain(&original, layer, pieces, cx.seed));
            net = with_product(net, layer, product)?;
        }
        tune(net, self.products.tune.as_ref(), cx)
    }

    /// As plain product quantization.
    fn plan(&self, net: Net) -> Result<Net> {
        let layers = self.layers(&net)?;
        layers.into_iter().try_fold(net, |net, (layer, pieces)| {
            let product = plain(&net, layer, pieces, 0);
            with_product(net, layer, product)
        })
    }

    fn shorten(&mut self) {
        self.calibration_images = self.calibration_images.min(50);
    }
}

impl ResponseQuantization {
    fn layers(&self, net: &Net) -> Result<Vec<(usize, Pieces)>> {
        if self.calibration_images == 0 || self.positions == 0 {
            return Err(Error::Invalid(format!("{}: `calibration-images` and `positions` must be at least 1", Self::NAME)));
        }
        let layers = self.products.layers(net, Self::NAME, 1, true)?;
        for node in layers.iter().map(|(layer, _)| &net.nodes[*layer]) {
            if matches!(node.op.layer(), Layer::Conv2d(layers::Conv2d { groups, .. }) if groups > 1) {
                let detail = "its channels are in groups that see different inputs; leave it to product-quantization";
                return Err(Error::node(&node.name, detail));
            }
            if node.weight().is_some_and(|weight| weight.coding.mask.is_some()) {
                let detail = format!("its weights are masked; put {} before the pass that does so", Self::NAME);
                return Err(Error::node(&node.name, detail));
            }
            let Some(shape) = node.op.weight_shape() else { continue };
            let (rows, columns) = (shape[0] as u128, shape[1..].iter().product::<usize>() as u128);
            // Moments of the inputs; weights, targets and what is missing.
            let mib = (8 * columns * (columns + 3 * rows)).div_ceil(1 << 20);
            if mib > self.memory_mib as u128 {
                let detail = format!(
                    "the moments of its {columns} inputs take {mib} MiB, `memory-mib` allows {}; raise it, or leave the layer to product-quantization",
                    self.memory_mib
                );
                return Err(Error::node(&node.name, detail));
            }
        }
        Ok(layers)
    }
}

/// Plain product quantization of a layer.
fn plain(net: &Net, layer: usize, pieces: Pieces, seed: u64) -> Product {
    let (values, outputs) = net.nodes[layer].weight().map_or((Vec::new(), 1), |weight| (weight.values(), weight.shape[0]));
    quantize(&values, values.len() / outputs, pieces, seed)
}

fn with_product(net: Net, layer: usize, product: Product) -> Result<Net> {
    let source = Source::Product { product, transposed: false };
    recode_layers(net, BTreeMap::from([(layer, Coding { mask: None, source })]))
}

/// Weights, and what the response still misses of its target along each input.
struct Response<'a> {
    moments: &'a Moments,
    columns: usize,
    /// `Q`, row by row.
    weights: Vec<f64>,
    /// `T - Q A`, row by row.
    missing: Vec<f64>,
}

impl<'a> Response<'a> {
    fn of(moments: &'a Moments, weights: &[f32]) -> Self {
        let columns = moments.inputs.len().isqrt();
        let weights: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        let mut missing = moments.targets.clone();
        missing.par_chunks_exact_mut(columns).zip(weights.par_chunks_exact(columns)).for_each(|(missing, weights)| {
            weights.iter().zip(moments.inputs.chunks_exact(columns)).for_each(|(w, inputs)| subtract(missing, *w, inputs));
        });
        Self { moments, columns, weights, missing }
    }

    /// The sum of the squared errors of the response, `|y|^2 + Q A Q^T - 2 T Q^T`.
    fn error(&self) -> f64 {
        let terms = self.weights.iter().zip(&self.missing).zip(&self.moments.targets);
        self.moments.squares - terms.map(|((w, missing), target)| w * (missing + target)).sum::<f64>()
    }

    /// New indices and centroids of one block, given all others.
    fn improve(&mut self, product: &mut Product, block: usize) {
        let (columns, inputs, taps) = (self.columns, &self.moments.inputs, product.taps);
        let start = block * product.width;
        let width = product.width.min(product.columns - start);
        // Where the block's weights stand among those of an output, tap after tap.
        let places: Vec<usize> = (0..taps).flat_map(|tap| (start..start + width).map(move |c| c * taps + tap)).collect();
        let pick = |values: &[f64]| -> Vec<f64> { places.iter().map(|&place| values[place]).collect() };
        let moments: Vec<f64> = places.iter().flat_map(|&place| pick(&inputs[place * columns..][..columns])).collect();
        let own = Block { width, taps, moments };
        let rows = self.weights.par_chunks_exact(columns).zip(self.missing.par_chunks_exact(columns));
        let mut rows: Vec<Output> = rows.map(|(weights, missing)| own.output(pick(weights), &pick(missing))).collect();

        let all = product.rows();
        let stage = &mut product.stages[0];
        let k = stage.centroids.len() / product.columns;
        let centroids = &mut stage.centroids[k * start..k * (start + width)];
        let indices = &mut stage.indices[block * all..(block + 1) * all];
        own.assign(centroids, indices, &mut rows);
        own.solve(centroids, indices, &mut rows);

        let changed = self.weights.par_chunks_exact_mut(columns).zip(self.missing.par_chunks_exact_mut(columns)).zip(&rows);
        changed.for_each(|((weights, missing), row)| {
            for (&place, new) in places.iter().zip(&row.weights) {
                let by = new - weights[place];
                if by != 0.0 {
                    subtract(missing, by, &inputs[place * columns..][..columns]);
                    weights[place] = *new;
                }
            }
        });
    }
}

/// One block of the matrix: the columns of some channels at all taps that share its centroids.
struct Block {
    width: usize,
    taps: usize,
    /// The moments of the block's inputs, tap after tap, row by row.
    moments: Vec<f64>,
}

/// One output's share of a block.
struct Output {
    /// Tap after tap.
    weights: Vec<f64>,
    /// The correlation of the block's inputs with what the weights of all other blocks leave of the target.
    pull: Vec<f64>,
}

impl Block {
    fn output(&self, weights: Vec<f64>, missing: &[f64]) -> Output {
        let rows = self.moments.chunks_exact(weights.len());
        let pull = missing.iter().zip(rows).map(|(missing, moments)| missing + dot(moments, &weights)).collect();
        Output { weights, pull }
    }

    /// The moments of the inputs of a tap with those of another, row by row.
    fn between(&self, tap: usize, other: usize) -> impl Iterator<Item = &[f64]> {
        let size = self.width * self.taps;
        let rows = self.moments[tap * self.width * size..].chunks_exact(size).take(self.width);
        rows.map(move |row| &row[other * self.width..][..self.width])
    }

    /// What the weights of an output, all but those of these taps, leave for one of them.
    fn left(&self, output: &Output, tap: usize, taps: &[usize]) -> Vec<f64> {
        let mut left = output.pull[tap * self.width..][..self.width].to_vec();
        for other in (0..self.taps).filter(|other| !taps.contains(other)) {
            let weights = &output.weights[other * self.width..][..self.width];
            left.iter_mut().zip(self.between(tap, other)).for_each(|(left, moments)| *left -= dot(moments, weights));
        }
        left
    }

    /// Each output and tap takes its best centroid, given the other taps.
    fn assign(&self, centroids: &[f32], indices: &mut [u16], outputs: &mut [Output]) {
        let wide: Vec<f64> = centroids.iter().map(|c| f64::from(*c)).collect();
        let wide: Vec<&[f64]> = wide.chunks_exact(self.width).collect();
        let energy = |tap: usize, d: &[f64]| self.between(tap, tap).zip(d).map(|(row, d_i)| d_i * dot(row, d)).sum::<f64>();
        let energies: Vec<Vec<f64>> = (0..self.taps).map(|tap| wide.iter().map(|d| energy(tap, d)).collect()).collect();
        outputs.par_iter_mut().zip(indices.par_chunks_exact_mut(self.taps)).for_each(|(output, indices)| {
            for (tap, index) in indices.iter_mut().enumerate() {
                let left = self.left(output, tap, &[tap]);
                let cost = |c: usize| energies[tap][c] - 2.0 * dot(wide[c], &left);
                let now = (*index as usize, cost(*index as usize));
                let best = (0..wide.len()).map(|c| (c, cost(c))).fold(now, |best, new| if new.1 < best.1 { new } else { best });
                *index = best.0 as u16;
                output.weights[tap * self.width..][..self.width].copy_from_slice(wide[best.0]);
            }
        });
    }

    /// Each centroid in turn becomes what suits the outputs and taps that have it best, given the others.
    fn solve(&self, centroids: &mut [f32], indices: &[u16], outputs: &mut [Output]) {
        let width = self.width;
        // By centroid the outputs that have it, and at which taps.
        let mut members: Vec<Vec<(usize, Vec<usize>)>> = vec![Vec::new(); centroids.len() / width];
        for (row, index) in indices.iter().enumerate() {
            let (output, tap) = (row / self.taps, row % self.taps);
            match members[*index as usize].last_mut() {
                Some((last, taps)) if *last == output => taps.push(tap),
                _ => members[*index as usize].push((output, vec![tap])),
            }
        }
        for (centroid, members) in centroids.chunks_exact_mut(width).zip(members).filter(|(_, members)| !members.is_empty()) {
            let (mut matrix, mut side) = (vec![0.0; width * width], vec![0.0; width]);
            for (output, taps) in &members {
                for &tap in taps {
                    subtract(&mut side, -1.0, &self.left(&outputs[*output], tap, taps));
                    for &other in taps {
                        let rows = matrix.chunks_exact_mut(width).zip(self.between(tap, other));
                        rows.for_each(|(row, moments)| subtract(row, -1.0, moments));
                    }
                }
            }
            let error = |d: &[f64]| {
                matrix.chunks_exact(width).zip(d).map(|(row, d_i)| d_i * dot(row, d)).sum::<f64>() - 2.0 * dot(&side, d)
            };
            let old: Vec<f64> = centroid.iter().map(|c| f64::from(*c)).collect();
            let solved = solve(matrix.clone(), vec![(side.clone(), old.clone())]).remove(0);
            let new: Vec<f64> = solved.iter().map(|d| f64::from(*d as f32)).collect();
            if error(&new) >= error(&old) {
                continue;
            }
            centroid.iter_mut().zip(&new).for_each(|(c, d)| *c = *d as f32);
            for (output, taps) in members {
                for tap in taps {
                    outputs[output].weights[tap * width..][..width].copy_from_slice(&new);
                }
            }
        }
    }
}

/// Subtracts `factor` times `b` from `a`.
fn subtract(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a -= factor * b);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A product whose response has no greater error, by descent along one block after the other.
fn refined(moments: &Moments, mut product: Product) -> Product {
    let mut response = Response::of(moments, &product.values());
    let mut last = response.error();
    for _ in 0..SWEEPS {
        (0..product.blocks()).for_each(|block| response.improve(&mut product, block));
        let now = response.error();
        if last - now <= ENOUGH * last {
            break;
        }
        last = now;
    }
    product
}

/// The most rounds through all blocks.
const SWEEPS: usize = 50;

/// Gain of a round, relative to the error, after which there is no other.
const ENOUGH: f64 = 1e-4;

#[cfg(test)]
mod tests {
    use briquette_core::context::Silent;
    use serde_json::json;

    use super::*;
    use crate::quantization::product_quantization::ProductQuantization;
    use crate::quantization::products::proof::refuses;
    use briquette_handmade::{context, images, outputs, refusal, run, small, stirred};

    const SAMPLE: Sample = Sample { images: 40, positions: 10, hold_back: false };

    /// Centroids, width, and whether taps share centroids.
    const SETTINGS: [(usize, usize, bool); 9] = [
        (1, 1, false),
        (1, 4, false),
        (2, 1, false),
        (2, 3, false),
        (3, 2, false),
        (3, 4, false),
        (1, 4, true),
        (2, 3, true),
        (3, 2, true),
    ];

    /// The errors of a layer's response, on the inputs that it has in the refined network.
    struct Errors {
        /// After plain product quantization.
        plain: f64,
        refined: f64,
        /// From the start, after each sweep up to the first that gains no more than its share of the error.
        sweeps: Vec<f64>,
        /// Without any weights: the signal.
        signal: f64,
    }

    /// For each layer.
    fn errors(centroids: usize, width: usize, share: bool) -> Vec<Errors> {
        let (data, mut silent) = (images(), Silent);
        let (original, mut net) = (stirred(), stirred());
        let mut found = Vec::new();
        for layer in original.weighted().map(|(layer, _)| layer).collect::<Vec<_>>() {
            let cx = &mut context(&data, &mut silent);
            let moments = moments(&net, &original, &Reading::whole(&net, layer), SAMPLE, "response", cx).unwrap();
            let shape = original.nodes[layer].weight().unwrap().shape;
            let taps = if share { shape[2..].iter().product() } else { 1 };
            let start = plain(&original, layer, Pieces { width, centroids, stages: 1, taps }, 3);
            let refined = refined(&moments, start.clone());
            let (mut swept, mut response) = (start.clone(), Response::of(&moments, &start.values()));
            let mut sweeps = vec![response.error()];
            loop {
                (0..swept.blocks()).for_each(|block| response.improve(&mut swept, block));
                let (last, now) = (sweeps[sweeps.len() - 1], response.error());
                sweeps.push(now);
                if last - now <= ENOUGH * last || sweeps.len() > SWEEPS {
                    break;
                }
            }
            let of = |product: &Product| Response::of(&moments, &product.values()).error();
            found.push(Errors { plain: of(&start), refined: of(&refined), sweeps, signal: moments.squares });
            net = with_product(net, layer, refined).unwrap();
        }
        found
    }

    #[test]
    fn the_response_is_never_further_off_than_that_of_plain_product_quantization() {
        for (centroids, width, share) in SETTINGS {
            let errors = errors(centroids, width, share);
            assert!(errors.iter().all(|found| found.refined <= found.plain + 1e-12 * found.signal));
            assert!(errors.iter().any(|found| found.refined < found.plain), "{centroids}, {width}, {share}");
        }
    }

    #[test]
    fn sweeps_go_on_until_one_gains_little_of_the_error_that_is_left_and_that_one_counts() {
        let mut beyond_the_signal = 0;
        for Errors { refined, sweeps, signal, .. } in SETTINGS.into_iter().flat_map(|(c, w, share)| errors(c, w, share)) {
            let last = sweeps[sweeps.len() - 1];
            assert!((refined - last).abs() <= 1e-9 * signal, "{refined} and {sweeps:?}");
            assert!(sweeps.windows(2).all(|pair| pair[1] <= pair[0] + 1e-12 * signal), "{sweeps:?}");
            // Where signals are large, a ten-thousandth of them is not a small error.
            let early = sweeps.windows(2).find(|pair| pair[0] - pair[1] <= ENOUGH * signal).map_or(last, |pair| pair[0]);
            beyond_the_signal += usize::from(last < early - 1e-9 * signal);
        }
        assert!(beyond_the_signal > 0);
    }

    /// The block of a convolution has one centroid: what it is best for all taps and outputs follows from one system of equations.
    #[test]
    fn a_centroid_that_taps_share_solves_the_least_squares_of_all_of_them() {
        let (data, mut silent) = (images(), Silent);
        let (net, layer) = (stirred(), stirred().index("conv2").unwrap());
        let found =
            moments(&net, &net, &Reading::whole(&net, layer), SAMPLE, "response", &mut context(&data, &mut silent)).unwrap();
        let start = plain(&net, layer, Pieces { width: 4, centroids: 1, stages: 1, taps: 4 }, 3);
        let product = refined(&found, start);
        let error = |centroids: &[f32]| {
            let mut moved = product.clone();
            moved.stages[0].centroids.copy_from_slice(centroids);
            Response::of(&found, &moved.values()).error()
        };
        let own = &product.stages[0].centroids;
        let least = error(own);
        for (i, by) in (0..4).flat_map(|i| [(i, -0.01), (i, 0.01)]) {
            let mut other = own.clone();
            other[i] += by;
            assert!(error(&other) > least, "coordinate {i} by {by}");
        }
    }

    #[test]
    fn the_error_is_that_of_the_response() {
        let (data, mut silent) = (images(), Silent);
        let (net, layer) = (stirred(), stirred().index("fc1").unwrap());
        let found =
            moments(&net, &net, &Reading::whole(&net, layer), SAMPLE, "response", &mut context(&data, &mut silent)).unwrap();
        let own = net.nodes[layer].weight().unwrap().values();
        // None for W x = y, and y^2 for W = 0.
        let off = |by: f32| Response::of(&found, &own.iter().map(|w| w * by).collect::<Vec<_>>()).error();
        assert!(off(1.0).abs() < 1e-5 * found.squares && off(0.0) == found.squares);
        // Of (1 + e) W the error is e^2 y^2.
        for e in [-0.5, 0.1, 1.0] {
            let grown = f64::from(e * e) * found.squares;
            assert!((off(1.0 + e) - grown).abs() < 1e-3 * found.squares, "{e}");
        }
    }

    #[test]
    fn outputs_come_nearer_at_equal_bits() {
        let settings = json!({ "centroids": { "conv2": 2, "fc": 2 }, "width": 4, "share-taps": true });
        let gap = |net: &Net| -> f32 { outputs(net).iter().zip(outputs(&stirred())).map(|(a, b)| (a - b).powi(2)).sum() };
        let plain = run::<ProductQuantization>(stirred(), settings.clone()).unwrap();
        let refined = run::<ResponseQuantization>(stirred(), settings).unwrap();
        assert!(gap(&refined) < gap(&plain), "{} and {}", gap(&refined), gap(&plain));
    }

    #[test]
    fn settings_that_cannot_be_met_are_refused() {
        refuses::<ResponseQuantization>("response-quantization");
        let none = refusal::<ResponseQuantization>(small(), json!({ "centroids": 2, "width": 2, "calibration-images": 0 }));
        assert_eq!(none, "response-quantization: `calibration-images` and `positions` must be at least 1");
        let large = refusal::<ResponseQuantization>(small(), json!({ "centroids": 2, "width": 1, "memory-mib": 0 }));
        let facts = "node 'conv1': the moments of its 4 inputs take 1 MiB, `memory-mib` allows 0; ";
        assert_eq!(large, format!("{facts}raise it, or leave the layer to product-quantization"));
        let masked = crate::pruning::magnitude::prune(small(), |_| Some(0.5));
        let masked = refusal::<ResponseQuantization>(masked, json!({ "centroids": 2, "width": 1 }));
        assert_eq!(masked, "node 'conv1': its weights are masked; put response-quantization before the pass that does so");
    }
}
