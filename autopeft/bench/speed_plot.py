"""Speed of trials by the first adapted layer, as an SVG by hand: a dot a configuration, a line over its rounds."""

from collections.abc import Callable
from html import escape
from math import log10

from autopeft.bench.trial_speed import Speeds, Study, Suite

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 340, 300, 50, 60, 50
_COLOURS = {"b0": "#009e73", "b1": "#0072b2", "b2": "#d55e00"}
_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def speed_svg(speeds: Speeds) -> str:
    """A panel for each kind and law: how many times as long a trial of each baseline takes, on a logarithmic scale."""
    n = len(speeds.suites)
    every = (one.ratio(way, _study(speeds)) for suite in speeds.suites for one in suite.timed for way in speeds.ways)
    ranges = [found for found in every if found is not None]
    low = max((t for t in _TICKS if t <= min(r.low for r in ranges)), default=_TICKS[0])
    high = min((t for t in _TICKS if t >= max(r.high for r in ranges) and t > low), default=_TICKS[-1])
    tall = _HEIGHT - _TOP - _BOTTOM

    def y_of(ratio: float) -> float:
        share = (log10(min(max(ratio, low), high)) - log10(low)) / (log10(high) - log10(low))
        return _TOP + tall * (1 - share)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH * n} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH * n}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(_title(speeds))}</text>',
    ]
    for number, suite in enumerate(speeds.suites):
        left, right = _WIDTH * number + _LEFT, _WIDTH * (number + 1) - 20
        lines.append(f'<text x="{left}" y="44">{escape(f"{suite.kind}, {suite.law}")}</text>')
        for tick in (t for t in _TICKS if low <= t <= high):
            y = y_of(tick)
            lines.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            lines.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}x</text>')
        lines += _dots(suite, speeds, left, right, y_of)
        lines.append(
            f'<text x="{(left + right) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">first adapted layer</text>'
        )
    for number, way in enumerate(speeds.ways):
        x = _WIDTH * n - 60 * (len(speeds.ways) - number)
        lines.append(f'<circle cx="{x}" cy="40" r="4" fill="{_COLOURS[way]}"/><text x="{x + 8}" y="44">{way}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _dots(suite: Suite, speeds: Speeds, left: float, right: float, y_of: Callable[[float], float]) -> list[str]:
    ways = speeds.ways
    n_layers = suite.timed[0].configuration.n_layers
    lines = []
    for layer in range(n_layers):
        x = left + (right - left) * (layer + 0.5) / n_layers
        lines.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{layer}</text>')
    for one in suite.timed:
        for number, way in enumerate(ways):
            if (found := one.ratio(way, _study(speeds))) is None:
                continue
            x = left + (right - left) * (one.configuration.first + 0.5) / n_layers + 8 * (number - (len(ways) - 1) / 2)
            top, middle, bottom = (y_of(value) for value in (found.high, found.median, found.low))
            line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="{_COLOURS[way]}"/>'
            lines += [line, f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="4" fill="{_COLOURS[way]}"/>']
    return lines


def _study(speeds: Speeds) -> Study:
    return Study(speeds.facts["study_trials"], speeds.facts["study_epochs"])


def _title(speeds: Speeds) -> str:
    facts = speeds.facts
    return f"seconds of a trial over ours, {facts['model']}, {facts['rounds']} rounds, {facts['device']}"
