"""Conversations as rows: written as the model's chat template says, learned where the assistant speaks.

A row is `[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]`; `from` and `value` with `human`
and `gpt` are read as well. An answer is what the template adds for it to the header that it writes for an answer to
come. Some templates write an earlier answer in another way once there is a later question (without what was thought,
say): such an answer is not learned. Without a template, a message is its role, its content and line breaks, and an
answer ends with the end-of-text token. Templates run in the sandbox of transformers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.engine.splits import Split, Texts
from autopeft.engine.tables import BadRows, Table, shown
from autopeft.errors import EnvironmentProblem, ModelError

__all__ = ["CONVERSATIONS", "Spoken", "Written", "holds_conversations", "read_conversations", "spoken", "writer_of"]

CONVERSATIONS = ("messages", "conversations", "conversation")
ASSISTANT = "assistant"

_KEYS = (("role", "content"), ("from", "value"))
_ROLES: Mapping[str, str] = {"human": "user", "gpt": ASSISTANT}
_LOOKED_AT = 100

Roles = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation as the model reads it."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Where each answer that is learned begins and ends; the last one of the conversation is among them."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """The tokens of a conversation."""

    ids: list[int]
    is_learned: list[bool]
    n_before: int
    """Tokens before the last answer."""
    answer: str


Writer = Callable[[Texts, Roles], Written]


def holds_conversations(table: Table, column: str) -> bool:
    """Whether the first value of a column is a list of messages."""
    values = (row.get(column) for row in table.rows[:_LOOKED_AT])
    first = next((value for value in values if value is not None), None)
    return isinstance(first, list) and bool(first) and isinstance(first[0], dict)


def read_conversations(table: Table, column: str) -> Split:
    """What is said as texts, who says it as labels.

    Raises:
        DataError: a row is no conversation, or has nothing to learn.
    """
    bad, texts, labels = BadRows(table.name, table.unit), list[Texts](), list[Roles]()
    for line, value in zip(table.lines, table.column(column), strict=True):
        try:
            said = _messages(value, shown(column))
        except ValueError as error:
            bad.add(line, str(error))
            continue
        texts.append(tuple(text for _, text in said))
        labels.append(tuple(role for role, _ in said))
    bad.refuse()
    return Split(tuple(texts), tuple(labels))


def _messages(value: Any, column: str) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"'{column}' must be a list of messages, found {shown(value) or 'an empty one'}")
    said = []
    for number, message in enumerate(value, start=1):
        keys = next((keys for keys in _KEYS if isinstance(message, dict) and keys[0] in message), None)
        if keys is None:
            raise ValueError(f"message {number} in '{column}' has no role: {shown(message)}")
        role, text = (message.get(key) for key in keys)
        if not isinstance(role, str) or not isinstance(text, str):
            wrong = keys[1] if isinstance(role, str) else keys[0]
            raise ValueError(
                f"message {number} in '{column}': '{wrong}' must be text, found {shown(message.get(wrong))}"
            )
        said.append((_ROLES.get(role, role), text))
    answers = [number for number, (role, _) in enumerate(said) if role == ASSISTANT]
    if not answers:
        raise ValueError(f"'{column}' has no message of the role {ASSISTANT}: there is nothing to learn")
    if answers[0] == 0:
        raise ValueError(f"'{column}' begins with an answer; put what it answers before it")
    if empty := [number for number in answers if not said[number][1].strip()]:
        raise ValueError(f"message {empty[0] + 1} in '{column}' is an empty answer: there is nothing to learn")
    return said


def writer_of(tokenizer: Any) -> Writer:
    """Writes conversations as the tokeniser's chat template does, or plainly where it has none."""
    if getattr(tokenizer, "chat_template", None):
        return lambda texts, roles: _by_template(texts, roles, tokenizer)
    return lambda texts, roles: _plainly(texts, roles, tokenizer.eos_token or "")


def _plainly(texts: Texts, roles: Roles, end: str) -> Written:
    written, answers = "", list[tuple[int, int]]()
    for text, role in zip(texts, roles, strict=True):
        written += f"{role}:\n"
        start = len(written)
        written += text + (end if role == ASSISTANT else "")
        if role == ASSISTANT:
            answers.append((start, len(written)))
        written += "\n"
    return Written(written[: answers[-1][1]], tuple(answers))


def _by_template(texts: Texts, roles: Roles, tokenizer: Any) -> Written:
    """
    Raises:
        ModelError: the template refuses the conversation, or does not write an answer after what comes before it.
        EnvironmentProblem: Jinja, which reads templates, is not installed.
    """
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]

    def write(n: int, *, is_answered: bool) -> str:
        try:
            text: str = tokenizer.apply_chat_template(
                messages[:n], tokenize=False, add_generation_prompt=not is_answered
            )
        except ImportError as error:
            raise EnvironmentProblem(f"chat templates: {error}") from error
        except Exception as error:  # what a template raises is its author's choice
            begins = shown(texts[0])
            raise ModelError(f"the chat template refuses the conversation '{begins}': {shown(error, 200)}") from error
        return text

    places = [number for number, role in enumerate(roles) if role == ASSISTANT]
    whole = write(places[-1] + 1, is_answered=True)
    answers = []
    for place in places:
        before, after = write(place, is_answered=False), write(place + 1, is_answered=True)
        if after.startswith(before) and whole.startswith(after):
            answers.append((len(before), len(after)))
    if not answers or answers[-1][1] != len(whole):
        raise ModelError(
            "the chat template does not write an answer where it makes room for one; give prompts and texts"
        )
    return Written(whole, tuple(answers))


def spoken(texts: Texts, roles: Roles, tokenizer: Any, write: Writer, max_length: int) -> Spoken:
    """At most `max_length` tokens: what is too long loses its beginning, and only then the end of its last answer."""
    written = write(texts, roles)
    # A template writes the tokens that begin a text itself.
    adds = not getattr(tokenizer, "chat_template", None)
    found = tokenizer(written.text, add_special_tokens=adds, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), found["offset_mapping"]
    learned = [any(a < end and start < b for start, end in written.answers) for a, b in offsets]
    last = written.answers[-1][0]
    n_before = next((n for n, (_, b) in enumerate(offsets) if b > last), len(ids))
    n_kept = min(len(ids) - n_before, max_length - 1)
    first = max(0, n_before + n_kept - max_length)
    kept = slice(first, n_before + n_kept)
    return Spoken(ids[kept], learned[kept], n_before - first, texts[_last_answer(roles)])


def _last_answer(roles: Sequence[str]) -> int:
    return len(roles) - 1 - roles[::-1].index(ASSISTANT)
