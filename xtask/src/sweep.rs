//! Sweeps: every method of a list at every share, on every data set and from every seed, by one command and into one compact record.
//!
//! `docs/records/PAGE/NAME.toml` describes a sweep. `cargo xtask sweep` on it trains the network of each data set and seed once, runs every
//! point from there, and writes `NAME.json` beside it after each. The record is the state: a point whose config it holds is not run again.

mod record;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

pub(crate) use self::record::{Latency, Point, Record, Row, Turns, read_record};
use self::record::{Measured, Report};
use crate::{containers, say};

/// What a sweep runs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Sweep {
    pub(crate) heading: String,
    /// What the table shows, what was the same for all methods, and why a figure falls short.
    pub(crate) text: String,
    /// What goes, for the head of the table: weights or multiply-accumulates.
    #[serde(default)]
    pub(crate) of: String,
    model: toml::Value,
    pub(crate) data: Vec<String>,
    /// Images held back from training.
    valid: usize,
    pub(crate) seeds: Vec<u64>,
    /// Shares that stay; each takes the place of `"$keep"` in a method's passes.
    #[serde(default = "everything")]
    pub(crate) keep: Vec<f64>,
    /// Whether the page plots accuracy against the size of the file, a line for each method, and lists every share.
    #[serde(default)]
    pub(crate) plot: bool,
    /// Passes that make the network that every method starts from; without them `model` brings its weights along.
    #[serde(default)]
    start: Vec<toml::Table>,
    /// Whether the containers of the first seed are kept beside the record, for `cargo xtask remeasure`.
    #[serde(default)]
    containers: bool,
    /// The trainings that follow every method, one after the other; without any, what a method does is all.
    #[serde(default)]
    pub(crate) tune: Trainings,
    pub(crate) method: Vec<Method>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Method {
    /// How the table calls it.
    pub(crate) name: String,
    /// In the place of the sweep's, for a method that is held against another network; only where nothing is trained first.
    model: Option<toml::Value>,
    pass: Vec<toml::Table>,
    /// In the place of the sweep's, where they mean something else to this method: numbers of bits, say.
    keep: Option<Vec<f64>>,
    /// In the place of the sweep's, for a method that trains more or less than others before.
    tune: Option<Trainings>,
}

/// A training, or several one after the other, each of which a page shows.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Trainings {
    One(toml::Table),
    Several(Vec<toml::Table>),
}

impl Default for Trainings {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Trainings {
    pub(crate) fn all(&self) -> &[toml::Table] {
        match self {
            Self::One(training) => std::slice::from_ref(training),
            Self::Several(trainings) => trainings,
        }
    }

    /// Epochs from the beginning to the end of each.
    pub(crate) fn epochs(&self) -> Vec<i64> {
        let epochs = |training: &toml::Table| training.get("epochs").and_then(toml::Value::as_integer).unwrap_or(1);
        let sum = |done: &mut i64, training| {
            *done += epochs(training);
            Some(*done)
        };
        self.all().iter().scan(0, sum).collect()
    }
}

fn everything() -> Vec<f64> {
    vec![1.0]
}

impl Sweep {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let sweep: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        if let Some(method) = sweep.method.iter().find(|method| method.model.is_some() && !sweep.start.is_empty()) {
            bail!("{}: method \"{}\" has a `model`, but starts from what `start` trains", path.display(), method.name);
        }
        let trainings = sweep.tune.all().len();
        let other = |method: &&Method| method.tune.as_ref().is_some_and(|tune| tune.all().len() != trainings);
        if let Some(method) = sweep.method.iter().find(other) {
            let name = &method.name;
            bail!(
                "{}: method \"{name}\" has a `tune`, but the sweep has {trainings} trainings; write it as passes",
                path.display()
            );
        }
        Ok(sweep)
    }

    /// Whether the methods begin with random weights.
    pub(crate) fn untrained(&self) -> bool {
        let file = self.model.get("file").is_some() || self.model.as_str().is_some_and(|name| name.ends_with(".brq"));
        self.start.is_empty() && !file
    }

