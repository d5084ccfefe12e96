//! The code that calls the NVIDIA driver, tested without a GPU. `nvidia/libcuda.c`, which the C compiler builds into a
//! library, replaces the driver's library. Without a C compiler these tests print a message and test nothing.

#![cfg(target_os = "linux")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use retune::device::cuda::driver::{ArithmeticUnit, Driver, Launch, Work};
use retune::device::cuda::modules::{MODULES, Module, PROBE};
use retune::device::cuda::nvidia::{Nvidia, gpus};
use retune::error::Error;
use tempfile::TempDir;

/// Builds the library in a folder. Returns `None` without a C compiler.
fn fake_driver(options: &[&str]) -> Option<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvidia/libcuda.c");
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    let output = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-parameter"])
        .args(options)
        .arg("-o")
        .arg(folder.path().join("libcuda.so.1"))
        .arg(source)
        .output();
    match output {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(cause) => {
            // Writes to stderr directly, so that a skipped test is visible despite the test harness's capture.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no C compiler {compiler:?} for the fake driver: {cause}");
            return None;
        }
    }
    Some(folder)
}

/// The mode in which the program waits for every kernel.
const WAITING: &str = "waiting";

fn run_with(folder: &TempDir, mode: &str, command: &mut Command) -> Output {
    let waits = if mode == WAITING { "1" } else { "0" };
    command
        .env("LD_LIBRARY_PATH", folder.path())
        .env("FAKE_CUDA", mode)
        .env("RETUNE_CUDA_SYNC", waits)
        .output()
        .unwrap()
}

