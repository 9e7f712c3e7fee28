//! The flags of `ggro generate`. Names are the official code's where it has one.

use super::models::{DeviceArgs, PairArgs, TemplateArgs};
use super::say;
use super::search::SearchArgs;
use crate::engine::{Drafting, Settings, SpeculationWidth};
use crate::method::entropy::SIGNALS;
use crate::method::{PROPOSALS, Proposals, Selection};
use crate::presets::Given;
use crate::text::PromptLayout;
use crate::{Error, Result};
use clap::ValueEnum;
use clap::builder::{BoolishValueParser, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use std::path::PathBuf;

/// Answer a prompt, steered by the reward model
///
/// Without PROMPT the prompt is read from standard input. The answer is printed to standard output segment by segment;
/// notes and a summary go to standard error.
///
/// A segment is made like this: the policy is decoded greedily until its next token is uncertain (--entropy-threshold). The
/// reward model scores the text, and its gradient at the segment's first token chooses, among the policy's most likely tokens
/// there (--nudge-top-k), another one for that place. The segment is decoded again from there and scored, and so on, up to
/// --num-refinement-steps candidates. The one with the highest reward is kept, and the next segment starts.
#[derive(Debug, clap::Args)]
pub(super) struct Generate {
    /// The user's message [default: read from standard input]
    #[arg(conflicts_with = "request")]
    pub prompt: Option<String>,

    #[command(flatten)]
    pub pair: PairArgs,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub text: TextArgs,

    #[command(flatten)]
    pub template: TemplateArgs,

    #[command(flatten)]
    pub method: MethodArgs,

    #[command(flatten)]
    pub search: SearchArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of the methods that sample. The others, ggro, greedy and args, say which of these they ignore.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling (for all methods but ggro, greedy and args)")]
pub(super) struct SamplingArgs {
    /// How many completions to sample; sample prints all of them, bon the best one [default: 1, with bon 8]
    ///
    /// For --method sample and bon alone: the others have parameters of their own (--method-param).
    #[arg(long, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=128))]
    pub n: Option<usize>,

    /// Temperature that divides the logits; 0 is greedy [default: 1]
    #[arg(long, value_name = "T", value_parser = finite,
          allow_negative_numbers = true)]
    pub temperature: Option<f64>,

    /// Sample from the K most likely tokens only; 0 means all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,

    /// Sample from the most likely tokens whose probabilities sum to P
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = finite,
          allow_negative_numbers = true)]
    pub top_p: f64,

    /// Sample only from tokens with at least P times the probability of the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = finite,
          allow_negative_numbers = true)]
    pub min_p: f64,

    /// Penalty on tokens of the prompt and the completion: divides positive logits, multiplies negative ones
    #[arg(long, value_name = "X", default_value_t = 1.0,
          value_parser = finite, allow_negative_numbers = true)]
    pub repetition_penalty: f64,

    /// Penalty subtracted from the logits of tokens that are in the completion
    #[arg(long, value_name = "X", default_value_t = 0.0,
          value_parser = finite, allow_negative_numbers = true)]
    pub presence_penalty: f64,

    /// Penalty subtracted from a token's logit for each time it is in the completion
    #[arg(long, value_name = "X", default_value_t = 0.0,
          value_parser = finite, allow_negative_numbers = true)]
    pub frequency_penalty: f64,

    /// A string that ends a completion and is not printed; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineArgs {
    /// How many candidates of a segment to compute in parallel: auto, off, or a number [default: auto]
    ///
    /// Candidates that the search may need are decoded and scored ahead of it, in the same batches. The answer is the same
    /// to the last bit; work that was not needed is reported as speculative. auto: on a GPU as many as one reading of the
    /// weights serves, on a CPU none, because decoding is compute-bound there.
    #[arg(long, value_name = "WIDTH", default_value = "auto", hide_default_value = true)]
    pub speculation: SpeculationWidth,

    /// Do not decode the next two segments behind candidates that may win while others are decoded and scored
    #[arg(long)]
    pub no_run_ahead: bool,

    /// Whether to guess tokens and verify several of them in one step: off, ngram, or a small model that guesses [default: off]
    ///
    /// ngram: a text is guessed to go on as other candidates of the segment, the prompt or the answer did behind the
    /// same words. MODEL, a directory or a name as for --policy: so, and by this language model where it is likelier to
    /// be right. It must have the policy's tokenizer, and should have few weights beside the policy's.
    /// The answer is the same to the last bit; guesses that were wrong are reported as speculative work.
    /// How many tokens are guessed follows from how often guesses were right and from what a row and a step of MODEL
    /// cost; for a small policy on a CPU, none are.
    #[arg(long, value_name = "off|ngram|MODEL", default_value = "off", hide_default_value = true)]
    pub draft: Draft,
}

