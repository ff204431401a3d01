//! Channel pruning by the lasso.
//!
//! Chooses the channels of a layer by what the next one computes of them: with `z_c` the part that channel `c` contributes to the next
//! layer's output and `y` that output in the network before any cut, the factors `f` minimize
//! `sum over places and outputs of (y - sum_c f_c z_c)^2 / 2 + lambda sum_c |f_c|`, by coordinate descent, and `lambda` grows until no more
//! channels than wanted have a factor other than zero. The weights that read those channels are then fitted to `y` anew by least squares,
//! at `positions` places of each of `calibration-images` training images (of fully connected layers each image is one place), of which a tenth is held
//! back: where the fit misses more of those than the weights as they were, it is pulled back to them. Layer follows layer, each seeing its
//! inputs as the cuts before have left them.
//!
//! He, Zhang, Sun. "Channel Pruning for Accelerating Very Deep Neural Networks". ICCV 2017. arXiv:1707.06168.
//! Differs from the paper: `lambda` is found by bisection, the weights are not normalized, for a factor of 1 is the channel as it is, and
//! residual blocks are cut inside only, without sampling their input or correcting their output for the shortcut.
//!
//! ```
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::channel_lasso::ChannelLasso;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let mut host = Silent;
//! let method: ChannelLasso = serde_json::from_value(serde_json::json!({ "ratio": { "fc1": 0.5 } }))?;
//! let cut = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! assert_eq!(cut.weighted().filter_map(|(_, node)| Some(node.weight()?.shape[0])).collect::<Vec<_>>(), [15, 10, 10]);
//! # Ok(())
//! # }
//! ```

use briquette_parts::moments::{Contributions, Moments};

use crate::patches::{ByNextLayer, Choice};

/// Cuts the channels that a lasso on the next layer's output leaves out, physically, and fits the next layer to the rest.
pub type ChannelLasso = ByNextLayer<Lasso>;

/// The choice of [`ChannelLasso`].
#[derive(Debug)]
pub struct Lasso;

impl Choice for Lasso {
    const NAME: &'static str = "channel-lasso";
    const PAPER: &'static str = "He, Zhang, Sun, ICCV 2017, arXiv:1707.06168";
    const IMAGES: usize = 5000;

    fn choose(moments: &Moments, count: usize) -> (Vec<bool>, Vec<f64>) {
        let stays = select(&moments.contributions(), count);
        (stays.clone(), moments.reconstructed(&stays))
    }
}

/// Marks the `count` channels that last longest while `lambda` grows: those that the smallest `lambda` leaves at which no more than `count`
/// remain, filled up by the largest factors just below it.
fn select(contributions: &Contributions, count: usize) -> Vec<bool> {
    let channels = contributions.with_target.len();
    let left = |factors: &[f64]| factors.iter().filter(|f| **f != 0.0).count();
    // At this lambda no factor is other than zero.
    let mut high = contributions.with_target.iter().fold(f64::MIN_POSITIVE, |most, b| most.max(b.abs()));
    let (mut low, mut few, mut many) = (0.0, vec![0.0; channels], vec![1.0; channels]);
    for _ in 0..BISECTIONS {
        if left(&few) == count {
            break;
        }
        let middle = (low + high) / 2.0;
        let factors = lasso(contributions, middle, many.clone());
        if left(&factors) > count { (low, many) = (middle, factors) } else { (high, few) = (middle, factors) }
    }
    let most = many.iter().fold(1.0_f64, |most, f| most.max(f.abs()));
    let score = |c: usize| if few[c] == 0.0 { many[c].abs() / most } else { 2.0 + few[c].abs() };
    let mut stays = vec![false; channels];
    let mut order: Vec<usize> = (0..channels).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    order[..count].iter().for_each(|&c| stays[c] = true);
    stays
}

/// Coordinate descent from `factors`: each in turn takes its best value given the others, soft-thresholded by `lambda`.
fn lasso(contributions: &Contributions, lambda: f64, mut factors: Vec<f64>) -> Vec<f64> {
    let (products, channels) = (&contributions.products, factors.len());
    let row = |c: usize| &products[c * channels..(c + 1) * channels];
    for _ in 0..SWEEPS {
        let mut largest: f64 = 0.0;
        for c in 0..channels {
            let own = row(c)[c];
            let others: f64 = row(c).iter().zip(&factors).map(|(product, f)| product * f).sum::<f64>() - own * factors[c];
            let pull = contributions.with_target[c] - others;
            let best = if own > 0.0 { pull.signum() * (pull.abs() - lambda).max(0.0) / own } else { 0.0 };
            largest = largest.max((best - factors[c]).abs());
            factors[c] = best;
        }
        if largest < 1e-6 {
            break;
        }
    }
    factors
}

