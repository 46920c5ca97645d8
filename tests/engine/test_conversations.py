"""Conversations: how they are read and written, and that what the assistant says is learned and nothing else."""

import re
from dataclasses import replace

import pytest
import torch

from autopeft.engine.data import load_data
from autopeft.engine.models import load_tokenizer
from autopeft.engine.problems.causal_lm import CausalLM
from autopeft.engine.recipe import TaskSpec, TrialRecipe
from autopeft.engine.splits import Split
from autopeft.engine.transformer_backend import TransformerBackend
from autopeft.engine.trial import TrialJob
from autopeft.errors import DataError, ModelError
from autopeft.space.architecture import Architecture, place
from tests.engine.checkpoints import checkpoint
from tests.engine.tasks import write

UNSET = TaskSpec()
TEMPLATE = (
    "{% for m in messages %}w{{ 90 if m.role == 'user' else 91 }} {{ m.content }} w92 {% endfor %}"
    "{% if add_generation_prompt %}w91 {% endif %}"
)
FORGETS = TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else 'w93' }}")
REFUSES = "{{ raise_exception('roles must alternate') }}"
TALK = Split((("w1", "w2 w3", "w4", "w5"),), (("user", "assistant", "user", "assistant"),))


def message(role, content):
    return {"role": role, "content": content}


def rows(n):
    """The answer is the question's last word."""
    asked = [f"w{20 + i % 7} w{i % 5}" for i in range(n)]
    return [{"messages": [message("user", text), message("assistant", text.split()[-1])]} for text in asked]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"), "gpt2")


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer("gpt2", folder)


def learned(split, tokenizer):
    """The tokens of each row, those that are learned in brackets."""
    shown = []
    for row in range(len(split)):
        span = slice(int(split.starts[row]), int(split.starts[row + 1]))
        names = tokenizer.convert_ids_to_tokens(split.tokens[span].tolist())
        here = (split.labels[span] == split.tokens[span]).tolist()
        assert all(
            label == -100 for label, is_here in zip(split.labels[span].tolist(), here, strict=True) if not is_here
        )
        shown.append(" ".join(f"({name})" if is_here else name for name, is_here in zip(names, here, strict=True)))
    return shown


def encode(split, tokenizer, max_length=32):
    return CausalLM().encode(split, tokenizer, max_length, None)


def test_without_a_template_answers_and_their_ends_are_learned(tokenizer):
    (found,) = learned(encode(TALK, tokenizer), tokenizer)
    colon, role = "[UNK]", "[UNK]"  # words that the tiny tokeniser does not know
    head = f"{role} {colon}"
    assert found == f"{head} w1 {head} (w2) (w3) ([SEP]) {head} w4 {head} (w5) ([SEP])"


