//! What the cache lacks, over HTTP: resumed where it broke off, redirected, and kept only with the right checksum.

use super::{ABSENT, Downloaded, Hub, INDEX, Name, OPTIONAL, SINGLE, TEMPLATES, shards};
use crate::{Error, Result};
use sha1::Digest;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::{Response, Uri, header};

/// Files that every model has beside its weights.
const FILES: [&str; 2] = ["config.json", "tokenizer.json"];
/// Further chat templates that are fetched, at most.
const MOST_TEMPLATES: usize = 64;

/// Attempts to get a file, each going on where the last one ended.
const ATTEMPTS: usize = 4;
const REDIRECTS: usize = 8;
/// Seconds without a byte after which an attempt has failed.
const PATIENCE: u64 = 30;
/// The same where the model can be used without what is asked for.
const SHORT_PATIENCE: u64 = 5;

/// What the hub says of a file.
struct About {
    /// Its checksum, as the cache names blobs.
    etag: String,
    size: Option<u64>,
}

/// One model on its way into the cache.
pub(super) struct Download<'a> {
    hub: &'a Hub,
    name: &'a Name,
    agent: ureq::Agent,
}

impl<'a> Download<'a> {
    pub(super) fn new(hub: &'a Hub, name: &'a Name) -> Self {
        Self::with_patience(hub, name, PATIENCE)
    }

    /// For files that need not be had.
    pub(super) fn of_optional(hub: &'a Hub, name: &'a Name) -> Self {
        Self::with_patience(hub, name, SHORT_PATIENCE)
    }