/// Halvings of the interval in which `lambda` lies.
const BISECTIONS: usize = 40;

/// Rounds of coordinate descent at one `lambda`.
const SWEEPS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use briquette_core::context::{Data, Silent};
    use briquette_core::net::Net;
    use briquette_core::pass::Pass;
    use briquette_data::Dataset;
    use burn::tensor::Device;

    use crate::patches::tests::{agree, of_conv2, unfitted};
    use briquette_handmade::dependent;
    use briquette_handmade::{context, get, images, outputs, refusal, run, small};

    /// Orthogonal contributions of these squared sizes, whose sum is the target.
    fn orthogonal(sizes: [f64; 4]) -> Contributions {
        let products = (0..16).map(|i| if i % 5 == 0 { sizes[i / 4] } else { 0.0 }).collect();
        Contributions { products, with_target: sizes.to_vec() }
    }

    #[test]
    fn orthogonal_factors_are_thresholded_softly() {
        // f = max(s - lambda, 0) / s.
        let factors = lasso(&orthogonal([4.0, 0.0, 1.0, 2.0]), 1.0, vec![1.0; 4]);
        assert!(factors.iter().zip([0.75, 0.0, 0.0, 0.5]).all(|(a, b)| (a - b).abs() < 1e-12), "{factors:?}");
    }

    #[test]
    fn the_channels_that_carry_the_output_stay() {
        let found = orthogonal([4.0, 0.0, 1.0, 2.0]);
        assert_eq!(select(&found, 3), [true, false, true, true]);
        assert_eq!(select(&found, 2), [true, false, false, true]);
        assert_eq!(select(&found, 1), [true, false, false, false]);
        // Equals leave together; the first fills up.
        assert_eq!(select(&orthogonal([1.0, 3.0, 1.0, 1.0]), 2), [true, true, false, false]);
    }

    #[test]
    fn a_channel_that_is_not_read_goes_first_and_the_output_stays() {
        assert_eq!(select(&of_conv2(&dependent()).contributions(), 3), [true, true, false, true]);
        let cut = run::<ChannelLasso>(dependent(), serde_json::json!({ "ratio": { "conv1": 0.25 } })).unwrap();
        assert_eq!(get(&cut, "conv1", "weight").len(), 3 * 4);
        assert!(agree(&dependent(), &cut));
    }

    #[test]
    fn every_layer_is_fitted_to_the_network_before_any_cut_on_other_images_too() {
        // None of these is among the images whose outputs are compared.
        let pixels = (0..400_usize * 16).map(|i| ((i * i * 37 + i / 16 * 11) % 241) as u8).collect();
        let train = Dataset::from_memory("others", [1, 4, 4], 3, pixels, (0..400).map(|i| i % 3).collect()).unwrap();
        let data = Data { train, ..images() };
        let error = |cut: &Net| -> f64 {
            let (a, b) = (outputs(&small()), outputs(cut));
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let mut silent = Silent;
        let method: ChannelLasso = serde_json::from_value(serde_json::json!({ "ratio": 0.4 })).unwrap();
        let fitted = method.run(small(), &mut context(&data, &mut silent)).unwrap();
        assert_eq!(["conv1", "conv2", "fc1"].map(|layer| get(&fitted, layer, "weight").len()), [2 * 4, 2 * 2 * 4, 3 * 8]);
        let unfitted = unfitted(&method, small(), &mut context(&data, &mut silent));
        assert!(error(&fitted) < 0.5 * error(&unfitted), "{} and {}", error(&fitted), error(&unfitted));
        let plain = run::<crate::pruning::filter_l1::FilterL1>(small(), serde_json::json!({ "ratio": 0.4 })).unwrap();
        assert!(error(&unfitted) < error(&plain), "{} and {}", error(&unfitted), error(&plain));
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let none = refusal::<ChannelLasso>(small(), serde_json::json!({ "ratio": 0.4, "positions": 0 }));
        assert_eq!(none, "channel-lasso: `calibration-images` and `positions` must be at least 1");
        let arch = briquette_core::zoo::Arch::named("lenet5").unwrap();
        let lenet = arch.build(&arch.wanted(), &Device::flex()).unwrap();
        let large = refusal::<ChannelLasso>(lenet, serde_json::json!({ "ratio": 0.5, "memory-mib": 9 }));
        let facts = "node 'fc1': reads 800 numbers, whose products take 10 MiB, `memory-mib` allows 9; ";
        assert_eq!(large, format!("{facts}raise it, or name the layer before it in `except`"));
        let both = refusal::<ChannelLasso>(small(), serde_json::json!({ "ratio": 0.4, "budget": { "macs": 0.5 } }));
        assert_eq!(both, "channel-lasso takes exactly one of `ratio` and `budget`");
    }
}
