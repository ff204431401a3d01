//! Fire modules.
//!
//! A convolution of `N` filters becomes a squeeze by one pixel to `s` maps with ReLU, and two convolutions that read it side by side: `N - e`
//! filters of one pixel and `e` of the kernel before, with its stride, padding and dilation, whose maps are concatenated in this order.
//! Weights: `s (C + N - e + k e)` for `C` channels and a kernel of `k` taps. An activation behind the replaced layer stays; the paper has ReLU
//! there.
//!
//! The least-squares start goes through the rectifier: `relu(v) - relu(-v) = v`, so pairs of opposite squeeze filters hand on what they see.
//! Of the filters that are to see one pixel, the middle tap is what can stay; the others stay as a whole. All these as rows of a matrix
//! `[N - e + k e, C]` have the singular value decomposition whose `s / 2` leading right vectors are the pairs, and the left ones what reads
//! them, with the roots of the singular values on both sides: no other pairs come closer.
//!
//! Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer. "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size".
//! 2016. arXiv:1602.07360.
//! Differs from the paper: besides training from scratch, the start above; kernels of any odd size.
//!
//! ```
//! use briquette_compact_filters::fire::{Fire, fire};
//! use briquette_core::{builder::{Builder, Conv}, cost::Cost, pass::Pass};
//! use burn::tensor::Device;
//!
//! let mut b = Builder::new([96, 5, 5], 1, &Device::flex());
//! let input = b.input();
//! let x = fire(&mut b, "fire2", input, Conv::new(128, 3).same(), 16, 64);
//! let x = b.conv("dense", x, Conv::new(128, 3).same());
//! b.global_avg_pool("mean", x);
//! let net = b.finish().unwrap();
//!
//! let method: Fire = serde_json::from_value(serde_json::json!({ "layers": ["dense"] })).unwrap();
//! let net = method.plan(net).unwrap();
//! assert_eq!(Cost::of(&net).unwrap().weights(), 16 * (96 + 64 + 9 * 64) + 16 * (128 + 64 + 9 * 64));
//! ```

use briquette_core::Padding;
use briquette_core::builder::{At, Builder, Conv};
use briquette_core::error::{Error, Result};
use briquette_core::net::Node;
use briquette_core::types::Ratio;
use briquette_core::zoo::fire as block;
use briquette_parts::algebra::{Matrix, svd};
use serde::Deserialize;

use crate::chosen::Init;
use crate::rewriting::{Compact, Rewriting, Site};

/// Replaces convolutions by fire modules.
pub type Fire = Rewriting<Squeeze>;

/// What only this form has to set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Squeeze {
    /// Maps of the squeeze as a share of the filters; at least one map.
    #[serde(default = "eighth")]
    squeeze: Ratio,
    /// Share of the filters that see more than one pixel; at least one filter.
    #[serde(default = "half")]
    spatial: Ratio,
}

fn eighth() -> Ratio {
    Ratio::try_from(0.125).expect("a ratio")
}

fn half() -> Ratio {
    Ratio::try_from(0.5).expect("a ratio")
}

/// Appends a [fire module](block) of `squeeze` maps in the place of `conv`, of whose filters `spatial` keep its geometry and the others see one pixel; all
/// have biases if `conv` has. Where `spatial` is all filters, there is no `expand1x1` and no `concat`.
///
/// # Panics
/// As [`Builder::push`], and if the filters of one pixel find no such pixel: kernels of even size, and padding of less than half the kernel.
pub fn fire(b: &mut Builder, name: &str, at: At, conv: Conv, squeeze: usize, spatial: usize) -> At {
    let wide = Conv { filters: spatial, ..conv };
    if spatial == conv.filters {
        return block(b, name, at, squeeze, &[wide]);
    }
    let padding = beside(&conv).unwrap_or_else(|why| panic!("node '{name}': {why}"));
    let pixel = Conv { filters: conv.filters - spatial, kernel: [1; 2], padding, dilation: [1; 2], ..conv };
    block(b, name, at, squeeze, &[pixel, wide])
}

/// The padding with which one pixel sees what the middle of the kernel sees.
fn beside(conv: &Conv) -> std::result::Result<Padding, String> {
    if conv.kernel.iter().any(|size| size % 2 == 0) {
        return Err(format!("has a kernel of {:?}, whose middle is no pixel; set spatial = 1", conv.kernel));
    }
    let mut padding = conv.padding;
    for (axis, sides) in padding.0.iter_mut().enumerate() {
        let reach = conv.dilation[axis] * (conv.kernel[axis] / 2);
        for side in sides {
            *side = side.checked_sub(reach).ok_or_else(|| {
                format!(
                    "has padding of {side}, less than the {reach} with which filters of one pixel fit beside it; set spatial = 1"
                )
            })?;
        }
    }
    Ok(padding)
}

impl Squeeze {
    /// Maps of the squeeze, and filters that see more than a pixel.
    fn counts(&self, conv: &Conv) -> [usize; 2] {
        [self.squeeze, self.spatial].map(|share| ((share.get() * conv.filters as f64).round() as usize).max(1))
    }
}

