//! What a request asks of the two models, as data: the contract between the requests and the engine.
//!
//! A request works on *sequences* of ids, each of one model, whose keys and values are worth keeping. It names them by a
//! [`SeqKey`] and says what it wants to know of them as [`Task`]s. The engine decides which sequences of a backend hold them,
//! when they are dropped and computed again, and which requests share a batch. No answer depends on that.

use crate::answer::{Segment, TokenLogprob};
use crate::model::{PolicyRow, Role, TopK, Work};
use crate::{Error, Result};
use std::sync::Arc;

/// A sequence of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqKey {
    /// The model it belongs to.
    pub role: Role,
    /// Number within the request; never used twice.
    pub number: u32,
}

/// Whether a request still needs a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It asks nothing more of it.
    Dead,
    /// It may turn out to be useful.
    Speculative,
    /// It is, or is being, made part of the answer's record.
    Necessary,
}

/// Something a request wants to know.
#[derive(Clone, Debug)]
pub struct Task {
    /// The sequence to be run.
    pub key: SeqKey,
    /// Another sequence that has the same first positions, and how many.
    pub parent: Option<(SeqKey, usize)>,
    /// Positions that the sequence holds afterwards.
    pub len: usize,
    /// Positions before this one were run before, on this sequence or on its parent.
    pub fresh: usize,
    /// Whether the answer may turn out not to need it.
    pub speculative: bool,
    /// How likely the answer needs it, about; 1 for what is not speculative. It orders work and decides nothing else.
    pub chance: f64,
    /// The question.
    pub ask: Ask,
    /// Where in the request it comes from. The engine hands it back with the result and does not look at it.
    pub origin: TaskOrigin,
}

/// Which part of a request a task comes from. Branches are numbered by the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskOrigin {
    /// The next token of a branch.
    Decode(usize),
    /// The next token of a branch of a segment behind this one.
    RunAhead(BranchPath),
    /// What all branches share, through the reward model.
    Shared,
    /// The reward of a branch.
    Score(usize),
    /// The reward of a branch of the segment behind this one.
    ScoreAhead(BranchPath),
}

/// A branch of a segment behind the one in progress: the branch of this one behind which it stands, and in each segment
/// from there on the place of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BranchPath {
    branch: usize,
    places: [usize; BranchPath::SEGMENTS],
    segments: usize,
}

impl BranchPath {
    /// Segments behind the one in progress, at most.
    pub const SEGMENTS: usize = 2;

    /// A branch of the segment in progress itself.
    pub fn new(branch: usize) -> BranchPath {
        BranchPath { branch, places: [0; BranchPath::SEGMENTS], segments: 0 }
    }

    /// A branch of the segment behind this one; `None` if that is too far ahead.
    pub fn then(mut self, place: usize) -> Option<BranchPath> {
        *self.places.get_mut(self.segments)? = place;
        self.segments += 1;
        Some(self)
    }

    /// The branch of the segment in progress.
    pub fn branch(&self) -> usize {
        self.branch
    }

    /// Places in the segments behind it.
    pub fn places(&self) -> &[usize] {
        self.places.get(..self.segments).unwrap_or_default()
    }

    /// The branch behind which this one stands, and its place there; `None` for a branch of the segment in progress.
    pub fn split(mut self) -> Option<(BranchPath, usize)> {
        let place = *self.places().last()?;
        self.segments -= 1;
        // Paths are equal if they lead to the same branch.
        self.places[self.segments] = 0;
        Some((self, place))
    }
}

/// A question about a sequence.
#[derive(Clone, Debug)]
pub enum Ask {
    /// The policy's next-token distribution after the last position.
    Policy {
        /// Probability floor of the entropy.
        floor: f64,
        /// Its largest logits.
        top_k: TopK,
        /// All of its logits.
        full_logits: FullLogits,
    },
    /// Rewards.
    Reward {
        /// Positions besides the last one.
        also_at: Vec<usize>,
        /// The gradient at a slot.
        gradient: Option<GradientAsk>,
    },
}

/// Whether every logit is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullLogits {
    /// They are not.
    Never,
    /// If the largest ones are reported.
    WithTopK,
    /// In any case.
    Always,
}