    /// Every point that is still to run, given where the networks at the start lie.
    fn points(&self, folder: &Path) -> Result<Vec<Point>> {
        let mut points = Vec::new();
        for (data, seed) in self.starts() {
            let model = if self.start.is_empty() {
                self.model.clone()
            } else {
                let file = start(folder, data, seed).join("model.brq");
                toml::Value::Table([("file".to_string(), file.display().to_string().into())].into_iter().collect())
            };
            for method in &self.method {
                for &keep in self.shares(method) {
                    let tune = method.tune.as_ref().unwrap_or(&self.tune).all();
                    let passes = method.pass.iter().chain(tune).map(|pass| filled(pass.clone().into(), keep)).collect();
                    points.push(Point {
                        data: data.to_string(),
                        method: method.name.clone(),
                        keep,
                        seed,
                        commit: String::new(),
                        date: String::new(),
                        config: self.config(method.model.as_ref().unwrap_or(&model).clone(), data, seed, passes)?,
                        error: None,
                        rows: Vec::new(),
                        latency: Latency::default(),
                        remeasured: None,
                        containers: Vec::new(),
                    });
                }
            }
        }
        Ok(points)
    }

    /// The shares of a method; what takes none is the same at each.
    pub(crate) fn shares<'a>(&'a self, method: &'a Method) -> &'a [f64] {
        let keep = method.keep.as_deref().unwrap_or(&self.keep);
        if method.takes_a_share() { keep } else { &keep[..keep.len().min(1)] }
    }

    fn starts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.seeds.iter().flat_map(|seed| self.data.iter().map(move |data| (data.as_str(), *seed)))
    }

    fn config(&self, model: toml::Value, data: &str, seed: u64, pass: Vec<toml::Value>) -> Result<String> {
        let mut data = vec![("name".to_string(), data.into()), ("valid".to_string(), i64::try_from(self.valid)?.into())];
        if !self.start.is_empty() {
            // The network at the start was trained by this sweep, on the same split.
            data.push(("valid-from".to_string(), "train".into()));
        }
        let table: toml::Table = [
            ("model".to_string(), model),
            ("data".to_string(), toml::Value::Table(data.into_iter().collect())),
            ("seed".to_string(), i64::try_from(seed)?.into()),
            ("pass".to_string(), pass.into()),
        ]
        .into_iter()
        .collect();
        Ok(toml::to_string(&table)?)
    }
}

impl Method {
    pub(crate) fn takes_a_share(&self) -> bool {
        self.pass.iter().any(|pass| pass.values().any(names_the_share))
    }
}

fn names_the_share(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(text) => text == KEEP,
        toml::Value::Array(all) => all.iter().any(names_the_share),
        toml::Value::Table(all) => all.values().any(names_the_share),
        _ => false,
    }
}

/// Stands for the share in a method's passes.
const KEEP: &str = "$keep";

/// The settings with the share in its place; a whole number above 1 is a count, and written as one.
fn filled(settings: toml::Value, keep: f64) -> toml::Value {
    match settings {
        toml::Value::String(text) if text == KEEP && keep > 1.0 && keep.fract() == 0.0 => (keep as i64).into(),
        toml::Value::String(text) if text == KEEP => keep.into(),
        toml::Value::Array(all) => all.into_iter().map(|value| filled(value, keep)).collect::<Vec<_>>().into(),
        toml::Value::Table(all) => toml::Value::Table(all.into_iter().map(|(key, value)| (key, filled(value, keep))).collect()),
        other => other,
    }
}

/// The folder of the run that makes the network at the start.
fn start(folder: &Path, data: &str, seed: u64) -> PathBuf {
    folder.join(format!("start-{data}-{seed}"))
}

