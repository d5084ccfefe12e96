#!/usr/bin/env python3
"""Runs the questions of docs/gpu-queue.md on a GPU, the first one first, within a time that is given.

    scripts/gpu-queue.py --seconds 540 --out gpu-answers      runs the queue; scripts/gpu-check.sh calls it
    scripts/gpu-queue.py --check --retune PATH                checks that every command parses; needs no GPU

A command whose estimated seconds exceed the time that remains is skipped. Each command may take twice its estimate while time
remains; then all its processes are killed. Commands run in bash in the root of the checkout. `retune` is the program that
`scripts/gpu-check.sh --prepare` built, and $RESULTS is a folder for the files of this command.

OUT/NN.json is the answer to question NN: exit status, seconds, the JSON lines of its output and the JSON files in $RESULTS, and the
last lines of its output. Files of more than 1 MiB stay in OUT/NN only. OUT/answers.md, which is also printed, is text for
docs/gpu-results.md. Both are written after each command, so that an interrupted run keeps what it has. The exit status is 1 if
a command failed or took too long, and 2 if the queue cannot be read. Needs only Python 3.8 or later.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PREPARED = ROOT / "target" / "gpu-check"
COLUMNS = ["question", "command", "seconds", "decides"]
# A command may take this many times its estimate.
PATIENCE = 2
# Lines of output in an answer, and in the Markdown.
TAIL = 40
SHOWN = 12
# Longer lines, such as JSON that another program's output contains, are cut.
LONGEST_LINE = 240
# Larger files stay where they are.
LARGEST_FILE = 1 << 20
# JSON with more values than this is in the answer's file only.
SHOWN_VALUES = 16


class BadQueue(Exception):
    """The queue is not as it must be."""


def cells_of(line):
    """The cells of a row of a Markdown table, in which a vertical bar is written \\|."""
    cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]


def read_queue(path):
    """The rows of the only table of a Markdown file, as dictionaries."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as cause:
        raise BadQueue(f"cannot read {path}: {cause.strerror}") from cause
    table = [(number, line) for number, line in enumerate(lines, 1) if line.startswith("|")]
    if len(table) < 3 or cells_of(table[0][1]) != COLUMNS:
        raise BadQueue(f"{path} has no table with rows and the columns {', '.join(COLUMNS)}")
    rows = []
    for number, line in table[2:]:
        cells = cells_of(line)
        place = f"{path}, line {number}"
        if len(cells) != len(COLUMNS) or not all(cells):
            raise BadQueue(f"{place}: expected the {len(COLUMNS)} cells {', '.join(COLUMNS)}, none empty; "
                           "a vertical bar inside a cell is written \\|")
        row = dict(zip(COLUMNS, cells))
        command = re.fullmatch(r"`([^`]+)`", row["command"])
        if command is None:
            raise BadQueue(f"{place}: the command is not in backticks: {row['command']}")
        if re.fullmatch("[1-9][0-9]*", row["seconds"]) is None:
            raise BadQueue(f"{place}: the seconds are not a whole number above 0: {row['seconds']}")
        rows.append({**row, "command": command[1], "seconds": int(row["seconds"]), "place": place})
    return rows


# Running


def end_session(leader):
    """Kills the processes of a session. A process group is not enough: `timeout` gives its command one of its own."""
    for _ in range(20):
        found = False
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                # The name, in parentheses, may itself contain some.
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found = True
                    os.kill(int(stat.parent.name), signal.SIGKILL)
            except (OSError, ValueError):
                # The process has ended.
                continue
        if not found:
            return
        time.sleep(0.05)


def run_command(command, limit, folder, environment):
    """Returns exit status, or None if it was killed, and seconds."""
    begun = time.monotonic()
    with open(folder / "stdout", "wb") as stdout, open(folder / "stderr", "wb") as stderr:
        process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            status = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Also what the command left running, so that it does not disturb the next one.
            end_session(process.pid)
            process.wait()
    return status, round(time.monotonic() - begun, 1)


def json_of(text):
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, (dict, list)) else None


def outputs_of(folder):
    stdout, stderr = ((folder / name).read_text(encoding="utf-8", errors="replace").splitlines() for name in ("stdout", "stderr"))
    values = [value for value in map(json_of, stdout) if value is not None]
    small = [path for path in sorted(folder.glob("*.json")) if path.stat().st_size <= LARGEST_FILE]
    files = {path.name: json_of(path.read_text(encoding="utf-8", errors="replace")) for path in small}
    text = [line for line in stdout if json_of(line) is None]
    tail = lambda lines: [line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + "..." for line in lines[-TAIL:]]
    return {"json": values, "files": files, "stdout_tail": tail(text), "stderr_tail": tail(stderr)}


