//! Responses whose text is tokenised again between segments.

use ggro::Result;
use ggro::answer::{FinishReason, Respell, RespelledAnswer, Response};
use ggro::engine::{decode, decode_retokenized};
use ggro::files::chat::Message;
use ggro::files::checkpoint::Files;
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::files::tokenizer::Tokenizer;
use ggro::method::{Options, Proposals, Selection};
use ggro::model::cpu::{self, LoadOptions};
use ggro::rng::Uniforms;
use ggro::text::{Next, Prompt, PromptLayout, RespelledText};
use ggro_testkit::fixtures::goldens;
use std::path::Path;
use std::sync::Arc;

/// Spells ids as a function says. The prompt's length is what it is told.
struct By<'a>(&'a dyn Fn(&[u32]) -> Vec<u32>, usize);

impl Respell for By<'_> {
    fn respell(&mut self, ids: &[u32], _: bool) -> Result<Vec<u32>> {
        Ok(self.0(ids))
    }

    fn answer(&mut self, ids: &[u32]) -> Result<RespelledAnswer> {
        Ok(RespelledAnswer { prompt_len: self.1, text: format!("{} ids", ids.len()) })
    }
}

/// The response as usual, and tokenised again; and how often a text was scored by itself.
fn run(respell: &dyn Fn(&[u32]) -> Vec<u32>) -> (Response, Response, usize) {
    run_with(respell, |_| ())
}

fn run_with(respell: &dyn Fn(&[u32]) -> Vec<u32>, change: impl Fn(&mut Options)) -> (Response, Response, usize) {
    let pair = Pair::load(&demo::policy(), &demo::reward()).unwrap();
    let mut models = cpu::open(pair.parts(), &LoadOptions::default()).unwrap();
    let prompt = pair.tokenizer.encode("Once upon a time, there was a fox.").unwrap();
    let (max_new_tokens, max_candidates, first_offset) = (24, 3, 2);
    let mut options = Options { max_new_tokens, max_candidates, first_offset, ..Options::for_pair(&pair).unwrap() };
    change(&mut options);
    let whole = decode(&mut models, &prompt, &options, Uniforms::Seeded(0), &mut ()).unwrap();
    let mut scored = 0;
    let again = decode_retokenized(
        &prompt,
        &options,
        &mut By(respell, prompt.len()),
        &mut |ids, options| decode(&mut models, ids, options, Uniforms::Seeded(0), &mut ()),
        &mut |_| {
            scored += 1;
            Ok(9.0)
        },
    );
    (whole, again.unwrap(), scored)
}

#[test]
fn a_text_that_is_spelled_alike_gives_the_same_answer() {
    let (whole, again, scored) = run(&|ids| ids.to_vec());
    assert!(whole.segments.len() > 2, "{}", whole.segments.len());
    assert_eq!(scored, 0);
    // What is kept between segments is computed again.
    assert_eq!(again.respelled, Some(format!("{} ids", again.final_ids.len())));
    assert_eq!(Response { work: whole.work, respelled: None, ..again.clone() }, whole);
    assert!(again.work.policy_forward > whole.work.policy_forward);
}

#[test]
fn the_policy_goes_on_from_what_the_text_is_spelled_as() {
    // The first id of every pair of equal ids is lost.
    let respell = |ids: &[u32]| {
        let mut ids = ids.to_vec();
        ids.dedup();
        ids.into_iter().filter(|id| id % 7 != 3).collect()
    };
    let (whole, again, scored) = run(&respell);
    assert_eq!(respell(&again.final_ids), again.final_ids);
    assert!(again.final_ids != whole.final_ids && scored <= 1);
    assert_eq!(again.segment_boundaries.len(), again.segments.len());
    assert!(again.finish_reason != FinishReason::Length || again.final_ids.len() - again.prompt_len >= 24 - 2);
    assert_eq!(scored == 1, again.final_reward == 9.0);
}

#[test]
fn a_budget_is_filled_with_the_ids_that_the_text_is_spelled_with() {
    // Some ids of the answer are spelled with none: a segment that had filled the budget leaves room for another one.
    let respell = |ids: &[u32]| ids.iter().copied().filter(|id| id % 5 != 2).collect();
    let (whole, again, _) = run_with(&respell, |options| options.entropy_threshold = 1e9);
    assert_eq!((whole.segments.len(), whole.finish_reason), (1, FinishReason::Length));
    assert!(again.segments.len() > 1, "{:?}", again.segment_boundaries);
    assert_eq!(again.finish_reason, FinishReason::Length);
    // The prompt is spelled otherwise as well, and the budget is counted from where it ended.
    assert_eq!(again.final_ids.len(), whole.final_ids.len());
}

#[test]
fn drawn_nudges_are_refused() {
    let options = Options::new(0, vec![0]);
    for options in [
        Options { selection: Selection::Sample, ..options.clone() },
        Options { proposals: Proposals::Random, ..options.clone() },
        Options { proposals: Proposals::ShuffledGradient, ..options.clone() },
    ] {
        let mut text = By(&<[u32]>::to_vec, 0);
        let refused = decode_retokenized(&[1], &options, &mut text, &mut |_, _| unreachable!(), &mut |_| Ok(0.0));
        assert!(refused.unwrap_err().to_string().contains("chosen greedily"));
    }
}

#[test]
fn a_prompt_that_is_spelled_with_fewer_ids_is_no_longer_than_the_text() {
    // Behind the first segment the text has three ids.
    let (_, again, _) = run_with(&|ids| ids[..ids.len().min(3)].to_vec(), |options| options.max_new_tokens = 2);
    assert_eq!((again.final_ids.len(), again.prompt_len, again.new_ids().len()), (3, 3, 0));
}

