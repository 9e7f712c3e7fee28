//! A random pair as Hugging Face directories, for whatever reads those: `policy/` and `reward/` with config, weights and a tokenizer
//! of bytes.

use super::{Drawn, config_json};
use crate::files::config::{ModelConfig, ModelKind};
use crate::files::tensors::tensors;
use crate::files::tokenizer::spelled;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Bytes of a file of weights, at most; larger models have several.
const SHARD: u64 = 4_000_000_000;

/// Text around messages.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}\
                        {% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}";

/// A file that was written: its name, and its bytes.
pub type Wrote<'a> = &'a mut dyn FnMut(&str, u64);

/// Writes policy and reward model of a shape into two folders of `dir`, which must be there.
///
/// # Errors
/// There is no such shape, or a file cannot be written.
pub fn write(preset: &str, seed: u64, dir: &Path, wrote: Wrote<'_>) -> Result<()> {
    write_in(preset, seed, dir, SHARD, wrote)
}

fn write_in(preset: &str, seed: u64, dir: &Path, shard: u64, wrote: Wrote<'_>) -> Result<()> {
    // As a synthetic pair that is not written has them.
    for (name, kind, seed) in [("policy", ModelKind::CausalLm, seed), ("reward", ModelKind::Reward, !seed)] {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).map_err(|e| Error::io(&folder, e))?;
        let mut json = config_json(preset, kind)?;
        json["torch_dtype"] = json!("bfloat16");
        let config = ModelConfig::parse(&json.to_string(), Path::new(preset))?;
        let special = special(&config);
        let mut save = |file: &str, value: &Value| -> Result<()> {
            let path = folder.join(file);
            let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::Backend(e.to_string()))?;
            text.push('\n');
            std::fs::write(&path, &text).map_err(|e| Error::io(&path, e))?;
            wrote(&format!("{name}/{file}"), text.len() as u64);
            Ok(())
        };
        save("config.json", &json)?;
        save("tokenizer.json", &tokenizer(&special, config.vocab_size))?;
        save(
            "tokenizer_config.json",
            &json!({
                "bos_token": special[0].1, "eos_token": special[1].1, "model_max_length": config.max_position_embeddings,
                "model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": false,
                "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE,
            }),
        )?;
        if kind == ModelKind::CausalLm {
            save("generation_config.json", &json!({ "bos_token_id": special[0].0, "eos_token_id": special[1].0 }))?;
        }
        weights(&config, seed, &folder, shard, &mut |file, bytes| wrote(&format!("{name}/{file}"), bytes))?;
    }
    Ok(())
}

/// Tokens that are no bytes: begin of text, end of turn, and the beginning of a message. They stand where no byte does.
fn special(config: &ModelConfig) -> [(u32, &'static str); 3] {
    let end = config.eos_token_ids.first().copied().unwrap_or(2);
    let mut free = (0..).filter(|&id| id != end && (id as usize) < config.vocab_size);
    let mut next = || free.next().unwrap_or(0);
    [(next(), "<|begin|>"), (end, "<|end|>"), (next(), "<|start|>")]
}

/// A tokenizer of single bytes, as GPT-2 spells them. The other ids have names, which no text is encoded to: the official code
/// cuts models to the size of their tokenizer.
fn tokenizer(special: &[(u32, &str)], size: usize) -> Value {
    let mut vocab = Map::new();
    let added: Vec<Value> = special
        .iter()
        .map(|&(id, content)| {
            vocab.insert(content.to_string(), json!(id));
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true,
            })
        })
        .collect();
    let mut free = (0u32..).filter(|id| special.iter().all(|(taken, _)| taken != id));
    for byte in 0..=u8::MAX {
        vocab.insert(spelled(byte).to_string(), json!(free.next()));
    }
    for id in free.take_while(|&id| (id as usize) < size) {
        vocab.insert(format!("<|{id}|>"), json!(id));
    }
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

/// Weights, drawn tensor by tensor as they are written.
fn weights(config: &ModelConfig, seed: u64, folder: &Path, shard: u64, wrote: Wrote<'_>) -> Result<()> {
    let mut shards: Vec<Vec<(String, Drawn)>> = vec![Vec::new()];
    let mut held = 0;
    for (name, shape) in tensors(config) {
        let drawn = Drawn::new(config, seed, &name, shape);
        let bytes = drawn.bytes() as u64;
        if held > 0 && held + bytes > shard {
            shards.push(Vec::new());
            held = 0;
        }
        held += bytes;
        if let Some(last) = shards.last_mut() {
            last.push((name, drawn));
        }
    }
    let count = shards.len();
    let mut map = Map::new();
    let mut total = 0;
    for (index, tensors) in shards.into_iter().enumerate() {
        let file = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        for (name, drawn) in &tensors {
            map.insert(name.clone(), json!(file));
            total += drawn.bytes() as u64;
        }
        let path = folder.join(&file);
        let saved = ::safetensors::serialize_to_file(tensors, None, &path);
        saved.map_err(|e| Error::file(&path, format!("cannot be written: {e}")))?;
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        wrote(&file, bytes);
    }
    if count > 1 {
        let path = folder.join("model.safetensors.index.json");
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        std::fs::write(&path, index.to_string()).map_err(|e| Error::io(&path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::checkpoint::Files;
    use crate::files::pair::Pair;

    #[test]
    fn letters_of_bytes() {
        assert_eq!([0, b' ', b'A', 0x7f, 0xa0, 0xad, 0xff].map(spelled), ['Ā', 'Ġ', 'A', 'ġ', 'ł', 'Ń', 'ÿ']);
        let all: std::collections::BTreeSet<char> = (0..=u8::MAX).map(spelled).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn a_pair_in_several_files_is_the_one_that_is_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        write_in("demo", 7, dir.path(), 3_000_000, &mut |file, bytes| files.push((file.to_string(), bytes))).unwrap();
        assert!(files.iter().filter(|(file, _)| file.contains("policy/model-0000")).count() > 1, "{files:?}");
        let files = |name: &str| Files::Dir(dir.path().join(name));
        let pair = Pair::load(&files("policy"), &files("reward")).unwrap();
        let made = super::super::safetensors(&pair.policy().unwrap().config, 7).unwrap();
        let made = crate::files::checkpoint::Checkpoint::of_bytes("made", made).unwrap();
        for (name, shape) in tensors(&pair.policy().unwrap().config) {
            let (written, drawn) =
                (pair.policy().unwrap().weights.tensor(&name, &shape).unwrap(), made.tensor(&name, &shape).unwrap());
            assert!(written.data == drawn.data, "{name}");
        }
        let text = "Grüße, 世界 \u{1f600}\n";
        let ids = pair.tokenizer.encode(text).unwrap();
        assert_eq!(pair.tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(ids.len(), text.len());
        assert_eq!(pair.tokenizer.len(), pair.policy().unwrap().config.vocab_size);
        let said = [crate::files::chat::Message { role: "user".into(), content: "Hello".into() }];
        let rendered = pair.chat().unwrap().render(&said, true).unwrap();
        assert_eq!(rendered, "<|start|>user\nHello<|end|>\n<|start|>assistant\n");
        assert_eq!(
            pair.tokenizer.encode(&rendered).unwrap().iter().filter(|&&id| pair.tokenizer.is_special(id)).count(),
            3
        );
        assert!(write_in("demo", 7, dir.path(), 1, &mut |_, _| ()).is_err(), "folders that are there stay");
    }
}
