//! Kernels that begin before the one before them has ended, on Hopper: what comes before their wait touches weights alone, which is
//! seen in their PTX, in whole models that run so, and in mistakes that are planted.

use crate::emulated::{Emulated, alone, folder_of, ptx, source};
use crate::graphs::{gradients, open_on, session};
use ggro::cuda::Buffer;
use ggro::cuda::KernelFamily;
use ggro::cuda::ops::gemm::{self, Operands, Output, Shape, gemm};
use ggro::cuda::ops::weight_layout::WeightLayout;
use ggro::dtype::HalfType;
use ggro::model::{ModelPair, PolicySpan, Role, Span, TopK};
use ggro_emulator::{Config, Counters, Fault};
use ggro_testkit::backend::{gradient, text};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

const EARLY: &str = "dependents=early";

/// A Hopper whose kernels begin as early as they may.
fn early(config: Config, family: KernelFamily) -> Emulated {
    let emulated = Emulated::new(config).with_family(family);
    emulated.machine.configure(EARLY);
    emulated
}

fn sum(machine: &ggro_emulator::Device, kernels: &str, what: fn(&Counters) -> u64) -> u64 {
    let report = machine.report().kernels;
    report.iter().filter(|(name, _)| name.starts_with(kernels)).map(|(_, counters)| what(counters)).sum()
}

/// The bodies of a text's kernels, by name.
fn kernels_of(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let bodies = text.split(".entry ").skip(1);
    bodies.map(|body| (body.split(['(', '\n']).next().unwrap_or_default(), body))
}

/// Instructions that touch global memory.
const TOUCHES: [&str; 7] = ["ld.global", "st.global", "atom.", "red.", "cp.async.cg", "cp.async.bulk", "ld.acquire"];

#[test]
fn every_kernel_of_hopper_waits_before_it_touches_memory() {
    let mut found = 0;
    for (name, text) in ptx().iter().filter(|(name, _)| name != source(name) || name.ends_with("_sm90")) {
        for (kernel, body) in kernels_of(text) {
            let lines = body.lines().map(|line| line.trim_start_matches(['\t', ' ', '{']));
            let code: Vec<&str> = lines.take_while(|line| !line.starts_with(".section")).collect();
            let at = |begins: &str| code.iter().position(|line| line.starts_with(begins));
            let wait = at("griddepcontrol.wait").unwrap_or_else(|| panic!("{name}: {kernel} never waits"));
            assert!(at("griddepcontrol.launch_dependents").is_some_and(|launch| launch < wait), "{name}: {kernel}");
            // Products ask for weights.
            let weights: &[&str] = match source(name) {
                "gemm" | "gemm_backward" => &["cp.async.cg"],
                "gemm_sm90" => &["cp.async.bulk.shared"],
                _ => &[],
            };
            let is_free = |line: &&&str| weights.iter().any(|weights| line.contains(weights));
            let touched = code[..wait].iter().filter(|line| TOUCHES.iter().any(|touch| line.contains(touch)));
            let wrong: Vec<_> = touched.filter(|line| !is_free(line)).collect();
            assert!(wrong.is_empty(), "{name}: {kernel} does not wait before {wrong:?}");
            found += 1;
        }
    }
    assert!(found > 150, "{found} kernels");
    // Other cards have no such instruction.
    let others = ptx().iter().filter(|(name, _)| name == source(name) && !name.ends_with("_sm90"));
    assert!(others.clone().count() > 10 && others.clone().all(|(_, text)| !text.contains("griddepcontrol")));
}

/// Sources whose kernels may read by `ld.global.nc`, which is for what nobody writes while the kernel lives, and what they read so.
/// A kernel that begins early lives while those before it write.
const NOBODY_WRITES: [(&str, &str); 4] = [
    ("attention", "items, tokens and pages: lists that the host has copied, and a copy is waited for"),
    ("attention_backward", "the same, and those of keys"),
    ("attention_sm90", "the same lists as attention"),
    ("gemm_sm90", "the table of cosines and sines, which is made when the model is opened"),
];

#[test]
fn what_kernels_write_is_read_by_plain_loads() {
    let is_constant = |line: &&str| line.trim_start().contains("ld.global") && line.contains(".nc");
    let mut found = [0; NOBODY_WRITES.len()];
    for (name, text) in ptx().iter().filter(|(name, _)| name != source(name) || name.ends_with("_sm90")) {
        let place = NOBODY_WRITES.iter().position(|(of, _)| *of == source(name));
        for (kernel, body) in kernels_of(text) {
            let wrong: Vec<&str> = body.lines().filter(is_constant).collect();
            match place {
                Some(place) => found[place] += wrong.len(),
                None => assert!(wrong.is_empty(), "{name}: {kernel}: {wrong:?}"),
            }
        }
    }
    assert!(found.iter().all(|&count| count > 0), "an entry too many: {found:?}");
}

