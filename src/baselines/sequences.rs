//! Which texts stay, which sequences of the models hold them, and what is run on these.
//!
//! A text is run on a sequence of its own, which forks off that of the text it goes on from. If nobody else needs that one, the
//! text takes it over: so a text that grows step by step stays on one sequence. What several texts have in common is run once,
//! before any of them; what only one text is left with is run together with it.

use super::text::{Need, State, Text, TextId, Track};
use super::texts::{Sequence, Texts};
use crate::model::Role;
use crate::task::{Ask, Liveness, SeqKey, Task, TaskOrigin};
use std::collections::BTreeMap;

/// What the texts that go on from a text need of it.
#[derive(Clone, Copy)]
struct Dependents {
    /// Of its row, to begin.
    row: Need,
    /// Texts that do not have its positions in the reward model by themselves.
    unscored: usize,
    /// What those need.
    reward: Need,
}

const NONE: Dependents = Dependents { row: Need::Nothing, unscored: 0, reward: Need::Nothing };

const BOTH: [Role; 2] = [Role::Policy, Role::Reward];

impl Texts {
    fn len_of(&self, ids: usize) -> usize {
        self.prompt.len() + ids
    }

    /// What a text before others is needed for, by its id.
    fn dependents(&self) -> BTreeMap<TextId, Dependents> {
        let mut found: BTreeMap<TextId, Dependents> = BTreeMap::new();
        for (&id, text) in self.all.iter().rev() {
            let own = if text.speculative { Need::Speculation } else { Need::Answer };
            let below = found.get(&id).copied().unwrap_or(NONE);
            let run = text.tracks[Role::Reward as usize].run;
            let open = text.wants_reward && text.reward.is_none();
            let reward = if open { own.max(below.reward) } else { below.reward };
            let Some(parent) = text.parent else { continue };
            let of_parent = found.entry(parent).or_insert(NONE);
            if text.state == State::Waiting && text.failed.is_none() {
                of_parent.row = of_parent.row.max(own);
            }
            let track = text.tracks[Role::Reward as usize];
            if !track.own && run < self.len_of(text.ids.len()) || text.state == State::Waiting {
                of_parent.unscored += 1;
                of_parent.reward = of_parent.reward.max(reward);
            }
        }
        found
    }

    /// Lets go of the texts that nobody needs. What goes on from them then goes on from what they went on from.
    pub(super) fn prune(&mut self) {
        self.inherit();
        loop {
            let dependents = self.dependents();
            let needless = self.all.iter().rev().find(|(id, text)| {
                let needed = dependents.get(*id).copied().unwrap_or(NONE);
                let run = text.tracks[Role::Reward as usize].run;
                let shared = text.state == State::Complete && run < self.len_of(text.ids.len()) && needed.unscored > 1;
                !text.kept && needed.row == Need::Nothing && !shared
            });
            let Some((&id, _)) = needless else { break };
            let Some(gone) = self.all.remove(&id) else { break };
            for text in self.all.values_mut().filter(|text| text.parent == Some(id)) {
                text.parent = gone.parent;
            }
        }
        for role in BOTH.map(|role| role as usize) {
            let all = &self.all;
            let used = |number: u32| number == 0 || all.values().any(|text| text.tracks[role].seq == number);
            self.sequences[role].retain(|&number, _| used(number));
        }
    }

    /// Brings texts up to date with what was run of the texts that they go on from.
    fn inherit(&mut self) {
        let ids: Vec<TextId> = self.all.keys().copied().collect();
        for id in ids {
            let Some(text) = self.all.get(&id).filter(|text| text.state != State::Waiting) else { continue };
            let Some(from) = text.parent.and_then(|parent| self.all.get(&parent)) else { continue };
            let (tracks, reward) = (from.tracks, from.reward.filter(|_| from.ids.len() == text.ids.len()));
            let Some(text) = self.all.get_mut(&id) else { continue };
            for (own, from) in text.tracks.iter_mut().zip(tracks) {
                if !own.own && own.run < from.run {
                    *own = Track { own: false, ..from };
                }
            }
            text.reward = text.reward.or(reward);
        }
    }

