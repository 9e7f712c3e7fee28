//! The corners of the definition, one by one. Each response is also held to the naive transcription.

use crate::naive::{Failure, decode_both, decode_with};
use ggro::answer::{Candidate, CandidateStop, FinishReason, Repeat, Response, Segment, WalkEnd};
use ggro::method::{Options, Proposals, Selection, nudge};
use ggro::model::RowStats;
use ggro::rng::Uniforms;
use ggro_testkit::scripted::{FINISH, FOREIGN, Model, PROMPT, Scripted, VOCAB, script, sure, torn};
use std::rc::Rc;

/// Short segments: the threshold is tested from the second token on.
fn options() -> Options {
    Options {
        max_new_tokens: 8,
        entropy_threshold: 0.5,
        min_generated: 2,
        max_candidates: 4,
        ..Options::new(FINISH, vec![FINISH, FOREIGN])
    }
}

fn answer(response: &Response) -> &[u32] {
    &response.final_ids[PROMPT.len()..]
}

fn candidate(response: &Response, segment: usize, index: usize) -> &Candidate {
    &response.segments[segment].candidates[index]
}

/// The slot is the first generated token, where the policy is torn between 3, 4, 5 and 6; whatever stands there is
/// followed by 7 and doubt, and the response finishes after that.
fn fork_in_the_road(reward: fn(&[u32]) -> f32, dot: fn(&[u32], u32) -> f32) -> Model {
    let logits = |g: &[u32]| match g {
        [] => torn(&[3, 4, 5, 6]),
        [_] => sure(7),
        [_, 7] => torn(&[FINISH, 8]),
        _ => sure(FINISH),
    };
    script(logits, reward, dot)
}

#[test]
fn finish_within_the_header_is_kept() {
    let model = script(|_| sure(FINISH), |_| 0.5, |_, _| 0.0);
    let options = Options { first_offset: 4, ..options() };
    let response = decode_both(&model, &PROMPT, &options);
    assert_eq!(answer(&response), [FINISH]);
    assert_eq!(response.finish_reason, FinishReason::Finish);
    assert_eq!(response.segment_boundaries, [2]);
    assert_eq!(response.segments[0].walk_end, WalkEnd::NoSlot);
}

#[test]
fn an_uncertain_finish_is_kept() {
    let model = script(
        |g| {
            if g.is_empty() { sure(7) } else { torn(&[FINISH, 3]) }
        },
        |_| 0.5,
        |_, _| 0.0,
    );
    let response = decode_both(&model, &PROMPT, &Options { max_candidates: 1, ..options() });
    assert_eq!(answer(&response), [7, FINISH]);
    assert_eq!(response.finish_reason, FinishReason::Finish);
    assert_eq!(candidate(&response, 0, 0).margins.entropy, None);
}

#[test]
fn finish_as_the_last_token_of_the_budget() {
    let model = script(|g| sure(if g.len() < 7 { 7 } else { FINISH }), |_| 0.5, |_, _| 0.0);
    let response = decode_both(&model, &PROMPT, &options());
    assert_eq!(response.finish_reason, FinishReason::Finish);
    assert_eq!((answer(&response).len(), response.segment_boundaries[0]), (8, 9));
}

#[test]
fn a_forced_finish_may_win() {
    let model = script(
        |g| match g {
            [] => torn(&[3, FINISH, 4]),
            [_] => sure(7),
            _ => torn(&[5, 6]),
        },
        |g| if g.contains(&FINISH) { 2.0 } else { 1.0 },
        |_, v| if v == FINISH { 1.0 } else { 0.0 },
    );
    let response = decode_both(&model, &PROMPT, &options());
    assert_eq!(answer(&response), [FINISH]);
    assert_eq!(response.finish_reason, FinishReason::Finish);
    assert_eq!((response.num_nudges, response.segments[0].best), (1, 1));
    assert_eq!(candidate(&response, 0, 1).forced, Some(FINISH));
}