def first_line(command):
    """The first line that a command prints, or None."""
    try:
        found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = found.stdout.strip().splitlines()
    return lines[0] if found.returncode == 0 and lines else None


def describe_machine():
    line = first_line(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    gpu, _, driver = (line or "unknown, unknown").rpartition(", ")
    if line is None:
        print("warning: nvidia-smi finds no GPU, so the answers do not name one", file=sys.stderr)
    try:
        commit = " ".join((PREPARED / "commit").read_text().split("\n")).strip()
    except OSError:
        commit = first_line(["git", "rev-parse", "HEAD"]) or "unknown"
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"date": now.strftime("%Y-%m-%d"), "gpu": gpu, "driver": driver, "commit": commit}


def values_of(value, name=""):
    """The numbers and strings of a JSON value, with their paths."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in values_of(inner, f"{name}.{key}" if name else key)]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in values_of(inner, f"{name}[{index}]")]
    return [(name, value)]


def outcome_of(answer):
    if "skipped" in answer:
        return f"skipped: {answer['skipped']}"
    if answer["timed_out"]:
        return f"killed after {answer['seconds']} s"
    return f"exit status {answer['exit_status']} after {answer['seconds']} s"


def markdown(machine, answers):
    lines = [f"## Answers of {machine['date']}", "",
             f"GPU: {machine['gpu']}; driver {machine['driver']}; commit {machine['commit']}.", "",
             "| # | question | outcome | decides |", "|---|---|---|---|"]
    escaped = lambda text: text.replace("|", "\\|")
    for answer in answers:
        cells = [answer["question"], outcome_of(answer), answer["decides"]]
        lines.append(f"| {answer['number']} | {' | '.join(map(escaped, cells))} |")
    for answer in answers:
        if "skipped" in answer:
            continue
        lines += ["", f"Answer {answer['number']}, `{answer['command']}`, {outcome_of(answer)}:", "", "```text"]
        for value in answer["json"] + [value for value in answer["files"].values() if value is not None]:
            leaves = values_of(value)
            if len(leaves) > SHOWN_VALUES:
                lines.append(f"{len(leaves)} values of JSON: {answer['number']:02}.json")
            else:
                lines.append(", ".join(f"{name} = {leaf}" for name, leaf in leaves))
        lines += answer["stdout_tail"][-SHOWN:]
        if answer["exit_status"] != 0:
            lines += answer["stderr_tail"][-SHOWN:]
        lines.append("```")
    return "\n".join(lines) + "\n"


def run_queue(rows, seconds, out):
    """Runs the rows; returns whether all commands that ran succeeded."""
    started = time.monotonic()
    machine = describe_machine()
    out.mkdir(parents=True, exist_ok=True)
    answers = []
    for number, row in enumerate(rows, 1):
        left = seconds - (time.monotonic() - started)
        answer = {"number": number, **machine, **{key: row[key] for key in COLUMNS}}
        answer["estimated_seconds"] = answer.pop("seconds")
        if row["seconds"] > left:
            answer["skipped"] = f"it needs {row['seconds']} s, and {max(0, int(left))} s of {seconds} s remain"
        else:
            folder = out / f"{number:02}"
            # Files of an earlier run are no answers.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            limit = min(PATIENCE * row["seconds"], left)
            environment = {**os.environ, "RESULTS": str(folder), "PATH": f"{PREPARED}{os.pathsep}{os.environ.get('PATH', '')}",
                           "RETUNE_CHECK_SECONDS": str(max(1, int(limit) - 3))}
            print(f"{number}/{len(rows)}: {row['command']}", file=sys.stderr, flush=True)
            status, spent = run_command(row["command"], limit, folder, environment)
            answer.update(exit_status=status, seconds=spent, timed_out=status is None, **outputs_of(folder))
        print(f"{number}/{len(rows)}: {outcome_of(answer)}", file=sys.stderr, flush=True)
        answers.append(answer)
        (out / f"{number:02}.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
        (out / "answers.md").write_text(markdown(machine, answers), encoding="utf-8")
    sys.stdout.write(markdown(machine, answers))
    return all("skipped" in answer or answer["exit_status"] == 0 for answer in answers)


# Checking


class Parsed(Exception):
    """A script has parsed its arguments."""


def check_python(words):
    """Runs a script of this project until it has parsed its arguments. `--help` would not do: argparse shows it before it
    looks for unknown options."""
    parse, arguments = argparse.ArgumentParser.parse_args, sys.argv

    def parse_only(self, *given):
        parse(self, *given)
        raise Parsed

    argparse.ArgumentParser.parse_args, sys.argv = parse_only, words
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except Parsed:
        return None
    except SystemExit:
        return "the script refuses these arguments"
    except OSError as cause:
        return str(cause)
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = parse, arguments
    return "the script does not parse arguments"


def check_words(words, retune):
    """What is wrong with a command, or None. Runs nothing but parsers."""
    while words and (words[0] == "env" or re.match("[A-Za-z_]+=", words[0])):
        words = words[1:]
    if words[:1] == ["python3"]:
        words = [word for word in words[1:] if word != "-u"]
    if not words:
        return "there is no command"
    program = pathlib.Path(words[0]).name
    if program == "compute-sanitizer":
        inner = [index for index, word in enumerate(words) if pathlib.Path(word).name == "retune"]
        return check_words(words[inner[0]:], retune) if inner else "there is no retune in it"
    if program == "retune":
        # clap checks everything before `--help` and runs nothing.
        done = subprocess.run([retune, *words[1:], "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return None if done.returncode == 0 else " ".join(done.stderr.split())
    if program == "gpu-check.sh":
        return check_collection(words[1:], retune)
    if program.startswith("test-"):
        test = ROOT / "tests" / f"{program[5:]}.rs"
        return None if test.exists() else f"there is no {test.relative_to(ROOT)}"
    if program.endswith(".py"):
        return check_python(words)
    if words == ["bash", "-c", words[-1]] and words[-1].startswith("resumed "):
        # A function of gpu-check.sh, which bash has parsed.
        return None
    return f"{words[0]} is neither retune nor a script that this check knows"


def check_collection(words, retune):
    """Checks the commands that gpu-check.sh would run."""
    if len(words) not in (2, 3) or words[0] != "checks":
        return "expected `scripts/gpu-check.sh checks FOLDER [PATTERN]`"
    listing = subprocess.run([ROOT / "scripts" / "gpu-check.sh", "list", *words[2:]], stdout=subprocess.PIPE, text=True)
    if listing.returncode != 0 or not listing.stdout:
        return "the pattern matches no check"
    for line in listing.stdout.splitlines():
        name, _, command = line.partition("\t")
        wrong = check_words(shlex.split(command), retune) if command else None
        if wrong is not None:
            return f"check {name}: {wrong}"
    return None


def simple_commands(command):
    """The words of the commands that `&&` and `;` join."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands = [[]]
    for word in lexer:
        if word in ("&&", ";"):
            commands.append([])
        elif set(word) <= set("();<>|&"):
            raise BadQueue(f"{word} is not allowed in a command; only && and ; are")
        else:
            commands[-1].append(word)
    return commands


