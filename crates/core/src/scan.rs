//! How a network does when one layer alone is changed.

use serde::{Deserialize, Serialize};

/// Accuracies of a network with one layer changed, for every layer and every value of a setting.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Scan {
    /// The method that changes the layers.
    pub method: String,
    /// Its setting that takes the values.
    pub key: String,
    /// The network as it is.
    pub baseline: Measured,
    /// Layer by layer, in the order of the network, each in the order of the values.
    pub points: Vec<Point>,
}

/// One layer changed by one value.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Point {
    /// Name of the layer.
    pub layer: String,
    /// The value.
    pub value: f64,
    /// How the network did.
    #[serde(flatten)]
    pub measured: Measured,
}

/// How a network does on validation images.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Share of the images whose class is found.
    pub accuracy: f64,
    /// Mean cross-entropy; none where it is no finite number.
    pub loss: Option<f64>,
}

impl Scan {
    /// A table of layer, value, accuracy and loss with a line of heads; the second line, without a value, is the network as it is.
    pub fn csv(&self) -> String {
        let line = |layer: &str, value: String, measured: &Measured| {
            let loss = measured.loss.map_or(String::new(), |loss| loss.to_string());
            format!("{},{value},{},{loss}\n", quoted(layer), measured.accuracy)
        };
        let mut text = String::from("layer,value,accuracy,loss\n") + &line("baseline", String::new(), &self.baseline);
        text.extend(self.points.iter().map(|point| line(&point.layer, point.value.to_string(), &point.measured)));
        text
    }
}

/// A text as a field of a table (RFC 4180): names come from containers and may hold anything.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::Score;

    #[test]
    fn a_table_has_a_line_for_the_baseline_and_for_each_point() {
        let point = |layer: &str, value, accuracy, loss| Point {
            layer: layer.into(),
            value,
            measured: Score { accuracy, loss, ..Score::default() }.into(),
        };
        let scan = Scan {
            baseline: Measured { accuracy: 0.9, loss: Some(0.25) },
            points: vec![point("fc1", 0.5, 0.875, 0.5), point("a,\"b\"", 8.0, 0.1, f64::NAN)],
            ..Scan::default()
        };
        let expected = "layer,value,accuracy,loss\nbaseline,,0.9,0.25\nfc1,0.5,0.875,0.5\n\"a,\"\"b\"\"\",8,0.1,\n";
        assert_eq!(scan.csv(), expected);
        let json = serde_json::to_string(&scan).unwrap();
        assert_eq!(serde_json::from_str::<Scan>(&json).unwrap(), scan);
    }
}
