"""Reads the rows of a data set and the ads that a model wrote for them, and checks that both are in the same order."""

import unicodedata
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from lib.attributes import parse_attributes
from lib.files import fail, printable, read_json_lines
from lib.raw_rows import explain, read_file, read_rows
from lib.registry import layouts_for

# ROUGE-L keeps about 150 bytes for each pair of words of two ads. A longer ad would take gigabytes.
MOST_PAIRS = 10**7
# Each attribute key gets its own scores and resamples. AdGen's dev rows have 28 keys.
MOST_KEYS = 1000


class Rows(NamedTuple):
    """Rows as two lists of equal length: attribute strings and reference ads."""

    contents: list[str]
    references: list[str]


class Predictions(NamedTuple):
    """What a system wrote, as lists with one entry for each row.

    `labels` are the references as the prediction run gave them back; it may have cut them at cutoff_len. `unchecked`
    counts the rows with neither label nor prompt: nothing shows to which product such a row belongs.
    """

    texts: list[str]
    labels: list[str]
    unchecked: int = 0


def read_data(path: Path) -> Rows:
    """Reads an AdGen-format file, in any encoding and with the column names of the registry or any that are usual.

    Ends the program if the file cannot be read or a row cannot be scored.
    """
    try:
        rows = list(read_rows(str(path), read_file(path), layouts_for(path)))
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}; `make data` writes data/adgen_dev.jsonl")
    if not rows:
        fail(f"{path} is empty; `make data` writes it anew")
    for row in rows:
        if row.problem:
            fail(f"{path}, line {row.line}: {explain(row)}; an AdGen-format file has instruction and output as text")
        if len(row.summary) ** 2 > MOST_PAIRS:
            fail(f"{path}, line {row.line}: its ad has {len(row.summary):,} characters; that is too long to be scored")
    keys = {key for row in rows for key, _ in parse_attributes(row.content)}
    if not keys:
        fail(f"{path} holds no attributes such as 类型#裙*颜色#白色, so it is not an AdGen-format file")
    if len(keys) > MOST_KEYS:
        fail(f"{path} has {len(keys):,} attribute keys, such as {min(keys)}; at most {MOST_KEYS:,} can be scored")
    return Rows([row.content for row in rows], [row.summary for row in rows])


def plain(text: str) -> str:
    """The text in one width (NFKC), in lower case and without white space, all of which tokenizers may change."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def is_label_of(label: str, reference: str) -> bool:
    """Whether a decoded label may be this reference: it may be cut at cutoff_len, and a few characters may be lost."""
    label, reference = plain(label), plain(reference)
    if not label or reference.startswith(label):
        return bool(label) or not reference
    matcher = SequenceMatcher(None, label, reference, autojunk=False)
    # The first two are fast upper bounds of the third, whose time grows with the product of both lengths.
    return all(ratio() > 0.8 for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


def is_asked(prompt: str, content: str) -> bool:
    """Whether every attribute value of a row stands in the prompt that was predicted."""
    prompt = plain(prompt)
    return all(plain(value) in prompt for _, value in parse_attributes(content))


def read_predictions(path: Path, data: Rows, data_path: Path) -> Predictions:
    """Reads a generated_predictions.jsonl of LLaMA-Factory and compares each of its rows with the same row of the data.

    A file with fewer rows than the data is read. Ends the program if the file has more rows, holds other rows or holds
    them in another order.
    """
    rows = read_json_lines(path)
    if not rows:
        fail(f"{path} is empty: was the prediction run cut off?")
    if len(rows) > len(data.contents):
        fail(f"{path} has {len(rows)} rows, {data_path} {len(data.contents)}; predict the rows of {data_path} anew")
    longest = MOST_PAIRS // max(map(len, data.references))
    texts, labels, unchecked = [], [], 0
    for number, (row, content, reference) in enumerate(zip(rows, *data, strict=False), 1):
        place = f"{path}, row {number}"
        text, label, prompt = (row.get(name) for name in ("predict", "label", "prompt"))
        if not isinstance(text, str):
            fail(f'{place}: there is no text "predict", so this is not a generated_predictions.jsonl')
        if isinstance(prompt, str) and not is_asked(prompt, content):
            fail(f"{place}: its prompt is not that of row {number} of {data_path}; predict these rows anew")
        if isinstance(label, str) and not is_label_of(label, reference):
            fail(f"{place}: its label is not that of row {number} of {data_path}; predict these rows anew")
        if len(text) > longest:
            fail(f"{place}: its ad has {len(text):,} characters; at most {longest:,} can be scored")
        unchecked += not isinstance(label, str) and not isinstance(prompt, str)
        texts.append(printable(text))
        labels.append(printable(label if isinstance(label, str) else reference))
    return Predictions(texts, labels, unchecked)
