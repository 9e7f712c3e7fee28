//! The engine on the emulated device: what requests say alone they say in company, bit for bit.

use crate::backend::{FIXTURES, parts};
use crate::emulated::{Emulated, alone};
use crate::requests::{Request, requests, together};
use ggro::engine::{Settings, Width};
use ggro::model::cuda::{Cuda, CudaOptions};
use ggro_emulator::Config;
use std::time::Instant;

/// The three shortest traces of every fixture that nudge: one after the other without speculation, then together, candidates
/// side by side, in less memory than they would like.
#[test]
fn three_traces_of_every_fixture_in_company() {
    alone("engine::three_traces_of_every_fixture_in_company", || {
        for name in FIXTURES {
            let mut all: Vec<Request> = requests(name);
            all.retain(|request| request.options.max_candidates > 1);
            all.sort_by_key(|request| request.prompt.len() + request.options.max_new_tokens);
            all.truncate(3);
            let all: Vec<&Request> = all.iter().collect();

            let began = Instant::now();
            let Emulated { device, machine } = Emulated::new(Config::default());
            let [policy, reward] = parts(name);
            let options = CudaOptions { batch_tokens: 704, sequences: 8, ..CudaOptions::default() };
            let parts = ((&policy.0, &policy.1), (&reward.0, &reward.1));
            let mut cuda = Cuda::assemble(device, parts, &options, &mut |_| ()).unwrap().0;
            let settings =
                |speculation, run_ahead| Settings { speculation, run_ahead, batch_tokens: 704, ..Settings::default() };
            let expected: Vec<_> = all
                .iter()
                .flat_map(|request| together(&mut cuda, &settings(Width::Off, false), &[request], &[0]).responses)
                .collect();
            for (width, arrivals) in [(Width::Fixed(8), [0, 0, 3]), (Width::Auto, [4, 0, 1])] {
                let outcome = together(&mut cuda, &settings(width, true), &all, &arrivals[..all.len()]);
                assert!(outcome.responses == expected, "{name}, {width:?}: another answer in company");
            }
            let faults = machine.faults();
            assert!(faults.is_empty(), "{name}: {faults:#?}");
            let nudges: usize = expected.iter().map(|response| response.num_nudges).sum();
            println!("{name}: {} traces, {nudges} nudges, {:.1} s", all.len(), began.elapsed().as_secs_f64());
        }
    });
}
