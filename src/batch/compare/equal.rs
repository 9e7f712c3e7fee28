//! What each method reaches at the same cost: work, or time.
//!
//! A method's points are a curve over the cost. Between two of them the value is interpolated by the logarithm of the cost; beyond
//! the last one it stays, because the method does not spend more. No point is picked by what it reached, so that noise is not
//! taken for a gain.

use super::resample::{Resamples, interval};
use crate::batch::report::Mean;
use serde::Serialize;

/// A number of each prompt.
pub type Series = Vec<Option<f64>>;

/// The numbers of a point: one series for each measure.
pub type Values = Vec<Series>;

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
    /// The mean at each level; `None` where even its smallest budget costs more.
    pub at: Vec<Option<Mean>>,
    /// How far that is above the reference's method at the same level, the same prompts resampled for both; empty for that method
    /// itself.
    pub over_reference: Vec<Option<Mean>>,
}

/// The tables of all measures at equal cost. `methods` are labels with the numbers of their points, and which of them is the
/// reference's; `costs` what an answer of each point costs, `values` what it is worth, prompt by prompt. Costs are resampled with
/// the values. Without levels, they are the costs of the method that has the most points, the first of several. Without costs
/// there is no table.
pub fn at_equal(
    (methods, base): (&[(String, Vec<usize>)], Option<usize>),
    measures: &[String],
    costs: &[Series],
    levels: &[f64],
    values: &[Values],
    resamples: &Resamples,
) -> Vec<AtEqual> {
    let costs = on_common_prompts(costs);
    let cost = |point: &usize| mean(costs.get(*point)?);
    let mut levels = levels.to_vec();
    if levels.is_empty() {
        let there = methods.iter().map(|(_, points)| points.iter().filter_map(cost).collect::<Vec<f64>>());
        levels = there.rev().max_by_key(Vec::len).unwrap_or_default();
    }
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    if levels.is_empty() || costs.iter().all(|series| mean(series).is_none()) {
        return Vec::new();
    }
    let cost_means: Vec<Vec<f64>> = costs.iter().map(|series| resamples.means(series)).collect();
    let table = |(measure, name): (usize, &String)| {
        // A point without costs is in no curve, so it takes no prompt from the others.
        let of_measure = |point: usize| {
            let counts = costs.get(point).is_some_and(|series| mean(series).is_some());
            let series = values.get(point).and_then(|values| values.get(measure)).filter(|_| counts);
            series.cloned().unwrap_or_default()
        };
        let series = on_common_prompts(&(0..values.len()).map(of_measure).collect::<Vec<_>>());
        let along = |(_, points): &(String, Vec<usize>)| {
            let place = |point: &usize| {
                let values = series.get(*point)?;
                Some(CurvePoint {
                    cost: cost(point)?,
                    mean: mean(values)?,
                    costs: cost_means.get(*point)?.clone(),
                    means: resamples.means(values),
                    count: values.iter().flatten().count(),
                })
            };
            let mut places: Vec<CurvePoint> = points.iter().filter_map(place).collect();
            places.sort_by(|a, b| a.cost.total_cmp(&b.cost));
            levels.iter().map(|&level| CurveValue::level(&places, level)).collect::<Vec<_>>()
        };
        let all: Vec<Vec<Option<CurveValue>>> = methods.iter().map(along).collect();
        let reached = |(number, own): (usize, &Vec<Option<CurveValue>>)| {
            let base = base.filter(|&base| base != number).and_then(|base| all.get(base));
            let over =
                |(own, base): (&Option<CurveValue>, &Option<CurveValue>)| own.as_ref()?.over(base.as_ref()?).mean();
            Reached {
                label: methods.get(number).map(|(label, _)| label.clone()).unwrap_or_default(),
                at: own.iter().map(|at| at.as_ref()?.mean()).collect(),
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

fn mean(series: &[Option<f64>]) -> Option<f64> {
    let there: Vec<f64> = series.iter().copied().flatten().collect();
    let mean = there.iter().sum::<f64>() / there.len() as f64;
    mean.is_finite().then_some(mean)
}

/// Leaves out the prompts that one of the series lacks, so that means are of the same prompts. A series without any number is
/// no reason to.
fn on_common_prompts(all: &[Series]) -> Vec<Series> {
    let mut common: Vec<bool> = Vec::new();
    for series in all.iter().filter(|series| series.iter().any(Option::is_some)) {
        common.resize(common.len().max(series.len()), true);
        common.iter_mut().enumerate().for_each(|(at, common)| *common &= series.get(at).is_some_and(Option::is_some));
    }
    let kept = |series: &Series| series.iter().zip(&common).map(|(value, &common)| value.filter(|_| common)).collect();
    all.iter().map(kept).collect()
}

/// A point of a curve: means, and the means of each resample.
struct CurvePoint {
    cost: f64,
    mean: f64,
    costs: Vec<f64>,
    means: Vec<f64>,
    /// Prompts.
    count: usize,
}

/// What a method reaches at some cost.
struct CurveValue {
    mean: f64,
    /// Of each resample.
    means: Vec<f64>,
    /// Prompts.
    count: usize,
}

impl CurveValue {
    fn level(places: &[CurvePoint], level: f64) -> Option<CurveValue> {
        let of_all: Vec<(f64, f64)> = places.iter().map(|place| (place.cost, place.mean)).collect();
        if of_all.first()?.0 > level {
            return None;
        }
        let resamples = places.iter().map(|place| place.means.len().min(place.costs.len())).min()?;
        let drawn = |n: usize| {
            let place = |place: &CurvePoint| Some((*place.costs.get(n)?, *place.means.get(n)?));
            let mut curve: Vec<(f64, f64)> = places.iter().filter_map(place).collect();
            curve.sort_by(|a, b| a.0.total_cmp(&b.0));
            along(&curve, level).unwrap_or(f64::NAN)
        };
        Some(CurveValue {
            mean: along(&of_all, level)?,
            means: (0..resamples).map(drawn).collect(),
            count: places.iter().map(|place| place.count).min()?,
        })
    }

    /// The difference from another one.
    fn over(&self, other: &CurveValue) -> CurveValue {
        CurveValue {
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

/// The value of a curve of `(cost, value)`, in the order of the costs, at a level: between two points by the logarithm of the
/// cost, before the first and beyond the last what those have.
fn along(curve: &[(f64, f64)], level: f64) -> Option<f64> {
    let next = curve.partition_point(|&(cost, _)| cost <= level);
    let before = next.checked_sub(1).and_then(|before| curve.get(before));
    match (before, curve.get(next)) {
        (Some(&(from, low)), Some(&(to, high))) if from > 0.0 => {
            Some(low + (level / from).ln() / (to / from).ln() * (high - low))
        }
        (Some(&(_, value)), _) | (None, Some(&(_, value))) => Some(value),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_budgets_the_logarithm_of_the_cost_decides() {
        let curve = [(100.0, 1.0), (400.0, 3.0), (1600.0, 2.0)];
        let at = |level: f64| along(&curve, level).unwrap();
        assert_eq!((at(99.0), at(100.0), at(400.0), at(1600.0), at(1e9)), (1.0, 1.0, 3.0, 2.0, 2.0));
        assert!((at(200.0) - 2.0).abs() < 1e-12 && (at(800.0) - 2.5).abs() < 1e-12);
        assert_eq!(along(&[], 1.0), None);
        assert_eq!(along(&[(0.0, 1.0), (2.0, 5.0)], 1.0), Some(1.0));
    }

    #[test]
    fn means_are_of_the_prompts_that_all_points_have() {
        let found =
            on_common_prompts(&[vec![Some(1.0), Some(2.0), None], vec![None; 3], vec![Some(3.0), None, Some(4.0)]]);
        assert_eq!(found, [vec![Some(1.0), None, None], vec![None; 3], vec![Some(3.0), None, None]]);
        assert_eq!(on_common_prompts(&[Vec::new()]), [Vec::new()]);
    }

    /// Differences at equal cost would otherwise be between means over different prompts.
    #[test]
    fn a_score_that_one_method_lacks_counts_for_none() {
        let methods = [("a".to_string(), vec![0]), ("b".to_string(), vec![1])];
        let (costs, measures) = (vec![vec![Some(10.0); 3]; 2], ["reward".to_string()]);
        let values = [vec![vec![Some(1.0), Some(2.0), Some(90.0)]], vec![vec![Some(2.0), Some(3.0), None]]];
        let found = at_equal((&methods, Some(0)), &measures, &costs, &[20.0, 20.0, 5.0], &values, &Resamples::new(3));
        let [table] = &found[..] else { panic!("{found:?}") };
        assert_eq!(table.levels, [5.0, 20.0]);
        let over = table.methods[1].over_reference[1].unwrap();
        assert!(
            [over.mean, over.low, over.high].iter().all(|one| (one - 1.0).abs() < 1e-12) && over.count == 2,
            "{over:?}"
        );
        assert!(table.methods[1].over_reference[0].is_none() && table.methods[0].at[0].is_none());
    }

    /// Points that differ by chance alone: the value at the last level is that of the last point, not of the luckiest.
    #[test]
    fn no_point_is_picked_by_what_it_reached() {
        let methods = [("a".to_string(), vec![0, 1])];
        let costs = vec![vec![Some(10.0); 2], vec![Some(20.0); 2]];
        let values = [vec![vec![Some(5.0), Some(7.0)]], vec![vec![Some(1.0), Some(3.0)]]];
        let found = at_equal((&methods, None), &["judge".to_string()], &costs, &[], &values, &Resamples::new(2));
        let means: Vec<f64> = found[0].methods[0].at.iter().map(|at| at.unwrap().mean).collect();
        assert_eq!(means, [6.0, 2.0]);
    }
}
