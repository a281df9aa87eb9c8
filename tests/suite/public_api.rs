//! The library's public API, as a snapshot: what becomes public, or stops being so, is visible in a review.
//!
//! It is read from the source, since rustdoc's JSON needs a nightly compiler: the items that `pub` and `pub use` make
//! reachable from `src/lib.rs`, with fields, variants, trait items and inherent functions. Signatures and trait
//! implementations are left out. Items that a macro declares are one line with the macro's name: these are the catalogue, which
//! `semconv` compares with its documents, the columns of the journal, and the ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path as FilePath;

use syn::{Attribute, Fields, ImplItem, Item, TraitItem, Type, UseTree, Visibility};

type Path = Vec<String>;

/// The modules of the crate by their paths, without those of tests.
type Modules = BTreeMap<Path, Vec<Item>>;

#[test]
fn public_items_are_those_of_the_snapshot() {
    let src = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = Modules::new();
    load(&src.join("lib.rs"), &src, Path::new(), &mut modules);
    let functions = inherent_functions(&modules);
    let mut lines = BTreeSet::new();
    list(&modules, &functions, &Path::new(), "runspan", &mut lines);
    let text = lines.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").expect("a string takes everything");
        text
    });
    insta::assert_snapshot!(text);
}

fn load(file: &FilePath, directory: &FilePath, path: Path, modules: &mut Modules) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    add(syn::parse_file(&text).expect("the crate compiles").items, directory, path, modules);
}

fn add(mut items: Vec<Item>, directory: &FilePath, path: Path, modules: &mut Modules) {
    items.retain(|item| !matches!(item, Item::Mod(module) if is_for_tests(&module.attrs)));
    for item in &items {
        let Item::Mod(module) = item else { continue };
        let name = module.ident.to_string();
        let below = directory.join(&name);
        match &module.content {
            Some((_, items)) => add(items.clone(), &below, child(&path, &name), modules),
            None => load(&below.with_extension("rs"), &below, child(&path, &name), modules),
        }
    }
    modules.insert(path, items);
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Ident>()
                .is_ok_and(|condition| condition == "test" || condition == "doctest")
    })
}

fn child(path: &Path, name: &str) -> Path {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

/// Adds the public items of `module`, which users reach as `shown`.
fn list(modules: &Modules, functions: &Functions, module: &Path, shown: &str, lines: &mut BTreeSet<String>) {
    for item in &modules[module] {
        match item {
            Item::Mod(inner) if is_public(&inner.vis) => {
                let name = inner.ident.to_string();
                list(modules, functions, &child(module, &name), &format!("{shown}::{name}"), lines);
            }
            Item::Use(import) if is_public(&import.vis) => {
                for (target, name) in imports(&import.tree) {
                    let shown = format!("{shown}::{name}");
                    match defined(modules, module, &target) {
                        Some((home, item)) => describe(item, functions, &home, &shown, lines),
                        None => drop(lines.insert(format!("{shown} (by a macro)"))),
                    }
                }
            }
            Item::Macro(item) if item.ident.is_none() => {
                let name = &item.mac.path.segments.last().expect("a macro has a name").ident;
                lines.insert(format!("{shown} ({name}!)"));
            }
            item => {
                if let Some((vis, name)) = named(item)
                    && is_public(vis)
                {
                    describe(item, functions, module, &format!("{shown}::{name}"), lines);
                }
            }
        }
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn named(item: &Item) -> Option<(&Visibility, String)> {
    Some(match item {
        Item::Const(item) => (&item.vis, item.ident.to_string()),
        Item::Enum(item) => (&item.vis, item.ident.to_string()),
        Item::Fn(item) => (&item.vis, item.sig.ident.to_string()),
        Item::Static(item) => (&item.vis, item.ident.to_string()),
        Item::Struct(item) => (&item.vis, item.ident.to_string()),
        Item::Trait(item) => (&item.vis, item.ident.to_string()),
        Item::Type(item) => (&item.vis, item.ident.to_string()),
        _ => return None,
    })
}

fn describe(item: &Item, functions: &Functions, home: &Path, shown: &str, lines: &mut BTreeSet<String>) {
    let mut add = |line: String| lines.insert(line);
    let (_, name) = named(item).expect("only named items are found");
    let kind = match item {
        Item::Const(_) => "const",
        Item::Enum(item) => {
            for variant in &item.variants {
                add(format!("{shown}::{} (variant)", variant.ident));
            }
            "enum"
        }
        Item::Fn(_) => "fn",
        Item::Static(_) => "static",
        Item::Struct(item) => {
            if let Fields::Named(fields) = &item.fields {
                for field in fields.named.iter().filter(|field| is_public(&field.vis)) {
                    let field = field.ident.as_ref().expect("named");
                    add(format!("{shown}::{field} (field)"));
                }
            }
            "struct"
        }
        Item::Trait(item) => {
            for member in &item.items {
                match member {
                    TraitItem::Fn(member) => add(format!("{shown}::{} (fn)", member.sig.ident)),
                    TraitItem::Const(member) => add(format!("{shown}::{} (const)", member.ident)),
                    TraitItem::Type(member) => add(format!("{shown}::{} (type)", member.ident)),
                    _ => false,
                };
            }
            "trait"
        }
        Item::Type(_) => "type",
        _ => unreachable!("only named items are found"),
    };
    add(format!("{shown} ({kind})"));
    for member in functions.get(&(home.clone(), name)).into_iter().flatten() {
        add(format!("{shown}::{member}"));
    }
}

/// The paths that a `use` names, each with the name that it gets.
fn imports(tree: &UseTree) -> Vec<(Path, String)> {
    match tree {
        UseTree::Path(path) => {
            let below = imports(&path.tree).into_iter();
            below.map(|(rest, name)| ([vec![path.ident.to_string()], rest].concat(), name)).collect()
        }
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], name.ident.to_string())],
        UseTree::Rename(rename) => vec![(vec![rename.ident.to_string()], rename.rename.to_string())],
        UseTree::Group(group) => group.items.iter().flat_map(imports).collect(),
        UseTree::Glob(_) => panic!("a glob hides what is public"),
    }
}

