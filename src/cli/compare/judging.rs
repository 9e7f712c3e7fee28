//! Judgements of a comparison: which are missing, and who makes them.

use super::{Comparison, JudgeSource, files_of};
use crate::batch::compare::gold::Gold;
use crate::batch::compare::judge::{Judgement, Scored, SecondReward, ask_program, gold, question, right, safe};
use crate::batch::compare::plan::{JudgeKind, Point};
use crate::batch::compare::{judged_path, rows_path};
use crate::batch::each;
use crate::batch::guard::Guard;
use crate::batch::output::{Row, Rows, WRITTEN_BY, read};
use crate::cli::models::{Count, counting};
use crate::cli::output::put_in_order;
use crate::cli::say;
use crate::cli::words::counted;
use crate::engine::{Engine, Settings};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longest question and answer of a guard model, in tokens, as `ggro guard` has it.
const GUARD_CONTEXT: usize = 4096;

/// A file of judgements.
struct Judged<'a> {
    point: &'a Point,
    seed: u64,
    /// What is not judged yet.
    rows: Vec<Row>,
    out: Rows,
}

impl Comparison<'_> {
    /// Checks that judgements that are there were made in the same way.
    pub(super) fn check_judgements(&self, ready: &JudgeSource<'_>) -> Result<()> {
        for (point, seed) in files_of(self.plan) {
            let path = judged_path(&self.args.output, point, seed, ready.judge);
            if path.exists() {
                let config = self.judge_config(ready, &rows_path(&self.args.output, point, seed));
                Rows::open::<Judgement>(&path, &config, self.args.mix_devices, &|_| Ok(()))?;
            }
        }
        Ok(())
    }

    /// Makes all judgements of a judge that are missing.
    pub(super) fn judge(&self, ready: &JudgeSource<'_>) -> Result<()> {
        let mut opened: Vec<Judged<'_>> = Vec::new();
        for (point, seed) in files_of(self.plan) {
            let answered = rows_path(&self.args.output, point, seed);
            let mut rows: Vec<Row> = read(&answered)?;
            let out = {
                let by_index: BTreeMap<usize, &Row> = rows.iter().map(|row| (row.index, row)).collect();
                let fits = |one: &Judgement| one.fits(by_index.get(&one.index).copied());
                let (path, config) =
                    (judged_path(&self.args.output, point, seed, ready.judge), self.judge_config(ready, &answered));
                Rows::open::<Judgement>(&path, &config, self.args.mix_devices, &fits)?
            };
            // There may be more rows than are asked for now.
            let is_asked = |index: usize| self.prompts.binary_search_by_key(&index, |asked| asked.index).is_ok();
            rows.retain(|row| row.skipped.is_none() && is_asked(row.index) && !out.has(row.index));
            opened.push(Judged { point, seed, rows, out });
        }
        let left: usize = opened.iter().map(|one| one.rows.len()).sum();
        if left > 0 {
            let (count, too_long) = (counting(left, 0, "judgement"), AtomicUsize::new(0));
            count.goes_on(&self.args.output);
            let judged = self.judge_all(ready, &mut opened, &count, &too_long);
            count.bar.finish_and_clear();
            judged?;
            let too_long = too_long.into_inner();
            if too_long > 0 {
                let texts = counted(too_long, "answer");
                say(&format!("note: judge {}: {texts} too long for the model, without a score", ready.judge.name));
            }
        }
        opened.into_iter().try_for_each(|one| put_in_order(one.out, left == 0))
    }

    fn judge_all(
        &self,
        ready: &JudgeSource<'_>,
        opened: &mut [Judged<'_>],
        count: &Count,
        too_long: &AtomicUsize,
    ) -> Result<()> {
        let record = |row: &Row| {
            let record = self.records.get(row.index);
            record.ok_or_else(|| Error::Backend("an answer without its prompt".to_string()))
        };
        let plain = |opened: &mut [Judged<'_>], make: &(dyn Fn(&Row) -> Result<Judgement> + Sync)| {
            let done = |_: &Judgement| count.bar.inc(1);
            opened.iter_mut().try_for_each(|one| each(&one.rows, self.concurrency, &mut one.out, make, &done))
        };
        let of_model = |row: &Row, scored: Scored| -> Result<Judgement> {
            too_long.fetch_add(usize::from(scored.too_long), Ordering::Relaxed);
            Ok(Judgement::new(row, scored.score, Some(self.made_on.device.clone())))
        };
        let settings = Settings { max_requests: self.concurrency, ..Settings::default() };
        let flags = self.once_more();
        match (&ready.judge.kind, &ready.pair) {
            (JudgeKind::Answers, _) => plain(opened, &|row| Ok(Judgement::new(row, right(row), None))),
            (JudgeKind::Gold, _) => {
                let rule = Gold::demo();
                plain(opened, &|row| Ok(Judgement::new(row, Some(gold(&rule, row)), None)))
            }
            (JudgeKind::Command(command), _) => {
                let (mut places, mut questions) = (Vec::new(), Vec::new());
                for (file, one) in opened.iter().enumerate() {
                    for row in &one.rows {
                        questions.push(question(places.len(), record(row)?, row, (one.point.name.as_str(), one.seed)));
                        places.push((file, row.clone()));
                    }
                }
                let patience = Duration::from_secs(ready.judge.timeout_seconds);
                ask_program(command, questions, patience, &mut |index, score| {
                    if let Some((file, row)) = places.get(index)
                        && let Some(one) = opened.get_mut(*file)
                    {
                        one.out.add(&Judgement::new(row, score, None))?;
                        count.bar.inc(1);
                    }
                    Ok(())
                })
            }
            (JudgeKind::Reward(_), Some(pair)) => {
                let (mut device, for_engine) = (flags.find()?, pair.clone());
                let engine =
                    Engine::start(settings, move || Ok(flags.open(&mut device, &for_engine, None)?.into_backend()))?;
                let second = SecondReward { engine: &engine, pair };
                plain(opened, &|row| of_model(row, second.score(record(row)?, row)?))
            }
            (JudgeKind::Guard(path), Some(pair)) => {
                let model = pair.policy()?;
                let Some(chat) = &model.chat else {
                    return Err(Error::file(path, "a model that judges needs a chat template; this one has none"));
                };
                let context = model.config.max_position_embeddings.min(GUARD_CONTEXT);
                let (mut device, for_engine) = (flags.find()?, pair.clone());
                let open = move || Ok(flags.open_quietly(&mut device, &for_engine, context)?.into_backend());
                let engine = Engine::start(settings, open)?;
                let guard = Guard {
                    engine: &engine,
                    tokenizer: &pair.tokenizer,
                    chat,
                    stop_ids: &model.stop_ids,
                    context,
                    skip_too_long: true,
                };
                plain(opened, &|row| of_model(row, safe(&guard, row)?))
            }
            (JudgeKind::Reward(_) | JudgeKind::Guard(_), None) => {
                Err(Error::Backend("a judge without its model".to_string()))
            }
        }
    }

    /// All that a judgement depends on besides the answer. The threshold is the tables' business.
    fn judge_config(&self, ready: &JudgeSource<'_>, answered: &Path) -> Map<String, Value> {
        let mut config = Map::new();
        let mut set = |name: &str, value: Value| drop(config.insert(name.to_string(), value));
        set("ggro", json!(env!("CARGO_PKG_VERSION")));
        set(WRITTEN_BY, json!("compare"));
        set("judge", json!(ready.judge.kind));
        set("rows", json!(answered.file_name().map(|name| name.to_string_lossy())));
        if let Some(pair) = &ready.pair {
            let config_of = pair.policy.as_ref().map(|model| &model.config);
            let config_of = config_of.or(pair.reward.as_ref().map(|model| &model.config));
            set("weights", json!(config_of.map(|config| config.num_parameters())));
            set("arithmetic", json!(self.arithmetic));
            set("date", json!(self.date.to_string()));
            self.made_on.record(&mut config);
        }
        config
    }
}
