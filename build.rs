//! Compiles what is not Rust.

#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulator")]
    emulator::build();
}
