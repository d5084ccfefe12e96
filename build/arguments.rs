//! Keeps the Rust and the C++ declaration of a kernel's parameters the same.
//!
//! Reads the structs that `kernel_arguments!` declares in `src/device/` and the enums of `repr(i32)` there. For every
//! `kernels/*.cu` it writes assertions about the C++ declarations of the same names: size, and offset and type of each
//! field. nvcc and the emulator's compiler both compile them after the source, so a field that is renamed, retyped or
//! moved on one side fails the build.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, process};

/// The headers that the assertions need.
pub const INCLUDES: &str = "#include <cstddef>\n#include <cstdint>\n#include <type_traits>\n";

struct Struct {
    name: String,
    /// The file that declares it.
    file: PathBuf,
    /// Name and Rust type.
    fields: Vec<(String, String)>,
}

struct Enum {
    name: String,
    /// Name and value.
    variants: Vec<(String, String)>,
}

/// The declarations in Rust.
pub struct Declarations {
    structs: Vec<Struct>,
    enums: Vec<Enum>,
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    process::exit(0)
}

impl Declarations {
    /// Reads the declarations and checks that every struct has a counterpart in C++.
    pub fn read() -> Self {
        println!("cargo::rerun-if-changed=build/arguments.rs");
        println!("cargo::rerun-if-changed=src/device");
        println!("cargo::rerun-if-changed=kernels");
        let mut declarations = Self { structs: Vec::new(), enums: Vec::new() };
        for file in files_below(Path::new("src/device"), "rs") {
            let text = without_comments(&read(&file));
            // The macro's own file contains its name in the definition and the export.
            for invocation in text.split("kernel_arguments! {").skip(1) {
                if let Some((name, fields)) = body_of(invocation, "struct ") {
                    declarations.structs.push(Struct { name, file: file.clone(), fields: pairs(fields, ':') });
                }
            }
            for declaration in text.split("#[repr(i32)]").skip(1) {
                if let Some((name, variants)) = body_of(declaration, "enum ") {
                    declarations.enums.push(Enum { name, variants: pairs(variants, '=') });
                }
            }
        }
        declarations.check_names();
        declarations
    }

    /// Checks that every struct exists on both sides.
    fn check_names(&self) {
        let sources = [files_below(Path::new("kernels"), "cu"), files_below(Path::new("kernels"), "cuh")].concat();
        let sources: Vec<(PathBuf, String)> =
            sources.into_iter().map(|path| (path.clone(), without_comments(&read(&path)))).collect();
        for Struct { name, file, .. } in &self.structs {
            if !sources.iter().any(|(_, text)| declaration_of(text, name).is_some()) {
                fail(&format!("{}: no file in kernels/ declares the struct {name}", file.display()));
            }
        }
        for (path, text) in &sources {
            for declaration in text.split("struct ").skip(1) {
                let name = identifier(declaration);
                if name.ends_with("Arguments") && !self.structs.iter().any(|known| known.name == name) {
                    let path = path.display();
                    fail(&format!("{path}: no kernel_arguments! in src/device/ declares the struct {name}"));
                }
            }
        }
    }

    fn size_of(&self, rust_type: &str) -> usize {
        match rust_type {
            "u64" => 8,
            "u32" | "i32" | "f32" => 4,
            name if self.enums.iter().any(|known| known.name == name) => 4,
            name => match self.structs.iter().find(|known| known.name == name) {
                Some(known) => known.fields.iter().map(|(_, field)| self.size_of(field)).sum(),
                None => fail(&format!("kernel_arguments!: the build script does not know the size of the type {name}")),
            },
        }
    }

    /// C++ that compiles after `source` only if its declarations match those in Rust.
    pub fn assertions(&self, source: &Path) -> String {
        let text = with_includes(source, &mut BTreeSet::new());
        let mut assertions = String::new();
        for known in &self.enums {
            if !text.contains(&format!("enum class {} ", known.name)) {
                continue;
            }
            for (variant, value) in &known.variants {
                let enumerator = format!("{}::k{variant}", known.name);
                assertions += &format!(
                    "static_assert(static_cast<int>({enumerator}) == {value}, \"{enumerator}: Rust has {value}\");\n"
                );
            }
        }
        for Struct { name, file, fields } in &self.structs {
            let Some(is_template) = declaration_of(&text, name) else { continue };
            let cpp = if is_template { format!("{name}<float>") } else { name.clone() };
            let file = file.display();
            let mut offset = 0;
            for (field, rust_type) in fields {
                let here = format!("{name}.{field}: {file} has {rust_type}");
                let same = |other: &str| format!("std::is_same<decltype({cpp}::{field}), {other}>::value");
                let type_matches = match rust_type.as_str() {
                    "u64" => format!("std::is_pointer<decltype({cpp}::{field})>::value || {}", same("std::uint64_t")),
                    "u32" => same("std::uint32_t"),
                    "i32" => same("std::int32_t"),
                    "f32" => same("float"),
                    nested => match declaration_of(&text, nested) {
                        Some(true) => same(&format!("{nested}<float>")),
                        _ => same(nested),
                    },
                };
                assertions +=
                    &format!("static_assert(offsetof({cpp}, {field}) == {offset}, \"{here} at byte {offset}\");\n");
                assertions += &format!("static_assert({type_matches}, \"{here}\");\n");
                offset += self.size_of(rust_type);
            }
            assertions +=
                &format!("static_assert(sizeof({cpp}) == {offset}, \"{name}: {file} has {offset} bytes\");\n");
        }
        assertions
    }
}

/// Whether `text` declares this struct, and whether as a template.
fn declaration_of(text: &str, name: &str) -> Option<bool> {
    let (before, _) = text.split_once(&format!("struct {name} {{"))?;
    Some(before.trim_end().ends_with('>'))
}

/// The name that follows `keyword`, and the text in its braces; `None` if the braces belong to a macro definition.
fn body_of<'a>(text: &'a str, keyword: &str) -> Option<(String, &'a str)> {
    let (_, declaration) = text.split_once(keyword)?;
    let name = identifier(declaration);
    let (_, body) = declaration.split_once('{')?;
    let (body, _) = body.split_once('}')?;
    (!name.is_empty()).then_some((name, body))
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
}

/// `a: b, c: d` as pairs.
fn pairs(text: &str, separator: char) -> Vec<(String, String)> {
    let items = text.split(',').filter_map(|item| item.split_once(separator));
    items.map(|(name, value)| (name.trim().into(), value.trim().into())).collect()
}

/// The text of a source and of the files in its folder that it includes.
fn with_includes(path: &Path, seen: &mut BTreeSet<PathBuf>) -> String {
    if !seen.insert(path.into()) {
        return String::new();
    }
    let text = without_comments(&read(path));
    let included = text.lines().filter_map(|line| line.strip_prefix("#include \"")?.split_once('"'));
    let included: String = included.map(|(name, _)| with_includes(&path.with_file_name(name), seen)).collect();
    included + &text
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_string() + "\n").collect()
}

/// The files with this extension in a folder and the folders below it, in order.
fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|cause| fail(&format!("cannot list {}: {cause}", folder.display())));
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let below = |path: PathBuf| match path.is_dir() {
        true => files_below(&path, extension),
        false => Some(path).filter(|path| path.extension().is_some_and(|is| is == extension)).into_iter().collect(),
    };
    paths.into_iter().flat_map(below).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|cause| fail(&format!("cannot read {}: {cause}", path.display())))
}
