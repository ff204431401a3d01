//! The values of a tensor: plain floats, a codebook and indices into it, or codes on a grid.

use std::collections::HashMap;

use half::f16;

use crate::bytes::{Put as _, Reader};
use crate::stream::Stream;
use crate::{Bits, Coder, Error, Grid, ValueFormat};

/// The longest codebook.
const MAX_CODEBOOK: usize = 1 << 16;

/// The values that a tensor stores: all, or the non-zeros of a sparse one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Codebook { book: Vec<f32>, count: usize, indices: Stream },
    Grid { grid: Grid, count: usize, codes: Stream },
}

impl Values {
    /// Reads plain floats; also returns how many are not zero.
    pub(crate) fn read_plain(reader: &mut Reader<'_>, format: ValueFormat, count: usize) -> Result<(Self, usize), Error> {
        let values = match format {
            ValueFormat::F16 => {
                let bytes = reader.bytes(count.saturating_mul(2))?;
                Values::F16(bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect())
            }
            ValueFormat::F32 | ValueFormat::Codebook | ValueFormat::Grid => Values::F32(floats(reader, count)?),
        };
        let nonzero = match &values {
            Values::F16(values) => values.iter().filter(|value| value.to_f32() != 0.0).count(),
            Values::F32(values) => values.iter().filter(|value| **value != 0.0).count(),
            Values::Codebook { .. } | Values::Grid { .. } => 0,
        };
        Ok((values, nonzero))
    }

    /// Reads codes on this grid.
    pub(crate) fn read_grid(reader: &mut Reader<'_>, grid: Grid, count: usize, coder: Coder) -> Result<Self, Error> {
        let (codes, _) = Stream::read(reader, coder, count, grid.levels as usize)?;
        Ok(Values::Grid { grid, count, codes })
    }

    /// Reads a codebook and indices into it; also returns how many values are not zero.
    pub(crate) fn read_shared(
        reader: &mut Reader<'_>,
        length: usize,
        count: usize,
        coder: Coder,
    ) -> Result<(Self, usize), Error> {
        if length > MAX_CODEBOOK {
            return Err(Error::Limit { what: "codebook", found: length as u64, limit: MAX_CODEBOOK as u64 });
        }
        let book = floats(reader, length)?;
        if !book.is_sorted_by(|a, b| a.total_cmp(b).is_lt()) {
            return Err(Error::corrupt("a codebook is not in ascending order"));
        }
        let (indices, symbols) = Stream::read(reader, coder, count, length)?;
        let nonzero = symbols.iter().filter(|index| book[**index as usize] != 0.0).count();
        Ok((Values::Codebook { book, count, indices }, nonzero))
    }

    /// Appends everything but the lengths, which the tensor's header holds.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Values::F32(values) => values.iter().for_each(|value| out.put_f32(*value)),
            Values::F16(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Values::Codebook { book, indices, .. } => {
                book.iter().for_each(|value| out.put_f32(*value));
                indices.write(out);
            }
            // The grid is in the tensor's header: it says how many symbols there are.
            Values::Grid { codes, .. } => codes.write(out),
        }
    }

    /// Bytes that [`Values::write`] appends.
    pub(crate) fn stored(&self) -> usize {
        match self {
            Values::F32(values) => 4 * values.len(),
            Values::F16(values) => 2 * values.len(),
            Values::Codebook { book, indices, .. } => 4 * book.len() + indices.stored(),
            Values::Grid { codes, .. } => codes.stored(),
        }
    }

    /// Their share of the tensor's bits.
    pub(crate) fn bits(&self) -> Bits {
        match self {
            Values::F32(values) => Bits { values: 32 * values.len() as u64, ..Bits::default() },
            Values::F16(values) => Bits { values: 16 * values.len() as u64, ..Bits::default() },
            Values::Codebook { book, indices, .. } => {
                Bits { values: indices.payload, codebook: 32 * book.len() as u64, tables: indices.table, ..Bits::default() }
            }
            Values::Grid { grid, codes, .. } => {
                Bits { values: codes.payload, codebook: grid.stored_bits(), tables: codes.table, ..Bits::default() }
            }
        }
    }

    /// The stored values as floats; `channel_of` tells the channel of each on a grid.
    pub(crate) fn decode(&self, channel_of: impl FnMut() -> usize) -> Vec<f32> {
        match self {
            Values::F32(values) => values.clone(),
            Values::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Values::Codebook { book, count, indices } => {
                decoded(indices, *count, book.len()).map(|index| book[index as usize]).collect()
            }
            Values::Grid { grid, count, codes } => {
                let channels = std::iter::repeat_with(channel_of);
                decoded(codes, *count, grid.levels as usize).zip(channels).map(|(code, c)| grid.value(c, code)).collect()
            }
        }
    }
}

/// The symbols of a stream that was read or made here.
pub(crate) fn decoded(stream: &Stream, count: usize, alphabet: usize) -> impl Iterator<Item = u16> {
    stream.decode(count, alphabet).expect("a stream was decoded once when it was made").into_iter()
}

/// The distinct values and where each stands.
#[derive(Debug)]
pub(crate) struct Book {
    values: Vec<f32>,
    ranks: HashMap<u32, u16>,
}

impl Book {
    pub(crate) fn of(values: &[f32]) -> Result<Self, Error> {
        let mut ranks: HashMap<u32, u16> = values.iter().map(|value| (value.to_bits(), 0)).collect();
        if ranks.len() > MAX_CODEBOOK {
            return Err(Error::Distinct { found: ranks.len() });
        }
        let mut values: Vec<f32> = ranks.keys().map(|bits| f32::from_bits(*bits)).collect();
        values.sort_by(f32::total_cmp);
        values.iter().enumerate().for_each(|(rank, value)| *ranks.entry(value.to_bits()).or_default() = rank as u16);
        Ok(Self { values, ranks })
    }

    /// Indices and codebook, or plain floats where there is too little to share.
    pub(crate) fn values(&self, values: &[f32], coder: Coder) -> Values {
        let symbols: Vec<u16> = values.iter().map(|value| self.ranks[&value.to_bits()]).collect();
        let indices = Stream::encode(&symbols, self.values.len(), coder);
        let mut length = Vec::new();
        length.put_varint(self.values.len());
        if length.len() + 4 * self.values.len() + indices.stored() >= 4 * values.len() {
            return Values::F32(values.to_vec());
        }
        Values::Codebook { book: self.values.clone(), count: values.len(), indices }
    }
}

fn floats(reader: &mut Reader<'_>, count: usize) -> Result<Vec<f32>, Error> {
    let bytes = reader.bytes(count.saturating_mul(4))?;
    Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
