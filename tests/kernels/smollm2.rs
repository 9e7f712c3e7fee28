//! A real language model of 135 million parameters on the emulated Hopper, by both families of kernels.

use crate::emulated;
use crate::self_check::{Machine, Run};
use serde_json::Value;
use std::path::Path;

/// Ids of an answer and the number of its segments; nothing if the model was not made.
fn answer(device: &[&str], more: &[&str]) -> Option<(Vec<Value>, u64)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/smollm2");
    if !folder.join("policy/config.json").exists() {
        println!("nothing was checked: there is no {}; scripts/smollm2.py makes it", folder.display());
        return None;
    }
    let [policy, reward] = ["policy", "reward"].map(|role| folder.join(role).display().to_string());
    let pair = ["--policy", &policy, "--reward", &reward, "--max-model-len", "512"];
    let args = [&["generate", "--json", "--no-baseline"], &pair[..], device, more, &["Tell me a story."]].concat();
    let machine = Machine { ptx: emulated::folder().to_path_buf(), cache: tempfile::tempdir().unwrap() };
    let run = Run::of(machine.command(machine.cache.path(), &args).env("GGRO_EMU_ARCH", "90"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    let object: Value = serde_json::from_str(&run.out).unwrap();
    let prompt = object["prompt_tokens"].as_u64().unwrap() as usize;
    println!("{:?}: {} s", device, object["elapsed_seconds"]);
    Some((object["final_ids"].as_array().unwrap()[prompt..].to_vec(), object["num_segments"].as_u64().unwrap()))
}

/// Its 32 greedy tokens are those of the CPU. Guided, its random score head decides by less than 16 bits resolve, so the families are
/// held to each other.
#[test]
#[ignore = "minutes: the whole matrix"]
fn a_real_model_answers_alike() {
    let cuda =
        |family| ["--device", "cuda", "--gpu-memory-utilization", "0.12", "--no-self-check", "--kernels", family];
    let greedy = ["--method", "greedy", "--max-new-tokens", "32"];
    let Some((expected, _)) = answer(&["--device", "cpu"], &greedy) else { return };
    assert_eq!(expected.len(), 32);
    let guided = ["--max-new-tokens", "10", "--entropy-threshold", "1.5", "--num-refinement-steps", "4"];
    let (reference, segments) = answer(&cuda("sm80"), &guided).unwrap();
    assert!(segments >= 2, "{segments}");
    for family in ["sm90", "sm90-wide"] {
        assert_eq!(answer(&cuda(family), &greedy).unwrap().0, expected, "{family}");
        assert_eq!(answer(&cuda(family), &guided), Some((reference.clone(), segments)), "{family}");
    }
}
