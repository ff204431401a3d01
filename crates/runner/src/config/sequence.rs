//! What the passes of a config ask of those before them.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use briquette_core::pass::Step;
use briquette_core::training::Distill;

use crate::METHODS;
use crate::run::MODEL;

/// Refuses passes that do not go together; `brought` says whether the network to start from comes from a file.
pub(super) fn check(passes: &[Step], brought: bool) -> Result<()> {
    written_once(passes)?;
    taught_by_somebody(passes, brought)
}

/// A file that two passes write would be left as the later one has it.
fn written_once(passes: &[Step]) -> Result<()> {
    let mut writers: BTreeMap<String, usize> = BTreeMap::new();
    for (index, step) in passes.iter().enumerate() {
        for file in step.pass.writes() {
            if let Some(first) = writers.insert(file.clone(), index) {
                let name = step.entry.name;
                bail!("pass {index} ({name}): writes {file}, as pass {first} does; give one of them another file");
            }
        }
    }
    Ok(())
}

/// A training without a `teacher` learns from the network as it was before its pass. What no training and no file has made knows nothing.
fn taught_by_somebody(passes: &[Step], brought: bool) -> Result<()> {
    let mut knows = brought;
    let mut saved: BTreeMap<&str, bool> = BTreeMap::new();
    for (index, step) in passes.iter().enumerate() {
        let trainings = || step.trainings().filter(|recipe| recipe.epochs > 0);
        let asked = |distill: &&Distill| distill.distiller(METHODS.distillations()).is_ok_and(|loss| loss.weight() != 0.0);
        let distilled = || trainings().flat_map(|recipe| &recipe.distill).filter(asked);
        if !brought && let Some(distill) = distilled().find(|distill| distill.before_first_pass()) {
            bail!(
                "pass {index} ({}): `distill` ({}) would learn from the network before the first pass, which nothing has trained; start from a file, \
                 or name another `teacher`",
                step.entry.name,
                distill.method
            );
        }
        let named = distilled().find(|distill| distill.before_pass()).map(|distill| format!("`distill` ({})", distill.method));
        if !knows && let Some(who) = named.or_else(|| step.pass.learns_from_before().then(|| "it".into())) {
            bail!(
                "pass {index} ({}): {who} would learn from the network as it was before this pass, which nothing has trained; \
                 train it in an earlier pass, start from a file, or name a `teacher`",
                step.entry.name,
            );
        }
        let trains = !step.pass.only_tries() && trainings().next().is_some();
        knows = match step.pass.loads() {
            Some(file) => saved.get(file).copied().unwrap_or(true),
            None => trains || (knows && !step.pass.replaces()),
        };
        saved.extend(step.pass.saves().into_iter().chain([MODEL]).map(|file| (file, knows)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    /// What is said of these passes on a network of the zoo, or of a file.
    fn refused(model: &str, passes: &[&str]) -> Option<String> {
        let passes: String = passes.iter().map(|pass| format!("[[pass]]\n{pass}\n")).collect();
        let text = format!("model = \"{model}\"\ndata = \"glyphs\"\n{passes}");
        Config::parse(Path::new("test.toml"), &text, &[], false, None).err().map(|error| format!("{error:#}"))
    }

    const TRAIN: &str = "method = \"train\"\nepochs = 2";
    const TAUGHT: &str = "method = \"magnitude\"\nkeep = 0.5\ntune = { epochs = 1, distill = { method = \"soft-targets\" } }";

    #[test]
    fn nobody_learns_from_a_network_that_nothing_has_trained() {
        let nobody = "would learn from the network as it was before this pass, which nothing has trained";
        let expected = format!(
            "test.toml: pass 0 (magnitude): `distill` (soft-targets) {nobody}; train it in an earlier pass, start from a file, or name a `teacher`"
        );
        assert_eq!(refused("lenet300", &[TAUGHT]), Some(expected));
        let (idle, drawn) = ("method = \"train\"\nepochs = 0", "method = \"initialize\"");
        let scan =
            "method = \"sensitivity\"\nprobe = { method = \"magnitude\", tune = { epochs = 1 } }\nsweep = { keep = [0.5] }";
        let (save, load) = ("method = \"save\"\nfile = \"a.brq\"", "method = \"load\"\nfile = \"a.brq\"");
        for passes in [&[idle, TAUGHT][..], &[TRAIN, drawn, TAUGHT], &[scan, TAUGHT], &[save, TRAIN, load, TAUGHT]] {
            assert!(refused("lenet300", passes).is_some_and(|said| said.contains(nobody)), "{passes:?}");
        }
        let named = TAUGHT.replace("soft-targets\"", "soft-targets\", teacher = \"a.brq\"");
        for passes in [&[TRAIN, TAUGHT][..], &[load, TAUGHT], &[&named], &[TRAIN, save, drawn, load, TAUGHT]] {
            assert_eq!(refused("lenet300", passes), None, "{passes:?}");
        }
        assert_eq!(refused("start.brq", &[TAUGHT]), None);
    }

    #[test]
    fn two_passes_do_not_write_one_file() {
        let scan = |more: &str| {
            format!("method = \"sensitivity\"\nprobe = {{ method = \"magnitude\" }}\nsweep = {{ keep = [0.5] }}{more}")
        };
        let said = refused("lenet300", &[TRAIN, &scan(""), &scan("")]);
        let expected = "test.toml: pass 2 (sensitivity): writes sensitivity.csv, as pass 1 does; give one of them another file";
        assert_eq!(said.as_deref(), Some(expected));
        assert_eq!(refused("lenet300", &[TRAIN, &scan(""), &scan("\nfile = \"other\"")]), None);
        let distortion = "method = \"weight-distortion\"\nunder = \"sign\"\ntable = \"other.csv\"\ntrain = { epochs = 1 }";
        assert!(refused("lenet300", &[distortion, &scan("\nfile = \"other\"")]).is_some());
    }
}
