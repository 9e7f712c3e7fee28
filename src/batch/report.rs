//! Summaries of the rows of `ggro run`: means with bootstrap intervals, and a page that shows every answer.

mod page;

pub use page::page;

use crate::batch::output::{MadeOn, Row};
use crate::engine::{DraftCount, DraftStats};
use serde::Serialize;
use std::collections::BTreeMap;

/// Resamplings of an interval.
const RESAMPLES: usize = 2000;

/// A mean with its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Rows that have the number.
    pub count: usize,
}

/// The means of a file of rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The file's name in the report.
    pub name: String,
    /// How many answers it has.
    pub rows: usize,
    /// Prompts that were passed over; no mean counts them.
    #[serde(skip_serializing_if = "is_zero")]
    pub skipped: usize,
    /// Reward of an answer.
    pub reward: Option<Mean>,
    /// Nudged segments of an answer.
    pub nudges: Option<Mean>,
    /// Segments of an answer.
    pub segments: Option<Mean>,
    /// Candidates tried, of an answer.
    pub candidates: Option<Mean>,
    /// New tokens of an answer.
    pub tokens: Option<Mean>,
    /// Share of right answers among those of tasks with right answers, 0 to 1.
    pub accuracy: Option<Mean>,
    /// Policy token-forwards of an answer.
    pub policy_forward: Option<Mean>,
    /// Reward token-forwards of an answer.
    pub reward_forward: Option<Mean>,
    /// Reward token-backwards of an answer.
    pub reward_backward: Option<Mean>,
    /// Tokens that were guessed, and those of them that were right, over all answers; `None` if no answer has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drafts: Option<DraftStats>,
    /// Seconds from request to end, with others running beside it. See [`at_once`](Self::at_once).
    pub seconds: Option<Mean>,
    /// Prompts that were answered at the same time, at least and at most; `None` where a row does not say.
    pub at_once: Option<[usize; 2]>,
    /// Entropy of a decoded token that was kept, in nats.
    pub entropy: Option<Mean>,
    /// Share of answers whose text, tokenised again, gives the same ids, 0 to 1.
    pub round_trip_stable: Option<Mean>,
    /// Wording of a task's prompts, where the run recorded it.
    pub wording: Option<String>,
    /// On what the answers were made, with how many on each; empty if no row says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub made_on: Vec<Share>,
}

/// Answers that were made on one kind of device by the same kernels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The kind of device; `None` if the rows do not say.
    pub device: Option<String>,
    /// The kernels; `None` on the CPU, and if the rows do not say.
    pub kernels: Option<String>,
    /// How many answers.
    pub rows: usize,
}

impl Share {
    /// On what, in words.
    pub fn words(&self) -> String {
        match &self.device {
            Some(device) => MadeOn { device: device.clone(), kernels: self.kernels.clone() }.to_string(),
            None => "not recorded".to_string(),
        }
    }
}

/// How many rows there are of each kind of device and kernels.
fn shares(rows: &[&Row]) -> Vec<Share> {
    let mut counts: BTreeMap<(Option<&str>, Option<&str>), usize> = BTreeMap::new();
    for row in rows {
        *counts.entry((row.device.as_deref(), row.kernels.as_deref())).or_default() += 1;
    }
    if counts.keys().all(|(device, _)| device.is_none()) {
        return Vec::new();
    }
    let share = |((device, kernels), rows): ((Option<&str>, Option<&str>), usize)| Share {
        device: device.map(str::to_string),
        kernels: kernels.map(str::to_string),
        rows,
    };
    counts.into_iter().map(share).collect()
}

