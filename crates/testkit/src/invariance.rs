//! A row has the same bits whatever is computed beside it and however its prefix came to be.

use crate::backend::{bits, gradient, gradient_bits, gradient_span, policy_span, prefill, text};
use ggro::model::{Logits, ModelPair, PolicyRow, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};

/// Texts that end just before, at and behind a block of 64.
const LENGTHS: [usize; 5] = [1, 63, 64, 65, 150];

fn vocab(backend: &ModelPair, role: Role) -> usize {
    backend.config(role).unwrap().vocab_size
}

/// The row after `ids`, computed for themselves in one piece.
fn alone(backend: &mut ModelPair, ids: &[u32]) -> (PolicyRow, Vec<u32>) {
    let seq = backend.create(Role::Policy).unwrap();
    let out = prefill(backend, seq, ids, usize::MAX);
    backend.release(seq);
    out
}

/// Policy rows alone, and in batches of 2, 7 and 33 whole texts, each of which then goes on by one token; and again.
pub fn rows_alone_and_in_batches(backend: &mut ModelPair) {
    let vocab = vocab(backend, Role::Policy);
    for count in [2, 7, 33] {
        let texts: Vec<Vec<u32>> = (0..count).map(|i| text(LENGTHS[i % 5] + i, vocab, i as u64)).collect();
        let chosen = [0, 1, count - 1];
        let expected = chosen.map(|i| {
            let (whole, row) = (alone(backend, &texts[i]), alone(backend, &[&texts[i][..], &[i as u32]].concat()));
            assert_eq!(alone(backend, &texts[i]), whole, "row {i} again");
            [whole, row]
        });
        let seqs: Vec<_> = texts.iter().map(|_| backend.create(Role::Policy).unwrap()).collect();
        let spans: Vec<_> = texts.iter().zip(&seqs).map(|(ids, &seq)| policy_span(seq, 0, ids)).collect();
        let next: Vec<[u32; 1]> = (0..count).map(|i| [i as u32]).collect();
        let more: Vec<_> =
            texts.iter().zip(&seqs).zip(&next).map(|((ids, &seq), id)| policy_span(seq, ids.len(), id)).collect();
        for (step, spans) in [spans, more].into_iter().enumerate() {
            let rows = backend.policy_step(&spans).unwrap();
            for (i, expected) in chosen.iter().zip(&expected) {
                assert_eq!(rows[*i], expected[step].0, "row {i} of {count}, step {step}");
                assert_eq!(
                    bits(&backend.logits_row(seqs[*i]).unwrap()),
                    expected[step].1,
                    "row {i} of {count}, step {step}"
                );
            }
        }
        seqs.into_iter().for_each(|seq| backend.release(seq));
    }
}

