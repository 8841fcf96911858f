"""Where the time of training steps goes, by kind of work: what keeps a recipe from the card's whole matrix rate.

  python scripts/profile_steps.py plain sft_fast "long:sft_qlora cutoff_len=4096"

Each RUN, named as for scripts/bench.py, trains some steps on the base and the rows of `make bench`.
Three steps are timed, and three more run under torch's profiler, which makes launching kernels slower, but no kernel.
Writes results/bench/profile-<gpu>.json and prints a table: the kernels' time by kind as shares of a step's time without
the profiler, and what is left, in which the card waits. On a CPU, operators instead of kernels.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import tables
from adgen import ROOT, fail, write_json
from bench import SHORT, Run, library_versions, plan, stand_in, tidy
from cost import SCRATCH, ask_card, card_file, check, shown
from doctor import read_recipe

WARM, STEPS = 5, 3
# Kind of work → the names of its kernels and, on a CPU, its operators; the first that fits counts.
KINDS = {
    "attention": r"fmha|flash|attention|softmax",
    "4-bit weights": r"dequantize|quantize_?4bit|kgetcol|bitsandbytes",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|aten::(mm|addmm|bmm|matmul|linear)$",
    "fused by Liger": r"rms_norm|swiglu|rope|cross_entropy|liger",
    "copies and casts": r"memcpy|memset|copy|aten::(_to_copy|to|cat|fill_|zero_)|catarray",
    "other": r"",
}


def kind_of(name: str) -> str:
    """The kind of work that a kernel or operator of this name does."""
    return next(kind for kind, names in KINDS.items() if re.search(names, name.lower()))


def share_out(times: dict[str, float], seconds: float) -> dict[str, float]:
    """Kind → share of `seconds`, from the seconds of each kernel; what is left of `seconds` is "no kernel"."""
    shares = dict.fromkeys(KINDS, 0.0)
    for name, spent in times.items():
        shares[kind_of(name)] += spent / seconds
    return shares | {"no kernel": max(0.0, 1 - sum(shares.values()))}


def profile(settings: dict) -> dict:
    """Trains as `settings` say and gives the shares of the last steps, their seconds, and the ten longest kernels."""
    import torch
    from llamafactory.train.tuner import run_exp
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from transformers import TrainerCallback

    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
    profiler, clock = torch.profiler.profile(activities=activities), []

    class Window(TrainerCallback):
        """Reads the clock after the warm-up and after the timed steps, and profiles those that follow."""

        def on_step_end(self, args, state, control, **others):
            step = state.global_step - WARM
            if step in (0, STEPS, 2 * STEPS) and gpu:
                torch.cuda.synchronize()
            if step in (0, STEPS):
                clock.append(time.perf_counter())
            if step in (STEPS, 2 * STEPS):
                (profiler.start if step == STEPS else profiler.stop)()

    run_exp(args=settings, callbacks=[Window()])
    side, field = (DeviceType.CUDA, "device") if gpu else (DeviceType.CPU, "cpu")
    events = [event for event in profiler.key_averages() if event.device_type == side]
    times = {event.key: getattr(event, f"self_{field}_time_total") / 1e6 for event in events}
    seconds = clock[1] - clock[0]
    longest = sorted(times, key=times.get, reverse=True)[:10]
    return {
        "step_s": seconds / STEPS,
        "shares": share_out(times, seconds),
        "longest": {name[:100]: times[name] / seconds for name in longest},
    }


def settings_of(run: Run, options: argparse.Namespace) -> dict:
    """The keys with which LLaMA-Factory trains the run's recipe for so many steps, and leaves nothing."""
    own = run.overrides | SHORT | {"model_name_or_path": shown(options.base), "dataset": f"{options.data}_train"}
    own |= {"output_dir": shown(SCRATCH / "profile"), "overwrite_output_dir": "true"}
    own["max_steps"] = str(WARM + 2 * STEPS)
    return read_recipe(run.recipe, own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="RUN", help="what to profile, as `bench.py` names it")
    parser.add_argument("--model", type=Path, default=ROOT / "configs/llama3_8b", help="folder of recipes")
    parser.add_argument("--base", type=Path, help="folder of the base model (default: what `make bench` made)")
    parser.add_argument("--data", default="adgen", help="rows: adgen or sample")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench", help="folder for profile-<gpu>.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    options.base = options.base or SCRATCH / stand_in(options.model)[0]
    if not (options.base / "config.json").is_file():
        fail(f"{shown(options.base)} holds no model; `make bench MODEL={options.model.name}` makes one")
    runs = plan(options.model, options.words)
    if options.one:
        print("\n" + json.dumps(tidy(profile(settings_of(runs[0], options)))))
        return
    card = (ask_card("name") or ["CPU"])[0]
    path, log = card_file(options.out, card, "profile-"), SCRATCH / "profile.log"
    results = {"gpu": card, "versions": library_versions(), "steps": STEPS, "profiled": []}
    for run, word in zip(runs, options.words, strict=True):
        print(f"{word} ({len(runs) - len(results['profiled'])} to go)", flush=True)
        # A process of its own for each: a card's memory is free again, and settings leave no trace.
        common = ["--one", word, "--model", options.model, "--base", options.base, "--data", options.data]
        check([sys.executable, __file__, *map(str, common)], log)
        # Libraries may say something as the process ends.
        [found] = [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"step_s"')]
        results["profiled"].append({"name": run.name, "recipe": shown(run.recipe), "overrides": run.overrides} | found)
        write_json(path, results)
    print(f"\n{shown(path)}\n{tables.align(tables.profile_lines(results))}")


if __name__ == "__main__":
    main()
