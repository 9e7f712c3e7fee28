//! The flags that say which models are opened, where and how, with the progress bars and notes of opening.

use super::say;
use super::words::{Counting, is_dumb, visible};
use crate::batch::output::{self, MadeOn};
use crate::files::chat::{Date, check_variable};
use crate::files::checkpoint::Files;
use crate::files::demo;
use crate::files::pair::{Pair, RewardModel};
use crate::model::Role;
use crate::presets::Preset;
use crate::profile::{self, Level, Steps, Watch};
use crate::runtime::family::{Chosen, FamilySpec};
use crate::runtime::launches::Launches;
use crate::runtime::{self, Arithmetic, Device, DeviceSpec, NoCuda, OnCuda, OpenOptions, Opened, Opening, Unusable};
use crate::{Error, Result};
use clap::builder::{BoolishValueParser, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Map, Value};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A pair, or one model of it.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Models")]
pub(super) struct PairArgs {
    /// The policy (the language model that writes): a directory, or a Hugging Face name, org/name[@revision] [default: the embedded demo pair]
    ///
    /// A named model is taken from the Hugging Face cache, or downloaded into it (HF_HOME, HF_TOKEN, HF_ENDPOINT,
    /// HF_HUB_OFFLINE). A directory holds the same files as a repository on the hub.
    /// Llama 3.x, Mistral, Qwen2, Qwen2.5 or Qwen3: config.json, model.safetensors or shards with their index,
    /// tokenizer.json, tokenizer_config.json and, if present, generation_config.json and chat_template.jinja.
    /// Without --reward this model is used alone: it decodes greedily or samples, and nothing is scored.
    #[arg(long, value_name = "MODEL")]
    pub policy: Option<PathBuf>,

    /// The reward model, a *ForSequenceClassification with one label: a directory or a name [default: the embedded demo pair]
    ///
    /// It must have the policy's tokenizer. Without --policy this model is used alone: it scores texts (ggro score).
    #[arg(long, value_name = "MODEL")]
    pub reward: Option<PathBuf>,

    /// The tensor of the reward model that is its score head, where it is not the usual one, e.g. v_head.summary.weight
    ///
    /// One row as wide as the model; the tensor of the same name that ends in bias is added if there is one. With it, any
    /// model on a decoder of these families is a reward model, whatever its class is called.
    #[arg(long, value_name = "TENSOR", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub reward_head: Option<String>,

    /// Longest sequence in tokens, prompt and answer together [default: the models' context, the smaller one of a pair]
    ///
    /// A smaller number needs less memory for keys and values; see `ggro info`.
    #[arg(long, value_name = "TOKENS",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_model_len: Option<usize>,
}

impl PairArgs {
    /// Whether the pair is the embedded one.
    pub(super) fn is_demo(&self) -> bool {
        self.policy.is_none() && self.reward.is_none()
    }

