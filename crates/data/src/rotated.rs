//! Rotated MNIST: digits of MNIST, each turned about the image's centre by an angle of its own, uniform in `[0, 2 pi)`. 28x28 grey, 12,000 training and
//! 50,000 test images, classes as often as they come.
//!
//! Made anew as in Larochelle, Erhan, Courville, Bergstra, Bengio, "An Empirical Evaluation of Deep Architectures on Problems with Many Factors of
//! Variation", ICML 2007, who train on 10,000 images and validate on 2,000 (`valid = 2000` of a config). Differs from their file: which 62,000 of
//! MNIST's 70,000 images are taken, and their angles, so that a figure on this set is none on theirs. Turned images are interpolated bilinearly, with
//! nothing outside of them, and rounded to bytes.
//!
//! MNIST's images count from 0, training images first. Which are taken, and in which order, is a shuffle by stream 0 of ChaCha8 seeded with a
//! constant; image `j` has its angle from stream `j` with another. Angles are directions of points drawn in a disc, so that additions, multiplications,
//! divisions and square roots do: the bytes are the same on every machine.

use rayon::prelude::*;

use crate::{Dataset, Error, Manifest, Outline, Splits, dice::Dice, files::sha256_of};

/// Name of the set.
pub(crate) const NAME: &str = "rotated-mnist";

/// Name of the set whose images are turned.
pub(crate) const OF: &str = "mnist";

/// Training and test images.
const COUNTS: [usize; 2] = [12_000, 50_000];

const ORDER: u64 = 0x726f_7461_7465_0001;
const ANGLES: u64 = 0x726f_7461_7465_0002;

/// Turns both splits.
pub(crate) fn splits(mnist: &Splits) -> Result<Splits, Error> {
    turned(mnist, COUNTS)
}

/// What [`splits`] would make.
pub(crate) fn outline(mnist: &Manifest) -> Outline {
    Outline { name: NAME.into(), shape: mnist.shape, classes: mnist.classes.len(), counts: COUNTS }
}

/// So many training and test images out of all.
fn turned(mnist: &Splits, counts: [usize; 2]) -> Result<Splits, Error> {
    let taken = shuffled(mnist.train.len() + mnist.test.len());
    let (train, turned) = split(mnist, "train", &taken[..counts[0]])?;
    let (test, judged) = split(mnist, "test", &taken[counts[0]..][..counts[1]])?;
    Ok(Splits { name: NAME.into(), train, test, classes: mnist.classes.clone(), moments: None, sha256: vec![turned, judged] })
}

/// A split of these images, and the SHA-256 of its pixels.
fn split(mnist: &Splits, name: &str, taken: &[usize]) -> Result<(Dataset, String), Error> {
    let shape = mnist.train.shape;
    let size = shape.iter().product();
    let place = |j: usize| match j.checked_sub(mnist.train.len()) {
        None => (&mnist.train, j),
        Some(j) => (&mnist.test, j),
    };
    let mut images = vec![0; taken.len() * size];
    images.par_chunks_exact_mut(size).zip(taken).try_for_each(|(image, &j)| {
        let (set, at) = place(j);
        turn(&set.pixel(at)?, shape[2], direction(j), image);
        Ok(())
    })?;
    let labels = taken.iter().map(|&j| place(j)).map(|(set, at)| set.label(at)).collect();
    let sha256 = sha256_of(&images);
    Ok((Dataset::from_memory(format!("{NAME} {name}"), shape, mnist.train.classes, images, labels)?, sha256))
}

/// The numbers below `n`, shuffled.
fn shuffled(n: usize) -> Vec<usize> {
    let (mut all, mut dice) = ((0..n).collect::<Vec<_>>(), Dice::of(ORDER, 0));
    for i in 0..n {
        let other = i + dice.below(n - i);
        all.swap(i, other);
    }
    all
}

/// Cosine and sine of the angle of image `j`.
fn direction(j: usize) -> [f32; 2] {
    let mut dice = Dice::of(ANGLES, j as u64);
    loop {
        let [x, y] = [dice.between(-1.0, 1.0), dice.between(-1.0, 1.0)];
        let square = x * x + y * y;
        if square > 0.0 && square <= 1.0 {
            return [x / square.sqrt(), y / square.sqrt()];
        }
    }
}

