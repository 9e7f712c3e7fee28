//! What a response asks of the two models, as data: tasks on *lines*.
//!
//! A line is a row of ids of one model whose keys and values are worth keeping. A response names its lines and says what it
//! wants to know of them; whoever runs it decides which sequences of a backend hold them, when they are dropped and computed
//! again, and with whom a batch is shared. None of that can be seen in an answer.

use crate::method::entropy::Threshold;
use crate::model::{PolicyRow, Role, Work};
use crate::{Error, Result};
use std::sync::Arc;

/// A line of one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineId {
    /// The model it belongs to.
    pub role: Role,
    /// Number within the response; never used twice.
    pub number: u32,
}

/// What a response does with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing any more.
    Dead,
    /// It may turn out to be useful.
    Speculative,
    /// It is, or is being, made part of the answer's record.
    Necessary,
}

/// Something a response wants to know.
#[derive(Clone, Debug)]
pub struct Task {
    /// The line to be run.
    pub line: LineId,
    /// Another line that has the same first positions, and how many.
    pub parent: Option<(LineId, usize)>,
    /// Positions that the line holds afterwards.
    pub len: usize,
    /// Positions before this one were run before, on this line or on its parent.
    pub fresh: usize,
    /// Whether the answer may turn out not to need it.
    pub speculative: bool,
    /// The question.
    pub ask: Ask,
    /// For whoever made the task: which part of it.
    pub part: Part,
}

/// Which part of a response a task belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The row that decides a branch's next token.
    Decode(usize),
    /// The same for the next segment of a branch that has ended.
    Ahead(usize),
    /// What all branches of a segment share, through the reward model.
    Base,
    /// A branch's reward.
    Score(usize),
}

/// A question about a line.
#[derive(Clone, Debug)]
pub enum Ask {
    /// The policy's row after the last position.
    Row {
        /// Probability floor of the entropy.
        floor: f64,
        /// Its largest logits.
        top: Top,
        /// All of its logits.
        whole: Whole,
    },
    /// Rewards.
    Score {
        /// Positions besides the last one.
        also_at: Vec<usize>,
        /// The gradient at a slot.
        gradient: Option<Slope>,
    },
}

/// Whether a row's largest logits are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Top {
    /// Not.
    Skip,
    /// So many.
    Take(usize),
    /// So many if the row's uncertainty reaches the threshold.
    TakeIf(usize, Threshold),
}

/// Whether all logits of a row are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// Not.
    Never,
    /// If its largest ones are.
    WithTop,
    /// In any case.
    Always,
}

/// Where a reward is differentiated, and the ids whose embeddings are multiplied with the gradient.
#[derive(Clone, Debug)]
pub struct Slope {
    /// Absolute position.
    pub slot: usize,
    /// Ids.
    pub candidates: Arc<[u32]>,
    /// Whether the gradient itself is wanted, at every position from the slot on.
    pub rows: bool,
}

impl Task {
    /// The first position that has to be inside the span which answers the task.
    pub fn answered_from(&self) -> usize {
        let last = self.len.saturating_sub(1);
        match &self.ask {
            Ask::Row { .. } => last,
            Ask::Score { also_at, gradient } => {
                let slot = gradient.as_ref().map(|slope| slope.slot);
                also_at.iter().copied().chain(slot).fold(last, usize::min)
            }
        }
    }
}

/// A row with, if asked for, every logit of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Statistics and the largest logits.
    pub row: PolicyRow,
    /// Every logit.
    pub logits: Option<Vec<f32>>,
}

/// What the reward model says.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// At the last position.
    pub reward: f32,
    /// At the positions of [`Ask::Score`], in their order.
    pub also: Vec<f32>,
    /// Products with the candidates' embeddings, and the norm of the gradient.
    pub gradient: Option<(Vec<f32>, f32)>,
    /// The gradient from the slot on, `[positions, hidden]`, if it was asked for.
    pub rows: Vec<f32>,
}

