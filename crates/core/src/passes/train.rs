//! Trains the network on the training split.

use serde::Deserialize;

use crate::error::Result;
use crate::net::Net;
use crate::pass::{Context, Method, Pass};
use crate::training::{Extras, Recipe, fit};

/// Minimizes the cross-entropy by the recipe; codings stay in force.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Train(Recipe);

impl Method for Train {
    const NAME: &'static str = "train";
    const FAMILY: &'static str = "basics";
    const PAPER: &'static str = "LeCun, Bottou, Bengio, Haffner, Proc. IEEE 1998";
    const EXAMPLE: &'static str = "epochs = 12";
}

impl Pass for Train {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        fit(net, &self.0, Extras::default(), cx)
    }

    fn plan(&self, net: Net) -> Result<Net> {
        self.0.check()?;
        Ok(net)
    }

    fn trainings(&self) -> Vec<&Recipe> {
        vec![&self.0]
    }

    fn shrink(&mut self) {
        self.0.shrink(2);
    }
}
