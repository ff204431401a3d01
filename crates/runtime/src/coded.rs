//! One tensor as it is stored.

mod marked;
mod record;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::Serialize;

use self::marked::Marked;
pub(crate) use self::marked::is_kept;
use crate::container::{MAX_ELEMENTS_TOTAL, MAX_RANK};
use crate::gaps::Gaps;
use crate::stream::{self, Stream};
use crate::values::{Book, Values, decoded};
use crate::{Coder, Error, Grid, Permission, Product, Shared, ValueFormat};

/// One tensor as it is stored: its shape and its coded values, known to decode.
#[derive(Debug, Clone, PartialEq)]
pub struct Coded {
    shape: Vec<usize>,
    nonzero: usize,
    mask: Mask,
    values: Values,
}

/// Which elements are masked: zero for good, unlike a value that happens to be zero.
#[derive(Debug, Clone, PartialEq)]
enum Mask {
    /// None.
    None,
    /// Those of a dense tensor that are stored as the positive zero; a kept zero is stored as the negative one.
    Zeros,
    /// Those that a sparse tensor leaves out.
    Gaps(Gaps),
}

impl Mask {
    fn gaps(&self) -> Option<&Gaps> {
        match self {
            Mask::Gaps(gaps) => Some(gaps),
            Mask::None | Mask::Zeros => None,
        }
    }
}

/// What a tensor takes in the file, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Bits {
    /// Values, or their indices into the codebook.
    pub values: u64,
    /// Distances between the values of a sparse tensor, with fillers.
    pub indices: u64,
    /// The codebook's floats, or the grid's steps and zeros.
    pub codebook: u64,
    /// Code lengths and frequencies of the coders.
    pub tables: u64,
    /// Shape, counts, and what fills up bytes.
    pub header: u64,
}

impl Bits {
    /// All of them: eight times the tensor's bytes in the file.
    pub fn total(&self) -> u64 {
        self.values + self.indices + self.codebook + self.tables + self.header
    }
}

impl std::ops::AddAssign for Bits {
    fn add_assign(&mut self, other: Self) {
        self.values += other.values;
        self.indices += other.indices;
        self.codebook += other.codebook;
        self.tables += other.tables;
        self.header += other.header;
    }
}

/// How a tensor is stored: what the encoder chose within its [`Permission`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Whether zeros are left out.
    pub sparse: bool,
    /// How values are written.
    pub value_format: ValueFormat,
    /// How the indices into the codebook are written; fixed width for plain floats.
    pub coder: Coder,
    /// How the distances are written, if sparse.
    pub gap_coder: Option<Coder>,
    /// Number of shared values, if there is a codebook, or of a grid's codes.
    pub codebook_len: Option<usize>,
    /// Bits of a distance before its coder, if sparse.
    pub gap_bits: Option<u32>,
    /// Bits of a value before its coder: 32, 16, or those of an index or code.
    pub value_bits: u32,
}

impl Coded {
    /// Stores `values` of this shape, within the permission, in the smallest form that decodes to them: to the same bits, or with
    /// [`ValueFormat::F16`] to the nearest 16-bit floats. `mask` tells which values are kept; the others are zero whatever they are here,
    /// and a kept zero comes back as the positive one. A mask that keeps everything is none.
    ///
    /// # Errors
    /// When shape, values and mask disagree, the tensor is beyond the format's limits, or a codebook has more than 65536 values.
    pub fn encode(shape: &[usize], values: &[f32], mask: Option<&[bool]>, permission: &Permission) -> Result<Self, Error> {
        let marked = Marked::new(shape, values, mask, permission.values == ValueFormat::F16)?;
        let dense = Self::form(shape, &marked, false, permission)?;
        let sparse = if marked.masked { Self::form(shape, &marked, true, permission)? } else { None };
        Ok([sparse, dense].into_iter().flatten().min_by_key(Self::stored).expect("the dense form holds every tensor"))
    }

