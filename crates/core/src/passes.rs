//! The passes that every pipeline needs: training, folding, measuring, storing.

mod encode;
mod evaluate;
mod fold_norms;
#[cfg(test)]
mod handmade;
mod initialize;
mod load;
mod save;
mod train;

pub use encode::Encode;
pub use evaluate::Evaluate;
pub use fold_norms::FoldNorms;
pub use initialize::Initialize;
pub use load::Load;
pub use save::Save;
pub use train::Train;

use crate::pass::Entry;

/// The methods of the core.
pub const METHODS: &[Entry] = &[
    Entry::of::<Encode>("core"),
    Entry::of::<Evaluate>("core"),
    Entry::of::<FoldNorms>("core"),
    Entry::of::<Initialize>("core"),
    Entry::of::<Load>("core"),
    Entry::of::<Save>("core"),
    Entry::of::<Train>("core"),
];