    /// The directories that are given.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.policy.iter().chain(&self.reward)
    }

    /// Whether there is a reward model.
    pub(super) fn has_reward(&self) -> bool {
        self.reward.is_some() || self.is_demo()
    }

    /// Checks that there is a policy, before anything is opened.
    ///
    /// # Errors
    /// A reward model is given alone.
    pub(super) fn needs_policy(&self, what: &str) -> Result<()> {
        missing("policy", self.policy.is_none() && self.reward.is_some(), what)
    }

    /// Checks that there is a reward model, before anything is opened.
    ///
    /// # Errors
    /// A policy is given alone.
    pub(super) fn needs_reward(&self, what: &str) -> Result<()> {
        missing("reward", !self.has_reward(), what)
    }

    /// The parameters that suit the pair.
    pub(super) fn preset(&self) -> Preset {
        if self.is_demo() { Preset::DEMO } else { Preset::DIALOGUE }
    }

    /// Reads the pair, or the one model that is given.
    pub(super) fn load(&self) -> Result<Arc<Pair>> {
        let head = self.head()?;
        let pair = match (&self.policy, &self.reward) {
            (None, None) => Pair::load(&demo::policy(), &demo::reward())?,
            (Some(policy), Some(reward)) => Pair::load_with_head(&files(policy)?, &files(reward)?, head)?,
            (Some(policy), None) => Pair::policy_only(&files(policy)?)?,
            (None, Some(reward)) => Pair::reward_only_with_head(&files(reward)?, head)?,
        };
        self.within_context(noted(pair))
    }

    /// Reads the reward model, and of a policy beside it no more than its chat template.
    pub(super) fn load_reward(&self) -> Result<Arc<Pair>> {
        self.needs_reward("a reward")?;
        let head = self.head()?;
        let pair = match (&self.policy, &self.reward) {
            (Some(policy), Some(reward)) => {
                let pair = Pair::load_with_head(&files(policy)?, &files(reward)?, head)?;
                let Pair { policy, reward, tokenizer, notes, longest, .. } = pair;
                let reward = reward.map(|reward| match policy {
                    Some(policy) => RewardModel { chat: policy.chat, special_tokens: policy.special_tokens, ..reward },
                    None => reward,
                });
                Pair { policy: None, reward, draft: None, tokenizer, notes, longest }
            }
            (_, Some(reward)) => Pair::reward_only_with_head(&files(reward)?, head)?,
            (_, None) => Pair::reward_only(&demo::reward())?,
        };
        self.within_context(noted(pair))
    }

    /// Reads the model that guesses for a pair that nobody else has yet, if there is one.
    ///
    /// # Errors
    /// As [`Pair::add_draft`].
    pub(super) fn add_draft(pair: &mut Arc<Pair>, draft: Option<&PathBuf>) -> Result<()> {
        let Some(path) = draft else { return Ok(()) };
        let Some(pair) = Arc::get_mut(pair) else {
            return Err(Error::Backend("the draft model is read too late".to_string()));
        };
        let named = |error: Error| error.within("--draft");
        let said = pair.notes.len();
        pair.add_draft(&files(path).map_err(named)?).map_err(named)?;
        pair.notes.iter().skip(said).for_each(|note| say(&format!("note: {note}")));
        Ok(())
    }

    /// The name of the reward model's head, if it is given.
    fn head(&self) -> Result<Option<&str>> {
        match (&self.reward_head, &self.reward) {
            (Some(_), None) => Err(Error::invalid("--reward-head names a tensor of --reward, which is not given")),
            (head, _) => Ok(head.as_deref()),
        }
    }

    /// Checks that --max-model-len is within what the models were made for.
    fn within_context(&self, mut pair: Pair) -> Result<Arc<Pair>> {
        let context = runtime::context(&pair);
        pair.longest = self.context(&pair);
        match self.max_model_len.filter(|&len| len > context) {
            Some(len) => {
                Err(Error::invalid(format!("--max-model-len {len} is beyond the models' context of {context} tokens")))
            }
            None => Ok(Arc::new(pair)),
        }
    }

    /// The longest sequence, in tokens.
    pub(super) fn context(&self, pair: &Pair) -> usize {
        self.max_model_len.unwrap_or(runtime::context(pair))
    }

    /// The names of policy and reward model in reports; `None` for one that is not there.
    pub(super) fn names(&self) -> [Option<String>; 2] {
        let demo = self.is_demo().then(|| "demo".to_string());
        [&self.policy, &self.reward].map(|path| path.as_ref().map(|path| path.display().to_string()).or(demo.clone()))
    }
}

/// How conversations are laid out.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Chat template")]
pub(super) struct TemplateArgs {
    /// A chat template in Jinja, in place of the model's own
    ///
    /// The model's own is its chat_template.jinja, or `chat_template` in its tokenizer_config.json. Without any, a prompt is
    /// used as it is, behind the beginning-of-sequence token.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Variables of the chat template, as a JSON object, e.g. '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", value_parser = variables)]
    pub chat_template_kwargs: Option<Variables>,

    /// The day that a chat template writes as today's, e.g. 2026-11-29 [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<Date>,
}

/// Variables of a chat template by their names.
pub(super) type Variables = Map<String, Value>;

fn variables(text: &str) -> std::result::Result<Variables, String> {
    let variables: Variables = serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))?;
    let checked = variables.iter().try_for_each(|(name, value)| check_variable(name, value));
    checked.map(|()| variables).map_err(|e| e.to_string())
}