/// Runs `body` in a separate process of the test of this name, which sees the fake library: the loader reads the
/// library path when a process starts.
fn in_process(test: &str, mode: &str, body: impl FnOnce()) {
    if std::env::var_os("FAKE_CUDA").is_some() {
        return body();
    }
    let Some(folder) = fake_driver(&[]) else { return };
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = run_with(&folder, mode, command.args([test, "--exact"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" 1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn retune(mode: &str, line: &str) -> Option<Output> {
    let folder = fake_driver(&[])?;
    Some(run_with(&folder, mode, Command::new(env!("CARGO_BIN_EXE_retune")).args(line.split_whitespace())))
}

/// Returns the lines of `retune devices` about CUDA.
fn devices(mode: &str) -> Option<String> {
    let output = retune(mode, "devices")?;
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[repr(C, align(16))]
struct Image([u8; 16]);
static IMAGE: Image = Image(*b"a fatbin, say it");
static KERNELS: &[Module] = &[Module { source: "fill.cu", image: &IMAGE.0, kernels: &["fill", "fault"] }];

#[derive(Clone, Copy)]
struct Fill {
    target: u64,
    count: u32,
    value: u32,
}

impl Fill {
    fn bytes(&self) -> Vec<u8> {
        [self.target.to_ne_bytes().as_slice(), &self.count.to_ne_bytes(), &self.value.to_ne_bytes()].concat()
    }
}

fn launch(driver: &Nvidia, kernel: &'static str, fill: Fill, shared_bytes: u32) -> Result<(), Error> {
    let work = Work { operations: 0, unit: ArithmeticUnit::Float32, bytes_read: 0, bytes_written: 0 };
    let arguments = &fill.bytes();
    driver.launch(&Launch { kernel, grid: [1, 1, 1], block: [32, 1, 1], shared_bytes, arguments, work })
}

fn download(driver: &Nvidia, address: u64, count: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * count];
    driver.download(address, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&chunk| u32::from_ne_bytes(chunk)).collect()
}

fn address(memory: std::rc::Rc<retune::tensor::Memory>) -> u64 {
    let bytes = memory.bytes();
    retune::tensor::Tensor::new(memory, 0, [bytes].into(), retune::tensor::ElementType::U8).address()
}

#[test]
fn gpus_are_listed_with_what_they_can_do() {
    in_process("gpus_are_listed_with_what_they_can_do", "", || {
        let gpus = gpus().unwrap();
        assert_eq!(gpus.len(), 2);
        assert_eq!(gpus[1].description(), "Fake GPU 1, compute capability 9.0, 1.0 GiB, driver for CUDA 13.1");
        let driver = Nvidia::open(1, KERNELS).unwrap();
        assert_eq!(driver.name(), "cuda:1");
        let capabilities = driver.capabilities();
        assert_eq!(capabilities.compute_capability, 90);
        assert_eq!(capabilities.multiprocessors, 132);
        assert_eq!(capabilities.shared_bytes_per_block, 227 << 10);
        let error = Nvidia::open(2, KERNELS).err().unwrap();
        assert_eq!(error.to_string(), "there is no cuda:2\nhint: use cuda:0 (Fake GPU 0) or cuda:1 (Fake GPU 1)");
    });
}

#[test]
fn memory_is_zeroed_copied_and_freed() {
    in_process("memory_is_zeroed_copied_and_freed", "", || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let free = driver.free_bytes().unwrap().unwrap();
        let memory = driver.allocate(40_000).unwrap();
        assert!(driver.free_bytes().unwrap().unwrap() <= free - 40_000);
        let target = address(memory.clone());
        assert_eq!(download(&driver, target, 10_000), vec![0; 10_000]);
        // More uploads than there are staging buffers, before any of them completes.
        for word in 0..100u64 {
            let values = [word as u8; 8];
            driver.upload(&values, target + 8 * word).unwrap();
        }
        let expected: Vec<u32> = (0..200).map(|word| u32::from_ne_bytes([word as u8 / 2; 4])).collect();
        assert_eq!(download(&driver, target, 200), expected);
        // Sizes that make the buffers grow.
        for round in 0..9u32 {
            let values: Vec<u32> = (0..1000 * (round + 1)).map(|index| index ^ (round << 20)).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            driver.upload(&bytes, target).unwrap();
            drop(bytes);
            assert_eq!(download(&driver, target, values.len()), values);
        }
        // Issued work uses the memory until it completes, and the driver works afterwards.
        launch(&driver, "fill", Fill { target, count: 10_000, value: 1 }, 0).unwrap();
        drop(memory);
        driver.synchronize().unwrap();
        assert_eq!(driver.free_bytes().unwrap().unwrap(), free);
        assert_eq!(driver.allocate(0).unwrap().bytes(), 0);
    });
}

#[test]
fn uploads_do_without_pinned_memory() {
    in_process("uploads_do_without_pinned_memory", "nothing-to-pin", || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let memory = driver.allocate(8).unwrap();
        let target = address(memory.clone());
        let mut source = vec![1, 0, 0, 0, 2, 0, 0, 0];
        driver.upload(&source, target).unwrap();
        source.fill(9);
        assert_eq!(download(&driver, target, 2), [1, 2]);
    });
}

#[test]
fn kernels_run_with_their_arguments_and_shared_memory() {
    in_process("kernels_run_with_their_arguments_and_shared_memory", "", || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let memory = driver.allocate(400).unwrap();
        let target = address(memory.clone());
        // Above 48 KiB, including the kernel's own 128 bytes, the driver needs a setting; the fake library rejects
        // launches without it.
        for (value, shared_bytes) in [(7, 0), (6, 48 << 10), (8, 100 << 10), (9, (227 << 10) - 128), (10, 16)] {
            launch(&driver, "fill", Fill { target, count: 90, value }, shared_bytes).unwrap();
            assert_eq!(download(&driver, target, 100), [vec![value; 90], vec![0; 10]].concat());
            driver.upload(&[0; 400], target).unwrap();
        }
        let fill = Fill { target, count: 1, value: 1 };
        let error = launch(&driver, "fill", fill, 227 << 10).unwrap_err();
        assert!(
            error.message().contains("fill: the GPU does not have 232448 bytes of shared memory for a block"),
            "{error}"
        );
        let error = launch(&driver, "nonsense", fill, 0).unwrap_err();
        assert_eq!(error.message(), "cuda:0: this build has no kernel nonsense");
        let taken = driver.time(&mut || launch(&driver, "fill", fill, 0)).unwrap();
        assert_eq!(taken, std::time::Duration::from_micros(2500));
    });
}

