"""Runs the command line as users do, on a tiny model and a tiny data set that are written to disk once."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# No timing in tests: a busy machine must not fail them. The same examples in every run.
settings.register_profile("autopeft", deadline=None, derandomize=True)
settings.load_profile("autopeft")

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A folder with `model/` and `data/`, in which commands are run."""

    folder: Path

    def __call__(self, *arguments: str, timeout: float = 300, **environ: str) -> Finished:
        env = {k: v for k, v in os.environ.items() if not k.startswith("AUTOPEFT_")}
        env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **environ}
        done = subprocess.run(
            [sys.executable, "-m", "autopeft", *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: str):
        done = self(*arguments, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)


WORDS = {"good": ["fine", "great", "lovely", "bright"], "bad": ["poor", "awful", "grim", "dull"]}
FILLER = ["the", "film", "was", "a", "very", "story", "and", "it", "seemed", "often"]


def write_rows(path: Path, n: int, seed: int) -> None:
    """Two classes told apart by one word; texts differ in length."""
    import random

    dice = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            label = ("good", "bad")[i % 2]
            words = [dice.choice(FILLER) for _ in range(dice.randint(3, 12))]
            words.insert(dice.randint(0, len(words)), dice.choice(WORDS[label]))
            file.write(json.dumps({"text": f"{' '.join(words)} {i}", "label": label}) + "\n")


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from tests.models import tiny_bert

    folder = tmp_path_factory.mktemp("place")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *WORDS["good"], *WORDS["bad"]]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder / "model")
    tiny_bert().save_pretrained(folder / "model")
    write_rows(folder / "data" / "train.jsonl", 160, 0)
    return Place(folder)


SEARCH = ("search", "--model", "model", "--data", "data/train.jsonl", "--budget", "20%", "--trials", "4")
QUICK = ("--set", "training.epochs=2", "--set", "training.max_length=16")


@pytest.fixture(scope="session")
def searched(place) -> tuple[Place, Finished]:
    """A finished search in `runs/r`."""
    return place, place(*SEARCH, *QUICK, "--run", "runs/r")
