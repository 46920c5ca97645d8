"""Tiny models with tokenisers as folders on disk, and a task of words that they can learn."""

from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autopeft.engine.columns import Columns
from autopeft.engine.data import TaskData
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.splits import Split
from autopeft.engine.transformer_backend import TransformerBackend
from tests.models import TINY_FAMILIES, VOCABULARY, tiny

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [f"w{i}" for i in range(VOCABULARY - len(SPECIAL))]


def checkpoint(folder: Path, family: str = "bert", **config: Any) -> Path:
    """A folder with the weights of a tiny model without a task head, and a tokeniser; GPT-2's has no padding token."""
    # Wider weights than usual: an untrained model must tell words apart for a task to be learnable in seconds.
    wide = {"initializer_factor" if family == "t5" else "initializer_range": 2.0 if family == "t5" else 0.2}
    made = TINY_FAMILIES[family] if family in TINY_FAMILIES else partial(tiny, family)
    made(**{**wide, **config}).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if family in {"gpt2", "llama"}:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]")
    else:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )
    tokenizer.save_pretrained(folder)
    return folder


def word_task(n_rows: int = 48, *, pairs: bool = False, regression: bool = False) -> TaskData:
    """Two classes with four words of their own; 3 to 9 words a text."""

    def split(n: int, offset: int) -> Split:
        texts, labels = [], []
        for row in range(offset, offset + n):
            label = row % 2
            words = [WORDS[(row * 7 + i * 3) % 4 + 40 * label] for i in range(3 + row % 7)]
            texts.append((" ".join(words), "w1 w2") if pairs else (" ".join(words),))
            labels.append(label)
        return Split(tuple(texts), tuple(label + 0.5 for label in labels) if regression else tuple(labels))

    splits = {"train": split(n_rows, 0), "validation": split(16, 1000), "test": split(16, 2000)}
    problem = "regression" if regression else "classification"
    names = () if regression else ("first", "second")
    return TaskData("words", splits, names, Columns(("text",), "label"), (), "0" * 64, problem)


def recipe(*, regression: bool = False, **training: Any) -> TrialRecipe:
    """A recipe for `word_task`: 3 epochs in batches of 8."""
    problem = {"problem": "regression", "metric": "pearson"} if regression else {}
    given = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "max_length": 16} | training
    return TrialRecipe.model_validate({"version": 1, "task": problem, "training": given})


def backend(folder: Path, *, regression: bool = False, pairs: bool = False, **training: Any) -> TransformerBackend:
    return TransformerBackend(
        model=str(folder),
        revision=None,
        recipe=recipe(regression=regression, **training),
        data=word_task(regression=regression, pairs=pairs),
    )
