//! Sensitivity of the layers.
//!
//! For every layer `l` and every value `v` of a setting of some other method, applies that method to `l` alone with the value `v` and measures
//! the accuracy `a_l(v)` on validation images. The curves tell which layers bear how much; the network itself is left as it was. Any
//! method with a setting that takes a value for each layer can be tried, for example `keep` of `magnitude` or `bits` of `kmeans-sharing`. The points are
//! written as a table; who runs the pass may draw them.
//!
//! Han, Pool, Tran, Dally. "Learning both Weights and Connections for Efficient Neural Networks". NIPS 2015. arXiv:1506.02626, figure 6.
//! Every measured point is kept under a hash of the weights and the settings, so that an interrupted scan goes on where it stopped, as in
//! Siddegowda et al. "Neural Network Quantization with AI Model Efficiency Toolkit (AIMET)". arXiv:2201.08442, 2022.
//!
//! ```
//! use briquette_core::context::{Context, Data, Memory};
//! use briquette_core::pass::{Catalogue, Pass, Search};
//! use briquette_core::zoo::{Arch, Wanted};
//! use briquette_data::Dataset;
//! use briquette_search::sensitivity::Sensitivity;
//! use burn::tensor::Device;
//!
//! const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arch = Arch::named("lenet300")?;
//! let net = arch.build(&Wanted { width: 0.1, ..arch.wanted() }, &Device::flex())?;
//! let pixels = (0..20 * 784).map(|i| (i * i % 251) as u8).collect();
//! let images = Dataset::from_memory("noise", [1, 28, 28], 10, pixels, vec![0; 20])?;
//! let data = Data { train: images.clone(), valid: images.clone(), test: images };
//!
//! let settings = serde_json::json!({ "probe": { "method": "magnitude" }, "sweep": { "keep": [1.0, 0.1] } });
//! let method = Sensitivity::read(settings, METHODS)?;
//! let mut host = Memory::default();
//! method.run(net, &mut Context::new(&Device::flex(), 1, &data, &mut host))?;
//! let table = String::from_utf8(host.files["sensitivity.csv"].clone())?;
//! assert_eq!(table.lines().count(), 1 + 1 + 3 * 2, "the heads, the network as it is, and two values for three layers");
//! # Ok(())
//! # }
//! ```

use briquette_core::context::{Context, Event, Finding};
use briquette_core::error::{Error, Result};
use briquette_core::net::Net;
use briquette_core::pass::{Catalogue, Method, Pass, Search};
use briquette_core::points::Points;
use briquette_core::scan::{Point, Scan};
use briquette_core::training::evaluate;
use briquette_core::types::Layers;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, Value};

use crate::fingerprint::fingerprint;
use crate::images::Images;
use crate::probe::{Probe, Sweep};

/// Tries a method on each layer alone and measures the accuracy.
#[derive(Debug)]
pub struct Sensitivity {
    probe: Probe,
    settings: Settings,
    /// How often one application goes through its recipes.
    rounds: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// The name of the method and its settings, but for one.
    probe: Map<String, Value>,
    /// That setting, which must take a value for each layer, and the values to try.
    sweep: Sweep,
    /// Layers to try; without it all that hold weights, those left out that the method refuses.
    #[serde(default)]
    layers: Layers,
    /// Layers that are not tried.
    #[serde(default)]
    except: Layers,
    /// Validation images to measure on; all without it.
    #[serde(default)]
    images: Images,
    /// Name of the table (`.csv`) and of a plot (`.svg`).
    #[serde(default = "file")]
    file: String,
}

impl Method for Sensitivity {
    const NAME: &'static str = "sensitivity";
    const FAMILY: &'static str = "search";
    const PAPER: &'static str = "Han, Pool, Tran, Dally, NIPS 2015, arXiv:1506.02626; AIMET, arXiv:2201.08442";
    const EXAMPLE: &'static str = "probe = { method = \"magnitude\" }\nsweep = { keep = [0.5, 0.2, 0.1] }";
}

