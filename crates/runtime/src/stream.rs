//! A sequence of symbols below some alphabet size, in the smallest of the permitted codings.

use rayon::prelude::*;

use crate::bits::{BitReader, BitWriter};
use crate::bytes::{Put as _, Reader};
use crate::container::MAX_EXPANSION;
use crate::{Coder, Error, huffman, rans};

/// Symbols that one thread takes at a time; fixed, so that no result depends on the number of threads.
pub(crate) const TASK: usize = 1 << 18;

/// One coded sequence. How many symbols it holds and of which alphabet is known to its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stream {
    coder: Coder,
    bytes: Vec<u8>,
    /// Bits of the coder's table at the front.
    pub(crate) table: u64,
    /// Bits of the symbols.
    pub(crate) payload: u64,
}

impl Stream {
    /// The smallest coding among `allowed` and the plainer ones; ties go to the plainer.
    pub(crate) fn encode(symbols: &[u16], alphabet: usize, allowed: Coder) -> Self {
        let counts = counts(symbols, alphabet);
        // A Huffman code's size follows from the counts, so that of the two plain codings only one is carried out.
        let huffman = allowed >= Coder::Huffman && {
            let (table, payload) = huffman::cost(&counts);
            let (packed, length) = (packed(symbols.len(), alphabet), (table + payload).div_ceil(8) as usize);
            fits(symbols.len(), length) && varint_len(length) + length < packed
        };
        let plain = || Self::with(symbols, &counts, if huffman { Coder::Huffman } else { Coder::Packed });
        let entropy = || if allowed >= Coder::Entropy { Self::with(symbols, &counts, Coder::Entropy) } else { None };
        let (plain, entropy) = rayon::join(plain, entropy);
        [plain, entropy].into_iter().flatten().min_by_key(Self::stored).expect("one of the plain codings is always possible")
    }

    /// Bits that `coder` needs for symbols with these counts; a close estimate for the entropy coder.
    pub(crate) fn cost(counts: &[u64], coder: Coder) -> Option<u64> {
        let total: u64 = counts.iter().sum();
        match coder {
            Coder::Packed => Some(total * u64::from(width(counts.len()))),
            Coder::Huffman => Some(huffman::cost(counts)).map(|(table, payload)| table + payload),
            Coder::Entropy => rans::cost(counts).map(|(table, payload)| table + payload),
        }
    }

    /// The symbols again.
    pub(crate) fn decode(&self, count: usize, alphabet: usize) -> Result<Vec<u16>, Error> {
        decode(self.coder, &self.bytes, count, alphabet).map(|(symbols, ..)| symbols)
    }

    pub(crate) fn coder(&self) -> Coder {
        self.coder
    }

    /// Bytes that [`Stream::write`] appends.
    pub(crate) fn stored(&self) -> usize {
        let length = if self.coder == Coder::Packed { 0 } else { varint_len(self.bytes.len()) };
        length + self.bytes.len()
    }

    /// Appends the bytes, preceded by their number where the count of symbols does not tell it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        if self.coder != Coder::Packed {
            out.put_varint(self.bytes.len());
        }
        out.extend_from_slice(&self.bytes);
    }

    /// Reads and checks a stream; also returns its symbols.
    pub(crate) fn read(reader: &mut Reader<'_>, coder: Coder, count: usize, alphabet: usize) -> Result<(Self, Vec<u16>), Error> {
        let length = match coder {
            Coder::Packed => packed(count, alphabet),
            Coder::Huffman | Coder::Entropy => reader.varint()?,
        };
        let bytes = reader.bytes(length)?;
        let (symbols, table, payload) = decode(coder, bytes, count, alphabet)?;
        Ok((Self { coder, bytes: bytes.to_vec(), table, payload }, symbols))
    }

    /// With exactly this coder; none when it cannot, or packs more symbols into a byte than a reader accepts.
    fn with(symbols: &[u16], counts: &[u64], coder: Coder) -> Option<Self> {
        let (bytes, table, payload) = match coder {
            Coder::Packed => {
                let width = width(counts.len());
                let mut writer = BitWriter::with_capacity(packed(symbols.len(), counts.len()));
                symbols.iter().for_each(|symbol| writer.put(u32::from(*symbol), width));
                let payload = writer.length();
                (writer.finish(), 0, payload)
            }
            Coder::Huffman => huffman::encode(symbols, counts),
            Coder::Entropy => rans::encode(symbols, counts)?,
        };
        fits(symbols.len(), bytes.len()).then_some(Self { coder, bytes, table, payload })
    }
}

