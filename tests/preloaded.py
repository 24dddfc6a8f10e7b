"""What every process of the command line would do anew, beside its imports: see processes.py, which forks them from one
that has imported this."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

# Makes a table of a thousand regular expressions, which takes longer than to load a small model.
get_checkpoint_conversion_mapping("llama")
