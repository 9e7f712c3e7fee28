//! Opening models: where they are, on which device they run, and in which arithmetic.
//!
//! [`open`] takes the best device there is, or the one that is asked for. A program that has to know the device before it
//! opens anything finds it first ([`OpenOptions::find`]) and opens on it ([`Device::open`]). A CUDA device is checked the first
//! time it is found ([`self_check`]).

pub mod examine;
pub mod family;
pub mod launches;
mod model_files;
pub mod self_check;
mod unusable;

use crate::cuda::{self, images};
use crate::dtype::HalfType;
use crate::engine::{Engine, Settings};
use crate::files::checkpoint::Checkpoint;
use crate::files::config::ModelConfig;
use crate::files::pair::{Pair, Parts};
use crate::model::cpu::{self, LoadOptions};
use crate::model::cuda::weights::Source;
use crate::model::cuda::{self as cuda_model, CudaOptions, Loading, Prepared, Sources, memory};
use crate::model::{ModelPair, PolicyRows, synthetic};
use crate::{Error, Result};
use family::{Chosen, FamilySpec};
use launches::Launches;
use self_check::{GroupCheck, SelfCheck};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use crate::cuda::KernelFamily;
pub use crate::model::cuda::memory::bytes as bytes_in_words;
pub use model_files::{files, find, load};
pub use unusable::{NoCuda, Unusable};

/// Which device is asked for. As text: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first CUDA device if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl FromStr for DeviceSpec {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(DeviceSpec::Cuda(index)),
                _ => Err("expected auto, cpu, cuda or cuda:N".to_string()),
            },
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Which arithmetic is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// What the device does best: f32 on the CPU, the checkpoint's 16-bit type on CUDA.
    #[default]
    Auto,
    /// Single precision, which only the CPU computes in.
    F32,
    /// bf16 storage with f32 accumulation, which only CUDA has.
    Bf16,
    /// f16 storage with f32 accumulation, which only CUDA has.
    F16,
}

impl Arithmetic {
    /// All of them.
    pub const ALL: [Arithmetic; 4] = [Arithmetic::Auto, Arithmetic::F32, Arithmetic::Bf16, Arithmetic::F16];

    /// As text: `auto`, `f32`, `bf16` or `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::Auto => "auto",
            Arithmetic::F32 => "f32",
            Arithmetic::Bf16 => "bf16",
            Arithmetic::F16 => "f16",
        }
    }
}

impl FromStr for Arithmetic {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Arithmetic::ALL.into_iter().find(|arithmetic| arithmetic.name() == text);
        found.ok_or_else(|| "expected auto, f32, bf16 or f16".to_string())
    }
}

/// How models are opened. [`OpenOptions::default`] is what the command line does without flags.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The device.
    pub device: DeviceSpec,
    /// The arithmetic.
    pub arithmetic: Arithmetic,
    /// Longest sequence in tokens; `None`: the shorter of the two models' contexts.
    pub max_model_len: Option<usize>,
    /// Share of a CUDA device's memory that may be in use, by whomever.
    pub memory_utilization: f64,
    /// Longest segment that a CUDA device can differentiate, in tokens.
    pub gradient_tokens: usize,
    /// Launch every CUDA kernel by itself, in place of CUDA graphs.
    pub eager: bool,
    /// Let a CUDA kernel begin before the one before it has ended, where its card can. `None`: where a self-check of such launches has
    /// passed on the device. `Some(true)` is the same, but where [`self_check`](Self::self_check) is off it needs none: kernels that
    /// begin too early give wrong answers without a word, so what nobody has checked is left out unless both are asked for by name.
    pub dependent_launches: Option<bool>,
    /// Threads of the CPU; `None`: all cores. Results do not depend on it.
    pub threads: Option<usize>,
    /// Check a CUDA device the first time it is opened, and refuse one that computes something else than it should.
    pub self_check: bool,
    /// The family of kernels that multiplies with stored weights on a CUDA device.
    pub kernels: FamilySpec,
}

impl Default for OpenOptions {
    fn default() -> Self {
        let cuda = CudaOptions::default();
        OpenOptions {
            device: DeviceSpec::Auto,
            arithmetic: Arithmetic::Auto,
            max_model_len: None,
            memory_utilization: cuda.memory_utilization,
            gradient_tokens: cuda.gradient_tokens,
            eager: false,
            dependent_launches: None,
            threads: None,
            self_check: true,
            kernels: FamilySpec::Auto,
        }
    }
}

