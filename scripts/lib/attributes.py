"""Attribute strings such as `类型#裙*颜色#白色`: how they are parsed, tidied and compared."""


def parse_attributes(text: str) -> list[tuple[str, str]]:
    """Splits `类型#上衣*颜色#白色` into [("类型", "上衣"), ("颜色", "白色")]; order and repeated keys are kept.

    Parts without `#`, or with nothing on one side of it, are left out. A value may contain further `#`.
    """
    pairs = (part.partition("#") for part in text.split("*"))
    return [(key.strip(), value.strip()) for key, mark, value in pairs if mark and key.strip() and value.strip()]


def join_attributes(pairs: list[tuple[str, str]]) -> str:
    """The attribute string of (key, value) pairs."""
    return "*".join(f"{key}#{value}" for key, value in pairs)


def tidy(content: str) -> str:
    """The attribute string without stray spaces, full-width # and * and empty parts; other text is only stripped."""
    if "＃" in content or "＊" in content:
        content = content.replace("＃", "#").replace("＊", "*")
    pairs = parse_attributes(content)
    return join_attributes(pairs) if pairs else content.strip()


def product(content: str) -> str:
    """What identifies a product: its attributes in a fixed order, or the text itself if it has none."""
    return join_attributes(sorted(set(parse_attributes(content)))) or content.strip()