/// Turns a square image of `side` pixels counterclockwise about its centre.
fn turn(image: &[u8], side: usize, [cos, sin]: [f32; 2], out: &mut [u8]) {
    let centre = (side as f32 - 1.0) / 2.0;
    let inside = |at: f32| (0.0..side as f32).contains(&at).then_some(at as usize);
    let pixel = |row: f32, column: f32| {
        inside(row).zip(inside(column)).map_or(0.0, |(row, column)| f32::from(image[row * side + column]))
    };
    for (at, out) in out.iter_mut().enumerate() {
        // Rows count downwards; the image is looked up where the turn came from.
        let (right, up) = ((at % side) as f32 - centre, centre - (at / side) as f32);
        let (row, column) = (centre - (up * cos - right * sin), centre + (right * cos + up * sin));
        let (top, left) = (row.floor(), column.floor());
        let (down, aside) = (row - top, column - left);
        let line = |row: f32| pixel(row, left) * (1.0 - aside) + pixel(row, left + 1.0) * aside;
        *out = (line(top) * (1.0 - down) + line(top + 1.0) * down + 0.5) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Locations, manifest, open};

    fn by(image: &[u8], side: usize, direction: [f32; 2]) -> Vec<u8> {
        let mut out = vec![0; image.len()];
        turn(image, side, direction, &mut out);
        out
    }

    #[test]
    fn quarter_turns_move_pixels_and_change_none() {
        assert_eq!(by(&[1, 2, 3, 4], 2, [0.0, 1.0]), [2, 4, 1, 3]);
        let image: Vec<u8> = (0..784).map(|i| (i * i % 251) as u8).collect();
        let mut expected = image.clone();
        for quarter in [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]] {
            assert_eq!(by(&image, 28, quarter), expected, "{quarter:?}");
            expected = (0..784).map(|at| expected[at % 28 * 28 + 27 - at / 28]).collect();
        }
    }

    #[test]
    fn between_pixels_lies_their_mean_by_distance_and_outside_nothing() {
        let half = 0.5_f32.sqrt();
        // The corner above and to the right looks at 1.414 pixels to the right of the centre.
        let right = by(&[0, 0, 0, 0, 0, 200, 0, 0, 0], 3, [half, half]);
        assert_eq!((right[2], right[8], right[4]), (117, 0, 0));
        // The pixel above the centre looks at 0.707 pixels up and as many to the right.
        assert_eq!(by(&[0, 0, 0, 0, 100, 0, 0, 0, 0], 3, [half, half])[1], 9);
    }

    #[test]
    fn angles_are_uniform() {
        let (mut octants, mut sums) = ([0; 8], [0.0; 2]);
        for [cos, sin] in (0..8000).map(direction) {
            assert!((cos * cos + sin * sin - 1.0).abs() < 1e-6);
            octants[usize::from(cos > 0.0) + 2 * usize::from(sin > 0.0) + 4 * usize::from(cos.abs() > sin.abs())] += 1;
            sums = [sums[0] + cos, sums[1] + sin];
        }
        assert!(octants.iter().all(|count| (880..1120).contains(count)), "{octants:?}");
        assert!(sums.iter().all(|sum| sum.abs() < 250.0), "{sums:?}");
    }

    /// Seven training and five test images, each full of its number, in the place of MNIST.
    fn flat() -> Splits {
        let images = |name, range: std::ops::Range<u8>| {
            let pixels = range.clone().flat_map(|j| [j + 100; 9]).collect();
            Dataset::from_memory(name, [1, 3, 3], 12, pixels, range.map(u16::from).collect()).expect("consistent")
        };
        let classes = (0..12).map(|class| class.to_string()).collect();
        let (train, test) = (images("train", 0..7), images("test", 7..12));
        Splits { name: OF.into(), train, test, classes, moments: None, sha256: Vec::new() }
    }

    #[test]
    fn images_come_from_both_splits_with_their_labels_and_none_twice() {
        let set = turned(&flat(), [4, 6]).expect("memory");
        let all: Vec<(u16, u8)> = [&set.train, &set.test]
            .iter()
            .flat_map(|set| (0..set.len()).map(|i| (set.label(i), set.pixel(i).expect("memory")[4])).collect::<Vec<_>>())
            .collect();
        assert_eq!((set.train.len(), set.test.len()), (4, 6));
        // The centre stays where it is.
        assert!(all.iter().all(|(label, pixel)| u16::from(*pixel) == label + 100), "{all:?}");
        let labels: Vec<u16> = all.iter().map(|(label, _)| *label).collect();
        assert_eq!(labels, [10, 8, 4, 6, 9, 5, 0, 11, 2, 7]);
        assert_eq!(turned(&flat(), [4, 6]).expect("memory").sha256, set.sha256);
    }

    #[test]
    fn without_mnist_at_hand_its_files_are_asked_for() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let dirs = vec![dir.path().into()];
        let at = Locations { dirs, cache: None, offline: true, glyphs: crate::GlyphCounts::default() };
        let error = open(NAME, &at).expect_err("nothing is there").to_string();
        assert!(error.starts_with("data set 'mnist': train-images-idx3-ubyte.gz"), "{error}");
        let known = outline(&manifest(OF).expect("known"));
        assert_eq!(crate::outline(NAME, &at).expect("no pixels"), known);
        assert_eq!((known.shape, known.classes, known.counts), ([1, 28, 28], 10, [12_000, 50_000]));
    }

    /// The digests are of a second implementation, in NumPy.
    #[test]
    #[ignore = "needs the data sets in BRIQUETTE_DATA"]
    fn the_bytes_never_change() {
        let set = open(NAME, &Locations { offline: true, ..Locations::from_env(None) }).expect("MNIST is at hand and whole");
        assert_eq!(set.train.class_counts(), [1169, 1365, 1214, 1164, 1167, 1118, 1179, 1240, 1195, 1189]);
        assert_eq!(set.test.class_counts(), [4952, 5634, 4955, 5147, 4893, 4461, 4939, 5203, 4815, 5001]);
        let said = [
            "1fe595bc361fe1f9c0a4f0ec05ada544a91988eac829e82bba1bd104b47e9a38",
            "8dee64c543eef595907a358430fd233f6f7a1dbff259fa2ae3b9a2d7e1e2788e",
        ];
        assert_eq!(set.sha256, said);
    }
}
