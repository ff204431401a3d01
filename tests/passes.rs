//! Passes whose effect shows in a whole run.

use crate::program::{Bench, rows};

const BACK: &str = r#"# a second
model = { arch = "lenet300", width = 0.2 }
data = { name = "glyphs", train = 300, test = 100 }
seed = 5

[[pass]]
method = "save"
file = "before.brq"

[[pass]]
method = "magnitude"
keep = 0.05

[[pass]]
method = "load"
file = "before.brq"
"#;

#[test]
fn a_network_that_is_loaded_owes_nothing_to_the_masks_of_the_one_before() {
    let bench = Bench::with(BACK);
    let output = bench.call(&["run", "small.toml", "--out", "out"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut rows = rows(&bench.path("out"));
    let rows = rows.as_array_mut().unwrap();
    assert!(rows[1]["nonzero"].as_u64() < rows[0]["nonzero"].as_u64());
    for row in rows.iter_mut() {
        row["pass"].take();
        row["method"].take();
    }
    assert_eq!(rows[0], rows[2]);
}