/// The least and the most of the rows' numbers of prompts at the same time.
fn at_once(rows: &[&Row]) -> Option<[usize; 2]> {
    let all: Vec<usize> = rows.iter().map(|row| row.concurrency).collect::<Option<_>>()?;
    Some([*all.iter().min()?, *all.iter().max()?])
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Summary {
    /// Summarises rows. What a row does not say is missing: the row is left out of that mean.
    pub fn new(name: &str, rows: &[Row]) -> Self {
        let (skipped, rows): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.skipped.is_some());
        let of = |value: &dyn Fn(&Row) -> Option<f64>| mean(rows.iter().copied().filter_map(value).collect());
        let all = |value: &dyn Fn(&Row) -> f64| of(&|row| Some(value(row)));
        Summary {
            name: name.to_string(),
            rows: rows.len(),
            skipped: skipped.len(),
            reward: of(&|row| row.reward.map(f64::from)),
            nudges: all(&|row| row.num_nudges as f64),
            segments: all(&|row| row.segment_boundaries.len() as f64),
            candidates: of(&|row| {
                let segments = row.segments.as_ref()?;
                Some(segments.iter().map(|segment| segment.candidates.len()).sum::<usize>() as f64)
            }),
            tokens: of(&|row| Some(row.new_tokens? as f64)),
            accuracy: of(&|row| row.correct.map(|correct| f64::from(u8::from(correct)))),
            policy_forward: of(&|row| Some(row.work?.policy_forward as f64)),
            reward_forward: of(&|row| Some(row.work?.reward_forward as f64)),
            reward_backward: of(&|row| Some(row.work?.reward_backward as f64)),
            drafts: rows.iter().filter_map(|row| row.drafts).reduce(|mut sum, drafts| {
                sum += drafts;
                sum
            }),
            seconds: all(&|row| row.elapsed_seconds),
            at_once: at_once(&rows),
            entropy: of(&|row| {
                let segments = row.segments.iter().flatten();
                let entropies = segments.flat_map(|segment| segment.entropies.iter().flatten());
                let (count, sum) = entropies.fold((0, 0.0), |(count, sum), entropy| (count + 1, sum + entropy));
                (count > 0).then(|| sum / f64::from(count))
            }),
            round_trip_stable: of(&|row| row.round_trip_stable.map(|stable| f64::from(u8::from(stable)))),
            wording: None,
            made_on: shares(&rows),
        }
    }

    /// Every mean with its name, in the order of the table.
    pub fn lines(&self) -> [(&'static str, Option<Mean>); 12] {
        [
            ("reward", self.reward),
            ("accuracy", self.accuracy),
            ("nudged segments", self.nudges),
            ("segments", self.segments),
            ("candidates", self.candidates),
            ("new tokens", self.tokens),
            ("entropy, nats", self.entropy),
            ("policy token-forwards", self.policy_forward),
            ("reward token-forwards", self.reward_forward),
            ("reward token-backwards", self.reward_backward),
            ("seconds", self.seconds),
            ("round-trip stable", self.round_trip_stable),
        ]
    }

    /// Guessed tokens by where they came from, as far as there are any: a name, and how many of how many were right.
    pub fn drafts(&self) -> Vec<(&'static str, String)> {
        let Some(DraftStats { siblings, text, model }) = self.drafts else { return Vec::new() };
        let sources = [("from candidates", siblings), ("from the text", text), ("by the draft model", model)];
        let said = |count: DraftCount| format!("{} of {} right", count.accepted, count.drafted);
        let some = sources.into_iter().filter(|(_, count)| count.drafted > 0);
        some.map(|(source, count)| (source, said(count))).collect()
    }

    /// What a line of the table says behind a mean: of how many answers it is, if not of all, and what seconds are of.
    pub fn remark(&self, line: &str, mean: &Mean) -> String {
        let mut remark = String::new();
        if mean.count < self.rows {
            remark += &format!(", of {}", mean.count);
        }
        match self.at_once.filter(|_| line == "seconds") {
            Some([_, 1]) => remark += ", alone",
            Some([least, most]) if least == most => remark += &format!(", up to {most} at a time"),
            Some([least, most]) => remark += &format!(", {least} to {most} at a time"),
            None => {}
        }
        remark
    }
}

/// The mean of some numbers with its bootstrap interval (percentiles of resampled means); `None` without numbers.
pub fn mean(values: Vec<f64>) -> Option<Mean> {
    let count = values.len();
    let average = |sum: f64| sum / count as f64;
    if count == 0 {
        return None;
    }
    // A fixed seed: the same rows always give the same interval.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        values[((u128::from(state) * count as u128) >> 64) as usize]
    };
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| average((0..count).map(|_| draw()).sum())).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some(Mean { mean: average(values.iter().sum()), low: at(0.025), high: at(0.975), count })
}

