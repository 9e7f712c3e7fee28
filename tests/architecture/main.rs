//! Imports go one way. [`ALLOWED`] says which module may import which, and every path of every source file is held to it.

mod imports;

use imports::{Import, Module, Sources, imports, sources};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Modules, from the bottom to the top, and which of those above their own line each may import. A module belongs to the row of
/// its longest name here: `model::cpu::ops` to `model::cpu`.
const ALLOWED: &[(&str, &[&str])] = &[
    // What everything stands on.
    ("error", &[]),
    ("dtype", &[]),
    ("rng", &["error"]),
    ("profile", &["error"]),
    ("files", &["dtype", "error"]),
    ("kv", &["error"]),
    // Models on devices. The launches take blocks of `kv` and types of `dtype` as they are.
    ("cuda", &["dtype", "error", "kv", "profile", "rng"]),
    ("model", &["dtype", "error", "files", "kv", "profile"]),
    ("model::synthetic", &["dtype", "error", "files", "model", "rng"]),
    ("model::cpu", &["dtype", "error", "files", "kv", "model", "profile", "rng"]),
    ("model::cuda", &["cuda", "dtype", "error", "files", "kv", "model", "model::synthetic", "profile", "rng"]),
    // What is asked and answered, and the ways to do it, which do not know of each other.
    ("answer", &["error", "model"]),
    ("task", &["answer", "error", "model", "rng"]),
    ("method", &["answer", "error", "files", "model", "profile", "rng", "task"]),
    ("sampling", &["answer", "error", "model", "profile", "rng", "task"]),
    ("scoring", &["answer", "error", "model", "profile", "task"]),
    ("baselines", &["answer", "error", "model", "rng", "sampling", "task"]),
    (
        "engine",
        &["answer", "baselines", "error", "kv", "method", "model", "profile", "rng", "sampling", "scoring", "task"],
    ),
    // What all faces share.
    ("text", &["answer", "error", "files", "sampling"]),
    ("presets", &["error", "files", "method", "rng", "sampling"]),
    ("trace", &["answer", "error", "files", "method", "model", "presets", "rng"]),
    (
        "runtime",
        &["cuda", "dtype", "engine", "error", "files", "model", "model::cpu", "model::cuda", "model::synthetic"],
    ),
    // The faces: they know the engine, and no backend.
    (
        "batch",
        &[
            "answer",
            "baselines",
            "engine",
            "error",
            "files",
            "method",
            "model",
            "presets",
            "rng",
            "sampling",
            "scoring",
            "task",
            "text",
            "trace",
        ],
    ),
    (
        "server",
        &[
            "answer",
            "baselines",
            "engine",
            "error",
            "files",
            "method",
            "model",
            "presets",
            "profile",
            "rng",
            "runtime",
            "sampling",
            "scoring",
            "task",
            "text",
            "trace",
        ],
    ),
    // The laboratory, beside the faces.
    (
        "lab",
        &[
            "answer",
            "cuda",
            "dtype",
            "engine",
            "error",
            "files",
            "kv",
            "method",
            "model",
            "model::cpu",
            "model::cuda",
            "model::synthetic",
            "presets",
            "profile",
            "rng",
            "runtime",
            "sampling",
            "scoring",
            "task",
            "text",
            "trace",
        ],
    ),
    (
        "cli",
        &[
            "answer",
            "baselines",
            "batch",
            "cuda",
            "dtype",
            "engine",
            "error",
            "files",
            "method",
            "model",
            "presets",
            "profile",
            "rng",
            "runtime",
            "sampling",
            "scoring",
            "server",
            "task",
            "text",
            "trace",
        ],
    ),
    (
        "cli::lab",
        &[
            "answer",
            "batch",
            "cli",
            "cuda",
            "dtype",
            "engine",
            "error",
            "files",
            "lab",
            "method",
            "model",
            "model::cpu",
            "model::cuda",
            "model::synthetic",
            "presets",
            "profile",
            "rng",
            "runtime",
            "sampling",
            "scoring",
            "task",
            "text",
            "trace",
        ],
    ),
];

