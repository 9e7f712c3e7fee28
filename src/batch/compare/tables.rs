//! The tables of a comparison. Seeds are averaged within a prompt first; intervals are over prompts.

use super::equal::{AtEqual, Series, Values, at_equal};
use super::plan::{ComparePlan, Cost, Point};
use super::resample::{Resamples, jackknife};
use super::words::{Distinct, distance, repetition, words};
use crate::batch::output::Row;
use crate::batch::report::Mean;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The answers of one point with one seed, and what the judges say of them.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Which point of the plan.
    pub point: usize,
    /// The seed.
    pub seed: u64,
    /// The answers.
    pub rows: Vec<Row>,
    /// The scores of each judge of the plan, by the number of the prompt.
    pub scores: Vec<BTreeMap<usize, f64>>,
}

impl Answers {
    /// The reward of a row, or what a judge says of it: measure 0 is the reward, measure n judge n - 1.
    pub fn measured(&self, measure: usize, row: &Row) -> Option<f64> {
        match measure.checked_sub(1) {
            None => row.reward.map(f64::from),
            Some(judge) => self.scores.get(judge)?.get(&row.index).copied(),
        }
    }
}

/// A comparison in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Tables {
    /// Prompts.
    pub prompts: usize,
    /// The point that others are compared with.
    pub reference: String,
    /// `reward`, and the names of the judges.
    pub measures: Vec<String>,
    /// What tokens of the reward model cost, in policy token-forwards.
    pub cost: Cost,
    /// A line for each point.
    pub points: Vec<PointTable>,
    /// At equal work, in policy token-forwards of an answer, one for each measure.
    pub equal_work: Vec<AtEqual>,
    /// At equal time, in seconds of an answer alone, one for each measure; empty where no answers were timed.
    pub equal_time: Vec<AtEqual>,
    /// Along the budgets, one for each method that has several.
    pub curves: Vec<Curve>,
}

/// The numbers of a point.
#[derive(Clone, Debug, Serialize)]
pub struct PointTable {
    /// The point's name.
    pub name: String,
    /// Its method.
    pub label: String,
    /// The varied parameter and its value.
    pub budget: Option<(String, Value)>,
    /// Seeds.
    pub seeds: usize,
    /// Answers.
    pub answers: usize,
    /// The reward and what each judge says.
    pub measures: Vec<MeasureTable>,
    /// Share of answers that ended by themselves, 0 to 1.
    pub finished: Option<Mean>,
    /// New tokens of an answer.
    pub tokens: Option<Mean>,
    /// Distinct-1 of all answers of a seed, the mean over seeds.
    pub distinct_1: Option<Mean>,
    /// Distinct-2.
    pub distinct_2: Option<Mean>,
    /// How different answers to the same prompt are that were made with different seeds, 0 to 1; `None` with one seed.
    pub diversity: Option<Mean>,
    /// Share of repeated word trigrams of an answer.
    pub repetition: Option<Mean>,
    /// Policy token-forwards of an answer.
    pub policy_forward: Option<Mean>,
    /// Reward token-forwards of an answer.
    pub reward_forward: Option<Mean>,
    /// Reward token-backwards of an answer.
    pub reward_backward: Option<Mean>,
    /// All work of an answer, in policy token-forwards. The reward of an answer that the method did not look at is no work of it.
    pub work: Option<Mean>,
    /// Seconds of an answer that was made alone.
    pub seconds: Option<Mean>,
}

/// A measure of a point.
#[derive(Clone, Debug, Serialize)]
pub struct MeasureTable {
    /// The mean.
    pub mean: Option<Mean>,
    /// How far it is above the reference, prompt by prompt; `None` for the reference itself.
    pub over_reference: Option<Mean>,
    /// How often an answer is better than one of the reference to the same prompt, over all pairs of seeds; a tie is half.
    pub wins: Option<Mean>,
    /// Share of answers whose score reaches the judge's threshold.
    pub coverage: Option<Mean>,
}

/// A method along its budget.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// The method.
    pub label: String,
    /// The parameter that is varied.
    pub parameter: String,
    /// Its points, in the order of their work; without work in that of the plan.
    pub steps: Vec<Step>,
}

