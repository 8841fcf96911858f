"""What a command costs in seconds and memory; run by itself: how the costs of this project grow with the rows.

  python scripts/cost.py data/raw

From RAW's rows, repeated with changed values, come sets of 1,000 to 114,599 rows. For each: preparing them, training
the tiny stand-in on them (to the first step, mostly tokenising, then per 1,000 rows), scoring the dev rows beside them,
and scoring as many ads. Writes results/bench/scale.json and scale.png; sizes that stand there and are not measured now
stay.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from adgen import ROOT, fail, whole_file, write_json

# What llamafactory-cli runs, whatever folder it stands in.
PROGRAM = [sys.executable, "-P", "-m", "llamafactory.cli"]
SCRATCH = ROOT / "saves/bench"
# AdGen's training rows; the steps before are about three times each other.
ROWS = (1000, 3000, 10_000, 30_000, 114_599)
# Stage → what the picture calls it, and which of its costs is its time.
STAGES = {
    "prepare": ("preparing the data", "seconds"),
    "first step": ("training, until the first step", "time_to_first_step_s"),
    "train": ("training, per 1,000 rows", "seconds_per_1000_rows"),
    "score dev": ("scoring the dev rows beside as many training rows", "seconds"),
    "score": ("scoring as many ads", "seconds"),
}


def shown(path: Path) -> str:
    """A path as a command names it that is run from the project's root."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def device() -> str:
    """The one GPU that is measured, as CUDA_VISIBLE_DEVICES names it; empty for none."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].replace("-1", "")


def ask_card(fields: str) -> list[str]:
    """What nvidia-smi says of the GPU, field by field; nothing where there is none."""
    if not device() or not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", device()]
    answer = subprocess.run(command, capture_output=True, text=True)
    return [] if answer.returncode else [field.strip() for field in answer.stdout.split(",")]


def card_file(folder: Path, card: str, kind: str = "") -> Path:
    """The file of results/bench for what was measured on a card of this name."""
    return folder / f"{kind}{re.sub('[^a-z0-9]+', '-', card.lower())}.json"


def poll_memory(readings: list[float], stop: threading.Event) -> None:
    """Notes every 0.2 s the GiB that the card has given out, to whomever."""
    while not stop.wait(0.2) and (answer := ask_card("memory.used")):
        readings.append(float(answer[0]) / 1024)


def peak_rss(pid: int) -> float:
    """GiB of memory that a process has held at most since it began its program; 0 when it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 2**20 if found else 0.0


def watch(command: list[str], log: Path, trainer_log: Path | None = None, limit: float = float("inf"), **own) -> dict:
    """Runs a command from the project's root, its output to `log`, and looks on; TimeoutError after `limit` seconds.

    `own`: variables of its environment.

    Gives its exit `status`, its `seconds`, `peak_gib` of the GPU (None without one), `peak_rss_gib` of the process, and
    `lines`: the seconds, to 0.01, after which each line of `trainer_log` was there.
    """
    readings, lines, rss, stop = [], [], 0.0, threading.Event()
    poll = threading.Thread(target=poll_memory, args=(readings, stop))
    # One GPU: with several, LLaMA-Factory would start a process for each.
    variables = os.environ | own | {"CUDA_VISIBLE_DEVICES": device(), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("wb") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **streams)
    poll.start()
    try:
        ended = False
        while not ended:
            # Once more after the end, for the last lines.
            ended = child.poll() is not None
            seconds = time.monotonic() - start
            rss = max(rss, peak_rss(child.pid))
            if trainer_log and trainer_log.exists():
                lines += [seconds] * (trainer_log.read_bytes().count(b"\n") - len(lines))
            if seconds > limit and not ended:
                raise TimeoutError
            time.sleep(0.01)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        stop.set()
        poll.join()
    peaks = {"peak_gib": max(readings, default=None), "peak_rss_gib": rss}
    return {"status": child.returncode, "seconds": seconds, "lines": lines, **peaks}


