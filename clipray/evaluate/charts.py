"""Two charts as SVG: recall over latency, and histograms of scores. Colours stand in the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipray.evaluate.markup import Markup, tag
from clipray.evaluate.verdict import Point, Scores

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 48  # margins
NICE = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the axes run: values → pixels.

    Attributes:
        x: of the horizontal axis.
        y: of the vertical one.
    """

    x: Callable[[float], float]
    y: Callable[[float], float]


def recall_curve(curve: Sequence[Point], k: int) -> Markup:
    """Recall over the latency of one query, a line a kind; the chosen settings have a ring."""
    times = [ms for point in curve for ms in point.ms.values()]
    least = min(value for point in curve for value in point.recall.values())
    floor = max(0.0, math.floor(least * 10 - 1e-9) / 10 if least < 1 else 0.9)
    frame = _Frame(_log_scale(min(times), max(times)), _scale((floor, 1), HEIGHT - BOTTOM, TOP))
    ticks = [(frame.x(ms), f"{ms:g}") for ms in _log_ticks(min(times), max(times))]
    levels = [floor + (1 - floor) * step / 5 for step in range(6)]
    lines = [_recall_line(curve, kind, frame) for kind in curve[0].recall]
    return _chart(
        "recall over latency",
        _axes(ticks, [(frame.y(level), f"{level:.3g}") for level in levels]),
        _names("milliseconds of one query, median", f"recall@{k}"),
        lines,
        _legend([(f"{kind}-like queries", kind) for kind in curve[0].recall]),
    )


def histogram(scores: Scores) -> Markup:
    """Shares of pairs and of non-pairs by score, with the two thresholds."""
    edges = scores.edges
    top = max(*scores.pairs_shares, *scores.others_shares)
    frame = _Frame(
        _scale((edges[0], edges[-1]), LEFT, WIDTH - RIGHT), _scale((0, top), HEIGHT - BOTTOM, TOP)
    )
    ticks = [(frame.x(value), f"{value:.2g}") for value in _ticks(edges[0], edges[-1])]
    levels = [(frame.y(level), f"{level:.0%}") for level in _ticks(0, top)]
    bars = [
        _bars(edges, shares, kind, frame)
        for kind, shares in (("others", scores.others_shares), ("pairs", scores.pairs_shares))
    ]
    marks = [
        _mark(frame.x(scores.best_f1.score), "f1"),
        _mark(frame.x(scores.one_percent.score), "few"),
    ]
    legend = [("pairs", "pairs"), ("non-pairs", "others"), ("best F1", "f1"), ("1 % false", "few")]
    names = _names("cosine of picture and caption", "share")
    return _chart("scores", _axes(ticks, levels), names, bars, marks, _legend(legend))


def told_settings(point: Point, curve: Sequence[Point]) -> str:
    """The settings of a point that differ along its curve."""
    names = {"nprobe": "nprobe", "ef_search": "efSearch", "rescore": "rescore"}
    varied = [
        name for name in names if len({getattr(one.settings, name) for one in curve}) > 1
    ] or list(names)
    return ", ".join(f"{names[name]} {getattr(point.settings, name)}" for name in varied)


def _recall_line(curve: Sequence[Point], kind: str, frame: _Frame) -> Markup:
    places = [(frame.x(point.ms[kind]), frame.y(point.recall[kind])) for point in curve]
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = []
    for point, (x, y) in zip(curve, places, strict=True):
        title = tag(
            "title",
            f"{told_settings(point, curve)}: recall {point.recall[kind]:.4f}, "
            f"{point.ms[kind]:.3f} ms",
        )
        dot = tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5, class_=f"fill {kind}")
        ring = tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=8, class_=f"line {kind}")
        dots.append(tag("g", title, dot, ring if point.chosen else ""))
    return tag("g", tag("polyline", points=told, class_=f"line {kind}"), dots)


def _bars(edges: Sequence[float], shares: Sequence[float], kind: str, frame: _Frame) -> Markup:
    bars = []
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        x, y = frame.x(left), frame.y(share)
        width, height = frame.x(right) - x, frame.y(0) - y
        bars.append(_rect(x, y, max(0.5, width - 0.5), height, f"bar {kind}"))
    return tag("g", bars)


def _mark(x: float, kind: str) -> Markup:
    place = f"{x:.1f}"
    return tag("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_=f"mark {kind}")


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Markup:
    return tag(
        "rect",
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        width=f"{width:.1f}",
        height=f"{height:.1f}",
        class_=kind,
    )


def _axes(ticks: Sequence[tuple[float, str]], levels: Sequence[tuple[float, str]]) -> Markup:
    foot = HEIGHT - BOTTOM
    grid = [
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
        for y, _ in levels
    ]
    below = [tag("text", told, x=f"{x:.1f}", y=foot + 16, class_="tick") for x, told in ticks]
    beside = [tag("text", told, x=LEFT - 8, y=f"{y + 4:.1f}", class_="level") for y, told in levels]
    return tag("g", grid, below, beside)


def _names(across: str, up: str) -> Markup:
    return tag(
        "g",
        tag("text", across, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 10, class_="tick"),
        tag("text", up, x=6, y=18, class_="name"),
    )


def _legend(entries: Sequence[tuple[str, str]]) -> Markup:
    spots: list[Markup] = []
    x = WIDTH - RIGHT
    for told, kind in reversed(entries):
        x -= 8 * len(told) + 24
        spots.append(_rect(x, 8, 11, 11, f"fill {kind}"))
        spots.append(tag("text", told, x=x + 16, y=18, class_="name"))
    return tag("g", spots)


def _chart(name: str, *inner: Markup | list[Markup]) -> Markup:
    drawn = tag("svg", *inner, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=name)
    return tag("div", drawn, class_="wide")


def _scale(ends: tuple[float, float], start: float, stop: float) -> Callable[[float], float]:
    low, high = ends
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def _log_scale(low: float, high: float) -> Callable[[float], float]:
    ends = math.log(low * 0.93), math.log(high * 1.07)
    scale = _scale(ends, LEFT, WIDTH - RIGHT)
    return lambda value: scale(math.log(value))


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    values = [nice * 10.0**decade for decade in decades for nice in NICE]
    inside = [value for value in values if low * 0.93 <= value <= high * 1.07]
    return inside if len(inside) > 1 else [float(f"{low:.2g}"), float(f"{high:.2g}")]


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * decade for nice in (*NICE, 10) if nice * decade >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
