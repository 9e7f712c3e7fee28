//! Decode steps and rewards with gradients as graphs: the bits of kernels launched one by one, few recordings, and no access that
//! is wrong.

use crate::emulated::Emulated;
use ggro::cuda::KernelFamily;
use ggro::files::pair::Parts;
use ggro::model::cuda::{self, CudaOptions, Launches};
use ggro::model::{GradientSpan, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};
use ggro_emulator::{Config, Streams};
use ggro_testkit::backend::{bits, gradient_bits, text};
use ggro_testkit::fixtures::parts;
use std::sync::Arc;

/// A fixture with a family of products on a device.
fn open(
    (name, family): (&str, KernelFamily),
    config: Config,
    graphs: bool,
) -> (ggro_emulator::Device, ModelPair, Arc<Launches>) {
    open_on(Emulated::new(config).with_family(family), name, graphs)
}

/// The same on a device that is there.
pub fn open_on(emulated: Emulated, name: &str, graphs: bool) -> (ggro_emulator::Device, ModelPair, Arc<Launches>) {
    let [policy, reward] = parts(name);
    let Emulated { device, machine } = emulated;
    let options =
        CudaOptions { batch_tokens: 256, gradient_tokens: 64, sequences: 80, graphs, ..CudaOptions::default() };
    let parts = Parts::both((&policy.0, &policy.1), (&reward.0, &reward.1));
    let (pair, opened) = cuda::open(device, parts, &options, &mut |_| ()).unwrap();
    (machine, pair, opened.launches)
}

/// One token for each sequence, with lists of all kinds asked for.
fn decode(cuda: &mut ModelPair, seqs: &[SeqId], step: usize) -> Vec<PolicyRow> {
    let ids: Vec<[u32; 1]> = (0..seqs.len()).map(|i| [(7 * i + 31 * step) as u32 % 500]).collect();
    let spans = seqs.iter().zip(&ids).enumerate().map(|(i, (&seq, ids))| PolicySpan {
        span: Span { seq, start: cuda.len(seq), ids },
        floor: [0.0, 1e-9][i % 2],
        top_k: [TopK::Take(5), TopK::Skip, TopK::Take(25)][(i + step) % 3],
        before: &[],
    });
    let spans: Vec<PolicySpan<'_>> = spans.collect();
    cuda.policy_step(&spans).unwrap()
}

/// Requests that come, fork, grow over the ends of blocks and chunks, and go: every row, and some of the logits.
pub fn session(cuda: &mut ModelPair) -> Vec<(Vec<PolicyRow>, Vec<u32>)> {
    let vocab = cuda.config(Role::Policy).unwrap().vocab_size;
    let mut seqs = Vec::new();
    let mut all = Vec::new();
    for (i, len) in [250, 3, 62].into_iter().enumerate() {
        let seq = cuda.create(Role::Policy).unwrap();
        let ids = text(len, vocab, i as u64);
        let span = Span { seq, start: 0, ids: &ids };
        cuda.policy_step(&[PolicySpan { span, floor: 0.0, top_k: TopK::Skip, before: &[] }]).unwrap();
        seqs.push(seq);
    }
    let mut run = |cuda: &mut ModelPair, seqs: &[SeqId], step: usize| {
        let rows = decode(cuda, seqs, step);
        all.push((rows, bits(&cuda.logits_row(seqs[seqs.len() / 2]).unwrap())));
    };
    for step in 0..8 {
        run(cuda, &seqs, step);
    }
    // Branches of the longest one, which share its blocks but the last.
    for _ in 0..2 {
        let len = cuda.len(seqs[0]);
        seqs.push(cuda.fork(seqs[0], len - 1).unwrap());
    }
    for step in 0..3 {
        run(cuda, &seqs, step);
    }
    run(cuda, &seqs[4..], 3);
    cuda.release(seqs.pop().unwrap());
    cuda.truncate(seqs[0], 200).unwrap();
    for step in 4..8 {
        run(cuda, &seqs, step);
    }
    // More sequences than hidden states are kept for at first, in one step that is filled up from 73 rows to 96.
    for _ in 0..69 {
        seqs.push(cuda.fork(seqs[1], 9).unwrap());
    }
    run(cuda, &seqs, 8);
    run(cuda, &seqs, 9);
    for seq in seqs {
        cuda.release(seq);
    }
    all
}