/// The bits of kernels that are launched one by one and begin one after the other; and no access that is wrong.
#[test]
fn early_launches_change_no_bit() {
    alone("dependents::early_launches_change_no_bit", || {
        for (name, family) in [("llama-gqa", KernelFamily::Sm90), ("mistral", KernelFamily::Sm80)] {
            let Emulated { device, machine } = Emulated::new(Config::default()).with_family(family);
            assert!(device.can_launch_dependents());
            let plain = Emulated { device: device.with_dependent_launches(false), machine };
            let (machine, mut eager, _) = open_on(plain, name, false);
            let expected = (session(&mut eager), gradients(&mut eager));
            assert_eq!(sum(&machine, "", |c| c.dependent_launches), 0);
            drop((eager, machine));
            for graphs in [false, true] {
                let checked = Config { checked: true, ..Config::default() };
                let (machine, mut cuda, _) = open_on(early(checked, family), name, graphs);
                machine.reset();
                let found = (session(&mut cuda), gradients(&mut cuda));
                assert!(found == expected, "{name}, graphs: {graphs}");
                let (launches, dependent) =
                    (sum(&machine, "", |c| c.launches), sum(&machine, "", |c| c.dependent_launches));
                let [weights, others] = [["gemm", "gemm_backward"], ["rmsnorm", "attention"]]
                    .map(|of| of.iter().map(|kernels| sum(&machine, kernels, |c| c.early_bytes_read)).sum::<u64>());
                println!("{name}, graphs: {graphs}: {dependent} of {launches} launches are dependent");
                assert!(dependent * 10 > launches * 9, "{dependent} of {launches}");
                assert!(weights > 0 && others == 0, "{weights} bytes of weights and {others} others are read early");
                assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
            }
        }
    });
}

/// A driver before CUDA 12.3: graphs have plain edges, and kernels beside them do not.
#[test]
fn graphs_of_older_drivers_have_plain_edges() {
    let Emulated { device, machine } = Emulated::new(Config::default());
    drop(device);
    machine.configure("driver=12020");
    let device = ggro::cuda::Device::open(0).map(|device| device.with_dependent_launches(true));
    // What this build's machine code needs may be newer.
    if let Ok(device) = device {
        let emulated = Emulated { device, machine };
        emulated.machine.configure(EARLY);
        let (machine, mut cuda, launches) = open_on(emulated, "llama-gqa", true);
        machine.reset();
        _ = session(&mut cuda);
        assert!(launches.graphs().0 > 10);
        let all = sum(&machine, "", |c| c.launches);
        let dependent = sum(&machine, "", |c| c.dependent_launches);
        assert!(dependent > 0 && dependent * 2 < all, "{dependent} of {all}");
        assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
        machine.configure("driver=13000");
    } else {
        machine.configure("driver=13000");
    }
}

/// The PTX of Hopper without one of the waits of some kernels of a source, or without all.
pub fn without_wait(of: &str, kernels: &str, which: Option<usize>) -> PathBuf {
    with_waits_changed("no-wait", (of, kernels), which, false)
}

/// The same with threads that wait when they end: all that they read is too early.
pub fn late_waits(of: &str, kernels: &str) -> PathBuf {
    with_waits_changed("late-wait", (of, kernels), None, true)
}

fn with_waits_changed(folder: &str, (of, kernels): (&str, &str), which: Option<usize>, late: bool) -> PathBuf {
    let mut texts = ptx().to_vec();
    let mut changed = false;
    for (name, text) in texts.iter_mut().filter(|(name, _)| source(name) == of) {
        if name == source(name) && !name.ends_with("_sm90") {
            continue;
        }
        let (mut mine, mut count) = (false, 0);
        let mut kept = String::with_capacity(text.len());
        for line in text.lines() {
            if let Some((_, name)) = line.split_once(".entry ") {
                (mine, count) = (name.starts_with(kernels), 0);
            }
            let waits = mine && line.contains("griddepcontrol.wait");
            count += usize::from(waits);
            let dropped = waits && which.is_none_or(|which| which + 1 == count);
            changed |= dropped;
            if late && mine && line.trim() == "ret;" {
                kept += "\tgriddepcontrol.wait;\n";
            }
            kept += if dropped { "" } else { line };
            kept.push('\n');
        }
        *text = kept;
    }
    assert!(changed, "{of}: {kernels} do not wait so often");
    folder_of(folder, &texts)
}

/// A prompt, two steps of decoding, and a reward with its gradient.
fn work(cuda: &mut ModelPair) {
    let ids = text(70, 500, 1);
    let seq = cuda.create(Role::Policy).unwrap();
    for range in [0..67, 67..68, 68..69] {
        let span = Span { seq, start: range.start, ids: &ids[range] };
        cuda.policy_step(&[PolicySpan { span, floor: 0.0, top_k: TopK::Take(5), before: &[] }]).unwrap();
        cuda.logits_row(seq).unwrap();
    }
    _ = gradient(cuda, &ids[..24], 8);
}

/// What a session on such kernels is told.
fn faults_of(folder: &std::path::Path, family: KernelFamily) -> Vec<Fault> {
    let emulated = early(Config { checked: true, ..Config::default() }, family);
    emulated.replace(folder);
    let session = |emulated: Emulated| {
        let (machine, mut cuda, _) = open_on(emulated, "llama-gqa", true);
        // The first error ends it.
        _ = catch_unwind(AssertUnwindSafe(|| work(&mut cuda)));
        let faults = machine.faults();
        machine.reset();
        faults
    };
    session(emulated)
}