impl TemplateArgs {
    /// Sets up the chat template of a pair that nobody else has yet.
    ///
    /// # Errors
    /// The file is not readable, or the template does not parse; or there are variables, and no template that has them.
    pub(super) fn set_up(&self, pair: &mut Arc<Pair>) -> Result<()> {
        let Some(pair) = Arc::get_mut(pair) else {
            return Err(Error::Backend("the chat template is set up too late".to_string()));
        };
        if let Some(path) = &self.chat_template {
            pair.use_chat_template(path)?;
        }
        match pair.chat_mut() {
            Some(chat) => {
                chat.set_variables(self.chat_template_kwargs.clone().unwrap_or_default())?;
                self.date.into_iter().for_each(|date| chat.pin_date(date));
                Ok(())
            }
            None if self.chat_template_kwargs.is_some() => Err(Error::invalid(
                "--chat-template-kwargs: the model has no chat template that would have these variables",
            )),
            None => Ok(()),
        }
    }
}

impl TemplateArgs {
    /// Takes the date that the rows of a file were made with, or else today's, so that all of its prompts have the same one. Says
    /// whether it is to be recorded: rows of versions that had no date stay without one.
    ///
    /// # Errors
    /// The file's configuration cannot be read.
    pub(super) fn pin(&mut self, output: &Path) -> Result<bool> {
        let before = output::config(output)?;
        let recorded = match &before {
            Some(config) => config.get("date").and_then(Value::as_str).and_then(|date| date.parse().ok()),
            None => None,
        };
        let given = self.date.is_some();
        self.date = self.date.or(recorded).or_else(|| Some(Date::today()));
        Ok(given || recorded.is_some() || before.is_none())
    }

    /// Writes the date, and what else was given, into the configuration of a file of rows.
    pub(super) fn record(&self, pair: &Pair, date: bool, config: &mut Map<String, Value>) {
        if let Some(date) = self.date.filter(|_| date) {
            config.insert("date".to_string(), Value::from(date.to_string()));
        }
        // The text itself: a file may be changed between two runs.
        if let Some(chat) = pair.chat().filter(|_| self.chat_template.is_some()) {
            let sources: Vec<&str> = chat.sources().map(|(_, source)| source).collect();
            config.insert("chat_template".to_string(), Value::from(sources.concat()));
        }
        if let Some(variables) = &self.chat_template_kwargs {
            config.insert("chat_template_kwargs".to_string(), Value::from(variables.clone()));
        }
    }
}

/// Says that there is no chat template, where a prompt is therefore used as it is.
pub(super) fn note_without_template(pair: &Pair) {
    if pair.chat().is_none() {
        say(
            "note: the model has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json): \
             prompts are used as they are; --chat-template FILE gives one",
        );
    }
}

fn missing(model: &'static str, is_missing: bool, what: &str) -> Result<()> {
    let name = if model == "policy" { "policy" } else { "reward model" };
    match is_missing {
        true => Err(Error::MissingModel { model, message: format!("{what} needs a {name}, and none is given") }),
        false => Ok(()),
    }
}

/// The files of a directory, or of a model by name, with a bar while they are downloaded.
pub(super) fn files(path: &Path) -> Result<Files> {
    let bar = bar(None, "{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    let found = runtime::find(path, &mut |downloaded| {
        if bar.message() != downloaded.file {
            bar.set_message(visible(downloaded.file).into_owned());
            bar.reset();
        }
        bar.set_length(downloaded.size.unwrap_or(downloaded.bytes));
        bar.set_position(downloaded.bytes);
    });
    bar.finish_and_clear();
    let (files, note) = found?;
    if let Some(note) = note {
        say(&format!("note: {note}"));
    }
    Ok(files)
}

/// Says what was noticed while a pair was read.
pub(super) fn noted(pair: Pair) -> Pair {
    pair.notes.iter().for_each(|note| say(&format!("note: {note}")));
    pair
}

/// Reads a pair of directories, or of models by name.
#[cfg(feature = "lab")]
pub(super) fn load(policy: &Path, reward: &Path) -> Result<Pair> {
    Ok(noted(Pair::load(&files(policy)?, &files(reward)?)?))
}

