use super::{
    Dice, SIDE,
    strokes::{DIGITS, Point},
};

/// Draws one digit in a random hand, place, size, slant, thickness and light.
pub(super) fn digit(digit: usize, dice: &mut Dice, image: &mut [u8]) {
    let hands = DIGITS[digit];
    let affine = Affine::random(dice);
    let field = Elastic::random(dice);
    let hand = hands[dice.below(hands.len())];
    let mut strokes: Vec<Vec<Point>> =
        hand.iter().map(|stroke| stroke.trace().into_iter().map(|point| field.push(affine.map(point))).collect()).collect();
    place(&mut strokes, dice);

    let mut canvas = [0_f32; SIDE * SIDE];
    for _ in 0..dice.below(5) {
        let (from, reach) = (corner(dice, SIDE as f32), corner(dice, 16.0));
        let to = [from[0] + reach[0] - 8.0, from[1] + reach[1] - 8.0];
        let (radius, ink) = (dice.between(0.3, 0.8), dice.between(0.25, 0.85));
        stroke(&[from, to], radius, ink, &mut canvas);
    }
    let (radius, ink) = (dice.between(0.45, 1.5), dice.between(0.45, 1.0));
    strokes.iter().for_each(|points| stroke(points, radius, ink, &mut canvas));
    expose(&canvas, dice, image);
}

/// Size, slant and rotation about the middle of the unit square, into pixels.
struct Affine([[f32; 2]; 2]);

impl Affine {
    fn random(dice: &mut Dice) -> Self {
        let (width, height) = (dice.between(15.0, 25.0), dice.between(19.0, 26.0));
        let slant = dice.between(-0.3, 0.3);
        // Half the angle's tangent gives sine and cosine without trigonometric functions, which differ between platforms.
        let half = dice.between(-0.13, 0.13);
        let (sine, cosine) = (2.0 * half / (1.0 + half * half), (1.0 - half * half) / (1.0 + half * half));
        Self([[width * cosine, height * (slant * cosine - sine)], [width * sine, height * (slant * sine + cosine)]])
    }

    fn map(&self, [x, y]: Point) -> Point {
        let (x, y) = (x - 0.5, y - 0.5);
        self.0.map(|row| row[0] * x + row[1] * y + SIDE as f32 / 2.0)
    }
}

/// A smooth random displacement: bilinear between the nodes of a grid.
struct Elastic([[Point; GRID]; GRID]);

const GRID: usize = 5;

impl Elastic {
    fn random(dice: &mut Dice) -> Self {
        let strength = dice.between(0.4, 2.8);
        let mut nodes = [[[0.0; 2]; GRID]; GRID];
        nodes.iter_mut().flatten().flatten().for_each(|shift| *shift = dice.between(-strength, strength));
        Self(nodes)
    }

    fn push(&self, point: Point) -> Point {
        let cell = point.map(|x| (x / SIDE as f32).clamp(0.0, 0.999) * (GRID - 1) as f32);
        let ([column, row], [u, v]) = (cell.map(|x| x as usize), cell.map(|x| smooth(x - (x as usize) as f32)));
        [0, 1].map(|axis| {
            let along = |row: usize| (1.0 - u) * self.0[row][column][axis] + u * self.0[row][column + 1][axis];
            point[axis] + (1.0 - v) * along(row) + v * along(row + 1)
        })
    }
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

/// Moves the digit to the middle and a little off it, but not over the edge of the frame.
fn place(strokes: &mut [Vec<Point>], dice: &mut Dice) {
    for axis in 0..2 {
        let ends = strokes.iter().flatten().map(|point| point[axis]);
        let (low, high) = ends.fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(x), high.max(x)));
        let room = ((SIDE as f32 - (high - low)) / 2.0 - MARGIN).clamp(0.0, STRAY);
        let shift = (SIDE as f32 - low - high) / 2.0 + dice.between(-room, room);
        strokes.iter_mut().flatten().for_each(|point| point[axis] += shift);
    }
}

/// Pixels kept free at the edge, if the digit is small enough.
const MARGIN: f32 = 1.5;

/// Farthest from the middle, in pixels.
const STRAY: f32 = 2.0;

fn corner(dice: &mut Dice, side: f32) -> Point {
    [dice.between(0.0, side), dice.between(0.0, side)]
}

/// Adds a chain of straight pieces with a soft edge one pixel wide; where strokes cross, the stronger ink stays.
fn stroke(points: &[Point], radius: f32, ink: f32, canvas: &mut [f32]) {
    for ends in points.windows(2) {
        let reach = radius + 1.0;
        let span = |axis: usize| {
            let (a, b) = (ends[0][axis] - 0.5, ends[1][axis] - 0.5);
            ((a.min(b) - reach).max(0.0) as usize)..(((a.max(b) + reach).max(-1.0) + 1.0) as usize).min(SIDE)
        };
        for y in span(1) {
            for x in span(0) {
                let away = distance([x as f32 + 0.5, y as f32 + 0.5], ends[0], ends[1]);
                let covered = ink * (radius + 0.5 - away).clamp(0.0, 1.0);
                let pixel = &mut canvas[y * SIDE + x];
                *pixel = pixel.max(covered);
            }
        }
    }
}

/// From a point to the straight piece between `a` and `b`.
fn distance(point: Point, a: Point, b: Point) -> f32 {
    let (along, off) = ([b[0] - a[0], b[1] - a[1]], [point[0] - a[0], point[1] - a[1]]);
    let square = along[0] * along[0] + along[1] * along[1];
    let t = if square > 0.0 { ((off[0] * along[0] + off[1] * along[1]) / square).clamp(0.0, 1.0) } else { 0.0 };
    let rest = [off[0] - t * along[0], off[1] - t * along[1]];
    (rest[0] * rest[0] + rest[1] * rest[1]).sqrt()
}

/// Lays the ink over a ground of uneven light and adds noise.
fn expose(canvas: &[f32], dice: &mut Dice, image: &mut [u8]) {
    let (ground, noise) = (dice.between(0.0, 0.15), dice.between(0.02, 0.15));
    let tilt = [dice.between(-0.12, 0.12), dice.between(-0.12, 0.12)];
    for (at, (pixel, &ink)) in image.iter_mut().zip(canvas).enumerate() {
        let [x, y] = [at % SIDE, at / SIDE].map(|x| x as f32 / SIDE as f32 - 0.5);
        let light = ground + tilt[0] * x + tilt[1] * y;
        // The sum of three uniform draws is near enough to a bell curve of deviation 1.
        let grain: f32 = (0..3).map(|_| dice.between(-1.0, 1.0)).sum();
        let value = light + (1.0 - light) * ink + noise * grain;
        *pixel = (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
    }
}
