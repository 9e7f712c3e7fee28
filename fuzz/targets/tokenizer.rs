#![no_main]

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // What panics in the tokenizers crate is caught and is an error of ggro's; what is not caught still ends the run.
    std::panic::set_hook(Box::new(|_| ()));
    let (_, target) = targets::TARGETS.iter().find(|(name, _)| *name == "tokenizer").expect("the target");
    target(data);
});
