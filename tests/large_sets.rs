//! Sets that need not fit into memory train as those in memory do, and go on where they stopped.

use std::io::{BufRead, BufReader, Cursor};
use std::path::Path;
use std::process::Stdio;

use briquette_data::{GlyphCounts, Locations};
use image::{GrayImage, ImageFormat};

use crate::program::{Bench, rows};

const TRAIN: usize = 600;
const TEST: usize = 120;

/// A training with random crops, and one after it.
fn config(data: &str) -> String {
    let settings = "batch = 32\naugment = { pad-crop = 2, flip = true }";
    format!(
        "# a few seconds\nmodel = \"lenet300\"\ndata = {{ name = \"{data}\", train = {TRAIN}, test = {TEST} }}\nseed = 5\n\
         [[pass]]\nmethod = \"train\"\nepochs = 6\n{settings}\n[[pass]]\nmethod = \"magnitude\"\nkeep = 0.3\ntune = {{ epochs = 1, batch = 50 }}\n"
    )
}

/// The same glyphs as files in `folder` and as members of archives in `shards`, and a config for each and for those in memory.
fn bench() -> Bench {
    let bench = Bench::with(&config("glyphs"));
    let glyphs = GlyphCounts { train: TRAIN, test: TEST };
    let set = briquette_data::open("glyphs", &Locations { glyphs, ..Locations::from_env(None) }).unwrap();
    for (split, images) in [("train", set.train), ("test", set.test)] {
        let mut archives = [0, 1, 2].map(|_| tar::Builder::new(Vec::new()));
        for i in 0..images.len() {
            let image = GrayImage::from_raw(28, 28, images.pixel(i).unwrap()).unwrap();
            let mut png = Vec::new();
            image.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
            let name = format!("{}/{i:04}.png", images.label(i));
            write(&bench.path(&format!("folder/{split}/{name}")), &png);
            let mut header = tar::Header::new_ustar();
            header.set_size(png.len() as u64);
            archives[i * i % 3].append_data(&mut header, &name, &png[..]).unwrap();
        }
        for (number, archive) in archives.into_iter().enumerate() {
            write(&bench.path(&format!("shards/{split}/{number}.tar")), &archive.into_inner().unwrap());
        }
    }
    for name in ["folder", "shards"] {
        write(&bench.path(&format!("{name}.toml")), config(&format!("{name}:{name}")).as_bytes());
    }
    bench
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// What a run must come to: its container and its rows.
fn result(bench: &Bench, out: &str) -> (Vec<u8>, serde_json::Value) {
    (std::fs::read(bench.path(out).join("model.brq")).unwrap(), rows(&bench.path(out)))
}

#[test]
fn files_and_shards_train_to_the_bits_of_images_in_memory_on_any_number_of_threads() {
    let bench = bench();
    assert!(bench.call(&["run", "small.toml", "--out", "memory"]).status.success());
    let expected = result(&bench, "memory");
    for (set, threads) in [("folder", "1"), ("folder", "3"), ("shards", "1"), ("shards", "4")] {
        let out = format!("{set}-{threads}");
        let output = bench.call(&["run", &format!("{set}.toml"), "--out", &out, "--threads", threads]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(result(&bench, &out) == expected, "{set} on {threads} threads");
    }
    let eval = |data: &str| {
        let output = bench.call(&["eval", "memory/model.brq", "--data", data, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["correct"].clone()
    };
    assert_eq!(eval("shards:shards"), eval("folder:folder"));
    assert!(bench.call(&["plan", "shards.toml"]).status.success());
}

#[test]
fn shards_that_vanish_end_a_run_with_one_error_and_it_goes_on_when_they_are_back() {
    let bench = bench();
    assert!(bench.call(&["run", "shards.toml", "--out", "calm"]).status.success());
    for epochs in 1..=2 {
        let out = format!("torn-{epochs}");
        let mut child = bench.command(&["run", "shards.toml", "--out", &out]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert_eq!(lines.by_ref().filter(|line| line.contains("  epoch ")).take(epochs).count(), epochs);
        // Four epochs and a pass are left, each of which reads all images.
        std::fs::rename(bench.path("shards/train/1.tar"), bench.path("away")).unwrap();
        let rest: Vec<String> = lines.collect();
        let code = child.wait().unwrap().code();
        std::fs::rename(bench.path("away"), bench.path("shards/train/1.tar")).unwrap();
        let errors: Vec<&String> = rest.iter().filter(|line| line.contains("error: ")).collect();
        assert!(code == Some(1) && errors.len() == 1 && errors[0].contains("shards/train/1.tar"), "{code:?}: {rest:?}");
        assert!(!rest.iter().any(|line| line.contains("panicked")), "{rest:?}");
        assert!(bench.call(&["run", "shards.toml", "--resume", "--out", &out]).status.success());
        assert!(result(&bench, &out) == result(&bench, "calm"), "broken off after {epochs} epochs");
    }
}

#[test]
fn what_is_wrong_with_shards_is_said_before_anything_trains() {
    let bench = bench();
    let whole = std::fs::read(bench.path("shards/train/0.tar")).unwrap();
    std::fs::write(bench.path("shards/train/0.tar"), &whole[..whole.len() / 2]).unwrap();
    for verb in ["plan", "run"] {
        let (error, _) = bench.refusal(&[verb, "shards.toml"]);
        assert!(error.contains("shards/train/0.tar: the archive is cut short"), "{error}");
    }
    let (error, _) = bench.refusal(&["eval", "none.brq", "--data", "shards:nowhere"]);
    assert!(error.contains("none.brq"), "{error}");
    std::fs::write(bench.path("small.toml"), config("shards:nowhere")).unwrap();
    let (error, _) = bench.refusal(&["run", "small.toml"]);
    assert!(error.contains("nowhere: there is no such folder; `shards:PATH` takes archives of images from"), "{error}");
}

#[test]
fn images_without_labels_teach_alike_from_a_folder_and_from_archives_beside_the_config() {
    let bench = bench();
    let labelled = |name: &str, folder: &str| {
        let pass = format!(
            "[[pass]]\nmethod = \"pseudo-labels\"\nimages = 0\nunlabelled = \"{folder}\"\ntrain = {{ epochs = 2, batch = 32 }}\n"
        );
        write(&bench.path(&format!("{name}.toml")), (config("glyphs") + &pass).as_bytes());
        bench.call(&["run", &format!("{name}.toml"), "--out", name])
    };
    for (name, folder) in [("files", "folder/test"), ("archives", "shards/test")] {
        let output = labelled(name, folder);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(result(&bench, "files") == result(&bench, "archives"));
    let gone = String::from_utf8(labelled("gone", "nowhere").stderr).unwrap();
    assert!(gone.contains("pass 2 (pseudo-labels): no folder nowhere: tried "), "{gone}");
}

#[test]
fn a_run_does_not_go_on_with_other_images_without_labels_than_it_began_with() {
    let bench = bench();
    let pass = |folder: &str| {
        format!(
            "[[pass]]\nmethod = \"pseudo-labels\"\nimages = 0\nunlabelled = \"{folder}\"\ntrain = {{ epochs = 1, batch = 32 }}\n"
        )
    };
    let passes = ["folder/test", "late", "folder/test"].map(pass).concat();
    write(&bench.path("twice.toml"), (config("glyphs") + &passes).as_bytes());
    let (late, _) = bench.refusal(&["run", "twice.toml", "--out", "twice"]);
    assert!(late.contains("pass 3 (pseudo-labels): no folder late: tried "), "{late}");
    std::fs::rename(bench.path("shards/test"), bench.path("late")).unwrap();
    GrayImage::new(28, 28).save(bench.path("folder/test/more.png")).unwrap();
    let (changed, _) = bench.refusal(&["run", "twice.toml", "--resume", "--out", "twice"]);
    assert!(
        changed.contains("pass 4 (pseudo-labels): the images in 'folder/test' have changed since the run in twice began"),
        "{changed}"
    );
    std::fs::remove_file(bench.path("folder/test/more.png")).unwrap();
    assert!(bench.call(&["run", "twice.toml", "--resume", "--out", "twice"]).status.success());
    let report = std::fs::read(bench.path("twice/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let sums = report["data"]["unlabelled"].as_object().unwrap();
    assert_eq!(sums.keys().collect::<Vec<_>>(), ["folder/test", "late"]);
}
