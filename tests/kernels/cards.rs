//! Every card that is promised, by its own limits: its kernels say what those of the others say, models agree with the CPU, and
//! golden decisions are right. Cards and drivers that are not promised are refused in words.

use crate::emulated::{Emulated, alone};
use crate::harness::{Digests, Mode, run_cases, up_to};
use crate::model::golden_on;
use ggro::cuda::{Capability, Device, KernelFamily};
use ggro::files::checkpoint::Checkpoint;
use ggro::files::config::{ModelConfig, ModelKind};
use ggro::files::pair::Parts;
use ggro::lab::kernel_check::Case;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::cuda::{self, CudaOptions};
use ggro::model::synthetic::{config_json, safetensors};
use ggro::model::{ModelPair, Role};
use ggro_emulator::Config;
use ggro_testkit::backend::{bits, gradient, gradient_bits, policy_span, text};
use ggro_testkit::fixtures::FIXTURES;
use ggro_testkit::lessons::{demo_must_pass, demo_pair, demo_traces};
use std::path::Path;
use std::time::Instant;

/// A100, RTX 3090, L40S, H100, B200, RTX 5090.
const CARDS: [u32; 6] = [80, 86, 89, 90, 100, 120];
/// One card of each amount of shared memory.
const SIZES: [u32; 3] = [80, 86, 90];

/// The emulated device as one of these cards, which runs the PTX of the kernels.
fn card(arch: u32) -> Emulated {
    let emulated = Emulated::new(Config::default());
    emulated.machine.configure(&format!("arch={arch}"));
    emulated.opened_again()
}

#[test]
fn every_promised_card_opens_and_no_other() {
    let mut multiprocessors = Vec::new();
    for arch in CARDS {
        let Emulated { device, machine } = card(arch);
        assert_eq!(device.capability(), Capability(arch / 10, arch % 10));
        multiprocessors.push(device.multiprocessors());
        assert!(machine.faults().is_empty());
    }
    assert_eq!(multiprocessors, [108, 82, 142, 132, 148, 170]);
    let Emulated { device, machine } = card(90);
    drop(device);
    for (arch, capability) in [(75, "7.5"), (61, "6.1")] {
        machine.configure(&format!("arch={arch}"));
        let error = Device::open(0).unwrap_err().to_string();
        assert!(error.contains(&format!("this device has compute capability {capability}")), "{error}");
    }
    assert!(machine.faults().is_empty());
}

#[test]
fn a_driver_that_is_too_old_is_refused_in_words() {
    let Emulated { device, machine } = card(90);
    drop(device);
    machine.configure("driver=11080");
    let errors = [Device::open(0).map(drop), Device::count().map(drop)].map(|asked| asked.unwrap_err().to_string());
    machine.configure("driver=13000");
    for error in errors {
        assert!(error.contains("the driver is for CUDA 11.8") && error.contains("release 525 or later"), "{error}");
    }
    assert_eq!(Device::count().unwrap(), 1);
    assert_eq!(Device::open(0).unwrap().driver_version().as_deref(), Some("13.0"));
}

/// Names of the kernels for cards with 99 KiB a block that have been launched.
fn smaller(card: &Emulated) -> usize {
    card.machine.report().kernels.keys().filter(|name| name.contains("_99k_")).count()
}

/// The ops that have kernels for small cards, and small cases of all others, with the same bits in every output. Hopper's text is
/// another one than that of the other cards.
#[test]
fn kernels_say_the_same_on_every_card() {
    alone("cards::kernels_say_the_same_on_every_card", || {
        let of_interest = |case: &Case| {
            let has_smaller = case.op.starts_with("gemm") || case.op.starts_with("attention");
            (has_smaller || case.work <= 500_000) && !case.op.ends_with("_sm90")
        };
        let mut expected: Option<Digests> = None;
        for arch in SIZES {
            let card = card(arch);
            let found = run_cases(&card, Mode::PLAIN, up_to(20_000_000).filter(of_interest));
            // Of eight kinds in two types each.
            assert_eq!(smaller(&card), if arch == 86 { 16 } else { 0 }, "sm_{arch}");
            let expected = expected.get_or_insert_with(|| found.clone());
            for (case, digest) in &found {
                assert_eq!(Some(digest), expected.get(case), "{case}: sm_{arch} wrote something else than sm_80");
            }
        }
    });
}

/// The first of the demo's requests, teacher-forced.
fn demo_on(card: Emulated, what: &str, requests: usize) {
    let pair = demo_pair();
    let traces = demo_traces(&pair, requests, 32, 3);
    let Emulated { device, machine } = card;
    let deferred_norms = device.defers_norms();
    let options = CudaOptions { batch_tokens: 704, sequences: 32, ..CudaOptions::default() };
    let mut cuda = cuda::open(device, pair.parts(), &options, &mut |_| ()).unwrap().0;
    println!("demo, {what}");
    demo_must_pass(&pair, &traces, &mut cuda, true, deferred_norms);
    assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
}

#[test]
fn golden_decisions_are_right_on_every_card() {
    alone("cards::golden_decisions_are_right_on_every_card", || {
        for (arch, name) in CARDS.into_iter().zip(FIXTURES) {
            let card = card(arch);
            golden_on(card, &format!("sm_{arch}"), name);
        }
        for arch in [86, 120] {
            let card = card(arch);
            demo_on(card, &format!("sm_{arch}"), 3);
        }
        demo_on(card(90).with_family(KernelFamily::Sm90), "Hopper's products", 3);
    });
}

