//! Bit strings, most significant bit first, and the Exp-Golomb code of the tables.

use crate::Error;

/// Appends bits to bytes; the last byte is filled up with zeros.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    held: u64,
    free: u32,
    length: u64,
}

impl BitWriter {
    pub(crate) fn new() -> Self {
        Self::with_capacity(0)
    }

    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), held: 0, free: 64, length: 0 }
    }

    /// Appends the low `width` bits of `value`, at most 32.
    pub(crate) fn put(&mut self, value: u32, width: u32) {
        if width == 0 {
            return;
        }
        self.free -= width;
        self.held |= (u64::from(value) & ((1 << width) - 1)) << self.free;
        self.length += u64::from(width);
        while self.free <= 56 {
            self.bytes.push((self.held >> 56) as u8);
            self.held <<= 8;
            self.free += 8;
        }
    }

    /// Exp-Golomb code of the given order: short for numbers below `2^order`, logarithmic above.
    pub(crate) fn put_golomb(&mut self, value: u32, order: u32) {
        let shifted = u64::from(value) + (1 << order);
        let width = 64 - shifted.leading_zeros();
        self.put(0, width - order - 1);
        if width > 32 {
            self.put((shifted >> 32) as u32, width - 32);
        }
        self.put(shifted as u32, width.min(32));
    }

    /// Bits written so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.free < 64 {
            self.bytes.push((self.held >> 56) as u8);
        }
        self.bytes
    }
}

/// Bits that [`BitWriter::put_golomb`] takes.
pub(crate) fn golomb_bits(value: u32, order: u32) -> u64 {
    let width = 64 - (u64::from(value) + (1 << order)).leading_zeros();
    u64::from(2 * width - order - 1)
}

/// Reads what [`BitWriter`] wrote.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    position: u64,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next 32 bits without consuming them, zeros after the end.
    pub(crate) fn peek(&self) -> u32 {
        let first = (self.position / 8) as usize;
        let window = match self.bytes.get(first..first + 8) {
            Some(bytes) => u64::from_be_bytes(bytes.try_into().expect("eight bytes")),
            None => (0..8).fold(0, |word, i| word << 8 | u64::from(self.bytes.get(first + i).copied().unwrap_or(0))),
        };
        (window << (self.position % 8) >> 32) as u32
    }

    /// Consumes bits.
    pub(crate) fn skip(&mut self, width: u32) -> Result<(), Error> {
        self.position += u64::from(width);
        let total = self.bytes.len() as u64 * 8;
        if self.position > total {
            return Err(Error::Truncated { needed: self.position.div_ceil(8), left: self.bytes.len() as u64 });
        }
        Ok(())
    }

    /// The next `width` bits, at most 32.
    pub(crate) fn get(&mut self, width: u32) -> Result<u32, Error> {
        let value = if width == 0 { 0 } else { self.peek() >> (32 - width) };
        self.skip(width)?;
        Ok(value)
    }

    pub(crate) fn get_golomb(&mut self, order: u32) -> Result<u32, Error> {
        let zeros = self.peek().leading_zeros();
        self.skip(zeros)?;
        let width = zeros + order + 1;
        if width > 32 {
            return Err(Error::corrupt("a number of a table has more than 31 bits"));
        }
        self.get(width).map(|shifted| shifted - (1 << order))
    }

    /// That only the zeros that fill the last byte are left.
    pub(crate) fn end(&self) -> Result<(), Error> {
        let used = self.position.div_ceil(8);
        let left = self.bytes.len() as u64 - used;
        if left > 0 {
            return Err(Error::Trailing { bytes: left as usize });
        }
        let fill = (used * 8 - self.position) as u32;
        match self.bytes.last() {
            Some(last) if fill > 0 && last & ((1 << fill) - 1) != 0 => {
                Err(Error::corrupt("the last byte is not filled with zeros"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_got(numbers in prop::collection::vec((any::<u32>(), 1_u32..=32, 0_u32..8), 0..60)) {
            let mut writer = BitWriter::new();
            for (value, width, order) in &numbers {
                writer.put(*value, *width);
                let small = value >> 2;
                let before = writer.length();
                writer.put_golomb(small, *order);
                prop_assert_eq!(writer.length() - before, golomb_bits(small, *order));
            }
            let bytes = writer.finish();
            let mut reader = BitReader::new(&bytes);
            for (value, width, order) in &numbers {
                let mask = (1_u64 << width) - 1;
                prop_assert_eq!(u64::from(reader.get(*width).unwrap()), u64::from(*value) & mask);
                prop_assert_eq!(reader.get_golomb(*order).unwrap(), value >> 2);
            }
            prop_assert!(reader.end().is_ok());
        }
    }
}