impl OpenOptions {
    /// Finds the device that is asked for.
    ///
    /// # Errors
    /// It is not there, does not compute in the arithmetic that is asked for, or does not have the kernels.
    pub fn find(&self) -> std::result::Result<Device, Unusable> {
        let cuda = |index| match self.arithmetic {
            Arithmetic::F32 => Err(NoCuda::Arithmetic),
            _ => self.checked(index),
        };
        let cpu = |no_cuda| Device { place: Place::Cpu, no_cuda, checked: Checked::default() };
        let lacks = |why: NoCuda| match why {
            NoCuda::Kernels(family, why) => Err(Unusable::Kernels(family, why)),
            why => Ok(why),
        };
        let device = match self.device {
            DeviceSpec::Cpu => cpu(None),
            DeviceSpec::Cuda(index) => match cuda(index) {
                Ok(device) => device,
                Err(why) => return Err(Unusable::Cuda(index, lacks(why)?)),
            },
            DeviceSpec::Auto => match cuda(0) {
                Ok(device) => device,
                Err(why) => cpu(Some(lacks(why)?)),
            },
        };
        match (&device.place, self.arithmetic, self.kernels) {
            (Place::Cpu, Arithmetic::Bf16 | Arithmetic::F16, _) => Err(Unusable::Arithmetic(self.arithmetic)),
            (Place::Cpu, _, FamilySpec::Only(family)) => {
                let because = device.no_cuda.as_ref().map_or(String::new(), |why| format!(" ({why})"));
                let why = format!("the device would be the CPU, which has no CUDA kernels{because}; use auto");
                Err(Unusable::Kernels(family, why))
            }
            _ => Ok(device),
        }
    }

    /// Opens a CUDA device that computes what it should.
    fn checked(&self, index: usize) -> std::result::Result<Device, NoCuda> {
        let device = cuda::Device::open(index).map_err(|why| NoCuda::from(&why))?;
        if let FamilySpec::Only(family) = self.kernels {
            Chosen::new(&device, self.kernels, None).map_err(|why| NoCuda::Kernels(family, why))?;
        }
        let asks_for_dependents = self.dependent_launches != Some(false) && device.can_launch_dependents();
        let mut known = match self.kernels.asks_for_check() || asks_for_dependents {
            true => SelfCheck::settled(&device),
            false => SelfCheck::remembered(&device),
        };
        let (mut checked, mut left) = (Checked::default(), self_check::LIMIT);
        let after = |left: Duration, seconds| left.saturating_sub(Duration::try_from_secs_f64(seconds).unwrap_or(left));
        if self.self_check {
            let mut check = match known.take().filter(SelfCheck::passed) {
                Some(check) => check,
                None => {
                    // What differed before is checked again: it may have been the machine's state.
                    let check = SelfCheck::run(&device);
                    if !check.passed() {
                        let why = format!("{}: {}", device.name(), check.words());
                        let_go(device);
                        return Err(NoCuda::SelfCheck(why));
                    }
                    left = after(left, check.seconds);
                    checked.every_card = Some(check.clone());
                    check
                }
            };
            if self.kernels.asks_for_check() && KernelFamily::Sm90.runs_on(&device) && check.lacks_sm90() {
                check.run_sm90(&device, left);
                checked.sm90 = check.sm90.clone();
                left = after(left, check.sm90.as_ref().map_or(0.0, |check| check.seconds));
                if let Some(why) = lost(&device, check.sm90.as_ref()) {
                    let_go(device);
                    return Err(NoCuda::Lost(why));
                }
            }
            known = Some(check);
        }
        let failed = |why: String| NoCuda::NoDevice(why);
        let chosen = Chosen::new(&device, self.kernels, known.as_ref()).map_err(failed)?;
        let capability = device.capability();
        let device = device.with_family(chosen.family).map_err(|why| failed(why.to_string()))?;
        // Last, and with the kernels that will run: those of the other family may be the ones that fail.
        let is_due =
            |check: &&mut SelfCheck| self.self_check && asks_for_dependents && check.lacks_dependents(chosen.family);
        if let Some(check) = known.as_mut().filter(is_due) {
            check.run_dependents(&device, left);
            checked.dependents = check.dependents_of(chosen.family).cloned();
            if let Some(why) = lost(&device, checked.dependents.as_ref()) {
                let_go(device);
                return Err(NoCuda::LostLaunching(why));
            }
        }
        let launches = Launches::new(&device, self.dependent_launches, self.self_check, known.as_ref());
        let place = Place::Cuda(Cuda { index, capability, chosen, launches, opened: Some(Box::new(device)) });
        Ok(Device { place, no_cuda: None, checked })
    }

