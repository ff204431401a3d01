//! The values of a tensor: plain floats, a codebook and indices into it, codes on a grid, fewer values by a rule, or a product's centroids and
//! indices.

use half::f16;
use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::bytes::{Put as _, Reader};
use crate::stream::{Stream, TASK};
use crate::{Bits, Coder, Error, Grid, Places, Product, Shared, Stage, ValueFormat, product};

/// The longest codebook.
pub const MAX_CODEBOOK: usize = 1 << 16;

/// The values that a tensor stores: all, or those that the mask of a sparse one keeps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Codebook {
        book: Vec<f32>,
        count: usize,
        indices: Stream,
    },
    Grid {
        grid: Grid,
        count: usize,
        codes: Stream,
    },
    /// The base values are plain floats.
    Shared {
        places: Places,
        base: Box<Values>,
    },
    Product {
        width: usize,
        columns: usize,
        taps: usize,
        rows: usize,
        stages: Vec<CodedStage>,
    },
}

/// A stage of a product as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CodedStage {
    /// Centroids of a block.
    pub(crate) count: usize,
    /// Plain floats.
    centroids: Values,
    pub(crate) indices: Stream,
}

impl Values {
    /// Reads plain floats; also returns how many are not zero.
    pub(crate) fn read_plain(reader: &mut Reader<'_>, format: ValueFormat, count: usize) -> Result<(Self, usize), Error> {
        match format {
            ValueFormat::F16 => {
                let bytes = reader.bytes(count.saturating_mul(2))?;
                let values: Vec<f16> = bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
                let nonzero = values.iter().filter(|value| value.to_f32() != 0.0).count();
                Ok((Values::F16(values), nonzero))
            }
            ValueFormat::F32 | ValueFormat::Codebook | ValueFormat::Grid | ValueFormat::Shared | ValueFormat::Product => {
                let values = floats(reader, count)?;
                let nonzero = values.iter().filter(|value| **value != 0.0).count();
                Ok((Values::F32(values), nonzero))
            }
        }
    }

    /// Floats of 16 bits if `half`, otherwise of 32.
    pub(crate) fn plain(values: &[f32], half: bool) -> Self {
        match half {
            true => Values::F16(values.iter().map(|value| f16::from_f32(*value)).collect()),
            false => Values::F32(values.to_vec()),
        }
    }

    /// Plain floats as they are.
    fn floats(&self) -> Vec<f32> {
        match self {
            Values::F32(values) => values.clone(),
            Values::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Values::Codebook { .. } | Values::Grid { .. } | Values::Shared { .. } | Values::Product { .. } => Vec::new(),
        }
    }

    /// A product with the best permitted coder for each stage.
    pub(crate) fn product(product: &Product, half: bool, coder: Coder) -> Self {
        let stage = |stage: &Stage| {
            let count = product.centroids(stage);
            let indices = Stream::encode(&stage.indices, count, coder);
            CodedStage { count, centroids: Self::plain(&stage.centroids, half), indices }
        };
        let stages = product.stages.iter().map(stage).collect();
        Values::Product { width: product.width, columns: product.columns, taps: product.taps, rows: product.rows(), stages }
    }

    /// The product, if they are one.
    pub(crate) fn as_product(&self) -> Option<Product> {
        let Values::Product { width, columns, taps, rows, stages } = self else { return None };
        let blocks = columns.div_ceil(*width);
        let stage = |stage: &CodedStage| Stage {
            centroids: stage.centroids.floats(),
            indices: decoded(&stage.indices, blocks * rows, stage.count).collect(),
        };
        Some(Product { width: *width, columns: *columns, taps: *taps, stages: stages.iter().map(stage).collect() })
    }

    /// The base values and their rule, if they are shared by one.
    pub(crate) fn as_shared(&self) -> Option<Shared> {
        let Values::Shared { places, base } = self else { return None };
        Some(Shared { places: *places, values: base.floats() })
    }