/// Runs what a sweep's record lacks. `briquette` starts the binary, `--jobs N` runs as many points at once, `--device D` runs them there.
///
/// # Errors
/// A description that does not read, or a network at the start that cannot be made. A point that cannot run is recorded with the reason.
pub(crate) fn run(arguments: &[String], root: &Path, briquette: &(dyn Fn() -> Command + Sync)) -> Result<ExitCode> {
    let (path, jobs, device) = options(arguments)?;
    let (sweep, commit) = (Sweep::read(&path)?, commit(root));
    let name = path.file_stem().ok_or_else(|| anyhow!("{} names no file", path.display()))?;
    // Two pages may have sweeps of one name, which may run at once.
    let page = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    // Beside the sources, so that the paths in a record are those of any checkout.
    let folder = Path::new("target/sweep").join(name);
    std::fs::create_dir_all(root.join(&folder)).with_context(|| folder.display().to_string())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(jobs).to_string();
    let briquette = || {
        let mut command = briquette();
        command.current_dir(root).args(["--threads", &threads, "run"]);
        if let Some(device) = device {
            command.args(["--device", device]);
        }
        command
    };

    let start_config = toml::to_string(&toml::Table::from_iter([
        ("model".to_string(), sweep.model.clone()),
        ("pass".to_string(), sweep.start.iter().cloned().map(toml::Value::Table).collect::<Vec<_>>().into()),
    ]))?;
    let record_path = path.with_extension("json");
    let before = read_record(&record_path)?.filter(|record| record.start == start_config).unwrap_or_default();
    let mut points = sweep.points(&folder)?;
    for point in &mut points {
        if let Some(done) = before.points.iter().find(|done| done.config == point.config && done.error.is_none()) {
            *point = Point { method: point.method.clone(), ..done.clone() };
        }
    }
    let open: Vec<usize> = (0..points.len()).filter(|i| points[*i].rows.is_empty()).collect();
    say(&format!("{}: {} of {} points are to run", path.display(), open.len(), points.len()));
    let needed = |(data, seed): &(&str, u64)| open.iter().any(|i| points[*i].data == *data && points[*i].seed == *seed);
    let starts: Vec<(&str, u64)> = sweep.starts().filter(|start| !sweep.start.is_empty() && needed(start)).collect();
    at_once(jobs, starts, |_, (data, seed)| {
        let passes = sweep.start.iter().cloned().map(toml::Value::Table).collect();
        let out = start(&folder, data, seed);
        let config = sweep.config(sweep.model.clone(), data, seed, passes)?;
        report(&briquette, root, &out, &config).map(drop).with_context(|| out.display().to_string())
    })?;

    let command = format!("cargo xtask sweep {}", path.display());
    let record = Mutex::new(Record { command, start: start_config, points });
    at_once(jobs, open, |worker, index| {
        let mut point = record.lock().expect("no worker panics").points[index].clone();
        let out = folder.join(format!("{page}-{worker}"));
        if root.join(&out).exists() {
            std::fs::remove_dir_all(root.join(&out)).with_context(|| out.display().to_string())?;
        }
        point.commit.clone_from(&commit);
        match report(&briquette, root, &out, &point.config) {
            Ok(report) => {
                point.date = report.date;
                let latency = report.rows.last().map(Measured::latency).unwrap_or_default();
                point.rows = report.rows.into_iter().map(|measured| measured.row).collect();
                if sweep.containers && sweep.seeds.first() == Some(&point.seed) {
                    let folder = path.strip_prefix(root).unwrap_or(&path).with_extension("");
                    point.containers = containers::keep(root, &out, point.model().as_deref(), point.files(&sweep, &folder))?;
                }
                // Where containers are kept, so are latencies of those alone, which `remeasure` can renew.
                if !sweep.containers || !point.containers.is_empty() {
                    point.latency = latency;
                }
            }
            Err(error) => point.error = Some(format!("{error:#}")),
        }
        say(&point.line());
        let mut record = record.lock().expect("no worker panics");
        record.points[index] = point;
        record.write(&record_path)
    })?;
    record.into_inner().expect("no worker panics").write(&record_path)?;
    Ok(ExitCode::SUCCESS)
}

/// Does work on all items, in their order, so many at once; `work` is told which of the workers it is. What is begun when one fails is ended.
fn at_once<T: Send>(jobs: usize, items: Vec<T>, work: impl Fn(usize, T) -> Result<()> + Sync) -> Result<()> {
    let next = Mutex::new(items.into_iter());
    let worker = |number: usize| -> Result<()> {
        loop {
            let Some(item) = next.lock().expect("no worker panics").next() else { return Ok(()) };
            work(number, item)?;
        }
    };
    std::thread::scope(|scope| {
        let worker = &worker;
        let workers: Vec<_> = (0..jobs).map(|number| scope.spawn(move || worker(number))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })
}

/// The file, how many points at once, and where.
fn options(arguments: &[String]) -> Result<(PathBuf, usize, Option<&str>)> {
    let (mut file, mut jobs, mut device) = (None, 1, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{argument} takes a value"));
        match argument.as_str() {
            "--jobs" => jobs = value()?.parse::<usize>().context("--jobs")?.max(1),
            "--device" => device = Some(value()?.as_str()),
            path if file.is_none() && !path.starts_with('-') => file = Some(PathBuf::from(path)),
            _ => bail!("usage: cargo xtask sweep FILE [--jobs N] [--device D]"),
        }
    }
    Ok((file.context("usage: cargo xtask sweep FILE [--jobs N] [--device D]")?, jobs, device))
}

/// The report of a run of this config in this folder.
fn report(briquette: &dyn Fn() -> Command, root: &Path, out: &Path, config: &str) -> Result<Report> {
    let file = root.join(out).with_extension("toml");
    std::fs::write(&file, config).with_context(|| file.display().to_string())?;
    let output = briquette().arg(&file).arg("--out").arg(out).arg("--resume").stdout(Stdio::null()).output();
    let output = output.context("cannot run briquette")?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        bail!("{}", log.lines().last().unwrap_or_default().trim_start_matches("error: "));
    }
    let path = root.join(out).join("report.json");
    serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)
        .with_context(|| path.display().to_string())
}