/// A point of a curve.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Which point of the plan.
    pub point: usize,
    /// The parameter's value.
    pub value: Value,
    /// How far each measure is above the point before, prompt by prompt; empty for the first.
    pub over_before: Vec<Option<Mean>>,
    /// The judges whose mean falls where the reward rises, both by more than their 95 % intervals: against the point before, or
    /// against the earlier one that the judge likes best.
    pub falling: Vec<String>,
}

impl Tables {
    /// The tables of a plan. `prompts` are the numbers of its prompts, `cost` what tokens of the reward model cost where the plan
    /// does not say, and `alone` the answers that were made one at a time.
    pub fn new(plan: &ComparePlan, prompts: &[usize], cost: Cost, answers: &[Answers], alone: &[Answers]) -> Tables {
        let cost = plan.cost.unwrap_or(cost);
        let measures: Vec<String> = ["reward"]
            .into_iter()
            .chain(plan.judges.iter().map(|judge| judge.name.as_str()))
            .map(str::to_string)
            .collect();
        let resamples = Resamples::new(prompts.len());
        let of_point = |all: &'_ [Answers], point: usize| -> Vec<usize> {
            all.iter().enumerate().filter(|(_, one)| one.point == point).map(|(at, _)| at).collect()
        };
        let work = |point: &Point, row: &Row| {
            let work = row.work?;
            let reward = cost.reward_forward * work.reward_forward as f64;
            let reward = reward + cost.reward_backward * work.reward_backward as f64;
            Some(work.policy_forward as f64 + if point.needs_reward() { reward } else { 0.0 })
        };
        let mut series = Vec::new();
        for point in 0..plan.points.len() {
            let own: Vec<&Answers> = of_point(answers, point).into_iter().filter_map(|at| answers.get(at)).collect();
            let measured = |measure: usize| averaged(prompts, &own, &|one, row| one.measured(measure, row));
            series.push((0..measures.len()).map(measured).collect::<Values>());
        }
        let reference = plan.points.iter().position(|point| point.name == plan.reference);
        let (mut points, mut works, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
        for (number, point) in plan.points.iter().enumerate() {
            let own: Vec<&Answers> = of_point(answers, number).into_iter().filter_map(|at| answers.get(at)).collect();
            let base: Vec<&Answers> = answers.iter().filter(|one| Some(one.point) == reference).collect();
            let timed: Vec<&Answers> = of_point(alone, number).into_iter().filter_map(|at| alone.get(at)).collect();
            let mean = |of: &dyn Fn(&Row) -> Option<f64>| resamples.mean(&averaged(prompts, &own, &|_, row| of(row)));
            let measure = |measure: usize| {
                let values = series.get(number).and_then(|series| series.get(measure));
                let values = values.map(Vec::as_slice).unwrap_or_default();
                let other = reference.filter(|&reference| reference != number);
                let other = other.and_then(|reference| series.get(reference)?.get(measure));
                let threshold = measure.checked_sub(1).and_then(|judge| plan.judges.get(judge)?.threshold);
                MeasureTable {
                    mean: resamples.mean(values),
                    over_reference: other.and_then(|other| resamples.mean(&differences(values, other))),
                    wins: other.and_then(|_| resamples.mean(&wins(prompts, measure, &own, &base))),
                    coverage: threshold.and_then(|threshold| {
                        let reached = |one: &Answers, row: &Row| {
                            one.measured(measure, row).map(|score| f64::from(u8::from(score >= threshold)))
                        };
                        resamples.mean(&averaged(prompts, &own, &reached))
                    }),
                }
            };
            works.push(averaged(prompts, &own, &|_, row| work(point, row)));
            seconds.push(averaged(prompts, &timed, &|_, row| Some(row.elapsed_seconds)));
            points.push(PointTable {
                name: point.name.clone(),
                label: point.label.clone(),
                budget: point.budget.clone(),
                seeds: own.len(),
                answers: own.iter().map(|one| answered(prompts, one).count()).sum(),
                measures: (0..measures.len()).map(measure).collect(),
                finished: mean(&|row| row.finish_reason.as_ref().map(|reason| f64::from(u8::from(reason == "finish")))),
                tokens: mean(&|row| row.new_tokens.map(|tokens| tokens as f64)),
                distinct_1: distinct_of(prompts, &own, 1),
                distinct_2: distinct_of(prompts, &own, 2),
                diversity: resamples.mean(&distances(prompts, &own)),
                repetition: mean(&|row| Some(repetition(&words(&row.response)))),
                policy_forward: mean(&|row| Some(row.work?.policy_forward as f64)),
                reward_forward: mean(&|row| Some(row.work?.reward_forward as f64)),
                reward_backward: mean(&|row| Some(row.work?.reward_backward as f64)),
                work: works.last().and_then(|works| resamples.mean(works)),
                seconds: seconds.last().and_then(|seconds| resamples.mean(seconds)),
            });
        }
        let methods = methods(plan);
        let method_of = |name: &str| plan.points.iter().find(|point| point.name == name).map(|point| &point.label);
        let base = methods.iter().position(|(label, _)| method_of(&plan.reference) == Some(label));
        let equal = |costs: &[Series], levels: &[f64]| {
            at_equal((methods.as_slice(), base), &measures, costs, levels, &series, &resamples)
        };
        let (equal_work, equal_time) = (equal(&works, &plan.work), equal(&seconds, &[]));
        let curves = curves(plan, &measures, (&series, &points), &resamples);
        let (prompts, reference) = (prompts.len(), plan.reference.clone());
        Tables { prompts, reference, measures, cost, points, equal_work, equal_time, curves }
    }
}

