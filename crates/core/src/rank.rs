//! Choosing by score: so many of the highest, whatever ties there are.

use std::cmp::Ordering;

/// Scores of items among which some are chosen, those of a layer or of a group of channels.
#[derive(Debug, Clone)]
pub struct Scores<'a, T> {
    /// One for each item, the higher the better; NaN ranks below every number.
    pub scores: Vec<T>,
    /// Which items may be chosen; none for all.
    pub open: Option<&'a [bool]>,
}

impl<T: Copy + Into<f64>> Scores<'_, T> {
    /// The open items with their scores.
    fn items(&self) -> impl Iterator<Item = (usize, T)> {
        self.scores.iter().copied().enumerate().filter(|(i, _)| self.open.is_none_or(|open| open[*i]))
    }

    /// The first of the best open items.
    fn best(&self) -> Option<usize> {
        let better = |best: (usize, T), item: (usize, T)| if order(item.1, best.1).is_gt() { item } else { best };
        self.items().reduce(better).map(|(i, _)| i)
    }
}

/// Marks the `count` open items of the highest scores, the earlier of equals; all open ones where they are fewer.
pub fn highest<T: Copy + Into<f64>>(scores: Vec<T>, open: Option<&[bool]>, count: usize) -> Vec<bool> {
    choose(&[Scores { scores, open }], &[None], count).swap_remove(0)
}

/// Marks the `count` open items of the highest scores of all groups together, the earlier of equals, where every group keeps its best open
/// item: more than `count` are marked only where there are more groups.
pub fn highest_of_all<T: Copy + Into<f64>>(groups: &[Scores<'_, T>], count: usize) -> Vec<Vec<bool>> {
    let best: Vec<Option<usize>> = groups.iter().map(Scores::best).collect();
    choose(groups, &best, count)
}

/// As [`highest_of_all`], with the `certain` items chosen first.
fn choose<T: Copy + Into<f64>>(groups: &[Scores<'_, T>], certain: &[Option<usize>], count: usize) -> Vec<Vec<bool>> {
    let count = count.saturating_sub(certain.iter().flatten().count());
    let pairs = || groups.iter().zip(certain);
    let mut others: Vec<T> = pairs()
        .flat_map(|(group, certain)| group.items().filter(|(i, _)| Some(*i) != *certain).map(|(_, score)| score))
        .collect();
    // Items at the border are as many as those above it leave room for.
    let border = (count > 0 && count < others.len()).then(|| *others.select_nth_unstable_by(count - 1, |a, b| order(*b, *a)).1);
    let mut room = match border {
        Some(border) => count - others.iter().filter(|score| order(**score, border).is_gt()).count(),
        None => 0,
    };
    let all = count >= others.len();
    let mut stays = |score: T| match border.map(|border| order(score, border)) {
        None => all,
        Some(Ordering::Equal) if room > 0 => {
            room -= 1;
            true
        }
        Some(found) => found.is_gt(),
    };
    let mark = |(group, certain): (&Scores<'_, T>, &Option<usize>)| {
        let mut marks = vec![false; group.scores.len()];
        for (i, score) in group.items() {
            marks[i] = Some(i) == *certain || stays(score);
        }
        marks
    };
    pairs().map(mark).collect()
}

/// Numbers by size, with one zero, and NaN below all.
fn order<T: Into<f64>>(a: T, b: T) -> Ordering {
    let (a, b): (f64, f64) = (a.into(), b.into());
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_equal_scores_the_earlier_are_chosen() {
        assert_eq!(highest(vec![0.5; 4], None, 1), [true, false, false, false]);
        assert_eq!(highest(vec![1.0, 2.0, 1.0, 1.0], None, 2), [true, true, false, false]);
        assert_eq!(highest(vec![-0.0, 0.0, 1.0], None, 2), [true, false, true]);
        assert_eq!(highest(vec![3.0, 9.0, 3.0], Some(&[true, false, true]), 1), [true, false, false]);
        assert_eq!(highest(vec![3.0, 9.0, 3.0], Some(&[true, false, true]), 7), [true, false, true]);
        assert_eq!(highest(vec![3.0, 9.0], None, 0), [false, false]);
        assert_eq!(highest(Vec::<f64>::new(), None, 3), [false; 0]);
    }

    #[test]
    fn what_has_no_score_never_displaces_what_has_one() {
        assert_eq!(highest(vec![f64::NAN, f64::NEG_INFINITY, -f64::NAN, 1.0], None, 2), [false, true, false, true]);
        assert_eq!(highest(vec![f64::NAN, f64::NAN, 1.0], None, 2), [true, false, true]);
    }

    #[test]
    fn every_group_keeps_its_best_and_the_count_holds() {
        let groups = [vec![9.0, 8.0, 7.0], vec![1.0, 2.0, 2.0], vec![0.0]].map(|scores| Scores { scores, open: None });
        let marks = |count| highest_of_all(&groups, count);
        assert_eq!(marks(4), [vec![true, true, false], vec![false, true, false], vec![true]]);
        assert_eq!(marks(6), [vec![true; 3], vec![false, true, true], vec![true]]);
        assert_eq!(marks(0), [vec![true, false, false], vec![false, true, false], vec![true]]);
        assert_eq!(marks(9), [vec![true; 3], vec![true; 3], vec![true]]);
    }

    proptest! {
        #[test]
        fn the_chosen_are_as_many_as_wanted_and_none_is_worse_than_one_left(
            groups in prop::collection::vec(prop::collection::vec((-4_i8..4, any::<bool>()), 1..40), 1..6),
            share in 0.0..1.0_f64,
        ) {
            let parts: Vec<(Vec<f32>, Vec<bool>)> =
                groups.iter().map(|group| group.iter().map(|(score, open)| (f32::from(*score), *open)).unzip()).collect();
            let scores: Vec<Scores<'_, f32>> =
                parts.iter().map(|(scores, open)| Scores { scores: scores.clone(), open: Some(open) }).collect();
            let open: usize = parts.iter().map(|(_, open)| open.iter().filter(|open| **open).count()).sum();
            let count = (share * open as f64) as usize;
            let least = parts.iter().filter(|(_, open)| open.contains(&true)).count();
            let marks = highest_of_all(&scores, count);
            prop_assert_eq!(marks.iter().flatten().filter(|mark| **mark).count(), count.max(least));
            let all: Vec<(f32, bool, bool)> = parts
                .iter()
                .zip(&marks)
                .flat_map(|((scores, open), marks)| scores.iter().zip(open).zip(marks).map(|((s, o), m)| (*s, *o, *m)))
                .collect();
            prop_assert!(all.iter().all(|(_, open, mark)| *open || !mark));
            // Only the best of a group may be worse than what another group loses.
            let lost = all.iter().filter(|(_, open, mark)| *open && !mark).map(|(score, ..)| *score).fold(f32::MIN, f32::max);
            for ((scores, _), marks) in parts.iter().zip(&marks) {
                let worse = scores.iter().zip(marks).filter(|(score, mark)| **mark && **score < lost).count();
                prop_assert!(worse <= 1);
            }
        }
    }
}
