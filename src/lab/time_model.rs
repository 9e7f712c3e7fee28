//! What the passes of a model take on Hopper, computed from their launches: until a card measures them, and to compare with then.
//!
//! The plans are the real ones. How long a launch takes follows from few constants ([`card`]). They come from a study of the
//! kernels of commit 4b909e8, and with them those kernels take what it said. A change that makes a plan worse makes a test fail.

pub mod card;
pub mod passes;
pub mod products;

use crate::files::config::ModelConfig;
use card::CARDS;
use passes::PassPhase;
use products::{Product, ProductKernels, Products, products};
use std::fmt::Write;

/// Whose passes are listed.
pub const MODEL: &str = "llama-3.1-8b";

/// The passes that are listed.
pub const PHASES: [PassPhase; 6] = [
    PassPhase::Decode { rows: 1, context: 1024 },
    PassPhase::Decode { rows: 256, context: 256 },
    PassPhase::Prefill(2048),
    PassPhase::Gradient { segments: 1, tokens: 16, prefix: 1024 },
    PassPhase::Gradient { segments: 8, tokens: 16, prefix: 1024 },
    PassPhase::Gradient { segments: 25, tokens: 16, prefix: 1024 },
];

/// Tokens of the products that are listed.
pub const TOKENS: [usize; 8] = [1, 16, 64, 80, 128, 256, 400, 2048];

/// Passes and products of a pair with both families of kernels, in words.
pub fn table(pair: &[ModelConfig; 2]) -> String {
    let families = [ProductKernels::Sm80, ProductKernels::Sm90];
    let mut out = String::from(
        "Computed from the launches, not measured.\n\nPasses: milliseconds / limit = share of the limit\n",
    );
    for family in families {
        passes_of(&mut out, family, pair);
    }
    out +=
        "\nProducts of a layer: share of the limit in percent, by tokens; \"alone\" without the time between kernels\n";
    for family in families {
        products_of(&mut out, family, &pair[0]);
    }
    out
}

fn passes_of(out: &mut String, family: ProductKernels, pair: &[ModelConfig; 2]) {
    for card in CARDS {
        let name = format!("{}, {}", family.name(), card.name);
        let _ = writeln!(out, "\n{name:<48}{:>26}{:>10}{:>10}{:>10}", "all", "products", "attention", "rest");
        for phase in PHASES {
            let (time, limit) = (phase.time(family, card, pair), phase.limit(card, pair));
            let [all, products, attention, rest, limit] =
                [time.sum(), time.products, time.attention, time.rest, limit].map(|time| time / 1e3);
            let _ = writeln!(
                out,
                "  {:<46}{all:>10.2} /{limit:>6.2} ={:>4.0} %{products:>10.2}{attention:>10.2}{rest:>10.2}",
                phase.to_string(),
                100.0 * limit / all
            );
        }
    }
}

