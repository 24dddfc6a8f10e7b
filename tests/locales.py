"""Commands in a locale that is not UTF-8, all in one process: run as a script, with a JSON file of commands.

Standard output and errors of each go to a file, opened as Python opens them in that locale.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

LOCALES = {"C": None, "en_US.ISO-8859-1": ("en_US", "ISO-8859-1"), "zh_CN.GBK": ("zh_CN", "GBK")}
"""Name to what localedef makes it from; C is everywhere."""


def run_in(locale: str, commands: list[list[str]], folder: Path) -> list[tuple[int | None, bytes, bytes]] | None:
    """Exit code (None after a traceback), output and errors of each command; None where there is no such locale.

    Args:
        folder: the present folder of the commands.
    """
    environment = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": locale, "LOCPATH": str(folder / "locales")}
    if not _made(LOCALES[locale], folder / "locales" / locale):
        return None
    (folder / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    root = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, __file__, "commands.json"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
        | environment
        | {"PYTHONPATH": os.pathsep.join(root)},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    codes = json.loads(done.stdout)
    return [
        (code, (folder / f"{number}.out").read_bytes(), (folder / f"{number}.err").read_bytes())
        for number, code in enumerate(codes)
    ]


def _made(source: tuple[str, str] | None, path: Path) -> bool:
    if source is None:
        return True
    if shutil.which("localedef") is None:
        return False
    path.parent.mkdir(exist_ok=True)
    subprocess.run(["localedef", "-i", source[0], "-f", source[1], str(path)], capture_output=True)
    return path.is_dir()


def _run(number: int, arguments: list[str]) -> int | None:
    from tgdpo import cli

    streams: Any = Path(f"{number}.out").open("w"), Path(f"{number}.err").open("w", errors="backslashreplace")  # noqa: SIM115
    sys.argv = ["tgdpo", *(os.fsdecode(argument.encode(errors="surrogateescape")) for argument in arguments)]
    with streams[0] as out, streams[1] as err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        except Exception:
            traceback.print_exc()
    return None


if __name__ == "__main__":
    found = [_run(number, arguments) for number, arguments in enumerate(json.loads(Path(sys.argv[1]).read_bytes()))]
    sys.stdout.write(json.dumps(found))