/// The row of a module: the longest name that it begins with.
fn row(module: &Module) -> Option<&'static (&'static str, &'static [&'static str])> {
    (1..=module.len()).rev().find_map(|len| ALLOWED.iter().find(|(name, _)| *name == module[..len].join("::")))
}

/// Imports that the table does not allow: the first of each file and row. A folder's own file may import what is below it; so
/// may the root, which only gives names to others.
fn outside(imports: &[Import]) -> Vec<String> {
    let mut wrong = BTreeMap::new();
    for import in imports {
        let from = import.from.join("::");
        let why = match &import.to {
            None => "a name of the crate's root; inside, an item's own module is named".to_string(),
            Some(to) if to.starts_with(&import.from) => continue,
            Some(to) => match (row(&import.from), row(to)) {
                (Some((from, allowed)), Some((to, _))) if from == to || allowed.contains(to) => continue,
                (Some((from, _)), Some((to, _))) => format!("{from} may not import {to}"),
                (None, _) => format!("{from} has no row in the table"),
                (_, None) => format!("{} has no row in the table", to.join("::")),
            },
        };
        let place = format!("{from}, line {}: {}: {why}", import.line, import.path);
        wrong.entry((from, why)).or_insert(place);
    }
    wrong.into_values().collect()
}

/// Circles among the modules of one folder, each with all that is below it. A folder's own file, which declares them, is one
/// with them.
fn circles(imports: &[Import]) -> Vec<String> {
    let mut folders: BTreeMap<&[String], BTreeMap<&str, BTreeMap<&str, &Import>>> = BTreeMap::new();
    for import in imports {
        let Some(to) = &import.to else { continue };
        let common = import.from.iter().zip(to).take_while(|(a, b)| a == b).count();
        if let (Some(from), Some(to)) = (import.from.get(common), to.get(common)) {
            let folder = folders.entry(&import.from[..common]).or_default();
            folder.entry(from).or_default().entry(to).or_insert(import);
        }
    }
    let mut found = Vec::new();
    for (folder, edges) in &folders {
        let reached = |from: &str| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_string()]);
            while let Some(module) = open.pop() {
                for to in edges.get(module.as_str()).into_iter().flat_map(BTreeMap::keys) {
                    if seen.insert(to.to_string()) {
                        open.push(to.to_string());
                    }
                }
            }
            seen
        };
        let all: BTreeMap<&str, BTreeSet<String>> = edges.keys().map(|&module| (module, reached(module))).collect();
        for (&from, targets) in edges {
            for (&to, import) in targets {
                if all.get(to).is_some_and(|reached| reached.contains(from)) {
                    found.push(format!(
                        "a circle in {}: {from} imports {to} ({}, line {}: {})",
                        if folder.is_empty() { "src".to_string() } else { folder.join("::") },
                        import.from.join("::"),
                        import.line,
                        import.path
                    ));
                }
            }
        }
    }
    found
}

#[test]
fn imports_go_one_way() {
    let sources = sources(Path::new("src"));
    let imports = imports(&sources);
    assert!(imports.len() > 1000, "only {} imports were found", imports.len());
    let wrong = [outside(&imports), circles(&imports)].concat();
    assert!(wrong.is_empty(), "{} imports go the wrong way:\n{}", wrong.len(), wrong.join("\n"));
    for (name, _) in ALLOWED {
        let module: Module = name.split("::").map(str::to_string).collect();
        assert!(
            sources.keys().any(|known| known.starts_with(&module)),
            "the table has a row for {name}, which is no module"
        );
    }
}

#[test]
fn the_table_itself_has_no_circle() {
    for (index, (name, allowed)) in ALLOWED.iter().enumerate() {
        for target in *allowed {
            assert!(
                ALLOWED[..index].iter().any(|(above, _)| above == target),
                "{name} may import {target}, which is not above it"
            );
        }
    }
}

