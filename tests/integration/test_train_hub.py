"""`--push-to-hub` against a small hub of our own on 127.0.0.1."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from support import Cli, Models

FAST = ("--learning-rate", 1e-2, "--batch-size", 4, "--save-steps", 2, "--report-to", "tensorboard")
TOKEN = "hf_zebraZebraZebraZebraZebraZebra"


@dataclass
class Hub:
    """The parts of the hub's HTTP interface that a push uses."""

    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    takes_commits: bool = True
    takes_repositories: bool = True

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON."""
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.endswith("/commit/main"):
            return self.commit(path, body)
        return (200, {"errors": [], "warnings": []}) if path == "/api/validate-yaml" else (404, {"error": path})

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if not self.takes_repositories:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = name in self.repositories
        self.repositories.setdefault(name, asked)
        return (409 if known else 200), {"url": f"{self.url}/{name}", "id": name}

    def commit(self, path: str, body: bytes) -> tuple[int, Any]:
        if not self.takes_commits:
            return 403, {"error": "Your storage is full"}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.commits += 1
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{name}/commit/{'0' * 40}"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running one."""
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = made.answer(self.path.partition("?")[0], body, self.headers.get("Authorization", ""))
            answer = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()


@pytest.fixture
def call(scored: Path, models: Models, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A training run whose user is logged in."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    run = ("train", "--cache", scored, "--model", models.reference, "--output", tmp_path / "policy", *FAST)
    return (*run, "--push-to-hub")


def text_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_model_tokenizer_and_card_go_up_and_nothing_else(
    call: Any, ok: Cli, hub: Hub, scored: Path, tmp_path: Path
) -> None:
    result = ok(*call)
    assert f"pushed to {hub.url}/me/policy" in result.stderr
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(hub.files)
    assert not {"run.json", "config.yaml", "metrics.jsonl"} & set(hub.files)
    assert not [name for name in hub.files if "/" in name]
    assert hub.files["model.safetensors"] == (tmp_path / "policy" / "model.safetensors").read_bytes()
    _, header, card = hub.files["README.md"].decode().split("---\n", 2)
    assert "tgdpo" in yaml.safe_load(header)["tags"]
    manifest = json.loads((scored / "_manifest.json").read_text())
    for part in (
        "2506.14574",
        manifest["fingerprint"]["guidance_sha256"],
        "| alpha | 0.5 |",
        "| learning_rate | 0.01 |",
    ):
        assert part in card
    assert TOKEN.encode() not in text_of(tmp_path / "policy") + (result.stdout + result.stderr).encode()


def test_as_a_process_with_the_environment_of_a_user(call: Any, run_process: Any, hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    done = run_process(*call, "--hub-model-id", "org/mine", "--hub-private-repo", env=environment)
    assert done.code == 0, done.stderr
    assert hub.repositories["org/mine"]["visibility"] == "private"
    assert hub.commits == 1


def test_a_push_that_fails_loses_nothing(call: Any, run_cli: Cli, ok: Cli, hub: Hub, tmp_path: Path) -> None:
    hub.takes_commits = False
    result = run_cli(*call)
    assert result.code == 1
    assert "the policy is trained and lies in" in result.error
    assert f"hf upload me/policy {tmp_path / 'policy'}" in result.error
    assert TOKEN not in result.stderr
    weights = (tmp_path / "policy" / "model.safetensors").read_bytes()
    hub.takes_commits = True
    again = ok(*call)
    assert "finished already" in again.stderr
    assert hub.files["model.safetensors"] == weights


def test_a_repository_that_cannot_be_made_is_found_before_training(
    call: Any, run_cli: Cli, hub: Hub, tmp_path: Path
) -> None:
    hub.takes_repositories = False
    result = run_cli(*call, "--hub-model-id", "others/mine")
    assert result.code == 2
    assert "others/mine cannot be made" in result.error
    assert not (tmp_path / "policy" / "metrics.jsonl").exists()


def test_without_a_login(call: Any, run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    result = run_cli(*call)
    assert result.code == 2
    assert "hf auth login" in result.error
    assert not (tmp_path / "policy" / "metrics.jsonl").exists()


def test_the_card_of_an_adapter_lists_what_was_set(call: Any, ok: Cli, hub: Hub) -> None:
    ok(*call, "--lora-rank", 2, "--use-rslora", "--optim", "adamw_torch", "--convergence-window", 3)
    card = hub.files["README.md"].decode()
    assert "library_name: peft" in card
    assert "| use_rslora | True |" in card
    assert "| optim | adamw_torch |" in card
    assert "convergence_window" not in card
    assert "base_model" not in card
    assert "adapter_model.safetensors" in hub.files
