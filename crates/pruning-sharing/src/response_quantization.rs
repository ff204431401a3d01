//! Quantized CNN: product quantization that minimizes the error of a layer's response.
//!
//! What is stored is that of [product quantization](crate::product_quantization) in one stage, but centroids and indices minimize
//! `sum_n |y_n - Q x_n|^2` over sampled inputs `x` of the layer, with `y` the response of the network before any quantization. Layer follows
//! layer, each seeing its inputs as the quantized layers before it make them, so that it also corrects their errors. With `A = sum x x^T` and
//! `T = sum y x^T`, the error of a block `m` given all others depends, in row `r`, on `d^T A_mm d - 2 d . g_r` with
//! `g_r = T_{r,m} - sum over m' of q_{r,m'} A_{m',m}`, where `d` is the row's centroid and `m'` runs through the other blocks. Block by block
//! each row goes to its best centroid, and each centroid becomes `A_mm^-1` times the mean `g` of its rows, from the start of plain product
//! quantization: no step raises the error.
//!
//! Wu, Leng, Wang, Hu, Cheng. "Quantized Convolutional Neural Networks for Mobile Devices". CVPR 2016. arXiv:1512.06473.
//! Differs from the paper: a convolution's blocks run over its taps, channel after channel, instead of over channels at each tap; second
//! moments of the sample take the place of the sample; centroids may be trained afterwards.
//!
//! ```
//! use briquette_core::pass::{Context, Data, Pass, Silent};
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::response_quantization::ResponseQuantization;
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

use std::collections::BTreeMap;

use briquette_core::Layer;
use briquette_core::coding::{Coding, Source};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Context, Method, Pass};
use briquette_core::training::{Recipe, tune};
use briquette_runtime::Product;
use rayon::prelude::*;
use serde::Deserialize;

use crate::parts::codebooks::recode_layers;
use crate::parts::patches::{Moments, Sample, moments, solve};
use crate::parts::products::Products;
use crate::parts::vectors::{Pieces, quantize};

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
        let sample = Sample { images: self.calibration_images, positions: self.positions };
        let original = net.deep_clone();
        let mut net = net;
        for (layer, pieces) in self.layers(&original)? {
            let moments = moments(&net, &original, layer, 1, sample, Self::NAME, cx)?;
            let product = refined(&moments, plain(&original, layer, pieces, cx.seed));
            net = with_product(net, layer, product)?;
        }
        tune(net, self.products.tune.as_ref(), cx)
    }

    /// As plain product quantization.
    fn plan(&self, net: Net) -> Result<Net> {
        if self.calibration_images == 0 || self.positions == 0 {
            return Err(Error::Invalid(format!("{}: `calibration-images` and `positions` must be at least 1", Self::NAME)));
        }
        let layers = self.layers(&net)?;
        layers.into_iter().try_fold(net, |net, (layer, pieces)| {
            let product = plain(&net, layer, pieces, 0);
            with_product(net, layer, product)
        })
    }

    fn recipes(&mut self) -> Vec<&mut Recipe> {
        self.products.recipes()
    }

    fn shorten(&mut self) {
        self.calibration_images = self.calibration_images.min(50);
    }
}

