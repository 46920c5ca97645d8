"""A search on a tiny model whose trials train three together, as a program that can kill itself.

Run as a program: python -m tests.study.packed_search FOLDER RUN [TRIAL EPOCH], to die when that trial ends that epoch.
"""

import os
import signal
import sys
from pathlib import Path

import autopeft
from autopeft.study.progress import EpochEnded, SearchEvent

N_TRIALS = 8


def packed_search(folder: Path, run: Path, dies_at: tuple[int, int] | None = None) -> None:
    """Search with the model in `folder/model` and the rows in `folder/rows.jsonl`."""

    def listen(event: SearchEvent) -> None:
        if isinstance(event, EpochEnded) and (event.number, event.record.epoch) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    training = {"epochs": 3, "batch_size": 8, "max_length": 16}
    autopeft.search(
        budget="5%",
        model=str(folder / "model"),
        data=str(folder / "rows.jsonl"),
        run=str(run),
        trials=N_TRIALS,
        workers=1,
        pack=3,
        sampler="tpe",
        baselines=False,
        set=tuple(f"training.{name}={value}" for name, value in training.items()),
        listener=listen,
    )


if __name__ == "__main__":
    death = tuple(map(int, sys.argv[3:]))
    packed_search(Path(sys.argv[1]), Path(sys.argv[2]), (death[0], death[1]) if death else None)
