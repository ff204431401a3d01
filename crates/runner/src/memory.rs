//! How much memory this process takes, where the system tells.

use anyhow::{Context as _, Result};

/// Highest resident memory in bytes since the process began or [`forget_peak`] was called; none where the system does not tell.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok())?;
    Some(1024 * kib)
}

/// Lets the highest resident memory begin anew at what is resident now.
///
/// # Errors
/// When the system does not measure anew.
pub fn forget_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("this system does not measure a process's memory anew")
}

/// Bytes as people read them, by powers of 1000.
pub fn shown(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_holds_what_is_allocated_and_bytes_have_units() {
        let held = vec![1_u8; 64 << 20];
        if let Some(peak) = peak() {
            assert!(peak > held.iter().map(|byte| u64::from(*byte)).sum());
        }
        assert_eq!([shown(1_234), shown(56_780_000), shown(1_104_000_000)], ["1.2 kB", "56.8 MB", "1.10 GB"]);
    }
}
