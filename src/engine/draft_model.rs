//! A small model that guesses how texts go on: its sequences, and its passes.
//!
//! It has keys and values of its own, and sequences that follow those of the requests: each is cut back to what it has in
//! common with its request's text, and run on from there. A sequence that is not in memory is forked off another one of
//! its request. Nothing here can fail a request: where the model has no room or no answer, there is no guess.

use super::confidence::{Confidence, class};
use super::draft::{DraftSource, Guess};
use super::sequences::{Key, common};
use crate::kv::BLOCK;
use crate::model::{Model, PolicyRow, PolicySpan, SeqId, Span, TopK};
use crate::task::SeqKey;

/// After failures in a row the model is left alone for so many guesses, as a power of two.
const LONGEST_REST: u32 = 10;

/// A text that is to be guessed on.
pub(super) struct Wish {
    /// Its sequence.
    pub key: Key,
    /// All of its ids.
    pub text: Vec<u32>,
    /// Tokens to be guessed, at most; at least 1.
    pub most: usize,
    /// Ids that end it, behind which nothing comes.
    pub stop_ids: Vec<u32>,
    /// Ids are below this.
    pub vocab: usize,
    /// How often guesses of the request were right.
    pub confidence: Confidence,
    /// What a row costs as a part of what a token is worth, and what a step of the draft model does.
    pub price: [f64; 2],
}

/// What the draft model has run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DraftWork {
    /// Batches.
    pub batches: u64,
    /// Token positions in them.
    pub tokens: u64,
}

/// A sequence of the draft model, and the ids that it holds.
struct Held {
    key: Key,
    seq: SeqId,
    ids: Vec<u32>,
    used: u64,
}

/// A text that is being guessed on.
struct Guessing {
    /// Number of the wish.
    wish: usize,
    seq: SeqId,
    /// Ids that its sequence is to be run on with.
    next: Vec<u32>,
    guess: Guess,
    /// The chance that all of the guess is right.
    chance: f64,
    /// The model was asked, and its first token is not worth a row.
    vain: bool,
}

/// What became of a pass: the texts that were run with their rows, and those that were not.
struct Pass {
    ran: Vec<(Guessing, PolicyRow)>,
    over: Vec<Guessing>,
}

/// The draft model's sequences.
#[derive(Default)]
pub(super) struct DraftSequences {
    held: Vec<Held>,
    clock: u64,
    failures: u32,
    rest: u32,
    work: DraftWork,
}

impl DraftSequences {
    /// What the model has run.
    pub fn work(&self) -> DraftWork {
        self.work
    }

    /// Guesses how texts go on, with at most `budget` tokens of them that the model has not seen. A text that is longer
    /// has no guess until the model has read it. A guess without ids: the model was asked in vain.
    pub fn guess(&mut self, model: &mut dyn Model, wishes: &[Wish], budget: usize) -> Vec<Option<Guess>> {
        let mut guesses: Vec<Option<Guess>> = wishes.iter().map(|_| None).collect();
        if self.rest > 0 {
            self.rest -= 1;
            return guesses;
        }
        self.clock += 1;
        let (failures, mut broken) = (self.failures, false);
        let mut guessing = self.open(model, wishes, budget);
        while !guessing.is_empty() {
            // What was guessed before a pass that failed, or had no room, is as good as it was.
            let Pass { ran, mut over } = self.run(model, std::mem::take(&mut guessing));
            for (mut text, row) in ran {
                let wish = &wishes[text.wish];
                let read = model.len(text.seq) == wish.text.len() + text.guess.ids.len();
                let more = read && text.take(wish, &row, model.max_len());
                if !row.stats.finite {
                    self.release(model, text.seq);
                    broken = true;
                }
                if more { &mut guessing } else { &mut over }.push(text);
            }
            for text in over.into_iter().filter(|text| text.vain || !text.guess.ids.is_empty()) {
                guesses[text.wish] = Some(text.guess);
            }
        }
        if broken {
            self.failed();
        }
        if self.failures == failures {
            self.failures = 0;
        }
        guesses
    }

    /// Brings the sequences of texts into memory as far as others have them, and says what each is to be run on with.
    fn open(&mut self, model: &mut dyn Model, wishes: &[Wish], budget: usize) -> Vec<Guessing> {
        let (mut guessing, mut left) = (Vec::<Guessing>::new(), budget.max(1));
        let vocab = model.config().vocab_size;
        for (number, wish) in wishes.iter().enumerate() {
            let text = &wish.text;
            let known = |id: &u32| (*id as usize) < vocab;
            // One block more: a fork has a copy of the block it parts in.
            let needed = (text.len() + wish.most).div_ceil(BLOCK) + 1;
            let there = model.blocks_free().saturating_add(model.blocks_in_use());
            if left == 0
                || text.is_empty()
                || text.len() >= model.max_len()
                || needed > there
                || !text.iter().all(known)
            {
                continue;
            }
            let busy: Vec<SeqId> = guessing.iter().map(|text| text.seq).collect();
            let Some((seq, start)) = self.sequence(model, wish.key, text, &busy) else { continue };
            let next: Vec<u32> = text[start..].iter().copied().take(left).collect();
            left -= next.len();
            let guess = Guess { ids: Vec::new(), source: DraftSource::Model, matched: 0, classes: Vec::new() };
            guessing.push(Guessing { wish: number, seq, next, guess, chance: 1.0, vain: false });
        }
        guessing
    }

