//! Range asymmetric numeral systems (Duda 2013, arXiv:1311.2540) over a static frequency table, by the crate `constriction`.
//!
//! Frequencies sum to `2^precision`; a tensor of a hundred weights wants a coarse and cheap table, one of a million a fine one.

use constriction::stream::Decode as _;
use constriction::stream::model::ContiguousCategoricalEntropyModel;
use constriction::stream::stack::DefaultAnsCoder;

use crate::Error;
use crate::bits::{BitReader, BitWriter};
use crate::numbers;

/// The coder's own precision; coarser frequencies are scaled up to it.
const PRECISION: u32 = 16;
/// More symbols than this leave no room for frequencies of different sizes.
const MAX_SYMBOLS: usize = 1 << 12;

type Frequencies = ContiguousCategoricalEntropyModel<u32, Vec<u32>, { PRECISION as usize }>;

/// Bits of table and, closely, of payload; none when the alphabet has fewer than two symbols in use or too many.
pub(crate) fn cost(counts: &[u64]) -> Option<(u64, u64)> {
    best(counts).map(|(table, payload, ..)| (table, payload))
}

/// Table, then payload; also the bits of each. None when [`cost`] is none.
pub(crate) fn encode(symbols: &[u16], counts: &[u64]) -> Option<(Vec<u8>, u64, u64)> {
    let (table_bits, payload_bits, precision, frequencies) = best(counts)?;
    let (ranks, model) = model(&frequencies, precision)?;
    // An empty stack of words that has room for all.
    let mut coder = DefaultAnsCoder::from_compressed(Vec::with_capacity(payload_bits.div_ceil(32) as usize + 2)).ok()?;
    coder.encode_iid_symbols_reverse(symbols.iter().map(|symbol| ranks[*symbol as usize]), &model).ok()?;
    let words = coder.into_compressed().ok()?;

    let mut writer = BitWriter::with_capacity((table_bits + payload_bits).div_ceil(8) as usize + 4);
    put_table(&mut writer, &frequencies, precision);
    debug_assert_eq!(writer.length(), table_bits);
    let mut bytes = writer.finish();
    let table = bytes.len();
    words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    // The last word is the top of the coder's state; its leading zeros are implied.
    bytes.truncate(bytes[table..].iter().rposition(|byte| *byte != 0).map_or(table, |last| table + last + 1));
    let payload = bytes.len() - table;
    Some((bytes, table_bits, payload as u64 * 8))
}

/// The symbols, and the bits of table and payload.
pub(crate) fn decode(bytes: &[u8], count: usize, alphabet: usize) -> Result<(Vec<u16>, u64, u64), Error> {
    let mut reader = BitReader::new(bytes);
    let precision = reader.get(4)? + 1;
    let mut frequencies = numbers::get(&mut reader, alphabet.saturating_sub(1))?;
    let table_bits = reader.position();
    let (table, payload) = bytes.split_at(table_bits.div_ceil(8) as usize);
    let mut fill = BitReader::new(table);
    fill.skip(table_bits as u32)?;
    fill.end()?;

    let listed: u64 = frequencies.iter().map(|frequency| u64::from(*frequency)).sum();
    let implied = (1_u64 << precision).checked_sub(listed).filter(|last| *last > 0 && listed > 0);
    frequencies.push(implied.ok_or_else(|| Error::corrupt(format!("frequencies sum to {listed} of 2^{precision}")))? as u32);
    let used: Vec<u16> = (0..frequencies.len()).filter(|symbol| frequencies[*symbol] > 0).map(|symbol| symbol as u16).collect();
    let (_, model) = model(&frequencies, precision).ok_or_else(|| Error::corrupt("not a frequency table"))?;

    if payload.last() == Some(&0) {
        return Err(Error::corrupt("an entropy-coded stream ends in a zero"));
    }
    let words: Vec<u32> =
        payload.chunks(4).map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))).collect();
    let mut coder = DefaultAnsCoder::from_compressed(words).map_err(|_| Error::corrupt("not an entropy-coded stream"))?;
    let mut symbols = Vec::with_capacity(count);
    for rank in coder.decode_iid_symbols(count, &model) {
        let rank = rank.map_err(|_| Error::corrupt("not an entropy-coded stream"))?;
        symbols.push(used[rank]);
    }
    if !coder.is_empty() {
        return Err(Error::corrupt("an entropy-coded stream holds more than its symbols"));
    }
    Ok((symbols, table_bits, payload.len() as u64 * 8))
}

/// Bits of table and payload, precision and frequencies of the cheapest table.
fn best(counts: &[u64]) -> Option<(u64, u64, u32, Vec<u32>)> {
    let used = counts.iter().filter(|count| **count > 0).count();
    if !(2..=MAX_SYMBOLS).contains(&used) {
        return None;
    }
    let coarsest = usize::BITS - (used - 1).leading_zeros();
    (coarsest..=PRECISION)
        .map(|precision| {
            let frequencies = quantize(counts, precision);
            let mut table = BitWriter::new();
            put_table(&mut table, &frequencies, precision);
            (table.length(), payload(counts, &frequencies, precision), precision, frequencies)
        })
        .min_by_key(|(table, payload, ..)| table + payload)
}

