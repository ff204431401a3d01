//! Tensors whose values are those of fewer: a rule says which one stands at each place, and with which sign.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::bytes::{Put as _, Reader};
use crate::layers::before_turns;
use crate::{Error, MAX_ELEMENTS_TOTAL};

/// Values of which none has an index: the one at a position of the tensor, the last dimension running fastest, is `s values[b]`, where base
/// value `b` and sign `s` are those of [`Places::place`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// Which value stands where.
    pub places: Places,
    /// The base values, at most 2^31.
    pub values: Vec<f32>,
}

/// Which of few values stands at which place of a tensor. Filters are the tensor's first axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Places {
    /// Value and sign follow from a hash of the position, whatever the number of values.
    ///
    /// Chen, Wilson, Tyree, Weinberger, Chen. "Compressing Neural Networks with the Hashing Trick". ICML 2015. arXiv:1504.04788.
    /// Differs from the paper: one hash gives value and sign, and it is that of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
    /// Number Generators", OOPSLA 2014) instead of xxHash.
    Hash {
        /// What the hash depends on besides the position.
        seed: u64,
    },
    /// The filters `[kh, kw]` are the windows of larger meta filters `[sides[0], sides[1]]`, row by row: `n = (sides[0] - kh + 1)
    /// (sides[1] - kw + 1)` filters for each.
    ///
    /// Zhai, Cheng, Lu, Zhang. "Doubly Convolutional Neural Networks". NIPS 2016. arXiv:1610.09716.
    Windows {
        /// Height and width of a meta filter.
        sides: [usize; 2],
    },
    /// The filters are those of a group of quarter turns, counterclockwise, with mirror images or without: filter `f |G| + g` is base filter `f`
    /// moved by element `g = turns + 4 mirrored`: turned, and then mirrored top to bottom. Of inputs `grouped`, which are maps of the group
    /// themselves, channel `c |G| + h` meets channel `c |G| + g^-1 h` of the base filter. Sides of even length turn about the middle of the pixels.
    ///
    /// Cohen, Welling. "Group Equivariant Convolutional Networks". ICML 2016. arXiv:1602.07576.
    Turns {
        /// Whether the group has the mirror images too: 8 elements instead of 4.
        mirrored: bool,
        /// Whether the layer's input has a channel for each element.
        grouped: bool,
    },
    /// All base filters stand `times`, one time after the other: of `N` filters, `f` is base filter `f` modulo `N / times`. As many groups of a
    /// convolution then have the same filters.
    ///
    /// Dieleman, De Fauw, Kavukcuoglu. "Exploiting Cyclic Symmetry in Convolutional Neural Networks". ICML 2016. arXiv:1602.02660.
    Tiles {
        /// At least 1.
        times: usize,
    },
}

impl Places {
    /// Twice the base value at a position of a tensor of this shape, which has `count` of them, plus 1 if the sign is negative. The shape is one
    /// that [`Places::check`] takes.
    ///
    /// A hash is, with 64-bit numbers that wrap around, `x = seed + (position + 1) 0x9e3779b97f4a7c15`,
    /// `x = (x ^ x >> 30) 0xbf58476d1ce4e5b9`, `x = (x ^ x >> 27) 0x94d049bb133111eb`, `x = x ^ x >> 31`; the value is `(x >> 32) count >> 32`,
    /// the sign the lowest bit of `x`.
    pub fn place(&self, shape: &[usize], position: usize, count: usize) -> u32 {
        match *self {
            Places::Hash { seed } => hash(seed, position, count),
            Places::Windows { sides } => 2 * window(shape, position, sides) as u32,
            Places::Turns { mirrored, grouped } => 2 * turned(shape, position, mirrored, grouped) as u32,
            Places::Tiles { times } => 2 * (position % (shape.iter().product::<usize>() / times)) as u32,
        }
    }

    /// Every [`Places::place`] of a tensor of this shape.
    pub fn all(&self, shape: &[usize], count: usize) -> Vec<u32> {
        (0..shape.iter().product()).map(|position| self.place(shape, position, count)).collect()
    }

