#![no_main]

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (_, target) = targets::TARGETS.iter().find(|(name, _)| *name == "body").expect("the target");
    target(data);
});
