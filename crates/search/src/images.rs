//! The images that networks are tried on.

use std::num::NonZeroUsize;

use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_data::Dataset;
use serde::Deserialize;

/// So many of the validation images, or all.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Images(Option<NonZeroUsize>);

impl Images {
    /// Them.
    pub(crate) fn of(self, cx: &Context<'_>) -> Result<Dataset> {
        if cx.data.valid.is_empty() {
            let why = "networks are tried on validation images, and there are none; set `valid` of `data`";
            return Err(Error::Invalid(why.into()));
        }
        Ok(cx.data.valid.take(self.0.map_or(usize::MAX, NonZeroUsize::get)))
    }

    /// For a trial run.
    pub(crate) fn shorten(&mut self) {
        self.0 = Some(self.0.map_or(TRIAL, |images| images.min(TRIAL)));
    }
}

/// Images that a trial run measures on at most.
const TRIAL: NonZeroUsize = NonZeroUsize::new(200).unwrap();