    fn cpu(&self) -> LoadOptions {
        LoadOptions { max_model_len: self.max_model_len, threads: self.threads, ..LoadOptions::default() }
    }

    fn cuda(&self) -> CudaOptions {
        let defaults = CudaOptions::default();
        CudaOptions {
            max_model_len: self.max_model_len,
            dtype: match self.arithmetic {
                Arithmetic::Bf16 => Some(HalfType::Bf16),
                Arithmetic::F16 => Some(HalfType::F16),
                Arithmetic::Auto | Arithmetic::F32 => None,
            },
            memory_utilization: self.memory_utilization,
            gradient_tokens: self.gradient_tokens,
            batch_tokens: defaults.batch_tokens.max(self.gradient_tokens),
            graphs: !self.eager,
            ..defaults
        }
    }
}

/// A device that is there.
pub struct Device {
    place: Place,
    no_cuda: Option<NoCuda>,
    checked: Checked,
}

/// The self-checks that were made when a device was found.
#[derive(Default)]
struct Checked {
    every_card: Option<SelfCheck>,
    sm90: Option<GroupCheck>,
    dependents: Option<GroupCheck>,
}

enum Place {
    Cpu,
    Cuda(Cuda),
}

/// A CUDA device, and the kernels that it runs.
struct Cuda {
    index: usize,
    capability: cuda::Capability,
    chosen: Chosen,
    launches: Option<Launches>,
    /// The device that was opened to see whether it is there, until a pair is opened on it.
    opened: Option<Box<cuda::Device>>,
}

impl Cuda {
    /// The device, for models that are opened with these options: they can turn dependent launches off, and not on.
    fn take(&mut self, options: &OpenOptions) -> Result<cuda::Device> {
        let device = match self.opened.take() {
            Some(device) => *device,
            None => cuda::Device::open(self.index)?.with_family(self.chosen.family)?,
        };
        let dependent = self.launches.as_ref().is_some_and(|launches| launches.dependent);
        Ok(device.with_dependent_launches(dependent && options.dependent_launches != Some(false)))
    }
}

/// Which device a check has taken from this process, and how, if it did.
fn lost(device: &cuda::Device, check: Option<&GroupCheck>) -> Option<String> {
    device.alive().err()?;
    Some(format!("{}: {}", device.name(), check.map(GroupCheck::words).unwrap_or_default()))
}

/// Closes a device, unless it is lost: a driver that still has a kernel to wait for would never return.
fn let_go(device: cuda::Device) {
    if device.alive().is_err() {
        std::mem::forget(device);
    }
}

/// How far opening has come.
#[derive(Debug)]
pub enum Opening {
    /// The models fit the CUDA device.
    Planned {
        /// How its memory is divided, in words.
        memory: String,
        /// Bytes that will be read from files.
        bytes: u64,
    },
    /// Bytes that have been read so far.
    Read(u64),
}

impl Device {
    /// The device, as [`DeviceSpec`] names it.
    pub fn spec(&self) -> DeviceSpec {
        match &self.place {
            Place::Cpu => DeviceSpec::Cpu,
            Place::Cuda(cuda) => DeviceSpec::Cuda(cuda.index),
        }
    }

    /// What kind of device it is: `cpu`, or `cuda` with the compute capability, as in `cuda 9.0`. The last bits of results
    /// depend on it.
    pub fn class(&self) -> String {
        match &self.place {
            Place::Cpu => "cpu".to_string(),
            Place::Cuda(cuda) => format!("cuda {}", cuda.capability),
        }
    }

    /// The kernels that multiply with stored weights, and why these; `None` on the CPU.
    pub fn kernels(&self) -> Option<&Chosen> {
        match &self.place {
            Place::Cpu => None,
            Place::Cuda(cuda) => Some(&cuda.chosen),
        }
    }

    /// Why [`DeviceSpec::Auto`] took the CPU, if it did.
    pub fn no_cuda(&self) -> Option<&NoCuda> {
        self.no_cuda.as_ref()
    }

