//! Mean of windows.

use super::{Channels, Constants, Kind, Parameters, Runnable, Sign, Storable, Window};
use crate::bytes::Reader;
use crate::engine::{Operation, Pool};
use crate::{Error, Node};

/// Mean of each window; padded zeros count when `count_padding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AvgPool {
    /// The window.
    pub window: Window,
    /// Whether padded zeros are counted in the mean.
    pub count_padding: bool,
}

impl Kind for AvgPool {
    fn name(&self) -> &'static str {
        "avg-pool"
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
        let zeros_come_in = self.count_padding && !self.window.padding.is_none();
        inputs[0].iter().map(|value| value.filter(|value| !zeros_come_in || *value == 0.0)).collect()
    }

    fn sign(&self) -> Sign {
        Sign::AsInputs
    }

    fn homogeneous(&self) -> bool {
        true
    }
}

impl Storable for AvgPool {
    fn write(&self, out: &mut Vec<u8>) {
        self.window.write(out);
        out.push(u8::from(self.count_padding));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { window: Window::read(reader)?, count_padding: reader.truth()? })
    }
}

impl Runnable for AvgPool {
    fn operation(&self, _: &Node, input: &[usize], output: &[usize]) -> Box<dyn Operation> {
        Box::new(Pool::average(&self.window, self.count_padding, [input[1], input[2]], [output[1], output[2]]))
    }
}
