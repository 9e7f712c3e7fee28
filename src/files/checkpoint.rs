//! Safetensors checkpoints, memory-mapped: one file or shards, looked up by name with dtype and shape checked.
//!
//! Everything a file says about itself is checked when it is opened, before a byte of tensor data is touched: the header
//! length against the file and the format's cap, that names are unique, that `dtype x shape` is the number of bytes, and
//! that the tensors cover the rest of the file without holes or overlaps. What passes here also passes the `safetensors`
//! crate; the checks are made anew because a message must name the tensor, what was expected and what was found.
//!
//! Shards are looked up by plain file name in the model's own directory. The names are compared as text and not
//! canonicalised: files of the Hugging Face cache are symbolic links, and following them is intended.
//!
//! # Mapped files
//!
//! A checkpoint must not be changed or truncated while it is open. The operating system would answer a read behind the
//! new end with a signal that ends the process, as with every other engine that maps its weights.

use crate::dtype::DType;
use crate::files::{json, recognise};
use crate::{Error, Result};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{ErrorKind, Read};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Cap of the safetensors format on the header, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Cap on files that are read as a whole (JSON, templates), in bytes.
const MAX_WHOLE_FILE: u64 = 256 << 20;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files of one model: a directory, or the pair embedded in the binary.
#[derive(Clone, Debug)]
pub enum Files {
    /// A Hugging Face directory.
    Dir(PathBuf),
    /// Files compiled into the binary: a label for messages and `(name, content)`.
    Embedded(&'static str, &'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// Path of a file, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Files::Dir(dir) => dir.join(name),
            Files::Embedded(label, _) => Path::new(label).join(name),
        }
    }

    /// The whole content of a small file (JSON, a template). `Ok(None)` if the directory has no such file.
    ///
    /// # Errors
    /// The directory does not exist, the file is a dangling link, not a regular file, larger than 256 MiB or not
    /// readable.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        let dir = match self {
            Files::Embedded(_, files) => return Ok(find_embedded(files, name).map(Cow::Borrowed)),
            Files::Dir(dir) => dir,
        };
        let path = self.path(name);
        let Some(file) = open_regular(dir, &path)? else {
            return Ok(None);
        };
        read_whole(&path, file).map(|content| Some(Cow::Owned(content)))
    }

    /// [`read`](Files::read) as UTF-8 text.
    ///
    /// # Errors
    /// As [`read`](Files::read), and where the content is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<Option<Cow<'static, str>>> {
        let Some(content) = self.read(name)? else {
            return Ok(None);
        };
        let text = match content {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|e| e.utf8_error()),
        };
        text.map(Some).map_err(|e| Error::file(self.path(name), format!("expected UTF-8 text: {e}")))
    }

    /// [`read`](Files::read) as a JSON object.
    ///
    /// # Errors
    /// As [`read`](Files::read), and where the content is not a JSON object.
    pub fn read_json(&self, name: &str) -> Result<Option<serde_json::Map<String, serde_json::Value>>> {
        let Some(content) = self.read(name)? else {
            return Ok(None);
        };
        let object = json::parse(&content)
            .map_err(|found| Error::file(self.path(name), format!("expected a JSON object{found}")))?;
        Ok(Some(object))
    }

    /// What this is, if it is known to be something else than a model's files, to be put behind "no such file".
    pub(super) fn instead(&self) -> String {
        match self {
            Files::Dir(dir) => recognise::directory(dir),
            Files::Embedded(..) => String::new(),
        }
    }
}

/// All that `source` gives, up to a limit; `path` is its name in messages. The size is not taken from the metadata, which
/// pipes and devices do not have: one without an end is refused like a file that is too large.
pub(crate) fn read_whole(path: &Path, source: impl Read) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    source.take(MAX_WHOLE_FILE + 1).read_to_end(&mut content).map_err(|e| Error::io(path, e))?;
    if content.len() as u64 > MAX_WHOLE_FILE {
        return Err(Error::file(path, format!("larger than {MAX_WHOLE_FILE} bytes, the most that is read of it")));
    }
    Ok(content)
}

/// [`read_whole`] as UTF-8 text, without the byte order mark that some editors and shells put in front of it.
pub(crate) fn read_whole_text(path: &Path, source: impl Read) -> Result<String> {
    let mut content = read_whole(path, source)?;
    if content.starts_with(&[0xff, 0xfe]) || content.starts_with(&[0xfe, 0xff]) {
        return Err(Error::file(path, "expected UTF-8 text, found UTF-16; save it as UTF-8"));
    }
    if content.starts_with("\u{feff}".as_bytes()) {
        content.drain(..3);
    }
    String::from_utf8(content).map_err(|e| Error::file(path, format!("expected UTF-8 text: {}", e.utf8_error())))
}

