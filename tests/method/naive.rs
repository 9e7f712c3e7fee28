//! The algorithm as its definition states it, recomputing everything: every prefix for every token, every repeat, every
//! reward from the whole sequence. Slow, plain and independent of the driver; it shares only the row statistics and the
//! source of uniform numbers.

use ggro::answer::{Candidate, CandidateStop, FinishReason, Margins, Repeat, Response, Segment, Slot, WalkEnd};
use ggro::engine::{self, Settings, SpeculationWidth};
use ggro::engine::{Observer, decode};
use ggro::method::{Options, Proposals, Selection};
use ggro::model::{RowStats, Work};
use ggro::rng::Uniforms;
use ggro_testkit::scripted::{Model, Scripted};

/// Why the definition has no answer.
#[derive(Debug, PartialEq)]
pub enum Failure {
    NoRewardRow,
    NoUniforms,
}

struct Naive<'a> {
    model: &'a Model,
    options: &'a Options,
    end: usize,
}

struct Made {
    generated: Vec<u32>,
    kept: Vec<u32>,
    stop: CandidateStop,
    rows: Vec<RowStats>,
}

impl Naive<'_> {
    fn candidate(&self, prefix: &[u32], offset: usize, forced: Option<u32>) -> Made {
        let o = self.options;
        let (mut x, mut g, mut rows) = (prefix.to_vec(), Vec::new(), Vec::new());
        loop {
            let z = (self.model.logits)(&x);
            let stats = RowStats::of(&z, o.probability_floor);
            let token = match forced {
                Some(token) if g.len() == offset => token,
                _ => (0..z.len()).fold(0, |best, v| if z[v] > z[best] { v } else { best }) as u32,
            };
            x.push(token);
            g.push(token);
            rows.push(stats);
            let stop = if token == o.finish_id {
                CandidateStop::Finish
            } else if o.stop_ids.contains(&token) {
                CandidateStop::StopId
            } else if x.len() == self.end {
                CandidateStop::Length
            } else if g.len() >= o.min_generated && o.signal.value(&stats) >= o.entropy_threshold {
                CandidateStop::Entropy
            } else {
                continue;
            };
            let drops = matches!(stop, CandidateStop::Entropy | CandidateStop::StopId);
            let mut kept = g.clone();
            if drops && x.len() < self.end {
                kept.pop();
            }
            return Made { generated: g, kept, stop, rows };
        }
    }

    /// All ids with a reward row, the most likely first, the lower id first on a tie.
    fn order(&self, z: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.model.reward_vocab.min(z.len()) as u32).collect();
        ids.sort_by(|&a, &b| z[b as usize].partial_cmp(&z[a as usize]).unwrap());
        ids
    }

    fn twins(&self, z: &[f32], n: u32) -> Vec<u32> {
        let mut group = self.order(z);
        group.retain(|&v| v == n || (self.model.same)(v, n));
        group
    }
}

fn logprobs(model: &Model, prefix: &[u32], made: &Made) -> Vec<f64> {
    let behind = |i: usize| (model.logits)(&[prefix, &made.generated[..i]].concat());
    let of = |(i, stats): (usize, &RowStats)| match made.generated[i] {
        token if token == stats.argmax => stats.max_probability.ln(),
        token => f64::from(behind(i)[token as usize]) - stats.log_sum_exp,
    };
    made.rows.iter().enumerate().map(of).collect()
}

