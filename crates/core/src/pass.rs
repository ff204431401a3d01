//! A pass changes a network; a method is a pass that a config can name.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::net::Net;
use crate::teaching::Distillation;
use crate::training::Recipe;

/// Anything that turns one network into another.
pub trait Pass: Send + std::fmt::Debug {
    /// Runs the pass.
    ///
    /// # Errors
    /// When a setting does not fit the network, or training or the host fails.
    fn run(&self, net: Net, cx: &mut Context<'_>) -> Result<Net>;

    /// The network's structure after the pass, as far as it follows from the structure before: what `plan` shows. Weights may be
    /// anything of the right shape. The default says that the structure stays.
    ///
    /// # Errors
    /// When a setting does not fit the network.
    fn plan(&self, net: Net) -> Result<Net> {
        Ok(net)
    }

    /// What of [`Pass::plan`] is an estimate, where the structure or the number of weights that stay follows from training or from data.
    /// The default says that nothing is.
    fn estimate(&self) -> Option<&'static str> {
        None
    }

    /// Whether another network takes the place of the one at hand, and owes nothing to its masks and codebooks.
    fn replaces(&self) -> bool {
        false
    }

    /// Whether it learns from the network as it was before, whatever the [recipes](Entry::recipes) in its settings say.
    fn learns_from_before(&self) -> bool {
        false
    }

    /// The file into whose container the pass writes the network, if it writes one.
    fn saves(&self) -> Option<&str> {
        None
    }

    /// The file from whose container the network comes that takes the place of the one at hand, if one does. A plan reads it where it is there
    /// already, and leaves out [`Pass::plan`].
    fn loads(&self) -> Option<&str> {
        None
    }

    /// Whether all that the pass trains are copies, and the network leaves as it came.
    fn only_tries(&self) -> bool {
        false
    }

    /// The files that the run has of it beside its report, containers aside. No other pass of the config writes one of them.
    fn writes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How often the pass goes through the [recipes](Entry::recipes) in its settings.
    fn rounds(&self) -> usize {
        1
    }

    /// Shortens what is no recipe, such as the number of images that are looked at, for a trial run of a few minutes at most.
    fn shorten(&mut self) {}
}

/// What names a pass in a config. The deserialized struct is the method; fields are its settings.
pub trait Method: Pass + 'static {
    /// Name in a config; also the name of the method's file.
    const NAME: &'static str;
    /// Family of the survey.
    const FAMILY: &'static str;
    /// Authors, venue, year, where to find it.
    const PAPER: &'static str;
    /// A minimal table of settings, as TOML lines.
    const EXAMPLE: &'static str;
}

/// A method that applies others. Its settings hold theirs, so that what cannot be applied is refused where they are read.
pub trait Search: Method + Sized {
    /// Reads the settings; the methods that they name are those of the catalogue.
    ///
    /// # Errors
    /// What cannot be read, or names no method.
    fn read(settings: serde_json::Value, methods: Catalogue) -> std::result::Result<Self, serde_json::Error>;
}

/// A method in a scheme's list.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// [`Method::NAME`].
    pub name: &'static str,
    /// The crate that holds it.
    pub home: &'static str,
    /// [`Method::FAMILY`].
    pub family: &'static str,
    /// [`Method::PAPER`].
    pub paper: &'static str,
    /// [`Method::EXAMPLE`].
    pub example: &'static str,
    /// Reads the settings, in which methods of the catalogue may be named.
    pub parse: fn(serde_json::Value, Catalogue) -> std::result::Result<Box<dyn Pass>, serde_json::Error>,
}

impl Entry {
    /// The entry of a method that lives in the crate `home`.
    pub const fn of<M: Method + DeserializeOwned>(home: &'static str) -> Self {
        Self::parsed::<M>(home, |settings, _| Ok(Box::new(serde_json::from_value::<M>(settings)?)))
    }

    /// The entry of a method that applies others.
    pub const fn searching<M: Search>(home: &'static str) -> Self {
        Self::parsed::<M>(home, |settings, methods| Ok(Box::new(M::read(settings, methods)?)))
    }

    /// Reads the settings for a run or, shrunk, for a trial of a few minutes: every training to one epoch, and what else takes long.
    ///
    /// # Errors
    /// What the method does not take.
    pub fn read(
        &'static self,
        mut settings: serde_json::Value,
        methods: Catalogue,
        trial: bool,
    ) -> std::result::Result<Step, serde_json::Error> {
        if trial {
            self.recipes(&mut settings, &mut Recipe::shrink);
        }
        let mut recipes = Vec::new();
        self.recipes(&mut settings, &mut |recipe| recipes.push(recipe.clone()));
        for distill in recipes.iter().flat_map(|recipe| &recipe.distill) {
            distill.distiller(methods.distillations()).map_err(serde::de::Error::custom)?;
        }
        let mut pass = (self.parse)(settings, methods)?;
        if trial {
            pass.shorten();
        }
        Ok(Step { entry: self, pass, recipes })
    }

    /// Has `change` see the recipes in settings of this method, one for each training of a round: what is called `train` or `tune`, and the settings of the
    /// method `train`. At any depth, for what applies another method holds its settings, with `method` beside them. What is no recipe is left to who reads
    /// the settings.
    pub fn recipes(&self, settings: &mut serde_json::Value, change: &mut dyn FnMut(&mut Recipe)) {
        recipes(self.name, settings, change);
    }

