//! Backends held to the goldens and to traces of the demo pair, with the rounding simulation as the measure.

use crate::backend::prefill;
use crate::fixtures::{assemble, fixture, reference};
use ggro::dtype::HalfType;
use ggro::engine::decode;
use ggro::files::chat::Message;
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::lab::goldens::teacher::{Lesson, Outcome, PARTED};
use ggro::lab::goldens::{Check, Forward, Passes};
use ggro::method::Options;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{ModelPair, RewardSpan, Role, Span};
use ggro::rng::Uniforms;
use ggro::trace::{Trace, TraceFile};
use std::time::Instant;

/// A fixture with what the exact reference and the simulation say to it.
pub struct Golden {
    pub name: &'static str,
    pub traces: Vec<Trace>,
    pub forwards: Vec<Forward>,
    pub storage: HalfType,
    /// The device leaves the last step of norms to products, as the simulation does then.
    pub deferred_norms: bool,
}

impl Golden {
    pub fn read(name: &'static str) -> Self {
        let forwards = [1, 9, 48, 700].map(|len| fixture(name).join(format!("forward_{len}.safetensors")));
        let forwards = forwards.iter().filter(|path| path.exists()).map(|path| Forward::read(path).unwrap());
        let traces = TraceFile::read(&fixture(name).join("traces.json")).unwrap().traces;
        // Of the others' two types bf16 is the coarser one.
        let storage = if name == "mistral" { HalfType::F16 } else { HalfType::Bf16 };
        Golden { name, traces, forwards: forwards.collect(), storage, deferred_norms: false }
    }

    /// The traces, as a lesson.
    pub fn lesson(&self, gradients: bool) -> Lesson<'_> {
        let (mut exact, mut simulated) = (reference(self.name, None), self.simulation());
        Lesson::prepare(&self.traces, &mut exact, &mut simulated, gradients).unwrap()
    }

    fn simulation(&self) -> ModelPair {
        let (simulate, simulate_deferred_norms) = (Some(self.storage), self.deferred_norms);
        assemble(self.name, &LoadOptions { simulate, simulate_deferred_norms, ..LoadOptions::default() })
    }

    /// The forward data, as a backend sees it.
    fn passes(&self, backend: &mut ModelPair, gradients: bool) -> Passes {
        let rows: Vec<_> = self.forwards.iter().map(|golden| backend.policy_rows(&golden.ids).unwrap()).collect();
        Passes::of(backend, &self.forwards, Some(&rows), gradients).unwrap()
    }

    /// As the simulation does.
    pub fn simulated_passes(&self, gradients: bool) -> Passes {
        self.passes(&mut self.simulation(), gradients)
    }

    /// A device's forward data, held to the simulation's; with gradients if that has them.
    pub fn check_passes(&self, simulated: &Passes, device: &mut ModelPair) -> Check {
        Passes::compare(self.name, simulated, &self.passes(device, simulated.has_gradients()))
    }

    /// Everything there is, which a device must pass.
    pub fn must_pass(&self, device: &mut ModelPair, gradients: bool) {
        let began = Instant::now();
        let simulated = self.simulated_passes(gradients);
        let lesson = self.lesson(gradients);
        let prepared = began.elapsed().as_secs_f64();
        if !self.forwards.is_empty() {
            let check = self.check_passes(&simulated, device);
            print(&check);
            assert!(check.ok(), "{check:#?}");
        }
        passed(&lesson.examine(self.name, device).unwrap());
        println!("{} in {:.1} s, of which {prepared:.1} s for the reference", self.name, began.elapsed().as_secs_f64());
    }
}

/// One line per quantity: how much of what is allowed.
pub fn print(check: &Check) {
    println!("{} {}: {}", check.name, check.extent, if check.ok() { "ok" } else { "DIFFERS" });
    for gauge in &check.gauges {
        let share = gauge.share.unwrap_or(f64::NAN);
        println!(
            "  {:<20} {:>6} values, off by {:.1e} at most, {share:.2} of the bound",
            gauge.quantity, gauge.count, gauge.worst
        );
    }
}

pub fn passed(outcome: &Outcome) {
    print(&outcome.check);
    for tally in &outcome.tallies {
        println!(
            "  {:<20} {:>6} decisions, {} parted of {} within margin, {} wrong",
            tally.kind.name(),
            tally.decisions,
            tally.parted,
            tally.within,
            tally.wrong
        );
    }
    assert!(outcome.check.ok(), "{:#?}", outcome.check);
    let [decisions, agreed, parted, wrong] = outcome.total();
    assert_eq!((agreed + parted, wrong), (decisions, 0));
    assert!(decisions > 0 && parted as f64 <= PARTED * decisions as f64);
}

pub fn demo_pair() -> Pair {
    Pair::load(&demo::policy(), &demo::reward()).unwrap()
}