/// The commit of the sources, with a `+` when they have changed since.
fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default()
    };
    let changed = !git(&["status", "--porcelain", "--", "crates", "Cargo.toml", "Cargo.lock"]).is_empty();
    git(&["rev-parse", "--short=12", "HEAD"]) + if changed { "+" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::record::plain;
    use super::*;

    const TEXT: &str = r#"
        heading = "Two methods"
        text = "One takes a share."
        model = { arch = "mlp1000", width = 0.1 }
        data = ["mnist"]
        valid = 10
        seeds = [1, 2]
        keep = [0.5, 0.1]

        [[method]]
        name = "shares"
        pass = [{ method = "magnitude", keep = { fc1 = "$keep", fc2 = 1.0 } }]

        [[method]]
        name = "dense"
        model = "mlp1"
        pass = [{ method = "encode" }]
    "#;

    fn written(text: &str, name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("briquette-sweep-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("sweep.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_share_takes_its_place_and_a_method_its_own_model() {
        let sweep = Sweep::read(&written(TEXT, "points")).unwrap();
        assert!(sweep.untrained());
        let points = sweep.points(Path::new("none")).unwrap();
        let of = |point: &Point| (point.seed, point.method.clone(), point.keep);
        let one = |seed| [(seed, "shares".to_string(), 0.5), (seed, "shares".to_string(), 0.1), (seed, "dense".to_string(), 0.5)];
        assert_eq!(points.iter().map(of).collect::<Vec<_>>(), [one(1), one(2)].concat());
        let config: toml::Table = toml::from_str(&points[1].config).unwrap();
        assert_eq!(config["pass"][0]["keep"]["fc1"].as_float(), Some(0.1));
        assert_eq!(config["pass"][0]["keep"]["fc2"].as_float(), Some(1.0));
        assert_eq!(config["model"]["arch"].as_str(), Some("mlp1000"));
        assert_eq!(toml::from_str::<toml::Table>(&points[2].config).unwrap()["model"].as_str(), Some("mlp1"));
    }

    #[test]
    fn every_kept_container_has_a_name_of_its_own() {
        let sweep = Sweep::read(&written(TEXT, "names")).unwrap();
        let names = |point: &Point| point.files(&sweep, Path::new("page/sweep")).map(|file| file.display().to_string());
        let points = sweep.points(Path::new("none")).unwrap();
        assert_eq!(names(&points[1]), ["page/sweep/mnist-start.brq", "page/sweep/mnist-shares-0.1.brq"]);
        assert_eq!(names(&points[2]), ["page/sweep/mnist-dense-start.brq", "page/sweep/mnist-dense.brq"]);
        assert_eq!(plain("W8A8, post-training: 0.5"), "w8a8-post-training-0.5");
        assert_eq!(points[0].model(), None);
        let from = |model: &str| Point { config: format!("model = {model}"), ..points[0].clone() }.model();
        assert_eq!(
            [from("\"models/a.brq\""), from("{ file = \"models/a.brq\" }")],
            [Some("models/a.brq".to_string()), Some("models/a.brq".to_string())]
        );
    }

    #[test]
    fn a_method_validates_on_the_images_that_the_network_at_its_start_has_not_seen() {
        let text = TEXT.replace("seeds =", "start = [{ method = \"train\" }]\n        seeds =").replace("model = \"mlp1\"\n", "");
        let sweep = Sweep::read(&written(&text, "valid")).unwrap();
        let config: toml::Table = toml::from_str(&sweep.points(Path::new("none")).unwrap()[0].config).unwrap();
        assert_eq!(config["data"]["valid-from"].as_str(), Some("train"));
        let fresh = Sweep::read(&written(TEXT, "fresh")).unwrap();
        let config: toml::Table = toml::from_str(&fresh.points(Path::new("none")).unwrap()[0].config).unwrap();
        assert!(config["data"].get("valid-from").is_none());
    }

    #[test]
    fn a_model_of_its_own_is_refused_where_a_start_is_trained() {
        let text = TEXT.replace("seeds =", "start = [{ method = \"train\" }]\n        seeds =");
        let error = Sweep::read(&written(&text, "start")).err().unwrap().to_string();
        assert!(error.ends_with("method \"dense\" has a `model`, but starts from what `start` trains"), "{error}");
    }

    #[test]
    fn a_training_of_its_own_takes_the_place_of_the_sweeps() {
        let text = TEXT.replace("valid = 10", "valid = 10\n        tune = { method = \"train\", epochs = 4 }");
        let own = text.replace("name = \"dense\"", "name = \"dense\"\n        tune = { method = \"train\", epochs = 9 }");
        let points = Sweep::read(&written(&own, "tune")).unwrap().points(Path::new("none")).unwrap();
        let epochs = |point: &Point| {
            let config: toml::Table = toml::from_str(&point.config).unwrap();
            config["pass"].as_array().unwrap().last().unwrap()["epochs"].as_integer()
        };
        assert_eq!(points[..3].iter().map(epochs).collect::<Vec<_>>(), [Some(4), Some(4), Some(9)]);
        let alone = own.replace("tune = { method = \"train\", epochs = 4 }", "");
        let error = Sweep::read(&written(&alone, "alone")).err().unwrap().to_string();
        assert!(error.ends_with("method \"dense\" has a `tune`, but the sweep has 0 trainings; write it as passes"), "{error}");
    }

    #[test]
    fn options_come_in_any_order_and_none_is_taken_for_another() {
        let of = |text: &str| {
            let arguments: Vec<String> = text.split(' ').map(str::to_string).collect();
            options(&arguments).map(|(file, jobs, device)| (file, jobs, device.map(str::to_string)))
        };
        assert_eq!(of("a.toml").unwrap(), (PathBuf::from("a.toml"), 1, None));
        assert_eq!(of("--device vulkan:1 a.toml --jobs 3").unwrap(), (PathBuf::from("a.toml"), 3, Some("vulkan:1".to_string())));
        for wrong in ["--jobs 3", "a.toml b.toml", "a.toml --jobs", "a.toml --jobs x", "a.toml --device"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_items_are_worked_on_by_at_most_so_many_at_once() {
        let (done, busy) = (Mutex::new(Vec::new()), std::sync::atomic::AtomicUsize::new(0));
        at_once(3, (0..20).collect(), |worker, item| {
            assert!(worker < 3 && busy.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 3);
            done.lock().unwrap().push(item);
            busy.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..20).collect::<Vec<_>>());
        assert_eq!(at_once(2, vec![1, 2], |_, item| if item == 2 { bail!("no") } else { Ok(()) }).unwrap_err().to_string(), "no");
    }

    #[test]
    fn a_record_keeps_what_ran_and_nothing_else() {
        let path = written(TEXT, "record");
        let row = Row { method: "encode".into(), accuracy: 0.5, params: 8, nonzero: 4, macs: 16, file_bytes: 32 };
        let mut points = Sweep::read(&path).unwrap().points(Path::new("none")).unwrap();
        points[0].rows = vec![row];
        points[1].error = Some("it diverged".into());
        let record = Record { command: "cargo xtask sweep it".into(), start: "start".into(), points };
        let json = path.with_extension("json");
        record.write(&json).unwrap();
        let back = read_record(&json).unwrap().unwrap();
        assert_eq!((back.command, back.start, back.points.len()), (record.command, record.start, 2));
        assert_eq!((back.points[0].config.clone(), back.points[0].rows[0].file_bytes), (record.points[0].config.clone(), 32));
        assert_eq!(back.points[1].error.as_deref(), Some("it diverged"));
        assert!(read_record(&path.with_extension("absent")).unwrap().is_none());
    }
}
