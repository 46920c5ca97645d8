"""Batches against the tokenizer's own padding, and their order: every row once, like with like, repeatable."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autopeft.engine import batches
from autopeft.engine.batches import TokenisedSplit, evaluation_batches, training_batches, training_order
from autopeft.engine.problems import PROBLEMS
from autopeft.engine.scoring import judge
from autopeft.engine.splits import Split

torch.set_num_threads(1)

VOCABULARY = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghij"])}


def tokenizer(*, special: bool = True) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if not special:
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def words(n: int) -> str:
    return " ".join("abcdefghij"[i % 10] for i in range(n))


def singles(lengths) -> Split:
    return Split(tuple((words(n),) for n in lengths), tuple(i % 3 for i in range(len(lengths))))


def pairs(lengths) -> Split:
    return Split(tuple((words(n), words(2 * n % 7 + 1)) for n in lengths), tuple(i / 2 for i in range(len(lengths))))


def tokenise(split: Split, tokenizer, max_length: int) -> TokenisedSplit:
    labels = torch.tensor(split.labels)
    return batches.tokenise(split.texts, labels, tokenizer, max_length)


@pytest.mark.parametrize("split", [singles([3, 1, 9, 4]), pairs([3, 1, 9, 4])], ids=["single", "pair"])
@pytest.mark.parametrize("max_length", [8, 64])
def test_a_batch_is_what_the_tokenizer_pads_itself(split, max_length):
    tokenised = tokenise(split, tokenizer(), max_length)
    rows = torch.tensor([2, 0, 3])
    texts = [list(column) for column in zip(*(split.texts[i] for i in rows.tolist()), strict=True)]
    expected = tokenizer()(*texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    batch = tokenised.batch(rows)
    assert torch.equal(batch.input_ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"])
    if batch.token_type_ids is None:
        assert not expected["token_type_ids"].any()
    else:
        assert torch.equal(batch.token_type_ids, expected["token_type_ids"])
    assert (batch.token_type_ids is None) == (len(split.texts[0]) == 1)
    assert batch.labels.tolist() == [split.labels[i] for i in rows.tolist()]
    assert batch.labels.dtype == (torch.int64 if len(texts) == 1 else torch.float32)
    assert set(batch.model_inputs()) <= {"input_ids", "attention_mask", "token_type_ids"}


def test_the_padded_length_can_be_rounded_up():
    batch = tokenise(singles([3, 9]), tokenizer(), 64).batch(torch.tensor([0, 1]), multiple_of=8)
    assert batch.input_ids.shape == (2, 16)
    assert batch.attention_mask.sum(dim=1).tolist() == [5, 11]


def test_a_batch_moves_to_a_device_whole():
    batch = tokenise(pairs([3, 9]), tokenizer(), 64).batch(torch.tensor([0, 1])).to("meta")
    tensors = [batch.rows, batch.labels, *batch.model_inputs().values()]
    assert len(tensors) == 5
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_a_row_without_tokens_gets_one_so_that_attention_is_defined():
    split = Split((("",), ("a b",)), (0, 1))
    tokenised = tokenise(split, tokenizer(special=False), 8)
    assert tokenised.lengths.tolist() == [1, 2]
    assert tokenised.batch(torch.tensor([0, 1])).attention_mask.sum(dim=1).min() == 1


def test_without_a_pad_token_the_end_token_pads():
    tokenised = tokenise(singles([1, 3]), tokenizer(special=False), 8)
    assert tokenised.batch(torch.tensor([0, 1])).input_ids[0].tolist() == [4, 2, 2]


def test_tokenising_in_chunks_changes_nothing(monkeypatch):
    whole = tokenise(pairs(range(1, 40)), tokenizer(), 16)
    monkeypatch.setattr("autopeft.engine.batches._CHUNK", 7)
    chunked = tokenise(pairs(range(1, 40)), tokenizer(), 16)
    assert torch.equal(whole.tokens, chunked.tokens)
    assert torch.equal(whole.types, chunked.types)
    assert torch.equal(whole.starts, chunked.starts)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=300),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.integers(0, 50),
)
def test_every_row_is_in_one_batch_and_only_one_batch_is_not_full(lengths, batch_size, seed, epoch):
    batches = training_order(torch.tensor(lengths), batch_size, seed, epoch)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    sizes = sorted(len(rows) for rows in batches)
    assert all(size == batch_size for size in sizes[1:])
    assert len(batches) == -(-len(lengths) // batch_size)


def test_the_order_follows_from_seed_and_epoch_alone():
    lengths = torch.randint(1, 60, (200,), generator=torch.Generator().manual_seed(0))

    def order(seed, epoch):
        return torch.cat(training_order(lengths, 16, seed, epoch)).tolist()

    first = order(1, 0)
    torch.manual_seed(123)
    assert order(1, 0) == first
    assert order(1, 1) != first
    assert order(2, 0) != first


def test_like_lengths_are_together_and_the_longest_do_not_come_first_always():
    lengths = torch.randint(5, 100, (2000,), generator=torch.Generator().manual_seed(0))
    batches = training_order(lengths, 32, seed=0, epoch=0)
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    shuffled = sum(len(rows) * int(lengths[rows].max()) for rows in torch.randperm(2000).split(32))
    assert padded / int(lengths.sum()) < 1.12
    assert shuffled / int(lengths.sum()) > 1.7
    means = torch.tensor([float(lengths[rows].float().mean()) for rows in batches])
    assert torch.corrcoef(torch.stack([means, torch.arange(len(means)).float()]))[0, 1].abs() < 0.4


def test_training_batches_are_the_rows_of_the_order():
    split = tokenise(singles([3, 1, 9, 4, 2]), tokenizer(), 16)
    rows = [batch.rows.tolist() for batch in training_batches(split, 2, seed=5, epoch=3, rows=torch.arange(len(split)))]
    assert rows == [batch.tolist() for batch in training_order(split.lengths, 2, 5, 3)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_results_come_back_in_the_order_of_the_rows(batch_size):
    lengths = [3, 1, 9, 4, 2, 9, 1]
    texts = singles(lengths).texts
    split = batches.tokenise(texts, torch.zeros(len(lengths)), tokenizer(), 16)
    regression = PROBLEMS["regression"]()
    judged = judge(regression, split, batch_size, lambda batch: batch.attention_mask.sum(dim=1, keepdim=True).float())
    assert judged.predicted.tolist() == [n + 2.0 for n in lengths]
    assert judged.losses.tolist() == [(n + 2.0) ** 2 for n in lengths]
    assert judged.loss == sum((n + 2.0) ** 2 for n in lengths) / len(lengths)
    first = next(evaluation_batches(split, batch_size))
    assert first.input_ids.shape[1] == max(lengths) + 2


def test_evaluation_pads_rows_of_very_different_lengths_apart():
    lengths = np.random.default_rng(0).gamma(4, 5, 200).astype(int) + 1
    split = tokenise(singles(lengths.tolist()), tokenizer(), 128)
    found = list(evaluation_batches(split, 128))
    assert sorted(row for batch in found for row in batch.rows.tolist()) == list(range(200))
    assert all(16 <= len(batch.rows) <= 128 for batch in found[:-1])
    assert sum(batch.input_ids.numel() for batch in found) < 1.25 * int(split.lengths.sum())