#[test]
fn graphs_change_no_bit() {
    // Groups of heads; a sliding window, in f16; head norms and a padded head.
    for (name, family) in
        [("llama-gqa", KernelFamily::Sm90), ("mistral", KernelFamily::Sm80), ("qwen3", KernelFamily::Sm90)]
    {
        let (machine, mut eager, launches) = open((name, family), Config::default(), false);
        let expected = session(&mut eager);
        assert_eq!(launches.graphs(), (0, 0));
        drop((eager, machine));
        for streams in if name == "llama-gqa" { &[Streams::Eager, Streams::Lazy][..] } else { &[Streams::Lazy] } {
            let streams = *streams;
            let (machine, mut cuda, launches) = open((name, family), Config { streams, ..Config::default() }, true);
            let found = session(&mut cuda);
            for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{name}, step {step}");
            }
            let (launched, recorded) = launches.graphs();
            println!("{name}: {launched} steps by {recorded} graphs");
            assert_eq!(launched, expected.len() as u64);
            // All but first steps, those behind a change, and those where a block begins.
            println!("{name}: {} steps planned ahead", launches.planned_ahead());
            assert!(
                (5..launched - 4).contains(&launches.planned_ahead()),
                "{} of {launched}",
                launches.planned_ahead()
            );
            assert!(recorded <= 6, "{recorded} graphs");
            if name == "llama-gqa" {
                // Buffers have grown and moved meanwhile; after that nothing is left to be recorded.
                assert!(session(&mut cuda) == expected);
                let (_, settled) = launches.graphs();
                assert!(session(&mut cuda) == expected);
                assert_eq!(launches.graphs(), (3 * launched, settled));
            }
            assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
        }
    }
}

/// Launches of a decode step: those of a layer, and all others.
#[test]
fn a_decode_step_is_few_launches() {
    // Projection, attention, product, gates and ups, product; rotation where heads have norms; and the norms before the first layer and
    // in the last. On other cards norms, rotation and activation are kernels of their own.
    for (name, family, of_a_layer, of_all) in [
        ("llama-gqa", KernelFamily::Sm90, 5, 2),
        ("qwen3", KernelFamily::Sm90, 6, 2),
        ("llama-gqa", KernelFamily::Sm80, 9, 0),
    ] {
        let (machine, mut cuda, _) = open((name, family), Config::default(), true);
        let layers = cuda.config(Role::Policy).unwrap().num_layers as u64;
        let seq = cuda.create(Role::Policy).unwrap();
        let mut step = |ids: &[u32]| {
            let span = Span { seq, start: cuda.len(seq), ids };
            cuda.policy_step(&[PolicySpan { span, floor: 0.0, top_k: TopK::Skip, before: &[] }]).unwrap();
        };
        step(&text(20, 500, 1));
        step(&[7]);
        machine.reset();
        step(&[8]);
        let kernels = machine.report().kernels;
        let launches = |begins: &[&str]| -> u64 {
            let mine = kernels.iter().filter(|(name, _)| begins.iter().any(|begin| name.starts_with(begin)));
            mine.map(|(_, counters)| counters.launches).sum()
        };
        // The head's product and the final norm are no layer's.
        let in_layers = launches(&["gemm", "attention", "rmsnorm", "rope", "swiglu"]) - 2;
        assert_eq!(in_layers, layers * of_a_layer + of_all, "{name}, {family:?}: {:?}", kernels.keys());
        let others = launches(&[""]) - in_layers;
        println!("{name}, {family:?}: {of_a_layer} launches a layer and {others} others");
        assert!(others <= 8, "{name}, {family:?}: {:?}", kernels.keys());
    }
}

#[test]
fn graphs_are_clean_where_every_access_is_observed() {
    let of = ("llama-unaligned", KernelFamily::Sm80);
    let (machine, mut cuda, launches) = open(of, Config { checked: true, ..Config::default() }, true);
    session(&mut cuda);
    assert!(launches.graphs().0 > 10);
    assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
}

