//! What a network may cost, and what it costs.

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::price::{self, Price};
use briquette_core::types::{Bytes, Ratio};
use serde::Deserialize;

use crate::latencies::Latencies;
use crate::refill::NEAR;

/// `{ macs = 0.5 }` or `{ bytes = 0.2 }`, shares of what the network costs before the pass; `{ bytes = "200 kB" }`; or `{ ms = 3.0 }` for one image in the
/// engine on one thread.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Budget {
    /// A share of the multiply-accumulates of one sample.
    Macs(Ratio),
    /// A share of the bytes of the container.
    Bytes(Ratio),
    /// Bytes of the container.
    Size(Bytes),
    /// Milliseconds.
    Ms(f64),
}

/// A budget as a config has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    macs: Option<Ratio>,
    bytes: Option<Amount>,
    ms: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`bytes` is a share such as 0.2, a whole number or a text such as \"200 kB\"")]
enum Amount {
    Share(Ratio),
    Whole(Bytes),
}

impl TryFrom<Written> for Budget {
    type Error = String;

    fn try_from(written: Written) -> std::result::Result<Self, String> {
        match written {
            Written { macs: Some(share), bytes: None, ms: None } => Ok(Budget::Macs(share)),
            Written { macs: None, bytes: Some(Amount::Share(share)), ms: None } => Ok(Budget::Bytes(share)),
            Written { macs: None, bytes: Some(Amount::Whole(bytes)), ms: None } => Ok(Budget::Size(bytes)),
            Written { macs: None, bytes: None, ms: Some(ms) } if ms.is_finite() && ms > 0.0 => Ok(Budget::Ms(ms)),
            Written { macs: None, bytes: None, ms: Some(ms) } => {
                Err(format!("`ms` is a number of milliseconds above 0, not {ms}"))
            }
            Written { .. } => Err("a budget has exactly one of `macs`, `bytes` and `ms`".into()),
        }
    }
}

impl Budget {
    /// What a network costs, where its values and shapes tell; none for times, which are measured.
    pub(crate) fn price(self) -> Option<&'static dyn Price> {
        match self {
            Budget::Macs(_) => Some(&price::Macs),
            Budget::Bytes(_) | Budget::Size(_) => Some(&price::Bytes),
            Budget::Ms(_) => None,
        }
    }

    /// What the network may cost that costs `whole` before the pass.
    pub(crate) fn limit(self, whole: f64) -> f64 {
        match self {
            Budget::Macs(share) | Budget::Bytes(share) => share.get() * whole,
            Budget::Size(bytes) => bytes.0 as f64,
            Budget::Ms(ms) => ms,
        }
    }

    /// What a config would say for this cost.
    pub(crate) fn written(self, cost: f64, whole: f64) -> String {
        match self {
            Budget::Macs(_) => format!("macs = {}", up(cost / whole)),
            Budget::Bytes(_) => format!("bytes = {}", up(cost / whole)),
            Budget::Size(_) => format!("bytes = {cost}"),
            Budget::Ms(_) => format!("ms = {}", up(cost)),
        }
    }

    /// What is said where the network cannot cost less than `least`.
    pub(crate) fn unmet(self, least: f64, whole: f64) -> Error {
        self.beyond("at the least the network comes", least, whole)
    }

    /// What is said where as much as `least` is certain, by what is named.
    pub(crate) fn beyond(self, what: &str, least: f64, whole: f64) -> Error {
        let [asked, can] = [self.limit(whole), least].map(|cost| self.written(cost, whole));
        Error::Invalid(format!("`budget = {{ {asked} }}` cannot be met: {what} to {can}"))
    }
}

/// Rounded up to four places.
fn up(number: f64) -> f64 {
    (number * 1e4 - 1e-6).ceil() / 1e4
}

/// Tells what networks cost in the unit of a budget.
pub(crate) struct Meter {
    pub(crate) budget: Budget,
    pub(crate) unit: Unit,
    /// What the network costs before the pass.
    pub(crate) whole: f64,
    /// What it may cost.
    pub(crate) limit: f64,
}

/// What is left of a budget of milliseconds without a word: steps of times are coarse.
const NEAR_IN_TIME: f64 = 0.1;