impl Search for Sensitivity {
    fn read(settings: Value, methods: Catalogue) -> std::result::Result<Self, serde_json::Error> {
        let mut settings: Settings = serde_json::from_value(settings)?;
        let probe = std::mem::take(&mut settings.probe);
        let probe = Probe::of(probe, &[&settings.sweep.key], methods).map_err(serde_json::Error::custom)?;
        let mut rounds = 1;
        for value in &settings.sweep.values {
            let tried = probe.with(&settings.sweep.table([("rest", value)])).map_err(serde_json::Error::custom)?;
            rounds = tried.rounds();
        }
        Ok(Self { probe, settings, rounds })
    }
}

impl Pass for Sensitivity {
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net> {
        let net = self.plan(net)?;
        let layers = self.layers(&net)?;
        let images = self.settings.images.of(cx)?;
        let sweep = &self.settings.sweep;
        let settings = format!("{} {sweep} {} {}", self.probe.settings(), images.len(), cx.seed);
        let mut points: Points = Points::load(format!("sensitivity-{}", fingerprint(&net, &settings)), cx.host)?;
        let baseline = points.get("", cx, |cx| evaluate(&net, &images, &cx.device, cx.host).map(Into::into))?;
        let mut scan = Scan { method: self.probe.name().into(), key: sweep.to_string(), ..Scan::default() };
        scan.baseline = baseline.map_err(Error::Invalid)?;
        let (mut done, total, mut refusal) = (0, layers.len() * sweep.values.len(), String::new());
        for layer in &layers {
            for value in &sweep.values {
                let point = sweep.point(layer, value);
                let measured = points.get(&point, cx, |cx| {
                    let changed = self.probe.apply(&net, &sweep.table([(layer.as_str(), value)]), cx)?;
                    evaluate(&changed, &images, &cx.device, cx.host).map(Into::into)
                })?;
                done += 1;
                let found = match measured {
                    Ok(measured) => {
                        let value = value.as_f64().unwrap_or(f64::NAN);
                        scan.points.push(Point { layer: layer.clone(), value, measured });
                        format!("{:.2} %", 100.0 * measured.accuracy)
                    }
                    Err(refused) => {
                        refusal = self.left_out(&point, &refused)?;
                        refusal.clone()
                    }
                };
                cx.host.event(Event::Note(&format!("{done} of {total}: {point}: {found}")));
            }
        }
        if scan.points.is_empty() {
            return Err(self.changes_none(&refusal));
        }
        let file = self.settings.file.clone();
        cx.host.write(&format!("{file}.csv"), scan.csv().as_bytes())?;
        cx.findings.push(Finding::Scan { file, scan });
        Ok(net)
    }

    /// Each value on each layer that is named; of the others one has to take one.
    fn plan(&self, net: Net) -> Result<Net> {
        let (mut taken, mut refusal, sweep) = (false, String::new(), &self.settings.sweep);
        for layer in &self.layers(&net)? {
            for value in &sweep.values {
                if taken && !self.settings.layers.given() {
                    return Ok(net);
                }
                match self.probe.with(&sweep.table([(layer.as_str(), value)]))?.plan(net.deep_clone()) {
                    Ok(_) => taken = true,
                    Err(failure) if !failure.refuses() => return Err(failure),
                    Err(refused) => refusal = self.left_out(&sweep.point(layer, value), &refused.to_string())?,
                }
            }
        }
        if taken { Ok(net) } else { Err(self.changes_none(&refusal)) }
    }

    fn only_tries(&self) -> bool {
        true
    }

    fn writes(&self) -> Vec<String> {
        [".csv", ".svg"].map(|ending| format!("{}{ending}", self.settings.file)).to_vec()
    }

    /// Those of one layer for each selector, for the network is not known here.
    fn rounds(&self) -> usize {
        self.settings.layers.len().max(1) * self.settings.sweep.values.len() * self.rounds
    }

    fn shorten(&mut self) {
        self.settings.images.shorten();
        self.probe.trial = true;
    }
}

impl Sensitivity {
    fn layers(&self, net: &Net) -> Result<Vec<String>> {
        let chosen = self.settings.layers.without(&self.settings.except, net)?;
        Ok(chosen.into_iter().map(|index| net.nodes[index].name.clone()).collect())
    }