#[test]
fn a_recorded_step_runs_when_it_is_replayed() {
    in_process("a_recorded_step_runs_when_it_is_replayed", "", || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let memory = driver.allocate(16).unwrap();
        let target = address(memory.clone());
        let recording = driver
            .record(&mut || {
                launch(&driver, "fill", Fill { target, count: 4, value: 3 }, 60 << 10)?;
                launch(&driver, "fill", Fill { target, count: 2, value: 5 }, 0)
            })
            .unwrap();
        assert_eq!(download(&driver, target, 4), [0; 4]);
        for _ in 0..2 {
            recording.replay().unwrap();
            assert_eq!(download(&driver, target, 4), [5, 5, 3, 3]);
            driver.upload(&[0; 16], target).unwrap();
        }
        // A step that fails, or issues operations that cannot be recorded, leaves the driver usable.
        let error = driver.record(&mut || Err(Error::new("it failed"))).err().unwrap();
        assert_eq!(error.message(), "it failed");
        for what in [
            driver.record(&mut || driver.synchronize()),
            driver.record(&mut || driver.upload(&[1; 4], target)),
            driver.record(&mut || driver.download(target, &mut [0; 4])),
            driver.record(&mut || driver.allocate(4).map(drop)),
            driver.record(&mut || driver.record(&mut || Ok(())).map(drop)),
        ] {
            let error = what.err().unwrap();
            assert!(error.message().ends_with("while a step is being recorded"), "{error}");
        }
        recording.replay().unwrap();
        // A recording keeps everything that it needs alive.
        drop(driver);
        recording.replay().unwrap();
    });
}

#[test]
fn a_fault_names_the_kernels_that_may_have_caused_it() {
    in_process("a_fault_names_the_kernels_that_may_have_caused_it", "", || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let memory = driver.allocate(16).unwrap();
        let fill = Fill { target: address(memory.clone()), count: 4, value: 3 };
        launch(&driver, "fill", fill, 0).unwrap();
        driver.synchronize().unwrap();
        launch(&driver, "fault", fill, 0).unwrap();
        let error = driver.synchronize().unwrap_err();
        assert!(error.message().starts_with("cuda:0: kernel fault: an illegal memory access"), "{error}");
        // All later calls report the fault, and none reports it as its own failure.
        for error in [
            launch(&driver, "fill", fill, 0).unwrap_err(),
            driver.download(fill.target, &mut [0; 4]).unwrap_err(),
            driver.upload(&[0; 4], fill.target).unwrap_err(),
            driver.allocate(4).err().unwrap(),
        ] {
            assert!(error.message().starts_with("cuda:0: kernel fault: an illegal memory access"), "{error}");
        }
    });
}

#[test]
fn a_fault_of_a_replayed_step_names_its_kernels() {
    in_process("a_fault_of_a_replayed_step_names_its_kernels", "", || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let fill = Fill { target: 64, count: 4, value: 3 };
        let step = &mut || launch(&driver, "fault", fill, 0).and_then(|()| launch(&driver, "fill", fill, 0));
        let recording = driver.record(step).unwrap();
        recording.replay().unwrap();
        let error = driver.synchronize().unwrap_err();
        assert!(error.message().ends_with("in one of the kernels fault, fill"), "{error}");
        assert!(error.to_string().contains("RETUNE_CUDA_SYNC=1"), "{error}");
    });
}

#[test]
fn a_fault_is_reported_at_once_in_synchronous_mode() {
    in_process("a_fault_is_reported_at_once_in_synchronous_mode", WAITING, || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let memory = driver.allocate(16).unwrap();
        let fill = Fill { target: address(memory.clone()), count: 4, value: 3 };
        launch(&driver, "fill", fill, 0).unwrap();
        let error = launch(&driver, "fault", fill, 0).unwrap_err();
        assert!(error.message().starts_with("cuda:0: kernel fault: an illegal memory access"), "{error}");
        assert!(!driver.can_record());
    });
}

#[test]
fn out_of_memory_is_reported_with_figures() {
    in_process("out_of_memory_is_reported_with_figures", "", || {
        let driver = Nvidia::open(0, KERNELS).unwrap();
        let _half = driver.allocate(512 << 20).unwrap();
        let error = driver.allocate(768 << 20).err().unwrap();
        assert_eq!(error.message(), "cuda:0: out of memory: 0.75 GiB is needed, 0.50 GiB is free");
        let shortage = error.shortage().unwrap();
        assert_eq!((shortage.asked, shortage.free), (768 << 20, Some(512 << 20)));
    });
}

