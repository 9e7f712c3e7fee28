//! What each method reaches at the same cost: work, or time.
//!
//! A method's points are a curve over the cost. Between two of them the value is interpolated by the logarithm of the cost.

use super::resample::{Resamples, interval};
use crate::batch::report::Mean;
use serde::Serialize;

/// The numbers of a point: of each measure, of each prompt.
pub type Values = Vec<Vec<Option<f64>>>;

/// What each method reaches at the same cost.
#[derive(Clone, Debug, Serialize)]
pub struct AtEqual {
    /// `reward`, or the name of a judge.
    pub measure: String,
    /// Levels of the cost of an answer.
    pub levels: Vec<f64>,
    /// The methods.
    pub methods: Vec<Reached>,
}

/// What a method reaches.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    /// The method.
    pub label: String,
    /// The best at each level; `None` where even its smallest budget costs more.
    pub best: Vec<Option<Mean>>,
    /// How far that is above the reference's method at the same level, the same prompts resampled for both; empty for that method
    /// itself.
    pub over_reference: Vec<Option<Mean>>,
}

/// The tables of all measures at equal cost. `methods` are labels with the numbers of their points, and which of them is the
/// reference's; `costs` what an answer of each point costs, `values` what it is worth. Without levels, they are the costs of the
/// method that has the most points, the first of several. Without costs there is no table.
pub fn at_equal(
    (methods, base): (&[(String, Vec<usize>)], Option<usize>),
    measures: &[String],
    costs: &[Option<f64>],
    levels: &[f64],
    values: &[Values],
    resamples: &Resamples,
) -> Vec<AtEqual> {
    let cost = |point: &usize| costs.get(*point).copied().flatten();
    let mut levels = levels.to_vec();
    if levels.is_empty() {
        let there = methods.iter().map(|(_, points)| points.iter().filter_map(cost).collect::<Vec<f64>>());
        levels = there.rev().max_by_key(Vec::len).unwrap_or_default();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
    }
    if levels.is_empty() || costs.iter().all(Option::is_none) {
        return Vec::new();
    }
    let table = |(measure, name): (usize, &String)| {
        let along = |(_, points): &(String, Vec<usize>)| {
            let place = |point: &usize| {
                let values = values.get(*point)?.get(measure)?;
                let there: Vec<f64> = values.iter().copied().flatten().collect();
                let mean = there.iter().sum::<f64>() / there.len() as f64;
                let (cost, means) = (cost(point)?, resamples.means(values));
                mean.is_finite().then_some(Place { cost, mean, means, count: there.len() })
            };
            let mut places: Vec<Place> = points.iter().filter_map(place).collect();
            places.sort_by(|a, b| a.cost.total_cmp(&b.cost));
            levels.iter().map(|&level| Best::within(&places, level)).collect::<Vec<_>>()
        };
        let all: Vec<Vec<Option<Best>>> = methods.iter().map(along).collect();
        let reached = |(number, own): (usize, &Vec<Option<Best>>)| {
            let base = base.filter(|&base| base != number).and_then(|base| all.get(base));
            let over = |(own, base): (&Option<Best>, &Option<Best>)| own.as_ref()?.over(base.as_ref()?).mean();
            Reached {
                label: methods.get(number).map(|(label, _)| label.clone()).unwrap_or_default(),
                best: own.iter().map(|best| best.as_ref()?.mean()).collect(),
                over_reference: base.into_iter().flat_map(|base| own.iter().zip(base)).map(over).collect(),
            }
        };
        AtEqual {
            measure: name.clone(),
            levels: levels.clone(),
            methods: all.iter().enumerate().map(reached).collect(),
        }
    };
    measures.iter().enumerate().map(table).collect()
}

/// A point of a curve: the cost, the mean, and the mean of each resample.
struct Place {
    cost: f64,
    mean: f64,
    means: Vec<f64>,
    /// Prompts.
    count: usize,
}

/// The best of a method at some cost.
struct Best {
    mean: f64,
    /// Of each resample.
    means: Vec<f64>,
    /// Prompts.
    count: usize,
}

impl Best {
    /// See [`best_within`].
    fn within(places: &[Place], level: f64) -> Option<Best> {
        let resamples = places.iter().map(|place| place.means.len()).min()?;
        let drawn = |n: usize| best_within(places, level, &|place| place.means.get(n).copied()).unwrap_or(f64::NAN);
        Some(Best {
            mean: best_within(places, level, &|place| Some(place.mean))?,
            means: (0..resamples).map(drawn).collect(),
            count: places.iter().map(|place| place.count).min()?,
        })
    }

    /// The difference from another one.
    fn over(&self, other: &Best) -> Best {
        Best {
            mean: self.mean - other.mean,
            means: self.means.iter().zip(&other.means).map(|(own, other)| own - other).collect(),
            count: self.count.min(other.count),
        }
    }

    fn mean(&self) -> Option<Mean> {
        let [low, high] = interval(self.means.clone())?;
        Some(Mean { mean: self.mean, low, high, count: self.count })
    }
}

/// The best along a curve at a cost of at most `level`: the largest at a point that costs no more, or between two points.
/// `of` is the number of a place. `places` are in the order of their cost.
fn best_within(places: &[Place], level: f64, of: &dyn Fn(&Place) -> Option<f64>) -> Option<f64> {
    let mut best: Option<f64> = None;
    for (at, place) in places.iter().enumerate().take_while(|(_, place)| place.cost <= level) {
        let value = of(place)?;
        let next = places.get(at + 1).filter(|next| next.cost > level && place.cost > 0.0);
        let between = next.and_then(|next| {
            let share = (level / place.cost).ln() / (next.cost / place.cost).ln();
            Some(value + share * (of(next)? - value))
        });
        let value = between.map_or(value, |between| between.max(value));
        best = Some(best.map_or(value, |best| best.max(value)));
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_budgets_the_logarithm_of_the_cost_decides() {
        let place = |cost: f64, mean: f64| Place { cost, mean, means: Vec::new(), count: 1 };
        let places = [place(100.0, 1.0), place(400.0, 3.0), place(1600.0, 2.0)];
        let at = |level: f64| best_within(&places, level, &|place| Some(place.mean));
        assert_eq!((at(99.0), at(100.0), at(400.0)), (None, Some(1.0), Some(3.0)));
        assert!((at(200.0).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!((at(800.0), at(1e9)), (Some(3.0), Some(3.0)));
    }
}
