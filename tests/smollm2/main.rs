//! A real language model: SmolLM2-135M-Instruct beside a random score head, held to what transformers says in float64.
//!
//! `scripts/smollm2.py` makes the pair, and `.ci/run` calls it. Without `target/smollm2` these tests say that they checked
//! nothing. `scripts/smollm2_reference.py` wrote the expected numbers; every decision in them has a margin that arithmetic in
//! f32 cannot cross.

use ggro::engine::decode;
use ggro::files::chat::Message;
use ggro::files::checkpoint::Files;
use ggro::files::pair::Pair;
use ggro::method::Options;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{GradientSpan, ModelPair, PolicySpan, RewardSpan, Role, Span, TopK};
use ggro::rng::Uniforms;
use serde_json::Value;
use std::path::Path;

fn expected() -> Value {
    serde_json::from_str(include_str!("expected.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The pair, if it was made.
fn pair() -> Option<Pair> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/smollm2");
    if !folder.join("policy/config.json").exists() {
        println!("nothing was checked: there is no {}; scripts/smollm2.py makes it", folder.display());
        return None;
    }
    Some(Pair::load(&Files::Dir(folder.join("policy")), &Files::Dir(folder.join("reward"))).unwrap())
}

fn open(pair: &Pair) -> ModelPair {
    cpu::open(pair.parts(), &LoadOptions::default()).unwrap()
}

/// FNV-1a over the ids as little-endian bytes.
fn digest(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let value =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{value:016x}")
}

#[test]
fn tokens_and_template() {
    let Some(pair) = pair() else { return };
    let expected = expected();
    for case in expected["tokenized"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let found = pair.tokenizer.encode(text).unwrap();
        let beginning = ids(&case["ids"]);
        assert_eq!(found[..beginning.len()], beginning, "{text}");
        assert_eq!(
            (found.len() as u64, digest(&found)),
            (case["tokens"].as_u64().unwrap(), case["digest"].as_str().unwrap().to_string())
        );
        assert_eq!(pair.tokenizer.decode(&found).unwrap(), text);
    }
    for case in expected["answers"].as_array().unwrap() {
        let message = Message { role: "user".into(), content: case["request"].as_str().unwrap().into() };
        let prompt = pair.chat().unwrap().render(&[message], true).unwrap();
        assert_eq!(prompt, case["prompt"].as_str().unwrap());
        assert_eq!(pair.tokenizer.encode(&prompt).unwrap(), ids(&case["prompt_ids"]));
    }
}

#[test]
fn logits_entropies_rewards_and_gradients_at_every_depth() {
    let Some(pair) = pair() else { return };
    let expected = expected();
    let text = expected["tokenized"].as_array().unwrap().last().unwrap()["text"].as_str().unwrap().to_string();
    let all = pair.tokenizer.encode(&text).unwrap();
    let mut models = open(&pair);
    let seq = models.create(Role::Policy).unwrap();
    let mut start = 0;
    for case in expected["depths"].as_array().unwrap() {
        let end = case["tokens"].as_u64().unwrap() as usize;
        let span = Span { seq, start, ids: &all[start..end] };
        let asked = PolicySpan { span, floor: 1e-9, top_k: TopK::Take(8), before: &[] };
        let row = models.policy_step(&[asked]).unwrap().remove(0);
        start = end;
        let (ids, logits): (Vec<u32>, Vec<f32>) = row.top.into_iter().unzip();
        assert_eq!(ids, self::ids(&case["top_ids"]), "at {end}");
        for (found, expected) in logits.iter().zip(numbers(&case["top_logits"])) {
            assert!((f64::from(*found) - expected).abs() < 2e-3, "logit {found} for {expected} at {end}");
        }
        let entropy = case["entropy"].as_f64().unwrap();
        assert!(
            (row.stats.entropy_floored - entropy).abs() < 1e-3,
            "entropy {} for {entropy} at {end}",
            row.stats.entropy_floored
        );
    }
    let seq = models.create(Role::Reward).unwrap();
    for case in expected["depths"].as_array().unwrap() {
        let (end, slot) = (case["tokens"].as_u64().unwrap() as usize, case["slot"].as_u64().unwrap() as usize);
        let start = models.len(seq);
        models.reward_score(&[RewardSpan { span: Span { seq, start, ids: &all[start..slot] }, also_at: &[] }]).unwrap();
        let span = RewardSpan { span: Span { seq, start: slot, ids: &all[slot..end] }, also_at: &[] };
        let found =
            models.reward_gradient(&[GradientSpan { span, slot, candidates: &[], rows: true }]).unwrap().remove(0);
        models.truncate(seq, slot).unwrap();
        let close = |name: &str, found: f32, expected: &Value, bound: f64| {
            let expected = expected.as_f64().unwrap();
            assert!((f64::from(found) - expected).abs() < bound, "{name} {found} for {expected} at {end}");
        };
        close("reward", found.score.reward, &case["reward"], 1e-3);
        let norm = case["gradient_norm"].as_f64().unwrap();
        close("gradient norm", found.norm, &case["gradient_norm"], 1e-3 * norm);
        for (at, expected) in case["gradient_head"].as_array().unwrap().iter().enumerate() {
            close("gradient", found.rows[at], expected, 1e-3 * norm);
        }
    }
}

#[test]
fn answers_token_by_token() {
    let Some(pair) = pair() else { return };
    let expected = expected();
    let mut models = open(&pair);
    for case in expected["answers"].as_array().unwrap() {
        let (prompt, greedy, guided) = (ids(&case["prompt_ids"]), ids(&case["greedy"]), ids(&case["ids"]));
        let options = Options {
            max_new_tokens: greedy.len(),
            entropy_threshold: expected["threshold"].as_f64().unwrap(),
            max_candidates: 8,
            ..Options::for_pair(&pair).unwrap()
        };
        let answer = decode(&mut models, &prompt, &options, Uniforms::Seeded(0), &mut ()).unwrap();
        assert_eq!(answer.new_ids(), guided, "{}", case["request"]);
        let visited: usize = answer.segments.iter().map(|segment| segment.candidates.len()).sum();
        let counts = [answer.segments.len(), answer.num_nudges, visited].map(|count| count as u64);
        assert_eq!(counts.map(Some), ["segments", "nudges", "visited"].map(|name| case[name].as_u64()));
        let reward = case["reward"].as_f64().unwrap();
        assert!(
            (f64::from(answer.last_segment_reward) - reward).abs() < 1e-3,
            "{} for {reward}",
            answer.last_segment_reward
        );

        let alone = Options { max_candidates: 1, entropy_threshold: f64::MAX, ..options };
        let plain = decode(&mut models, &prompt, &alone, Uniforms::Seeded(0), &mut ()).unwrap();
        let until_end = greedy.iter().position(|&id| id == alone.finish_id).map_or(greedy.len(), |at| at + 1);
        assert_eq!(plain.new_ids(), &greedy[..until_end], "{}", case["request"]);
    }
}
