//! Sizes as people write them.

use serde::{Deserialize, Serialize};

/// A number of bytes: `200000`, or with a unit in powers of 1000, `"200 kB"`, `"1.5 GB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "u64")]
pub struct Bytes(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "bytes are a whole number or a text such as \"200 kB\"")]
enum Written {
    Number(u64),
    Text(String),
}

const UNITS: [(&str, f64); 4] = [("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0)];

impl TryFrom<Written> for Bytes {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let text = match written {
            Written::Number(bytes) => return Ok(Self(bytes)),
            Written::Text(text) => text,
        };
        let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim(), factor)));
        let bytes = unit.and_then(|(number, factor)| Some(number.parse::<f64>().ok()? * factor));
        match bytes.filter(|bytes| (0.0..1e15).contains(bytes)) {
            Some(bytes) => Ok(Self(bytes.round() as u64)),
            None => Err(format!("'{text}' is no number of bytes; write it as \"200 kB\", in kB, MB or GB")),
        }
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> u64 {
        bytes.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_have_units() {
        let read = |text: &str| serde_json::from_str::<Bytes>(text).map_err(|error| error.to_string());
        for (text, bytes) in [("12", 12), ("\"200 kB\"", 200_000), ("\"1.5GB\"", 1_500_000_000), ("\"7 B\"", 7)] {
            assert_eq!(read(text), Ok(Bytes(bytes)));
        }
        assert_eq!(read(&serde_json::to_string(&Bytes(5)).unwrap()), Ok(Bytes(5)));
        for text in ["\"200\"", "\"-1 kB\"", "\"nan GB\"", "\"many MB\""] {
            assert!(read(text).unwrap_err().contains("is no number of bytes"), "{text}");
        }
        assert!(read("-3").unwrap_err().contains("a whole number or a text"));
    }
}
