//! Self-checks of CUDA devices, and what is remembered of them.
//!
//! A device is checked the first time it is opened, and again with another driver or another build. What was found is a small
//! file in the user's cache, `ggro/self-check/` in `XDG_CACHE_HOME` or `~/.cache`. A cache that cannot be read or written never
//! fails anything: the check is then made each time.
//!
//! What a device can do without is checked apart ([`GroupCheck`]): the kernels for Hopper alone, and launches of kernels that may
//! begin before those before them have ended. A kernel that never ends takes the device from the process, or the process itself; so
//! the file says that a group is tried before it is.

use crate::cuda::{self, KernelFamily, images, self_check};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a check may take before it ends where it is.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What another process may need beside its check's limit until it has written what it found.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks at a file that another process is about to write.
const PAUSE: Duration = Duration::from_millis(50);

/// What a self-check of a device found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// What was checked: card, driver and build in words.
    pub of: String,
    /// When, as in `2026-11-29T16:00:00Z`.
    pub when: String,
    /// Cases that there are.
    pub cases: usize,
    /// Cases that were run.
    pub ran: usize,
    /// Why the others were not, if that is no fault of the device.
    pub stopped: Option<String>,
    /// Per case that differs, which it is and where.
    pub wrong: Vec<String>,
    /// What it took.
    pub seconds: f64,
    /// The check of the kernels for Hopper alone, if it was made.
    #[serde(default)]
    pub sm90: Option<GroupCheck>,
    /// The checks of dependent launches, by the name of the family whose kernels were launched.
    #[serde(default)]
    pub dependents: BTreeMap<String, GroupCheck>,
}

/// What a self-check of something found that a device can do without.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupCheck {
    /// When it began.
    pub when: String,
    /// Whether it came to an end; else the process that made it did not survive it.
    pub ended: bool,
    /// As [`SelfCheck::cases`].
    pub cases: usize,
    /// As [`SelfCheck::ran`].
    pub ran: usize,
    /// As [`SelfCheck::stopped`].
    pub stopped: Option<String>,
    /// As [`SelfCheck::wrong`].
    pub wrong: Vec<String>,
    /// As [`SelfCheck::seconds`].
    pub seconds: f64,
}

impl GroupCheck {
    /// One that has begun.
    fn begun() -> Self {
        GroupCheck { when: now(), ended: false, cases: 0, ran: 0, stopped: None, wrong: Vec::new(), seconds: 0.0 }
    }

    /// The same, come to its end.
    fn ended(self, findings: self_check::Findings) -> Self {
        let self_check::Findings { cases, ran, stopped, wrong, seconds } = findings;
        GroupCheck { when: self.when, ended: true, cases, ran, stopped: stopped.map(str::to_string), wrong, seconds }
    }

    /// Whether it has to be made: it never was, or found nothing wrong and did not get to its end.
    fn is_due(check: Option<&Self>) -> bool {
        !check.is_some_and(|check| check.passed() || check.failed())
    }

    /// Every case was run, and nothing differs.
    pub fn passed(&self) -> bool {
        self.ended && self.wrong.is_empty() && self.ran == self.cases
    }

    /// Something differs, or it did not come to an end. That stays so until the check is made anew.
    pub fn failed(&self) -> bool {
        !self.ended || !self.wrong.is_empty()
    }

    /// Whether another process may be making it just now.
    fn may_be_running(&self, now: DateTime<Utc>) -> bool {
        let begun = DateTime::parse_from_rfc3339(&self.when).map(|when| now.signed_duration_since(when));
        let age = begun.ok().and_then(|age| age.to_std().ok());
        !self.ended && age.is_some_and(|age| age < LIMIT + GRACE)
    }

    /// In a few words.
    pub fn words(&self) -> String {
        match self.ended {
            true => words(self.cases, self.ran, self.stopped.as_deref(), &self.wrong, self.seconds),
            false => format!("it did not end the last time ({})", self.when),
        }
    }
}

impl SelfCheck {
    /// What was found before, of this card with this driver and this build.
    pub(super) fn remembered(device: &cuda::Device) -> Option<Self> {
        let of = subject(device);
        let text = std::fs::read_to_string(file(&of)?).ok()?;
        serde_json::from_str(&text).ok().filter(|check: &SelfCheck| check.of == of)
    }

