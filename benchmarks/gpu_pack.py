"""What a card without a network needs beside torch and transformers, in one folder: `make gpu-pack`.

    gpu-pack/tgdpo    this checkout: the package, benchmarks, and the tests that run on a card
    gpu-pack/wheels   packages for the card's Python, as constraints.txt pins them

`python gpu-pack/tgdpo/benchmarks/gpu_check.py …` there finds the wheels by itself and uses those whose package is not
installed, or is older. pyarrow, some 45 MB, has to be on the card, as accelerate, peft, pytest and the like. Models,
pairs and the values that results are compared with are made on the card, from seeds.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "datasets", "dill",
          "multiprocess")  # fmt: skip
COMPARED = ("trl", "liger-kernel==0.8.5", "cut-cross-entropy==25.1.1", "torchao==0.18.0")
"""Other libraries' trainers, heads and optimizers."""
TESTS = ("tests/gpu/", "tests/support.py", "tests/caches.py")
LEFT_OUT = ("docs/", "tests/", "benchmarks/study/", ".")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
MOST_MB = 48


def copy_checkout(target: Path) -> None:
    """The files that git knows, as they are now, less what a card has no use for."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    for name in listed.stdout.split("\0"):
        is_wanted = name.startswith(TESTS) or not name.startswith(LEFT_OUT)
        if name and is_wanted and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def download(target: Path, python: str) -> None:
    """Wheels for CPython of that version on x86-64 Linux."""
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    options += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(target), *NEEDED, *COMPARED]
    subprocess.run(command, check=True)


def main() -> None:
    """Makes the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="the card's, as 3.12")
    parser.add_argument("--output", type=Path, default=ROOT / "gpu-pack")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    copy_checkout(options.output / "tgdpo")
    download(options.output / "wheels", options.python)
    megabytes = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file()) / 1e6
    if megabytes > MOST_MB:
        sys.exit(f"{options.output} takes {megabytes:.0f} MB, over {MOST_MB} MB: leave packages of COMPARED out")
    print(f"{options.output}: {megabytes:.1f} MB for Python {options.python}")


if __name__ == "__main__":
    main()
