//! The texts of a search: what a method may ask, and what it is told.

use super::text::{Growth, Rules, Text, TextId, TextRow, TextState};
use crate::answer::{StopReason, TokenLogprob};
use crate::model::{Role, TopK, Work};
use crate::rng::Uniforms;
use crate::sampling::CompletionSpec;
use crate::task::{Ask, FullLogits, Liveness, PolicyOutput, RewardOutput, Task};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A sequence of one of the models.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sequence {
    /// Positions that were run on it.
    pub run: usize,
    /// Where it forked off, and how many positions it had then.
    pub parent: Option<(u32, usize)>,
}

/// The texts of a search, all of which begin with the prompt.
///
/// What goes on from a text shares its keys and values in both models: only new tokens are run, and each of them once.
pub struct Texts {
    pub(super) spec: CompletionSpec,
    pub(super) prompt: Vec<u32>,
    reward_vocab: usize,
    top_k: usize,
    pub(super) width: usize,
    pub(super) all: BTreeMap<TextId, Text>,
    next: u32,
    /// The last number of a sequence.
    pub(super) numbers: u32,
    pub(super) sequences: [BTreeMap<u32, Sequence>; 2],
    /// Those of each model that are still needed.
    pub(super) live: [BTreeMap<u32, Liveness>; 2],
    pub(super) necessary: Work,
    /// Added since the last time that somebody asked.
    pub(super) tokens: usize,
}

impl Texts {
    /// The prompt, checked. Rows report their `top_k` most likely tokens.
    pub(super) fn new(prompt: &[u32], spec: CompletionSpec, reward_vocab: usize, top_k: usize) -> Texts {
        let trunk = || BTreeMap::from([(0, Sequence::default())]);
        Texts {
            all: BTreeMap::from([(TextId(0), Text::prompt(prompt, &spec))]),
            spec,
            prompt: prompt.to_vec(),
            reward_vocab,
            top_k,
            width: 1,
            next: 1,
            numbers: 0,
            sequences: [trunk(), trunk()],
            live: Default::default(),
            necessary: Work::default(),
            tokens: 0,
        }
    }

    /// The prompt with nothing behind it.
    pub fn prompt(&self) -> TextId {
        TextId(0)
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt.len()
    }

    /// Tokens of an answer, at most.
    pub fn max_new_tokens(&self) -> usize {
        self.spec.max_new_tokens
    }

    /// How many texts may be in flight where one is needed: see [`extend_ahead`](Texts::extend_ahead). 1 is none ahead.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Makes a text that goes on from another one. It may go on from one that is still being made.
    pub fn extend(&mut self, from: TextId, growth: Growth) -> TextId {
        let ahead = self.all.iter_mut().find(|(_, text)| text.speculative && text.origin == Some((from, growth)));
        let id = match ahead {
            Some((&id, text)) => {
                (text.speculative, text.kept) = (false, true);
                id
            }
            None => self.add(from, growth, false),
        };
        self.count_up(id, Role::Policy);
        id
    }

    /// Makes and scores a text that may be asked for later: [`extend`](Texts::extend) with the same arguments then
    /// finds it, and [`score`](Texts::score) its reward. It is run where that costs little, and changes neither an
    /// answer nor the work counted, whether the method asks for both, for one or for none. It goes when the text that
    /// it goes on from is no longer kept.
    pub fn extend_ahead(&mut self, from: TextId, growth: Growth) {
        if !self.all.values().any(|text| text.origin == Some((from, growth))) {
            self.add(from, growth, true);
        }
    }

    fn add(&mut self, from: TextId, growth: Growth, speculative: bool) -> TextId {
        let id = TextId(self.next);
        self.next += 1;
        let mut text = Text::after(from, growth, speculative);
        if !self.all.contains_key(&from) {
            text.failed = Some(unknown("goes on from"));
        }
        self.all.insert(id, text);
        id
    }

    /// Asks for the reward of a text, once it is complete.
    pub fn score(&mut self, id: TextId) {
        if let Some(text) = self.all.get_mut(&id) {
            text.wants_reward = true;
            text.asked[Role::Reward as usize] = true;
        }
        self.count_up(id, Role::Reward);
    }

    /// Asks for the policy's row behind a text: see [`top`](Texts::top).
    pub fn look(&mut self, id: TextId) {
        if let Some(text) = self.all.get_mut(&id) {
            text.wants_row = true;
            text.asked[Role::Policy as usize] = true;
        }
        self.count_up(id, Role::Policy);
    }

