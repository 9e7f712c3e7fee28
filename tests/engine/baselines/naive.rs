//! The methods as their papers say them: every row and every reward of a whole text, from scratch, one text after the other.
//!
//! Only the choice of a token and the uniform numbers are the engine's. The work that is counted is that of somebody who never
//! runs a token of a text twice.

use ggro::answer::{Completion, Completions, SearchCounts, StopReason};
use ggro::baselines::{Acceptance, Args, Baseline, Beam, BestOfPoisson, Cards, RejectionSampling, SoftBestOfN};
use ggro::baselines::{Blockwise, SpeculativeRejection};
use ggro::model::{RowStats, Work};
use ggro::rng::Uniforms;
use ggro::sampling::{CompletionSpec, Counts, choose};

/// A method's answer, or why there is none.
pub type Found = Result<Completions, String>;

/// A function of a whole text.
pub type OfText<'a, T> = Box<dyn FnMut(&[u32]) -> T + 'a>;

/// Two models as functions of whole texts, and a request.
pub struct Naive<'a> {
    pub logits: OfText<'a, Vec<f32>>,
    pub reward: OfText<'a, f32>,
    pub prompt: &'a [u32],
    pub spec: &'a CompletionSpec,
    /// Whether a text ends where an id comes twice in a row.
    pub twins_stop: bool,
    pub reward_vocab: usize,
    pub work: Work,
}

/// Ids behind the prompt.
type Text = Vec<u32>;