#[test]
fn a_forced_foreign_stop_keeps_nothing_and_may_win() {
    for (wins, reason) in [(true, FinishReason::Stalled), (false, FinishReason::Finish)] {
        let model = script(
            |g| match g {
                [] => torn(&[3, FOREIGN, 4]),
                [3] => sure(7),
                [3, 7] => torn(&[FINISH, 5]),
                _ => sure(FINISH),
            },
            move |g| if g.is_empty() == wins { 2.0 } else { 1.0 },
            |_, v| if v == FOREIGN { 1.0 } else { 0.0 },
        );
        let response = decode_both(&model, &PROMPT, &options());
        assert_eq!(response.finish_reason, reason);
        let forced = candidate(&response, 0, 1);
        assert_eq!((forced.ids.len(), forced.dropped), (0, Some(FOREIGN)));
        assert_eq!(forced.reward, if wins { 2.0 } else { 1.0 });
        assert_eq!(response.segments[0].walk_end, WalkEnd::NoSlot);
        assert_eq!(answer(&response).is_empty(), wins);
    }
}

#[test]
fn a_forced_foreign_stop_behind_a_header_leaves_the_header() {
    let model = script(
        |g| match g {
            [] => sure(8),
            [8] => torn(&[3, FOREIGN, 4]),
            [8, 3] => sure(FINISH),
            _ => sure(9),
        },
        |g| if g == [8] { 2.0 } else { 1.0 },
        |_, v| if v == FOREIGN { 1.0 } else { 0.0 },
    );
    let options = Options { first_offset: 1, min_generated: 3, ..options() };
    let response = decode_both(&model, &PROMPT, &options);
    assert_eq!(response.segments[0].best, 1);
    assert_eq!(candidate(&response, 0, 1).ids, [8]);
    // The next segment starts from the slot's own row, and its unforced candidate is the first one's again.
    assert_eq!(candidate(&response, 1, 0).ids, [3, FINISH]);
    assert_eq!(candidate(&response, 1, 1).forced, Some(FOREIGN));
    assert_eq!(response.finish_reason, FinishReason::Stalled);
}

#[test]
fn an_uncertain_forced_token_is_dropped_at_once() {
    // The unforced candidate survives the doubt at the slot only because it finishes there.
    let model = script(
        |g| match g {
            [] => sure(8),
            [8] => torn(&[FINISH, 3, 4]),
            _ => sure(9),
        },
        |g| if g == [8] { 2.0 } else { 1.0 },
        |_, v| if v == 3 { 1.0 } else { 0.0 },
    );
    let options = Options { first_offset: 1, ..options() };
    let response = decode_both(&model, &PROMPT, &options);
    let forced = candidate(&response, 0, 1);
    assert_eq!((&forced.ids[..], forced.dropped), (&[8][..], Some(3)));
    assert_eq!(forced.stop, CandidateStop::Entropy);
    assert_eq!(response.segments[0].walk_end, WalkEnd::NoSlot);
    assert_eq!(response.segments[0].best, 1);
    // The next segment starts at the same row, and there the finish is the earlier of equal rewards.
    assert_eq!(answer(&response), [8, FINISH]);
}

#[test]
fn a_foreign_stop_stalls_unless_it_fills_the_budget() {
    let model = script(|g| sure(if g.len() < 3 { 7 } else { FOREIGN }), |_| 0.5, |_, _| 0.0);
    let response = decode_both(&model, &PROMPT, &options());
    assert_eq!(response.finish_reason, FinishReason::Stalled);
    assert_eq!(response.segment_boundaries, [5, 5]);
    assert_eq!(answer(&response), [7, 7, 7]);

    let response = decode_both(&model, &PROMPT, &Options { max_new_tokens: 4, ..options() });
    assert_eq!(response.finish_reason, FinishReason::Length);
    assert_eq!(answer(&response), [7, 7, 7, FOREIGN]);
    assert_eq!(candidate(&response, 0, 0).stop, CandidateStop::StopId);
}

#[test]
fn a_budget_inside_the_header_is_one_segment_without_a_slot() {
    let model = script(|_| sure(7), |_| 0.5, |_, _| 0.0);
    for budget in [1, 2, 3] {
        let options = Options { max_new_tokens: budget, first_offset: 3, ..options() };
        let response = decode_both(&model, &PROMPT, &options);
        assert_eq!(response.finish_reason, FinishReason::Length);
        assert_eq!(response.segments.len(), 1);
        assert_eq!(response.segments[0].walk_end, WalkEnd::NoSlot);
        assert_eq!(candidate(&response, 0, 0).stop, CandidateStop::Length);
    }
    // An offset no sequence can reach is no offset at all.
    let options = Options { first_offset: usize::MAX, max_candidates: 2, ..options() };
    let mut backend = Scripted::new(&model, 20);
    let silent = &mut ();
    let response = ggro::engine::decode(&mut backend, &PROMPT, &options, Uniforms::Seeded(0), silent).unwrap();
    assert_eq!(response.segments[0].walk_end, WalkEnd::NoSlot);
}

