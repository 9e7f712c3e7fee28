//! A row has the same bits whatever is computed beside it and however its prefix came to be.

use crate::common::*;
use ggro::dtype::HalfType;
use ggro::model::cpu::LoadOptions;
use ggro::model::{PolicySpan, Role, TopK};
use ggro_testkit::invariance;

#[test]
fn rows_do_not_depend_on_their_company() {
    for name in FORWARD_FIXTURES {
        for simulate in [None, Some(HalfType::Bf16)] {
            let mut backend = reference(name, simulate);
            invariance::rows_alone_and_in_batches(&mut backend);
            invariance::logits_as_they_are_asked_for(&mut backend);
            invariance::rows_of_one_span(&mut backend);
            invariance::one_piece_and_chunks(&mut backend);
            invariance::fork_truncate_and_continue(&mut backend);
            invariance::rewards_alone_in_pieces_and_in_batches(&mut backend);
            invariance::gradients_alone_and_in_batches_and_again(&mut backend);
        }
    }
}

#[test]
fn long_prompts_are_cut_inside_without_changing_a_bit() {
    let mut backend = load("llama-gqa");
    let ids = text(1500, backend.config(Role::Policy).unwrap().vocab_size, 2);
    let seq = backend.create(Role::Policy).unwrap();
    let expected = prefill(&mut backend, seq, &ids, usize::MAX);
    let other = backend.create(Role::Policy).unwrap();
    assert_eq!(prefill(&mut backend, other, &ids, 700), expected);
}

#[test]
fn any_number_of_threads() {
    for name in ["llama-gqa", "mistral"] {
        let run = |threads| {
            let options = LoadOptions { threads: Some(threads), ..Default::default() };
            let mut backend = load_with(name, &options);
            let ids = text(300, backend.config(Role::Policy).unwrap().vocab_size, 5);
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
        let known = [Role::Policy, Role::Reward].map(|role| backend.config(role).unwrap().vocab_size);
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