/// Where a reward is differentiated, and the ids whose embeddings are multiplied with the gradient.
#[derive(Clone, Debug)]
pub struct GradientAsk {
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
            Ask::Policy { .. } => last,
            Ask::Reward { also_at, gradient } => {
                let slot = gradient.as_ref().map(|gradient| gradient.slot);
                also_at.iter().copied().chain(slot).fold(last, usize::min)
            }
        }
    }

    /// Where a span from `start` on ends that may run `budget` tokens. What comes before the first position that is asked about can
    /// be run in pieces. The rest goes in one span, however long it is.
    pub fn span_end(&self, start: usize, budget: usize) -> usize {
        if self.len.saturating_sub(start) <= budget {
            return self.len;
        }
        let end = self.answered_from().min(start.saturating_add(budget));
        if end > start { end } else { self.len }
    }

    /// The task that runs, on another sequence, the positions that this one has in common with it, and asks nothing.
    pub(crate) fn stem(&self, (key, len): (SeqKey, usize)) -> Task {
        let ask = match &self.ask {
            Ask::Policy { .. } => Ask::Policy { floor: 0.0, top_k: TopK::Skip, full_logits: FullLogits::Never },
            Ask::Reward { .. } => Ask::Reward { also_at: Vec::new(), gradient: None },
        };
        let Task { origin, speculative, chance, .. } = *self;
        Task { key, parent: None, len, fresh: self.fresh.min(len), speculative, chance, ask, origin }
    }

    /// Positions that it differentiates.
    pub fn differentiated(&self) -> usize {
        match &self.ask {
            Ask::Reward { gradient: Some(gradient), .. } => self.len - gradient.slot.min(self.len),
            _ => 0,
        }
    }
}

/// How the text of a policy task may go on, for whoever wants to run tokens before they are known.
#[derive(Clone, Debug, Default)]
pub struct Outlook<'a> {
    /// Tokens beyond the task's that may still be run, at most.
    pub most: usize,
    /// Ids that end it.
    pub stop_ids: &'a [u32],
    /// Ids that other texts have behind a beginning that they share with this one.
    pub siblings: Vec<&'a [u32]>,
}

/// The policy's next-token distribution.
#[derive(Clone, Debug)]
pub struct PolicyOutput {
    /// Statistics and the largest logits.
    pub row: PolicyRow,
    /// Every logit, if asked for.
    pub logits: Option<Vec<f32>>,
}

/// Rewards of a sequence.
#[derive(Clone, Debug, Default)]
pub struct RewardOutput {
    /// At the last position.
    pub reward: f32,
    /// At the positions of [`Ask::Reward`], in their order.
    pub also: Vec<f32>,
    /// Products with the candidates' embeddings, and the norm of the gradient.
    pub gradient: Option<(Vec<f32>, f32)>,
    /// The gradient from the slot on, `[positions, hidden]`, if it was asked for.
    pub rows: Vec<f32>,
}

/// How much a request may run that it may turn out not to need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Candidates of a segment at the same time, the one that is needed included; 1 is none ahead of time.
    pub width: usize,
    /// Whether the next two segments are decoded behind branches that may win, while others are still decoded and scored.
    pub run_ahead: bool,
    /// Rows of a step of the policy for the request, the one that is needed and those of the next segments included.
    pub rows: usize,
}

impl Speculation {
    /// Nothing is run before it is needed.
    pub const OFF: Speculation = Speculation { width: 1, run_ahead: false, rows: 1 };
}

/// What happened to a request.
#[derive(Clone, Debug)]
pub enum Progress {
    /// This many tokens were decoded, of any branch.
    Tokens(usize),
    /// A completion went on by a token: the completion's number and the token. Only if its tokens are streamed.
    Token(usize, TokenLogprob),
    /// Log-probabilities of the prompt, a token per position from the second on. Only if they were asked for.
    Prompt(Vec<TokenLogprob>),
    /// A segment was committed, with the ids it added.
    Segment(Segment, Vec<u32>),
}

/// A request in progress, as a state machine: it lists [`Task`]s, is given their results, and goes on.
///
/// After it has ended it is not asked for tasks and ignores results.
pub trait Request: Send {
    /// What it ends with.
    type Output;

