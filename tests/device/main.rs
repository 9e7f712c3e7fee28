//! The kernels on a real device. A process has one libcuda, so these tests are not in `kernels`, which has the emulated
//! device's.

use ggro::cuda::Device;
use ggro::lab::kernel_check;
use ggro_testkit::golden_rows;

#[test]
#[ignore = "requires a CUDA device"]
fn every_kernel_is_within_its_bounds() {
    let device = Device::open(0).unwrap();
    let findings = kernel_check::test(&device, None, None, |finding| {
        if !finding.passed() {
            eprintln!("{} {}: {:#?}", finding.op, finding.case, finding.failures);
        }
    });
    assert!(findings.iter().all(kernel_check::Finding::passed));
}

#[test]
#[ignore = "requires a CUDA device"]
fn golden_rows() {
    golden_rows::every_golden_row(&Device::open(0).unwrap());
}
