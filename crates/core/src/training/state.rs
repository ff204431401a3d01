//! The state of an unfinished training.

use burn::tensor::{Bytes, Device};
use serde::{Deserialize, Serialize};

use super::Epoch;
use crate::error::{Error, Result};
use crate::net::Net;

/// Everything that the next epoch depends on.
pub(super) struct State {
    pub(super) net: Net,
    pub(super) best: Net,
    pub(super) best_accuracy: f64,
    pub(super) curve: Vec<Epoch>,
    pub(super) optimizer: Option<Bytes>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    best_accuracy: f64,
    curve: Vec<Epoch>,
    lengths: [usize; 3],
}

impl State {
    pub(super) fn start(net: Net) -> Self {
        Self { best: net.deep_clone(), net, best_accuracy: -1.0, curve: Vec::new(), optimizer: None }
    }

    /// Length of the header in eight bytes, the header as JSON, then network, best network and optimizer.
    pub(super) fn to_bytes(&self, optimizer: &[u8]) -> Vec<u8> {
        let (net, best) = (self.net.to_state(), self.best.to_state());
        let lengths = [net.len(), best.len(), optimizer.len()];
        let header = Header { best_accuracy: self.best_accuracy, curve: self.curve.clone(), lengths };
        let header = serde_json::to_vec(&header).expect("plain data serializes");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        for part in [header.as_slice(), &net, &best, optimizer] {
            bytes.extend_from_slice(part);
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8], device: &Device) -> Result<Self> {
        let mut rest = bytes;
        let header = u64::from_le_bytes(take(&mut rest, 8)?.try_into().expect("eight bytes were taken"));
        let header = take(&mut rest, usize::try_from(header).unwrap_or(usize::MAX))?;
        let header: Header = serde_json::from_slice(header).map_err(|error| Error::State(error.to_string()))?;
        let net = Net::from_state(take(&mut rest, header.lengths[0])?, device)?;
        let best = Net::from_state(take(&mut rest, header.lengths[1])?, device)?;
        let optimizer = Some(Bytes::from_bytes_vec(take(&mut rest, header.lengths[2])?.to_vec()));
        Ok(Self { net, best, best_accuracy: header.best_accuracy, curve: header.curve, optimizer })
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len).ok_or_else(|| Error::State("it is cut short".into()))?;
    *rest = tail;
    Ok(head)
}
