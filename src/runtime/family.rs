//! Which family of kernels multiplies with stored weights on a CUDA device. It is decided when the device is opened.

use super::self_check::{GroupCheck, SelfCheck};
use crate::cuda::{self, KernelFamily};
use std::fmt;
use std::str::FromStr;

/// Which family of kernels is asked for. As text: `auto`, `sm80`, `sm90` or `sm90-wide`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FamilySpec {
    /// That of Hopper where the device has it and its self-check has passed there, else that of every card.
    #[default]
    Auto,
    /// This one, whatever its self-check found.
    Only(KernelFamily),
}

impl FamilySpec {
    /// All of them.
    pub const ALL: [FamilySpec; 4] = [
        FamilySpec::Auto,
        FamilySpec::Only(KernelFamily::Sm80),
        FamilySpec::Only(KernelFamily::Sm90),
        FamilySpec::Only(KernelFamily::Sm90Wide),
    ];

    /// As text.
    pub fn name(self) -> &'static str {
        match self {
            FamilySpec::Auto => "auto",
            FamilySpec::Only(family) => family.name(),
        }
    }

    /// Whether it depends on the self-check of the kernels for Hopper alone.
    pub(super) fn asks_for_check(self) -> bool {
        self != FamilySpec::Only(KernelFamily::Sm80)
    }
}

impl FromStr for FamilySpec {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = FamilySpec::ALL.into_iter().find(|spec| spec.name() == text);
        found.ok_or_else(|| "expected auto, sm80, sm90 or sm90-wide".to_string())
    }
}

impl fmt::Display for FamilySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The family that a device runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which one.
    pub family: KernelFamily,
    /// Why, in words.
    pub why: String,
    /// Whether the reason is one to look after the machine.
    pub is_notable: bool,
}

impl Chosen {
    /// What a device runs, by what is known of the kernels for Hopper alone. Nothing is run for it.
    ///
    /// # Errors
    /// The device does not have the kernels that are asked for; in words.
    pub(super) fn new(
        device: &cuda::Device,
        spec: FamilySpec,
        check: Option<&SelfCheck>,
    ) -> std::result::Result<Self, String> {
        let is_there = KernelFamily::Sm90.runs_on(device);
        match spec {
            FamilySpec::Only(family) if !family.runs_on(device) => Err(missing(device)),
            _ => Ok(Self::of(spec, is_there.then(|| check.and_then(|check| check.sm90.as_ref())), device)),
        }
    }

    /// `sm90`: if the device has these kernels, what is known of them.
    fn of(spec: FamilySpec, sm90: Option<Option<&GroupCheck>>, device: &cuda::Device) -> Self {
        let passed = sm90.flatten().is_some_and(GroupCheck::passed);
        let known = || match sm90.flatten() {
            None => "the kernels of sm90 were never checked on this device".to_string(),
            Some(check) if check.passed() => "the self-check of sm90 passed".to_string(),
            Some(check) if check.failed() => format!("the self-check of sm90 failed: {}", check.words()),
            Some(check) => format!("the self-check of sm90 is unfinished: {}", check.words()),
        };
        let asked = |family: KernelFamily| format!("--kernels {} asks for it", family.name());
        match (spec, sm90) {
            (FamilySpec::Only(KernelFamily::Sm80), _) => {
                Chosen { family: KernelFamily::Sm80, why: asked(KernelFamily::Sm80), is_notable: false }
            }
            (FamilySpec::Only(family), _) => {
                let but = if passed { String::new() } else { format!(", although {}", known()) };
                Chosen { family, why: asked(family) + &but, is_notable: !passed }
            }
            (FamilySpec::Auto, None) => Chosen { family: KernelFamily::Sm80, why: missing(device), is_notable: false },
            (FamilySpec::Auto, Some(_)) if passed => {
                Chosen { family: KernelFamily::Sm90, why: known(), is_notable: false }
            }
            (FamilySpec::Auto, Some(_)) => {
                let help = match sm90.flatten() {
                    Some(check) if check.failed() => "; `ggro doctor` makes it anew",
                    _ => "",
                };
                Chosen { family: KernelFamily::Sm80, why: known() + help, is_notable: true }
            }
        }
    }

    /// What the user should read, if anything.
    pub fn notice(&self) -> Option<String> {
        let label = match self.family {
            KernelFamily::Sm80 => "kernels",
            KernelFamily::Sm90 | KernelFamily::Sm90Wide => "warning: kernels",
        };
        self.is_notable.then(|| format!("{label}: {} ({})", self.family.name(), self.why))
    }
}

/// Why a device has no kernels of [`KernelFamily::Sm90`].
fn missing(device: &cuda::Device) -> String {
    let capability = device.capability();
    match (capability.0, capability.1) {
        (9, 0) => "this build has no kernels of sm90".to_string(),
        _ => format!("the kernels of sm90 are for compute capability 9.0 alone; {} has {capability}", device.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_asked_for_by_their_names() {
        for spec in FamilySpec::ALL {
            assert_eq!(spec.to_string().parse(), Ok(spec));
        }
        assert_eq!("sm_90".parse::<FamilySpec>(), Err("expected auto, sm80, sm90 or sm90-wide".to_string()));
        assert_eq!(FamilySpec::default(), FamilySpec::Auto);
    }
}
