//! A device that fails in a way the driver does not survive: the request in flight gets an error, and so does every later one.

use crate::emulated::Emulated;
use ggro::model::cuda::{self, CudaOptions};
use ggro::model::{ModelPair, PolicySpan, RewardSpan, Role, SeqId, Span, TopK};
use ggro_emulator::Config;
use ggro_testkit::lessons::demo_pair;

fn step(cuda: &mut ModelPair, seq: SeqId, start: usize) -> ggro::Result<()> {
    let span = Span { seq, start, ids: &[10, 11, 12] };
    cuda.policy_step(&[PolicySpan { span, floor: 0.0, top_k: TopK::Skip, before: &[] }]).map(drop)
}

#[test]
fn a_lost_device_says_so_to_everyone() {
    let pair = demo_pair();
    let Emulated { device, machine } = Emulated::new(Config::default());
    let options = CudaOptions { batch_tokens: 64, gradient_tokens: 64, sequences: 2, ..CudaOptions::default() };
    let mut cuda = cuda::open(device, pair.parts(), &options, &mut |_| ()).unwrap().0;
    let seq = cuda.create(Role::Policy).unwrap();
    let reward = cuda.create(Role::Reward).unwrap();
    step(&mut cuda, seq, 0).unwrap();
    // What was written while nobody observed it is not initialised to who does, so the next kernel faults.
    machine.configure("accesses=observed");
    let first = step(&mut cuda, seq, 3).unwrap_err().to_string();
    assert!(first.contains("is lost"), "{first}");
    assert_eq!(cuda.len(seq), 3, "the failed step left nothing behind");
    let errors = [
        step(&mut cuda, seq, 3).unwrap_err(),
        cuda.logits_row(seq).unwrap_err(),
        cuda.reward_score(&[RewardSpan { span: Span { seq: reward, start: 0, ids: &[10] }, also_at: &[] }])
            .unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("lost after an earlier error"), "{error}");
    }
    cuda.release(seq);
    assert!(!machine.faults().is_empty());
    machine.reset();
}
