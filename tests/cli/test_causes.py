"""Why trials failed, as the reports on a study tell it."""

from pathlib import Path

from autopeft.cli.studies import show_study, study_status
from autopeft.engine.toy import ToyBackend
from autopeft.study.search import search
from tests.study.toy_search import toy_plan


def test_status_counts_the_causes_of_failures_and_show_names_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    search(toy_plan(run, 3, ToyBackend(failures={0: "nan", 1: "data", 3: "nan", 5: "limit"})))
    text, data = study_status(str(run))
    assert "3/3 trials complete, 4 failed (2 NaN, 1 data, 1 over a limit)" in text
    assert data["causes"] == {"NaN": 2, "data": 1, "over a limit": 1} and data["rejected"] == 1
    table, trials = show_study(["trials"], str(run))
    assert "failed NaN" in table and [t["result"]["cause"] for t in trials if t["state"] == "failed"] == [
        "NaN",
        "data",
        "NaN",
        "over a limit",
    ]
    assert "trial 1 failed (data): a label that the model does not have" in show_study(["trial", "1"], str(run))[0]
