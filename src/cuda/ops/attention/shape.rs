//! What attention is asked: heads, query tokens, and the sequences that they belong to.

use crate::kv::BlockId;
use crate::{Error, Result};

/// Heads and what they see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Query heads, a multiple of the key/value heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head, padding included: 32, 64 or 128.
    pub head: usize,
    /// What scores are multiplied by: one over the root of the head's real size.
    pub scale: f32,
    /// Positions that a query sees, its own included; all before it if there is none.
    pub window: Option<usize>,
}

impl Shape {
    /// Query heads per key/value head.
    pub(in crate::cuda::ops) fn group(&self) -> Result<usize> {
        let Shape { heads, kv_heads, head, scale, window } = *self;
        let wrong = |what: String| Err(Error::Backend(format!("attention: {what}")));
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return wrong(format!("{heads} query heads over {kv_heads} key/value heads, expected a multiple"));
        }
        if heads / kv_heads > 64 {
            return wrong(format!("{} query heads per key/value head, expected at most 64", heads / kv_heads));
        }
        if ![32, 64, 128].contains(&head) {
            return wrong(format!("heads of {head} elements, expected 32, 64 or 128"));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return wrong(format!("a scale of {scale}, expected a positive number"));
        }
        if window == Some(0) {
            return wrong("a window of 0 positions, expected at least 1".to_string());
        }
        Ok(heads / kv_heads)
    }

    /// Columns of the output: those of the heads, rounded up to 64 for the product that follows.
    pub fn width(&self) -> usize {
        (self.heads * self.head).next_multiple_of(64)
    }

    /// The lowest position that a query at `position` sees.
    pub(in crate::cuda::ops) fn lowest(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// One query token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Row of `q`.
    pub row: u32,
    /// Row of `out`.
    pub out: u32,
    /// Position in its sequence; the keys and values up to it are in the pool.
    pub position: u32,
}

/// The queries of one sequence, or of a part of it.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Its blocks, in order of positions. Blocks that several sequences have are read once for all.
    pub blocks: &'a [BlockId],
    /// In ascending order of positions. No two queries of a batch have one row of `out`.
    pub queries: &'a [Query],
}
