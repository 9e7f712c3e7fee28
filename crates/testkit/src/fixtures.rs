//! The golden pairs of `tests/goldens`.

use ggro::dtype::HalfType;
use ggro::files::checkpoint::{Checkpoint, Files};
use ggro::files::config::ModelConfig;
use ggro::files::pair::Parts;
use ggro::model::ModelPair;
use ggro::model::cpu::{self, LoadOptions};
use std::path::{Path, PathBuf};

/// Fixtures with forward data.
pub const FORWARD_FIXTURES: [&str; 5] = ["llama-gqa", "llama-mha-tied", "qwen2", "qwen3", "mistral"];

/// Fixtures with traces.
pub const FIXTURES: [&str; 8] =
    ["llama-gqa", "llama-mha-tied", "qwen2", "qwen3", "mistral", "llama-twins", "llama-unaligned", "qwen2-sharded"];

/// The folder of all fixtures.
pub fn goldens() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    root.join("tests/goldens")
}

/// The folder of one fixture.
pub fn fixture(name: &str) -> PathBuf {
    goldens().join(name)
}

/// Shapes and weights of a fixture's policy and reward model.
pub fn parts(name: &str) -> [(ModelConfig, Checkpoint); 2] {
    ["policy", "reward"].map(|part| {
        let files = Files::Dir(fixture(name).join(part));
        (ModelConfig::load(&files).unwrap(), Checkpoint::open(&files).unwrap())
    })
}

/// The reference, exact or simulating.
pub fn reference(name: &str, simulate: Option<HalfType>) -> ModelPair {
    assemble(name, &LoadOptions { simulate, ..LoadOptions::default() })
}

/// The exact reference over a limited number of blocks of keys and values, where `kv_blocks` says how many.
pub fn load(name: &str, kv_blocks: Option<usize>) -> ModelPair {
    assemble(name, &LoadOptions { kv_blocks, ..LoadOptions::default() })
}

/// A fixture on the CPU.
pub fn assemble(name: &str, options: &LoadOptions) -> ModelPair {
    let [policy, reward] = parts(name);
    cpu::open(Parts::both((&policy.0, &policy.1), (&reward.0, &reward.1)), options).unwrap()
}

/// A test for every fixture with traces.
#[macro_export]
macro_rules! each_fixture {
    ($check:ident) => {
        $crate::each_fixture! { $check:
            llama_gqa "llama-gqa" llama_mha_tied "llama-mha-tied" qwen2 "qwen2" qwen3 "qwen3" mistral "mistral"
            llama_twins "llama-twins" llama_unaligned "llama-unaligned" qwen2_sharded "qwen2-sharded"
        }
    };
    ($check:ident: $($test:ident $name:literal)*) => { $(#[test] fn $test() { $check($name) })* };
}
