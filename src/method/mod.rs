//! The method: gradient-guided reward optimisation over two [models](crate::model).
//!
//! Four parts: *when* ([`entropy`]: the uncertainty signal and its threshold), *what the reward model is
//! asked* ([`gradient`]), *which token* ([`nudge`]; [`Proposals`] has the method's controls), and *the decision* ([`intervention`]: segment boundaries, the
//! refinement walk, keep the best, stop; the state of one candidate is in [`candidate`], that of a segment's walk in
//! [`walk`]). No tensors and no device here; everything can be tested with scripted logits.
//!
//! A response never calls a model. It lists its questions as [tasks](crate::task), which the engine runs.

pub mod candidate;
pub mod entropy;
pub mod gradient;
pub mod intervention;
pub mod nudge;
mod options;
mod proposals;
pub mod walk;

pub use intervention::Intervention;
pub use options::{Options, Selection};
pub use proposals::{PROPOSALS, Proposals};
