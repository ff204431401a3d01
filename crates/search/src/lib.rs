//! Methods that apply other methods: section 8 of Cheng et al.'s survey, "A Survey of Model Compression and Acceleration for Deep Neural Networks".
//!
//! They know no other scheme's crate. What they apply they find in the [catalogue](briquette_core::pass::Catalogue) of the program that reads
//! their settings, which name a method as a pass of a config does.

mod adam;
pub mod amc;
pub mod budget;
pub mod ddpg;
pub mod episodes;
mod fingerprint;
pub mod greedy_budget;
pub mod haq;
mod images;
mod latencies;
pub mod network_surgery;
pub mod network_to_network;
mod probe;
pub mod refill;
pub mod sensitivity;
mod tried;

use briquette_core::pass::Entry;

const HOME: &str = "search";

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::searching::<amc::Amc>(HOME),
    Entry::searching::<greedy_budget::GreedyBudget>(HOME),
    Entry::searching::<haq::Haq>(HOME),
    Entry::of::<network_surgery::NetworkSurgery>(HOME),
    Entry::searching::<network_to_network::NetworkToNetwork>(HOME),
    Entry::searching::<sensitivity::Sensitivity>(HOME),
];
