//! Weights on their way to the device: the ring, the places, and what becomes of the numbers.

use crate::emulated::Emulated;
use ggro::cuda::ops::embed::{Table, embed};
use ggro::cuda::ops::weight_layout::WeightLayout::{self, Rows, Tiles};
use ggro::cuda::{Buffer, Device, staging};
use ggro::dtype::DType;
use ggro::dtype::HalfType;
use ggro::files::checkpoint::{Checkpoint, Files};
use ggro::files::config::{ModelConfig, ModelKind};
use ggro::files::demo;
use ggro::files::pair::Parts;
use ggro::model::cuda::sizes::Sizes;
use ggro::model::cuda::weights::{Head, Layer, LoadPlan, LoadReport, Source, Weights};
use ggro::model::cuda::{self, CudaOptions, Sources};
use ggro::model::{GradientSpan, RewardSpan, Role, RowStats, Span, synthetic};
use ggro_emulator::{Config, Streams};
use std::path::Path;

/// In both modes of streams; lazy ones copy as late as they may, so a slot that is filled too early shows.
fn both_streams(mut test: impl FnMut(&Emulated)) {
    for streams in [Streams::Eager, Streams::Lazy] {
        let emulated = Emulated::new(Config { streams, ..Config::default() });
        test(&emulated);
        emulated.assert_clean();
    }
}

#[test]
fn the_ring_brings_every_piece() {
    both_streams(|emulated| {
        let device = &emulated.device;
        // More pieces than slots, of many sizes, an empty one among them.
        let pieces: Vec<Vec<u8>> = (0..60usize).map(|i| vec![i as u8; i * 7919 % 50_000]).collect();
        let starts: Vec<usize> =
            pieces.iter().scan(0, |end, piece| Some(std::mem::replace(end, *end + piece.len()))).collect();
        let all = pieces.concat();
        let mut buffer = Buffer::<u8>::uninitialised(device, all.len()).unwrap();
        let mut seen = vec![0; pieces.len()];
        staging::stream(device, &pieces, |index, filled| {
            seen[index] += 1;
            assert_eq!((filled.len(), filled.is_empty()), (pieces[index].len(), pieces[index].is_empty()));
            filled.copy_to(&mut buffer.view_mut().slice(starts[index]..starts[index] + filled.len()))
        })
        .unwrap();
        assert!(seen.iter().all(|&times| times == 1), "{seen:?}");
        assert!(buffer.download(device).unwrap() == all);

        let mut times = 0;
        let failed = staging::stream(device, &pieces, |index, filled| {
            times += 1;
            filled.copy_to(&mut buffer.view_mut().slice(starts[index]..starts[index] + filled.len()))?;
            if times == 5 { Err(ggro::Error::invalid("enough")) } else { Ok(()) }
        });
        assert_eq!((failed.unwrap_err().to_string().as_str(), times), ("enough", 5));
        let wrong =
            staging::stream(device, &pieces[1..2], |_, filled| filled.copy_to(&mut buffer.view_mut().slice(0..1)));
        assert!(wrong.unwrap_err().to_string().contains("copy of 7919 bytes to 1"));
        staging::stream(device, &[] as &[Vec<u8>], |_, _| panic!("nothing to queue")).unwrap();
        assert!(staging::stream(device, &[vec![0; staging::SLOT + 1]], |_, _| Ok(())).is_err());
    });
}

/// A stored tensor in f32.
fn stored(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Vec<f32> {
    let tensor = checkpoint.tensor(name, shape).unwrap();
    tensor
        .data
        .chunks_exact(tensor.dtype.size())
        .map(|b| match tensor.dtype {
            DType::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        })
        .collect()
}

/// Name and shape of a stored tensor, and which row its rows are in.
type Part<'a> = (&'a str, &'a [usize], &'a dyn Fn(usize) -> usize);

/// Compares a model on the device with the tensors it was made from, element by element and written down anew.
struct Compared<'a> {
    device: &'a Device,
    checkpoint: &'a Checkpoint,
    storage: HalfType,
}

