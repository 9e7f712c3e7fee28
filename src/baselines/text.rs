//! One text of a search: its ids, how it goes on, and what the models have said of it.

use crate::answer::{StopReason, TokenLogprob};
use crate::model::{Role, RowStats};
use crate::sampling::{CompletionSpec, Counts, StopCheck, choose_of, reported};
use crate::task::PolicyOutput;
use crate::{Error, Result};
use std::sync::{Arc, OnceLock};

/// A text of a search. Numbers ascend and are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TextId(pub(super) u32);

/// How a text goes on. It ends earlier at a stop id, at the caller's stop check and at the budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Growth {
    /// By tokens that are drawn from the policy as the request's spec says.
    Sampled {
        /// Which random numbers: a token depends on the seed, on this, on the number of tokens before it in the answer and on
        /// the policy's row. The n-th completion of plain sampling is stream n.
        stream: u64,
        /// Tokens, at most; at least one is drawn.
        tokens: usize,
        /// Whether it ends before a token that the policy is uncertain of.
        until: Option<Uncertain>,
    },
    /// By this token.
    Token(u32),
}

impl Growth {
    /// A whole answer.
    pub fn to_the_end(stream: u64) -> Growth {
        Growth::Sampled { stream, tokens: usize::MAX, until: None }
    }
}

/// Where the policy is uncertain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uncertain {
    /// Least entropy of the untempered distribution, in nats.
    pub entropy: f64,
    /// Tokens that a text goes on by before the entropy counts; 0 is the same as 1.
    pub min_tokens: usize,
}

/// How far a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextState {
    /// What it goes on from has not ended yet, or the row behind that is not known.
    Waiting,
    /// It has so many ids from what it goes on from.
    Growing(usize),
    /// It has all of its ids.
    Complete,
}

/// What something is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    Nothing,
    /// It may turn out to be needed.
    Speculation,
    Answer,
}

/// Where a text is in one of the models.
#[derive(Clone, Copy, Debug)]
pub(super) struct Track {
    /// The sequence that holds its first positions.
    pub seq: u32,
    /// Whether that is its own: only then may more of the text be run on it.
    pub own: bool,
    /// Positions of the text, prompt included, that were run.
    pub run: usize,
}

/// What holds for all texts of a request.
pub(super) struct Rules<'a> {
    pub spec: &'a CompletionSpec,
    /// Ids that the reward model knows.
    pub reward_vocab: usize,
    /// Whether log-probabilities are kept.
    pub record: bool,
}

/// The policy's row behind a text.
pub(super) struct TextRow {
    pub output: PolicyOutput,
    /// Statistics of its logits. All texts that go on from here draw by them, so they are computed once.
    of_logits: OnceLock<RowStats>,
}

impl TextRow {
    pub fn new(output: PolicyOutput) -> TextRow {
        TextRow { output, of_logits: OnceLock::new() }
    }
}

/// A text.
pub(super) struct Text {
    /// Behind the prompt.
    pub ids: Vec<u32>,
    /// Per id, if they are kept. Texts that go on from this one share them.
    pub logprobs: Vec<Arc<TokenLogprob>>,
    /// Empty if there are no penalties: nothing else asks for them.
    counts: Counts,
    /// It has been shown the ids. None if nothing is to be found, or it has been.
    check: Option<StopCheck>,
    /// Why it cannot go on.
    pub stop: Option<StopReason>,
    /// The policy's row behind the last id.
    pub row: Option<Arc<TextRow>>,
    /// At the last id.
    pub reward: Option<f32>,
    /// What it goes on from and how; the prompt goes on from nothing.
    pub origin: Option<(TextId, Growth)>,
    /// The nearest text before it that is still there.
    pub parent: Option<TextId>,
    pub state: TextState,
    /// Whether the method has use for it.
    pub kept: bool,
    /// Whether the method may turn out not to ask for it.
    pub speculative: bool,
    pub wants_row: bool,
    pub wants_reward: bool,
    /// Whether the method has ever asked for its row and its reward: what it has not asked for it is not told, for that
    /// may be known in one batch and not in another.
    pub asked: [bool; 2],
    /// What the policy's row and the reward are run for.
    pub needs: [Need; 2],
    /// Whether the policy's row and the reward could not be run ahead of need: they are run again when they are needed.
    pub given_up: [bool; 2],
    /// Positions that were run in each model before they were needed.
    pub uncounted: [usize; 2],
    pub failed: Option<Error>,
    /// In the policy and in the reward model.
    pub tracks: [Track; 2],
}