/// A line on standard error that says how many answers (or other things) there are of how many, as far as the terminal is wide;
/// it is seen on a terminal only. `before` were there when it began.
pub(super) fn counting(all: usize, before: usize, noun: &'static str) -> Count {
    let remark = Arc::new(Mutex::new(String::new()));
    let (shown, number) = (remark.clone(), |x: u64| usize::try_from(x).unwrap_or(usize::MAX));
    let line = move |state: &ProgressState, out: &mut dyn Write| {
        let width = terminal_size::terminal_size_of(std::io::stderr()).map_or(80, |(width, _)| usize::from(width.0));
        let remark = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, elapsed) = (number(state.pos()), state.elapsed());
        let counting = Counting { noun, done, all, before, elapsed, remark: &remark };
        // A line as wide as the terminal would wrap on some.
        let _ = out.write_str(&counting.line(width.saturating_sub(1)));
    };
    let style = ProgressStyle::with_template("{line}").unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(all as u64), target()).with_style(style.with_key("line", line));
    let bar = bar.with_position(before as u64);
    bar.tick();
    Count { bar, remark }
}

/// See [`counting`].
pub(super) struct Count {
    pub bar: ProgressBar,
    remark: Arc<Mutex<String>>,
}

impl Count {
    /// What stands at the end of the line.
    pub(super) fn remark(&self, text: String) {
        *self.remark.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Lets whoever interrupts the command read that nothing is lost: what is done is in `output`.
    #[cfg(feature = "server")]
    pub(super) fn goes_on(&self, output: &Path) {
        // Of a command that counts several times the last line is the one to be cleared, and one thread is enough.
        static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);
        static HEARS: std::sync::Once = std::sync::Once::new();
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.bar.clone());
        let output = output.display().to_string();
        let hear = move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            if runtime.block_on(async { tokio::signal::ctrl_c().await }).is_ok() {
                if let Some(bar) = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    bar.finish_and_clear();
                }
                // The first word counts: an error of the clean-up is dropped.
                let _ = profile::finish();
                say(&format!("interrupted: what is done is in {output}, and the same command goes on from there"));
                // As a shell writes the end by this signal. A half-written row is cut off by the next run.
                std::process::exit(130);
            }
        };
        HEARS.call_once(|| drop(std::thread::spawn(hear)));
    }

    /// Without the server there is nobody who hears signals.
    #[cfg(not(feature = "server"))]
    pub(super) fn goes_on(&self, _: &Path) {}
}

/// Standard error, if it is a terminal that can take a line back.
fn target() -> ProgressDrawTarget {
    if is_dumb() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
}

/// A progress bar on standard error, which is seen on a terminal only.
pub(super) fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(length, target());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// How much of a device.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(super) struct MemoryArgs {
    /// Largest share of a CUDA device's memory to use, counting other programs' use
    ///
    /// Weights and workspace come first; keys and values get the rest, up to what sequences of --max-model-len can use.
    #[arg(long, value_name = "SHARE", default_value = "0.9",
          value_parser = share, allow_negative_numbers = true)]
    pub gpu_memory_utilization: f64,

    /// Longest segment that a CUDA device can differentiate, in tokens
    ///
    /// Its backward pass keeps what the forward pass of that many tokens computed; `ggro info` says how much that takes.
    #[arg(long, value_name = "TOKENS", default_value_t = 1024,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub gradient_tokens: usize,
}

/// What is shown of what is going on.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Profiling (docs/profiling.md)")]
pub(super) struct ProfileArgs {
    /// Emit NVTX ranges for Nsight, in the domain ggro: off, 1 (phases), 2 (layers too)
    #[arg(long, value_name = "LEVEL", default_value = "off", hide_default_value = true)]
    pub nvtx: Level,

    /// Start a waiting profiler at the FIRST pass of a model and stop it after the LAST, counted from 1
    #[arg(long, value_name = "FIRST-LAST")]
    pub profile_steps: Option<Steps>,

    /// Write a trace of the scheduler's and the models' phases to FILE, for Perfetto
    #[arg(long, value_name = "FILE")]
    pub trace_events: Option<PathBuf>,
}

impl ProfileArgs {
    /// The profiler's settings.
    pub(super) fn watch(&self) -> Watch {
        Watch { nvtx: self.nvtx, steps: self.profile_steps, trace: self.trace_events.clone(), on_request: false }
    }
}

