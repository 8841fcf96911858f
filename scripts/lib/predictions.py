"""Reads the rows of a data set and the ads that a model wrote for them, and checks that both are in the same order."""

import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple, NoReturn

from lib.attributes import fold, parse_attributes
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
    """The text in one width (NFKC), in lower case, without white space and marks such as <UNK>.

    Tokenizers may change all of these. A label lacks the marks that are special tokens, or holds a part of one.
    """
    return re.sub(r"<[^<>]{1,30}(?:>|$)|\[[a-z]{3,4}\]|\ufffd", "", fold(text))


def stands_in(text: str, other: str) -> bool:
    """Whether four fifths of a plain text stand in another one, in the same order."""
    if len(text) > 1.25 * len(other) or len(text) * len(other) > MOST_PAIRS:
        return False
    blocks = SequenceMatcher(None, text, other, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) >= 0.8 * len(text)


def is_label_of(label: str, reference: str) -> bool:
    """Whether a decoded label may be this reference: it may be cut at cutoff_len, and some characters may be lost."""
    label, reference = plain(label), plain(reference)
    return reference.startswith(label) or stands_in(label, reference)


def is_asked(prompt: str, content: str) -> bool:
    """Whether a decoded prompt asks for this product, all of it or up to where cutoff_len has cut the prompt."""
    prompt, product = plain(prompt), plain(content)
    if all(plain(value) in prompt for _, value in parse_attributes(content)) or stands_in(product, prompt):
        return True
    return any(prompt.endswith(product[:size]) for size in range(4, len(product)))


def refuse(place: str, name: str, known: bool, number: int, data_path: Path) -> NoReturn:
    """Ends the program because the label or prompt at `place` is not that of the row. `known`: it is another row's."""
    other = "but that of another: rows were shuffled or left out" if known else "nor of another: these are other rows"
    fail(f"{place}: its {name} is not that of row {number} of {data_path}, {other}; predict the rows of that file anew")


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
    given = [row["label"] for row in rows if isinstance(row.get("label"), str)]
    if given and not any(map(plain, given)) and any(map(plain, data.references[: len(rows)])):
        fail(f"{path}: all its labels are empty; predict rows that hold their ads, such as those of {data_path}")
    longest = MOST_PAIRS // max(map(len, data.references))
    texts, labels, unchecked = [], [], 0
    for number, (row, content, reference) in enumerate(zip(rows, *data, strict=False), 1):
        place = f"{path}, row {number}"
        text, label, prompt = (row.get(name) for name in ("predict", "label", "prompt"))
        if not isinstance(text, str):
            found = ", ".join(map(str, row))[:200] or "nothing"
            fail(f'{place}: no text "predict" but {found}; so this is not a generated_predictions.jsonl')
        asked = not isinstance(prompt, str) or is_asked(prompt, content)
        if isinstance(label, str) and not is_label_of(label, reference):
            refuse(place, "label", any(is_label_of(label, ad) for ad in data.references), number, data_path)
        if not asked and (not isinstance(label, str) or parse_attributes(prompt)):
            refuse(place, "prompt", any(is_asked(prompt, content) for content in data.contents), number, data_path)
        if len(text) > longest:
            fail(f"{place}: its ad has {len(text):,} characters; at most {longest:,} can be scored")
        unchecked += not isinstance(label, str) and not isinstance(prompt, str)
        texts.append(printable(text))
        labels.append(printable(label if isinstance(label, str) else reference))
    return Predictions(texts, labels, unchecked)
