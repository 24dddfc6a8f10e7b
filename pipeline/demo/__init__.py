"""The demo: all of the product on a small task with an exact checker."""
