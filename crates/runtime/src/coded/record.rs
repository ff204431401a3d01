//! A tensor in the container: its header, and what follows it.

use super::{Coded, Mask, elements, marked::is_kept, values_left};
use crate::bytes::{Put as _, Reader};
use crate::container::MAX_RANK;
use crate::gaps::Gaps;
use crate::values::{ProductHeader, SharedHeader, Values};
use crate::{Coder, Error, Grid, ValueFormat};
/// The flag of a sparse tensor.
const SPARSE: u8 = 0x10;
/// The flag of a dense tensor whose positive zeros are masked.
const ZEROS: u8 = 0x20;

/// What a header says of values beside their format.
enum Header {
    Plain,
    /// Entries of the codebook.
    Codebook(usize),
    Grid(Grid),
    Shared(SharedHeader),
    Product(ProductHeader),
}

impl Coded {
    /// Bytes that [`Coded::write`] appends.
    pub(crate) fn stored(&self) -> usize {
        self.header().len() + self.body()
    }

    /// Appends the tensor's record.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.header());
        if let Some(gaps) = self.mask.gaps() {
            gaps.stream.write(out);
        }
        self.values.write(out);
    }

    /// Reads a record and decodes it once, so that what is returned is known to be whole.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let flags = reader.byte()?;
        let rank = reader.varint()?;
        if rank > MAX_RANK {
            return Err(Error::Limit { what: "dimensions", found: rank as u64, limit: MAX_RANK as u64 });
        }
        let shape = (0..rank).map(|_| reader.varint()).collect::<Result<Vec<_>, _>>()?;
        let elements = elements(&shape)?;
        let sparse = flags & SPARSE != 0;
        let format = format(flags & 3 | flags >> 7 << 2)?;
        let zeros = !sparse && flags & ZEROS != 0;
        let (index_coder, gap_coder) =
            (Coder::of(flags >> 2 & 3)?, Coder::of(if zeros { flags >> 6 & 1 } else { flags >> 5 & 3 })?);
        let indexed = matches!(format, ValueFormat::Codebook | ValueFormat::Grid);
        if (!indexed && index_coder != Coder::Packed) || (!sparse && gap_coder != Coder::Packed) {
            return Err(Error::corrupt(format!("tensor flags {flags:08b}")));
        }
        let (gap_bits, entries) = if sparse { (u32::from(reader.byte()?) + 1, reader.varint()?) } else { (0, 0) };
        let header = match format {
            ValueFormat::F32 | ValueFormat::F16 => Header::Plain,
            ValueFormat::Codebook => Header::Codebook(reader.varint()?),
            ValueFormat::Grid => Header::Grid(Grid::read(reader, &shape)?),
            ValueFormat::Shared => Header::Shared(SharedHeader::read(reader, &shape)?),
            ValueFormat::Product => Header::Product(ProductHeader::read(reader, &shape)?),
        };
        let gaps = if sparse { Some(Gaps::read(reader, gap_coder, gap_bits, entries, elements)?) } else { None };
        let count = gaps.as_ref().map_or(elements, Gaps::values);
        let (values, nonzero) = match header {
            Header::Plain => Values::read_plain(reader, format, count)?,
            Header::Codebook(entries) => Values::read_codebook(reader, entries, count, index_coder)?,
            Header::Grid(grid) => (Values::read_grid(reader, grid, count, index_coder)?, 0),
            Header::Shared(header) => (Values::read_shared(reader, header)?, 0),
            Header::Product(header) => (Values::read_product(reader, header)?, 0),
        };
        let mask = match gaps {
            Some(gaps) => Mask::Gaps(gaps),
            None if zeros => Mask::Zeros,
            None => Mask::None,
        };
        let mut coded = Self { shape, nonzero, mask, values };
        if !coded.bounded(elements) {
            return Err(Error::corrupt(format!("{elements} elements in {} byte(s)", coded.body())));
        }
        if matches!(format, ValueFormat::Grid | ValueFormat::Shared | ValueFormat::Product) {
            coded.nonzero = values_left(&coded.decode());
        }
        let nothing = match coded.mask {
            Mask::None => false,
            Mask::Zeros => coded.marked().into_iter().all(is_kept),
            Mask::Gaps(_) => count == elements,
        };
        if nothing { Err(Error::corrupt("a mask that keeps everything".to_string())) } else { Ok(coded) }
    }

    fn header(&self) -> Vec<u8> {
        let summary = self.summary();
        let format = match summary.value_format {
            ValueFormat::F32 => 0,
            ValueFormat::F16 => 1,
            ValueFormat::Codebook => 2,
            ValueFormat::Grid => 3,
            ValueFormat::Shared => 4,
            ValueFormat::Product => 5,
        };
        // A product's stages have a coder each.
        let coder = if matches!(self.values, Values::Product { .. }) { Coder::Packed } else { summary.coder };
        let mask = match &self.mask {
            Mask::None => 0,
            Mask::Zeros => ZEROS,
            Mask::Gaps(gaps) => SPARSE | gaps.stream.coder().code() << 5,
        };
        let mut out = vec![format >> 2 << 7 | mask | coder.code() << 2 | format & 3];
        out.put_varint(self.shape.len());
        self.shape.iter().for_each(|size| out.put_varint(*size));
        if let Some(gaps) = self.mask.gaps() {
            out.push(gaps.bits as u8 - 1);
            out.put_varint(gaps.entries);
        }
        self.values.write_header(&mut out);
        out
    }
}

fn format(code: u8) -> Result<ValueFormat, Error> {
    match code {
        0 => Ok(ValueFormat::F32),
        1 => Ok(ValueFormat::F16),
        2 => Ok(ValueFormat::Codebook),
        3 => Ok(ValueFormat::Grid),
        4 => Ok(ValueFormat::Shared),
        5 => Ok(ValueFormat::Product),
        _ => Err(Error::corrupt(format!("value format {code}"))),
    }
}
