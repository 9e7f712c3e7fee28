//! Opening a device with the kernels of every op.

use super::device::Device;
use super::images::{self, Image};
use super::kernels::{Registration, Spec};
use super::{instruments, ops};
use crate::Result;

fn sets() -> impl Iterator<Item = &'static Registration> {
    ops::ALL.iter().chain(&instruments::ALL)
}

/// Every kernel of every image, smaller versions behind the kernels that they stand for.
pub fn specs() -> Vec<Spec> {
    sets().flat_map(|set| (set.specs)()).flat_map(Spec::all).collect()
}

impl Device {
    /// Opens a device with the embedded kernels. Its products run those of every card: see
    /// [`with_family`](Self::with_family).
    ///
    /// # Errors
    /// This build has no kernels, or none for the device; there is no driver or no such device; a kernel cannot be loaded.
    pub fn open(ordinal: usize) -> Result<Self> {
        Self::open_with(ordinal, images::embedded())
    }

    /// Opens a device with other images, for instance a stand-in's.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_with(ordinal: usize, images: &[Image]) -> Result<Self> {
        Self::start(ordinal, images, sets())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_and_the_images_name_the_same_kernels() {
        let specs = specs();
        for image in images::embedded() {
            for usage in image.usage {
                let found = specs.iter().any(|spec| (spec.image, spec.name) == (image.name, usage.kernel));
                assert!(found, "{} of {}.cu is not in the list", usage.kernel, image.name);
            }
        }
        for spec in specs.iter().filter(|_| !images::embedded().is_empty()) {
            let image = images::embedded().iter().find(|image| image.name == spec.image);
            let image = image.unwrap_or_else(|| panic!("there is no image {}", spec.image));
            // Usage is known of machine code, which a build may have none of for a file.
            for target in image.targets.iter().filter(|target| target.starts_with("sm_")) {
                let mut usages = image.usage.iter().filter(|usage| usage.target == *target);
                assert!(
                    usages.any(|usage| usage.kernel == spec.name),
                    "{} has no {} for {target}",
                    image.name,
                    spec.name
                );
            }
        }
    }

    #[test]
    fn a_set_is_for_all_cards_or_for_hopper_alone() {
        for set in sets() {
            let for_hopper = |spec: &Spec| images::is_for_hopper(spec.image);
            assert_eq!((set.specs)().iter().any(for_hopper), set.is_for_hopper(), "{:?}", (set.specs)());
        }
    }

    /// What a card with compute capability 8.6, 8.9 or 12.x gives a block.
    const LEAST: u32 = 99 * 1024;
    /// What Hopper does.
    const HOPPER: u32 = 227 * 1024;

    #[test]
    fn every_kernel_has_a_version_for_the_smallest_card() {
        let usages = || images::embedded().iter().flat_map(|image| image.usage);
        for set in sets() {
            let least = if set.is_for_hopper() { HOPPER } else { LEAST };
            for spec in (set.specs)() {
                let fixed =
                    |name| usages().filter(|usage| usage.kernel == name).map(|usage| usage.shared).max().unwrap_or(0);
                let needed: Vec<u32> = spec.all().map(|spec| spec.shared + fixed(spec.name)).collect();
                assert!(needed.iter().any(|&bytes| bytes <= least), "{spec:?} needs {needed:?} bytes");
                assert!(needed.len() == 1 || needed[0] > least, "{spec:?}: the smaller version is never taken");
            }
        }
    }

    #[test]
    fn without_kernels_or_driver_opening_is_an_error_in_words() {
        let error = Device::open_with(0, &[]).unwrap_err().to_string();
        assert!(error.contains("without CUDA kernels"), "{error}");
    }
}