    /// Says of every text what is to be run of it, and on which sequence.
    pub(super) fn settle(&mut self) {
        let dependents = self.dependents();
        let prompt_len = self.prompt.len();
        let mut open: Vec<(TextId, usize)> = Vec::new();
        for (&id, text) in &mut self.all {
            let own = if text.speculative { Need::Speculation } else { Need::Answer };
            let below = dependents.get(&id).copied().unwrap_or(NONE);
            let row = match text.state {
                State::Waiting => Need::Nothing,
                State::Growing(_) => own,
                State::Complete if text.wants_row => own.max(below.row),
                State::Complete => below.row,
            };
            let scored = text.tracks[Role::Reward as usize].run >= prompt_len + text.ids.len();
            let shared = !scored && (text.kept || below.unscored > 1);
            let reward = match (text.wants_reward, shared) {
                (true, _) => own.max(if shared { below.reward } else { Need::Nothing }),
                (false, true) => below.reward,
                (false, false) => Need::Nothing,
            };
            let idle = text.failed.is_some();
            text.needs = [
                if idle || text.row.is_some() || text.stop.is_some() { Need::Nothing } else { row },
                if idle || scored || text.state != State::Complete { Need::Nothing } else { reward },
            ];
            for (need, given_up) in text.needs.iter_mut().zip(text.given_up) {
                if given_up && *need == Need::Speculation {
                    *need = Need::Nothing;
                }
            }
            open.extend(
                (0..2)
                    .filter(|&role| text.needs[role] != Need::Nothing && !text.tracks[role].own)
                    .map(|role| (id, role)),
            );
        }
        for (id, role) in open {
            if self.comes_after(id, role) {
                continue;
            }
            let Some(Track { seq, run, .. }) = self.all.get(&id).map(|text| text.tracks[role]) else { continue };
            let holds = |text: &Text| text.state != State::Waiting && text.tracks[role].seq == seq;
            let shared = self.all.iter().any(|(&other, text)| other != id && holds(text));
            let whole = self.sequences[role].get(&seq).is_some_and(|sequence| sequence.run == run);
            let seq = match !shared && whole {
                true => seq,
                false => {
                    self.numbers += 1;
                    let parent = (run > 0).then_some((seq, run));
                    self.sequences[role].insert(self.numbers, Sequence { run, parent });
                    self.numbers
                }
            };
            if let Some(text) = self.all.get_mut(&id) {
                text.tracks[role] = Track { seq, own: true, run };
            }
        }
    }

    /// Whether something that a text shares with others has to go through a model before it.
    fn comes_after(&self, id: TextId, role: usize) -> bool {
        let parent = self.all.get(&id).and_then(|text| text.parent);
        let parent = parent.and_then(|parent| self.all.get(&parent));
        role == Role::Reward as usize && parent.is_some_and(|text| text.tracks[role].run < self.len_of(text.ids.len()))
    }

    /// What is to be run now; what is needed first, older texts first.
    pub(super) fn tasks(&self, out: &mut Vec<Task>) {
        for need in [Need::Answer, Need::Speculation] {
            for (&id, text) in &self.all {
                for role in BOTH {
                    let (index, place) = (role as usize, id.0 as usize);
                    let track = text.tracks[index];
                    if text.needs[index] != need || !track.own || self.comes_after(id, index) {
                        continue;
                    }
                    let (ask, origin) = match role {
                        Role::Policy => (self.row_ask(), TaskOrigin::Decode(place)),
                        Role::Reward => (Ask::Reward { also_at: Vec::new(), gradient: None }, TaskOrigin::Score(place)),
                    };
                    let parent = self.sequences[index].get(&track.seq).and_then(|sequence| sequence.parent);
                    out.push(Task {
                        key: SeqKey { role, number: track.seq },
                        parent: parent.map(|(number, len)| (SeqKey { role, number }, len)),
                        len: self.len_of(text.ids.len()),
                        fresh: track.run,
                        speculative: need == Need::Speculation,
                        ask,
                        origin,
                    });
                }
            }
        }
    }

    /// Whether a sequence is still needed. The first one of each model holds the prompt, for later requests.
    pub(super) fn liveness(&self, key: SeqKey) -> Liveness {
        if key.number == 0 {
            return Liveness::Necessary;
        }
        let role = key.role as usize;
        let mut found = Liveness::Dead;
        for text in self.all.values().filter(|text| text.goes_on_in(role)) {
            let track = text.tracks[role];
            let forks = || {
                let sequence = self.sequences[role].get(&track.seq);
                sequence.is_some_and(|sequence| {
                    sequence.parent.is_some_and(|(from, len)| from == key.number && sequence.run == len)
                })
            };
            if track.seq == key.number || (track.own && forks()) {
                match text.speculative {
                    false => return Liveness::Necessary,
                    true => found = Liveness::Speculative,
                }
            }
        }
        found
    }
}