/// The rows of an answer to one of the prompts that are compared.
fn answered<'a>(prompts: &'a [usize], answers: &'a Answers) -> impl Iterator<Item = &'a Row> {
    answers.rows.iter().filter(|row| row.skipped.is_none() && prompts.binary_search(&row.index).is_ok())
}

/// A number of each prompt, the mean over the seeds that have it.
fn averaged(prompts: &[usize], answers: &[&Answers], of: &dyn Fn(&Answers, &Row) -> Option<f64>) -> Vec<Option<f64>> {
    let mut sums: Vec<(f64, usize)> = vec![(0.0, 0); prompts.len()];
    for one in answers {
        for row in answered(prompts, one) {
            let place = prompts.binary_search(&row.index).ok().and_then(|at| sums.get_mut(at));
            if let (Some((sum, count)), Some(value)) = (place, of(one, row)) {
                *sum += value;
                *count += 1;
            }
        }
    }
    sums.into_iter().map(|(sum, count)| (count > 0).then(|| sum / count as f64)).collect()
}

/// How far each prompt's number is above the other's, where both have one.
fn differences(values: &[Option<f64>], other: &[Option<f64>]) -> Vec<Option<f64>> {
    values.iter().zip(other).map(|(value, other)| Some((*value)? - (*other)?)).collect()
}

/// For each prompt how often an answer is better than one of `base`, over all pairs.
fn wins(prompts: &[usize], measure: usize, answers: &[&Answers], base: &[&Answers]) -> Vec<Option<f64>> {
    let scores = |all: &[&Answers]| {
        let mut found: Vec<Vec<f64>> = vec![Vec::new(); prompts.len()];
        for one in all {
            for row in answered(prompts, one) {
                let place = prompts.binary_search(&row.index).ok().and_then(|at| found.get_mut(at));
                if let (Some(place), Some(score)) = (place, one.measured(measure, row)) {
                    place.push(score);
                }
            }
        }
        found
    };
    let share = |(own, base): (Vec<f64>, Vec<f64>)| {
        let pairs = own.len() * base.len();
        let won = own.iter().flat_map(|a| base.iter().map(move |b| (a, b)));
        let won: f64 = won
            .map(|(a, b)| {
                if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                }
            })
            .sum();
        (pairs > 0).then(|| won / pairs as f64)
    };
    scores(answers).into_iter().zip(scores(base)).map(share).collect()
}

/// Distinct-n of the answers of a seed, the mean over seeds.
fn distinct_of(prompts: &[usize], answers: &[&Answers], n: usize) -> Option<Mean> {
    let of_seed = |one: &&Answers| {
        let place = |row: &Row| Some((prompts.binary_search(&row.index).ok()?, words(&row.response)));
        let all: Vec<(usize, Vec<String>)> = answered(prompts, one).filter_map(place).collect();
        Distinct::of(all.iter().map(|(prompt, words)| (*prompt, words.as_slice())), prompts.len(), n)
    };
    let seeds: Vec<Distinct> = answers.iter().filter_map(of_seed).collect();
    let mean = |of: &dyn Fn(&Distinct) -> Option<f64>| {
        let found: Vec<f64> = seeds.iter().filter_map(of).collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
    };
    let without = |prompt: usize| mean(&|seed| seed.without.get(prompt).copied().flatten());
    let without: Vec<Option<f64>> = (0..prompts.len()).map(without).collect();
    Some(jackknife(mean(&|seed| Some(seed.all))?, &without))
}

