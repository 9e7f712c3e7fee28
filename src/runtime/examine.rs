//! What a report of a fault needs to know of the CUDA devices of this machine.

use super::family::{Chosen, FamilySpec};
use super::launches::Launches;
use super::self_check::{self, SelfCheck};
use super::{NoCuda, images};
use crate::cuda::{self, KernelFamily, driver};

/// A device, looked at and checked.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The device's own name.
    pub name: String,
    /// Its compute capability, e.g. `9.0`.
    pub capability: String,
    /// Which of the build's images it runs.
    pub image: Option<&'static str>,
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory: free ones and all, if it says so.
    pub memory: Option<(u64, u64)>,
    /// Version of CUDA that the driver speaks.
    pub cuda: Option<String>,
    /// Largest clocks in MHz, of multiprocessors and memory.
    pub clocks_mhz: Option<[u32; 2]>,
    /// Other limits, by name, as far as the driver tells.
    pub facts: Vec<(&'static str, u64)>,
    /// What its self-check found now.
    pub self_check: SelfCheck,
    /// The family of kernels that it runs from now on.
    pub kernels: Chosen,
    /// How it launches kernels from now on; `None` where they cannot begin early.
    pub launches: Option<Launches>,
    /// Why nothing else can be run on it in this process, if that is so.
    pub lost: Option<String>,
}

/// How many CUDA devices there are.
///
/// # Errors
/// Why there is none. Without kernels in this build the driver is not asked.
pub fn count() -> Result<usize, NoCuda> {
    let count = match images::embedded().is_empty() {
        true => cuda::Device::open(0).map(|_| 0),
        false => cuda::Device::count(),
    };
    match count.map_err(|why| NoCuda::from(&why))? {
        0 => Err(NoCuda::NoDevice("the driver finds no CUDA device".to_string())),
        count => Ok(count),
    }
}

/// The major version of CUDA that a driver must speak to run this build's kernels, and NVIDIA's first release for it, if both
/// are known.
pub fn needed_driver() -> Option<(u32, u32)> {
    driver::needed().map(|(version, release)| (version.0, release))
}

/// Opens a device, asks it what it is and runs its self-check, whatever is remembered; the kernels for Hopper alone after the
/// others, if nothing was wrong with those, and then dependent launches of the kernels that it can run.
///
/// # Errors
/// It cannot be opened.
pub fn examine(index: usize) -> Result<Examined, NoCuda> {
    let device = cuda::Device::open(index).map_err(|why| NoCuda::from(&why))?;
    let mut self_check = SelfCheck::run(&device);
    if self_check.passed() && KernelFamily::Sm90.runs_on(&device) {
        self_check.run_sm90(&device, self_check::LIMIT);
    }
    let kernels = Chosen::new(&device, FamilySpec::Auto, Some(&self_check)).map_err(NoCuda::NoDevice)?;
    let chosen = device.with_family(kernels.family).map_err(|why| NoCuda::from(&why))?;
    if self_check.passed() && chosen.can_launch_dependents() {
        // Also of a family that is not run now.
        self_check.dependents.clear();
        let others = chosen.clone().with_family(KernelFamily::Sm80).map_err(|why| NoCuda::from(&why))?;
        let both = [Some(others), Some(chosen.clone()).filter(|_| kernels.family != KernelFamily::Sm80)];
        for device in both.iter().flatten().filter(|device| device.alive().is_ok()) {
            self_check.run_dependents(device, self_check::LIMIT);
        }
    }
    let device = chosen;
    let launches = Launches::new(&device, None, true, Some(&self_check));
    let lost = device.alive().err().map(|why| why.to_string());
    let examined = Examined {
        name: device.name().to_string(),
        capability: device.capability().to_string(),
        image: images::target_for(images::targets(), device.capability()).ok(),
        multiprocessors: device.multiprocessors(),
        memory: device.memory().ok().map(|(free, total)| (free as u64, total as u64)),
        cuda: device.driver_version(),
        clocks_mhz: device.clocks_mhz(),
        facts: device.facts(),
        self_check,
        kernels,
        launches,
        lost,
    };
    super::let_go(device);
    Ok(examined)
}