/// The item at `path` as seen in `module`, through any number of `use`, and the module that defines it.
fn defined<'a>(modules: &'a Modules, module: &Path, path: &[String]) -> Option<(Path, &'a Item)> {
    let (name, to) = path.split_last().expect("a path has a name");
    let mut home = module.clone();
    for segment in to {
        match &**segment {
            "crate" => home.clear(),
            "self" => {}
            "super" => drop(home.pop()),
            segment => home = child(&home, segment),
        }
    }
    // A path that begins with the name of a module of the crate's root, or with another crate.
    let items = modules.get(&home)?;
    if let Some(item) = items.iter().find(|item| named(item).is_some_and(|(_, known)| known == *name)) {
        return Some((home, item));
    }
    items.iter().find_map(|item| {
        let Item::Use(import) = item else { return None };
        let (target, _) = imports_or_none(&import.tree).into_iter().find(|(_, known)| known == name)?;
        // `use super::name` in the module that is asked for must not lead back to itself.
        (target != *path || home != *module).then(|| defined(modules, &home, &target)).flatten()
    })
}

/// [`imports`] of a private `use`, which may be a glob.
fn imports_or_none(tree: &UseTree) -> Vec<(Path, String)> {
    fn has_glob(tree: &UseTree) -> bool {
        match tree {
            UseTree::Path(path) => has_glob(&path.tree),
            UseTree::Group(group) => group.items.iter().any(has_glob),
            UseTree::Glob(_) => true,
            _ => false,
        }
    }
    if has_glob(tree) { Vec::new() } else { imports(tree) }
}

/// The public functions and constants of inherent implementations, by the module and name of the type.
type Functions = BTreeMap<(Path, String), Vec<String>>;

fn inherent_functions(modules: &Modules) -> Functions {
    let mut functions = Functions::new();
    for (module, items) in modules {
        for item in items {
            let Item::Impl(item) = item else { continue };
            let Type::Path(of) = &*item.self_ty else { continue };
            if item.trait_.is_some() {
                continue;
            }
            let path: Path = of.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            let Some((home, of)) = defined(modules, module, &path) else { continue };
            let known = functions.entry((home, named(of).expect("it is named").1)).or_default();
            known.extend(item.items.iter().filter_map(|member| match member {
                ImplItem::Fn(member) if is_public(&member.vis) => Some(format!("{} (fn)", member.sig.ident)),
                ImplItem::Const(member) if is_public(&member.vis) => {
                    Some(format!("{} (const)", member.ident))
                }
                _ => None,
            }));
        }
    }
    functions
}