#[test]
fn the_last_token_of_the_budget_is_kept_however_uncertain() {
    let model = script(|g| if g.is_empty() { sure(7) } else { torn(&[3, 4]) }, |_| 0.5, |_, _| 0.0);
    let options = Options { max_new_tokens: 2, max_candidates: 1, ..options() };
    let response = decode_both(&model, &PROMPT, &options);
    assert_eq!(answer(&response), [7, 3]);
    assert_eq!(candidate(&response, 0, 0).margins.entropy, None);
}

#[test]
fn reaching_the_threshold_exactly_stops() {
    let doubt = RowStats::of(&torn(&[3, 4, 5]), 1e-9).entropy_floored;
    for (threshold, kept) in [(doubt, 1), (doubt.next_up(), 8)] {
        let model = script(
            |g| {
                if g.len() == 1 { torn(&[3, 4, 5]) } else { sure(7) }
            },
            |_| 0.5,
            |_, _| 0.0,
        );
        let options = Options { entropy_threshold: threshold, max_candidates: 1, ..options() };
        let response = decode_both(&model, &PROMPT, &options);
        assert_eq!(candidate(&response, 0, 0).ids.len(), kept, "{threshold}");
    }
}

#[test]
fn equal_rewards_leave_the_earlier_candidate() {
    let model = fork_in_the_road(|_| 1.0, |_, v| v as f32);
    let response = decode_both(&model, &PROMPT, &options());
    assert_eq!((response.num_nudges, response.segments[0].best), (0, 0));
    assert!(response.segments[0].candidates.len() > 1);
    assert_eq!(response.segments[0].reward_margin, Some(0.0));
}

#[test]
fn equal_logits_go_to_the_lower_id() {
    let model = script(
        |g| {
            let mut row = vec![1.0; VOCAB];
            row[FINISH as usize] = if g.len() > 2 { 40.0 } else { 0.0 };
            row[FOREIGN as usize] = 0.0;
            row
        },
        |_| 1.0,
        |_, _| 1.0,
    );
    let options = Options { top_k: 3, entropy_threshold: 9.0, ..options() };
    let response = decode_both(&model, &PROMPT, &options);
    assert_eq!(answer(&response)[..3], [2, 2, 2]);
    let slot = candidate(&response, 0, 0).slot.as_ref().unwrap();
    assert_eq!(slot.ids, [2, 3, 4]);
    assert_eq!(candidate(&response, 0, 0).margins.top_k_edge, Some(0.0));
}

#[test]
fn equal_scores_go_to_the_more_likely_candidate() {
    let model = fork_in_the_road(|_| 1.0, |_, v| if v == 6 || v == 5 { 1.0 } else { 0.0 });
    let response = decode_both(&model, &PROMPT, &options());
    // 5 is more likely than 6; from there the damped 5 falls behind 6.
    assert_eq!(candidate(&response, 0, 1).forced, Some(5));
    assert_eq!(candidate(&response, 0, 2).forced, Some(6));
    assert_eq!(response.segments[0].repeat, Some(Repeat { proposed: 5, same_as: 1 }));
}

#[test]
fn more_proposals_than_ids_are_all_ids() {
    let model = fork_in_the_road(|_| 1.0, |_, v| v as f32);
    for top_k in [VOCAB - 1, VOCAB, VOCAB + 1, usize::MAX] {
        let options = Options { top_k, ..options() };
        let response = decode_both(&model, &PROMPT, &options);
        let first = candidate(&response, 0, 0);
        assert_eq!(first.slot.as_ref().unwrap().ids.len(), top_k.min(VOCAB));
        assert_eq!(first.margins.top_k_edge.is_some(), top_k < VOCAB);
    }
}

#[test]
fn one_proposal_repeats_the_unforced_candidate() {
    let model = fork_in_the_road(|_| 1.0, |_, v| v as f32);
    let response = decode_both(&model, &PROMPT, &Options { top_k: 1, ..options() });
    let segment = &response.segments[0];
    assert_eq!(segment.candidates.len(), 1);
    assert_eq!(segment.repeat, Some(Repeat { proposed: 3, same_as: 0 }));
    assert_eq!((segment.walk_end, segment.reward_margin), (WalkEnd::Duplicate, None));
}

