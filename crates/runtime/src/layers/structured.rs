//! Structural matrices.

use briquette_kernels::Structure;
use briquette_kernels::structured::{MAX_CORES, Sizes};

use super::shape::with_channels;
use super::{Channels, Constants, Extent, Kind, Parameters, Role, Runnable, Sign, Storable, Tensor};
use crate::bytes::{Put as _, Reader};
use crate::engine::{Epilogue, Operation, StructuredProduct, decoded};
use crate::{Error, Node};

/// A fully connected layer, or a convolution by one pixel, whose matrix is structural; tensors as [`Structure`] lists them and
/// optionally `bias` `[out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Structured {
    /// The matrix.
    pub structure: Structure,
}

impl Kind for Structured {
    fn name(&self) -> &'static str {
        self.structure.kind()
    }

    fn check(&self) -> Result<(), String> {
        self.structure.check().map_err(|error| error.to_string())
    }

    fn tensors(&self) -> Vec<Tensor> {
        let parameters = self.structure.parameters();
        let own = parameters.iter().map(|p| Tensor::required(p.name, Extent::Exactly(p.shape.to_vec()), Role::Weight));
        own.chain([Tensor::bias()]).collect()
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        let [features, outputs] = self.structure.features();
        if inputs[0].first() != Some(&features) || !matches!(inputs[0].len(), 1 | 3) {
            return Err(format!("a matrix [{outputs}, {features}] does not take the input {:?}", inputs[0]));
        }
        Ok(with_channels(outputs, inputs[0]))
    }

    fn macs(&self, _: usize, output: &[usize]) -> u64 {
        self.structure.macs() * output[1..].iter().product::<usize>() as u64
    }

    fn channels(&self) -> Channels {
        Channels::Mixed { why: "is a structural matrix, whose features hang together", fixed: true }
    }

    fn constants(&self, _: &[&Constants], of: &Parameters<'_>) -> Constants {
        of.unknown()
    }

    fn sign(&self) -> Sign {
        Sign::Any
    }
}

impl Storable for Structured {
    fn write(&self, out: &mut Vec<u8>) {
        let (tag, rest, seed): (u8, Vec<usize>, Option<u64>) = match self.structure {
            Structure::Circulant { seed, .. } => (0, Vec::new(), Some(seed)),
            Structure::Fastfood { seed, .. } => (1, Vec::new(), Some(seed)),
            Structure::Acdc { layers, seed, .. } => (2, vec![layers], Some(seed)),
            Structure::ToeplitzLike { rank, .. } => (3, vec![rank], None),
            Structure::Kronecker { left, right, terms, .. } => {
                (4, [left, right].concat().into_iter().chain([terms]).collect(), None)
            }
            Structure::Butterfly { .. } => (5, Vec::new(), None),
            Structure::TwoLevelToeplitz { columns, .. } => (6, vec![columns], None),
            Structure::TensorTrain { rows, columns, ranks, .. } => {
                (7, [rows.iter().len()].into_iter().chain([rows, columns, ranks].into_iter().flat_map(Vec::from)).collect(), None)
            }
        };
        out.push(tag);
        out.put_sizes(&self.structure.features());
        out.put_sizes(&rest);
        out.extend(seed.into_iter().flat_map(u64::to_le_bytes));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let tag = reader.byte()?;
        let [inputs, outputs] = reader.sizes()?;
        let seed = |reader: &mut Reader<'_>| reader.array().map(u64::from_le_bytes);
        let structure = match tag {
            0 => Structure::Circulant { inputs, outputs, seed: seed(reader)? },
            1 => Structure::Fastfood { inputs, outputs, seed: seed(reader)? },
            2 => Structure::Acdc { inputs, outputs, layers: reader.varint()?, seed: seed(reader)? },
            3 => Structure::ToeplitzLike { inputs, outputs, rank: reader.varint()? },
            4 => {
                let [left, right] = [reader.sizes()?, reader.sizes()?];
                Structure::Kronecker { inputs, outputs, left, right, terms: reader.varint()? }
            }
            5 => Structure::Butterfly { inputs, outputs },
            6 => Structure::TwoLevelToeplitz { inputs, outputs, columns: reader.varint()? },
            7 => {
                let cores = reader.varint()?;
                if !(1..=MAX_CORES).contains(&cores) {
                    return Err(Error::corrupt(format!("a tensor train of {cores} cores")));
                }
                let mut sizes = |count: usize| {
                    let read = (0..count).map(|_| reader.varint()).collect::<Result<Vec<usize>, Error>>()?;
                    Sizes::new(&read).map_err(|error| Error::corrupt(error.to_string()))
                };
                let [rows, columns, ranks] = [sizes(cores)?, sizes(cores)?, sizes(cores - 1)?];
                Structure::TensorTrain { inputs, outputs, rows, columns, ranks }
            }
            tag => return Err(Error::corrupt(format!("structural matrix {tag}"))),
        };
        structure.check().map_err(|error| Error::corrupt(error.to_string()))?;
        Ok(Self { structure })
    }
}

impl Runnable for Structured {
    fn operation(&self, node: &Node, _: &[usize], _: &[usize]) -> Box<dyn Operation> {
        let parameters: Vec<Vec<f32>> = self.structure.parameters().iter().map(|p| decoded(node, p.name)).collect();
        let parameters: Vec<&[f32]> = parameters.iter().map(Vec::as_slice).collect();
        let epilogue = Epilogue { bias: decoded(node, "bias"), activation: None };
        let matrix = self.structure.prepare(&parameters).expect("the check of the model compared all shapes");
        Box::new(StructuredProduct { matrix, epilogue, features: self.structure.features() })
    }
}
