"""The metrics of generated ads.

BLEU-4 and ROUGE are those that LLaMA-Factory reports. Coverage and hallucination are our own, because no library has
them: how many of its attribute values an ad names, and how many it invents.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from lib.attributes import parse_attributes
from lib.form import four_grams, own_words, squeeze

# The libraries of BLEU and ROUGE are imported where they are used: nltk alone takes a second, and `make generate` and
# `make desk`, which judge ads by their attributes, need none of them.


class Score(NamedTuple):
    """How a table shows a score: its name, its decimals, and whether more is better (None: neither is)."""

    label: str
    digits: int
    more_is_better: bool | None


SCORES = {
    "bleu-4": Score("BLEU-4", 2, True),
    "rouge-1": Score("ROUGE-1", 2, True),
    "rouge-2": Score("ROUGE-2", 2, True),
    "rouge-l": Score("ROUGE-L", 2, True),
    "coverage": Score("coverage", 3, True),
    "hallucination": Score("hallucination", 3, False),
    "corpus-bleu": Score("corpus BLEU", 2, True),
    "distinct-4": Score("distinct-4", 3, True),
    "repetition-4": Score("repetition-4", 3, False),
    "coverage-unseen": Score("coverage, unseen half", 3, True),
    "hallucination-unseen": Score("hallucination, unseen half", 3, False),
    "unsupported": Score("unsupported features", 3, False),
    "length": Score("length", 3, None),
    "copied": Score("copied", 3, False),
    "forbidden": Score("forbidden words", 3, False),
    "unproved": Score("words to be proved", 3, False),
    "judge": Score("judge, 1 to 5", 2, True),
}
OVERLAP = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
# These six scores decide which model is best. The others only describe the ads.
MAIN = (*OVERLAP, "coverage", "hallucination")
# An ad that shares a run of this many characters with a training ad is a copy.
COPY = 50

# (score, "") for all attributes together, (score, attribute key) for those of one key.
Key = tuple[str, str]
# The first two characters of attribute values → those values, the longest first, each with its key.
Values = dict[str, dict[str, str]]


def overlap_scores(pair: tuple[str, str]) -> tuple[float, float, float, float]:
    """BLEU-4, ROUGE-1, ROUGE-2 and ROUGE-L, each 0 to 100, of one (prediction, reference).

    BLEU-4 is nltk's sentence_bleu on characters with smoothing method 3 (Chen and Cherry 2014). ROUGE (Lin 2004) is
    rouge_chinese's F1 on jieba's words. Both equal `ComputeSimilarity` of LLaMA-Factory 0.9.5, which rounds to 4
    decimals, too.
    """
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel("WARNING")
    prediction, reference = pair
    words, reference_words = " ".join(jieba.cut(prediction)), " ".join(jieba.cut(reference))
    if words.split() and reference_words.split():
        rouge = Rouge().get_scores(words, reference_words)[0]
        rouges = [round(rouge[name]["f"] * 100, 4) for name in OVERLAP[1:]]
    else:
        rouges = [0.0, 0.0, 0.0]
    bleu = sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3)
    return round(bleu * 100, 4), *rouges


def corpus_bleu(texts: list[str], references: list[str], draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Corpus BLEU by sacrebleu with its zh tokenizer (Post 2018), 0 to 100, and its values on bootstrap resamples.

    `draws` has the shape (resamples, rows) and says how often each resample holds each row.
    """
    from sacrebleu.metrics import BLEU

    by_row = BLEU(tokenize="zh", effective_order=True)
    rows = [by_row.sentence_score(text, [reference]) for text, reference in zip(texts, references, strict=True)]
    counts = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows], float)

    def score(sums: np.ndarray) -> float:
        return BLEU.compute_bleu(list(sums[:4]), list(sums[4:8]), int(sums[8]), int(sums[9]), smooth_method="exp").score

    return score(counts.sum(0)), np.array([score(sums) for sums in draws @ counts])


def vocabulary(contents: Iterable[str]) -> Values:
    """The attribute values of two or more characters in lower case, each with its most frequent key, but for 类型."""
    keys = defaultdict(Counter)
    for content in contents:
        for key, value in parse_attributes(content):
            if key != "类型" and len(value) > 1:
                keys[value.lower()][key] += 1
    values = defaultdict(dict)
    for value in sorted(keys, key=lambda value: (-len(value), value)):
        values[value[:2]][value] = keys[value].most_common(1)[0][0]
    return dict(values)


