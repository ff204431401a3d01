//! Reading a checkpoint's tensors as `f32`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use briquette_runtime::lfs;
use half::{bf16, f16};
use pytorch_reader::{DType, PickleValue, PytorchError, PytorchReader, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::Error;
use crate::masks::{self, called};
use crate::names::{below, bookkeeping, shared};
use crate::strangers::without;

/// The floating-point tensors of a file, by name. Integer tensors are left out, but for those that are called masks.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// The tensors; what has a mask is zero where the mask is.
    pub tensors: BTreeMap<String, Foreign>,
    /// Which values of a tensor are kept, for tensors that the file holds a mask of.
    pub masks: BTreeMap<String, Vec<bool>>,
    /// Integer tensors that are called masks and are of no tensor of the file.
    pub stray: BTreeMap<String, Foreign>,
    /// Masks that may be of any of several tensors, with these. They are among the tensors or stray.
    pub unclear: BTreeMap<String, Vec<String>>,
    /// Dictionaries at the top of the file, such as `state_dict` and `optimizer`.
    pub roots: BTreeSet<String>,
    /// Where optimizers keep what they have of each parameter.
    pub optimizers: BTreeSet<String>,
    /// What cannot be read: where it is, and what it is.
    pub unread: BTreeMap<String, String>,
}

/// A tensor from elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreign {
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub values: Vec<f32>,
}

/// Reads a `.safetensors` file or, under any other name, a PyTorch checkpoint.
///
/// # Errors
/// When the file is missing, damaged, of another kind or holds no floating-point tensor.
pub fn read(path: &Path) -> Result<Checkpoint, Error> {
    let wrong = |detail: String| Error::File { path: path.to_path_buf(), detail };
    if !path.is_file() {
        return Err(wrong("no such file".into()));
    }
    let mut start = Vec::new();
    let opened = std::fs::File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    opened.map_err(|error| wrong(error.to_string()))?;
    if lfs::is_pointer(&start) {
        return Err(wrong(lfs::ADVICE.into()));
    }
    let ends = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    if ends("onnx") {
        let detail = "ONNX files cannot be read yet; save the weights with PyTorch or as .safetensors";
        return Err(wrong(detail.into()));
    }
    let (mut checkpoint, mut integers) = if ends("safetensors") { safe(path) } else { torch(path) }.map_err(wrong)?;
    let masks::Found { masks, unclear } = masks::apply(&mut checkpoint.tensors, &mut integers, "");
    let checkpoint = Checkpoint { path: path.to_path_buf(), masks, unclear, stray: integers, ..checkpoint };
    if checkpoint.tensors.is_empty() {
        return Err(wrong(format!("it holds no floating-point tensor that can be read{}", checkpoint.left_unread())));
    }
    Ok(checkpoint)
}

impl Checkpoint {
    /// What lies below a dotted prefix, without it, as if it were the whole file.
    ///
    /// # Errors
    /// When nothing does, with the prefixes that there are.
    pub fn under(mut self, prefix: &str) -> Result<Self, Error> {
        let prefix = prefix.trim_end_matches('.');
        let inside = |name: String| below(&name, prefix).map(str::to_string);
        // Of the weights that a mask may be of, the part may hold one.
        let masks::Found { masks, unclear } = masks::apply(&mut self.tensors, &mut self.stray, prefix);
        self.masks.extend(masks);
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        let tensors: BTreeMap<_, _> = self.tensors.into_iter().filter_map(|(name, t)| Some((inside(name)?, t))).collect();
        if tensors.is_empty() {
            let common = shared(names.iter().map(String::as_str));
            let first = |name: &String| below(name, common).and_then(|rest| Some(rest.split_once('.')?.0.to_string()));
            let firsts: BTreeSet<String> = names.iter().filter_map(first).collect();
            let joined = |part: &String| if common.is_empty() { part.clone() } else { format!("{common}.{part}") };
            let known: Vec<String> = firsts.iter().map(|part| format!("'{}'", joined(part))).take(12).collect();
            let detail = format!("no tensor's name begins with '{prefix}.'; there are names below {}", known.join(", "));
            return Err(Error::File { path: self.path, detail });
        }
        Ok(Self {
            tensors,
            masks: masks::under(self.masks, prefix),
            stray: self.stray.into_iter().filter_map(|(name, mask)| Some((inside(name)?, mask))).collect(),
            // These masks matter to the part wherever they lie.
            unclear: unclear
                .into_iter()
                .map(|(name, of)| (inside(name.clone()).unwrap_or(name), of.into_iter().filter_map(inside).collect()))
                .collect(),
            roots: BTreeSet::new(),
            optimizers: self.optimizers.into_iter().filter_map(inside).collect(),
            unread: self.unread.into_iter().filter_map(|(name, what)| Some((inside(name)?, what))).collect(),
            path: self.path,
        })
    }

