//! Work that a method may turn out not to need: whatever becomes of it, the answer and its work are those of the method
//! alone.

use super::edges::{Told, all, model, spec};
use ggro::answer::{Completions, SearchCounts};
use ggro::baselines::{Answer, Growth, Strategy, Texts};
use ggro::engine::{Request as _, RequestStats, Settings, Speculation, SpeculationWidth, baseline, run_all, searcher};
use ggro::model::{PolicyRow, RowStats, TopK, Work, top_k};
use ggro::task::{Ask, PolicyOutput, RewardOutput, Task};
use ggro::{Error, Result};
use ggro_testkit::scripted::{Model, PROMPT, Scripted};

/// Runs a search by hand. Every task that is not needed fails, or every such row is not finite. How many tasks were
/// not needed.
fn with_failures_ahead(
    model: &Model,
    mut request: ggro::baselines::Search,
    width: usize,
    finite: bool,
) -> Result<(Completions, usize)> {
    let speculation = Speculation { width, run_ahead: false, rows: width };
    let (mut tasks, mut failed): (Vec<Task>, usize) = (Vec::new(), 0);
    for _ in 0..10_000 {
        request.advance(speculation, &|_, _| false);
        if let Some(outcome) = request.take() {
            return outcome.map(|completions| (completions, failed));
        }
        request.tasks(&mut tasks);
        assert!(tasks.iter().any(|task| !task.speculative), "nothing that is needed is asked for");
        for task in tasks.drain(..) {
            failed += usize::from(task.speculative);
            if task.speculative && finite {
                request.on_failure(&task, Error::Backend("ahead of need".to_string()));
                continue;
            }
            let ids = request.ids(&task, 0);
            match &task.ask {
                Ask::Policy { top_k: asked, .. } => {
                    let mut logits = (model.logits)(&ids);
                    if task.speculative {
                        logits[0] = f32::NAN;
                    }
                    let top = match asked {
                        TopK::Take(k) => top_k(&logits, *k, logits.len()),
                        _ => Vec::new(),
                    };
                    let row = PolicyRow { stats: RowStats::of(&logits, 0.0), top };
                    request.on_policy(&task, PolicyOutput { row, logits: Some(logits) });
                }
                Ask::Reward { .. } => {
                    let reward = (model.reward)(&ids);
                    request.on_reward(&task, RewardOutput { reward, ..RewardOutput::default() });
                }
            }
        }
    }
    panic!("no end");
}

fn at_width(model: &Model, width: usize, tokens: usize, strategy: Box<dyn Strategy>) -> (Completions, RequestStats) {
    let settings = Settings::single(SpeculationWidth::Fixed(width));
    let mut backend = Scripted::new(model, 40);
    let request = searcher(&backend, &PROMPT, spec(tokens), strategy).unwrap();
    let requests: Vec<Box<dyn ggro::engine::Request<Output = Completions>>> = vec![Box::new(request)];
    let found = run_all(&mut backend, &settings, requests, &mut ()).unwrap().results.remove(0);
    assert_eq!(backend.held(), 0);
    found
}

/// What fails ahead of need is run again once it is needed.
#[test]
fn what_fails_ahead_of_need_fails_nothing() {
    let backend = Scripted::new(&model(), 40);
    for method in all() {
        let strategy = || method.strategy(PROMPT.len(), 12).unwrap();
        let (expected, _) = at_width(&model(), 1, 12, strategy());
        for (width, finite) in [(1, true), (3, true), (4, false)] {
            let request = baseline(&backend, &PROMPT, spec(12), &method).unwrap();
            let (got, failed) = with_failures_ahead(&model(), request, width, finite).unwrap();
            assert_eq!((&got.all, got.best, got.search), (&expected.all, expected.best, expected.search));
            let ahead = width > 1 && ["rejection-sampling", "cards"].contains(&method.name());
            assert_eq!(failed > 0, ahead, "{} at {width}", method.name());
        }
    }
}

