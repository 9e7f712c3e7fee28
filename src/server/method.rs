//! How a request is answered: which of a model's names it uses, and the parameters of the method that it gives.

use super::error::ApiError;
use super::fields::Fields;
use crate::Error;
use crate::baselines::Baseline;
use crate::engine::Drafting;
use crate::method::entropy::{SIGNALS, signal};
use crate::method::{PROPOSALS, Proposals, Selection};
use crate::presets::{Given, Published};
use crate::text::PromptLayout;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What comes after the colon of a model's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// Nothing: greedy or sampled.
    Plain,
    /// `ggro`.
    Guided,
    /// `ggro-<proposals>`: GGRO with a control's proposals.
    Control(Proposals),
    /// `ggro-<preset>`.
    Preset(Published),
    /// `bon-<n>`: the best of `n` samples by reward.
    Best(usize),
    /// One of the methods that GGRO is compared with, by its name.
    Search(&'static str),
}

/// Published parameters that have a name.
const PRESETS: [(Published, &str); 3] = [
    (Published::Safety, "ggro-safety"),
    (Published::Helpfulness, "ggro-helpfulness"),
    (Published::Reasoning, "ggro-reasoning"),
];

/// Completions of the listed `bon` name.
const BEST_OF: usize = 8;

impl Alias {
    /// Reads what comes after the colon; `bon` takes up to `most` completions.
    pub fn parse(text: &str, most: usize) -> Option<Alias> {
        if text == "ggro" {
            return Some(Alias::Guided);
        }
        if let Some(count) = text.strip_prefix("bon-") {
            let digits = count.bytes().all(|byte| byte.is_ascii_digit()) && !count.starts_with('0');
            let count = count.parse().ok().filter(|count| digits && (1..=most).contains(count));
            return count.map(Alias::Best);
        }
        if let Some(name) = Baseline::NAMES.into_iter().find(|name| *name == text) {
            return Some(Alias::Search(name));
        }
        if let Some(proposals) = Proposals::of_method(text) {
            return Some(Alias::Control(proposals));
        }
        PRESETS.iter().find(|(_, name)| *name == text).map(|&(preset, _)| Alias::Preset(preset))
    }

    /// The suffixes that `/v1/models` lists.
    pub fn listed(most: usize) -> Vec<String> {
        let presets = PRESETS.iter().map(|(_, name)| format!(":{name}"));
        let best = (BEST_OF <= most).then(|| format!(":bon-{BEST_OF}"));
        // Chat frontends offer what is there, so what cannot be asked without a parameter is not.
        let fits = |name: &&str| Baseline::named(name, &Map::new()).is_ok_and(|method| method.texts().0 <= most);
        let searches = Baseline::NAMES.into_iter().filter(fits).map(|name| format!(":{name}"));
        [String::new(), ":ggro".to_string()].into_iter().chain(presets).chain(best).chain(searches).collect()
    }

    /// Whether the answer is guided by rewards, segment by segment.
    pub fn guides(self) -> bool {
        matches!(self, Alias::Guided | Alias::Control(_) | Alias::Preset(_))
    }

    /// Whether the answer is one of several texts that were tried, of which the method returns that one.
    pub fn chooses(self) -> bool {
        matches!(self, Alias::Best(_) | Alias::Search(_))
    }
}

/// The field with the parameters of a search.
const PARAMETERS: &str = "method_params";

/// Reads the parameters of a request for `model`, if that is one of the methods that GGRO is compared with. A choice may be made
/// among up to `most` texts.
///
/// # Errors
/// The field is sent for another model, a parameter is wrong or missing, or asks for more than `most` texts.
pub fn search(fields: &mut Fields, alias: Alias, model: &str, most: usize) -> Result<Option<Baseline>, ApiError> {
    let given = fields.object(PARAMETERS)?;
    let Alias::Search(name) = alias else {
        return match given {
            None => Ok(None),
            Some(_) => {
                let names = Baseline::NAMES.join(", ");
                let message = format!("has no effect on {model}: it is for the names that end in one of {names}");
                Err(ApiError::field(PARAMETERS, message))
            }
        };
    };
    let method = Baseline::named(name, &given.unwrap_or_default()).map_err(wrong_parameter)?;
    match method.texts() {
        (texts, parameter) if texts > most => {
            let message = format!("asks {name} for {texts} texts by `{parameter}`, and this server takes {most}");
            Err(ApiError::field(PARAMETERS, message))
        }
        _ => Ok(Some(method)),
    }
}

/// The error of a parameter of a search.
pub fn wrong_parameter(error: Error) -> ApiError {
    ApiError::from(error.within(PARAMETERS)).about(PARAMETERS)
}

