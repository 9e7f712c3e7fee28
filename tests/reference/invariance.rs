//! A row has the same bits whatever is computed beside it and however its prefix came to be.

use crate::common::*;
use ggro::model::reference::LoadOptions;
use ggro::model::{Backend, PolicyRow, PolicySpan, Role, TopK};

/// Texts that end just before, at and behind a block of 64.
const LENGTHS: [usize; 5] = [1, 63, 64, 65, 150];

fn alone(name: &str, ids: &[u32]) -> (PolicyRow, Vec<u32>) {
    let mut backend = load(name);
    let seq = backend.create(Role::Policy).unwrap();
    prefill(&mut backend, seq, ids, usize::MAX)
}

#[test]
fn a_policy_row_alone_and_in_batches() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        let vocab = backend.config(Role::Policy).vocab_size;
        for count in [2, 7, 33] {
            let texts: Vec<Vec<u32>> = (0..count).map(|i| text(LENGTHS[i % 5] + i, vocab, i as u64)).collect();
            let seqs: Vec<_> = texts.iter().map(|_| backend.create(Role::Policy).unwrap()).collect();
            let spans: Vec<_> = texts.iter().zip(&seqs).map(|(ids, &seq)| policy_span(seq, 0, ids)).collect();
            let rows = backend.policy_step(&spans).unwrap();
            for i in [0, 1, count - 1] {
                let (row, logits) = alone(name, &texts[i]);
                assert_eq!(rows[i], row, "{name}, row {i} of {count}");
                assert_eq!(bits(&backend.logits_row(seqs[i]).unwrap()), logits);
            }
            seqs.into_iter().for_each(|seq| backend.release(seq));
        }
    }
}

#[test]
fn one_piece_and_chunks() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        let ids = text(150, backend.config(Role::Policy).vocab_size, 1);
        let expected = alone(name, &ids);
        for chunk in [1, 63, 64, 65] {
            let seq = backend.create(Role::Policy).unwrap();
            assert_eq!(prefill(&mut backend, seq, &ids, chunk), expected, "{name}, chunks of {chunk}");
            backend.release(seq);
        }
    }
}

#[test]
fn long_prompts_are_cut_inside_without_changing_a_bit() {
    let mut backend = load("llama-gqa");
    let ids = text(1500, backend.config(Role::Policy).vocab_size, 2);
    let seq = backend.create(Role::Policy).unwrap();
    let expected = prefill(&mut backend, seq, &ids, usize::MAX);
    let other = backend.create(Role::Policy).unwrap();
    assert_eq!(prefill(&mut backend, other, &ids, 700), expected);
}

#[test]
fn fork_truncate_and_continue_against_recomputation() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        let vocab = backend.config(Role::Policy).vocab_size;
        let (ids, other) = (text(150, vocab, 3), text(150, vocab, 4));
        let seq = backend.create(Role::Policy).unwrap();
        prefill(&mut backend, seq, &ids, usize::MAX);
        for cut in [1, 40, 63, 64, 65, 128, 149] {
            let joined = [&ids[..cut], &other[cut..]].concat();
            let expected = alone(name, &joined);
            let fork = backend.fork(seq, cut).unwrap();
            assert_eq!(prefill(&mut backend, fork, &other[cut..], usize::MAX), expected, "{name}, fork at {cut}");
            // Cut back into blocks that the origin holds as well, then write: the origin must not notice.
            let half = cut.div_ceil(2);
            backend.truncate(fork, half).unwrap();
            assert_eq!(prefill(&mut backend, fork, &joined[half..], 13), expected, "{name}, truncated to {half}");
            backend.release(fork);
        }
        let continued = prefill(&mut backend, seq, &other[..9], usize::MAX);
        assert_eq!(continued, alone(name, &[&ids[..], &other[..9]].concat()), "{name}: the origin is unharmed");
    }
}

#[test]
fn gradients_alone_and_in_batches_and_again() {
    for name in FORWARD_FIXTURES {
        let mut backend = load(name);
        let vocab = backend.config(Role::Reward).vocab_size;
        let texts: Vec<Vec<u32>> = (0..7).map(|i| text(LENGTHS[i % 5] + 3 + i, vocab, 10 + i as u64)).collect();
        let slots: Vec<usize> = texts.iter().enumerate().map(|(i, t)| t.len() - 1 - (i * 5) % (t.len() - 1)).collect();
        let seqs: Vec<_> = texts.iter().map(|_| backend.create(Role::Reward).unwrap()).collect();
        let spans: Vec<_> =
            texts.iter().zip(&seqs).zip(&slots).map(|((ids, &seq), &slot)| gradient_span(seq, 0, ids, slot)).collect();
        let together = backend.reward_gradient(&spans).unwrap();
        for i in 0..texts.len() {
            for _ in 0..2 {
                let single = gradient(&mut backend, &texts[i], slots[i]);
                assert_eq!(gradient_bits(&single), gradient_bits(&together[i]), "{name}, text {i}");
            }
        }
    }
}

#[test]
fn any_number_of_threads() {
    for name in ["llama-gqa", "mistral"] {
        let run = |threads| {
            let options = LoadOptions { threads: Some(threads), ..Default::default() };
            let mut backend = load_with(name, &options);
            let ids = text(300, backend.config(Role::Policy).vocab_size, 5);
            let seq = backend.create(Role::Policy).unwrap();
            let row = prefill(&mut backend, seq, &ids, usize::MAX);
            (row, gradient_bits(&gradient(&mut backend, &ids, 250)))
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }
}

/// A policy may know more ids than the reward model, or fewer; only ids that both know are proposed.
#[test]
fn vocabularies_of_two_sizes() {
    for (policy, reward) in [("qwen2", "llama-gqa"), ("llama-gqa", "qwen2"), ("llama-gqa", "mistral")] {
        let mut backend = load_pair(policy, reward, &LoadOptions::default());
        let known = [Role::Policy, Role::Reward].map(|role| backend.config(role).vocab_size);
        assert_ne!(known[0], known[1]);
        let both = known[0].min(known[1]);
        let seq = backend.create(Role::Policy).unwrap();
        let span = PolicySpan { top_k: TopK::Take(usize::MAX), ..policy_span(seq, 0, &[3, 1, 4]) };
        let row = backend.policy_step(&[span]).unwrap().remove(0);
        let mut ids: Vec<usize> = row.top.iter().map(|&(id, _)| id as usize).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..both).collect::<Vec<_>>());
    }
}

#[test]
fn a_sequence_twice_in_a_batch_is_refused_and_unchanged() {
    let mut backend = load("llama-gqa");
    let seq = backend.create(Role::Policy).unwrap();
    assert!(backend.policy_step(&[policy_span(seq, 0, &[3]), policy_span(seq, 0, &[4])]).is_err());
    assert_eq!((backend.len(seq), backend.work().policy_forward), (0, 0));
    assert!(backend.policy_step(&[policy_span(seq, 0, &[3])]).is_ok());
}
