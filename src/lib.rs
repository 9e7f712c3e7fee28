//! Gradient-guided reward optimisation (GGRO, arXiv 2606.09635) as an inference engine.
//!
//! A frozen language model (the *policy*) is decoded greedily. Where its next-token distribution is uncertain, the
//! gradient of a frozen *reward model*, taken at its input embeddings, chooses a token to try instead; the text is
//! continued from it, scored, and the best of a few tries is kept.
//!
//! The crate has four layers, each knowing only the one before it:
//!
//! * [`config`], [`checkpoint`], [`tokenizer`], [`chat`], [`pair`]: what Hugging Face directories hold, checked before use
//!   ([`demo`] is a pair inside the binary, [`hub`] brings them by name);
//! * [`model`]: the [`Backend`](model::Backend) trait, a handful of batched operations on two models, and the
//!   reference backend in plain Rust, over the block bookkeeping of [`kv`];
//! * [`ggro`]: the method itself, pure logic over that trait; [`trace`] is its record as JSON, [`verify`] the golden
//!   fixtures replayed;
//! * [`engine`]: many requests in common batches, [`sampling`] and the [`appraisal`] of given texts among them;
//! * [`profile`]: what the engine is doing, for Nsight and Perfetto;
//! * [`run`](mod@run): many prompts from a file into a file, resumably; [`report`] what they say together;
//! * the faces: the command line, the [`server`] and [`mod@bench`].
//!
//! `docs/architecture.md` in the repository says how the parts fit.

pub mod appraisal;
pub mod bench;
pub mod chat;
pub mod checkpoint;
#[doc(hidden)]
pub mod cli;
pub mod config;
pub mod conformance;
pub mod cuda;
pub mod demo;
pub mod engine;
pub mod error;
pub mod ggro;
pub mod hub;
pub mod kv;
pub mod model;
pub mod pair;
pub mod profile;
pub mod report;
pub mod run;
pub mod sampling;
pub mod server;
pub mod tokenizer;
pub mod trace;
pub mod verify;

pub use error::{Error, Result};