    /// Keeps these texts only. Tokens that all kept texts have in common are final, and may be shown to the reader.
    pub fn keep(&mut self, ids: &[TextId]) {
        for (id, text) in &mut self.all {
            text.kept = match (text.speculative, text.origin) {
                (true, Some((from, _))) => ids.contains(&from),
                _ => ids.contains(id),
            };
            if !text.kept {
                (text.wants_row, text.wants_reward) = (false, false);
            }
        }
    }

    /// Ids of a text, behind the prompt.
    pub fn ids(&self, id: TextId) -> &[u32] {
        self.all.get(&id).map_or(&[], |text| text.ids.as_slice())
    }

    /// Why a text cannot go on; `None` if it can.
    pub fn stop(&self, id: TextId) -> Option<StopReason> {
        self.all.get(&id).and_then(|text| text.stop)
    }

    /// The reward of a text, prompt included, at its last token.
    ///
    /// # Errors
    /// It was not asked for.
    pub fn reward(&self, id: TextId) -> Result<f32> {
        self.all.get(&id).and_then(Text::asked_reward).ok_or_else(|| unknown("uses the reward of"))
    }

    /// The most likely tokens behind a text that was [looked](Texts::look) at, with their logits: as many as
    /// [`Strategy::top_k`](super::Strategy::top_k), most likely first, the lower id first on a tie. Ids that the reward model
    /// cannot read are left out. None behind a text that cannot go on.
    pub fn top(&self, id: TextId) -> &[(u32, f32)] {
        let text = self.all.get(&id).filter(|text| text.asked[Role::Policy as usize]);
        text.and_then(|text| text.row.as_ref()).map_or(&[], |row| row.output.row.top.as_slice())
    }

    /// Place of the text with the largest reward, the first one on a tie.
    ///
    /// # Errors
    /// A reward that was not asked for, or no text.
    pub fn best(&self, ids: &[TextId]) -> Result<usize> {
        let mut best: Option<(usize, f32)> = None;
        for (place, &id) in ids.iter().enumerate() {
            let reward = self.reward(id)?;
            if best.is_none_or(|(_, most)| reward > most) {
                best = Some((place, reward));
            }
        }
        best.map(|(place, _)| place).ok_or_else(|| unknown("wants the best of no"))
    }

    /// The n-th uniform number for the method's own draws, in `[0, 1)`: a function of the seed and n. No token is drawn by it.
    pub fn uniform(&self, n: usize) -> f64 {
        // Seeded numbers never run out.
        Uniforms::Seeded(self.spec.sampling.seed ^ OWN_DRAWS).nth(n).unwrap_or(0.0)
    }