    /// The sequence of a text, and how many of its ids it holds: not the last one, whose row is asked for.
    fn sequence(&mut self, model: &mut dyn Model, key: Key, text: &[u32], busy: &[SeqId]) -> Option<(SeqId, usize)> {
        let shared = |held: &Held| common(&held.ids, text).min(text.len().saturating_sub(1));
        if let Some(held) = self.held.iter_mut().find(|held| held.key == key) {
            let len = shared(held);
            held.used = self.clock;
            held.ids.truncate(len);
            let seq = held.seq;
            if model.len(seq) > len && model.truncate(seq, len).is_err() || model.len(seq) != len {
                self.release(model, seq);
                return None;
            }
            return Some((seq, len));
        }
        let of_request = self.held.iter_mut().filter(|held| held.key.0 == key.0);
        let best = of_request.map(|held| (shared(held), held)).max_by_key(|(len, _)| *len).filter(|(len, _)| *len > 0);
        let (seq, len, ids) = match best {
            Some((len, held)) => {
                held.used = self.clock;
                let (parent, ids) = (held.seq, held.ids[..len].to_vec());
                let forked = loop {
                    match model.fork(parent, len) {
                        Ok(seq) => break Some(seq),
                        Err(_) if self.evict(model, &|seq| seq == parent || busy.contains(&seq)) => {}
                        Err(_) => break None,
                    }
                };
                (forked?, len, ids)
            }
            None => (model.create().ok()?, 0, Vec::new()),
        };
        self.held.push(Held { key, seq, ids, used: self.clock });
        Some((seq, len))
    }

    /// Runs a pass over the texts for which there is room.
    fn run(&mut self, model: &mut dyn Model, guessing: Vec<Guessing>) -> Pass {
        let busy: Vec<SeqId> = guessing.iter().map(|text| text.seq).collect();
        let (mut promised, mut ready, mut over) = (0_usize, Vec::with_capacity(guessing.len()), Vec::new());
        for text in guessing {
            let needed = promised.saturating_add(model.blocks_needed(text.seq, text.next.len()));
            while needed > model.blocks_free() && self.evict(model, &|seq| busy.contains(&seq)) {}
            if needed <= model.blocks_free() {
                promised = needed;
                ready.push(text);
            } else {
                // A sequence without a token is of no use to the next guess either.
                if model.len(text.seq) == 0 {
                    self.release(model, text.seq);
                }
                over.push(text);
            }
        }
        if ready.is_empty() {
            return Pass { ran: Vec::new(), over };
        }
        let spans = ready.iter().map(|text| PolicySpan {
            span: Span { seq: text.seq, start: model.len(text.seq), ids: &text.next },
            floor: 0.0,
            top_k: TopK::Skip,
            before: &[],
        });
        let spans: Vec<PolicySpan<'_>> = spans.collect();
        self.work.batches += 1;
        self.work.tokens += spans.iter().map(|span| span.span.ids.len() as u64).sum::<u64>();
        let vocab = model.config().vocab_size;
        let rows = model.step(&spans, vocab, &mut || ()).ok().filter(|rows| rows.len() == spans.len());
        let Some(rows) = rows else {
            // What their sequences hold now is not known.
            ready.iter().for_each(|text| self.release(model, text.seq));
            self.failed();
            over.extend(ready);
            return Pass { ran: Vec::new(), over };
        };
        for text in &ready {
            if let Some(held) = self.held.iter_mut().find(|held| held.seq == text.seq) {
                held.ids.extend_from_slice(&text.next);
            }
        }
        Pass { ran: ready.into_iter().zip(rows).collect(), over }
    }

    /// Leaves the model alone for a while, longer each time.
    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.rest = 1 << self.failures.min(LONGEST_REST);
    }

    /// Releases the sequence that was least recently used, but for some. False if there is none.
    fn evict(&mut self, model: &mut dyn Model, but: &dyn Fn(SeqId) -> bool) -> bool {
        let oldest = self.held.iter().filter(|held| !but(held.seq)).min_by_key(|held| held.used).map(|held| held.seq);
        oldest.inspect(|&seq| self.release(model, seq)).is_some()
    }

    fn release(&mut self, model: &mut dyn Model, seq: SeqId) {
        self.held.retain(|held| held.seq != seq);
        model.release(seq);
    }

    /// Releases the sequences of a request that are dead.
    pub fn forget(&mut self, model: Option<&mut (dyn Model + '_)>, request: u64, dead: impl Fn(SeqKey) -> bool) {
        let Some(model) = model else { return };
        self.held.retain(|held| {
            let dead = held.key.0 == request && dead(held.key.1);
            if dead {
                model.release(held.seq);
            }
            !dead
        });
    }

    /// Releases all sequences.
    pub fn clear(&mut self, model: Option<&mut (dyn Model + '_)>) {
        let Some(model) = model else { return };
        for held in self.held.drain(..) {
            model.release(held.seq);
        }
    }
}

impl Guessing {
    /// Takes the token that a row says comes next. Whether the next one is worth a pass.
    fn take(&mut self, wish: &Wish, row: &PolicyRow, max_len: usize) -> bool {
        let (id, [row_price, step_price]) = (row.stats.argmax, wish.price);
        if !row.stats.finite || wish.stop_ids.contains(&id) {
            return false;
        }
        let class = class(row.stats.max_probability);
        let chance = self.chance * wish.confidence.rate(class);
        if chance <= row_price || (id as usize) >= wish.vocab {
            self.vain = self.guess.ids.is_empty();
            return false;
        }
        self.guess.ids.push(id);
        self.guess.classes.push(class);
        (self.chance, self.next) = (chance, vec![id]);
        let within = wish.text.len() + self.guess.ids.len() < max_len;
        self.guess.ids.len() < wish.most && within && chance * wish.confidence.mean() > row_price + step_price
    }
}
