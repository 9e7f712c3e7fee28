//! Which token: the top-k candidates, greedy or sampled choice, ids with tied embeddings.
//!
//! All of it is a function of one policy distribution, the first-order scores and, when sampling, one uniform number. Order
//! matters throughout: candidates stand in descending order of their logits with the lower id first, and every tie is
//! broken by that order.

use crate::Result;
use crate::rng::Uniforms;

/// The proposals of a segment: the K most likely tokens at its slot, most likely first, the lower id first on a tie.
/// They are the same for all candidates of the segment, because the tokens before the slot are.
#[derive(Clone, Debug, PartialEq)]
pub struct Shortlist {
    /// The ids.
    pub ids: Vec<u32>,
    /// Their logits.
    pub logits: Vec<f32>,
    /// Logit gap between the last one and the first that is left out.
    pub edge_margin: Option<f64>,
}

impl Shortlist {
    /// The first `k` of the largest logits; one more is needed to know the margin at the edge.
    pub fn new(top: &[(u32, f32)], k: usize) -> Shortlist {
        let (inside, outside) = top.split_at(k.min(top.len()));
        let edge = inside.last().zip(outside.first());
        Shortlist {
            ids: inside.iter().map(|entry| entry.0).collect(),
            logits: inside.iter().map(|entry| entry.1).collect(),
            edge_margin: edge.and_then(|(last, next)| gap(last.1, next.1)),
        }
    }

    /// The token that is really placed when `proposed` is to be forced: among the ids whose policy embedding equals the
    /// proposed one's, the most likely, the lowest id on a tie.
    ///
    /// That token has at least the proposed one's logit, so it is in the shortlist too, and the shortlist's order makes
    /// it the first one there that equals the proposed one. An id that the reward model has no embedding for is not there: it
    /// could not be scored.
    pub fn placed(&self, proposed: u32, same: impl Fn(u32, u32) -> bool) -> u32 {
        self.tied(proposed, same).next().map_or(proposed, |(id, _)| id)
    }

    /// Logit gap between the two most likely entries whose embedding equals the proposed one's, if there are two.
    pub fn tied_margin(&self, proposed: u32, same: impl Fn(u32, u32) -> bool) -> Option<f64> {
        let mut tied = self.tied(proposed, same);
        let (first, second) = (tied.next()?, tied.next()?);
        gap(first.1, second.1)
    }

    fn tied(&self, proposed: u32, same: impl Fn(u32, u32) -> bool) -> impl Iterator<Item = (u32, f32)> {
        let entries = self.ids.iter().copied().zip(self.logits.iter().copied());
        entries.filter(move |&(id, _)| id == proposed || same(id, proposed))
    }
}

/// Logit gap between the two most likely of all ids of `row` whose embedding equals the proposed one's, if there are
/// two. Unlike [`Shortlist::tied_margin`] it also sees ids which are not among the K most likely.
pub fn tied_margin(row: &[f32], proposed: u32, same: impl Fn(u32, u32) -> bool) -> Option<f64> {
    let ids = (0u32..).zip(row.iter().copied());
    let mut tied: Vec<f32> =
        ids.filter(|&(id, _)| id == proposed || same(id, proposed)).map(|(_, logit)| logit).collect();
    tied.sort_by(|a, b| b.total_cmp(a));
    gap(*tied.first()?, *tied.get(1)?)
}

/// `larger - smaller` where that is a finite number.
fn gap(larger: f32, smaller: f32) -> Option<f64> {
    Some(f64::from(larger) - f64::from(smaller)).filter(|gap| gap.is_finite())
}

/// A choice among the candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Index in the shortlist.
    pub index: usize,
    /// Greedy: the gap between the two largest scores, `None` with a single candidate. Sampled: the distance of the
    /// uniform number from the nearest cumulated weight.
    pub margin: Option<f64>,
}

/// The largest score, the earliest on a tie. `None` without candidates.
pub fn greedy(scores: &[f64]) -> Option<Choice> {
    let (&first, rest) = scores.split_first()?;
    let (mut index, mut best, mut second) = (0, first, f64::NEG_INFINITY);
    for (i, &score) in rest.iter().enumerate() {
        if score > best {
            (index, second, best) = (i + 1, best, score);
        } else if score > second {
            second = score;
        }
    }
    Some(Choice { index, margin: Some(best - second).filter(|gap| gap.is_finite()) })
}

