//! Gradient-guided reward optimisation (GGRO, arXiv 2606.09635) as an inference engine.
//!
//! A frozen language model (the *policy*) is decoded greedily. Where its next-token distribution is uncertain, the
//! gradient of a frozen *reward model*, taken at its input embeddings, chooses a token to try instead; the text is
//! continued from it, scored, and the best of a few tries is kept.
//!
//! The crate has four layers, each knowing only the one before it:
//!
//! * [`files`]: what Hugging Face directories hold, checked before use
//!   ([`files::demo`] is a pair inside the binary, [`files::hub`] brings them by name);
//! * [`model`]: the [`Backend`](model::Backend) trait, a handful of batched operations on two models, and the
//!   reference backend in plain Rust, over the block bookkeeping of [`kv`];
//! * [`method`]: the method itself, pure logic over that trait; [`trace`] is its record as JSON, [`lab::goldens`] the golden
//!   fixtures replayed;
//! * [`engine`]: many requests in common batches, [`sampling`] and the [`scoring`] of given texts among them;
//! * [`profile`]: what the engine is doing, for Nsight and Perfetto;
//! * [`batch`]: many prompts from a file into a file, resumably; [`batch::report`] what they say together;
//! * the faces: the command line, the [`server`] and [`lab::bench`].
//!
//! `docs/architecture.md` in the repository says how the parts fit.

pub mod answer;
pub mod batch;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod cuda;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod files;
pub mod kv;
#[cfg(feature = "lab")]
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

pub use error::{Error, Result};