/// Whether so many bytes may stand for so many elements: this bounds what a hostile file can make a reader allocate.
pub(crate) fn fits(elements: usize, bytes: usize) -> bool {
    elements <= bytes.saturating_add(1).saturating_mul(MAX_EXPANSION)
}

/// Bytes of symbols of a fixed width.
fn packed(symbols: usize, alphabet: usize) -> usize {
    (symbols as u64 * u64::from(width(alphabet))).div_ceil(8) as usize
}

/// Bytes of a number as [`Put::put_varint`](crate::bytes::Put::put_varint) writes it.
fn varint_len(number: usize) -> usize {
    let mut bytes = Vec::new();
    bytes.put_varint(number);
    bytes.len()
}

/// Bits of a fixed-width symbol.
pub(crate) fn width(alphabet: usize) -> u32 {
    (usize::BITS - alphabet.saturating_sub(1).leading_zeros()).max(1)
}

/// How often each symbol occurs.
pub(crate) fn counts(symbols: &[u16], alphabet: usize) -> Vec<u64> {
    let none = || vec![0; alphabet];
    let count = |mut counts: Vec<u64>, symbols: &[u16]| {
        symbols.iter().for_each(|symbol| counts[*symbol as usize] += 1);
        counts
    };
    let sum = |mut a: Vec<u64>, b: Vec<u64>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    symbols.par_chunks(TASK).fold(none, count).reduce(none, sum)
}

/// The empirical entropy of all symbols together, in bits.
#[cfg(test)]
pub(crate) fn entropy(counts: &[u64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    counts.iter().filter(|count| **count > 0).map(|count| *count as f64 * (total / *count as f64).log2()).sum()
}

/// The symbols, every one below `alphabet`, and the bits of table and payload.
fn decode(coder: Coder, bytes: &[u8], count: usize, alphabet: usize) -> Result<(Vec<u16>, u64, u64), Error> {
    if !fits(count, bytes.len()) {
        return Err(Error::Limit {
            what: "symbols in a stream",
            found: count as u64,
            limit: (bytes.len() as u64 + 1) * MAX_EXPANSION as u64,
        });
    }
    match coder {
        Coder::Packed => {
            let width = width(alphabet);
            let mut reader = BitReader::new(bytes);
            let mut symbols = Vec::with_capacity(count);
            for _ in 0..count {
                let symbol = reader.get(width)?;
                if symbol as usize >= alphabet {
                    return Err(Error::corrupt(format!("symbol {symbol} of an alphabet of {alphabet}")));
                }
                symbols.push(symbol as u16);
            }
            reader.end()?;
            Ok((symbols, 0, reader.position()))
        }
        Coder::Huffman => huffman::decode(bytes, count, alphabet),
        Coder::Entropy => rans::decode(bytes, count, alphabet),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn symbols() -> impl Strategy<Value = Vec<u16>> {
        prop_oneof![
            prop::collection::vec(0_u16..16, 0..300),
            prop::collection::vec(prop_oneof![9 => Just(3_u16), 1 => 0_u16..16], 0..9000),
        ]
    }

    proptest! {
        #[test]
        fn a_better_coder_is_never_larger(symbols in symbols()) {
            let sizes = [Coder::Packed, Coder::Huffman, Coder::Entropy].map(|coder| {
                let stream = Stream::encode(&symbols, 16, coder);
                let mut bytes = Vec::new();
                stream.write(&mut bytes);
                assert_eq!(bytes.len(), stream.stored());
                let mut reader = Reader::new(&bytes);
                let (back, decoded) = Stream::read(&mut reader, stream.coder(), symbols.len(), 16).unwrap();
                assert!(back == stream && decoded == symbols && reader.left() == 0);
                bytes.len()
            });
            prop_assert!(sizes[0] >= sizes[1] && sizes[1] >= sizes[2], "{:?}", sizes);
        }
    }

    #[test]
    fn the_specification_s_examples() {
        let symbols: Vec<u16> = (0..64_u16).map(|i| [0, 0, 0, 0, 1, 0, 2, 0][i as usize % 8]).collect();
        let hex = |coder| {
            let stream = Stream::with(&symbols, &counts(&symbols, 4), coder).unwrap();
            stream.bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(hex(Coder::Packed)[..11], *"00 48 00 48");
        assert_eq!(hex(Coder::Huffman), "9c 1b 84 c1 30 4c 13 04 c1 30 4c 13 00");
        assert_eq!(hex(Coder::Entropy), "29 00 e8 00 80 b8 dd c9 89 c2 56 a7 48 01");
    }

    #[test]
    fn widths_are_the_logarithm() {
        assert_eq!([1, 2, 3, 4, 5, 64, 65, 65_536].map(width), [1, 1, 2, 2, 3, 6, 7, 16]);
    }
}