def test_a_template_says_how_and_only_what_it_adds_for_an_answer_is_learned(tokenizer):
    tokenizer.chat_template = TEMPLATE
    encoded = encode(TALK, tokenizer)
    assert learned(encoded, tokenizer) == ["w90 w1 w92 w91 (w2) (w3) (w92) w90 w4 w92 w91 (w5) (w92)"]
    (prompt,) = CausalLM().prompts(encoded)
    asked = tokenizer.apply_chat_template(
        [message(role, text) for role, text in zip(TALK.labels[0][:3], TALK.texts[0][:3], strict=True)],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert prompt.tolist() == tokenizer(asked)["input_ids"]
    assert encoded.truths[0][1] == "w5"


def test_what_is_said_after_the_last_answer_is_left_out(tokenizer):
    tokenizer.chat_template = TEMPLATE
    longer = Split((("w1", "w2", "w3"),), (("user", "assistant", "user"),))
    assert learned(encode(longer, tokenizer), tokenizer) == ["w90 w1 w92 w91 (w2) (w92)"]


def test_an_answer_that_the_template_writes_otherwise_later_is_not_learned(tokenizer):
    tokenizer.chat_template = FORGETS
    assert learned(encode(TALK, tokenizer), tokenizer) == ["w90 w1 w92 w91 w93 w92 w90 w4 w92 w91 (w5) (w92)"]


def test_a_template_that_refuses_is_quoted(tokenizer):
    tokenizer.chat_template = REFUSES
    with pytest.raises(ModelError, match="refuses the conversation 'w1': roles must alternate"):
        encode(TALK, tokenizer)


def test_a_template_without_room_for_an_answer_is_refused(tokenizer):
    tokenizer.chat_template = "{% if add_generation_prompt %}w95{% endif %}{{ messages[-1].content }}"
    with pytest.raises(ModelError, match="does not write an answer where it makes room"):
        encode(TALK, tokenizer)


@pytest.mark.parametrize(("length", "kept"), [(8, "w90 w4 w92 w91 (w5) (w92)"), (6, "w90 w4 w92 w91 (w5) (w92)")])
def test_what_is_too_long_loses_its_beginning(tokenizer, length, kept):
    tokenizer.chat_template = TEMPLATE
    encoded = encode(TALK, tokenizer, length)
    assert encoded.lengths.tolist() == [length]
    assert learned(encoded, tokenizer)[0].endswith(kept)
    assert CausalLM().prompts(encoded)[0].tolist() == encoded.tokens[: length - 2].tolist()


def test_an_answer_that_is_too_long_loses_its_end(tokenizer):
    tokenizer.chat_template = TEMPLATE
    long = Split((("w1", "w2 " * 40),), (("user", "assistant"),))
    assert learned(encode(long, tokenizer, 8), tokenizer) == ["w91 " + " ".join(["(w2)"] * 7)]


def test_a_slow_tokeniser_is_refused(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="fast tokeniser"):
        encode(TALK, Slow())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_conversations_are_read_from(tmp_path, suffix):
    path = tmp_path / f"talks{suffix}"
    if suffix == ".jsonl":
        write(path, rows(20))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows(20)), path)
    data = load_data(UNSET, path)
    assert data.problem_name == "causal_lm"
    train = data.splits["train"]
    assert train.labels[0] == ("user", "assistant")
    assert all(question.endswith(f" {answer}") for question, answer in train.texts)


def test_other_names_of_roles_and_keys_are_understood(tmp_path):
    said = [{"from": "system", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]
    write(tmp_path / "a.jsonl", [{"conversations": [*said[:2], {**said[2], "value": str(n)}]} for n in range(20)])
    train = load_data(UNSET, tmp_path / "a.jsonl").splits["train"]
    assert set(train.labels) == {("system", "user", "assistant")}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "must be a list of messages, found hello"),
        ([], "must be a list of messages, found []"),
        ([{"content": "a"}], "message 1 in 'messages' has no role: {'content': 'a'}"),
        ([message("user", None)], "message 1 in 'messages': 'content' must be text, found None"),
        ([message("user", "a")], "'messages' has no message of the role assistant: there is nothing to learn"),
        ([message("assistant", "a")], "'messages' begins with an answer"),
        ([message("user", "a"), message("assistant", " ")], "message 2 in 'messages' is an empty answer"),
    ],
)
def test_a_row_that_is_no_conversation_is_refused_with_its_line(tmp_path, messages, problem):
    made = rows(20)
    made[2] = {"messages": messages}
    path = write(tmp_path / "a.jsonl", made)
    with pytest.raises(DataError, match=re.escape(f"{path}: 1 row cannot be read: line 3: ") + ".*") as error:
        load_data(UNSET, path)
    assert problem in str(error.value)


def test_conversations_are_trained_and_their_last_answers_compared(tmp_path, folder):
    path = write(tmp_path / "a.jsonl", rows(60))
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "max_length": 24}
    task = {"metric": "exact_match"}
    recipe = TrialRecipe.model_validate({"version": 1, "task": task, "training": training})
    trainer = TransformerBackend(str(folder), None, recipe, load_data(recipe.task, path)).open()
    architecture = Architecture.of(place("decoder", layer, "ffn", "parallel", 8) for layer in range(2))
    job = TrialJob(0, architecture, (), 0, tmp_path / "trial")
    job.folder.mkdir()
    result = trainer.train(job, lambda epoch: None)
    first, last = result.epochs[0], result.epochs[-1]
    assert last.train_loss < first.train_loss
    assert next(iter(dict(last.metrics))) == "exact_match"
    assert trainer.evaluate(replace(job), "test").n_rows == len(trainer._splits["test"])
    assert torch.equal(trainer._splits["train"].n_labels, torch.full((len(trainer._splits["train"]),), 2))
