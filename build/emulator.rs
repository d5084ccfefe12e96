//! Compiles the emulator and every kernel with the host's C++ compiler: `kernels/*.cu`, and the faulty kernels of its
//! own tests, `tests/faults/*.cu`.
//!
//! Each `.cu` becomes a translation unit in a namespace of its own, with a table of its kernels; one more file lists
//! the tables. `RETUNE_EMULATOR_FLAGS` contains further flags for the compiler, `-fsanitize=address,undefined` for
//! example.

use crate::arguments::{Declarations, INCLUDES};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, process, thread};

/// Rounding must not depend on the compiler, and kernels access memory through several types, as nvcc allows.
const FLAGS: [&str; 16] = [
    "-std=c++17",
    "-O3",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-unused-variable",
    "-Wno-unused-function",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    // A fiber stays on its host thread, and the program is linked statically.
    "-ftls-model=initial-exec",
    "-fno-extern-tls-init",
    "-fno-omit-frame-pointer",
    // If local variables do not fit on a fiber's stack, they reach the guard page below it.
    "-fstack-clash-protection",
];

/// Flags of the kernels' second compilation: it calls the functions of `kernels/emulator/hooks.cpp` before every access.
/// Accesses are compiled as they are written: none is widened.
const CHECKED_FLAGS: [&str; 7] = [
    "-O2",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=bounds,alignment",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-store-merging",
];

/// A kernel as its source declares it.
struct Kernel {
    name: String,
    /// The first operand of `__launch_bounds__`.
    most_threads: Option<String>,
}

/// One file to compile.
struct Unit {
    source: PathBuf,
    object: PathBuf,
    instrumented: bool,
    /// Changes when any input of the object changes.
    key: u64,
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    process::exit(0)
}

pub fn build(declarations: &Declarations) {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR")).join("emulator");
    println!("cargo::rerun-if-env-changed=RETUNE_EMULATOR_FLAGS");
    for path in ["build/emulator.rs", "kernels", "tests/faults"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_string()).collect();
    match variable("CARGO_CFG_TARGET_ARCH").as_str() {
        // Without fused multiply-add, each fmaf of a kernel would be a call.
        "x86_64" => flags.push("-march=x86-64-v3".into()),
        "aarch64" => {}
        other => fail(&format!("the feature `emulator` supports x86-64 and aarch64, not {other}")),
    }
    let more = env::var("RETUNE_EMULATOR_FLAGS").unwrap_or_default();
    let more: Vec<&str> = more.split_whitespace().collect();
    flags.extend(more.iter().map(|&flag| flag.to_string()));
    if let Err(error) = fs::create_dir_all(&out) {
        fail(&format!("cannot make {}: {error}", out.display()));
    }

    let mut compiler = cc::Build::new();
    compiler.cpp(true).warnings(false).debug(false).opt_level(3);
    let tool = match compiler.try_get_compiler() {
        Ok(tool) => tool,
        Err(error) => fail(&format!("the feature emulator needs a C++ compiler: {error}")),
    };
    let headers = [("kernels", "cuh"), ("kernels/emulator", "h"), ("tests/faults", "cuh")]
        .map(|(folder, extension)| files(&root.join(folder), extension))
        .concat();
    let mut common = DefaultHasher::new();
    (&flags, CHECKED_FLAGS, tool.path(), tool.args()).hash(&mut common);
    for header in &headers {
        read(header).hash(&mut common);
    }
    let common = common.finish();

    // Kernels that the compiler's own sanitizer instruments cannot also be instrumented for the emulator's checks.
    let sanitized = more.iter().any(|flag| flag.starts_with("-fsanitize="));
    let mut units: Vec<Unit> = files(&root.join("kernels/emulator"), "cpp")
        .into_iter()
        .filter(|source| !(sanitized && file_stem(source) == "hooks"))
        .map(|source| unit(source, &out, common, false))
        .collect();
    let (mut plain, mut checked) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for source in [files(&root.join("kernels"), "cu"), files(&root.join("tests/faults"), "cu")].concat() {
        let kernels = kernels(&read(&source), &source);
        if kernels.is_empty() {
            continue;
        }
        for kernel in &kernels {
            if !names.insert(kernel.name.clone()) {
                fail(&format!("{}: the kernel {} is defined twice", source.display(), kernel.name));
            }
        }
        let mut hasher = DefaultHasher::new();
        (common, read(&source)).hash(&mut hasher);
        let key = hasher.finish();
        for (prefix, instrumented, tables) in [("", false, &mut plain), ("checked_", true, &mut checked)] {
            if instrumented && sanitized {
                continue;
            }
            let namespace = format!("{prefix}kernels_of_{}", file_stem(&source).replace(['-', '.'], "_"));
            let wrapper = out.join(format!("{namespace}.cpp"));
            write(&wrapper, &wrapped(&namespace, &source, &root, &kernels, declarations));
            units.push(unit(wrapper, &out, key, instrumented));
            tables.push((namespace, kernels.len()));
        }
    }
    let list = out.join("list.cpp");
    write(&list, &list_of(&plain, &checked, &root));
    units.push(unit(list, &out, common, false));

    compile(&tool, &flags, &units);
    let mut archive = cc::Build::new();
    archive.cpp(true);
    for unit in &units {
        archive.object(&unit.object);
    }
    archive.compile("retune_emulator");
    // rustc links with -nodefaultlibs, which leaves out what -fsanitize would link.
    for (sanitizer, library) in [("address", "asan"), ("undefined", "ubsan")] {
        if more.iter().any(|flag| flag.starts_with("-fsanitize=") && flag.contains(sanitizer)) {
            println!("cargo::rustc-link-arg=-l{library}");
        }
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| fail(&format!("cannot read {}: {error}", path.display())))
}

