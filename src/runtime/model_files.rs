//! Where the files of a model are: a directory, or a name that is looked up in the Hugging Face cache and downloaded.

use crate::files::checkpoint::Files;
use crate::files::hub::{Downloaded, FoundModel, Hub, Name};
use crate::files::pair::Pair;
use crate::{Error, Result};
use std::path::Path;

/// The files of a model: of a directory, or of a name (`org/name[@revision]`), which is looked up in the Hugging Face cache
/// and downloaded into it if it is not there.
///
/// # Errors
/// There is neither such a directory nor such a model, or it cannot be downloaded.
pub fn files(model: &Path, progress: &mut dyn FnMut(Downloaded<'_>)) -> Result<Files> {
    find(model, progress).map(|(files, _)| files)
}

/// [`files`], with what the user should know of where they come from.
///
/// # Errors
/// As [`files`].
pub fn find(model: &Path, progress: &mut dyn FnMut(Downloaded<'_>)) -> Result<(Files, Option<String>)> {
    let name = model.to_str().filter(|_| !model.exists()).and_then(Name::parse);
    let FoundModel { dir, note } = match name {
        None => FoundModel { dir: model.to_path_buf(), note: None },
        Some(name) => Hub::from_env().find(&name, progress).map_err(|error| match error {
            Error::Invalid(why) => {
                Error::invalid(format!("there is no directory {}, and as a model's name: {why}", model.display()))
            }
            error => error,
        })?,
    };
    match std::fs::metadata(&dir) {
        Ok(found) if found.is_dir() => Ok((Files::Dir(dir), note)),
        Ok(_) => Err(Error::file(&dir, a_file(&dir))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::file(&dir, format!("{e}{}", nowhere(&dir)))),
        Err(e) => Err(Error::io(&dir, e)),
    }
}

/// Why a file is no model.
fn a_file(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    match name.ends_with(".gguf") {
        true => {
            "is a GGUF file, which is not read; give the directory of the safetensors checkpoint that it was made from"
                .into()
        }
        false => "is not a directory; give the directory that holds config.json, the tokenizer and the weights".into(),
    }
}

/// What a path that leads nowhere may have been meant as.
fn nowhere(path: &Path) -> String {
    let text = path.to_string_lossy();
    if let Some((_, rest)) = text.split_once("://") {
        // https://huggingface.co/org/name/tree/main
        let mut parts = rest.split(['/', '?', '#']).skip(1).filter(|part| !part.is_empty());
        let name = parts.next().zip(parts.next()).map(|(org, name)| format!("{org}/{name}"));
        let name = name.filter(|name| Name::parse(name).is_some());
        return format!(
            "; an address is not read: give the model's name, {}",
            name.unwrap_or_else(|| "org/name".to_string())
        );
    }
    if text.starts_with('~') {
        return "; `~` stands for the home directory only where the shell sees it without quotes".to_string();
    }
    if text.starts_with('$') {
        return "; a variable is replaced only where the shell sees it without single quotes".to_string();
    }
    match text.contains('/') {
        true => "; it is neither a directory nor a model's name, org/name[@revision]".to_string(),
        false => format!("; it is neither a directory nor a model's name, which has two parts: org/{text}"),
    }
}

/// Reads a pair of directories, or of models by name.
///
/// # Errors
/// As [`files`] and [`Pair::load`].
pub fn load(policy: &Path, reward: &Path, progress: &mut dyn FnMut(Downloaded<'_>)) -> Result<Pair> {
    let ((policy, ours), (reward, theirs)) = (find(policy, progress)?, find(reward, progress)?);
    let mut pair = Pair::load(&policy, &reward)?;
    pair.notes.splice(0..0, ours.into_iter().chain(theirs));
    Ok(pair)
}
