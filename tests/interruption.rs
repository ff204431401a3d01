//! A run that is killed, stopped or repeated ends with the same result.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::{RngExt, SeedableRng};

use crate::program::{Bench, SMALL, rows};

#[test]
fn killed_ten_times_and_resumed_a_run_ends_as_undisturbed() {
    let bench = Bench::with(SMALL);
    assert!(bench.call(&["run", "small.toml", "--out", "calm"]).status.success());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let (mut kills, mut torn) = (0, 0);
    // A run that ends before it is killed counts for nothing, and a new one begins.
    while kills < 10 {
        let out = format!("torn-{torn}");
        let mut child = bench
            .command(&["run", "small.toml", "--resume", "--out", &out])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(rng.random_range(50..2500)));
        if child.try_wait().unwrap().is_some() {
            torn += 1;
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    for index in 0..=torn {
        let out = format!("torn-{index}");
        assert!(bench.call(&["run", "small.toml", "--resume", "--out", &out]).status.success());
        assert_eq!(rows(&bench.path(&out)), rows(&bench.path("calm")));
        let bytes = |run: &str| std::fs::read(bench.path(run).join("model.brq")).unwrap();
        assert!(bytes(&out) == bytes("calm"), "the containers differ");
    }
}

/// Passes that keep something beside the network from step to step or from one training to the next.
const KEEPING: [&str; 3] = [
    r#"method = "movement"
keep = 0.2
train = { epochs = 3, batch = 32 }
tune = { epochs = 1, batch = 32 }"#,
    r#"method = "soft-weight-sharing"
components = 4
pi-zero = 0.7
tau = 0.005
rate = 0.01
train = { epochs = 3, batch = 32, lr = 5e-3 }
tune = { epochs = 1, batch = 32 }"#,
    r#"method = "loss-aware-binarization"
train = { epochs = 4, batch = 32 }"#,
];

#[test]
fn killed_at_any_epoch_a_pass_goes_on_with_what_it_has_learned_beside_the_weights() {
    for pass in KEEPING {
        let head = "# a few seconds\nmodel = \"lenet300\"\ndata = { name = \"glyphs\", train = 400, test = 100 }\nseed = 5\n\n[[pass]]\n";
        let bench = Bench::with(&format!("{head}{pass}\n"));
        assert!(bench.call(&["run", "small.toml", "--out", "calm"]).status.success(), "{pass}");
        let bytes = |run: &str| std::fs::read(bench.path(run).join("model.brq")).unwrap();
        for epochs in 1..=4 {
            let out = format!("torn-{epochs}");
            let mut child = bench.command(&["run", "small.toml", "--out", &out]).stderr(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
            // Before the state of the epoch is written, or after it, as it happens.
            assert_eq!(lines.filter(|line| line.contains("  epoch ")).take(epochs).count(), epochs, "{pass}");
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(bench.call(&["run", "small.toml", "--resume", "--out", &out]).status.success(), "{pass}");
            assert_eq!(rows(&bench.path(&out)), rows(&bench.path("calm")), "{pass}: killed after {epochs} epochs");
            assert!(bytes(&out) == bytes("calm"), "{pass}: killed after {epochs} epochs, the containers differ");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let bench = Bench::with(SMALL);
    for (out, set) in [("a", "seed=5"), ("b", "seed=5"), ("c", "seed=6")] {
        let output = bench.call(&["run", "small.toml", "--out", out, "--set", set, "--set", "pass.0.epochs=1"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let bytes = |run: &str| std::fs::read(bench.path(run).join("model.brq")).unwrap();
    assert!(bytes("a") == bytes("b"));
    assert!(bytes("a") != bytes("c"));
}

#[test]
fn interrupted_from_the_keyboard_a_run_can_be_resumed() {
    let bench = Bench::with(SMALL);
    let mut child = bench.command(&["run", "small.toml", "--out", "run"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.by_ref().map_while(Result::ok).find(|line| line.contains("epoch   2/4")).expect("the second epoch ends");
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("--resume")), "{rest:?}");
    assert!(!bench.path("run/report.json").exists());

    let (refused, code) = bench.refusal(&["run", "small.toml", "--out", "run"]);
    assert!(refused.contains("run exists and is not empty; `--resume` goes on with it") && code == 1, "{refused}");
    let (other, _) = bench.refusal(&["run", "small.toml", "--out", "run", "--resume", "--set", "seed=6"]);
    assert!(other.contains("another config or other settings"), "{other}");
    let resumed = bench.call(&["run", "small.toml", "--out", "run", "--resume"]);
    assert!(resumed.status.success());
    let again = bench.call(&["run", "small.toml", "--out", "run", "--resume"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is finished; nothing to do"));
}
