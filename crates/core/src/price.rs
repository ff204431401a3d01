//! In what the cost of a network is counted.

use std::fmt::Debug;

use crate::cost::Cost;
use crate::error::Result;
use crate::net::Net;
use crate::stored::Storage;
use crate::surgery::{ChannelGroup, Keep};

/// What a network costs in one unit.
pub trait Price: Debug + Sync {
    /// The unit, in words.
    fn unit(&self) -> &'static str;

    /// What the network costs.
    ///
    /// # Errors
    /// When the network does not hold together or cannot be stored.
    fn of(&self, net: &Net) -> Result<f64>;

    /// What the network costs after [`Net::keep`] of these cuts. The default cuts a copy, as prices need that follow from values or are measured.
    ///
    /// # Errors
    /// As [`Price::of`] and [`Net::keep`].
    fn after(&self, net: &Net, cuts: &[(&ChannelGroup, Keep)]) -> Result<f64> {
        self.of(&net.deep_clone().keep(cuts)?)
    }
}

/// Multiply-accumulates of one sample.
#[derive(Debug, Clone, Copy)]
pub struct Macs;

impl Price for Macs {
    fn unit(&self) -> &'static str {
        "multiply-accumulates"
    }

    fn of(&self, net: &Net) -> Result<f64> {
        Ok(Cost::of(net)?.macs() as f64)
    }

    fn after(&self, net: &Net, cuts: &[(&ChannelGroup, Keep)]) -> Result<f64> {
        Ok(net.cost_after(cuts)?.macs() as f64)
    }
}

/// Bytes of the container, in its default storage: masks, codebooks and grids take what their values take, so shapes do not tell.
#[derive(Debug, Clone, Copy)]
pub struct Bytes;

impl Price for Bytes {
    fn unit(&self) -> &'static str {
        "bytes"
    }

    fn of(&self, net: &Net) -> Result<f64> {
        Ok(net.to_model(Storage::default())?.to_bytes()?.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_container() {
        let arch = crate::zoo::Arch::named("lenet300").unwrap();
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).unwrap();
        let bytes = Bytes.of(&net).unwrap();
        assert!((4.0 * 266_610.0..4.0 * 266_610.0 + 1000.0).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_price_after_cuts_is_that_of_the_cut_network() {
        let arch = crate::zoo::Arch::named("lenet5").unwrap();
        let net = arch.build(&arch.wanted(), &burn::tensor::Device::flex()).unwrap();
        let groups = net.channel_groups().unwrap();
        let cuts = [(&groups[0], Keep::top(&vec![0.0; groups[0].len()], 3))];
        let cut = net.deep_clone().keep(&cuts).unwrap();
        for price in [&Macs as &dyn Price, &Bytes] {
            assert_eq!(price.after(&net, &cuts).unwrap(), price.of(&cut).unwrap(), "{}", price.unit());
        }
    }
}
