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
    /// Speed-up s / s* of the median latencies, keyed `b<batch>t<threads>`.
    #[serde(deserialize_with = "numbers::map")]
    pub delta: BTreeMap<String, f64>,
    /// Multiply-accumulates, first over last.
    pub macs_ratio: Option<f64>,
}

impl Metrics {
    /// Compares the first row of a report with its last.
    pub fn between(first: &Row, last: &Row) -> Self {
        let alpha_bytes = first.file_bytes.zip(last.file_bytes).and_then(|(a, b)| ratio(a as f64, b as f64));
        let sped_up = |(key, plain): (&String, &f64)| Some((key.clone(), ratio(*plain, *last.latency_ms.get(key)?)?));
        Self {
            alpha_params: ratio(first.nonzero as f64, last.nonzero as f64),
            alpha_bits: ratio(first.bits as f64, last.bits as f64),
            alpha_bytes,
            beta_survey: alpha_bytes.map(|alpha| alpha - 1.0),
            saving: alpha_bytes.map(|alpha| 1.0 - alpha.recip()),
            delta: first.latency_ms.iter().filter_map(sped_up).collect(),
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

    fn row(nonzero: usize, bits: u64, bytes: u64, macs: u64, ms: &[(&str, f64)]) -> Row {
        let latency_ms = ms.iter().map(|(key, ms)| (key.to_string(), *ms)).collect();
        Row { nonzero, bits, file_bytes: Some(bytes), macs, latency_ms, ..Row::default() }
    }

    #[test]
    fn are_those_of_the_survey() {
        let first = row(1200, 32_000, 4000, 600, &[("b1t1", 3.0), ("b32t1", 5.0), ("b1t2", 1.0)]);
        let last = row(100, 800, 125, 100, &[("b1t1", 1.5), ("b32t1", 0.0)]);
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
        let nothing = row(0, 0, 0, 0, &[("b1t1", f64::NAN)]);
        assert_eq!(Metrics::between(&row(1, 1, 1, 1, &[("b1t1", 1.0)]), &nothing), Metrics::default());
    }
}