def last_error(log: Path, status: int) -> str:
    """The line of a failed command's output that says what went wrong; `status` below 0 is the signal that ended it."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}" + ": out of memory?" * (status == -signal.SIGKILL)
    lines = log.read_text(encoding="utf-8", errors="replace").replace(f"{ROOT}/", "").splitlines()
    found = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|error: ", line)]
    return (found or [line for line in lines if line.strip()] or ["ended without a word"])[-1].strip()[:300]


def check(command: list[str], log: Path) -> dict:
    """Watches a command that has to work; ends the program when it does not."""
    watched = watch(command, log)
    if watched["status"]:
        fail(f"{last_error(log, watched['status'])} (all that it said: {shown(log)})")
    return watched


def repeat(rows: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """So many (attribute string, ad), the given ones over and over, each time with another last value and last word."""
    grown = []
    for number in range(count):
        (content, ad), turn = rows[number % len(rows)], number // len(rows)
        grown.append((content + str(turn or ""), ad + str(turn or "")))
    return grown


def write_rows(path: Path, rows: Iterable[dict]) -> str:
    """Writes JSON lines; gives the path as a word of a command."""
    with whole_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return str(path)


def measure_scoring(folder: Path, rows: list[tuple[str, str]], more: list[str]) -> dict:
    """The costs of scoring an ad for each row: the ad of the row after it."""
    data = write_rows(folder / "rows.jsonl", ({"instruction": content, "output": ad} for content, ad in rows))
    pairs = zip(rows, rows[1:] + rows[:1], strict=True)
    ads = ({"prompt": row[0], "label": row[1], "predict": other[1]} for row, other in pairs)
    words = [f"ads={write_rows(folder / 'ads.jsonl', ads)}", "--data", data, *more]
    return check([sys.executable, "scripts/report.py", *words], SCRATCH / "scale.log")


def measure_training(folder: Path, base: Path) -> dict:
    """The costs of training the tiny stand-in for a few steps on a folder's adgen_train.jsonl."""
    import bench

    columns = {"prompt": "instruction", "response": "output"}
    registry = {"adgen_train": {"file_name": "adgen_train.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(registry), encoding="ascii")
    options = argparse.Namespace(base=base, data="adgen", steps=25, warmup=5, rate=1.0)
    run = bench.Run("scale", ROOT / "configs/tiny/sft_lora.yaml", {"dataset_dir": str(folder)})
    found = bench.measure(run, options, float("inf"))
    return fail(found["error"]) if "error" in found else found | {"seconds_per_1000_rows": 1000 / found["rows_per_s"]}


def measure_rows(count: int, sources: dict[str, list[tuple[str, str]]], base: Path) -> dict[str, dict[str, float]]:
    """Stage → its costs with so many rows; `sources`: the rows to make them of, train and dev."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name:
        folder = Path(name)
        for split, rows in (("train", repeat(sources["train"], count)), ("dev", sources["dev"])):
            write_rows(folder / f"{split}.json", ({"content": content, "summary": ad} for content, ad in rows))
        script = [sys.executable, "scripts/prepare_data.py", name, "--out", f"{name}/data"]
        costs = {"prepare": check(script, SCRATCH / "scale.log")}
        costs["train"] = costs["first step"] = measure_training(folder / "data", base)
        costs["score dev"] = measure_scoring(folder, sources["dev"], ["--train", f"{name}/data/adgen_train.jsonl"])
        costs["score"] = measure_scoring(folder, repeat(sources["dev"], count), [])
    return {
        stage: {"seconds": cost[STAGES[stage][1]], "peak_rss_gib": cost["peak_rss_gib"]}
        for stage, cost in costs.items()
    }


def plot(costs: list[dict], picture: Path) -> None:
    """Seconds and memory by rows, beside what is linear."""
    import pictures

    plt = pictures.start()
    figure, (time_axes, memory) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for colour, (stage, (label, _)) in zip(pictures.COLOURS[1:], STAGES.items(), strict=False):
        found = [entry for entry in costs if stage in entry]
        rows = [entry["rows"] for entry in found]
        style = {"color": colour, "marker": "o", "ms": 4}
        time_axes.plot(rows, [entry[stage]["seconds"] for entry in found], label=label, **style)
        # One process trains from the first step to the last.
        if stage != "first step":
            memory.plot(rows, [entry[stage]["peak_rss_gib"] for entry in found], **style)
    first, last = costs[0], costs[-1]
    linear = [first["prepare"]["seconds"], first["prepare"]["seconds"] * last["rows"] / first["rows"]]
    time_axes.plot([first["rows"], last["rows"]], linear, color="#999999", ls=":", label="linear")
    time_axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds", title="Time")
    memory.set(xscale="log", ylim=(0, None), xlabel="rows", ylabel="GiB", title="Memory of the process, at most")
    for axes in (time_axes, memory):
        axes.xaxis.set_major_formatter("{x:,.0f}")
    time_axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    pictures.save(figure, picture)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder, file or archive with AdGen's train.json and dev.json")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sizes (default: 1,000 to AdGen's 114,599)")
    parser.add_argument("--base", type=Path, default=ROOT / "saves/Custom/full/pretrain", help="the tiny stand-in")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for scale.json and scale.png")
    options = parser.parse_args()
    from bench import library_versions, tidy
    from prepare_data import read_rows, read_sources

    if not (options.base / "config.json").is_file():
        fail(f"{options.base} holds no model; `make base MODEL=tiny` builds it")
    files = read_sources(options.raw)
    sources = {
        split: [(row.content, row.summary) for row in read_rows(name, data) if not row.problem]
        for split, (name, data) in files.items()
    }
    if not all(sources.get(split) for split in ("train", "dev")):
        fail(f"{options.raw} holds no train and dev rows of AdGen")
    del files
    path = options.out / "scale.json"
    costs = {entry["rows"]: entry for entry in json.loads(path.read_text())["costs"]} if path.is_file() else {}
    results = {"cores": len(os.sched_getaffinity(0)), "versions": library_versions()}
    for count in options.rows:
        print(f"{count:,} rows", flush=True)
        costs[count] = tidy({"rows": count, **measure_rows(count, sources, options.base)})
        print(f"  {costs[count]}", flush=True)
        results["costs"] = [costs[count] for count in sorted(costs)]
        write_json(path, results)
        plot(results["costs"], options.out / "scale.png")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
