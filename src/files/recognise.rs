//! What a file or a directory is where it is not what it should be, in words that say what to do about it.
//!
//! Content is told by its first bytes, a directory by the names in it. Nothing here decides whether something is used: it is
//! asked once something else has failed, so a wrong guess costs a word in a message.

use std::path::Path;

/// Bytes of a file that are looked at.
const LOOKED_AT: usize = 1 << 20;

/// What content is, as a noun with what to do about it; `None` if nothing is known of it.
pub(super) fn content(bytes: &[u8]) -> Option<String> {
    let start = &bytes[..bytes.len().min(LOOKED_AT)];
    let begins = |magic: &[u8]| start.starts_with(magic);
    if start.is_empty() {
        return Some("an empty file; if it was downloaded, the download did not come to its end".to_string());
    }
    if start.iter().all(|&byte| byte == 0) {
        return Some(format!(
            "nothing but zeros in the first {} bytes: room was made for the file and its content never came; download it again",
            start.len()
        ));
    }
    let known = if begins(b"version https://git-lfs") || begins(b"# xet version") {
        "a git-lfs pointer, not the file that it stands for; run `git lfs pull` in its repository, or give the model by its \
         name, org/name"
    } else if begins(b"GGUF") {
        "a GGUF file, which is not read; give the directory of the safetensors checkpoint that it was made from"
    } else if begins(b"PK\x03\x04") {
        "a zip archive, as PyTorch saves its pickles: loading one can run any code, so that is never done; convert the \
         weights to safetensors"
    } else if begins(b"\x80\x02") || begins(b"\x80\x03") || begins(b"\x80\x04") || begins(b"\x80\x05") {
        "a pickle, as PyTorch saves weights: loading one can run any code, so that is never done; convert the weights to \
         safetensors"
    } else if begins(b"\x1f\x8b") || begins(b"\x28\xb5\x2f\xfd") || begins(b"\xfd7zXZ") || begins(b"7z\xbc\xaf") {
        "a compressed archive; unpack it first"
    } else if start.get(257..262) == Some(b"ustar") {
        "a tar archive; unpack it first"
    } else if begins(b"\x89HDF") {
        "an HDF5 file, as Keras saves weights, which is not read; convert the weights to safetensors"
    } else if begins(b"\xff\xfe") || begins(b"\xfe\xff") {
        "text in UTF-16; save it as UTF-8"
    } else if is_markup(start, &["<!doctype html", "<html", "<head", "<body"]) {
        "an HTML page: what was downloaded is a page about the file, or one that asks for a login"
    } else if is_markup(start, &["<?xml"]) {
        "an XML document, which servers send in place of a file that they do not give"
    } else {
        return None;
    };
    Some(known.to_string())
}

/// [`content`] of what should be weights; a text, too, is named by its beginning.
pub(super) fn binary(bytes: &[u8]) -> Option<String> {
    content(bytes).or_else(|| {
        // The length that a safetensors file begins with has zeros among its eight bytes, which no text has.
        let start = &bytes[..bytes.len().min(60)];
        let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
        let is_text = start.len() >= 8 && start.iter().all(printable);
        is_text.then(|| format!("a text that begins with {:?}", String::from_utf8_lossy(start)))
    })
}

fn is_markup(start: &[u8], tags: &[&str]) -> bool {
    let head = String::from_utf8_lossy(&start[..start.len().min(512)]).to_lowercase();
    let head = head.trim_start_matches('\u{feff}').trim_start();
    tags.iter().any(|tag| head.starts_with(tag))
}

