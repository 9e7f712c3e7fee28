//! A test of the tests that needs no compiler: a mistake planted in the PTX itself must turn the harness red. What is planted in
//! the sources, and needs nvcc, is in `mutations`.

use crate::emulated::{self, Emulated, alone, folder_of, ptx};
use crate::harness::first_failure;
use ggro_emulator::{Config, Counters};
use std::path::PathBuf;

/// What is wrong, everywhere in a kernel.
#[derive(Clone, Copy)]
pub enum Mistake {
    /// Numbers that are stored, or rounded in order to be stored, are 2 % too large.
    Scaled,
    /// Waits for copies leave one group more in flight.
    Impatient,
    /// Instructions that begin like this are not there.
    Without(&'static str),
    /// One instruction stands for another.
    Instead(&'static str, &'static str),
}

use Mistake::{Impatient, Instead, Scaled, Without};

/// The op whose cases see it, the source, which of its kernels (the beginning of their names), and what is wrong with them.
const PLANTED: &[(&str, &str, &str, Mistake)] = &[
    ("rmsnorm", "rmsnorm", "rmsnorm_f16", Scaled),
    ("rmsnorm", "rmsnorm", "rmsnorm_backward", Scaled),
    ("rmsnorm", "rmsnorm", "rmsnorm_bf16", Without("bar.sync")),
    ("softmax_entropy", "softmax_entropy", "softmax_entropy_f32", Without("bar.sync")),
    ("softmax_entropy", "softmax_entropy", "softmax_entropy_f32", Instead("setp.gt.f32", "setp.ge.f32")),
    (
        "softmax_entropy",
        "softmax_entropy",
        "softmax_entropy_f32",
        Instead("atom.add.acq_rel.gpu", "atom.add.relaxed.gpu"),
    ),
    ("softmax_entropy", "softmax_entropy", "top_k", Instead("atom.shared.add.u32", "atom.shared.max.u32")),
    ("gemm", "gemm", "gemm_", Scaled),
    ("gemm", "gemm", "gemm_", Impatient),
    ("gemm", "gemm", "gemm_", Without("bar.sync")),
    ("gemm", "gemm", "gemm_", Instead("atom.add.acq_rel.gpu", "atom.add.relaxed.gpu")),
    ("gemm_backward", "gemm_backward", "gemm_backward_", Scaled),
    ("gemm_backward", "gemm_backward", "gemm_backward_", Instead("m8n8.x4.trans", "m8n8.x4")),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Scaled),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Without("wgmma.fence")),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Without("wgmma.wait_group.sync.aligned 0")),
    (
        "gemm_sm90",
        "gemm_sm90",
        "gemm_sm90_",
        Instead("wgmma.wait_group.sync.aligned 1", "wgmma.wait_group.sync.aligned 2"),
    ),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Instead("f32.bf16.bf16", "f32.f16.f16")),
    // Waits that do not wait, and arrivals that nobody makes.
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Instead("@done bra", "bra")),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Without("mbarrier.arrive.shared")),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Without("fence.mbarrier_init")),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Without("setmaxnreg.dec")),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Instead("atom.add.acq_rel.gpu", "atom.add.relaxed.gpu")),
    // All barriers of the block, and those at which its warps meet over a shared tile.
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Without("bar.sync")),
    ("gemm_sm90", "gemm_sm90", "gemm_sm90_", Without("bar.sync %r")),
    ("gemm_backward_sm90", "gemm_sm90", "gemm_backward_sm90_", Scaled),
    ("gemm_backward_sm90", "gemm_sm90", "gemm_backward_sm90_", Instead("1, 1, 1, 1, 0;", "1, 1, 1, 0, 0;")),
    ("attention", "attention", "attention_", Scaled),
    ("attention", "attention", "attention_", Impatient),
    ("attention", "attention", "attention_", Without("bar.sync")),
    ("attention", "attention", "attention_", Instead("ex2.approx.f32", "abs.f32")),
    ("attention_sm90", "attention_sm90", "attention_sm90_", Scaled),
    ("attention_sm90", "attention_sm90", "attention_sm90_", Instead("ex2.approx.f32", "abs.f32")),
    ("attention_sm90", "attention_sm90", "attention_sm90_", Without("bar.sync")),
    ("attention_sm90", "attention_sm90", "attention_sm90_", Without("wgmma.fence")),
    ("attention_sm90", "attention_sm90", "attention_sm90_", Without("mbarrier.arrive.shared")),
    ("attention_sm90", "attention_sm90", "attention_sm90_", Instead("@done bra", "bra")),
    // Values by their lines.
    ("attention_sm90", "attention_sm90", "attention_sm90_", Instead("1, 1, 1, 1;", "1, 1, 1, 0;")),
    ("attention_sm90", "attention_sm90", "attention_sm90_", Instead("atom.add.acq_rel.gpu", "atom.add.relaxed.gpu")),
    ("attention_backward", "attention_backward", "attention_backward_keys", Scaled),
    ("attention_backward", "attention_backward", "attention_backward_keys", Without("bar.sync")),
    ("attention_backward", "attention_backward", "attention_backward_few", Impatient),
    ("copy_rows", "copy_rows", "copy_rows", Instead("setp.ge.u32", "setp.gt.u32")),
    ("kv_copy", "kv_copy", "kv_copy", Instead("min.u32", "max.u32")),
    ("random_fill", "random_fill", "random_fill_bf16", Scaled),
    ("embed", "embed", "embed_bf16", Scaled),
    ("embed", "embed", "embed_f16", Instead("setp.ge.s32", "setp.gt.s32")),
    ("logits", "logits", "log_probabilities", Scaled),
    ("logits", "logits", "chosen_logits", Instead("setp.ge.u32", "setp.gt.u32")),
    ("candidate_scores", "candidate_scores", "candidate_scores_bf16", Scaled),
    ("candidate_scores", "candidate_scores", "candidate_scores_f16", Without("shfl.sync.bfly")),
    ("rope", "rope", "rope_bf16", Scaled),
    ("rope", "rope", "rope_backward_f16", Scaled),
    ("swiglu", "swiglu", "swiglu_f16", Scaled),
    ("swiglu", "swiglu", "swiglu_bf16", Instead("setp.ge.s32", "setp.gt.s32")),
    ("pad_convert", "pad_convert", "pad_convert_bf16", Scaled),
    ("pad_convert", "pad_convert", "pad_convert_f16", Instead("setp.ge.u64", "setp.gt.u64")),
];

