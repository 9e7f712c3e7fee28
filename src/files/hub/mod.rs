//! Checkpoints by name: `org/name[@revision]` from the local Hugging Face cache, else downloaded into it.
//!
//! The cache is the one that other tools have: `models--org--name` with `refs`, `blobs` by their checksum, and `snapshots` of links to
//! them. A snapshot that is complete is used without asking anybody. One that lacks files which a repository need not have is complete
//! if the cache says of each that the repository has not got it (`.no_exist`, where other tools put it too); if it does not, the
//! repository is asked once. What is downloaded is a blob only once its checksum is right; until then it is `CHECKSUM.incomplete`,
//! from which a later attempt goes on.
//!
//! `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean elsewhere. The token
//! goes to the endpoint's own host and to no other.
//!
//! Without the feature `hub` the cache is read and nothing is downloaded.

#[cfg(feature = "hub")]
mod download;

use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files that a model may have beside its weights, config and tokenizer.
const OPTIONAL: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// Folder of further chat templates.
const TEMPLATES: &str = "additional_chat_templates/";
/// In the place of a file that a repository does not have, as other tools of the cache mark it.
const ABSENT: &str = ".no_exist";

/// A model's name: `org/name`, and the revision behind an `@`, which is `main` without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `org/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Name {
    /// Reads a name; none if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = repository.split_once('/')?;
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.') && !part.contains("..")
        };
        let good = plain(org) && plain(name) && !revision.is_empty() && revision.split('/').all(plain);
        good.then(|| Name { repository: repository.to_string(), revision: revision.to_string() })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repository),
            revision => write!(f, "{}@{revision}", self.repository),
        }
    }
}

/// A model that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundModel {
    /// Its directory.
    pub dir: PathBuf,
    /// What the user should know of it.
    pub note: Option<String>,
}

/// How far a download has come.
#[derive(Clone, Copy, Debug)]
pub struct Downloaded<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes of it that are there.
    pub bytes: u64,
    /// Its size, if the server says it.
    pub size: Option<u64>,
}

