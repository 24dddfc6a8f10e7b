"""Publishes a reward cache as a dataset on the Hugging Face hub."""