/// See [`EngineArgs::draft`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Draft {
    Off,
    Ngram,
    Model(PathBuf),
}

impl std::str::FromStr for Draft {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Draft, String> {
        match text {
            "off" => Ok(Draft::Off),
            "ngram" => Ok(Draft::Ngram),
            "" => Err("expected off, ngram, or a model's directory or name".to_string()),
            model => Ok(Draft::Model(PathBuf::from(model))),
        }
    }
}

impl Draft {
    /// The engine's setting.
    pub(super) fn drafting(&self) -> Drafting {
        match self {
            Draft::Off => Drafting::Off,
            Draft::Ngram => Drafting::Ngram,
            Draft::Model(_) => Drafting::Model,
        }
    }

    /// The model that guesses, if there is one.
    pub(super) fn model(&self) -> Option<&PathBuf> {
        match self {
            Draft::Off | Draft::Ngram => None,
            Draft::Model(path) => Some(path),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Prompt")]
pub(super) struct TextArgs {
    /// System message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "request")]
    pub system: Option<String>,

    /// Start of the answer; the policy continues from it
    ///
    /// It follows the assistant header; the reward model sees it, and it is printed with the answer.
    #[arg(long, value_name = "TEXT", conflicts_with = "request")]
    pub prefill: Option<String>,

    /// How the prompt is laid out
    ///
    /// chat: the template with its generation prompt, as chat servers do. official: without it, as the official code does;
    /// the policy writes the assistant header itself, which counts against the budget and is not printed, and the first nudge
    /// token is forced at offset 4, whatever the header is. With --prefill both are the same.
    #[arg(long, value_name = "LAYOUT", default_value = "chat",
          value_parser = layout())]
    pub prompt_layout: PromptLayout,

    /// Decode the text to words and tokenise it again between segments, as the official code does; for reproduction only
    #[arg(long)]
    pub retokenize: bool,

    /// A JSON request in place of a prompt: `prompt_ids`, `options` and, optionally, `uniforms_used`
    ///
    /// These are fields of a trace, so a file written by --trace can be decoded again. Options that the file leaves out
    /// come from the flags; options in the file win over the flags.
    #[arg(long, value_name = "FILE")]
    pub request: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Method")]
pub(super) struct MethodArgs {
    /// ggro, greedy, sample, bon (the best of N samples), or one of those that GGRO is compared with (see --help) [default: ggro,
    /// or greedy without a reward model]
    ///
    /// greedy is plain greedy decoding of the policy; with a reward model it has one candidate per segment, which is scored.
    /// Only greedy and sample do without a reward model. docs/methods.md says what each does and what it costs.
    #[arg(long, value_name = "METHOD", value_enum)]
    method: Option<Method>,

    /// Budget of new tokens [default: 200 for the demo pair, else 128]
    ///
    /// 128 is the official code's preset for dialogue; its presets for reasoning tasks use 1024. Without this flag, the budget
    /// is cut to the room in the context.
    #[arg(long, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_new_tokens: Option<usize>,

    /// Candidates per segment, the unforced one included [default: 8]
    ///
    /// The official code counts in the same way. 1 is greedy decoding. More candidates raise the reward, with
    /// quickly falling returns; each costs one decoding and one gradient of the segment. The search ends early when the
    /// gradient leads back to a candidate already tried.
    #[arg(long, value_name = "S",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub num_refinement_steps: Option<usize>,

    /// Uncertainty at which a segment ends [default: 3.25 for the demo pair, else 1.5; see --signal]
    ///
    /// In nats for entropy. A lower threshold gives shorter segments, more places to steer, and more work. The official
    /// presets are 1.5 for dialogue and 2.0 for reasoning tasks.
    #[arg(long, value_name = "TAU", value_parser = finite,
          allow_negative_numbers = true)]
    pub entropy_threshold: Option<f64>,