/// The method's settings in a request: the object `ggro`, or keys `ggro_*` of `vllm_xargs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MethodSettings {
    /// The parameters that it gives.
    pub parameters: Given,
    /// How the prompt is laid out.
    pub layout: PromptLayout,
    /// Whether the answer comes with every decision.
    pub trace: bool,
    /// Settings of the official code that are accepted and have no effect.
    pub ignored: Vec<&'static str>,
    /// Whether tokens are guessed for it. This alone does not ask for the method: no answer depends on it.
    pub draft: Option<Drafting>,
    /// The field of the request that has any of them but `draft`.
    pub given: Option<&'static str>,
}

/// The setting that says whether tokens are guessed.
const DRAFT: &str = "draft";

/// Upper bounds of a request's numbers: the work of a segment grows with them.
const MOST_CANDIDATES: usize = 64;
const MOST_TOP_K: usize = 1024;

impl MethodSettings {
    /// Reads the object of a request, and its `vllm_xargs`.
    ///
    /// # Errors
    /// A setting that does not exist or has a value it cannot have.
    pub fn read(fields: &mut Fields) -> Result<MethodSettings, ApiError> {
        let xargs = fields.object("vllm_xargs")?.unwrap_or_default();
        let flat: Map<String, Value> = xargs
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("ggro_")?.to_string(), value)))
            .collect();
        let own = fields.object("ggro")?;
        let others = |settings: &Map<String, Value>| settings.keys().any(|name| name != DRAFT);
        let asks = |own: &Map<String, Value>| own.is_empty() || others(own);
        let given = own.as_ref().filter(|own| asks(own)).map(|_| "ggro");
        let given = given.or(others(&flat).then_some("vllm_xargs"));
        if !flat.is_empty() && own.as_ref().is_some_and(|own| !own.is_empty()) {
            return Err(ApiError::field("vllm_xargs", "and `ggro` are two ways to say the same; send one of them"));
        }
        let mut settings = MethodSettings { given, ..MethodSettings::default() };
        settings.take(Fields::of(flat, "vllm_xargs.ggro_"))?;
        settings.take(Fields::of(own.unwrap_or_default(), "ggro."))?;
        Ok(settings)
    }

    fn take(&mut self, mut fields: Fields) -> Result<(), ApiError> {
        let names = SIGNALS.iter().map(|signal| signal.name()).collect::<Vec<_>>().join(", ");
        let known = |value: &Value| value.as_str().filter(|name| signal(name).is_some()).map(str::to_string);
        let signal = fields.get("signal", &format!("one of {names}"), known)?;
        let entropy_threshold = fields.number("entropy_threshold", f64::MIN, f64::MAX)?;
        let steps = fields.count("num_refinement_steps", 1, MOST_CANDIDATES)?;
        let candidates = fields.count("max_candidates", 1, MOST_CANDIDATES)?;
        if let (Some(steps), Some(candidates)) = (steps, candidates)
            && steps != candidates
        {
            let message = format!("is {candidates}, and `num_refinement_steps`, another name for it, is {steps}");
            return Err(ApiError::field(&fields.name("max_candidates"), message));
        }
        let num_refinement_steps = candidates.or(steps);
        let nudge_top_k = fields.count("nudge_top_k", 1, MOST_TOP_K)?;
        let selection = |value: &Value| Selection::deserialize(value).ok();
        let nudge_selection = fields.get("nudge_selection", "\"greedy\" or \"sample\"", selection)?;
        let above_zero = |value: &Value| value.as_f64().filter(|&number| number > 0.0);
        let nudge_temperature = fields.get("nudge_temperature", "a number above 0", above_zero)?;
        let min_generated = fields.count("min_generated", 2, 1 << 20)?;
        let ways = PROPOSALS.map(Proposals::name).join(", ");
        let proposals = fields.get("proposals", &format!("one of {ways}"), |value| Proposals::of(value.as_str()?))?;
        let not_negative = |value: &Value| value.as_f64().filter(|&number| number >= 0.0);
        let logprob_weight = fields.get("logprob_weight", "a number, 0 or more", not_negative)?;
        let read = Given {
            max_new_tokens: None,
            signal,
            entropy_threshold,
            num_refinement_steps,
            nudge_top_k,
            nudge_temperature,
            nudge_selection,
            min_generated,
            proposals,
            logprob_weight,
        };
        self.parameters = read.or(std::mem::take(&mut self.parameters));
        self.check_list(&fields.name("nudge_top_k"))?;
        let layout = fields.get("prompt_layout", "\"chat\" or \"official\"", |value| value.as_str()?.parse().ok())?;
        self.layout = layout.unwrap_or(self.layout);
        // Some clients can only put strings and numbers into `vllm_xargs`.
        let switch = |value: &Value| match value {
            Value::Bool(on) => Some(*on),
            Value::Number(n) => n.as_u64().filter(|&n| n <= 1).map(|n| n == 1),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        self.trace = fields.get("trace", "true or false", switch)?.unwrap_or(self.trace);
        let drafting = |value: &Value| value.as_str()?.parse::<Drafting>().ok();
        self.draft = fields.get(DRAFT, "\"off\", \"ngram\" or \"model\"", drafting)?.or(self.draft);
        for name in ["nudge_weight", "scale_nudge_biases"] {
            if fields.take(name).is_some() {
                self.ignored.push(name);
            }
        }
        if let Some(unknown) = fields.unknown().first() {
            let name: String = unknown.chars().take(64).collect();
            let known = fields.known().join(", ");
            return Err(ApiError::field(&fields.name(&name), format!("is not a setting; there are {known}")));
        }
        Ok(())
    }

    /// Takes the proposals that the model's name stands for.
    ///
    /// # Errors
    /// The request asks for others, or tries more than a request may.
    pub fn take_proposals(&mut self, own: Proposals, model: &str) -> Result<(), ApiError> {
        if let Some(other) = self.parameters.proposals.filter(|&other| other != own) {
            let message = format!("is {:?}, and {model} has {:?}", other.name(), own.name());
            return Err(ApiError::field("ggro.proposals", message));
        }
        self.parameters.proposals = Some(own);
        self.check_list("ggro.nudge_top_k")
    }

    /// Whether the list is short enough: each of it is a candidate where all are tried.
    fn check_list(&self, field: &str) -> Result<(), ApiError> {
        let Given { proposals, nudge_top_k, .. } = &self.parameters;
        match nudge_top_k.filter(|&k| *proposals == Some(Proposals::All) && k > MOST_CANDIDATES) {
            Some(k) => {
                let message = format!("must be a whole number, 1 to {MOST_CANDIDATES}, where all are tried, not {k}");
                Err(ApiError::field(field, message))
            }
            None => Ok(()),
        }
    }

    /// Whether nudges are drawn, so that different seeds give different answers.
    pub fn draws(&self) -> bool {
        self.parameters.draws()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<MethodSettings, ApiError> {
        MethodSettings::read(&mut Fields::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn names_behind_the_colon() {
        assert_eq!(Alias::parse("ggro", 64), Some(Alias::Guided));
        assert_eq!(Alias::parse("ggro-safety", 64), Some(Alias::Preset(Published::Safety)));
        for proposals in PROPOSALS.into_iter().filter(|&proposals| proposals != Proposals::Gradient) {
            assert_eq!(Alias::parse(&format!("ggro-{}", proposals.name()), 1), Some(Alias::Control(proposals)));
        }
        assert_eq!(Alias::parse("bon-4", 64), Some(Alias::Best(4)));
        for none in ["", "bon-", "bon-0", "bon-65", "bon--1", "bon-+3", "bon-03", "ggro-", "ggro-gradient", "GGRO"] {
            assert_eq!(Alias::parse(none, 64), None, "{none}");
        }
        for name in Baseline::NAMES {
            assert_eq!(Alias::parse(name, 1), Some(Alias::Search(name)));
            let aimed = ["cards", "rejection-sampling"].contains(&name);
            assert_eq!(Alias::listed(64).contains(&format!(":{name}")), !aimed, "{name}");
            assert!(Alias::parse(&format!("{name}-8"), 64).is_none());
        }
        assert!(!Alias::listed(15).contains(&":speculative-rejection".to_string()));
        for listed in Alias::listed(64).iter().filter(|listed| !listed.is_empty()) {
            assert!(Alias::parse(&listed[1..], 64).is_some());
        }
    }

    #[test]
    fn parameters_of_a_search() {
        let read = |text: &str, alias: Alias| search(&mut Fields::parse(text.as_bytes()).unwrap(), alias, "demo:x", 64);
        let parameters = r#"{"method_params": {"n": 4}}"#;
        let soft = read(parameters, Alias::Search("soft-best-of-n")).unwrap().unwrap();
        assert_eq!(soft.texts(), (4, "n"));
        assert_eq!(read("{}", Alias::Guided).unwrap(), None);
        for (text, alias, part) in [
            (parameters, Alias::Plain, "`method_params` has no effect on demo:x: it is for the names that end in"),
            (parameters, Alias::Best(4), "`method_params` has no effect on demo:x"),
            (r#"{"method_params": {}}"#, Alias::Guided, "has no effect"),
            (r#"{"method_params": 3}"#, Alias::Search("args"), "`method_params` must be an object, not 3"),
            (
                parameters,
                Alias::Search("args"),
                "method_params: args: there is no parameter \"n\"; the parameters of args",
            ),
            ("{}", Alias::Search("cards"), "method_params: cards: target_reward must be given"),
            (
                r#"{"method_params": {"n": 65}}"#,
                Alias::Search("soft-best-of-n"),
                "65 texts by `n`, and this server takes 64",
            ),
        ] {
            let error = read(text, alias).unwrap_err();
            assert!(error.param.as_deref() == Some("method_params") && error.message.contains(part), "{error:?}");
        }
    }

    #[test]
    fn both_ways_to_say_it() {
        let nested = read(r#"{"ggro": {"entropy_threshold": 1.5, "num_refinement_steps": 3, "trace": true}}"#).unwrap();
        let flat = r#"{"vllm_xargs": {"ggro_entropy_threshold": 1.5, "ggro_num_refinement_steps": 3, "ggro_trace": "true",
            "other": 7}}"#;
        let flat = read(flat).unwrap();
        assert_eq!((flat.given, nested.given), (Some("vllm_xargs"), Some("ggro")));
        assert_eq!(MethodSettings { given: nested.given, ..flat }, nested);
        assert_eq!(read(r#"{"ggro": {}}"#).unwrap().given, Some("ggro"));
        assert_eq!(read(r#"{"vllm_xargs": {"other": 7}}"#).unwrap().given, None);
    }

    #[test]
    fn whether_tokens_are_guessed_asks_for_no_method() {
        for (text, draft, given) in [
            (r#"{"ggro": {"draft": "off"}}"#, Drafting::Off, None),
            (r#"{"vllm_xargs": {"ggro_draft": "ngram"}}"#, Drafting::Ngram, None),
            (r#"{"ggro": {"draft": "model", "trace": true}}"#, Drafting::Model, Some("ggro")),
            (r#"{"vllm_xargs": {"ggro_draft": "off", "ggro_trace": 1}}"#, Drafting::Off, Some("vllm_xargs")),
        ] {
            let settings = read(text).unwrap();
            assert_eq!((settings.draft, settings.given), (Some(draft), given), "{text}");
        }
        assert_eq!(read(r#"{"ggro": {}}"#).unwrap().draft, None);
    }

    #[test]
    fn a_name_and_a_request_may_not_contradict_each_other() {
        let taken = |text: &str, own| {
            let mut settings = read(text)?;
            settings.take_proposals(own, "demo:ggro-x").map(|()| settings.parameters.proposals)
        };
        assert_eq!(taken("{}", Proposals::All).unwrap(), Some(Proposals::All));
        assert_eq!(taken(r#"{"ggro": {"proposals": "random"}}"#, Proposals::Random).unwrap(), Some(Proposals::Random));
        let error = taken(r#"{"ggro": {"proposals": "random"}}"#, Proposals::All).unwrap_err();
        assert!(error.message.contains("demo:ggro-x has \"all\""), "{}", error.message);
        let error = taken(r#"{"ggro": {"nudge_top_k": 65}}"#, Proposals::All).unwrap_err();
        assert!(error.message.contains("1 to 64"), "{}", error.message);
    }

    #[test]
    fn settings_that_are_none() {
        for (text, param, part) in [
            (r#"{"ggro": {"entropy_treshold": 1}}"#, "ggro.entropy_treshold", "entropy_threshold"),
            (r#"{"ggro": 3}"#, "ggro", "an object"),
            (r#"{"ggro": {"num_refinement_steps": 0}}"#, "ggro.num_refinement_steps", "1 to 64"),
            (r#"{"ggro": {"draft": "always"}}"#, "ggro.draft", "\"off\", \"ngram\" or \"model\""),
            (r#"{"vllm_xargs": {"ggro_draft": true}}"#, "vllm_xargs.ggro_draft", "not true"),
            (r#"{"ggro": {"signal": "mood"}}"#, "ggro.signal", "varentropy"),
            (r#"{"ggro": {"proposals": "some"}}"#, "ggro.proposals", "shuffled-gradient"),
            (r#"{"ggro": {"proposals": "all", "nudge_top_k": 65}}"#, "ggro.nudge_top_k", "1 to 64"),
            (r#"{"ggro": {"logprob_weight": -1}}"#, "ggro.logprob_weight", "0 or more"),
            (r#"{"vllm_xargs": {"ggro_logprob_weight": "1"}}"#, "vllm_xargs.ggro_logprob_weight", "a number"),
            (r#"{"vllm_xargs": {"ggro_nudge_top_k": 1e9}}"#, "vllm_xargs.ggro_nudge_top_k", "1 to 1024"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.param.as_deref() == Some(param) && error.message.contains(part), "{error:?}");
        }
    }
}