#[test]
fn a_kernel_missing_from_the_module_is_reported() {
    in_process("a_kernel_missing_from_the_module_is_reported", "", || {
        static LACKING: &[Module] = &[Module { source: "fill.cu", image: &IMAGE.0, kernels: &["missing"] }];
        let error = Nvidia::open(0, LACKING).err().unwrap();
        assert!(error.message().starts_with("cuda:0: cannot find the kernel missing of fill.cu"), "{error}");
    });
}

#[test]
fn unusable_drivers_are_distinguished() {
    let expectations = [
        ("no-device", "NVIDIA's driver finds no GPU", "CUDA_VISIBLE_DEVICES"),
        ("mismatch", "are of different versions", "restart the machine"),
        ("stub", "is the toolkit's stub", "LD_LIBRARY_PATH"),
    ];
    for (mode, reason, hint) in expectations {
        let Some(text) = devices(mode) else { return };
        let cuda: Vec<&str> = text.lines().filter(|line| line.starts_with("cuda")).collect();
        assert_eq!(cuda.len(), 1, "{text}");
        assert!(cuda[0].contains("unavailable: ") && cuda[0].contains(reason), "{mode}: {text}");
        assert!(text.contains("hint: ") && text.contains(hint), "{mode}: {text}");
    }
}

#[test]
fn a_driver_without_a_needed_function_is_too_old() {
    let Some(folder) = fake_driver(&["-DWITHOUT_GRAPHS"]) else { return };
    let output = run_with(&folder, "", Command::new(env!("CARGO_BIN_EXE_retune")).arg("devices"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("the NVIDIA driver is too old: it has no cuGraphInstantiateWithFlags"), "{text}");
}

/// The builds differ: one with kernels goes on to the driver, one without explains how to add kernels.
#[test]
fn the_command_line_says_what_is_missing() {
    let error = |mode: &str, line: &str| {
        let output = retune(mode, line)?;
        assert_eq!(output.status.code(), Some(if line.contains("cuda:7") && !MODULES.is_empty() { 2 } else { 1 }));
        Some(String::from_utf8(output.stderr).unwrap())
    };
    let bench = "bench --width 4 --image-size 33 --batch-size 2 --steps 1";
    if MODULES.is_empty() {
        let Some(text) = error("", &format!("{bench} --device cuda")) else { return };
        assert!(text.starts_with("error: --device cuda: this build has no CUDA kernels\nhint: "), "{text}");
        let text = devices("").unwrap();
        assert!(text.contains("cuda:1    Fake GPU 1, "), "{text}");
        assert!(text.contains("unavailable: this build has no CUDA kernels"), "{text}");
        return;
    }
    let Some(text) = error("old-driver", &format!("{bench} --device cuda")) else { return };
    assert!(text.starts_with("error: --device cuda: the driver is too old: it runs CUDA 11.8"), "{text}");
    let text = error("volta", &format!("{bench} --device cuda:1")).unwrap();
    assert!(text.contains("no kernels for Fake GPU 1 (compute capability 7.0)"), "{text}");
    let text = error("", &format!("{bench} --device cuda:7")).unwrap();
    assert!(text.starts_with("error: --device cuda:7: there is no cuda:7\nhint: use cuda:0"), "{text}");
    let text = error("turing", &format!("{bench} --device cuda --precision bf16")).unwrap();
    assert!(text.contains("bf16: needs compute capability 8.0 or later, cuda:0 has 7.5"), "{text}");
    let text = devices("").unwrap();
    assert!(text.contains("cuda:1    Fake GPU 1, compute capability 9.0, 1.0 GiB, driver for CUDA 13.1\n"), "{text}");
    assert!(devices("old-driver").unwrap().contains("unavailable: the driver is too old"));
    // An unusable GPU is not an error: the program uses the CPU and prints a warning.
    let output = retune("old-driver", bench).unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("warning: using the CPU: the driver is too old"), "{text}");
}

