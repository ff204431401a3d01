//! What is minimized beside the task's own loss.

use burn::tensor::{Gradients, Tensor};

use crate::archive::Archive;
use crate::context::Host;
use crate::error::{Error, Result};
use crate::net::{Net, Value};

/// A step of a training, in the eyes of an objective: all that its one forward pass met.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The network in training.
    pub net: &'a Net,
    /// `[batch, channels, height, width]`.
    pub images: &'a Tensor<4>,
    /// `[batch]`.
    pub labels: &'a [u16],
    /// Which of the training images they are, `[batch]`: the same image has the same number in every epoch.
    pub ids: &'a [u32],
    /// `[batch, classes]`.
    pub logits: &'a Tensor<2>,
    /// The outputs of the nodes that [`Objective::taps`] names, in its order, with their place in the graph of gradients.
    pub taps: &'a [Value],
    /// Epochs that are done, with the share of the one at hand.
    pub epoch: f64,
    /// Which of the fixed draws of the augmentation the images are, where the recipe has such.
    pub draw: Option<usize>,
}

/// A term of the loss.
pub trait Objective {
    /// Nodes whose outputs the term looks at, by index.
    ///
    /// # Errors
    /// When the network has no such nodes.
    fn taps(&self, _net: &Net) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }

    /// Factor of the task's own loss. Those of several objectives are multiplied.
    fn task(&self) -> f64 {
        1.0
    }

    /// The term for this step; a scalar that carries gradients.
    ///
    /// # Errors
    /// When what it sees has no such term.
    fn term(&mut self, seen: &Seen<'_>) -> Result<Tensor<1>>;

    /// Trains the tensors that the term has of its own, if any, by the gradients of the whole loss, from which it may take theirs; `lr` is the network's
    /// rate.
    fn learn(&mut self, _gradients: &mut Gradients, _lr: f64) {}

    /// Called behind each epoch, once its state is saved: what outlives the run goes to the host.
    ///
    /// # Errors
    /// Those of the host.
    fn epoch_ended(&mut self, _host: &mut dyn Host) -> Result<()> {
        Ok(())
    }

    /// Keeps in the training's state what outlives a step, the tensors of its own among it.
    ///
    /// # Errors
    /// Those of the archive.
    fn keep(&mut self, _archive: &mut Archive<'_>) -> Result<()> {
        Ok(())
    }
}

/// Outputs that are wanted of a forward pass, and that it has met.
#[derive(Debug, Default)]
pub struct Taps {
    wanted: Vec<usize>,
    met: Vec<Option<Value>>,
}

impl Taps {
    /// The outputs of these nodes, of which one may be wanted twice.
    pub fn of(wanted: Vec<usize>) -> Self {
        Self { met: vec![None; wanted.len()], wanted }
    }

    /// Whether none is wanted.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Takes the output of a node, if it is wanted.
    pub fn meet(&mut self, node: usize, output: &Value) {
        let places = self.wanted.iter().zip(&mut self.met).filter(|(wanted, _)| **wanted == node);
        places.for_each(|(_, met)| *met = Some(output.clone()));
    }

    /// What was met, in the order of what was wanted.
    ///
    /// # Errors
    /// When the forward pass had no such node.
    pub fn values(self) -> Result<Vec<Value>> {
        let missed =
            |node: usize| Error::Invalid(format!("node {node} is looked at by the loss, and the forward pass has no such node"));
        self.wanted.into_iter().zip(self.met).map(|(node, met)| met.ok_or_else(|| missed(node))).collect()
    }
}

impl Net {
    /// [`Net::forward`], with the outputs that `taps` wants.
    pub fn tapped(&self, images: Tensor<4>, taps: &mut Taps) -> Tensor<2> {
        if taps.is_empty() {
            return self.forward(images);
        }
        let logits = self.trace(images, |node, output| {
            taps.meet(node, &output);
            output
        });
        logits.vector()
    }

    /// [`Net::tapped`] of the network with these nodes bypassed, as [`Net::bypass_all`] takes them: what the output no longer depends on is not
    /// computed in this step, gets no gradient, and keeps its running statistics. Where `taps` wants any of that, nothing is computed, and nothing comes out.
    ///
    /// # Errors
    /// As [`Net::bypass_all`].
    pub fn tapped_around(&self, images: Tensor<4>, pairs: &[(usize, usize)], taps: &mut Taps) -> Result<Option<Tensor<2>>> {
        // Clones share parameters, with their place in the graph of gradients, and running statistics.
        let (net, places) = self.clone().bypass_all(pairs)?;
        if taps.wanted.iter().any(|node| places[*node].is_none()) {
            return Ok(None);
        }
        if taps.is_empty() {
            return Ok(Some(net.forward(images)));
        }
        let logits = net.trace(images, |index, output| {
            let here = places.iter().enumerate().filter(|(_, place)| **place == Some(index));
            here.for_each(|(node, _)| taps.meet(node, &output));
            output
        });
        Ok(Some(logits.vector()))
    }
}
