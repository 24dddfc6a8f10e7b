"""The figures of a cache's page, as Vega-Lite specifications with their data."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .compare import Comparison
from .sample import SIDES
from .statistics import Statistics, VocabularyToken
from .tokens import token_text
from .vocabulary import Vocabulary

Spec = dict[str, Any]

BINS = 80
SHOWN = 0.99
"""Histograms show this share of the values; a few extreme ones would leave the rest no room."""
POINTS = 2000
LISTED = 20
GROUPS = 10
_HEIGHT = 240


def figures(statistics: Statistics, vocabulary: Vocabulary | None) -> list[dict[str, Any]]:
    """Each with id, title, caption and spec."""
    found = [
        _figure("rewards", "Token rewards", _rewards(statistics), f"The middle {SHOWN:.0%} of the tokens' rewards."),
        _figure(
            "positions",
            "Reward by position",
            _positions(statistics),
            "Mean reward of the tokens at a place in their response; the band is two standard errors.",
        ),
        _figure("margins", "Margin of the pairs", _margins(statistics), "Summed rewards of chosen minus rejected."),
        _figure(
            "accuracy",
            "Accuracy by length",
            _accuracy(statistics),
            f"Pairs in up to {GROUPS} groups of growing length (mean of both responses), with two standard errors.",
        ),
        _figure(
            "lengths",
            "Margin against length",
            _lengths(statistics),
            f"{min(POINTS, statistics.accuracy.pairs):,} pairs at random, and means of up to {GROUPS} groups: a line "
            "that rises says that the guide likes the longer response.",
        ),
    ]
    liked, disliked = statistics.vocabulary[:LISTED], statistics.vocabulary[::-1][:LISTED]
    caption = "Mean reward of a token over all places where it was met, at least five times."
    for name, title, tokens in (("liked", "Most liked tokens", liked), ("disliked", "Most disliked tokens", disliked)):
        if tokens:
            found.append(_figure(name, title, _tokens(tokens, vocabulary), caption))
    return found


def comparison_figures(comparison: Comparison, vocabulary: Vocabulary | None) -> list[dict[str, Any]]:
    """Two guides on the same pairs."""
    found = [
        _figure(
            "both-margins",
            "Margins of both guides",
            _both_margins(comparison),
            f"{min(POINTS, comparison.pairs):,} pairs at random. Where the guides agree, points lie lower left or "
            "upper right.",
        )
    ]
    if comparison.tokens:
        caption = "Mean rewards of the tokens that the guides judge most differently, met at least five times."
        found.append(_figure("both-tokens", "Tokens that differ most", _both_tokens(comparison, vocabulary), caption))
    return found


def _both_margins(comparison: Comparison) -> Spec:
    ours, theirs = comparison.margins
    shown = np.random.default_rng(0).permutation(len(ours))[:POINTS]
    points = [{"ours": round(float(ours[n]), 4), "theirs": round(float(theirs[n]), 4)} for n in shown]
    encoding = {
        "x": _field("ours", "margin in this cache, nats"),
        "y": _field("theirs", "margin in the other, nats"),
        "tooltip": _numbers("ours", "theirs"),
    }
    return {
        "data": {"values": points},
        "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.35},
        "encoding": encoding,
    }


def _both_tokens(comparison: Comparison, vocabulary: Vocabulary | None) -> Spec:
    shown = comparison.tokens[:LISTED]
    names = [token_name(each.id, vocabulary) for each in shown]
    values = [
        {"token": name, "cache": cache, "mean": mean, "times": each.count}
        for name, each in zip(names, shown, strict=True)
        for cache, mean in (("this cache", each.ours), ("the other", each.theirs))
    ]
    return {
        "height": 15 * len(shown),
        "data": {"values": values},
        "encoding": {"y": _field("token", None, "nominal", sort=names, axis={"labelLimit": 160})},
        "layer": [
            {
                "mark": "rule",
                "encoding": {"x": _field("mean", None, aggregate="min"), "x2": {"aggregate": "max", "field": "mean"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {
                    "x": _field("mean", "mean reward, nats"),
                    "color": {"field": "cache", "type": "nominal", "scale": {"domain": ["this cache", "the other"]}},
                    "tooltip": [
                        _field("token", "token", "nominal"),
                        _field("cache", "cache", "nominal"),
                        *_numbers("mean"),
                        _field("times", "times"),
                    ],
                },
            },
        ],
    }


def _figure(name: str, title: str, spec: Spec, caption: str) -> dict[str, Any]:
    return {"id": name, "title": title, "caption": caption, "spec": chart(title, spec)}


def chart(description: str, spec: Spec) -> Spec:
    """`spec` as wide as its place, with a description for those who do not see it."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {"description": description, "width": "container", "height": _HEIGHT, "autosize": fit} | spec