#[test]
fn a_kernel_that_does_not_wait_is_noticed() {
    alone("dependents::a_kernel_that_does_not_wait_is_noticed", || {
        // All but the first of a step, which stands behind a copy.
        let of_every_card = [
            ("rmsnorm", "rmsnorm_bf16"),
            ("rmsnorm", "rmsnorm_backward"),
            ("rope", "rope_bf16"),
            ("rope", "rope_backward"),
            ("attention", "attention_"),
            ("attention_backward", "attention_backward"),
            ("copy_rows", "copy_rows"),
            ("softmax_entropy", "softmax_entropy_f32"),
            ("softmax_entropy", "top_k"),
            ("gemm", "gemm_"),
            ("gemm_backward", "gemm_backward"),
            ("swiglu", "swiglu"),
        ];
        let mut unnoticed = Vec::new();
        let mut plant = |of, kernels, which, family: KernelFamily| {
            let faults = faults_of(&without_wait(of, kernels, which), family);
            let kinds = ["early access", "missing wait"];
            match faults.first() {
                Some(fault) if kinds.contains(&fault.kind.as_str()) && fault.kernel.starts_with(kernels) => {
                    println!(
                        "{kernels}, {which:?}: {}: {} at {}: {}",
                        fault.kernel, fault.kind, fault.at, fault.message
                    );
                }
                _ => unnoticed.push((kernels, which, faults)),
            }
        };
        for (of, kernels) in of_every_card {
            plant(of, kernels, None, KernelFamily::Sm80);
        }
        // The threads that copy, those that add squares, and those that multiply. Backward kernels for few tokens have none in between.
        for which in [0, 1, 2] {
            plant("gemm_sm90", "gemm_sm90_", Some(which), KernelFamily::Sm90);
        }
        for which in [0, 1] {
            plant("gemm_sm90", "gemm_backward_sm90_", Some(which), KernelFamily::Sm90);
        }
        assert!(unnoticed.is_empty(), "{unnoticed:#?}");
    });
}

/// Two products of which the second shares the first one's scratch: sums of chunks, and tickets.
fn products_in_a_row(emulated: &Emulated, family: KernelFamily) -> Vec<Fault> {
    let (tokens, n, k) = (40, 192, 4096);
    let layout = family.weight_layout();
    let device = &emulated.device;
    let x = Buffer::from_slice(device, &vec![0x3f80u16; tokens * k]).unwrap();
    let w = Buffer::from_slice(device, &vec![0x3c00u16; layout.elements(n, k)]).unwrap();
    let mut y = [0, 1].map(|_| Buffer::<u16>::uninitialised(device, tokens * n).unwrap());
    let mut scratch = gemm::Scratch::new(device, gemm::Room::of(layout, &[(n, k)])).unwrap();
    emulated.machine.reset();
    for y in &mut y {
        let operands = Operands { storage: HalfType::Bf16, x: x.view(), w: w.view(), layout, bias: None };
        let y = &mut Output::Half(y.view_mut());
        // What is wrong with the first is for the caller to find.
        _ = gemm(device, y, operands, Shape { tokens, n, k }, &mut scratch);
    }
    let faults = emulated.machine.faults();
    if faults.is_empty() {
        let [first, second] = y.each_ref().map(|y| y.download(device).unwrap());
        assert!(first == second && first[0] != 0);
    }
    faults
}

#[test]
fn sums_and_tickets_are_touched_behind_the_wait() {
    let checked = Config { checked: true, ..Config::default() };
    for family in [KernelFamily::Sm80, KernelFamily::Sm90] {
        let emulated = early(checked, family);
        let faults = products_in_a_row(&emulated, family);
        assert!(faults.is_empty(), "{faults:#?}");
        assert_eq!(sum(&emulated.machine, "gemm", |c| c.dependent_launches), 1, "{family:?}");
        assert!(sum(&emulated.machine, "gemm", |c| c.early_bytes_read) > 0, "{family:?}");
    }
    assert_eq!(WeightLayout::Tiles, KernelFamily::Sm90.weight_layout());
    // The threads that copy read nothing that the first product wrote; all others touch its scratch.
    let mut found = 0;
    for which in [0, 1, 2] {
        let emulated = early(checked, KernelFamily::Sm90);
        emulated.replace(&without_wait("gemm_sm90", "gemm_sm90_48_", Some(which)));
        let faults = products_in_a_row(&emulated, KernelFamily::Sm90);
        println!("without wait {which}: {faults:?}");
        found += usize::from(faults.first().is_some_and(|fault| fault.kind == "early access"));
        emulated.machine.reset();
    }
    assert_eq!(found, 2);
    let emulated = early(checked, KernelFamily::Sm80);
    emulated.replace(&without_wait("gemm", "gemm_", None));
    let faults = products_in_a_row(&emulated, KernelFamily::Sm80);
    assert_eq!(faults.first().map(|fault| fault.kind.as_str()), Some("early access"), "{faults:#?}");
    emulated.machine.reset();
}
