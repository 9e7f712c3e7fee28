//! Golden fixtures and small helpers.

use ggro::files::checkpoint::{Checkpoint, Files};
use ggro::files::config::ModelConfig;
use ggro::files::pair::Parts;
use ggro::model::ModelPair;
use ggro::model::cpu::{self, LoadOptions};
pub use ggro_testkit::backend::*;
pub use ggro_testkit::fixtures::{FORWARD_FIXTURES, fixture, reference};
use safetensors::SafeTensors;

pub fn load(name: &str) -> ModelPair {
    load_with(name, &LoadOptions::default())
}

pub fn load_with(name: &str, options: &LoadOptions) -> ModelPair {
    load_pair(name, name, options)
}

/// The policy of one fixture beside the reward model of another.
pub fn load_pair(policy: &str, reward: &str, options: &LoadOptions) -> ModelPair {
    let parts = [(policy, "policy"), (reward, "reward")].map(|(name, part)| {
        let files = Files::Dir(fixture(name).join(part));
        (ModelConfig::load(&files).unwrap(), Checkpoint::open(&files).unwrap())
    });
    cpu::open(Parts::both((&parts[0].0, &parts[0].1), (&parts[1].0, &parts[1].1)), options).unwrap()
}

/// A safetensors file of golden numbers.
pub struct Numbers(Vec<u8>);

impl Numbers {
    pub fn open(fixture_name: &str, file: &str) -> Option<Self> {
        std::fs::read(fixture(fixture_name).join(file)).ok().map(Numbers)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.bytes(name).chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.bytes(name).chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }
}
