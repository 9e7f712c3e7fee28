//! One token from one row. In the order of vLLM: bias and penalties, temperature, min-p, top-k, top-p, the draw.

use super::Sampling;
use crate::ggro::Uniforms;
use crate::model::top_k;
use std::collections::BTreeMap;

/// Ids so far: of the prompt, and how often each came in the completion.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// `None`: in the prompt only.
    ids: BTreeMap<u32, u32>,
}

impl Counts {
    /// Before the first token.
    pub fn new(prompt: &[u32]) -> Counts {
        Counts { ids: prompt.iter().map(|&id| (id, 0)).collect() }
    }

    /// Another token of the completion.
    pub fn push(&mut self, id: u32) {
        *self.ids.entry(id).or_default() += 1;
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Its id.
    pub id: u32,
    /// Its log-probability in nats, by the untouched row.
    pub logprob: f64,
    /// The most likely ids of the untouched row with theirs, as many as were asked for, the lower id first on a tie.
    pub top: Vec<(u32, f64)>,
}

/// Draws token `index` of completion `stream`: a function of seed, stream, index, counts and row alone.
///
/// The row is finite, with holes of minus infinity at most; those are never chosen.
pub fn choose(row: &[f32], sampling: &Sampling, counts: &Counts, stream: u64, index: u64) -> Chosen {
    let id = if sampling.plain() { argmax(row) } else { pick(row, sampling, counts, stream, index) };
    if sampling.logprobs.is_none() {
        return Chosen { id, logprob: f64::NAN, top: Vec::new() };
    }
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&z| f64::from(z - max).exp()).sum();
    let logprob = |z: f32| f64::from(z - max) - sum.ln();
    let top = top_k(row, sampling.logprobs.unwrap_or(0), row.len());
    Chosen {
        id,
        logprob: row.get(id as usize).map_or(f64::NAN, |&z| logprob(z)),
        top: top.into_iter().map(|(id, z)| (id, logprob(z))).collect(),
    }
}

fn argmax(row: &[f32]) -> u32 {
    top_k(row, 1, row.len()).first().map_or(0, |&(id, _)| id)
}

fn pick(row: &[f32], sampling: &Sampling, counts: &Counts, stream: u64, index: u64) -> u32 {
    let mut row = row.to_vec();
    touch(&mut row, sampling, counts);
    if sampling.temperature == 0.0 {
        return argmax(&row);
    }
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |z: f32| ((f64::from(z) - max) / sampling.temperature).exp();
    // Weights, most likely first. Without a count the whole row takes part, but what is far below the bar of min-p, or
    // has no weight at all, is left out before anything is sorted.
    let bar = sampling.min_p;
    let mut list: Vec<(u32, f64)> = match sampling.top_k {
        0 => row.iter().enumerate().map(|(id, &z)| (id as u32, weight(z))).collect(),
        k => top_k(&row, k, row.len()).into_iter().map(|(id, z)| (id, weight(z))).collect(),
    };
    list.retain(|&(_, w)| w > 0.0 && w >= bar);
    let total = |list: &[(u32, f64)]| -> f64 { list.iter().map(|entry| entry.1).sum() };
    if sampling.top_p < 1.0 {
        list.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let wanted = sampling.top_p * total(&list);
        let mut sum = 0.0;
        let inside = list.iter().take_while(|entry| {
            let open = sum < wanted;
            sum += entry.1;
            open
        });
        let inside = inside.count().max(1);
        list.truncate(inside);
    }
    let u = uniform(sampling.seed, stream, index) * total(&list);
    let mut sum = 0.0;
    for &(id, w) in &list {
        sum += w;
        if sum > u {
            return id;
        }
    }
    list.last().map_or_else(|| argmax(&row), |entry| entry.0)
}

/// Biases and penalties.
fn touch(row: &mut [f32], sampling: &Sampling, counts: &Counts) {
    for &(id, bias) in &sampling.logit_bias {
        if let Some(z) = row.get_mut(id as usize) {
            *z = (f64::from(*z) + bias) as f32;
        }
    }
    let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = *sampling;
    if repetition_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0 {
        return;
    }
    for (&id, &count) in &counts.ids {
        let Some(z) = row.get_mut(id as usize) else { continue };
        let mut value = f64::from(*z);
        value = if value > 0.0 { value / repetition_penalty } else { value * repetition_penalty };
        if count > 0 {
            value -= presence_penalty + frequency_penalty * f64::from(count);
        }
        *z = value as f32;
    }
}

