#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // What panics in the tokenizers crate is caught and is an error of ggro's; what is not caught still ends the run.
    std::panic::set_hook(Box::new(|_| ()));
    let (_, target) = ggro_testkit::fuzz::TARGETS.iter().find(|(name, _)| *name == "tokenizer").expect("the target");
    target(data);
});