    /// The prompt, with which every sequence begins.
    fn prompt(&self) -> &[u32];
    /// Everything that could be run now; what is necessary first, then what is likely to be.
    fn tasks(&self, out: &mut Vec<Task>);
    /// Ids of a task's sequence, from a position to the task's end.
    fn ids(&self, task: &Task, from: usize) -> Vec<u32>;
    /// How the text of a policy task may go on. `None` if what comes then is known already, or is not asked about.
    fn outlook(&self, task: &Task) -> Option<Outlook<'_>> {
        let _ = task;
        None
    }
    /// The largest logits that the row so many tokens behind a policy task's will be asked for, should the text go on
    /// so far.
    fn top_k_behind(&self, task: &Task, tokens: usize) -> TopK {
        let _ = (task, tokens);
        TopK::Skip
    }
    /// The task that goes on by a token behind a policy task that was just answered, on the same sequence. `None` if
    /// the text ends there.
    fn following(&self, task: &Task) -> Option<Task> {
        let _ = task;
        None
    }
    /// Answers an [`Ask::Policy`].
    fn on_policy(&mut self, task: &Task, output: PolicyOutput);
    /// Answers an [`Ask::Reward`].
    fn on_reward(&mut self, task: &Task, output: RewardOutput);
    /// A task could not be run.
    fn on_failure(&mut self, task: &Task, error: Error);
    /// Goes on with what is known. `same` tells whether two ids have the same policy embedding.
    fn advance(&mut self, speculation: Speculation, same: &dyn Fn(u32, u32) -> bool);
    /// Whether the request still needs a sequence.
    fn liveness(&self, key: SeqKey) -> Liveness;
    /// What happened since the last call.
    fn progress(&mut self) -> Vec<Progress>;
    /// What had to be run for the answer so far, whatever was run.
    fn necessary(&self) -> Work;
    /// The sequence of a model that is worth keeping for the next request with the same prompt.
    fn trunk(&self, role: Role) -> SeqKey;
    /// Whether it has ended.
    fn ended(&self) -> bool;
    /// The result, once it has ended. The second call gives `None`.
    fn take(&mut self) -> Option<Result<Self::Output>>;

    /// The same request with another output, so that requests of different kinds can share a scheduler.
    fn map<U, F: FnMut(Self::Output) -> U + Send>(self, convert: F) -> Map<Self, F>
    where
        Self: Sized,
    {
        Map { request: self, convert }
    }
}

/// A request whose output is converted: see [`Request::map`].
pub struct Map<R, F> {
    request: R,
    convert: F,
}

impl<U, R: Request, F: FnMut(R::Output) -> U + Send> Request for Map<R, F> {
    type Output = U;

    fn prompt(&self) -> &[u32] {
        self.request.prompt()
    }
    fn tasks(&self, out: &mut Vec<Task>) {
        self.request.tasks(out);
    }
    fn ids(&self, task: &Task, from: usize) -> Vec<u32> {
        self.request.ids(task, from)
    }
    fn outlook(&self, task: &Task) -> Option<Outlook<'_>> {
        self.request.outlook(task)
    }
    fn top_k_behind(&self, task: &Task, tokens: usize) -> TopK {
        self.request.top_k_behind(task, tokens)
    }
    fn following(&self, task: &Task) -> Option<Task> {
        self.request.following(task)
    }
    fn on_policy(&mut self, task: &Task, output: PolicyOutput) {
        self.request.on_policy(task, output);
    }
    fn on_reward(&mut self, task: &Task, output: RewardOutput) {
        self.request.on_reward(task, output);
    }
    fn on_failure(&mut self, task: &Task, error: Error) {
        self.request.on_failure(task, error);
    }
    fn advance(&mut self, speculation: Speculation, same: &dyn Fn(u32, u32) -> bool) {
        self.request.advance(speculation, same);
    }
    fn liveness(&self, key: SeqKey) -> Liveness {
        self.request.liveness(key)
    }
    fn progress(&mut self) -> Vec<Progress> {
        self.request.progress()
    }
    fn necessary(&self) -> Work {
        self.request.necessary()
    }
    fn trunk(&self, role: Role) -> SeqKey {
        self.request.trunk(role)
    }
    fn ended(&self) -> bool {
        self.request.ended()
    }
    fn take(&mut self) -> Option<Result<U>> {
        let outcome = self.request.take()?;
        Some(outcome.map(&mut self.convert))
    }
}

/// How a request ends: the part that all of them share.
#[derive(Debug)]
pub struct Outcome<T> {
    ended: bool,
    result: Option<Result<T>>,
}

impl<T> Outcome<T> {
    /// Not ended.
    pub fn pending() -> Outcome<T> {
        Outcome { ended: false, result: None }
    }

    /// Ends the request. The first result counts.
    pub fn end(&mut self, result: Result<T>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.result = Some(result);
        }
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The result, once.
    pub fn take(&mut self) -> Option<Result<T>> {
        self.result.take()
    }
}

