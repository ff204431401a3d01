//! What a network does for what it costs, over a setting of its gates.

use serde::{Deserialize, Serialize};

/// Accuracy and cost of a network that skips work, for several values of one setting.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tradeoff {
    /// The method whose setting it is.
    pub method: String,
    /// The setting.
    pub key: String,
    /// The network as the pass hands it on.
    pub chosen: Balance,
    /// The values in order.
    pub points: Vec<Balanced>,
}

/// How a network does at one value.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Balanced {
    /// The value.
    pub value: f64,
    /// How it does there.
    #[serde(flatten)]
    pub balance: Balance,
}

/// How a network does on validation images, and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Balance {
    /// Share of the images whose class is found.
    pub accuracy: f64,
    /// Mean multiply-accumulates of an image.
    pub macs: f64,
}
