//! What the host does between two launches and before the first: turns of the scheduler, block tables, tokenizer, chat template, the
//! header of a checkpoint, the text of a stream. None of it waits for a model.
//!
//! Every benchmark checks what it computed before it is timed. `cargo bench --bench host`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ggro::engine::{Event, Request as _, Scheduler, Settings, intervention, sampler};
use ggro::files::chat::Message;
use ggro::files::checkpoint::Checkpoint;
use ggro::files::config::ModelConfig;
use ggro::files::pair::Pair;
use ggro::files::tensors::tensors;
use ggro::files::tokenizer::TextStream;
use ggro::kv::{BLOCK, KvHandle, KvPool};
use ggro::method::Options;
use ggro::model::synthetic;
use ggro::model::{
    Gradient, GradientSpan, Model, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, RowStats, Score, SeqId, TopK,
    Work,
};
use ggro::rng::Uniforms;
use ggro::sampling::CompletionSpec;
use std::hint::black_box;

/// A model that computes nothing: rows are certain, but for every ninth position; rewards are numbers.
struct Nothing {
    config: ModelConfig,
    pool: KvPool,
}

fn nothing() -> ModelPair {
    let [policy, reward] = synthetic::pair("llama-3.1-8b").expect("a shape");
    let half = |config| Some(Box::new(Nothing { config, pool: KvPool::new(1 << 16) }) as Box<dyn Model>);
    ModelPair { policy: half(policy), reward: half(reward), draft: None }
}

impl Nothing {
    fn named(&self, KvHandle { index, generation }: KvHandle) -> SeqId {
        SeqId { role: Role::of(self.config.kind), index, generation }
    }

    fn append(&mut self, seq: SeqId, count: usize) -> ggro::Result<()> {
        self.pool.append(handle(seq), count).map(drop)
    }
}

fn handle(seq: SeqId) -> KvHandle {
    KvHandle { index: seq.index, generation: seq.generation }
}

