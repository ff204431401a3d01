//! Outlines of the digits in the unit square, x to the right and y down; each digit in two or three hands.

/// A point, `[x, y]`.
pub(super) type Point = [f32; 2];

/// One movement of the pen.
#[derive(Clone, Copy)]
pub(super) enum Stroke {
    /// Straight from point to point.
    Line(&'static [Point]),
    /// A smooth curve through the points.
    Curve(&'static [Point]),
    /// A smooth closed curve through the points.
    Loop(&'static [Point]),
}

use Stroke::{Curve, Line, Loop};

/// Points put between two of the outline, so that distortion bends straight strokes too.
const STEPS: usize = 6;

impl Stroke {
    /// The stroke as a chain of short straight pieces.
    pub(super) fn trace(self) -> Vec<Point> {
        let (points, closed) = match self {
            Line(points) | Curve(points) => (points, false),
            Loop(points) => (points, true),
        };
        let spans = if closed { points.len() } else { points.len() - 1 };
        let at = |i: usize, shift: isize| {
            let i = i as isize + shift;
            let n = points.len() as isize;
            points[if closed { i.rem_euclid(n) } else { i.clamp(0, n - 1) } as usize]
        };
        let piece = |span: usize| {
            let corners = [-1, 0, 1, 2].map(|shift| at(span, shift));
            (0..STEPS).map(move |step| {
                let t = step as f32 / STEPS as f32;
                match self {
                    Line(_) => [0, 1].map(|axis| corners[1][axis] + t * (corners[2][axis] - corners[1][axis])),
                    Curve(_) | Loop(_) => [0, 1].map(|axis| catmull_rom(corners.map(|corner| corner[axis]), t)),
                }
            })
        };
        (0..spans).flat_map(piece).chain([at(spans, 0)]).collect()
    }
}

/// The cubic through `p[1]` at 0 and `p[2]` at 1 whose slopes are those of the neighbours' chords.
fn catmull_rom(p: [f32; 4], t: f32) -> f32 {
    let slope = p[2] - p[0];
    let square = 2.0 * p[0] - 5.0 * p[1] + 4.0 * p[2] - p[3];
    let cube = 3.0 * (p[1] - p[2]) + p[3] - p[0];
    p[1] + 0.5 * t * (slope + t * (square + t * cube))
}

/// `DIGITS[digit][hand]` is a list of strokes.
pub(super) const DIGITS: [&[&[Stroke]]; 10] = [
    &[
        &[Loop(&[[0.5, 0.1], [0.74, 0.24], [0.79, 0.5], [0.74, 0.76], [0.5, 0.9], [0.26, 0.76], [0.21, 0.5], [0.26, 0.24]])],
        &[Curve(&[
            [0.58, 0.13],
            [0.34, 0.18],
            [0.23, 0.5],
            [0.32, 0.82],
            [0.52, 0.9],
            [0.72, 0.78],
            [0.78, 0.48],
            [0.68, 0.2],
            [0.46, 0.1],
        ])],
        &[Loop(&[[0.5, 0.1], [0.67, 0.28], [0.69, 0.5], [0.67, 0.72], [0.5, 0.9], [0.33, 0.72], [0.31, 0.5], [0.33, 0.28]])],
    ],
    &[
        &[Line(&[[0.5, 0.1], [0.5, 0.9]])],
        &[Line(&[[0.32, 0.3], [0.53, 0.1], [0.53, 0.9]])],
        &[Line(&[[0.34, 0.28], [0.52, 0.1], [0.52, 0.9]]), Line(&[[0.32, 0.9], [0.72, 0.9]])],
    ],
    &[
        &[
            Curve(&[[0.25, 0.3], [0.34, 0.15], [0.54, 0.1], [0.72, 0.22], [0.69, 0.42], [0.5, 0.64], [0.25, 0.9]]),
            Line(&[[0.25, 0.9], [0.78, 0.9]]),
        ],
        &[Curve(&[
            [0.25, 0.28],
            [0.4, 0.12],
            [0.62, 0.13],
            [0.72, 0.3],
            [0.6, 0.55],
            [0.4, 0.8],
            [0.26, 0.87],
            [0.25, 0.75],
            [0.4, 0.75],
            [0.6, 0.89],
            [0.8, 0.84],
        ])],
    ],
    &[
        &[
            Curve(&[[0.27, 0.2], [0.45, 0.1], [0.67, 0.16], [0.7, 0.34], [0.57, 0.45], [0.42, 0.48]]),
            Curve(&[[0.42, 0.48], [0.64, 0.52], [0.75, 0.68], [0.67, 0.84], [0.46, 0.91], [0.24, 0.81]]),
        ],
        &[
            Line(&[[0.25, 0.12], [0.72, 0.12], [0.46, 0.43]]),
            Curve(&[[0.46, 0.43], [0.68, 0.5], [0.74, 0.7], [0.6, 0.87], [0.42, 0.9], [0.24, 0.8]]),
        ],
    ],
    &[
        &[Line(&[[0.61, 0.9], [0.61, 0.1], [0.2, 0.64], [0.82, 0.64]])],
        &[Line(&[[0.32, 0.12], [0.24, 0.52], [0.8, 0.52]]), Line(&[[0.7, 0.14], [0.64, 0.9]])],
    ],
    &[
        &[
            Line(&[[0.74, 0.12], [0.34, 0.12], [0.3, 0.46]]),
            Curve(&[[0.3, 0.46], [0.5, 0.39], [0.7, 0.48], [0.76, 0.67], [0.65, 0.84], [0.45, 0.9], [0.24, 0.82]]),
        ],
        &[
            Curve(&[[0.76, 0.13], [0.55, 0.13], [0.38, 0.14]]),
            Curve(&[[0.38, 0.14], [0.32, 0.42], [0.58, 0.46], [0.73, 0.62], [0.68, 0.82], [0.48, 0.91], [0.26, 0.86]]),
        ],
    ],
    &[
        &[Curve(&[
            [0.66, 0.12],
            [0.42, 0.28],
            [0.28, 0.54],
            [0.28, 0.76],
            [0.43, 0.9],
            [0.62, 0.87],
            [0.73, 0.7],
            [0.62, 0.54],
            [0.44, 0.54],
            [0.29, 0.68],
        ])],
        &[Curve(&[
            [0.48, 0.09],
            [0.33, 0.36],
            [0.25, 0.66],
            [0.36, 0.87],
            [0.56, 0.9],
            [0.72, 0.75],
            [0.65, 0.58],
            [0.46, 0.55],
            [0.28, 0.68],
        ])],
    ],
    &[
        &[Line(&[[0.22, 0.12], [0.78, 0.12], [0.42, 0.9]])],
        &[Line(&[[0.22, 0.12], [0.78, 0.12], [0.44, 0.9]]), Line(&[[0.38, 0.5], [0.72, 0.5]])],
        &[Line(&[[0.23, 0.24], [0.24, 0.13], [0.77, 0.13]]), Curve(&[[0.77, 0.13], [0.6, 0.4], [0.5, 0.64], [0.47, 0.9]])],
    ],
    &[
        &[
            Loop(&[[0.5, 0.1], [0.67, 0.17], [0.68, 0.35], [0.5, 0.46], [0.32, 0.35], [0.33, 0.17]]),
            Loop(&[[0.5, 0.46], [0.71, 0.57], [0.74, 0.77], [0.5, 0.9], [0.26, 0.77], [0.29, 0.57]]),
        ],
        &[Loop(&[
            [0.68, 0.2],
            [0.5, 0.1],
            [0.32, 0.2],
            [0.35, 0.36],
            [0.5, 0.48],
            [0.67, 0.62],
            [0.7, 0.79],
            [0.5, 0.9],
            [0.3, 0.79],
            [0.33, 0.62],
            [0.5, 0.48],
            [0.65, 0.36],
        ])],
    ],
    &[
        &[
            Loop(&[[0.52, 0.1], [0.7, 0.2], [0.71, 0.38], [0.54, 0.52], [0.36, 0.47], [0.29, 0.3], [0.36, 0.16]]),
            Line(&[[0.72, 0.28], [0.62, 0.9]]),
        ],
        &[
            Loop(&[[0.52, 0.1], [0.7, 0.2], [0.71, 0.38], [0.54, 0.52], [0.36, 0.47], [0.29, 0.3], [0.36, 0.16]]),
            Curve(&[[0.72, 0.26], [0.73, 0.55], [0.66, 0.8], [0.48, 0.9], [0.3, 0.84]]),
        ],
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outline_stays_in_the_square() {
        for strokes in DIGITS.iter().flat_map(|hands| hands.iter()) {
            let points: Vec<Point> = strokes.iter().flat_map(|stroke| stroke.trace()).collect();
            assert!(points.iter().flatten().all(|x| (0.0..1.0).contains(x)));
        }
    }

    #[test]
    fn curves_pass_through_their_points() {
        let trace = Curve(&[[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]]).trace();
        assert_eq!((trace[0], trace[STEPS], trace[2 * STEPS]), ([0.0, 0.0], [0.5, 1.0], [1.0, 0.0]));
        let ring = Loop(&[[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]]).trace();
        assert_eq!(ring.first(), ring.last());
    }
}