/// A crate of files, by module path.
fn crate_of(files: &[(&str, &str)]) -> Sources {
    let module = |name: &str| name.split("::").filter(|part| !part.is_empty()).map(str::to_string).collect();
    files.iter().map(|(name, text)| (module(name), text.to_string())).collect()
}

/// The root, a module of the bottom with `text` in it, and one of the top.
fn with(text: &str) -> Vec<String> {
    let root = "pub mod error; pub mod kv; pub mod server; pub use error::{Error, Result}; pub use server::start;";
    let files = [
        ("", root),
        (
            "error",
            "pub struct Error; pub type Result<T> = std::result::Result<T, Error>; pub mod kinds { pub struct Kind; }",
        ),
        ("kv", text),
        ("kv::pool", "pub struct Pool;"),
        ("server", "mod frames; pub use frames::Frame; pub fn start() {} pub mod deep { pub fn f() {} }"),
        ("server::frames", "pub struct Frame;"),
    ];
    outside(&imports(&crate_of(&files)))
}

#[test]
fn a_forbidden_import_is_found_however_it_is_written() {
    for text in [
        "use crate::server::start;",
        "use crate::{error::Error, server::{self, Frame}};",
        "use super::server as other;",
        "pub use crate::server::frames::Frame;",
        "use crate::server::*;",
        "use crate as root; fn f() { root::server::deep::f() }",
        "use super as up; fn f() { up::server::deep::f() }",
        "fn f() { crate::server::deep::f() }",
        "fn f() { super::server::deep::f() }",
        "fn f(_: Vec<crate::server::Frame>) {}",
        "fn f() { use crate::server::deep; deep::f() }",
        "mod inner { fn f() { super::super::server::deep::f() } }",
        "#[cfg(test)] mod tests { use crate::server::deep; }",
        "macro_rules! m { () => { $crate::server::deep::f() } }",
        "macro_rules! m { () => { use crate::{error::Error, server::deep}; } }",
        "fn f() { println!(\"{}\", crate::server::deep::f()) }",
        "#[derive(A)] struct S { #[a(with = \"crate::server::deep\")] field: u8 }",
        "impl crate::server::Frame {}",
        "use crate::start;",
        "use super::*; fn f() { server::start() }",
        "mod inner { pub use crate::server::deep; } fn f() { inner::deep::f() }",
        "#[cfg(a)] use crate::error as way; #[cfg(not(a))] use crate::server as way; fn f() { way::deep::f() }",
    ] {
        let wrong = with(text);
        assert!(!wrong.is_empty(), "not found: {text}");
    }
}

#[test]
fn allowed_imports_and_other_crates_are_let_be() {
    for text in [
        "use crate::{Error, Result}; use std::server::start;",
        "use crate::error::kinds::Kind; fn f() -> super::Result<Kind> { Err(0) }",
        "use ::server::start; fn f() { ::server::start() }",
        "mod pool; use pool::Pool; pub(super) fn f(_: self::pool::Pool) {}",
        "pub(in crate::server) fn f() { let server = 1; server + 1; }",
        "mod server { pub fn f() {} } fn f() { server::f() }",
    ] {
        assert_eq!(with(text), [""; 0], "{text}");
    }
}

#[test]
fn a_circle_between_files_of_a_folder_is_found() {
    let circle = |plan: &str, run: &str| {
        let files = [
            ("", "pub mod engine;"),
            ("engine", "mod plan; mod run; mod both; pub use plan::Plan; pub struct Own;"),
            ("engine::plan", plan),
            ("engine::run", run),
            ("engine::both", "use super::{plan, run};"),
        ];
        circles(&imports(&crate_of(&files)))
    };
    let found = circle("pub struct Plan; use super::run::Run;", "pub struct Run; use super::Plan;");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("a circle in engine: plan imports run (engine::plan, line 1: super::run::Run)"));
    assert_eq!(circle("pub struct Plan; use super::Own;", "use super::{Plan, Own};"), [""; 0]);
}