    /// Number of base values that a tensor of this shape takes; none where any number will do.
    ///
    /// # Errors
    /// When the rule does not fit the shape.
    pub fn count(&self, shape: &[usize]) -> Result<Option<usize>, Error> {
        let misfit = |why: Cow<'_, str>| Err(Error::corrupt(format!("shared values: {why}, where the tensor is {shape:?}")));
        let elements: usize = shape.iter().product();
        match (*self, shape) {
            (Places::Hash { .. }, _) => Ok(None),
            (Places::Windows { sides: [h, w] }, &[filters, channels, kh, kw]) => {
                if kh == 0 || kw == 0 || h < kh || w < kw || h > MAX_SIDE || w > MAX_SIDE {
                    return misfit(format!("meta filters are {h} by {w}").into());
                }
                let each = (h - kh + 1) * (w - kw + 1);
                if !filters.is_multiple_of(each) {
                    return misfit(format!("each meta filter of {h} by {w} gives {each} filters").into());
                }
                Ok(Some((filters / each).saturating_mul(channels).saturating_mul(h * w)))
            }
            (Places::Turns { mirrored, grouped }, &[filters, channels, kh, kw]) => {
                let order = order(mirrored);
                let whole = filters.is_multiple_of(order) && (!grouped || channels.is_multiple_of(order));
                if kh != kw || !whole {
                    return misfit(format!("filters that turn are square, and they and grouped channels come by {order}").into());
                }
                Ok(Some(elements / order))
            }
            (Places::Tiles { times }, &[filters, ..]) => {
                if times == 0 || !filters.is_multiple_of(times) {
                    return misfit(format!("each filter stands {times} times").into());
                }
                Ok(Some(elements / times))
            }
            (Places::Windows { .. } | Places::Turns { .. }, _) => misfit("filters have channels, height and width".into()),
            (Places::Tiles { .. }, []) => misfit("there are filters".into()),
        }
    }

    /// Whether so many base values make a tensor of this shape.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self, shape: &[usize], values: usize) -> Result<(), Error> {
        if values > MAX_VALUES {
            return Err(Error::Limit { what: "shared values", found: values as u64, limit: MAX_VALUES as u64 });
        }
        match self.count(shape)? {
            Some(count) if count != values => {
                Err(Error::corrupt(format!("{values} shared values, where a tensor of shape {shape:?} takes {count}")))
            }
            None if values == 0 => Err(Error::corrupt("shared values: there are none")),
            _ => Ok(()),
        }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Places::Hash { seed } => {
                out.push(0);
                out.extend(seed.to_le_bytes());
            }
            Places::Windows { sides } => {
                out.push(1);
                sides.into_iter().for_each(|side| out.put_varint(side));
            }
            Places::Turns { mirrored, grouped } => out.extend([2, u8::from(mirrored) | u8::from(grouped) << 1]),
            Places::Tiles { times } => {
                out.push(4);
                out.put_varint(times);
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(match reader.byte()? {
            0 => Places::Hash { seed: u64::from_le_bytes(reader.array()?) },
            1 => Places::Windows { sides: [reader.varint()?, reader.varint()?] },
            2 => match reader.byte()? {
                flags @ 0..=3 => Places::Turns { mirrored: flags & 1 == 1, grouped: flags & 2 == 2 },
                flags => return Err(Error::corrupt(format!("flags of shared values {flags:08b}"))),
            },
            4 => Places::Tiles { times: reader.varint()? },
            rule => return Err(Error::corrupt(format!("shared values by rule {rule}"))),
        })
    }
}

impl Shared {
    /// The value of a [`Places::place`].
    pub fn at(values: &[f32], place: u32) -> f32 {
        let value = values[place as usize / 2];
        if place.is_multiple_of(2) { value } else { -value }
    }

    /// The tensor of this shape.
    pub fn expand(&self, shape: &[usize]) -> Vec<f32> {
        (0..shape.iter().product()).map(|position| self.value(shape, position)).collect()
    }

    /// The value at a position of a tensor of this shape.
    pub fn value(&self, shape: &[usize], position: usize) -> f32 {
        Self::at(&self.values, self.places.place(shape, position, self.values.len()))
    }
}

