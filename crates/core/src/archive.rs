//! States as bytes: what an interrupted run goes on from.
//!
//! A state begins with eight bytes that name the format and ends with the CRC-32 of everything before. In between lie, one after the other,
//! short descriptions as JSON behind their length, and arrays of numbers, little-endian and without padding, whose lengths follow from what
//! stands before them. Both directions stream: neither ever holds more than the array at hand, and reading takes no memory for bytes that
//! are not there.

use std::io::{ErrorKind, Read, Write};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use crc32fast::Hasher;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::values::{floats, plain};

/// Format and version.
const MAGIC: &[u8; 8] = b"BRQSTAT2";

/// Bytes that are handed on at once.
const CHUNK: usize = 1 << 16;

/// Numbers of a fixed width.
pub trait Number: Copy + Default {
    /// Width in bytes.
    const BYTES: usize;
    /// Appends the number.
    fn put(self, to: &mut Vec<u8>);
    /// Reads the number from exactly its bytes.
    fn take(from: &[u8]) -> Self;
}

macro_rules! number {
    ($($kind:ty),*) => {
        $(impl Number for $kind {
            const BYTES: usize = size_of::<$kind>();

            fn put(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn take(from: &[u8]) -> Self {
                from.try_into().map_or_else(|_| Self::default(), <$kind>::from_le_bytes)
            }
        })*
    };
}

number!(u8, u16, u32, u64, f32, f64);

/// Writes a state.
#[derive(Debug)]
pub struct Writer<'a> {
    to: Sink<'a>,
    sum: Hasher,
    pending: Vec<u8>,
}

struct Sink<'a>(&'a mut dyn Write);

impl std::fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl<'a> Writer<'a> {
    /// Begins a state.
    pub fn new(to: &'a mut dyn Write) -> Self {
        Self { to: Sink(to), sum: Hasher::new(), pending: MAGIC.to_vec() }
    }

    /// A description.
    ///
    /// # Errors
    /// When the bytes cannot be written.
    pub fn describe(&mut self, what: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(what).map_err(|error| Error::State(error.to_string()))?;
        (json.len() as u64).put(&mut self.pending);
        self.pending.extend(json);
        self.hand_on(CHUNK)
    }

    /// An array, whose length the reader has to know.
    ///
    /// # Errors
    /// When the bytes cannot be written.
    pub fn numbers<T: Number>(&mut self, numbers: impl IntoIterator<Item = T>) -> Result<()> {
        for number in numbers {
            number.put(&mut self.pending);
            if self.pending.len() >= CHUNK {
                self.hand_on(CHUNK)?;
            }
        }
        Ok(())
    }

    /// An array of bits, eight to the byte, the first lowest.
    ///
    /// # Errors
    /// When the bytes cannot be written.
    pub fn bits(&mut self, bits: &[bool]) -> Result<()> {
        let byte = |bits: &[bool]| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | u8::from(*bit) << i);
        self.numbers(bits.chunks(8).map(byte))
    }

    /// Ends the state.
    ///
    /// # Errors
    /// When the bytes cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.hand_on(0)?;
        let written = self.to.0.write_all(&self.sum.finalize().to_le_bytes()).and_then(|()| self.to.0.flush());
        written.map_err(|error| Error::Host(format!("a state cannot be written: {error}")))
    }

    /// Writes what is pending once it is at least so much.
    fn hand_on(&mut self, least: usize) -> Result<()> {
        if self.pending.len() < least {
            return Ok(());
        }
        self.sum.update(&self.pending);
        let written = self.to.0.write_all(&self.pending);
        self.pending.clear();
        written.map_err(|error| Error::Host(format!("a state cannot be written: {error}")))
    }
}

/// Reads a state.
pub struct Reader<'a> {
    from: &'a mut dyn Read,
    sum: Hasher,
    /// Bytes that have been read.
    taken: u64,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reader")
    }
}

impl<'a> Reader<'a> {
    /// Begins to read.
    ///
    /// # Errors
    /// When the bytes are not those of a state.
    pub fn new(from: &'a mut dyn Read) -> Result<Self> {
        let mut reader = Self { from, sum: Hasher::new(), taken: 0 };
        let mut magic = [0; 8];
        reader.fill(&mut magic)?;
        match &magic == MAGIC {
            true => Ok(reader),
            false => Err(Error::State("it is none, or one of another version".into())),
        }
    }

    /// A description.
    ///
    /// # Errors
    /// When it is cut short or describes something else.
    pub fn describe<T: DeserializeOwned>(&mut self) -> Result<T> {
        let len = self.numbers::<u64>(1)?[0];
        let json = self.numbers::<u8>(usize::try_from(len).unwrap_or(usize::MAX))?;
        serde_json::from_slice(&json).map_err(|error| Error::State(error.to_string()))
    }

