//! The seeds and finds of `cargo xtask fuzz` once more, and changes of them: no reader panics, or takes memory that its file does not
//! account for. A test of its own, for it counts what the whole process allocates.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use targets::{TARGETS, Target};

#[global_allocator]
static MEMORY: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// Most that the process has at any moment. Files are of a few kilobytes.
const MOST: usize = 256 << 20;

/// What fuzzing of a target begins with: seeds, and files that once were faults, each with a name.
fn corpus(target: Target) -> Vec<(String, Vec<u8>)> {
    let seeds = target.seeds().into_iter().enumerate().map(|(number, seed)| (format!("seed {number}"), seed));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target.name());
    let mut files: Vec<_> = folder.read_dir().into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let files =
        files.into_iter().map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()));
    seeds.chain(files).collect()
}

fn replay(target: Target, name: &str, bytes: &[u8]) {
    if let Err(panic) = std::panic::catch_unwind(|| target.run(bytes)) {
        let file = std::env::temp_dir().join(format!("briquette-find-{}", target.name()));
        std::fs::write(&file, bytes).unwrap();
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        panic!("{} of {name}, kept in {}: {}", target.name(), file.display(), said.unwrap_or_default());
    }
    assert!(MEMORY.max_allocated() < MOST, "{} of {name}: {} MiB", target.name(), MEMORY.max_allocated() >> 20);
}

#[test]
fn readers_come_back_from_all_that_was_found() {
    for target in TARGETS {
        let corpus = corpus(target);
        assert!(!corpus.is_empty() && Target::named(target.name()) == Some(target), "{target:?}");
        corpus.iter().for_each(|(name, bytes)| replay(target, name, bytes));
    }
}

#[test]
fn readers_come_back_from_files_that_are_cut_or_changed() {
    for target in TARGETS {
        let corpus = corpus(target);
        let mut rng = ChaCha8Rng::seed_from_u64(14);
        let each = CHANGES.div_ceil(corpus.len());
        for (name, bytes) in corpus.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            for _ in 0..each {
                let mut changed = bytes.clone();
                for _ in 0..rng.random_range(1..4) {
                    change(&mut changed, &corpus[rng.random_range(0..corpus.len())].1, &mut rng);
                }
                replay(target, &format!("changes of {name}"), &changed);
            }
        }
    }
}

#[test]
fn long_files_are_looked_at_a_piece_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["train/a/0.png", "train/a/1.png", "train/a/2.png", "test/a/0.png"] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::new(3, 2).save(&path).unwrap();
        // Zeros behind an image's end, which take no room on a disk.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(100 << 20).unwrap();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let (name, at) = (format!("folder:{}", folder.path().display()), briquette_data::Locations::from_env(None));
    assert_eq!(pool.install(|| briquette_data::open(&name, &at)).unwrap().train.len(), 3);
    assert!(MEMORY.max_allocated() < MOST, "{} MiB", MEMORY.max_allocated() >> 20);
}

/// Changed files of each target.
const CHANGES: usize = 400;

/// One change: a byte, a cut, bytes that come in, go, or come from another file.
fn change(bytes: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..bytes.len().max(1)).min(bytes.len());
    let some = rng.random_range(1..9_usize);
    match rng.random_range(0..6) {
        0 => bytes.truncate(at),
        1 => drop(bytes.splice(at..at, (0..some).map(|_| rng.random::<u8>()))),
        2 => drop(bytes.drain(at..bytes.len().min(at + some))),
        3 => {
            let from = rng.random_range(0..other.len().max(1)).min(other.len());
            let piece = &other[from..other.len().min(from + 4 * some)];
            drop(bytes.splice(at..bytes.len().min(at + piece.len()), piece.iter().copied()));
        }
        _ => {
            let value = [0, 1, 0x7f, 0x80, 0xff, rng.random()][rng.random_range(0..6)];
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
        }
    }
}