/// The device and its arithmetic.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceArgs {
    /// Device: auto, cpu, cuda or cuda:N
    ///
    /// auto takes the first CUDA device, or the CPU if there is none, and prints which one it took.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceSpec,

    /// Arithmetic: auto, f32, bf16 or f16
    ///
    /// The CPU computes in f32 from the stored weights of any type, and accepts only auto and f32. CUDA stores
    /// weights, activations, keys and values in 16 bits and accumulates in f32; auto is the checkpoint's type, and bf16 for
    /// f32 weights that bf16 holds exactly. With bf16 or f16, other weights are rounded.
    #[arg(long, value_name = "TYPE", default_value = "auto",
          value_parser = arithmetic())]
    pub dtype: Arithmetic,

    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Launch CUDA kernels one by one instead of with CUDA graphs
    ///
    /// The results are bit-identical; it is slower, and easier to read in a profiler.
    #[arg(long)]
    pub enforce_eager: bool,

    /// Let CUDA kernels begin before those before them have ended, on Hopper: the default; =false turns it off
    ///
    /// A product asks for its weights while the kernel before it ends. The results are bit-identical. The first time a device is used,
    /// chains of kernels are run both ways; if a bit differs, kernels run one after the other, and each command says so. With
    /// --no-self-check what is remembered decides, or this flag.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub dependent_launches: Option<bool>,

    /// Use a CUDA device without its self-check, or in spite of it
    ///
    /// The first time a device is used, with this driver and this ggro, its kernels are run on small problems with known
    /// results. If one differs, auto takes the CPU, and cuda is an error.
    #[arg(long)]
    pub no_self_check: bool,

    /// CUDA kernels of products with weights: auto, sm80, sm90 or sm90-wide; for comparison
    ///
    /// sm80 are those of every card, sm90 those of Hopper alone. auto takes sm90 on a Hopper where their own self-check has
    /// passed, else sm80, and says why. sm90 runs them whatever the self-check found. The last bits of results differ between
    /// the two, and so may answers.
    #[arg(long, value_name = "FAMILY", default_value = "auto", value_parser = family())]
    pub kernels: FamilySpec,

    /// Threads of the CPU backend [default: all cores]; results do not depend on it
    #[arg(long, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub threads: Option<usize>,

    #[command(flatten)]
    pub profile: ProfileArgs,
}

impl MemoryArgs {
    /// The flags as options; the others keep their defaults.
    pub(super) fn options(self, max_model_len: Option<usize>) -> OpenOptions {
        OpenOptions {
            max_model_len,
            memory_utilization: self.gpu_memory_utilization,
            gradient_tokens: self.gradient_tokens,
            ..OpenOptions::default()
        }
    }
}

impl DeviceArgs {
    fn options(&self, max_model_len: Option<usize>) -> OpenOptions {
        OpenOptions {
            device: self.device,
            arithmetic: self.dtype,
            eager: self.enforce_eager,
            dependent_launches: self.dependent_launches,
            threads: self.threads,
            self_check: !self.no_self_check,
            kernels: self.kernels,
            ..self.memory.options(max_model_len)
        }
    }

    /// Finds the device and says which one `auto` took.
    pub(super) fn find(&self) -> Result<Device> {
        profile::start(&self.profile.watch())?;
        let device = self.options(None).find().map_err(|unusable| {
            Error::invalid(match unusable {
                Unusable::Cuda(_, why) => {
                    format!("--device {}: {}; or use --device cpu", self.device, with_flag(&why, &why.to_string()))
                }
                Unusable::Arithmetic(_) => format!("--dtype {unusable}"),
                Unusable::Kernels(..) => format!("--kernels {unusable}"),
            })
        })?;
        if let Some(why) = device.no_cuda() {
            // In short, because it stands above every answer. `ggro info` says what would help.
            let words = match why {
                // This one is not how the machine is, but a reason to look after it.
                NoCuda::SelfCheck(_) | NoCuda::Lost(_) | NoCuda::LostLaunching(_) => why.to_string(),
                _ => with_flag(why, why.brief()),
            };
            say(&format!("device: cpu ({words})"));
        }
        if let Some(check) = device.self_check() {
            say(&format!("self-check: {}, for the first time: {}", device.spec(), check.words()));
        }
        if let Some(check) = device.sm90_check().filter(|check| check.passed()) {
            say(&format!("self-check: {}, kernels of sm90, for the first time: {}", device.spec(), check.words()));
        }
        if let Some(check) = device.dependents_check().filter(|check| check.passed()) {
            say(&format!("self-check: {}, dependent launches, for the first time: {}", device.spec(), check.words()));
        }
        let notices = [device.kernels().and_then(Chosen::notice), device.launches().and_then(Launches::notice)];
        notices.iter().flatten().for_each(|notice| say(notice));
        Ok(device)
    }