    /// An array.
    ///
    /// # Errors
    /// When it is cut short.
    pub fn numbers<T: Number>(&mut self, count: usize) -> Result<Vec<T>> {
        let mut numbers = Vec::new();
        let mut chunk = vec![0; CHUNK.min(count.saturating_mul(T::BYTES))];
        while numbers.len() < count {
            let bytes = &mut chunk[..(CHUNK / T::BYTES).min(count - numbers.len()) * T::BYTES];
            self.fill(bytes)?;
            // What has come so far doubles at most, and what is known to come is not exceeded.
            if numbers.len() == numbers.capacity() {
                numbers.reserve_exact(numbers.len().max(CHUNK).min(count - numbers.len()));
            }
            numbers.extend(bytes.chunks_exact(T::BYTES).map(T::take));
        }
        Ok(numbers)
    }

    /// An array of bits.
    ///
    /// # Errors
    /// When it is cut short.
    pub fn bits(&mut self, count: usize) -> Result<Vec<bool>> {
        let bytes = self.numbers::<u8>(count.div_ceil(8))?;
        Ok((0..count).map(|i| bytes[i / 8] >> (i % 8) & 1 == 1).collect())
    }

    /// Whether that was all, and undamaged.
    ///
    /// # Errors
    /// When it was not.
    pub fn finish(self) -> Result<()> {
        let mut sum = [0; 4];
        let found = self.sum.finalize().to_le_bytes();
        read(self.from, &mut sum)?;
        if found != sum {
            return Err(Error::State("it is damaged: the checksum differs".into()));
        }
        match self.from.read(&mut [0]) {
            Ok(0) => Ok(()),
            _ => Err(Error::State("more follows than there should be".into())),
        }
    }

    /// How many bytes have been read, by which what they stand for is measured.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        read(self.from, bytes)?;
        self.sum.update(bytes);
        self.taken += bytes.len() as u64;
        Ok(())
    }
}

/// Keeps the tensors of a module, up to the first failure.
struct Walk<'a, 'b> {
    archive: &'a mut Archive<'b>,
    failed: Option<Error>,
}

impl ModuleMapper for Walk<'_, '_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|mut tensor| {
            if self.failed.is_none() {
                self.failed = self.archive.tensor(&mut tensor).err();
            }
            tensor
        })
    }
}

fn read(from: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Error::State("it is cut short".into()),
        _ => Error::State(format!("it cannot be read: {error}")),
    })
}

