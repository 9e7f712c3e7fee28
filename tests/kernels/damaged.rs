//! A weight that is not a number: the request that meets it ends with an error that says so, the next one is as if it had never
//! been.

use crate::emulated::Emulated;
use ggro::Error;
use ggro::engine::decode;
use ggro::files::checkpoint::Files;
use ggro::files::pair::Pair;
use ggro::model::Role;
use ggro::model::cuda::{self, CudaOptions};
use ggro::rng::Uniforms;
use ggro_emulator::Config;
use ggro_testkit::lessons::demo_options;
use std::path::Path;

/// Only prompts that hold it meet the damaged embedding row.
const POISONED: u32 = 601;

/// A copy of a fixture, with a NaN in one row of one tensor of one of its models.
fn damaged(role: &str, name: &str, index: u32) -> (tempfile::TempDir, Pair) {
    let from = Path::new("tests/goldens/llama-gqa");
    let directory = tempfile::tempdir().unwrap();
    for part in ["policy", "reward"] {
        let to = directory.path().join(part);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(from.join(part)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = directory.path().join(role).join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let tensor = metadata.info(name).unwrap();
    let row = 2 * tensor.shape.get(1).unwrap_or(&1);
    let at = 8 + header + tensor.data_offsets.0 + index as usize * row;
    bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let files = |part| Files::Dir(directory.path().join(part));
    let pair = Pair::load(&files("policy"), &files("reward")).unwrap();
    (directory, pair)
}

#[test]
fn a_weight_that_is_not_a_number_ends_one_request() {
    for role in ["policy", "reward"] {
        let (_directory, pair) = damaged(role, "model.embed_tokens.weight", POISONED);
        let Emulated { device, machine } = Emulated::new(Config::default());
        let small = CudaOptions { batch_tokens: 64, gradient_tokens: 64, sequences: 2, ..CudaOptions::default() };
        let mut cuda = cuda::open(device, pair.parts(), &small, &mut |_| ()).unwrap().0;
        let options = demo_options(&pair, 12, 3);
        let clean: Vec<u32> = (20..50).collect();
        let poisoned = [&clean[..], &[POISONED]].concat();
        let mut answer = |prompt: &[u32]| decode(&mut cuda, prompt, &options, Uniforms::Seeded(0), &mut ());
        let before = answer(&clean).unwrap();
        let error = answer(&poisoned).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NonFinite { .. }) && text.contains(role), "{text}");
        // The blocks that held what is not a number are used again.
        let after = answer(&clean).unwrap();
        assert_eq!((before.final_ids, before.final_reward), (after.final_ids, after.final_reward), "{role}");
        assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
    }
}

/// A NaN that every text meets, wherever it lies: no answer is given, and the device goes on working.
#[test]
fn a_model_that_computes_nothing_says_so() {
    let tensors = [
        ("policy", "model.layers.0.self_attn.q_proj.weight"),
        ("policy", "model.layers.1.mlp.down_proj.weight"),
        ("policy", "model.norm.weight"),
        ("reward", "model.layers.0.input_layernorm.weight"),
        ("reward", "model.layers.1.self_attn.v_proj.weight"),
        ("reward", "model.layers.0.mlp.gate_proj.weight"),
        ("reward", "score.weight"),
    ];
    for (role, name) in tensors {
        let (_directory, pair) = damaged(role, name, 0);
        let Emulated { device, machine } = Emulated::new(Config::default());
        let small = CudaOptions { batch_tokens: 64, gradient_tokens: 64, sequences: 2, ..CudaOptions::default() };
        let mut cuda = cuda::open(device, pair.parts(), &small, &mut |_| ()).unwrap().0;
        let options = demo_options(&pair, 12, 3);
        for _ in 0..2 {
            let prompt: Vec<u32> = (20..50).collect();
            let error = decode(&mut cuda, &prompt, &options, Uniforms::Seeded(0), &mut ()).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::NonFinite { .. }) && text.contains(role), "{name}: {text}");
        }
        assert_eq!(cuda.blocks_free(Role::Policy), cuda.blocks_free(Role::Reward), "{name}: blocks were kept");
        assert!(machine.faults().is_empty(), "{name}: {:#?}", machine.faults());
    }
}