#[test]
fn one_candidate_is_greedy_decoding_without_gradients() {
    let model = fork_in_the_road(|_| 1.0, |_, v| v as f32);
    let options = Options { max_candidates: 1, ..options() };
    assert_eq!(answer(&decode_both(&model, &PROMPT, &options)), [3, 7, FINISH]);
    let mut backend = Scripted::new(&model, 20);
    let response = ggro::engine::decode(&mut backend, &PROMPT, &options, Uniforms::Seeded(0), &mut ()).unwrap();
    assert_eq!(response.work.reward_backward, 0);
    assert_eq!(backend.most_held(), 2);
}

#[test]
fn the_damped_score_keeps_its_sign() {
    // Every score is negative: the damped one of the current token is the largest, and forcing it again is a repeat.
    let model = fork_in_the_road(|_| 1.0, |_, _| -1.0);
    let response = decode_both(&model, &PROMPT, &options());
    assert_eq!(response.segments[0].repeat, Some(Repeat { proposed: 3, same_as: 0 }));
    // The largest score by far, but it is the current token's own.
    let model = fork_in_the_road(
        |_| 1.0,
        |_, v| {
            if v == 3 { 100.0 } else { v as f32 * 0.125 - 0.5 }
        },
    );
    let response = decode_both(&model, &PROMPT, &Options { top_k: 4, ..options() });
    assert_eq!(candidate(&response, 0, 1).forced, Some(6));
    // Without damping it wins.
    let response = decode_both(&model, &PROMPT, &Options { damping: 1.0, top_k: 4, ..options() });
    assert_eq!(response.segments[0].repeat, Some(Repeat { proposed: 3, same_as: 0 }));
}

#[test]
fn no_slot_takes_precedence_over_the_number_of_candidates() {
    let model = script(
        |g| match g {
            [] => torn(&[3, FOREIGN]),
            _ => sure(FINISH),
        },
        |_| 1.0,
        |_, v| if v == FOREIGN { 1.0 } else { 0.0 },
    );
    let response = decode_both(&model, &PROMPT, &Options { max_candidates: 2, ..options() });
    assert_eq!(response.segments[0].candidates.len(), 2);
    assert_eq!(response.segments[0].walk_end, WalkEnd::NoSlot);
    assert_eq!(answer(&response), [3, FINISH]);
}

#[test]
fn the_prompt_alone_is_scored_for_an_empty_candidate_only() {
    let model = script(|_| sure(FOREIGN), |g| if g.is_empty() { -3.0 } else { 9.0 }, |_, _| 0.0);
    let response = decode_both(&model, &PROMPT, &options());
    assert_eq!(response.finish_reason, FinishReason::Stalled);
    assert_eq!((response.last_segment_reward, response.final_reward), (-3.0, -3.0));
    assert_eq!(response.work.reward_forward, 2);
}

fn twins(mut model: Model) -> Model {
    // 3 and 6 are twins, and so are 4 and 5.
    model.same = Rc::new(|a, b| a == b || a + b == 9);
    model
}

#[test]
fn the_most_likely_twin_is_placed_and_damped() {
    let model = twins(fork_in_the_road(
        |g| if g.first() == Some(&4) { 2.0 } else { 1.0 },
        |_, v| if v == 5 { 1.0 } else { 0.0 },
    ));
    let response = decode_both(&model, &PROMPT, &options());
    let nudged = candidate(&response, 0, 1);
    assert_eq!((nudged.proposed, nudged.forced), (Some(5), Some(4)));
    assert_eq!(nudged.ids[0], 4);
    assert_eq!(nudged.margins.tied_embedding, Some(0.125));
    assert_eq!(response.num_nudges, 1);
    // 5 was proposed again and was never at the slot.
    assert_eq!(response.segments[0].repeat, Some(Repeat { proposed: 5, same_as: 1 }));
}

#[test]
fn a_proposal_whose_twin_is_the_unforced_token_closes_the_walk() {
    let model = twins(fork_in_the_road(|_| 1.0, |_, v| if v == 6 { 1.0 } else { 0.0 }));
    let response = decode_both(&model, &PROMPT, &options());
    assert_eq!(response.segments[0].candidates.len(), 1);
    assert_eq!(response.segments[0].repeat, Some(Repeat { proposed: 6, same_as: 0 }));
}