impl Naive<'_> {
    fn row(&mut self, ids: &[u32]) -> Vec<f32> {
        (self.logits)(&[self.prompt, ids].concat())
    }

    fn reward(&mut self, ids: &[u32]) -> f32 {
        (self.reward)(&[self.prompt, ids].concat())
    }

    fn readable(&self, id: u32) -> Result<u32, String> {
        if (id as usize) < self.reward_vocab { Ok(id) } else { Err(format!("id {id} cannot be read")) }
    }

    /// The next token of a stream.
    fn drawn(&mut self, ids: &[u32], stream: u64) -> Result<u32, String> {
        let row = self.row(ids);
        let mut counts = Counts::new(self.prompt);
        ids.iter().for_each(|&id| counts.push(id));
        self.readable(choose(&row, &self.spec.sampling, &counts, stream, ids.len() as u64).id)
    }

    fn stop(&self, ids: &[u32]) -> Option<StopReason> {
        let last = *ids.last()?;
        let twins = self.twins_stop && ids.len() >= 2 && ids[ids.len() - 2] == last;
        if self.spec.stop_ids.contains(&last) || twins {
            return Some(StopReason::Stop);
        }
        (ids.len() >= self.spec.max_new_tokens).then_some(StopReason::Length)
    }

    /// Goes on by at most so many tokens, or until the entropy reaches a bar after so many. Whether the row behind it is known.
    fn extend(
        &mut self,
        from: &[u32],
        stream: u64,
        most: usize,
        until: Option<(f64, usize)>,
    ) -> Result<(Text, bool), String> {
        let mut ids = from.to_vec();
        loop {
            let grown = ids.len() - from.len();
            if grown > 0 && (self.stop(&ids).is_some() || grown >= most) {
                return Ok((ids, false));
            }
            // The row of `from` is the caller's.
            self.work.policy_forward += u64::from(grown > 0);
            if let Some((bar, least)) = until
                && grown >= least
                && RowStats::of(&self.row(&ids), 0.0).entropy >= bar
            {
                return Ok((ids, true));
            }
            let next = self.drawn(&ids, stream)?;
            ids.push(next);
        }
    }

    /// A whole answer.
    fn sample(&mut self, stream: u64) -> Result<Text, String> {
        Ok(self.extend(&[], stream, usize::MAX, None)?.0)
    }

    /// The n-th number that no token is drawn by.
    fn uniform(&self, n: usize) -> f64 {
        let own = u64::from_be_bytes(*b"searches");
        Uniforms::Seeded(self.spec.sampling.seed ^ own).nth(n).unwrap()
    }

    fn both_prompts(&mut self) {
        self.work.policy_forward += self.prompt.len() as u64;
        self.work.reward_forward += self.prompt.len() as u64;
    }

    fn completions(&mut self, all: Vec<Text>, best: usize, counts: (usize, usize, usize)) -> Found {
        let mut completion = |ids: Text| Completion {
            reason: self.stop(&ids).unwrap(),
            reward: Some(self.reward(&ids)),
            logprobs: Vec::new(),
            ids,
        };
        let all = all.into_iter().map(&mut completion).collect();
        let search = SearchCounts { proposals: counts.0 as u64, rejected: counts.1 as u64, rounds: counts.2 as u64 };
        Ok(Completions { all, best, work: self.work, search: Some(search) })
    }

    /// The place of the largest, the first one on a tie.
    fn largest(values: &[f64]) -> usize {
        (0..values.len()).rev().max_by(|&a, &b| values[a].partial_cmp(&values[b]).unwrap()).unwrap()
    }

    fn rewards(&mut self, all: &[Text]) -> Vec<f64> {
        all.iter().map(|ids| f64::from(self.reward(ids))).collect()
    }

    pub fn answer(&mut self, method: &Baseline) -> Found {
        self.work = Work::default();
        self.both_prompts();
        match method {
            Baseline::RejectionSampling(p) => self.rejection_sampling(p),
            Baseline::Cards(p) => self.cards(p),
            Baseline::SpeculativeRejection(p) => self.speculative_rejection(p),
            Baseline::Args(p) => self.args(p),
            Baseline::Blockwise(p) => self.blockwise(p),
            Baseline::Beam(p) => self.beam(p),
            Baseline::SoftBestOfN(p) => self.soft(p),
            Baseline::BestOfPoisson(p) => self.poisson(p),
        }
    }

    fn rejection_sampling(&mut self, p: &RejectionSampling) -> Found {
        let mut all = Vec::new();
        for number in 0..p.max_tries {
            let ids = self.sample(number as u64)?;
            self.work.reward_forward += ids.len() as u64;
            let reward = f64::from(self.reward(&ids));
            all.push(ids);
            let chance = ((reward - p.target_reward) / p.beta).exp().min(1.0);
            if self.uniform(number) < chance {
                return self.completions(all, number, (number + 1, number, 1));
            }
        }
        let best = Self::largest(&self.rewards(&all));
        self.completions(all, best, (p.max_tries, p.max_tries, 1))
    }

    fn cards(&mut self, p: &Cards) -> Found {
        let r0 = (1.0 - p.alpha) * f64::from(self.reward(&[])) + p.alpha * p.target_reward;
        let mut answer: Text = Vec::new();
        let (mut proposals, mut rejected, mut segments) = (0, 0, 0u64);
        let mut row_known = true;
        loop {
            self.work.policy_forward += u64::from(!row_known);
            let mut tries: Vec<(Text, bool)> = Vec::new();
            let chosen = loop {
                let number = tries.len();
                let stream = segments * (1 << 32) + number as u64;
                let until = Some((p.entropy_threshold, p.min_segment));
                let (ids, known) = self.extend(&answer, stream, p.max_segment, until)?;
                self.work.reward_forward += (ids.len() - answer.len()) as u64;
                let (t, m) = (ids.len() as f64, self.spec.max_new_tokens as f64);
                let reward = f64::from(self.reward(&ids));
                tries.push((ids, known));
                proposals += 1;
                if number == p.max_rejections {
                    let texts: Vec<Text> = tries.iter().map(|(ids, _)| ids.clone()).collect();
                    break Self::largest(&self.rewards(&texts));
                }
                let threshold = (r0 + t * (p.target_reward - r0) / m).min(p.target_reward);
                let accepted = match p.acceptance {
                    Acceptance::Hard => reward >= threshold,
                    Acceptance::Soft => self.uniform(proposals - 1) < ((reward - threshold) / p.beta).exp().min(1.0),
                };
                if accepted {
                    break number;
                }
                rejected += 1;
            };
            (answer, row_known) = tries.swap_remove(chosen);
            segments += 1;
            if self.stop(&answer).is_some() {
                return self.completions(vec![answer], 0, (proposals, rejected, segments as usize));
            }
        }
    }

    fn speculative_rejection(&mut self, p: &SpeculativeRejection) -> Found {
        let prompt = self.prompt.len();
        let budget = p.kv_budget.unwrap_or(prompt + (p.n * self.spec.max_new_tokens / 4).max(p.n));
        struct Sample {
            ids: Text,
            finished: bool,
            dropped: bool,
            rejected: bool,
        }
        let new = |_| Sample { ids: Vec::new(), finished: false, dropped: false, rejected: false };
        let mut samples: Vec<Sample> = (0..p.n).map(new).collect();
        let (mut rankings, mut last) = (0, false);
        loop {
            let open: Vec<usize> = (0..p.n).filter(|&i| !samples[i].finished && !samples[i].dropped).collect();
            if open.is_empty() {
                break;
            }
            let used: usize = open.iter().map(|&i| samples[i].ids.len()).sum();
            if !last && prompt + used + open.len() > budget {
                rankings += 1;
                let open = (0..p.n).filter(|&i| !samples[i].rejected);
                let mut ranked: Vec<(usize, f32)> = open.map(|i| (i, self.reward(&samples[i].ids))).collect();
                let keep = (((1.0 - p.alpha) * ranked.len() as f64).round() as usize).max(1);
                ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
                let mut dropped = 0;
                for &(i, _) in ranked.iter().skip(keep) {
                    samples[i].rejected = true;
                    if !samples[i].finished {
                        samples[i].dropped = true;
                        dropped += 1;
                    }
                }
                let left = samples.iter().filter(|s| !s.finished && !s.dropped).count();
                last = dropped == 0 || left <= 1;
                continue;
            }
            for i in open {
                self.work.policy_forward += u64::from(!samples[i].ids.is_empty());
                let next = self.drawn(&samples[i].ids.clone(), i as u64)?;
                samples[i].ids.push(next);
                samples[i].finished = self.stop(&samples[i].ids).is_some();
            }
        }
        // Every sample was scored at its end, or where it was dropped; what was scored before is its beginning.
        self.work.reward_forward += samples.iter().map(|s| s.ids.len() as u64).sum::<u64>();
        let dropped = samples.iter().filter(|s| s.dropped).count();
        let all: Vec<Text> = samples.into_iter().filter(|s| s.finished).map(|s| s.ids).collect();
        let best = Self::largest(&self.rewards(&all));
        self.completions(all, best, (p.n, dropped, rankings))
    }

    fn args(&mut self, p: &Args) -> Found {
        let mut answer: Text = Vec::new();
        let (mut proposals, mut rejected) = (0, 0);
        while self.stop(&answer).is_none() {
            self.work.policy_forward += u64::from(!answer.is_empty());
            let row = self.row(&answer);
            let mut ids: Vec<u32> = (0..row.len().min(self.reward_vocab) as u32).collect();
            ids.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap().then(a.cmp(&b)));
            ids.truncate(p.k);
            ids.retain(|&id| row[id as usize] > f32::NEG_INFINITY);
            if ids.is_empty() {
                return Err("no token can be read".into());
            }
            self.work.reward_forward += ids.len() as u64;
            proposals += ids.len();
            rejected += ids.len() - 1;
            let scores: Vec<f64> = ids
                .iter()
                .map(|&id| {
                    f64::from(row[id as usize]) + p.weight * f64::from(self.reward(&[&answer[..], &[id]].concat()))
                })
                .collect();
            answer.push(ids[Self::largest(&scores)]);
        }
        let tokens = answer.len();
        self.completions(vec![answer], 0, (proposals, rejected, tokens))
    }

    fn blockwise(&mut self, p: &Blockwise) -> Found {
        let mut answer: Text = Vec::new();
        let mut blocks = 0u64;
        while self.stop(&answer).is_none() {
            self.work.policy_forward += u64::from(!answer.is_empty());
            let mut tries = Vec::new();
            for k in 0..p.k as u64 {
                let (ids, _) = self.extend(&answer, blocks * (1 << 32) + k, p.block, None)?;
                self.work.reward_forward += (ids.len() - answer.len()) as u64;
                tries.push(ids);
            }
            let best = Self::largest(&self.rewards(&tries));
            answer = tries.swap_remove(best);
            blocks += 1;
        }
        let blocks = blocks as usize;
        self.completions(vec![answer], 0, (blocks * p.k, blocks * (p.k - 1), blocks))
    }

    fn beam(&mut self, p: &Beam) -> Found {
        let mut beams: Vec<Text> = vec![Vec::new(); p.width];
        let (mut proposals, mut rejected, mut rounds) = (0, 0, 0u64);
        while beams.iter().any(|ids| self.stop(ids).is_none()) {
            let mut candidates: Vec<Text> = Vec::new();
            for (place, beam) in beams.iter().enumerate() {
                if self.stop(beam).is_some() {
                    candidates.push(beam.clone());
                    continue;
                }
                self.work.policy_forward += u64::from(!beam.is_empty());
                for k in 0..p.successors {
                    let stream = rounds * (1 << 32) + (place * p.successors + k) as u64;
                    let (ids, _) = self.extend(beam, stream, p.chunk, None)?;
                    self.work.reward_forward += (ids.len() - beam.len()) as u64;
                    candidates.push(ids);
                    proposals += 1;
                }
            }
            let rewards = self.rewards(&candidates);
            let mut order: Vec<usize> = (0..candidates.len()).collect();
            order.sort_by(|&a, &b| rewards[b].partial_cmp(&rewards[a]).unwrap().then(a.cmp(&b)));
            rejected += order.len() - p.width;
            beams = order.iter().take(p.width).map(|&i| candidates[i].clone()).collect();
            rounds += 1;
        }
        self.completions(beams, 0, (proposals, rejected, rounds as usize))
    }

    fn samples(&mut self, n: usize) -> Result<Vec<Text>, String> {
        let all = (0..n as u64).map(|stream| self.sample(stream)).collect::<Result<Vec<Text>, String>>()?;
        self.work.reward_forward += all.iter().map(|ids| ids.len() as u64).sum::<u64>();
        Ok(all)
    }

    fn soft(&mut self, p: &SoftBestOfN) -> Found {
        let all = self.samples(p.n)?;
        let rewards = self.rewards(&all);
        let most = rewards.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = rewards.iter().map(|r| ((r - most) / p.lambda).exp()).collect();
        let bar = self.uniform(0) * weights.iter().sum::<f64>();
        let sum_to = |i: usize| weights[..=i].iter().sum::<f64>();
        let best = (0..p.n).find(|&i| sum_to(i) > bar).unwrap_or(p.n - 1);
        self.completions(all, best, (p.n, p.n - 1, 1))
    }

    fn poisson(&mut self, p: &BestOfPoisson) -> Found {
        // The smallest k whose cumulated probability exceeds the number.
        let u = self.uniform(0);
        let probability = |k: usize| (0..k).fold((-p.mu).exp(), |term, i| term * (p.mu / (i + 1) as f64));
        let k = (0..127).find(|&k| (0..=k).map(probability).sum::<f64>() > u).unwrap_or(127);
        let all = self.samples(1 + k)?;
        let best = Self::largest(&self.rewards(&all));
        self.completions(all, best, (1 + k, k, 1))
    }
}
