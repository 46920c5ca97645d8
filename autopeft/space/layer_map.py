"""An architecture as text, one row a layer or a run of equal layers.

L00-L02 | attention: lora q,v r=8 | prefix l=4 | ffn: parallel b=16 s=4
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from autopeft.space.architecture import Architecture, Placement
from autopeft.space.modules import MODULES

_SHORT = {"alpha": "α", "scale": "s", "reparameterisation": "mlp"}
_WORDS = ("activation", "variant", "scaling")
"""Options whose value says what it is."""


def layer_map(architecture: Architecture, merge: bool = True) -> tuple[str, ...]:
    """Rows of the map; with `merge`, consecutive layers that hold the same are one row."""
    by_layer: dict[tuple[str, int], list[Placement]] = {}
    for p in architecture.placements:
        by_layer.setdefault((p.stack, p.layer), []).append(p)
    stacks = {stack for stack, _ in by_layer}
    rows = [(stack, layer, describe_layer(placements)) for (stack, layer), placements in sorted(by_layer.items())]
    return tuple(_rows(rows, merge, len(stacks) > 1))


def _rows(rows: Sequence[tuple[str, int, str]], merge: bool, with_stack: bool) -> Iterator[str]:
    def key(item: tuple[int, tuple[str, int, str]]) -> tuple[str, int, str]:
        position, (stack, layer, text) = item
        return (stack, layer - position if merge else layer, text)

    for (stack, _, text), run in groupby(enumerate(rows), key=key):
        layers = [layer for _, (_, layer, _) in run]
        name = f"L{layers[0]:02d}" + (f"-L{layers[-1]:02d}" if len(layers) > 1 else "")
        yield f"{stack} {name} | {text}" if with_stack else f"{name} | {text}"


def describe_layer(placements: Sequence[Placement]) -> str:
    """The modules of one layer: `attention: lora q,v r=8 | ffn: parallel b=16 s=4 | bitfit`."""
    parts: dict[tuple[str, str], list[str]] = {}
    for p in sorted(placements, key=_site_order):
        where, _, site = p.role.partition(".")
        setting = f"{MODULES[p.module].size_symbol}={p.size}" if MODULES[p.module].max_size != 1 else ""
        options = " ".join(_option(name, value) for name, value in p.options)
        text = " ".join(word for word in (p.module, "{sites}", setting, options) if word)
        parts.setdefault((where, text), []).append(site)
    described: dict[str, list[str]] = {}
    for (where, text), sites in parts.items():
        words = text.format(sites=",".join(s for s in sites if s)).split()
        described.setdefault(where, []).append(" ".join(words))
    names = {"embeddings": "embeddings: ", "attn": "attention: ", "ffn": "ffn: ", "layer": ""}
    order = sorted(described, key=list(names).index)
    return " | ".join(names[where] + " + ".join(described[where]) for where in order)


def _site_order(p: Placement) -> tuple[int, int]:
    return list(MODULES).index(p.module), MODULES[p.module].roles.index(p.role)


def _option(name: str, value: object) -> str:
    if name in _WORDS:
        return str(value)
    short = _SHORT.get(name, name)
    return f"{short}={value:g}" if isinstance(value, float) else f"{short}={value}"