    /// Whether what has this name belongs to an optimizer or only counts.
    pub(crate) fn keeps_books(&self, name: &str) -> bool {
        bookkeeping(name) || self.optimizers.iter().any(|at| below(name, at).is_some())
    }

    /// What could not be read, to follow a fault that may come of it.
    pub(crate) fn left_unread(&self) -> String {
        let list =
            self.unread.iter().filter(|(name, _)| !self.keeps_books(name)).map(|(name, what)| format!("'{name}' ({what})"));
        let list: Vec<String> = list.collect();
        if list.is_empty() { String::new() } else { format!("; not read: {}", some_of(&list)) }
    }
}

/// The first of a list that may be long, and how many more there are.
pub(crate) fn some_of(list: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = if list.len() > SHOWN { format!(" and {} more", list.len() - SHOWN) } else { String::new() };
    list[..list.len().min(SHOWN)].join(", ") + &more
}

/// What is read of a file, and its integer tensors that are called masks.
type Parts = (Checkpoint, BTreeMap<String, Foreign>);

fn torch(path: &Path) -> Result<Parts, String> {
    let unreadable = |error: PytorchError| format!("not a PyTorch checkpoint that can be read: {error}");
    match PytorchReader::new(path) {
        Ok(reader) => torch_parts(&reader, path),
        Err(error @ PytorchError::Pickle(_)) => {
            let without = without(path).map_err(|io| format!("{error}; and it cannot be read without what is unknown: {io}"))?;
            let Some(file) = without else { return Err(unreadable(error)) };
            torch_parts(&PytorchReader::new(file.path()).map_err(unreadable)?, file.path())
        }
        Err(error) => Err(unreadable(error)),
    }
}

fn torch_parts(reader: &PytorchReader, path: &Path) -> Result<Parts, String> {
    let floating = |dtype: DType| matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    let wanted = reader.tensors().iter().filter(|(name, tensor)| floating(tensor.dtype()) || called(name));
    let wanted: Vec<(&String, &Tensor)> = wanted.collect();
    bounded(&wanted, std::fs::metadata(path).map_err(|error| error.to_string())?.len())?;
    let mut checkpoint = Checkpoint::default();
    let mut masks = BTreeMap::new();
    for (name, tensor) in wanted {
        let bytes = tensor.read().map_err(|error| format!("tensor '{name}': {error}"))?;
        let values = bytes.chunks_exact(tensor.dtype().size());
        // The reader hands bytes over in the machine's own order.
        let values = match tensor.dtype() {
            DType::F64 => values.map(|b| f64::from_ne_bytes(b.try_into().expect("eight bytes")) as f32).collect(),
            DType::F16 => values.map(|b| f16::from_ne_bytes([b[0], b[1]]).to_f32()).collect(),
            DType::BF16 => values.map(|b| bf16::from_ne_bytes([b[0], b[1]]).to_f32()).collect(),
            DType::F32 => values.map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
            _ => values.map(|b| whole(b, cfg!(target_endian = "little"))).collect(),
        };
        let home = if floating(tensor.dtype()) { &mut checkpoint.tensors } else { &mut masks };
        home.insert(name.clone(), Foreign { shape: tensor.shape().to_vec(), values });
    }
    if let Ok(PickleValue::Dict(top)) = PytorchReader::read_pickle_data(path, None) {
        checkpoint.roots =
            top.iter().filter(|(_, value)| matches!(value, PickleValue::Dict(_))).map(|(key, _)| key.clone()).collect();
        survey(&PickleValue::Dict(top), "", reader, &mut checkpoint);
    }
    Ok((checkpoint, masks))
}

/// Refuses tensors that together stand for more values than a file of this length accounts for: a view repeats one value as often as its
/// shape says. A tensor that has several names is read once for each.
fn bounded(tensors: &[(&String, &Tensor)], length: u64) -> Result<(), String> {
    let bytes = |tensor: &Tensor| (tensor.byte_len() as u64).max(4 * tensor.num_elements() as u64);
    let most = EXPANSION.saturating_mul(length.saturating_add(1 << 20));
    let total = tensors.iter().fold(0, |total: u64, (_, tensor)| total.saturating_add(bytes(tensor)));
    let Some((name, largest)) = tensors.iter().max_by_key(|(_, tensor)| bytes(tensor)).filter(|_| total > most) else {
        return Ok(());
    };
    Err(format!(
        "its tensors stand for {} MiB, a file of {length} bytes for {} MiB at most; the largest is '{name}' of shape {:?}: if it is a view that \
         repeats its values, as `expand` gives, save `tensor.clone()` in its place",
        total >> 20,
        most >> 20,
        largest.shape()
    ))
}

/// A checkpoint of `n` bytes may stand for as many times `n + 2^20` bytes of values: half precision, bytes as masks, and tied weights.
const EXPANSION: u64 = 16;

