//! The method: gradient-guided reward optimisation over two models behind [`Backend`](crate::model::Backend).
//!
//! Four parts, one file each: *when* ([`entropy`]: the uncertainty signal and its threshold), *what the reward model is
//! asked* ([`gradient`]), *which token* ([`nudge`]), and *the decision* ([`intervention`]: segment boundaries, the
//! refinement walk, keep the best, stop). No tensors and no device here; everything can be tested with scripted logits.

pub mod entropy;
pub mod gradient;
pub mod intervention;
pub mod nudge;
mod options;
mod response;

pub use intervention::{Observer, decode};
pub use options::{Options, Selection, Uniforms};
pub use response::{Candidate, CandidateStop, FinishReason, Margins, Repeat, Response, Segment, Slot, WalkEnd};
