//! Images with other labels than their own.

use std::sync::Arc;

use super::Dataset;
use crate::{Error, Images};

/// The images of several sets, one set behind the other, with labels of their own.
#[derive(Debug)]
struct Labelled {
    sets: Vec<Dataset>,
    labels: Vec<u16>,
}

impl Images for Labelled {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, i: usize) -> u16 {
        self.labels[i]
    }

    fn read(&self, mut i: usize, pixels: &mut [u8]) -> Result<(), Error> {
        for set in &self.sets {
            if i < set.len() {
                return set.read(i, pixels);
            }
            i -= set.len();
        }
        unreachable!("there are as many labels as images")
    }

    fn in_memory(&self) -> bool {
        self.sets.iter().all(|set| set.images.in_memory())
    }
}

impl Dataset {
    /// The images of several sets, one set behind the other, with these labels in the place of their own. Nothing is read or copied.
    ///
    /// # Errors
    /// No set, sets of several shapes, another number of labels than of images, and what [`Dataset::new`] refuses.
    pub fn labelled(name: impl Into<String>, sets: &[Self], classes: usize, labels: Vec<u16>) -> Result<Self, Error> {
        let name = name.into();
        let fault = |what: String| Err(Error::Inconsistent { name: name.clone(), what });
        let Some(first) = sets.first() else { return fault("there is no set whose images to take".into()) };
        if let Some(other) = sets.iter().find(|set| set.shape != first.shape) {
            let what =
                format!("images of '{}' have shape {:?}, those of '{}' {:?}", first.name, first.shape, other.name, other.shape);
            return fault(what);
        }
        let count: usize = sets.iter().map(Self::len).sum();
        if labels.len() != count {
            return fault(format!("{} labels for {count} images", labels.len()));
        }
        Self::new(name.clone(), first.shape, classes, Arc::new(Labelled { sets: sets.to_vec(), labels }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, pixels: &[u8]) -> Dataset {
        Dataset::from_memory(name, [1, 1, 2], 1, pixels.to_vec(), vec![0; pixels.len() / 2]).expect("whole")
    }

    #[test]
    fn images_of_several_sets_have_the_labels_that_are_handed_over() {
        let (none, some, more) = (set("none", &[]), set("some", &[1, 2, 3, 4, 5, 6]).subset(&[2, 0]), set("more", &[7, 8]));
        let all = Dataset::labelled("all", &[none, some, more], 9, vec![8, 0, 3]).expect("whole");
        let found: Vec<_> = (0..all.len()).map(|i| (all.label(i), all.pixel(i).expect("memory"))).collect();
        assert_eq!(found, [(8, vec![5, 6]), (0, vec![1, 2]), (3, vec![7, 8])]);
        assert_eq!((all.classes, all.shape, all.images.in_memory()), (9, [1, 1, 2], true));
    }

    #[test]
    fn labels_and_shapes_that_do_not_fit_are_refused() {
        let (two, wide) =
            (set("two", &[1, 2, 3, 4]), Dataset::from_memory("wide", [1, 1, 4], 1, vec![0; 4], vec![0]).expect("whole"));
        let refused = |sets: &[Dataset], labels| Dataset::labelled("all", sets, 2, labels).expect_err("faulty").to_string();
        assert_eq!(refused(&[], Vec::new()), "data set 'all': there is no set whose images to take");
        assert_eq!(refused(std::slice::from_ref(&two), vec![0]), "data set 'all': 1 labels for 2 images");
        assert!(refused(std::slice::from_ref(&two), vec![0, 2]).contains("label 2 of image 1"));
        let error = refused(&[two, wide], vec![0; 3]);
        assert_eq!(error, "data set 'all': images of 'two' have shape [1, 1, 2], those of 'wide' [1, 1, 4]");
    }
}
