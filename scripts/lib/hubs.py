"""The hubs: which of them is used, and whether a base model can be fetched with this network and this login."""

import os

from lib.files import fail


def use_modelscope() -> bool:
    """Whether models and rows come from ModelScope, as LLaMA-Factory decides it."""
    return os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("true", "y", "1")


def check_hub(model: str) -> None:
    """Ends the program if the hub's model is neither cached nor within reach."""
    (check_modelscope if use_modelscope() else check_hugging_face)(model)


def check_hugging_face(model: str) -> None:
    """The same for the Hugging Face hub."""
    from huggingface_hub import auth_check, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    local = "or name a local copy: ARGS=model_name_or_path=<folder>"
    if constants.HF_HUB_OFFLINE:
        fail(f"{model} is not in the cache and HF_HUB_OFFLINE is set; unset it, {local}")
    try:
        auth_check(model)
    except (GatedRepoError, RepositoryNotFoundError):
        fail(
            f"no access to {model}: ask for it on its page at the Hugging Face hub, then `hf auth login`; "
            f"USE_MODELSCOPE_HUB=1 fetches it from ModelScope instead, {local}"
        )
    except Exception as error:
        fail(f"{model} cannot be reached at {constants.ENDPOINT} ({type(error).__name__}): check the network, {local}")


def check_modelscope(model: str) -> None:
    """The same for ModelScope."""
    from modelscope.hub.api import HubApi

    try:
        found = HubApi().repo_exists(model)
    except Exception as error:
        fail(f"{model} cannot be reached at ModelScope ({type(error).__name__}): check the network")
    if not found:
        fail(f"ModelScope has no model {model}; name another with ARGS=model_name_or_path=<id or folder>")
