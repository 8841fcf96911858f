"""What is installed is what was locked; nothing loads code from weights; secrets and files stay the user's own."""

import ast
import hashlib
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from common import BIN, SECRETS, one_error
from lib.files import ROOT
from test_prepare_data import TRAIN, lines

# --- what is installed ---


def read_lock(name: str) -> dict[tuple[str, str | None], str]:
    """(package, marker) → version in a lock file; every package in it has a hash, and none comes from elsewhere."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not re.search(r"://|^-|^ *--(?!hash)", text, re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    pins = (re.match(r"([A-Za-z0-9._\[\]-]+)==([^\s=]+)( ; .*?)? \\\n", entry).groups() for entry in entries)
    return {(name, marker): version for name, version, marker in pins}


def test_every_locked_package_has_its_version_and_hashes():
    for path in ROOT.glob("requirements*.lock"):
        asked = re.findall(r"^([A-Za-z0-9-]+)==(\S+)", path.with_suffix(".txt").read_text(), re.MULTILINE)
        assert asked and set(asked) <= {(package, version) for (package, _), version in read_lock(path.name).items()}


def test_the_lock_for_many_cards_agrees_with_the_other():
    lock, optional = read_lock("requirements.lock"), read_lock("requirements-distributed.lock")
    assert len(lock) > 100
    # What stands in both has one version; the marker of a package can be wider in the larger lock.
    for name in {name for name, _ in lock} & {name for name, _ in optional}:
        assert {optional[key] for key in optional if key[0] == name} <= {lock[key] for key in lock if key[0] == name}
    assert not {"deepspeed", "ray"} & {name for name, _ in lock} and ("ray", None) in optional


def write_wheel(folder: Path, code: str) -> bytes:
    """Writes the wheel of a package `harmless` with one module, and gives its bytes."""
    path = folder / "harmless-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("harmless.py", code)
        wheel.writestr("harmless-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n")
        wheel.writestr("harmless-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("harmless-1.0.dist-info/RECORD", "")
    return path.read_bytes()


@pytest.mark.long
def test_a_package_that_is_not_the_locked_one_is_refused(make, copy_project, tmp_path):
    """By `make setup`. The same commands of uv and pip alone take the locked one, and none without a hash."""
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    offline |= {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(tmp_path), "UV_NO_CACHE": "1"}
    pip = [sys.executable, "-m", "pip", "install"]
    uv = [BIN / "uv", "pip", "install", "--python", sys.executable]
    locked = f"harmless==1.0 --hash=sha256:{hashlib.sha256(write_wheel(tmp_path, '')).hexdigest()}\n"
    (tmp_path / "requirements.lock").write_text(locked)

    def install(*program) -> tuple[int, str]:
        shutil.rmtree(tmp_path / "installed", ignore_errors=True)
        words = ["--require-hashes", "-r", tmp_path / "requirements.lock", "--target", tmp_path / "installed"]
        command = [*program, "--quiet", "--no-deps", *words]
        result = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=120)
        assert (tmp_path / "installed/harmless.py").exists() != bool(result.returncode)
        return result.returncode, result.stderr

    assert install(*pip)[0] == install(*uv)[0] == 0
    write_wheel(tmp_path, "print('tampered')")
    folder = copy_project()
    (folder / "requirements.lock").write_text(locked)
    result = make(folder, "setup", "BIN=.venv/bin", **offline)
    assert result.returncode and "DO NOT MATCH THE HASHES" in result.stderr
    assert not (folder / ".venv/.ready").exists() and not list(folder.glob(".venv/lib/*/site-packages/harmless.py"))
    code, errors = install(*uv)
    assert code and "Hash mismatch" in errors
    (tmp_path / "requirements.lock").write_text("harmless==1.0\n")
    for program, said in ((pip, "Hashes are required"), (uv, "must have a hash")):
        code, errors = install(*program)
        assert code and said in " ".join(errors.split()), errors


# --- what is loaded ---


TEXTS = {".py", ".yaml", ".json", ".sh", ".md", ".toml"}


def test_nothing_here_sets_trust_remote_code():
    folders = ("configs", "scripts", "llamaboard_config", "dataset_info", "examples", ".ci")
    paths = [ROOT / "Makefile", *(path for name in folders for path in (ROOT / name).rglob("*"))]
    texts = {
        path: path.read_text(encoding="utf-8") for path in paths if path.suffix in TEXTS or path.name == "Makefile"
    }
    assert len(texts) > 30
    sets = re.compile(r"trust_remote_code\W*[:=]\W*(true|1|yes|on)\b", re.IGNORECASE)
    assert sets.search('{"trust_remote_code": true}') and sets.search("trust_remote_code=True")
    assert [path for path, text in texts.items() if sets.search(text)] == []


def test_no_program_loads_pickles_or_runs_text():
    modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    calls = {"eval", "exec", "torch.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}
    for path in [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not modules & {name.name.split(".")[0] for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in modules, path
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in calls, path
                assert not any(word.arg == "shell" for word in node.keywords), path


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code ran")


def write_malicious(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(trace)))


def test_base_model_or_adapter_that_is_a_pickle_is_refused(make, demo, tmp_path):
    """Weights that are a pickle are not loaded, and the line says what is missing."""
    trace = tmp_path / "trace"
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    ignore = shutil.ignore_patterns("*.safetensors", "checkpoint-*", "*.bin")
    shutil.copytree(demo[0] / "saves/Custom/full/pretrain", base, ignore=ignore)
    shutil.copytree(demo[0] / "saves/Custom/lora/sample_qlora", adapter, ignore=ignore)
    write_malicious(base / "pytorch_model.bin", trace)
    write_malicious(adapter / "adapter_model.bin", trace)
    for override in (f"model_name_or_path={base}", f"adapter_name_or_path={adapter}"):
        line = one_error(make(demo[0], "export", "MODEL=tiny", "DATA=sample", f"ARGS={override}"))
        assert "safetensors" in line and override.split("=")[1] in line
    assert not trace.exists()
    # The trap would have sprung.
    pickle.loads((base / "pytorch_model.bin").read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_trainer_unpickles_no_code(tmp_path, name, demo):
    """The files of a checkpoint that are pickles hold tensors and numbers, or are refused."""
    import torch
    from transformers import Trainer, TrainingArguments

    checkpoint, trace = tmp_path / "checkpoint-1", tmp_path / "trace"
    checkpoint.mkdir()
    trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(tmp_path, use_cpu=True, report_to="none"))
    trainer.create_optimizer_and_scheduler(1)
    torch.save(trainer.optimizer.state_dict(), checkpoint / "optimizer.pt")
    torch.save(trainer.lr_scheduler.state_dict(), checkpoint / "scheduler.pt")
    rng_state = next((demo[0] / "saves/Custom/lora/sample_qlora").glob("checkpoint-*/rng_state.pth"))
    shutil.copy(rng_state, checkpoint)

    def resume():
        trainer._load_optimizer_and_scheduler(str(checkpoint))
        trainer._load_rng_state(str(checkpoint))

    resume()
    for write in (write_malicious, lambda path, trace: torch.save(Malicious(trace), path)):
        write(checkpoint / name, trace)
        with pytest.raises(pickle.UnpicklingError, match="weights_only"):
            resume()
    assert not trace.exists()


def test_resuming_from_a_malicious_checkpoint_runs_none_of_its_code(demo, tmp_path):
    trace, output = tmp_path / "trace", tmp_path / "output"
    checkpoint = sorted((demo[0] / "saves/Custom/lora/sample_qlora").glob("checkpoint-*"))[-1]
    shutil.copytree(checkpoint, output / "checkpoint-1")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        write_malicious(output / "checkpoint-1" / name, trace)
    words = ("dataset=sample_train", "eval_dataset=sample_val", f"output_dir={output}", "max_samples=8")
    command = [BIN / "llamafactory-cli", "train", "configs/tiny/sft_qlora.yaml", *words]
    command.append(f"resume_from_checkpoint={output / 'checkpoint-1'}")
    result = subprocess.run(command, cwd=demo[0], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode != 0 and "weights_only" in result.stderr, result.stderr[-2000:]
    assert not trace.exists()


# --- secrets and files ---


def assert_no_secret(*places) -> None:
    """No file of the folders, and none of the texts, holds a secret."""
    found = {str(place): place.encode() for place in places if isinstance(place, str)}
    for folder in (place for place in places if isinstance(place, Path)):
        found |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(found) > 3
    assert [name for name, data in found.items() for secret in SECRETS.values() if secret.encode() in data] == []


def test_no_secret_in_what_is_written(demo, tmp_path):
    """The demo was made with secrets in its environment: two trainings, predictions, scores, an export and a server."""
    (tmp_path / "train.json").write_text(lines(TRAIN), encoding="utf-8")
    command = [sys.executable, demo[0] / "scripts/prepare_data.py", tmp_path, "--out", tmp_path / "out"]
    result = subprocess.run(command, env=os.environ | SECRETS, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for name in ("report/eval_results.json", "lora/sample_qlora/README.md", "lora/sample_qlora/training_args.bin"):
        assert (demo[0] / "saves/Custom" / name).exists()
    assert (demo[0] / "exports/tiny/Modelfile").exists() and (demo[0] / "saves/Custom/demo.log").stat().st_size > 10_000
    written = (demo[0] / "saves", demo[0] / "exports", tmp_path / "out")
    assert_no_secret(*written, *demo[1:], result.stdout, result.stderr)


def test_files_have_the_rights_that_the_umask_gives(demo, tmp_path):
    """What a run writes is nobody else's to change; a stricter umask makes it stricter, none makes it looser."""
    mask = os.umask(0o022)
    os.umask(mask)
    for folder in ("saves", "exports", "data"):
        for path in (demo[0] / folder).rglob("*"):
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert path.is_symlink() or not mode & (mask | 0o002), (path, oct(mode))
    written = [demo[0] / "saves/Custom/report" / name for name in ("eval_results.json", "eval.png", "examples.md")]
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path
    (tmp_path / "train.json").write_text(lines(TRAIN), encoding="utf-8")
    command = [sys.executable, ROOT / "scripts/prepare_data.py", tmp_path / "train.json", "--out", tmp_path / "out"]
    subprocess.run(command, check=True, umask=0o027, stdout=subprocess.DEVNULL)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}
