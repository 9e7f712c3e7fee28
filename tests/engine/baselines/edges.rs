//! Ends in odd places, and what cannot be answered.

use super::twins;
use ggro::answer::{Completions, StopReason};
use ggro::baselines::{
    Acceptance, Answer, Args, Baseline, Beam, BestOfPoisson, Blockwise, Cards, Growth, RejectionSampling, SoftBestOfN,
    SpeculativeRejection, Strategy, Texts,
};
use ggro::engine::{Observer, Settings, SpeculationWidth, baseline, complete, search, searcher};
use ggro::model::{ModelPair, Role, RowStats};
use ggro::sampling::{CompletionSpec, Sampling, StopCheck};
use ggro::{Error, Result};
use ggro_testkit::scripted::{FINISH, Model, PROMPT, Scripted, VOCAB, script, sure, torn};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of each method, small.
pub fn all() -> Vec<Baseline> {
    vec![
        Baseline::RejectionSampling(RejectionSampling { max_tries: 3, ..RejectionSampling::new(5.0) }),
        Baseline::Cards(Cards { max_rejections: 2, max_segment: 5, entropy_threshold: 0.5, ..Cards::new(5.0) }),
        Baseline::SpeculativeRejection(SpeculativeRejection { n: 4, ..SpeculativeRejection::default() }),
        Baseline::Args(Args { k: 3, weight: 1.5 }),
        Baseline::Blockwise(Blockwise { k: 3, block: 4 }),
        Baseline::Beam(Beam { width: 2, successors: 2, chunk: 4 }),
        Baseline::SoftBestOfN(SoftBestOfN { n: 3, lambda: 1.0 }),
        Baseline::BestOfPoisson(BestOfPoisson { mu: 2.0 }),
    ]
}

pub fn spec(max_new_tokens: usize) -> CompletionSpec {
    CompletionSpec {
        sampling: Sampling { temperature: 1.0, seed: 5, ..Sampling::default() },
        max_new_tokens,
        stop_ids: vec![FINISH],
        ..CompletionSpec::default()
    }
}

fn run(model: &Model, spec: CompletionSpec, method: &Baseline) -> Result<Completions> {
    let mut backend = Scripted::new(model, 40);
    let settings = Settings::single(SpeculationWidth::Fixed(3));
    let got = search(&mut backend, &settings, &PROMPT, spec, method, &mut ());
    assert_eq!(backend.held(), 0, "sequences left behind by {}", method.name());
    got.map(|(completions, _)| completions)
}

/// Hesitates between three tokens everywhere.
pub fn model() -> Model {
    script(|_| torn(&[5, 6, 7]), |g| g.iter().filter(|&&id| id == 6).count() as f32, |_, _| 0.0)
}

#[test]
fn an_answer_may_end_with_its_first_token() {
    let model = script(|_| sure(FINISH), |g| g.len() as f32, |_, _| 0.0);
    for method in all() {
        let got = run(&model, spec(9), &method).unwrap();
        let answer = &got.all[got.best];
        assert_eq!((&answer.ids[..1], answer.reason), (&[FINISH][..], StopReason::Stop), "{}", method.name());
    }
}

#[test]
fn a_stop_in_the_middle_of_a_block_ends_it() {
    // The end of turn is certain as the third token, the third is in the middle of every block.
    let model = script(
        |g| if g.len() == 2 { sure(FINISH) } else { torn(&[5, 6, 7]) },
        |g| g.iter().filter(|&&id| id == 6).count() as f32,
        |_, _| 0.0,
    );
    for method in all() {
        let got = run(&model, spec(9), &method).unwrap();
        let answer = &got.all[got.best];
        assert_eq!(
            (answer.ids.len(), answer.ids[2], answer.reason),
            (3, FINISH, StopReason::Stop),
            "{}",
            method.name()
        );
    }
    // A stop of the caller's that has to see the committed text and the block behind it.
    let model = script(|g| if g.len() % 4 == 0 { sure(8) } else { torn(&[5, 6, 7]) }, |g| g.len() as f32, |_, _| 0.0);
    let model =
        Model { logits: Rc::new(move |ids| if ids.len() == 7 { sure(ids[6]) } else { (model.logits)(ids) }), ..model };
    for method in all() {
        let spec = CompletionSpec { stop_check: Some(Arc::new(twins)), ..spec(9) };
        let got = run(&model, spec, &method).unwrap();
        for answer in &got.all {
            let first = answer.ids.windows(2).position(|pair| pair[0] == pair[1]);
            match answer.reason {
                StopReason::Stop => assert_eq!(first, Some(answer.ids.len() - 2), "{}", method.name()),
                StopReason::Length => assert_eq!((first, answer.ids.len()), (None, 9), "{}", method.name()),
            }
        }
        assert!(got.all[got.best].ids.len() <= 6, "the sixth token repeats the fifth: {}", method.name());
    }
}

