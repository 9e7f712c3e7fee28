//! The teacher-forced comparison itself: the simulation and the exact reference pass in a device's place, and broken devices
//! do not.

use ggro::Result;
use ggro::dtype::HalfType;
use ggro::files::config::ModelConfig;
use ggro::lab::goldens::teacher::Lesson;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{
    Gradient, GradientSpan, Logits, Model, ModelPair, PolicyRow, PolicyRows, PolicySpan, RewardSpan, RowStats, Score,
    SeqId, Work,
};
use ggro::trace::Trace;
use ggro_testkit::fixtures::{FIXTURES, reference};
use ggro_testkit::lessons::{Golden, demo_must_pass, demo_pair, demo_traces};

#[test]
fn the_simulation_and_the_reference_pass() {
    for name in FIXTURES {
        let golden = Golden::read(name);
        golden.must_pass(&mut reference(name, Some(golden.storage)), true);
    }
    for name in ["llama-twins", "mistral"] {
        let golden = Golden::read(name);
        golden.must_pass(&mut reference(name, None), true);
        golden.must_pass(&mut reference(name, Some(golden.storage)), false);
    }
}

#[test]
fn the_demo_pair_passes() {
    let pair = demo_pair();
    let traces = demo_traces(&pair, 10, 32, 3);
    let options = LoadOptions { simulate: Some(HalfType::Bf16), ..LoadOptions::default() };
    demo_must_pass(&pair, &traces, &mut cpu::open(pair.parts(), &options).unwrap(), true, false);
}

/// Stored in f16, a fixture leaves less room than bf16 needs; and the other way round there is plenty.
#[test]
fn bf16_does_not_pass_for_f16() {
    let golden = Golden::read("mistral");
    assert_eq!(golden.storage, HalfType::F16);
    let mut coarse = reference("mistral", Some(HalfType::Bf16));
    assert!(!golden.check_passes(&golden.simulated_passes(false), &mut coarse).ok());
    assert!(!golden.lesson(false).examine("coarse", &mut coarse).unwrap().check.ok());
    Golden::read("qwen3").must_pass(&mut reference("qwen3", Some(HalfType::F16)), true);
}

/// What is wrong with a device.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// All logits are 2 % too large.
    Logits,
    /// Every hundredth clear row names its second token.
    Token,
    /// Entropies are a tenth too large.
    Entropy,
    /// Rewards are 5 % too large.
    Reward,
    /// Gradients are 2 % too large.
    Gradient,
    /// Gradients have two candidates confused.
    Candidates,
    /// One reward is not a number.
    NotANumber,
}

/// A model of the simulation, with a fault.
struct Faulty {
    inner: Box<dyn Model>,
    fault: Fault,
    rows: usize,
}

/// The simulation with a fault.
fn faulty(name: &str, storage: HalfType, fault: Fault) -> ModelPair {
    let ModelPair { policy, reward, draft } = reference(name, Some(storage));
    let faulty = |inner| Box::new(Faulty { inner, fault, rows: 0 }) as Box<dyn Model>;
    ModelPair { policy: policy.map(faulty), reward: reward.map(faulty), draft }
}

impl Faulty {
    fn change(&mut self, score: &mut Score) {
        self.rows += 1;
        let change = |reward: f32| match self.fault {
            Fault::Reward => reward * 1.05,
            Fault::NotANumber if self.rows == 5 => f32::NAN,
            _ => reward,
        };
        score.reward = change(score.reward);
        score.also.iter_mut().for_each(|reward| *reward = change(*reward));
    }
}

