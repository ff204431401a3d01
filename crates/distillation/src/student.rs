//! The network that learns, where it is another than the one at hand.

use briquette_core::error::Result;
use briquette_core::net::Net;
use briquette_core::task::Task;
use briquette_core::zoo::{Arch, Wanted};
use briquette_runtime::Layer;
use burn::tensor::Device;
use serde::Deserialize;

/// A network of the zoo with drawn weights: its name, or `{ arch = "resnet20", width = 0.5 }`. It takes the images of the network at hand, normalizes them
/// alike and has as many classes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Written")]
pub struct Student {
    /// Name in the zoo.
    pub arch: String,
    /// Factor on the number of channels.
    pub width: f64,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a student is the name of an architecture, or a table with `arch` and `width`")]
enum Written {
    Name(String),
    Table(Table),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    arch: String,
    width: Option<f64>,
}

impl From<Written> for Student {
    fn from(written: Written) -> Self {
        match written {
            Written::Name(arch) => Self { arch, width: 1.0 },
            Written::Table(table) => Self { arch: table.arch, width: table.width.unwrap_or(1.0) },
        }
    }
}

impl Student {
    /// The student, if there is one, in the place of the network at hand.
    ///
    /// # Errors
    /// As [`Student::beside`].
    pub(crate) fn or(student: Option<&Self>, net: Net, seed: u64, device: &Device) -> Result<Net> {
        match student {
            Some(student) => student.beside(&net, seed, device),
            None => Ok(net),
        }
    }

    /// The network in the place of the one at hand.
    ///
    /// # Errors
    /// An unknown architecture, or one that does not take such images.
    pub fn beside(&self, net: &Net, seed: u64, device: &Device) -> Result<Net> {
        let task = Task::of(net)?;
        let normalization = net.nodes.iter().find_map(|node| match node.op.layer() {
            Layer::Normalize(layer) => Some((layer.mean.clone(), layer.std.clone())),
            _ => None,
        });
        let arch = Arch::named(&self.arch)?;
        let size = task.shape.last().copied();
        arch.build(&Wanted { width: self.width, size, classes: task.classes, normalization, seed }, device)
    }
}