/// Notes what is no tensor that is read, such as an array of another library, with the names that its tensors would begin with, and where
/// optimizers keep theirs.
fn survey(value: &PickleValue, at: &str, reader: &PytorchReader, checkpoint: &mut Checkpoint) {
    let inside = |key: &str| if at.is_empty() { key.to_string() } else { format!("{at}.{key}") };
    match value {
        PickleValue::Dict(entries) => {
            if entries.contains_key("state") && entries.contains_key("param_groups") {
                checkpoint.optimizers.insert(inside("state"));
            }
            entries.iter().for_each(|(key, value)| survey(value, &inside(key), reader, checkpoint));
        }
        PickleValue::List(items) => {
            items.iter().enumerate().for_each(|(index, value)| survey(value, &inside(&index.to_string()), reader, checkpoint));
        }
        PickleValue::Unsupported(class) if reader.get(at).is_none() => {
            checkpoint.unread.insert(at.to_string(), format!("an object of the class {class}"));
        }
        _ => {}
    }
}

fn safe(path: &Path) -> Result<Parts, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("not a safetensors file that can be read: {error}"))?;
    let mut checkpoint = Checkpoint::default();
    let mut masks = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let (float, values) = match view.dtype() {
            Dtype::F64 => {
                (true, data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")) as f32).collect())
            }
            Dtype::F32 => (true, data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
            Dtype::F16 => (true, data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
            Dtype::BF16 => (true, data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
            Dtype::BOOL | Dtype::U8 | Dtype::I8 | Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::U32 | Dtype::I64 | Dtype::U64 => {
                if !called(&name) {
                    continue;
                }
                let size = data.len() / view.shape().iter().product::<usize>().max(1);
                (false, data.chunks_exact(size.max(1)).map(|b| whole(b, true)).collect())
            }
            other => {
                checkpoint.unread.insert(name, format!("a tensor of the type {other}"));
                continue;
            }
        };
        let home = if float { &mut checkpoint.tensors } else { &mut masks };
        home.insert(name, Foreign { shape: view.shape().to_vec(), values });
    }
    Ok((checkpoint, masks))
}

/// An integer of a mask: 0, 1, or that it is neither.
fn whole(bytes: &[u8], little: bool) -> f32 {
    let lowest = if little { bytes.first() } else { bytes.last() }.copied().unwrap_or(0);
    let rest = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>() - u32::from(lowest);
    match (lowest, rest) {
        (0, 0) => 0.0,
        (1, 0) => 1.0,
        _ => f32::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_checkpoint_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            error
        };
        assert!(refusal("none.pt", b"certainly not a pickle").contains("not a PyTorch checkpoint"));
        assert!(refusal("none.safetensors", b"certainly not").contains("not a safetensors file"));
        assert!(refusal("net.onnx", b"\x08\x07").contains("ONNX files cannot be read yet"));
        for name in ["net.pt", "net.safetensors", "net.onnx"] {
            let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1093000\n";
            assert!(refusal(name, pointer).contains("git-LFS pointer"), "{name}");
        }
        assert!(read(&folder.path().join("missing.pt")).unwrap_err().to_string().contains("no such file"));
    }

    #[test]
    fn floats_of_a_type_that_is_not_read_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.safetensors");
        let view = |kind, bytes| safetensors::tensor::TensorView::new(kind, vec![2], bytes).unwrap();
        let one = [0, 0, 128, 63, 0, 0, 128, 63];
        let eight = [("fc.weight", view(Dtype::F8_E4M3, &one[..2])), ("fc.index", view(Dtype::I16, &one[..4]))];
        let named = "; not read: 'fc.weight' (a tensor of the type F8_E4M3)";
        std::fs::write(&path, safetensors::serialize(eight.clone(), None).unwrap()).unwrap();
        assert!(read(&path).unwrap_err().to_string().ends_with(named));
        let both = eight.into_iter().chain([("fc.bias", view(Dtype::F32, &one))]);
        std::fs::write(&path, safetensors::serialize(both, None).unwrap()).unwrap();
        let checkpoint = read(&path).unwrap();
        assert_eq!((checkpoint.tensors.len(), checkpoint.left_unread().as_str()), (1, named));
    }

    #[test]
    fn a_prefix_selects_a_part_of_the_file() {
        let tensor = || Foreign { shape: vec![1], values: vec![1.0] };
        let tensors = ["net.model.fc.weight", "net.ema.fc.weight"].map(|name| (name.to_string(), tensor()));
        let whole = Checkpoint { tensors: tensors.into_iter().collect(), ..Checkpoint::default() };
        let part = whole.clone().under("net.ema.").unwrap();
        assert_eq!(part.tensors.into_keys().collect::<Vec<_>>(), ["fc.weight"]);
        let error = whole.under("net.em").unwrap_err().to_string();
        assert!(error.contains("'net.em.'") && error.contains("below 'net.ema', 'net.model'"), "{error}");
    }
}