fn products_of(out: &mut String, family: ProductKernels, config: &ModelConfig) {
    let (forward, backward, _) = products(config);
    for card in CARDS {
        let of = Products::new(family, card, config);
        let _ = write!(out, "\n{:<24}", format!("{}, {}", family.name(), card.name));
        let _ = writeln!(out, "{}", TOKENS.map(|tokens| format!("{tokens:>6}")).concat());
        let mut line = |name: &str, share: &dyn Fn(usize) -> f64| {
            let shares = TOKENS.map(|tokens| format!("{:>6.0}", 100.0 * share(tokens)));
            let _ = writeln!(out, "  {name:<22}{}", shares.concat());
        };
        for (name, products) in [("forward", &forward), ("backward", &backward)] {
            let each: [&[Product]; 4] = products.each_ref().map(std::slice::from_ref);
            for product in each {
                line(product[0].name, &|tokens| of.share(product, tokens));
            }
            line(name, &|tokens| of.share(products, tokens));
            line(&format!("{name}, alone"), &|tokens| of.share_alone(products, tokens));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synthetic;

    fn pair() -> [ModelConfig; 2] {
        synthetic::pair(MODEL).unwrap()
    }

    fn near(found: f64, expected: f64, tolerance: f64) -> bool {
        (found / expected - 1.0).abs() <= tolerance
    }

    #[test]
    fn limits_are_one_reading_or_all_operations() {
        let limits = PHASES.map(|phase| phase.limit(CARDS[0], &pair()) / 1e3);
        for (found, expected) in limits.into_iter().zip([3.52, 5.55, 37.6, 6.56, 6.56, 14.8]) {
            assert!(near(found, expected, 0.01), "{found} instead of {expected} ms");
        }
    }

    /// Milliseconds on an H200 and percent on an H100 that the study gives for the kernels of its day.
    #[test]
    fn kernels_of_the_study_take_what_it_says() {
        let pair = pair();
        let study = [(4.80, 79.0), (18.6, 40.0), (85.0, 43.0), (10.0, 72.0), (31.3, 30.0), (47.0, 31.0)];
        for (phase, (expected_ms, expected_percent)) in PHASES.into_iter().zip(study) {
            let ms = phase.time(ProductKernels::OfReference, CARDS[0], &pair).sum() / 1e3;
            let percent =
                100.0 * phase.limit(CARDS[1], &pair) / phase.time(ProductKernels::OfReference, CARDS[1], &pair).sum();
            println!("{phase}: {ms:.2} ms for {expected_ms}, {percent:.1} % for {expected_percent}");
            assert!(near(ms, expected_ms, 0.03), "{phase}: {ms} ms for {expected_ms}");
            assert!(near(percent, expected_percent, 0.03), "{phase}: {percent} % for {expected_percent}");
        }
    }

    /// The study found that 80 tokens cost 2.3 to 3.3 times 64, for want of scratch.
    #[test]
    fn without_scratch_there_is_a_cliff_at_65_tokens() {
        let (forward, backward, _) = products(&pair()[0]);
        let cost = |family, card, tokens| {
            let of = Products::new(family, card, &pair()[0]);
            forward.iter().chain(&backward).map(|product| of.time(product, tokens)).sum::<f64>()
        };
        let step = |family, card| cost(family, card, 80) / cost(family, card, 64);
        let then = CARDS.map(|card| step(ProductKernels::OfReference, card));
        assert!(near(then[0], 3.3, 0.05) && near(then[1], 2.3, 0.1), "{then:?}");
        for card in CARDS {
            assert!(step(ProductKernels::Sm80, card) < 1.5 && step(ProductKernels::Sm90, card) < 1.1, "{}", card.name);
        }
    }

    /// Whole percents below what the kernels of Hopper reach now: who changes a plan for the worse is told here.
    #[test]
    fn kernels_of_hopper_reach_their_share() {
        let pair = pair();
        println!("{}", table(&pair));
        let floors = [(81.0, 83.0), (59.0, 76.0), (86.0, 84.0), (79.0, 82.0), (69.0, 73.0), (73.0, 71.0)];
        for (phase, (h200, h100)) in PHASES.into_iter().zip(floors) {
            for (card, floor) in CARDS.into_iter().zip([h200, h100]) {
                let percent = 100.0 * phase.limit(card, &pair) / phase.time(ProductKernels::Sm90, card, &pair).sum();
                assert!(percent >= floor, "{phase} on {}: {percent:.1} % of its limit, {floor} % before", card.name);
            }
        }
        // Of products alone: tokens, forward and backward on an H200 and an H100.
        let floors = [
            (1, [85.0, 86.0, 86.0, 87.0]),
            (16, [84.0, 86.0, 86.0, 87.0]),
            (64, [82.0, 84.0, 84.0, 86.0]),
            (80, [81.0, 84.0, 83.0, 86.0]),
            (128, [80.0, 83.0, 83.0, 85.0]),
            (256, [74.0, 74.0, 76.0, 76.0]),
            (400, [84.0, 85.0, 84.0, 85.0]),
            (2048, [91.0, 89.0, 91.0, 89.0]),
        ];
        let (forward, backward, _) = products(&pair[0]);
        for (tokens, floors) in floors {
            let shares = CARDS.map(|card| {
                let of = Products::new(ProductKernels::Sm90, card, &pair[0]);
                [&forward, &backward].map(|products| 100.0 * of.share(products, tokens))
            });
            let shares = shares.as_flattened();
            assert!(
                shares.iter().zip(floors).all(|(share, floor)| *share >= floor),
                "{tokens} tokens: {shares:.1?}, {floors:?} before"
            );
        }
    }
}
