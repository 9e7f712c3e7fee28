//! The self-check of a device: every kernel is in it, a broken one is found, and each face says so.

use crate::emulated::{self, Emulated};
use ggro::cuda::{KernelFamily, self_check, specs};
use ggro_emulator::Config;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Images of what measures a card, and is part of no model.
const INSTRUMENTS: [&str; 4] = ["mma_peak", "probe", "read_peak", "wgmma_peak_sm90"];
pub const LIMIT: Duration = Duration::from_secs(600);

/// A folder of the kernels in which `change` has had its way with each file.
pub fn changed(name: &str, change: fn(&str, &str) -> String) -> PathBuf {
    let texts: Vec<_> =
        emulated::ptx().iter().map(|(file, text)| (file.clone(), change(emulated::source(file), text))).collect();
    emulated::folder_of(name, &texts)
}

/// One kernel of the norm with its sums turned into differences.
fn broken() -> PathBuf {
    changed("broken", |file, text| {
        if file != "rmsnorm" {
            return text.to_string();
        }
        let kernel = text.find(".entry rmsnorm_bf16").unwrap();
        let end = text[kernel + 1..].find(".entry").map_or(text.len(), |at| kernel + 1 + at);
        [&text[..kernel], &text[kernel..end].replace("add.f32", "sub.f32"), &text[end..]].concat()
    })
}

/// Kernels that end before they write anything.
fn dead() -> PathBuf {
    changed("dead", |_, text| {
        // They wait for the kernels before them all the same: without that, their launch is a fault.
        let end = if text.contains("griddepcontrol") { "\tgriddepcontrol.wait;\n\tret;\n" } else { "\tret;\n" };
        let line = |line: &str| format!("{line}\n{}", if line == "{" { end } else { "" });
        text.lines().map(line).collect()
    })
}

/// On each promised card, whose kernels are not all the same.
#[test]
fn every_kernel_is_checked() {
    let mut launched = BTreeSet::new();
    for arch in [80, 86, 89, 90, 100, 120] {
        let emulated = Emulated::new(Config::default());
        emulated.machine.configure(&format!("arch={arch}"));
        let emulated = emulated.opened_again();
        let found = self_check::run(&emulated.device, LIMIT);
        assert!(found.wrong.is_empty() && found.ran == found.cases && found.cases > 80, "{arch}: {found:#?}");
        println!("{arch}: {} cases in {:.2} s", found.cases, found.seconds);
        if KernelFamily::Sm90.runs_on(&emulated.device) {
            let found = self_check::run_sm90(&emulated.device, LIMIT);
            assert!(found.wrong.is_empty() && found.ran == found.cases && found.cases > 60, "{arch}: {found:#?}");
            println!("{arch}: {} cases of sm90 in {:.2} s", found.cases, found.seconds);
        }
        launched.extend(emulated.machine.report().kernels.into_keys());
        emulated.assert_clean();
    }
    for spec in specs().iter().filter(|spec| !INSTRUMENTS.contains(&spec.image)) {
        assert!(launched.contains(spec.name), "{} is in no case", spec.name);
    }
}

#[test]
fn kernels_that_write_nothing_are_noticed() {
    let dead = dead();
    let emulated = Emulated::new(Config::default());
    emulated.machine.configure(&format!("ptx={}", dead.display()));
    let found = self_check::run(&emulated.device, LIMIT);
    assert_eq!((found.wrong.len(), found.ran), (found.cases, found.cases), "{found:#?}");
    // What has no time left is said, and is no fault.
    let found = self_check::run(&emulated.device, Duration::ZERO);
    assert_eq!((found.ran, found.wrong.len(), found.stopped), (0, 0, Some("the time was over")));
    emulated.assert_clean();
}

#[test]
fn sums_as_on_cards_are_within_the_bounds() {
    let emulated = Emulated::new(Config::default());
    for sums in ["8", "16"] {
        emulated.machine.configure(&format!("mma={sums}"));
        let found = self_check::run(&emulated.device, LIMIT);
        assert!(found.wrong.is_empty(), "{sums}: {found:#?}");
    }
}

/// The binary on the emulated device, with a cache of its own.
pub struct Machine {
    pub ptx: PathBuf,
    pub cache: TempDir,
}

/// What a run left behind.
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(!err.contains("panicked"), "{err}");
        Run { code: output.status.code(), out, err }
    }
}

impl Machine {
    pub fn command(&self, cache: &Path, args: &[&str]) -> Command {
        let mut command = emulated::ggro(&self.cache.path().join("report.json"));
        command.env("GGRO_EMU_PTX", &self.ptx).env("XDG_CACHE_HOME", cache).args(args);
        command
    }

    fn run_in(&self, cache: &Path, args: &[&str]) -> Run {
        Run::of(&mut self.command(cache, args))
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.run_in(self.cache.path(), args)
    }

    /// Files of results.
    pub fn remembered(&self) -> Vec<PathBuf> {
        let folder = std::fs::read_dir(self.cache.path().join("ggro/self-check"));
        folder.map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
    }