    /// Stores values that lie on a grid as its codes, in the smaller of the sparse, if there is a mask, and the dense form. Values beside
    /// the grid, such as the zeros of a binary tensor that is too sparse for relative indices, are stored as by [`Coded::encode`].
    ///
    /// # Errors
    /// As [`Coded::encode`], and when the grid does not fit the shape.
    pub fn on_grid(shape: &[usize], values: &[f32], mask: Option<&[bool]>, grid: &Grid, coder: Coder) -> Result<Self, Error> {
        let marked = Marked::new(shape, values, mask, false)?;
        grid.check(shape)?;
        let channel = grid.channel_of(shape);
        let nonzero = values_left(&marked.values);
        let form = |sparse: bool| {
            let symbols: Vec<u16> = marked.stored(sparse).map(|(at, value)| grid.nearest(channel(at), value)).collect();
            if marked
                .stored(sparse)
                .zip(&symbols)
                .any(|((at, value), code)| !marked.is(grid.value(channel(at), *code), value, sparse))
            {
                return None;
            }
            let coders = [Coder::Entropy, Coder::Huffman, Coder::Packed].into_iter().filter(|allowed| *allowed <= coder);
            let mut forms = coders.map(|coder| {
                let codes = Stream::encode(&symbols, grid.levels as usize, coder);
                let stored = Values::Grid { grid: grid.clone(), count: symbols.len(), codes };
                Self { shape: shape.to_vec(), nonzero, mask: marked.mask(sparse, coder), values: stored }
            });
            forms.find(|coded| coded.bounded(values.len()))
        };
        let forms = [if marked.masked { form(true) } else { None }, form(false)];
        match forms.into_iter().flatten().min_by_key(Self::stored) {
            Some(coded) => Ok(coded),
            None => Self::encode(shape, values, mask, &Permission { values: ValueFormat::Codebook, coder }),
        }
    }

    /// Stores a tensor whose values are fewer values by a rule as these, in the smaller of the sparse, if there is a mask, and the dense form;
    /// 16-bit floats if the permission's are. Values that are not those of the rule, and too many for so few, are stored as by [`Coded::encode`].
    ///
    /// # Errors
    /// As [`Coded::encode`], and when the rule does not fit the shape.
    pub fn shared(
        shape: &[usize],
        values: &[f32],
        mask: Option<&[bool]>,
        shared: &Shared,
        permission: &Permission,
    ) -> Result<Self, Error> {
        elements(shape)?;
        shared.places.check(shape, shared.values.len())?;
        let stored = |_| Values::Shared {
            places: shared.places,
            base: Box::new(Values::plain(&shared.values, permission.values == ValueFormat::F16)),
        };
        Self::derived(shape, (values, mask), |position| shared.value(shape, position), stored, permission)
    }

    /// Stores a tensor that is a product as its centroids and indices, in the smaller of the sparse, if there is a mask, and the dense form;
    /// centroids of 16 bits if the permission's floats are. Values that are not the product's, and too many for so few bytes, are stored as by
    /// [`Coded::encode`].
    ///
    /// # Errors
    /// As [`Coded::encode`], and when the product does not fit the shape.
    pub fn product(
        shape: &[usize],
        values: &[f32],
        mask: Option<&[bool]>,
        product: &Product,
        permission: &Permission,
    ) -> Result<Self, Error> {
        elements(shape)?;
        product.check(shape)?;
        let half = permission.values == ValueFormat::F16;
        Self::derived(
            shape,
            (values, mask),
            |position| product.value(position),
            |coder| Values::product(product, half, coder),
            permission,
        )
    }