/// Counts the tokens that were decoded, of any text.
#[derive(Default)]
struct Decoded(usize);

impl Observer for Decoded {
    fn token(&mut self) {
        self.0 += 1;
    }
}

/// A check sees every token once, however many texts go on from it.
#[test]
fn a_check_is_shown_every_token_once() {
    for method in all() {
        for width in [1, 3] {
            let shown = Arc::new(AtomicUsize::new(0));
            let counted = shown.clone();
            let new = move || -> StopCheck {
                let shown = counted.clone();
                Box::new(move |_: u32| {
                    shown.fetch_add(1, Ordering::Relaxed);
                    false
                })
            };
            let spec = CompletionSpec { stop_check: Some(Arc::new(new)), stop_ids: Vec::new(), ..spec(30) };
            let (mut backend, mut decoded) = (Scripted::new(&model(), 40), Decoded::default());
            let settings = Settings::single(SpeculationWidth::Fixed(width));
            search(&mut backend, &settings, &PROMPT, spec, &method, &mut decoded).unwrap();
            assert!(decoded.0 >= 30, "{}", method.name());
            assert_eq!(shown.load(Ordering::Relaxed), decoded.0, "{} at {width}", method.name());
        }
    }
}

#[test]
fn the_budget_ends_in_the_middle_of_a_block() {
    for budget in [1, 2, 3, 5, 6, 7, 9] {
        for method in all() {
            let got = run(&model(), spec(budget), &method).unwrap();
            let answer = &got.all[got.best];
            assert_eq!((answer.ids.len(), answer.reason), (budget, StopReason::Length), "{}", method.name());
        }
    }
}

/// At the same seed, the i-th sample of these methods is the i-th completion of best-of-N.
#[test]
fn samples_are_those_of_best_of_n() {
    let mut backend = Scripted::new(&model(), 40);
    let settings = Settings::single(SpeculationWidth::Off);
    let of_n = CompletionSpec { n: 8, score: true, ..spec(7) };
    let (expected, _) = complete(&mut backend, &settings, &PROMPT, of_n, &mut ()).unwrap();
    let never = RejectionSampling { max_tries: 8, target_reward: 1e9, beta: 0.7 };
    let soft = SoftBestOfN { n: 8, lambda: 1e-9 };
    let all = SpeculativeRejection { n: 8, alpha: 0.5, kv_budget: Some(1000) };
    for method in [
        Baseline::RejectionSampling(never),
        Baseline::SoftBestOfN(soft),
        Baseline::SpeculativeRejection(all),
        Baseline::BestOfPoisson(BestOfPoisson { mu: 20.0 }),
    ] {
        let got = run(&model(), spec(7), &method).unwrap();
        let common = got.all.len().min(8);
        assert!(common >= 4, "{}", method.name());
        assert_eq!(got.all[..common], expected.all[..common], "{}", method.name());
        if got.all.len() == 8 {
            // A draw with a tiny lambda takes any of those that tie.
            let reward = |found: &Completions| found.all[found.best].reward;
            assert_eq!((reward(&got), got.work), (reward(&expected), expected.work), "{}", method.name());
            let draws = matches!(method, Baseline::SoftBestOfN(_));
            assert!(draws || got.best == expected.best, "{}", method.name());
        }
        assert!(expected.search.is_none() && got.search.is_some());
    }
    // The first block and the first chunk begin like the samples, too.
    let blocks = Baseline::Blockwise(Blockwise { k: 8, block: 7 });
    let got = run(&model(), spec(7), &blocks).unwrap();
    assert_eq!(got.all[0], expected.all[expected.best]);
}

