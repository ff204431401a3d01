//! Images near those that there are.

use briquette_core::error::{Error, Result};
use briquette_core::streams::standard_normal;
use briquette_core::values::floats;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// How images are drawn around others: MUNGE, the authors' Algorithm 1.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Munge {
    /// `k`: how often the images are gone through; each time gives as many new ones.
    pub times: usize,
    /// `p`: the probability with which a pixel is exchanged with the nearest neighbour's.
    #[serde(default = "half")]
    pub probability: f64,
    /// `s`: a pixel that is exchanged is drawn with the difference of both over `s` as its deviation.
    #[serde(default = "local")]
    pub variance: f64,
}

fn half() -> f64 {
    0.5
}

fn local() -> f64 {
    2.0
}

/// Images whose nearest neighbours are sought together.
const TOGETHER: usize = 256;

impl Munge {
    pub(super) fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.probability) && self.variance.is_finite() && self.variance > 0.0 {
            return Ok(());
        }
        Err(Error::Invalid("pseudo-labels: `probability` lies in [0, 1], and `variance` is above 0".into()))
    }

    /// New images of `size` bytes each, of these, all of them behind each other: `times` as many. Each image exchanges pixels with its nearest
    /// neighbour by the squared distance, so that both change; the next image meets what has changed.
    pub fn around(&self, images: &[u8], size: usize, seed: u64, device: &Device) -> Vec<u8> {
        let count = images.len() / size.max(1);
        let mut made = Vec::with_capacity(self.times * images.len());
        if count < 2 {
            (0..self.times).for_each(|_| made.extend_from_slice(images));
            return made;
        }
        let neighbours = neighbours(images, count, size, device);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..self.times {
            let mut now: Vec<f64> = images.iter().map(|pixel| f64::from(*pixel)).collect();
            for (image, neighbour) in neighbours.iter().enumerate() {
                for pixel in 0..size {
                    if rng.random::<f64>() < self.probability {
                        let (a, b) = (now[image * size + pixel], now[neighbour * size + pixel]);
                        let deviation = (a - b).abs() / self.variance;
                        let mut around = |mean: f64| (mean + deviation * standard_normal(&mut rng)).clamp(0.0, 255.0);
                        (now[image * size + pixel], now[neighbour * size + pixel]) = (around(b), around(a));
                    }
                }
            }
            made.extend(now.iter().map(|pixel| pixel.round() as u8));
        }
        made
    }
}

/// The nearest other image of each.
fn neighbours(images: &[u8], count: usize, size: usize, device: &Device) -> Vec<usize> {
    let pixels: Vec<f32> = images.iter().map(|pixel| f32::from(*pixel) / 255.0).collect();
    let all = Tensor::<2>::from_data(TensorData::new(pixels, [count, size]), device);
    let squares = floats(all.clone().square().sum_dim(1));
    let nearest = |begin: usize| {
        let end = count.min(begin + TOGETHER);
        let products = floats(all.clone().slice([begin..end, 0..size]).matmul(all.clone().transpose()));
        (begin..end)
            .map(|image| {
                let row = &products[(image - begin) * count..][..count];
                let distance = |other: usize| squares[other] - 2.0 * row[other];
                (0..count).filter(|other| *other != image).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(image)
            })
            .collect::<Vec<usize>>()
    };
    (0..count).step_by(TOGETHER).flat_map(nearest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pairs of near images, of three pixels each.
    const IMAGES: [u8; 12] = [10, 20, 30, 200, 210, 220, 12, 22, 40, 190, 230, 220];

    #[test]
    fn neighbours_are_the_nearest_others() {
        assert_eq!(neighbours(&IMAGES, 4, 3, &Device::flex()), [2, 3, 0, 1]);
    }

    #[test]
    fn nothing_exchanged_is_nothing_changed_and_all_exchanged_twice_is_back() {
        let around = |probability, variance, times| Munge { times, probability, variance }.around(&IMAGES, 3, 7, &Device::flex());
        assert_eq!(around(0.0, 1.0, 2), [IMAGES, IMAGES].concat());
        // Each of a pair exchanges all pixels with the other, exactly as the deviation vanishes.
        assert_eq!(around(1.0, 1e9, 1), IMAGES);
        assert!(around(0.5, 1.0, 0).is_empty());
    }

    #[test]
    fn pixels_are_drawn_between_and_around_both_and_alike_from_one_seed() {
        let munge = Munge { times: 400, probability: 0.5, variance: 4.0 };
        let made = munge.around(&IMAGES, 3, 7, &Device::flex());
        assert_eq!(made, munge.around(&IMAGES, 3, 7, &Device::flex()));
        assert_ne!(made, munge.around(&IMAGES, 3, 8, &Device::flex()));
        // Exchanges keep the sum of both means: 35 for the third pixel of the first and of the third image, with rounding and chance.
        let thirds = |image: usize| made.chunks(12).map(|all| f64::from(all[3 * image + 2])).sum::<f64>() / 400.0;
        assert!((thirds(0) + thirds(2) - 70.0).abs() < 1.5, "{} {}", thirds(0), thirds(2));
        assert!(made.chunks(12).any(|all| all[2] != 30 && all[2] != 40));
    }

    #[test]
    fn one_image_has_no_neighbour() {
        let munge = Munge { times: 2, probability: 0.5, variance: 1.0 };
        assert_eq!(munge.around(&[1, 2, 3], 3, 1, &Device::flex()), [1, 2, 3, 1, 2, 3]);
    }
}