fn hash(seed: u64, position: usize, count: usize) -> u32 {
    let mut x = seed.wrapping_add((position as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    let value = ((x >> 32) * count as u64) >> 32;
    (value << 1 | x & 1) as u32
}

/// Filter, channel, row and column of a position.
fn apart(shape: &[usize], position: usize) -> [usize; 4] {
    let [channels, kh, kw] = [shape[1], shape[2], shape[3]];
    [position / (channels * kh * kw), position / (kh * kw) % channels, position / kw % kh, position % kw]
}

fn window(shape: &[usize], position: usize, [h, w]: [usize; 2]) -> usize {
    let [filter, channel, y, x] = apart(shape, position);
    let (down, across) = (h - shape[2] + 1, w - shape[3] + 1);
    let (meta, window) = (filter / (down * across), filter % (down * across));
    ((meta * shape[1] + channel) * h + window / across + y) * w + window % across + x
}

/// Elements of the group.
fn order(mirrored: bool) -> usize {
    if mirrored { 8 } else { 4 }
}

fn turned(shape: &[usize], position: usize, mirrored: bool, grouped: bool) -> usize {
    let ([filter, channel, y, x], side, order) = (apart(shape, position), shape[2], order(mirrored));
    let (base, element) = (filter / order, filter % order);
    // What stands here came from where the element took it: the mirror, which comes last, is undone first.
    let y = if element >= 4 { side - 1 - y } else { y };
    let [y, x] = before_turns(side, element % 4, [y, x]);
    let channel = if grouped { channel / order * order + undone(element, channel % order) } else { channel };
    ((base * shape[1] + channel) * side + y) * side + x
}

/// `g^-1 h` of elements `turns + 4 mirrored`, each `M^mirrored R^turns`: a mirroring turns the turns that it passes around, `R^-r M = M R^r`.
fn undone(g: usize, h: usize) -> usize {
    let ((turns, mirrored), (other, too)) = ((g % 4, g / 4), (h % 4, h / 4));
    let turns = if mirrored == too { other + 4 - turns } else { other + turns };
    turns % 4 + 4 * (mirrored ^ too)
}

/// The most base values: a place has 32 bits.
const MAX_VALUES: usize = 1 << 31;
/// The longest side of a meta filter.
const MAX_SIDE: usize = 1 << 12;

const _: () = assert!(MAX_ELEMENTS_TOTAL <= MAX_VALUES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_specification() {
        // The first outputs of SplitMix64 from the states 0 and 1234567, as its authors' program prints them.
        let x: [u64; 3] = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        let place = |x: u64, count: u64| ((((x >> 32) * count) >> 32) << 1 | x & 1) as u32;
        for count in [1, 7, 1000] {
            let found = Places::Hash { seed: 0 }.all(&[3], count);
            assert_eq!(found, x.map(|x| place(x, count as u64)));
        }
        let other = Places::Hash { seed: 1_234_567 }.place(&[1], 0, 1 << 31);
        assert_eq!(other / 2, (6_457_827_717_110_365_317_u64 >> 33) as u32);
    }

    #[test]
    fn hashed_values_and_signs_are_spread_evenly() {
        let (count, values) = (100_000, 64);
        let mut counts = vec![0_i32; 2 * values];
        Places::Hash { seed: 9 }.all(&[count], values).into_iter().for_each(|place| counts[place as usize] += 1);
        let mean = count as f64 / (2 * values) as f64;
        let chi: f64 = counts.iter().map(|count| (f64::from(*count) - mean).powi(2) / mean).sum();
        // 127 degrees of freedom: mean 127, deviation 16.
        assert!((127.0 - chi).abs() < 5.0 * 16.0, "{chi}");
    }

    /// The tensor of these base values `1, 2, ...`.
    fn spread(places: Places, shape: &[usize]) -> Vec<f32> {
        let count = places.count(shape).unwrap().unwrap();
        let shared = Shared { places, values: (1..=count).map(|v| v as f32).collect() };
        places.check(shape, count).unwrap();
        assert!(places.check(shape, count + 1).is_err());
        let values = shared.expand(shape);
        let distinct: std::collections::BTreeSet<u32> = values.iter().map(|v| v.abs() as u32).collect();
        assert_eq!(distinct.len(), count, "every base value stands somewhere");
        values
    }

    #[test]
    fn windows_slide_over_a_meta_filter() {
        let values = spread(Places::Windows { sides: [3, 3] }, &[4, 1, 2, 2]);
        let windows = [[1.0, 2.0, 4.0, 5.0], [2.0, 3.0, 5.0, 6.0], [4.0, 5.0, 7.0, 8.0], [5.0, 6.0, 8.0, 9.0]];
        assert_eq!(values, windows.concat());
        // A second channel and a second meta filter have values of their own.
        assert_eq!(spread(Places::Windows { sides: [3, 3] }, &[8, 2, 2, 2])[..4], windows[0]);
    }

    #[test]
    fn turns_are_counterclockwise_and_come_before_mirrors() {
        let (still, turned) = ([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 1.0, 3.0]);
        let values = spread(Places::Turns { mirrored: false, grouped: false }, &[4, 1, 2, 2]);
        assert_eq!(values, [still, turned, [4.0, 3.0, 2.0, 1.0], [3.0, 1.0, 4.0, 2.0]].concat());
        let values = spread(Places::Turns { mirrored: true, grouped: false }, &[8, 1, 2, 2]);
        assert_eq!(values[16..24], [[3.0, 4.0, 1.0, 2.0], [1.0, 3.0, 2.0, 4.0]].concat());
    }

    /// The index maps of GrouPy (Cohen, github.com/tscohen/GrouPy): for each element and input element the places of a base filter.
    #[test]
    fn turned_filters_are_those_of_the_authors_program() {
        let maps = include_str!("shared/turns.txt");
        let mut seen = 0;
        for line in maps.lines() {
            let (head, places) = line.split_once(':').unwrap();
            let numbers = |text: &str| text.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<usize>>();
            let [order, inputs, side] = numbers(head)[..] else { panic!("{head}") };
            let rule = Places::Turns { mirrored: order == 8, grouped: inputs > 1 };
            let found = rule.all(&[order, inputs, side, side], inputs * side * side);
            assert_eq!(found, numbers(places).iter().map(|place| 2 * *place as u32).collect::<Vec<_>>(), "{head}");
            seen += 1;
        }
        assert_eq!(seen, 9);
    }

    #[test]
    fn tiles_stand_one_time_after_the_other() {
        let values = spread(Places::Tiles { times: 2 }, &[4, 2]);
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(spread(Places::Tiles { times: 3 }, &[3, 1, 1, 2]), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    }

    #[test]
    fn elements_of_the_group_undo_each_other() {
        for g in 0..8 {
            assert_eq!(undone(g, g), 0);
            let all: std::collections::BTreeSet<usize> = (0..8).map(|h| undone(g, h)).collect();
            assert_eq!((undone(0, g), all.len()), (g, 8));
            // (g k)^-1 h = k^-1 (g^-1 h), where g k is the element that g undoes to k.
            for h in 0..8 {
                let k = undone(g, h);
                assert!((0..8).all(|other| undone(k, undone(g, other)) == undone(h, other)), "{g} {h}");
            }
        }
    }

    #[test]
    fn rules_that_do_not_fit_are_refused() {
        let refused: [(Places, &[usize]); 9] = [
            (Places::Windows { sides: [3, 3] }, &[5, 1, 2, 2]),
            (Places::Windows { sides: [1, 3] }, &[4, 1, 2, 2]),
            (Places::Windows { sides: [1 << 20, 1 << 60] }, &[4, 1, 2, 2]),
            (Places::Windows { sides: [3, 3] }, &[4, 4]),
            (Places::Turns { mirrored: true, grouped: false }, &[4, 1, 2, 2]),
            (Places::Turns { mirrored: false, grouped: true }, &[4, 3, 2, 2]),
            (Places::Turns { mirrored: false, grouped: false }, &[4, 1, 2, 3]),
            (Places::Tiles { times: 0 }, &[4, 1]),
            (Places::Tiles { times: 4 }, &[6, 1, 3, 3]),
        ];
        for (places, shape) in refused {
            assert!(places.count(shape).is_err(), "{places:?} {shape:?}");
        }
        assert!(Places::Hash { seed: 0 }.check(&[4], 0).is_err());
    }

    #[test]
    fn rules_come_back_from_bytes() {
        let all = [
            Places::Hash { seed: u64::MAX - 3 },
            Places::Windows { sides: [4, 300] },
            Places::Turns { mirrored: true, grouped: false },
            Places::Turns { mirrored: false, grouped: true },
            Places::Tiles { times: 300 },
        ];
        for places in all {
            let mut bytes = Vec::new();
            places.write(&mut bytes);
            let mut reader = Reader::new(&bytes);
            assert_eq!(Places::read(&mut reader).unwrap(), places);
        }
        assert!(Places::read(&mut Reader::new(&[5, 0, 0])).is_err() && Places::read(&mut Reader::new(&[2, 4])).is_err());
    }
}
