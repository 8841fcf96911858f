"""Finds the attribute string and the ad in a row, under all the column names by which people pass them on.

A layout says which columns of a row hold what, in the words of dataset_info.json: `prompt` and `response`, `query` for
a column that continues the prompt, or `messages`.
"""

from lib.files import fail

Layout = dict[str, str]
PAIRS = (
    "content summary", "prompt response", "instruction response", "input output", "src tgt", "source target",
    "prompt completion", "query response", "question answer", "context target",
)  # fmt: skip
LAYOUTS: tuple[Layout, ...] = (
    {"prompt": "instruction", "query": "input", "response": "output"},
    {"prompt": "instruction", "response": "output"},
    *(dict(zip(("prompt", "response"), pair.split(), strict=True)) for pair in PAIRS),
    *({"messages": name} for name in ("messages", "conversations", "conversation")),
)
# The parts that --columns can name.
PARTS = ("prompt", "query", "response", "messages")
NO_COLUMNS = "no known columns"
MORE_TURNS = "more than one turn"
# Role in a turn → who speaks.
SPEAKERS = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def read_mapping(text: str) -> Layout:
    """The layout that `--columns prompt=标题,response=文案` names; ends the program if it is none."""
    layout = dict(word.partition("=")[::2] for word in text.split(","))
    complete = {"prompt", "response"} <= layout.keys() or layout.keys() == {"messages"}
    if not complete or not layout.keys() <= set(PARTS) or not all(layout.values()):
        fail(f'--columns "{text}" is not of the form prompt=<column>,response=<column> or messages=<column>')
    return layout


def read_texts(row: dict, layouts: tuple[Layout, ...]) -> tuple[object, object] | str:
    """The attribute string and the ad of a row in the first of the layouts that fits it, or why there are none.

    The two may be of any type. A query follows the prompt on a line of its own, as LLaMA-Factory joins them.
    """
    for layout in layouts:
        if not {name for part, name in layout.items() if part in PARTS} <= row.keys():
            continue
        if "messages" in layout:
            return read_turns(row[layout["messages"]], layout)
        if row.get(layout.get("history", "history")):
            return MORE_TURNS
        prompt, query = row[layout["prompt"]], row[layout["query"]] if "query" in layout else None
        if isinstance(prompt, str) and isinstance(query, str):
            prompt = "\n".join(text for text in (prompt, query) if text.strip())
        return prompt, row[layout["response"]]
    return NO_COLUMNS


def read_turns(turns: object, layout: Layout) -> tuple[object, object] | str:
    """What the user and the assistant say in a chat of one turn each, or why it is none.

    A system turn is left out: the recipes bring their own. A layout may name the roles, as `tags` in dataset_info.json.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "its turns are no list of objects"
    speakers = SPEAKERS | {
        layout[tag]: tag[:-4] for tag in ("user_tag", "assistant_tag", "system_tag") if tag in layout
    }
    said = []
    for turn in turns:
        role = turn.get(layout.get("role_tag", "role"), turn.get("role", turn.get("from")))
        speaker = speakers.get(role) if isinstance(role, str) else None
        if not speaker:
            return "a turn is of neither user, assistant nor system"
        if speaker != "system":
            text = turn.get(layout.get("content_tag", "content"), turn.get("content", turn.get("value")))
            said.append((speaker, text_of(text)))
    if [speaker for speaker, _ in said] != ["user", "assistant"]:
        return MORE_TURNS if len(said) > 2 else "not a turn of the user and one of the assistant"
    return said[0][1], said[1][1]


def text_of(content: object) -> object:
    """The text of a turn whose content is a list of parts, as OpenAI's interface takes it; anything else as it is."""
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    return content