/// Log-probabilities come with an answer if they are asked for, those of forced tokens too, and change nothing.
#[test]
fn log_probabilities_are_those_of_the_untouched_rows() {
    for method in all() {
        let plain = run(&model(), spec(6), &method).unwrap();
        let asked = Sampling { logprobs: Some(2), ..spec(6).sampling };
        let told = run(&model(), CompletionSpec { sampling: asked, ..spec(6) }, &method).unwrap();
        assert_eq!((plain.best, plain.work, plain.search), (told.best, told.work, told.search), "{}", method.name());
        let stats = RowStats::of(&torn(&[5, 6, 7]), 0.0);
        for (plain, told) in plain.all.iter().zip(&told.all) {
            assert!(plain.ids == told.ids && plain.logprobs.is_empty() && told.logprobs.len() == told.ids.len());
            for (&id, token) in told.ids.iter().zip(&told.logprobs) {
                let logprob = f64::from(torn(&[5, 6, 7])[id as usize]) - stats.log_sum_exp;
                assert!((token.id, token.logprob, token.entropy) == (id, logprob, stats.entropy), "{token:?}");
                assert_eq!(token.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [5, 6], "{}", method.name());
            }
        }
    }
}

/// Extremes of the parameters that make a method another one.
#[test]
fn extremes_are_what_they_should_be() {
    let sampled = {
        let mut backend = Scripted::new(&model(), 40);
        let settings = Settings::single(SpeculationWidth::Off);
        complete(&mut backend, &settings, &PROMPT, CompletionSpec { score: true, ..spec(9) }, &mut ()).unwrap().0
    };
    let ids = |method: Baseline| run(&model(), spec(9), &method).unwrap().all.remove(0).ids;
    let first = &sampled.all[0].ids;
    // A target below every reward accepts everything.
    assert_eq!(&ids(Baseline::RejectionSampling(RejectionSampling::new(-10.0))), first);
    let easy = Cards { max_segment: 64, entropy_threshold: 100.0, ..Cards::new(-10.0) };
    assert_eq!(&ids(Baseline::Cards(easy.clone())), first);
    assert_eq!(&ids(Baseline::Cards(Cards { acceptance: Acceptance::Hard, ..easy })), first);
    assert_eq!(&ids(Baseline::Blockwise(Blockwise { k: 1, block: 100 })), first);
    assert_eq!(&ids(Baseline::Beam(Beam { width: 1, successors: 1, chunk: 100 })), first);
    assert_eq!(&ids(Baseline::BestOfPoisson(BestOfPoisson { mu: 0.0 })), first);
    // Without a weight ARGS is greedy decoding; with a large one it takes what the reward likes.
    assert_eq!(ids(Baseline::Args(Args { k: 3, weight: 0.0 })), [5; 9]);
    assert_eq!(ids(Baseline::Args(Args { k: 3, weight: 9.0 })), [6; 9]);
}

fn error(model: &Model, spec: CompletionSpec, method: &Baseline) -> String {
    run(model, spec, method).unwrap_err().to_string()
}

#[test]
fn numbers_that_are_not_finite() {
    for method in all() {
        let mut broken = model();
        broken.logits = Rc::new(|ids| if ids.len() == 4 { vec![f32::NAN; VOCAB] } else { torn(&[5, 6, 7]) });
        let text = error(&broken, spec(9), &method);
        assert!(text.contains("logit of the policy model is not finite at position 3"), "{}: {text}", method.name());
        let mut broken = model();
        broken.reward = Rc::new(|ids| if ids.len() > 2 { f32::INFINITY } else { 0.0 });
        let text = error(&broken, spec(9), &method);
        assert!(text.contains("reward of the reward model is not finite at position"), "{}: {text}", method.name());
    }
    // The prompt's own reward counts where it is used.
    let mut broken = model();
    broken.reward = Rc::new(|ids| if ids.len() == 2 { f32::NAN } else { 1.0 });
    for method in all() {
        match &method {
            Baseline::Cards(_) => assert!(error(&broken, spec(9), &method).contains("at position 1")),
            _ => drop(run(&broken, spec(9), &method).unwrap()),
        }
    }
}