/// For each prompt how different its answers are, the mean over all pairs of seeds.
fn distances(prompts: &[usize], answers: &[&Answers]) -> Vec<Option<f64>> {
    let mut texts: Vec<Vec<Vec<String>>> = vec![Vec::new(); prompts.len()];
    for one in answers {
        for row in answered(prompts, one) {
            let place = prompts.binary_search(&row.index).ok().and_then(|at| texts.get_mut(at));
            if let Some(place) = place {
                place.push(words(&row.response));
            }
        }
    }
    let mean = |texts: Vec<Vec<String>>| {
        let pairs =
            texts.iter().enumerate().flat_map(|(at, one)| texts.iter().skip(at + 1).map(move |other| (one, other)));
        let found: Vec<f64> = pairs.filter_map(|(one, other)| distance(one, other)).collect();
        (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
    };
    texts.into_iter().map(mean).collect()
}

/// The methods of a plan, each with the numbers of its points, in the order of the plan.
fn methods(plan: &ComparePlan) -> Vec<(String, Vec<usize>)> {
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    for (number, point) in plan.points.iter().enumerate() {
        match found.iter_mut().find(|(label, _)| *label == point.label) {
            Some((_, points)) => points.push(number),
            None => found.push((point.label.clone(), vec![number])),
        }
    }
    found
}

fn curves(
    plan: &ComparePlan,
    measures: &[String],
    (series, tables): (&[Values], &[PointTable]),
    resamples: &Resamples,
) -> Vec<Curve> {
    let work = |point: usize| tables.get(point).and_then(|table| table.work).map_or(f64::INFINITY, |work| work.mean);
    let judged = |point: usize, measure: usize| Some(tables.get(point)?.measures.get(measure)?.mean?.mean);
    // How far a measure of one point is above that of another.
    let over = |point: usize, other: usize, measure: usize| -> Option<Mean> {
        resamples.mean(&differences(series.get(point)?.get(measure)?, series.get(other)?.get(measure)?))
    };
    let mut curves: Vec<Curve> = Vec::new();
    for (label, mut points) in methods(plan) {
        let budget = |point: usize| plan.points.get(point).and_then(|point| point.budget.clone());
        points.retain(|&point| budget(point).is_some());
        points.sort_by(|&a, &b| work(a).total_cmp(&work(b)));
        let Some((parameter, _)) = points.first().and_then(|&point| budget(point)).filter(|_| points.len() > 1) else {
            continue;
        };
        let mut steps = Vec::new();
        for (at, &point) in points.iter().enumerate() {
            let earlier = points.get(..at).unwrap_or_default();
            let over_before = earlier.last().map_or_else(Vec::new, |&before| {
                (0..measures.len()).map(|measure| over(point, before, measure)).collect()
            });
            let falls = |&(measure, _): &(usize, &String)| {
                let liked = earlier.iter().copied().filter(|&point| judged(point, measure).is_some());
                let liked = liked.max_by(|&a, &b| {
                    judged(a, measure).unwrap_or_default().total_cmp(&judged(b, measure).unwrap_or_default())
                });
                let against = |other: usize| {
                    let (reward, judge) = (over(point, other, 0), over(point, other, measure));
                    reward.is_some_and(|reward| reward.low > 0.0) && judge.is_some_and(|judge| judge.high < 0.0)
                };
                earlier.last().copied().into_iter().chain(liked).any(against)
            };
            let judges = measures.iter().enumerate().skip(1);
            let falling = judges.filter(falls).map(|(_, name)| name.clone()).collect();
            let value = budget(point).map_or(Value::Null, |(_, value)| value);
            steps.push(Step { point, value, over_before, falling });
        }
        curves.push(Curve { label, parameter, steps });
    }
    curves
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlanFile;
    use super::*;
    use serde_json::json;

    fn plan() -> ComparePlan {
        let file = json!({
            "seeds": [0, 1],
            "method": [{ "name": "greedy" }, { "name": "bon", "budget": { "n": [2, 4] } }],
            "judge": [{ "gold": true, "threshold": 2.0 }],
        });
        let file: PlanFile = serde_json::from_value(file).unwrap();
        ComparePlan::new(&file).unwrap()
    }

    fn answers(point: usize, seed: u64, work: u64, rows: &[(f32, f64)]) -> Answers {
        let row = |(index, (reward, _)): (usize, &(f32, f64))| -> Row {
            serde_json::from_value(json!({
                "index": index, "prompt": format!("p{index}"), "answer": null, "metadata": null, "full_text": "",
                "response": "a b c a b c", "reward": reward, "num_nudges": 0, "segment_boundaries": [], "elapsed_seconds": 0.5,
                "finish_reason": "finish", "new_tokens": 6,
                "work": { "policy_forward": work, "reward_forward": 10, "reward_backward": 0 },
            }))
            .unwrap()
        };
        let scores = rows.iter().enumerate().map(|(index, (_, score))| (index, *score)).collect();
        Answers { point, seed, rows: rows.iter().enumerate().map(row).collect(), scores: vec![scores] }
    }

    fn near(found: Option<Mean>, expected: f64) {
        assert!(found.is_some_and(|found| (found.mean - expected).abs() < 1e-9), "{found:?}, not {expected}");
    }

    #[test]
    fn seeds_are_averaged_within_a_prompt() {
        let all = [
            answers(0, 0, 90, &[(1.0, 1.0), (2.0, 2.0)]),
            answers(1, 0, 190, &[(2.0, 3.0), (3.0, 1.0)]),
            answers(1, 1, 190, &[(4.0, 1.0), (5.0, 2.0)]),
            answers(2, 0, 390, &[(5.0, 1.0), (6.0, 1.0)]),
        ];
        let cost = Cost { reward_forward: 1.0, reward_backward: 2.0 };
        let tables = Tables::new(&plan(), &[0, 1], cost, &all, &all[..1]);
        assert_eq!(tables.measures, ["reward", "gold"]);
        let [greedy, two, four] = &tables.points[..] else { panic!("{tables:?}") };
        assert_eq!((greedy.name.as_str(), two.seeds, two.answers), ("greedy", 2, 4));
        near(two.measures[0].mean, 3.5);
        near(two.measures[0].over_reference, 2.0);
        near(two.measures[1].mean, 1.75);
        // 3 and 1 against 1: one and a half of two; 1 and 2 against 2: half of two.
        near(two.measures[1].wins, 0.5);
        near(two.measures[1].coverage, 0.5);
        near(two.work, 200.0);
        near(two.repetition, 0.25);
        near(greedy.seconds, 0.5);
        assert!(two.seconds.is_none() && greedy.measures[0].over_reference.is_none());
        near(two.distinct_1, 0.25);
        near(two.diversity, 0.0);
        assert!(greedy.diversity.is_none());
        near(four.measures[1].mean, 1.0);
        // From two samples to four the reward rises and the judge falls.
        let [curve] = &tables.curves[..] else { panic!("{:?}", tables.curves) };
        assert_eq!((curve.label.as_str(), curve.steps[1].falling.as_slice()), ("bon", &["gold".to_string()][..]));
        near(curve.steps[1].over_before[0], 2.0);
        // The levels are the works of best-of-N.
        let equal = &tables.equal_work[0];
        assert_eq!(equal.levels, [200.0, 400.0]);
        let [greedy, best_of] = &equal.methods[..] else { panic!("{equal:?}") };
        assert!(greedy.label == "greedy" && greedy.over_reference.is_empty());
        near(greedy.at[1], 1.5);
        near(best_of.at[1], 5.5);
        near(best_of.over_reference[1], 4.0);
        // Each prompt gains as much as the other one.
        let over = best_of.over_reference[1].unwrap();
        assert!((over.low - 4.0).abs() < 1e-9 && (over.high - 4.0).abs() < 1e-9, "{over:?}");
        // No budget is picked by what it reached: that of the larger one stands.
        near(tables.equal_work[1].methods[1].at[1], 1.0);
        // Greedy alone was timed.
        assert!(tables.equal_time[0].levels == [0.5] && tables.equal_time[0].methods[1].at == [None]);
    }
}
