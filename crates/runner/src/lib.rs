//! Whole compression experiments from TOML files: the library behind the binary `briquette`.

pub mod cli;
pub mod config;
pub mod device;
pub mod files;
pub mod host;
pub mod measure;
pub mod memory;
pub mod plan;
pub mod program;
pub mod remeasure;
pub mod report;
pub mod run;
pub mod setup;
pub mod steps;
pub mod timing;
pub mod verbs;

use briquette_core::pass::{Catalogue, Entry};
use briquette_core::zoo::Arch;

/// The methods of every crate.
pub const METHODS: Catalogue = Catalogue::of(&[
    briquette_core::passes::METHODS,
    briquette_pruning_sharing::METHODS,
    briquette_low_rank::METHODS,
    briquette_compact_filters::METHODS,
    briquette_distillation::METHODS,
    briquette_dynamic_nets::METHODS,
    briquette_search::METHODS,
])
.distilling(&[briquette_distillation::DISTILLATIONS]);

/// Every method of every crate, by name.
pub fn methods() -> Vec<&'static Entry> {
    let mut all: Vec<&Entry> = METHODS.entries().collect();
    all.sort_by_key(|entry| entry.name);
    all
}

/// The networks of every crate.
pub fn zoo() -> impl Iterator<Item = &'static Arch> + Clone {
    briquette_core::zoo::ZOO.iter().chain(briquette_compact_filters::ZOO).chain(briquette_dynamic_nets::ZOO)
}

/// The README's examples are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
