//! Canonical Huffman codes (Huffman 1952): only the lengths are stored, the codes follow from them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Error;
use crate::bits::{BitReader, BitWriter};
use crate::numbers;

/// The longest code, in bits.
pub(crate) const MAX_LENGTH: u32 = 32;

/// Code lengths for the counts, 0 for a symbol that does not occur; without trailing zeros. A lone symbol gets length 1, although
/// it is written with no bits at all.
pub(crate) fn lengths(counts: &[u64]) -> Vec<u32> {
    let mut weights = counts.to_vec();
    loop {
        let lengths = unbounded(&weights);
        if lengths.iter().all(|length| *length <= MAX_LENGTH) {
            return lengths;
        }
        // Flatter counts give shorter codes; needed only for streams as skewed as the Fibonacci numbers.
        weights.iter_mut().filter(|weight| **weight > 0).for_each(|weight| *weight = *weight / 2 + 1);
    }
}

/// Bits of table and of payload for symbols with these counts.
pub(crate) fn cost(counts: &[u64]) -> (u64, u64) {
    let lengths = lengths(counts);
    (numbers::cost(&lengths), payload(counts, &lengths))
}

/// Table, then payload; also the bits of each.
pub(crate) fn encode(symbols: &[u16], counts: &[u64]) -> (Vec<u8>, u64, u64) {
    let lengths = lengths(counts);
    let mut writer = BitWriter::with_capacity((numbers::cost(&lengths) + payload(counts, &lengths)).div_ceil(8) as usize);
    numbers::put(&mut writer, &lengths);
    let table = writer.length();
    if counts.iter().filter(|count| **count > 0).count() > 1 {
        let codes = codes(&lengths);
        symbols.iter().for_each(|symbol| writer.put(codes[*symbol as usize], lengths[*symbol as usize]));
    }
    let payload = writer.length() - table;
    (writer.finish(), table, payload)
}

/// The symbols, and the bits of table and payload.
pub(crate) fn decode(bytes: &[u8], count: usize, alphabet: usize) -> Result<(Vec<u16>, u64, u64), Error> {
    let mut reader = BitReader::new(bytes);
    let lengths = numbers::get(&mut reader, alphabet)?;
    let table = reader.position();
    if let Some(length) = lengths.iter().find(|length| **length > MAX_LENGTH) {
        return Err(Error::Limit { what: "bits of a Huffman code", found: u64::from(*length), limit: u64::from(MAX_LENGTH) });
    }
    let mut order: Vec<u16> = (0..lengths.len()).filter(|symbol| lengths[*symbol] > 0).map(|symbol| symbol as u16).collect();
    order.sort_by_key(|symbol| lengths[*symbol as usize]);
    let symbols = match order[..] {
        [] => return Err(Error::corrupt("a Huffman table without symbols")),
        [only] if lengths[only as usize] == 1 => vec![only; count],
        _ => {
            let ends = ends(&lengths)?;
            let mut symbols = Vec::with_capacity(count);
            for _ in 0..count {
                let window = u64::from(reader.peek());
                let (length, base, first) = ends.iter().find(|(end, ..)| window < *end).expect("the code is complete").1;
                reader.skip(length)?;
                symbols.push(order[first + ((window - base) >> (MAX_LENGTH - length)) as usize]);
            }
            symbols
        }
    };
    reader.end()?;
    Ok((symbols, table, reader.position() - table))
}

/// For every length in use: where its codes end when they are written left-aligned in 32 bits; the length, where they begin, and
/// the rank of its first symbol. The codes of a shorter length come first.
#[expect(clippy::type_complexity, reason = "a table local to this file")]
fn ends(lengths: &[u32]) -> Result<Vec<(u64, (u32, u64, usize))>, Error> {
    let mut ends = Vec::new();
    let (mut base, mut first) = (0_u64, 0);
    for length in 1..=MAX_LENGTH {
        let symbols = lengths.iter().filter(|of| **of == length).count();
        if symbols > 0 {
            let end = base + ((symbols as u64) << (MAX_LENGTH - length));
            ends.push((end, (length, base, first)));
            (base, first) = (end, first + symbols);
        }
    }
    if base != 1 << MAX_LENGTH {
        return Err(Error::corrupt("the lengths of a Huffman table do not form a complete code"));
    }
    Ok(ends)
}

