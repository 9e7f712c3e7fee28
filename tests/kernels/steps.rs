//! What a step of a whole model reads from memory: each weight once, a shared prefix once, and behind a long prefix nothing
//! more than its keys and values.

use crate::emulated::Emulated;
use ggro::cuda::ops::gemm::Shape;
use ggro::cuda::ops::gemm::sm80::{Plan as Product, TILES};
use ggro::cuda::ops::weight_layout::WeightLayout;
use ggro::dtype::HalfType;
use ggro::files::checkpoint::Files;
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::cuda::{self, CudaOptions, sizes::Sizes, weights::LoadPlan};
use ggro::model::{GradientSpan, ModelPair, PolicySpan, RewardSpan, Role, SeqId, Span, TopK, Work};
use ggro_emulator::{Config, Counters};
use std::collections::BTreeMap;

type Report = BTreeMap<String, Counters>;

/// A pair on the emulated device, which counts from [`counted`] on.
fn open(pair: &Pair) -> (ModelPair, ggro_emulator::Device) {
    let Emulated { device, machine } = Emulated::new(Config::default());
    let options = CudaOptions { batch_tokens: 256, gradient_tokens: 64, sequences: 68, ..CudaOptions::default() };
    (cuda::open(device, pair.parts(), &options, &mut |_| ()).unwrap().0, machine)
}

/// What the kernels do meanwhile, by kernel.
fn counted(machine: &ggro_emulator::Device, work: impl FnOnce()) -> Report {
    machine.configure("accesses=observed");
    // What was written while nobody observed it counts as initialised from here on.
    machine.reset();
    work();
    let report = machine.report().kernels;
    assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
    machine.configure("accesses=plain");
    report.into_iter().collect()
}

fn sum(report: &Report, prefix: &str, what: fn(&Counters) -> u64) -> u64 {
    report.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, counters)| what(counters)).sum()
}

fn step(cuda: &mut ModelPair, spans: &[(SeqId, usize, &[u32])]) {
    let spans = spans.iter().map(|&(seq, start, ids)| PolicySpan {
        span: Span { seq, start, ids },
        floor: 0.0,
        top_k: TopK::Skip,
        before: &[],
    });
    cuda.policy_step(&spans.collect::<Vec<_>>()).unwrap();
}

fn demo_pair() -> Pair {
    Pair::load(&demo::policy(), &demo::reward()).unwrap()
}

#[test]
fn a_decode_step_reads_each_weight_once() {
    let pair = demo_pair();
    let plan = LoadPlan::new(&pair.policy().unwrap().config, &pair.policy().unwrap().weights, None, WeightLayout::Rows)
        .unwrap();
    assert_eq!(plan.storage(), HalfType::Bf16);
    let (mut cuda, machine) = open(&pair);
    let ids: Vec<u32> = (10..40).collect();
    let seqs: Vec<SeqId> = (0..64).map(|_| cuda.create(Role::Policy).unwrap()).collect();
    for (i, &seq) in seqs.iter().enumerate() {
        step(&mut cuda, &[(seq, 0, &ids[i % 20..])]);
    }
    for rows in [1, 8, 33, 64] {
        let spans: Vec<_> = seqs[..rows].iter().map(|&seq| (seq, cuda.len(seq), &ids[..1])).collect();
        let report = counted(&machine, || step(&mut cuda, &spans));
        let weights = plan.device_bytes();
        let once = sum(&report, "gemm", |c| c.unique_bytes_read) as f64 / weights as f64;
        // However often: without the rows, which every block of outputs reads, and what it adds to. A graph has 64 rows for 33.
        let read = sum(&report, "gemm", |c| c.bytes_read) - activations(plan.sizes(), rows.next_power_of_two());
        let ratio = read as f64 / weights as f64;
        println!("decode step of {rows} rows: products read {ratio:.3} of the weights, {once:.3} with the rows once");
        assert!((0.99..1.005).contains(&ratio), "{rows} rows: {ratio}");
        assert!(once < 1.05 + 0.005 * rows.next_power_of_two() as f64, "{rows} rows: {once}");
        // One product each for qkv, attention's output, gate and up, and down, and the head.
        assert_eq!(sum(&report, "gemm", |c| c.launches), 4 * pair.policy().unwrap().config.num_layers as u64 + 1);
    }
}