    /// How they are launched, and why so; `None` where kernels cannot begin early.
    pub fn launches(&self) -> Option<&Launches> {
        match &self.place {
            Place::Cpu => None,
            Place::Cuda(cuda) => cuda.launches.as_ref(),
        }
    }

    /// The self-check that was made now, because none was remembered.
    pub fn self_check(&self) -> Option<&SelfCheck> {
        self.checked.every_card.as_ref()
    }

    /// The self-check of the kernels for Hopper alone that was made now.
    pub fn sm90_check(&self) -> Option<&GroupCheck> {
        self.checked.sm90.as_ref()
    }

    /// The self-check of dependent launches that was made now.
    pub fn dependents_check(&self) -> Option<&GroupCheck> {
        self.checked.dependents.as_ref()
    }

    /// What rounding an answer depends on, in words.
    pub fn arithmetic(&self, asked: Arithmetic) -> String {
        match &self.place {
            Place::Cpu => "f32 on the CPU".to_string(),
            Place::Cuda(..) => format!("{} on CUDA", asked.name()),
        }
    }

    /// Opens a pair, or the one model that it has.
    ///
    /// # Errors
    /// A tensor is missing or malformed, the longest sequence is beyond a model, or the pair does not fit the device.
    pub fn open(&mut self, pair: &Pair, options: &OpenOptions, progress: &mut dyn FnMut(Opening)) -> Result<Opened> {
        let Parts { policy, reward, draft } = pair.parts();
        let parts =
            [policy, reward, draft].map(|part| part.map(|(config, weights)| (config, Weights::Stored(weights))));
        self.open_parts(parts, options, progress)
    }

    /// Opens a pair of random models of a published shape ([`synthetic::PRESETS`]). Without a length in `options`,
    /// sequences are at most 4096 tokens long.
    ///
    /// # Errors
    /// There is no such shape, or as [`open`](Self::open).
    pub fn open_synthetic(
        &mut self,
        shape: &str,
        seed: u64,
        options: &OpenOptions,
        progress: &mut dyn FnMut(Opening),
    ) -> Result<Opened> {
        let [policy, reward] = synthetic::pair(shape)?;
        // Llama's 131072 positions are more than a table of rotations or a pool has to have here.
        let longest = policy.max_position_embeddings.min(reward.max_position_embeddings);
        let max_model_len = Some(options.max_model_len.unwrap_or(4096).min(longest));
        let parts =
            [Some((&policy, Weights::Random(shape, seed))), Some((&reward, Weights::Random(shape, !seed))), None];
        self.open_parts(parts, &OpenOptions { max_model_len, ..options.clone() }, progress)
    }

    fn open_parts(
        &mut self,
        parts: [Option<(&ModelConfig, Weights<'_>)>; 3],
        options: &OpenOptions,
        progress: &mut dyn FnMut(Opening),
    ) -> Result<Opened> {
        match &mut self.place {
            Place::Cpu => {
                let mut weights = [None, None, None];
                for (weights, part) in weights.iter_mut().zip(parts) {
                    *weights = part.map(|(config, source)| source.on_cpu(config)).transpose()?;
                }
                let part = |place: usize| Some((parts[place]?.0, weights[place].as_ref()?.get()));
                let models = cpu::open(Parts { policy: part(0), reward: part(1), draft: part(2) }, &options.cpu())?;
                Ok(Opened { models, cuda: None })
            }
            Place::Cuda(cuda) => {
                let (device, index) = (cuda.take(options)?, cuda.index);
                let options = options.cuda();
                let [policy, reward, draft] =
                    parts.map(|part| part.map(|(config, weights)| (config, weights.on_cuda())));
                let sources = Sources { policy, reward, draft };
                let bytes = Prepared::new(sources, &options, device.weight_layout())?.source_bytes();
                let (models, opened) = cuda_model::open(device, sources, &options, &mut |loading| match loading {
                    Loading::Planned(budget) => progress(Opening::Planned { memory: budget.to_string(), bytes }),
                    Loading::Read(bytes) => progress(Opening::Read(bytes)),
                })?;
                Ok(Opened { models, cuda: Some(OnCuda { index, opened, bytes }) })
            }
        }
    }
}

/// Where a model's numbers come from.
#[derive(Clone, Copy)]
enum Weights<'a> {
    Stored(&'a Checkpoint),
    /// Random ones of a shape, from a seed.
    Random(&'a str, u64),
}

/// Weights that are owned, or another's.
enum OnCpu<'a> {
    Stored(&'a Checkpoint),
    Random(Checkpoint),
}

impl OnCpu<'_> {
    fn get(&self) -> &Checkpoint {
        match self {
            OnCpu::Stored(checkpoint) => checkpoint,
            OnCpu::Random(checkpoint) => checkpoint,
        }
    }
}

impl<'a> Weights<'a> {
    fn on_cpu(self, config: &ModelConfig) -> Result<OnCpu<'a>> {
        Ok(match self {
            Weights::Stored(checkpoint) => OnCpu::Stored(checkpoint),
            Weights::Random(shape, seed) => {
                OnCpu::Random(Checkpoint::of_bytes(shape, synthetic::safetensors(config, seed)?)?)
            }
        })
    }

    fn on_cuda(self) -> Source<'a> {
        match self {
            Weights::Stored(checkpoint) => Source::Stored(checkpoint),
            Weights::Random(_, seed) => Source::Drawn(seed),
        }
    }
}