impl ResponseQuantization {
    fn layers(&self, net: &Net) -> Result<Vec<(usize, Pieces)>> {
        let layers = self.products.layers(net, Self::NAME, 1)?;
        for node in layers.iter().map(|(layer, _)| &net.nodes[*layer]) {
            if matches!(node.op.layer(), Layer::Conv2d { groups, .. } if groups > 1) {
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

    /// The sum of the squared errors of the response, less that of `y` itself, which no weight changes: `Q A Q^T - 2 T Q^T`.
    fn error(&self) -> f64 {
        let terms = self.weights.iter().zip(&self.missing).zip(&self.moments.targets);
        -terms.map(|((w, missing), target)| w * (missing + target)).sum::<f64>()
    }

    /// New indices and centroids of one block, given all others.
    fn improve(&mut self, product: &mut Product, block: usize) {
        let (columns, rows, start) = (self.columns, product.rows(), block * product.width);
        let width = product.width.min(columns - start);
        let inputs = &self.moments.inputs[start * columns..(start + width) * columns];
        let own: Vec<f64> = inputs.chunks_exact(columns).flat_map(|row| &row[start..start + width]).copied().collect();
        let pulls: Vec<Vec<f64>> = self
            .weights
            .chunks_exact(columns)
            .zip(self.missing.chunks_exact(columns))
            .map(|(weights, missing)| {
                let mut pull = missing[start..start + width].to_vec();
                let products = weights[start..start + width].iter().zip(own.chunks_exact(width));
                products.for_each(|(w, inputs)| subtract(&mut pull, -w, inputs));
                pull
            })
            .collect();

        let stage = &mut product.stages[0];
        let k = stage.centroids.len() / columns;
        let centroids = &mut stage.centroids[k * start..k * (start + width)];
        let indices = &mut stage.indices[block * rows..(block + 1) * rows];
        let mut wide: Vec<Vec<f64>> = centroids.chunks_exact(width).map(|c| c.iter().map(|c| f64::from(*c)).collect()).collect();
        let energy = |d: &Vec<f64>| own.chunks_exact(width).zip(d).map(|(row, d_i)| d_i * dot(row, d)).sum::<f64>();
        let energies: Vec<f64> = wide.iter().map(energy).collect();
        for (index, pull) in indices.iter_mut().zip(&pulls) {
            let cost = |c: usize| energies[c] - 2.0 * dot(&wide[c], pull);
            let now = (*index as usize, cost(*index as usize));
            *index = (0..k).fold(now, |best, c| if cost(c) < best.1 { (c, cost(c)) } else { best }).0 as u16;
        }

        let mut sums = vec![(vec![0.0; width], 0.0_f64); k];
        for (&index, pull) in indices.iter().zip(&pulls) {
            let (sum, members) = &mut sums[index as usize];
            subtract(sum, -1.0, pull);
            *members += 1.0;
        }
        let used: Vec<usize> = (0..k).filter(|c| sums[*c].1 > 0.0).collect();
        let mean = |c: &usize| (sums[*c].0.iter().map(|sum| sum / sums[*c].1).collect(), wide[*c].clone());
        let solved = solve(own.clone(), used.iter().map(mean).collect());
        for (c, solved) in used.into_iter().zip(solved) {
            let stored = &mut centroids[c * width..(c + 1) * width];
            stored.iter_mut().zip(&solved).for_each(|(c, d)| *c = *d as f32);
            wide[c] = stored.iter().map(|c| f64::from(*c)).collect();
        }
        let rows = self.weights.par_chunks_exact_mut(columns).zip(self.missing.par_chunks_exact_mut(columns));
        rows.zip(&*indices).for_each(|((weights, missing), &index)| {
            let changed = weights[start..start + width].iter_mut().zip(&wide[index as usize]).zip(inputs.chunks_exact(columns));
            for ((w, new), inputs) in changed {
                subtract(missing, new - *w, inputs);
                *w = *new;
            }
        });
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
fn refined(moments: &Moments, start: Product) -> Product {
    let mut response = Response::of(moments, &start.values());
    let (mut product, mut last) = (start, response.error());
    for _ in 0..SWEEPS {
        let mut next = product.clone();
        (0..next.blocks()).for_each(|block| response.improve(&mut next, block));
        let now = response.error();
        if last - now <= ENOUGH * last.abs() {
            break;
        }
        (product, last) = (next, now);
    }
    product
}

/// Rounds through all blocks.
const SWEEPS: usize = 20;

/// Gain of a round, relative to the error, below which it does not count.
const ENOUGH: f64 = 1e-4;

#[cfg(test)]
mod tests {
    use briquette_core::pass::Silent;
    use serde_json::json;

    use super::*;
    use crate::handmade::{context, images, outputs, refusal, run, small, stirred};
    use crate::parts::products::proof::refuses;
    use crate::product_quantization::ProductQuantization;

    const SAMPLE: Sample = Sample { images: 40, positions: 10 };

    /// For each layer the error of its response, on the inputs that it has in the refined network, of plain product quantization and of
    /// the refined one.
    fn errors(centroids: usize, width: usize) -> Vec<[f64; 2]> {
        let (data, mut silent) = (images(), Silent);
        let (original, mut net) = (stirred(), stirred());
        let mut found = Vec::new();
        for layer in original.weighted().map(|(layer, _)| layer).collect::<Vec<_>>() {
            let cx = &mut context(&data, &mut silent);
            let moments = moments(&net, &original, layer, 1, SAMPLE, "response", cx).unwrap();
            let start = plain(&original, layer, Pieces { width, centroids, stages: 1 }, 3);
            let refined = refined(&moments, start.clone());
            found.push([&start, &refined].map(|product| Response::of(&moments, &product.values()).error()));
            net = with_product(net, layer, refined).unwrap();
        }
        found
    }

    #[test]
    fn the_response_is_never_further_off_than_that_of_plain_product_quantization() {
        for (centroids, width) in [(1, 1), (1, 4), (2, 1), (2, 3), (3, 2), (3, 4)] {
            let errors = errors(centroids, width);
            assert!(errors.iter().all(|[plain, refined]| refined <= plain), "{centroids}, {width}: {errors:?}");
            assert!(errors.iter().any(|[plain, refined]| refined < plain), "{centroids}, {width}: {errors:?}");
        }
    }

    #[test]
    fn the_error_is_that_of_the_response() {
        let (data, mut silent) = (images(), Silent);
        let (net, layer) = (stirred(), stirred().index("fc1").unwrap());
        let found = moments(&net, &net, layer, 1, SAMPLE, "response", &mut context(&data, &mut silent)).unwrap();
        let own = net.nodes[layer].weight().unwrap().values();
        // (W x)^2 - 2 y W x = -y^2 for W x = y, and 0 for W = 0; anything else lies above.
        let least = Response::of(&found, &own).error();
        let off = |by: f32| Response::of(&found, &own.iter().map(|w| w * by).collect::<Vec<_>>()).error();
        assert!(least < 0.0 && off(0.0) == 0.0);
        // Of (1 + e) W the error is e^2 y^2.
        for e in [-0.5, 0.1, 1.0] {
            let grown = f64::from(e * e) * least.abs();
            assert!((off(1.0 + e) - least - grown).abs() < 1e-3 * least.abs(), "{e}");
        }
    }

    #[test]
    fn outputs_come_nearer_at_equal_bits() {
        let settings = json!({ "centroids": 2, "width": 4 });
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
        let large = refusal::<ResponseQuantization>(small(), json!({ "centroids": 2, "width": 2, "memory-mib": 0 }));
        let facts = "node 'conv1': the moments of its 4 inputs take 1 MiB, `memory-mib` allows 0; ";
        assert_eq!(large, format!("{facts}raise it, or leave the layer to product-quantization"));
        let masked = crate::magnitude::prune(small(), |_| Some(0.5));
        let masked = refusal::<ResponseQuantization>(masked, json!({ "centroids": 2, "width": 2 }));
        assert_eq!(masked, "node 'conv1': its weights are masked; put response-quantization before the pass that does so");
    }
}