    /// Which statistic is compared with the threshold: entropy, margin, max-probability or varentropy [default: entropy]
    ///
    /// entropy in nats; margin: minus the gap between the two largest logits (default threshold -0.5); max-probability: one
    /// minus the largest probability (0.5); varentropy: variance of the surprise (3.0). Only entropy is the published method.
    #[arg(long, value_name = "SIGNAL", hide_possible_values = true,
          value_parser = PossibleValuesParser::new(SIGNALS.iter().map(|s| s.name())))]
    pub signal: Option<String>,

    /// How many of the policy's most likely tokens the nudge is chosen from [default: 25]
    ///
    /// A larger number lets the reward model choose tokens that the policy finds less likely.
    #[arg(long, value_name = "K",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub nudge_top_k: Option<usize>,

    /// How to choose the nudge token: greedy (largest first-order score) or sample (from softmax(score / temperature))
    #[arg(long, value_name = "HOW", value_enum,
          default_value_t = NudgeSelection::Greedy)]
    pub nudge_selection: NudgeSelection,

    /// Temperature of --nudge-selection sample [default: 0.1]; has no effect on greedy
    #[arg(long, value_name = "T",
          value_parser = positive, allow_negative_numbers = true)]
    pub nudge_temperature: Option<f64>,

    /// Where the tokens to try at the slot come from: gradient, random, shuffled-gradient or all [default: gradient]
    ///
    /// gradient is the method; the others are controls, to compare it with. random draws one of the policy's most likely tokens
    /// (--nudge-top-k) and takes no gradient. shuffled-gradient deals the gradient's scores out to the wrong tokens. all tries
    /// every one of these tokens, takes no gradient, and is not bounded by --num-refinement-steps, of which 1 is greedy decoding all the same.
    #[arg(long, value_name = "WAY", hide_possible_values = true, value_parser = proposals())]
    pub proposals: Option<Proposals>,

    /// Weight of a token's log-probability in its score, added to the gradient's product [default: 0]
    ///
    /// The policy's log-probability of the token at the slot, in nats. A larger weight keeps nudges likely. 0 is the published method.
    /// Has no effect on --proposals random and all.
    #[arg(long, value_name = "W",
          value_parser = not_negative, allow_negative_numbers = true)]
    pub logprob_weight: Option<f64>,

    /// Seed of what is drawn: --nudge-selection sample, --proposals random and shuffled-gradient, --method sample and bon
    ///
    /// The same seed gives the same answer.
    #[arg(long, value_name = "N", default_value = "0", value_parser = seed)]
    pub seed: u64,

    /// Accepted for compatibility with the official code; has no effect
    ///
    /// The official code scales the bias that imposes the nudge token on the policy's logits after the token was chosen. Here the
    /// chosen token is forced outright, so no weight can change which one it is.
    #[arg(long, value_name = "W", value_parser = finite,
          allow_negative_numbers = true)]
    pub nudge_weight: Option<f64>,

    /// Accepted for compatibility with the official code; has no effect (see --nudge-weight)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub scale_nudge_biases: Option<bool>,

    /// Skip the plain greedy answer that the summary compares with
    #[arg(long)]
    pub no_baseline: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Print one JSON object instead of text: answer, rewards, counters, time
    #[arg(long)]
    pub json: bool,

    /// Write every decision to FILE, as JSON in the schema of the golden traces
    ///
    /// The gradient of each segment's last candidate is computed and recorded too, although no decision needs it.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// When to colour nudged tokens (green) and uncertain ones (yellow)
    ///
    /// auto: on a terminal, unless NO_COLOR is set and not empty, or TERM is dumb.
    #[arg(long, value_name = "WHEN", value_enum,
          default_value_t = Color::Auto)]
    pub color: Color,
}

/// See [`MethodArgs::method`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Method {
    /// Gradient-guided reward optimisation (arXiv 2606.09635)
    Ggro,
    /// GGRO with --proposals random: nudge tokens are drawn, without a gradient
    GgroRandom,
    /// GGRO with --proposals shuffled-gradient: each product of the gradient belongs to another token
    GgroShuffledGradient,
    /// GGRO with --proposals all: every token of the list is tried, without a gradient
    GgroAll,
    /// Plain greedy decoding
    Greedy,
    /// Plain sampling
    Sample,
    /// Best-of-N: of several samples the one with the largest reward
    Bon,
    /// Whole answers are sampled until one is accepted by its reward (the acceptance of arXiv 2406.16306)
    RejectionSampling,
    /// CARDS: segments are sampled until one is accepted by its reward (arXiv 2406.16306)
    Cards,
    /// Best-of-N that drops the worse samples on the way (arXiv 2410.20290)
    SpeculativeRejection,
    /// ARGS: each token by its logit and the reward of the text with it (arXiv 2402.01694)
    Args,
    /// Controlled Decoding's blocks: the best of K, one after the other (arXiv 2310.17022)
    Blockwise,
    /// Beam search over sampled chunks, by reward (arXiv 2405.19262)
    Beam,
    /// One of N samples, drawn by softmax of their rewards (described in arXiv 2506.19248)
    SoftBestOfN,
    /// The best of a Poisson number of samples (arXiv 2506.19248)
    BestOfPoisson,
}

