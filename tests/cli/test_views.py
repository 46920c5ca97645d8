"""The live table, the lines and the reports, from toy searches."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from autopeft.cli.studies import show_study
from autopeft.cli.views import LineView, LiveView
from autopeft.engine.pulse import no_beat
from autopeft.engine.toy import ToyBackend, ToyTrainer
from autopeft.study.search import search
from tests.study.toy_search import toy_plan


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_table_shows_numbers_whole_at_any_width(tmp_path, width):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, legacy_windows=False)
    view = LiveView(console)
    frames = []

    def listen(event):
        view(event)
        with console.capture() as frame:
            console.print(view._draw())
        frames.append(frame.get())

    with view:
        outcome = search(toy_plan(tmp_path / "run", 4), listen)
    last = frames[-1]
    for trial in outcome.view.trials:
        assert f"{trial.score:.4f}" in last
        assert f"{trial.stored:,}" in last
    assert "4/4 trials" in last
    assert "113,566" in last


def test_a_pipe_gets_one_line_a_trial_without_control_characters(tmp_path):
    out = io.StringIO()
    with LineView(Console(file=out, width=80)) as view:
        search(toy_plan(tmp_path / "run", 4), view)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("run folder")
    assert sum(line.startswith("trial") and " parameters" in line for line in lines) == 4
    assert "\x1b" not in out.getvalue()


class InParts(ToyTrainer):
    def train(self, job, on_epoch, beat=no_beat):
        return replace(super().train(job, on_epoch, beat), micro_batch_size=4 if job.number == 1 else None)


class Crowded(ToyBackend):
    """Its second trial goes through batches in parts."""

    def open(self, worker=0):
        return InParts(self)


def test_trials_that_went_through_batches_in_parts_are_told_from_others(tmp_path):
    search(toy_plan(tmp_path / "run", 3, Crowded()))
    rows = show_study(["trials"], str(tmp_path / "run"))[0].splitlines()[-3:]
    assert ["complete in parts of 4" in row for row in rows] == [False, True, False]
    assert "batches in parts of 4" in show_study(["trial", "1"], str(tmp_path / "run"))[0]