def check_queue(rows, retune):
    """Prints what is wrong with the commands; returns whether all are right."""
    wrong = []
    for row in rows:
        try:
            commands = simple_commands(row["command"])
        except (BadQueue, ValueError) as cause:
            wrong.append(f"{row['place']}: {cause}")
            continue
        for words in commands:
            problem = check_words(words, retune)
            if problem is not None:
                wrong.append(f"{row['place']}: {shlex.join(words)}: {problem}")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if not wrong:
        print(f"the commands of {len(rows)} questions parse")
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=540, metavar="N", help="time for the whole queue (540)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-answers"), metavar="FOLDER",
                        help="folder for the answers (gpu-answers)")
    parser.add_argument("--queue", type=pathlib.Path, default=ROOT / "docs" / "gpu-queue.md", metavar="FILE",
                        help="the questions (docs/gpu-queue.md)")
    parser.add_argument("--check", action="store_true", help="only check that the commands parse")
    parser.add_argument("--retune", default=str(ROOT / "target" / "release" / "retune"), metavar="PATH",
                        help="the program whose options --check compares (target/release/retune)")
    arguments = parser.parse_args()
    if arguments.seconds <= 0:
        parser.error(f"--seconds {arguments.seconds}: expected a number above 0")
    try:
        rows = read_queue(arguments.queue)
        if arguments.check:
            if shutil.which(arguments.retune) is None:
                raise BadQueue(f"there is no program {arguments.retune}; build it, or name another with --retune")
            return 0 if check_queue(rows, arguments.retune) else 1
    except BadQueue as cause:
        print(f"error: {cause}", file=sys.stderr)
        return 2
    # Ends the command that runs, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return 0 if run_queue(rows, arguments.seconds, arguments.out.resolve()) else 1


if __name__ == "__main__":
    sys.exit(main())