/// A state on its way to the host or back, as those see it who keep something in it: one walk over what is kept serves both directions, so
/// that they cannot differ. Everything has its size before the training begins, and another size is refused.
#[derive(Debug)]
pub enum Archive<'a> {
    /// What is kept is written.
    To(Writer<'a>),
    /// What was written takes the place of what is there.
    From(Reader<'a>),
}

impl Archive<'_> {
    /// Keeps numbers.
    ///
    /// # Errors
    /// When the state holds another count of them or cannot be written or read.
    pub fn numbers<T: Number>(&mut self, numbers: &mut [T]) -> Result<()> {
        self.count(numbers.len())?;
        match self {
            Archive::To(writer) => writer.numbers(numbers.iter().copied()),
            Archive::From(reader) => {
                numbers.copy_from_slice(&reader.numbers(numbers.len())?);
                Ok(())
            }
        }
    }

    /// Keeps bits.
    ///
    /// # Errors
    /// As [`Archive::numbers`].
    pub fn bits(&mut self, bits: &mut [bool]) -> Result<()> {
        self.count(bits.len())?;
        match self {
            Archive::To(writer) => writer.bits(bits),
            Archive::From(reader) => {
                bits.copy_from_slice(&reader.bits(bits.len())?);
                Ok(())
            }
        }
    }

    /// Keeps the values of a tensor; on the way back its shape, its device and whether it has gradients stay.
    ///
    /// # Errors
    /// As [`Archive::numbers`].
    pub fn tensor<const D: usize>(&mut self, tensor: &mut Tensor<D>) -> Result<()> {
        let shape = tensor.shape();
        self.count(shape.num_elements())?;
        match self {
            Archive::To(writer) => writer.numbers(floats(plain(tensor.clone()))),
            Archive::From(reader) => {
                let values = TensorData::new(reader.numbers::<f32>(shape.num_elements())?, shape);
                let (traced, trained) = (tensor.is_autodiff(), tensor.is_require_grad());
                *tensor = Tensor::from_data(values, &plain(tensor.clone()).device());
                if traced {
                    *tensor = Tensor::from_inner(tensor.clone()).set_require_grad(trained);
                }
                Ok(())
            }
        }
    }

    /// Keeps the values of all tensors of a module; the module with them.
    ///
    /// # Errors
    /// As [`Archive::numbers`].
    pub fn module<M: Module>(&mut self, module: M) -> Result<M> {
        let mut walk = Walk { archive: self, failed: None };
        let module = module.map(&mut walk);
        walk.failed.map_or(Ok(module), Err)
    }

    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Archive::To(writer) => writer.finish(),
            Archive::From(reader) => reader.finish(),
        }
    }

    fn count(&mut self, count: usize) -> Result<()> {
        match self {
            Archive::To(writer) => writer.numbers([count as u64]),
            Archive::From(reader) => match reader.numbers::<u64>(1)?[0] {
                found if found == count as u64 => Ok(()),
                found => Err(Error::State(format!("it holds {found} numbers where this training keeps {count}"))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Writer<'_>) -> Result<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        write(&mut writer).unwrap();
        writer.finish().unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn everything_comes_back(
            text in prop::collection::vec(any::<char>(), 0..40),
            floats in prop::collection::vec(any::<u32>(), 0..40_000),
            wide in prop::collection::vec(any::<u64>(), 0..300),
            bits in prop::collection::vec(any::<bool>(), 0..300),
        ) {
            let bytes = written(|writer| {
                writer.describe(&text)?;
                writer.numbers(floats.iter().map(|bits| f32::from_bits(*bits)))?;
                writer.bits(&bits)?;
                writer.numbers(wide.iter().copied())
            });
            let mut input = bytes.as_slice();
            let mut reader = Reader::new(&mut input).unwrap();
            prop_assert_eq!(reader.describe::<Vec<char>>().unwrap(), text);
            let back: Vec<u32> = reader.numbers::<f32>(floats.len()).unwrap().into_iter().map(f32::to_bits).collect();
            prop_assert_eq!(back, floats);
            prop_assert_eq!(reader.bits(bits.len()).unwrap(), bits);
            prop_assert_eq!(reader.numbers::<u64>(wide.len()).unwrap(), wide);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn a_length_that_no_bytes_stand_behind_takes_no_memory() {
        let bytes = written(|writer| writer.numbers([u64::MAX, 7]));
        let mut input = bytes.as_slice();
        let cut = Reader::new(&mut input).unwrap().describe::<String>().unwrap_err().to_string();
        assert_eq!(cut, "saved state: it is cut short");
        let mut input = bytes.as_slice();
        assert!(Reader::new(&mut input).unwrap().numbers::<f64>(usize::MAX).is_err());
    }

    #[test]
    fn a_flipped_bit_another_length_and_other_bytes_are_refused() {
        let bytes = written(|writer| writer.numbers(0..100_u32));
        let refusal = |bytes: &[u8]| {
            let mut input = bytes;
            let read = Reader::new(&mut input).and_then(|mut reader| {
                reader.numbers::<u32>(100)?;
                reader.finish()
            });
            read.map_or_else(|error| error.to_string(), |()| "nothing".into())
        };
        assert_eq!(refusal(&bytes), "nothing");
        let mut flipped = bytes.clone();
        flipped[200] ^= 4;
        assert_eq!(refusal(&flipped), "saved state: it is damaged: the checksum differs");
        assert_eq!(refusal(&bytes[..bytes.len() - 1]), "saved state: it is cut short");
        assert_eq!(refusal(&[&bytes, &[0][..]].concat()), "saved state: more follows than there should be");
        assert_eq!(refusal(b"not a state at all"), "saved state: it is none, or one of another version");
    }

    #[test]
    fn what_is_kept_takes_the_place_of_what_is_there_and_another_size_is_refused() {
        let device = burn::tensor::Device::flex().autodiff();
        let tensor = |values: [f32; 3]| Tensor::<1>::from_floats(values, &device).require_grad();
        let (mut times, mut used, mut means) = ([3_u64, 9], [true, false, true], tensor([0.1, -0.0, f32::MIN_POSITIVE]));
        let walk = |archive: &mut Archive<'_>, times: &mut [u64], used: &mut [bool], means: &mut Tensor<1>| {
            archive.numbers(times)?;
            archive.bits(used)?;
            archive.tensor(means)
        };
        let mut bytes = Vec::new();
        let mut archive = Archive::To(Writer::new(&mut bytes));
        walk(&mut archive, &mut times, &mut used, &mut means).unwrap();
        archive.finish().unwrap();
        let (mut found, mut bits, mut others) = ([0; 2], [false; 3], tensor([0.0; 3]));
        let mut input = bytes.as_slice();
        let mut archive = Archive::From(Reader::new(&mut input).unwrap());
        walk(&mut archive, &mut found, &mut bits, &mut others).unwrap();
        assert_eq!((found, bits), (times, used));
        assert!(others.is_require_grad() && others.is_autodiff());
        let bits = |tensor: Tensor<1>| floats(tensor.inner()).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(others), bits(means));
        let mut input = bytes.as_slice();
        let other = Archive::From(Reader::new(&mut input).unwrap()).numbers(&mut [0_u64; 3]).unwrap_err().to_string();
        assert_eq!(other, "saved state: it holds 2 numbers where this training keeps 3");
    }
}
