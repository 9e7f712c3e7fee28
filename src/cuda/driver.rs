//! The driver: whether it is there, which version of CUDA it is for, and what its errors say.
//!
//! cudarc looks a call up when it is first made, and panics where the driver lacks it. So the version is asked for before any
//! other call, and a driver that is too old for the calls or for the images of this build is refused in words.

use super::images;
use crate::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::fmt;

/// A version of CUDA: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The version that brought the youngest call that is made, and with version 8.0 of PTX what the text among the images says.
const CALLS: Version = Version(12, 0);

impl Version {
    /// What a driver must be for to run what an assembler made for a target. Machine code runs on every driver of the
    /// assembler's major version; PTX is compiled by the driver, and says the version that it needs.
    fn needed(assembler: &str, target: Option<&str>) -> Version {
        let major = assembler.split('.').next().and_then(|major| major.parse().ok());
        match (major, target) {
            (Some(major), Some(target)) if target.starts_with("sm_") => Version(major, 0).max(CALLS),
            _ => CALLS,
        }
    }

    /// NVIDIA's first release of a driver for it.
    fn release(self) -> Option<u32> {
        match self {
            Version(12, 0) => Some(525),
            Version(13, 0) => Some(580),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The version that a driver must be for to run this build's machine code, and NVIDIA's first release for it, if both are known.
pub fn needed() -> Option<(Version, u32)> {
    needed_for(images::assembler())
}

fn needed_for(assembler: &str) -> Option<(Version, u32)> {
    // Without an assembler there is no machine code. Which target it is for makes no difference.
    let needed = (!assembler.is_empty()).then(|| Version::needed(assembler, Some("sm_80")))?;
    Some((needed, needed.release()?))
}

/// The version that the driver is for.
///
/// # Errors
/// There is no driver, or it does not say.
pub fn version() -> Result<Version> {
    // SAFETY: only asks the loader whether the library can be opened; called before any other driver call, because
    // those panic if it cannot.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Backend("no CUDA driver: libcuda.so.1 cannot be loaded".to_string()));
    }
    let mut version = 0;
    // SAFETY: the library is there, every version of it has this call, before anything is started too, and it writes one number
    // to the place it is given.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| Error::Backend(format!("the CUDA driver does not say its version: {}", words(&e))))?;
    let version = version.unsigned_abs();
    Ok(Version(version / 1000, version % 1000 / 10))
}

/// Loads and starts the driver, if it is new enough for this build.
pub(super) fn start() -> Result<()> {
    new_enough(version()?, images::assembler(), None)?;
    result::init().map_err(|e| Error::Backend(format!("the CUDA driver does not start: {}", words(&e))))
}

/// An error unless the driver takes this build's images for a target.
pub(super) fn takes(target: &str) -> Result<()> {
    new_enough(version()?, images::assembler(), Some(target))
}

fn new_enough(driver: Version, assembler: &str, target: Option<&str>) -> Result<()> {
    let needed = Version::needed(assembler, target);
    if driver >= needed {
        return Ok(());
    }
    let release = match needed.release() {
        Some(release) => format!(", release {release} or later"),
        None => String::new(),
    };
    Err(Error::Backend(format!(
        "the driver is for CUDA {driver}, and the kernels of this ggro need NVIDIA's driver for CUDA {needed} or \
         later{release}"
    )))
}

/// Name and words of the driver for an error.
pub(super) fn words(error: &DriverError) -> String {
    let text = |found: std::result::Result<&std::ffi::CStr, DriverError>| {
        found.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let (name, meaning) = (text(error.error_name()), text(error.error_string()));
    if name.is_empty() { format!("error {:?}", error.0) } else { format!("{name} ({meaning})") }
}

/// Whether every later call on the context fails too.
pub(super) fn is_sticky(error: sys::CUresult) -> bool {
    use sys::CUresult as E;
    matches!(
        error,
        E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_CONTAINED
            | E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_LAUNCH_FAILED
            | E::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | E::CUDA_ERROR_EXTERNAL_DEVICE
            | E::CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_is_told_which_one_is_needed() {
        let said = |driver, made, target| new_enough(driver, made, target).err().map(|why| why.to_string());
        let (old, usual, today) = (Version(11, 8), Version(12, 4), Version(13, 0));
        let text = said(old, "12.9", None).unwrap();
        assert!(text.contains("CUDA 11.8") && text.contains("CUDA 12.0 or later, release 525"), "{text}");
        // Machine code of a later minor version runs, and the PTX asks for no more than 12.0.
        assert_eq!(said(usual, "12.9", Some("sm_90a")), None);
        assert_eq!(said(usual, "13.0", Some("compute_80")), None);
        let text = said(usual, "13.0", Some("sm_90a")).unwrap();
        assert!(text.contains("CUDA 12.4") && text.contains("CUDA 13.0 or later, release 580"), "{text}");
        assert_eq!(said(today, "13.1", Some("sm_80")), None);
        assert!(said(old, "", None).is_some(), "stand-ins have no assembler");
        assert!(said(today, "14.2", Some("sm_80")).unwrap().ends_with("CUDA 14.0 or later"), "an unknown release");
    }

    #[test]
    fn machine_code_needs_the_first_release_of_its_major_version() {
        assert_eq!(needed_for("13.2.78"), Some((Version(13, 0), 580)));
        assert_eq!(needed_for("12.9"), Some((Version(12, 0), 525)));
        assert_eq!([needed_for(""), needed_for("14.2")], [None, None]);
    }

    #[test]
    fn only_errors_that_a_context_does_not_survive_are_sticky() {
        use sys::CUresult as E;
        let lost = [
            E::CUDA_ERROR_ILLEGAL_ADDRESS,
            E::CUDA_ERROR_LAUNCH_FAILED,
            E::CUDA_ERROR_NVLINK_UNCORRECTABLE,
            E::CUDA_ERROR_CONTAINED,
            E::CUDA_ERROR_EXTERNAL_DEVICE,
            E::CUDA_ERROR_TENSOR_MEMORY_LEAK,
            E::CUDA_ERROR_UNKNOWN,
        ];
        assert!(lost.into_iter().all(is_sticky));
        assert!(!is_sticky(E::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(!is_sticky(E::CUDA_ERROR_INVALID_VALUE));
    }
}