impl Compact for Squeeze {
    const NAME: &'static str = "fire";
    const PAPER: &'static str = "Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer, 2016, arXiv:1602.07360";
    const EXAMPLE: &'static str = "squeeze = 0.5\ntune = { epochs = 10 }";

    fn check(&self, _: Init) -> Result<()> {
        for (name, share) in [("squeeze", self.squeeze), ("spatial", self.spatial)] {
            if share.get() == 0.0 {
                return Err(Error::Invalid(format!("`{name}` is 0, which leaves nothing; it lies in (0, 1]")));
            }
        }
        Ok(())
    }

    fn width(&self, site: &Site) -> std::result::Result<usize, String> {
        let [squeeze, spatial] = self.counts(&site.conv);
        if spatial < site.conv.filters {
            beside(&site.conv)?;
        }
        match site.init {
            Init::Fit if squeeze < 2 => {
                Err("would be squeezed to one map, and the fit needs pairs; raise `squeeze` or set init = \"random\"".into())
            }
            Init::Fit | Init::Random => Ok(squeeze),
        }
    }

    fn build(&self, b: &mut Builder, name: &str, at: At, site: &Site) -> At {
        let [squeeze, spatial] = self.counts(&site.conv);
        fire(b, name, at, site.conv, squeeze, spatial)
    }

    fn fit(&self, site: &Site, weight: &[f32], block: &[Node]) -> Vec<Vec<f32>> {
        let (channels, taps) = (site.channels, site.conv.kernel.iter().product::<usize>());
        let [squeeze, spatial] = self.counts(&site.conv);
        let pixels = site.conv.filters - spatial;
        // Rows are filter and tap: first the middle taps, then all taps of each further filter.
        let row =
            |row: usize| if row < pixels { (row, taps / 2) } else { (pixels + (row - pixels) / taps, (row - pixels) % taps) };
        let rows = pixels + spatial * taps;
        let found = svd(&Matrix::from_fn(rows, channels, |at, channel| {
            let (filter, tap) = row(at);
            f64::from(weight[(filter * channels + channel) * taps + tap])
        }));
        // Maps without a pair stay as they were drawn, and nothing reads them yet.
        let mut squeezed = block[0].weight().expect("the squeeze is a convolution").values();
        let mut expanded = vec![0.0; pixels * squeeze + spatial * squeeze * taps];
        for (pair, s) in found.s.iter().enumerate().take(squeeze / 2) {
            for (map, sign) in [(2 * pair, 1.0), (2 * pair + 1, -1.0)] {
                let scaled = |value: &f64| (value * s.sqrt() * sign) as f32;
                found.v.column(pair).iter().enumerate().for_each(|(channel, v)| squeezed[map * channels + channel] = scaled(v));
                for (at, u) in found.u.column(pair).iter().enumerate() {
                    let place = match at.checked_sub(pixels) {
                        None => at * squeeze + map,
                        Some(wide) => pixels * squeeze + (wide / taps * squeeze + map) * taps + wide % taps,
                    };
                    expanded[place] = scaled(u);
                }
            }
        }
        let wide = expanded.split_off(pixels * squeeze);
        if pixels == 0 { vec![squeezed, wide] } else { vec![squeezed, expanded, wide] }
    }
}

#[cfg(test)]
mod tests {
    use briquette_core::cost::Cost;
    use briquette_handmade::{get, refusal, run, set};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::rewriting::proof::{self, holds, keeps, learns};

    #[test]
    fn a_replaced_layer_is_planned_stored_and_trained() {
        for settings in [json!({ "squeeze": 0.5 }), json!({ "squeeze": 1, "spatial": 1, "init": "random" })] {
            holds::<Fire>(5, &settings);
            learns::<Fire>(5, &settings);
        }
    }

    /// `fire.squeezenet1_0` of the reference values: channels, squeeze, side, weights, biases, multiply-accumulates.
    #[test]
    fn modules_cost_what_those_of_squeezenet_do() {
        for (channels, squeeze, side, weights, biases, macs) in [
            (96, 16, 55, 11_776, 144, 35_622_400),
            (128, 16, 55, 12_288, 144, 37_171_200),
            (128, 32, 55, 45_056, 288, 136_294_400),
            (256, 32, 27, 49_152, 288, 35_831_808),
            (256, 48, 27, 104_448, 432, 76_142_592),
            (384, 48, 27, 110_592, 432, 80_621_568),
            (384, 64, 27, 188_416, 576, 137_355_264),
            (512, 64, 13, 196_608, 576, 33_226_752),
        ] {
            let start = || Builder::new([channels, side, side], 1, &Device::flex());
            let conv = Conv::new(8 * squeeze, 3).same();
            let (mut block, mut dense) = (start(), start());
            let input = block.input();
            let x = fire(&mut block, "mix", input, conv, squeeze, 4 * squeeze);
            block.global_avg_pool("mean", x);
            let x = dense.conv("mix", dense.input(), conv);
            dense.global_avg_pool("mean", x);
            let plan = proof::planned::<Fire>(dense.finish().unwrap(), &json!({ "init": "random" }));
            for net in [block.finish().unwrap(), plan] {
                let cost = Cost::of(&net).unwrap();
                assert_eq!((cost.weights(), cost.params() - cost.weights(), cost.macs()), (weights, biases, macs));
            }
        }
    }