#[test]
fn an_id_that_the_reward_model_cannot_read() {
    let mut narrow = script(|_| sure(11), |_| 0.0, |_, _| 0.0);
    narrow.reward_vocab = 11;
    let settings = Settings::single(SpeculationWidth::Off);
    for method in all() {
        let mut backend = Scripted::new(&narrow, 40);
        let got = search(&mut backend, &settings, &[2, 3], spec(5), &method, &mut ());
        match method {
            // Ids that cannot be read are no candidates.
            Baseline::Args(_) => assert!(got.unwrap().0.all[0].ids.iter().all(|&id| id < 11)),
            _ => {
                let text = got.unwrap_err().to_string();
                assert!(text.contains("id 11") && text.contains("has 11 ids"), "{}: {text}", method.name());
            }
        }
    }
    let mut none = script(
        |_| {
            let mut row = vec![f32::NEG_INFINITY; VOCAB];
            row[11] = 1.0;
            row
        },
        |_| 0.0,
        |_, _| 0.0,
    );
    none.reward_vocab = 11;
    let mut backend = Scripted::new(&none, 40);
    let text = search(&mut backend, &settings, &[2, 3], spec(5), &Baseline::Args(Args::default()), &mut ());
    assert!(text.unwrap_err().to_string().contains("no token that the reward model can read"));
}

#[test]
fn unusable_requests_say_why() {
    let backend = Scripted::new(&model(), 12);
    let refused = |prompt: &[u32], spec: CompletionSpec, method: &Baseline| {
        let error = baseline(&backend, prompt, spec, method).err().unwrap();
        assert!(error.is_invalid_input(), "{error}");
        error.to_string()
    };
    for method in all() {
        assert!(refused(&[], spec(3), &method).contains("prompt is empty"));
        assert!(refused(&[3, 12], spec(3), &method).contains("id 12"));
        assert!(refused(&PROMPT, spec(0), &method).starts_with("max_new_tokens must be at least 1"));
        assert!(refused(&PROMPT, spec(11), &method).contains("lower max_new_tokens to 10"));
        let hot = CompletionSpec { sampling: Sampling { temperature: -1.0, ..Sampling::default() }, ..spec(3) };
        assert!(refused(&PROMPT, hot, &method).starts_with("temperature"));
    }
    let nowhere = Baseline::Cards(Cards::new(f64::NAN));
    assert!(refused(&PROMPT, spec(3), &nowhere).starts_with("cards: target_reward must be a finite number"));
    let tight = SpeculativeRejection { n: 4, alpha: 0.5, kv_budget: Some(5) };
    let text = refused(&PROMPT, spec(3), &Baseline::SpeculativeRejection(tight));
    assert!(text.contains("kv_budget must be at least 6"), "{text}");
    // Without one of the models.
    let without = |role: Role| {
        let mut backend = Scripted::new(&model(), 12);
        let halves = [backend.policy.take(), backend.reward.take()];
        let [policy, reward] = halves;
        match role {
            Role::Policy => ModelPair { policy: None, reward, draft: None },
            Role::Reward => ModelPair { policy, reward: None, draft: None },
        }
    };
    for role in [Role::Policy, Role::Reward] {
        for method in all() {
            let error = baseline(&without(role), &PROMPT, spec(3), &method).err().unwrap();
            assert!(matches!(error, Error::MissingModel { model, .. } if model == role.name()), "{error}");
        }
    }
}

#[test]
fn sequences_are_released_whenever_the_backend_fails() {
    for method in all() {
        let settings = Settings::single(SpeculationWidth::Off);
        let mut backend = Scripted::new(&model(), 40);
        search(&mut backend, &settings, &PROMPT, spec(6), &method, &mut ()).unwrap();
        let calls = backend.calls();
        for fail_at in 0..calls {
            let mut backend = Scripted::new(&model(), 40);
            backend.fail_at(Some(fail_at));
            // A batch of several spans is tried again one by one.
            let got = search(&mut backend, &settings, &PROMPT, spec(6), &method, &mut ());
            assert!(got.is_ok() || matches!(got, Err(Error::Backend(_))), "{} at call {fail_at}", method.name());
            assert_eq!(backend.held(), 0, "{} at call {fail_at}", method.name());
        }
    }
}

