//! What the host does for a decode step before it can be launched: attention's work list, once per step and window.
//!
//! `cargo bench --bench plan`.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ggro::cuda::ops::attention::{AttentionProducts, Plan, PlanLimits, Query, Sequence, Shape};
use ggro::kv::{BLOCK, BlockId};
use std::hint::black_box;

/// Llama-3.1-8B on a card of 132 multiprocessors.
const SHAPE: Shape = Shape { heads: 32, kv_heads: 8, head: 128, scale: 0.088, window: None };
const LIMITS: PlanLimits = PlanLimits { blocks: 264, partials: 2048, products: AttentionProducts::Mma };

fn plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan");
    for (rows, shared, context) in
        [(1usize, 0usize, 1024usize), (8, 960, 1024), (25, 960, 1024), (64, 0, 1024), (256, 0, 1024)]
    {
        let common = shared / BLOCK;
        let own = context.div_ceil(BLOCK) - common;
        let blocks = |row: usize| (0..common).chain((0..own).map(move |i| common + row * own + i));
        let blocks: Vec<Vec<BlockId>> =
            (0..rows).map(|row| blocks(row).map(|block| BlockId(block as u32)).collect()).collect();
        let queries: Vec<[Query; 1]> =
            (0..rows as u32).map(|row| [Query { row, out: row, position: context as u32 - 1 }]).collect();
        let sequences: Vec<Sequence<'_>> =
            blocks.iter().zip(&queries).map(|(blocks, queries)| Sequence { blocks, queries }).collect();
        let plan = Plan::new(&SHAPE, &sequences, LIMITS).expect("it can be planned");
        assert!(plan.grid() > 0 && plan.filled(LIMITS).words().len() >= plan.words().len());
        let name = format!("{rows} rows, {shared} of {context} positions shared");
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| black_box(Plan::new(&SHAPE, black_box(&sequences), LIMITS).map(|plan| plan.filled(LIMITS))))
        });
    }
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);