    fn with_patience(hub: &'a Hub, name: &'a Name, seconds: u64) -> Self {
        let patience = Some(Duration::from_secs(seconds));
        let config = ureq::Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("ggro/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(patience)
            .timeout_recv_response(patience)
            .timeout_per_read(patience)
            .build();
        Download { hub, name, agent: config.new_agent() }
    }

    /// Brings every file of the model and gives the folder of its snapshot.
    pub(super) fn fetch(&self, folder: &Path, progress: &mut dyn FnMut(Downloaded<'_>)) -> Result<PathBuf> {
        let name = self.name;
        let (commit, files) = self.list()?;
        let snapshot = folder.join("snapshots").join(&commit);
        for file in FILES.iter().filter(|file| files.contains(**file)) {
            self.file(&commit, file, folder, &snapshot, progress)?;
        }
        self.optional(&commit, &files, folder, &snapshot, progress)?;
        let mut get = |file: &str| self.file(&commit, file, folder, &snapshot, progress);
        if files.contains(SINGLE) {
            get(SINGLE)?;
        } else if files.contains(INDEX) {
            get(INDEX)?;
            for shard in shards(&snapshot.join(INDEX)).unwrap_or_default() {
                if !files.contains(&shard) {
                    return Err(Error::invalid(format!("{name}: {INDEX} names {shard}, which is not there")));
                }
                get(&shard)?;
            }
        } else {
            return Err(Error::invalid(format!(
                "{name} has neither {SINGLE} nor {INDEX}; only safetensors are loaded"
            )));
        }
        let reference = folder.join("refs").join(&name.revision);
        write(&reference, commit.as_bytes())?;
        Ok(snapshot)
    }

    /// Brings what a snapshot lacks of the files that a repository need not have.
    pub(super) fn complete(
        &self,
        folder: &Path,
        snapshot: &Path,
        progress: &mut dyn FnMut(Downloaded<'_>),
    ) -> Result<()> {
        let (commit, files) = self.list()?;
        self.optional(&commit, &files, folder, snapshot, progress)
    }

    /// Brings the optional files that a repository has, and marks those that it has not.
    fn optional(
        &self,
        commit: &str,
        files: &BTreeSet<String>,
        folder: &Path,
        snapshot: &Path,
        progress: &mut dyn FnMut(Downloaded<'_>),
    ) -> Result<()> {
        let template = |file: &&String| {
            let name = file.strip_prefix(TEMPLATES).and_then(|name| name.strip_suffix(".jinja"));
            // It becomes a file's name.
            name.is_some_and(|name| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-".contains(c)))
        };
        let templates: Vec<&str> = files.iter().filter(template).take(MOST_TEMPLATES).map(String::as_str).collect();
        let known = OPTIONAL.iter().copied().filter(|file| files.contains(*file));
        for file in known.chain(templates.iter().copied()) {
            self.file(commit, file, folder, snapshot, progress)?;
        }
        let absent = OPTIONAL.iter().filter(|file| !files.contains(**file)).map(ToString::to_string);
        // A folder cannot be marked like a file, where another tool may want to mark one of its files.
        let folderless = templates.is_empty().then(|| format!("{TEMPLATES}.none"));
        for file in absent.chain(folderless) {
            // A cache that cannot be written is asked about again.
            let mark = folder.join(ABSENT).join(commit).join(file);
            let _ = mark.parent().map(std::fs::create_dir_all);
            let _ = std::fs::write(mark, "");
        }
        Ok(())
    }

    /// The commit that a revision is, and the files it has.
    fn list(&self) -> Result<(String, BTreeSet<String>)> {
        let name = self.name;
        let url = format!("{}/api/models/{}/revision/{}", self.hub.endpoint, name.repository, escaped(&name.revision));
        let (mut response, _) = self.follow("GET", &url, None)?;
        self.check("", &response)?;
        let failed = |what: String| Error::invalid(format!("{name}: {url} answered with {what}"));
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string();
        let text = text.map_err(|e| failed(e.to_string()))?;
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| failed(format!("no JSON: {e}")))?;
        let commit = value.get("sha").and_then(|sha| sha.as_str()).unwrap_or_default();
        if commit.len() != 40 || !commit.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(failed(format!("the commit {commit:?}")));
        }
        let siblings = value.get("siblings").and_then(|list| list.as_array());
        let names = siblings.into_iter().flatten().filter_map(|file| file.get("rfilename")?.as_str());
        Ok((commit.to_string(), names.map(str::to_string).collect()))
    }

    /// Brings one file into the cache and links it into the snapshot.
    fn file(
        &self,
        commit: &str,
        file: &str,
        folder: &Path,
        snapshot: &Path,
        progress: &mut dyn FnMut(Downloaded<'_>),
    ) -> Result<()> {
        let link = snapshot.join(file);
        if link.is_file() {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{commit}/{file}", self.hub.endpoint, self.name.repository);
        let about = self.about(file, &url)?;
        let blob = folder.join("blobs").join(&about.etag);
        if !blob.is_file() {
            self.blob(file, &url, &about, &blob, progress)?;
        }
        let failed = |e| Error::io(&link, e);
        std::fs::create_dir_all(link.parent().unwrap_or(snapshot)).map_err(failed)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = Path::new(&up).join("blobs").join(&about.etag);
        match std::os::unix::fs::symlink(&target, &link) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(e)),
            _ => Ok(()),
        }
    }

    fn about(&self, file: &str, url: &str) -> Result<About> {
        let name = self.name;
        let (response, hub) = self.follow("HEAD", url, None)?;
        self.check(file, &response)?;
        let of = |names: [&str; 2]| names.iter().find_map(|name| hub.get(*name)).and_then(|value| value.to_str().ok());
        let etag = of(["x-linked-etag", "etag"]).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
        // It becomes a file name.
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(Error::invalid(format!("{name}: {file}: the server gives it no checksum (found {etag:?})")));
        }
        let size = of(["x-linked-size", "content-length"]).and_then(|size| size.parse().ok());
        Ok(About { etag, size })
    }

    fn blob(
        &self,
        file: &str,
        url: &str,
        about: &About,
        blob: &Path,
        progress: &mut dyn FnMut(Downloaded<'_>),
    ) -> Result<()> {
        let name = self.name;
        let part = blob.with_added_extension("incomplete");
        let failed = |e| Error::io(&part, e);
        if let Some(parent) = blob.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut open = OpenOptions::new();
        let mut out = open.read(true).write(true).create(true).truncate(false).open(&part).map_err(failed)?;
        // Another process may be at it: whoever comes second finds the blob, or goes on.
        out.lock().map_err(failed)?;
        if blob.is_file() {
            return Ok(());
        }
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(Duration::from_millis(200 << attempt));
            }
            match self.attempt(file, url, about, &mut out, &part, progress) {
                Ok(()) => {
                    last = None;
                    break;
                }
                // Not a matter of trying again.
                Err(Failed::Finally(error)) => return Err(error),
                Err(Failed::ForNow(error)) => last = Some(error),
            }
        }
        if let Some(error) = last {
            return Err(error);
        }
        verify(&mut out, &about.etag).map_err(failed)?.map_err(|found| {
            // Nothing of it can be trusted.
            let _ = out.set_len(0);
            Error::invalid(format!("{name}: {file}: checksum {} expected, {found} found; try again", about.etag))
        })?;
        out.sync_all().and_then(|()| std::fs::rename(&part, blob)).map_err(failed)
    }

    /// Gets what is missing of a file.
    fn attempt(
        &self,
        file: &str,
        url: &str,
        about: &About,
        out: &mut File,
        part: &Path,
        progress: &mut dyn FnMut(Downloaded<'_>),
    ) -> std::result::Result<(), Failed> {
        let name = self.name;
        let local = |e| Failed::Finally(Error::io(part, e));
        let mut bytes = out.seek(SeekFrom::End(0)).map_err(local)?;
        if about.size.is_some_and(|size| bytes > size) {
            out.set_len(0).and_then(|()| out.seek(SeekFrom::Start(0))).map_err(local)?;
            bytes = 0;
        }
        if about.size == Some(bytes) {
            return Ok(());
        }
        let (response, _) = self.follow("GET", url, Some(bytes).filter(|&bytes| bytes > 0)).map_err(Failed::ForNow)?;
        if response.status().is_server_error() {
            return Err(Failed::ForNow(Error::invalid(format!(
                "{name}: {file}: the server answered {}",
                response.status()
            ))));
        }
        self.check(file, &response).map_err(Failed::Finally)?;
        if bytes > 0 && response.status() != 206 {
            // The whole file again.
            out.set_len(0).and_then(|()| out.seek(SeekFrom::Start(0))).map_err(local)?;
            bytes = 0;
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let broken =
                |e| Failed::ForNow(Error::invalid(format!("{name}: {file}: broke off after {bytes} bytes: {e}")));
            let count = body.read(&mut buffer).map_err(broken)?;
            if count == 0 {
                break;
            }
            out.write_all(&buffer[..count]).map_err(local)?;
            bytes += count as u64;
            progress(Downloaded { file, bytes, size: about.size });
        }
        match about.size {
            Some(size) if bytes < size => {
                let message = format!("{name}: {file}: broke off after {bytes} of {size} bytes");
                Err(Failed::ForNow(Error::invalid(message)))
            }
            _ => Ok(()),
        }
    }

    /// A request, redirected as often as it has to be; with the headers of the last answer that came from the endpoint's host.
    fn follow(&self, method: &str, url: &str, from: Option<u64>) -> Result<(Response<ureq::Body>, header::HeaderMap)> {
        let failed = |url: &str, what: &str| Error::invalid(format!("{url}: {what}"));
        let host = |uri: &Uri| (uri.scheme_str().map(str::to_string), uri.authority().map(ToString::to_string));
        let home: Uri =
            self.hub.endpoint.parse().map_err(|_| failed(&self.hub.endpoint, "HF_ENDPOINT is not an address"))?;
        let mut uri: Uri = url.parse().map_err(|_| failed(url, "is not an address"))?;
        let mut told = header::HeaderMap::new();
        for _ in 0..REDIRECTS {
            let mut request = ureq::http::Request::builder().method(method).uri(&uri);
            let at_home = host(&uri) == host(&home);
            if let Some(token) = self.hub.token.as_ref().filter(|_| at_home) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let request = request.body(()).map_err(|e| failed(url, &e.to_string()))?;
            let response = self.agent.run(request).map_err(|e| failed(&uri.to_string(), &e.to_string()))?;
            if at_home {
                // A renamed repository answers with another address of its own; what is said of the file comes last.
                for (name, value) in response.headers() {
                    told.insert(name, value.clone());
                }
                // The length of a redirection is not the file's.
                if response.status().is_redirection() {
                    told.remove(header::CONTENT_LENGTH);
                }
            }
            if !response.status().is_redirection() {
                return Ok((response, told));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| failed(&uri.to_string(), "redirects to nowhere"))?;
            // The hub has said what it knows: who asks about a file does not need the file's own server.
            if method == "HEAD" && told.contains_key("x-linked-etag") {
                return Ok((
                    Response::builder()
                        .status(200)
                        .body(ureq::Body::builder().data(""))
                        .map_err(|e| failed(url, &e.to_string()))?,
                    told,
                ));
            }
            uri = match location.strip_prefix('/').filter(|rest| !rest.starts_with('/')) {
                Some(path) => {
                    let (scheme, authority) = host(&uri);
                    format!("{}://{}/{path}", scheme.unwrap_or_default(), authority.unwrap_or_default())
                }
                None => location.to_string(),
            }
            .parse()
            .map_err(|_| failed(location, "is redirected to, and not an address"))?;
        }
        Err(failed(url, &format!("is redirected more than {REDIRECTS} times")))
    }

    fn check(&self, file: &str, response: &Response<ureq::Body>) -> Result<()> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let name = self.name;
        let what = if file.is_empty() { name.to_string() } else { format!("{name}: {file}") };
        let token = if self.hub.token.is_some() {
            "the token that is set does not open it"
        } else {
            "it may need a token: set HF_TOKEN"
        };
        Err(Error::invalid(match status.as_u16() {
            401 | 403 => format!("{what}: access is refused ({status}); {token}, and accept its terms on its page"),
            404 => format!("{what}: {} has no such model, revision or file", self.hub.endpoint),
            _ => format!("{what}: {} answered {status}", self.hub.endpoint),
        }))
    }
}

enum Failed {
    ForNow(Error),
    Finally(Error),
}

/// Whether a file has the checksum that it is named after: SHA-256 of large files, git's SHA-1 of small ones. What is named otherwise
/// cannot be checked.
fn verify(file: &mut File, etag: &str) -> std::io::Result<std::result::Result<(), String>> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let found = match etag.len() {
        64 => hex(&digest(file, sha2::Sha256::new())?),
        40 => {
            let mut hash = sha1::Sha1::new();
            hash.update(format!("blob {length}\0"));
            hex(&digest(file, hash)?)
        }
        _ => return Ok(Ok(())),
    };
    Ok(if found == etag.to_lowercase() { Ok(()) } else { Err(found) })
}

fn digest<D: Digest>(file: &mut File, mut hash: D) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().to_vec()),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |e| Error::io(path, e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let part = path.with_added_extension("part");
    std::fs::write(&part, content).and_then(|()| std::fs::rename(&part, path)).map_err(failed)
}

/// A revision in an address: a branch may have slashes.
fn escaped(revision: &str) -> String {
    revision.replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_both_kinds() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello\n").unwrap();
        // `git hash-object` and `sha256sum` of the same bytes.
        for good in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            assert_eq!(verify(&mut file, good).unwrap(), Ok(()));
            assert!(verify(&mut file, &good.replace('e', "f")).unwrap().is_err());
        }
        assert_eq!(verify(&mut file, "abc-1").unwrap(), Ok(()));
    }
}
