//! The launches of a training step and of inference with the full-size network, planned without a GPU: `retune bench --kernels --plan`.

use std::process::Command;

use serde_json::Value;

fn plan(arguments: &[&str]) -> Value {
    let run = Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(["bench", "--kernels", "--plan", "--json"])
        .args(arguments)
        .output()
        .expect("runs");
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).expect("valid JSON")
}

fn total<'a>(plan: &'a Value, part: &str) -> &'a Value {
    let totals = plan["totals"].as_array().expect("totals");
    totals.iter().find(|total| total["part"] == part).expect("this part")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

const LESSON: [&str; 4] = ["--batch-size", "128", "--image-size", "224"];

#[test]
fn a_step_in_bf16_needs_few_launches_and_few_bytes() {
    let plan = plan(&[&LESSON[..], &["--precision", "bf16", "--gpu", "h200"]].concat());
    let step = total(&plan, "step");
    let (launches, ratio) = (number(&step["launches"]), number(&step["bytes_ratio"]));
    let milliseconds = number(&step["roofline_seconds"]) * 1e3;
    println!("{launches} launches, {ratio:.3} of the least bytes, roofline {milliseconds:.3} ms");
    let megabytes = number(&step["bytes"]) / 1e6;
    assert!(launches <= 120.0, "{launches} launches");
    assert!(megabytes <= 8800.0, "{megabytes} MB");
    assert!(ratio <= 1.15, "{ratio} of the least bytes");
    assert!(milliseconds < 3.0, "roofline {milliseconds} ms");
}

/// Each convolution is one launch with its batch norm, addition and activation; no activation is written before them.
#[test]
fn inference_needs_no_pass_for_batch_norm() {
    for (precision, megabytes) in [("fp32", 3400.0), ("tf32", 3400.0), ("bf16", 1750.0)] {
        let flags = ["--mode", "inference", "--precision", precision, "--gpu", "h100"];
        let plan = plan(&[&LESSON[..], &flags].concat());
        let batch = total(&plan, "batch");
        let megabytes_planned = number(&batch["bytes"]) / 1e6;
        assert!(megabytes_planned < megabytes, "{precision}: {megabytes_planned} MB");
        // Images, 20 convolutions, two pools, the final layer, and the loss.
        assert_eq!(number(&batch["launches"]), 25.0, "{precision}");
        let ratio = number(&batch["bytes_ratio"]);
        assert!((0.999..1.01).contains(&ratio), "{precision}: {ratio} of the least bytes");
    }
}

/// Forward takes 1.814 G multiply-adds per image (torchvision's figure, minus the 1000-class head), and backward twice
/// as many, without the input gradient of the stem. The operations of the convolution launches must add up to that.
#[test]
fn operations_are_those_of_the_network() {
    for precision in ["fp32", "tf32", "bf16"] {
        let plan = plan(&[&LESSON[..], &["--precision", precision, "--gpu", "h100"]].concat());
        let rows = plan["rows"].as_array().expect("rows");
        let of = |part: &str| -> f64 {
            let convolutions = rows
                .iter()
                .filter(|row| row["part"] == part && row["kernel"].as_str().expect("a name").starts_with("conv2d"));
            convolutions.map(|row| number(&row["operations"])).sum()
        };
        let multiply_adds = (1.8141e9 - 512.0 * 1000.0) * 128.0;
        let stem = 112.0 * 112.0 * 64.0 * 147.0 * 128.0;
        let near = |ours: f64, truth: f64| (ours / truth - 1.0).abs() < 1e-3;
        assert!(near(of("forward"), 2.0 * multiply_adds), "{precision}: forward {}", of("forward"));
        let backward = 2.0 * (2.0 * multiply_adds - stem);
        assert!(near(of("backward"), backward), "{precision}: backward {}, not {backward}", of("backward"));
    }
}

/// Plans the same step for every GPU of the table, with its expected times.
#[test]
fn every_gpu_has_a_plan() {
    for (gpu, precision) in [("h200", "bf16"), ("h100", "tf32"), ("a100", "bf16"), ("rtx4090", "bf16"), ("t4", "fp32")]
    {
        let plan = plan(&["--batch-size", "16", "--precision", precision, "--gpu", gpu]);
        assert_eq!(plan["gpu"], gpu);
        assert_eq!(plan["fits"], true, "{gpu}");
        let parts: Vec<f64> = ["augment", "forward", "backward", "sgd"]
            .map(|part| number(&total(&plan, part)["roofline_seconds"]))
            .to_vec();
        assert!(parts.iter().all(|&seconds| seconds > 0.0 && seconds.is_finite()), "{gpu}: {parts:?}");
        let step = number(&total(&plan, "step")["roofline_seconds"]);
        assert!((parts.iter().sum::<f64>() / step - 1.0).abs() < 1e-9, "{gpu}: {parts:?} make {step}");
    }
}

#[test]
fn a_precision_that_a_gpu_lacks_is_one_error() {
    let run = Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(["bench", "--kernels", "--plan", "--gpu", "t4", "--precision", "bf16"])
        .output()
        .expect("runs");
    let message = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{message}");
    assert!(message.contains("bf16") && message.contains("7.5") && message.contains("hint:"), "{message}");
}

/// Times every launch of a small step on the emulator. The launches must be those of the plan, each with a time.
#[cfg(feature = "emulator")]
#[test]
fn launches_of_the_emulator_are_timed() {
    let small = ["--width", "8", "--image-size", "40", "--batch-size", "2", "--steps", "1", "--precision", "bf16"];
    let run = Command::new(env!("CARGO_BIN_EXE_retune"))
        .args(["bench", "--kernels", "--json", "--device", "emulator"])
        .args(small)
        .output()
        .expect("runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let measured: Value = serde_json::from_slice(&run.stdout).expect("valid JSON");
    let planned = plan(&small);
    assert_eq!(total(&measured, "step")["launches"], total(&planned, "step")["launches"]);
    let rows = measured["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| number(&row["seconds"]) > 0.0), "{rows:?}");
}
