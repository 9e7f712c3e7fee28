//! The `ggro` command.
fn main() {}
