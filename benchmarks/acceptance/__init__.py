"""What gpu_check.py runs on a card: items of four stages, each in a child process, a JSON line each."""