/// Decodes by the definition. The record is complete, margins and work included.
pub fn naive(model: &Model, prompt: &[u32], options: &Options, uniforms: &Uniforms) -> Result<Response, Failure> {
    let end = prompt.len() + options.max_new_tokens;
    let naive = Naive { model, options, end };
    let mut prefix = prompt.to_vec();
    let mut used = Vec::new();
    let (mut segments, mut boundaries) = (Vec::<Segment>::new(), Vec::new());
    let mut num_nudges = 0;
    let least = prompt.len() as u64;
    let mut work = Work { policy_forward: least, reward_forward: least, reward_backward: 0 };

    let (finish_reason, last_segment_reward) = loop {
        let offset = if segments.is_empty() { options.first_offset } else { 0 };
        let start = prefix.len();
        let p = start + offset;
        let mut walk: Vec<Candidate> = Vec::new();
        let mut forced: Option<(u32, u32)> = None;
        let mut repeat = None;
        let mut walk_end = WalkEnd::Budget;
        let all = options.proposals == Proposals::All && options.max_candidates > 1;
        for number in 0..if all { usize::MAX } else { options.max_candidates } {
            let c = naive.candidate(&prefix, offset, forced.map(|f| f.1));
            if let Some(same_as) = walk.iter().position(|w| w.ids == c.kept).filter(|_| !all) {
                repeat = Some(Repeat { proposed: forced.unwrap().0, same_as });
                walk_end = WalkEnd::Duplicate;
                break;
            }
            if c.kept.iter().any(|&id| id as usize >= model.reward_vocab) {
                return Err(Failure::NoRewardRow);
            }
            let x = [&prefix[..], &c.kept[..]].concat();
            let shared = if forced.is_some() { offset as u64 } else { 0 };
            work.policy_forward += c.generated.len() as u64 - 1 - shared;
            work.reward_forward += c.kept.len() as u64 - shared;

            let reward = (model.reward)(&x);
            let mut margins = margins_of(&naive, &prefix, offset, &c, forced);
            let mut slot = None;
            let mut proposal = None;
            let needed = all || number + 1 < options.max_candidates;
            let shuffles = options.proposals == Proposals::ShuffledGradient;
            let differentiates = shuffles || options.proposals == Proposals::Gradient;
            if c.kept.len() > offset && (needed || options.full_trace) && (differentiates || number == 0 || !all) {
                let z = (model.logits)(&x[..p]);
                let order = naive.order(&z);
                let list = order[..options.top_k.min(order.len())].to_vec();
                let mut draw = || -> Result<f64, Failure> {
                    let u = uniforms.nth(used.len()).map_err(|_| Failure::NoUniforms)?;
                    used.push(u);
                    Ok(u)
                };
                let (mut dots, mut scores) = (Vec::new(), Vec::new());
                if differentiates {
                    work.reward_backward += (c.kept.len() - offset) as u64;
                    dots = list.iter().map(|&v| (model.dot)(&x, p, v)).collect();
                    let mut dealt: Vec<f32> = dots.clone();
                    if shuffles && needed {
                        deal(&mut dealt, draw()?);
                    }
                    let row = RowStats::of(&z, options.probability_floor);
                    let score = |(&v, &dot): (&u32, &f32)| {
                        let product = f64::from(dot) * if v == x[p] { options.damping } else { 1.0 };
                        let logprob = f64::from(z[v as usize]) - row.log_sum_exp;
                        if options.logprob_weight == 0.0 {
                            product
                        } else {
                            (product + options.logprob_weight * logprob).max(f64::MIN)
                        }
                    };
                    scores = list.iter().zip(&dealt).map(score).collect();
                }
                let mut weights = Vec::new();
                let next = match options.selection {
                    _ if options.proposals == Proposals::Random && needed => {
                        let (u, n) = (draw()?, list.len());
                        let edges = (1..=n).map(|i| (i as f64 / n as f64 - u).abs());
                        margins.score = edges.min_by(f64::total_cmp);
                        Some(list[(u * n as f64) as usize])
                    }
                    _ if !differentiates || (shuffles && !needed) => None,
                    Selection::Greedy => {
                        let mut best = 0;
                        for i in 0..scores.len() {
                            if scores[i] > scores[best] {
                                best = i;
                            }
                        }
                        let mut sorted = scores.clone();
                        sorted.sort_by(|a, b| b.total_cmp(a));
                        margins.score = (sorted.len() > 1).then(|| sorted[0] - sorted[1]);
                        Some(list[best])
                    }
                    Selection::Sample => {
                        let max = scores.iter().copied().fold(f64::MIN, f64::max);
                        let e: Vec<f64> = scores.iter().map(|s| ((s - max) / options.temperature).exp()).collect();
                        let total: f64 = e.iter().sum();
                        weights = e.iter().map(|e| e / total).collect();
                        if needed {
                            let u = draw()?;
                            let sums: Vec<f64> =
                                (1..=weights.len()).map(|n| weights[..n].iter().sum::<f64>()).collect();
                            let total = sums[sums.len() - 1];
                            let index = sums.iter().position(|&sum| sum > u * total);
                            margins.score = sums.iter().map(|sum| (sum / total - u).abs()).min_by(f64::total_cmp);
                            Some(list[index.unwrap_or(list.len() - 1)])
                        } else {
                            None
                        }
                    }
                };
                if let Some(&outside) = order.get(list.len()) {
                    let inside = list[list.len() - 1];
                    margins.top_k_edge = gap(z[inside as usize], z[outside as usize]);
                }
                slot = Some(Slot {
                    gradient_norm: differentiates.then_some(1.0),
                    logits: list.iter().map(|&v| z[v as usize]).collect(),
                    ids: list,
                    dots,
                    weights,
                    next_proposal: next,
                });
                proposal = next.map(|n| (n, naive.twins(&z, n)[0]));
            }
            if all && (number > 0 || c.kept.len() > offset) {
                // The first of the list whose embedding was not at the slot.
                let unforced = if number == 0 { x[p] } else { walk[0].ids[offset] };
                let before = walk.iter().filter_map(|w| w.forced).chain(forced.map(|f| f.1));
                let tried: Vec<u32> = before.chain([unforced]).collect();
                let z = (model.logits)(&[&prefix[..], &c.generated[..offset]].concat());
                let fresh = |v: &u32| tried.iter().all(|&t| t != *v && !(model.same)(t, *v));
                let next = naive.order(&z).into_iter().take(options.top_k).find(fresh);
                proposal = next.map(|n| (n, n));
                if let Some(slot) = &mut slot {
                    slot.next_proposal = next;
                }
            }
            walk.push(Candidate {
                proposed: forced.map(|f| f.0),
                forced: forced.map(|f| f.1),
                dropped: c.generated.get(c.kept.len()).copied(),
                ids: c.kept.clone(),
                stop: c.stop,
                entropies: c.rows.iter().map(|r| r.entropy_floored).collect(),
                entropies_exact: c.rows.iter().map(|r| r.entropy).collect(),
                logprobs: logprobs(model, &prefix, &c),
                signals: c.rows.iter().map(|r| options.signal.value(r)).collect(),
                reward,
                slot,
                margins,
            });
            if c.kept.len() <= offset && (number == 0 || !all) {
                walk_end = WalkEnd::NoSlot;
                break;
            }
            if all && proposal.is_none() {
                walk_end = WalkEnd::Exhausted;
                break;
            }
            forced = proposal;
        }
        let mut best = 0;
        for i in 0..walk.len() {
            if walk[i].reward > walk[best].reward {
                best = i;
            }
        }
        num_nudges += usize::from(best != 0);
        let runner_up = (0..walk.len())
            .filter(|&i| i != best)
            .map(|i| f64::from(walk[best].reward) - f64::from(walk[i].reward))
            .min_by(f64::total_cmp);
        let (stop, kept, reward) = (walk[best].stop, walk[best].ids.clone(), walk[best].reward);
        prefix.extend_from_slice(&kept);
        segments.push(Segment { start, slot: p, best, walk_end, reward_margin: runner_up, candidates: walk, repeat });
        if stop == CandidateStop::Finish {
            boundaries.push(prefix.len() - 1);
            break (FinishReason::Finish, reward);
        }
        boundaries.push(prefix.len());
        if prefix.len() - prompt.len() >= options.max_new_tokens {
            break (FinishReason::Length, reward);
        }
        if kept.is_empty() {
            break (FinishReason::Stalled, reward);
        }
    };

    let mut pool = prefix.len() - 1;
    if let Some(pad) = options.reward_pad_id {
        while pool > 0 && prefix[pool] == pad {
            pool -= 1;
        }
    }
    let all = || segments.iter().flat_map(|s| s.candidates.iter().map(|c| c.margins));
    let min = |of: fn(Margins) -> Option<f64>| all().filter_map(of).min_by(f64::total_cmp);
    Ok(Response {
        final_reward: (model.reward)(&prefix[..=pool]),
        final_pool_position: pool,
        prompt_len: prompt.len(),
        respelled: None,
        final_ids: prefix,
        finish_reason,
        segment_boundaries: boundaries,
        num_nudges,
        last_segment_reward,
        uniforms_used: used,
        min_margins: Margins {
            argmax: min(|m| m.argmax),
            entropy: min(|m| m.entropy),
            score: min(|m| m.score),
            top_k_edge: min(|m| m.top_k_edge),
            tied_embedding: min(|m| m.tied_embedding),
            reward: segments.iter().filter_map(|s| s.reward_margin).min_by(f64::total_cmp),
        },
        segments,
        work,
    })
}

