//! The conformance harness and the golden rows on a CUDA device.

mod kernels {
    mod goldens;
    mod harness;
}
