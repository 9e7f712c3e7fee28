//! Which file of a crate imports which: every path in `use` trees, expressions, types, attributes and macros, resolved through
//! `self`, `super`, aliases, globs and the re-exports of a folder's own file to the file whose item it names.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FilePath;
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Macro, Path, UseTree, Visibility};

/// A path of modules: `crate::model::cpu` is `["model", "cpu"]`, the crate's root is empty.
pub type Module = Vec<String>;

/// A file's path to an item of another file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: Module,
    /// The module whose file has the item; none where the path names a re-export of the crate's root.
    pub to: Option<Module>,
    pub line: usize,
    pub path: String,
}

/// A module of a crate, with the text of its file.
pub type Sources = BTreeMap<Module, String>;

/// The files below a folder, by their module paths. `lib.rs` is the root; `main.rs` is not part of the library.
pub fn sources(root: &FilePath) -> Sources {
    let mut out = Sources::new();
    let mut folders = vec![(root.to_path_buf(), Module::new())];
    while let Some((folder, module)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_string();
            let below = |name: String| module.iter().cloned().chain([name]).collect::<Module>();
            if path.is_dir() {
                folders.push((path, below(name)));
            } else if path.extension().is_some_and(|extension| extension == "rs") && name != "main" {
                let module = if ["mod", "lib"].contains(&name.as_str()) { module.clone() } else { below(name) };
                let former = out.insert(module, std::fs::read_to_string(&path).unwrap());
                assert!(former.is_none(), "two files for {}", path.display());
            }
        }
    }
    out
}

/// A path as it is written.
struct Mention {
    scope: Module,
    path: Vec<String>,
    line: usize,
    /// The name that a `use` gives it, which is not what it stands for.
    binds: Option<String>,
}

#[derive(Default)]
struct Crate {
    /// Every module, and the module in whose file it is.
    modules: BTreeMap<Module, Module>,
    /// What names in a module stand for: paths, which are resolved where they are written.
    bindings: BTreeMap<Module, BTreeMap<String, Vec<Vec<String>>>>,
    globs: BTreeMap<Module, Vec<Vec<String>>>,
    mentions: Vec<Mention>,
}

/// Every import between files of a crate.
pub fn imports(sources: &Sources) -> Vec<Import> {
    let mut all = Crate::default();
    for module in sources.keys() {
        all.modules.insert(module.clone(), module.clone());
    }
    for (module, text) in sources {
        let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{}: {e}", module.join("::")));
        Reader { all: &mut all, file: module.clone(), scope: module.clone() }.visit_file(&file);
    }
    let mut found = BTreeSet::new();
    for mention in &all.mentions {
        let from = &all.modules[&mention.scope];
        for target in all.resolve(&mention.scope, &mention.path, mention.binds.as_deref(), 0) {
            let to = match target {
                Target::Module(to) => Some(all.modules[&to].clone()),
                Target::Root => None,
            };
            let inside = to.as_ref().map_or(from.is_empty(), |to| to == from);
            if !inside {
                found.insert(Import { from: from.clone(), to, line: mention.line, path: mention.path.join("::") });
            }
        }
    }
    found.into_iter().collect()
}

enum Target {
    Module(Module),
    /// A re-export of the root, by its name from inside.
    Root,
}

/// The names of the root that every module may use by them.
const OF_THE_ROOT: [&str; 2] = ["Error", "Result"];

impl Crate {
    /// The modules whose item a path names, if it is of this crate. More than one where a name depends on a feature. `except`
    /// is a name that the path itself binds.
    fn resolve(&self, scope: &Module, path: &[String], except: Option<&str>, depth: usize) -> Vec<Target> {
        let Some((first, rest)) = path.split_first() else { return Vec::new() };
        if depth > 16 {
            return Vec::new();
        }
        match first.as_str() {
            "" => Vec::new(),
            "crate" => self.descend(Module::new(), rest, depth),
            "self" => self.descend(scope.clone(), rest, depth),
            "super" => {
                let up = 1 + rest.iter().take_while(|name| *name == "super").count();
                let Some(above) = scope.len().checked_sub(up) else { return Vec::new() };
                self.descend(scope[..above].to_vec(), &rest[up - 1..], depth)
            }
            name => {
                let mut found = if except == Some(name) { Vec::new() } else { self.bound(scope, name, rest, depth) };
                found.extend(self.child(scope, name, rest, depth));
                if found.is_empty() {
                    // What a glob brings: modules, and names that the other module has from elsewhere.
                    for glob in self.globs.get(scope).into_iter().flatten() {
                        for target in self.resolve(scope, glob, None, depth + 1) {
                            let Target::Module(module) = target else { continue };
                            found.extend(self.child(&module, name, rest, depth));
                            found.extend(self.bound(&module, name, rest, depth));
                        }
                    }
                }
                found
            }
        }
    }

    /// What follows a name that `use` brings into a module.
    fn bound(&self, scope: &Module, name: &str, rest: &[String], depth: usize) -> Vec<Target> {
        let paths = self.bindings.get(scope).and_then(|names| names.get(name)).into_iter().flatten();
        paths.flat_map(|path| self.resolve(scope, &[path, rest].concat(), Some(name), depth + 1)).collect()
    }

