"""The live table and the lines, from the events of a toy search."""

import io

import pytest
from rich.console import Console

from autopeft.cli.views import LineView, LiveView
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