fn find_embedded(files: &'static [(&'static str, &'static [u8])], name: &str) -> Option<&'static [u8]> {
    files.iter().find(|(n, _)| *n == name).map(|(_, content)| *content)
}

/// Opens a file of `dir`. `Ok(None)` only if the directory is there and the file is not.
fn open_regular(dir: &Path, path: &Path) -> Result<Option<std::fs::File>> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(metadata) => {
            let found = if metadata.is_dir() { "a directory" } else { "a special file" };
            return Err(Error::file(path, format!("expected a regular file, found {found}")));
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return match std::fs::metadata(dir) {
                Err(e) => Err(Error::io(dir, e)),
                Ok(metadata) if !metadata.is_dir() => Err(Error::file(dir, "expected a model directory, found a file")),
                Ok(_) if path.is_symlink() => Err(Error::file(path, "the link points to a file that does not exist")),
                Ok(_) => Ok(None),
            };
        }
        Err(e) => return Err(Error::io(path, e)),
    }
    std::fs::File::open(path).map(Some).map_err(|e| Error::io(path, e))
}

/// One tensor inside a checkpoint: raw little-endian bytes, possibly misaligned.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape, outermost first.
    pub shape: &'a [usize],
    /// `shape.product() * dtype.size()` bytes, at any alignment.
    pub data: &'a [u8],
}

/// Bytes of one tensor that keep their file mapped: cheap to clone, at any alignment.
#[derive(Clone, Debug)]
pub struct Bytes {
    source: ShardBytes,
    range: Range<usize>,
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.source.get()[self.range.clone()]
    }
}

/// An open checkpoint. Cheap to keep: the data stays in the page cache.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file that lists the tensors: the only one, or the index.
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorEntry>,
    /// Tensors that the index names and no shard has, with the shard that it names.
    absent: BTreeMap<String, String>,
    /// What was noticed while it was opened, in words.
    notes: Vec<String>,
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: ShardBytes,
}

#[derive(Clone, Debug)]
enum ShardBytes {
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
    Made(Arc<Vec<u8>>),
}

impl ShardBytes {
    fn get(&self) -> &[u8] {
        match self {
            ShardBytes::Mapped(map) => map,
            ShardBytes::Embedded(bytes) => bytes,
            ShardBytes::Made(bytes) => bytes,
        }
    }
}

/// Where a tensor lies. `range` is inside the shard's bytes.
#[derive(Debug)]
struct TensorEntry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
    /// Its name in the file, where it goes by another one.
    stored: Option<String>,
}

impl Checkpoint {
    fn at(path: PathBuf) -> Self {
        let (shards, tensors) = (Vec::new(), BTreeMap::new());
        Checkpoint { path, shards, tensors, absent: BTreeMap::new(), notes: Vec::new() }
    }

    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A file is missing or not a regular file, a header is truncated, oversized or not JSON, tensor data overlaps, lies
    /// outside the file or does not have `dtype x shape` bytes, or a shard name is not a plain file name. What the index says
    /// of single tensors is not checked: as with `transformers`, the shards say what they hold, and of a tensor that two of
    /// them have, the last one's is taken.
    pub fn open(files: &Files) -> Result<Self> {
        let mut checkpoint = Checkpoint::at(files.path(SINGLE));
        if let Some(bytes) = map(files, SINGLE)? {
            checkpoint.add_shard(files.path(SINGLE), bytes)?;
            return Ok(checkpoint);
        }
        checkpoint.path = files.path(INDEX);
        let Some(index) = files.read(INDEX)? else {
            return Err(no_weights(files));
        };
        checkpoint.open_shards(files, &index)?;
        Ok(checkpoint)
    }

