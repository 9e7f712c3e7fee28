//! The reference backend on the demo pair: prefill, decode, reward forward, reward backward, a whole GGRO response.
//!
//! Every benchmark checks what it computed before it is timed. `cargo bench --bench demo`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ggro::engine::decode;
use ggro::files::pair::Pair;
use ggro::method::Options;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{GradientSpan, ModelPair, PolicySpan, RewardSpan, Role, Span, TopK};
use ggro::rng::Uniforms;
use std::hint::black_box;

fn pair() -> Pair {
    Pair::load(&ggro::files::demo::policy(), &ggro::files::demo::reward()).expect("the demo pair is part of the crate")
}

fn backend(pair: &Pair) -> ModelPair {
    cpu::open(pair.parts(), &LoadOptions::default()).expect("the demo pair loads")
}

/// Ids of a demo story request, repeated to a length: cost does not depend on what the ids are.
fn ids(pair: &Pair, len: usize) -> Vec<u32> {
    let text = "Once upon a time, there was a little girl named Lily. She loved to play with her kite in the park. ";
    pair.tokenizer.encode(&text.repeat(20)).expect("plain text")[..len].to_vec()
}

fn policy_span(seq: ggro::model::SeqId, start: usize, ids: &[u32]) -> PolicySpan<'_> {
    PolicySpan { span: Span { seq, start, ids }, floor: 1e-9, top_k: TopK::Skip, before: &[] }
}

fn policy(c: &mut Criterion) {
    let pair = pair();
    let mut backend = backend(&pair);
    let mut group = c.benchmark_group("prefill");
    for len in [64usize, 256] {
        let ids = ids(&pair, len);
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                let seq = backend.create(Role::Policy).expect("room");
                let rows = backend.policy_step(&[policy_span(seq, 0, &ids)]).expect("runs");
                assert!(rows[0].stats.finite);
                backend.release(seq);
                black_box(rows)
            })
        });
    }
    group.finish();

    let mut group = c.benchmark_group("decode");
    for rows in [1usize, 8] {
        let ids = ids(&pair, 100);
        let seqs: Vec<_> = (0..rows).map(|_| backend.create(Role::Policy).expect("room")).collect();
        let spans: Vec<_> = seqs.iter().map(|&seq| policy_span(seq, 0, &ids)).collect();
        backend.policy_step(&spans).expect("runs");
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new("rows", rows), |b| {
            b.iter(|| {
                let spans: Vec<_> = seqs.iter().map(|&seq| policy_span(seq, 100, &ids[..1])).collect();
                let out = backend.policy_step(&spans).expect("runs");
                assert!(out.iter().all(|row| row.stats.finite));
                seqs.iter().for_each(|&seq| backend.truncate(seq, 100).expect("held"));
                black_box(out)
            })
        });
        seqs.into_iter().for_each(|seq| backend.release(seq));
    }
    group.finish();
}

fn reward(c: &mut Criterion) {
    let pair = pair();
    let mut backend = backend(&pair);
    let ids = ids(&pair, 116);
    let (prefix, segment) = ids.split_at(100);
    let seq = backend.create(Role::Reward).expect("room");
    let span = |start, ids| RewardSpan { span: Span { seq, start, ids }, also_at: &[] };
    backend.reward_score(&[span(0, prefix)]).expect("runs");
    let mut group = c.benchmark_group("reward, 16 tokens behind 100");
    group.throughput(Throughput::Elements(segment.len() as u64));
    group.bench_function("forward", |b| {
        b.iter(|| {
            let out = backend.reward_score(&[span(100, segment)]).expect("runs");
            assert!(out[0].reward.is_finite());
            backend.truncate(seq, 100).expect("held");
            black_box(out)
        })
    });
    group.bench_function("forward and backward", |b| {
        b.iter(|| {
            let gradient = GradientSpan { span: span(100, segment), slot: 100, candidates: &ids[..25], rows: false };
            let out = backend.reward_gradient(&[gradient]).expect("runs");
            assert!(out[0].norm > 0.0);
            backend.truncate(seq, 100).expect("held");
            black_box(out)
        })
    });
    group.finish();
}

fn response(c: &mut Criterion) {
    let pair = pair();
    let mut backend = backend(&pair);
    let messages =
        [ggro::files::chat::Message { role: "user".into(), content: "Write a story about a lost kite.".into() }];
    let text = pair.chat().expect("the demo pair has a template").render(&messages, true).expect("renders");
    let prompt = pair.tokenizer.encode(&text).expect("plain text");
    let mut options = Options::new(pair.policy().unwrap().finish_id, pair.policy().unwrap().stop_ids.clone());
    options.entropy_threshold = ggro::files::demo::ENTROPY_THRESHOLD;
    options.max_new_tokens = ggro::files::demo::MAX_NEW_TOKENS;
    let mut group = c.benchmark_group("response");
    group.sample_size(10);
    for (name, candidates) in [("greedy", 1), ("GGRO, 8 candidates", 8)] {
        options.max_candidates = candidates;
        let first = decode(&mut backend, &prompt, &options, Uniforms::Seeded(0), &mut ()).expect("decodes");
        group.throughput(Throughput::Elements((first.final_ids.len() - prompt.len()) as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let out = decode(&mut backend, &prompt, &options, Uniforms::Seeded(0), &mut ()).expect("decodes");
                assert_eq!(out.final_ids, first.final_ids);
                black_box(out)
            })
        });
    }
    group.finish();
}

criterion_group!(benches, policy, reward, response);
criterion_main!(benches);
