//! Reading a checkpoint's tensors as `f32`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use pytorch_reader::{DType, PytorchReader};
use safetensors::{Dtype, SafeTensors};

use crate::Error;

/// The floating-point tensors of a file, by name. Integer tensors (counters) are left out.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// The tensors.
    pub tensors: BTreeMap<String, Foreign>,
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
/// When the file is missing, damaged or holds no floating-point tensor.
pub fn read(path: &Path) -> Result<Checkpoint, Error> {
    let wrong = |detail: String| Error::File { path: path.to_path_buf(), detail };
    if !path.is_file() {
        return Err(wrong("no such file".into()));
    }
    let tensors = if path.extension().is_some_and(|e| e == "safetensors") { safe(path) } else { torch(path) };
    let tensors = tensors.map_err(wrong)?;
    if tensors.is_empty() {
        return Err(wrong("it holds no floating-point tensor".into()));
    }
    Ok(Checkpoint { path: path.to_path_buf(), tensors })
}

fn torch(path: &Path) -> Result<BTreeMap<String, Foreign>, String> {
    let reader = PytorchReader::new(path).map_err(|error| format!("not a PyTorch checkpoint that can be read: {error}"))?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in reader.tensors() {
        let size = match tensor.dtype() {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            _ => continue,
        };
        let bytes = tensor.read().map_err(|error| format!("tensor '{name}': {error}"))?;
        let values = bytes.chunks_exact(size);
        // The reader hands bytes over in the machine's own order.
        let values = match tensor.dtype() {
            DType::F64 => values.map(|b| f64::from_ne_bytes(b.try_into().expect("eight bytes")) as f32).collect(),
            DType::F16 => values.map(|b| f16::from_ne_bytes([b[0], b[1]]).to_f32()).collect(),
            DType::BF16 => values.map(|b| bf16::from_ne_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => values.map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        tensors.insert(name.clone(), Foreign { shape: tensor.shape().to_vec(), values });
    }
    Ok(tensors)
}

fn safe(path: &Path) -> Result<BTreeMap<String, Foreign>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("not a safetensors file that can be read: {error}"))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")) as f32).collect(),
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => continue,
        };
        tensors.insert(name, Foreign { shape: view.shape().to_vec(), values });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_checkpoint_is_named_in_the_error() {
        let path = std::env::temp_dir().join(format!("briquette-no-checkpoint-{}.pt", std::process::id()));
        std::fs::write(&path, b"certainly not a pickle").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("briquette-no-checkpoint") && error.contains("not a PyTorch checkpoint"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no such file"));
    }
}
