//! Whether kernels of a CUDA device begin before those before them have ended. It is decided when the device is opened.

use super::self_check::{GroupCheck, SelfCheck};
use crate::cuda;

/// How a device launches kernels that can begin early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launches {
    /// Each may begin before the one before it has ended; else they run one after the other. The results have the same bits.
    pub dependent: bool,
    /// Why, in words.
    pub why: String,
    /// Whether the reason is one to look after the machine.
    pub is_notable: bool,
}

impl Launches {
    /// What a device does, by what is asked for and what is known of the kernels of its family; nothing where they cannot begin early.
    /// `checks`: whether what is not known would have been checked.
    pub(super) fn new(
        device: &cuda::Device,
        asked: Option<bool>,
        checks: bool,
        known: Option<&SelfCheck>,
    ) -> Option<Self> {
        let check = known.and_then(|known| known.dependents_of(device.family()));
        device.can_launch_dependents().then(|| Self::of(asked, checks, check))
    }

    fn of(asked: Option<bool>, checks: bool, check: Option<&GroupCheck>) -> Self {
        let passed = check.is_some_and(GroupCheck::passed);
        let (known, help) = match check {
            None => ("dependent launches were never checked on this device".to_string(), ""),
            Some(check) if check.passed() => ("the self-check of dependent launches passed".to_string(), ""),
            Some(check) if check.failed() => {
                let known = format!("the self-check of dependent launches failed: {}", check.words());
                (known, "; `ggro doctor` makes it anew")
            }
            Some(check) => (format!("the self-check of dependent launches is unfinished: {}", check.words()), ""),
        };
        match asked {
            Some(false) => {
                Launches { dependent: false, why: "--dependent-launches=false asks for it".into(), is_notable: false }
            }
            _ if passed => Launches { dependent: true, why: known, is_notable: false },
            // Whoever turns the check off and the launches on means it.
            Some(true) if !checks => {
                let why = format!("--dependent-launches asks for it, although {known}");
                Launches { dependent: true, why, is_notable: true }
            }
            _ => Launches { dependent: false, why: known + help, is_notable: true },
        }
    }

    /// What the user should read, if anything.
    pub fn notice(&self) -> Option<String> {
        let what = if self.dependent { "warning: launches: dependent" } else { "launches: one after the other" };
        self.is_notable.then(|| format!("{what} ({})", self.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> GroupCheck {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn kernels_begin_early_where_that_was_checked() {
        let passed = check(r#"{"when": "", "ended": true, "cases": 4, "ran": 4, "wrong": [], "seconds": 0.1}"#);
        let wrong = check(r#"{"when": "", "ended": true, "cases": 4, "ran": 4, "wrong": ["chain"], "seconds": 0.1}"#);
        let begun = check(r#"{"when": "then", "ended": false, "cases": 0, "ran": 0, "wrong": [], "seconds": 0.0}"#);
        let cut = check(
            r#"{"when": "", "ended": true, "cases": 4, "ran": 1, "stopped": "the time was over", "wrong": [], "seconds": 10.0}"#,
        );
        for (asked, checks, check, dependent, notice) in [
            (None, true, Some(&passed), true, None),
            (Some(true), true, Some(&passed), true, None),
            (None, false, Some(&passed), true, None),
            (Some(false), true, Some(&passed), false, None),
            (Some(false), false, None, false, None),
            (
                None,
                true,
                Some(&wrong),
                false,
                Some("launches: one after the other (the self-check of dependent launches failed: 1 of 4"),
            ),
            (
                Some(true),
                true,
                Some(&begun),
                false,
                Some("launches: one after the other (the self-check of dependent launches failed: it did not end"),
            ),
            (
                None,
                true,
                Some(&cut),
                false,
                Some("launches: one after the other (the self-check of dependent launches is unfinished: 1 cases"),
            ),
            (None, false, None, false, Some("launches: one after the other (dependent launches were never checked")),
            (
                Some(true),
                false,
                None,
                true,
                Some(
                    "warning: launches: dependent (--dependent-launches asks for it, although dependent launches were never",
                ),
            ),
            (
                Some(true),
                false,
                Some(&wrong),
                true,
                Some("warning: launches: dependent (--dependent-launches asks for it, although the self-check"),
            ),
        ] {
            let found = Launches::of(asked, checks, check);
            let said = found.notice();
            assert_eq!(found.dependent, dependent, "{asked:?}, {checks}: {found:?}");
            match notice {
                Some(notice) => assert!(said.as_ref().is_some_and(|said| said.starts_with(notice)), "{said:?}"),
                None => assert_eq!(said, None, "{asked:?}, {checks}"),
            }
        }
    }
}
