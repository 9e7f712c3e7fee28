//! The final reward is pooled at the rightmost position that is no pad, wherever that is, and costs no further pass. The
//! naive transcription evaluates it directly.

use crate::naive::decode_both;
use ggro::answer::FinishReason;
use ggro::method::Options;
use ggro_testkit::scripted::{FINISH, FOREIGN, Model, PROMPT, VOCAB, sure, torn};
use std::rc::Rc;

/// The reward is different at every position.
fn model(logits: fn(&[u32]) -> Vec<f32>, dot: fn(u32) -> f32, favourite: u32) -> Model {
    Model {
        policy_vocab: VOCAB,
        reward_vocab: VOCAB,
        logits: Rc::new(move |ids| logits(&ids[PROMPT.len().min(ids.len())..])),
        reward: Rc::new(move |ids| {
            let liked = ids.iter().filter(|&&id| id == favourite).count();
            liked as f32 * 8.0 - 0.125 * ids.len() as f32
        }),
        dot: Rc::new(move |_, _, v| dot(v)),
        same: Rc::new(|_, _| false),
    }
}

fn options(pad: u32) -> Options {
    Options {
        max_new_tokens: 6,
        entropy_threshold: 0.5,
        min_generated: 2,
        max_candidates: 3,
        reward_pad_id: Some(pad),
        ..Options::new(FINISH, vec![FINISH, FOREIGN])
    }
}

#[test]
fn the_pad_is_the_end_of_turn() {
    let model = model(|g| sure(if g.len() < 3 { 7 } else { FINISH }), |_| 0.0, 2);
    let response = decode_both(&model, &PROMPT, &options(FINISH));
    assert_eq!(response.final_pool_position, 4);
    assert_eq!(response.last_segment_reward, -0.75);
    assert_eq!(response.final_reward, -0.625);
    let without = Options { reward_pad_id: None, ..options(FINISH) };
    let response = decode_both(&model, &PROMPT, &without);
    assert_eq!((response.final_pool_position, response.final_reward), (5, -0.75));
}

#[test]
fn a_pad_in_the_middle_changes_nothing() {
    let model = model(|g| sure([7, 9, 7, 7, 7, 7][g.len()]), |_| 0.0, 2);
    let response = decode_both(&model, &PROMPT, &options(9));
    assert_eq!(response.final_pool_position, 7);
    assert_eq!(response.final_reward, response.last_segment_reward);
}

#[test]
fn a_pad_in_the_middle_and_last() {
    let model = model(|g| sure([7, 9, 7, 7, 7, 9][g.len()]), |_| 0.0, 2);
    let response = decode_both(&model, &PROMPT, &options(9));
    assert_eq!(response.final_pool_position, 6);
    assert_ne!(response.final_reward, response.last_segment_reward);
}

#[test]
fn trailing_pads_of_the_prompt_and_an_empty_answer() {
    let model = model(|_| sure(FOREIGN), |_| 0.0, 2);
    let response = decode_both(&model, &[5, 6, 9, 9, 9], &options(9));
    assert_eq!(response.finish_reason, FinishReason::Stalled);
    assert_eq!(response.final_pool_position, 1);
    assert_eq!(response.final_reward, -0.25);
    assert_eq!(response.last_segment_reward, -0.625);
}

#[test]
fn nothing_but_pads() {
    let model = model(|_| sure(FOREIGN), |_| 0.0, 2);
    let response = decode_both(&model, &[9, 9, 9], &options(9));
    assert_eq!((response.final_pool_position, response.final_reward), (0, -0.125));
}

#[test]
fn a_whole_answer_of_pads_is_pooled_in_the_prompt() {
    // Several segments of nothing but pads: the pooled reward is handed from one to the next.
    let model = model(
        |g| {
            if g.len() % 2 == 0 { sure(9) } else { torn(&[9, 3]) }
        },
        |_| -1.0,
        2,
    );
    let response = decode_both(&model, &PROMPT, &options(9));
    assert!(response.segments.len() > 2);
    assert_eq!((response.final_pool_position, response.final_reward), (1, -0.25));
}

#[test]
fn a_forced_pad_is_pooled_before_its_slot() {
    // The pad is forced, wins, and is all that follows the prompt (or the header).
    for (offset, pool) in [(0, 1), (1, 2)] {
        let model = model(
            |g| match g {
                [.., 3 | 9] => sure(FINISH),
                _ => torn(&[8, 3, 9]),
            },
            |v| if v == 9 { 1.0 } else { 0.0 },
            9,
        );
        let options = Options { first_offset: offset, max_new_tokens: offset + 1, ..options(9) };
        let response = decode_both(&model, &PROMPT, &options);
        assert_eq!(response.segments[0].best, 1);
        assert_eq!(response.final_ids.last(), Some(&9));
        assert_eq!(response.final_pool_position, pool);
    }
}