/// `softmax(score / temperature)`.
pub fn weights(scores: &[f64], temperature: f64) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Differences before the division: a tiny temperature must not turn two finite scores into infinities.
    let mut weights: Vec<f64> = scores.iter().map(|score| ((score - max) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    for weight in &mut weights {
        *weight /= total;
    }
    weights
}

/// The first candidate whose cumulated weight exceeds `u` times the sum of all weights, the last one if none does.
/// `None` without candidates.
pub fn sampled(weights: &[f64], u: f64) -> Option<Choice> {
    let last = weights.len().checked_sub(1)?;
    let total: f64 = weights.iter().sum();
    let bar = u * total;
    let mut index = None;
    let mut margin = f64::INFINITY;
    let mut sum = 0.0;
    for (i, weight) in weights.iter().enumerate() {
        sum += weight;
        margin = margin.min((sum / total - u).abs());
        if index.is_none() && sum > bar {
            index = Some(i);
        }
    }
    Some(Choice { index: index.unwrap_or(last), margin: Some(margin).filter(|m| m.is_finite()) })
}

/// One of `count` candidates, each as likely as the others: number `floor(u count)`. `None` without candidates.
pub fn uniform(count: usize, u: f64) -> Option<Choice> {
    sampled(&vec![1.0; count], u)
}

/// The values in an order that `u` alone decides, every order as likely as the others as far as 53 bits go.
///
/// Fisher and Yates from the last place down to the second: the value at place `i` changes places with the one at `floor(r (i + 1))`,
/// where the numbers `r` are those of the seed whose bits are the bits of `u`, one for each place in turn.
///
/// # Errors
/// None that its own numbers lead to.
pub fn shuffled(values: &[f32], u: f64) -> Result<Vec<f32>> {
    let numbers = Uniforms::Seeded(u.to_bits());
    let mut values = values.to_vec();
    for (n, place) in (1..values.len()).rev().enumerate() {
        let other = (numbers.nth(n)? * (place + 1) as f64) as usize;
        values.swap(place, other.min(place));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::gradient::scores;

    #[test]
    fn every_candidate_is_as_likely() {
        assert_eq!(uniform(0, 0.5), None);
        for count in [1usize, 2, 3, 16, 17, 25, 1000] {
            let edge = |n: usize| n as f64 / count as f64;
            for n in 0..count {
                let middle = uniform(count, (edge(n) + edge(n + 1)) / 2.0).unwrap();
                assert_eq!(middle.index, n, "{count}");
            }
            assert_eq!(uniform(count, 0.0).unwrap().index, 0);
            assert_eq!(uniform(count, 1f64.next_down()).unwrap().index, count - 1);
        }
        assert_eq!(uniform(4, 0.5), Some(Choice { index: 2, margin: Some(0.0) }));
    }

    /// Each of the orders of four values comes up about as often as the others, and always for the same number.
    #[test]
    fn every_order_is_as_likely() {
        let values = [1.0, 2.0, 3.0, 4.0];
        let mut seen = std::collections::BTreeMap::new();
        for n in 0..24_000 {
            let u = Uniforms::Seeded(7).nth(n).unwrap();
            let order = shuffled(&values, u).unwrap();
            assert_eq!(order, shuffled(&values, u).unwrap());
            *seen.entry(order.iter().map(|&value| value as u8).collect::<Vec<_>>()).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 24);
        assert!(seen.values().all(|&count| (850..1150).contains(&count)), "{seen:?}");
        assert!(shuffled(&[], 0.5).unwrap().is_empty());
        assert_eq!(shuffled(&[7.0], 0.5).unwrap(), [7.0]);
    }

    #[test]
    fn ties_go_to_the_earlier_candidate() {
        assert_eq!(greedy(&[]), None);
        assert_eq!(greedy(&[-3.0]), Some(Choice { index: 0, margin: None }));
        assert_eq!(greedy(&[1.0, 2.0, 2.0]), Some(Choice { index: 1, margin: Some(0.0) }));
        assert_eq!(greedy(&[0.0, -0.0]), Some(Choice { index: 0, margin: Some(0.0) }));
        assert_eq!(greedy(&[3.0, 1.0, 2.5]), Some(Choice { index: 0, margin: Some(0.5) }));
        assert_eq!(greedy(&[1.0, 0.0, 3.0]), Some(Choice { index: 2, margin: Some(2.0) }));
    }

    #[test]
    fn a_number_on_an_edge_takes_the_next_candidate() {
        let even = weights(&[1.0; 4], 0.1);
        assert_eq!(even, [0.25; 4]);
        for (u, index) in [(0.0, 0), (0.25, 1), (0.25f64.next_down(), 0), (0.5, 2), (0.999, 3)] {
            assert_eq!(sampled(&even, u).map(|choice| choice.index), Some(index), "{u}");
        }
        assert_eq!(sampled(&even, 0.25).unwrap().margin, Some(0.0));
        assert_eq!(sampled(&[1.0], 0.75), Some(Choice { index: 0, margin: Some(0.25) }));
        assert_eq!(sampled(&[], 0.3), None);
        // Nothing exceeds the bar: the last one, though its own weight is 0.
        assert_eq!(sampled(&[1.0, 0.0], 1.0f64.next_down()).unwrap().index, 0);
        assert_eq!(sampled(&[0.0, 0.0], 0.5).unwrap().index, 1);
    }

    /// Greedy or drawn, every candidate can be the one, wherever it stands and whatever the others are.
    #[test]
    fn every_candidate_can_be_chosen() {
        for count in [1, 2, 25, 64] {
            for best in 0..count {
                let scores: Vec<f64> = (0..count).map(|i| if i == best { 1.0 } else { -(i as f64) }).collect();
                assert_eq!(greedy(&scores).unwrap().index, best, "{count} candidates");
                assert_eq!(sampled(&weights(&scores, 1e-3), 0.5).unwrap().index, best, "{count} candidates");
                // The middle of each of equal weights.
                let u = (best as f64 + 0.5) / count as f64;
                assert_eq!(sampled(&weights(&vec![7.0; count], 0.1), u).unwrap().index, best, "{count} candidates");
            }
        }
    }

    /// The current token's score is damped before the choice: up where it is negative, down where it is positive.
    #[test]
    fn damping_decides_between_close_scores() {
        let (ids, current) = ([4, 2, 8], 2);
        let choice = |dots: &[f32], damping| greedy(&scores(&ids, dots, current, damping)).unwrap().index;
        assert_eq!((choice(&[1.0, 2.0, 1.5], 1.0), choice(&[1.0, 2.0, 1.5], 0.5)), (1, 2));
        assert_eq!((choice(&[-1.0, -2.0, -1.5], 1.0), choice(&[-1.0, -2.0, -1.5], 1e-10)), (0, 1));
        let drawn = |damping| {
            let scores = scores(&ids, &[1.0, 2.0, 1.5], current, damping);
            sampled(&weights(&scores, 0.1), 0.5).unwrap().index
        };
        assert_eq!((drawn(1.0), drawn(0.5)), (1, 2));
    }

    /// Scores 1 and 0 at a temperature of t: the odds are e to the 1 / t.
    #[test]
    fn temperature_sets_the_odds() {
        for temperature in [0.1, 0.7, 1.0, 5.0] {
            let weights = weights(&[1.0, 0.0], temperature);
            assert!((weights[0] / weights[1] / (1.0 / temperature).exp() - 1.0).abs() < 1e-9, "{temperature}");
        }
        let index = |temperature| sampled(&weights(&[1.0, 0.0], temperature), 0.8).unwrap().index;
        assert_eq!((index(0.1), index(5.0)), (0, 1));
    }

    #[test]
    fn weights_survive_extreme_scores_and_temperatures() {
        assert_eq!(weights(&[1e38, -1e38], 1e-300), [1.0, 0.0]);
        assert_eq!(weights(&[f64::MAX, f64::MIN / 4.0], 0.1), [1.0, 0.0]);
        let warm = weights(&[2.0, 1.0], 1.0);
        assert!((warm[0] / warm[1] - 1f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn the_most_likely_of_tied_embeddings_is_placed() {
        let top = [(7, 3.0), (2, 2.5), (4, 2.0), (9, 2.0), (1, 1.5)];
        let list = Shortlist::new(&top, 4);
        assert_eq!(list.ids, [7, 2, 4, 9]);
        assert_eq!(list.edge_margin, Some(0.5));
        let same = |a: u32, b: u32| a % 5 == b % 5;
        assert_eq!(list.placed(2, same), 7);
        assert_eq!(list.placed(7, same), 7);
        assert_eq!(list.placed(9, same), 4);
        assert_eq!(list.placed(9, |_, _| false), 9);
        assert_eq!(list.tied_margin(2, same), Some(0.5));
        assert_eq!(list.tied_margin(2, |_, _| false), None);
        assert_eq!(Shortlist::new(&top, 5).edge_margin, None);
        assert_eq!(Shortlist::new(&top, usize::MAX).ids.len(), 5);
        let row = [0.0, 1.5, 2.5, 0.0, 2.0, 0.0, 9.0, 3.0];
        assert_eq!(tied_margin(&row, 2, same), Some(0.5));
        assert_eq!(tied_margin(&row, 4, same), None);
        let holes = [f32::NEG_INFINITY; 3];
        assert_eq!(tied_margin(&holes, 1, |_, _| true), None);
    }
}
