"""`make generate` continues after a kill at any point, Ctrl-C, or a server that goes away, and mixes no runs."""

import csv
import json
import os
import re
import subprocess
import threading
from collections import Counter

from common import KEY
from generating import (
    ATTRIBUTES,
    CHOICES,
    PRODUCTS,
    command,
    example_rows,
    journal_of,
    one_error,
    read_ads,
    run,
    write_rows,
)
from lib import chat_client
from processes import wait_for


def test_kill_at_any_point(relay, tmp_path):
    """Killed before the first answer and after 1, 4, 5 and 1 more; once in the middle of a line."""
    output = tmp_path / "out.csv"
    words = (PRODUCTS, output, "--n", 2, "--in-flight", 3, "--server", relay.url)
    for answers in (0, 1, 4, 5, 1):
        before = journal_of(output)
        relay.asked.clear()
        relay.released.clear()
        relay.fault = lambda number, _, answers=answers: "hold" if number > answers else None
        environment = os.environ | CHOICES | {"API_KEY": KEY}
        with subprocess.Popen(command(*words), env=environment, stdout=-3, stderr=-3) as process:
            try:
                expected = len(before) + answers
                wait_for(lambda expected=expected: len(journal_of(output)) >= expected and relay.asked)
                if answers == 1:
                    assert f"another run is writing {output}" in one_error(*words)
            finally:
                process.kill()
        relay.released.set()
        assert not output.exists() and len(journal_of(output)) == expected
        assert not set(before) & {product for product, _ in relay.asked}
        if answers == 4:
            journal = tmp_path / "out.csv.journal"
            # Within a character.
            journal.write_bytes(journal.read_bytes()[:-9])
    finished = journal_of(output)
    assert len(finished) == 10
    relay.asked.clear()
    relay.fault = None
    result = run(*words)
    assert result.returncode == 0 and f"20 of 24 ads are in {output}.journal" in result.stdout, result.stderr
    products = Counter(product for product, _ in relay.asked)
    assert len(products) == 2 and not set(products) & set(finished) and set(products.values()) == {1}
    ads = read_ads(output)
    assert [row["SKU"] for row in ads] == [row[0] for row in list(csv.reader(PRODUCTS.open(encoding="utf-8")))[1:]]
    assert all(row["ad"] and row["runner_up_1"] for row in ads)
    assert not (tmp_path / "out.csv.journal").exists()


def refuse_one(_, request):
    """A fault of the relay: it refuses one product, so that the journal stays."""
    return 400 if request["messages"][-1]["content"] == ATTRIBUTES["L-002"] else None


def test_kill_between_the_output_and_the_end_of_the_journal(relay, tmp_path):
    """Nothing is asked again, and the output is the same but for the time in its labels."""

    def written():
        return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d", b"", output.read_bytes())

    output, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    relay.fault = refuse_one
    words = (PRODUCTS, output, "--n", 2, "--server", relay.url)
    run(*words)
    relay.fault = None
    kept = journal.read_bytes()
    run(*words)
    whole = written()
    new = [read_ads(output)[6][name] for name in ("ad", "runner_up_1")]
    journal.write_bytes(kept + json.dumps({"product": ATTRIBUTES["L-002"], "copy": 0, "ads": new}).encode())
    relay.asked.clear()
    assert run(*words).returncode == 0
    assert not relay.asked and written() == whole and not journal.exists()


def test_other_settings_and_another_catalogue_do_not_mix(relay, tmp_path):
    output, words = tmp_path / "out.csv", ("--server", relay.url)
    relay.fault = refuse_one
    run(PRODUCTS, output, "--n", 2, *words)
    journal = (tmp_path / "out.csv.journal").read_bytes()
    assert "another n:" in one_error(PRODUCTS, output, "--n", 3, *words)
    assert "another request:" in one_error(PRODUCTS, output, "--n", 2, *words, "temperature=0.9")
    assert (tmp_path / "out.csv.journal").read_bytes() == journal
    relay.fault = None
    relay.asked.clear()
    rows = [*example_rows(), ["N-001", "", "裙", *[""] * 6, "黑色", *[""] * 6]]
    rows[1][2] = "上衣"
    assert run(write_rows(tmp_path / "new.csv", rows), output, "--n", 2, *words).returncode == 0
    # What changed or is new is asked for; what is as it was, is not.
    changed = ["类型#上衣*材质#雪纺*颜色#白色*风格#甜美*图案#碎花", ATTRIBUTES["L-002"], "类型#裙*颜色#黑色"]
    assert sorted(product for product, _ in relay.asked) == sorted(changed)
    assert [row["SKU"] for row in read_ads(output)] == ["C-001", "L-002", "E-002", "N-001"]


def test_a_server_that_goes_away(relay, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_client, "PAUSES", (0.01,) * len(chat_client.PAUSES))
    # An open connection would still be served, so each fault closes one.
    gone = threading.Event()

    def stop():
        relay.shutdown()
        relay.server_close()
        gone.set()

    def fault(number, _):
        if number == 6:
            threading.Thread(target=stop).start()
        if number > 5:
            gone.wait()
            return "close"
        return None

    relay.fault = fault
    line = one_error(PRODUCTS, tmp_path / "out.csv", "--n", 2, "--in-flight", 1, "--server", relay.url)
    assert "does not answer" in line and "10 of 24 ads are in" in line and "the same command continues" in line
    assert not (tmp_path / "out.csv").exists() and len(journal_of(tmp_path / "out.csv")) == 5