#[test]
fn ids_without_a_reward_row_are_never_proposed() {
    let mut model = fork_in_the_road(|_| 1.0, |_, v| v as f32);
    model.reward_vocab = 6;
    model.logits = Rc::new(|ids| match &ids[2..] {
        [] => torn(&[3, 8, 4, 9, 5]),
        [_] => sure(2),
        [_, 2] => torn(&[FINISH, 5]),
        _ => sure(FINISH),
    });
    let response = decode_both(&model, &[4, 5], &Options { top_k: 3, ..options() });
    assert_eq!(candidate(&response, 0, 0).slot.as_ref().unwrap().ids, [3, 4, 5]);
    // The policy's own choice of such an id cannot be scored.
    model.logits = Rc::new(|_| sure(8));
    let failure = decode_with(&model, &[4, 5], &options(), &Uniforms::Seeded(0));
    assert_eq!(failure, Err(Failure::NoRewardRow));
}

#[test]
fn a_uniform_number_on_an_edge_takes_the_next_candidate() {
    for (u, index) in [(0.25f64.next_down(), 0), (0.25, 1), (0.5, 2), (0.75, 3), (0.0, 0)] {
        let model = fork_in_the_road(|_| 1.0, |_, _| 1.0);
        let options = Options {
            selection: Selection::Sample,
            top_k: 4,
            damping: 1.0,
            max_candidates: 2,
            max_new_tokens: 2,
            ..options()
        };
        let uniforms = Uniforms::Recorded(vec![u]);
        let response = decode_with(&model, &PROMPT, &options, &uniforms).unwrap();
        let slot = candidate(&response, 0, 0).slot.as_ref().unwrap();
        assert_eq!(slot.weights, [0.25; 4]);
        assert_eq!(slot.next_proposal, Some([3, 4, 5, 6][index]), "{u}");
        assert_eq!(response.uniforms_used, [u]);
    }
}

#[test]
fn one_uniform_number_per_proposal_that_is_used() {
    let model = fork_in_the_road(|_| 1.0, |_, _| 1.0);
    let options = Options {
        selection: Selection::Sample,
        top_k: 4,
        damping: 1.0,
        max_candidates: 3,
        max_new_tokens: 2,
        ..options()
    };
    // Three candidates, two draws; the third would have drawn another.
    let enough = Uniforms::Recorded(vec![0.3, 0.6]);
    let response = decode_with(&model, &PROMPT, &options, &enough).unwrap();
    assert_eq!(response.uniforms_used, [0.3, 0.6]);
    assert_eq!(response.segments[0].walk_end, WalkEnd::Budget);
    let last = candidate(&response, 0, 2).slot.as_ref().unwrap();
    assert_eq!((last.next_proposal, last.weights.len()), (None, 4));
    let short = Uniforms::Recorded(vec![0.3]);
    let failure = decode_with(&model, &PROMPT, &options, &short);
    assert_eq!(failure, Err(Failure::NoUniforms));
}

#[test]
fn all_of_the_shortlist_is_tried_once_whatever_the_most_is() {
    let model = fork_in_the_road(|g| if g.first() == Some(&5) { 2.0 } else { 1.0 }, |_, _| panic!("a gradient"));
    let all = Options { proposals: Proposals::All, top_k: 4, max_candidates: 2, ..options() };
    let response = decode_both(&model, &PROMPT, &all);
    let segment = &response.segments[0];
    let forced = |segment: &Segment| segment.candidates.iter().map(|c| c.forced).collect::<Vec<_>>();
    assert_eq!(forced(segment), [None, Some(4), Some(5), Some(6)]);
    assert_eq!((segment.best, segment.walk_end, segment.repeat), (2, WalkEnd::Exhausted, None));
    assert_eq!((response.work.reward_backward, response.uniforms_used.len()), (0, 0));
    // The list is recorded where it was found.
    let slot = candidate(&response, 0, 0).slot.as_ref().unwrap();
    assert_eq!((&slot.ids[..], slot.next_proposal, slot.gradient_norm), (&[3, 4, 5, 6][..], Some(4), None));
    assert!(segment.candidates[1..].iter().all(|candidate| candidate.slot.is_none()));
    // Ids with one embedding are one.
    let response = decode_both(&twins(model.clone()), &PROMPT, &all);
    assert_eq!(forced(&response.segments[0]), [None, Some(4)]);
    // One candidate is greedy decoding.
    let greedy = decode_both(&model, &PROMPT, &Options { max_candidates: 1, ..all });
    assert_eq!((answer(&greedy), greedy.segments[0].walk_end), (&[3, 7, FINISH][..], WalkEnd::Budget));
}

