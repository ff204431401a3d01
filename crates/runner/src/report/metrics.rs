//! The metrics of the survey's section 7.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Row, numbers};

/// A network M (a, s) against what it became, M* (a*, s*). What cannot be known is `None`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Compression rate a / a* by non-zero parameters.
    pub alpha_params: Option<f64>,
    /// Compression rate a / a* by stored bits.
    pub alpha_bits: Option<f64>,
    /// Compression rate a / a* by bytes of the file.
    pub alpha_bytes: Option<f64>,
    /// Index space saving as the survey prints it, (a - a*) / a*, by bytes of the file.
    pub beta_survey: Option<f64>,
    /// The usual saving 1 - a* / a, by bytes of the file.
    pub saving: Option<f64>,
    /// Median speed-up s / s*, measured in turns, keyed `b<batch>t<threads>`.
    #[serde(deserialize_with = "numbers::map")]
    pub delta: BTreeMap<String, f64>,
    /// Multiply-accumulates, first over last.
    pub macs_ratio: Option<f64>,
}

impl Metrics {
    /// Compares the first row of a report with its last.
    pub fn between(first: &Row, last: &Row) -> Self {
        let alpha_bytes = first.file_bytes.zip(last.file_bytes).and_then(|(a, b)| ratio(a as f64, b as f64));
        Self {
            alpha_params: ratio(first.nonzero as f64, last.nonzero as f64),
            alpha_bits: ratio(first.bits as f64, last.bits as f64),
            alpha_bytes,
            beta_survey: alpha_bytes.map(|alpha| alpha - 1.0),
            saving: alpha_bytes.map(|alpha| 1.0 - alpha.recip()),
            delta: last.speedup.iter().map(|(key, [_, median, _])| (key.clone(), *median)).collect(),
            macs_ratio: ratio(first.macs as f64, last.macs as f64),
        }
    }
}

/// `a / b` where both are positive numbers.
fn ratio(a: f64, b: f64) -> Option<f64> {
    (a > 0.0 && b > 0.0 && (a / b).is_finite()).then(|| a / b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(nonzero: usize, bits: u64, bytes: u64, macs: u64) -> Row {
        Row { nonzero, bits, file_bytes: Some(bytes), macs, ..Row::default() }
    }

    #[test]
    fn are_those_of_the_survey() {
        let first = row(1200, 32_000, 4000, 600);
        let last = Row { speedup: BTreeMap::from([("b1t1".into(), [1.9, 2.0, 2.2])]), ..row(100, 800, 125, 100) };
        let expected = Metrics {
            alpha_params: Some(12.0),
            alpha_bits: Some(40.0),
            alpha_bytes: Some(32.0),
            beta_survey: Some(31.0),
            saving: Some(0.96875),
            delta: BTreeMap::from([("b1t1".into(), 2.0)]),
            macs_ratio: Some(6.0),
        };
        assert_eq!(Metrics::between(&first, &last), expected);
    }

    #[test]
    fn are_unknown_rather_than_infinite() {
        assert_eq!(Metrics::between(&Row::default(), &Row::default()), Metrics::default());
        assert_eq!(Metrics::between(&row(1, 1, 1, 1), &row(0, 0, 0, 0)), Metrics::default());
    }
}
