use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Random changes to a training image; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Augment {
    /// Pads with this many zero pixels on each side and crops back to size at random.
    #[serde(default)]
    pub pad_crop: usize,
    /// Mirrors left to right with probability 1/2.
    #[serde(default)]
    pub flip: bool,
}

impl Augment {
    /// Appends `pixels` `[c, h, w]`, changed and divided by 255, to `out`.
    pub(crate) fn apply(&self, pixels: &[u8], [_, height, width]: [usize; 3], rng: &mut ChaCha8Rng, out: &mut Vec<f32>) {
        let mut offset = || if self.pad_crop == 0 { 0 } else { rng.random_range(0..=2 * self.pad_crop as u32) as usize };
        let (down, right) = (offset(), offset());
        let mirrored = self.flip && rng.random_range(0..2_u32) == 1;
        for plane in pixels.chunks_exact(height * width) {
            for y in 0..height {
                let row = source(y, down, self.pad_crop, height).map(|y| &plane[y * width..][..width]);
                out.extend((0..width).map(|x| {
                    let x = if mirrored { width - 1 - x } else { x };
                    let pixel = row.and_then(|row| source(x, right, self.pad_crop, width).map(|x| row[x]));
                    f32::from(pixel.unwrap_or(0)) / 255.0
                }));
            }
        }
    }
}

/// Where coordinate `at` of a crop lies in the unpadded image, if not in the padding.
fn source(at: usize, offset: usize, pad: usize, size: usize) -> Option<usize> {
    (at + offset).checked_sub(pad).filter(|&at| at < size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::HashSet;

    fn outcomes(augment: &Augment, pixels: &[u8], shape: [usize; 3]) -> HashSet<Vec<u8>> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let draw = |_| {
            let mut out = Vec::new();
            augment.apply(pixels, shape, &mut rng, &mut out);
            out.iter().map(|x| (x * 255.0).round() as u8).collect()
        };
        (0..500).map(draw).collect()
    }

    #[test]
    fn the_default_changes_nothing() {
        assert_eq!(outcomes(&Augment::default(), &[1, 2, 3, 4], [1, 2, 2]), HashSet::from([vec![1, 2, 3, 4]]));
    }

    #[test]
    fn flip_mirrors_every_channel() {
        let flip = Augment { pad_crop: 0, flip: true };
        assert_eq!(outcomes(&flip, &[1, 2, 3, 4], [2, 1, 2]), HashSet::from([vec![1, 2, 3, 4], vec![2, 1, 4, 3]]));
    }

    #[test]
    fn pad_crop_shifts_by_at_most_the_padding() {
        let crop = Augment { pad_crop: 1, flip: false };
        let seen = outcomes(&crop, &[1, 2, 3, 4], [1, 2, 2]);
        assert_eq!(seen.len(), 9);
        assert!(seen.contains(&vec![4, 0, 0, 0]) && seen.contains(&vec![0, 0, 0, 1]) && seen.contains(&vec![2, 0, 4, 0]));
        assert_eq!(outcomes(&Augment { pad_crop: 3, flip: false }, &[7], [1, 1, 1]).len(), 2);
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<Augment>("flip = true").is_ok_and(|augment| augment.flip));
        assert!(toml::from_str::<Augment>("flips = true").is_err());
    }
}
