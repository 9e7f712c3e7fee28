#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (_, target) = ggro_testkit::fuzz::TARGETS.iter().find(|(name, _)| *name == "safetensors").expect("the target");
    target(data);
});
