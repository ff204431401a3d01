//! Golden values that tests of several methods read.

/// The numbers of a line `name: numbers`.
pub(crate) fn golden(text: &str, name: &str) -> Vec<f32> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_else(|| panic!("no {name}"));
    line.split(' ').map(|number| number.parse().unwrap()).collect()
}

/// Whether values agree with golden ones of four decimals.
pub(crate) fn near(found: &[f32], expected: &[f32], what: &str) {
    assert!(found.iter().all(|value| value.is_finite()), "{what}: {found:?}");
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == expected.len() && off < 2e-4, "{what}: off by {off}");
}

/// A square map turned by quarters, counterclockwise, and then perhaps mirrored top to bottom.
pub(crate) fn moved(map: &[f32], element: usize) -> Vec<f32> {
    let side = (map.len() as f64).sqrt() as usize;
    let mut map = map.to_vec();
    for _ in 0..element % 4 {
        map = (0..map.len()).map(|at| map[at % side * side + side - 1 - at / side]).collect();
    }
    if element >= 4 {
        map = map.chunks(side).rev().collect::<Vec<_>>().concat();
    }
    map
}

#[test]
#[should_panic(expected = "nothing: [NaN, 1.0]")]
fn what_is_no_number_is_near_to_nothing() {
    near(&[f32::NAN, 1.0], &[0.0, 1.0], "nothing");
}