def histogram(values: npt.NDArray[Any], low: float, high: float) -> Iterator[tuple[float, float, float]]:
    """Each bin's edges and share of all values."""
    counts, edges = np.histogram(values, BINS, (low, high))
    for n, count in enumerate(counts.tolist()):
        yield float(edges[n]), float(edges[n + 1]), count / len(values)


def _middle(values: npt.NDArray[Any]) -> tuple[float, float]:
    tail = (1 - SHOWN) / 2
    low, high = np.quantile(values, (tail, 1 - tail)).tolist()
    return (low, high) if low < high else (low - 1, high + 1)


def _field(name: str, title: str | None, kind: str = "quantitative", **options: Any) -> Spec:
    return {"field": name, "type": kind, "title": title} | options


_SIDE = {"field": "side", "type": "nominal", "scale": {"domain": list(SIDES)}}


def _rewards(statistics: Statistics) -> Spec:
    low, high = _middle(np.concatenate([statistics.kept[side] for side in SIDES]))
    values = [
        {"side": side, "from": start, "to": end, "share": share}
        for side in SIDES
        for start, end, share in histogram(statistics.kept[side], low, high)
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "bar", "opacity": 0.55, "binSpacing": 0},
        "encoding": {
            "x": _field("from", "reward, nats", bin={"binned": True}, axis={"tickCount": 10}),
            "x2": {"field": "to"},
            "y": _field("share", "share of tokens", stack=None, axis={"format": "%"}),
            "color": _SIDE,
            "tooltip": [
                _field("side", "side", "nominal"),
                *_numbers("from", "to"),
                _field("share", "share", format=".2%"),
            ],
        },
    }


def _numbers(*names: str) -> list[Spec]:
    return [_field(name, name.replace("_", " "), format=".4~g") for name in names]


def _positions(statistics: Statistics) -> Spec:
    values = [
        {
            "side": each.side,
            "position": (each.start + each.end + 1) / 2,  # counted from 1, for the logarithm
            "tokens": f"{each.start + 1} to {each.end}" if each.end > each.start + 1 else f"{each.end}",
            "mean": each.mean,
            "low": each.mean - 2 * each.standard_error,
            "high": each.mean + 2 * each.standard_error,
        }
        for each in statistics.position_means
    ]
    x = _field("position", "token of the response, first is 1", scale={"type": "log"})
    return {
        "data": {"values": values},
        "encoding": {"x": x, "color": _SIDE},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.2},
                "encoding": {"y": _field("low", "mean reward, nats"), "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "point": {"size": 18}},
                "encoding": {
                    "y": _field("mean", "mean reward, nats"),
                    "tooltip": [
                        _field("side", "side", "nominal"),
                        _field("tokens", "tokens", "nominal"),
                        *_numbers("mean"),
                    ],
                },
            },
        ],
    }


def _margins(statistics: Statistics) -> Spec:
    margins = statistics.pairs.margin
    low, high = _middle(margins)
    right, wrong = "guide prefers chosen", "prefers rejected"
    values = [
        {"from": start, "to": end, "share": share, "guide": right if start + end > 0 else wrong}
        for start, end, share in histogram(margins, low, high)
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "bar", "binSpacing": 0},
        "encoding": {
            "x": _field("from", "margin, nats", bin={"binned": True}, axis={"tickCount": 10}),
            "x2": {"field": "to"},
            "y": _field("share", "share of pairs", axis={"format": "%"}),
            "color": {"field": "guide", "type": "nominal", "scale": {"domain": [right, wrong]}},
            "tooltip": [*_numbers("from", "to"), _field("share", "share", format=".2%")],
        },
    }