/// Where models come from.
#[derive(Clone, Debug)]
pub struct Hub {
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only downloads need it"))]
    endpoint: String,
    cache: PathBuf,
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only downloads need it"))]
    token: Option<String>,
    offline: bool,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")));
            cache.unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface")
        });
        let cache = set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| {
            let path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            std::fs::read_to_string(path).ok()
        });
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        let yes = |value: String| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str());
        Self::new(&endpoint, cache, token, set("HF_HUB_OFFLINE").is_some_and(yes))
    }

    /// A hub at `endpoint`, with this cache.
    pub fn new(endpoint: &str, cache: PathBuf, token: Option<String>, offline: bool) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_string();
        Hub { endpoint, cache, token, offline }
    }

    /// Where models are kept.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The directory of a model, downloaded if the cache does not have all of it. `progress` is told as bytes come.
    ///
    /// # Errors
    /// There is no such model or revision, access to it needs a token, the server cannot be reached or what it sends has another
    /// checksum, the cache cannot be written; offline, the cache does not have it.
    pub fn fetch(&self, name: &Name, progress: &mut dyn FnMut(Downloaded<'_>)) -> Result<PathBuf> {
        self.find(name, progress).map(|found| found.dir)
    }

    /// [`fetch`](Self::fetch), with what the user should know of what was found.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn find(&self, name: &Name, progress: &mut dyn FnMut(Downloaded<'_>)) -> Result<FoundModel> {
        let folder = self.cache.join(format!("models--{}", name.repository.replace('/', "--")));
        let Some(dir) = cached(&folder, &name.revision) else {
            if self.offline {
                return Err(Error::invalid(format!(
                    "{name} is not, or not wholly, in the cache {}, and HF_HUB_OFFLINE is set",
                    self.cache.display()
                )));
            }
            return Ok(FoundModel { dir: self.download(name, &folder, progress)?, note: None });
        };
        let open = unsettled(&folder, &dir);
        if open.is_empty() {
            return Ok(FoundModel { dir, note: None });
        }
        // Of the same commit: what the cache has stays what it is.
        let commit = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let why = match self.offline {
            true => "HF_HUB_OFFLINE is set".to_string(),
            false => match self.complete(name, &commit, &folder, &dir, progress) {
                Ok(()) => return Ok(FoundModel { dir, note: None }),
                Err(why) => why.to_string(),
            },
        };
        let missed = missed(&dir, &open);
        let note = (!missed.is_empty()).then(|| {
            let files = missed.join(", ");
            format!("{name}: the cache has no {files}, and whether the model has could not be asked: {why}")
        });
        Ok(FoundModel { dir, note })
    }

    #[cfg(not(feature = "hub"))]
    fn complete(&self, _: &Name, _: &str, _: &Path, _: &Path, _: &mut dyn FnMut(Downloaded<'_>)) -> Result<()> {
        Err(Error::invalid("this build does not download: it lacks the feature `hub`"))
    }

    #[cfg(feature = "hub")]
    fn complete(
        &self,
        name: &Name,
        commit: &str,
        folder: &Path,
        dir: &Path,
        progress: &mut dyn FnMut(Downloaded<'_>),
    ) -> Result<()> {
        let name = Name { repository: name.repository.clone(), revision: commit.to_string() };
        download::Download::of_optional(self, &name).complete(folder, dir, progress)
    }

    #[cfg(not(feature = "hub"))]
    fn download(&self, name: &Name, _: &Path, _: &mut dyn FnMut(Downloaded<'_>)) -> Result<PathBuf> {
        Err(Error::invalid(format!(
            "{name} is not, or not wholly, in the cache {}, and this build does not download: it lacks the feature `hub` \
             (cargo build --release --features hub)",
            self.cache.display()
        )))
    }

    #[cfg(feature = "hub")]
    fn download(&self, name: &Name, folder: &Path, progress: &mut dyn FnMut(Downloaded<'_>)) -> Result<PathBuf> {
        download::Download::new(self, name).fetch(folder, progress)
    }
}

/// A snapshot of the cache that has everything.
fn cached(folder: &Path, revision: &str) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let commit = std::fs::read_to_string(folder.join("refs").join(revision)).map(|commit| commit.trim().to_string());
    let snapshot = snapshots.join(commit.unwrap_or_else(|_| revision.to_string()));
    let there = |file: &str| snapshot.join(file).is_file();
    if !there("config.json") || !there("tokenizer.json") {
        return None;
    }
    let whole = there(SINGLE) || shards(&snapshot.join(INDEX)).is_some_and(|all| all.iter().all(|shard| there(shard)));
    whole.then_some(snapshot)
}

/// Optional files of which a snapshot does not say whether the repository has them, [`TEMPLATES`] among them.
fn unsettled(folder: &Path, snapshot: &Path) -> Vec<&'static str> {
    let Some(commit) = snapshot.file_name() else { return Vec::new() };
    let absent = folder.join(ABSENT).join(commit);
    let settled = |file: &str| snapshot.join(file).exists() || absent.join(file).exists();
    OPTIONAL.into_iter().chain([TEMPLATES]).filter(|file| !settled(file)).collect()
}

/// Those of the files whose absence may change what a model answers, if it has them.
fn missed(snapshot: &Path, open: &[&'static str]) -> Vec<&'static str> {
    let config = std::fs::read_to_string(snapshot.join("tokenizer_config.json")).unwrap_or_default();
    let matters = |file: &str| match file {
        // The template is in the config, or there is one already.
        "chat_template.jinja" => !config.contains("\"chat_template\""),
        "special_tokens_map.json" => config.is_empty(),
        _ => file != TEMPLATES,
    };
    open.iter().copied().filter(|file| matters(file)).collect()
}

/// Shards that an index names; none if it cannot be read or names something else than plain files.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
    let names = value.get("weight_map")?.as_object()?.values().map(|name| name.as_str().map(str::to_string));
    let names = names.collect::<Option<BTreeSet<String>>>()?;
    let plain =
        |name: &String| !name.contains(['/', '\\', '\0']) && name.ends_with(".safetensors") && !name.starts_with('.');
    (!names.is_empty() && names.iter().all(plain)).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |text| Name::parse(text).map(|name| (name.repository, name.revision));
        let of = |repository: &str, revision: &str| Some((repository.to_string(), revision.to_string()));
        assert_eq!(name("meta-llama/Llama-3.1-8B"), of("meta-llama/Llama-3.1-8B", "main"));
        assert_eq!(name("a/b@refs/pr/3"), of("a/b", "refs/pr/3"));
        for bad in ["a", "a/b/c", "a/b@", "../b", "a/..", "/a/b", "./a", "a b/c", "a/b@../x", "a/b@x//y"] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(Name::parse("a/b@v1").map(|name| name.to_string()), Some("a/b@v1".to_string()));
    }
}