/// The demo's settings for answers of at most `tokens` with at most `candidates` per segment.
pub fn demo_options(pair: &Pair, tokens: usize, candidates: usize) -> Options {
    let mut options = Options::new(pair.policy().unwrap().finish_id, pair.policy().unwrap().stop_ids.clone());
    options.max_new_tokens = tokens;
    options.max_candidates = candidates;
    options.entropy_threshold = demo::ENTROPY_THRESHOLD;
    options.reward_pad_id = pair.reward_pad_id();
    options
}

/// One of the demo's requests.
pub fn demo_prompt(pair: &Pair, request: usize) -> Vec<u32> {
    let messages = [Message { role: "user".into(), content: demo::prompts()[request].clone() }];
    let text = pair.chat().unwrap().render(&messages, true).unwrap();
    pair.tokenizer.encode(&text).unwrap()
}

/// Answers of the exact reference to the demo's first requests.
pub fn demo_traces(pair: &Pair, count: usize, tokens: usize, candidates: usize) -> Vec<Trace> {
    let mut backend = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let options = demo_options(pair, tokens, candidates);
    (0..count)
        .map(|request| {
            let ids = demo_prompt(pair, request);
            let response = decode(&mut backend, &ids, &options, Uniforms::Seeded(0), &mut ()).unwrap();
            Trace::from_response(&format!("demo-{request}"), None, &options, &response, None).unwrap()
        })
        .collect()
}

/// Decodes greedily on both: where a device's ids part from the reference's, the reference must have been undecided.
pub fn part_late(exact: &mut ModelPair, device: &mut ModelPair, prompt: &[u32], options: &Options) {
    assert_eq!(options.max_candidates, 1);
    let free =
        |backend: &mut ModelPair| decode(backend, prompt, options, Uniforms::Seeded(0), &mut ()).unwrap().final_ids;
    let (expected, found) = (free(exact), free(device));
    let agree = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    println!("{} of {} ids decoded freely agree", agree - prompt.len(), expected.len() - prompt.len());
    if agree < expected.len().max(found.len()) {
        let seq = exact.create(Role::Policy).unwrap();
        let (row, _) = prefill(exact, seq, &expected[..agree], usize::MAX);
        exact.release(seq);
        assert!(row.stats.margin < 0.1, "parted at a gap of {} after {agree} ids", row.stats.margin);
    }
}

/// Decodes with nudges on a device and scores every candidate of its answer again: rewards are off by no more than the
/// simulation's are. Returns how often it was nudged.
pub fn nudged_freely(pair: &Pair, device: &mut ModelPair, prompt: &[u32], options: &Options) -> usize {
    let before = device.work();
    let response = decode(device, prompt, options, Uniforms::Seeded(0), &mut ()).unwrap();
    assert_eq!(device.work() - before, response.work, "what the device counted, and the least that this answer takes");
    let (mut texts, mut found) = (vec![response.final_ids.clone()], vec![f64::from(response.final_reward)]);
    for segment in &response.segments {
        for candidate in &segment.candidates {
            texts.push([&response.final_ids[..segment.start], &candidate.ids].concat());
            found.push(candidate.reward.into());
        }
    }
    let [exact, simulated] = [None, Some(HalfType::Bf16)].map(|simulate| -> Vec<f64> {
        let mut backend = cpu::open(pair.parts(), &LoadOptions { simulate, ..LoadOptions::default() }).unwrap();
        let score = |(i, ids): (usize, &Vec<u32>)| {
            let seq = backend.create(Role::Reward).unwrap();
            let pool = ggro::task::pool_position(ids, &[], options.reward_pad_id.filter(|_| i == 0));
            let span = RewardSpan { span: Span { seq, start: 0, ids }, also_at: &[pool] };
            backend.reward_score(&[span]).unwrap()[0].also[0].into()
        };
        texts.iter().enumerate().map(score).collect()
    });
    let worst =
        |rewards: &[f64]| rewards.iter().zip(&exact).map(|(r, e)| (r - e).abs()).fold(0.0, ggro::lab::goldens::worse);
    let (device, simulated) = (worst(&found), worst(&simulated));
    println!(
        "{} candidates, {} nudges: rewards off by {device:.1e}, simulated {simulated:.1e}",
        found.len() - 1,
        response.num_nudges
    );
    assert!(device <= 2.0 * simulated, "rewards are off by {device}, the simulation's by {simulated}");
    response.num_nudges
}

/// The demo pair teacher-forced, by a device that leaves the last step of norms to products or does not.
pub fn demo_must_pass(pair: &Pair, traces: &[Trace], device: &mut ModelPair, gradients: bool, deferred_norms: bool) {
    let began = Instant::now();
    let mut exact = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let options = LoadOptions {
        simulate: Some(HalfType::Bf16),
        simulate_deferred_norms: deferred_norms,
        ..LoadOptions::default()
    };
    let mut simulated = cpu::open(pair.parts(), &options).unwrap();
    let lesson = Lesson::prepare(traces, &mut exact, &mut simulated, gradients).unwrap();
    println!("the demo's lesson prepared in {:.1} s", began.elapsed().as_secs_f64());
    passed(&lesson.examine("demo", device).unwrap());
    println!("the demo in {:.1} s", began.elapsed().as_secs_f64());
}
