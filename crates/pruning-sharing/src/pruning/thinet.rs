//! ThiNet.
//!
//! Cuts the channels that the next layer's output misses least: the output is the sum over channels of what each contributes,
//! `y = sum_c z_c`, with `z_c` the channel's part of the convolution. Channels go one by one; the next is always the one by which
//! `sum over places and outputs of (sum over removed c of z_c)^2` grows least. Then the contributions of those that stay are scaled by the
//! factors `f` that minimize `(y - sum_c f_c z_c)^2`, which the next layer's weights take in. Layer follows layer, each seeing its inputs
//! as the cuts before have left them.
//!
//! Luo, Wu, Lin. "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression". ICCV 2017. arXiv:1707.06342.
//! Differs from the paper: all outputs count at each sampled place, instead of one drawn at random, and training comes after all layers.
//! Only channels that one layer makes and one reads are cut: those inside residual blocks, as in the paper.
//!
//! ```
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_pruning_sharing::pruning::thinet::ThiNet;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//! let mut host = Silent;
//! let method: ThiNet = serde_json::from_value(serde_json::json!({ "ratio": 0.5 }))?;
//! let cut = method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! assert_eq!(cut.weighted().filter_map(|(_, node)| Some(node.weight()?.shape[0])).collect::<Vec<_>>(), [15, 5, 10]);
//! # Ok(())
//! # }
//! ```

use briquette_parts::moments::{Contributions, Moments, solve};

use crate::patches::{ByNextLayer, Choice};

/// Cuts the channels whose loss the next layer's output feels least, physically.
pub type ThiNet = ByNextLayer<Greedy>;

/// The choice of [`ThiNet`].
#[derive(Debug)]
pub struct Greedy;

impl Choice for Greedy {
    const NAME: &'static str = "thinet";
    const PAPER: &'static str = "Luo, Wu, Lin, ICCV 2017, arXiv:1707.06342";
    const IMAGES: usize = 300;

    fn choose(moments: &Moments, count: usize) -> (Vec<bool>, Vec<f64>) {
        let contributions = moments.contributions();
        let stays = greedy(&contributions, count);
        (stays.clone(), moments.scaled(&factors(&contributions, &stays)))
    }
}

/// Marks the `count` channels that are left when those go one by one whose sum stays smallest.
fn greedy(contributions: &Contributions, count: usize) -> Vec<bool> {
    let products = &contributions.products;
    let channels = products.len().isqrt();
    let mut stays = vec![true; channels];
    // The product of each channel with the sum of the removed ones.
    let mut with_removed = vec![0.0; channels];
    for _ in count..channels {
        let growth = |c: &usize| 2.0 * with_removed[*c] + products[c * channels + c];
        let next = (0..channels).filter(|c| stays[*c]).min_by(|a, b| growth(a).total_cmp(&growth(b)));
        let Some(next) = next else { break };
        stays[next] = false;
        with_removed.iter_mut().zip(&products[next * channels..]).for_each(|(sum, product)| *sum += product);
    }
    stays
}

/// The factors of the channels that stay by which their sum comes nearest to the sum of all; 0 for the others.
fn factors(contributions: &Contributions, stays: &[bool]) -> Vec<f64> {
    let (products, channels) = (&contributions.products, stays.len());
    let kept: Vec<usize> = (0..channels).filter(|c| stays[*c]).collect();
    let matrix = kept.iter().flat_map(|c| kept.iter().map(move |d| products[c * channels + d])).collect();
    let side = kept.iter().map(|c| products[c * channels..(c + 1) * channels].iter().sum()).collect();
    let solved = solve(matrix, vec![(side, vec![1.0; kept.len()])]);
    let mut factors = vec![0.0; channels];
    kept.iter().zip(solved.into_iter().flatten()).for_each(|(&c, factor)| factors[c] = factor);
    factors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patches::tests::{agree, of_conv2};
    use briquette_handmade::dependent;
    use briquette_handmade::{get, refusal, run, set, small};

    /// From contributions at three places.
    fn of<const C: usize>(z: [[f64; 3]; C]) -> Contributions {
        let dot = |a: &[f64; 3], b: &[f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let products = z.iter().flat_map(|a| z.iter().map(move |b| dot(a, b))).collect();
        Contributions { products, with_target: Vec::new() }
    }

    #[test]
    fn what_adds_nothing_goes_first_then_what_cancels() {
        // Alone, channel 3 is smaller than 0 and 1, whose sum is smaller still.
        let found = of([[2.0, 1.0, 0.0], [-2.0, -1.0, 0.1], [0.0; 3], [0.0, 0.0, 2.5], [9.0, 9.0, 9.0]]);
        assert_eq!(greedy(&found, 4), [true, true, false, true, true]);
        assert_eq!(greedy(&found, 3), [false, true, false, true, true]);
        assert_eq!(greedy(&found, 2), [false, false, false, true, true]);
        assert_eq!(greedy(&found, 1), [false, false, false, false, true]);
    }

    #[test]
    fn factors_make_up_for_what_goes_where_it_depends_on_what_stays() {
        // The second is twice the first, the last orthogonal to all.
        let found = of([[1.0, 0.0, 1.0], [2.0, 0.0, 2.0], [0.0, 5.0, 0.0]]);
        let factors = factors(&found, &[true, false, true]);
        assert!(factors.iter().zip([3.0, 0.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-4), "{factors:?}");
    }

    #[test]
    fn the_channel_that_is_not_read_goes_first_and_a_copy_is_made_up_for() {
        let stays = greedy(&of_conv2(&dependent()).contributions(), 3);
        assert_eq!(stays, [true, true, false, true]);
        let cut = run::<ThiNet>(dependent(), serde_json::json!({ "ratio": { "conv1": 0.25 } })).unwrap();
        assert_eq!(get(&cut, "conv1", "weight").len(), 3 * 4);
        assert!(agree(&dependent(), &cut));
        // Channels 1 and 3 now contribute in one proportion, and little.
        let mut readers = get(&dependent(), "conv2", "weight");
        (0..3 * 4 * 4).filter(|i| i / 4 % 4 == 1).for_each(|i| readers[i] = 0.01 * readers[i + 8]);
        let net = set(dependent(), "conv2", "weight", &readers);
        let cut = run::<ThiNet>(net.deep_clone(), serde_json::json!({ "ratio": { "conv1": 0.5 } })).unwrap();
        assert!(agree(&net, &cut));
    }

    #[test]
    fn all_layers_are_cut_to_the_share_and_settings_that_do_not_fit_are_refused() {
        let cut = run::<ThiNet>(small(), serde_json::json!({ "ratio": 0.4 })).unwrap();
        assert_eq!(["conv1", "conv2", "fc1"].map(|layer| get(&cut, layer, "weight").len()), [2 * 4, 2 * 2 * 4, 3 * 8]);
        let none = refusal::<ThiNet>(small(), serde_json::json!({ "ratio": 0.4, "calibration-images": 0 }));
        assert_eq!(none, "thinet: `calibration-images` and `positions` must be at least 1");
        let shared =
            crate::quantization::kmeans_sharing::share(small(), |_| Some(2), crate::quantization::kmeans_sharing::Init::Linear);
        let shared = refusal::<ThiNet>(shared, serde_json::json!({ "ratio": 0.4 }));
        assert_eq!(shared, "node 'conv2': its weights are masked or shared; put thinet before the pass that does so");
        let all = refusal::<ThiNet>(small(), serde_json::json!({ "ratio": 0.4, "except": ["conv*", "fc1"] }));
        assert!(all.starts_with("thinet: no layer's channels are read by one layer alone"), "{all}");
    }
}
