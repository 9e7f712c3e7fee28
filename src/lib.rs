//! Gradient-guided reward optimisation (GGRO, arXiv 2606.09635) as an inference engine.
//!
//! A frozen language model (the *policy*) is decoded greedily. Where its next-token distribution is uncertain, the gradient
//! of a frozen *reward model* with respect to its input embeddings chooses a token to try instead. The text is continued from
//! it and scored, and the best of a few tries is kept. No weights change.
//!
//! ```
//! use ggro::{OpenOptions, Options, Pair, Settings, files::demo, text};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pair = Arc::new(Pair::load(&demo::policy(), &demo::reward())?); // 4 million parameters each, part of the crate
//! let engine = ggro::start(&pair, &OpenOptions::default(), Settings::default())?; // on the best device there is
//! let options = Options { max_new_tokens: 24, ..Options::for_pair(&pair)? };
//! let prompt = text::Prompt::of_message(&pair, "Tell me a story about a box.")?;
//! let (response, _) = engine.generate(&prompt.ids, &options)?.wait()?;
//! println!("{} (reward {})", text::answer(&pair, &response)?, response.final_reward);
//! # assert!(text::answer(&pair, &response)?.len() > 20);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` in the repository go on from here: streams, many requests, rewards and gradients, a backend of one's own.
//!
//! # Modules
//!
//! Each knows only those before it:
//!
//! * [`files`]: what Hugging Face directories hold, checked before use; [`files::demo`] is a pair inside the crate;
//! * [`model`]: what can be asked of the two models, in batches, on the CPU ([`model::cpu`]) and on CUDA ([`model::cuda`]);
//! * [`answer`], [`task`]: what requests end with, and what they ask of the models, as plain data;
//! * [`method`]: the method itself, without tensors; beside it plain [`sampling`] and the [`scoring`] of given texts;
//! * [`baselines`]: the methods that GGRO is compared with, and the trait for one's own;
//! * [`engine`]: many requests in common batches;
//! * [`presets`], [`text`], [`runtime`]: parameters, prompts and answers as text, opening models on a device;
//! * [`trace`]: a response with every decision as JSON; [`profile`]: ranges for Nsight and Perfetto;
//! * `batch`, `server`, `cli`: many prompts from a file, the HTTP server, the command line;
//! * `lab`: kernel checks, golden fixtures, benchmarks.
//!
//! # Features
//!
//! | feature | default | what it brings | crates |
//! |---|---|---|---|
//! | `cli` | yes | the binary `ggro` and its flags | some 25 |
//! | `server` | yes | `ggro serve`: HTTP with OpenAI's routes | some 60 |
//! | `hub` | yes | models by name, downloaded from Hugging Face, with TLS | some 30 |
//! | `lab` | yes | `ggro kernels`, `verify`, `bench` and `synth`: a quarter of the source | some 20 |
//! | `parquet` | no | prompts from Parquet files, with zstd in C | some 15 |
//!
//! Without any of them the library has some 110 crates. CUDA is not a feature: kernels are compiled in where `nvcc` is found,
//! and the driver is loaded when a device is opened.

pub mod answer;
pub mod baselines;
pub mod batch;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod cuda;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod files;
#[doc(hidden)]
pub mod kv;
#[cfg(feature = "lab")]
#[doc(hidden)]
pub mod lab;
pub mod method;
pub mod model;
pub mod presets;
pub mod profile;
pub mod rng;
pub mod runtime;
pub mod sampling;
pub mod scoring;
#[cfg(feature = "server")]
pub mod server;
pub mod task;
pub mod text;
pub mod trace;

pub use answer::{Candidate, Completions, Response, RewardReport, Segment};
pub use baselines::Baseline;
pub use engine::{Engine, Progress, Settings, Ticket, Update};
pub use error::{Error, Result};
pub use files::pair::Pair;
pub use method::Options;
pub use runtime::{DeviceSpec, OpenOptions, Opened, open, start};
pub use sampling::CompletionSpec;
pub use scoring::RewardQuery;
