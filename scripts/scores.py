"""The scores of generated ads: LLaMA-Factory's own, and what no library has: attributes kept, attributes invented.

Every score is a ratio of two sums over rows, so that one bootstrap serves all; corpus BLEU and distinct-4 apart.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
from adgen import parse_attributes

# Score → what the tables call it, its decimals there, and whether more is better (None: neither).
SCORES = {
    "bleu-4": ("BLEU-4", 2, True),
    "rouge-1": ("ROUGE-1", 2, True),
    "rouge-2": ("ROUGE-2", 2, True),
    "rouge-l": ("ROUGE-L", 2, True),
    "coverage": ("coverage", 3, True),
    "hallucination": ("hallucination", 3, False),
    "corpus-bleu": ("corpus BLEU", 2, True),
    "distinct-4": ("distinct-4", 3, True),
    "repetition-4": ("repetition-4", 3, False),
    "length": ("length", 3, None),
    "copied": ("copied", 3, False),
}
OVERLAP = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")
# What decides between systems; the rest describes them.
MAIN = (*OVERLAP, "coverage", "hallucination")
RESAMPLES = 1000
# A run of this many characters that also stands in a training ad is a copy.
COPY = 50

# (score, "") for a whole system; (score, attribute key) of one key; (score, "best of references").
Key = tuple[str, str]
BEST = "best of references"
# The first two characters of attribute values → those values, the longest first, each with its key.
Values = dict[str, dict[str, str]]


def overlap_scores(pair: tuple[str, str]) -> tuple[float, float, float, float]:
    """BLEU-4 and ROUGE-1/2/L, 0 to 100, of one (prediction, reference), as in LLaMA-Factory's predict metrics.

    BLEU-4: nltk sentence_bleu on characters, smoothing method 3 (Chen and Cherry 2014). ROUGE: F1 on jieba's words by
    rouge_chinese (Lin 2004). Source: `ComputeSimilarity` of LLaMA-Factory 0.9.5, rounded to 4 decimals as there.
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


def vocabulary(contents: Iterable[str]) -> Values:
    """The attribute values of two or more characters, each with its most frequent key; the key 类型 is left out."""
    keys = defaultdict(Counter)
    for content in contents:
        for key, value in parse_attributes(content):
            if key != "类型" and len(value) > 1:
                keys[value][key] += 1
    values = defaultdict(dict)
    for value in sorted(keys, key=lambda value: (-len(value), value)):
        values[value[:2]][value] = keys[value].most_common(1)[0][0]
    return dict(values)


def find_values(text: str, values: Values) -> dict[str, str]:
    """The attribute values met when a text is read from left to right, at each place the longest → their keys."""
    found, start = {}, 0
    while start < len(text) - 1:
        candidates = values.get(text[start : start + 2], {})
        value = next((value for value in candidates if text.startswith(value, start)), None)
        if value:
            found[value] = candidates[value]
        start += len(value or " ")
    return found


def covered(content: str, text: str) -> dict[tuple[str, str], bool]:
    """(key, value) of the attributes → whether the value stands literally in the text."""
    return {(key, value): value in text for key, value in parse_attributes(content)}


def invented(content: str, text: str, values: Values) -> tuple[dict[str, str], set[str]]:
    """The known attribute values found in the text, with their keys, and those that the product does not have."""
    found = find_values(text, values)
    return found, set(found) - {value for _, value in parse_attributes(content)}


def squeeze(text: str) -> str:
    """A text without white space: tokenizers do not give it back as it was."""
    return "".join(text.split())


def four_grams(text: str) -> list[str]:
    """The runs of four characters of a text, white space left out."""
    text = squeeze(text)
    return [text[start : start + 4] for start in range(len(text) - 3)]


def repetition(text: str) -> float:
    """Share of a text's 4-grams that had occurred in it (seq-rep-4 of Welleck et al. 2020, on characters)."""
    grams = four_grams(text)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def find_copies(texts: list[str], summaries: Iterable[str]) -> np.ndarray:
    """(texts,) of bool: whether a text equals a training ad or shares a run of 50 characters with one, spaces aside.

    Verbatim runs of 50 tokens are what Lee et al. 2022 (Deduplicating Training Data) call copies.
    """
    texts = [squeeze(text) for text in texts]
    ads = set(map(squeeze, summaries))
    # A run of 50 holds one of the ad's aligned pieces of 25, so those are enough to find the candidates.
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


