//! Compiles every `kernels/*.cu` with nvcc to one compressed fatbin and writes `modules.rs`, which embeds them. Sets
//! the cfg
//! `cuda_kernels`. Without nvcc it does neither, and the program is built without CUDA kernels.
//!
//! It looks for nvcc at `$NVCC`, in `$CUDA_HOME/bin`, on PATH, and in `.cuda/bin`, which `scripts/install-nvcc.sh`
//! fills.
//! `RETUNE_CUDA_ARCHS` ("80 90", or "none") replaces the list of architectures. It downloads nothing and queries no GPU.

use crate::arguments::{Declarations, INCLUDES};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, iter, process, thread};

/// Compute capabilities that get machine code. The last one that nvcc supports also gets PTX, which the driver compiles
/// for later GPUs.
const ARCHITECTURES: [&str; 7] = ["75", "80", "86", "89", "90", "100", "120"];

/// Environment variables that change nvcc's output but are not on its command line.
const NVCC_VARIABLES: [&str; 3] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"];

struct Compiler {
    nvcc: PathBuf,
    /// The output of `nvcc --version`.
    version: String,
    /// CUDA's major and minor version.
    cuda: (u32, u32),
    flags: Vec<String>,
}

struct Kernels {
    source: PathBuf,
    /// The unit that nvcc compiles: it includes the source, then asserts that its structs match those in Rust.
    unit: PathBuf,
    unit_text: String,
    fatbin: PathBuf,
    /// The compiler's output, kept so that a build that reuses the fatbin repeats its warnings.
    log: PathBuf,
}

/// Ends the build with a message, which makes cargo fail. A non-zero exit status would make it print everything that this
/// script printed.
fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    process::exit(0)
}

pub fn build(declarations: &Declarations) {
    println!("cargo::rustc-check-cfg=cfg(cuda_kernels)");
    for variable in ["NVCC", "CUDA_HOME", "RETUNE_CUDA_ARCHS"].iter().chain(&NVCC_VARIABLES) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build/cuda.rs");
    let asked = env::var("RETUNE_CUDA_ARCHS").ok().filter(|archs| !archs.trim().is_empty());
    if asked.as_deref().is_some_and(|archs| archs.trim() == "none") {
        return;
    }
    let Some(nvcc) = find_nvcc() else {
        return;
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());

    let (headers, sources): (Vec<PathBuf>, Vec<PathBuf>) =
        files_of("kernels").into_iter().partition(|path| path.extension().is_some_and(|extension| extension == "cuh"));
    if sources.is_empty() {
        return;
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("cuda");
    let created = fs::create_dir_all(&folder);
    created.unwrap_or_else(|cause| fail(&format!("cannot create {}: {cause}", folder.display())));
    let compiler = Compiler::new(nvcc, asked.as_deref());
    let mut kernels = compiler.plan(&folder, &headers, sources, declarations);
    let probe_compiler = compiler.for_probe();
    let of_probe = |compiler: &Compiler| compiler.plan(&folder, &[], files_of("kernels/probe"), declarations);
    let probe = probe_compiler.as_ref().map(of_probe).unwrap_or_default();

    compiler.compile_all(&missing(&kernels));
    if let Some(compiler) = &probe_compiler {
        compiler.compile_all(&missing(&probe));
    }
    for kernels in kernels.iter().chain(&probe) {
        let log = fs::read_to_string(&kernels.log).unwrap_or_default();
        // Usually the same for every architecture.
        for line in log.lines().filter(|line| line.contains("warning")).collect::<BTreeSet<_>>() {
            println!("cargo::warning={}: {line}", kernels.source.display());
        }
    }
    kernels.sort_by(|a, b| a.source.cmp(&b.source));
    remove_others(&folder, kernels.iter().chain(&probe));
    write_modules(&folder.join("modules.rs"), &compiler, &kernels, &probe);
    println!("cargo::rustc-cfg=cuda_kernels");
}

/// Those that no earlier build has compiled.
fn missing(kernels: &[Kernels]) -> Vec<&Kernels> {
    kernels.iter().filter(|kernels| !kernels.fatbin.exists()).collect()
}

/// The first nvcc found in the places that the comment at the top of this file lists.
fn find_nvcc() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(nvcc) = env::var_os("NVCC").filter(|nvcc| !nvcc.is_empty()).map(PathBuf::from) {
        let found = match nvcc.components().count() {
            1 => program_in(env::split_paths(&path), &nvcc),
            _ => Some(nvcc.clone()).filter(|nvcc| nvcc.is_file()),
        };
        return Some(found.unwrap_or_else(|| fail(&format!("NVCC={}: no such program", nvcc.display()))));
    }
    let program = PathBuf::from(format!("nvcc{}", env::consts::EXE_SUFFIX));
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let local = env::current_dir().ok().map(|root| root.join(".cuda/bin"));
    let found = program_in(home.into_iter().chain(env::split_paths(&path)).chain(local), &program);
    if found.is_none() {
        println!("cargo::rerun-if-env-changed=PATH");
    }
    found
}

