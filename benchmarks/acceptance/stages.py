"""The stages, each for under ten minutes of a card; items in the order of their worth."""

from . import correctness, large, scale, speed
from .item import Item

STAGES: dict[str, list[Item]] = {
    "A": correctness.ITEMS,
    "B": speed.ITEMS,
    "C": large.ITEMS,
    "D": scale.ITEMS,
}
