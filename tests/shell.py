"""Shell commands in a real bash, with some programs answered by functions of this process.

So that a hundred calls of `tgdpo` need not import torch a hundred times.
"""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_STUB = """#!{python} -IS
import json, os, socket, sys

with socket.create_connection(("127.0.0.1", {port})) as connection:
    call = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd()]
    connection.sendall(json.dumps(call).encode() + b"\\n")
    code, out, err = json.loads(connection.makefile().readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@dataclass(frozen=True)
class Answer:
    """What a program printed, and its exit code."""

    code: int = 0
    stdout: str = ""
    stderr: str = ""


Program = Callable[[list[str], Path], Answer]
"""Arguments and working folder to an answer."""


def run_bash(script: str, folder: Path, stubs: Path, programs: Mapping[str, Program], **environment: str) -> Answer:
    """Runs `script` in `folder`; a command that fails ends it.

    Args:
        stubs: folder for the programs' stand-ins.
        programs: what is answered here, by name.
        environment: added to this process's.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.02)
        _write_stubs(stubs, programs, server.getsockname()[1])
        path = f"{stubs}{os.pathsep}{os.environ['PATH']}"
        output, errors = stubs.with_suffix(".out"), stubs.with_suffix(".err")
        with output.open("w") as out, errors.open("w") as err:
            bash = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=folder,
                env=os.environ | {"PATH": path} | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            try:
                while bash.poll() is None:
                    _answer_one(server, programs)
            finally:
                bash.kill()
        return Answer(bash.returncode, output.read_text(), errors.read_text())


def _write_stubs(folder: Path, programs: Mapping[str, Program], port: int) -> None:
    folder.mkdir(exist_ok=True)
    for name in programs:
        stub = folder / name
        stub.write_text(_STUB.format(python=sys.executable, port=port))
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)


def _answer_one(server: socket.socket, programs: Mapping[str, Program]) -> None:
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return
    with connection:
        connection.settimeout(None)
        name, arguments, folder = json.loads(connection.makefile().readline())
        answer = programs[name](arguments, Path(folder))
        connection.sendall(json.dumps([answer.code, answer.stdout, answer.stderr]).encode() + b"\n")