fn program_in(mut folders: impl Iterator<Item = PathBuf>, program: &Path) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join(program)).filter(|candidate| candidate.is_file()))
}

impl Compiler {
    fn new(nvcc: PathBuf, asked: Option<&str>) -> Self {
        let ask = |option: &str| {
            let output = Command::new(&nvcc).arg(option).output();
            let output = output.unwrap_or_else(|cause| fail(&format!("cannot run {}: {cause}", nvcc.display())));
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                fail(&format!("{} {option} failed: {}", nvcc.display(), said.trim()));
            }
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let version = ask("--version");
        let cuda = parse_version(&version)
            .unwrap_or_else(|| fail(&format!("{} --version prints no release: {version}", nvcc.display())));
        let architectures: Vec<String> = match asked {
            Some(archs) => archs.split([' ', ',']).filter(|arch| !arch.is_empty()).map(checked).collect(),
            None => {
                let known = ask("--list-gpu-arch");
                let known: BTreeSet<&str> =
                    known.lines().filter_map(|line| line.trim().strip_prefix("compute_")).collect();
                ARCHITECTURES.iter().filter(|arch| known.contains(*arch)).map(|arch| arch.to_string()).collect()
            }
        };
        let Some(last) = architectures.last() else {
            fail(&format!("{} supports none of the architectures {}", nvcc.display(), ARCHITECTURES.join(", ")))
        };
        let mut flags: Vec<String> =
            ["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-warn-spills"].map(String::from).into();
        if cuda >= (13, 0) {
            // Earlier releases support drivers that cannot read this compression.
            flags.push("-compress-mode=size".into());
        }
        let target = |arch: &str, code: &str| format!("-gencode=arch=compute_{},code={code}", virtual_of(arch));
        flags.extend(architectures.iter().map(|arch| target(arch, &format!("sm_{arch}"))));
        flags.push(target(last, &format!("compute_{}", virtual_of(last))));
        Self { nvcc, version, cuda, flags }
    }

    /// The compiler of `kernels/probe`, whose instructions only sm_90a has; `None` where no code for sm_90 is made.
    fn for_probe(&self) -> Option<Self> {
        if self.cuda < (12, 0) || !self.flags.iter().any(|flag| flag.contains("code=sm_90")) {
            return None;
        }
        let mut flags: Vec<String> = self.flags.iter().filter(|flag| !flag.starts_with("-gencode")).cloned().collect();
        flags.push("-gencode=arch=compute_90a,code=sm_90a".into());
        Some(Self { nvcc: self.nvcc.clone(), version: self.version.clone(), cuda: self.cuda, flags })
    }

    /// The files to compile, the longest first, so that no core waits for it at the end. The names of the results
    /// contain a hash of all inputs, so that existing results are not compiled again.
    fn plan(
        &self,
        folder: &Path,
        headers: &[PathBuf],
        sources: Vec<PathBuf>,
        declarations: &Declarations,
    ) -> Vec<Kernels> {
        let root = env::current_dir().unwrap_or_else(|cause| fail(&format!("cannot find the current folder: {cause}")));
        let headers = headers.iter().flat_map(|header| [name(header).into_bytes(), read(header)]);
        let invocation = [self.version.clone().into_bytes(), self.flags.join(" ").into_bytes()];
        let variables = NVCC_VARIABLES.map(|variable| env::var_os(variable).unwrap_or_default().into_encoded_bytes());
        let shared = hash(headers.chain(invocation).chain(variables));
        let mut kernels: Vec<(usize, Kernels)> = sources
            .into_iter()
            .map(|source| {
                let content = read(&source);
                let length = content.len();
                let assertions = declarations.assertions(&source);
                let include = format!("#include \"{}\"\n", root.join(&source).display());
                let unit_text = format!("{INCLUDES}{include}\n{assertions}");
                let key = hash([shared.to_ne_bytes().to_vec(), content, unit_text.clone().into_bytes()]);
                let path = |extension| folder.join(format!("{}-{key:016x}.{extension}", stem(&source)));
                (length, Kernels { fatbin: path("fatbin"), log: path("log"), unit: path("cu"), unit_text, source })
            })
            .collect();
        kernels.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        kernels.into_iter().map(|(_, kernels)| kernels).collect()
    }

