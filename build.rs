//! Tells the binary which commit it was built from. Works without git and outside a repository: then it does not know.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // A package unpacked inside somebody else's repository is not of that repository's commit.
    let top = git(&root, &["rev-parse", "--show-toplevel"]);
    if top.is_none_or(|top| Path::new(&top).canonicalize().ok() != Path::new(&root).canonicalize().ok()) {
        return;
    }
    if let Some(commit) = git(&root, &["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo::rustc-env=GGRO_BUILD_COMMIT={commit}");
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&root, &["rev-parse", "--git-path", file]) {
            let path = Path::new(&root).join(path);
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
}

fn git(root: &str, args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_string())
}
