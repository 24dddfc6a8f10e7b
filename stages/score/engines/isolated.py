"""Any engine in a process of its own, for shards over which processes have died."""

from . import Engine
from .process import ProcessEngine

DEATHS = 2
"""So many processes may die at a shard before the engine is kept apart. One may have been ended for other reasons."""


def isolated(engine: type[Engine]) -> type[ProcessEngine]:
    """The engine with its process: a pair that ends it is found (see `halving`), and the run outlives it."""
    if issubclass(engine, ProcessEngine):
        return engine
    inner = f"{engine.__module__}.{engine.__qualname__}"
    members = {"inner": inner, "switches_adapter": engine.switches_adapter, "__doc__": f"{inner} in a process."}
    return type(f"Isolated{engine.__name__}", (ProcessEngine,), members)
