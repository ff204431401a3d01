//! How a tensor is to be stored.

use serde::{Deserialize, Serialize};

use crate::Error;

/// How to store one tensor. Each part is the most that the encoder may use: it takes whatever is smallest and decodes to the same
/// values, so `Codebook` permits plain floats, and `Entropy` permits Huffman and fixed width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permission {
    /// How a value is written.
    pub values: ValueFormat,
    /// How indices and distances are written.
    pub coder: Coder,
}

impl Default for Permission {
    /// Dense 32-bit floats.
    fn default() -> Self {
        Self { values: ValueFormat::F32, coder: Coder::Packed }
    }
}

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueFormat {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, rounded to nearest even: the only format that changes the values.
    F16,
    /// Indices into the sorted distinct values.
    Codebook,
    /// Codes on a [`Grid`](crate::Grid), which [`Coded::on_grid`](crate::Coded::on_grid) takes; plain floats without one.
    Grid,
    /// Fewer values by a rule, for [`Coded::shared`](crate::Coded::shared); plain floats elsewhere.
    Shared,
    /// Centroids and indices of a [`Product`](crate::Product), for [`Coded::product`](crate::Coded::product); plain floats elsewhere.
    Product,
}

/// How a sequence of small numbers is written, from plain to dense: each may fall back to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coder {
    /// A fixed number of bits each.
    Packed,
    /// A canonical Huffman code.
    Huffman,
    /// Range asymmetric numeral systems (Duda 2013) over a quantized frequency table.
    Entropy,
}

impl Coder {
    /// The coder of a number in a file.
    pub(crate) fn of(code: u8) -> Result<Self, Error> {
        match code {
            0 => Ok(Coder::Packed),
            1 => Ok(Coder::Huffman),
            2 => Ok(Coder::Entropy),
            _ => Err(Error::corrupt(format!("coder {code}"))),
        }
    }

    /// Its number in a file.
    pub(crate) fn code(self) -> u8 {
        match self {
            Coder::Packed => 0,
            Coder::Huffman => 1,
            Coder::Entropy => 2,
        }
    }
}
