//! What gates of one logit make of the validation images.

use std::collections::BTreeMap;

use briquette_core::context::{Context, Finding};
use briquette_core::cost::Cost;
use briquette_core::error::{Error, Result};
use briquette_core::layers::{Gate, Measure};
use briquette_core::net::{Net, Op};
use briquette_core::tradeoff::{Balance, Balanced, Tradeoff};
use briquette_core::training::{Choose, Recipe, evaluate_counted};

/// The gate at which a sample leaves whose logit is not below 0.
pub(crate) const EVEN: Gate = Gate { measure: Measure::Sigmoid, threshold: 0.5 };

/// Steps between the gates that let all samples leave and those that let none.
const STEPS: u8 = 20;

/// Checks a recipe of which the last epoch is taken.
///
/// # Errors
/// As [`Recipe::check`], and where it takes another.
pub(crate) fn last_epoch(recipe: &Recipe) -> Result<()> {
    recipe.check()?;
    match recipe.choose {
        Choose::Last => Ok(()),
        Choose::Best => {
            let detail = "the most accurate epoch may be the one that skips the least; say `choose = \"last\"` in the recipe";
            Err(Error::Invalid(detail.into()))
        }
    }
}

/// Accuracy and mean multiply-accumulates of the validation images, and the share of them that reached each step, by name.
pub(crate) fn balance(net: &Net, cx: &mut Context<'_>) -> Result<(Balance, BTreeMap<String, f64>)> {
    let (device, data) = (cx.device.clone(), &cx.data.valid);
    let (score, reached) = evaluate_counted(net, data, &device, cx.host)?;
    let macs = Cost::of(net)?.expected_macs(|step| reached.get(step).copied())?;
    Ok((Balance { accuracy: score.accuracy, macs }, reached))
}

/// Tells accuracy and cost of the network as it is, and over thresholds that are the same for all of these gates; says the share of the images that
/// reached each step. Nothing where there are no validation images.
pub(crate) fn tell(method: &str, net: &Net, gates: &[usize], cx: &mut Context<'_>) -> Result<Option<BTreeMap<String, f64>>> {
    if cx.data.valid.is_empty() {
        return Ok(None);
    }
    let (chosen, reached) = balance(net, cx)?;
    let mut points = Vec::new();
    for step in 0..=STEPS {
        let threshold = f32::from(step) / f32::from(STEPS);
        let mut other = net.deep_clone();
        gates.iter().for_each(|gate| other.nodes[*gate].op = Op::fixed(Gate { threshold, ..EVEN }));
        points.push(Balanced { value: f64::from(threshold), balance: balance(&other, cx)?.0 });
    }
    cx.note(format!(
        "{:.2} % of the validation images right at {:.0} multiply-accumulates on the mean",
        100.0 * chosen.accuracy,
        chosen.macs
    ));
    let (method, key) = (method.into(), "threshold".into());
    cx.findings.push(Finding::Tradeoff(Tradeoff { method, key, chosen, points }));
    Ok(Some(reached))
}
