//! `scripts/gpu-queue.py`, which answers the questions that wait for a GPU, with a queue that was made up and a command that
//! stands in for nvidia-smi.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const HEAD: &str = "# Questions\n\n| question | command | seconds | decides |\n|---|---|---|---|\n";

/// A folder with a queue of these rows.
fn queue(rows: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("queue.md"), format!("{HEAD}{rows}")).unwrap();
    let nvidia_smi = folder.path().join("nvidia-smi");
    fs::write(&nvidia_smi, "#!/bin/sh\necho 'NVIDIA Stand-in, 80GB, 580.1'\n").unwrap();
    fs::set_permissions(nvidia_smi, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    let path = std::env::join_paths(
        [folder.path().to_path_buf()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-queue.py"))
        .args(["--queue", "queue.md", "--out", "answers", "--retune", env!("CARGO_BIN_EXE_retune")])
        .args(arguments)
        .current_dir(folder.path())
        .env("PATH", path.unwrap())
        .output()
        .unwrap()
}

fn answer(folder: &TempDir, number: u32) -> Value {
    let text = fs::read_to_string(folder.path().join(format!("answers/{number:02}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_kind_of_outcome_is_kept() {
    // No other process sleeps for as long.
    let slow = format!("60.{}", std::process::id());
    let folder = queue(&format!(
        "| Is a \\| b? | `echo 'before' && echo '{{\"rate\": 7}}' && echo '{{\"limit\": 1}}' >$RESULTS/file.json` | 5 | one |\n\
         | Does it fail? | `printf 'reason%0300d' 0 >&2; exit 3` | 5 | two |\n\
         | Is it slow? | `timeout 70 sleep {slow} & timeout 70 sleep {slow}` | 1 | three |\n\
         | Does it fit? | `touch $RESULTS/ran` | 900 | four |\n\
         | And the next? | `echo after` | 5 | five |\n",
    ));
    let begun = Instant::now();
    let output = run(&folder, &["--seconds", "40"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "the slow command was not ended");
    assert_eq!(output.status.code(), Some(1), "{output:?}");

    let first = answer(&folder, 1);
    assert_eq!(first["question"], "Is a | b?");
    assert_eq!(first["exit_status"], 0);
    assert_eq!(first["timed_out"], false);
    assert_eq!(first["json"][0]["rate"], 7);
    assert_eq!(first["files"]["file.json"]["limit"], 1);
    assert_eq!(first["stdout_tail"][0], "before");
    assert_eq!((&first["gpu"], &first["driver"]), (&"NVIDIA Stand-in, 80GB".into(), &"580.1".into()));
    assert_eq!(first["estimated_seconds"], 5);
    assert!(first["seconds"].as_f64().unwrap() < 5.0);

    let second = answer(&folder, 2);
    assert_eq!(second["exit_status"], 3);
    assert_eq!(second["stderr_tail"][0], format!("reason{}...", "0".repeat(234)));

    let third = answer(&folder, 3);
    assert_eq!((&third["exit_status"], &third["timed_out"]), (&Value::Null, &true.into()));
    assert!((2.0..5.0).contains(&third["seconds"].as_f64().unwrap()), "{third}");
    let left = fs::read_dir("/proc").unwrap().flatten().find(|process| {
        let words = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        words.starts_with(&format!("sleep\0{slow}"))
    });
    assert!(left.is_none(), "a process of the slow command is left: {left:?}");

    let fourth = answer(&folder, 4);
    assert!(fourth["skipped"].as_str().unwrap().starts_with("it needs 900 s, and "), "{fourth}");
    assert!(!folder.path().join("answers/04").exists());
    assert_eq!(answer(&folder, 5)["stdout_tail"][0], "after");

    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, fs::read_to_string(folder.path().join("answers/answers.md")).unwrap());
    for line in [
        "GPU: NVIDIA Stand-in, 80GB; driver 580.1; commit ",
        "| 1 | Is a \\| b? | exit status 0 after ",
        "rate = 7\nlimit = 1\nbefore\n",
        "| 2 | Does it fail? | exit status 3 after ",
        "\nreason000",
        "| 3 | Is it slow? | killed after ",
        "| 4 | Does it fit? | skipped: it needs 900 s",
    ] {
        assert!(text.contains(line), "{line}\nin\n{text}");
    }
}

#[test]
fn answers_without_failures_succeed_and_replace_older_ones() {
    let folder = queue("| Is it new? | `ls $RESULTS; touch $RESULTS/old.json` | 5 | one |\n");
    for _ in 0..2 {
        let output = run(&folder, &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    assert_eq!(answer(&folder, 1)["stdout_tail"], serde_json::json!(["stderr", "stdout"]));
}

#[test]
fn a_queue_that_cannot_be_read_is_refused() {
    for (row, expected) in [
        ("| a | `b` | 1 |\n", "queue.md, line 5: expected the 4 cells question, command, seconds, decides"),
        ("| a | `b` |  | c |\n", "queue.md, line 5: expected the 4 cells"),
        ("| a | `b | c` | 1 | d |\n", "a vertical bar inside a cell is written \\|"),
        ("| a | b | 1 | c |\n", "line 5: the command is not in backticks: b"),
        ("| a | `b` | 0 | c |\n", "line 5: the seconds are not a whole number above 0: 0"),
        ("| a | `b` | 1 | c |\n| a | `b` | soon | c |\n", "line 6: the seconds are not a whole number above 0: soon"),
        ("", "queue.md has no table with rows"),
    ] {
        let output = run(&queue(row), &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{row}: {text}");
        assert!(text.starts_with("error: ") && text.contains(expected), "{row}: {text}");
    }
    let output = run(&queue(""), &["--queue", "none.md"]);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: cannot read none.md: No such file or directory\n");
}

#[test]
fn every_command_of_the_real_queue_parses() {
    let folder = queue("");
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/gpu-queue.md");
    let output = run(&folder, &["--check", "--queue", real.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn commands_that_do_not_parse_are_found() {
    for (command, expected) in [
        ("retune bench --nonsense", "unexpected argument '--nonsense'"),
        ("retune bench --batch-size many", "invalid value 'many'"),
        ("retune bench && retune devices --device", "a value is required for '--device"),
        ("A=1 retune march", "unrecognized subcommand 'march'"),
        ("scripts/gpu-check.sh checks $RESULTS no-such-check", "the pattern matches no check"),
        ("scripts/gpu-check.sh $RESULTS gradcheck", "expected `scripts/gpu-check.sh checks FOLDER [PATTERN]`"),
        ("python3 scripts/bench-gpu-vs-pytorch.py --round 1 --archs resnet50", "the script refuses these arguments"),
        ("scripts/none.py", "No such file or directory"),
        ("reboot", "reboot is neither retune nor a script"),
        ("retune devices > $RESULTS/devices", "> is not allowed in a command"),
        ("retune devices 'open", "No closing quotation"),
    ] {
        let output = run(&queue(&format!("| a | `{command}` | 1 | b |\n")), &["--check"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}: {text}");
        assert!(text.contains(expected), "{command}: {text}");
    }
}