def find_values(text: str, values: Values) -> dict[str, str]:
    """The known attribute values in a text → their keys. It is read from left to right; the longest value counts."""
    found, start = {}, 0
    while start < len(text) - 1:
        candidates = values.get(text[start : start + 2], {})
        value = next((value for value in candidates if text.startswith(value, start)), None)
        if value:
            found[value] = candidates[value]
        start += len(value or " ")
    return found


def covered(content: str, text: str) -> dict[tuple[str, str], bool]:
    """(key, value) of each attribute of a product → whether the value stands word for word in the text, in any case.

    What stands in reasoning or in an echo of the product does not count, here as in `invented`: see `lib.form`.
    """
    text = own_words(content, text).lower()
    return {(key, value): value.lower() in text for key, value in parse_attributes(content)}


def invented(content: str, text: str, values: Values) -> tuple[dict[str, str], set[str]]:
    """The known attribute values in a text → their keys, and those that the product does not have, in lower case."""
    found = find_values(own_words(content, text).lower(), values)
    return found, set(found) - {value.lower() for _, value in parse_attributes(content)}


def in_first_half(value: str) -> bool:
    """Which half of the attribute values a value belongs to, by its hash: always the same."""
    return hashlib.sha256(value.encode()).digest()[0] % 2 == 0


def attribute_ratios(contents: list[str], texts: list[str], values: Values) -> dict[Key, np.ndarray]:
    """Key → array (rows, 2): the score is the sum of the first column over that of the second.

    Coverage is the share of the attribute values that stand in the texts. Hallucination is the share of the known
    values in a text that the product does not have, averaged over the texts with any known value; by key, it is the
    share of all values of that key in the texts. The scores of the unseen half count only the values that a judge with
    half of them (`in_first_half`) does not see.
    """
    counts = defaultdict(lambda: np.zeros((len(texts), 2)))
    for row, (content, text) in enumerate(zip(contents, texts, strict=True)):
        for (key, value), hit in covered(content, text).items():
            for part in ("", key):
                counts["coverage", part][row] += (hit, 1)
            counts["coverage-unseen", ""][row] += (0, 0) if in_first_half(value) else (hit, 1)
        found, bad = invented(content, text, values)
        unseen = [value for value in found if not in_first_half(value)]
        for name, part in (("hallucination", list(found)), ("hallucination-unseen", unseen)):
            counts[name, ""][row] = (len(bad & set(part)) / len(part), 1) if part else (0, 0)
        for value, key in found.items():
            counts["hallucination", key][row] += (value in bad, 1)
    return dict(counts)


def distinct(texts: list[str]) -> tuple[float, np.ndarray]:
    """Distinct-4: the number of different 4-grams over that of all 4-grams (Li et al. 2016, on characters).

    The array holds the score without each of up to 50 groups of rows, for a jackknife. A bootstrap would not do: its
    resamples repeat rows, and repetition is what this score counts.
    """
    groups = min(50, len(texts))
    parts = [Counter(gram for text in texts[part::groups] for gram in four_grams(text)) for part in range(groups)]
    total = Counter()
    for part in parts:
        total.update(part)
    size = total.total()
    left = [
        (len(total) - sum(total[gram] == count for gram, count in part.items())) / max(1, size - part.total())
        for part in parts
    ]
    return len(total) / max(1, size), np.array(left)


def find_copies(texts: list[str], ads: Iterable[str]) -> np.ndarray:
    """(texts,) of bool: whether a text equals a training ad or shares a run of 50 characters with one.

    White space does not count. Lee et al. 2022 (Deduplicating Training Data) call verbatim runs of 50 tokens copies.
    """
    texts = [squeeze(text) for text in texts]
    ads = set(map(squeeze, ads))
    # Any run of 50 characters of an ad holds a whole one of its consecutive pieces of 25. So only the texts that hold a
    # piece are searched for runs.
    step = COPY // 2
    holders = defaultdict(set)
    for number, text in enumerate(texts):
        for start in range(len(text) - step + 1):
            holders[text[start : start + step]].add(number)
    copies = np.array([text in ads for text in texts])
    for ad in ads:
        pieces = [ad[start : start + step] for start in range(0, len(ad) - step + 1, step)]
        for number in {number for piece in pieces for number in holders.get(piece, ()) if not copies[number]}:
            text = texts[number]
            copies[number] = any(text[start : start + COPY] in ad for start in range(len(text) - COPY + 1))
    return copies
