//! Rows and columns around images.

use serde::{Deserialize, Serialize};

/// How many rows and columns lie around an image: `[[top, bottom], [left, right]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Padding(pub [[usize; 2]; 2]);

impl Padding {
    /// None on any side.
    pub const NONE: Self = Self([[0; 2]; 2]);

    /// As many on all four sides.
    pub const fn all(count: usize) -> Self {
        Self([[count; 2]; 2])
    }

    /// As many below as above, and on the right as on the left: `[vertical, horizontal]`.
    pub const fn both([vertical, horizontal]: [usize; 2]) -> Self {
        Self([[vertical; 2], [horizontal; 2]])
    }

    /// Whether there is none on any side.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Those above, or on the left.
    pub fn before(self, axis: usize) -> usize {
        self.0[axis][0]
    }

    /// Those below, or on the right.
    pub fn after(self, axis: usize) -> usize {
        self.0[axis][1]
    }

    /// Height or width of an image of this size with what lies around it; none beyond what can be counted.
    pub fn around(self, axis: usize, size: usize) -> Option<usize> {
        self.0[axis].into_iter().try_fold(size, usize::checked_add)
    }
}