/// How much a response may run that it may turn out not to need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Candidates of a segment at the same time, the one that is needed included; 1 is none ahead of time.
    pub width: usize,
    /// Whether the branch in the lead is decoded on into the next segment while others are still being scored.
    pub run_ahead: bool,
}

impl Speculation {
    /// Nothing is run before it is needed.
    pub const OFF: Speculation = Speculation { width: 1, run_ahead: false };
}

/// What happened to a response.
#[derive(Clone, Debug)]
pub enum Progress {
    /// So many tokens were decoded, of whatever branch.
    Tokens(usize),
    /// A completion went on by a token: the completion's number and the token. Only of plans that ask for it.
    Chosen(usize, crate::sampling::Chosen),
    /// What the policy thought of the prompt: a token per position from the second on. Only of plans that ask for it.
    Prompt(Vec<crate::sampling::Chosen>),
    /// A segment was committed, with the ids it added.
    Segment(crate::answer::Segment, Vec<u32>),
}

/// A response in progress: says what it wants to know, is told, and goes on.
pub trait Generation: Send {
    /// The prompt, with which every line begins.
    fn prompt(&self) -> &[u32];
    /// Everything that could be run now; what is necessary first, then what is likely to be.
    fn tasks(&self, out: &mut Vec<Task>);
    /// Ids of a task's line, from a position to the task's end.
    fn ids(&self, task: &Task, from: usize) -> Vec<u32>;
    /// Answers a task of the policy.
    fn row(&mut self, task: &Task, row: Row);
    /// Answers a task of the reward model.
    fn scored(&mut self, task: &Task, scored: Scored);
    /// A task could not be run.
    fn failed(&mut self, task: &Task, error: Error);
    /// Goes on with what is known. `same` tells whether two ids have the same policy embedding.
    fn advance(&mut self, speculation: Speculation, same: &dyn Fn(u32, u32) -> bool);
    /// What a line is to the response now.
    fn line(&self, line: LineId) -> Use;
    /// What happened since the last call.
    fn progress(&mut self) -> Vec<Progress>;
    /// Whether it has ended.
    fn ended(&self) -> bool;
    /// What had to be run for the answer so far, whatever was run.
    fn necessary(&self) -> Work;
    /// The line of a model that is worth keeping for the next request with the same prompt.
    fn trunk(&self, role: Role) -> LineId;
    /// The result, once it has ended.
    fn take(&mut self) -> Option<Result<Finished>>;
}

/// A finished response.
#[derive(Clone, Debug)]
pub enum Finished {
    /// By gradient-guided reward optimisation, or greedily.
    Response(Box<crate::answer::Response>),
    /// Sampled completions.
    Completions(Box<crate::sampling::Completions>),
    /// A given text's rewards.
    Appraisal(Box<crate::scoring::Appraisal>),
}

impl Finished {
    /// The response, if it is one.
    ///
    /// # Errors
    /// It is something else.
    pub fn response(self) -> Result<crate::answer::Response> {
        match self {
            Finished::Response(response) => Ok(*response),
            other => Err(other.unexpected("a response")),
        }
    }

    /// The completions, if it is some.
    ///
    /// # Errors
    /// It is something else.
    pub fn completions(self) -> Result<crate::sampling::Completions> {
        match self {
            Finished::Completions(completions) => Ok(*completions),
            other => Err(other.unexpected("completions")),
        }
    }

    /// The appraisal, if it is one.
    ///
    /// # Errors
    /// It is something else.
    pub fn appraisal(self) -> Result<crate::scoring::Appraisal> {
        match self {
            Finished::Appraisal(appraisal) => Ok(*appraisal),
            other => Err(other.unexpected("an appraisal")),
        }
    }

    fn unexpected(&self, expected: &str) -> Error {
        let found = match self {
            Finished::Response(_) => "a response",
            Finished::Completions(_) => "completions",
            Finished::Appraisal(_) => "an appraisal",
        };
        Error::Backend(format!("{found} where {expected} was expected"))
    }
}
