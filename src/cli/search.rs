//! The methods that GGRO is compared with, on the command line: their parameters, and what a search tried in words.

use super::words::counted;
use crate::answer::SearchCounts;
use crate::baselines::Baseline;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// Flags of the methods that GGRO is compared with.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Method")]
pub(super) struct SearchArgs {
    /// A parameter of one of the methods that GGRO is compared with; may be given several times
    ///
    /// rejection-sampling: target_reward (required), beta, max_tries. cards: target_reward (required), alpha, beta,
    /// entropy_threshold, min_segment, max_segment, max_rejections, acceptance (soft or hard). speculative-rejection: n, alpha,
    /// kv_budget. args: k, weight. blockwise: k, block. beam: width, successors, chunk. soft-best-of-n: n, lambda.
    /// best-of-poisson: mu. docs/methods.md has what they mean and their defaults.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parameter)]
    method_param: Vec<(String, Value)>,
}

/// Reads `KEY=VALUE`; the value is JSON, or else a word.
fn parameter(text: &str) -> std::result::Result<(String, Value), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            Ok((key.to_string(), value))
        }
        _ => Err("expected KEY=VALUE".to_string()),
    }
}

impl SearchArgs {
    /// The method of this name with its parameters, if it is one of those that GGRO is compared with.
    ///
    /// # Errors
    /// A parameter of another method, one that is given twice, or as [`Baseline::named`].
    pub(super) fn method(&self, name: &str) -> Result<Option<Baseline>> {
        if !Baseline::NAMES.contains(&name) {
            return match self.method_param.first() {
                None => Ok(None),
                Some((key, _)) => Err(Error::invalid(format!(
                    "--method-param {key}: --method {name} has no such parameters; these have: {}",
                    Baseline::NAMES.join(", ")
                ))),
            };
        }
        let mut parameters = Map::new();
        for (key, value) in &self.method_param {
            if parameters.insert(key.clone(), value.clone()).is_some() {
                return Err(Error::invalid(format!("--method-param {key} is given twice")));
            }
        }
        Baseline::named(name, &parameters).map(Some).map_err(|error| error.within("--method-param"))
    }
}

/// What a search tried, in words.
pub(super) fn tried(method: &Baseline, counts: &SearchCounts) -> String {
    let number = |count: u64, noun: &str| counted(usize::try_from(count).unwrap_or(usize::MAX), noun);
    let mut line = format!("{}: {}, {} rejected", method.name(), number(counts.proposals, "proposal"), counts.rejected);
    let rounds = match method {
        Baseline::Cards(_) => Some("segment"),
        Baseline::SpeculativeRejection(_) => Some("ranking"),
        Baseline::Args(_) => Some("token"),
        Baseline::Blockwise(_) => Some("block"),
        Baseline::Beam(_) => Some("round"),
        // One choice among whole answers.
        Baseline::RejectionSampling(_) | Baseline::SoftBestOfN(_) | Baseline::BestOfPoisson(_) => None,
    };
    if let Some(noun) = rounds {
        line += &format!(", {}", number(counts.rounds, noun));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn method(name: &str, parameters: &[&str]) -> Result<Option<Baseline>> {
        let method_param = parameters.iter().map(|text| parameter(text).unwrap()).collect();
        SearchArgs { method_param }.method(name)
    }

    #[test]
    fn values_are_json_or_words() {
        for (text, key, value) in [
            ("alpha=0.5", "alpha", json!(0.5)),
            ("n=4", "n", json!(4)),
            ("target_reward=-1e-3", "target_reward", json!(-1e-3)),
            ("acceptance=hard", "acceptance", json!("hard")),
            ("acceptance=\"hard\"", "acceptance", json!("hard")),
            ("kv_budget=null", "kv_budget", Value::Null),
            ("a=b=c", "a", json!("b=c")),
            ("a=", "a", json!("")),
        ] {
            assert_eq!(parameter(text).unwrap(), (key.to_string(), value));
        }
        for text in ["", "n", "=4", "n:4"] {
            assert_eq!(parameter(text).unwrap_err(), "expected KEY=VALUE");
        }
    }

    #[test]
    fn parameters_belong_to_one_method() {
        assert_eq!(method("ggro", &[]).unwrap(), None);
        let cards = method("cards", &["target_reward=2", "acceptance=hard"]).unwrap().unwrap();
        assert_eq!(cards.name(), "cards");
        for (name, parameters, words) in [
            (
                "bon",
                &["n=4"][..],
                "--method-param n: --method bon has no such parameters; these have: rejection-sampling, ",
            ),
            ("beam", &["width=1", "width=2"], "--method-param width is given twice"),
            ("cards", &["alpha=0.5"], "--method-param: cards: target_reward must be given"),
            ("beam", &["wide=1"], "--method-param: beam: there is no parameter \"wide\"; "),
        ] {
            let error = method(name, parameters).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }

    /// The help of `--method-param` is written by hand.
    #[test]
    fn help_names_every_parameter() {
        let command = <SearchArgs as clap::Args>::augment_args(clap::Command::new("test"));
        let help = command.get_arguments().find_map(clap::Arg::get_long_help).expect("a help").to_string();
        for name in Baseline::NAMES {
            let parameters = serde_json::to_value(Baseline::with_defaults(name, 0.0).unwrap()).unwrap();
            let begin = help.find(&format!("{name}: ")).unwrap_or_else(|| panic!("{name} is not in {help}"));
            let of_method = help[begin..].split(". ").next().unwrap_or_default();
            for parameter in parameters.as_object().expect("an object").keys().filter(|key| *key != "name") {
                assert!(of_method.contains(parameter), "{parameter} of {name} is not in {of_method}");
            }
        }
    }
}