/// The PTX with mistakes in the kernels of a source whose names begin like this, as a folder.
pub fn planted(source: &str, kernels: &str, mistake: Mistake) -> PathBuf {
    let mut texts = ptx().to_vec();
    // What runs is the last, Hopper's.
    let mut changed = false;
    for (_, text) in texts.iter_mut().filter(|(name, _)| emulated::source(name) == source) {
        (*text, changed) = with_mistake(text, kernels, mistake);
    }
    assert!(changed, "{source}: no line of {kernels} can have the mistake");
    folder_of("planted", &texts)
}

/// A text with the mistake, and whether it could be made.
fn with_mistake(text: &str, kernels: &str, mistake: Mistake) -> (String, bool) {
    let (mut wrong, mut mine, mut changed) = (String::with_capacity(text.len()), false, false);
    for line in text.lines() {
        if let Some((_, name)) = line.split_once(".entry ") {
            mine = name.starts_with(kernels);
        }
        match if mine { mistake.line(line) } else { None } {
            Some(other) => (changed, wrong) = (true, wrong + &other),
            None => wrong += line,
        }
        wrong.push('\n');
    }
    (wrong, changed)
}

impl Mistake {
    /// What a line becomes; nothing if the mistake cannot be made in it.
    fn line(self, line: &str) -> Option<String> {
        let bare = line.trim_start_matches([' ', '\t', '{']);
        // Without the predicate.
        let instruction = bare.split_once(' ').filter(|_| bare.starts_with('@')).map_or(bare, |(_, rest)| rest);
        match self {
            Without(begins) => instruction.starts_with(begins).then(String::new),
            Instead(one, other) => line.contains(one).then(|| line.replace(one, other)),
            Impatient => {
                let groups: u32 =
                    instruction.strip_prefix("cp.async.wait_group ")?.trim_end_matches(';').parse().ok()?;
                Some(format!("cp.async.wait_group {};", groups + 1))
            }
            Scaled => {
                let rounds = instruction.starts_with("cvt.rn") && instruction.contains("f16");
                let stores = instruction.starts_with("st.global") && instruction.contains(".f32");
                let registers = instruction.split("%f").skip(1).map(|rest| {
                    let number = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                    format!("mul.f32 %f{number}, %f{number}, 0f3F828F5C;\n")
                });
                let scaled: String = if rounds || stores { registers.collect() } else { String::new() };
                (!scaled.is_empty()).then(|| scaled + line)
            }
        }
    }

    fn name(self) -> String {
        match self {
            Scaled => "scaled".into(),
            Impatient => "impatient".into(),
            Without(what) => format!("without {what}"),
            Instead(one, other) => format!("{other} instead of {one}"),
        }
    }
}

#[test]
fn every_planted_mistake_is_found() {
    alone("planted::every_planted_mistake_is_found", || {
        let mut unnoticed = Vec::new();
        for &(op, source, kernels, mistake) in PLANTED {
            let what = format!("{kernels}, {}", mistake.name());
            let emulated = Emulated::new(Config { checked: true, ..Config::default() });
            emulated.replace(&planted(source, kernels, mistake));
            let found = first_failure(&emulated, op, |_| true);
            let ran = |(name, counters): (&String, &Counters)| name.starts_with(kernels) && counters.instructions > 0;
            assert!(emulated.machine.report().kernels.iter().any(ran), "{what}: never ran");
            match found {
                Some(found) => println!("{what}: {}: {}", found.case, found.failures[0]),
                None => unnoticed.push(what),
            }
        }
        assert!(unnoticed.is_empty(), "unnoticed: {unnoticed:#?}");
    });
}
