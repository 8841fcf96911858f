"""bench measures what it says: rows, tokens and operations are what other means count. Every program starts fast."""

import argparse
import json
import os
import re
import subprocess
import sys

import bench
import build_stand_in
import profile_steps
import pytest
import tables
import yaml
from adgen import ROOT, read_json_lines
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

RUNS = [
    "plain",
    '"bad:sft_lora lora_rankk=8"',
    "export",
    "predict",
    '"counted:sft_lora include_num_input_tokens_seen=true"',
]
ROWS, STEPS = 61, 9
HEAVY = {"torch", "transformers", "llamafactory", "matplotlib", "jieba", "datasets", "peft", "gradio", "sacrebleu"}
SYSTEM = yaml.safe_load((ROOT / "configs/tiny/chat.yaml").read_text(encoding="utf-8"))["default_system"]


@pytest.fixture(scope="module")
def benched(make, demo):
    """The folder in which `make bench` has run, what it printed and what it wrote."""
    words = f"--steps {STEPS} --warmup 2 --out out max_samples={ROWS} {' '.join(RUNS)}"
    result = make(demo[0], "bench", "MODEL=tiny", f"ARGS={words}", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return demo[0], result.stdout, json.loads((demo[0] / "out/cpu.json").read_text())


@pytest.fixture(scope="module")
def runs(benched):
    return {run["name"]: run for run in benched[2]["runs"]}


@pytest.fixture(scope="module")
def lengths(benched):
    """Tokens of each training row, counted with the chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(benched[0] / "saves/Custom/full/pretrain")
    rows = read_json_lines(benched[0] / "data/sample/train.jsonl")[:ROWS]
    return [
        len(
            tokenizer.apply_chat_template(
                [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": row["content"]},
                    {"role": "assistant", "content": row["summary"]},
                ]
            )
        )
        for row in rows
    ]


def settings_of(run):
    return yaml.safe_load((ROOT / run["recipe"]).read_text(encoding="utf-8")) | run["overrides"]


def test_every_run_has_its_recipe_command_and_figures(benched, runs):
    _, output, results = benched
    assert list(runs) == ["plain", "bad", "export", "predict", "counted"]
    assert (
        results["gpu"] == "CPU" and results["matmul"]["tflops"] > 0 and results["versions"]["llamafactory"] == "0.9.5"
    )
    for run in runs.values():
        command = run["command"].removeprefix("TORCH_CUDNN_SDPA_DEPRIORITIZED=1 " * (run["name"] == "predict"))
        assert command.startswith(f"llamafactory-cli {'export' if run['name'] == 'export' else 'train'} configs/")
        assert run["repeats"] == 1 and run["seconds"] > 0 and run["peak_rss_gib"] > 0.2
        assert re.search(rf"^{run['name']} ", output, re.MULTILINE)
    for name in ("plain", "counted"):
        assert 0 < runs[name]["time_to_first_step_s"] < runs[name]["seconds"] and runs[name]["spread"] > 0
    assert "rows_per_s" not in runs["export"] and "matmul_share" not in runs["predict"]
    assert runs["plain"]["overrides"]["neat_packing"] == "false"
    assert "computed" not in results


def test_ads_are_measured_with_the_variables_that_make_sets(make, clone):
    database = make(clone, "-pnq", "chat").stdout
    for verb in ("eval", "chat", "webchat", "api", "generate", "desk"):
        for name, value in bench.WRITING.items():
            assert f"\n{verb}: {name} = {value}\n" in database.replace(" := ", " = ")
    assert "train: TORCH_CUDNN" not in database


def test_where_the_time_goes(benched):
    words = ["--model", "configs/tiny", "--base", "saves/Custom/full/pretrain", "--data", "sample", "--out", "out"]
    runs = ["plain", "packed:sft_lora per_device_train_batch_size=4"]
    command = [sys.executable, "scripts/profile_steps.py", *words, *runs]
    variables = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=benched[0], env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    results = json.loads((benched[0] / "out/profile-cpu.json").read_text())
    assert [run["name"] for run in results["profiled"]] == ["plain", "packed"]
    for run in results["profiled"]:
        # The profiler slows a CPU's operators, so their shares may add up to more than one.
        assert run["step_s"] > 0 and 0.99 < sum(run["shares"].values()) < 3
        assert run["shares"]["matrix products"] > 0.1 and len(run["longest"]) == 10
        assert re.search(rf"^{run['name']} ", result.stdout, re.MULTILINE)
    assert results["profiled"][0]["overrides"] == bench.PLAIN


def test_kernels_are_told_by_their_names():
    told = {
        "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT": "matrix products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16": "attention",
        "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>": "4-bit weights",
        "_swiglu_backward_kernel": "fused by Liger",
        "Memcpy DtoD (Device -> Device)": "copies and casts",
        "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>": "other",
    }
    assert {name: profile_steps.kind_of(name) for name in told} == told
    shares = profile_steps.share_out({"nvjet": 1.0, "Memcpy": 0.5}, 4.0)
    assert (shares["matrix products"], shares["copies and casts"], shares["no kernel"]) == (0.25, 0.125, 0.625)


def test_random_weights_of_the_8b_shape_write_what_is_cut_like_chinese():
    tokenizer = build_stand_in.build_tokenizer(build_stand_in.SIZES["8b"], ROOT / "data/sample/train.jsonl")
    assert len(tokenizer) == 128256 and tokenizer.convert_tokens_to_ids("<|eot_id|>") == 128009
    texts = tokenizer.batch_decode([[token] for token in range(1000, 128000, 1000)])
    assert all(re.fullmatch(r"[\u4e00-\u9fff]{2}", text) for text in texts)
    # Text never becomes fillers, so its length is that of the learnt tokens.
    assert max(tokenizer("".join(texts), add_special_tokens=False)["input_ids"]) < 780


def test_a_base_that_is_quantised_already_trains(tmp_path):
    build = [sys.executable, "scripts/build_stand_in.py", "--size", "tiny", "--layers", "1", tmp_path / "one"]
    subprocess.run(build, cwd=ROOT, check=True)
    one = LlamaForCausalLM.from_pretrained(tmp_path / "one")
    build_stand_in.quantise(one, 3, tmp_path / "again").save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "base")
    words = [f"model_name_or_path={tmp_path / 'base'}", f"output_dir={tmp_path / 'out'}", "dataset=sample_train"]
    words += ["max_steps=1", *(f"{key}={value}" for key, value in bench.SHORT.items())]
    command = [*bench.PROGRAM, "train", "configs/tiny/sft_qlora.yaml", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for file, end in (("base/model", "weight.quant_state.bitsandbytes__nf4"), ("out/adapter_model", "lora_A.weight")):
        assert sum(name.endswith(f"q_proj.{end}") for name in load_file(tmp_path / f"{file}.safetensors")) == 3


def test_tokens_are_those_of_the_rows_packed_or_not(runs, lengths):
    for name in ("plain", "counted"):
        assert runs[name]["tokens_per_row"] == pytest.approx(sum(lengths) / ROWS, rel=1e-3)
        assert runs[name]["tokens_per_s"] / runs[name]["rows_per_s"] == pytest.approx(sum(lengths) / ROWS, rel=2e-3)


def test_packed_samples_hold_all_rows_and_steps_take_as_many_as_llamafactory_counts(benched, lengths):
    folder = benched[0] / "saves/bench/run"
    samples = bench.read_samples(folder / "tokenized/train")
    assert sorted(length for rows in samples for length in rows) == sorted(lengths)
    assert all(sum(rows) <= 511 for rows in samples) and len(samples) < ROWS / 3
    # Here LLaMA-Factory counted the tokens that went through the model, padding included: 512 for each sample.
    seen = [row["total_tokens"] // 512 for row in read_json_lines(folder / "trainer_log.jsonl") if "loss" in row]
    logged = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    steps = bench.samples_by_step(len(samples), 2, STEPS)
    # A line for the first step, for the warm-up's two, and for each two more.
    assert [steps[0], steps[1], *(sum(steps[at : at + 2]) for at in range(2, STEPS - 1, 2))] == logged
    assert set(steps) == {2, 1} if len(samples) % 2 else {2}


def test_rows_times_time_are_rows(benched, runs, lengths):
    folder = benched[0] / "saves/bench/run"
    options = argparse.Namespace(warmup=2, rate=2.0, base=benched[0] / "saves/Custom/full/pretrain")
    # A slow start, then a step each two seconds; every second one has a line.
    lines = [30.0, 40.0, *(40.0 + 2 * step for step in range(2, STEPS - 1, 2)), 99.0]
    found = bench.measure_training(lines, settings_of(runs["counted"]), folder, options)
    samples = len(bench.read_samples(folder / "tokenized/train"))
    timed = STEPS - 3
    taken = sum(bench.samples_by_step(samples, 2, STEPS)[2 : 2 + timed])
    assert found["rows_per_s"] * 2 * timed == pytest.approx(taken * ROWS / samples)
    assert found["time_to_first_step_s"] == 30
    done = found["operations_per_row"] * found["rows_per_s"]
    assert found["matmul_share"] == pytest.approx(done / 2e12)
    assert bench.samples_by_step(61, 8, 10) == [8, 8, 8, 8, 8, 8, 8, 5, 8, 8]


def test_speed_agrees_with_llamafactorys_own_clock(benched, runs):
    folder, run = benched[0] / "saves/bench/run", runs["counted"]
    own = json.loads((folder / "train_results.json").read_text())
    samples = len(bench.read_samples(folder / "tokenized/train"))
    taken = bench.samples_by_step(samples, 2, STEPS)
    steady = sum(taken[2:-1]) * ROWS / samples / run["rows_per_s"]
    assert 0 < steady < own["train_runtime"] < run["seconds"]
    assert run["time_to_first_step_s"] + steady < run["seconds"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("target", ["q_proj,v_proj", "all"])
def test_operations_are_those_that_torch_counts(benched, checkpointing, target):
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    base = benched[0] / "saves/Custom/full/pretrain"
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    modules = "all-linear" if target == "all" else target.split(",")
    model = get_peft_model(model, LoraConfig(r=8, target_modules=modules, task_type="CAUSAL_LM"))
    model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    length = 40
    tokens = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    config = json.loads((base / "config.json").read_text())
    settings = {"lora_rank": 8, "lora_target": target, "disable_gradient_checkpointing": not checkpointing}
    # torch multiplies whole squares of attention scores, half of them masked, and positions with rotary frequencies.
    heads = config["num_attention_heads"] * config["head_dim"]
    masked = 2 * (3 + checkpointing) * config["num_hidden_layers"] * heads * length * (length - 1)
    rotary = config["head_dim"] * length
    assert bench.count_operations(config, settings, [length]) + masked + rotary == counter.get_total_flops()
    assert bench.count_operations(config, settings | {"finetuning_type": "full"}, [length]) is None


def test_8b_operations_are_those_of_the_known_weights():
    config = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8}
    settings = {"lora_target": "q_proj,v_proj", "lora_rank": 8}
    # 6.98 billion weights in the layers, 0.525 in the output layer; adapter and attention are little.
    expected = 6 * 6.979e9 + 4 * 0.5253e9
    assert bench.count_operations(config, settings, [200]) / 200 == pytest.approx(expected, rel=0.01)
    assert bench.count_operations(config, settings, [200]) > 200 * expected


def test_predicted_tokens_are_counted_to_the_end_of_each_ad(benched, runs, tmp_path):
    from transformers import AutoTokenizer

    base = benched[0] / "saves/Custom/full/pretrain"
    tokenizer = AutoTokenizer.from_pretrained(base)
    ads = ["这条裙子好看。", "这件上衣好看又好搭。"]
    texts = [f"{ads[0]}<|eot_id|><|end_of_text|>", ads[1] * 20]
    lines = [json.dumps({"predict": text, "label": "", "prompt": ""}) for text in texts]
    (tmp_path / "generated_predictions.jsonl").write_text("\n".join(lines))
    (tmp_path / "predict_results.json").write_text('{"predict_runtime": 4.0}')
    found = bench.measure_prediction({"max_new_tokens": 12}, tmp_path, base)
    first = len(tokenizer.encode(ads[0], add_special_tokens=False)) + 1
    assert first < 12 and found["tokens_per_s"] == (first + 12) / 4 and found["rows_per_s"] == 0.5
    assert 5 < runs["predict"]["tokens_per_row"] <= 128


def test_failed_run_is_a_row_with_its_error(benched, runs):
    assert "lora_rankk" in runs["bad"]["error"] and "\n" not in runs["bad"]["error"]
    assert "rows_per_s" not in runs["bad"] and str(benched[0]) not in json.dumps(runs["bad"])
    assert re.search(r"^bad +– +– ", benched[1], re.MULTILINE)


def test_repeats_append_or_replace_and_others_stay(benched, make):
    folder, _, before = benched
    for words, repeats in (("--repeat 2", 2), ("--append", 3), ("", 1)):
        result = make(folder, "bench", "MODEL=tiny", f'ARGS=--out out {words} "bad:sft_lora lora_rankk=8"')
        assert result.returncode == 0
        after = {run["name"]: run for run in json.loads((folder / "out/cpu.json").read_text())["runs"]}
        assert after["bad"]["repeats"] == len(after["bad"]["measured"]) == repeats
    assert list(after) == [run["name"] for run in before["runs"]] and after["plain"] == before["runs"][0]


def test_summary_of_repeats():
    measured = [{"rows_per_s": rate, "seconds": 9.0, "peak_gib": rate, "spread": 0.5} for rate in (10.0, 14.0, 11.0)]
    found = bench.summarise([*measured, {"seconds": 1.0, "peak_gib": 99.0, "error": "OutOfMemoryError: no"}])
    assert (found["rows_per_s"], found["peak_gib"], found["repeats"]) == (11, 14, 4)
    assert found["spread"] == pytest.approx(4 / 11) and found["error"] == "OutOfMemoryError: no"
    assert bench.summarise(measured[:1])["spread"] == 0.5


def test_time_limit_keeps_the_file(benched, make):
    folder = benched[0]
    before = (folder / "out/cpu.json").read_bytes()
    result = make(folder, "bench", "MODEL=tiny", "ARGS=--out out --limit 1 plain predict")
    assert result.returncode == 0 and "not measured: plain, predict" in result.stdout
    assert (folder / "out/cpu.json").read_bytes() == before


def test_card_is_named_and_its_memory_is_polled(benched, make, tmp_path):
    # A card that has given out 8 GiB: what lies behind nvidia-smi can be seen without one.
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *memory.used*) echo 8192;; *) echo NVIDIA H300 NVL, 1.2, 24576;; esac\n'
    )
    program.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    result = make(benched[0], "bench", "MODEL=tiny", "ARGS=--out out --steps 3 --warmup 1 sft_lora", PATH=path)
    assert result.returncode == 0, result.stderr[-2000:]
    results = json.loads((benched[0] / "out/nvidia-h300-nvl.json").read_text())
    assert (results["gpu"], results["driver"], results["memory_gib"]) == ("NVIDIA H300 NVL", "1.2", 24)
    [run] = results["runs"]
    assert run["peak_gib"] == 8 and run["overrides"] == {}
    computed = pytest.approx(run["matmul_share"] * 71e12 / run["operations_per_row"], rel=1e-2)
    assert computed in run["computed_rows_per_s"]
    assert results["computed"]["tflops"] == 71 and "computed" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [("sft_magic", "sft_qlora"), ('"x:sft_magic a=1"', "sft_magic"), ("--steps 3", "--warmup"), ("--data no", "adgen")],
)
def test_wrong_words_are_said_in_a_line(make, clone, words, said):
    result = make(clone, "bench", "STAND_IN=", "MODEL=tiny", f"ARGS={words}")
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert said in [line for line in result.stderr.split("\n") if "error: " in line][-1]
    assert not (clone / "saves/bench").exists()


def test_without_a_gpu(make, clone):
    result = make(clone, "bench", "ARGS=--out out", CUDA_VISIBLE_DEVICES="")
    assert result.returncode != 0 and "needs a CUDA GPU" in result.stderr and not (clone / "saves/bench").exists()


def test_without_a_stand_in(make, clone):
    result = make(clone, "bench", "STAND_IN=", "MODEL=tiny", "ARGS=plain --out out")
    assert result.returncode != 0 and "make base MODEL=tiny" in result.stderr and not (clone / "out").exists()


def test_rows_on_another_card_are_computed_from_operations():
    slow = {"name": "slow", "rows_per_s": 3.0, "matmul_share": 0.1, "operations_per_row": 1e12}
    fast = {"name": "fast", "rows_per_s": 90.0, "matmul_share": 0.5, "operations_per_row": 2e12}
    predict = {"name": "predict", "rows_per_s": 1.0}
    bench.compute_elsewhere([slow, fast, predict])
    # slow: 7.1 rows/s at its own share, 35.5 at the best one, but even the faster card managed only 3.
    assert slow["computed_rows_per_s"] == [3.0, 7.1] and fast["computed_rows_per_s"] == [17.75, 17.75]
    assert "computed_rows_per_s" not in predict


def test_readme_table_is_that_of_the_files(benched, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "bench").mkdir()
    text = "<!-- results:begin bench -->\n<!-- results:end -->"
    with pytest.raises(SystemExit, match="make bench"):
        tables.rewrite(text, "en")
    results = benched[2] | {"gpu": "NVIDIA X", "driver": "1.2"}
    run = results["runs"][0] | {"rows_per_s": 123.4, "matmul_share": 0.456, "peak_gib": 8.25}
    run["computed_rows_per_s"] = [1.5, 2.5]
    results["runs"] = [run, *results["runs"][1:]]
    results["computed"] = bench.OTHER_CARD
    (tmp_path / "bench/nvidia-x.json").write_text(json.dumps(results))
    (tmp_path / "bench/scale.json").write_text('{"costs": []}')
    for language, word in (("en", "computed"), ("zh", "推算值")):
        new = tables.rewrite(text, language)
        line = next(line for line in new.split("\n") if line.startswith("| plain "))
        assert "`configs/tiny/sft_qlora.yaml`" in line and "`cutoff_len=512`" in line
        assert "| 123 |" in line and "| 46% |" in line and "| 8.2 |" in line and line.endswith("| 1.5–2.5 |")
        assert "NVIDIA X" in new and word in new and "lora" in new and tables.rewrite(new, language) == new
        assert any("`bad`" in line and "rankk" in line for line in new.split("\n"))


def test_costs_by_rows(demo, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split in ("train", "dev"):
        rows = read_json_lines(demo[0] / f"data/sample/{split}.jsonl")[:50]
        (raw / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "out").mkdir()
    former = {"rows": 60} | {
        stage: {"seconds": 1.0, "peak_rss_gib": 1.0} for stage in ("prepare", "train", "score dev")
    }
    (tmp_path / "out/scale.json").write_text(json.dumps({"costs": [former]}))
    command = [sys.executable, "scripts/cost.py", raw, "--rows", "120", "--out", tmp_path / "out"]
    result = subprocess.run(command, cwd=demo[0], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    kept, costs = json.loads((tmp_path / "out/scale.json").read_text())["costs"]
    assert kept == former and costs.pop("rows") == 120 and len(costs) == 5
    assert all(cost["seconds"] > 0 and cost["peak_rss_gib"] > 0 for cost in costs.values())
    assert (tmp_path / "out/scale.png").read_bytes().startswith(b"\x89PNG")
    assert not list((demo[0] / "saves/bench").glob("tmp*"))


def test_repeated_rows_are_no_duplicates():
    import cost

    rows = cost.repeat([("类型#裙*颜色#红", "红裙。"), ("类型#裤", "裤。")], 5)
    assert len(set(rows)) == 5 and rows[2] == ("类型#裙*颜色#红1", "红裙。1")


PROGRAMS = [path for path in sorted((ROOT / "scripts").glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("word", ["--help", "--no-such-option"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_programs_answer_without_heavy_imports(program, word):
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, 'scripts')\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "print('imported', *{name.split('.')[0] for name in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code, program, word], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().split("\n")
    assert ("exit 0" in lines[-2] and "usage:" in result.stdout) if word == "--help" else lines[-2] == "exit 2"
    assert not HEAVY & set(lines[-1].split())


def test_make_help_starts_no_program(make, clone):
    result = make(clone, "help", "BIN=/none")
    assert result.returncode == 0 and "  bench " in result.stdout
