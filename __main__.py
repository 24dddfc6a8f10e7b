"""`python -m tgdpo` and `accelerate launch -m tgdpo train …`."""

from .cli import main

if __name__ == "__main__":
    main()
