//! The demo pair: a 4-million-parameter story writer and its reward model, compiled into the binary.
//!
//! They let every command run without a download. Where they come from, what they can do and how they were trained is
//! in `assets/demo/README.md`; the training text and its licence lie beside it.

use crate::files::checkpoint::Files;

/// Threshold of the entropy signal (nats) that gives the demo policy segments of 13.5 tokens on average.
pub const ENTROPY_THRESHOLD: f64 = 3.25;

/// Budget under which 94 of 100 of its greedy stories come to their end.
pub const MAX_NEW_TOKENS: usize = 200;

/// Puts a byte array at a cache line, so that the tensors inside can be read in place.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static POLICY_WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../../assets/demo/policy/model.safetensors"));
static REWARD_WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../../assets/demo/reward/model.safetensors"));

// The two models have one tokenizer: the reward model's copies are the same bytes (tested below).
static TOKENIZER: &[u8] = include_bytes!("../../assets/demo/policy/tokenizer.json");
static TOKENIZER_CONFIG: &[u8] = include_bytes!("../../assets/demo/policy/tokenizer_config.json");
static PROMPTS: &str = include_str!("../../assets/demo/prompts.jsonl");

/// The words of the gold rule, as a JSON object with the lists `kind` and `harsh`.
pub static GOLD_WORDS: &str = include_str!("../../assets/demo/gold_words.json");

static POLICY: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../../assets/demo/policy/config.json")),
    ("generation_config.json", include_bytes!("../../assets/demo/policy/generation_config.json")),
    ("model.safetensors", &POLICY_WEIGHTS.0),
    ("tokenizer.json", TOKENIZER),
    ("tokenizer_config.json", TOKENIZER_CONFIG),
];
static REWARD: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../../assets/demo/reward/config.json")),
    ("model.safetensors", &REWARD_WEIGHTS.0),
    ("tokenizer.json", TOKENIZER),
    ("tokenizer_config.json", TOKENIZER_CONFIG),
];

/// The demo policy.
pub fn policy() -> Files {
    Files::Embedded("demo/policy", POLICY)
}

/// The demo reward model.
pub fn reward() -> Files {
    Files::Embedded("demo/reward", REWARD)
}

/// 100 requests made from stories that neither model has seen.
pub fn prompts() -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct DemoLine {
        prompt: String,
    }
    // The file is part of the binary and read by a test; a line that is none cannot occur.
    PROMPTS.lines().filter_map(|line| serde_json::from_str::<DemoLine>(line).ok()).map(|line| line.prompt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hundred_prompts() {
        let prompts = prompts();
        assert_eq!(prompts.len(), 100);
        assert_eq!(prompts.len(), PROMPTS.lines().count());
        assert_eq!(prompts[0], "Tell me a story about a box.");
    }

    #[test]
    fn weights_are_aligned() {
        for weights in [&POLICY_WEIGHTS.0, &REWARD_WEIGHTS.0] {
            assert_eq!(weights.as_ptr() as usize % 64, 0);
        }
    }

    #[test]
    fn one_tokenizer() {
        let theirs: &[u8] = include_bytes!("../../assets/demo/reward/tokenizer.json");
        assert!(theirs == TOKENIZER);
        let theirs: &[u8] = include_bytes!("../../assets/demo/reward/tokenizer_config.json");
        assert!(theirs == TOKENIZER_CONFIG);
    }
}
