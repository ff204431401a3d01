//! What the methods that store products of centroids have in common: which layers, how they are cut up, and the training of the centroids.

use std::num::NonZeroUsize;

use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::training::Recipe;
use briquette_core::types::{Layers, PerLayer};
use serde::Deserialize;

use briquette_parts::refuse;
use briquette_parts::vectors::Pieces;

/// The settings; a method's struct flattens them into its own and denies unknown fields there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Products {
    /// Centroids of a block; layers that nothing names are left alone.
    centroids: PerLayer<NonZeroUsize>,
    /// Columns of a block: inputs of a fully connected layer, channels of a convolution, or taps of a filter, channel after channel. Where it does
    /// not divide them, the last block is narrower.
    width: PerLayer<NonZeroUsize>,
    /// Whether the taps of a convolution share the centroids of a block, which then lies over channels alone.
    share_taps: Option<bool>,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Training of the centroids.
    pub(crate) tune: Option<Recipe>,
}

impl Products {
    /// How the weights of each node are put together, in the network's order; `share` says whether taps share centroids where the settings do
    /// not.
    ///
    /// # Errors
    /// A layer without a width, with fewer inputs than the width or fewer outputs than centroids, or whose weights are shared or not finite.
    pub fn layers(&self, net: &Net, method: &str, stages: usize, share: bool) -> Result<Vec<(usize, Pieces)>> {
        if !(1..=16).contains(&stages) {
            return Err(Error::Invalid(format!("{method}: `stages` lies in 1..=16, not {stages}")));
        }
        refuse::weightless(net, &self.centroids)?;
        let widths = self.width.resolve(net)?;
        let mut layers = Vec::new();
        for (index, centroids) in self.centroids.resolve_within(net, &self.layers.without(&self.except, net)?)? {
            let node = &net.nodes[index];
            let Some(weight) = node.weight() else { continue };
            let (outputs, centroids) = (weight.shape[0], centroids.get());
            let kernel: usize = weight.shape.iter().skip(2).product();
            let taps = if self.share_taps.unwrap_or(share) { kernel } else { 1 };
            let inputs = weight.base.len() / outputs / taps;
            let (columns, rows) = if taps > 1 { ("channels", "outputs and taps") } else { ("inputs", "outputs") };
            let Some((_, width)) = widths.iter().find(|(other, _)| *other == index) else {
                return Err(Error::node(&node.name, "has `centroids` but no `width`; set both or neither"));
            };
            let width = width.get();
            if width > inputs {
                let detail =
                    format!("has blocks of {width} {columns} but only {inputs} of them; set `width` to at most {inputs}");
                return Err(Error::node(&node.name, detail));
            }
            let most = (outputs * taps).min(1 << 16);
            if centroids > most {
                let detail =
                    format!("has {centroids} centroids for {} {rows}; set `centroids` to at most {most}", outputs * taps);
                return Err(Error::node(&node.name, detail));
            }
            refuse::shared(net, [&index], method)?;
            refuse::not_finite(&node.name, &weight.values())?;
            layers.push((index, Pieces { width, centroids, stages, taps }));
        }
        Ok(layers)
    }
}

#[cfg(test)]
pub(crate) mod proof {
    use briquette_core::pass::Pass;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use briquette_handmade::{refusal, set, small};

    /// What every method with these settings refuses.
    pub(crate) fn refuses<P: Pass + DeserializeOwned>(method: &str) {
        let said = |settings| refusal::<P>(small(), settings);
        assert_eq!(
            said(json!({ "centroids": 3, "width": { "fc": 4 } })),
            "node 'conv1': has `centroids` but no `width`; set both or neither"
        );
        assert_eq!(
            said(json!({ "centroids": { "conv1": 2 }, "width": 5, "share-taps": false })),
            "node 'conv1': has blocks of 5 inputs but only 4 of them; set `width` to at most 4"
        );
        assert_eq!(
            said(json!({ "centroids": { "conv2": 2 }, "width": 5, "share-taps": true })),
            "node 'conv2': has blocks of 5 channels but only 4 of them; set `width` to at most 4"
        );
        assert_eq!(
            said(json!({ "centroids": { "conv2": 13 }, "width": 2, "share-taps": true })),
            "node 'conv2': has 13 centroids for 12 outputs and taps; set `centroids` to at most 12"
        );
        assert_eq!(
            said(json!({ "centroids": { "fc2": 4 }, "width": 2 })),
            "node 'fc2': has 4 centroids for 3 outputs; set `centroids` to at most 3"
        );
        let settings = json!({ "centroids": { "fc2": 2 }, "width": 2 });
        let nan = refusal::<P>(set(small(), "fc2", "weight", &[f32::NAN; 15]), settings.clone());
        assert_eq!(nan, "node 'fc2': holds the weight NaN; train it anew or clip it");
        let shared =
            crate::quantization::kmeans_sharing::share(small(), |_| Some(2), crate::quantization::kmeans_sharing::Init::Linear);
        let twice = refusal::<P>(shared, settings);
        assert_eq!(twice, format!("node 'fc2': shares its weights; put {method} before the pass that shares them"));
        let zero = serde_json::from_value::<P>(json!({ "centroids": 0, "width": 2 })).unwrap_err().to_string();
        assert!(zero.contains("nonzero"), "{zero}");
    }
}
