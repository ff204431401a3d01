//! Trains the network on the training split.
//!
//! ```
//! use briquette_core::builder::Builder;
//! use briquette_core::context::{Context, Data, Silent};
//! use briquette_core::pass::Pass;
//! use briquette_core::passes::Train;
//! use briquette_data::Dataset;
//! use burn::tensor::Device;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut b = Builder::new([1, 2, 2], 1, &Device::flex());
//! let x = b.flatten("flatten", b.input());
//! b.linear("fc", x, 2);
//! let net = b.finish()?;
//! let images = Dataset::from_memory("dots", [1, 2, 2], 2, vec![9, 0, 80, 5, 200, 7, 0, 90], vec![0, 1])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let train: Train = serde_json::from_str(r#"{ "epochs": 60, "lr": 0.1 }"#)?;
//! let mut host = Silent;
//! let mut cx = Context::new(&Device::flex(), 1, &data, &mut host);
//! train.run(net, &mut cx)?;
//! let losses: Vec<f64> = cx.curve.iter().map(|epoch| epoch.train_loss).collect();
//! assert!(losses[59] < 0.5 * losses[0]);
//! # Ok(())
//! # }
//! ```

use serde::Deserialize;

use crate::context::Context;
use crate::error::Result;
use crate::net::Net;
use crate::pass::{Method, Pass};
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
}

#[cfg(test)]
mod tests {
    use super::super::handmade::{coded, context, images};
    use super::*;
    use crate::coding::Coding;
    use crate::context::Silent;

    fn train(settings: serde_json::Value) -> Train {
        serde_json::from_value(settings).unwrap()
    }

    #[test]
    fn masks_stay_in_force_while_the_classes_are_learned() {
        let mask: Vec<bool> = (0..12).map(|i| i % 4 != 3).collect();
        let (data, mut host) = (images(), Silent);
        let mut cx = context(&data, &mut host);
        let net = coded(Coding { mask: Some(mask.clone()), ..Coding::default() });
        let net = train(serde_json::json!({ "epochs": 60, "batch": 10, "lr": 0.1 })).run(net, &mut cx).unwrap();
        assert_eq!((cx.curve.len(), cx.curve[59].valid_accuracy), (60, 1.0));
        let values = net.nodes[2].weight().unwrap().values();
        assert!(values.iter().zip(mask).all(|(value, keep)| (*value != 0.0) == keep), "{values:?}");
    }

    #[test]
    fn a_plan_refuses_what_cannot_train() {
        let refused = train(serde_json::json!({ "lr": -1.0 })).plan(coded(Coding::default())).unwrap_err().to_string();
        assert_eq!(refused, "training settings: lr must be positive");
    }
}
