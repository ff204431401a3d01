//! Whole compression experiments from TOML files: the library behind the binary `briquette`.

pub mod bench;
pub mod cli;
pub mod config;
pub mod device;
pub mod files;
pub mod host;
pub mod measure;
pub mod memory;
pub mod passes;
pub mod plan;
pub mod remeasure;
pub mod report;
pub mod run;
pub mod setup;
pub mod verbs;

use briquette_core::pass::Entry;

/// Every method of every crate, by name.
pub fn methods() -> Vec<&'static Entry> {
    let mut all =
        Vec::from_iter(briquette_core::passes::METHODS.iter().chain(briquette_pruning_sharing::METHODS).chain(passes::METHODS));
    all.sort_by_key(|entry| entry.name);
    all
}

/// The README's examples are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