    /// Counts what was run in a model ahead of need for a text, and for those before it.
    fn count_up(&mut self, id: TextId, role: Role) {
        let mut next = Some(id);
        while let Some(text) = next.and_then(|id| self.all.get_mut(&id)) {
            if !text.speculative {
                self.necessary += Work::of(role, std::mem::take(&mut text.uncounted[role as usize]), 0);
            }
            next = text.parent;
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules { spec: &self.spec, reward_vocab: self.reward_vocab, record: self.records() }
    }

    /// Whether log-probabilities are kept.
    pub(super) fn records(&self) -> bool {
        self.spec.stream_tokens || self.spec.sampling.logprobs.is_some()
    }

    /// Whether all logits of every row are looked at.
    pub(super) fn needs_logits(&self) -> bool {
        let sampling = &self.spec.sampling;
        let suppresses = sampling.min_tokens > 0 && !sampling.suppress_ids.is_empty();
        !sampling.plain() || suppresses || sampling.logprobs.is_some()
    }

    /// What the policy is asked behind every text.
    pub(super) fn row_ask(&self) -> Ask {
        let full_logits = if self.needs_logits() { FullLogits::Always } else { FullLogits::Never };
        let top_k = if self.top_k > 0 { TopK::Take(self.top_k) } else { TopK::Skip };
        Ask::Policy { floor: 0.0, top_k, full_logits }
    }

    /// Lets every text go on as far as rows are known.
    pub(super) fn grow(&mut self) {
        let open: Vec<TextId> = self
            .all
            .iter()
            .filter(|(_, text)| text.state != TextState::Complete && text.failed.is_none())
            .map(|(&id, _)| id)
            .collect();
        for id in open {
            // It is put back at once: nobody else may look at it meanwhile.
            let Some(mut text) = self.all.remove(&id) else { continue };
            if text.state == TextState::Waiting
                && let Some(from) = text.parent.and_then(|parent| self.all.get(&parent))
                && from.state == TextState::Complete
                && (from.stop.is_some() || from.row.is_some())
            {
                text.begin(from);
            }
            match text.grow(&self.rules()) {
                Ok(added) => self.tokens += added,
                Err(error) => text.failed = Some(error),
            }
            self.all.insert(id, text);
        }
    }

    /// Why the request cannot go on, if it cannot. Errors of what nobody has asked for yet do not count.
    pub(super) fn failure(&mut self) -> Option<Error> {
        let prompt_len = self.prompt.len();
        let mut needed = self.all.values_mut().filter(|text| !text.speculative);
        needed.find_map(|text| {
            let broken = text.wants_reward && text.reward.is_some_and(|reward| !reward.is_finite());
            let position = (prompt_len + text.ids.len()).saturating_sub(1);
            let broken = broken.then_some(Error::NonFinite { what: "reward", model: "reward", position });
            text.failed.take().or(broken)
        })
    }

    /// Whether something that was asked for is not known yet.
    pub(super) fn pending(&self) -> bool {
        self.all.values().any(|text| {
            let row = text.wants_row && text.row.is_none() && text.stop.is_none();
            let reward = text.wants_reward && text.reward.is_none();
            !text.speculative && (text.state != TextState::Complete || row || reward)
        })
    }

    /// The row behind a text.
    pub(super) fn on_row(&mut self, id: TextId, task: &Task, output: PolicyOutput) {
        self.ran(id, task);
        if !output.row.stats.finite {
            let position = task.len.saturating_sub(1);
            return self.on_failure(id, task, Error::NonFinite { what: "logit", model: "policy", position });
        }
        if let Some(text) = self.all.get_mut(&id) {
            text.row = Some(Arc::new(TextRow::new(output)));
        }
    }

    /// The reward of a text.
    pub(super) fn on_reward(&mut self, id: TextId, task: &Task, output: &RewardOutput) {
        self.ran(id, task);
        if let Some(text) = self.all.get_mut(&id) {
            text.reward = Some(output.reward);
        }
    }

    /// Notes that a task was run, and counts it if it was needed.
    fn ran(&mut self, id: TextId, task: &Task) {
        let role = task.key.role;
        let run = task.len.saturating_sub(task.fresh);
        if !task.speculative {
            self.necessary += Work::of(role, run, 0);
        }
        let Some(text) = self.all.get_mut(&id) else { return };
        if task.speculative {
            text.uncounted[role as usize] += run;
        }
        text.tracks[role as usize].run = task.len;
        if let Some(sequence) = self.sequences[role as usize].get_mut(&task.key.number) {
            sequence.run = task.len;
        }
    }

    /// A task of a text could not be run. What was run ahead of need fails nothing: it may never be needed, and if it
    /// is, it is run again.
    pub(super) fn on_failure(&mut self, id: TextId, task: &Task, error: Error) {
        let Some(text) = self.all.get_mut(&id) else { return };
        match task.speculative {
            true => text.given_up[task.key.role as usize] = true,
            false => text.failed = Some(error),
        }
    }

    /// Ids and log-probabilities of a text, or of what it will go on from.
    fn known(&self, id: TextId) -> (&[u32], &[Arc<TokenLogprob>]) {
        let mut next = Some(id);
        while let Some(text) = next.and_then(|id| self.all.get(&id)) {
            if text.state != TextState::Waiting {
                return (&text.ids, &text.logprobs);
            }
            next = text.parent;
        }
        (&[], &[])
    }

    /// The tokens behind the first `from` ones that every text begins with that may become the answer.
    pub(super) fn settled(&self, from: usize) -> Vec<Arc<TokenLogprob>> {
        let mut kept = self.all.iter().filter(|(_, text)| text.kept && !text.speculative).map(|(&id, _)| id);
        let Some(first) = kept.next() else { return Vec::new() };
        let (ids, logprobs) = self.known(first);
        let mut len = ids.len();
        for id in kept {
            let (other, _) = self.known(id);
            let pairs = ids.iter().zip(other).take(len).skip(from);
            len = (from + pairs.take_while(|(a, b)| a == b).count()).min(len);
        }
        logprobs.get(from..len).unwrap_or_default().to_vec()
    }
}

/// Distinguishes the method's own draws from those of tokens: "searches" in ASCII.
const OWN_DRAWS: u64 = 0x7365_6172_6368_6573;

/// A fault of a method, not of the request.
pub(super) fn unknown(what: &str) -> Error {
    Error::Backend(format!("a method {what} text that it does not know"))
}