    /// Opens a pair, with a progress bar on a terminal, and reports how it was loaded.
    pub(super) fn open(&self, device: &mut Device, pair: &Pair, max_model_len: Option<usize>) -> Result<Opened> {
        let bar = bar(Some(0), "loading {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}");
        let opened = device.open(pair, &self.options(max_model_len), &mut |opening| match opening {
            Opening::Planned { memory, bytes } => {
                say(&format!("memory: {memory}"));
                bar.set_length(bytes);
            }
            Opening::Read(bytes) => bar.set_position(bytes),
        });
        bar.finish_and_clear();
        let opened = opened?;
        if let Some(cuda) = opened.cuda() {
            report(opened.device(), cuda);
        }
        Ok(opened)
    }

    #[cfg(feature = "lab")]
    /// Opens a random pair of a published shape.
    pub(super) fn open_synthetic(
        &self,
        device: &mut Device,
        shape: &str,
        seed: u64,
        max_model_len: Option<usize>,
    ) -> Result<Opened> {
        let opened = device.open_synthetic(shape, seed, &self.options(max_model_len), &mut |opening| {
            if let Opening::Planned { memory, .. } = opening {
                say(&format!("memory: {memory}"));
            }
        })?;
        if let Some(cuda) = opened.cuda() {
            let name = cuda.opened.device.name();
            say(&format!("device: {} ({name}, {shape} with random weights)", opened.device()));
        }
        Ok(opened)
    }

    /// Opens a pair and says nothing.
    pub(super) fn open_quietly(&self, device: &mut Device, pair: &Pair, max_model_len: usize) -> Result<Opened> {
        device.open(pair, &self.options(Some(max_model_len)), &mut |_| ())
    }
}

/// On what a device's answers are made, for their rows.
pub(super) fn made_on(device: &Device) -> MadeOn {
    let kernels = device.kernels().map(|kernels| kernels.family.name().to_string());
    MadeOn { device: device.class(), kernels }
}

/// The reason, with the flag's name in front where it is about `--dtype`.
fn with_flag(why: &NoCuda, words: &str) -> String {
    let flag = if *why == NoCuda::Arithmetic { "--dtype " } else { "" };
    format!("{flag}{words}")
}

/// Says how a pair was loaded.
fn report(device: DeviceSpec, cuda: &OnCuda) {
    let models = &cuda.opened.models;
    for model in models {
        let role = match model.role {
            _ if model.draft => "draft model",
            Role::Policy => "policy",
            Role::Reward => "reward model",
        };
        let (report, name) = (&model.report, model.storage.name());
        let converted = report.converted;
        match &report.first_inexact {
            Some(tensor) => say(&format!(
                "note: {role}: {} weights were rounded to {name}, the first of them in tensor `{tensor}`",
                report.inexact
            )),
            None if converted > 0 => {
                say(&format!("note: {role}: {converted} weights were converted to {name} without loss"));
            }
            None => {}
        }
    }
    let mut types: Vec<&str> = models.iter().map(|model| model.storage.name()).collect();
    types.dedup();
    let (types, seconds, bytes) = (types.join(" and "), cuda.seconds(), cuda.bytes);
    let family = cuda.opened.device.family().name();
    let launches = if cuda.opened.device.launches_dependents() { ", dependent launches" } else { "" };
    say(&format!(
        "device: {device} ({}, {types}, kernels {family}{launches}); loaded {} in {seconds:.2} s, {:.1} GB/s",
        cuda.opened.device.name(),
        runtime::bytes_in_words(bytes),
        bytes as f64 / seconds.max(1e-9) / 1e9,
    ));
}

fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a share above 0 and at most 1".to_string()),
    }
}

fn family() -> impl TypedValueParser<Value = FamilySpec> {
    PossibleValuesParser::new(FamilySpec::ALL.map(FamilySpec::name)).try_map(|name| name.parse::<FamilySpec>())
}

fn arithmetic() -> impl TypedValueParser<Value = Arithmetic> {
    PossibleValuesParser::new(Arithmetic::ALL.map(Arithmetic::name)).try_map(|name| name.parse::<Arithmetic>())
}