impl Compared<'_> {
    /// `found` is `[.., width]`; each part is a stored `[rows, cols]` whose row `r` is in row `row(r)` and whose column `c`
    /// in column `col(c)`; all else is zero.
    fn matrix(&self, found: &Buffer<u16>, width: usize, parts: &[Part<'_>], col: &dyn Fn(usize) -> usize) {
        let found = found.download(self.device).unwrap();
        let mut expected = vec![0u16; found.len()];
        for (name, shape, row) in parts {
            let cols = if shape.len() == 2 { shape[1] } else { 1 };
            for (i, value) in stored(self.checkpoint, name, shape).into_iter().enumerate() {
                expected[row(i / cols) * width + col(i % cols)] = self.storage.round(value);
            }
        }
        let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!((found.len(), wrong), (expected.len(), None), "{}", parts[0].0);
    }

    fn model(&self, config: &ModelConfig, weights: &Weights) {
        let s = Sizes::new(config).unwrap();
        let (d, dp, e, ep, f, fp) = (s.hidden, s.hidden_padded, s.head, s.head_padded, s.mlp, s.mlp_padded);
        let (h, g) = (s.heads, s.kv_heads);
        let same = |i: usize| i;
        let heads = |first: usize| move |i: usize| (first + i / e) * ep + i % e;
        let embedding = &weights.embedding;
        assert_eq!(embedding.len(), s.vocab * dp);
        self.matrix(embedding, dp, &[("model.embed_tokens.weight", &[s.vocab, d], &same)], &same);
        self.matrix(&weights.final_norm, 1, &[("model.norm.weight", &[d], &same)], &same);
        assert_eq!(weights.final_norm.len(), dp);
        match (&weights.head, config.kind) {
            (Head::Score(head), ModelKind::Reward) => self.matrix(head, dp, &[("score.weight", &[1, d], &same)], &same),
            (Head::Own(head), ModelKind::CausalLm) => {
                assert!(!config.tie_word_embeddings);
                self.matrix(head, dp, &[("lm_head.weight", &[s.vocab, d], &same)], &same);
            }
            (Head::Tied, task) => assert!(config.tie_word_embeddings && task == ModelKind::CausalLm),
            (head, task) => panic!("{head:?} of a {task:?}"),
        }
        assert_eq!(weights.layers.len(), s.layers);
        for (i, layer) in weights.layers.iter().enumerate() {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            let (q, k, v) = (at("self_attn.q_proj"), at("self_attn.k_proj"), at("self_attn.v_proj"));
            let (o, gate, up, down) =
                (at("self_attn.o_proj"), at("mlp.gate_proj"), at("mlp.up_proj"), at("mlp.down_proj"));
            let weight = |name: &str| format!("{name}.weight");
            let bias = |name: &str| format!("{name}.bias");
            let second = |i: usize| fp + i;
            assert_eq!((layer.qkv.len(), layer.o.len()), (s.qkv * dp, dp * s.attention_padded));
            assert_eq!((layer.gate_up.len(), layer.down.len()), (2 * fp * dp, dp * fp));
            let parts: [Part<'_>; 3] = [
                (&weight(&q), &[h * e, d], &heads(0)),
                (&weight(&k), &[g * e, d], &heads(h)),
                (&weight(&v), &[g * e, d], &heads(h + g)),
            ];
            self.matrix(&layer.qkv, dp, &parts, &same);
            assert_eq!(layer.qkv_bias.is_some(), config.qkv_bias);
            if let Some(found) = &layer.qkv_bias {
                assert_eq!(found.len(), s.qkv);
                let parts: [Part<'_>; 3] = [
                    (&bias(&q), &[h * e], &heads(0)),
                    (&bias(&k), &[g * e], &heads(h)),
                    (&bias(&v), &[g * e], &heads(h + g)),
                ];
                self.matrix(found, 1, &parts, &same);
            }
            assert_eq!(layer.head_norms.is_some(), config.qk_norm);
            if let Some((q, k)) = &layer.head_norms {
                assert_eq!((q.len(), k.len()), (ep, ep));
                self.matrix(q, 1, &[(&at("self_attn.q_norm.weight"), &[e], &same)], &same);
                self.matrix(k, 1, &[(&at("self_attn.k_norm.weight"), &[e], &same)], &same);
            }
            self.matrix(&layer.o, s.attention_padded, &[(&weight(&o), &[d, h * e], &same)], &heads(0));
            let parts: [Part<'_>; 2] = [(&weight(&gate), &[f, d], &same), (&weight(&up), &[f, d], &second)];
            self.matrix(&layer.gate_up, dp, &parts, &same);
            self.matrix(&layer.down, fp, &[(&weight(&down), &[d, f], &same)], &same);
            self.matrix(&layer.attention_norm, 1, &[(&at("input_layernorm.weight"), &[d], &same)], &same);
            self.matrix(&layer.mlp_norm, 1, &[(&at("post_attention_layernorm.weight"), &[d], &same)], &same);
            assert_eq!((layer.attention_norm.len(), layer.mlp_norm.len()), (dp, dp));
            let biases = (layer.o_bias.is_some(), layer.gate_up_bias.is_some(), layer.down_bias.is_some());
            assert_eq!(biases, (config.o_bias, config.mlp_bias, config.mlp_bias));
            if let Some(found) = &layer.o_bias {
                self.matrix(found, 1, &[(&bias(&o), &[d], &same)], &same);
            }
            if let (Some(gate_up), Some(found)) = (&layer.gate_up_bias, &layer.down_bias) {
                let parts: [Part<'_>; 2] = [(&bias(&gate), &[f], &same), (&bias(&up), &[f], &second)];
                self.matrix(gate_up, 1, &parts, &same);
                self.matrix(found, 1, &[(&bias(&down), &[d], &same)], &same);
            }
        }
    }
}

/// Loads a model and compares everything.
fn load(device: &Device, files: &Files, asked: Option<HalfType>) -> ggro::Result<LoadReport> {
    let config = ModelConfig::load(files)?;
    let checkpoint = Checkpoint::open(files)?;
    let plan = LoadPlan::new(&config, &checkpoint, asked, Rows)?;
    let mut told = Vec::new();
    let (weights, report) = Weights::load(device, &plan, &mut |bytes| told.push(bytes))?;
    assert!(told.is_sorted() && told.last() == Some(&plan.source_bytes()), "{told:?}");
    assert_eq!(report.bytes, plan.source_bytes());
    Compared { device, checkpoint: &checkpoint, storage: plan.storage() }.model(&config, &weights);
    Ok(report)
}

/// All models there are: the golden pairs and the demo pair.
fn models() -> Vec<Files> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let mut folders: Vec<_> = std::fs::read_dir(goldens).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let models = folders.iter().flat_map(|folder| [folder.join("policy"), folder.join("reward")]);
    let mut models: Vec<Files> = models.filter(|model| model.is_dir()).map(Files::Dir).collect();
    assert!(models.len() >= 16);
    models.extend([demo::policy(), demo::reward()]);
    models
}

#[test]
fn every_model_lies_where_the_kernels_look_for_it() {
    both_streams(|emulated| {
        for files in models() {
            let config = ModelConfig::load(&files).unwrap();
            let native = LoadPlan::new(&config, &Checkpoint::open(&files).unwrap(), None, Rows).unwrap().storage();
            let small = matches!(files, Files::Dir(_));
            for asked in [None, Some(HalfType::Bf16), Some(HalfType::F16)].into_iter().take(if small { 3 } else { 1 }) {
                match (load(&emulated.device, &files, asked), asked) {
                    (Ok(report), _) => {
                        let as_stored = asked.is_none() || asked == Some(native);
                        assert!(!as_stored || report.inexact == 0, "{files:?}: {report:?}");
                        assert_eq!(report.inexact == 0, report.first_inexact.is_none());
                    }
                    (Err(error), asked) => panic!("{files:?} {asked:?}: {error}"),
                }
            }
        }
    });
}

/// Rows of `width` numbers, those of gates and then those of ups: 8 gates in turn with their ups.
fn in_turns(rows: &[u16], width: usize) -> Vec<u16> {
    let (gates, ups) = rows.split_at(rows.len() / 2);
    let eight = |rows: &[u16], turn: usize| rows[turn * 8 * width..][..8 * width].to_vec();
    (0..gates.len() / (8 * width)).flat_map(|turn| [eight(gates, turn), eight(ups, turn)].concat()).collect()
}

/// The same weights in rows and in tiles.
struct BothLayouts<'a> {
    device: &'a Device,
    /// Bytes of the buffers in tiles that were compared.
    bytes: u64,
}