    /// What follows the name of a module in another one.
    fn child(&self, scope: &Module, name: &str, rest: &[String], depth: usize) -> Vec<Target> {
        let child: Module = scope.iter().cloned().chain([name.to_string()]).collect();
        if self.modules.contains_key(&child) { self.descend(child, rest, depth) } else { Vec::new() }
    }

    /// Goes down from a module as far as there are modules; what follows is an item, or a name for one elsewhere.
    fn descend(&self, module: Module, path: &[String], depth: usize) -> Vec<Target> {
        let Some((name, rest)) = path.split_first() else { return vec![Target::Module(module)] };
        let mut found = self.child(&module, name, rest, depth);
        if module.is_empty() && found.is_empty() && !OF_THE_ROOT.contains(&name.as_str()) {
            return vec![Target::Root];
        }
        // A name for something below is that thing; one for something elsewhere is this module's, which imports it.
        let below = |target: &Target| matches!(target, Target::Module(to) if to.starts_with(&module));
        found.extend(self.bound(&module, name, rest, depth).into_iter().filter(below));
        match found.is_empty() {
            false => found,
            true => vec![Target::Module(module)],
        }
    }
}

struct Reader<'a> {
    all: &'a mut Crate,
    file: Module,
    scope: Module,
}

impl Reader<'_> {
    fn mention(&mut self, path: Vec<String>, line: usize) {
        self.all.mentions.push(Mention { scope: self.scope.clone(), path, line, binds: None });
    }

    fn tree(&mut self, tree: &UseTree, prefix: &[String], line: usize) {
        let name = |ident: &syn::Ident| prefix.iter().cloned().chain([plain(ident)]).collect::<Vec<_>>();
        let (path, binds) = match tree {
            UseTree::Path(path) => return self.tree(&path.tree, &name(&path.ident), line),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.tree(tree, prefix, line));
            }
            UseTree::Glob(_) => {
                self.all.globs.entry(self.scope.clone()).or_default().push(prefix.to_vec());
                (prefix.to_vec(), None)
            }
            // `a::{self}` is `a`.
            UseTree::Name(one) if one.ident == "self" => (prefix.to_vec(), prefix.last().cloned()),
            UseTree::Name(one) => (name(&one.ident), Some(plain(&one.ident))),
            UseTree::Rename(one) if one.ident == "self" => (prefix.to_vec(), Some(plain(&one.rename))),
            UseTree::Rename(one) => (name(&one.ident), Some(plain(&one.rename))),
        };
        if let Some(name) = &binds {
            let names = self.all.bindings.entry(self.scope.clone()).or_default();
            names.entry(name.clone()).or_default().push(path.clone());
        }
        self.all.mentions.push(Mention { scope: self.scope.clone(), path, line, binds });
    }

    /// Paths in the tokens of a macro or an attribute, `use` groups and strings with paths in them among them.
    fn tokens(&mut self, tokens: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let colons = |at: usize| {
            let colon = |at: usize, joint: bool| {
                matches!(tokens.get(at), Some(TokenTree::Punct(p))
                    if p.as_char() == ':' && (!joint || p.spacing() == Spacing::Joint))
            };
            colon(at, true) && colon(at + 1, false)
        };
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream(), &[]),
                TokenTree::Literal(literal) => {
                    // As in `#[serde(with = "crate::a::b")]`.
                    let text = literal.to_string();
                    let path: Vec<String> = text.trim_matches('"').split("::").map(str::to_string).collect();
                    let word =
                        |part: &String| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_');
                    if path.len() > 1 && path.iter().all(word) {
                        self.mention(path, literal.span().start().line);
                    }
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    let absolute = at >= 2 && colons(at - 2);
                    let mut path: Vec<String> = prefix.iter().cloned().chain([plain(ident)]).collect();
                    let mut group = None;
                    while colons(at + 1) {
                        match tokens.get(at + 3) {
                            Some(TokenTree::Ident(next)) => path.push(plain(next)),
                            Some(TokenTree::Group(next)) if next.delimiter() == Delimiter::Brace => {
                                group = Some(next.stream());
                            }
                            _ => break,
                        }
                        at += 3;
                    }
                    match group {
                        Some(group) => self.tokens(group, &path),
                        None if !absolute => self.mention(path, line),
                        None => {}
                    }
                }
                TokenTree::Punct(_) => {}
            }
            at += 1;
        }
    }
}

fn plain(ident: &syn::Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_string()
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        item.attrs.iter().for_each(|attribute| self.visit_attribute(attribute));
        let Some((_, items)) = &item.content else { return };
        self.scope.push(plain(&item.ident));
        self.all.modules.insert(self.scope.clone(), self.file.clone());
        items.iter().for_each(|item| self.visit_item(item));
        self.scope.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let prefix = if item.leading_colon.is_some() { vec![String::new()] } else { Vec::new() };
        self.tree(&item.tree, &prefix, item.use_token.span.start().line);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none() {
            let names = path.segments.iter().map(|segment| plain(&segment.ident)).collect();
            self.mention(names, path.segments[0].ident.span().start().line);
        }
        // Generic arguments have paths of their own.
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone(), &[]);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), &[]);
        }
    }

    /// `pub(super)` says who may see, and imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}