impl Method {
    /// Its name on the command line.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// The proposals that the name stands for, of a control of GGRO.
    fn control(self) -> Option<Proposals> {
        Proposals::of_method(&self.name())
    }
}

/// See [`MethodArgs::nudge_selection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum NudgeSelection {
    Greedy,
    Sample,
}

impl EngineArgs {
    /// The engine's settings for so many requests at the same time.
    pub(super) fn settings(&self, max_requests: usize) -> Settings {
        Settings { max_requests, ..self.over(Settings::default()) }
    }

    /// The same for one request.
    pub(super) fn single(&self) -> Settings {
        self.over(Settings::single(self.speculation))
    }

    fn over(&self, settings: Settings) -> Settings {
        Settings {
            speculation: self.speculation,
            run_ahead: !self.no_run_ahead,
            drafting: self.draft.drafting(),
            ..settings
        }
    }
}

impl MethodArgs {
    /// The method: the one that is asked for, else ggro, or greedy where there is no reward model. A control of GGRO is GGRO
    /// with the proposals of [`given`](Self::given).
    ///
    /// # Errors
    /// The method needs a model that is not given, or other proposals than those that are given.
    pub(super) fn method(&self, pair: &PairArgs) -> Result<Method> {
        pair.needs_policy("an answer")?;
        match self.method {
            None if pair.has_reward() => return Ok(Method::Ggro),
            None => say("note: the answer is decoded greedily: no reward model is given to steer it (--reward MODEL)"),
            Some(Method::Greedy | Method::Sample) => {}
            Some(method) => pair.needs_reward(&format!("--method {}", method.name()))?,
        }
        let method = self.method.unwrap_or(Method::Greedy);
        match (method.control(), self.proposals) {
            (None, _) => Ok(method),
            (Some(own), Some(other)) if other != own => Err(Error::invalid(format!(
                "--method {} is GGRO with --proposals {}, not with --proposals {}",
                method.name(),
                own.name(),
                other.name()
            ))),
            (Some(_), _) => Ok(Method::Ggro),
        }
    }

    /// The parameters that the flags give.
    pub(super) fn given(&self) -> Given {
        Given {
            max_new_tokens: self.max_new_tokens,
            signal: self.signal.clone(),
            entropy_threshold: self.entropy_threshold,
            num_refinement_steps: self.num_refinement_steps,
            nudge_top_k: self.nudge_top_k,
            nudge_temperature: self.nudge_temperature,
            nudge_selection: Some(match self.nudge_selection {
                NudgeSelection::Greedy => Selection::Greedy,
                NudgeSelection::Sample => Selection::Sample,
            }),
            min_generated: None,
            proposals: self.proposals.or(self.method.and_then(Method::control)),
            logprob_weight: self.logprob_weight,
        }
    }
}

/// Tokens that fit behind a prompt, if at least one does and all that `--max-new-tokens` asks for.
pub(super) fn room(asked: Option<(usize, &str)>, prompt: usize, context: usize) -> Result<usize> {
    let room = context.saturating_sub(prompt);
    match asked.filter(|&(asked, _)| asked > room) {
        Some((asked, name)) => Err(Error::invalid(format!(
            "{name} {asked}: the context of {context} tokens has room for {room} after a prompt of {prompt}"
        ))),
        None => Ok(room),
    }
}

/// See [`OutputArgs::color`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    Auto,
    Always,
    Never,
}

/// Reads `--prompt-layout`.
pub(super) fn layout() -> impl TypedValueParser<Value = PromptLayout> {
    PossibleValuesParser::new(PromptLayout::ALL.map(PromptLayout::name)).try_map(|name| name.parse::<PromptLayout>())
}

/// Reads `--proposals`.
fn proposals() -> impl TypedValueParser<Value = Proposals> {
    PossibleValuesParser::new(PROPOSALS.map(Proposals::name))
        .try_map(|name| Proposals::of(&name).ok_or("expected one of the names"))
}

/// Reads a seed: 64 bits, with or without a sign, as the server reads one.
pub(super) fn seed(text: &str) -> std::result::Result<u64, String> {
    let signed = || text.parse::<i64>().map(i64::cast_unsigned);
    text.parse::<u64>().or_else(|_| signed()).map_err(|_| "expected a whole number of 64 bits".to_string())
}

fn finite(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err("expected a finite number".to_string()),
    }
}

fn not_negative(text: &str) -> std::result::Result<f64, String> {
    finite(text).and_then(|x| if x >= 0.0 { Ok(x) } else { Err("must be at least 0".to_string()) })
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    finite(text).and_then(|x| if x > 0.0 { Ok(x) } else { Err("must be above 0".to_string()) })
}
