//! Every case of the harness.

use ggro::conformance;
use ggro::cuda::Device;

#[test]
#[ignore = "requires a CUDA device"]
fn every_kernel_is_within_its_bounds() {
    let device = Device::open(0).unwrap();
    let op = std::env::var("GGRO_OP").ok();
    let mut slowest = (std::time::Duration::ZERO, String::new());
    let mut started = std::time::Instant::now();
    let findings = conformance::test(&device, op.as_deref(), |finding| {
        let took = started.elapsed();
        if took > slowest.0 {
            slowest = (took, format!("{} {}", finding.op, finding.case));
        }
        if !finding.passed() {
            eprintln!("{} {}: {:#?}", finding.op, finding.case, finding.failures);
        }
        started = std::time::Instant::now();
    });
    let wrong = findings.iter().filter(|finding| !finding.passed()).count();
    for op in ["rmsnorm", "softmax_entropy", "gemm"] {
        let of_op = findings.iter().filter(|finding| finding.op == op);
        let worst = of_op.map(|finding| finding.error_over_bound).fold(0.0, f64::max);
        eprintln!("{op}: largest error over bound {worst:.3}");
    }
    eprintln!("{} cases on {}, slowest {} in {:?}", findings.len(), device.name(), slowest.1, slowest.0);
    assert_eq!(wrong, 0);
}
