//! The method: gradient-guided reward optimisation over two models behind [`Backend`](crate::model::Backend).
//!
//! Four parts: *when* ([`entropy`]: the uncertainty signal and its threshold), *what the reward model is
//! asked* ([`gradient`]), *which token* ([`nudge`]), and *the decision* ([`intervention`]: segment boundaries, the
//! refinement walk, keep the best, stop; the state of one candidate is in [`candidate`], that of a segment's walk in
//! [`walk`]). No tensors and no device here; everything can be tested with scripted logits.

pub mod candidate;
pub mod entropy;
pub mod gradient;
pub mod intervention;
pub mod nudge;
mod options;
mod response;
mod runner;
pub(crate) mod sequences;
pub mod walk;

pub use intervention::{Observer, decode};
pub use options::{Options, Selection, Uniforms};
pub use response::{Candidate, CandidateStop, FinishReason, Margins, Repeat, Response, Segment, Slot, WalkEnd};
