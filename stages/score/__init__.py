"""Stage one: reference and guidance are run once, per-token rewards go to the reward cache."""
