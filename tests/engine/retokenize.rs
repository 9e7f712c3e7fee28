//! Responses whose text is tokenised again between segments.

use ggro::answer::{FinishReason, Response};
use ggro::engine::{decode, decode_retokenized};
use ggro::files::demo;
use ggro::files::pair::Pair;
use ggro::method::{Options, Selection};
use ggro::model::cpu::{self, LoadOptions};
use ggro::rng::Uniforms;

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
        &|ids, _| Ok(respell(ids)),
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
    assert_eq!(Response { work: whole.work, ..again.clone() }, whole);
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
    let options = Options { selection: Selection::Sample, ..Options::new(0, vec![0]) };
    let refused =
        decode_retokenized(&[1], &options, &|ids, _| Ok(ids.to_vec()), &mut |_, _| unreachable!(), &mut |_| Ok(0.0));
    assert!(refused.unwrap_err().to_string().contains("chosen greedily"));
}
