//! Passes that apply other methods, and therefore have to see them all.

mod sensitivity;

pub use sensitivity::Sensitivity;

use briquette_core::pass::Entry;

/// The methods of the runner.
pub const METHODS: &[Entry] = &[Entry::of::<Sensitivity>("runner")];