    /// Runs one nvcc per file, as many at a time as cargo allows; each uses its share of the cores for its architectures.
    fn compile_all(&self, kernels: &[&Kernels]) {
        if kernels.is_empty() {
            return;
        }
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize).max(1);
        let threads = jobs.div_ceil(kernels.len());
        let next = AtomicUsize::new(0);
        let failures: Vec<String> = thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs.min(kernels.len()))
                .map(|_| {
                    scope.spawn(|| {
                        let taken = iter::from_fn(|| kernels.get(next.fetch_add(1, Ordering::Relaxed)));
                        taken.filter_map(|kernels| self.compile(kernels, threads).err()).collect::<Vec<_>>()
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
        });
        if !failures.is_empty() {
            fail(&failures.join("\n"));
        }
    }

    fn compile(&self, kernels: &Kernels, threads: usize) -> Result<(), String> {
        let written = fs::write(&kernels.unit, &kernels.unit_text);
        written.map_err(|cause| format!("cannot write {}: {cause}", kernels.unit.display()))?;
        let unfinished = kernels.fatbin.with_extension("unfinished");
        let mut command = Command::new(&self.nvcc);
        command.args(&self.flags).arg(format!("--threads={threads}")).arg("-o").arg(&unfinished).arg(&kernels.unit);
        let output = command.output().map_err(|cause| format!("cannot run {}: {cause}", self.nvcc.display()))?;
        let said = [output.stdout, output.stderr].concat();
        if !output.status.success() {
            let source = kernels.source.display();
            return Err(format!("nvcc failed on {source}: {}", String::from_utf8_lossy(&said).trim()));
        }
        let written = fs::write(&kernels.log, &said).and_then(|()| fs::rename(&unfinished, &kernels.fatbin));
        written.map_err(|cause| format!("cannot write {}: {cause}", kernels.fatbin.display()))
    }
}

/// The virtual architecture from whose PTX the code for a real one is generated. The kernels have two variants, with
/// and without tensor cores, so the C++ is compiled twice instead of once per architecture. That is most of nvcc's time.
fn virtual_of(architecture: &str) -> &'static str {
    let newer = architecture.len() > 2 || architecture >= "80";
    if newer { "80" } else { "75" }
}

/// Parses `release 13.0, V13.0.88` as 13 and 0.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.split_once('.')?;
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

fn checked(architecture: &str) -> String {
    let digits = architecture.trim_end_matches(['a', 'f']);
    if digits.parse::<u32>().is_err() || architecture.len() > digits.len() + 1 {
        fail(&format!(
            "RETUNE_CUDA_ARCHS: {architecture} is not a compute capability; expected a list such as 80 90, or none"
        ));
    }
    architecture.into()
}

/// The `.cu` and `.cuh` files of a folder, in order.
fn files_of(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|cause| fail(&format!("cannot list {folder}: {cause}")));
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"))
        .collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|cause| fail(&format!("cannot read {}: {cause}", path.display())))
}

fn hash(parts: impl IntoIterator<Item = Vec<u8>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.into_iter().for_each(|part| part.hash(&mut hasher));
    hasher.finish()
}

/// Removes the results of earlier versions of the kernels.
fn remove_others<'a>(folder: &Path, kernels: impl Iterator<Item = &'a Kernels>) {
    let kept: BTreeSet<&PathBuf> = kernels.flat_map(|kernels| [&kernels.fatbin, &kernels.log, &kernels.unit]).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !kept.contains(&entry.path()) {
            // A file that cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The names of the kernels that a file defines: the identifiers after `extern "C" __global__ void` and the launch bounds.
fn kernels_of(source: &str) -> Vec<String> {
    let definitions = source.split("extern \"C\" __global__ void").skip(1);
    let names = definitions.map(|definition| {
        let definition = definition.trim_start();
        let definition = match definition.strip_prefix("__launch_bounds__") {
            Some(bounds) => after_parentheses(bounds).trim_start(),
            None => definition,
        };
        definition
            .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .next()
            .unwrap_or_default()
            .into()
    });
    names.collect()
}

/// The text after the parenthesis that closes the one at the start of `text`.
fn after_parentheses(text: &str) -> &str {
    let mut depth = 0;
    for (index, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' if depth == 1 => return &text[index + 1..],
            ')' => depth -= 1,
            _ => {}
        }
    }
    ""
}

/// The table that `src/device/cuda/modules.rs` includes.
fn write_modules(path: &Path, compiler: &Compiler, kernels: &[Kernels], probe: &[Kernels]) {
    let (major, minor) = compiler.cuda;
    let architectures: Vec<&str> =
        compiler.flags.iter().filter_map(|flag| flag.split_once(",code=").map(|(_, code)| code)).collect();
    let mut text = format!(
        "/// The CUDA version of the nvcc that compiled the kernels.\npub const CUDA_VERSION: (u32, u32) = ({major}, {minor});\n\
         /// The architectures that they were compiled for.\npub const CODES: &[&str] = &{architectures:?};\n"
    );
    write_table(&mut text, "One per `.cu` file.", "MODULES", kernels);
    write_table(&mut text, "Those of the hardware probe.", "PROBE", probe);
    if fs::read_to_string(path).ok().as_deref() != Some(&text) {
        fs::write(path, text).unwrap_or_else(|cause| fail(&format!("cannot write {}: {cause}", path.display())));
    }
}

fn write_table(text: &mut String, comment: &str, table: &str, kernels: &[Kernels]) {
    text.push_str(&format!("/// {comment}\npub static {table}: &[Module] = &[\n"));
    for kernels in kernels {
        let (source, fatbin) = (name(&kernels.source), format!("/cuda/{}", name(&kernels.fatbin)));
        let image = format!("&Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), {fatbin:?}))).0");
        let names = kernels_of(&String::from_utf8_lossy(&read(&kernels.source)));
        text.push_str(&format!("    Module {{ source: {source:?}, image: {image}, kernels: &{names:?} }},\n"));
    }
    text.push_str("];\n");
}
