//! The one place that rounds: what a device with 16-bit activations would make of the CPU's numbers.
//!
//! Exact by default. A simulation rounds to the storage type wherever the CUDA path is documented to, and nowhere else:
//!
//! * forward: weights, normed rows (where the last step is left to a product, before it), the outputs of the q, k and v projections, queries and keys after head norm and rotation
//!   (one rounding), probabilities before their product with the values (the normaliser sums the unrounded ones), attention
//!   output, gate and up projections, the SwiGLU output, the final hidden state;
//! * backward: what enters a data-gradient product (the residual gradient, the gradients of gate, up, q, k and v), the
//!   gradient of the attention output, `P` and `dS` where they enter products.
//!
//! The residual stream and its gradient, every accumulation, logits and rewards stay f32. The simulation is independent of
//! the kernels in everything but this list, so its error says how far a correct device may be off.

use crate::dtype::HalfType;
use std::borrow::Cow;

/// To which type numbers are rounded, if to any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    pub storage: Option<HalfType>,
    /// Normed rows are rounded before they are multiplied with their inverse norm, which is then f32.
    pub deferred_norms: bool,
}

impl Rounding {
    /// The stored value of every number; the numbers themselves without a simulation.
    pub fn apply(self, values: &mut [f32]) {
        if let Some(storage) = self.storage {
            for value in values {
                *value = storage.widen(storage.round(*value));
            }
        }
    }

    /// Rounded where `values` themselves go on unrounded.
    pub fn copy(self, values: &[f32]) -> Cow<'_, [f32]> {
        match self.storage {
            Some(_) => Cow::Owned(self.of(values.to_vec())),
            None => Cow::Borrowed(values),
        }
    }

    /// [`apply`](Self::apply) on the way.
    pub fn of(self, mut values: Vec<f32>) -> Vec<f32> {
        self.apply(&mut values);
        values
    }
}
