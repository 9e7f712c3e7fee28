//! The decision: segment boundaries, the refinement walk, keep the best, stop.

use super::{Options, Response, Segment, Uniforms};
use crate::Result;
use crate::model::Backend;

/// Is told what happens while a response is decoded.
pub trait Observer {
    /// A segment was committed; `committed` are the ids it added.
    fn segment(&mut self, segment: &Segment, committed: &[u32]) -> Result<()> {
        let _ = (segment, committed);
        Ok(())
    }
    /// A token of a candidate was decoded (for progress displays).
    fn token(&mut self) {}
}

/// Decodes one response.
///
/// # Errors
/// Options out of range, an empty prompt, a prompt beyond the context, an id beyond a vocabulary, recorded uniforms that
/// run out, numbers that are not finite, or the backend's own failure. All sequences are released either way.
pub fn decode(
    _backend: &mut dyn Backend,
    _prompt: &[u32],
    _options: &Options,
    _uniforms: Uniforms,
    _observer: &mut dyn Observer,
) -> Result<Response> {
    unimplemented!()
}