/// Rewards with gradients of branches behind one prefix: some branches, each of so many tokens with so many candidates; rewards
/// that are asked for besides, and rows.
fn differentiate(cuda: &mut ModelPair, prefix: SeqId, lens: &[usize], candidates: usize, more: bool) -> Vec<Vec<u32>> {
    let vocab = cuda.config(Role::Reward).unwrap().vocab_size;
    let ids: Vec<Vec<u32>> = lens.iter().enumerate().map(|(i, &len)| text(len, vocab, i as u64)).collect();
    let listed = text(candidates, vocab, 99);
    let start = cuda.len(prefix);
    let seqs: Vec<SeqId> = ids.iter().map(|_| cuda.fork(prefix, start).unwrap()).collect();
    let also: Vec<Vec<usize>> =
        lens.iter().map(|&len| if more { (start..start + len / 2).collect() } else { Vec::new() }).collect();
    let spans = seqs.iter().zip(&ids).zip(&also).enumerate().map(|(i, ((&seq, ids), also_at))| GradientSpan {
        span: RewardSpan { span: Span { seq, start, ids }, also_at },
        slot: start + if more { i % ids.len() } else { 0 },
        candidates: &listed[..candidates.saturating_sub(i)],
        rows: more,
    });
    let spans: Vec<GradientSpan<'_>> = spans.collect();
    let gradients = cuda.reward_gradient(&spans).unwrap();
    seqs.into_iter().for_each(|seq| cuda.release(seq));
    gradients.iter().map(gradient_bits).collect()
}

/// Passes of several shapes, some of which come again, behind contexts that grow.
pub fn gradients(cuda: &mut ModelPair) -> Vec<Vec<Vec<u32>>> {
    let vocab = cuda.config(Role::Reward).unwrap().vocab_size;
    let prefix = cuda.create(Role::Reward).unwrap();
    let mut all = Vec::new();
    for turn in 0..4 {
        let ids = text(61, vocab, turn);
        let span = Span { seq: prefix, start: cuda.len(prefix), ids: &ids };
        cuda.reward_score(&[RewardSpan { span, also_at: &[] }]).unwrap();
        for len in [9, 11, 14] {
            all.push(differentiate(cuda, prefix, &[len], 5, false));
            all.push(differentiate(cuda, prefix, &[len, 4, len + 1, 6, 5], 80, false));
        }
        all.push(differentiate(cuda, prefix, &[1, 1, 1], 3, false));
        // So many candidates that their lists grow, and move.
        all.push(differentiate(cuda, prefix, &[5], if turn == 2 { 5000 } else { 7 }, false));
        all.push(differentiate(cuda, prefix, &[30, 34], 1, turn % 2 == 0));
        all.push(differentiate(cuda, prefix, &[7, 20], 66, true));
    }
    cuda.release(prefix);
    all
}

#[test]
fn graphs_change_no_bit_of_a_gradient() {
    for (name, family) in
        [("llama-gqa", KernelFamily::Sm80), ("mistral", KernelFamily::Sm90), ("qwen3", KernelFamily::Sm90)]
    {
        let (machine, mut eager, launches) = open((name, family), Config::default(), false);
        let expected = gradients(&mut eager);
        assert_eq!(launches.gradient_graphs(), (0, 0));
        drop((eager, machine));
        for streams in [Streams::Eager, Streams::Lazy] {
            let (machine, mut cuda, launches) = open((name, family), Config { streams, ..Config::default() }, true);
            for turn in 0..3 {
                let found = gradients(&mut cuda);
                for (pass, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(found, expected, "{name}, turn {turn}, pass {pass}");
                }
                let (launched, recorded) = launches.gradient_graphs();
                println!(
                    "{name}, turn {turn}: {launched} of {} passes by {recorded} graphs",
                    (turn + 1) * expected.len()
                );
            }
            // Which tokens share an item of attention follows from the numbers of their blocks too, so now and then a shape is new.
            let before = launches.gradient_graphs();
            gradients(&mut cuda);
            let after = launches.gradient_graphs();
            let (launched, recorded) = (after.0 - before.0, after.1 - before.1);
            assert!(launched + 2 >= expected.len() as u64 && recorded <= 2, "{launched} by graph, {recorded} recorded");
            assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
        }
    }
}

#[test]
fn gradient_graphs_are_clean_where_every_access_is_observed() {
    let of = ("llama-unaligned", KernelFamily::Sm90);
    let (machine, mut cuda, launches) = open(of, Config { checked: true, ..Config::default() }, true);
    gradients(&mut cuda);
    assert!(launches.gradient_graphs().0 > 10, "{:?}", launches.gradient_graphs());
    assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
}
