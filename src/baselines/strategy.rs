//! The decisions of a method that searches for an answer.

use super::text::TextId;
use super::texts::Texts;
use crate::Result;
use crate::answer::SearchCounts;

/// A method that searches for an answer: which texts it makes, what it asks of them, and which one it takes.
///
/// It never calls a model. Whenever all that it asked for is known, it is asked to go on; it looks at rewards and rows, asks
/// for more, or gives the answer. What it decides must be a function of what [`Texts`] says, so that an answer is the same in any
/// batch. [`crate::engine::searcher`] makes a request of it.
pub trait Strategy: Send {
    /// How many of the most likely tokens [`Texts::top`] reports; 0 if it is never looked at.
    fn top_k(&self) -> usize {
        0
    }

    /// Goes on; `None` if it has asked for more.
    ///
    /// # Errors
    /// An error ends the request.
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>>;
}

/// What a search ends with. Every text has to be one that is still kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The finished answers, in the order of their numbers.
    pub all: Vec<TextId>,
    /// The place of the one that was chosen.
    pub best: usize,
    /// What was tried.
    pub counts: SearchCounts,
}
