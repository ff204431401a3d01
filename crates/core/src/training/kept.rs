//! A teacher's answers to the fixed draws of its images, kept on disk.

use std::io::{self, Write};

use briquette_data::{Augment, Dataset};
use burn::tensor::{Device, Tensor, TensorData};
use sha2::{Digest, Sha256};

use super::distill::Cache;
use crate::archive::{Archive, Reader, Writer};
use crate::context::{Context, Host, Saved};
use crate::error::{Error, Result};
use crate::net::{Net, Value};
use crate::task::Task;
use crate::values::floats;

/// The logits and feature vectors of teachers, for each draw of each image.
pub(super) struct Kept {
    /// What they are kept under: it follows from the teachers, the images and what is kept of them.
    key: String,
    images: usize,
    /// Of the logits of each teacher, then of each vector.
    widths: Vec<usize>,
    teachers: usize,
    /// `[draws, images]`.
    known: Vec<bool>,
    /// `[draws, images, widths]`.
    values: Vec<f32>,
    grown: bool,
}

impl Kept {
    /// What is known already of these teachers; `vectors` are the nodes, and the lengths, of the feature vectors that are kept beside the logits.
    pub(super) fn open(
        cache: Cache,
        teachers: &[Net],
        vectors: &[(usize, usize)],
        augment: &Augment,
        cx: &mut Context<'_>,
    ) -> Result<Self> {
        let (images, classes) = (cx.data.train.len(), Task::of(&teachers[0])?.classes);
        let widths: Vec<usize> = teachers.iter().map(|_| classes).chain(vectors.iter().map(|(_, length)| *length)).collect();
        let each = widths.iter().sum::<usize>() * images;
        // Every value as four bytes, and a bit for each draw of each image.
        let one = (4 * each + images.div_ceil(8)) as u64;
        let takes = one.saturating_mul(cache.draws as u64);
        if takes > cache.limit.0 {
            let (limit, fit) = (cache.limit.0, cache.limit.0 / one.max(1));
            let fit = if fit == 0 { "not even one does".to_string() } else { format!("{fit} fit") };
            let detail = format!("{} draws of {images} images take {takes} bytes, and the `limit` is {limit}", cache.draws);
            return Err(Error::Invalid(format!("cache: {detail}: {fit}; raise `limit`, or lower `draws`")));
        }
        let key = key(cache, teachers, vectors, augment, &cx.data.train)?;
        let (known, values) = (vec![false; cache.draws * images], vec![0.0; cache.draws * each]);
        let mut kept = Self { key, images, widths, teachers: teachers.len(), known, values, grown: false };
        if let Some(Saved { name, mut bytes }) = cx.host.kept(&kept.key)? {
            let read = Reader::new(&mut bytes).and_then(|reader| {
                let mut archive = Archive::From(reader);
                kept.archive(&mut archive)?;
                archive.finish()
            });
            read.map_err(|error| Error::State(format!("{name}: {error}; remove the file, and the teacher is asked anew")))?;
        }
        Ok(kept)
    }

    fn archive(&mut self, archive: &mut Archive<'_>) -> Result<()> {
        archive.bits(&mut self.known)?;
        archive.numbers(&mut self.values)
    }

    fn places(&self, ids: &[u32], draw: usize) -> impl Iterator<Item = usize> {
        let first = draw * self.images;
        ids.iter().map(move |id| first + *id as usize)
    }

    /// The answers to a batch, if those to each of its images are known.
    pub(super) fn answers(&self, ids: &[u32], draw: usize, device: &Device) -> Option<(Vec<Tensor<2>>, Vec<Value>)> {
        if !self.places(ids, draw).all(|place| self.known[place]) {
            return None;
        }
        let width: usize = self.widths.iter().sum();
        let mut from = 0;
        let mut tensors = Vec::new();
        for own in &self.widths {
            let row = |place: usize| self.values[place * width + from..][..*own].iter().copied();
            let values: Vec<f32> = self.places(ids, draw).flat_map(row).collect();
            tensors.push(Tensor::<2>::from_data(TensorData::new(values, [ids.len(), *own]), device));
            from += own;
        }
        let vectors = tensors.split_off(self.teachers);
        Some((tensors, vectors.into_iter().map(Value::Vector).collect()))
    }

    /// Takes the answers to a batch.
    pub(super) fn keep(&mut self, ids: &[u32], draw: usize, logits: &[Tensor<2>], vectors: &[Value]) {
        let vectors = vectors.iter().map(|value| value.clone().vector());
        let columns: Vec<Vec<f32>> = logits.iter().cloned().chain(vectors).map(floats).collect();
        let width: usize = self.widths.iter().sum();
        for (at, place) in self.places(ids, draw).collect::<Vec<_>>().into_iter().enumerate() {
            let rows = columns.iter().zip(&self.widths).flat_map(|(column, own)| &column[at * own..][..*own]);
            self.values[place * width..][..width].iter_mut().zip(rows).for_each(|(to, value)| *to = *value);
            self.known[place] = true;
        }
        self.grown = true;
    }

    /// Hands what has come to the host.
    pub(super) fn save(&mut self, host: &mut dyn Host) -> Result<()> {
        if std::mem::take(&mut self.grown) {
            let key = self.key.clone();
            host.keep(&key, &mut |to| {
                let mut archive = Archive::To(Writer::new(to));
                self.archive(&mut archive)?;
                archive.finish()
            })?;
        }
        Ok(())
    }
}