/// Writes a file unless it already has these contents.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return;
    }
    if let Err(error) = fs::write(path, text) {
        fail(&format!("cannot write {}: {error}", path.display()));
    }
}

fn file_stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files in a folder with this extension, sorted by name; `None` if there is no such folder.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|is| is == extension)).collect();
    files.sort();
    files
}

fn unit(source: PathBuf, out: &Path, common: u64, instrumented: bool) -> Unit {
    let object = out.join(format!("{}.o", file_stem(&source)));
    let mut hasher = DefaultHasher::new();
    (common, read(&source)).hash(&mut hasher);
    Unit { source, object, instrumented, key: hasher.finish() }
}

/// The kernels that a source declares with `extern "C" __global__ void`.
fn kernels(source: &str, path: &Path) -> Vec<Kernel> {
    let source = without_comments(source);
    let mut kernels = Vec::new();
    for declaration in source.split("extern \"C\" __global__ void").skip(1) {
        let mut rest = declaration.trim_start();
        let mut most_threads = None;
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__") {
            let bounds = bounds.trim_start();
            let end = closing(bounds).unwrap_or_else(|| fail(&format!("{}: __launch_bounds__ what?", path.display())));
            let operands = &bounds[1..end];
            most_threads = Some(first_operand(operands).trim().to_string());
            rest = bounds[end + 1..].trim_start();
        }
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            fail(&format!("{}: a __global__ function without a name", path.display()));
        }
        kernels.push(Kernel { name, most_threads });
    }
    kernels
}

fn without_comments(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        text.push_str(&rest[..start]);
        let (end, skipped) = if rest[start..].starts_with("//") { ("\n", 0) } else { ("*/", 2) };
        rest = rest[start..].find(end).map_or("", |at| &rest[start + at + skipped..]);
    }
    text + rest
}

/// The position of the parenthesis that closes the one at the start of `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, c)| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        (depth == 0).then_some(at)
    })
}

