"""ms-swift's tuner: an exported plugin.py puts `tuner_for(spec)` into its `tuners_map`.

Source: ms-swift 4.6, `tuner_plugin/base.py`.
"""

from pathlib import Path
from typing import Any

from swift.tuner_plugin import PeftTuner

from autopeft.transfer import apply


def tuner_for(spec: str | Path) -> type[Any]:
    """A tuner class that puts the spec's architecture into a model; saving and loading are PEFT's own."""

    class AutopeftTuner(PeftTuner):  # type: ignore[misc]
        @staticmethod
        def prepare_model(args: Any, model: Any) -> Any:
            """The adapted model; raises as `autopeft.apply`."""
            return apply(model, spec, task_type="CAUSAL_LM")

    return AutopeftTuner
