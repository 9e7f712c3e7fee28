//! Header files as the families that are used in practice have them, written after their documented shape: each is read, with what it
//! says, or refused by name.

use crate::refused;
use ggro::files::chat::{ChatTemplate, Message};
use ggro::files::checkpoint::Files;
use ggro::files::config::{Family, ModelConfig, ModelKind};
use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn files(model: &str) -> Files {
    Files::Dir(corpus().join(model))
}

/// Name, family, whether it is a reward model, layers, heads, their size, vocabulary, whether the head is tied.
type Expected = (&'static str, Family, ModelKind, usize, (usize, usize, usize), usize, bool);

const MODELS: [Expected; 14] = [
    ("Llama-3.1-8B-Instruct", Family::Llama, ModelKind::CausalLm, 32, (32, 8, 128), 128_256, false),
    ("Llama-3.2-3B-Instruct", Family::Llama, ModelKind::CausalLm, 28, (24, 8, 128), 128_256, true),
    ("Llama-3.2-1B-Instruct", Family::Llama, ModelKind::CausalLm, 16, (32, 8, 64), 128_256, true),
    ("Llama-3.2-1B-rope-parameters", Family::Llama, ModelKind::CausalLm, 16, (32, 8, 64), 128_256, true),
    ("Mistral-7B-Instruct-v0.3", Family::Mistral, ModelKind::CausalLm, 32, (32, 8, 128), 32_768, false),
    ("Mistral-7B-v0.1", Family::Mistral, ModelKind::CausalLm, 32, (32, 8, 128), 32_000, false),
    ("Qwen2.5-7B-Instruct", Family::Qwen2, ModelKind::CausalLm, 28, (28, 4, 128), 152_064, false),
    ("Qwen2.5-0.5B-Instruct", Family::Qwen2, ModelKind::CausalLm, 24, (14, 2, 64), 151_936, true),
    ("Qwen3-8B", Family::Qwen3, ModelKind::CausalLm, 36, (32, 8, 128), 151_936, false),
    ("Qwen3-0.6B", Family::Qwen3, ModelKind::CausalLm, 28, (16, 8, 128), 151_936, true),
    ("Skywork-Reward-V2-Llama-3.1-8B", Family::Llama, ModelKind::Reward, 32, (32, 8, 128), 128_256, false),
    ("Skywork-Reward-V2-Llama-3.2-1B", Family::Llama, ModelKind::Reward, 16, (32, 8, 64), 128_256, true),
    ("Skywork-Reward-V2-Qwen3-8B", Family::Qwen3, ModelKind::Reward, 36, (32, 8, 128), 151_936, false),
    ("GRM-Llama3.2-3B-rewardmodel-ft", Family::Llama, ModelKind::Reward, 28, (24, 8, 128), 128_256, true),
];

#[test]
fn configs_say_what_they_say() {
    for (model, family, task, layers, (heads, kv_heads, head), vocabulary, tied) in MODELS {
        let config = ModelConfig::load(&files(model)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((config.family, config.kind, config.num_layers), (family, task, layers), "{model}");
        assert_eq!((config.num_heads, config.num_kv_heads, config.head_dim), (heads, kv_heads, head), "{model}");
        assert_eq!((config.vocab_size, config.tie_word_embeddings), (vocabulary, tied), "{model}");
        assert_eq!(config.qkv_bias, family == Family::Qwen2, "{model}");
        assert_eq!(config.qk_norm, family == Family::Qwen3, "{model}");
        assert_eq!(config.rope.llama3.is_some(), family == Family::Llama, "{model}");
        let window = (model == "Mistral-7B-v0.1").then_some(4096);
        assert!(config.windows.iter().all(|found| *found == window), "{model}: {:?}", config.windows[0]);
    }
    let all: Vec<_> = std::fs::read_dir(corpus()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(all.len(), MODELS.len() + 1, "a model is not listed: {all:?}");
    // Both ways of writing the rotation say the same.
    let [old, new] =
        ["Llama-3.2-1B-Instruct", "Llama-3.2-1B-rope-parameters"].map(|m| ModelConfig::load(&files(m)).unwrap());
    assert_eq!(old.rope, new.rope);
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    for (model, parts) in [
        ("Qwen2.5-7B-1M-yarn", &["yarn"][..]),
        ("Phi-3-mini-longrope", &["Phi3ForCausalLM"]),
        ("Mixtral-8x7B", &["MixtralForCausalLM"]),
        ("Qwen3-30B-A3B", &["Qwen3MoeForCausalLM"]),
        ("ArmoRM-19-labels", &["19"]),
        ("Qwen2.5-Math-RM", &["Qwen2ForRewardModel"]),
        ("Llama-3.1-8B-GPTQ", &["gptq"]),
        ("Llama-3.1-8B-FP8", &["compressed-tensors"]),
        ("gemma-2-9b", &["Gemma2ForCausalLM"]),
    ] {
        let message = refused(ModelConfig::load(&files(&format!("refused/{model}"))), parts);
        assert!(message.contains("config.json"), "{message}");
    }
}

fn said(role: &str, content: &str) -> Message {
    Message { role: role.to_string(), content: content.to_string() }
}

#[test]
fn templates_lay_prompts_out() {
    let render = |model: &str, messages: &[Message]| {
        let mut template = ChatTemplate::load(&files(model)).unwrap().expect("a template");
        template.pin_time(1_721_952_000);
        template.render(messages, true)
    };
    let user = [said("user", " Why? ")];
    let llama = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
                 Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\n";
    for model in ["Llama-3.1-8B-Instruct", "Llama-3.2-1B-Instruct", "Skywork-Reward-V2-Llama-3.1-8B"] {
        assert_eq!(render(model, &user).unwrap(), llama, "{model}");
    }
    assert_eq!(render("Mistral-7B-Instruct-v0.3", &user).unwrap(), "<s>[INST]  Why? [/INST]");
    let talk = [said("system", "Be brief."), said("user", "A"), said("assistant", "B"), said("user", "C")];
    assert_eq!(
        render("Mistral-7B-Instruct-v0.3", &talk).unwrap(),
        "<s>[INST] A[/INST] B</s>[INST] Be brief.\n\nC[/INST]"
    );
    refused(render("Mistral-7B-Instruct-v0.3", &[said("user", "A"), said("user", "B")]), &["must alternate"]);
    assert_eq!(
        render("Qwen2.5-7B-Instruct", &talk[..2]).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n"
    );
    let thought = [said("user", "A"), said("assistant", "<think>\nhm\n</think>\n\nB"), said("user", "C")];
    assert_eq!(
        render("Qwen3-8B", &thought).unwrap(),
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    assert!(ChatTemplate::load(&files("Mistral-7B-v0.1")).unwrap().is_none());
}