    const fn parsed<M: Method>(
        home: &'static str,
        parse: fn(serde_json::Value, Catalogue) -> std::result::Result<Box<dyn Pass>, serde_json::Error>,
    ) -> Self {
        Self { name: M::NAME, home, family: M::FAMILY, paper: M::PAPER, example: M::EXAMPLE, parse }
    }
}

fn recipes(name: &str, value: &mut serde_json::Value, change: &mut dyn FnMut(&mut Recipe)) {
    use serde_json::Value;
    if ["train", "tune"].contains(&name)
        && let Ok(mut recipe) = Recipe::deserialize(&*value)
    {
        change(&mut recipe);
        *value = serde_json::to_value(recipe).expect("a recipe is plain data");
        return;
    }
    match value {
        Value::Object(table) => match table.get("method").and_then(Value::as_str).map(str::to_string) {
            // What applies another method has its name beside its settings; those of `train` are a recipe.
            Some(method) => {
                let named = table.remove("method").expect("it is there");
                recipes(&method, value, change);
                value.as_object_mut().expect("a table stays one").insert("method".into(), named);
            }
            None => table.iter_mut().for_each(|(key, value)| recipes(key, value, change)),
        },
        Value::Array(list) => list.iter_mut().for_each(|value| recipes(name, value, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A pass that was read from its settings.
#[derive(Debug)]
pub struct Step {
    /// Its method.
    pub entry: &'static Entry,
    /// The method with its settings.
    pub pass: Box<dyn Pass>,
    recipes: Vec<Recipe>,
}

impl Step {
    /// The trainings that it does.
    pub fn trainings(&self) -> impl Iterator<Item = &Recipe> {
        (0..self.pass.rounds()).flat_map(|_| &self.recipes)
    }
}

/// The methods that a program knows, and the objectives that recipes may name, as the lists of its crates.
#[derive(Debug, Clone, Copy, Default)]
pub struct Catalogue {
    methods: &'static [&'static [Entry]],
    distillations: &'static [&'static [Distillation]],
}

impl Catalogue {
    /// The methods of these lists, and no objectives.
    pub const fn of(methods: &'static [&'static [Entry]]) -> Self {
        Self { methods, distillations: &[] }
    }

    /// The same methods, and the objectives of these lists.
    #[must_use]
    pub const fn distilling(self, distillations: &'static [&'static [Distillation]]) -> Self {
        Self { distillations, ..self }
    }

    /// The objectives that recipes may name, by crate.
    pub fn distillations(self) -> &'static [&'static [Distillation]] {
        self.distillations
    }

    /// The methods, list by list.
    pub fn entries(self) -> impl Iterator<Item = &'static Entry> {
        self.methods.iter().copied().flatten()
    }

    /// The method of this name.
    ///
    /// # Errors
    /// An unknown name, with the nearest ones.
    pub fn find(self, name: &str) -> Result<&'static Entry> {
        let found = self.entries().find(|entry| entry.name == name);
        found.ok_or_else(|| Error::unknown("method", name, self.entries().map(|entry| entry.name)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::passes::METHODS;

    const ALL: Catalogue = Catalogue::of(&[METHODS]);

    /// A method that trains three times a round, and reads whatever it is given.
    const NESTED: Entry = Entry {
        name: "nested",
        parse: |settings, _| {
            assert!(settings["tune"]["epochs"].is_number() && settings["probe"][1]["method"] == "train");
            Ok(Box::new(crate::passes::Evaluate::deserialize(json!({}))?))
        },
        ..METHODS[0]
    };

    #[test]
    fn recipes_are_found_wherever_they_stand_and_a_trial_run_is_short() {
        let settings = json!({ "train": { "epochs": 7 }, "keep": 0.5, "tune": { "epochs": 5, "lr": 0.3, "warmup": 2 },
            "probe": [{ "tune": { "epochs": 3 }, "keep": { "train": 1 } }, { "method": "train", "epochs": 9 }],
            "tries": { "method": "nested", "tries": { "method": "train", "epochs": 2 }, "tune": [{ "epochs": 4 }, { "epochs": 6 }] } });
        for (trial, expected) in [(false, [3, 7, 5, 9, 2, 4, 6]), (true, [1; 7])] {
            let step = NESTED.read(settings.clone(), ALL, trial).unwrap();
            let mut epochs: Vec<usize> = step.trainings().map(|recipe| recipe.epochs).collect();
            let mut expected = expected.to_vec();
            epochs.sort_unstable();
            expected.sort_unstable();
            assert_eq!(epochs, expected);
            let rates: Vec<(f64, f64)> = step.trainings().map(|recipe| (recipe.lr, recipe.warmup)).collect();
            assert!(rates.contains(&(0.3, if trial { 0.2 } else { 2.0 })), "{rates:?}");
        }
    }

    #[test]
    fn the_settings_of_the_method_train_are_a_recipe() {
        let train = ALL.find("train").unwrap();
        let epochs = |trial| {
            train.read(json!({ "epochs": 40 }), ALL, trial).unwrap().trainings().map(|recipe| recipe.epochs).sum::<usize>()
        };
        assert_eq!([epochs(false), epochs(true)], [40, 1]);
        // What is no recipe is for the method to refuse, in a trial run as in any.
        for trial in [false, true] {
            let refused = train.read(json!({ "epoch": 3 }), ALL, trial).unwrap_err().to_string();
            assert!(refused.contains("unknown field `epoch`"), "{refused}");
        }
    }
}
