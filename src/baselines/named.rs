//! A method by its name and its parameters, as flags and requests give them.

use super::Baseline;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The only parameter without a default.
const TARGET: &str = "target_reward";

/// What a parameter can be that is a word: there is only one.
const ACCEPTANCES: [&str; 2] = ["soft", "hard"];

/// Characters of a caller's words that a message repeats.
const SHOWN: usize = 64;

/// The largest whole number below which every whole number is exact in an `f64`.
const EXACT: f64 = (1u64 << 53) as f64;

impl Baseline {
    /// The method of this name with these parameters, checked. A parameter that is `null` or not given has its default.
    ///
    /// # Errors
    /// There is no such method. A parameter that the method does not have, that has a value it cannot have, or that is missing and
    /// has no default: the message names method and parameter, says what is expected, and lists the parameters that there are.
    pub fn named(name: &str, parameters: &Map<String, Value>) -> Result<Baseline> {
        let defaults = Baseline::with_defaults(name, 0.0)?;
        let (method, known) = (defaults.name(), fields(&defaults));
        let listed = || listing(method, &known);
        let read = || {
            let mut given = Map::from_iter([("name".to_string(), json!(method))]);
            for (parameter, value) in parameters {
                let default = known.get(parameter).ok_or_else(|| {
                    Error::invalid(format!("{method}: there is no parameter {:?}", shortened(parameter)))
                })?;
                if !value.is_null() {
                    let value = converted(parameter, value, default).map_err(|error| error.within(method))?;
                    given.insert(parameter.clone(), value);
                }
            }
            if known.contains_key(TARGET) && !given.contains_key(TARGET) {
                return Err(Error::invalid(format!(
                    "{method}: {TARGET} must be given, a number: the reward to be reached, on the scale of this reward model"
                )));
            }
            let baseline = of_fields(given).map_err(|error| Error::invalid(format!("{method}: {error}")))?;
            baseline.check()?;
            Ok(baseline)
        };
        read().map_err(|error| match error {
            Error::Invalid(message) => Error::invalid(format!("{message}; {}", listed())),
            other => other,
        })
    }

    /// The method of this name with its defaults. `target_reward` is the reward to be reached, for those that need one.
    ///
    /// # Errors
    /// There is no such method.
    pub fn with_defaults(name: &str, target_reward: f64) -> Result<Baseline> {
        let bare = Map::from_iter([("name".to_string(), json!(name))]);
        let mut aimed = bare.clone();
        aimed.insert(TARGET.to_string(), json!(target_reward));
        of_fields(bare).or_else(|_| of_fields(aimed)).map_err(|_| {
            let names = Baseline::NAMES.join(", ");
            Error::invalid(format!("there is no method {:?}; there are {names}", shortened(name)))
        })
    }

    /// How many texts one choice is made among, at most, and the parameter that says so. The work of an answer grows with it.
    pub fn texts(&self) -> (usize, &'static str) {
        match self {
            Baseline::RejectionSampling(parameters) => (parameters.max_tries, "max_tries"),
            Baseline::Cards(parameters) => (parameters.max_rejections.saturating_add(1), "max_rejections"),
            Baseline::SpeculativeRejection(parameters) => (parameters.n, "n"),
            Baseline::Args(parameters) => (parameters.k, "k"),
            Baseline::Blockwise(parameters) => (parameters.k, "k"),
            Baseline::Beam(parameters) => (parameters.width.saturating_mul(parameters.successors), "successors"),
            Baseline::SoftBestOfN(parameters) => (parameters.n, "n"),
            Baseline::BestOfPoisson(parameters) => (parameters.most(), "mu"),
        }
    }

    /// Whether tokens are sampled, so that temperature, filters, penalties and bias count.
    pub fn samples(&self) -> bool {
        !matches!(self, Baseline::Args(_))
    }
}

fn of_fields(fields: Map<String, Value>) -> serde_json::Result<Baseline> {
    serde_json::from_value(Value::Object(fields))
}

