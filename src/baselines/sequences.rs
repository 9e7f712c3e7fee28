//! Which texts stay, which sequences of the models hold them, and what is run on these.
//!
//! A text is run on a sequence of its own, which forks off that of the text it goes on from. If nobody else needs that one, the
//! text takes it over: so a text that grows step by step stays on one sequence. What several texts have in common is run once,
//! before any of them; what only one text is left with is run together with it.

use super::text::{Need, Text, TextId, TextState, Track};
use super::texts::{Sequence, Texts};
use crate::model::Role;
use crate::task::{Ask, Liveness, SeqKey, Task, TaskOrigin};
use std::collections::{BTreeMap, BTreeSet};

/// What the texts that go on from a text need of it.
#[derive(Clone, Copy)]
struct Dependents {
    /// Of its row, to begin.
    row: Need,
    /// Texts that do not have its positions in the reward model by themselves.
    unscored: usize,
    /// What those need.
    reward: Need,
    /// Whether there are any texts.
    any: bool,
}

const NONE: Dependents = Dependents { row: Need::Nothing, unscored: 0, reward: Need::Nothing, any: false };

impl Dependents {
    fn add(&mut self, more: Dependents) {
        self.row = self.row.max(more.row);
        self.unscored += more.unscored;
        self.reward = self.reward.max(more.reward);
        self.any |= more.any;
    }
}

const BOTH: [Role; 2] = [Role::Policy, Role::Reward];

impl Texts {
    fn len_of(&self, ids: usize) -> usize {
        self.prompt.len() + ids
    }

    /// What a text needs of the one that it goes on from, where this is needed of itself.
    fn needs_of_parent(&self, text: &Text, below: Dependents) -> Dependents {
        let own = text.urgency();
        let waits = text.state == TextState::Waiting;
        let track = text.tracks[Role::Reward as usize];
        let open = text.scores() && text.reward.is_none();
        let reward = if open { own.max(below.reward) } else { below.reward };
        let row = if waits && text.failed.is_none() { own } else { Need::Nothing };
        match waits || !track.own && track.run < self.len_of(text.ids.len()) {
            true => Dependents { row, unscored: 1, reward, any: true },
            false => Dependents { row, any: true, ..NONE },
        }
    }

    /// What a text before others is needed for, by its id.
    fn dependents(&self) -> BTreeMap<TextId, Dependents> {
        let mut found: BTreeMap<TextId, Dependents> = BTreeMap::new();
        // What goes on from a text has a larger number.
        for (id, text) in self.all.iter().rev() {
            let below = found.get(id).copied().unwrap_or(NONE);
            if let Some(parent) = text.parent {
                found.entry(parent).or_insert(NONE).add(self.needs_of_parent(text, below));
            }
        }
        found
    }

    /// Lets go of the texts that nobody needs. What goes on from them then goes on from what they went on from.
    pub(super) fn prune(&mut self) {
        self.inherit();
        let mut found: BTreeMap<TextId, Dependents> = BTreeMap::new();
        let mut gone: BTreeMap<TextId, Option<TextId>> = BTreeMap::new();
        // From the last one on, so that all that goes on from a text was looked at before it.
        for (&id, text) in self.all.iter().rev() {
            let below = found.get(&id).copied().unwrap_or(NONE);
            let run = text.tracks[Role::Reward as usize].run;
            let shared = text.state == TextState::Complete && run < self.len_of(text.ids.len()) && below.unscored > 1;
            // Rewards that were run ahead count once the method asks for one behind them.
            let uncounted = text.uncounted[Role::Reward as usize] > 0 && below.any;
            let needless = !text.kept && below.row == Need::Nothing && !shared && !uncounted;
            if needless {
                gone.insert(id, text.parent);
            }
            if let Some(parent) = text.parent {
                let needs = if needless { below } else { self.needs_of_parent(text, below) };
                found.entry(parent).or_insert(NONE).add(needs);
            }
        }
        if !gone.is_empty() {
            self.all.retain(|id, _| !gone.contains_key(id));
            for text in self.all.values_mut() {
                while let Some(&before) = text.parent.and_then(|parent| gone.get(&parent)) {
                    text.parent = before;
                }
            }
        }
        for role in BOTH.map(|role| role as usize) {
            let used: BTreeSet<u32> = self.all.values().map(|text| text.tracks[role].seq).collect();
            self.sequences[role].retain(|number, _| *number == 0 || used.contains(number));
        }
    }