/// Bytes that the products of a step read besides weights: each block of outputs its rows, and where they are added, the sums.
fn activations(sizes: &Sizes, rows: usize) -> u64 {
    let product = |n: usize, k: usize, added: bool| {
        let plan = Product::new(Shape { tokens: rows, n, k }, 132, 0);
        assert_eq!(plan.chunks.count, 1, "partial sums are not counted here");
        n.div_ceil(TILES[plan.tile].outputs) * rows * k * 2 + if added { 4 * rows * n } else { 0 }
    };
    let Sizes { hidden_padded: d, mlp_padded: f, qkv, attention_padded: a, layers, vocab, .. } = *sizes;
    let layer = product(qkv, d, false) + product(d, a, true) + product(2 * f, d, false) + product(d, f, true);
    (layers * layer + product(vocab, d, false)) as u64
}

#[test]
fn work_is_counted_as_the_reference_counts_it() {
    fn run(backend: &mut ModelPair) -> Vec<Work> {
        let ids: Vec<u32> = (20..60).collect();
        let mut all = Vec::new();
        let seq = backend.create(Role::Policy).unwrap();
        step(backend, &[(seq, 0, &ids)]);
        all.push(backend.work());
        let fork = backend.fork(seq, 33).unwrap();
        step(backend, &[(seq, 40, &ids[..1]), (fork, 33, &ids[..7])]);
        all.push(backend.work());
        let scored = backend.create(Role::Reward).unwrap();
        fn span(seq: SeqId, start: usize, ids: &[u32]) -> RewardSpan<'_> {
            RewardSpan { span: Span { seq, start, ids }, also_at: &[] }
        }
        fn gradient(span: RewardSpan<'_>, slot: usize) -> GradientSpan<'_> {
            GradientSpan { span, slot, candidates: &[11], rows: false }
        }
        backend.reward_score(&[span(scored, 0, &ids)]).unwrap();
        all.push(backend.work());
        let other = backend.fork(scored, 30).unwrap();
        // Six positions stand before the slot: they are run, and have no gradient.
        let spans = [gradient(span(scored, 40, &ids[..9]), 40), gradient(span(other, 30, &ids[..12]), 36)];
        backend.reward_gradient(&spans).unwrap();
        all.push(backend.work());
        // What fails has not been done.
        assert!(backend.reward_score(&[span(scored, 7, &ids)]).is_err());
        all.push(backend.work());
        all
    }
    let pair = demo_pair();
    let expected = run(&mut cpu::open(pair.parts(), &LoadOptions::default()).unwrap());
    let (mut cuda, machine) = open(&pair);
    assert_eq!(run(&mut cuda), expected);
    let last = expected[4];
    assert_eq!((last.policy_forward, last.reward_forward, last.reward_backward), (48, 61, 15));
    assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
}

#[test]
fn a_prefix_is_read_once_for_all_branches() {
    let pair = demo_pair();
    let (mut cuda, machine) = open(&pair);
    let ids: Vec<u32> = (0..300).map(|i| 10 + i % 500).collect();
    let seq = cuda.create(Role::Policy).unwrap();
    for chunk in ids.chunks(200) {
        let at = cuda.len(seq);
        step(&mut cuda, &[(seq, at, chunk)]);
    }
    let alone = counted(&machine, || step(&mut cuda, &[(seq, 300, &ids[..1])]));
    cuda.truncate(seq, 300).unwrap();
    let branches: Vec<SeqId> = (0..8).map(|_| cuda.fork(seq, 300).unwrap()).collect();
    let spans: Vec<_> = branches.iter().enumerate().map(|(i, &seq)| (seq, 300, &ids[i..i + 1])).collect();
    let together = counted(&machine, || step(&mut cuda, &spans));

    let read = |report: &Report| sum(report, "attention", |c| c.bytes_read);
    let config = &pair.policy().unwrap().config;
    // Keys and values of the 45 positions of the block in which the branches part, of all layers.
    let parted = 2 * (301 - 256) * config.num_kv_heads * config.head_dim * 2 * config.num_layers;
    let shared = 2 * 256 * config.num_kv_heads * config.head_dim * 2 * config.num_layers;
    let (alone, together) = (read(&alone), read(&together));
    println!(
        "attention read {alone} bytes for one branch, {together} for eight; a private prefix each would be {} more",
        7 * shared
    );
    assert!(alone as usize >= shared + parted);
    let more = together as usize - alone as usize;
    assert!(more >= 7 * parted && more < 7 * parted + shared, "{more} bytes more for seven more branches");
}