/// A method that has a text made ahead behind one that it then does not go on from.
#[test]
fn what_a_needed_text_is_run_for_ahead_fails_nothing() {
    fn sampled(stream: u64) -> Growth {
        Growth::Sampled { stream, tokens: 3, until: None }
    }
    let strategy = || -> Box<dyn Strategy> {
        let mut texts_made = Vec::new();
        Box::new(Told(move |texts: &mut Texts| {
            if texts_made.is_empty() {
                texts_made = (0..2).map(|stream| texts.extend(texts.prompt(), sampled(stream))).collect();
                texts_made.iter().for_each(|&text| texts.score(text));
                texts.keep(&texts_made);
                return Ok(None);
            }
            if texts.stop(texts_made[1]).is_some() {
                let all = vec![texts_made[1]];
                return Ok(Some(Answer { all, best: 0, counts: SearchCounts::default() }));
            }
            texts.extend_ahead(texts_made[0], Growth::to_the_end(0));
            texts_made[1] = texts.extend(texts_made[1], sampled(1));
            texts.score(texts_made[1]);
            texts.keep(&texts_made);
            Ok(None)
        }))
    };
    let (expected, _) = at_width(&model(), 1, 12, strategy());
    let backend = Scripted::new(&model(), 40);
    for finite in [true, false] {
        let request = searcher(&backend, &PROMPT, spec(12), strategy()).unwrap();
        let (got, failed) = with_failures_ahead(&model(), request, 3, finite).unwrap();
        assert_eq!((got.all, failed > 0), (expected.all.clone(), true));
    }
}

/// A method that makes texts ahead and asks for their rewards late or never: what it is told, and the work that counts,
/// are those of a method that makes nothing ahead.
#[test]
fn what_is_made_ahead_counts_as_far_as_it_is_asked_for() {
    const ROUNDS: u64 = 4;
    fn main(round: u64) -> Growth {
        Growth::Sampled { stream: round, tokens: 8, until: None }
    }
    fn side(round: u64) -> Growth {
        Growth::Sampled { stream: 100 + round, tokens: 2, until: None }
    }
    let strategy = |scores: bool| -> Box<dyn Strategy> {
        let (mut round, mut ends) = (0, None);
        Box::new(Told(move |texts: &mut Texts| {
            let [longer, shorter] = ends.unwrap_or([texts.prompt(); 2]);
            if round == ROUNDS && scores && texts.reward(shorter).is_err() {
                texts.score(shorter);
                round += 1;
                return Ok(None);
            }
            if round >= ROUNDS {
                assert_eq!(texts.reward(shorter).is_ok(), scores);
                let all = vec![longer, shorter];
                return Ok(Some(Answer { all, best: 0, counts: SearchCounts::default() }));
            }
            let next = [texts.extend(longer, main(round)), texts.extend(shorter, side(round))];
            texts.score(next[0]);
            texts.keep(&next);
            assert!(texts.reward(next[1]).is_err() && texts.top(next[1]).is_empty(), "nobody has asked");
            round += 1;
            if texts.width() > 1 && round < ROUNDS {
                texts.extend_ahead(next[1], side(round));
            }
            ends = Some(next);
            Ok(None)
        }))
    };
    for scores in [false, true] {
        let (expected, alone) = at_width(&model(), 1, 36, strategy(scores));
        assert_eq!((alone.ran, alone.necessary), (expected.work, expected.work));
        assert_eq!(expected.all.iter().map(|one| one.reward.is_some()).collect::<Vec<_>>(), [true, scores]);
        let tokens = 8 * ROUNDS + if scores { 2 * ROUNDS } else { 0 };
        assert_eq!(expected.work.reward_forward, PROMPT.len() as u64 + tokens);
        for width in [2, 4] {
            let (got, stats) = at_width(&model(), width, 36, strategy(scores));
            assert_eq!((&got, stats.necessary), (&expected, expected.work), "width {width}, scores: {scores}");
            assert_eq!(stats.recomputed, Work::default(), "width {width}, scores: {scores}");
            assert_eq!(stats.ran, stats.necessary + stats.speculative());
            assert_eq!(stats.speculative().reward_forward > 0, !scores, "rewards are run ahead: {stats:?}");
        }
    }
}
