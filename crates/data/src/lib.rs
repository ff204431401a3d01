//! Image data sets: a synthetic one that needs no files, MNIST, also turned and cluttered, Fashion-MNIST, CIFAR, folders of images and tar archives of
//! them; batches with augmentation; downloads with checksums.
//!
//! ```
//! use briquette_data::{Augment, GlyphCounts, Loader, Locations};
//!
//! # fn main() -> Result<(), briquette_data::Error> {
//! let at = Locations { glyphs: GlyphCounts { train: 500, test: 100 }, ..Locations::from_env(None) };
//! let set = briquette_data::open("glyphs", &at)?;
//! let (train, valid) = set.train.split(100, 7);
//! assert_eq!((train.len(), valid.len(), set.test.len()), (400, 100, 100));
//! for batch in Loader::train(&train, 64, Augment { pad_crop: 2, flip: false }, 7, 2) {
//!     let batch = batch?;
//!     assert_eq!(batch.images.len(), batch.len * 28 * 28);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Your own data
//!
//! A folder `train/<class>/*.png`, `test/<class>/*.png` (or `.jpg`) is the set `folder:PATH`; both splits have the same classes. Tar archives of such
//! files, `train/*.tar` and `test/*.tar`, are the set `shards:PATH`. Neither is held in memory: files are indexed when the set is opened, and decoded by the threads of a [`Loader`]
//! when their turn comes. Images without labels are read by [`unlabelled`], from a folder or from archives of any structure.
//!
//! Pixels already in memory become a [`Dataset`], as does whatever implements [`Images`], and a pair of those becomes [`Splits`]:
//!
//! ```
//! use briquette_data::{Dataset, Loader, Splits};
//!
//! # fn main() -> Result<(), briquette_data::Error> {
//! // Two grey images of 2x2 pixels, `[n, c, h, w]`, and the class of each.
//! let train = Dataset::from_memory("mine train", [1, 2, 2], 2, vec![0, 10, 20, 30, 255, 245, 235, 225], vec![0, 1])?;
//! let test = train.take(1);
//! let classes = vec!["dark".into(), "bright".into()];
//! let mine = Splits { name: "mine".into(), train, test, classes, moments: None, sha256: Vec::new() };
//! let (mean, std) = mine.normalization()?;
//! assert_eq!((mean.len(), std.len()), (1, 1));
//! let batches = Loader::ordered(&mine.train, 32).collect::<Result<Vec<_>, _>>()?;
//! assert_eq!(batches[0].labels, [0, 1]);
//! # Ok(())
//! # }
//! ```

mod augment;
mod cifar;
mod cluttered;
mod dataset;
mod dice;
mod download;
mod encoded;
mod ends;
mod error;
mod files;
mod folder;
mod glyphs;
mod hint;
mod idx;
mod images;
mod jpeg;
mod loader;
mod locations;
mod manifest;
mod open;
mod rotated;
mod shards;
mod store;
mod unlabelled;

pub use augment::Augment;
pub use dataset::Dataset;
pub use download::get;
pub use error::Error;
pub use files::{MissingFile, Status, locate};
pub use hint::{Hint, nearest};
pub use images::Images;
pub use loader::{Batch, Loader};
pub use locations::{GlyphCounts, Locations};
pub use manifest::{File, Format, Manifest, Piece, manifest};
pub use open::{Outline, Splits, names, open, outline};
pub use unlabelled::unlabelled;
