//! Compiles what is not Rust: the CUDA kernels, where there is an nvcc.

#[path = "build/cuda.rs"]
mod cuda;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    cuda::build();
}
