//! Maximum of windows.

use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable, Window};
use crate::bytes::Reader;
use crate::engine::{Operation, Pool};
use crate::{Error, Node};

/// Maximum of each window; padding never wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MaxPool {
    /// The window.
    pub window: Window,
}

impl Kind for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn check(&self) -> Result<(), String> {
        self.window.check()
    }

    fn shape(&self, inputs: &[&[usize]], _: Option<&[usize]>) -> Result<Vec<usize>, String> {
        self.window.shape(inputs[0])
    }

    fn channels(&self) -> Channels {
        Channels::Kept
    }

    fn constants(&self, inputs: &[&Constants], _: &Parameters<'_>) -> Constants {
        inputs[0].clone()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn homogeneous(&self) -> bool {
        true
    }
}

impl Storable for MaxPool {
    fn write(&self, out: &mut Vec<u8>) {
        self.window.write(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { window: Window::read(reader)? })
    }
}

impl Runnable for MaxPool {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Pool::max(&self.window, [input[1], input[2]], [output[1], output[2]]))
    }
}