/// Where models were opened on CUDA, and how.
pub struct OnCuda {
    /// The device's number.
    pub index: usize,
    /// The device, how its memory is divided, how each model was loaded.
    pub opened: cuda_model::Opened,
    /// Bytes that were read from files.
    pub bytes: u64,
}

impl OnCuda {
    /// Seconds that loading took.
    pub fn seconds(&self) -> f64 {
        self.opened.models.iter().map(|model| model.report.seconds).sum()
    }
}

/// Models, ready to be run.
pub struct Opened {
    models: ModelPair,
    cuda: Option<OnCuda>,
}

impl Opened {
    /// What methods run on.
    pub fn backend(&mut self) -> &mut ModelPair {
        &mut self.models
    }

    /// The same, for an engine to own.
    pub fn into_backend(self) -> ModelPair {
        self.models
    }

    /// How they were opened, if that was on CUDA.
    pub fn cuda(&self) -> Option<&OnCuda> {
        self.cuda.as_ref()
    }

    /// Hidden states and logits of every position of a text.
    ///
    /// # Errors
    /// The text does not fit, or the backend fails.
    pub fn policy_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        self.models.policy_rows(ids)
    }

    /// What it rounds to, if that is coarser than f32; bf16 if its models differ, as the coarser of the two.
    pub fn rounds_to(&self) -> Option<HalfType> {
        let models = &self.cuda()?.opened.models;
        let coarse = models.iter().any(|model| model.storage == HalfType::Bf16);
        Some(if coarse { HalfType::Bf16 } else { HalfType::F16 })
    }

    /// Whether norms leave their last step to the products behind them, which moves a rounding.
    pub fn defers_norms(&self) -> bool {
        self.cuda().is_some_and(|cuda| cuda.opened.device.defers_norms())
    }

    /// The device.
    pub fn device(&self) -> DeviceSpec {
        self.cuda().map_or(DeviceSpec::Cpu, |cuda| DeviceSpec::Cuda(cuda.index))
    }
}

/// Opens a pair on the device that is asked for.
///
/// # Errors
/// As [`OpenOptions::find`] and [`Device::open`].
pub fn open(pair: &Pair, options: &OpenOptions, progress: &mut dyn FnMut(Opening)) -> Result<Opened> {
    options.find()?.open(pair, options, progress)
}

/// An engine over a pair, on the device that is asked for. Its thread opens the models and owns them.
///
/// # Errors
/// As [`open`].
pub fn start(pair: &Arc<Pair>, options: &OpenOptions, settings: Settings) -> Result<Engine> {
    let (pair, options) = (pair.clone(), options.clone());
    Engine::start(settings, move || Ok(open(&pair, &options, &mut |_| ())?.into_backend()))
}

/// The longest sequence that both models of a pair were made for, in tokens.
pub fn context(pair: &Pair) -> usize {
    pair.max_positions()
}

/// The CUDA kernels of this build.
#[derive(Clone, Debug)]
pub struct Kernels {
    /// How many there are.
    pub count: usize,
    /// How many of them are for Hopper alone.
    pub hopper: usize,
    /// Architectures that the others were compiled for.
    pub targets: &'static [&'static str],
    /// The compiler's release.
    pub compiler: &'static str,
    /// The assembler's.
    pub assembler: &'static str,
    /// Whether they are those that are stored with the sources, because the build found no compiler.
    pub stored: bool,
    /// Bytes of all images, as they are packed.
    pub bytes: usize,
}