    /// Appends what a tensor's header holds of them.
    pub(crate) fn write_header(&self, out: &mut Vec<u8>) {
        let half = |values: &Values| u8::from(matches!(values, Values::F16(_)));
        match self {
            Values::F32(_) | Values::F16(_) => {}
            Values::Codebook { book, .. } => out.put_varint(book.len()),
            Values::Grid { grid, .. } => grid.write(out),
            Values::Shared { places, base } => {
                out.put_varint(base.plain_len());
                places.write(out);
                out.push(half(base));
            }
            Values::Product { width, taps, stages, .. } => {
                out.put_varint(*width);
                out.push(stages.first().map_or(0, |stage| half(&stage.centroids)) | if *taps > 1 { BY_TAP } else { 0 });
                out.put_varint(stages.len());
                for stage in stages {
                    out.put_varint(stage.count);
                    out.push(stage.indices.coder().code());
                }
            }
        }
    }

    /// Reads base values.
    pub(crate) fn read_shared(reader: &mut Reader<'_>, header: SharedHeader) -> Result<Self, Error> {
        let (base, _) = Self::read_plain(reader, float(header.half)?, header.values)?;
        Ok(Values::Shared { places: header.places, base: Box::new(base) })
    }

    /// Reads centroids and indices, stage by stage.
    pub(crate) fn read_product(reader: &mut Reader<'_>, header: ProductHeader) -> Result<Self, Error> {
        let ProductHeader { width, columns, taps, rows, half, stages } = header;
        let stage = |(count, coder): (usize, Coder)| {
            let (centroids, _) = Self::read_plain(reader, float(half)?, count.saturating_mul(columns))?;
            let (indices, _) = Stream::read(reader, coder, columns.div_ceil(width) * rows, count)?;
            Ok(CodedStage { count, centroids, indices })
        };
        let stages = stages.into_iter().map(stage).collect::<Result<_, Error>>()?;
        Ok(Values::Product { width, columns, taps, rows, stages })
    }

    /// Number of plain floats.
    pub(crate) fn plain_len(&self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Codebook { .. } | Values::Grid { .. } | Values::Shared { .. } | Values::Product { .. } => 0,
        }
    }

    /// Reads codes on this grid.
    pub(crate) fn read_grid(reader: &mut Reader<'_>, grid: Grid, count: usize, coder: Coder) -> Result<Self, Error> {
        let (codes, _) = Stream::read(reader, coder, count, grid.levels as usize)?;
        Ok(Values::Grid { grid, count, codes })
    }

    /// Reads a codebook and indices into it; also returns how many values are not zero.
    pub(crate) fn read_codebook(
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
            Values::Shared { base, .. } => base.write(out),
            Values::Product { stages, .. } => stages.iter().for_each(|stage| {
                stage.centroids.write(out);
                stage.indices.write(out);
            }),
        }
    }

    /// Bytes that [`Values::write`] appends.
    pub(crate) fn stored(&self) -> usize {
        match self {
            Values::F32(values) => 4 * values.len(),
            Values::F16(values) => 2 * values.len(),
            Values::Codebook { book, indices, .. } => 4 * book.len() + indices.stored(),
            Values::Grid { codes, .. } => codes.stored(),
            Values::Shared { base, .. } => base.stored(),
            Values::Product { stages, .. } => stages.iter().map(|stage| stage.centroids.stored() + stage.indices.stored()).sum(),
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
            Values::Shared { base, .. } => Bits { codebook: base.bits().values, ..Bits::default() },
            Values::Product { stages, .. } => stages.iter().fold(Bits::default(), |mut bits, stage| {
                bits.values += stage.indices.payload;
                bits.codebook += stage.centroids.bits().values;
                bits.tables += stage.indices.table;
                bits
            }),
        }
    }

    /// The stored values as floats: those at these positions of a tensor of this shape.
    pub(crate) fn decode(&self, shape: &[usize], mut positions: impl Iterator<Item = usize>) -> Vec<f32> {
        match self {
            Values::F32(_) | Values::F16(_) => self.floats(),
            Values::Codebook { book, count, indices } => {
                decoded(indices, *count, book.len()).map(|index| book[index as usize]).collect()
            }
            Values::Grid { grid, count, codes } => {
                let channel = grid.channel_of(shape);
                let mut next = || positions.next().map_or(0, &channel);
                decoded(codes, *count, grid.levels as usize).map(|code| grid.value(next(), code)).collect()
            }
            Values::Shared { .. } => {
                let shared = self.as_shared();
                positions.map(|position| shared.as_ref().map_or(0.0, |shared| shared.value(shape, position))).collect()
            }
            Values::Product { .. } => {
                let product = self.as_product();
                positions.map(|position| product.as_ref().map_or(0.0, |product| product.value(position))).collect()
            }
        }
    }
}

