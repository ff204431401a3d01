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

#[test]
fn a_plan_goes_on_from_the_network_that_load_brings() {
    let planned = |bench: &Bench, config: &str| -> Vec<serde_json::Value> {
        let output = bench.call(&["plan", config, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        plan["rows"].as_array().unwrap().clone()
    };
    let bench = Bench::with(BACK);
    let rows = planned(&bench, "small.toml");
    assert!(rows[2]["nonzero"].as_u64() < rows[1]["nonzero"].as_u64());
    assert_eq!((&rows[3]["nonzero"], &rows[3]["estimate"]), (&rows[1]["nonzero"], &serde_json::Value::Null));

    // A file beside the config, with a network of another width.
    let wider = BACK.replace("width = 0.2", "width = 0.3");
    std::fs::write(bench.path("wider.toml"), &wider).unwrap();
    assert!(bench.call(&["run", "wider.toml", "--out", "out"]).status.success());
    std::fs::copy(bench.path("out/before.brq"), bench.path("wider.brq")).unwrap();
    std::fs::write(bench.path("other.toml"), BACK.replace("\"load\"\nfile = \"before", "\"load\"\nfile = \"wider")).unwrap();
    let other = planned(&bench, "other.toml");
    assert_eq!(other[3]["params"], planned(&bench, "wider.toml")[0]["params"]);
    assert_ne!(other[3]["params"], rows[3]["params"]);

    // None that is there.
    std::fs::remove_file(bench.path("wider.brq")).unwrap();
    let estimate = planned(&bench, "other.toml")[3]["estimate"].clone();
    assert!(estimate.as_str().is_some_and(|what| what.contains("not there yet")), "{estimate}");
}

const SCAN: &str = r#"# a second
model = { arch = "lenet300", width = 0.2 }
data = { name = "glyphs", train = 300, test = 100 }
seed = 5

[[pass]]
method = "sensitivity"
probe = { method = "magnitude" }
sweep = { keep = [1.0, 0.1] }
layers = ["fc1", "fc3"]
"#;

#[test]
fn a_scan_is_in_the_folder_and_in_the_report() {
    let bench = Bench::with(SCAN);
    let output = bench.call(&["run", "small.toml", "--out", "out"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let scan = &rows(&bench.path("out"))[0]["scan"];
    let layers: Vec<&str> = scan["points"].as_array().unwrap().iter().map(|point| point["layer"].as_str().unwrap()).collect();
    assert_eq!(layers, ["fc1", "fc1", "fc3", "fc3"]);
    assert_eq!(scan["points"][0]["accuracy"], scan["baseline"]["accuracy"]);
    let text = |name: &str| std::fs::read_to_string(bench.path("out").join(name)).unwrap();
    assert_eq!(text("sensitivity.csv").lines().count(), 6);
    assert!(text("report.html").contains(text("sensitivity.svg").trim()), "the page shows the plot that the pass wrote");
}
