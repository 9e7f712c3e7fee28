//! A device that is lost while the server runs.

use ggro::Error;
use ggro::engine::{Engine, Settings};
use ggro::files::config::ModelConfig;
use ggro::files::pair::Pair;
use ggro::model::cpu::{self, LoadOptions};
use ggro::model::{
    Gradient, GradientSpan, Logits, Model, ModelPair, PolicyRow, PolicySpan, RewardSpan, Score, SeqId, Work,
};
use ggro::presets::Preset;
use ggro::server::connections::{Ended, serve};
use ggro::server::{AppState, Config};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// A model whose device is lost when the test says so.
struct Fragile {
    inner: Box<dyn Model>,
    lost: Arc<AtomicBool>,
}

impl Fragile {
    fn check(&self) -> ggro::Result<()> {
        match self.lost.load(Ordering::Relaxed) {
            true => Err(Error::Backend("the CUDA device is lost after an earlier error: it fell out".to_string())),
            false => Ok(()),
        }
    }
}

impl Model for Fragile {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }
    fn max_len(&self) -> usize {
        self.inner.max_len()
    }
    fn create(&mut self) -> ggro::Result<SeqId> {
        self.inner.create()
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
    fn step(
        &mut self,
        spans: &[PolicySpan<'_>],
        ids_below: usize,
        meanwhile: &mut dyn FnMut(),
    ) -> ggro::Result<Vec<PolicyRow>> {
        self.check()?;
        self.inner.step(spans, ids_below, meanwhile)
    }
    fn logits(&mut self, seq: SeqId, asked: Logits<'_>) -> ggro::Result<Vec<f32>> {
        self.inner.logits(seq, asked)
    }
    fn score(&mut self, spans: &[RewardSpan<'_>]) -> ggro::Result<Vec<Score>> {
        self.check()?;
        self.inner.score(spans)
    }
    fn gradient(&mut self, spans: &[GradientSpan<'_>]) -> ggro::Result<Vec<Gradient>> {
        self.check()?;
        self.inner.gradient(spans)
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
    let pair = Arc::new(Pair::load(&ggro::files::demo::policy(), &ggro::files::demo::reward()).unwrap());
    let config = Config::new("demo", "demo-reward", Preset::DEMO);
    let app = Arc::new(AppState::new(config, pair.clone(), 512));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (loaded, engine) = oneshot::channel();
    let (_stop, stopped) = watch::channel(0);
    let server = runtime.spawn(serve(listener, app, engine, stopped));

    // Nothing is there before the weights are.
    let get = |path: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(format!("{base}{path}")).call().unwrap().status().as_u16()
    };
    assert_eq!([get("/health"), get("/ready"), get("/v1/models")], [200, 503, 503]);
    let lost = Arc::new(AtomicBool::new(false));
    let for_backend = lost.clone();
    let open = move || -> ggro::Result<ModelPair> {
        let ModelPair { policy, reward, draft } = cpu::open(pair.parts(), &LoadOptions::default())?;
        let fragile = |inner| Box::new(Fragile { inner, lost: for_backend.clone() }) as Box<dyn Model>;
        Ok(ModelPair { policy: policy.map(fragile), reward: reward.map(fragile), draft })
    };
    assert!(loaded.send(Engine::start(Settings::default(), open)).is_ok());
    while get("/ready") != 200 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ask = |stream: bool, model: &str| {
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello" }], "stream": stream,
            "temperature": 1, "max_tokens": 400, "ignore_eos": true, "n": if model == "demo" { 32 } else { 1 },
            "ggro": (model != "demo").then(|| json!({ "entropy_threshold": 0.01, "num_refinement_steps": 64 })) });
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.post(format!("{base}/v1/chat/completions")).send(body.to_string()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let answers = std::thread::scope(|scope| {
        let asked = [(false, "demo"), (true, "demo"), (true, "demo:ggro")];
        let running = || {
            let text = ureq::get(format!("{base}/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
            text.contains("ggro_num_requests_running{model_name=\"demo\"} 3")
        };
        let threads: Vec<_> = asked.map(|(stream, model)| scope.spawn(move || ask(stream, model))).into();
        while !running() {
            std::thread::sleep(Duration::from_millis(2));
        }
        lost.store(true, Ordering::Relaxed);
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
