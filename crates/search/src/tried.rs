//! What networks reach that a search tries.

use briquette_core::context::{Context, Event};
use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::points::Points;
use briquette_core::training::evaluate;
use briquette_data::Dataset;

/// The accuracy on images of the network that is made, found once for its name, or why it cannot be made: that is one bad try and not the end of a search.
///
/// # Errors
/// When the host asks to stop, and what [fails](briquette_core::error::Error::refuses) instead of refusing.
pub(crate) fn accuracy(
    points: &mut Points,
    name: &str,
    images: &Dataset,
    cx: &mut Context<'_>,
    made: impl FnOnce(&mut Context<'_>) -> Result<Net>,
) -> Result<std::result::Result<f64, String>> {
    let measured = points.get(name, cx, |cx| {
        let net = made(cx)?;
        evaluate(&net, images, &cx.device, cx.host).map(Into::into)
    })?;
    Ok(measured.map(|measured| measured.accuracy))
}

/// The reward of a try that was refused, which is said.
pub(crate) fn refused(name: &str, why: &str, reward: f64, cx: &mut Context<'_>) -> f64 {
    cx.host.event(Event::Note(&format!("{name}: refused, {why}")));
    reward
}
