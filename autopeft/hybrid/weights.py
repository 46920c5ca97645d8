"""Which weights belong to an adapter, and whether given ones fit."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from autopeft.errors import ModelError
from autopeft.hybrid.layers import PREFIX, HybridLayer

_OLD_GATE = re.compile(rf"\.{PREFIX}\w+_gate$")


def adapter_keys(model: nn.Module, adapter_name: str) -> list[str]:
    """Keys of the model's state dict that belong to the adapter's modules (the task head apart)."""
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, HybridLayer)
        for attribute in module.adapter_layer_names
        for key in module.state_dict(prefix="")
        if key == f"{attribute}.{adapter_name}" or key.startswith(f"{attribute}.{adapter_name}.")
    ]


def with_current_names(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`saved` with scalar gates, which were parameters once (`…_gate`), under their module's name (`…_gate.weight`)."""
    return {f"{key}.weight" if _OLD_GATE.search(key) else key: value for key, value in saved.items()}


def check_weights(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """
    Raises:
        ModelError: `given` has other keys or other shapes than `expected`; names the first few.
    """
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": sorted(
            f"{key} (saved {tuple(given[key].shape)}, model {tuple(expected[key].shape)})"
            for key in expected.keys() & given.keys()
            if expected[key].shape != given[key].shape
        ),
    }
    found = [
        f"{len(keys)} {problem}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
        for problem, keys in problems.items()
        if keys
    ]
    if found:
        raise ModelError(f"{what} does not fit the model; weights {'; '.join(found)}")
