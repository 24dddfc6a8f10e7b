"""Curves of runs as Vega-Lite specifications."""

from typing import Any

from .runs import Run, numbers

POINTS = 1000
"""Points of a curve; of a longer one every n-th is drawn."""
_FIRST = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "phi", "f/negative",
          "f/mean", "f/min", "f/max", "logps/chosen", "logps/rejected", "grad_norm", "learning_rate",
          "tokens_per_second")  # fmt: skip
_NOT_DRAWN = {"step", "epoch", "tokens"}
_TRAINING, _HELD_OUT = "training", "held out"


def figures(runs: list[Run]) -> list[dict[str, Any]]:
    """A figure for every metric: id, title, caption, spec, and the points of its curves."""
    logged = {name.removeprefix("eval_") for run in runs for record in run.records for name in numbers(record)}
    names = [name for name in _FIRST if name in logged] + sorted(logged - set(_FIRST) - _NOT_DRAWN)
    return [_figure(number, name, runs) for number, name in enumerate(names)]


def _figure(number: int, metric: str, runs: list[Run]) -> dict[str, Any]:
    points, is_thinned = [], False
    for run in runs:
        for kind, prefix in ((_TRAINING, ""), (_HELD_OUT, "eval_")):
            curve = _curve(run, prefix + metric)
            stride = -(-len(curve) // POINTS)
            is_thinned = is_thinned or stride > 1
            # The last point is always there.
            shown = [*curve[: -1 : stride or 1], *curve[-1:]]
            points += [{"run": run.name, "of": kind, "step": x, "epoch": e, "value": y} for x, e, y in shown]
    caption = "Every n-th logged value and the last one." if is_thinned else ""
    return {
        "id": f"metric-{number}",
        "title": metric,
        "caption": caption,
        "spec": _spec(metric, [run.name for run in runs]),
        "points": points,
    }


def _curve(run: Run, metric: str) -> list[tuple[int, float, float]]:
    found = ((record["step"], numbers(record)) for record in run.records)
    return [(step, values.get("epoch", 0.0), values[metric]) for step, values in found if metric in values]


def _spec(metric: str, runs: list[str]) -> dict[str, Any]:
    tooltip = [
        {"field": "run", "type": "nominal"},
        {"field": "of", "type": "nominal"},
        {"field": "step", "type": "quantitative"},
        {"field": "epoch", "type": "quantitative", "format": ".3f"},
        {"field": "value", "type": "quantitative", "title": metric, "format": ".5~g"},
    ]
    return {
        "description": metric,
        "width": "container",
        "height": 220,
        "autosize": {"type": "fit-x", "contains": "padding", "resize": True},
        "data": {"name": "points", "values": []},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": None},
            "y": {"field": "shown", "type": "quantitative", "title": None, "scale": {"zero": False}},
            "color": {"field": "run", "type": "nominal", "scale": {"domain": runs}},
            "strokeDash": {"field": "of", "type": "nominal", "scale": {"domain": [_TRAINING, _HELD_OUT]}},
            "tooltip": tooltip,
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5}},
            {
                "mark": {"type": "point", "filled": True, "size": 16, "opacity": 0.6},
                "encoding": {"strokeDash": {"value": [1, 0]}},
            },
        ],
    }