/// The ids at `from .. to` of texts that follow one another.
pub(crate) fn cut<'a>(texts: impl IntoIterator<Item = &'a [u32]>, from: usize, to: usize) -> Vec<u32> {
    let mut ids = Vec::with_capacity(to.saturating_sub(from));
    let mut start = 0;
    for text in texts {
        let within = |position: usize| position.saturating_sub(start).min(text.len());
        ids.extend_from_slice(text.get(within(from)..within(to)).unwrap_or_default());
        start += text.len();
    }
    ids
}

/// The position where the reward of `prefix` followed by `tail` is pooled: the rightmost one whose id is not `pad`, the last
/// one without a pad id, and position 0 if all are pads (or if there are no ids, where nothing can be pooled).
pub fn pool_position(prefix: &[u32], tail: &[u32], pad: Option<u32>) -> usize {
    let last = (prefix.len() + tail.len()).saturating_sub(1);
    let Some(pad) = pad else { return last };
    let rightmost = |ids: &[u32]| ids.iter().rposition(|&id| id != pad);
    let in_tail = rightmost(tail).map(|at| prefix.len() + at);
    in_tail.or_else(|| rightmost(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_at_the_rightmost_other_id() {
        for split in 0..3 {
            let at = |ids: &[u32], pad| {
                let (prefix, tail) = ids.split_at(split.min(ids.len()));
                pool_position(prefix, tail, pad)
            };
            assert_eq!(at(&[5, 6, 7], None), 2);
            assert_eq!(at(&[5, 6, 7], Some(9)), 2);
            assert_eq!(at(&[5, 9, 7, 9, 9], Some(9)), 2);
            assert_eq!(at(&[9, 9], Some(9)), 0);
            assert_eq!(at(&[], Some(9)), 0);
            assert_eq!(at(&[], None), 0);
        }
    }

    #[test]
    fn cuts_across_texts() {
        let all = [1, 2, 3, 4, 5, 6];
        for (a, b) in [(0, 0), (0, 6), (2, 2), (2, 5), (6, 6)] {
            for from in 0..8 {
                for to in 0..8 {
                    let expected = all.get(from..to.min(6)).unwrap_or_default();
                    assert_eq!(cut([&all[..a], &all[a..b], &all[b..]], from, to), expected, "{from}..{to} of {a}, {b}");
                }
            }
        }
    }

    #[test]
    fn a_path_is_as_long_as_it_may_be() {
        let mut path = BranchPath::new(4);
        assert_eq!((path.split(), path.places()), (None, &[][..]));
        for place in 0..BranchPath::SEGMENTS {
            let next = path.then(place + 7).unwrap();
            assert_eq!((next.branch(), next.split()), (4, Some((path, place + 7))));
            path = next;
        }
        assert_eq!((path.then(0), path.places()), (None, &[7, 8][..]));
    }

    #[test]
    fn a_task_is_cut_before_what_it_asks_about() {
        let task = |also_at: &[usize], slot: Option<usize>| Task {
            key: SeqKey { role: Role::Reward, number: 0 },
            parent: None,
            len: 100,
            fresh: 0,
            speculative: false,
            chance: 1.0,
            ask: Ask::Reward {
                also_at: also_at.to_vec(),
                gradient: slot.map(|slot| GradientAsk { slot, candidates: Arc::from([]), rows: false }),
            },
            origin: TaskOrigin::Shared,
        };
        for (also_at, slot, from) in
            [(&[][..], None, 99), (&[70, 40], None, 40), (&[70], Some(60), 60), (&[], Some(0), 0)]
        {
            let task = task(also_at, slot);
            assert_eq!(task.answered_from(), from);
            for budget in [1, 7, 64, 1000, usize::MAX] {
                let (mut start, mut spans) = (0, 0);
                while start < task.len {
                    let end = task.span_end(start, budget);
                    assert!(end > start && (end == task.len || end <= from && end - start <= budget));
                    (start, spans) = (end, spans + 1);
                }
                // Whole pieces, and what is asked about in one span, with what of the rest fits.
                assert!(spans <= from.div_ceil(budget) + 1 && spans >= from / budget, "{spans}");
            }
        }
    }

    #[test]
    fn the_first_end_counts() {
        let mut outcome = Outcome::pending();
        assert!(!outcome.ended() && outcome.take().is_none());
        outcome.end(Ok(1));
        outcome.end(Err(Error::invalid("too late")));
        assert_eq!(outcome.take().map(|result| result.ok()), Some(Some(1)));
        assert!(outcome.ended() && outcome.take().is_none());
    }
}
