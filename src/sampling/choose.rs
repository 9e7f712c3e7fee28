//! Which token: the logits with bias and penalties, divided by the temperature, filtered, and one uniform number.
//!
//! A tempered token weighs `exp((logit - max) / temperature)`, rounded down to a whole number of parts of 2^-62: sums
//! are exact, in whatever order they are taken, and 2^-62 is less than a uniform number of 53 bits can tell apart. So
//! nothing has to be sorted. Every question about the order "most likely first, the lower id first on a tie" is of the
//! kind "how many of the first ones weigh more than this", which selection answers in linear time, and the answer is
//! the one that a sort would give, to the last bit.

use std::cmp::Ordering;

use super::{Counts, Sampling};
use crate::answer::TokenLogprob;
use crate::model::{RowStats, top_k};
use crate::rng::Uniforms;

/// Draws the token number `index` of completion number `stream`: depends on the seed, `stream`, `index`, the ids so far
/// and the row alone.
///
/// A token whose logit is minus infinity is not chosen, whatever its bias. A row that is no distribution (empty, nothing
/// but minus infinity, or something not a number) gives id 0 with a log probability of minus infinity. Ids beyond the
/// row, in `sampling` or `counts`, are ignored.
pub fn choose(row: &[f32], sampling: &Sampling, counts: &Counts, stream: u64, index: u64) -> TokenLogprob {
    choose_of(row, &RowStats::of(row, 0.0), sampling, counts, (stream, index))
}

/// [`choose`] from a row whose statistics, `RowStats::of(row, 0.0)`, are known: several completions may go on from one
/// row.
pub(crate) fn choose_of(
    row: &[f32],
    stats: &RowStats,
    sampling: &Sampling,
    counts: &Counts,
    (stream, index): (u64, u64),
) -> TokenLogprob {
    if !stats.finite {
        return TokenLogprob { id: 0, logprob: f64::NEG_INFINITY, entropy: 0.0, top: Vec::new() };
    }
    let suppressed = index < sampling.min_tokens && !sampling.suppress_ids.is_empty();
    let id = if sampling.plain() && !suppressed {
        stats.argmax
    } else {
        let mut logits = penalised(row, sampling, counts);
        if suppressed {
            suppress(&mut logits, &sampling.suppress_ids);
        }
        let (argmax, max) = largest(&logits);
        if sampling.temperature == 0.0 {
            argmax
        } else {
            let tokens = tempered(&logits, max, sampling);
            drawn(tokens, sampling, uniform(sampling.seed, stream, index)).unwrap_or(argmax)
        }
    };
    reported(row, stats, id, sampling.logprobs)
}

/// Log-probabilities of `id` and of the most likely tokens after `row`.
pub(crate) fn reported(row: &[f32], stats: &RowStats, id: u32, logprobs: Option<usize>) -> TokenLogprob {
    let logprob = |logit: f32| f64::from(logit) - stats.log_sum_exp;
    let most_likely = top_k(row, logprobs.unwrap_or(0), row.len());
    let possible = most_likely.into_iter().filter(|&(_, logit)| logit > f32::NEG_INFINITY);
    TokenLogprob {
        id,
        logprob: row.get(id as usize).map_or(f64::NEG_INFINITY, |&logit| logprob(logit)),
        entropy: stats.entropy,
        top: possible.map(|(id, logit)| (id, logprob(logit))).collect(),
    }
}

/// Makes tokens impossible, unless nothing would be left.
fn suppress(logits: &mut [f64], ids: &[u32]) {
    let before = logits.to_vec();
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f64::NEG_INFINITY;
        }
    }
    if logits.iter().all(|&logit| logit == f64::NEG_INFINITY) {
        logits.copy_from_slice(&before);
    }
}

/// The number that decides this draw.
fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    // A large odd factor: the streams of one seed have different seeds of their own, far from those of its neighbours.
    let seed = seed.wrapping_add(stream.wrapping_mul(0xd134_2543_de82_ef95));
    // Seeded numbers never run out.
    Uniforms::Seeded(seed).nth(index as usize).unwrap_or(0.0)
}

