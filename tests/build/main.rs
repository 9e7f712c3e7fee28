//! What the build script makes of the compiler's words, and of the names of files.

#[allow(dead_code, reason = "the build script uses the rest")]
#[path = "../../build/nvcc.rs"]
mod nvcc;

const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'product_bf16' for 'sm_90a'
ptxas info    : Function properties for product_bf16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 5 barriers, 128 bytes smem
";

#[test]
fn the_name_of_a_file_says_what_it_is_compiled_for() {
    let list = |targets: &str| -> Vec<String> { targets.split(',').map(str::to_string).collect() };
    let usual = list("sm_80,sm_90a,sm_100,sm_120,compute_80,compute_90a");
    assert_eq!(nvcc::targets_of("product", &usual), usual);
    assert_eq!(nvcc::targets_of("product_sm90", &usual), ["sm_90a", "compute_90a"]);
    // Lists of GGRO_CUDA_TARGETS.
    for (targets, general, hopper) in [
        ("sm_80", &["sm_80"][..], &[][..]),
        ("sm_90a", &["sm_90a"], &["sm_90a"]),
        ("sm_90,compute_90a", &["sm_90", "compute_90a"], &["compute_90a"]),
    ] {
        assert_eq!(nvcc::targets_of("product", &list(targets)), general, "{targets}");
        assert_eq!(nvcc::targets_of("product_sm90", &list(targets)), hopper, "{targets}");
    }
    for name in ["product", "product_sm90"] {
        for (target, place) in nvcc::texts_of(name) {
            assert!(nvcc::targets_of(name, &usual).contains(&target.to_string()) && place.ends_with(name), "{name}");
        }
    }
}

#[test]
fn a_kernel_whose_matrix_instructions_wait_for_each_other_fails_the_build() {
    assert_eq!(nvcc::serialised(REPORT), None);
    for line in [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
         insufficient register resources for the wgmma pipeline in the function 'product_bf16'",
        "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
         non wgmma instructions defining accumulator registers in function 'product_bf16'",
        "ptxas info    : (C7519) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
         ill formed pipeline stage in the function 'product_bf16'",
    ] {
        let said = format!("{REPORT}{line}\nptxas info    : Compile time = 9.8 ms\n");
        assert_eq!(nvcc::serialised(&said), Some(line));
    }
    for other in ["(C7600)", "(C750)", "(C75x9)", "C7519", "(C75"] {
        assert_eq!(nvcc::serialised(&format!("ptxas info    : {other} said otherwise")), None, "{other}");
    }
}
