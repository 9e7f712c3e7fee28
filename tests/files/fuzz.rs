//! A short run of the fuzzing targets on any toolchain: what was found before, good files, and files with a few bytes changed. `fuzz/` is
//! the long one, guided by coverage. `GGRO_FUZZ_SECONDS` is how long each target is tried (default 1).

use ggro_testkit::fuzz::TARGETS;
use ggro_testkit::random::XorShift;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn files(folder: &str, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(path.to_str().unwrap(), ending, found);
        } else if path.to_string_lossy().ends_with(ending) && entry.metadata().is_ok_and(|about| about.len() < 400_000)
        {
            found.push(path);
        }
    }
    found.sort();
}

/// Files that a target would be given in earnest, and those that once broke it.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    match target {
        "safetensors" => files("tests/goldens", "model.safetensors", &mut paths),
        "config" => {
            files("tests/corpus", "/config.json", &mut paths);
            files("tests/goldens/mistral", "/config.json", &mut paths);
        }
        "index" => files("tests/goldens", "index.json", &mut paths),
        "tokenizer" => files("tests/goldens/llama-gqa", "tokenizer.json", &mut paths),
        "tokenizer_config" => files("tests/corpus", "tokenizer_config.json", &mut paths),
        "template" => files("tests/corpus", ".jinja", &mut paths),
        _ => {}
    }
    // A few are enough, small ones before large ones.
    paths.sort_by_key(|path| std::fs::metadata(path).map_or(0, |about| about.len()));
    paths.truncate(24);
    let mut seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    match target {
        "request" => seeds.push(
            br#"{"prompt_ids": [1, 2], "options": {"max_new_tokens": 5, "stop_ids": [2], "selection": "sample", "reward_pad_id": null}, "uniforms_used": [0.5]}"#
                .to_vec(),
        ),
        "rows" => seeds.extend([
            b"\"one\"\n{\"prompt\": \"two\", \"answer\": 4}\n[{\"role\": \"user\", \"content\": \"x\"}]".to_vec(),
            br#"{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}"#.to_vec(),
            "{\"chosen\": \"\\n\\nHuman: a\\n\\nAssistant: b\"} the answer is (B)".as_bytes().to_vec(),
        ]),
        "body" => seeds.extend([
            br#"{"model": "demo:ggro", "messages": [{"role": "user", "content": "Hello"}], "stream": true, "ggro": {"trace": true}}"#
                .to_vec(),
            br#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "content": "y"}],
                "continue_final_message": true, "chat_template_kwargs": {"a": 1}, "tools": [{"type": "function"}], "n": 2}"#
                .to_vec(),
            br#"{"model": "demo", "prompt": ["a", [1, 2]], "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "stop": ["x"], "seed": -1,
                "logit_bias": {"5": -1.5}, "logprobs": 2, "echo": true, "vllm_xargs": {"ggro_trace": 1}}"#
                .to_vec(),
        ]),
        _ => {}
    }
    let mut found = Vec::new();
    files(&format!("tests/files/fuzz_found/{target}"), "", &mut found);
    seeds.extend(found.iter().map(|path| std::fs::read(path).unwrap()));
    assert!(!seeds.is_empty(), "{target}");
    seeds
}

/// A seed with a few changes of the kinds that files have suffered.
fn changed(seed: &[u8], random: &mut XorShift) -> Vec<u8> {
    const WORDS: [&[u8]; 12] = [
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"null",
        b"[]",
        b"{}",
        b"\"\"",
        b"\xff\xfe",
        b"{{",
        b"%}",
        b"\\u0000",
        b"9007199254740993",
    ];
    let mut data = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        // Headers are where the meaning is.
        let near = if random.below(2) == 0 { data.len().min(200) } else { data.len() };
        let at = random.below(near + 1);
        let end = (at + 1 + random.below(16)).min(data.len());
        match random.below(6) {
            0 => data.truncate(at),
            1 if at < data.len() => data[at] ^= 1 << random.below(8),
            2 => drop(data.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
            3 if at < end => drop(data.splice(at..end, WORDS[random.below(WORDS.len())].iter().copied())),
            4 if at < end => drop(data.drain(at..end)),
            5 if at < end => {
                let copied = data[at..end].to_vec();
                data.splice(at..at, copied);
            }
            _ => {}
        }
    }
    data
}

#[test]
fn no_bytes_are_too_strange() {
    let seconds = std::env::var("GGRO_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        target(b"");
        let (mut random, mut count, started) = (XorShift::new(1), 0, Instant::now());
        while started.elapsed() < Duration::from_secs_f64(seconds) {
            let data = changed(&seeds[random.below(seeds.len())], &mut random);
            let began = Instant::now();
            let outcome = std::panic::catch_unwind(|| target(&data));
            if outcome.is_err() || began.elapsed() > Duration::from_secs(10) {
                let path = std::env::temp_dir().join(format!("ggro-fuzz-{name}-{count}"));
                std::fs::write(&path, &data).unwrap();
                panic!("{name}: {} breaks it (after {:.1} s)", path.display(), began.elapsed().as_secs_f64());
            }
            count += 1;
        }
        println!("{name}: {count} inputs from {} seeds", seeds.len());
    }
}
