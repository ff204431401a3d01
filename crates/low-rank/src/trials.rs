//! How a network does with one layer factorized.

use std::num::NonZeroUsize;

use briquette_core::context::{Context, Event};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::points::Points;
use briquette_core::training::evaluate;
use briquette_parts::allocation::{Trial, by_accuracy, sum};

use crate::resolve::{Able, Form};

/// Accuracies on validation images, each measured once.
pub(crate) struct Trials {
    points: Points,
    images: usize,
}

/// What a layer may become.
pub(crate) struct Tried {
    /// None as it is.
    pub(crate) ranks: Option<Vec<usize>>,
    pub(crate) cost: f64,
}

/// Under which key a run keeps them.
pub(crate) const KEPT: &str = "ranks-by-accuracy";

impl Trials {
    /// On so many images, or all.
    pub(crate) fn new(images: Option<NonZeroUsize>, cx: &mut Context<'_>) -> Result<Self> {
        if cx.data.valid.is_empty() {
            let why = "measures on validation images, and there are none; set `valid` of `data`, or leave out `on`";
            return Err(Error::Invalid(format!("`ranks = {{ on = \"accuracy\" }}` {why}")));
        }
        Ok(Self { points: Points::load(KEPT, cx.host)?, images: images.map_or(usize::MAX, NonZeroUsize::get) })
    }

    /// What each layer becomes, so that all together cost no more than the budget.
    pub(crate) fn choose(
        &mut self,
        net: &Net,
        able: &[Able],
        form: &dyn Form,
        mut options: Vec<Vec<Tried>>,
        budget: f64,
        cx: &mut Context<'_>,
    ) -> Result<Vec<Option<Vec<usize>>>> {
        let mut table = Vec::with_capacity(able.len());
        for (able, options) in able.iter().zip(&options) {
            let mut trial = |Tried { ranks, cost }: &Tried| {
                let of = ranks.as_deref().map(|ranks| (able, ranks));
                Ok(Trial { cost: *cost, accuracy: self.accuracy(net, form, of, cx)? })
            };
            table.push(options.iter().map(&mut trial).collect::<Result<Vec<Trial>>>()?);
        }
        let found = by_accuracy(&table, |choice| Ok(sum(&table, choice)), budget)?;
        Ok(found.choice.into_iter().zip(&mut options).map(|(at, options)| options.swap_remove(at).ranks).collect())
    }

    /// The accuracy of the network with a chain of these ranks in the place of one layer, or as it is.
    fn accuracy(&mut self, net: &Net, form: &dyn Form, of: Option<(&Able, &[usize])>, cx: &mut Context<'_>) -> Result<f64> {
        let name = of.map_or("as it is".into(), |(able, ranks)| format!("{}, ranks {ranks:?}", net.nodes[able.index].name));
        let images = cx.data.valid.take(self.images);
        let measured = self.points.get(&name, cx, |cx| {
            cx.aside(|cx| {
                let changed = of.map(|(able, ranks)| form.replaced(net, able, ranks, cx)).transpose()?;
                let score = evaluate(changed.as_ref().unwrap_or(net), &images, &cx.device, cx.host)?;
                cx.host.event(Event::Note(&format!("{name}: {:.2} %", 100.0 * score.accuracy)));
                Ok(score.into())
            })
        })?;
        Ok(measured.map_err(Error::Invalid)?.accuracy)
    }
}
