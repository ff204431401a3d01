//! What the methods that share weights by their curvature have in common: which layers, how much each weight counts, and the training of
//! the centroids. A method adds the clustering.

use std::collections::BTreeMap;

use briquette_core::coding::{self, Coding, Source, Weight};
use briquette_core::context::Context;
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::training::{Recipe, tune};
use briquette_core::types::Layers;
use burn::module::Module;
use serde::Deserialize;

use super::curvature::{Curvature, PerWeight, reached};
use super::kmeans::{Clusters, Weighted};
use super::refuse;

/// The settings; a method's struct flattens them into its own and denies unknown fields there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Codebooks {
    /// How much the error of a weight counts.
    #[serde(default)]
    curvature: Curvature,
    /// Training images over which the curvature is averaged.
    #[serde(default = "hundred")]
    calibration_images: usize,
    /// Whether each layer is clustered by itself, instead of all together.
    #[serde(default)]
    per_layer: bool,
    /// Layers to work on, all without it.
    #[serde(default)]
    layers: Layers,
    /// Layers that are left alone.
    #[serde(default)]
    except: Layers,
    /// Training of the centroids.
    tune: Option<Recipe>,
}

/// The weights of a layer that no mask hides, to be shared.
struct Member {
    node: usize,
    mask: Option<Vec<bool>>,
    points: Vec<Weighted>,
}

impl Codebooks {
    /// Estimates the curvature, clusters, and trains the centroids.
    ///
    /// # Errors
    /// Names a layer whose weights or curvature are not finite; otherwise as `cluster` and [`tune`].
    pub fn run(
        &self,
        method: &str,
        net: Net,
        cx: &mut Context<'_>,
        cluster: impl Fn(&[Weighted]) -> Result<Clusters>,
    ) -> Result<Net> {
        self.check(method, &net)?;
        let curvature = self.curvature.estimate(&net, self.calibration_images, method, cx)?;
        if self.curvature != Curvature::Flat {
            reached(&net, &curvature, &self.layers.without(&self.except, &net)?)?;
        }
        let net = self.share(net, &curvature, cluster)?;
        tune(net, self.tune.as_ref(), cx)
    }

    /// The network's shape afterwards, the curvature taken as the same for all weights.
    ///
    /// # Errors
    /// When the settings, of the method of this name, do not fit the network.
    pub fn plan(&self, method: &str, net: Net, cluster: impl Fn(&[Weighted]) -> Result<Clusters>) -> Result<Net> {
        self.check(method, &net)?;
        self.share(net, &PerWeight::new(), cluster)
    }

    fn check(&self, method: &str, net: &Net) -> Result<()> {
        if self.calibration_images == 0 {
            return Err(Error::Invalid(format!("{method}: `calibration-images` must be at least 1")));
        }
        let chosen = self.layers.without(&self.except, net)?;
        for (_, node) in net.weighted().filter(|(index, _)| chosen.contains(index)) {
            let values = node.weight().map_or(Vec::new(), |weight| weight.values());
            refuse::not_finite(&node.name, &values)?;
        }
        Ok(())
    }

    /// Shares the weights of each layer, or of all together, among the centroids that `cluster` finds. Curvatures are scaled to the mean 1
    /// over the weights that are clustered together, and none counts less than [`LEAST`] of it.
    fn share(&self, net: Net, curvature: &PerWeight, cluster: impl Fn(&[Weighted]) -> Result<Clusters>) -> Result<Net> {
        let mut members = self.members(&net, curvature)?;
        let all = members.len().max(1);
        let mut codings: BTreeMap<usize, Coding> = BTreeMap::new();
        for group in members.chunks_mut(if self.per_layer { 1 } else { all }) {
            let sizes: Vec<usize> = group.iter().map(|member| member.points.len()).collect();
            let mut points: Vec<Weighted> = group.iter_mut().flat_map(|member| std::mem::take(&mut member.points)).collect();
            scale(&mut points);
            let clusters = cluster(&points)?;
            let mut rest = &clusters.assignment[..];
            for (member, size) in group.iter_mut().zip(sizes) {
                let (own, others) = rest.split_at(size);
                rest = others;
                codings.insert(member.node, coded(&clusters.centroids, own, member.mask.take()));
            }
        }
        recode_layers(net, codings)
    }

