//! A test of the tests: kernels with one planted mistake each must turn the harness red. nvcc compiles them anew, which takes
//! minutes; `planted` needs none.

mod every_card;
mod hopper;

use crate::emulated::{self, Emulated, KERNELS, alone, folder_of, ptx};
use crate::harness::first_failure;
use crate::nvcc;
use ggro::lab::kernel_check::Case;
use ggro_emulator::Config;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

struct Mutation {
    name: &'static str,
    op: &'static str,
    /// The header or the kernel.
    file: &'static str,
    /// Replaced once.
    from: &'static str,
    to: &'static str,
}

/// Ops with many instances of one template: lines without which a broken one compiles sooner, and what the names of cases
/// that need none of them contain.
const NARROWED: [(&str, &[&str], &[&str]); 4] = [
    (
        "attention",
        &[
            "ATTENTION_CLASSES(64, SUFFIX, T, 1, 2)",
            "ATTENTION_CLASSES(128, SUFFIX, T, 2, 3)",
            "ATTENTION_HEADS(f16, __half)",
        ],
        &["bf16", "heads of 32"],
    ),
    (
        "attention_backward",
        &[
            "ATTENTION_BACKWARD(64, SUFFIX, T, 1, 32, 4, 3)",
            "ATTENTION_BACKWARD(128, SUFFIX, T, 2, 16, 2, 2)",
            "ATTENTION_BACKWARD_HEADS(f16, __half)",
        ],
        &["bf16", "heads of 32"],
    ),
    (
        "gemm_sm90",
        &[
            "GEMM_ALL(gemm_sm90, f16, __half, false)",
            "GEMM_ALL(gemm_backward_sm90, bf16, __nv_bfloat16, true)",
            "GEMM_ALL(gemm_backward_sm90, f16, __half, true)",
        ],
        &["bf16"],
    ),
    (
        "gemm_backward_sm90",
        &[
            "GEMM_ALL(gemm_sm90, bf16, __nv_bfloat16, false)",
            "GEMM_ALL(gemm_sm90, f16, __half, false)",
            "GEMM_ALL(gemm_backward_sm90, f16, __half, true)",
        ],
        &["bf16"],
    ),
];

/// The file of an op's kernels.
fn source_of(op: &str) -> &str {
    if op == "gemm_backward_sm90" { "gemm_sm90" } else { op }
}

/// A folder with the op's file and the headers, one of them changed. It is named after what is in it.
fn mutated(mutation: &Mutation) -> PathBuf {
    let own = format!("{}.cu", source_of(mutation.op));
    let mut changed = false;
    let mut files = Vec::new();
    for path in ["cu", "cuh"].into_iter().flat_map(|kind| nvcc::listed(Path::new(KERNELS), kind).unwrap()) {
        let file = path.file_name().unwrap().to_str().unwrap().to_string();
        if file != own && !file.ends_with(".cuh") {
            continue;
        }
        let mut text = std::fs::read_to_string(&path).unwrap();
        if file == mutation.file {
            assert!(text.contains(mutation.from), "{}: {} has changed", mutation.name, file);
            text = text.replacen(mutation.from, mutation.to, 1);
            changed = true;
        }
        for (_, dropped, _) in NARROWED.iter().filter(|(op, ..)| file == own && *op == mutation.op) {
            for line in *dropped {
                assert!(text.contains(line), "{line} is not in {file}");
                text = text.replacen(line, "", 1);
            }
        }
        files.push((file, text));
    }
    assert!(changed, "{}: there is no {}", mutation.name, mutation.file);
    let mut hasher = DefaultHasher::new();
    (&files, nvcc::FLAGS).hash(&mut hasher);
    let name = format!("{}-{:016x}", mutation.name, hasher.finish());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for (file, text) in files {
        std::fs::write(folder.join(file), text).unwrap();
    }
    folder
}

/// What nvcc makes of the op's file in a folder, for Hopper. A compiled folder is not compiled again.
fn compiled(nvcc: &Path, op: &str, folder: &Path) -> String {
    let to = folder.join("made.ptx");
    if !to.is_file() {
        let part = folder.join("part.ptx");
        let mut command = Command::new(nvcc);
        // Mistakes may leave a variable unused.
        command.args(nvcc::FLAGS.into_iter().filter(|flag| !flag.contains("warnings")));
        command.args(["-w", "-ptx", "-arch=compute_90a", "-o"]).arg(&part).arg(folder.join(format!("{op}.cu")));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(part, &to).unwrap();
    }
    std::fs::read_to_string(to).unwrap()
}

/// The nvcc that the script installs, or has installed.
fn installed() -> PathBuf {
    let output = Command::new("scripts/install-nvcc.sh").output().unwrap();
    assert!(output.status.success(), "mistakes are compiled: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// These mistakes, compiled on all cores: texts in their order.
fn all_compiled(mutations: &[Mutation]) -> Vec<String> {
    let nvcc = nvcc::find().unwrap_or_else(installed);
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    let work = || {
        let mut texts = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutation) = mutations.get(index) else { return texts };
            texts.push((index, compiled(&nvcc, source_of(mutation.op), &mutated(mutation))));
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut texts: Vec<(usize, String)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    texts.sort_unstable_by_key(|(index, _)| *index);
    println!("{} mistakes compiled in {:.0} s", texts.len(), began.elapsed().as_secs_f64());
    texts.into_iter().map(|(_, text)| text).collect()
}

#[test]
#[ignore = "minutes of nvcc"]
fn every_planted_mistake_is_found() {
    alone("mutations::every_planted_mistake_is_found", || found(every_card::MUTATIONS));
}

/// The same in the products of Hopper, whose many kernels take nvcc longer than all others: `.ci/full`.
#[test]
#[ignore = "minutes of nvcc: the whole matrix"]
fn every_planted_mistake_of_hopper_is_found() {
    alone("mutations::every_planted_mistake_of_hopper_is_found", || found(hopper::MUTATIONS));
}

fn found(mutations: &[Mutation]) {
    let mut unnoticed = Vec::new();
    for (mutation, text) in mutations.iter().zip(all_compiled(mutations)) {
        let mut texts = ptx().to_vec();
        let mine = |(name, _): &&mut (String, String)| emulated::source(name) == source_of(mutation.op);
        texts.iter_mut().filter(mine).for_each(|(_, of_source)| of_source.clone_from(&text));
        let folder = folder_of("mutation", &texts);
        let emulated = Emulated::new(Config { checked: true, ..Config::default() });
        emulated.replace(&folder);
        let narrowed = NARROWED.iter().find(|(op, ..)| *op == mutation.op).map_or(&[][..], |(_, _, names)| names);
        let kept = |case: &Case| narrowed.iter().all(|name| case.name.contains(name));
        let found = first_failure(&emulated, mutation.op, kept);
        let kernels = emulated.machine.report().kernels;
        assert!(kernels.values().any(|counters| counters.instructions > 0), "{} never ran", mutation.name);
        match found {
            Some(found) => println!("{}: {} {}: {}", mutation.name, found.op, found.case, found.failures[0]),
            None => unnoticed.push(mutation.name),
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
    println!("{} of {} planted mistakes are found", mutations.len() - unnoticed.len(), mutations.len());
    assert!(unnoticed.is_empty(), "unnoticed: {unnoticed:?}");
}