    #[test]
    fn pairs_for_every_channel_hand_on_what_they_see() {
        let conv = Conv { stride: [2, 1], padding: Padding([[1, 0], [2, 1]]), dilation: [1, 2], ..Conv::new(12, 3) };
        for bias in [true, false] {
            keeps::<Fire>(Conv { bias, ..conv }, &json!({ "squeeze": 0.5, "spatial": 1 }));
        }
    }

    #[test]
    fn of_filters_of_one_pixel_the_middle_stays() {
        let conv = Conv { padding: Padding([[1, 2], [4, 2]]), stride: [2, 1], dilation: [1, 2], ..Conv::new(6, 3) };
        let mut kernel: Vec<f32> = (0..6 * 2 * 9).map(|i| ((i * i * 7 + 3) % 17) as f32 / 8.0 - 1.0).collect();
        let settings = json!({ "layers": ["mix"], "squeeze": 0.7, "spatial": 0.5 });
        let fitted = run::<Fire>(proof::alone([2, 4, 4], conv, &kernel), settings).unwrap();
        kernel.iter_mut().take(3 * 18).enumerate().filter(|(at, _)| at % 9 != 4).for_each(|(_, w)| *w = 0.0);
        let x: Vec<f32> = (0..32).map(|i| ((i * i * 5 + 1) % 13) as f32 - 6.0).collect();
        let expected = proof::output(&proof::alone([2, 4, 4], conv, &kernel), &x);
        proof::near(&proof::output(&fitted, &x), &expected);
    }

    #[test]
    fn fewer_pairs_leave_the_error_of_the_singular_values_left_out() {
        // Filters of one pixel and of one other: rows 3 e1, 2 e2 and e3, so that two pairs leave 1.
        let mut kernel = [0.0_f32; 3 * 3 * 9];
        for (filter, size) in [(0, 3.0), (1, 2.0), (2, 1.0)] {
            kernel[(filter * 3 + filter) * 9 + 4] = size;
        }
        let settings = json!({ "layers": ["mix"], "squeeze": 1, "spatial": 0.5 });
        for (filters, left) in [(4, 1.0), (3, 5.0)] {
            // The fourth filter raises the maps of the squeeze from three to four.
            let kernel: Vec<f32> = kernel.iter().copied().chain([0.0; 27]).take(filters * 27).collect();
            let net = proof::alone([3, 4, 4], Conv::new(filters, 3).same().no_bias(), &kernel);
            let fitted = run::<Fire>(net.deep_clone(), settings.clone()).unwrap();
            // One pixel of one channel shows its weights in all filters.
            let mut squares = 0.0;
            for channel in 0..3 {
                let mut x = vec![0.0; 48];
                x[channel * 16 + 5] = 1.0;
                let [a, b] = [&net, &fitted].map(|net| proof::output(net, &x));
                squares += a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            }
            assert!((squares - left).abs() < 1e-5, "{filters}: {squares}");
        }
    }

    #[test]
    fn a_bias_goes_to_the_filters_that_it_is_of() {
        let bias = [0.5, -1.0, 2.0, 3.0, -4.0, 1.5, 0.0, 2.5];
        let net = run::<Fire>(set(proof::net(3), "mix", "bias", &bias), json!({ "layers": ["mix"], "squeeze": 0.5 })).unwrap();
        assert_eq!(get(&net, "mix.squeeze", "bias"), [0.0; 4]);
        assert_eq!([get(&net, "mix.expand1x1", "bias"), get(&net, "mix.expand3x3", "bias")].concat(), bias);
    }

    #[test]
    fn layers_and_settings_without_sense_are_refused() {
        let refused = |settings| refusal::<Fire>(proof::net(3), settings);
        assert_eq!(refused(json!({ "squeeze": 0 })), "`squeeze` is 0, which leaves nothing; it lies in (0, 1]");
        assert_eq!(refused(json!({ "spatial": 0 })), "`spatial` is 0, which leaves nothing; it lies in (0, 1]");
        assert!(refused(json!({ "layers": ["mix"] })).starts_with("node 'mix': would be squeezed to one map, and the fit needs"));
        let of = |conv| refusal::<Fire>(proof::alone([1, 4, 4], conv, &[]), json!({ "layers": ["mix"], "init": "random" }));
        assert!(of(Conv::new(8, 2)).starts_with("node 'mix': has a kernel of [2, 2], whose middle is no pixel"));
        assert!(of(Conv::new(8, 3)).starts_with("node 'mix': has padding of 0, less than the 1 with which"));
    }
}