    /// The content of a safetensors file that is nowhere on disk; `label` is for messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_bytes(label: &str, bytes: Vec<u8>) -> Result<Self> {
        let path = PathBuf::from(label);
        let mut checkpoint = Checkpoint::at(path.clone());
        checkpoint.add_shard(path, ShardBytes::Made(Arc::new(bytes)))?;
        Ok(checkpoint)
    }

    fn open_shards(&mut self, files: &Files, index: &[u8]) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: Unique<String>,
        }
        let fail = |message: String| Error::file(files.path(INDEX), message);
        let index: Index =
            json::parse(index).map_err(|found| fail(format!("expected an index with a `weight_map`{found}")))?;
        let weight_map: Vec<(String, String)> =
            index.weight_map.0.into_iter().map(|(tensor, shard)| (tensor, in_directory(shard))).collect();
        for name in weight_map.iter().map(|(_, shard)| shard).collect::<BTreeSet<_>>() {
            check_shard_name(name).map_err(&fail)?;
            let bytes =
                map(files, name)?.ok_or_else(|| fail(format!("the shard `{name}` is missing from the directory")))?;
            self.add_shard(files.path(name), bytes)?;
        }
        self.absent = weight_map.into_iter().filter(|(tensor, _)| !self.tensors.contains_key(tensor)).collect();
        Ok(())
    }

    fn add_shard(&mut self, path: PathBuf, bytes: ShardBytes) -> Result<()> {
        let header = parse_header(bytes.get()).map_err(|message| Error::file(&path, message))?;
        let shard = self.shards.len();
        for (name, info, range) in header {
            let entry = TensorEntry { shard, dtype: info.dtype, shape: info.shape, range, stored: None };
            if let Some(other) = self.tensors.get(&name) {
                let (data, other) =
                    (&self.shards[other.shard].bytes.get()[other.range.clone()], &self.shards[other.shard]);
                if *data != bytes.get()[entry.range.clone()] {
                    self.notes.push(format!(
                        "tensor `{name}` is in two files with different numbers: that of `{}` is used, that of `{}` is not",
                        path.display(),
                        other.path.display()
                    ));
                }
            }
            self.tensors.insert(name, entry);
        }
        self.shards.push(Shard { path, bytes });
        Ok(())
    }

    /// The tensor `name`, which must have exactly this shape and a floating-point dtype.
    ///
    /// # Errors
    /// No such tensor, another shape, or an integer or quantised dtype; names the file, expected and found.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let (entry, dtype) = self.find(name, shape)?;
        let data = &self.shards[entry.shard].bytes.get()[entry.range.clone()];
        Ok(Tensor { dtype, shape: &entry.shape, data })
    }

    /// As [`tensor`](Self::tensor), as bytes that outlive the checkpoint.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn load(&self, name: &str, shape: &[usize]) -> Result<(DType, Bytes)> {
        let (entry, dtype) = self.find(name, shape)?;
        let source = self.shards[entry.shard].bytes.clone();
        Ok((dtype, Bytes { source, range: entry.range.clone() }))
    }

    /// The tensor `name` of one element.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn number(&self, name: &str) -> Result<f32> {
        let tensor = self.tensor(name, &[1])?;
        Ok(number(tensor.dtype, tensor.data))
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&TensorEntry, DType)> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(self.missing(name, shape, ""));
        };
        let shard = &self.shards[entry.shard];
        let name = self.stored_name(name);
        let fail = |message| Error::file(&shard.path, message);
        if entry.shape != shape {
            let found = &entry.shape;
            return Err(fail(format!("tensor `{name}`: expected shape {shape:?}, found {found:?}")));
        }
        match float_type(entry.dtype) {
            Some(dtype) => Ok((entry, dtype)),
            None => {
                let found = entry.dtype;
                Err(fail(format!("tensor `{name}`: expected dtype BF16, F16 or F32, found {found}")))
            }
        }
    }

    /// The error of a tensor that is not there. `why` is put behind it.
    pub(super) fn missing(&self, name: &str, shape: &[usize], why: &str) -> Error {
        let found = match self.absent.get(name) {
            Some(shard) => format!("found none in `{shard}`, where the index has it"),
            None => "found no such tensor".to_string(),
        };
        Error::file(&self.path, format!("tensor `{name}`: expected with shape {shape:?}, {found}{why}"))
    }

    /// Checks that a tensor can be loaded.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.find(name, shape).map(drop)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// A tensor's name in its file.
    pub(super) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.tensors.get(name).and_then(|entry| entry.stored.as_deref()).unwrap_or(name)
    }

    /// Lets every tensor go by the name that `named` gives for its present one.
    ///
    /// # Errors
    /// Two tensors would have the same name.
    pub(super) fn rename(&mut self, named: impl Fn(&str) -> String) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (name, mut entry) in std::mem::take(&mut self.tensors) {
            let new = named(&name);
            if new != name {
                entry.stored.get_or_insert(name);
            }
            if let Some(other) = tensors.insert(new.clone(), entry) {
                let both = [Some(&other), tensors.get(&new)].map(|entry| {
                    let stored = entry.and_then(|entry| entry.stored.as_deref());
                    stored.unwrap_or(&new).to_string()
                });
                let message = format!("the tensors `{}` and `{}` would both be `{new}`", both[0], both[1]);
                return Err(Error::file(&self.path, message));
            }
        }
        self.tensors = tensors;
        Ok(())
    }

    /// Whether two tensors have the same shape and the same numbers, whatever types they are stored in.
    pub(super) fn same(&self, one: &str, other: &str) -> bool {
        let of = |name: &str| {
            let entry = self.tensors.get(name)?;
            Some((entry, &self.shards[entry.shard].bytes.get()[entry.range.clone()]))
        };
        let (Some((one, ours)), Some((other, theirs))) = (of(one), of(other)) else { return false };
        if one.shape != other.shape {
            return false;
        }
        match (float_type(one.dtype), float_type(other.dtype)) {
            (Some(a), Some(b)) if a != b => {
                let pairs = ours.chunks_exact(a.size()).zip(theirs.chunks_exact(b.size()));
                pairs.into_iter().all(|(ours, theirs)| number(a, ours) == number(b, theirs))
            }
            _ => one.dtype == other.dtype && ours == theirs,
        }
    }

    /// What was noticed while it was opened, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The file that lists the tensors: the only one, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its files; none if it is part of the binary or was made.
    pub fn files(&self) -> Vec<PathBuf> {
        let mapped = self.shards.iter().filter(|shard| matches!(shard.bytes, ShardBytes::Mapped(_)));
        mapped.map(|shard| shard.path.clone()).collect()
    }

    /// Whether the checkpoint holds `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// Bytes of tensor data in all files.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }
}