/// The precision, then all frequencies but the last, which is implied.
fn put_table(writer: &mut BitWriter, frequencies: &[u32], precision: u32) {
    writer.put(precision - 1, 4);
    numbers::put(writer, &frequencies[..frequencies.len() - 1]);
}

/// Frequencies in proportion to the counts that sum to `2^precision`, at least 1 for every symbol in use, ending at the last of
/// them.
fn quantize(counts: &[u64], precision: u32) -> Vec<u32> {
    let last = counts.iter().rposition(|count| *count > 0).expect("symbols are in use");
    let total: u128 = counts.iter().map(|count| u128::from(*count)).sum();
    let exact = |symbol: usize| u128::from(counts[symbol]) << precision;
    let mut frequencies: Vec<u32> =
        (0..=last).map(|symbol| if counts[symbol] == 0 { 0 } else { (exact(symbol) / total).max(1) as u32 }).collect();
    let mut order: Vec<usize> = (0..=last).filter(|symbol| counts[*symbol] > 0).collect();
    let sum: i64 = frequencies.iter().map(|frequency| i64::from(*frequency)).sum();
    let mut missing = (1_i64 << precision) - sum;
    // What rounding down left over goes to the largest remainders; what rounding up to 1 took comes from the largest frequencies.
    order.sort_by_key(|symbol| std::cmp::Reverse(exact(*symbol) % total));
    for symbol in order.iter().cycle().take(missing.max(0) as usize) {
        frequencies[*symbol] += 1;
        missing -= 1;
    }
    while missing < 0 {
        let largest = order.iter().copied().max_by_key(|symbol| frequencies[*symbol]).expect("symbols are in use");
        let next = order.iter().filter(|symbol| **symbol != largest).map(|symbol| frequencies[*symbol]).max().unwrap_or(1);
        let step = i64::from(frequencies[largest] - next.min(frequencies[largest] - 1)).clamp(1, -missing);
        frequencies[largest] -= step as u32;
        missing += step;
    }
    frequencies
}

/// Bits of the payload, with the coder's last partial byte.
fn payload(counts: &[u64], frequencies: &[u32], precision: u32) -> u64 {
    let used = counts.iter().zip(frequencies).filter(|(count, _)| **count > 0);
    let bits: f64 = used.map(|(count, frequency)| *count as f64 * (f64::from(precision) - f64::from(*frequency).log2())).sum();
    bits.ceil() as u64 + 8
}

/// The coder's model over the symbols in use, and the rank of every symbol among these.
fn model(frequencies: &[u32], precision: u32) -> Option<(Vec<usize>, Frequencies)> {
    let mut used = 0;
    let ranks = frequencies
        .iter()
        .map(|frequency| {
            used += usize::from(*frequency > 0);
            used.saturating_sub(1)
        })
        .collect();
    let scaled = frequencies.iter().filter(|frequency| **frequency > 0).map(|frequency| frequency << (PRECISION - precision));
    let model = Frequencies::from_nonzero_fixed_point_probabilities(scaled, false).ok()?;
    Some((ranks, model))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{counts, entropy};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn symbols_come_back(symbols in prop::collection::vec(0_u16..30, 2..500)) {
            let counts = counts(&symbols, 32);
            if let Some((bytes, table, payload)) = encode(&symbols, &counts) {
                prop_assert!(bytes.len() as u64 * 8 >= table + payload);
                prop_assert_eq!(decode(&bytes, symbols.len(), 32).unwrap(), (symbols, table, payload));
            } else {
                prop_assert!(counts.iter().filter(|count| **count > 0).count() < 2);
            }
        }

        #[test]
        fn frequencies_are_complete(counts in prop::collection::vec(0_u64..5000, 2..300)) {
            let used = counts.iter().filter(|count| **count > 0).count();
            prop_assume!(used > 1);
            for precision in 9..=16 {
                let frequencies = quantize(&counts, precision);
                prop_assert_eq!(frequencies.iter().sum::<u32>(), 1 << precision);
                prop_assert!(frequencies.iter().zip(&counts).all(|(frequency, count)| (*frequency > 0) == (*count > 0)));
            }
        }

        #[test]
        fn garbage_is_an_error_or_symbols(bytes in prop::collection::vec(any::<u8>(), 0..60), count in 0_usize..50) {
            let _ = decode(&bytes, count, 16);
        }
    }

    #[test]
    fn a_long_stream_is_within_a_hundredth_of_its_entropy() {
        // A linear congruential generator; the minimum of three draws makes a skewed distribution over 64 symbols.
        let mut state = 1_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 58) as u16
        };
        let symbols: Vec<u16> = (0..200_000).map(|_| draw().min(draw()).min(draw())).collect();
        let counts = counts(&symbols, 64);
        let (_, table, payload) = encode(&symbols, &counts).unwrap();
        let entropy = entropy(&counts);
        assert!((payload as f64) < entropy * 1.01, "{payload} bits for {entropy}");
        assert!((table as f64) < entropy * 0.01);
    }
}