impl Text {
    /// The prompt.
    pub fn prompt(prompt: &[u32], spec: &CompletionSpec) -> Text {
        let trunk = Track { seq: 0, own: true, run: 0 };
        Text {
            ids: Vec::new(),
            logprobs: Vec::new(),
            counts: if spec.sampling.penalises() { Counts::new(prompt) } else { Counts::default() },
            check: spec.stop_check.as_ref().map(|new| new()),
            stop: None,
            row: None,
            reward: None,
            origin: None,
            parent: None,
            state: TextState::Complete,
            kept: true,
            speculative: false,
            wants_row: false,
            wants_reward: false,
            asked: [false; 2],
            needs: [Need::Nothing; 2],
            given_up: [false; 2],
            uncounted: [0; 2],
            failed: None,
            tracks: [trunk; 2],
        }
    }

    /// A text that goes on from another one, once that is complete.
    pub fn after(from: TextId, growth: Growth, speculative: bool) -> Text {
        let nowhere = Track { seq: 0, own: false, run: 0 };
        Text {
            ids: Vec::new(),
            logprobs: Vec::new(),
            counts: Counts::default(),
            check: None,
            stop: None,
            row: None,
            reward: None,
            origin: Some((from, growth)),
            parent: Some(from),
            state: TextState::Waiting,
            kept: true,
            speculative,
            wants_row: false,
            wants_reward: false,
            asked: [false; 2],
            needs: [Need::Nothing; 2],
            given_up: [false; 2],
            uncounted: [0; 2],
            failed: None,
            tracks: [nowhere; 2],
        }
    }

    /// Takes over what is known of the text that it goes on from, which is complete.
    pub fn begin(&mut self, from: &Text) {
        self.ids.clone_from(&from.ids);
        self.logprobs.clone_from(&from.logprobs);
        self.counts.clone_from(&from.counts);
        self.stop = from.stop;
        self.row.clone_from(&from.row);
        self.tracks = from.tracks.map(|track| Track { own: false, ..track });
        self.state = match self.stop {
            Some(_) => {
                self.reward = from.reward;
                self.asked[Role::Reward as usize] |= from.asked[Role::Reward as usize];
                TextState::Complete
            }
            None => TextState::Growing(self.ids.len()),
        };
        self.check = from.check.as_ref().map(|check| check.fork());
    }

    /// Goes on as far as the policy's rows are known. Returns the tokens that were added.
    pub fn grow(&mut self, rules: &Rules<'_>) -> Result<usize> {
        let mut added = 0;
        while let (TextState::Growing(start), Some((_, growth)), Some(row)) = (self.state, self.origin, &self.row) {
            let grown = self.ids.len() - start;
            let limit = match growth {
                Growth::Sampled { until: Some(until), .. }
                    if grown >= until.min_tokens.max(1) && row.output.row.stats.entropy >= until.entropy =>
                {
                    self.state = TextState::Complete;
                    break;
                }
                Growth::Sampled { tokens, .. } => tokens.max(1),
                Growth::Token(_) => 1,
            };
            let row = row.clone();
            self.push(growth, &row, rules)?;
            self.row = None;
            added += 1;
            if self.stop.is_some() || grown + 1 >= limit {
                self.state = TextState::Complete;
            }
        }
        Ok(added)
    }

