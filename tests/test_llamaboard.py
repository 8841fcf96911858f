"""The preset for LlamaBoard trains as the recipe does from which it is taken."""

import dataclasses

import pytest
import yaml
from lib.files import ROOT


@pytest.mark.long
def test_llamaboards_preset_trains_as_the_recipe_does(tmp_path, monkeypatch):
    # LlamaBoard writes into the folder that it runs in.
    (tmp_path / "llamaboard_config").symlink_to(ROOT / "llamaboard_config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMAFACTORY_VERBOSITY", "WARN")
    import gradio as gr
    from llamafactory.hparams import parser
    from llamafactory.webui.common import _clean_cmd
    from llamafactory.webui.components import create_top, create_train_tab
    from llamafactory.webui.control import get_model_info
    from llamafactory.webui.engine import Engine

    with gr.Blocks():
        board = Engine()
        board.manager.add_elems("top", create_top())
        board.manager.add_elems("train", create_train_tab(board))
    part = board.manager.get_elem_by_id
    form = {element: getattr(element, "value", None) for _, element in board.manager.get_elem_iter()}
    form |= board.runner.load_args("en", "llama3_8b_sft_qlora.yaml")
    # What the page fills in by itself once the model is chosen; its template must not win.
    form[part("top.model_path")], form[part("top.template")] = get_model_info(form[part("top.model_name")])
    form[part("train.output_dir")] = "sft_qlora"
    preset = _clean_cmd(board.runner._parse_train_args(form))
    recipe = yaml.safe_load((ROOT / "configs/llama3_8b/sft_qlora.yaml").read_text(encoding="utf-8"))
    parsed = [parser.get_train_args(keys | {"use_cpu": True}) for keys in (recipe, preset)]
    differences = {
        field.name
        for ours, theirs in zip(*parsed, strict=True)
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    }
    # None of these changes what is learnt from AdGen's 114,599 rows.
    harmless = {"preprocessing_num_workers", "max_samples", "ddp_timeout", "include_num_input_tokens_seen"}
    assert differences <= {*harmless, "logging_dir"} and parsed[1][1].max_samples > 114_599