/// The hardware probe runs on compute capability 9.0 only, and needs kernels and a driver that knows tensor maps.
#[test]
fn the_probe_says_why_it_cannot_run() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("probe.json");
    let probe = |mode: &str, flags: &str| {
        let output = retune(mode, &format!("probe --out {} {flags}", file.display()))?;
        Some((output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap()))
    };
    let Some((status, text)) = probe("volta", "--device cuda:1") else { return };
    let expected = "error: cuda:1 (Fake GPU 1) has compute capability 7.0, and the probe runs on 9.0 only\nhint: ";
    assert!(status == 1 && text.starts_with(expected), "{text}");
    for device in ["cpu", "emulator"] {
        let (status, text) = probe("", &format!("--device {device}")).unwrap();
        let expected = format!("error: --device {device}: the probe runs on a GPU\nhint: use --device cuda\n");
        assert_eq!((status, text), (2, expected));
    }
    assert!(probe("", "--device cuda:7").unwrap().1.starts_with("error: there is no cuda:7\n"));
    assert!(!file.exists());
    let (status, text) = probe("", "").unwrap();
    assert_eq!(status, 1);
    if PROBE.is_empty() {
        assert!(text.starts_with("error: this build has no kernels of the probe\nhint: "), "{text}");
        return;
    }
    let expected = "the NVIDIA driver is too old: it has no cuTensorMapEncodeTiled\nhint: update";
    assert!(text.starts_with("error: tiled copy") && text.contains(expected), "{text}");
    assert!(std::fs::read_to_string(file).unwrap().starts_with("{\"cases\":[],\"format\":\"retune-probe-1\""));
}

/// The error of a run that does not fit names the largest batch size that does.
#[test]
fn a_run_that_does_not_fit_names_the_batch_size_that_does() {
    if MODULES.is_empty() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: without kernels in this build no run begins");
        return;
    }
    let Some(folder) = fake_driver(&[]) else { return };
    let place = tempfile::tempdir().unwrap();
    for (class, pictures) in
        [("data/train/blue", 12), ("data/train/red", 12), ("data/test/blue", 1), ("data/test/red", 1)]
    {
        std::fs::create_dir_all(place.path().join(class)).unwrap();
        for number in 0..pictures {
            let picture = image::RgbImage::from_pixel(40, 40, image::Rgb([number, 0, 0]));
            picture.save(place.path().join(format!("{class}/{number}.png"))).unwrap();
        }
    }
    let train_with = |batch: usize, flags: &str| {
        let line = format!(
            "train data --from-scratch --image-size 512 --epochs 1 --device cuda --batch-size {batch} --out run{batch} {flags}"
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
        let output = run_with(&folder, "", command.args(line.split_whitespace()).current_dir(&place));
        String::from_utf8(output.stderr).unwrap()
    };
    let train = |batch| train_with(batch, "");
    let text = train(24);
    assert!(text.contains("error: cuda:0: out of memory: ") && text.contains(" GiB is free\n"), "{text}");
    assert!(!place.path().join("run24").exists());
    let batch = text.split_once("hint: --batch-size ").unwrap_or_else(|| panic!("{text}")).1;
    let batch: usize = batch.split_once(" fits").unwrap().0.parse().unwrap();
    assert!((1..24).contains(&batch), "{text}");
    assert!(!train(batch).contains("out of memory"), "--batch-size {batch}");
    assert!(train(batch + 1).contains("out of memory"), "--batch-size {batch}");
    // Edits take two copies of each image, of four bytes a pixel: 48 MiB more.
    let needed = |text: &str| -> f64 {
        text.split_once("out of memory: ").unwrap().1.split_once(" GiB").unwrap().0.parse().unwrap()
    };
    let more = needed(&train_with(24, "--augment rotation=10")) - needed(&text);
    assert!((0.03..0.07).contains(&more), "{more} GiB");
}

/// Every kernel that launch code names is in this build, shared memory is configured for it, and whole steps are
/// recorded. The fake library computes nothing, so the loss is that of zeros.
#[test]
fn launch_code_and_kernels_agree() {
    if MODULES.is_empty() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this build has no kernels");
        return;
    }
    for precision in ["fp32", "tf32", "bf16"] {
        // The smallest width at which every path is taken, including tensor cores.
        let line =
            format!("bench --device cuda --precision {precision} --width 64 --image-size 64 --batch-size 4 --steps 1");
        let Some(output) = retune("", &line) else { return };
        assert!(output.status.success(), "{precision}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