/// Fisher and Yates, with numbers that one number is the seed of.
fn deal(values: &mut [f32], u: f64) {
    let numbers = Uniforms::Seeded(u.to_bits());
    for taken in 1..values.len() {
        let last = values.len() - taken;
        let other = (numbers.nth(taken - 1).unwrap() * (last + 1) as f64) as usize;
        values.swap(other, last);
    }
}

fn gap(larger: f32, smaller: f32) -> Option<f64> {
    Some(f64::from(larger) - f64::from(smaller)).filter(|gap| gap.is_finite())
}

/// Margins of the decisions before a candidate's end, and of the twins where it was forced.
fn margins_of(naive: &Naive<'_>, prefix: &[u32], offset: usize, c: &Made, forced: Option<(u32, u32)>) -> Margins {
    let o = naive.options;
    let mut margins = Margins::default();
    let least = |of: &mut Option<f64>, value: f64| {
        if value.is_finite() {
            *of = Some(of.map_or(value, |old| old.min(value)));
        }
    };
    for (i, row) in c.rows.iter().enumerate() {
        if forced.is_none() || i != offset {
            least(&mut margins.argmax, f64::from(row.margin));
        }
        let last = i + 1 == c.rows.len();
        if i + 1 >= o.min_generated && (!last || c.stop == CandidateStop::Entropy) {
            least(&mut margins.entropy, (o.signal.value(row) - o.entropy_threshold).abs());
        }
    }
    if let Some((proposed, _)) = forced {
        let before = [prefix, &c.generated[..offset]].concat();
        let z = (naive.model.logits)(&before);
        if let [first, second, ..] = naive.twins(&z, proposed)[..] {
            margins.tied_embedding = gap(z[first as usize], z[second as usize]);
        }
    }
    margins
}