/// The types that weights are read in.
fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::BF16 => Some(DType::Bf16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F32 => Some(DType::F32),
        _ => None,
    }
}

/// A stored element.
fn number(dtype: DType, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (DType::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    }
}

/// Maps a file for reading. `Ok(None)` if there is none.
fn map(files: &Files, name: &str) -> Result<Option<ShardBytes>> {
    let dir = match files {
        Files::Embedded(_, files) => return Ok(find_embedded(files, name).map(ShardBytes::Embedded)),
        Files::Dir(dir) => dir,
    };
    let path = files.path(name);
    let Some(file) = open_regular(dir, &path)? else {
        return Ok(None);
    };
    // SAFETY: the map is read-only and private to this struct, and its bytes are only ever read as `u8`, so any content
    // is valid. What cannot be enforced is that no other process changes or truncates the file while it is mapped; the
    // module's documentation asks that of the user.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(&path, e))?;
    Ok(Some(ShardBytes::Mapped(Arc::new(map))))
}

/// Says what a directory without safetensors holds instead.
fn no_weights(files: &Files) -> Error {
    let Files::Dir(dir) = files else {
        return Error::file(files.path(SINGLE), "no such file");
    };
    Error::file(dir, format!("expected `{SINGLE}` or `{INDEX}`, {}", recognise::weights(dir)))
}

/// A shard's name without the `./` that some tools write before it.
fn in_directory(mut name: String) -> String {
    while let Some(rest) = name.strip_prefix("./") {
        name = rest.to_string();
    }
    name
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|end| name.ends_with(end))
}

/// A shard's name must stay inside the directory whatever it is joined with.
fn check_shard_name(name: &str) -> std::result::Result<(), String> {
    if name.contains(['/', '\\', '\0']) || name == "." || name == ".." || name.is_empty() {
        return Err(format!("shard name {name:?}: expected a plain file name without a path"));
    }
    if is_pickle(name) {
        return Err(format!("shard `{name}` is a pickle, which ggro never loads; expected safetensors"));
    }
    Ok(())
}

