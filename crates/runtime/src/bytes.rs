//! Bounded reading and writing of the container's bytes: variable-length integers, floats, text.

use crate::{Error, Padding};

/// The longest name or text, in bytes.
pub(crate) const MAX_TEXT: usize = 1 << 20;

/// Appends the container's primitives to a byte vector.
pub(crate) trait Put {
    /// Base-128 integer, low group first, the high bit of a byte says that more follow.
    fn put_varint(&mut self, value: usize);
    /// Four bytes, little endian.
    fn put_f32(&mut self, value: f32);
    /// Eight bytes, little endian.
    fn put_f64(&mut self, value: f64);
    /// Length and UTF-8.
    fn put_text(&mut self, text: &str) -> Result<(), Error>;
    /// Integers, one after the other.
    fn put_sizes(&mut self, sizes: &[usize]);
    /// How many different numbers it takes, and these: of all four sides, of both vertical and both horizontal ones, of each side.
    fn put_padding(&mut self, padding: Padding);
}

impl Put for Vec<u8> {
    fn put_varint(&mut self, value: usize) {
        let mut rest = value as u64;
        while rest >= 0x80 {
            self.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.push(rest as u8);
    }

    fn put_f32(&mut self, value: f32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_f64(&mut self, value: f64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_text(&mut self, text: &str) -> Result<(), Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::Limit { what: "bytes of text", found: text.len() as u64, limit: MAX_TEXT as u64 });
        }
        self.put_varint(text.len());
        self.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn put_sizes(&mut self, sizes: &[usize]) {
        sizes.iter().for_each(|size| self.put_varint(*size));
    }

    fn put_padding(&mut self, Padding([[top, bottom], [left, right]]): Padding) {
        match (top == bottom && left == right, top == left) {
            (true, true) if top == 0 => self.put_sizes(&[0]),
            (true, true) => self.put_sizes(&[1, top]),
            (true, false) => self.put_sizes(&[2, top, left]),
            (false, _) => self.put_sizes(&[4, top, bottom, left, right]),
        }
    }
}

/// Reads from the front of a slice; never past its end, never more than it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            return Err(Error::Truncated { needed: count as u64, left: self.rest.len() as u64 });
        };
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// An integer in its shortest form, so that equal content means equal bytes.
    pub(crate) fn varint(&mut self) -> Result<usize, Error> {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Error::corrupt("an integer is longer than it needs to be"));
                }
                return usize::try_from(value).map_err(|_| Error::corrupt("an integer is too large for this machine"));
            }
        }
        Err(Error::corrupt("an integer has more than 63 bits"))
    }

    pub(crate) fn sizes<const N: usize>(&mut self) -> Result<[usize; N], Error> {
        let mut sizes = [0; N];
        for size in &mut sizes {
            *size = self.varint()?;
        }
        Ok(sizes)
    }

    /// Padding in its shortest form.
    pub(crate) fn padding(&mut self) -> Result<Padding, Error> {
        let numbers = self.byte()?;
        let padding = match numbers {
            0 => Padding::NONE,
            1 => Padding::all(self.varint()?),
            2 => Padding::both(self.sizes()?),
            4 => {
                let [top, bottom, left, right] = self.sizes()?;
                Padding([[top, bottom], [left, right]])
            }
            other => return Err(Error::corrupt(format!("padding of {other} numbers"))),
        };
        let mut shortest = Vec::new();
        shortest.put_padding(padding);
        if shortest[0] != numbers {
            return Err(Error::corrupt("padding takes more numbers than it needs"));
        }
        Ok(padding)
    }

    pub(crate) fn truth(&mut self) -> Result<bool, Error> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::corrupt(format!("a truth value of {other}"))),
        }
    }

    pub(crate) fn f32(&mut self) -> Result<f32, Error> {
        self.array().map(f32::from_le_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, Error> {
        self.array().map(f64::from_le_bytes)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Error> {
        let length = self.varint()?;
        if length > MAX_TEXT {
            return Err(Error::Limit { what: "bytes of text", found: length as u64, limit: MAX_TEXT as u64 });
        }
        std::str::from_utf8(self.bytes(length)?).map_err(|_| Error::corrupt("a text is not UTF-8"))
    }

    /// That nothing is left.
    pub(crate) fn end(&self) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(Error::Trailing { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_as_few_bytes_as_they_need() {
        for (value, length) in
            [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (u32::MAX as usize, 5), (usize::MAX >> 1, 9)]
        {
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            assert_eq!(bytes.len(), length);
            assert_eq!(Reader::new(&bytes).varint().unwrap(), value);
        }
    }

    #[test]
    fn padding_takes_as_few_numbers_as_it_needs_and_no_more() {
        for (padding, bytes) in [
            (Padding::NONE, &[0][..]),
            (Padding::all(3), &[1, 3]),
            (Padding::both([1, 2]), &[2, 1, 2]),
            (Padding::both([0, 2]), &[2, 0, 2]),
            (Padding([[1, 2], [1, 1]]), &[4, 1, 2, 1, 1]),
            (Padding([[0, 0], [0, 200]]), &[4, 0, 0, 0, 200, 1]),
        ] {
            let mut written = Vec::new();
            written.put_padding(padding);
            assert_eq!(written, bytes);
            assert_eq!(Reader::new(bytes).padding().unwrap(), padding);
        }
        for bytes in [&[1, 0][..], &[2, 1, 1], &[4, 1, 1, 2, 2], &[4, 0, 0, 0, 0], &[3, 1, 1, 2], &[5], &[4, 1, 2, 1]] {
            assert!(Reader::new(bytes).padding().is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn long_forms_and_overflow_are_refused() {
        for bytes in [&[0x80, 0][..], &[0xff; 9], &[0xff; 4], &[0x80]] {
            assert!(Reader::new(bytes).varint().is_err(), "{bytes:?}");
        }
    }
}