    fn members(&self, net: &Net, curvature: &PerWeight) -> Result<Vec<Member>> {
        let chosen = self.layers.without(&self.except, net)?;
        let mut members = Vec::new();
        for index in chosen {
            let node = &net.nodes[index];
            let Some(weight) = node.weight() else { continue };
            let values = weight.values();
            let points = points(&values, &weight.coding, |i| curvature.get(&index).map_or(1.0, |h| h[i]));
            members.push(Member { node: index, mask: weight.coding.mask, points });
        }
        Ok(members)
    }

    /// For a trial run.
    pub fn shorten(&mut self) {
        self.calibration_images = self.calibration_images.min(10);
    }
}

/// Shares each tensor of rank 2 or more in any Burn module among the centroids that `cluster` finds for it. `curvature` gives how much the
/// error of each of its weights counts, in the order of its values, or none for a tensor that is left alone; only ratios matter. Masked
/// weights take no part and stay zero.
///
/// # Errors
/// Names a tensor whose weights are not finite or whose curvature is of another length; otherwise as `cluster`.
pub fn share<M: Module>(
    module: M,
    mut curvature: impl FnMut(&Weight) -> Option<Vec<f64>>,
    cluster: impl Fn(&[Weighted]) -> Result<Clusters>,
) -> Result<M> {
    let mut codings = BTreeMap::new();
    for weight in coding::weights(&module) {
        let Some(h) = curvature(&weight) else { continue };
        refuse::not_finite(&weight.path, &weight.values)?;
        if h.len() != weight.values.len() {
            return Err(Error::node(&weight.path, format!("{} curvatures for {} weights", h.len(), weight.values.len())));
        }
        let mut points = points(&weight.values, &weight.coding, |i| h[i]);
        scale(&mut points);
        let clusters = cluster(&points)?;
        codings.insert(weight.path, coded(&clusters.centroids, &clusters.assignment, weight.coding.mask));
    }
    Ok(coding::recode(module, codings))
}

/// The weights that no mask hides; those that are shared already stay together.
fn points(values: &[f32], coding: &Coding, curvature: impl Fn(usize) -> f64) -> Vec<Weighted> {
    let weighted = |(i, &value): (usize, &f32)| Weighted { value, weight: curvature(i) as f32 };
    let points: Vec<Weighted> = values.iter().enumerate().map(weighted).collect();
    let mut points = coding.left(&points).into_owned();
    if let Source::Codebook { centroids, assignment } = &coding.source {
        pool(&mut points, &coding.left(assignment), centroids.len());
    }
    points
}

/// The coding of weights with these centroids, `assignment` being that of those which no mask hides.
fn coded(centroids: &[f32], assignment: &[u32], mask: Option<Vec<bool>>) -> Coding {
    let own = used(centroids, assignment);
    let source = match &mask {
        Some(mask) => own.spread(mask).into_source(),
        None => own.into_source(),
    };
    Coding { mask, source }
}

/// The network with other codings of the weights of these nodes, in the layout of [`Node::weight`](briquette_core::net::Node::weight).
///
/// # Errors
/// When a coding does not fit its weight.
pub fn recode_layers(net: Net, mut codings: BTreeMap<usize, Coding>) -> Result<Net> {
    let device = net.device();
    let nodes = net.nodes.into_iter().enumerate().map(|(index, node)| {
        let Some(coding) = codings.remove(&index) else { return Ok(node) };
        let mut parameters = node.parameters();
        parameters.iter_mut().filter(|stored| stored.name == "weight").for_each(|weight| weight.coding = coding.clone());
        node.with(parameters, &device)
    });
    Ok(Net { nodes: nodes.collect::<Result<_>>()? })
}

/// Lets the points that an earlier pass shares, by the index of their centroid, count alike: each as the mean of them. Together they cost
/// what they did, and a clustering that looks at values and weights cannot part them.
fn pool(points: &mut [Weighted], shared: &[u32], count: usize) {
    let mut sums = vec![(0.0, 0.0); count];
    for (point, &index) in points.iter().zip(shared) {
        let (sum, members) = &mut sums[index as usize];
        *sum += f64::from(point.weight);
        *members += 1.0;
    }
    points.iter_mut().zip(shared).for_each(|(point, &index)| {
        let (sum, members) = sums[index as usize];
        point.weight = (sum / members) as f32;
    });
}

/// Scales weights to the mean 1 with a floor; weights that are all 0 become 1.
fn scale(points: &mut [Weighted]) {
    let mean = points.iter().map(|point| f64::from(point.weight)).sum::<f64>() / points.len().max(1) as f64;
    for point in points {
        point.weight = if mean > 0.0 { ((f64::from(point.weight) / mean) as f32).max(LEAST) } else { 1.0 };
    }
}

