//! The state of an unfinished training.

use std::io::{Read, Write};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::optimizer::Descent;
use super::{Epoch, Extras};
use crate::archive::{Archive, Reader, Writer};
use crate::error::Result;
use crate::net::Net;

/// What the next epoch depends on, besides the optimizer and what the method keeps.
pub(super) struct State {
    /// As the last epoch left it, its parameters under the ids that the optimizer knows.
    pub(super) net: Net,
    /// The one of the chosen epoch, where that is not the last.
    pub(super) best: Option<Net>,
    pub(super) best_accuracy: f64,
    pub(super) curve: Vec<Epoch>,
}

/// Goes before the network, the chosen one if it is another, what the optimizer remembers, and what objectives and projections keep.
#[derive(Serialize, Deserialize)]
struct Head {
    best_accuracy: f64,
    curve: Vec<Epoch>,
    best_is_last: bool,
}

impl State {
    pub(super) fn start(net: &Net) -> Self {
        Self { net: net.deep_clone().with_stable_ids(), best: None, best_accuracy: -1.0, curve: Vec::new() }
    }

    pub(super) fn write(&self, optimizer: &Descent, extras: &mut Extras<'_>, to: &mut dyn Write) -> Result<()> {
        let mut writer = Writer::new(to);
        let best_is_last = self.best.is_none();
        writer.describe(&Head { best_accuracy: self.best_accuracy, curve: self.curve.clone(), best_is_last })?;
        self.net.write(&mut writer)?;
        self.best.iter().try_for_each(|best| best.write(&mut writer))?;
        optimizer.write(&self.net, &mut writer)?;
        let mut archive = Archive::To(writer);
        extras.keep(&mut archive)?;
        archive.finish()
    }

    pub(super) fn read(from: &mut dyn Read, device: &Device, optimizer: &mut Descent, extras: &mut Extras<'_>) -> Result<Self> {
        let mut reader = Reader::new(from)?;
        let Head { best_accuracy, curve, best_is_last } = reader.describe()?;
        let net = Net::read(&mut reader, device)?.with_stable_ids();
        let best = if best_is_last { None } else { Some(Net::read(&mut reader, device)?) };
        optimizer.read(&net, &mut reader, device)?;
        let mut archive = Archive::From(reader);
        extras.keep(&mut archive)?;
        archive.finish()?;
        Ok(Self { net, best, best_accuracy, curve })
    }
}