/// The parameters of a method with their values.
fn fields(baseline: &impl Serialize) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(baseline) {
        Ok(Value::Object(fields)) => fields,
        // Numbers and words are always written.
        _ => Map::new(),
    };
    fields.shift_remove("name");
    fields
}

/// A value as the parameter's type has it, which its default tells. A default of `null` is that of a count.
fn converted(parameter: &str, value: &Value, default: &Value) -> Result<Value> {
    let wrong = |expected: &str| Error::invalid(format!("{parameter} must be {expected}, not {}", described(value)));
    match default {
        Value::Number(number) if number.is_f64() => match value.is_number() {
            true => Ok(value.clone()),
            false => Err(wrong("a number")),
        },
        Value::String(_) => {
            let known = value.as_str().and_then(|word| ACCEPTANCES.into_iter().find(|name| *name == word));
            known.map(Value::from).ok_or_else(|| wrong(&format!("one of {}", ACCEPTANCES.join(", "))))
        }
        _ => {
            let exact = |number: &f64| (0.0..=EXACT).contains(number) && number.fract() == 0.0;
            let whole = value.as_u64().or_else(|| value.as_f64().filter(exact).map(|number| number as u64));
            whole.map(Value::from).ok_or_else(|| wrong("a whole number, 0 or more"))
        }
    }
}

/// The parameters of a method and their defaults, in words.
fn listing(method: &str, known: &Map<String, Value>) -> String {
    let described = known.iter().map(|(name, default)| match default {
        _ if name == TARGET => format!("{name} (no default)"),
        Value::Null => format!("{name} (by the request)"),
        Value::String(word) => format!("{name} ({word})"),
        default => format!("{name} ({default})"),
    });
    format!("the parameters of {method} and their defaults are {}", described.collect::<Vec<_>>().join(", "))
}