/// The mean difference of rewards between two files over the prompts that both have a reward for; `None` if there are none.
pub fn paired(base: &[Row], other: &[Row]) -> Option<Mean> {
    let scored = |row: &Row| row.reward.map(f64::from);
    let known: BTreeMap<&str, f64> = base.iter().filter_map(|row| Some((row.prompt.as_str(), scored(row)?))).collect();
    let differences = other.iter().filter_map(|row| Some(scored(row)? - known.get(row.prompt.as_str())?));
    mean(differences.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Work;

    #[test]
    fn answers_without_a_reward_are_missing_and_not_zero() {
        let row = |index: usize, reward: Option<f32>| -> Row {
            serde_json::from_value(serde_json::json!({
                "index": index, "prompt": format!("p{index}"), "answer": null, "metadata": null, "full_text": "",
                "response": "", "reward": reward, "num_nudges": 0, "segment_boundaries": [], "elapsed_seconds": 0.1,
            }))
            .unwrap()
        };
        let (some, none) = (vec![row(0, Some(2.0)), row(1, None)], vec![row(0, None), row(1, None)]);
        let summary = Summary::new("some", &some);
        assert_eq!((summary.rows, summary.reward.unwrap().count, summary.reward.unwrap().mean), (2, 1, 2.0));
        assert_eq!(Summary::new("none", &none).reward, None);
        assert_eq!(paired(&some, &none), None);
        // The official code's rows say nothing of these.
        assert_eq!((summary.tokens, summary.candidates, summary.policy_forward), (None, None, None));
        let more = Row { new_tokens: Some(60), work: Some(Work::default()), concurrency: Some(1), ..some[0].clone() };
        assert_eq!(summary.drafts(), []);
        let of = |drafted, accepted| DraftCount { drafted, accepted };
        let drafts = DraftStats { text: of(9, 2), model: of(40, 31), ..DraftStats::default() };
        let guessed = Row { drafts: Some(drafts), ..some[0].clone() };
        let said = Summary::new("", &[guessed.clone(), guessed.clone(), some[1].clone()]).drafts();
        let expected = [("from the text", "4 of 18 right"), ("by the draft model", "62 of 80 right")];
        assert_eq!(said, expected.map(|(source, said)| (source, said.to_string())));
        let line = serde_json::to_string(&guessed).unwrap();
        assert_eq!(serde_json::from_str::<Row>(&line).unwrap(), guessed);
        let passed = Row { skipped: Some("too long".to_string()), ..some[1].clone() };
        let summary = Summary::new("more", &[more.clone(), some[1].clone(), passed]);
        assert_eq!((summary.rows, summary.skipped, summary.at_once), (2, 1, None));
        let (tokens, work) = (summary.tokens.unwrap(), summary.policy_forward.unwrap());
        assert_eq!((tokens.mean, tokens.count, work.mean, work.count), (60.0, 1, 0.0, 1));
        assert_eq!(summary.remark("new tokens", &tokens), ", of 1");
        let sixteen = Row { concurrency: Some(16), ..more.clone() };
        let remark = |rows: &[Row]| {
            let summary = Summary::new("", rows);
            summary.remark("seconds", &summary.seconds.unwrap())
        };
        assert_eq!(remark(std::slice::from_ref(&more)), ", alone");
        assert_eq!(remark(std::slice::from_ref(&sixteen)), ", up to 16 at a time");
        assert_eq!(remark(&[more.clone(), sixteen]), ", 1 to 16 at a time");
        assert_eq!(remark(&[more, some[1].clone()]), "");
        assert_eq!(paired(&some, &[row(0, Some(3.0)), row(1, Some(9.0))]).unwrap().mean, 1.0);
    }

    #[test]
    fn rows_are_counted_by_what_they_were_made_on() {
        let row = |index: usize, device: Option<&str>, kernels: Option<&str>| -> Row {
            serde_json::from_value(serde_json::json!({
                "index": index, "prompt": "", "answer": null, "metadata": null, "full_text": "", "response": "", "reward": null,
                "num_nudges": 0, "segment_boundaries": [], "elapsed_seconds": 0.1, "device": device, "kernels": kernels,
            }))
            .unwrap()
        };
        let old = [row(0, None, None), row(1, None, None)];
        assert_eq!(Summary::new("", &old).made_on, []);
        let mixed = [
            row(0, Some("cuda 9.0"), Some("sm90")),
            row(1, Some("cpu"), None),
            row(2, Some("cuda 9.0"), Some("sm80")),
            row(3, Some("cuda 9.0"), Some("sm90")),
            row(4, None, None),
        ];
        let made_on = Summary::new("", &mixed).made_on;
        let said: Vec<(String, usize)> = made_on.iter().map(|share| (share.words(), share.rows)).collect();
        let expected =
            [("not recorded", 1), ("cpu", 1), ("cuda 9.0 with kernels sm80", 1), ("cuda 9.0 with kernels sm90", 2)];
        assert_eq!(said, expected.map(|(words, rows)| (words.to_string(), rows)));
    }

    #[test]
    fn intervals_hold_the_mean_and_shrink_with_the_root_of_the_rows() {
        let values = |n: usize| (0..n).map(|i| (i * 7919 % 101) as f64).collect::<Vec<_>>();
        let (few, many) = (mean(values(25)).unwrap(), mean(values(2500)).unwrap());
        for found in [few, many] {
            assert!(found.low < found.mean && found.mean < found.high, "{found:?}");
        }
        let ratio = (few.high - few.low) / (many.high - many.low);
        assert!((7.0..14.0).contains(&ratio), "{ratio}");
        assert_eq!(mean(values(25)), mean(values(25)));
        assert_eq!(mean(vec![2.0]), Some(Mean { mean: 2.0, low: 2.0, high: 2.0, count: 1 }));
        assert_eq!(mean(Vec::new()), None);
    }
}
