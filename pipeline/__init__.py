"""Joins the stages: configuration files, both stages in one run, the demo."""