/// What a tensor's header says of values that are shared by a rule.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedHeader {
    values: usize,
    places: Places,
    half: u8,
}

impl SharedHeader {
    pub(crate) fn read(reader: &mut Reader<'_>, shape: &[usize]) -> Result<Self, Error> {
        let header = Self { values: reader.varint()?, places: Places::read(reader)?, half: reader.byte()? };
        header.places.check(shape, header.values)?;
        Ok(header)
    }
}

/// In the byte that says how a product's centroids are written: the taps of a kernel share them.
const BY_TAP: u8 = 2;

/// What a tensor's header says of a product.
#[derive(Debug)]
pub(crate) struct ProductHeader {
    width: usize,
    columns: usize,
    taps: usize,
    rows: usize,
    half: u8,
    stages: Vec<(usize, Coder)>,
}

impl ProductHeader {
    pub(crate) fn read(reader: &mut Reader<'_>, shape: &[usize]) -> Result<Self, Error> {
        let (width, flags, count) = (reader.varint()?, reader.byte()?, reader.varint()?);
        let (rows, columns, taps) = product::matrix(shape, flags & BY_TAP != 0)?;
        product::outline(columns, width, count)?;
        let stage = |_| {
            let (count, coder) = (reader.varint()?, Coder::of(reader.byte()?)?);
            product::centroids(count).map(|()| (count, coder))
        };
        let stages = (0..count).map(stage).collect::<Result<_, Error>>()?;
        Ok(Self { width, columns, taps, rows, half: flags & !BY_TAP, stages })
    }
}

/// How floats that are marked in this way are written.
fn float(half: u8) -> Result<ValueFormat, Error> {
    match half {
        0 => Ok(ValueFormat::F32),
        1 => Ok(ValueFormat::F16),
        _ => Err(Error::corrupt(format!("floats of the kind {half}"))),
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
    ranks: FxHashMap<u32, u16>,
}

impl Book {
    pub(crate) fn of(values: &[f32]) -> Result<Self, Error> {
        let tasks = values.par_chunks(TASK).map(|values| join(FxHashSet::default(), values.iter().map(|value| value.to_bits())));
        let distinct = tasks.try_reduce(FxHashSet::default, join)?;
        let mut values: Vec<f32> = distinct.into_iter().map(f32::from_bits).collect();
        values.sort_by(f32::total_cmp);
        let ranks = values.iter().enumerate().map(|(rank, value)| (value.to_bits(), rank as u16)).collect();
        Ok(Self { values, ranks })
    }

    /// Indices and codebook, or plain floats where there is too little to share.
    pub(crate) fn values(&self, values: &[f32], coder: Coder) -> Values {
        let symbols: Vec<u16> = values.par_iter().with_min_len(TASK).map(|value| self.ranks[&value.to_bits()]).collect();
        let indices = Stream::encode(&symbols, self.values.len(), coder);
        let mut length = Vec::new();
        length.put_varint(self.values.len());
        if length.len() + 4 * self.values.len() + indices.stored() >= 4 * values.len() {
            return Values::F32(values.to_vec());
        }
        Values::Codebook { book: self.values.clone(), count: values.len(), indices }
    }
}

/// The values of both, as long as a codebook holds them.
fn join(mut all: FxHashSet<u32>, more: impl IntoIterator<Item = u32>) -> Result<FxHashSet<u32>, Error> {
    for bits in more {
        if all.insert(bits) && all.len() > MAX_CODEBOOK {
            return Err(Error::Distinct);
        }
    }
    Ok(all)
}

fn floats(reader: &mut Reader<'_>, count: usize) -> Result<Vec<f32>, Error> {
    let bytes = reader.bytes(count.saturating_mul(4))?;
    Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