/// Reads and checks a safetensors header: name, dtype and shape, and byte range in the file of every tensor.
fn parse_header(bytes: &[u8]) -> std::result::Result<Vec<(String, TensorInfo, Range<usize>)>, String> {
    let found = bytes.len();
    // Said instead of what reading something else as a header gives.
    let known = || recognise::binary(bytes).map(|known| format!("expected a safetensors file, found {known}"));
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let known = recognise::binary(bytes).map_or(String::new(), |known| format!(": {known}"));
        return Err(format!("expected at least 8 bytes of safetensors header length, found {found}{known}"));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(
            known().unwrap_or_else(|| format!("expected a header of at most {MAX_HEADER} bytes, found {length}"))
        );
    }
    let length = length as usize;
    let Some((header, data)) = rest.split_at_checked(length) else {
        let (there, missing) = (rest.len(), length - rest.len());
        return Err(known().unwrap_or_else(|| {
            format!(
                "expected a header of {length} bytes, found {there} bytes of it: the file is more than {missing} bytes \
                 short, as after an incomplete download"
            )
        }));
    };
    if length == 0
        && !rest.is_empty()
        && let Some(known) = known()
    {
        return Err(known);
    }
    let header =
        std::str::from_utf8(header).map_err(|e| format!("expected a JSON object of tensors as header: {e}"))?;
    let Header(mut tensors) =
        serde_json::from_str(header).map_err(|e| format!("expected a JSON object of tensors as header: {e}"))?;

    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let data_start = found - data.len();
    let short = shortage(&tensors, data.len());
    let mut end_of_last = 0;
    let mut ranges = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        let (dtype, shape) = (info.dtype, &info.shape);
        if start > end || end > data.len() {
            let size = data.len();
            return Err(format!(
                "tensor `{name}`: expected data offsets inside the {size} bytes of the file's data, found \
                 {start}..{end}{short}"
            ));
        }
        if start != end_of_last {
            let fault = if start < end_of_last { "overlaps the tensor before it" } else { "leaves a hole" };
            return Err(format!(
                "tensor `{name}`: expected data from offset {end_of_last} on, found {start}, which {fault}"
            ));
        }
        let bits = shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .and_then(|elements| elements.checked_mul(dtype.bitsize()));
        let Some(bits) = bits else {
            return Err(format!("tensor `{name}`: shape {shape:?} of {dtype} is too large to count"));
        };
        if !bits.is_multiple_of(8) || bits / 8 != end - start {
            return Err(format!(
                "tensor `{name}`: expected {} bytes for shape {shape:?} of {dtype}, found {}",
                bits.div_ceil(8),
                end - start
            ));
        }
        end_of_last = end;
        ranges.push((name, info, data_start + start..data_start + end));
    }
    if end_of_last != data.len() {
        return Err(format!(
            "expected {end_of_last} bytes of tensor data, found {}: the rest belongs to no tensor",
            data.len()
        ));
    }
    Ok(ranges)
}

/// How much of a file is missing whose header fits together and asks for more than there is, in words.
fn shortage(tensors: &[(String, TensorInfo)], found: usize) -> String {
    let bytes = |info: &TensorInfo| {
        let elements = info.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        Some(elements.checked_mul(info.dtype.bitsize())? / 8)
    };
    let needed = tensors.iter().try_fold(0usize, |sum, (_, info)| sum.checked_add(bytes(info)?));
    let last = tensors.iter().map(|(_, info)| info.data_offsets.1).max();
    match needed.filter(|&needed| Some(needed) == last && needed > found) {
        Some(needed) => format!("; the file is {} bytes short, as after an incomplete download", needed - found),
        None => String::new(),
    }
}

/// A JSON object whose keys are all different; JSON readers otherwise keep the last one silently.
struct Unique<T>(Vec<(String, T)>);

/// The tensors of a header; its `__metadata__`, an object of texts, is not kept.
struct Header(Vec<(String, TensorInfo)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor { skip: None, content: PhantomData }).map(Unique)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let visitor = UniqueVisitor { skip: Some("__metadata__"), content: PhantomData };
        deserializer.deserialize_map(visitor).map(Header)
    }
}

struct UniqueVisitor<T> {
    skip: Option<&'static str>,
    content: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
    type Value = Vec<(String, T)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        use serde::de::Error;
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("`{key}` is listed twice")));
            }
            if self.skip == Some(key.as_str()) {
                let metadata = NamedTensor { key: &key, content: PhantomData };
                let _: Option<HashMap<String, String>> = map.next_value_seed(metadata)?;
                continue;
            }
            let value = map.next_value_seed(NamedTensor { key: &key, content: PhantomData })?;
            entries.push((key, value));
        }
        Ok(entries)
    }
}

/// Puts the key into the message if its value cannot be read.
struct NamedTensor<'a, T> {
    key: &'a str,
    content: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for NamedTensor<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<T, D::Error> {
        use serde::de::Error;
        T::deserialize(deserializer).map_err(|e| D::Error::custom(format!("`{}`: {e}", self.key)))
    }
}