    /// Stores what follows from the position, by `value`, or is left out as masked.
    fn derived(
        shape: &[usize],
        (values, mask): (&[f32], Option<&[bool]>),
        value: impl Fn(usize) -> f32,
        stored: impl Fn(Coder) -> Values,
        permission: &Permission,
    ) -> Result<Self, Error> {
        let marked = Marked::new(shape, values, mask, false)?;
        let form = |sparse: bool| {
            if marked.stored(sparse).any(|(position, own)| !marked.is(value(position), own, sparse)) {
                return None;
            }
            let coders =
                [Coder::Entropy, Coder::Huffman, Coder::Packed].into_iter().filter(|allowed| *allowed <= permission.coder);
            let mut forms = coders.map(|coder| {
                let mask = marked.mask(sparse, coder);
                let mut coded = Self { shape: shape.to_vec(), nonzero: 0, mask, values: stored(coder) };
                coded.nonzero = values_left(&coded.decode());
                coded
            });
            // Rounding to 16 bits can make zeros that look masked.
            forms.find(|coded| coded.bounded(values.len()) && (sparse || coded.mask().as_deref() == marked.kept().as_deref()))
        };
        let forms = [if marked.masked { form(true) } else { None }, form(false)];
        match forms.into_iter().flatten().min_by_key(Self::stored) {
            Some(coded) => Ok(coded),
            None => Self::encode(shape, values, mask, permission),
        }
    }

    /// The values, in the order of the shape with the last dimension running fastest.
    pub fn decode(&self) -> Vec<f32> {
        let mut values = self.marked();
        if self.mask != Mask::None {
            values.iter_mut().filter(|value| **value == 0.0).for_each(|value| *value = 0.0);
        }
        values
    }

    /// Which values are kept, the others being zero for good; none if no value is masked.
    pub fn mask(&self) -> Option<Vec<bool>> {
        match &self.mask {
            Mask::None => None,
            Mask::Zeros => Some(self.marked().into_iter().map(is_kept).collect()),
            Mask::Gaps(gaps) => {
                let mut kept = vec![false; self.shape.iter().product()];
                gaps.positions().for_each(|position| kept[position] = true);
                Some(kept)
            }
        }
    }

    /// The values as they are stored, with the signs of zeros.
    fn marked(&self) -> Vec<f32> {
        let elements = self.shape.iter().product();
        match self.mask.gaps() {
            Some(gaps) => gaps.spread(&self.values.decode(&self.shape, gaps.positions()), elements),
            None => self.values.decode(&self.shape, 0..elements),
        }
    }

    /// The grid, for tensors on one.
    pub fn grid(&self) -> Option<&Grid> {
        if let Values::Grid { grid, .. } = &self.values { Some(grid) } else { None }
    }

    /// Base values and rule, for tensors that share them.
    pub fn as_shared(&self) -> Option<Shared> {
        self.values.as_shared()
    }

    /// Centroids and indices, for tensors that are a product.
    pub fn as_product(&self) -> Option<Product> {
        self.values.as_product()
    }

    /// The grid and the code of every element, those that a sparse tensor leaves out being the code of 0; none for tensors that are not
    /// on a grid, or that leave out elements of a grid without a 0.
    pub fn codes(&self) -> Option<(&Grid, Vec<u16>)> {
        let Values::Grid { grid, count, codes } = &self.values else { return None };
        let codes = decoded(codes, *count, grid.levels as usize);
        let Some(gaps) = self.mask.gaps() else { return Some((grid, codes.collect())) };
        if grid.zeros.iter().any(|zero| zero.fract() != 0.0) {
            return None;
        }
        let channel = grid.channel_of(&self.shape);
        let mut dense: Vec<u16> = (0..self.shape.iter().product()).map(|i| grid.zeros[channel(i)] as u16).collect();
        gaps.positions().zip(codes).for_each(|(position, code)| dense[position] = code);
        Some((grid, dense))
    }

    /// The tensor's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values other than zero.
    pub fn nonzero(&self) -> usize {
        self.nonzero
    }

    /// The exact size in the file, by purpose.
    pub fn bits(&self) -> Bits {
        let mut bits = self.values.bits();
        if let Some(gaps) = self.mask.gaps() {
            bits.indices = gaps.stream.payload;
            bits.tables += gaps.stream.table;
        }
        bits.header = 8 * self.stored() as u64 - bits.total();
        bits
    }