    /// What is said of a point that the method refuses; of a layer that is named none is left out.
    fn left_out(&self, point: &str, refused: &str) -> Result<String> {
        match self.settings.layers.given() {
            true => Err(Error::Invalid(format!("{point}: {refused}"))),
            false => Ok(format!("left out, {refused}")),
        }
    }

    fn changes_none(&self, refusal: &str) -> Error {
        Error::Invalid(format!("sensitivity: {} changes no layer; the last was {refusal}", self.probe.name()))
    }
}

fn file() -> String {
    "sensitivity".into()
}

#[cfg(test)]
mod tests {
    use briquette_core::context::{Data, Host, Memory, Saved, StateWriter};
    use briquette_core::scan::Measured;
    use briquette_core::teaching::{Distillation, Distiller, Lesson, Pair};
    use briquette_core::zoo::{Arch, Wanted};
    use briquette_data::{GlyphCounts, Locations};
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;

    /// Counts evaluations, and asks to stop after as many as it allows.
    struct Counting {
        memory: Memory,
        evaluations: usize,
        allowed: usize,
    }

    impl Host for Counting {
        fn event(&mut self, event: Event<'_>) {
            self.evaluations += usize::from(matches!(event, Event::Step { what: "evaluation", .. }));
        }

        fn stop_requested(&self) -> bool {
            self.evaluations >= self.allowed
        }

        fn saved(&mut self, key: &str) -> Result<Option<Saved<'_>>> {
            self.memory.saved(key)
        }

        fn save(&mut self, key: &str, state: &mut StateWriter<'_>) -> Result<()> {
            self.memory.save(key, state)
        }

        fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
            self.memory.write(name, bytes)
        }

        fn read(&mut self, name: &str) -> Result<Vec<u8>> {
            self.memory.read(name)
        }
    }

    fn counting() -> Counting {
        Counting { memory: Memory::default(), evaluations: 0, allowed: usize::MAX }
    }

    /// Few enough images that an evaluation is one step.
    fn glyphs() -> Data {
        let at = Locations { glyphs: GlyphCounts { train: 200, test: 20 }, ..Locations::from_env(None) };
        let set = briquette_data::open("glyphs", &at).unwrap();
        let (train, valid) = set.train.split(100, 1);
        Data { train, valid, test: set.test }
    }

    fn net(seed: u64) -> Net {
        let arch = Arch::named("lenet300").unwrap();
        arch.build(&Wanted { width: 0.2, seed, ..arch.wanted() }, &Device::flex()).unwrap()
    }

    const METHODS: Catalogue = Catalogue::of(&[briquette_pruning_sharing::METHODS]);

    fn read(settings: Value) -> Sensitivity {
        Sensitivity::read(settings, METHODS).unwrap()
    }

    fn magnitude() -> Sensitivity {
        read(json!({ "probe": { "method": "magnitude" }, "sweep": { "keep": [1, 0.3, 0.05] } }))
    }

    fn scan(method: &Sensitivity, net: Net, host: &mut Counting) -> Result<(Net, Scan)> {
        let data = glyphs();
        let mut cx = Context::new(&Device::flex(), 3, &data, host);
        let net = method.run(net, &mut cx)?;
        assert_eq!((cx.curve.len(), cx.stage), (0, 0), "trainings of the probe are not those of the pass");
        let [Finding::Scan { file, scan }] = <[Finding; 1]>::try_from(cx.findings).unwrap() else { panic!("no scan") };
        assert_eq!(file, "sensitivity");
        Ok((net, scan))
    }

    fn places(scan: &Scan) -> Vec<(&str, f64)> {
        scan.points.iter().map(|point| (point.layer.as_str(), point.value)).collect()
    }

    #[test]
    fn the_network_stays_and_a_share_of_1_gives_its_accuracy() {
        let (mut host, start, data) = (counting(), net(1), glyphs());
        let (after, found) = scan(&magnitude(), start.deep_clone(), &mut host).unwrap();
        assert!(after.to_state() == start.to_state());
        let measure = |net: &Net| Measured::from(evaluate(net, &data.valid, &Device::flex(), &mut counting()).unwrap());
        assert_eq!(found.baseline, measure(&start));
        assert_eq!(places(&found)[..4], [("fc1", 1.0), ("fc1", 0.3), ("fc1", 0.05), ("fc2", 1.0)]);
        for point in &found.points {
            assert_eq!(point.measured == found.baseline, point.value == 1.0, "{point:?}");
        }
        // What the method does to a layer alone, done by hand.
        let fc2 = start.index("fc2").unwrap();
        let pruned = briquette_pruning_sharing::pruning::magnitude::prune(start, |w| (w.node() == Some(fc2)).then_some(0.05));
        assert_eq!(found.points[5].measured, measure(&pruned));
        assert_eq!(host.memory.files["sensitivity.csv"], found.csv().into_bytes());
    }

    #[test]
    fn what_is_measured_once_is_not_measured_again() {
        let (mut host, method) = (counting(), magnitude());
        let (_, first) = scan(&method, net(1), &mut host).unwrap();
        assert_eq!(host.evaluations, 10);
        let (_, second) = scan(&method, net(1), &mut host).unwrap();
        assert_eq!((host.evaluations, second == first), (10, true));
        // Another network or other settings of the method make another scan; other values do not.
        scan(&method, net(2), &mut host).unwrap();
        assert_eq!(host.evaluations, 20);
        let mut fc1 = |probe: Value, values: &[f64]| {
            let settings = json!({ "probe": probe, "sweep": { "keep": values }, "layers": ["fc1"] });
            scan(&read(settings), net(1), &mut host).unwrap();
            host.evaluations
        };
        assert_eq!(fc1(json!({ "method": "magnitude", "rounds": 2 }), &[0.3]), 22);
        assert_eq!(fc1(json!({ "method": "magnitude" }), &[0.3, 0.2]), 23);
    }

    #[test]
    fn an_interrupted_scan_goes_on_and_ends_as_one_that_was_not() {
        let probe = json!({ "method": "magnitude", "tune": { "epochs": 1, "batch": 50 } });
        let method = read(json!({ "probe": probe, "sweep": { "keep": [0.5, 0.1] }, "images": 40 }));
        let mut whole = counting();
        scan(&method, net(1), &mut whole).unwrap();
        let (mut host, mut stops) = (Counting { allowed: 4, ..counting() }, 0);
        while let Err(error) = scan(&method, net(1), &mut host) {
            assert!(matches!(error, Error::Stopped) && host.memory.files.is_empty(), "{error}");
            host.allowed += 4;
            stops += 1;
        }
        assert!(stops > 1);
        assert_eq!(host.memory.files, whole.memory.files);
        assert_eq!(host.memory.states, whole.memory.states);
        assert_eq!(host.memory.states.len(), 1, "states of the probe's trainings are not kept");
    }

    #[test]
    fn layers_that_the_method_refuses_are_left_out_unless_they_are_named() {
        let filters = |layers: Option<&[&str]>| {
            let settings = json!({ "probe": { "method": "filter-l1" }, "sweep": { "ratio": [0.5] }, "layers": layers });
            scan(&read(settings), net(1), &mut counting())
        };
        assert_eq!(places(&filters(None).unwrap().1), [("fc1", 0.5), ("fc2", 0.5)]);
        let refused = filters(Some(&["fc3"])).unwrap_err().to_string();
        assert!(refused.starts_with("fc3, ratio = 0.5: node 'fc3': its channels cannot be cut"), "{refused}");
    }

    #[test]
    fn bits_are_scanned_as_ratios_are() {
        let settings = json!({ "probe": { "method": "kmeans-sharing" }, "sweep": { "bits": [8, 1] }, "layers": ["fc3", "fc1"] });
        let found = scan(&read(settings), net(1), &mut counting()).unwrap().1;
        assert_eq!(places(&found), [("fc1", 8.0), ("fc1", 1.0), ("fc3", 8.0), ("fc3", 1.0)]);
    }

    #[test]
    fn what_cannot_be_scanned_is_refused_before_anything_runs() {
        let refusal = |settings: Value| Sensitivity::read(settings, METHODS).unwrap_err().to_string();
        let sweep = |sweep: Value| refusal(json!({ "probe": { "method": "magnitude" }, "sweep": sweep }));
        let probe = |probe: Value| refusal(json!({ "probe": probe, "sweep": { "keep": [0.5] } }));
        let cases = [
            (probe(json!({ "method": "magnitud" })), "unknown method 'magnitud'; did you mean 'magnitude'?"),
            (probe(json!({})), "`probe` has no `method`"),
            (probe(json!({ "method": "magnitude", "keep": 0.5 })), "`keep` stands in `probe`, but is what is tried"),
            (sweep(json!({ "keep": [0.5, 1.5] })), "a ratio lies in [0, 1], not 1.5"),
            (sweep(json!({ "kep": [0.5] })), "unknown field `kep`"),
            (sweep(json!({ "rounds": [2] })), "it takes no value for each layer"),
            (sweep(json!({ "keep": [] })), "`sweep` takes one setting and the values to try"),
            (sweep(json!({})), "`sweep` takes one setting and the values to try"),
        ];
        for (error, expected) in cases {
            assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        }
    }

    #[test]
    fn a_plan_tries_every_value_and_a_run_refuses_the_same_before_it_measures() {
        let refused = |keep: &[f64], layers: Option<&[&str]>| {
            let method = read(json!({ "probe": { "method": "magnitude" }, "sweep": { "keep": keep }, "layers": layers }));
            let mut host = counting();
            let (planned, ran) = (method.plan(net(1)).unwrap_err().to_string(), scan(&method, net(1), &mut host).unwrap_err());
            assert_eq!((planned.clone(), host.evaluations), (ran.to_string(), 0));
            planned
        };
        let unknown = refused(&[0.5], Some(&["fc_1"]));
        assert!(unknown.starts_with("unknown layer 'fc_1'; did you mean one of 'fc1'"), "{unknown}");
        let nothing = refused(&[0.5, 0.0], Some(&["fc2", "fc1"]));
        assert!(nothing.starts_with("fc1, keep = 0.0: node 'fc1': keep = 0"), "{nothing}");
        let none = refused(&[0.0], None);
        assert!(
            none.starts_with("sensitivity: magnitude changes no layer; the last was left out, node 'fc3': keep = 0"),
            "{none}"
        );
        assert!(read(json!({ "probe": { "method": "magnitude" }, "sweep": { "keep": [0, 0.5] } })).plan(net(1)).is_ok());
    }

    /// An objective that is never asked.
    #[derive(Debug)]
    struct Unasked;

    impl Distiller for Unasked {
        fn lesson(&self, _: &Pair<'_>) -> Result<Box<dyn Lesson>> {
            Err(Error::Invalid("the teacher could be read".into()))
        }

        fn weight(&self) -> f64 {
            1.0
        }
    }

    #[test]
    fn a_failure_ends_the_scan_and_is_no_refusal_that_it_remembers() {
        const UNASKED: Distillation = Distillation { name: "unasked", parse: |_| Ok(Box::new(Unasked)) };
        let methods = METHODS.distilling(&[&[UNASKED]]);
        let tune = json!({ "epochs": 1, "distill": { "method": "unasked", "teacher": "torn.brq" } });
        let settings = json!({ "probe": { "method": "magnitude", "tune": tune }, "sweep": { "keep": [0.5] } });
        let method = Sensitivity::read(settings, methods).unwrap();
        let (data, mut host) = (glyphs(), counting());
        host.memory.files.insert("torn.brq".into(), b"BRQ".to_vec());
        let mut cx = Context::new(&Device::flex(), 3, &data, &mut host);
        cx.distillations = methods.distillations();
        let failed = method.run(net(1), &mut cx).unwrap_err();
        assert!(matches!(&failed, Error::File { file, .. } if file == "torn.brq"), "{failed}");
        let kept = String::from_utf8(host.memory.states.values().next().unwrap().clone()).unwrap();
        assert!(
            kept.starts_with("{\"\":") && !kept.contains("torn"),
            "the network as it is has been measured, and nothing else: {kept}"
        );
    }
}