struct Count {
    tokens: usize,
    committed: Vec<u32>,
}

impl Observer for Count {
    fn segment(&mut self, segment: &Segment, committed: &[u32]) -> ggro::Result<()> {
        assert_eq!(segment.candidates[segment.best].ids, committed);
        self.committed.extend_from_slice(committed);
        Ok(())
    }
    fn token(&mut self) {
        self.tokens += 1;
    }
}

/// Decodes with the driver, with and without a full trace, and holds it to the definition in every field, work included.
/// Returns the response with its full trace.
pub fn decode_both(model: &Model, prompt: &[u32], options: &Options) -> Response {
    decode_with(model, prompt, options, &Uniforms::Seeded(1)).unwrap()
}

/// The same with a source of uniform numbers, where there may be no answer.
pub fn decode_with(model: &Model, prompt: &[u32], options: &Options, uniforms: &Uniforms) -> Result<Response, Failure> {
    let mut result = None;
    for full_trace in [false, true] {
        let options = Options { full_trace, ..options.clone() };
        let expected = naive(model, prompt, &options, uniforms);
        let mut backend = Scripted::new(model, prompt.len() + options.max_new_tokens);
        let mut count = Count { tokens: 0, committed: Vec::new() };
        let got = decode(&mut backend, prompt, &options, uniforms.clone(), &mut count);
        assert_eq!(backend.held(), 0, "sequences left behind");
        assert!(backend.most_held() <= 6, "{} sequences held", backend.most_held());
        match (got, &expected) {
            (Ok(mut got), Ok(expected)) => {
                if !full_trace {
                    // Twins outside the shortlist are looked for in a full trace only.
                    forget_unseen_twins(&mut got, expected);
                }
                assert_eq!(&got, expected);
                assert_eq!(backend.work(), got.work, "work done, and the least possible");
                assert_eq!(count.committed, got.final_ids[prompt.len()..]);
                let decoded = |(i, s): (usize, &Segment)| -> usize {
                    let offset = if i == 0 { options.first_offset } else { 0 };
                    let of = |c: &Candidate| c.entropies.len() - if c.forced.is_some() { offset } else { 0 };
                    s.candidates.iter().map(of).sum()
                };
                let tokens: usize = got.segments.iter().enumerate().map(decoded).sum();
                assert_eq!(count.tokens, tokens);
            }
            (Err(_), Err(_)) => {}
            (got, expected) => panic!("{got:?}\nand not\n{expected:?}"),
        }
        // Candidates ahead of time change nothing.
        for (width, run_ahead) in [(2, false), (3, true), (25, true)] {
            let settings = Settings { run_ahead, ..Settings::single(SpeculationWidth::Fixed(width)) };
            let mut backend = Scripted::new(model, prompt.len() + options.max_new_tokens);
            let mut count = Count { tokens: 0, committed: Vec::new() };
            let got = engine::decode_with(&mut backend, &settings, prompt, &options, uniforms.clone(), &mut count);
            assert_eq!(backend.held(), 0, "sequences left behind");
            match (got, &expected) {
                (Ok((mut got, account)), Ok(expected)) => {
                    if !full_trace {
                        forget_unseen_twins(&mut got, expected);
                    }
                    assert_eq!(&got, expected, "width {width}, run-ahead {run_ahead}");
                    assert_eq!(account.necessary, got.work);
                }
                (Err(_), Err(_)) => {}
                (got, expected) => panic!("width {width}, run-ahead {run_ahead}: {got:?}\nand not\n{expected:?}"),
            }
        }
        result = Some(expected);
    }
    result.unwrap()
}

fn forget_unseen_twins(got: &mut Response, expected: &Response) {
    for (segment, wanted) in got.segments.iter_mut().zip(&expected.segments) {
        for (candidate, wanted) in segment.candidates.iter_mut().zip(&wanted.candidates) {
            if candidate.margins.tied_embedding.is_none() {
                candidate.margins.tied_embedding = wanted.margins.tied_embedding;
            }
        }
    }
    got.min_margins.tied_embedding = expected.min_margins.tied_embedding;
}