    /// A server's address, and what it logged until it was ready.
    fn serve(&self, args: &[&str]) -> (String, String, std::process::Child) {
        let mut command = self.command(self.cache.path(), &[&["serve", "--port", "0"], args].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (mut base, mut log) = (String::new(), String::new());
        for line in BufReader::new(child.stderr.as_mut().unwrap()).lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("listening on ") {
                base = address.split('"').next().unwrap().to_string();
            }
            log += &line;
            log += "\n";
            if line.contains("\"ready\"") {
                break;
            }
        }
        (base, log, child)
    }
}

const ASK: [&str; 6] = ["generate", "--json", "--no-baseline", "--max-new-tokens", "4", "Hello."];

#[test]
fn a_sound_device_is_checked_once() {
    let machine = Machine { ptx: emulated::folder().to_path_buf(), cache: tempfile::tempdir().unwrap() };
    let info = machine.run(&["info"]);
    assert!(info.out.contains("self-check: not yet made"), "{}", info.out);
    let first = machine.run(&ASK);
    assert!(first.code == Some(0) && first.err.contains("self-check: cuda:0, for the first time: "), "{}", first.err);
    assert_eq!(machine.remembered().len(), 1);
    let second = machine.run(&ASK);
    assert!(second.code == Some(0) && !second.err.contains("self-check"), "{}", second.err);
    let info = machine.run(&["info"]);
    assert!(info.out.contains("cases passed in ") && info.out.contains(", on 20"), "{}", info.out);
    // A damaged result is none; a cache that cannot be is no fault.
    std::fs::write(&machine.remembered()[0], "{").unwrap();
    assert!(machine.run(&ASK).err.contains("for the first time"));
    let nowhere = machine.run_in(Path::new("/proc/nowhere"), &ASK);
    assert!(nowhere.code == Some(0) && nowhere.err.contains("cases passed"), "{}", nowhere.err);
    let doctor = machine.run(&["doctor"]);
    assert!(doctor.code == Some(0) && doctor.out.contains("all is well"), "{}", doctor.out);
    assert_eq!(doctor.out.matches("gives its known answer").count(), 2, "{}", doctor.out);
    let nowhere = machine.run_in(Path::new("/proc/nowhere"), &["doctor"]);
    assert!(nowhere.code == Some(0) && nowhere.out.contains("NOT writable"), "{}", nowhere.out);
}

#[test]
fn a_broken_kernel_is_said_by_each_face() {
    let machine = Machine { ptx: broken(), cache: tempfile::tempdir().unwrap() };
    let why = "the CUDA device failed its self-check (ggro emulated device: 1 of ";
    let which = "rmsnorm (bf16 forward): ";

    let auto = machine.run(&ASK);
    let answer: Value = serde_json::from_str(&auto.out).unwrap();
    assert_eq!((auto.code, answer["device"].as_str()), (Some(0), Some("cpu")), "{}", auto.err);
    let line = auto.err.lines().find(|line| line.starts_with("device: cpu (")).unwrap();
    assert!(line.contains(why) && line.contains(which) && line.contains("--no-self-check"), "{line}");

    let cuda = machine.run(&[&ASK[..], &["--device", "cuda"]].concat());
    assert_eq!(cuda.code, Some(2), "{}", cuda.err);
    let expected = format!("error: --device cuda:0: {why}");
    assert!(cuda.err.starts_with(&expected) && cuda.err.contains(which), "{}", cuda.err);
    // Whatever it then computes.
    let forced = machine.run(&[&ASK[..], &["--device", "cuda", "--no-self-check"]].concat());
    assert!(forced.err.contains("device: cuda:0") && !forced.err.contains("self-check"), "{}", forced.err);

    let info = machine.run(&["info"]);
    assert!(info.out.contains("self-check: 1 of ") && info.out.contains(which), "{}", info.out);
    let info: Value = serde_json::from_str(&machine.run(&["info", "--json"]).out).unwrap();
    assert_eq!(info["cuda"]["devices"][0]["self_check"]["passed"], false, "{info}");
    let doctor = machine.run(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    let last = doctor.out.lines().last().unwrap();
    assert!(doctor.out.contains(which) && last.contains("found"), "{}", doctor.out);
    let doctor: Value = serde_json::from_str(&machine.run(&["doctor", "--json"]).out).unwrap();
    let problems = doctor["problems"].as_array().unwrap();
    assert!(
        problems.iter().any(|problem| problem.as_str().unwrap().contains("cuda:0: the self-check failed")),
        "{doctor}"
    );

    // A server that must have the device does not start; one that may take the CPU says so and is ready.
    let refused = machine.run(&["serve", "--port", "0", "--device", "cuda"]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(refused.err.contains(why), "{}", refused.err);
    let (base, log, mut child) = machine.serve(&[]);
    assert!(log.contains(why) && log.contains("device: cpu"), "{log}");
    let ready = ureq::get(format!("{base}/ready")).call().unwrap();
    assert_eq!(ready.status(), 200);
    child.kill().unwrap();
    child.wait().unwrap();
}
