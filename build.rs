//! Compiles what is not Rust: the CUDA kernels, where there is an nvcc, and the emulator, where it is asked for.

#[path = "build/arguments.rs"]
mod arguments;
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let declarations = arguments::Declarations::read();
    cuda::build(&declarations);
    #[cfg(feature = "emulator")]
    emulator::build(&declarations);
}
