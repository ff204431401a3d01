//! Cluttered MNIST: each of MNIST's digits somewhere on a black ground of 100x100, among pieces of others. Grey, 60,000 training and 10,000 test images.
//!
//! Made anew as Mnih, Heess, Graves, Kavukcuoglu, "Recurrent Models of Visual Attention", NIPS 2014 (arXiv:1406.6247), describe it, and as Almahairi et
//! al., "Dynamic Capacity Networks", ICML 2016 (arXiv:1511.07838), use it: a digit of 28x28 at a place of its own, and eight pieces of 8x8 pixels cut out
//! of any digits of the same split. Differs from their files in what is drawn, and perhaps in that where things overlap the brighter pixel counts, so
//! that a figure on this set is none on theirs.
//!
//! Image `i` of a split has the label of MNIST's image `i`, and is drawn whenever it is asked for, from stream `i` of ChaCha8 seeded with the split's
//! constant: both splits together would take 700 MB. The bytes are the same on every machine.

use std::sync::Arc;

use crate::{Dataset, Error, Images, Manifest, Outline, Splits, dice::Dice};

/// Name of the set.
pub(crate) const NAME: &str = "cluttered-mnist";

/// Name of the set whose digits are strewn.
pub(crate) const OF: &str = "mnist";

/// Height and width of an image, and of a piece.
const SIDE: usize = 100;
const PIECE: usize = 8;

/// Pieces of an image.
const PIECES: usize = 8;

const TRAIN: u64 = 0x636c_7574_7465_0001;
const TEST: u64 = 0x636c_7574_7465_0002;

/// Both splits, of which nothing is drawn yet.
pub(crate) fn splits(mnist: Splits) -> Result<Splits, Error> {
    let strewn = |name: &str, seed: u64, digits: Dataset| {
        let classes = digits.classes;
        Dataset::new(format!("{NAME} {name}"), [1, SIDE, SIDE], classes, Arc::new(Strewn { seed, digits }))
    };
    let (train, test) = (strewn("train", TRAIN, mnist.train)?, strewn("test", TEST, mnist.test)?);
    Ok(Splits { name: NAME.into(), train, test, classes: mnist.classes, moments: None, sha256: mnist.sha256 })
}

/// What [`splits`] would make.
pub(crate) fn outline(mnist: &Manifest) -> Outline {
    Outline { name: NAME.into(), shape: [1, SIDE, SIDE], classes: mnist.classes.len(), counts: mnist.counts }
}

/// Digits of a split among pieces of others.
#[derive(Debug)]
struct Strewn {
    seed: u64,
    digits: Dataset,
}

impl Images for Strewn {
    fn len(&self) -> usize {
        self.digits.len()
    }

    fn label(&self, i: usize) -> u16 {
        self.digits.label(i)
    }

    fn read(&self, i: usize, pixels: &mut [u8]) -> Result<(), Error> {
        let side = self.digits.shape[1];
        let mut dice = Dice::of(self.seed, i as u64);
        pixels.fill(0);
        for _ in 0..PIECES {
            let digit = self.digits.pixel(dice.below(self.digits.len()))?;
            let from = [dice.below(side - PIECE + 1), dice.below(side - PIECE + 1)];
            let to = [dice.below(SIDE - PIECE + 1), dice.below(SIDE - PIECE + 1)];
            lay(&digit, side, from, PIECE, to, pixels);
        }
        let to = [dice.below(SIDE - side + 1), dice.below(SIDE - side + 1)];
        lay(&self.digits.pixel(i)?, side, [0, 0], side, to, pixels);
        Ok(())
    }
}

/// Lays a square of `size` pixels, from the row and column `from` of a digit of `side`, at the row and column `to` of an image; the brighter pixel counts.
fn lay(digit: &[u8], side: usize, from: [usize; 2], size: usize, to: [usize; 2], image: &mut [u8]) {
    for row in 0..size {
        let source = &digit[(from[0] + row) * side + from[1]..][..size];
        let target = &mut image[(to[0] + row) * SIDE + to[1]..][..size];
        target.iter_mut().zip(source).for_each(|(pixel, new)| *pixel = (*pixel).max(*new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sha256_of;
    use crate::{GlyphCounts, Locations, open};

    /// 40 training and 20 test glyphs, in the place of MNIST.
    fn glyphs() -> Splits {
        let at = Locations { glyphs: GlyphCounts { train: 40, test: 20 }, ..Locations::from_env(None) };
        open("glyphs", &at).expect("drawn")
    }

    /// Twenty digits of 28 by 28 that are full of their number, of which a piece shows whose it is.
    fn flat() -> Splits {
        let images = |name| {
            let pixels = (1..=20_u8).flat_map(|digit| [digit; 784]).collect();
            Dataset::from_memory(name, [1, 28, 28], 20, pixels, (0..20).collect()).expect("consistent")
        };
        let classes = (0..20).map(|class| class.to_string()).collect();
        Splits { name: OF.into(), train: images("train"), test: images("test"), classes, moments: None, sha256: Vec::new() }
    }

    #[test]
    fn each_digit_is_whole_somewhere_among_pieces_of_others() {
        let set = splits(flat()).expect("memory").train;
        let mut places = std::collections::BTreeSet::new();
        for i in 0..set.len() {
            let image = set.pixel(i).expect("memory");
            let (own, label) = (i as u8 + 1, set.label(i));
            // Brighter pieces may cover it, so its corner is where all of a square is as bright at least.
            let whole = |at: usize| (0..784).all(|pixel| image[at + pixel / 28 * SIDE + pixel % 28] >= own);
            let corners = (0..=SIDE - 28).flat_map(|row| (0..=SIDE - 28).map(move |column| row * SIDE + column));
            let found: Vec<usize> = corners.filter(|corner| whole(*corner)).collect();
            assert!(label == i as u16 && !found.is_empty(), "{i}: {found:?}");
            places.insert(found[0]);
            let others = image.iter().filter(|pixel| **pixel != 0 && **pixel != own).count();
            assert!(others > 0 && others <= PIECES * PIECE * PIECE, "{i}: {others}");
        }
        assert!(places.len() > 15, "{places:?}");
        assert_ne!(set.pixel(0).expect("memory"), splits(flat()).expect("memory").test.pixel(0).expect("memory"));
    }

    #[test]
    fn the_bytes_never_change() {
        let set = splits(glyphs()).expect("memory");
        let digest = |set: &Dataset| sha256_of(&(0..set.len()).flat_map(|i| set.pixel(i).expect("memory")).collect::<Vec<_>>());
        let said = [
            "03977d931405ed3a7b892b5546ea2ecc093aa465bbe92153f50d8dc61a7c77e9",
            "41c5e1b3eb418102946e142d56e0f7b050576440a3ecc29d43509c0fbc3e98f9",
        ];
        assert_eq!([digest(&set.train), digest(&set.test)], said);
    }

    #[test]
    fn without_mnist_at_hand_its_files_are_asked_for() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let at = Locations { dirs: vec![dir.path().into()], cache: None, offline: true, glyphs: GlyphCounts::default() };
        let error = open(NAME, &at).expect_err("nothing is there").to_string();
        assert!(error.starts_with("data set 'mnist': train-images-idx3-ubyte.gz"), "{error}");
        let known = crate::outline(NAME, &at).expect("no pixels");
        assert_eq!((known.shape, known.classes, known.counts), ([1, 100, 100], 10, [60_000, 10_000]));
    }
}
