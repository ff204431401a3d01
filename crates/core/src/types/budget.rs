//! How much of a network's cost may stay.

use serde::Deserialize;

use crate::price::{self, Price};
use crate::types::Ratio;

/// A share of what the network costs before a pass: `{ macs = 0.5 }` or `{ bytes = 0.5 }`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Budget {
    /// Of the multiply-accumulates of one sample.
    Macs(Ratio),
    /// Of the bytes of the container that holds the network.
    Bytes(Ratio),
}

/// A budget as a config has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    macs: Option<Ratio>,
    bytes: Option<Ratio>,
    ms: Option<f64>,
}

impl TryFrom<Written> for Budget {
    type Error = String;

    fn try_from(written: Written) -> std::result::Result<Self, String> {
        match written {
            Written { ms: Some(_), .. } => {
                Err("latency budgets (`ms`) are not there yet; set `budget = { macs = ... }` or `{ bytes = ... }`".into())
            }
            Written { macs: Some(share), bytes: None, .. } => Ok(Budget::Macs(share)),
            Written { macs: None, bytes: Some(share), .. } => Ok(Budget::Bytes(share)),
            Written { .. } => Err("a budget has exactly one of `macs` and `bytes`".into()),
        }
    }
}

impl Budget {
    /// The share of the cost that may stay.
    pub fn share(self) -> f64 {
        match self {
            Budget::Macs(share) | Budget::Bytes(share) => share.get(),
        }
    }

    /// In what the cost is counted.
    pub fn price(self) -> &'static dyn Price {
        match self {
            Budget::Macs(_) => &price::Macs,
            Budget::Bytes(_) => &price::Bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> std::result::Result<Budget, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_budget_is_of_macs_or_of_bytes_and_latency_says_that_it_is_not_there_yet() {
        let half = Ratio::try_from(0.5).unwrap();
        assert_eq!(read(r#"{ "macs": 0.5 }"#), Ok(Budget::Macs(half)));
        assert_eq!(read(r#"{ "bytes": 0.5 }"#), Ok(Budget::Bytes(half)));
        assert!(read(r#"{ "ms": 3.0 }"#).unwrap_err().contains("latency budgets (`ms`) are not there yet"));
        assert!(read(r#"{ "macs": 0.5, "bytes": 0.5 }"#).unwrap_err().contains("exactly one of `macs` and `bytes`"));
        assert!(read(r#"{ "bytes": 1.5 }"#).unwrap_err().contains("a ratio lies in [0, 1], not 1.5"));
        assert!(read(r#"{ "byte": 0.5 }"#).unwrap_err().contains("unknown field `byte`"));
    }
}
