//! A device that is lost while the server runs.

use ggro::Error;
use ggro::config::ModelConfig;
use ggro::engine::{Engine, Settings};
use ggro::model::reference::{LoadOptions, Reference};
use ggro::model::{Backend, Gradient, GradientSpan, PolicyRow, PolicySpan, RewardSpan, Role, Score, SeqId, Work};
use ggro::pair::Pair;
use ggro::server::connections::{Ended, serve};
use ggro::server::keys::Keys;
use ggro::server::method::Defaults;
use ggro::server::{Config, Limits, Served};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// A backend whose device is lost after some policy steps.
struct Fragile {
    inner: Reference,
    steps: usize,
}

impl Fragile {
    fn check(&self) -> ggro::Result<()> {
        match self.steps {
            0 => Err(Error::Backend("the CUDA device is lost after an earlier error: it fell out".to_string())),
            _ => Ok(()),
        }
    }
}

impl Backend for Fragile {
    fn config(&self, role: Role) -> &ModelConfig {
        self.inner.config(role)
    }
    fn max_len(&self) -> usize {
        self.inner.max_len()
    }
    fn create(&mut self, role: Role) -> ggro::Result<SeqId> {
        self.inner.create(role)
    }
    fn fork(&mut self, seq: SeqId, len: usize) -> ggro::Result<SeqId> {
        self.inner.fork(seq, len)
    }
    fn truncate(&mut self, seq: SeqId, len: usize) -> ggro::Result<()> {
        self.inner.truncate(seq, len)
    }
    fn release(&mut self, seq: SeqId) {
        self.inner.release(seq);
    }
    fn len(&self, seq: SeqId) -> usize {
        self.inner.len(seq)
    }
    fn policy_step(&mut self, spans: &[PolicySpan<'_>]) -> ggro::Result<Vec<PolicyRow>> {
        self.steps = self.steps.saturating_sub(1);
        self.check()?;
        self.inner.policy_step(spans)
    }
    fn logits_row(&mut self, seq: SeqId) -> ggro::Result<Vec<f32>> {
        self.inner.logits_row(seq)
    }
    fn reward_score(&mut self, spans: &[RewardSpan<'_>]) -> ggro::Result<Vec<Score>> {
        self.check()?;
        self.inner.reward_score(spans)
    }
    fn reward_gradient(&mut self, spans: &[GradientSpan<'_>]) -> ggro::Result<Vec<Gradient>> {
        self.check()?;
        self.inner.reward_gradient(spans)
    }
    fn same_embedding(&self, a: u32, b: u32) -> bool {
        self.inner.same_embedding(a, b)
    }
    fn work(&self) -> Work {
        self.inner.work()
    }
    fn alive(&self) -> ggro::Result<()> {
        self.check()
    }
}

#[test]
fn everyone_is_told_and_the_server_ends() {
    let pair = Arc::new(Pair::load(&ggro::demo::policy(), &ggro::demo::reward()).unwrap());
    let config = Config {
        name: "demo".to_string(),
        reward_name: "demo-reward".to_string(),
        defaults: Defaults { entropy_threshold: 3.25, max_candidates: 8 },
        keys: Keys::default(),
        limits: Limits::default(),
        origins: Vec::new(),
        vllm_metrics: false,
        profiling: false,
        keep_alive: Duration::from_secs(1),
        drain: Duration::from_secs(1),
    };
    let served = Arc::new(Served::new(config, pair.clone(), 512));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (loaded, engine) = oneshot::channel();
    let (_stop, stopped) = watch::channel(0);
    let server = runtime.spawn(serve(listener, served, engine, stopped));

    // Nothing is there before the weights are.
    let get = |path: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(format!("{base}{path}")).call().unwrap().status().as_u16()
    };
    assert_eq!([get("/health"), get("/ready"), get("/v1/models")], [200, 503, 503]);
    let open = move || -> ggro::Result<Box<dyn Backend>> {
        Ok(Box::new(Fragile { inner: Reference::load(&pair, &LoadOptions::default())?, steps: 30 }))
    };
    assert!(loaded.send(Engine::start(Settings::default(), open)).is_ok());
    while get("/ready") != 200 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ask = |stream: bool, model: &str| {
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello" }], "stream": stream,
            "temperature": 0, "max_tokens": 200, "ignore_eos": true });
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.post(format!("{base}/v1/chat/completions")).send(body.to_string()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let answers = std::thread::scope(|scope| {
        let asked = [(false, "demo"), (true, "demo"), (true, "demo:ggro")];
        let threads: Vec<_> = asked.map(|(stream, model)| scope.spawn(move || ask(stream, model))).into();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(answers[0].0, 500);
    for (_, body) in &answers {
        assert!(body.contains("device_lost") || body.contains("it fell out"), "{body}");
    }
    assert!(answers[1..].iter().all(|(_, body)| body.trim_end().ends_with("data: [DONE]")));
    match runtime.block_on(server).unwrap() {
        Ok(Ended::Lost) => {}
        other => panic!("{other:?}"),
    }
}
