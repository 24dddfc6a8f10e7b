"""`tgdpo score`: in this process, or on the workers of a Ray cluster."""

from ..data.manifest import Manifest
from ..errors import UsageError
from ..stages.score.config import ScoreConfig


def score(config: ScoreConfig) -> Manifest | None:
    """Makes the reward cache, or finishes one that the same settings began.

    Returns:
        The manifest of the finished cache; None where `config.worker` has done its share and others have not.

    Raises:
        TgdpoError: what was asked for cannot work; finished shards stay.
    """
    if config.plan:
        raise UsageError("plan is set, which tgdpo score alone knows", fix="leave it out, or type tgdpo score --plan")
    if config.launcher == "ray":
        from .ray_launcher import score_with_ray

        return score_with_ray(config)
    from ..stages.score.run import score as score_here

    return score_here(config)
