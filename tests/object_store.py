"""An S3 server that runs here (moto), and a proxy before it that loses answers or is gone for a while."""

import http.client
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

BUCKET = "caches"


class Request(NamedTuple):
    """What the server was asked; `status` is its answer."""

    method: str
    path: str
    status: int

    @property
    def name(self) -> str:
        """The last part of the object's name."""
        return self.path.partition("?")[0].rpartition("/")[2]


class Refused(NamedTuple):
    """An error of S3's, as it says it; to a HEAD request it says no more than the status."""

    status: int
    code: str
    message: str = ""
    headers: Mapping[str, str] = MappingProxyType({})

    @property
    def content(self) -> bytes:
        """What it says."""
        return f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()


class Proxy:
    """Forwards all requests. `loses` says of a request that was done whether its answer is lost; `alters` gives the
    content that arrives of an answer, `refuses` the store's error instead of one; while `is_dead`, connections end at
    once."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.requests: list[Request] = []
        self.is_dead = False
        self.loses: Callable[[Request], bool] = lambda _: False
        self.alters: Callable[[Request, bytes], bytes] = lambda _, content: content
        self.refuses: Callable[[str, str], Refused | None] = lambda *_: None
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a killed process hangs up
        Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Leads a process to the bucket, through the proxy."""
        return aws_environment(*self._http.server_address[:2])

    def was_sent(self, ending: str) -> bool:
        """Whether a file whose name ends with `ending` was sent."""
        return any(each.method == "PUT" and each.path.endswith(ending) for each in list(self.requests))

    def close(self) -> None:
        """Ends it."""
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.proxy.is_dead:
            self.close_connection = True
            return
        if refused := self.proxy.refuses(self.command, self.path):
            self.proxy.requests.append(Request(self.command, self.path, refused.status))
            self._answer(refused.status, refused.headers, b"" if self.command == "HEAD" else refused.content)
            return
        upstream = http.client.HTTPConnection(*self.proxy.server)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        request = Request(self.command, self.path, answer.status)
        self.proxy.requests.append(request)
        if self.proxy.is_dead or self.proxy.loses(request):
            self.close_connection = True
            return
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else None
        self._answer(answer.status, answer.headers, self.proxy.alters(request, content), length)
        upstream.close()

    def _answer(self, status: int, headers: Any, content: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def aws_environment(host: Any, port: Any) -> dict[str, str]:
    """Leads a process to a server that takes any key."""
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextmanager
def s3_server() -> Iterator[tuple[Any, tuple[str, int]]]:
    """A file system with the bucket `caches`, to which the environment leads, and the server's address."""
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'tgdpo[dev]'")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'tgdpo[dev]'")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    address = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environment(*address).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem(use_listings_cache=False)
        if not files.exists(BUCKET):  # the servers of a process have their buckets together
            files.mkdir(BUCKET)
        yield files, address
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def fetched(files: Any, url: str, folder: Path) -> Path:
    """A copy of what lies at a URL."""
    files.get(f"{url}/", str(folder), recursive=True)
    return folder