/// The ids that a text has behind its prompt, and its answer.
struct Case<'a> {
    cleans_up: bool,
    layout: PromptLayout,
    prompt: &'a str,
    prefill: &'a str,
    added: &'a str,
    expected: &'a str,
}

#[test]
fn the_answer_is_the_text_behind_the_prompt_however_it_is_spelled() {
    let both = [false, true].map(|cleans_up| {
        let folder = tempfile::tempdir().unwrap();
        for kind in ["policy", "reward"] {
            let (from, to) =
                (Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(kind), folder.path().join(kind));
            std::fs::create_dir(&to).unwrap();
            for file in std::fs::read_dir(from).unwrap() {
                let file = file.unwrap();
                std::fs::write(to.join(file.file_name()), std::fs::read(file.path()).unwrap()).unwrap();
            }
            let path = to.join("tokenizer_config.json");
            let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            config["clean_up_tokenization_spaces"] = serde_json::json!(cleans_up && kind == "reward");
            std::fs::write(&path, config.to_string()).unwrap();
        }
        Pair::load(&Files::Dir(folder.path().join("policy")), &Files::Dir(folder.path().join("reward"))).unwrap()
    });
    let (chat, official) = (PromptLayout::Chat, PromptLayout::Official);
    for case in [
        Case { cleans_up: false, layout: chat, prompt: "Hi", prefill: "", added: "Yes .", expected: "Yes ." },
        // The blank at the end of the beginning becomes a part of the next word.
        Case {
            cleans_up: false,
            layout: chat,
            prompt: "Hi",
            prefill: "to play ",
            added: "cats",
            expected: "to play cats",
        },
        // The clean-up shortens the prompt, the beginning, the answer, and a blank on the border.
        Case { cleans_up: true, layout: chat, prompt: "a , . ! ? 's 've", prefill: "", added: "So.", expected: "So." },
        Case {
            cleans_up: true,
            layout: chat,
            prompt: "a , .",
            prefill: "So , ",
            added: ". And ' so",
            expected: "So,. And'so",
        },
        Case { cleans_up: true, layout: chat, prompt: "b ,", prefill: "It '", added: " is n't", expected: "It'isn't" },
        Case { cleans_up: true, layout: chat, prompt: "b ,", prefill: "It ", added: "' is", expected: "It'is" },
        // The policy writes the header, or a part of it, or none; a line break joins those of the header.
        Case {
            cleans_up: true,
            layout: official,
            prompt: "a , .",
            prefill: "",
            added: "HEADER\nSo .",
            expected: "\nSo.",
        },
        Case { cleans_up: true, layout: official, prompt: "a , .", prefill: "", added: "So .", expected: "So." },
        Case { cleans_up: true, layout: official, prompt: "a , .", prefill: "", added: "", expected: "" },
    ] {
        let pair = &both[usize::from(case.cleans_up)];
        let tokenizer = &pair.tokenizer;
        let message = [Message { role: "user".to_string(), content: case.prompt.to_string() }];
        let next = Next::Answer { layout: case.layout, prefill: case.prefill };
        let prompt = Prompt::of_messages(pair, None, &message, next).unwrap();
        let finish_id = pair.policy().unwrap().finish_id;
        for finished in [false, true] {
            let mut text = RespelledText::new(tokenizer, &prompt, finish_id).unwrap();
            let mut ids = text.respell(&prompt.ids, false).unwrap();
            let added = case.added.replace("HEADER", &tokenizer.decode(&prompt.header).unwrap());
            // One id after the other, as short segments would add them.
            for id in tokenizer.encode(&added).unwrap() {
                ids.push(id);
                ids = text.respell(&ids, true).unwrap();
            }
            ids.extend(finished.then_some(finish_id));
            let ids = text.respell(&ids, true).unwrap();
            let answer = text.answer(&ids).unwrap();
            assert_eq!(answer.text, case.expected, "{} {}", case.prompt, case.added);
            // The ids of the prompt spell no character of the answer that was added, and lack the prompt's last at most.
            let before = tokenizer.decode(&ids[..answer.prompt_len]).unwrap();
            assert!(tokenizer.decode(&ids).unwrap().starts_with(&before));
            assert_eq!(ids.len() > answer.prompt_len, finished || !case.added.is_empty());
        }
    }
}

#[test]
fn the_answer_is_found_with_every_kind_of_tokenizer() {
    for folder in ["llama-gqa", "llama-mha-tied", "mistral", "qwen2", "qwen3"] {
        let tokenizer = Arc::new(Tokenizer::load(&Files::Dir(goldens().join(folder).join("policy"))).unwrap());
        for (prompt, added, expected) in
            [("Hi é there.", " So it is", "So it is"), ("日本 é", "é 語.", "é 語."), ("a", "", "")]
        {
            let prompt = Prompt::of_ids(tokenizer.with_special_tokens(tokenizer.encode(prompt).unwrap()));
            let mut text = RespelledText::new(&tokenizer, &prompt, u32::MAX).unwrap();
            let mut ids = text.respell(&prompt.ids, false).unwrap();
            ids.extend(tokenizer.encode(added).unwrap());
            for _ in 0..2 {
                ids = text.respell(&ids, true).unwrap();
            }
            let answer = text.answer(&ids).unwrap();
            assert_eq!(answer.text.trim(), expected, "{folder}");
            assert!(answer.prompt_len <= ids.len());
        }
    }
}
