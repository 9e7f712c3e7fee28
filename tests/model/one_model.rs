//! A pair with one model: it does what that model can do, to the bits of the full pair, and says what it lacks.

use ggro::answer::RewardReport;
use ggro::engine::{Engine, Settings, check_prompt, complete, intervention, sampler};
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::method::Options;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{GradientSpan, ModelPair, RewardSpan, Role, Span};
use ggro::rng::Uniforms;
use ggro::sampling::{CompletionSpec, Sampling};
use ggro::scoring::{RewardQuery, scorer};
use ggro::{Error, Result};

const NO_REWARD: &str = "this needs a reward model, and only a policy is loaded";
const NO_POLICY: &str = "this needs a policy, and only a reward model is loaded";

fn open(pair: &Pair) -> ModelPair {
    cpu::open(pair.parts(), &LoadOptions::default()).unwrap()
}

fn both() -> Pair {
    Pair::load(&demo::policy(), &demo::reward()).unwrap()
}

fn spec(pair: &Pair, temperature: f64, score: bool) -> CompletionSpec {
    CompletionSpec {
        sampling: Sampling { temperature, seed: 7, ..Sampling::default() },
        n: 2,
        score,
        max_new_tokens: 24,
        stop_ids: pair.policy().map_or(Vec::new(), |policy| policy.stop_ids.clone()),
        ..CompletionSpec::default()
    }
}

#[track_caller]
fn refused<T>(result: Result<T>, words: &str) {
    match result {
        Err(Error::Invalid(message) | Error::MissingModel { message, .. }) => assert_eq!(message, words),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("this was not refused"),
    }
}

/// An engine's report on a text.
fn score(pair: fn() -> Pair, query: RewardQuery) -> RewardReport {
    let engine = Engine::start(Settings::default(), move || Ok(open(&pair()))).unwrap();
    engine.score(query, None).unwrap().wait().unwrap().0
}

fn reward_only() -> Pair {
    Pair::reward_only(&demo::reward()).unwrap()
}

#[test]
fn a_policy_samples_and_refuses_rewards() {
    let (pair, policy) = (both(), Pair::policy_only(&demo::policy()).unwrap());
    let (mut models, mut policy_model) = (open(&pair), open(&policy));
    let prompt = policy.tokenizer.encode("Once upon a time").unwrap();
    for temperature in [0.0, 1.0] {
        let sample = |models: &mut ModelPair| {
            complete(models, &Settings::default(), &prompt, spec(&pair, temperature, false), &mut ()).unwrap().0
        };
        assert_eq!(sample(&mut policy_model), sample(&mut models));
    }
    assert_eq!(policy_model.policy_rows(&prompt).unwrap().logits, models.policy_rows(&prompt).unwrap().logits);
    assert_eq!(policy_model.work().reward_forward, 0);

    refused(policy.reward(), NO_REWARD);
    refused(policy_model.config(Role::Reward), NO_REWARD);
    refused(policy_model.create(Role::Reward), NO_REWARD);
    refused(policy_model.reward_score(&[]), NO_REWARD);
    refused(policy_model.reward_gradient(&[]), NO_REWARD);
    refused(sampler(&policy_model, &prompt, spec(&policy, 1.0, true)), NO_REWARD);
    let options = Options::new(2, vec![2]);
    refused(intervention(&policy_model, &prompt, &options, Uniforms::Seeded(0)), NO_REWARD);
    refused(scorer(&policy_model, RewardQuery { ids: prompt, ..RewardQuery::default() }, None), NO_REWARD);
    let vocab = policy_model.config(Role::Policy).unwrap().vocab_size;
    let error = check_prompt(&policy_model, &[vocab as u32], 1).unwrap_err().to_string();
    assert!(error.contains("beyond the policy model's vocabulary"), "{error}");
}

#[test]
fn a_reward_model_scores_and_refuses_tokens() {
    let (pair, reward) = (both(), reward_only());
    let mut reward_model = open(&reward);
    let ids = reward.tokenizer.encode("Once upon a time, there was a dog.").unwrap();
    assert_eq!(ids, pair.tokenizer.encode("Once upon a time, there was a dog.").unwrap());
    assert_eq!(reward.reward_pad_id(), pair.reward_pad_id());
    for query in [
        RewardQuery { ids: ids.clone(), every: true, ..RewardQuery::default() },
        RewardQuery {
            ids: ids.clone(),
            gradient_from: Some(3),
            scores: vec![(2, vec![5, 9])],
            ..RewardQuery::default()
        },
    ] {
        assert_eq!(score(reward_only, query.clone()), score(both, query));
    }

    refused(reward.policy(), NO_POLICY);
    refused(reward_model.create(Role::Policy), NO_POLICY);
    refused(reward_model.policy_step(&[]), NO_POLICY);
    refused(reward_model.policy_rows(&ids), NO_POLICY);
    refused(sampler(&reward_model, &ids, spec(&reward, 1.0, false)), NO_POLICY);
    let options = Options::new(2, vec![2]);
    refused(intervention(&reward_model, &ids, &options, Uniforms::Seeded(0)), NO_POLICY);
}

/// A model is asked for what it has no head for: by a pair with the two confused, or by whoever holds one.
#[test]
fn a_model_refuses_the_other_ones_calls() {
    let ModelPair { policy, reward, .. } = open(&both());
    let (mut policy, mut reward) = (policy.unwrap(), reward.unwrap());
    let no_score = "rewards were asked for of a language model, which has no score head";
    let no_logits = "logits were asked for of a reward model, which has no language-model head";
    let (of_policy, of_reward) = (policy.create().unwrap(), reward.create().unwrap());
    assert_eq!((of_policy.role, of_reward.role), (Role::Policy, Role::Reward));
    let span = |seq| RewardSpan { span: Span { seq, start: 0, ids: &[5, 6] }, also_at: &[] };
    refused(policy.score(&[span(of_policy)]), no_score);
    let gradient = GradientSpan { span: span(of_policy), slot: 1, candidates: &[3], rows: false };
    refused(policy.gradient(&[gradient]), no_score);
    refused(reward.step(&[], 10, &mut || ()), no_logits);
    refused(reward.logits(of_reward, ggro::model::Logits::All), no_logits);
    refused(reward.all_rows(&[5, 6]), no_logits);
    assert_eq!((policy.len(of_policy), reward.len(of_reward)), (0, 0));
    assert!(
        reward.score(&[span(of_policy)]).unwrap_err().to_string().contains("a policy sequence was given to the reward")
    );
}