/// A method that does as it is told.
pub struct Told<F>(pub F);

impl<F: FnMut(&mut Texts) -> Result<Option<Answer>> + Send> Strategy for Told<F> {
    fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
        (self.0)(texts)
    }
}

#[test]
fn a_method_at_fault_ends_with_an_error() {
    let told = |step: fn(&mut Texts) -> Result<Option<Answer>>| -> String {
        let mut backend = Scripted::new(&model(), 40);
        let error = match searcher(&backend, &PROMPT, spec(6), Box::new(Told(step))) {
            Err(error) => error,
            Ok(request) => {
                let settings = Settings::single(SpeculationWidth::Off);
                let requests: Vec<Box<dyn ggro::engine::Request<Output = Completions>>> = vec![Box::new(request)];
                ggro::engine::run_all(&mut backend, &settings, requests, &mut ()).err().unwrap()
            }
        };
        assert_eq!(backend.held(), 0);
        error.to_string()
    };
    assert!(told(|_| Ok(None)).contains("neither asks for anything"));
    assert!(told(|_| Err(Error::invalid("not today"))).contains("not today"));
    assert!(told(|texts| texts.reward(texts.prompt()).map(|_| None)).contains("reward of text"));
    let lost = |texts: &mut Texts| {
        let text = texts.extend(texts.prompt(), Growth::to_the_end(0));
        texts.keep(&[]);
        texts.extend(text, Growth::to_the_end(0));
        texts.extend(text, Growth::Token(5));
        Ok(None)
    };
    // It goes on from a text that it has let go of: as long as that is being made, it is there.
    let _ = told(lost);
    let gone = |texts: &mut Texts| {
        let prompt = texts.prompt();
        let answer = Answer { all: vec![prompt], best: 1, counts: Default::default() };
        Ok(Some(answer))
    };
    assert!(told(gone).contains("answers with a text"));
}

/// Texts that go on in more than one way: what they share is run once, whatever was scored before.
#[test]
fn what_texts_share_is_run_once() {
    struct Tree(usize, Vec<ggro::baselines::TextId>);
    impl Strategy for Tree {
        fn next(&mut self, texts: &mut Texts) -> Result<Option<Answer>> {
            self.0 += 1;
            let chunk = |stream, tokens| Growth::Sampled { stream, tokens, until: None };
            if self.0 == 1 {
                // Two texts on one that is never scored by itself, on one that is not kept.
                let stem = texts.extend(texts.prompt(), chunk(0, 3));
                let trunk = texts.extend(stem, chunk(0, 2));
                self.1 = vec![texts.extend(trunk, chunk(1, 2)), texts.extend(trunk, Growth::Token(7))];
                self.1.iter().for_each(|&leaf| texts.score(leaf));
                texts.keep(&self.1);
                return Ok(None);
            }
            assert_eq!(self.1.iter().map(|&leaf| texts.ids(leaf).len()).collect::<Vec<_>>(), [7, 6]);
            let best = texts.best(&self.1)?;
            Ok(Some(Answer { all: self.1.clone(), best, counts: Default::default() }))
        }
    }
    let mut backend = Scripted::new(&model(), 40);
    let request = searcher(&backend, &PROMPT, spec(9), Box::new(Tree(0, Vec::new()))).unwrap();
    let settings = Settings::single(SpeculationWidth::Off);
    let requests: Vec<Box<dyn ggro::engine::Request<Output = Completions>>> = vec![Box::new(request)];
    let got = ggro::engine::run_all(&mut backend, &settings, requests, &mut ()).unwrap().results.remove(0).0;
    // Behind the prompt: stem and trunk with the row behind it, and one row of the leaf with two tokens.
    assert_eq!(got.work.policy_forward, 2 + 5 + 1);
    assert_eq!(got.work.reward_forward, 2 + 5 + 2 + 1);
    assert_eq!(backend.work(), got.work);
}
