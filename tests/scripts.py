"""Scripts of docs/ and benchmarks/ in this process, which has imported torch already."""

import runpy
import sys
from pathlib import Path

import pytest


def run_script(script: Path, *arguments: object) -> None:
    """Runs a script, or a folder with a __main__.py, as `python SCRIPT ARGUMENTS` does. The modules beside it are
    forgotten thereafter: other scripts have some of the same name."""
    before, folder = set(sys.modules), script if script.is_dir() else script.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        patch.setattr(sys, "path", [str(folder), *sys.path])
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            for name in set(sys.modules) - before:
                if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
                    del sys.modules[name]