impl Model for Faulty {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }
    fn max_len(&self) -> usize {
        self.inner.max_len()
    }
    fn create(&mut self) -> Result<SeqId> {
        self.inner.create()
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> Result<SeqId> {
        self.inner.fork(seq, len)
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> Result<()> {
        self.inner.truncate(seq, len)
    }
    fn release(&mut self, seq: SeqId) {
        self.inner.release(seq);
    }
    fn len(&self, seq: SeqId) -> usize {
        self.inner.len(seq)
    }
    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        ids_below: usize,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<PolicyRow>> {
        let mut rows = self.inner.step(spans, ids_below, meanwhile)?;
        for (row, span) in rows.iter_mut().zip(spans) {
            match self.fault {
                Fault::Logits => {
                    row.stats = RowStats::of(&self.logits(span.span.seq, Logits::All)?, span.floor);
                    row.top.iter_mut().for_each(|entry| entry.1 *= 1.02);
                }
                Fault::Entropy => row.stats.entropy_floored *= 1.1,
                Fault::Token if row.stats.margin > 1.0 => {
                    self.rows += 1;
                    if self.rows.is_multiple_of(100) {
                        let logits = self.inner.logits(span.span.seq, Logits::All)?;
                        row.stats.argmax = ggro::model::top_k(&logits, 2, usize::MAX)[1].0;
                    }
                }
                _ => {}
            }
        }
        Ok(rows)
    }
    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> Result<Vec<f32>> {
        let mut row = self.inner.logits(seq, Logits::All)?;
        if let Fault::Logits = self.fault {
            row.iter_mut().for_each(|logit| *logit *= 1.02);
        }
        Ok(asked.of_row(row))
    }
    fn all_rows(&mut self, ids: &[u32]) -> Result<PolicyRows> {
        let mut rows = self.inner.all_rows(ids)?;
        if let Fault::Logits = self.fault {
            rows.logits.iter_mut().for_each(|logit| *logit *= 1.02);
        }
        Ok(rows)
    }
    fn score(&mut self, spans: &[RewardSpan<'_>]) -> Result<Vec<Score>> {
        let mut scores = self.inner.score(spans)?;
        scores.iter_mut().for_each(|score| self.change(score));
        Ok(scores)
    }
    fn gradient(&mut self, spans: &[GradientSpan<'_>]) -> Result<Vec<Gradient>> {
        let mut gradients = self.inner.gradient(spans)?;
        for gradient in &mut gradients {
            self.change(&mut gradient.score);
            match self.fault {
                Fault::Gradient => {
                    let all = gradient.dots.iter_mut().chain(&mut gradient.rows).chain([&mut gradient.norm]);
                    all.for_each(|value| *value *= 1.02);
                }
                Fault::Candidates if gradient.dots.len() > 1 => gradient.dots.swap(0, 1),
                _ => {}
            }
        }
        Ok(gradients)
    }
    fn same_embedding(&self, a: u32, b: u32) -> bool {
        self.inner.same_embedding(a, b)
    }
    fn work(&self) -> Work {
        self.inner.work()
    }
}

#[test]
fn faults_are_noticed() {
    for name in ["llama-mha-tied", "mistral"] {
        let golden = Golden::read(name);
        let (lesson, passes) = (golden.lesson(true), golden.simulated_passes(true));
        // Whether decisions go wrong, and whether lesson and forward data show it at all.
        for (fault, wrong, in_lesson, in_passes) in [
            (Fault::Logits, true, true, true),
            (Fault::Token, true, true, false),
            (Fault::Entropy, true, true, true),
            (Fault::Reward, false, true, true),
            (Fault::Gradient, false, true, true),
            (Fault::Candidates, true, true, false),
            (Fault::NotANumber, false, true, true),
        ] {
            let faulty = || faulty(name, golden.storage, fault);
            let outcome = lesson.examine(name, &mut faulty()).unwrap();
            let check = golden.check_passes(&passes, &mut faulty());
            println!("{name} {fault:?}: {:?}; {:?}", outcome.check.difference, check.difference);
            assert_eq!(outcome.total()[3] > 0, wrong, "{name} {fault:?}");
            assert_eq!((!outcome.check.ok(), !check.ok()), (in_lesson, in_passes), "{name} {fault:?}");
        }
    }
}

/// A trace is other people's bytes: what cannot be is refused in words.
#[test]
fn traces_that_contradict_themselves_are_refused() {
    let golden = Golden::read("llama-unaligned");
    let refused = |change: &dyn Fn(&mut Trace)| {
        let mut traces = golden.traces.clone();
        change(&mut traces[0]);
        let (mut exact, mut simulated) = (reference(golden.name, None), reference(golden.name, Some(golden.storage)));
        let lesson = Lesson::prepare(&traces, &mut exact, &mut simulated, true);
        lesson.err().expect("an error").to_string()
    };
    for change in [
        &(|t: &mut Trace| t.segments[1].start = 0) as &dyn Fn(&mut Trace),
        &|t| t.segments[1].start = usize::MAX,
        &|t| t.segments[1].slot = usize::MAX,
        &|t| t.segments[1].slot = 0,
        &|t| t.segments[1].best = 99,
        &|t| t.segments[1].candidates[0].forced = Some(1),
        &|t| t.segments[1].candidates[1].ids = Vec::new(),
        &|t| t.final_ids.truncate(3),
    ] {
        let message = refused(change);
        assert!(message.contains("contradicts the rest of the trace"), "{message}");
    }
    assert!(refused(&|t| t.final_pool_position = 1 << 40).contains("pooled position"));
    assert!(refused(&|t| t.final_ids[2] = 1 << 30).contains("vocabulary"));
}
