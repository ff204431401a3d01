//! One binary for all targets: BRIQUETTE_FUZZ names the one that runs, and BRIQUETTE_SEEDS a folder that its seeds are written to first.

#![no_main]

mod targets;

use std::sync::OnceLock;

use targets::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("BRIQUETTE_FUZZ").expect("BRIQUETTE_FUZZ names a target");
        let target = Target::named(&name).unwrap_or_else(|| panic!("no target {name:?}"));
        if let Some(folder) = std::env::var_os("BRIQUETTE_SEEDS") {
            for (number, seed) in target.seeds().into_iter().enumerate() {
                std::fs::write(std::path::Path::new(&folder).join(format!("seed-{number}")), seed).expect("the folder is there");
            }
        }
        let _ = TARGET.set(target);
    },
    |bytes: &[u8]| TARGET.get().expect("set at the start").run(bytes)
);