/// The clusters without the centroids that this layer does not use.
pub fn used(centroids: &[f32], assignment: &[u32]) -> Clusters {
    let mut places: Vec<Option<u32>> = vec![None; centroids.len()];
    assignment.iter().for_each(|&index| places[index as usize] = Some(0));
    let mut kept = Vec::new();
    for (place, centroid) in places.iter_mut().zip(centroids).filter(|(place, _)| place.is_some()) {
        *place = Some(kept.len() as u32);
        kept.push(*centroid);
    }
    let assignment = assignment.iter().filter_map(|&index| places[index as usize]).collect();
    Clusters { centroids: kept, assignment }
}

/// What a weight counts at least: so that one whose loss is flat still goes to a centroid near it.
const LEAST: f32 = 1e-6;

fn hundred() -> usize {
    100
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmeans::{Init, cluster};
    use crate::masks::mask_layers;
    use briquette_handmade::{set, small};

    fn settings(more: serde_json::Value) -> Codebooks {
        serde_json::from_value(more).unwrap()
    }

    #[test]
    fn a_layer_keeps_the_centroids_it_uses_and_its_mask() {
        let net = set(small(), "conv1", "weight", &[-5.0; 16]);
        let fc2 = net.index("fc2").unwrap();
        let net = mask_layers(net, |i, _| (i == fc2).then(|| (0..15).map(|w| w % 2 == 0).collect())).unwrap();
        let found = |more: serde_json::Value| {
            let shared =
                settings(more).share(net.deep_clone(), &PerWeight::new(), |points| Ok(cluster(points, 4, Init::Linear, 50, 0)));
            shared.unwrap().weighted().map(|(_, node)| node.weight().unwrap()).collect::<Vec<_>>()
        };
        let size = |weight: &briquette_core::stored::Stored| {
            if let Source::Codebook { centroids, .. } = &weight.coding.source { centroids.len() } else { 0 }
        };
        let together = found(serde_json::json!({ "except": ["fc1"] }));
        assert_eq!((size(&together[0]), size(&together[2])), (1, 0));
        assert_eq!(together[0].values(), [-5.0; 16]);
        assert!(together[3].values().iter().enumerate().all(|(i, v)| (i % 2 == 0) == (*v != 0.0)));
        let alone = found(serde_json::json!({ "per-layer": true }));
        assert!(size(&alone[0]) == 1 && size(&alone[2]) > 1 && size(&alone[3]) > 1);
    }

    #[test]
    fn what_an_earlier_pass_shares_stays_together_whatever_its_curvatures() {
        let net = briquette_pruning_sharing::quantization::kmeans_sharing::share(small(), |_| Some(3), Default::default());
        let fc1 = net.index("fc1").unwrap();
        let before = net.nodes[fc1].weight().unwrap().values();
        let curvature: PerWeight = [(fc1, (0..60).map(f64::from).collect())].into();
        // A clustering that parts weights by how much they count, as the entropy constraint does.
        let by_weight = |points: &[Weighted]| {
            let assignment = points.iter().map(|point| u32::from(point.weight > 1.0)).collect();
            Ok(Clusters { centroids: vec![-1.0, 1.0], assignment })
        };
        let all_but_fc1 = settings(serde_json::json!({ "except": ["conv*", "fc2"] }));
        let after = all_but_fc1.share(net, &curvature, by_weight).unwrap().nodes[fc1].weight().unwrap().values();
        for i in 0..60 {
            assert!((0..60).all(|j| before[i] != before[j] || after[i] == after[j]), "{i}");
        }
        let weights = |points: &[Weighted]| points.iter().map(|point| point.weight).collect::<Vec<_>>();
        let mut points = [1.0, 5.0, 3.0, 7.0].map(|weight| Weighted { value: 0.5, weight });
        pool(&mut points, &[0, 2, 0, 2], 3);
        assert_eq!(weights(&points), [2.0, 6.0, 2.0, 6.0]);
    }

    #[test]
    fn curvatures_are_scaled_to_the_mean_1_and_have_a_floor() {
        let scaled = |weights: [f32; 4]| {
            let mut points = weights.map(|weight| Weighted { value: 0.5, weight });
            scale(&mut points);
            points.map(|point| point.weight)
        };
        assert_eq!(scaled([8.0, 0.0, 0.0, 8.0]), [2.0, LEAST, LEAST, 2.0]);
        assert_eq!(scaled([0.0; 4]), [1.0; 4]);
    }
}
