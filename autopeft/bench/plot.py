"""Curves of regret as an SVG, drawn by hand: no plotting library is needed, and the file opens in any browser."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from autopeft.bench.surface import Array

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 190, 40, 50
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#999999",
    "#7f3b08",
    "#542788",
)


def regret_svg(title: str, curves: Mapping[str, Array]) -> str:
    """Mean regret over seeds with a band of one standard error; `curves` maps samplers to `(seeds, trials)`."""
    n_trials = max(curve.shape[1] for curve in curves.values())
    shown = {name: (curve.mean(axis=0), _error(curve)) for name, curve in curves.items()}
    top = float(max([mean[min(9, n_trials - 1)] for mean, _ in shown.values()])) * 1.1 or 1.0
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(trial: float, regret: float) -> str:
        y = _TOP + high * (1 - min(max(regret, 0.0), top) / top)
        return f"{_LEFT + wide * trial / n_trials:.1f},{y:.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">{escape(title)}</text>',
        f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 12}" text-anchor="middle">trials</text>',
        f'<text transform="translate(16 {_TOP + high / 2}) rotate(-90)" text-anchor="middle">regret</text>',
    ]
    for value in _ticks(top):
        x, y = at(0, value).split(",")
        lines.append(f'<line x1="{x}" x2="{_LEFT + wide}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for trial in _ticks(n_trials):
        x = at(trial, 0).split(",")[0]
        lines.append(f'<text x="{x}" y="{_TOP + high + 18}" text-anchor="middle">{trial:g}</text>')
    for number, (name, (mean, error)) in enumerate(shown.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        known = range(n_trials)
        upper = [at(i + 1, mean[i] + error[i]) for i in known]
        lower = [at(i + 1, mean[i] - error[i]) for i in reversed(known)]
        lines.append(f'<polygon points="{" ".join([*upper, *lower])}" fill="{colour}" opacity="0.15"/>')
        points = " ".join(at(i + 1, mean[i]) for i in known)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        row = _TOP + 16 * number + 8
        lines.append(f'<rect x="{_LEFT + wide + 14}" y="{row - 9}" width="12" height="10" fill="{colour}"/>')
        lines.append(f'<text x="{_LEFT + wide + 32}" y="{row}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _error(curve: Array) -> Array:
    if len(curve) < 2:
        return np.zeros(curve.shape[1])
    return np.asarray(curve.std(axis=0, ddof=1) / np.sqrt(len(curve)))


def _ticks(top: float) -> Sequence[float]:
    """Four to ten round values from 0 to `top`."""
    raw = top / 5
    power = 10 ** np.floor(np.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw)
    return [float(f"{v:.6g}") for v in np.arange(0, top + step / 1e6, step)]