impl Model for Nothing {
    fn config(&self) -> &ModelConfig {
        &self.config
    }
    fn max_len(&self) -> usize {
        4096
    }
    fn create(&mut self) -> ggro::Result<SeqId> {
        let made = self.pool.create();
        Ok(self.named(made))
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> ggro::Result<SeqId> {
        let (made, _) = self.pool.fork(handle(seq), len)?;
        Ok(self.named(made))
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> ggro::Result<()> {
        self.pool.truncate(handle(seq), len)
    }
    fn release(&mut self, seq: SeqId) {
        self.pool.release(handle(seq));
    }
    fn len(&self, seq: SeqId) -> usize {
        self.pool.len(handle(seq)).unwrap_or(0)
    }
    fn step(&mut self, spans: &[PolicySpan<'_>], _: usize, _: &mut dyn FnMut()) -> ggro::Result<Vec<PolicyRow>> {
        let mut rows = Vec::with_capacity(spans.len());
        for PolicySpan { span, top_k, .. } in spans {
            self.append(span.seq, span.ids.len())?;
            let at = span.start + span.ids.len();
            let entropy = if at.is_multiple_of(9) { 3.0 } else { 0.5 };
            let stats = RowStats {
                argmax: (at * 31 % 1000) as u32 + 10,
                max_logit: 5.0,
                log_sum_exp: 6.0,
                entropy,
                entropy_floored: entropy,
                max_probability: 0.4,
                margin: 1.0,
                varentropy: 1.0,
                finite: true,
            };
            let count = match top_k {
                TopK::Take(k) => *k,
                TopK::TakeIf(k, threshold) if threshold.reached(&stats) => *k,
                _ => 0,
            };
            let top = (0..count as u32).map(|i| (stats.argmax + i, 5.0 - i as f32)).collect();
            rows.push(PolicyRow { stats, top });
        }
        Ok(rows)
    }
    fn score(&mut self, spans: &[RewardSpan<'_>]) -> ggro::Result<Vec<Score>> {
        let score =
            |span: &RewardSpan<'_>| Score { reward: span.span.ids.len() as f32, also: vec![0.0; span.also_at.len()] };
        for span in spans {
            self.append(span.span.seq, span.span.ids.len())?;
        }
        Ok(spans.iter().map(score).collect())
    }
    fn gradient(&mut self, spans: &[GradientSpan<'_>]) -> ggro::Result<Vec<Gradient>> {
        let inner: Vec<RewardSpan<'_>> = spans.iter().map(|span| span.span).collect();
        let scores = self.score(&inner)?;
        let gradients = scores.into_iter().zip(spans).map(|(score, span)| {
            // Another token each time, until one comes back.
            let first = span.span.span.ids.first().copied().unwrap_or(0);
            let dots = span.candidates.iter().map(|&id| ((id * 7 + first) % 25) as f32).collect();
            Gradient { score, dots, norm: 1.0, rows: Vec::new() }
        });
        Ok(gradients.collect())
    }
    fn same_embedding(&self, a: u32, b: u32) -> bool {
        a == b
    }
    fn work(&self) -> Work {
        Work::default()
    }
    fn free_batch_rows(&self) -> usize {
        180
    }
    fn blocks_free(&self) -> usize {
        self.pool.blocks_free()
    }
    fn blocks_needed(&self, seq: SeqId, count: usize) -> usize {
        self.pool.blocks_needed(handle(seq), count).unwrap_or(usize::MAX)
    }
}

/// Runs requests to their ends; how many turns that took.
fn to_the_end(backend: &mut ModelPair, requests: usize, guided: bool) -> usize {
    let mut scheduler = Scheduler::new(Settings::default());
    for number in 0..requests {
        let prompt: Vec<u32> = (0..100).map(|i| (number * 37 + i) as u32 % 5000).collect();
        if guided {
            let options = Options { max_new_tokens: 64, ..Options::new(2, vec![2]) };
            let request = intervention(backend, &prompt, &options, Uniforms::Seeded(0)).expect("a request");
            scheduler.submit(Box::new(request.map(drop)));
        } else {
            let plan = CompletionSpec { max_new_tokens: 64, stop_ids: vec![2], ..CompletionSpec::default() };
            scheduler.submit(Box::new(sampler(backend, &prompt, plan).expect("a request").map(drop)));
        }
    }
    let (mut turns, mut ended) = (0, 0);
    while scheduler.step(backend) {
        turns += 1;
        ended += scheduler
            .events()
            .iter()
            .filter(|event| matches!(event, Event::Ended(_, outcome, _) if outcome.is_ok()))
            .count();
    }
    scheduler.clear(backend);
    assert_eq!(ended, requests);
    turns
}

fn scheduler(c: &mut Criterion) {
    let mut group = c.benchmark_group("turns of the scheduler");
    for (name, guided) in [("plain", false), ("ggro", true)] {
        for requests in [1usize, 64] {
            let mut backend = nothing();
            let turns = to_the_end(&mut backend, requests, guided);
            assert!(turns >= 64 && backend.blocks_free(Role::Policy) == 1 << 16, "{turns}");
            // A turn is the unit: divide by it to know what a decode step costs the host.
            group.throughput(Throughput::Elements(turns as u64));
            group.bench_function(BenchmarkId::new(name, requests), |b| {
                b.iter(|| black_box(to_the_end(&mut backend, requests, guided)))
            });
        }
    }
    group.finish();
}

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("block tables");
    let mut pool = KvPool::new(4096);
    let trunk = pool.create();
    pool.append(trunk, 1000).expect("room");
    group.bench_function("fork, append, release behind 1000", |b| {
        b.iter(|| {
            let (branch, copy) = pool.fork(trunk, 1000).expect("room");
            assert!(copy.is_some());
            for _ in 0..16 {
                pool.append(branch, 1).expect("room");
            }
            pool.release(branch);
        })
    });
    assert_eq!(pool.blocks_in_use(), 1000usize.div_ceil(BLOCK));
    group.finish();
}

fn texts(c: &mut Criterion) {
    let pair = Pair::load(&ggro::files::demo::policy(), &ggro::files::demo::reward()).expect("the demo pair");
    let text = "Once upon a time, there was a little girl named Lily. She loved to play with her kite. ".repeat(40);
    let ids = pair.tokenizer.encode(&text).expect("ids");
    assert_eq!(pair.tokenizer.decode(&ids).expect("text"), text);
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("tokenize", |b| b.iter(|| pair.tokenizer.encode(black_box(&text)).expect("ids")));
    group.bench_function("stream", |b| {
        b.iter(|| {
            let mut stream = TextStream::new(&*pair.tokenizer, &[]);
            let mut length = 0;
            for &id in &ids {
                length += stream.push(id).expect("text").len();
            }
            length + stream.finish().expect("text").len()
        })
    });
    let template = pair.chat().expect("a template");
    let message = |role: &str, content: &str| Message { role: role.to_string(), content: content.to_string() };
    let talk: Vec<Message> =
        (0..20).map(|i| message(if i % 2 == 0 { "user" } else { "assistant" }, "Why is the sky blue?")).collect();
    assert!(template.render(&talk, true).expect("a prompt").ends_with("assistant<|end_header_id|>\n\n"));
    group.throughput(Throughput::Elements(talk.len() as u64));
    group.bench_function("template, 20 messages", |b| {
        b.iter(|| template.render(black_box(&talk), true).expect("a prompt"))
    });
    group.finish();
}

fn headers(c: &mut Criterion) {
    let [policy, _] = synthetic::pair("demo").expect("a shape");
    let bytes = synthetic::safetensors(&policy, 0).expect("weights");
    let count = tensors(&policy).len();
    assert_eq!(Checkpoint::of_bytes("made", bytes.clone()).expect("a checkpoint").names().len(), count);
    let mut group = c.benchmark_group("checkpoint");
    group.throughput(Throughput::Elements(count as u64));
    // The bytes are given away each time, so copying them is outside of what is timed.
    group.bench_function("header", |b| {
        b.iter_batched(
            || bytes.clone(),
            |bytes| Checkpoint::of_bytes("made", bytes).expect("a checkpoint"),
            criterion::BatchSize::LargeInput,
        )
    });
    group.finish();
}

criterion_group!(benches, scheduler, blocks, texts, headers);
criterion_main!(benches);