/// A value in a few words.
fn described(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_string(),
        Value::Array(_) => "a list".to_string(),
        Value::String(text) => format!("{:?}", shortened(text)),
        other => other.to_string(),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baselines::{Acceptance, Cards, SpeculativeRejection};

    fn named(name: &str, parameters: Value) -> Result<Baseline> {
        let Value::Object(parameters) = parameters else { panic!("{parameters} is no object") };
        Baseline::named(name, &parameters)
    }

    #[test]
    fn every_method_is_made_of_its_name() {
        for name in Baseline::NAMES {
            let defaults = Baseline::with_defaults(name, 8.5).unwrap();
            assert_eq!(defaults.name(), name);
            let given = fields(&defaults);
            assert!(!given.is_empty());
            assert_eq!(Baseline::named(name, &given).unwrap(), defaults);
            let aimed = if given.contains_key(TARGET) { json!({ TARGET: 8.5 }) } else { json!({}) };
            assert_eq!(named(name, aimed).unwrap(), defaults);
            // Every parameter is read: another value makes another method, and a list makes none.
            for (parameter, value) in &given {
                let other = match value {
                    Value::Number(number) if number.is_f64() => json!(0.25),
                    Value::String(_) => json!("hard"),
                    _ => json!(5),
                };
                let with = |value: Value| {
                    let mut changed = given.clone();
                    changed.insert(parameter.clone(), value);
                    Baseline::named(name, &changed)
                };
                assert_eq!(fields(&with(other.clone()).unwrap())[parameter], other, "{name}: {parameter}");
                let error = with(json!([1])).unwrap_err().to_string();
                let begin = format!("{name}: {parameter} must be ");
                assert!(error.starts_with(&begin) && error.contains(", not a list; the parameters of "), "{error}");
            }
            let (texts, parameter) = defaults.texts();
            assert!((1..=64).contains(&texts) && given.contains_key(parameter), "{name}");
        }
    }

    #[test]
    fn whole_numbers_may_be_floats_and_null_is_the_default() {
        let given = json!({ "target_reward": 1, "max_rejections": 3.0, "alpha": null, "acceptance": "hard" });
        let expected = Cards { max_rejections: 3, acceptance: Acceptance::Hard, ..Cards::new(1.0) };
        assert_eq!(named("cards", given).unwrap(), Baseline::Cards(expected));
        let budget = |value: Value| named("speculative-rejection", json!({ "kv_budget": value })).unwrap();
        let with = |kv_budget| Baseline::SpeculativeRejection(SpeculativeRejection { kv_budget, ..Default::default() });
        assert_eq!((budget(json!(400)), budget(Value::Null)), (with(Some(400)), with(None)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, parameters, parts) in [
            ("mood", json!({}), &["no method \"mood\"", "rejection-sampling, cards, ", "best-of-poisson"][..]),
            ("cards", json!({}), &["cards: target_reward must be given", "acceptance (soft)"]),
            ("cards", json!({ "target_reward": null }), &["cards: target_reward must be given"]),
            (
                "rejection-sampling",
                json!({ "beta": 1 }),
                &["rejection-sampling: target_reward must be given", "beta (0.7)"],
            ),
            ("cards", json!({ "target_reward": "nan" }), &["cards: target_reward must be a number, not \"nan\"; the"]),
            (
                "cards",
                json!({ "target_reward": 1, "alhpa": 1 }),
                &["cards: there is no parameter \"alhpa\"; ", " alpha (0.5),"],
            ),
            ("cards", json!({ "name": "cards", "target_reward": 1 }), &["there is no parameter \"name\""]),
            (
                "cards",
                json!({ "target_reward": 1, "alpha": 1.5 }),
                &["cards: alpha must be", "not 1.5; the parameters of cards"],
            ),
            (
                "cards",
                json!({ "target_reward": 1, "acceptance": "Soft" }),
                &["acceptance must be one of soft, hard, not \"Soft\""],
            ),
            ("cards", json!({ "target_reward": 1, "acceptance": 1 }), &["acceptance must be one of soft, hard, not 1"]),
            (
                "beam",
                json!({ "width": 1.5 }),
                &["beam: width must be a whole number, 0 or more, not 1.5; ", "chunk (32)"],
            ),
            ("beam", json!({ "width": -1 }), &["beam: width must be a whole number, 0 or more, not -1"]),
            ("beam", json!({ "width": 0 }), &["beam: width must be 1 to 128, not 0"]),
            ("beam", json!({ "nothing": null }), &["beam: there is no parameter \"nothing\""]),
            ("args", json!({ "k": 1e300 }), &["args: k must be a whole number"]),
            ("args", json!({ "weight": true }), &["args: weight must be a number, not true"]),
            (
                "speculative-rejection",
                json!({ "kv_budget": "much" }),
                &["kv_budget must be a whole number", "(by the request)"],
            ),
        ] {
            let error = named(name, parameters.clone()).unwrap_err();
            assert!(error.is_invalid_input());
            for part in parts {
                assert!(error.to_string().contains(part), "{name} {parameters} does not say {part:?}: {error}");
            }
        }
    }

    #[test]
    fn texts_follow_the_parameters() {
        for (name, parameters, expected) in [
            ("rejection-sampling", json!({ "target_reward": 1, "max_tries": 3 }), (3, "max_tries")),
            ("cards", json!({ "target_reward": 1, "max_rejections": 4 }), (5, "max_rejections")),
            ("beam", json!({ "width": 3, "successors": 5 }), (15, "successors")),
            ("args", json!({ "k": 7 }), (7, "k")),
            ("best-of-poisson", json!({ "mu": 0 }), (1, "mu")),
        ] {
            assert_eq!(named(name, parameters).unwrap().texts(), expected);
        }
        let poisson = |mu: f64| named("best-of-poisson", json!({ "mu": mu })).unwrap().texts().0;
        assert!(poisson(0.5) > 1 && poisson(7.0) > 20 && poisson(50.0) > poisson(20.0));
    }
}