impl BothLayouts<'_> {
    /// Loads a model in either layout and compares everything.
    fn compare(device: &Device, config: &ModelConfig, source: Source<'_>, asked: Option<HalfType>) {
        let load = |layout| {
            let plan = LoadPlan::of(config, source, asked, layout).unwrap();
            let (weights, report) = Weights::load(device, &plan, &mut |_| ()).unwrap();
            (weights, LoadReport { seconds: 0.0, ..report }, plan)
        };
        let ((rows, report, _), (tiles, report_of_tiles, plan)) = (load(Rows), load(Tiles));
        assert_eq!(report, report_of_tiles);
        assert_eq!((rows.layout, tiles.layout), (Rows, Tiles));
        let s = Sizes::new(config).unwrap();
        let (vocab, d) = (s.vocab, s.hidden_padded);
        let tied = matches!(tiles.head, Head::Tied);
        assert_eq!(tiles.embedding_layout(), if tied { Tiles } else { Rows });
        assert_eq!(tiles.head_layout(), if config.kind == ModelKind::Reward { Rows } else { Tiles });

        let mut both = BothLayouts { device, bytes: 0 };
        both.same(&rows.embedding, &tiles.embedding, (vocab, d), tiles.embedding_layout());
        both.same(&rows.final_norm, &tiles.final_norm, (1, d), Rows);
        match (&rows.head, &tiles.head) {
            (Head::Tied, Head::Tied) => {}
            (Head::Own(a), Head::Own(b)) => both.same(a, b, (vocab, d), Tiles),
            (Head::Score(a), Head::Score(b)) => both.same(a, b, (1, d), Rows),
            (a, b) => panic!("{a:?} and {b:?}"),
        }
        assert_eq!(rows.layers.len(), tiles.layers.len());
        rows.layers.iter().zip(&tiles.layers).for_each(|(a, b)| both.layer(&s, a, b));
        assert_eq!(both.bytes, plan.device_bytes());
        both.gathered(&rows, &tiles, plan.storage(), (vocab, d));
    }

    /// `b` is the `[n, k]` that `a` is, arranged.
    fn same(&mut self, a: &Buffer<u16>, b: &Buffer<u16>, (n, k): (usize, usize), layout: WeightLayout) {
        let rows = a.download(self.device).unwrap();
        self.holds(&rows, b, (n, k), layout);
    }

    /// `b` is these `[n, k]`, arranged.
    fn holds(&mut self, rows: &[u16], b: &Buffer<u16>, (n, k): (usize, usize), layout: WeightLayout) {
        let found = b.download(self.device).unwrap();
        assert_eq!(rows.len(), n * k);
        assert!(found == layout.arranged(rows, n, k), "[{n}, {k}] in {layout:?}");
        self.bytes += 2 * b.len() as u64;
    }

    fn layer(&mut self, s: &Sizes, a: &Layer, b: &Layer) {
        let (d, f, heads) = (s.hidden_padded, s.mlp_padded, s.attention_padded);
        self.same(&a.qkv, &b.qkv, (s.qkv, d), Tiles);
        self.same(&a.o, &b.o, (d, heads), Tiles);
        self.holds(&in_turns(&a.gate_up.download(self.device).unwrap(), d), &b.gate_up, (2 * f, d), Tiles);
        self.same(&a.down, &b.down, (d, f), Tiles);
        self.same(&a.attention_norm, &b.attention_norm, (1, d), Rows);
        self.same(&a.mlp_norm, &b.mlp_norm, (1, d), Rows);
        if let (Some(a), Some(b)) = (&a.gate_up_bias, &b.gate_up_bias) {
            self.holds(&in_turns(&a.download(self.device).unwrap(), 1), b, (1, 2 * f), Rows);
        }
        assert_eq!(a.gate_up_bias.is_some(), b.gate_up_bias.is_some());
        let vectors = |layer: &Layer| {
            let biases = [&layer.qkv_bias, &layer.o_bias, &layer.down_bias];
            let norms = layer.head_norms.as_ref().map(|(q, k)| [q, k]);
            let all = biases.into_iter().flatten().chain(norms.into_iter().flatten());
            all.map(|vector| vector.download(self.device).unwrap()).collect::<Vec<_>>()
        };
        let found = vectors(b);
        assert_eq!(vectors(a), found);
        self.bytes += found.iter().map(|vector| 2 * vector.len() as u64).sum::<u64>();
    }

    /// The embeddings of some ids, the last without a row, are the same.
    fn gathered(&self, rows: &Weights, tiles: &Weights, storage: HalfType, (vocabulary, d): (usize, usize)) {
        let ids = [0, vocabulary as u32 - 1, 1, 7, 66, vocabulary as u32];
        let ids = Buffer::from_slice(self.device, &ids).unwrap();
        let [from_rows, from_tiles] = [rows, tiles].map(|weights| {
            let (elements, layout) = (weights.embedding.view(), weights.embedding_layout());
            let mut out = Buffer::<f32>::zeros(self.device, ids.len() * d).unwrap();
            let table = Table { elements, vocabulary, layout };
            embed(self.device, storage, &mut out.view_mut(), table, ids.view(), d).unwrap();
            out.download(self.device).unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        assert!(from_rows == from_tiles);
        let (known, unknown) = from_tiles.split_at((ids.len() - 1) * d);
        assert!(known.iter().all(|&bits| f32::from_bits(bits).is_finite()) && known.iter().any(|&bits| bits != 0));
        assert!(unknown.iter().all(|&bits| f32::from_bits(bits).is_nan()), "an id without a row");
    }
}

/// Tied, with padding everywhere, with biases; as they are stored, converted, and drawn.
#[test]
fn tiles_hold_the_weights_that_rows_hold() {
    both_streams(|emulated| {
        let device = &emulated.device;
        for name in ["llama-mha-tied", "llama-gqa", "qwen2"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
            for role in ["policy", "reward"] {
                let files = Files::Dir(folder.join(role));
                let config = ModelConfig::load(&files).unwrap();
                let checkpoint = Checkpoint::open(&files).unwrap();
                for asked in [None, Some(HalfType::F16)] {
                    BothLayouts::compare(device, &config, Source::Stored(&checkpoint), asked);
                }
                BothLayouts::compare(device, &config, Source::Drawn(3), None);
            }
        }
    });
}

/// A model whose tensors are made up, in a temporary folder.
fn made_up(hidden: usize, vocab: usize, embedding: (&str, &[u8])) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "hidden_size": {hidden},
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8, "num_labels": 1,
        "vocab_size": {vocab}, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}}"#
    );
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut add = |name: &str, dtype: &str, shape: &[usize], bytes: &[u8]| {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.into(), serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend_from_slice(bytes);
    };
    add("model.embed_tokens.weight", embedding.0, &[vocab, hidden], embedding.1);
    let mut bf16 = |name: &str, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let bytes: Vec<u8> = (0..count).flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes()).collect();
        add(name, "BF16", shape, &bytes);
    };
    bf16("model.norm.weight", &[hidden]);
    bf16("score.weight", &[1, hidden]);
    for (part, shape) in [
        ("input_layernorm", vec![hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![8, hidden]),
        ("self_attn.k_proj", vec![8, hidden]),
        ("self_attn.v_proj", vec![8, hidden]),
        ("self_attn.o_proj", vec![hidden, 8]),
        ("mlp.gate_proj", vec![8, hidden]),
        ("mlp.up_proj", vec![8, hidden]),
        ("mlp.down_proj", vec![hidden, 8]),
    ] {
        bf16(&format!("model.layers.0.{part}.weight"), &shape);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(directory.path().join("model.safetensors"), file).unwrap();
    directory
}

#[test]
fn tensors_larger_than_a_slot_arrive_whole() {
    let emulated = Emulated::new(Config::default());
    // One that is copied straight to its place, one whose rows are padded.
    for hidden in [64, 66] {
        let vocab = (staging::SLOT / 2 + 100_000) / hidden;
        let bytes: Vec<u8> =
            (0..vocab * hidden).flat_map(|i| half::bf16::from_f32((i % 251) as f32).to_le_bytes()).collect();
        let folder = made_up(hidden, vocab, ("BF16", &bytes));
        let report = load(&emulated.device, &Files::Dir(folder.path().into()), None).unwrap();
        assert_eq!(report.converted, 0);
    }
    emulated.assert_clean();
}

#[test]
fn numbers_change_only_when_asked() {
    let emulated = Emulated::new(Config::default());
    let device = &emulated.device;
    let f32s = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let files = |folder: &tempfile::TempDir| Files::Dir(folder.path().into());

    let exact: Vec<f32> = (0..10 * 66).map(|i| (i % 200) as f32 * 0.25).collect();
    let folder = made_up(66, 10, ("F32", &f32s(&exact)));
    let report = load(device, &files(&folder), None).unwrap();
    assert_eq!((report.converted, report.inexact), (660, 0));

    let mut odd = exact.clone();
    (odd[3], odd[659]) = (0.1, 1.0 + f32::EPSILON);
    let folder = made_up(66, 10, ("F32", &f32s(&odd)));
    let error = load(device, &files(&folder), None).unwrap_err();
    let text = error.to_string();
    for part in ["model.safetensors", "`model.embed_tokens.weight`", "2 of 660", "f32", "bf16", "storage type"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(error.is_invalid_input());
    let report = load(device, &files(&folder), Some(HalfType::Bf16)).unwrap();
    assert_eq!((report.inexact, report.first_inexact.as_deref()), (2, Some("model.embed_tokens.weight")));

    odd[5] = 1e6;
    let folder = made_up(66, 10, ("F32", &f32s(&odd)));
    let text = load(device, &files(&folder), Some(HalfType::F16)).unwrap_err().to_string();
    assert!(text.contains("1 of 660") && text.contains("beyond the range of f16"), "{text}");

    // Most of this model is f16; what is bf16 in it must fit.
    let bytes: Vec<u8> = (0..100 * 66).flat_map(|i| half::f16::from_f32((i % 7) as f32).to_le_bytes()).collect();
    let folder = made_up(66, 100, ("F16", &bytes));
    let (config, checkpoint) =
        (ModelConfig::load(&files(&folder)).unwrap(), Checkpoint::open(&files(&folder)).unwrap());
    assert_eq!(LoadPlan::new(&config, &checkpoint, None, Rows).unwrap().storage(), HalfType::F16);
    let report = load(device, &files(&folder), None).unwrap();
    assert!(report.converted > 0 && report.inexact == 0, "{report:?}");
    emulated.assert_clean();
}

/// The numbers that a device draws are those that the host writes: a synthetic pair and its files run alike.
#[test]
fn drawn_weights_are_the_files_that_the_host_writes() {
    let [policy, reward] = synthetic::pair("demo").unwrap();
    let options = CudaOptions {
        max_model_len: Some(256),
        batch_tokens: 64,
        gradient_tokens: 64,
        sequences: 2,
        ..CudaOptions::default()
    };
    let ids: Vec<u32> = (0..40).map(|i| i * 97 % 4096).collect();
    let mut found = Vec::new();
    for drawn in [true, false] {
        let Emulated { device, machine } = Emulated::new(Config::default());
        let mut cuda = if drawn {
            cuda::open(device, Sources::synthetic([&policy, &reward], 7), &options, &mut |_| ()).unwrap().0
        } else {
            let files =
                |config, seed| Checkpoint::of_bytes("made", synthetic::safetensors(config, seed).unwrap()).unwrap();
            let (policy_files, reward_files) = (files(&policy, 7), files(&reward, !7));
            cuda::open(device, Parts::both((&policy, &policy_files), (&reward, &reward_files)), &options, &mut |_| ())
                .unwrap()
                .0
        };
        let rows = cuda.policy_rows(&ids).unwrap();
        let seq = cuda.create(Role::Reward).unwrap();
        let span = RewardSpan { span: Span { seq, start: 0, ids: &ids }, also_at: &[] };
        let wanted = GradientSpan { span, slot: 30, candidates: &[5, 6], rows: false };
        let gradient = cuda.reward_gradient(&[wanted]).unwrap().remove(0);
        assert!(gradient.norm.is_finite() && gradient.norm > 0.0);
        // Entropies as a trained model may have them.
        let entropies = rows.logits.chunks_exact(4096).map(|row| RowStats::of(row, 0.0).entropy);
        let mean = entropies.clone().sum::<f64>() / ids.len() as f64;
        println!("mean entropy {mean:.2} nats, reward {:.2}", gradient.score.reward);
        assert!((0.5..4.0).contains(&mean), "{mean}");
        found.push((rows.logits, gradient));
        assert!(machine.faults().is_empty(), "{:#?}", machine.faults());
    }
    assert!(found[0] == found[1]);
}
