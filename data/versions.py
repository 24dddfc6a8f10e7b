"""The release, and what scores and training steps depend on beside inputs and options: the code that computes them, as
two numbers.

A change that moves a score, or a training step, beyond rounding raises its number, a change of how CUDA computes them
included. Unfinished work of another number is refused, so that one cache or run is never computed in two ways; finished
work always opens. tests/parity/test_golden.py fails when golden values move and the number did not.

A changed default is no reason to raise a number: every option is recorded with the work.
"""

__version__ = "0.2.0.dev0"
"""The package's version."""

SCORE_VERSION = 1
"""Of the numbers in a reward cache; recorded in its fingerprint."""
STEP_VERSION = 1
"""Of a training step; recorded in run.json and in every checkpoint."""

UNRECORDED = 1
"""What work without a number counts as: 0.1.0 recorded none."""
FIRST_RELEASE = "0.1.0"
"""The release that recorded neither a number nor, in runs, its own version."""
OTHER_TEXT = (FIRST_RELEASE,)
"""Releases that read or tokenized some rows in another way: what they began to prepare is prepared again from the
start, so that no cache mixes the two. What they have prepared to its end is scored as it is."""