/// The rows of a span's last tokens, each with a list of its own, are those of the tokens one by one; and what is cut
/// back leaves nothing behind.
pub fn rows_of_one_span(backend: &mut ModelPair) {
    let vocab = vocab(backend, Role::Policy);
    let (ids, other) = (text(150, vocab, 6), text(150, vocab, 7));
    let lists = [TopK::Take(3), TopK::Skip, TopK::Take(9), TopK::Skip, TopK::Take(1)];
    for (start, rows) in [(0, 2), (0, 5), (61, 5), (62, 3), (64, 1), (100, 4)] {
        let end = start + 20;
        let seq = backend.create(Role::Policy).unwrap();
        if start > 0 {
            prefill(backend, seq, &ids[..start], usize::MAX);
        }
        let beside = backend.create(Role::Policy).unwrap();
        let span = |seq, ids, rows: usize| PolicySpan {
            top_k: lists[rows - 1],
            before: &lists[..rows - 1],
            ..policy_span(seq, start, ids)
        };
        let spans = [span(seq, &ids[start..end], rows), policy_span(beside, 0, &other[..9])];
        let found = backend.policy_step(&spans).unwrap();
        assert_eq!(found.len(), rows + 1);
        for row in 0..rows {
            let len = end - (rows - 1 - row);
            let (alone, whole) = {
                let seq = backend.create(Role::Policy).unwrap();
                if len > 1 {
                    prefill(backend, seq, &ids[..len - 1], usize::MAX);
                }
                let last = PolicySpan { top_k: lists[row], ..policy_span(seq, len - 1, &ids[len - 1..len]) };
                let alone = backend.policy_step(&[last]).unwrap().remove(0);
                let whole = backend.logits_row(seq).unwrap();
                backend.release(seq);
                (alone, whole)
            };
            assert_eq!(found[row], alone, "row {row} of {rows} behind {start}");
            if row + 1 == rows || backend.keeps_span_rows() {
                let again = backend.logits_row_before(seq, rows - 1 - row).unwrap();
                assert_eq!(bits(&again), bits(&whole), "logits of row {row} of {rows} behind {start}");
            }
        }
        assert!(backend.logits_row_before(seq, rows).is_err());
        // Two of the tokens are taken back, and others come.
        backend.truncate(seq, end - 2).unwrap();
        assert!(backend.logits_row(seq).is_err());
        let joined = [&ids[..end - 2], &other[..5]].concat();
        assert_eq!(prefill(backend, seq, &other[..5], usize::MAX), alone(backend, &joined), "behind {start}");
        [seq, beside].into_iter().for_each(|seq| backend.release(seq));
    }
    let seq = backend.create(Role::Policy).unwrap();
    let span = PolicySpan { before: &lists[..2], ..policy_span(seq, 0, &[1, 2]) };
    let error = backend.policy_step(&[span]).unwrap_err().to_string();
    assert!(error.contains("3 rows asked for of a span of 2 tokens"), "{error}");
    assert_eq!(backend.len(seq), 0);
    backend.release(seq);
}

/// Single logits are the row's own, log-probabilities what is left of them without the row's log-sum-exp.
pub fn logits_as_they_are_asked_for(backend: &mut ModelPair) {
    let ids = text(70, vocab(backend, Role::Policy), 3);
    let last = vocab(backend, Role::Policy) as u32 - 1;
    let seq = backend.create(Role::Policy).unwrap();
    assert!(backend.logits(seq, Logits::LogProbabilities).is_err(), "nothing was run");
    let (row, whole) = prefill(backend, seq, &ids, 70);
    let wanted = [last, 0, 7, 7];
    let expected: Vec<u32> = wanted.iter().map(|&id| whole[id as usize]).collect();
    for _ in 0..2 {
        assert_eq!(bits(&backend.logits(seq, Logits::All).unwrap()), whole);
        assert_eq!(bits(&backend.logits(seq, Logits::Of(&wanted)).unwrap()), expected);
        let found = backend.logits(seq, Logits::LogProbabilities).unwrap();
        let without = |&bits: &u32| (f64::from(f32::from_bits(bits)) - row.stats.log_sum_exp) as f32;
        assert_eq!(found, whole.iter().map(without).collect::<Vec<_>>());
    }
    assert!(backend.logits(seq, Logits::Of(&[])).unwrap().is_empty());
    let error = backend.logits(seq, Logits::Of(&[3, last + 1])).unwrap_err().to_string();
    assert!(error.contains(&format!("id {}, beyond", last + 1)), "{error}");
    backend.release(seq);
}

/// A prompt in one piece, and in chunks of 1, 63, 64 and 65.
pub fn one_piece_and_chunks(backend: &mut ModelPair) {
    let ids = text(150, vocab(backend, Role::Policy), 1);
    let expected = alone(backend, &ids);
    for chunk in [1, 63, 64, 65] {
        let seq = backend.create(Role::Policy).unwrap();
        assert_eq!(prefill(backend, seq, &ids, chunk), expected, "chunks of {chunk}");
        backend.release(seq);
    }
}