def groups_of(keys: npt.NDArray[Any], count: int = GROUPS) -> Iterator[npt.NDArray[np.intp]]:
    """Indices in groups of growing key, about equally large; equal keys stay together."""
    edges = np.unique(np.quantile(keys, np.linspace(0, 1, count + 1)))
    places = np.searchsorted(edges, keys, side="right").clip(1, max(1, len(edges) - 1))
    for group in range(1, max(2, len(edges))):
        members = np.flatnonzero(places == group)
        if len(members):
            yield members


def _accuracy(statistics: Statistics) -> Spec:
    pairs, values = statistics.pairs, []
    lengths = (pairs.chosen_length + pairs.rejected_length) / 2
    for members in groups_of(lengths):
        right = (pairs.margin[members] > 0).mean()
        error = 2 * (right * (1 - right) / len(members)) ** 0.5
        values.append(
            {
                "length": float(lengths[members].mean()),
                "accuracy": float(right),
                "low": float(max(0, right - error)),
                "high": float(min(1, right + error)),
                "pairs": len(members),
            }
        )
    y: Spec = {"scale": {"zero": False}, "axis": {"format": "%"}}
    return {
        "data": {"values": values},
        "encoding": {"x": _field("length", "tokens of a response", scale={"zero": False})},
        "layer": [
            {"mark": "rule", "encoding": {"y": _field("low", "accuracy", **y), "y2": {"field": "high"}}},
            {
                "mark": {"type": "line", "point": {"filled": True, "size": 50}},
                "encoding": {
                    "y": _field("accuracy", "accuracy", **y),
                    "tooltip": [
                        *_numbers("length"),
                        _field("accuracy", "accuracy", format=".1%"),
                        _field("pairs", "pairs"),
                    ],
                },
            },
        ],
    }


def _lengths(statistics: Statistics) -> Spec:
    pairs = statistics.pairs
    difference = pairs.chosen_length - pairs.rejected_length
    shown = np.random.default_rng(0).permutation(len(difference))[:POINTS]
    points = [
        {"difference": int(difference[n]), "margin": round(float(pairs.margin[n]), 4), "pair": int(pairs.number[n])}
        for n in shown
    ]
    means = [
        {"difference": float(difference[members].mean()), "margin": float(pairs.margin[members].mean())}
        for members in groups_of(difference)
    ]
    encoding = {
        "x": _field("difference", "tokens of chosen minus tokens of rejected"),
        "y": _field("margin", "margin, nats"),
    }
    tooltip = [_field("pair", "pair"), *_numbers("difference", "margin")]
    return {
        "layer": [
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "size": 14, "opacity": 0.35},
                "encoding": encoding | {"tooltip": tooltip},
            },
            {
                "data": {"values": means},
                "mark": {"type": "line", "point": True, "color": "#d9534f"},
                "encoding": encoding,
            },
        ]
    }


def _tokens(tokens: tuple[VocabularyToken, ...], vocabulary: Vocabulary | None) -> Spec:
    values = [
        {"token": token_name(each.id, vocabulary), "id": each.id, "mean": each.mean, "times": each.count}
        for each in tokens
    ]
    return {
        "height": 15 * len(values),
        "data": {"values": values},
        "mark": "bar",
        "encoding": {
            "y": _field("token", None, "nominal", sort=None, axis={"labelLimit": 160}),
            "x": _field("mean", "mean reward, nats"),
            "tooltip": [
                _field("token", "token", "nominal"),
                _field("id", "id"),
                *_numbers("mean"),
                _field("times", "times"),
            ],
        },
    }


def token_name(token: int, vocabulary: Vocabulary | None) -> str:
    """A token in quotation marks, with its id: other tokens may look the same."""
    if vocabulary is None:
        return f"<{token}>"
    text = token_text(vocabulary.text(token)).replace("\n", "")
    return f"'{text[:24]}' {token}"
