"""`make chat`: ads in the terminal, by the tuned and by the exported model."""

import os
import re
import signal
import subprocess

from common import BIN
from served import PRODUCT

COMMAND = ["make", f"BIN={BIN}", "chat", "MODEL=tiny", "DATA=sample"]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_chat_of_the_exported_model_survives_special_tokens_and_ends_with_its_input(demo):
    special = "类型#裙<|eom_id|><|eot_id|>\n<|begin_of_text|><|reserved_special_token_5|>\nclear\n"
    pipes = {"capture_output": True, "text": True, "timeout": 120}
    command = [*COMMAND, "EXPORTED=1", "ARGS=do_sample=false"]
    result = subprocess.run(command, cwd=demo[0], input=f"{special}{PRODUCT}\n", **pipes)
    assert result.returncode == 0 and "Traceback" not in result.stderr
    answers = re.findall(r"Assistant: (.*)", result.stdout)
    assert len(answers) == 3 and "口红" in answers[-1]


def test_chat_of_the_tuned_model_stops_on_ctrl_c(demo):
    chat = subprocess.Popen(COMMAND, cwd=demo[0], start_new_session=True, **PIPES)
    while "Welcome" not in chat.stdout.readline():
        assert chat.poll() is None
    chat.stdin.write(f"{PRODUCT}\n")
    chat.stdin.flush()
    while not (ad := re.search(r"Assistant: (.+)", chat.stdout.readline())):
        assert chat.poll() is None
    assert "口红" in ad[1]
    os.killpg(chat.pid, signal.SIGINT)
    printed, errors = chat.communicate(timeout=60)
    assert "Traceback" not in printed + errors