    /// Brings texts up to date with what was run of the texts that they go on from.
    fn inherit(&mut self) {
        let ids: Vec<TextId> = self.all.keys().copied().collect();
        for id in ids {
            let Some(text) = self.all.get(&id).filter(|text| text.state != TextState::Waiting) else { continue };
            let Some(from) = text.parent.and_then(|parent| self.all.get(&parent)) else { continue };
            let (tracks, asked) = (from.tracks, from.asked[Role::Reward as usize]);
            let reward = from.reward.filter(|_| from.ids.len() == text.ids.len());
            let Some(text) = self.all.get_mut(&id) else { continue };
            for (own, from) in text.tracks.iter_mut().zip(tracks) {
                if !own.own && own.run < from.run {
                    *own = Track { own: false, ..from };
                }
            }
            if reward.is_some() {
                text.reward = text.reward.or(reward);
                text.asked[Role::Reward as usize] |= asked;
            }
        }
    }

    /// Says of every text what is to be run of it, and on which sequence.
    pub(super) fn settle(&mut self) {
        let dependents = self.dependents();
        let prompt_len = self.prompt.len();
        let mut open: Vec<(TextId, usize)> = Vec::new();
        for (&id, text) in &mut self.all {
            let own = text.urgency();
            let below = dependents.get(&id).copied().unwrap_or(NONE);
            let row = match text.state {
                TextState::Waiting => Need::Nothing,
                TextState::Growing(_) => own,
                TextState::Complete if text.wants_row => own.max(below.row),
                TextState::Complete => below.row,
            };
            let scored = text.tracks[Role::Reward as usize].run >= prompt_len + text.ids.len();
            let shared = !scored && (text.kept || below.unscored > 1);
            let reward = match (text.scores(), shared) {
                (true, _) => own.max(if shared { below.reward } else { Need::Nothing }),
                (false, true) => below.reward,
                (false, false) => Need::Nothing,
            };
            let idle = text.failed.is_some();
            text.needs = [
                if idle || text.row.is_some() || text.stop.is_some() { Need::Nothing } else { row },
                if idle || scored || text.state != TextState::Complete { Need::Nothing } else { reward },
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
        // How many texts a sequence holds positions of.
        let mut holds: [BTreeMap<u32, usize>; 2] = Default::default();
        if !open.is_empty() {
            for text in self.all.values().filter(|text| text.state != TextState::Waiting) {
                for (holds, track) in holds.iter_mut().zip(text.tracks) {
                    *holds.entry(track.seq).or_default() += 1;
                }
            }
        }
        for (id, role) in open {
            if self.comes_after(id, role) {
                continue;
            }
            let Some(Track { seq, run, .. }) = self.all.get(&id).map(|text| text.tracks[role]) else { continue };
            let shared = holds[role].get(&seq).is_some_and(|&texts| texts > 1);
            let whole = self.sequences[role].get(&seq).is_some_and(|sequence| sequence.run == run);
            let seq = match !shared && whole {
                true => seq,
                false => {
                    self.numbers += 1;
                    let parent = (run > 0).then_some((self.holder(role, seq), run));
                    self.sequences[role].insert(self.numbers, Sequence { run, parent });
                    if let Some(texts) = holds[role].get_mut(&seq) {
                        *texts -= 1;
                    }
                    holds[role].insert(self.numbers, 1);
                    self.numbers
                }
            };
            if let Some(text) = self.all.get_mut(&id) {
                text.tracks[role] = Track { seq, own: true, run };
            }
        }
        self.live = [0, 1].map(|role| self.live(role));
    }

    /// The sequence that really holds the first positions of a text on this one: as long as it has not been run since
    /// it forked off, they are where it forked off.
    fn holder(&self, role: usize, seq: u32) -> u32 {
        match self.sequences[role].get(&seq) {
            Some(&Sequence { run, parent: Some((from, len)) }) if run == len => from,
            _ => seq,
        }
    }

    /// The sequences of a model that are still needed, and whether only for what may not be.
    fn live(&self, role: usize) -> BTreeMap<u32, Liveness> {
        let mut live = BTreeMap::new();
        for text in self.all.values().filter(|text| text.goes_on_in(role)) {
            let seq = text.tracks[role].seq;
            for number in [seq, self.holder(role, seq)] {
                match text.speculative {
                    false => {
                        live.insert(number, Liveness::Necessary);
                    }
                    true => {
                        live.entry(number).or_insert(Liveness::Speculative);
                    }
                }
            }
        }
        live
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
                        chance: 1.0,
                        ask,
                        origin,
                    });
                }
            }
        }
    }

    /// Whether a sequence is still needed, as of the last time that everything was [settled](Texts::settle). The first
    /// one of each model holds the prompt, for later requests.
    pub(super) fn liveness(&self, key: SeqKey) -> Liveness {
        match key.number {
            0 => Liveness::Necessary,
            number => self.live[key.role as usize].get(&number).copied().unwrap_or(Liveness::Dead),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::Growth;
    use super::*;
    use crate::sampling::CompletionSpec;
    use proptest::prelude::*;
    use std::time::Instant;

    /// A text that goes on from an earlier one.
    #[derive(Clone, Copy, Debug)]
    struct TestText {
        from: usize,
        kept: bool,
        speculative: bool,
        waiting: bool,
        failed: bool,
        own: bool,
        /// Positions of it that the reward model has not run.
        unrun: usize,
        wants_reward: bool,
        uncounted: bool,
    }

    fn texts(all: &[TestText]) -> Texts {
        let mut texts = Texts::new(&[1, 2], CompletionSpec::default(), 9, 0);
        texts.keep(&[]);
        let mut ids = vec![texts.prompt()];
        for (number, made) in all.iter().enumerate() {
            let from = ids[made.from % ids.len()];
            let growth = Growth::Sampled { stream: number as u64, tokens: 1, until: None };
            let id = texts.extend(from, growth);
            let len = texts.ids(from).len() + 1;
            let text = texts.all.get_mut(&id).unwrap();
            (text.kept, text.speculative, text.wants_reward) = (made.kept, made.speculative, made.wants_reward);
            text.failed = made.failed.then(|| crate::Error::invalid("so"));
            text.uncounted[1] = usize::from(made.uncounted);
            if !made.waiting {
                (text.state, text.ids) = (TextState::Complete, vec![3; len]);
                text.tracks = [Track { seq: id.0, own: made.own, run: (2 + len).saturating_sub(made.unrun) }; 2];
            }
            ids.push(id);
        }
        texts
    }

    /// One text after the other, each time from all that are left.
    fn prune_slowly(texts: &mut Texts) {
        texts.inherit();
        loop {
            let dependents = texts.dependents();
            let needless = texts.all.iter().rev().find(|(id, text)| {
                let needed = dependents.get(*id).copied().unwrap_or(NONE);
                let run = text.tracks[Role::Reward as usize].run;
                let shared = text.state == TextState::Complete && run < 2 + text.ids.len() && needed.unscored > 1;
                let uncounted = text.uncounted[1] > 0 && texts.all.values().any(|text| text.parent == Some(**id));
                !text.kept && needed.row == Need::Nothing && !shared && !uncounted
            });
            let Some((&id, _)) = needless else { return };
            let gone = texts.all.remove(&id).unwrap();
            texts.all.values_mut().filter(|text| text.parent == Some(id)).for_each(|text| text.parent = gone.parent);
        }
    }

    prop_compose! {
        fn made()(
            from: usize,
            kept in prop::bool::weighted(0.3),
            speculative: bool,
            waiting in prop::bool::weighted(0.3),
            failed in prop::bool::weighted(0.1),
            own: bool,
            unrun in 0usize..4,
            wants_reward: bool,
            uncounted in prop::bool::weighted(0.2),
        ) -> TestText {
            TestText { from, kept, speculative, waiting, failed, own, unrun, wants_reward, uncounted }
        }
    }

    proptest! {
        #[test]
        fn texts_go_as_if_one_after_the_other(all in prop::collection::vec(made(), 0..30)) {
            let (mut fast, mut slow) = (texts(&all), texts(&all));
            fast.prune();
            prune_slowly(&mut slow);
            let left = |texts: &Texts| texts.all.iter().map(|(&id, text)| (id, text.parent)).collect::<Vec<_>>();
            prop_assert_eq!(left(&fast), left(&slow));
        }
    }

    #[test]
    fn many_texts_go_at_once() {
        let one = |number: usize| TestText {
            from: number / 2,
            kept: number % 100 == 99,
            speculative: false,
            waiting: false,
            failed: false,
            own: true,
            unrun: 0,
            wants_reward: false,
            uncounted: false,
        };
        let mut texts = texts(&(0..10_000).map(one).collect::<Vec<TestText>>());
        let started = Instant::now();
        texts.prune();
        assert_eq!(texts.all.len(), 100);
        // It takes milliseconds; the square of the number of texts would take far longer.
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    /// Texts may be where another one was to be run, which has gone since without being run.
    #[test]
    fn where_a_sequence_forks_off_is_needed_until_it_is_run() {
        let mut texts = Texts::new(&[1, 2], CompletionSpec::default(), 9, 0);
        let growth = |stream| Growth::Sampled { stream, tokens: 1, until: None };
        let first = texts.extend(texts.prompt(), growth(0));
        let second = texts.extend(first, growth(1));
        let reward = Role::Reward as usize;
        texts.sequences[reward].insert(4, Sequence { run: 2, parent: None });
        texts.sequences[reward].insert(5, Sequence { run: 2, parent: Some((4, 2)) });
        let on = |texts: &mut Texts, id: TextId, len: usize, own: bool| {
            let text = texts.all.get_mut(&id).unwrap();
            (text.state, text.ids, text.failed) = (TextState::Complete, vec![3; len], None);
            text.tracks = [Track { seq: 0, own: false, run: 2 }, Track { seq: 5, own, run: 2 }];
        };
        on(&mut texts, first, 1, true);
        on(&mut texts, second, 2, false);
        texts.keep(&[second]);
        texts.prune();
        texts.settle();
        assert!(texts.all.keys().eq(&[second]), "nobody needs the first one");
        let key = |number| SeqKey { role: Role::Reward, number };
        assert_eq!(texts.liveness(key(4)), Liveness::Necessary);
        assert_eq!(texts.liveness(key(3)), Liveness::Dead);
        // A third text on the same sequence, and both are scored.
        let third = texts.extend(texts.prompt(), growth(2));
        on(&mut texts, third, 2, false);
        texts.all.get_mut(&third).unwrap().parent = None;
        [second, third].into_iter().for_each(|id| texts.score(id));
        texts.settle();
        let mut tasks = Vec::new();
        texts.tasks(&mut tasks);
        let parents: Vec<_> = tasks.iter().map(|task| task.parent).collect();
        assert_eq!(parents, [Some((key(4), 2)); 2], "sequence 5 was never run");
    }
}
