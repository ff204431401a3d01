//! Measures the network as it is.

use serde::Deserialize;

use crate::error::Result;
use crate::net::Net;
use crate::pass::{Context, Method, Pass};

/// Changes nothing; the runner measures after every pass, so this adds a row to the report.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {}

impl Method for Evaluate {
    const NAME: &'static str = "evaluate";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "Cheng, Wang, Zhou, Zhang, arXiv:1710.09282, section 7";
    const EXAMPLE: &'static str = "";
}

impl Pass for Evaluate {
    fn run(&self, net: Net, _: &mut Context<'_>) -> Result<Net> {
        Ok(net)
    }
}