#[test]
fn all_goes_on_behind_a_foreign_stop() {
    let model = script(
        |g| match g {
            [] => torn(&[3, FOREIGN, 4]),
            _ => sure(FINISH),
        },
        |g| if g.contains(&4) { 2.0 } else { 1.0 },
        |_, _| panic!("a gradient"),
    );
    let all = Options { proposals: Proposals::All, top_k: 3, ..options() };
    let response = decode_both(&model, &PROMPT, &all);
    let segment = &response.segments[0];
    assert_eq!((segment.candidates.len(), segment.best, segment.walk_end), (3, 2, WalkEnd::Exhausted));
    assert_eq!((candidate(&response, 0, 1).dropped, answer(&response)), (Some(FOREIGN), &[4, FINISH][..]));
}

#[test]
fn random_proposals_are_drawn_from_the_shortlist() {
    let model = fork_in_the_road(|g| if g.first() == Some(&5) { 2.0 } else { 1.0 }, |_, _| panic!("a gradient"));
    let options = Options { proposals: Proposals::Random, top_k: 4, max_candidates: 3, max_new_tokens: 2, ..options() };
    let draw = |numbers: &[f64]| decode_with(&model, &PROMPT, &options, &Uniforms::Recorded(numbers.to_vec()));
    let response = draw(&[0.3, 0.6]).unwrap();
    let segment = &response.segments[0];
    assert_eq!((candidate(&response, 0, 1).forced, candidate(&response, 0, 2).forced), (Some(4), Some(5)));
    assert_eq!((segment.best, segment.walk_end), (2, WalkEnd::Budget));
    assert_eq!((response.uniforms_used.as_slice(), response.work.reward_backward), (&[0.3, 0.6][..], 0));
    // What is drawn again closes the walk, as does what stood there first.
    let closed = draw(&[0.25, 0.49]).unwrap();
    assert_eq!(closed.segments[0].repeat, Some(Repeat { proposed: 4, same_as: 1 }));
    let closed = draw(&[0.24]).unwrap();
    assert_eq!(closed.segments[0].repeat, Some(Repeat { proposed: 3, same_as: 0 }));
    assert_eq!(draw(&[0.9]), Err(Failure::NoUniforms));
}

#[test]
fn a_shuffled_gradient_proposes_by_the_wrong_products() {
    let model = fork_in_the_road(|_| 1.0, |_, v| v as f32);
    let shuffled = Options { proposals: Proposals::ShuffledGradient, top_k: 4, max_candidates: 2, ..options() };
    for u in [0.0, 0.125, 0.5, 0.75] {
        let response = decode_with(&model, &PROMPT, &shuffled, &Uniforms::Recorded(vec![u; 9])).unwrap();
        let slot = candidate(&response, 0, 0).slot.as_ref().unwrap();
        assert_eq!(slot.dots, [3.0, 4.0, 5.0, 6.0], "as they were found");
        // The token at the slot is damped after it, whatever product it was given.
        let dealt = nudge::shuffled(&slot.dots, u).unwrap();
        let best = (1..4).max_by(|&a, &b| dealt[a].total_cmp(&dealt[b]));
        assert_eq!(slot.next_proposal, best.map(|place| slot.ids[place]));
    }
    // Two numbers where the choice is drawn as well, and none for a proposal that is not used.
    let sampled = Options { selection: Selection::Sample, max_new_tokens: 2, ..shuffled };
    let response = decode_with(&model, &PROMPT, &sampled, &Uniforms::Recorded(vec![0.5, 0.25])).unwrap();
    assert_eq!(response.uniforms_used, [0.5, 0.25]);
    assert_eq!(candidate(&response, 0, 1).slot.as_ref().unwrap().next_proposal, None);
}

#[test]
fn a_weight_keeps_proposals_likely() {
    let model = fork_in_the_road(|_| 1.0, |_, v| 0.125 * v as f32);
    let proposal = |logprob_weight: f64| {
        let response = decode_both(&model, &PROMPT, &Options { logprob_weight, top_k: 4, ..options() });
        candidate(&response, 0, 0).slot.as_ref().unwrap().next_proposal
    };
    // Logits fall by an eighth from 3 to 6, and products rise by as much. The product of 3 is damped.
    assert_eq!([0.0, 0.5, 2.0, 9.0].map(proposal), [Some(6), Some(6), Some(4), Some(3)]);
}