#[test]
fn behind_a_long_prefix_only_attention_reads_more() {
    let (_directory, pair) = stretched("llama-gqa", 4096);
    let (mut cuda, machine) = open(&pair);
    let ids: Vec<u32> = (0..3016).map(|i| 10 + i * 7 % 600).collect();
    let mut reports = Vec::new();
    for prefix in [0, 3000] {
        let seq = cuda.create(Role::Reward).unwrap();
        if prefix > 0 {
            let span = Span { seq, start: 0, ids: &ids[..prefix] };
            cuda.reward_score(&[RewardSpan { span, also_at: &[] }]).unwrap();
        }
        let before = cuda.work();
        let span = RewardSpan { span: Span { seq, start: prefix, ids: &ids[prefix..prefix + 16] }, also_at: &[] };
        let span = GradientSpan { span, slot: prefix, candidates: &[11, 12], rows: false };
        reports.push(counted(&machine, || drop(cuda.reward_gradient(&[span]).unwrap())));
        let work = cuda.work() - before;
        assert_eq!((work.reward_forward, work.reward_backward), (16, 16), "behind {prefix}");
    }
    let kernels: std::collections::BTreeSet<_> = reports.iter().flat_map(|r| r.keys()).collect();
    for kernel in kernels {
        let [short, long] = [&reports[0], &reports[1]].map(|report| report.get(kernel).cloned().unwrap_or_default());
        println!("{kernel}: {} bytes read behind nothing, {} behind 3000 positions", short.bytes_read, long.bytes_read);
        // Launches, bytes, sectors, operations: nothing else may know of the prefix. Attention may run another of its classes.
        assert!(kernel.starts_with("attention") || short == long, "{kernel}: {short:?} and {long:?}");
    }
    let all = |report: &Report, what: fn(&Counters) -> u64| sum(report, "attention", what);
    let [launches, flops] = [(|c: &Counters| c.launches) as fn(&Counters) -> u64, |c| c.matrix_flops]
        .map(|what| [all(&reports[0], what), all(&reports[1], what)]);
    println!("attention: {launches:?} launches, {flops:?} operations of matrix instructions");
    assert_eq!(launches[0], launches[1]);
    assert!(flops[1] > 20 * flops[0], "{flops:?}");
    // Keys and values of the prefix, once in the forward pass and once in the backward pass, of both layers.
    let config = &pair.reward().unwrap().config;
    let padded = config.head_dim.next_multiple_of(32);
    let prefix = 2 * 2 * 3000 * config.num_kv_heads * padded * 2 * config.num_layers;
    let attention = |report: &Report| sum(report, "attention", |c| c.bytes_read) as f64;
    let ratio = (attention(&reports[1]) - attention(&reports[0])) / prefix as f64;
    println!("attention reads {ratio:.3} of the prefix's keys and values more, counted once for each direction");
    // With heads this small, the parts of rows that chunks leave to each other are half as much again.
    assert!((1.0..1.7).contains(&ratio), "{ratio}");
    // Every weight is read twice in all: once forward, once backward.
    let weights =
        LoadPlan::new(&pair.reward().unwrap().config, &pair.reward().unwrap().weights, None, WeightLayout::Rows)
            .unwrap();
    let matrices = weights.device_bytes() as usize - 2 * config.vocab_size * config.hidden_size;
    let read = sum(&reports[1], "gemm", |c| c.unique_bytes_read) as f64 / matrices as f64;
    println!("products read {read:.3} of the matrices' bytes, forward and backward");
    // The rest is rows, a tenth of so small a model's weights.
    assert!((2.0..2.3).contains(&read), "{read}");
}

/// The pair of a fixture whose reward model has room for longer texts.
fn stretched(name: &str, positions: usize) -> (tempfile::TempDir, Pair) {
    let from = std::path::Path::new("tests/goldens").join(name);
    let directory = tempfile::tempdir().unwrap();
    for role in ["policy", "reward"] {
        let to = directory.path().join(role);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(from.join(role)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        let config = to.join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
        fields["max_position_embeddings"] = positions.into();
        std::fs::write(&config, fields.to_string()).unwrap();
    }
    let files = |role| Files::Dir(directory.path().join(role));
    let pair = Pair::load(&files("policy"), &files("reward")).unwrap();
    (directory, pair)
}