/// Canonical codes: shorter before longer, then by symbol.
fn codes(lengths: &[u32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..lengths.len()).filter(|symbol| lengths[*symbol] > 0).collect();
    order.sort_by_key(|symbol| lengths[*symbol]);
    let mut codes = vec![0; lengths.len()];
    let mut next = 0_u64;
    for symbol in order {
        codes[symbol] = (next >> (MAX_LENGTH - lengths[symbol])) as u32;
        next += 1 << (MAX_LENGTH - lengths[symbol]);
    }
    codes
}

/// Huffman's merge of the two rarest, ties by age, without a bound on the lengths.
fn unbounded(counts: &[u64]) -> Vec<u32> {
    let used: Vec<usize> = (0..counts.len()).filter(|symbol| counts[*symbol] > 0).collect();
    let mut lengths = vec![0; used.last().map_or(0, |last| last + 1)];
    if let [only] = used[..] {
        lengths[only] = 1;
        return lengths;
    }
    let mut heap: BinaryHeap<_> = used.iter().enumerate().map(|(node, symbol)| Reverse((counts[*symbol], node))).collect();
    let mut parents = vec![0; used.len()];
    while let (Some(Reverse((a, left))), Some(Reverse((b, right)))) = (heap.pop(), heap.pop()) {
        let parent = parents.len();
        parents.push(parent);
        (parents[left], parents[right]) = (parent, parent);
        if !heap.is_empty() {
            heap.push(Reverse((a + b, parent)));
        }
    }
    let mut depths = vec![0_u32; parents.len()];
    for node in (0..parents.len()).rev().skip(1) {
        depths[node] = depths[parents[node]] + 1;
    }
    used.iter().zip(&depths).for_each(|(symbol, depth)| lengths[*symbol] = *depth);
    lengths
}

fn payload(counts: &[u64], lengths: &[u32]) -> u64 {
    match counts.iter().filter(|count| **count > 0).count() {
        0 | 1 => 0,
        _ => counts.iter().zip(lengths).map(|(count, length)| count * u64::from(*length)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{counts, entropy};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn mean_length_is_within_a_bit_of_the_entropy(symbols in prop::collection::vec(0_u16..40, 1..2000)) {
            let counts = counts(&symbols, 40);
            let (bytes, table, payload) = encode(&symbols, &counts);
            prop_assert_eq!((table, payload), cost(&counts));
            let mean = payload as f64 / symbols.len() as f64;
            let entropy = entropy(&counts) / symbols.len() as f64;
            prop_assert!(mean >= entropy - 1e-9 && mean < entropy + 1.0, "{} bits for {}", mean, entropy);
            prop_assert_eq!(decode(&bytes, symbols.len(), 40).unwrap(), (symbols, table, payload));
        }

        #[test]
        fn garbage_is_an_error_or_symbols(bytes in prop::collection::vec(any::<u8>(), 0..60), count in 0_usize..50) {
            let _ = decode(&bytes, count, 16);
        }
    }

    #[test]
    fn fibonacci_counts_stay_within_the_longest_code() {
        let mut counts = vec![1_u64, 1];
        for i in 2..60 {
            counts.push(counts[i - 1] + counts[i - 2]);
        }
        let lengths = lengths(&counts);
        assert!(lengths.iter().all(|length| (1..=MAX_LENGTH).contains(length)));
        assert!(ends(&lengths).is_ok());
    }

    #[test]
    fn incomplete_codes_are_refused() {
        let mut writer = BitWriter::new();
        numbers::put(&mut writer, &[2, 2, 2]);
        assert!(decode(&writer.finish(), 1, 4).is_err());
    }
}