    /// As [`remembered`](Self::remembered), once no other process may be checking one of the groups: several servers of a machine
    /// that start together are to come to the same end.
    pub(super) fn settled(device: &cuda::Device) -> Option<Self> {
        loop {
            let check = Self::remembered(device)?;
            let now = Utc::now();
            if !check.sm90.iter().chain(check.dependents.values()).any(|group| group.may_be_running(now)) {
                return Some(check);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Checks the kernels of a device that every card needs, and remembers what was found. What is known of the groups stays.
    pub(super) fn run(device: &cuda::Device) -> Self {
        let (sm90, dependents) =
            Self::remembered(device).map(|check| (check.sm90, check.dependents)).unwrap_or_default();
        let self_check::Findings { cases, ran, stopped, wrong, seconds } = self_check::run(device, LIMIT);
        let (when, stopped) = (now(), stopped.map(str::to_string));
        let check = SelfCheck { of: subject(device), when, cases, ran, stopped, wrong, seconds, sm90, dependents };
        check.keep();
        check
    }

    /// Checks the kernels for Hopper alone, which the device has, and remembers what was found. A kernel that never ends leaves
    /// the device lost.
    pub(super) fn run_sm90(&mut self, device: &cuda::Device, limit: Duration) {
        let begun = GroupCheck::begun();
        self.sm90 = Some(begun.clone());
        self.keep();
        self.sm90 = Some(begun.ended(self_check::run_sm90(device, limit)));
        self.keep();
    }

    /// Checks dependent launches of the kernels of the family that the device runs, and remembers what was found. The device can
    /// launch so. A kernel that never ends leaves it lost.
    pub(super) fn run_dependents(&mut self, device: &cuda::Device, limit: Duration) {
        let (family, begun) = (device.family().name().to_string(), GroupCheck::begun());
        self.dependents.insert(family.clone(), begun.clone());
        self.keep();
        self.dependents.insert(family, begun.ended(self_check::run_dependents(device, limit)));
        self.keep();
    }

    /// Whether the check of the kernels for Hopper alone has to be made: it never was, or found nothing wrong and did not get
    /// to its end.
    pub(super) fn lacks_sm90(&self) -> bool {
        GroupCheck::is_due(self.sm90.as_ref())
    }

    /// The same of dependent launches of a family's kernels.
    pub(super) fn lacks_dependents(&self, family: KernelFamily) -> bool {
        GroupCheck::is_due(self.dependents_of(family))
    }

    /// What is known of dependent launches of a family's kernels.
    pub fn dependents_of(&self, family: KernelFamily) -> Option<&GroupCheck> {
        self.dependents.get(family.name())
    }

    fn keep(&self) {
        // What could not even begin says nothing.
        if let Some(path) = file(&self.of).filter(|_| self.ran > 0) {
            // Nobody is told: without it the next one checks again.
            let _ = self.remember(&path);
        }
    }

    fn remember(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        // Whoever reads it meanwhile sees the former file or this one.
        let part = path.with_extension(format!("{}.part", std::process::id()));
        std::fs::write(&part, serde_json::to_string(self)?)?;
        std::fs::rename(&part, path).inspect_err(|_| drop(std::fs::remove_file(&part)))
    }

    /// Nothing differs, of what was run.
    pub fn passed(&self) -> bool {
        self.wrong.is_empty()
    }

    /// In a few words.
    pub fn words(&self) -> String {
        words(self.cases, self.ran, self.stopped.as_deref(), &self.wrong, self.seconds)
    }
}

fn words(cases: usize, ran: usize, stopped: Option<&str>, wrong: &[String], seconds: f64) -> String {
    let unfinished = stopped.map_or(String::new(), |why| format!(" (of {cases}: {why})"));
    match wrong.split_first() {
        None => format!("{ran} cases passed in {seconds:.1} s{unfinished}"),
        Some((first, rest)) => {
            let others = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
            format!("{} of {ran} cases differ{unfinished}: {first}{others}", wrong.len())
        }
    }
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// Where the results are kept, if there is a place for them.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // As the specification of these folders has it, only absolute paths count.
    let cache = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("ggro").join("self-check"))
}

/// The release of the driver's kernel module, as in `580.65.06`.
pub fn driver_release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let release = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(release).map(str::to_string)
}

/// Card, driver and build: what the result depends on.
fn subject(device: &cuda::Device) -> String {
    format!(
        "{}, compute capability {}, CUDA {}, driver {}, ggro {} ({}), kernels {:016x} by nvcc {}",
        device.name(),
        device.capability(),
        device.driver_version().as_deref().unwrap_or("unknown"),
        driver_release().as_deref().unwrap_or("unknown"),
        env!("CARGO_PKG_VERSION"),
        option_env!("GGRO_BUILD_COMMIT").unwrap_or("unknown commit"),
        self_check::fingerprint(),
        images::compiler(),
    )
}

/// The file of a subject: a name that a person recognises, and a number.
fn file(of: &str) -> Option<PathBuf> {
    let hash = of
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let name = of.split(',').next().unwrap_or_default().to_lowercase();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Some(folder()?.join(format!("{name}-{hash:016x}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ran: usize, wrong: &[&str]) -> SelfCheck {
        let wrong = wrong.iter().map(|text| text.to_string()).collect();
        let stopped = (ran < 9).then(|| "the time was over".to_string());
        SelfCheck {
            of: "a card".into(),
            when: "2026-11-29T16:00:00Z".into(),
            cases: 9,
            ran,
            stopped,
            wrong,
            seconds: 0.26,
            sm90: None,
            dependents: BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_begun_and_never_ended_has_failed() {
        let of = |ran: usize, wrong: &[&str]| {
            let wrong = wrong.iter().map(|text| text.to_string()).collect();
            let stopped = (ran < 9).then(|| "the time was over".to_string());
            GroupCheck { ended: true, cases: 9, ran, stopped, wrong, ..GroupCheck::begun() }
        };
        let begun = GroupCheck::begun();
        assert!(begun.failed() && !begun.passed() && begun.words().starts_with("it did not end the last time (20"));
        assert!(of(9, &[]).passed() && !of(9, &[]).failed());
        assert!(of(9, &["gemm_sm90"]).failed() && of(2, &["gemm_sm90"]).failed());
        // Only what says nothing yet is made again by itself.
        assert!(!of(4, &[]).passed() && !of(4, &[]).failed());
        let lacks = |sm90| SelfCheck { sm90, ..check(9, &[]) }.lacks_sm90();
        assert!(lacks(None) && lacks(Some(of(4, &[]))));
        assert!(!lacks(Some(begun.clone())) && !lacks(Some(of(9, &[]))) && !lacks(Some(of(9, &["gemm_sm90"]))));
        // Another process may be at it, for as long as one may take.
        let (now, secs) = (Utc::now(), chrono::TimeDelta::seconds);
        assert!(GroupCheck::begun().may_be_running(now) && !of(9, &[]).may_be_running(now));
        for far in [secs(-60), secs(60)] {
            assert!(!GroupCheck::begun().may_be_running(now + far), "{far}");
        }
        // Each family's launches are a group of their own.
        let dependents = [("sm80".to_string(), begun)].into_iter().collect();
        let launched = SelfCheck { dependents, ..check(9, &[]) };
        assert!(!launched.lacks_dependents(KernelFamily::Sm80) && launched.lacks_dependents(KernelFamily::Sm90));
        // A file of before has no such checks.
        let mut old = serde_json::to_value(check(9, &[])).unwrap();
        old.as_object_mut().unwrap().retain(|name, _| !["sm90", "dependents"].contains(&name.as_str()));
        assert_eq!(serde_json::from_value::<SelfCheck>(old).unwrap(), check(9, &[]));
    }

    #[test]
    fn results_are_said_in_words() {
        assert_eq!(check(9, &[]).words(), "9 cases passed in 0.3 s");
        assert_eq!(check(4, &[]).words(), "4 cases passed in 0.3 s (of 9: the time was over)");
        assert_eq!(check(9, &["embed (bf16)"]).words(), "1 of 9 cases differ: embed (bf16)");
        assert_eq!(check(9, &["embed", "rope"]).words(), "2 of 9 cases differ: embed; and 1 more");
        assert!(check(4, &[]).passed() && !check(9, &["embed"]).passed());
    }

    #[test]
    fn a_result_is_kept_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("card.json");
        check(9, &[]).remember(&path).unwrap();
        let back: SelfCheck = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(back, check(9, &[]));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // A folder stands where the file should be.
        assert!(check(9, &[]).remember(folder.path()).is_err());
    }
}