def row_ratios(contents, texts, references, overlaps, best, values: Values, copies=None) -> dict[Key, np.ndarray]:
    """Key → array (rows, 2): the score is the ratio of the columns' sums.

    Coverage: attribute values that stand in the text over all of them. Hallucination: over the rows whose text holds
    any known value, the mean share of those found that the row did not ask for; by key, those values over all found.
    Length: characters over the reference's. All lists have one entry a row: `overlaps` the four scores against the
    row's reference, `best` the highest against any reference of its product, `copies` whether it is one.
    """
    ones = np.ones(len(texts))
    ratios = {
        (name, ""): np.stack([column, ones], 1) for name, column in zip(OVERLAP, np.transpose(overlaps), strict=True)
    }
    ratios |= {
        (name, BEST): np.stack([column, ones], 1) for name, column in zip(OVERLAP, np.transpose(best), strict=True)
    }
    counts = defaultdict(lambda: np.zeros((len(texts), 2)))
    for row, (content, text) in enumerate(zip(contents, texts, strict=True)):
        for (key, _), hit in covered(content, text).items():
            for part in ("", key):
                counts["coverage", part][row] += (hit, 1)
        found, bad = invented(content, text, values)
        counts["hallucination", ""][row] = (len(bad) / len(found), 1) if found else (0, 0)
        for value, key in found.items():
            counts["hallucination", key][row] += (value in bad, 1)
    ratios |= counts
    ratios["repetition-4", ""] = np.stack([[repetition(text) for text in texts], ones], 1)
    lengths = [(len(text), len(reference)) for text, reference in zip(texts, references, strict=True)]
    ratios["length", ""] = np.array(lengths, float)
    if copies is not None:
        ratios["copied", ""] = np.stack([copies, ones], 1)
    return ratios


def score_system(contents, texts, references, *rest) -> tuple[dict[Key, float], dict[Key, np.ndarray]]:
    """Key → value, and key → samples for `ci95`, of a system's texts; the arguments are those of `row_ratios`."""
    columns = row_ratios(contents, texts, references, *rest)
    draws = weights(len(texts))
    resampled = (draws @ np.concatenate(list(columns.values()), axis=1)).reshape(len(draws), -1, 2)
    samples = {key: ratio(resampled[:, place]) for place, key in enumerate(columns)}
    found = {key: float(ratio(column.sum(0))) for key, column in columns.items()}
    key = ("corpus-bleu", "")
    found[key], samples[key] = corpus_bleu(texts, references, draws)
    key = ("distinct-4", "")
    found[key], samples[key] = distinct(texts)
    return found, samples


def weights(rows: int) -> np.ndarray:
    """(resamples, rows): how often each row is drawn in each bootstrap resample; always the same for as many rows."""
    return np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(float)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Numerators over denominators along the last axis; 0 where there is nothing to divide by."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)


def corpus_bleu(texts: list[str], references: list[str], draws: np.ndarray) -> tuple[float, np.ndarray]:
    """sacrebleu's corpus BLEU with its zh tokenizer, 0 to 100, and its values on the resamples (Post 2018)."""
    from sacrebleu.metrics import BLEU

    by_row = BLEU(tokenize="zh", effective_order=True)
    rows = [by_row.sentence_score(text, [reference]) for text, reference in zip(texts, references, strict=True)]
    counts = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows], float)

    def score(sums: np.ndarray) -> float:
        return BLEU.compute_bleu(list(sums[:4]), list(sums[4:8]), int(sums[8]), int(sums[9]), smooth_method="exp").score

    return score(counts.sum(0)), np.array([score(sums) for sums in draws @ counts])


def distinct(texts: list[str]) -> tuple[float, np.ndarray]:
    """Distinct-4: different 4-grams over all 4-grams of all texts (Li et al. 2016, on characters).

    With it its values without one of up to 50 groups of rows, for the jackknife: a bootstrap resample repeats rows, and
    repetition is what this score counts.
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


def ci95(score: str, value: float, samples: np.ndarray) -> list[float]:
    """The 95% interval: bootstrap percentiles (Efron 1979), for distinct-4 the delete-a-group jackknife (Kott 2001)."""
    if score == "distinct-4":
        groups = len(samples)
        half = 1.96 * float(np.sqrt((groups - 1) / groups * ((samples - samples.mean()) ** 2).sum()))
        return [round(value - half, 4), round(value + half, 4)]
    return [round(float(bound), 4) for bound in np.percentile(samples, (2.5, 97.5))]