/// The uniform number of one draw.
fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    // Streams of one seed, and equal streams of neighbouring seeds, must not be shifted copies of each other.
    let mixed = seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(32);
    Uniforms::Seeded(mixed).nth(index as usize).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: [f32; 5] = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY];

    fn drawn(row: &[f32], sampling: &Sampling, draws: u64) -> Vec<f64> {
        let counts = Counts::default();
        let mut seen = vec![0.0; row.len()];
        for index in 0..draws {
            seen[choose(row, sampling, &counts, 0, index).id as usize] += 1.0 / draws as f64;
        }
        seen
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_largest() {
        assert_eq!(choose(&ROW, &Sampling::default(), &Counts::default(), 0, 0).id, 1);
        let biased = Sampling { logit_bias: vec![(4, 100.0), (0, 50.0)], ..Sampling::default() };
        assert_eq!(choose(&ROW, &biased, &Counts::default(), 0, 0).id, 0);
    }

    #[test]
    fn frequencies_are_those_of_the_tempered_softmax() {
        for temperature in [0.5, 1.0, 3.0] {
            let weights: Vec<f64> = ROW.iter().map(|&z| (f64::from(z) / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            let seen = drawn(&ROW, &Sampling { temperature, ..Sampling::default() }, 20_000);
            for (seen, weight) in seen.iter().zip(&weights) {
                assert!((seen - weight / total).abs() < 0.015, "{seen} for {}", weight / total);
            }
            assert_eq!(seen[4], 0.0);
        }
    }

    #[test]
    fn filters_keep_what_they_should() {
        let kept = |sampling: &Sampling| -> Vec<usize> {
            let seen = drawn(&ROW, sampling, 4000);
            seen.iter().enumerate().filter(|&(_, share)| *share > 0.0).map(|(id, _)| id).collect()
        };
        assert_eq!(kept(&Sampling { top_k: 1, ..warm() }), [1]);
        assert_eq!(kept(&Sampling { top_k: 3, ..warm() }), [1, 2, 3]);
        assert_eq!(kept(&Sampling { top_p: 1e-9, ..warm() }), [1]);
        assert_eq!(kept(&Sampling { top_p: 0.5, ..warm() }), [1, 3]);
        assert_eq!(kept(&Sampling { min_p: 1.0, ..warm() }), [1, 3]);
        assert_eq!(kept(&Sampling { min_p: 0.3, ..warm() }), [1, 2, 3]);
        assert_eq!(kept(&warm()), [0, 1, 2, 3]);
    }

    #[test]
    fn penalties_by_hand() {
        let mut counts = Counts::new(&[1, 2]);
        counts.push(3);
        counts.push(3);
        let mut row = [1.0, 3.0, -2.0, 3.0];
        let sampling =
            Sampling { repetition_penalty: 2.0, presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
        touch(&mut row, &sampling, &counts);
        assert_eq!(row, [1.0, 1.5, -4.0, 0.5]);
    }

    #[test]
    fn draws_depend_on_seed_stream_and_index_alone() {
        let text = |seed, stream| -> Vec<u32> {
            let sampling = Sampling { seed, temperature: 2.0, ..Sampling::default() };
            (0..40).map(|index| choose(&ROW, &sampling, &Counts::default(), stream, index).id).collect()
        };
        assert_eq!(text(7, 1), text(7, 1));
        assert_ne!(text(7, 1), text(7, 2));
        assert_ne!(text(7, 1), text(8, 1));
        assert_ne!(text(7, 0)[1..], text(8, 0)[..39]);
    }

    #[test]
    fn logprobs_are_of_the_untouched_row() {
        let sampling = Sampling { logprobs: Some(2), logit_bias: vec![(0, 100.0)], ..Sampling::default() };
        let chosen = choose(&[0.0, 1.0, 1.0], &sampling, &Counts::default(), 0, 0);
        let norm = (1.0 + 2.0 * 1f64.exp()).ln();
        assert_eq!(chosen.id, 0);
        assert!((chosen.logprob + norm).abs() < 1e-12);
        assert_eq!(chosen.top.iter().map(|entry| entry.0).collect::<Vec<_>>(), [1, 2]);
        assert!((chosen.top[0].1 - (1.0 - norm)).abs() < 1e-12);
    }

    #[test]
    fn ranges_are_checked_by_name() {
        for (sampling, name) in [
            (Sampling { temperature: -1.0, ..warm() }, "temperature"),
            (Sampling { temperature: f64::NAN, ..warm() }, "temperature"),
            (Sampling { top_p: 0.0, ..warm() }, "top_p"),
            (Sampling { min_p: 1.5, ..warm() }, "min_p"),
            (Sampling { repetition_penalty: 0.0, ..warm() }, "repetition_penalty"),
            (Sampling { presence_penalty: 3.0, ..warm() }, "presence_penalty"),
            (Sampling { frequency_penalty: f64::INFINITY, ..warm() }, "frequency_penalty"),
            (Sampling { logit_bias: vec![(5, 0.0)], ..warm() }, "logit_bias"),
            (Sampling { logit_bias: vec![(0, 101.0)], ..warm() }, "logit_bias"),
            (Sampling { logprobs: Some(129), ..warm() }, "logprobs"),
        ] {
            let message = sampling.check(5).unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
        warm().check(5).unwrap();
    }
}