/// All fixtures and the demo pair on all cards: `.ci/full`.
#[test]
#[ignore = "minutes: the whole matrix"]
fn every_golden_decision_is_right_on_every_card() {
    for arch in CARDS {
        for name in FIXTURES {
            let card = card(arch);
            golden_on(card, &format!("sm_{arch}"), name);
        }
        let card = card(arch);
        demo_on(card, &format!("sm_{arch}"), 10);
    }
    for name in FIXTURES {
        golden_on(card(90).with_family(KernelFamily::Sm90), "Hopper's products", name);
    }
    demo_on(card(90).with_family(KernelFamily::Sm90), "Hopper's products", 10);
}

/// Two layers of a published shape, with a small vocabulary and random weights.
struct Shape {
    policy: (ModelConfig, Checkpoint),
    reward: (ModelConfig, Checkpoint),
}

/// What a pair says to a few texts.
struct Said {
    logits: Vec<f32>,
    step: Vec<f32>,
    gradient: Vec<f32>,
    bits: Vec<u32>,
}

impl Shape {
    fn new(preset: &'static str) -> Self {
        let model = |kind, seed| {
            let mut json = config_json(preset, kind).unwrap();
            json["num_hidden_layers"] = 2.into();
            json["vocab_size"] = 4096.into();
            json["eos_token_id"] = 2.into();
            json["max_position_embeddings"] = 512.into();
            json["rope_scaling"] = serde_json::Value::Null;
            let config = ModelConfig::parse(&json.to_string(), Path::new(preset)).unwrap();
            let weights = Checkpoint::of_bytes(preset, safetensors(&config, seed).unwrap()).unwrap();
            (config, weights)
        };
        Shape { policy: model(ModelKind::CausalLm, 7), reward: model(ModelKind::Reward, 8) }
    }

    fn parts(&self) -> Parts<'_> {
        Parts::both((&self.policy.0, &self.policy.1), (&self.reward.0, &self.reward.1))
    }

    fn on_cpu(&self, simulate: Option<ggro::dtype::HalfType>) -> Said {
        ask(&mut cpu::open(self.parts(), &LoadOptions { simulate, ..LoadOptions::default() }).unwrap())
    }

    fn on(&self, arch: u32) -> Said {
        let began = Instant::now();
        let Emulated { device, machine } = card(arch);
        let options = CudaOptions { batch_tokens: 64, gradient_tokens: 32, sequences: 2, ..CudaOptions::default() };
        let said = ask(&mut cuda::open(device, self.parts(), &options, &mut |_| ()).unwrap().0);
        assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
        println!("sm_{arch}: {:.1} s", began.elapsed().as_secs_f64());
        said
    }
}

/// A prompt of a few rows, one decoded token behind it, and the gradient of a reward with respect to a few rows.
fn ask(pair: &mut ModelPair) -> Said {
    let ids = text(8, 4096, 1);
    let seq = pair.create(Role::Policy).unwrap();
    pair.policy_step(&[policy_span(seq, 0, &ids[..6])]).unwrap();
    let logits = pair.logits_row(seq).unwrap();
    pair.policy_step(&[policy_span(seq, 6, &ids[6..7])]).unwrap();
    let step = pair.logits_row(seq).unwrap();
    let gradient = gradient(pair, &ids, 4);
    let bits = [bits(&logits), bits(&step), gradient_bits(&gradient)].concat();
    Said { logits, step, gradient: gradient.rows, bits }
}

/// How far some numbers are from others, as a share of these.
fn distance(from: &[f32], to: &[f32]) -> f64 {
    assert_eq!(from.len(), to.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let (off, all) = from.iter().zip(to).fold((0.0, 0.0), |(off, all), (a, b)| (off + square(a - b), all + square(*b)));
    (off / all).sqrt()
}

/// The same bits on all cards, and as near to the exact engine as rounding to 16 bits lets be.
fn agrees(preset: &'static str, cards: &[u32]) {
    let shape = Shape::new(preset);
    let (exact, simulated) = (shape.on_cpu(None), shape.on_cpu(Some(ggro::dtype::HalfType::Bf16)));
    let mut first: Option<Vec<u32>> = None;
    for &arch in cards {
        let said = shape.on(arch);
        for (what, of) in [
            ("prompt", (|said| &said.logits) as fn(&Said) -> &Vec<f32>),
            ("step", |said| &said.step),
            ("gradient", |said| &said.gradient),
        ] {
            let (off, allowed) = (distance(of(&said), of(&exact)), distance(of(&simulated), of(&exact)));
            println!("{preset}, sm_{arch}: {what} off by {off:.2e}, the simulation by {allowed:.2e}");
            assert!(off > 0.0 && off < 1.5 * allowed, "{preset}, sm_{arch}: {what} off by {off:.2e}");
        }
        let first = first.get_or_insert_with(|| said.bits.clone());
        assert!(*first == said.bits, "{preset}: sm_{arch} says something else than sm_{}", cards[0]);
    }
}

#[test]
fn two_layers_of_1b_agree_on_every_card() {
    alone("cards::two_layers_of_1b_agree_on_every_card", || agrees("llama-3.2-1b", &CARDS));
}

/// Heads of 128 elements on a card of 99 KiB.
#[test]
fn two_layers_of_3b_agree_on_a_small_card() {
    alone("cards::two_layers_of_3b_agree_on_a_small_card", || agrees("llama-3.2-3b", &[86]));
}

/// `.ci/full`.
#[test]
#[ignore = "minutes: the whole matrix"]
fn two_layers_of_3b_agree_on_every_card() {
    agrees("llama-3.2-3b", &CARDS);
}

/// `.ci/full`.
#[test]
#[ignore = "minutes: the whole matrix, and 6 GB"]
fn two_layers_of_8b_agree_on_every_card() {
    agrees("llama-3.1-8b", &CARDS);
}
