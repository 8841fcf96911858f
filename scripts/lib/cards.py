"""Several cards, several machines, Ray: the overrides and the environment with which a run shares its work."""

import os
import sys
from pathlib import Path

from lib.choices import STRATEGIES, Choices
from lib.files import fail
from lib.gpu import ask_cards

# What asks nvidia-smi for a line for each card.
INDEX = "--query-gpu=index --format=csv,noheader"


def check_variables(choices: Choices) -> None:
    """Ends the program if NNODES or USE_RAY need a variable that is not set."""
    if choices.nodes > 1:
        # With a rendezvous id, torchrun gives out the ranks.
        needed = ["NODE_RANK"] * (not os.environ.get("RDZV_ID")) + ["MASTER_ADDR", "MASTER_PORT"]
        if missing := [name for name in needed if not os.environ.get(name)]:
            fail(f"NNODES={choices.nodes} needs {', '.join(missing)}, too")
    if choices.ray and not os.environ.get("MASTER_ADDR"):
        # Without an address LLaMA-Factory asks Ray's dashboard, which is not in our lock.
        fail("USE_RAY=1 needs MASTER_ADDR, the address of a node that `ray start` joined to the cluster")


def check_cards(choices: Choices) -> None:
    """Ends the program if this machine has fewer cards than GPUS and USE_RAY need."""
    if choices.ray and not ask_cards(INDEX):
        fail("USE_RAY=1 needs a GPU; LLaMA-Factory would wait for ever")
    # A machine without a GPU runs as many processes as it is told to, for recipes that need no GPU.
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = ask_cards(INDEX).splitlines() if chosen is None else chosen.split(",")
    cards = sum(not card.startswith("-") for card in shown if card)
    if choices.gpus > 1 and 0 < cards < choices.gpus:
        fail(f"GPUS={choices.gpus}, and this machine shows {cards} (nvidia-smi -L, CUDA_VISIBLE_DEVICES)")


def share_overrides(choices: Choices, settings: dict) -> list[str]:
    """What a training recipe gets on several cards: the strategy, and the accumulation divided by the cards."""
    cards = choices.gpus * choices.nodes
    if cards == 1 and not choices.strategy and not choices.ray:
        return []
    words = []
    if cards > 1 or choices.strategy:
        whole = settings.get("gradient_accumulation_steps", 1)
        each = -(-whole // cards)
        if each * cards != whole:
            note = f"{cards} cards do not divide the recipe's gradient_accumulation_steps: {whole}"
            print(f"note: {note}; a step takes {each * cards} batches instead of {whole}", file=sys.stderr)
        words = [f"gradient_accumulation_steps={each}", *STRATEGIES[choices.strategy]]
    if choices.ray:
        words += [f"ray_num_workers={cards}", f"master_addr={os.environ['MASTER_ADDR']}"]
    return words


def train_environment(choices: Choices) -> dict[str, str]:
    """The variables with which a training starts: Ray's, torchrun's, or those that show it one card."""
    if choices.ray:
        return {}
    if choices.gpus * choices.nodes > 1 or choices.strategy:
        return torchrun(choices.gpus, choices.nodes)
    return one_card()


def predict_environment(choices: Choices) -> dict[str, str]:
    """The variables with which a prediction starts: each card loads the whole model and takes its share of the rows."""
    return one_card() if choices.gpus == 1 else torchrun(choices.gpus, choices.nodes)


def one_card() -> dict[str, str]:
    """Shows a run the first card only. LLaMA-Factory would start a process for each card that it sees."""
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}


def torchrun(processes: int, nodes: int) -> dict[str, str]:
    """The variables that make LLaMA-Factory start torchrun, with so many processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        # LLaMA-Factory calls torchrun by its name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        # torchrun gives each process one thread, and for FSDP each quantises the whole base model on the CPU.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(-(-cores // processes)),
        "FORCE_TORCHRUN": "1",
        # Otherwise restarted workers are told the addresses of those that died (pytorch#135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "NNODES": str(nodes),
        "NPROC_PER_NODE": str(processes),
    }