/// The SHA-256, in hexadecimal digits, of all that the answers follow from: weights, nodes, augmentation and images, of whose pixels no more than
/// [`LOOKED_AT`] bytes, evenly spread over the images, are looked at.
fn key(cache: Cache, teachers: &[Net], vectors: &[(usize, usize)], augment: &Augment, images: &Dataset) -> Result<String> {
    let mut sum = Sum(Sha256::new());
    for teacher in teachers {
        teacher.write_state(&mut sum)?;
    }
    sum.0.update(format!("{vectors:?} {augment:?} {:?} {} {}", images.shape, cache.draws, images.len()));
    (0..images.len()).for_each(|at| sum.0.update(images.label(at).to_le_bytes()));
    let mut pixels = vec![0; images.shape.iter().product()];
    let step = (images.len() * pixels.len()).div_ceil(LOOKED_AT).max(1);
    for at in (0..images.len()).step_by(step) {
        images.read(at, &mut pixels)?;
        sum.0.update(&pixels);
    }
    Ok(sum.0.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

const LOOKED_AT: usize = 1 << 28;

struct Sum(Sha256);

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::context::{Data, Memory};
    use crate::types::Bytes;

    fn teacher(seed: u64) -> Net {
        let mut b = Builder::new([1, 1, 2], seed, &Device::flex());
        let x = b.flatten("flatten", b.input());
        b.linear("fc", x, 2);
        b.finish().unwrap()
    }

    fn data() -> Data {
        let pixels = (0..20).map(|at| at * 9).collect();
        let set = Dataset::from_memory("ramp", [1, 1, 2], 2, pixels, vec![0, 1, 0, 1, 0, 1, 0, 1, 0, 1]).unwrap();
        Data { train: set.clone(), valid: set.clone(), test: set }
    }

    fn open(draws: usize, limit: u64, seed: u64, augment: &Augment, host: &mut Memory) -> Result<Kept> {
        of_node(1, draws, limit, seed, augment, host)
    }

    fn of_node(node: usize, draws: usize, limit: u64, seed: u64, augment: &Augment, host: &mut Memory) -> Result<Kept> {
        let data = data();
        let mut cx = Context::new(&Device::flex(), 7, &data, host);
        Kept::open(Cache { draws, limit: Bytes(limit) }, &[teacher(seed)], &[(node, 3)], augment, &mut cx)
    }

    fn tensor(values: Vec<f32>, rows: usize) -> Tensor<2> {
        let width = values.len() / rows;
        Tensor::from_data(TensorData::new(values, [rows, width]), &Device::flex())
    }

    #[test]
    fn answers_come_back_bit_for_bit_in_this_run_and_in_others_of_the_same_teacher() {
        let (mut host, plain, device) = (Memory::default(), Augment::default(), Device::flex());
        let mut kept = open(2, 1000, 1, &plain, &mut host).unwrap();
        let (logits, vectors) = (vec![0.1, -0.2, 3.0, 4.5], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        kept.keep(&[4, 9], 1, &[tensor(logits, 2)], &[Value::Vector(tensor(vectors, 2))]);
        kept.save(&mut host).unwrap();
        let again = open(2, 1000, 1, &plain, &mut host).unwrap();
        for kept in [&kept, &again] {
            let (logits, vectors) = kept.answers(&[9, 4, 9], 1, &device).unwrap();
            assert_eq!(floats(logits[0].clone()), [3.0, 4.5, 0.1, -0.2, 3.0, 4.5]);
            assert_eq!(floats(vectors[0].clone().vector()), [4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            assert!(kept.answers(&[4, 5], 1, &device).is_none() && kept.answers(&[4, 9], 0, &device).is_none());
        }
        assert!(of_node(2, 2, 1000, 1, &plain, &mut host).unwrap().answers(&[4, 9], 1, &device).is_none());
        // Of other weights, draws or augmentations nothing is known.
        let flipped = Augment { flip: true, ..Augment::default() };
        for (draws, seed, augment) in [(2, 2, &plain), (3, 1, &plain), (2, 1, &flipped)] {
            assert!(open(draws, 1000, seed, augment, &mut host).unwrap().answers(&[4, 9], 1, &device).is_none());
        }
    }

    #[test]
    fn what_does_not_fit_and_what_is_damaged_is_refused() {
        let (mut host, plain) = (Memory::default(), Augment::default());
        // Ten images of two logits and three features: 200 bytes, and two of bits.
        let error = open(8, 700, 1, &plain, &mut host).map(drop).unwrap_err().to_string();
        let detail =
            "cache: 8 draws of 10 images take 1616 bytes, and the `limit` is 700: 3 fit; raise `limit`, or lower `draws`";
        assert_eq!(error, detail);
        assert!(open(8, 100, 1, &plain, &mut host).map(drop).unwrap_err().to_string().contains("not even one does"));
        assert!(open(usize::MAX / 2, 700, 1, &plain, &mut host).map(drop).unwrap_err().to_string().contains("3 fit"));
        let mut kept = open(1, 700, 1, &plain, &mut host).unwrap();
        kept.keep(&[0], 0, &[tensor(vec![1.0, 2.0], 1)], &[Value::Vector(tensor(vec![0.0; 3], 1))]);
        kept.save(&mut host).unwrap();
        host.kept.values_mut().for_each(|bytes| bytes[30] ^= 1);
        let error = open(1, 700, 1, &plain, &mut host).map(drop).unwrap_err().to_string();
        assert!(
            error.ends_with("it is damaged: the checksum differs; remove the file, and the teacher is asked anew"),
            "{error}"
        );
    }
}