    /// How the tensor is stored.
    pub fn summary(&self) -> Summary {
        let (value_format, coder, codebook_len, value_bits) = match &self.values {
            Values::F32(_) => (ValueFormat::F32, Coder::Packed, None, 32),
            Values::F16(_) => (ValueFormat::F16, Coder::Packed, None, 16),
            Values::Codebook { book, indices, .. } => {
                (ValueFormat::Codebook, indices.coder(), Some(book.len()), stream::width(book.len()))
            }
            Values::Grid { grid, codes, .. } => (ValueFormat::Grid, codes.coder(), Some(grid.levels as usize), grid.bits()),
            Values::Shared { base, .. } => (ValueFormat::Shared, Coder::Packed, Some(base.plain_len()), 0),
            Values::Product { stages, .. } => {
                let centroids = stages.iter().map(|stage| stage.count).sum();
                let bits = stages.iter().map(|stage| stream::width(stage.count)).sum();
                let coder = stages.iter().map(|stage| stage.indices.coder()).max().unwrap_or(Coder::Packed);
                (ValueFormat::Product, coder, Some(centroids), bits)
            }
        };
        Summary {
            sparse: self.mask.gaps().is_some(),
            value_format,
            coder,
            gap_coder: self.mask.gaps().map(|gaps| gaps.stream.coder()),
            codebook_len,
            gap_bits: self.mask.gaps().map(|gaps| gaps.bits),
            value_bits,
        }
    }

    /// The tensor in one form with the best coders that a reader accepts; none when it is too sparse for any.
    fn form(shape: &[usize], marked: &Marked<'_>, sparse: bool, permission: &Permission) -> Result<Option<Self>, Error> {
        let nonzero = values_left(&marked.values);
        let stored: Cow<'_, [f32]> =
            if sparse { marked.stored(true).map(|(_, value)| value).collect() } else { Cow::Borrowed(&marked.values) };
        let book = match permission.values {
            ValueFormat::F32 | ValueFormat::F16 | ValueFormat::Grid | ValueFormat::Shared | ValueFormat::Product => None,
            ValueFormat::Codebook => match Book::of(&stored) {
                Ok(book) => Some(book),
                // The sparse form decides: its codebook needs no zero.
                Err(_) if marked.masked && !sparse => None,
                Err(error) => return Err(error),
            },
        };
        let coders = [Coder::Entropy, Coder::Huffman, Coder::Packed].into_iter().filter(|coder| *coder <= permission.coder);
        for coder in coders {
            let values = match (&book, permission.values) {
                (Some(book), _) => book.values(&stored, coder),
                (None, format) => Values::plain(&stored, format == ValueFormat::F16),
            };
            let coded = Self { shape: shape.to_vec(), nonzero, mask: marked.mask(sparse, coder), values };
            if coded.bounded(shape.iter().product()) {
                return Ok(Some(coded));
            }
        }
        Ok(None)
    }

    /// Bytes after the header.
    fn body(&self) -> usize {
        self.values.stored() + self.mask.gaps().map_or(0, |gaps| gaps.stream.stored())
    }

    fn bounded(&self, elements: usize) -> bool {
        stream::fits(elements, self.body())
    }
}

/// The number of values other than zero.
fn values_left(values: &[f32]) -> usize {
    values.iter().filter(|value| **value != 0.0).count()
}

/// The number of elements, if the format can hold as many.
fn elements(shape: &[usize]) -> Result<usize, Error> {
    if shape.len() > MAX_RANK {
        return Err(Error::Limit { what: "dimensions", found: shape.len() as u64, limit: MAX_RANK as u64 });
    }
    // Products of some of the sizes are formed too, so that a size of 0 does not hide the others.
    let elements = shape.iter().fold(1_usize, |product, size| product.saturating_mul((*size).max(1)));
    if elements > MAX_ELEMENTS_TOTAL {
        return Err(Error::Limit { what: "elements", found: elements as u64, limit: MAX_ELEMENTS_TOTAL as u64 });
    }
    Ok(if shape.contains(&0) { 0 } else { elements })
}
