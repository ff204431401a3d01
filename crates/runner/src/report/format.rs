//! Numbers for readers. What is no number becomes an empty text.

/// `1725012` as `1,725,012`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `39.21` as `39.2x`; small ratios with two digits, large ones without.
pub(super) fn ratio(x: f64) -> String {
    match x {
        x if !x.is_finite() => String::new(),
        x if x.abs() < 9.995 => format!("{x:.2}x"),
        x if x.abs() < 999.5 => format!("{x:.1}x"),
        x => format!("{}x", count(x.round() as u64)),
    }
}

/// `0.9921` as `99.21`; the sign stands in the column's name.
pub(super) fn percent(share: f64) -> String {
    decimals(100.0 * share, 2)
}

/// Three significant digits: `0.0525`, `0.210`, `5.90`, `312`.
pub(super) fn three(x: f64) -> String {
    let places = if x == 0.0 { 0.0 } else { (2.0 - x.abs().log10().floor()).clamp(0.0, 9.0) };
    decimals(x, places as usize)
}

/// A fixed number of decimals.
pub(super) fn decimals(x: f64, places: usize) -> String {
    if x.is_finite() { format!("{x:.places$}") } else { String::new() }
}

/// Powers of a thousand for axes: `100000` as `100 kB`.
pub(super) fn short_bytes(bytes: f64) -> String {
    let (unit, scale) = match bytes {
        b if b < 1e3 => ("B", 1e0),
        b if b < 1e6 => ("kB", 1e3),
        b if b < 1e9 => ("MB", 1e6),
        _ => ("GB", 1e9),
    };
    format!("{} {unit}", bytes / scale)
}

/// `b32t2` as `batch 32, 2 threads`.
pub(super) fn setting(key: &str) -> String {
    let parts = key.strip_prefix('b').and_then(|rest| rest.split_once('t'));
    match parts {
        Some((batch, "1")) => format!("batch {batch}, 1 thread"),
        Some((batch, threads)) => format!("batch {batch}, {threads} threads"),
        None => key.to_string(),
    }
}

/// At most `most` characters, the middle given up; control characters become spaces.
pub(super) fn fit(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if chars.len() <= most {
        return chars.into_iter().collect();
    }
    let (head, tail) = (most / 2, most - 1 - most / 2);
    chars[..head].iter().chain(&['…']).chain(&chars[chars.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([count(0), count(999), count(1000), count(1_725_012)], ["0", "999", "1,000", "1,725,012"]);
        assert_eq!([ratio(1.0), ratio(39.21), ratio(2500.4), ratio(f64::INFINITY)], ["1.00x", "39.2x", "2,500x", ""]);
        assert_eq!([percent(0.9921), percent(1.0), percent(f64::NAN)], ["99.21", "100.00", ""]);
        assert_eq!(
            [three(0.0), three(0.05251), three(0.2104), three(5.9), three(312.4)],
            ["0", "0.0525", "0.210", "5.90", "312"]
        );
        assert_eq!([short_bytes(1e5), short_bytes(1e6), short_bytes(10.0)], ["100 kB", "1 MB", "10 B"]);
        assert_eq!([setting("b1t1"), setting("b32t2"), setting("cold")], ["batch 1, 1 thread", "batch 32, 2 threads", "cold"]);
        assert_eq!([fit("conv1", 5), fit("blocks.12.conv\n1", 9)], ["conv1", "bloc…nv 1"]);
    }
}
