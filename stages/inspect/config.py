"""The options of `tgdpo inspect`. Those of f have the names and defaults that they have in `tgdpo train`."""

from typing import Literal

from ..settings import Settings, option

PAIRS, STATISTICS, F = "Pairs", "Statistics", "f, as training would compute it"


class InspectConfig(Settings):
    """What `tgdpo inspect` can be told, besides the cache."""

    pair: tuple[str, ...] = option(PAIRS, ())
    """Number or pair_id of a pair to show. Repeatable."""
    sort: Literal["accuracy", "margin", "extreme"] | None = option(PAIRS, None)
    """Which pairs to show: those that the guide gets most wrong, those with the largest margin, or those with the
    largest |reward| of a token. Default: the cache's first."""
    limit: int | None = option(PAIRS, None, ge=0)
    """Pairs to show; with --html, at most so many in the page. Default: 1, or what fits into 3 MB of the page."""
    tokenizer: str | None = option(PAIRS, None)
    """Tokenizer, a folder or hub name, where the cache's own is not at hand."""

    full: bool = option(STATISTICS, False)
    """Read all pairs. Default: 16,384 of them, row groups drawn over the cache."""
    compare: str | None = option(STATISTICS, None)
    """Another cache of the same pairs, scored with another guide."""
    html: str | None = option(STATISTICS, None)
    """Write a page with figures and a browser of pairs to this file; it needs no network."""

    alpha: float = option(F, 0.5, ge=0)
    """Strength of the token-level guidance."""
    beta: float = option(F, 0.1, gt=0)
    """Strength of the KL constraint."""
    beta_r: float | None = option(F, None, ge=0)
    """Factor of the token rewards. Default: beta."""
    f_shape: Literal["linear", "sigmoid", "clipped-linear"] = option(F, "linear")
    """Shape g of f = 1 +- alpha g(r): linear is r, sigmoid 2 sigmoid(r) - 1, clipped-linear r within [-1, 1]. Shapes
    that compare a response's tokens with one another are not shown."""
    f_clip: float | None = option(F, None, gt=0)
    """Keep f within 1 +- this bound. Default: f is not clipped."""
