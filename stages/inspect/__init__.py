"""Looks at a reward cache: statistics, and single pairs with their tokens coloured by reward."""