/// The CUDA kernels of this build.
pub fn kernels() -> Kernels {
    let embedded = images::embedded();
    let count = |kept: &dyn Fn(&cuda::Image) -> bool| {
        let usages = embedded.iter().filter(|image| kept(image)).flat_map(|image| image.usage);
        usages.map(|usage| usage.kernel).collect::<BTreeSet<_>>().len()
    };
    Kernels {
        count: count(&|_| true),
        hopper: count(&|image| images::is_for_hopper(image.name)),
        targets: images::targets(),
        compiler: images::compiler(),
        assembler: images::assembler(),
        stored: images::stored(),
        bytes: embedded.iter().map(|image| image.code.bytes().len()).sum(),
    }
}

/// A CUDA device of this machine, and whether a pair fits it.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    /// The device's own name.
    pub name: String,
    /// Its compute capability, e.g. `9.0`.
    pub capability: String,
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory: free ones and all, if it says so.
    pub memory: Option<(u64, u64)>,
    /// What its last self-check found, with this driver and this build.
    pub self_check: Option<SelfCheck>,
    /// Whether a kernel can begin there before the one before it has ended.
    pub dependent_launches: bool,
    /// The family of kernels that it runs, and why; no family if a self-check has still to decide.
    pub kernels: (Option<KernelFamily>, String),
    /// Whether kernels begin so, and why; neither yes nor no if a self-check has still to decide. `None` where they cannot.
    pub launches: Option<(Option<bool>, String)>,
    /// How a pair divides the memory: parts with their bytes, and all of it in words; or why the pair does not fit.
    pub fit: std::result::Result<Fit, String>,
}

/// How a pair divides a device's memory.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Parts with their bytes.
    pub parts: Vec<(&'static str, u64)>,
    /// All of it in words.
    pub words: String,
}

/// Every CUDA device of this machine, each with the reason why it cannot be used if it cannot. Without kernels in this build
/// the driver is not asked.
///
/// # Errors
/// Why there is none.
pub fn cuda_devices(
    pair: &Pair,
    options: &OpenOptions,
) -> std::result::Result<Vec<std::result::Result<CudaDevice, NoCuda>>, NoCuda> {
    Ok((0..examine::count()?).map(|index| cuda_device(pair, options, index)).collect())
}

fn cuda_device(pair: &Pair, options: &OpenOptions, index: usize) -> std::result::Result<CudaDevice, NoCuda> {
    let device = cuda::Device::open(index).map_err(|why| NoCuda::from(&why))?;
    let memory = memory::DeviceMemory::of(&device).ok();
    let self_check = SelfCheck::remembered(&device);
    let chosen = Chosen::new(&device, FamilySpec::Auto, self_check.as_ref()).map_err(NoCuda::NoDevice)?;
    let is_open = KernelFamily::Sm90.runs_on(&device) && self_check.as_ref().is_none_or(SelfCheck::lacks_sm90);
    let (kernels, family) = match is_open {
        true => {
            let why = "the first use of the device checks those of sm90, and takes them if they pass".to_string();
            ((None, why), KernelFamily::Sm90)
        }
        false => ((Some(chosen.family), chosen.why), chosen.family),
    };
    let device = device.with_family(family).map_err(|why| NoCuda::from(&why))?;
    let is_due = is_open || self_check.as_ref().is_none_or(|check| check.lacks_dependents(family));
    let launches = Launches::new(&device, options.dependent_launches, options.self_check, self_check.as_ref());
    let launches = launches.map(|launches| match is_due {
        true => {
            let why = "the first use of the device checks dependent launches, and launches so if they pass".to_string();
            (None, why)
        }
        false => (Some(launches.dependent), launches.why),
    });
    let budget = Prepared::new(pair.parts(), &options.cuda(), device.weight_layout()).and_then(|prepared| {
        let memory =
            memory.ok_or_else(|| Error::Backend("the device does not say how much memory is free".to_string()))?;
        prepared.needs().divide(memory)
    });
    Ok(CudaDevice {
        name: device.name().to_string(),
        capability: device.capability().to_string(),
        multiprocessors: device.multiprocessors(),
        memory: memory.map(|memory| (memory.free, memory.total)),
        self_check,
        dependent_launches: device.can_launch_dependents(),
        kernels,
        launches,
        fit: budget
            .map(|budget| Fit { parts: budget.parts(), words: budget.to_string() })
            .map_err(|error| error.to_string()),
    })
}