/// By what costs are told.
pub(crate) enum Unit {
    Price(&'static dyn Price),
    Times(Latencies),
}

impl Meter {
    pub(crate) fn new(budget: Budget, net: &Net, cx: &mut Context<'_>) -> Result<Self> {
        let (unit, whole) = match budget.price() {
            Some(price) => (Unit::Price(price), price.of(net)?),
            None => {
                let latencies = Latencies::of(net, cx)?;
                let whole = latencies.whole;
                (Unit::Times(latencies), whole)
            }
        };
        Ok(Self { budget, unit, whole, limit: budget.limit(whole) })
    }

    /// What a network costs.
    pub(crate) fn of(&mut self, net: &Net, cx: &mut Context<'_>) -> Result<f64> {
        match &mut self.unit {
            Unit::Price(price) => price.of(net),
            Unit::Times(latencies) => latencies.sum(net, cx),
        }
    }

    pub(crate) fn unmet(&self, least: f64) -> Error {
        self.budget.unmet(least, self.whole)
    }

    /// What a config would say for this cost.
    pub(crate) fn written(&self, cost: f64) -> String {
        self.budget.written(cost, self.whole)
    }

    /// What is said of a network that was made and comes to this cost, with what it leaves of the budget where that is more than a search means to leave.
    ///
    /// # Errors
    /// When it costs more than it may.
    pub(crate) fn met(&self, cost: f64) -> Result<String> {
        let [asked, comes] = [self.limit, cost].map(|cost| self.written(cost));
        if cost > self.limit {
            return Err(Error::Invalid(format!("`budget = {{ {asked} }}` is not met: the network comes to {comes}")));
        }
        let near = match self.budget {
            Budget::Macs(_) | Budget::Bytes(_) | Budget::Size(_) => NEAR,
            Budget::Ms(_) => NEAR_IN_TIME,
        };
        let left = 1.0 - cost / self.limit;
        Ok(if left > near { format!("{comes}, {:.0} % of the budget left", 100.0 * left) } else { comes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_a_size_or_a_time() {
        let read = |text: &str| serde_json::from_str::<Budget>(text).map_err(|error| error.to_string());
        let half = Ratio::try_from(0.5).unwrap();
        assert_eq!(read(r#"{ "macs": 0.5 }"#), Ok(Budget::Macs(half)));
        assert_eq!(read(r#"{ "bytes": 0.5 }"#), Ok(Budget::Bytes(half)));
        assert_eq!(read(r#"{ "bytes": 2500 }"#), Ok(Budget::Size(Bytes(2500))));
        assert_eq!(read(r#"{ "bytes": "200 kB" }"#), Ok(Budget::Size(Bytes(200_000))));
        assert_eq!(read(r#"{ "ms": 3 }"#), Ok(Budget::Ms(3.0)));
        assert!(read(r#"{ "ms": -3.0 }"#).unwrap_err().contains("a number of milliseconds above 0, not -3"));
        assert!(read(r#"{ "bytes": "many" }"#).unwrap_err().contains("`bytes` is a share such as 0.2"));
        assert!(read(r#"{ "macs": 0.5, "ms": 1.0 }"#).unwrap_err().contains("exactly one of `macs`, `bytes` and `ms`"));
        let unmet = Budget::Macs(half).unmet(612.0, 1000.0).to_string();
        assert_eq!(unmet, "`budget = { macs = 0.5 }` cannot be met: at the least the network comes to macs = 0.612");
    }

    #[test]
    fn a_note_says_what_a_network_came_to_and_what_is_left() {
        let budget = Budget::Macs(Ratio::try_from(0.5).unwrap());
        let meter = Meter { budget, unit: Unit::Price(&price::Macs), whole: 1000.0, limit: 500.0 };
        assert_eq!(meter.met(495.0).unwrap(), "macs = 0.495");
        assert_eq!(meter.met(300.0).unwrap(), "macs = 0.3, 40 % of the budget left");
        assert_eq!(
            meter.met(501.0).unwrap_err().to_string(),
            "`budget = { macs = 0.5 }` is not met: the network comes to macs = 0.501"
        );
    }
}
