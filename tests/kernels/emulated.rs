//! The emulated device with the project's kernels, opened through the ordinary launch path.

use ggro::cuda::{Device, Image, images, specs};
use ggro_emulator::{Config, STUB_IMAGE};

/// Where the kernels are.
pub const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");

/// The emulated machine and the device that ggro opened on it.
pub struct Emulated {
    // Dropped first: it gives its memory back to the machine.
    pub device: Device,
    pub machine: ggro_emulator::Device,
}

impl Emulated {
    /// Waits for its turn and opens the device.
    pub fn new(config: Config) -> Self {
        let machine = ggro_emulator::Device::install(&ggro_emulator::build(KERNELS).unwrap(), config).unwrap();
        Emulated { device: open(), machine }
    }

    /// No access was wrong, and no launch.
    pub fn assert_clean(&self) {
        let faults = self.machine.faults();
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

/// Opens the device with what nvcc made of the kernels, so that launches are checked against it, or with stubs.
fn open() -> Device {
    if !images::embedded().is_empty() {
        return Device::open(0).unwrap();
    }
    let mut stubs: Vec<Image> = Vec::new();
    for spec in specs() {
        if stubs.iter().all(|stub| stub.name != spec.image) {
            stubs.push(Image { name: spec.image, bytes: STUB_IMAGE.to_bytes_with_nul(), usage: &[] });
        }
    }
    Device::open_with(0, &stubs, &["sm_90"]).unwrap()
}