/// Forks that go on, and are cut back and go on, against recomputation; the origin does not notice.
pub fn fork_truncate_and_continue(backend: &mut ModelPair) {
    let vocab = vocab(backend, Role::Policy);
    let (ids, other) = (text(150, vocab, 3), text(150, vocab, 4));
    let seq = backend.create(Role::Policy).unwrap();
    prefill(backend, seq, &ids, usize::MAX);
    for cut in [1, 40, 63, 64, 65, 128, 149] {
        let joined = [&ids[..cut], &other[cut..]].concat();
        let expected = alone(backend, &joined);
        let fork = backend.fork(seq, cut).unwrap();
        assert_eq!(prefill(backend, fork, &other[cut..], usize::MAX), expected, "fork at {cut}");
        // Cut back into blocks that the origin holds as well, then write: the origin must not notice.
        let half = cut.div_ceil(2);
        backend.truncate(fork, half).unwrap();
        assert_eq!(prefill(backend, fork, &joined[half..], 13), expected, "truncated to {half}");
        backend.release(fork);
    }
    let continued = prefill(backend, seq, &other[..9], usize::MAX);
    assert_eq!(continued, alone(backend, &[&ids[..], &other[..9]].concat()), "the origin is unharmed");
    backend.release(seq);
}

/// Rewards in one span, in two, behind a fork and beside others.
pub fn rewards_alone_in_pieces_and_in_batches(backend: &mut ModelPair) {
    let ids = text(150, vocab(backend, Role::Reward), 5);
    let score = |backend: &mut ModelPair, spans: &[(SeqId, usize, &[u32])]| -> Vec<u32> {
        let spans: Vec<RewardSpan<'_>> = spans
            .iter()
            .map(|&(seq, start, ids)| RewardSpan { span: Span { seq, start, ids }, also_at: &[] })
            .collect();
        backend.reward_score(&spans).unwrap().iter().map(|score| score.reward.to_bits()).collect()
    };
    let whole = backend.create(Role::Reward).unwrap();
    let expected = score(backend, &[(whole, 0, &ids)]);
    for cut in [1, 63, 64, 65, 149] {
        let (fork, other) = (backend.fork(whole, cut).unwrap(), backend.create(Role::Reward).unwrap());
        let found = score(backend, &[(fork, cut, &ids[cut..]), (other, 0, &ids)]);
        assert_eq!(found, [expected[0], expected[0]], "cut at {cut}");
        let again = backend.fork(other, cut).unwrap();
        assert_eq!(score(backend, &[(again, cut, &ids[cut..])]), expected, "again, cut at {cut}");
        [fork, other, again].into_iter().for_each(|seq| backend.release(seq));
    }
    let seq = backend.create(Role::Reward).unwrap();
    let all: Vec<usize> = (0..ids.len()).collect();
    let span = RewardSpan { span: Span { seq, start: 0, ids: &ids }, also_at: &all };
    let together = backend.reward_score(&[span]).unwrap().remove(0);
    for len in [1, 63, 64, 65, 150] {
        let prefix = backend.create(Role::Reward).unwrap();
        let found = score(backend, &[(prefix, 0, &ids[..len])]);
        assert_eq!(found, [together.also[len - 1].to_bits()], "reward at {}", len - 1);
        backend.release(prefix);
    }
    [whole, seq].into_iter().for_each(|seq| backend.release(seq));
}

/// Gradients of several texts together, and of each twice alone.
pub fn gradients_alone_and_in_batches_and_again(backend: &mut ModelPair) {
    let vocab = vocab(backend, Role::Reward);
    let texts: Vec<Vec<u32>> = (0..7).map(|i| text(LENGTHS[i % 5] + 3 + i, vocab, 10 + i as u64)).collect();
    let slots: Vec<usize> = texts.iter().enumerate().map(|(i, t)| t.len() - 1 - (i * 5) % (t.len() - 1)).collect();
    let seqs: Vec<_> = texts.iter().map(|_| backend.create(Role::Reward).unwrap()).collect();
    let spans: Vec<_> =
        texts.iter().zip(&seqs).zip(&slots).map(|((ids, &seq), &slot)| gradient_span(seq, 0, ids, slot)).collect();
    let together = backend.reward_gradient(&spans).unwrap();
    for i in 0..texts.len() {
        for _ in 0..2 {
            let single = gradient(backend, &texts[i], slots[i]);
            assert_eq!(gradient_bits(&single), gradient_bits(&together[i]), "text {i}");
        }
    }
    seqs.into_iter().for_each(|seq| backend.release(seq));
}
