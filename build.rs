//! Compiles the code that is not Rust: the CUDA kernels if nvcc is found, and the emulator if its feature is enabled.

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
