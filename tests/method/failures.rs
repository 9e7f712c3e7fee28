//! What cannot be decoded ends with an error that names the reason, and leaves no sequence behind.

use ggro::Error;
use ggro::answer::Segment;
use ggro::engine::{Observer, decode};
use ggro::error::Limit;
use ggro::method::{Options, Proposals, Selection};
use ggro::rng::Uniforms;
use ggro_testkit::scripted::{FINISH, FOREIGN, Model, PROMPT, Scripted, VOCAB, script, sure, torn};
use std::rc::Rc;

fn model() -> Model {
    let logits = |g: &[u32]| match g.len() % 3 {
        2 => torn(&[5, 6, 7]),
        _ => sure(7),
    };
    script(logits, |g| g.iter().sum::<u32>() as f32, |_, v| v as f32)
}

fn options() -> Options {
    Options {
        max_new_tokens: 7,
        entropy_threshold: 0.5,
        min_generated: 2,
        ..Options::new(FINISH, vec![FINISH, FOREIGN])
    }
}

fn failure(model: &Model, max_len: usize, prompt: &[u32], options: &Options) -> Error {
    let mut backend = Scripted::new(model, max_len);
    let uniforms = Uniforms::Recorded(vec![0.5]);
    let error = decode(&mut backend, prompt, options, uniforms, &mut ()).unwrap_err();
    assert_eq!(backend.held(), 0, "sequences left behind after: {error}");
    error
}

#[test]
fn unusable_requests_say_why() {
    let mut small = model();
    small.reward_vocab = 11;
    for (model, max_len, prompt, options, words) in [
        (&model(), 9, &[][..], options(), &["prompt is empty"][..]),
        (&model(), 9, &[3, 12], options(), &["id 12", "position 1", "policy", "12"]),
        (&small, 9, &[11, 3], options(), &["id 11", "position 0", "reward", "11"]),
        (&model(), 2, &PROMPT, options(), &["2 tokens", "longest sequence is 2"]),
        (&model(), 8, &PROMPT, options(), &["max_new_tokens 7", "sequence of 8", "lower", "to 6"]),
        (
            &model(),
            8,
            &PROMPT,
            Options { max_new_tokens: usize::MAX, ..options() },
            &["max_new_tokens 18446744073709551615"],
        ),
        (&model(), 9, &PROMPT, Options { top_k: 0, ..options() }, &["top_k"]),
        (&model(), 9, &PROMPT, Options { selection: Selection::Sample, ..options() }, &["ran out", "there are 1"]),
        (&model(), 9, &PROMPT, Options { proposals: Proposals::Random, ..options() }, &["ran out", "there are 1"]),
        (
            &model(),
            9,
            &PROMPT,
            Options { logprob_weight: -0.5, ..options() },
            &["logprob_weight", "at least 0", "-0.5"],
        ),
    ] {
        let error = failure(model, max_len, prompt, &options);
        assert!(error.is_invalid_input(), "{error:?}");
        let too_long = words.iter().any(|word| word.contains("sequence") || word.contains("18446744073709551615"));
        assert_eq!(matches!(error, Error::TooLong { limit_of: Limit::Context, .. }), too_long, "{error:?}");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }
    // The budget that just fits.
    let mut backend = Scripted::new(&model(), 9);
    decode(&mut backend, &PROMPT, &options(), Uniforms::Seeded(0), &mut ()).unwrap();
}

#[test]
fn an_id_that_the_reward_model_cannot_read() {
    let mut model = model();
    model.reward_vocab = 7;
    let error = failure(&model, 20, &[2, 3], &options());
    let text = error.to_string();
    assert!(text.contains("id 7") && text.contains("has 7 ids"), "{text}");
}

#[test]
fn numbers_that_are_not_finite() {
    let position = |model: &Model| match failure(model, 20, &PROMPT, &options()) {
        Error::NonFinite { what, model, position } => (what, model, position),
        error => panic!("{error:?}"),
    };
    let logits = |bad: f32, at: usize| {
        let mut broken = model();
        broken.logits = Rc::new(move |ids| {
            let mut row = if ids.len() % 3 == 1 { torn(&[5, 6]) } else { sure(7) };
            if ids.len() == at + 1 {
                row[VOCAB - 1] = bad;
            }
            row
        });
        broken
    };
    assert_eq!(position(&logits(f32::NAN, 1)), ("logit", "policy", 1));
    assert_eq!(position(&logits(f32::INFINITY, 3)), ("logit", "policy", 3));

    let mut broken = model();
    broken.reward = Rc::new(|_| f32::NAN);
    assert_eq!(position(&broken).0, "reward");
    // A reward that is asked for by the way counts as well: the one before the slot.
    broken.reward = Rc::new(|ids| if ids.len() == 2 { f32::NEG_INFINITY } else { 0.0 });
    assert_eq!(position(&broken), ("reward", "reward", 1));
    broken.reward = Rc::new(|_| 0.0);
    broken.dot = Rc::new(|_, _, v| if v == 6 { f32::NAN } else { 0.0 });
    assert_eq!(position(&broken), ("reward gradient", "reward", 2));
}

#[test]
fn sequences_are_released_whenever_the_backend_fails() {
    let model = model();
    let mut backend = Scripted::new(&model, 20);
    decode(&mut backend, &PROMPT, &options(), Uniforms::Seeded(0), &mut ()).unwrap();
    let calls = backend.calls();
    assert!(calls > 20);
    for fail_at in 0..calls {
        let mut backend = Scripted::new(&model, 20);
        backend.fail_at(Some(fail_at));
        let error = decode(&mut backend, &PROMPT, &options(), Uniforms::Seeded(0), &mut ());
        assert!(matches!(error, Err(Error::Backend(_))), "call {fail_at}");
        assert_eq!(backend.held(), 0, "call {fail_at}");
    }
}

#[test]
fn an_observer_can_end_a_response() {
    struct Gone;
    impl Observer for Gone {
        fn segment(&mut self, _: &Segment, _: &[u32]) -> ggro::Result<()> {
            Err(Error::invalid("the client is gone"))
        }
    }
    let model = model();
    let mut backend = Scripted::new(&model, 20);
    let error = decode(&mut backend, &PROMPT, &options(), Uniforms::Seeded(0), &mut Gone);
    assert_eq!(error.unwrap_err().to_string(), "the client is gone");
    assert_eq!(backend.held(), 0);
}