/// What a directory is that lacks a file of a model, as a sentence to be put behind the one that says so; empty if nothing is
/// known of it.
pub(super) fn directory(dir: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(dir) else { return String::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let has = |name: &str| names.iter().any(|found| found == name);
    let first = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name));
    let own = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if has("snapshots") && (has("refs") || has("blobs") || own.starts_with("models--")) {
        let name = own.strip_prefix("models--").map(|name| name.replacen("--", "/", 1));
        return format!(
            "; it is a folder of the Hugging Face cache: give the model's name{}, or the directory snapshots/COMMIT inside",
            name.map_or(String::new(), |name| format!(", {name}"))
        );
    }
    if has("adapter_config.json") || has("adapter_model.safetensors") || has("adapter_model.bin") {
        return format!(
            "; it holds a PEFT adapter (LoRA), which is not a model: merge it into its base model{} and save the result",
            base_model(dir).map_or(String::new(), |base| format!(", {base},"))
        );
    }
    if has("params.json") && first(&|name| name.starts_with("consolidated")).is_some() {
        return "; it holds params.json and consolidated weights, the layout of the model's authors (Meta, Mistral): give \
                the directory of the same model with config.json and model.safetensors, or convert it with transformers"
            .to_string();
    }
    if let Some(name) = first(&|name| name.starts_with("consolidated") && name.ends_with(".safetensors")) {
        return format!(
            "; it holds `{name}`, weights under the names of Mistral's own layout: give the directory of the same model \
             with model.safetensors"
        );
    }
    if let Some(name) = first(&|name| name.to_lowercase().ends_with(".gguf")) {
        return format!(
            "; it holds `{name}`: GGUF is not read, give the directory of the safetensors checkpoint that it was made from"
        );
    }
    let unfinished = [".incomplete", ".part", ".aria2", ".crdownload", ".tmp", ".download"];
    if let Some(name) = first(&|name| unfinished.iter().any(|end| name.ends_with(end))) {
        return format!("; it holds `{name}`, a download that has not come to its end");
    }
    let inside = names.iter().find(|name| dir.join(name).join("config.json").is_file());
    match inside {
        Some(name) => format!("; its directory `{name}` holds a config.json: give that one"),
        None => String::new(),
    }
}

/// What a PEFT adapter says it was made for.
fn base_model(dir: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(dir.join("adapter_config.json")).ok()?;
    file.take(LOOKED_AT as u64).read_to_string(&mut text).ok()?;
    let config: serde_json::Value = serde_json::from_str(&text).ok()?;
    config.get("base_model_name_or_path")?.as_str().map(str::to_string)
}

/// What stands in a directory in place of `model.safetensors` or its index.
pub(super) fn weights(dir: &Path) -> String {
    let known = directory(dir);
    if !known.is_empty() {
        return format!("found neither{known}");
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return "found neither".to_string() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let ending = |end: &str| names.iter().filter(|name| name.ends_with(end)).collect::<Vec<_>>();
    let shards: Vec<_> = ending(".safetensors").into_iter().filter(|name| name.contains("-of-")).collect();
    if let [first, rest @ ..] = &shards[..] {
        let more = rest.last().map_or(String::new(), |last| format!(" to `{last}`"));
        return format!(
            "found `{first}`{more} ({} of the checkpoint's files) without the index that names them: fetch \
             `model.safetensors.index.json` from where they came from",
            shards.len()
        );
    }
    if let [first, ..] = &ending(".safetensors")[..] {
        return format!("found `{first}`: if these are the model's weights, name them `model.safetensors`");
    }
    let pickles = [".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl"];
    if let Some(name) = names.iter().find(|name| pickles.iter().any(|end| name.ends_with(end))) {
        return format!(
            "found `{name}`, which is a pickle: loading one can run any code, so ggro never does; convert the weights to \
             safetensors"
        );
    }
    let others = [".h5", ".msgpack", ".onnx", ".npz", ".mlmodel", ".engine"];
    match names.iter().find(|name| others.iter().any(|end| name.ends_with(end))) {
        Some(name) => format!("found `{name}`, weights in a format that is not read; convert them to safetensors"),
        None => "found neither".to_string(),
    }
}

/// What stands in a directory in place of `tokenizer.json`.
pub(super) fn tokenizer(dir: &Path) -> String {
    let other = ["tokenizer.model", "tekken.json", "vocab.json", "spiece.model", "qwen.tiktoken"];
    match other.iter().find(|name| dir.join(name).is_file()) {
        Some(name) => format!(
            "; `{name}` holds the same in another format: transformers writes a tokenizer.json from it \
             (AutoTokenizer.from_pretrained, then save_pretrained)"
        ),
        None => directory(dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_by_its_first_bytes() {
        for (bytes, part) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00"[..], "git lfs pull"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"PK\x03\x04\x14\0", "pickles"),
            (b"\x80\x02}q\0", "pickle"),
            (b"\n <!DOCTYPE html><html>", "HTML"),
            (b"\xef\xbb\xbf<html lang=en>", "HTML"),
            (b"<?xml version=\"1.0\"?><Error>", "XML"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"\x1f\x8b\x08", "archive"),
            (b"", "empty"),
            (&[0; 4096], "4096 bytes"),
        ] {
            let found = content(bytes).unwrap_or_default();
            assert!(found.contains(part), "{part}: {found}");
        }
        assert_eq!(content(b"{\"a\": 1}"), None);
        assert_eq!(binary(&[16, 0, 0, 0, 0, 0, 0, 0, b'{']), None);
        assert!(binary(b"Entry not found").is_some_and(|found| found.contains("Entry not found")));
    }
}