    /// Adds the next token.
    fn push(&mut self, growth: Growth, row: &TextRow, rules: &Rules<'_>) -> Result<()> {
        let TextRow { output, of_logits } = row;
        let (sampling, stats) = (&rules.spec.sampling, &output.row.stats);
        let index = self.ids.len() as u64;
        let argmax = TokenLogprob {
            id: stats.argmax,
            logprob: stats.max_probability.ln(),
            entropy: stats.entropy,
            top: Vec::new(),
        };
        let chosen = match (growth, &output.logits) {
            (Growth::Sampled { stream, .. }, Some(logits)) => {
                let stats = of_logits.get_or_init(|| RowStats::of(logits, 0.0));
                choose_of(logits, stats, sampling, &self.counts, (stream, index))
            }
            (Growth::Sampled { .. }, None) => argmax,
            (Growth::Token(id), Some(logits)) => reported(logits, stats, id, sampling.logprobs),
            (Growth::Token(id), None) if id == stats.argmax => argmax,
            (Growth::Token(id), None) => {
                let logit = output.row.top.iter().find(|&&(other, _)| other == id).map(|&(_, logit)| logit);
                let logprob = logit.map_or(f64::NAN, |logit| f64::from(logit) - stats.log_sum_exp);
                TokenLogprob { id, logprob, ..argmax }
            }
        };
        let id = chosen.id;
        if id as usize >= rules.reward_vocab {
            return Err(Error::invalid(format!(
                "the policy chose id {id}, which the reward model cannot read: its vocabulary has {} ids",
                rules.reward_vocab
            )));
        }
        self.ids.push(id);
        if sampling.penalises() {
            self.counts.push(id);
        }
        if rules.record {
            self.logprobs.push(Arc::new(chosen));
        }
        if rules.spec.stop_ids.contains(&id) || self.check.as_mut().is_some_and(|check| check.ends_with(id)) {
            self.stop = Some(StopReason::Stop);
        } else if self.ids.len() >= rules.spec.max_new_tokens {
            self.stop = Some(StopReason::Length);
        }
        if self.stop.is_some() {
            self.check = None;
        }
        Ok(())
    }

    /// The reward, if the method has asked for it.
    pub fn asked_reward(&self) -> Option<f32> {
        self.reward.filter(|_| self.asked[Role::Reward as usize])
    }

    /// What anything that it asks for is run for.
    pub fn urgency(&self) -> Need {
        if self.speculative { Need::Speculation } else { Need::Answer }
    }

    /// Whether its reward is to be run: that of a text that is made ahead as well, for the method will mostly ask for
    /// it.
    pub fn scores(&self) -> bool {
        self.wants_reward || self.speculative && self.kept
    }

    /// Whether a model may be asked for more of it.
    pub fn goes_on_in(&self, role: usize) -> bool {
        self.stop.is_none() || (role == 1 && self.reward.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PolicyRow;
    use crate::sampling::Sampling;

    fn row(logits: Vec<f32>) -> TextRow {
        let stats = RowStats::of(&logits, 0.0);
        TextRow::new(PolicyOutput { row: PolicyRow { stats, top: Vec::new() }, logits: Some(logits) })
    }

    fn spec() -> CompletionSpec {
        let sampling = Sampling { temperature: 1.0, logprobs: Some(1), ..Sampling::default() };
        CompletionSpec { sampling, ..CompletionSpec::default() }
    }

    /// A text of one token more.
    fn longer(from: &Text, stream: u64, rules: &Rules<'_>) -> Text {
        let mut text = Text::after(TextId(0), Growth::Sampled { stream, tokens: 1, until: None }, false);
        text.begin(from);
        assert_eq!(text.grow(rules).unwrap(), 1);
        text
    }

    #[test]
    fn texts_draw_from_one_row_by_the_same_statistics() {
        let spec = spec();
        let rules = Rules { spec: &spec, reward_vocab: 3, record: true };
        let mut prompt = Text::prompt(&[0], &spec);
        let known = row(vec![1.0, 2.0, 0.5]);
        // Statistics that nobody would compute from the logits.
        let odd = RowStats { entropy: 7.5, ..known.output.row.stats };
        known.of_logits.set(odd).unwrap();
        prompt.row = Some(Arc::new(known));
        for stream in 0..4 {
            let text = longer(&prompt, stream, &rules);
            assert_eq!(text.logprobs[0].entropy, 7.5, "computed again for stream {stream}");
        }
    }

    #[test]
    fn texts_share_the_log_probabilities_of_their_beginning() {
        let spec = spec();
        let rules = Rules { spec: &spec, reward_vocab: 3, record: true };
        let mut prompt = Text::prompt(&[0], &spec);
        prompt.row = Some(Arc::new(row(vec![1.0, 2.0, 0.5])));
        let mut first = longer(&prompt, 0, &rules);
        first.row = Some(Arc::new(row(vec![0.0, 0.0, 0.0])));
        let both = [longer(&first, 1, &rules), longer(&first, 2, &rules)];
        assert!(both.iter().all(|text| text.logprobs.len() == 2 && Arc::ptr_eq(&text.logprobs[0], &first.logprobs[0])));
        assert_eq!(Arc::strong_count(&first.logprobs[0]), 3);
    }
}