/// The logits with bias and penalties, in this order.
fn penalised(row: &[f32], sampling: &Sampling, counts: &Counts) -> Vec<f64> {
    // Adding 0 leaves one zero, which total orders need.
    let mut logits: Vec<f64> = row.iter().map(|&logit| f64::from(logit) + 0.0).collect();
    for &(id, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
    for (&id, &times) in &counts.seen {
        // Minus infinity stays what it is, and an extreme penalty must not make another one.
        if let Some(logit) = logits.get_mut(id as usize).filter(|logit| logit.is_finite()) {
            let penalty = sampling.repetition_penalty;
            let repeated = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            let presence = if times > 0 { sampling.presence_penalty } else { 0.0 };
            let lowered = repeated - sampling.frequency_penalty * times as f64 - presence;
            *logit = lowered.clamp(f64::MIN, f64::MAX);
        }
    }
    logits
}

/// The largest logit and its id, the lowest on a tie.
fn largest(logits: &[f64]) -> (u32, f64) {
    (0u32..)
        .zip(logits)
        .fold((0, f64::NEG_INFINITY), |best, (id, &logit)| if logit > best.1 { (id, logit) } else { best })
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    id: u32,
    /// Parts of 2^-62 of the most likely one's weight.
    weight: u64,
}

/// The weight of the most likely token.
const ONE: f64 = (1u64 << 62) as f64;

/// The tokens with any weight at this temperature that `min_p` leaves, by id.
fn tempered(logits: &[f64], max: f64, sampling: &Sampling) -> Vec<Token> {
    let token = |(id, logit): (u32, &f64)| {
        // Differences before the division: a tiny temperature must not turn two finite logits into infinities.
        let relative = ((logit - max) / sampling.temperature).exp();
        let weight = (relative * ONE) as u64;
        (weight > 0 && relative >= sampling.min_p).then_some(Token { id, weight })
    };
    (0u32..).zip(logits).filter_map(token).collect()
}

/// The token at the uniform number `u` among those that `top_k` and `top_p` leave: with the most likely first, the
/// first one whose cumulated weight exceeds `u` times the sum. `None` without tokens.
fn drawn(mut tokens: Vec<Token>, sampling: &Sampling, u: f64) -> Option<u32> {
    if (1..tokens.len()).contains(&sampling.top_k) {
        tokens.select_nth_unstable_by(sampling.top_k - 1, most_likely_first);
        tokens.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        // Reaching a whole number is exceeding the one below.
        let reached = (sampling.top_p * sum(&tokens) as f64).ceil() as u128;
        let nucleus = exceeding(&mut tokens, reached.saturating_sub(1));
        tokens.truncate(nucleus);
    }
    let bar = (u * sum(&tokens) as f64) as u128;
    let through = exceeding(&mut tokens, bar);
    tokens[..through].last().map(|token| token.id)
}

/// How many of the most likely tokens it takes for their weights to exceed `bar` together; all if they do not. Those
/// are moved to the front, and the least likely of them is the last of them.
fn exceeding(tokens: &mut [Token], bar: u128) -> usize {
    // The first `low` are the most likely and do not exceed the bar; the first `high` are, too, and do.
    let (mut low, mut high, mut weight) = (0, tokens.len(), 0);
    while high - low > 1 {
        let half = (high - low) / 2;
        tokens[low..high].select_nth_unstable_by(half, most_likely_first);
        let middle = low + half;
        let more = weight + sum(&tokens[low..middle]);
        if more > bar {
            high = middle;
        } else {
            (low, weight) = (middle, more);
        }
    }
    high
}

fn sum(tokens: &[Token]) -> u128 {
    tokens.iter().map(|token| u128::from(token.weight)).sum()
}

fn most_likely_first(a: &Token, b: &Token) -> Ordering {
    b.weight.cmp(&a.weight).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A row whose softmax at temperature 1 is proportional to `weights`; those of 0 are impossible.
    fn row(weights: &[f64]) -> Vec<f32> {
        weights.iter().map(|weight| weight.ln() as f32).collect()
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    /// The ids that may be drawn, lowest first.
    fn left(row: &[f32], sampling: &Sampling, counts: &Counts) -> Vec<u32> {
        let logits = penalised(row, sampling, counts);
        let tokens = tempered(&logits, largest(&logits).1, sampling);
        let steps = 4096;
        let mut ids: Vec<u32> =
            (0..steps).filter_map(|step| drawn(tokens.clone(), sampling, f64::from(step) / f64::from(steps))).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// How often each id came in `draws` draws.
    fn frequencies(row: &[f32], sampling: &Sampling, draws: u64) -> Vec<f64> {
        let mut times = vec![0.0; row.len()];
        for index in 0..draws {
            let id = choose(row, sampling, &Counts::default(), 3, index).id;
            times[id as usize] += 1.0 / draws as f64;
        }
        times
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_largest() {
        let greedy = |row: &[f32]| choose(row, &Sampling::default(), &Counts::default(), 0, 0).id;
        assert_eq!(greedy(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(greedy(&[-1.0, -0.0, 0.0]), 1);
        assert_eq!(greedy(&[f32::NEG_INFINITY, -1e38]), 1);
        // The same when the row has to be looked at.
        let biased = Sampling { logit_bias: vec![(0, 0.0)], ..Sampling::default() };
        assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], &biased, &Counts::default(), 0, 0).id, 1);
        assert_eq!(choose(&[-1.0, -0.0, 0.0], &biased, &Counts::default(), 0, 0).id, 1);
    }

    #[test]
    fn top_k_keeps_the_lower_ids_on_a_tie() {
        let row = row(&[1.0, 2.0, 1.0, 4.0, 1.0]);
        let kept = |k| left(&row, &Sampling { top_k: k, ..warm() }, &Counts::default());
        assert_eq!(kept(1), [3]);
        assert_eq!(kept(2), [1, 3]);
        assert_eq!(kept(3), [0, 1, 3]);
        assert_eq!(kept(4), [0, 1, 2, 3]);
        for off in [0, 5, 6, usize::MAX] {
            assert_eq!(kept(off), [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        // Of a sum of 8: 4, 2, 1 and 1.
        let row = row(&[1.0, 2.0, 1.0, 4.0]);
        let kept = |p| left(&row, &Sampling { top_p: p, ..warm() }, &Counts::default());
        assert_eq!(kept(f64::MIN_POSITIVE), [3]);
        assert_eq!(kept(0.49), [3]);
        assert_eq!(kept(0.51), [1, 3]);
        assert_eq!(kept(0.74), [1, 3]);
        assert_eq!(kept(0.76), [0, 1, 3]);
        assert_eq!(kept(0.88), [0, 1, 2, 3]);
        assert_eq!(kept(1.0f64.next_down()), [0, 1, 2, 3]);
        // Equal weights are exact: reaching is enough.
        let even = |p| left(&[0.5; 4], &Sampling { top_p: p, ..warm() }, &Counts::default());
        assert_eq!(even(0.25), [0]);
        assert_eq!(even(0.25f64.next_up()), [0, 1]);
        assert_eq!(even(0.5), [0, 1]);
        assert_eq!(even(0.75), [0, 1, 2]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        let row = row(&[1.0, 2.0, 1.0, 4.0, 0.0]);
        let kept = |p| left(&row, &Sampling { min_p: p, ..warm() }, &Counts::default());
        assert_eq!(kept(0.0), [0, 1, 2, 3]);
        assert_eq!(kept(0.24), [0, 1, 2, 3]);
        assert_eq!(kept(0.26), [1, 3]);
        assert_eq!(kept(0.51), [3]);
        let maxima = left(&[2.0, 1.0, 2.0, 2.0f32.next_down()], &Sampling { min_p: 1.0, ..warm() }, &Counts::default());
        assert_eq!(maxima, [0, 2]);
    }

    #[test]
    fn filters_see_the_tempered_distribution_one_after_the_other() {
        // At temperature 1/2 the weights are squared: 64, 16, 4, 1 of 85.
        let row = row(&[8.0, 4.0, 2.0, 1.0]);
        let kept = |sampling: Sampling| left(&row, &sampling, &Counts::default());
        assert_eq!(kept(Sampling { temperature: 0.5, min_p: 0.2, ..warm() }), [0, 1]);
        assert_eq!(kept(Sampling { min_p: 0.2, ..warm() }), [0, 1, 2]);
        assert_eq!(kept(Sampling { temperature: 0.5, top_p: 0.75, ..warm() }), [0]);
        assert_eq!(kept(Sampling { top_p: 0.75, ..warm() }), [0, 1]);
        // 8/15 of all is less than 0.6, but 8/12 of the two that are left is not; and so after min_p.
        assert_eq!(kept(Sampling { top_p: 0.6, ..warm() }), [0, 1]);
        assert_eq!(kept(Sampling { top_k: 2, top_p: 0.6, ..warm() }), [0]);
        assert_eq!(kept(Sampling { min_p: 0.4, top_p: 0.6, ..warm() }), [0]);
    }

    #[test]
    fn barred_tokens_wait_for_their_turn() {
        let row = [1.0, 3.0, 2.0];
        let at = |sampling: &Sampling, index| choose(&row, sampling, &Counts::default(), 0, index);
        let suppressed = Sampling { suppress_ids: vec![1, 9], min_tokens: 2, ..Sampling::default() };
        assert_eq!([0, 1, 2, 3].map(|index| at(&suppressed, index).id), [2, 2, 1, 1]);
        // What is reported is the untouched row's all the same.
        assert_eq!(at(&suppressed, 0).entropy, at(&Sampling::default(), 0).entropy);
        // If they are all there is, they are chosen.
        let all = Sampling { suppress_ids: vec![0, 1, 2], ..suppressed };
        assert_eq!(at(&all, 0).id, 1);
    }

    #[test]
    fn penalties_by_hand() {
        let row = [2.0, -2.0, 2.0, -2.0, 0.0, 1.0, f32::NEG_INFINITY];
        let mut counts = Counts::new(&[0, 1, 0, 77, 6]);
        for id in [2, 3, 2, 4, 6] {
            counts.push(id);
        }
        let with = |sampling: Sampling| penalised(&row, &sampling, &counts);
        let hole = f64::NEG_INFINITY;
        assert_eq!(with(Sampling::default()), [2.0, -2.0, 2.0, -2.0, 0.0, 1.0, hole]);
        let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(with(repetition.clone()), [1.0, -4.0, 1.0, -4.0, 0.0, 1.0, hole]);
        let presence = Sampling { presence_penalty: 0.5, ..Sampling::default() };
        assert_eq!(with(presence), [2.0, -2.0, 1.5, -2.5, -0.5, 1.0, hole]);
        let frequency = Sampling { frequency_penalty: 0.5, ..Sampling::default() };
        assert_eq!(with(frequency), [2.0, -2.0, 1.0, -2.5, -0.5, 1.0, hole]);
        // Repetition first, and bias before it: -2 + 6 is positive and divided.
        let all = Sampling {
            presence_penalty: 1.0,
            frequency_penalty: 0.25,
            logit_bias: vec![(3, 6.0), (5, -1.0), (6, 100.0), (99, 1.0), (5, 0.5)],
            ..repetition
        };
        assert_eq!(with(all), [1.0, -4.0, -0.5, 0.75, -1.25, 0.5, hole]);
    }

    #[test]
    fn an_extreme_penalty_makes_no_infinity() {
        let counts = Counts::new(&[0, 1]);
        for penalty in [f64::MIN_POSITIVE, f64::MAX] {
            let harsh = Sampling { repetition_penalty: penalty, ..warm() };
            let logits = penalised(&[-3e38, 3e38, f32::NEG_INFINITY], &harsh, &counts);
            assert!(logits[0].is_finite() && logits[1].is_finite());
            assert!(choose(&[-3e38, -3e38, f32::NEG_INFINITY], &harsh, &counts, 0, 0).id < 2);
            assert_eq!(choose(&[f32::NEG_INFINITY, -3e38], &harsh, &counts, 0, 0).id, 1);
        }
    }

    #[test]
    fn penalties_and_bias_move_the_greedy_choice() {
        let mut counts = Counts::new(&[1]);
        let row = [1.0, 1.5, 0.75];
        let greedy = |sampling: Sampling, counts: &Counts| choose(&row, &sampling, counts, 0, 0).id;
        let presence = Sampling { presence_penalty: 1.0, ..Sampling::default() };
        assert_eq!(greedy(presence.clone(), &counts), 1);
        assert_eq!(greedy(Sampling { repetition_penalty: 2.0, ..Sampling::default() }, &counts), 0);
        counts.push(1);
        assert_eq!(greedy(presence, &counts), 0);
        assert_eq!(greedy(Sampling { logit_bias: vec![(2, 100.0)], ..Sampling::default() }, &counts), 2);
        // All of them alike: nothing changes but the log probability, which is the untouched row's.
        let all = Sampling { logit_bias: vec![(0, -100.0), (1, -100.0), (2, -100.0)], ..Sampling::default() };
        assert_eq!(choose(&row, &all, &counts, 0, 0), choose(&row, &Sampling::default(), &Counts::default(), 0, 0));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let weights = [1.0, 5.0, 0.0, 3.0, 8.0, 3.0];
        let expect = |weights: [f64; 6], sampling: Sampling| {
            let total: f64 = weights.iter().sum();
            let found = frequencies(&row(&[1.0, 5.0, 0.0, 3.0, 8.0, 3.0]), &sampling, 20_000);
            for (weight, found) in weights.iter().zip(found) {
                let exact = weight / total;
                // Five standard deviations.
                let slack = 5.0 * (exact * (1.0 - exact) / 20_000.0).sqrt();
                assert!((found - exact).abs() <= slack, "{exact} {found}");
            }
        };
        expect(weights, warm());
        expect(weights, Sampling { seed: 1, ..warm() });
        expect(weights.map(|weight| weight * weight), Sampling { temperature: 0.5, ..warm() });
        expect(weights.map(f64::sqrt), Sampling { temperature: 2.0, ..warm() });
        expect([0.0, 5.0, 0.0, 3.0, 8.0, 0.0], Sampling { top_k: 3, ..warm() });
        expect([0.0, 5.0, 0.0, 0.0, 8.0, 0.0], Sampling { top_p: 0.6, ..warm() });
        expect([0.0, 5.0, 0.0, 3.0, 8.0, 3.0], Sampling { min_p: 0.3, ..warm() });
        expect(
            [0.0, 0.0, 0.0, 3.0, 0.0, 3.0],
            Sampling { logit_bias: vec![(1, -99.0), (4, -99.0), (0, -99.0)], ..warm() },
        );
    }

    #[test]
    fn a_draw_depends_on_seed_stream_and_index_alone() {
        let row: Vec<f32> = (0..1000).map(|id| (id as f32 * 0.37).sin()).collect();
        let text = |seed, stream| -> Vec<u32> {
            let sampling = Sampling { seed, ..warm() };
            (0..50).map(|index| choose(&row, &sampling, &Counts::default(), stream, index).id).collect()
        };
        assert_eq!(text(7, 1), text(7, 1));
        assert_eq!(choose(&row, &Sampling { seed: 7, ..warm() }, &Counts::default(), 1, 49).id, text(7, 1)[49]);
        for (seed, stream) in [(7, 0), (7, 2), (8, 1), (6, 1), (8, 0)] {
            let same = text(7, 1).iter().zip(text(seed, stream)).filter(|(a, b)| **a == *b).count();
            assert!(same < 5, "{seed} {stream} {same}");
        }
    }

    #[test]
    fn a_tiny_temperature_is_greedy_among_the_maxima() {
        let row = [1.0, 3.0, 3.0f32.next_down(), 3.0, f32::NEG_INFINITY];
        for temperature in [f64::from_bits(1), 1e-300, 1e-12] {
            assert_eq!(left(&row, &Sampling { temperature, ..warm() }, &Counts::default()), [1, 3]);
        }
        let wide = [3e38, -3e38, f32::NEG_INFINITY];
        assert_eq!(left(&wide, &Sampling { temperature: 100.0, ..warm() }, &Counts::default()), [0]);
    }

    #[test]
    fn impossible_tokens_are_chosen_only_when_nothing_else_exists() {
        let hole = f32::NEG_INFINITY;
        let biased = Sampling { temperature: 100.0, logit_bias: vec![(0, 100.0)], logprobs: Some(3), ..warm() };
        for index in 0..100 {
            let chosen = choose(&[hole, -50.0, hole], &biased, &Counts::default(), 0, index);
            assert_eq!(chosen, TokenLogprob { id: 1, logprob: 0.0, entropy: 0.0, top: vec![(1, 0.0)] });
        }
        for row in [&[hole, hole][..], &[], &[f32::NAN, 1.0], &[f32::INFINITY, 1.0]] {
            for sampling in [&biased, &Sampling::default()] {
                let chosen = choose(row, sampling, &Counts::new(&[5]), 0, 0);
                assert_eq!(chosen, TokenLogprob { id: 0, logprob: hole.into(), entropy: 0.0, top: Vec::new() });
            }
        }
    }

    #[test]
    fn log_probabilities_are_the_untouched_rows() {
        let row = row(&[1.0, 2.0, 4.0, 1.0]);
        let sampling = Sampling {
            temperature: 0.1,
            top_k: 1,
            logit_bias: vec![(3, 50.0)],
            logprobs: Some(3),
            ..Sampling::default()
        };
        let chosen = choose(&row, &sampling, &Counts::default(), 0, 0);
        let close = |found: f64, exact: f64| assert!((found - exact.ln()).abs() < 1e-6, "{found} {exact}");
        assert_eq!(chosen.id, 3);
        close(chosen.logprob, 0.125);
        assert_eq!(chosen.top.iter().map(|entry| entry.0).collect::<Vec<u32>>(), [2, 1, 0]);
        close(chosen.top[0].1, 0.5);
        close(chosen.top[1].1, 0.25);
        assert_eq!(chosen.top[2].1, chosen.logprob);
        let silent = Sampling { logprobs: None, ..sampling.clone() };
        assert!(choose(&row, &silent, &Counts::default(), 0, 0).top.is_empty());
        let many = Sampling { logprobs: Some(128), ..sampling };
        assert_eq!(choose(&row, &many, &Counts::default(), 0, 0).top.len(), 4);
    }

    /// The same by sorting everything and walking along.
    fn by_sorting(row: &[f32], sampling: &Sampling, u: f64) -> Option<u32> {
        let logits = penalised(row, sampling, &Counts::default());
        let mut tokens = tempered(&logits, largest(&logits).1, sampling);
        tokens.sort_by(most_likely_first);
        if sampling.top_k > 0 {
            tokens.truncate(sampling.top_k);
        }
        let reached = |tokens: &[Token], enough: &dyn Fn(u128) -> bool| {
            let first =
                (1..=tokens.len()).find(|&n| enough(tokens[..n].iter().map(|token| u128::from(token.weight)).sum()));
            first.unwrap_or(tokens.len())
        };
        if sampling.top_p < 1.0 {
            let bar = sampling.top_p * sum(&tokens) as f64;
            let nucleus = reached(&tokens, &|weight| weight >= bar.ceil() as u128);
            tokens.truncate(nucleus);
        }
        let bar = u * sum(&tokens) as f64;
        let through = reached(&tokens, &|weight| weight > bar as u128);
        tokens.get(through.checked_sub(1)?).map(|token| token.id)
    }

    proptest! {
        #[test]
        fn selection_gives_what_a_sort_gives(
            // Few values, so that there are many ties.
            row in prop::collection::vec(prop::sample::select(vec![-2.0f32, -1.5, 0.0, 0.25, 3.0, -90.0]), 1..40),
            temperature in prop::sample::select(vec![0.3, 1.0, 4.0]),
            top_k in 0usize..12,
            top_p in prop::sample::select(vec![1e-9, 0.25, 0.5, 0.9, 0.999_999, 1.0]),
            min_p in prop::sample::select(vec![0.0, 0.01, 0.3, 1.0]),
            u in 0.0f64..1.0,
        ) {
            let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
            let logits = penalised(&row, &sampling, &Counts::default());
            let tokens = tempered(&logits, largest(&logits).1, &sampling);
            prop_assert_eq!(drawn(tokens, &sampling, u), by_sorting(&row, &sampling, u));
        }
    }
}
