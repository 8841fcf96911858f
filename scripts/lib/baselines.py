"""Systems that need no model. Any score of a model has to be read beside theirs."""

import random
from collections import defaultdict

import numpy as np
from lib.attributes import parse_attributes
from lib.predictions import Rows

# System → what it writes. No model may take one of these names.
BASELINES = {
    "reference": "the reference itself",
    "nearest": "the ad of the most similar training row",
    "template": "a fixed sentence with the attribute values in it",
    "random": "any training ad",
}
TEMPLATE = "这款{kind}，{values}的设计，让你穿着舒适，更显时尚。"


def write_baselines(data: Rows, train: Rows | None) -> dict[str, list[str]]:
    """System → its ads for the rows of `data`. Without training rows there is no `nearest` and no `random`."""
    systems = {"reference": data.references}
    if train:
        systems["nearest"] = nearest_ads(data.contents, train)
    systems["template"] = [fill_template(content) for content in data.contents]
    if train:
        dice = random.Random(0)
        systems["random"] = [dice.choice(train.references) for _ in data.contents]
    return systems


def nearest_ads(contents: list[str], train: Rows) -> list[str]:
    """For each product the ad of the most similar training row; of equally similar rows, the first.

    Similarity is the Jaccard index of the sets of (key, value) pairs.
    """
    products = [set(parse_attributes(content)) for content in train.contents]
    holders = defaultdict(list)
    for number, pairs in enumerate(products):
        for pair in pairs:
            holders[pair].append(number)
    holders = {pair: np.array(numbers) for pair, numbers in holders.items()}
    sizes = np.array([len(pairs) for pairs in products])
    found = []
    for content in contents:
        pairs = set(parse_attributes(content))
        shared = np.zeros(len(products))
        for pair in pairs & holders.keys():
            shared[holders[pair]] += 1
        best = int(np.argmax(shared / np.maximum(1, len(pairs) + sizes - shared)))
        found.append(train.references[best])
    return found


def fill_template(content: str) -> str:
    """A fixed sentence with the attribute values of a product in it."""
    pairs = parse_attributes(content)
    kind = next((value for key, value in pairs if key == "类型"), "商品")
    return TEMPLATE.format(kind=kind, values="，".join(value for key, value in pairs if key != "类型"))
