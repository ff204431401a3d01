use std::fmt;

use anyhow::Result;
use briquette_core::cost::Cost;
use briquette_core::zoo::Arch;
use burn::tensor::Device;
use serde::Serialize;

/// The networks of the zoo.
#[derive(Debug, Serialize)]
pub(crate) struct Models(Vec<Network>);

#[derive(Debug, Serialize)]
struct Network {
    name: &'static str,
    input: [usize; 3],
    classes: usize,
    params: usize,
    macs: u64,
    paper: &'static str,
}

/// `models`.
pub(crate) fn models() -> Result<Models> {
    let network = |arch: &Arch| -> Result<Network> {
        let cost = Cost::of(&arch.build(&arch.wanted(), &Device::flex())?)?;
        let (params, macs) = (cost.params(), cost.macs());
        Ok(Network { name: arch.name, input: arch.input, classes: arch.classes, params, macs, paper: arch.paper })
    };
    crate::zoo().map(network).collect::<Result<_>>().map(Models)
}

impl fmt::Display for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:17} {:>14} {:>8} {:>13} {:>15}  paper", "model", "input", "classes", "parameters", "MACs")?;
        super::lines(
            f,
            self.0.iter().map(|Network { name, input, classes, params, macs, paper }| {
                format!("{name:17} {:>14} {classes:>8} {params:>13} {macs:>15}  {paper}", format!("{input:?}"))
            }),
        )
    }
}