fn first_operand(operands: &str) -> &str {
    let mut depth = 0;
    let end = operands.find(|c| {
        depth += i32::from(matches!(c, '(' | '<' | '{')) - i32::from(matches!(c, ')' | '>' | '}'));
        c == ',' && depth == 0
    });
    &operands[..end.unwrap_or(operands.len())]
}

/// A C++ file that includes a `.cu`, checks its structs and describes its kernels.
fn wrapped(namespace: &str, source: &Path, root: &Path, kernels: &[Kernel], declarations: &Declarations) -> String {
    let mut text = format!("{INCLUDES}#include \"{}\"\n\n", root.join("kernels/emulator/emulator.h").display());
    // The names of C functions are the same in every namespace.
    for Kernel { name, .. } in kernels {
        text += &format!("#define {name} {name}__{namespace}\n");
    }
    text += &format!("\nnamespace {namespace} {{\n\n");
    // A kernel's `extern` array in this namespace is the machine's shared memory.
    text += "extern thread_local unsigned char shared_memory[] __asm__(\"retune_emulator_shared_memory\");\n";
    text += &format!("#include \"{}\"\n\n", source.display());
    text += &declarations.assertions(source);
    text += "extern const emulator::Kernel table[];\nconst emulator::Kernel table[] = {\n";
    for Kernel { name, most_threads } in kernels {
        let most_threads = most_threads.as_deref().unwrap_or("1024");
        text += &format!(
            "    emulator::Trampoline<{name}>::describe(\"{name}\", static_cast<unsigned>({most_threads}), \"{namespace}\"),\n"
        );
    }
    text += &format!("}};\n\n}}  // namespace {namespace}\n");
    text
}

/// The lists of all kernels.
fn list_of(plain: &[(String, usize)], checked: &[(String, usize)], root: &Path) -> String {
    let mut text = format!("#include \"{}\"\n\n", root.join("kernels/emulator/machine.h").display());
    for (namespace, _) in plain.iter().chain(checked) {
        text += &format!("namespace {namespace} {{\nextern const emulator::Kernel table[];\n}}\n");
    }
    text += "\nnamespace emulator {\n\n";
    for (name, tables) in [("plain", plain), ("checked", checked)] {
        text += &format!("static const Kernel* const {name}[] = {{\n");
        for (namespace, kernels) in tables {
            for kernel in 0..*kernels {
                text += &format!("    {namespace}::table + {kernel},\n");
            }
        }
        // An array has at least one element.
        let length: usize = tables.iter().map(|(_, kernels)| kernels).sum();
        text += &format!("    nullptr,\n}};\nconst KernelList {name}_kernels = {{{name}, {length}}};\n\n");
    }
    text + "}  // namespace emulator\n"
}

/// Compiles the files that have changed, as many at a time as cargo allows.
fn compile(tool: &cc::Tool, flags: &[String], units: &[Unit]) {
    let stale: Vec<&Unit> = units
        .iter()
        .filter(|unit| {
            let key = fs::read_to_string(unit.object.with_extension("key")).unwrap_or_default();
            key != unit.key.to_string() || !unit.object.exists()
        })
        .collect();
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).min(stale.len());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(unit) = stale.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut command: Command = tool.to_command();
                    command.args(flags);
                    if unit.instrumented {
                        command.args(CHECKED_FLAGS);
                    }
                    command.arg("-c").arg(&unit.source).arg("-o").arg(&unit.object);
                    match command.output() {
                        Ok(output) if output.status.success() => {
                            let text = String::from_utf8_lossy(&output.stderr);
                            text.lines().for_each(|line| println!("cargo::warning={line}"));
                            write(&unit.object.with_extension("key"), &unit.key.to_string());
                        }
                        Ok(output) => fail(&String::from_utf8_lossy(&output.stderr)),
                        Err(error) => fail(&format!("cannot run {command:?}: {error}")),
                    }
                }
            });
        }
    });
}
