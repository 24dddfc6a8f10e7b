"""Bounds on what may be added to a cache. Apart from its schema, since the command line's help needs no pyarrow."""

import re

GUIDE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
"""Names of guides that are added to a cache."""
MAX_SAMPLES = 256
"""Tokens drawn from the reference for a response token, at most."""
