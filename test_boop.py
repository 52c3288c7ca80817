#!/usr/bin/env python3
"""Tests of boop: the real daemon as a process, over real sockets, with real git.

    python3 test_boop.py                 all tests; what needs a missing tool is skipped
    python3 test_boop.py Hooks           one class, or Hooks.test_…
    python3 test_boop.py --soak SECONDS  kills boop at random moments, counts every 202
    python3 test_boop.py --bench         boop's own figures, and deploy.sh's

With CI=true a missing tool is a failure. Tests wait on events (a line on stderr, the
end of a followed log, a file that a script writes), never for a time to pass; each
wait has a limit only so that a broken boop fails the test instead of hanging it.
"""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import contextlib
import fcntl
import functools
import hmac
import html
import http.client
import http.server
import io
import json
import os
import pathlib
import queue
import random
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import typing
import unittest
import urllib.parse
import urllib.request

import boop

HERE = pathlib.Path(__file__).resolve().parent
SECRET = "It's a Secret to Everybody"  # of GitHub's published example
LIMIT_S = 30  # no wait of a healthy boop's takes this long
FORM = "application/x-www-form-urlencoded"

# --- The fixture ----------------------------------------------------------------------


def tool(name: str, install: str) -> str:
    """The path of a program; skips the test (in CI: fails it) where it is missing."""
    path = shutil.which(name)
    if not path:
        why = f"{name} is missing: install {install}"
        raise AssertionError(why) if os.environ.get("CI") else unittest.SkipTest(why)
    return path


def until(test: typing.Callable[[], typing.Any], what: object) -> typing.Any:
    """Looks until it is so: at what was said on stderr, at a file, at /proc."""
    end = time.monotonic() + LIMIT_S
    while not (found := test()):
        if time.monotonic() > end:
            raise AssertionError(f"never came: {what}")
        time.sleep(0.01)
    return found


def sign(body: bytes, secret: str = SECRET, algorithm: str = "sha256") -> str:
    """As GitHub signs a delivery."""
    return f"{algorithm}={hmac.new(secret.encode(), body, algorithm).hexdigest()}"


def github_push(
    branch: str = "main",
    commit: str = "1" * 40,
    message: str = "Fix typo",
    repo: str = "https://github.com/Codertocat/Hello-World.git",
    default_branch: str = "main",
    **more: object,
) -> dict:
    """GitHub's push payload, less what nobody reads; as published by octokit."""
    author = {"name": "Ann Author", "email": "ann@example.org"}
    head = {"id": commit, "message": message, "author": author}
    repository = {"full_name": "Codertocat/Hello-World", "clone_url": repo}
    return {
        "ref": f"refs/heads/{branch}",
        "after": commit,
        "deleted": False,
        "commits": [head],
        "head_commit": head,
        "repository": repository | {"default_branch": default_branch},
        **more,
    }


# As Gitea 1.20 sends it: no head_commit, the newest commit first.
GITEA_PUSH = github_push()
GITEA_PUSH["commits"] = [GITEA_PUSH.pop("head_commit"), {"id": "0" * 40}]
GITLAB_PUSH = {
    "ref": "refs/heads/main",
    "after": "2" * 40,
    "project": {"default_branch": "main", "git_http_url": "https://lab.example/a.git"},
    "commits": [
        {"id": "1" * 40, "message": "Older [skip ci]", "author": {"name": "X"}},
        {"id": "2" * 40, "message": "Newest", "author": {"name": "Ann"}},
    ],
}


def bitbucket_push(*names: str, kind: str = "branch") -> dict:
    """A push that moves several branches: each to a commit of other digits."""
    changes = []
    for n, name in enumerate(names, 1):
        target = {"hash": f"{n}" * 40, "message": "Moved"}
        target["author"] = {"raw": "Ann <a@b>"}
        changes.append({"new": {"type": kind, "name": name, "target": target}})
    return {"repository": {"full_name": "ann/site"}, "push": {"changes": changes}}


class Answer(typing.NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> typing.Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


Footprint = collections.namedtuple("Footprint", "fds sockets threads rss_kb peak_kb")


def status_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/status").read_text()


def alive(pid: int) -> bool:
    """Is it a process that is not only waiting to be reaped?"""
    try:
        return "State:\tZ" not in status_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False


class Daemon:
    """A boop in a process of its own, with a script and a state folder of its own."""

    def __init__(self, folder, script="exit 0", argv=(), prefix=(), **env) -> None:
        self.folder, self.state = folder, folder / "state"
        self.script = folder / "script"
        self.write_script(script)
        plain = {k: v for k, v in os.environ.items() if not k.startswith("BOOP_")}
        settings = {
            "BOOP_SECRET": SECRET,
            "BOOP_PORT": "0",
            "BOOP_SCRIPT": str(self.script),
            "BOOP_STATE": str(self.state),
            "BOOP_REPO": "",
            "HOME": str(folder),
            **env,
        }
        self.env = plain | {k: v for k, v in settings.items() if v is not None}
        self.argv = [*prefix, sys.executable, str(HERE / "boop.py"), *argv]
        self.clients: list[socket.socket] = []

    def patch(self, *lines: str, **constants: float) -> Daemon:
        """Runs boop with other limits, so that nobody waits a minute for a deadline."""
        code = [f"import sys; sys.path.insert(0, {str(HERE)!r}); import boop", *lines]
        code += [f"boop.{name} = {value!r}" for name, value in constants.items()]
        at = self.argv.index(str(HERE / "boop.py"))
        code.append("sys.exit(boop.main(sys.argv[1:]))")
        self.argv[at : at + 1] = ["-c", "\n".join(code)]
        return self

    def write_script(self, body: str) -> None:
        """A bash script; replaced in one step, as boop may be starting it."""
        new = self.script.with_suffix(".new")
        new.write_text(f"#!/bin/bash\n{textwrap.dedent(body)}\n")
        new.chmod(0o755)
        new.rename(self.script)

    def start(self, listening: bool = True) -> Daemon:
        self.lines: list[str] = []  # of its stderr
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.argv, env=self.env, cwd=self.folder, stdout=pipe, stderr=pipe
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if listening:
            address = self.process.stdout.readline().decode()
            if not address:
                raise AssertionError(f"boop did not start: {self.ended()}")
            self.port = urllib.parse.urlsplit(address).port
        return self

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.decode("utf-8", "replace"))

    def said(self, pattern: str) -> None:
        """Waits for a line on stderr."""
        until(lambda: re.search(pattern, "".join(self.lines)), (pattern, self.lines))

    def ended(self) -> tuple[int, str]:
        """Waits for the end: exit status and all of stderr."""
        status = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        self.process.stdout.close()
        self.process.stderr.close()
        return status, "".join(self.lines)

    def stop(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(signum)
        return self.ended()

    def restart(self, signum: int = signal.SIGTERM) -> Daemon:
        self.stop(signum)
        return self.start()

    def footprint(self) -> Footprint:
        """What it holds, proc(5); of sockets the connections, less the listener."""
        fds = pathlib.Path(f"/proc/{self.process.pid}/fd")
        links = []
        for fd in fds.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is closed by now
                links.append(os.readlink(fd))
        sockets = sum(link.startswith("socket:") for link in links) - 1
        held = dict(re.findall(r"(\w+):\s+(\d+)", status_of(self.process.pid)))
        numbers = [int(held[name]) for name in ("Threads", "VmRSS", "VmHWM")]
        return Footprint(len(links), sockets, *numbers)

    # As a client

    def request(self, method: str, path: str, body=None, **headers) -> Answer:
        """Any request. Of headers, _ stands for -, and one of None is left out."""
        given = {k.replace("_", "-"): v for k, v in headers.items() if v is not None}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, LIMIT_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str, accept: str = "*/*", **headers: str) -> Answer:
        return self.request("GET", path, Accept=accept, **headers)

    def hook(self, payload: object, event: str | None = "push", **headers) -> Answer:
        """A delivery as GitHub makes it."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        usual = {"X_GitHub_Event": event, "X_Hub_Signature_256": sign(body)}
        usual["Content_Type"] = "application/json"
        return self.request("POST", "/deploy", body, **(usual | headers))

    def by_hand(self, **wish: object) -> Answer:
        """A signed request with no forge's event header."""
        return self.hook(wish, None)

    def push(self, commit: str = "1" * 40, branch: str = "main") -> int:
        """An accepted push: the deployment's number."""
        answer = self.hook(github_push(branch, commit))
        if answer.status != 202:
            raise AssertionError(f"{answer.status}: {answer.text}")
        return answer.json["deployment"]

    def finished(self, number: int) -> dict:
        """Follows a deployment to its end: its record."""
        self.get(f"/log/{number}?follow")
        record = self.record(number)
        if record["status"] not in ("success", "fail"):
            raise AssertionError(f"following ended early: {record}")
        return record

    def deploy(self, script: str | None = None) -> dict:
        """A push, and the record once it is deployed, by another script if given."""
        if script is not None:
            self.write_script(script)
        return self.finished(self.push())

    def over(self) -> bool:
        """Has every deployment ended?"""
        return all(d["status"] in ("success", "fail") for d in self.records())

    def record(self, number: int) -> dict:
        return self.get(f"/log/{number}", "application/json").json

    def records(self) -> list[dict]:
        return self.get("/", "application/json").json["deployments"]

    def numbers(self) -> list[int]:
        return [record["number"] for record in self.records()]

    def journal(self, state: pathlib.Path | None = None) -> list[dict]:
        """What stands on the disk, line by line."""
        text = ((state or self.state) / "deployments.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines() if line]

    def log(self, number: int | str) -> str:
        return self.get(f"/log/{number}").text

    def connect(self, sent: bytes = b"") -> socket.socket:
        """A connection on which these bytes are sent, as they are."""
        s = socket.create_connection(("127.0.0.1", self.port), LIMIT_S)
        self.clients.append(s)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            s.sendall(sent)
        return s

    def follow(self, path: str) -> io.BufferedReader:
        """What comes to who follows a page, after the head of the answer."""
        request = f"GET {path}?follow HTTP/1.1\r\nHost: x\r\n\r\n"
        with self.connect(request.encode()) as s:
            lines = s.makefile("rb")
        if b" 200 " not in lines.readline():
            raise AssertionError(lines.read())
        while lines.readline().strip():
            pass
        return lines

    def raw(self, data: bytes) -> bytes:
        """Sends bytes and no more; all that comes back until boop closes."""
        with self.connect(data) as s:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_WR)
            return read_all(s)


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data


def statuses(answer: bytes) -> list[int]:
    """Those of all the responses in what came back."""
    return [int(s) for s in re.findall(rb"(?m)^HTTP/1\.[01] (\d{3}) ", answer)]


def push_request(payload: object = None, **more: str) -> bytes:
    """A signed delivery as raw bytes."""
    body = json.dumps(github_push() if payload is None else payload).encode()
    headers = {
        "Host": "x",
        "Content-Type": "application/json",
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": sign(body),
        "Content-Length": str(len(body)),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /deploy HTTP/1.1\r\n{head}\r\n".encode() + body


def record_of(number: int, **fields: object) -> dict:
    """A record as the contract has it, of a push that was deployed."""
    names = ("queued_at", "started_at", "finished_at")
    times = dict.fromkeys(names, f"2024-05-01T10:{number % 60:02}:00.000Z")
    pushed = {"repo": "https://h.example/one", "branch": "main", "commit": "1" * 40}
    about = {"message": "Fix typo", "author": "Ann Author", "pushes": 1}
    ended = {"status": "success", "reason": None, "trigger": "push", "duration": 0.5}
    return {"number": number, **pushed, **about, **ended, **times, **fields}


class Gate:
    """Where a script that has `wait` in it waits until the test opens."""

    def __init__(self, fifo: pathlib.Path) -> None:
        os.mkfifo(fifo)
        self.fifo, self.here = os.open(fifo, os.O_RDWR), fifo.with_suffix(".here")
        self.wait = f": > {self.here}; read < {fifo}; rm -f {self.here}"

    def reached(self) -> None:
        """Waits until a script is there, which stays."""
        until(self.here.exists, "a script at the gate")

    def open(self) -> None:
        """Lets one script pass: that which is there, or else the next."""
        os.write(self.fifo, b"go\n")

    def close(self) -> None:
        """A script was killed there: the next is to be waited for."""
        self.here.unlink(missing_ok=True)


class Case(unittest.TestCase):
    """Gives each test a folder and ends what it started."""

    def setUp(self) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="boop-test-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def afresh(self, name: object) -> typing.Iterator[None]:
        """A subtest with a folder of its own."""
        with self.subTest(name):
            yield
        self.doCleanups()
        self.setUp()

    def boop(self, script: str = "exit 0", **more: typing.Any) -> Daemon:
        """A running boop."""
        return self.daemon(script, **more).start()

    def daemon(self, script: str = "exit 0", **more: typing.Any) -> Daemon:
        daemon = Daemon(self.folder, script, **more)
        self.addCleanup(self._end, daemon)
        return daemon

    def _end(self, daemon: Daemon) -> None:
        """No test ends with a traceback on boop's stderr, whatever it tested."""
        for s in daemon.clients:
            s.close()
        if hasattr(daemon, "process"):
            daemon.process.terminate()  # so that it ends its script
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.process.wait(5)
            _, said = daemon.stop(signal.SIGKILL)
            self.assertNotIn("Traceback", said)

    def with_journal(self, *records: dict | bytes, **files: str) -> Daemon:
        """A boop, not started; its journal holds the records, or lines of bytes."""
        d = self.daemon('echo "$BOOP_NUMBER" >> ../ran')
        d.state.mkdir(exist_ok=True)
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        (d.state / "deployments.jsonl").write_bytes(b"\n".join([*lines, b""]))
        for name, text in files.items():
            (d.state / name).write_text(text)
        return d

    def expect(self, answer: Answer, status: int, *words: str) -> None:
        """The answer's status, and what it has to say."""
        self.assertEqual(answer.status, status, answer.text)
        for word in words:
            self.assertIn(word, answer.text)

    def settled(self, b: Daemon, before: Footprint) -> None:
        """Sockets, threads and memory are what they were."""
        until(b.over, "the last run")
        until(lambda: b.footprint().sockets <= 0, "the end of all connections")
        until(lambda: b.footprint().threads <= before.threads, "the threads' end")
        after = b.footprint()
        self.assertLessEqual(after.fds, before.fds + 3)
        self.assertLess(after.rss_kb - before.rss_kb, 20_000)
        self.assertNotIn("a request failed", "".join(b.lines))
        self.assertEqual(b.deploy()["status"], "success")

    def gate(self) -> Gate:
        gate = Gate(self.folder / "gate")
        self.addCleanup(os.close, gate.fifo)
        return gate

    def kill_later(self, pid: int) -> int:
        """Ends a process after the test, if boop has not."""
        kill = ["kill", "-KILL", str(pid)]
        self.addCleanup(subprocess.call, kill, stderr=subprocess.DEVNULL)
        return pid


@contextlib.contextmanager
def serving(handler, tls=None):
    """A server, for as long as it is needed; its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # killed clients hang up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class S3Server:
    """The S3 server, and before it a proxy that records and can interfere.

    `before(method, key)` is called for each request: what it returns is the answer (a
    status, headers and a body) in the server's place.
    """

    def __init__(self):
        moto = tool("moto_server", "moto[server], from PyPI")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command, quiet = [moto, "-p", str(self.port)], subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        until(lambda: taken(self.port), "the S3 server")
        self.requests, self.before = [], lambda method, key: None
        self.stack = contextlib.ExitStack()
        port = self.stack.enter_context(serving(self.handler()))
        self.url = f"http://127.0.0.1:{port}"

    def forward(self, method, path, body=b"", headers=None):
        """Asks the server itself: its status, headers and body."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.port)
        with contextlib.closing(upstream):
            login = {"Authorization": S3_NOBODY}
            upstream.request(method, path, body, headers or login)
            answer = upstream.getresponse()
            return answer.status, answer.headers, answer.read()

    def objects(self, bucket):
        """All that is in a bucket: each key with its headers and bytes."""
        found = re.findall(b"<Key>(.*?)</Key>", self.forward("GET", f"/{bucket}")[2])
        keys = [html.unescape(key.decode()) for key in found]
        path = f"/{bucket}/%s"
        return {k: self.forward("GET", path % urllib.parse.quote(k))[1:] for k in keys}

    def handler(recorder):
        class Handler(Quiet):
            protocol_version = "HTTP/1.1"

            def forward(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urllib.parse.urlsplit(self.path)
                key = urllib.parse.unquote(url.path).partition("/")[2].partition("/")[2]
                method = "LIST" if self.command == "GET" and not key else self.command
                if method == "LIST":
                    key = "".join(urllib.parse.parse_qs(url.query).get("prefix", []))
                elif method == "POST" and "delete" in url.query:
                    method = "DELETE"
                recorder.requests.append((method, key))
                asked = self.command, self.path, body, self.headers
                instead = recorder.before(method, key)
                status, headers, body = instead or recorder.forward(*asked)
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding"):
                        self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = forward

        return Handler

    def close(self):
        self.stack.close()
        self.process.terminate()
        self.process.wait()


S3_NOBODY = (  # enough for moto
    "AWS4-HMAC-SHA256 Credential=test/20240101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
S3_LOGIN = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


def git(folder: pathlib.Path, *args: str) -> str:
    """Runs git with a fixed author; its output."""
    who = ["-c", "user.name=Ann Author", "-c", "user.email=ann@example.org"]
    done = subprocess.run(
        ["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(
    checkout: pathlib.Path,
    files: dict[str, str | bytes | None] | None = None,
    message: str = "Edit",
) -> str:
    """Writes files (None: removes them), commits them; the commit's id."""
    for name, content in (files or {}).items():
        path = checkout / name
        if content is None:
            git(checkout, "rm", "-q", "--", f":(literal){name}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "--allow-empty", "-m", message)
    return git(checkout, "rev-parse", "HEAD")


def site(folder: pathlib.Path, files: dict[str, str] | None = None) -> pathlib.Path:
    """A checkout with a first commit on main, and origin.git beside it, bare."""
    tool("git", "git")
    checkout, origin = folder / "site", folder / "origin.git"
    git(folder, "init", "-q", "-b", "main", "site")
    git(folder, "init", "-q", "-b", "main", "--bare", "origin.git")
    commit(checkout, files or {"index.html": "<h1>Hello</h1>\n"}, "First")
    git(checkout, "remote", "add", "origin", str(origin))
    git(checkout, "push", "-q", "origin", "main")
    return checkout


# --- Pushes ---------------------------------------------------------------------------


class Signatures(Case):
    """Promise 6: no one else gets in."""

    def test_what_the_secret_did_not_sign_runs_and_records_nothing(self) -> None:
        b = self.boop()
        body = json.dumps(github_push()).encode()
        good, sha1 = sign(body), sign(body, algorithm="sha1")
        new, old, gitea = "X_Hub_Signature_256", "X_Hub_Signature", "X_Gitea_Signature"
        for headers, why in (
            ({}, "X-Hub-Signature-256, X-Forgejo-Signature"),
            ({new: sign(body, "no")}, "BOOP_SECRET"),
            ({new: sign(b"{")}, "BOOP_SECRET"),
            ({new: "sha256=\xff\xfe"}, "BOOP_SECRET"),
            # SHA-1 counts only where no SHA-256 is sent
            ({new: sha1}, "X-Hub-Signature-256 was not"),
            ({new: sign(b"{"), old: sha1}, "X-Hub-Signature-256 was not"),
            ({new: "", old: sha1}, "X-Hub-Signature-256 is empty"),
            ({gitea: sign(b"{").removeprefix("sha256=")}, "X-Gitea-Signature was not"),
            ({"X_Gitlab_Token": "no"}, "X-Gitlab-Token is not"),
        ):
            with self.subTest(headers):
                self.expect(b.hook(body, **{new: None, **headers}), 401, why)
        self.expect(b.hook(b"[", X_Hub_Signature_256=good), 401)  # and is not parsed
        b.said("401 to 127.0.0.1.*secret")
        for secret in (good.partition("=")[2], sha1.partition("=")[2], SECRET):
            self.assertNotIn(secret, "".join(b.lines))
        self.assertEqual((b.records(), b.journal()), ([], []))

    def test_gitlabs_signing_token_is_a_standard_webhook(self) -> None:
        body, key = json.dumps(GITLAB_PUSH).encode(), b"k" * 24
        secret = "whsec_" + base64.b64encode(key).decode()
        b = self.boop(BOOP_SECRET=secret)
        sent = {"X_Gitlab_Event": "Push Hook", "X_Hub_Signature_256": None}
        sent["X_Gitlab_Token"] = secret  # the weaker one; it does not count
        mac = hmac.digest(key, b"msg_1.1700000000." + body, "sha256")
        good, wrong = (f"v1,{base64.b64encode(m).decode()}" for m in (mac, b"x" * 32))
        for value, timestamp, status in (
            (good, "1700000000", 202),
            (f"v1a,abc {wrong} {good}", "1700000000", 202),
            (good, "1700000001", 401),
            (good[3:], "1700000000", 401),
            (wrong, "1700000000", 401),
            ("", "1700000000", 401),
        ):
            with self.subTest(value=value, timestamp=timestamp):
                sent |= {"webhook_id": "msg_1", "webhook_timestamp": timestamp}
                self.expect(b.hook(body, None, **sent, webhook_signature=value), status)

    def test_without_a_secret_hooks_are_503_and_a_credential_is_one(self) -> None:
        b = self.boop(BOOP_SECRET="", BOOP_REPO="/nowhere")
        b.said("no BOOP_SECRET")
        b.said("cannot look at /nowhere")
        answer = b.hook(b"{}", X_Hub_Signature_256=sign(b"{}", ""))
        self.expect(answer, 503, '{"error": ', "BOOP_SECRET")
        self.assertTrue(answer.headers["Retry-After"])
        wrong = "1. Mend this first: cannot look at /nowhere", "every push is refused"
        self.expect(b.get("/"), 200, *wrong)
        (self.folder / "BOOP_SECRET").write_text(f"{SECRET}\n")
        b.env |= {"CREDENTIALS_DIRECTORY": str(self.folder), "BOOP_SECRET": "another"}
        b.env["BOOP_REPO"] = ""
        self.expect(b.restart().get("/"), 200, "1. On the forge", "/deploy", "git push")
        self.expect(b.hook({}, "ping"), 200)


class Hooks(Case):
    """POST /deploy, answer by answer."""

    def deliver(self, b: Daemon, forge: str, payload: object) -> Answer:
        """As the forge sends it, and signs it."""
        body = json.dumps(payload).encode()
        signed = sign(body)
        digest = signed.removeprefix("sha256=")
        github = {"X_GitHub_Event": "push", "Content_Type": "application/JSON; a=b"}
        headers = {
            "GitHub": github | {"X_Hub_Signature_256": signed},
            "GitHub's SHA-1": github | {"X_Hub_Signature": sign(body, SECRET, "sha1")},
            "Gitea": github | {"X_Gitea_Event": "push", "X_Gitea_Signature": digest},
            "Forgejo": {"X_Forgejo_Event": "push", "X_Forgejo_Signature": digest},
            "GitLab": {"X_Gitlab_Event": "Push Hook", "X_Gitlab_Token": SECRET},
            "Bitbucket": {"X_Event_Key": "repo:push", "X_Hub_Signature": signed},
        }[forge]
        return b.hook(body, None, **{"X_Hub_Signature_256": None, **headers})

    def test_each_forges_push_is_recorded_as_it_says(self) -> None:
        b = self.boop('printf %s "$BOOP_MESSAGE" > ../message', BOOP_BRANCH="main")
        one = [github_push()["repository"]["clone_url"], "1" * 40]
        odd = "$(touch x) `y`; <script> \"'\n"
        enormous = github_push(message=f"{odd}\0\ud800{'x' * 300_000}")
        trimmed = f"{odd}?{'x' * 9000}"[:4096]
        gitlab = ["https://lab.example/a.git", "2" * 40, "Newest", "Ann"]
        bitbucket = ["https://bitbucket.org/ann/site.git", "2" * 40, "Moved", "Ann"]
        forges = (
            ("GitHub", enormous, [*one, trimmed, "Ann Author"]),
            ("GitHub's SHA-1", github_push(), [*one, "Fix typo", "Ann Author"]),
            ("Gitea", GITEA_PUSH, [*one, "Fix typo", "Ann Author"]),
            ("Forgejo", GITEA_PUSH, [*one, "Fix typo", "Ann Author"]),
            ("GitLab", GITLAB_PUSH, gitlab),
            ("Bitbucket", bitbucket_push("draft", "main"), bitbucket),
        )
        for number, (forge, payload, expected) in enumerate(forges, 1):
            with self.subTest(forge):
                answer, log = self.deliver(b, forge, payload), f"log/{number}"
                told = {"deployment": number, "status": "queued", "log": log}
                self.assertEqual((answer.status, answer.json), (202, told))
                record = b.finished(number)
                names = "repo", "commit", "message", "author"
                self.assertEqual([record[name] for name in names], expected)
                self.assertEqual((b.state / "message").read_text(), record["message"])

    def test_a_form_is_verified_as_its_forge_signs_it(self) -> None:
        b, inner = self.boop(), json.dumps(GITEA_PUSH)
        form = urllib.parse.urlencode({"payload": inner}).encode()
        for event, signed, status in (
            ("X_GitHub_Event", form, 202),
            ("X_GitHub_Event", inner.encode(), 401),
            ("X_Gitea_Event", inner.encode(), 202),
            ("X_Gitea_Event", b"{}", 401),
        ):
            with self.subTest(event=event, signed=signed):
                headers = {event: "push", "X_Hub_Signature_256": sign(signed)}
                self.expect(b.hook(form, **headers, Content_Type=FORM), status)

    def test_what_is_not_wanted_is_answered_200_and_says_why(self) -> None:
        b = self.boop(BOOP_BRANCH="live")
        gone = {"deleted": True, "after": "0" * 40, "head_commit": None}
        tagged = bitbucket_push("v1", kind="tag")
        old = {"new": None, "closed": True, "old": {"type": "branch", "name": "old1"}}
        tagged["push"]["changes"].insert(0, old)
        skipped = [
            ("GitHub", github_push("live", message=f"{'x' * 5000}{mark}"), mark)
            for mark in ("[skip ci]", "[ci skip]", "[no ci]", "[skip deploy]")
        ]
        for forge, payload, *words in (
            ("GitHub", github_push("main"), "main", "live"),
            ("GitHub", github_push(ref="refs/tags/v1"), "refs/tags/v1 is a tag"),
            ("GitHub", github_push("live", **gone), "deleted"),
            ("GitLab", GITLAB_PUSH | {"after": "0" * 40, "commits": []}, "deleted"),
            ("Bitbucket", tagged, "refs/heads/old1 was deleted", "v1 is a tag"),
            *skipped,
        ):
            with self.subTest(forge=forge, words=words):
                self.expect(self.deliver(b, forge, payload), 200, "ignored", *words)
        b.said('200 to .*"main"')
        self.expect(b.hook({}, "issues"), 200, '{"ignored": ', "issues")
        self.expect(b.hook({"zen": "Be calm."}, "ping"), 200, '{"pong": "Be calm."}')
        self.expect(b.hook({}, None, X_Event_Key="diagnostics:ping"), 200, '{"pong": ')
        self.assertEqual(b.records(), [])
        self.expect(b.hook(github_push("live", message="Document skip ci")), 202)

    def test_what_cannot_be_understood_is_refused_and_says_why(self) -> None:
        b = self.boop()
        for body in b"", b"null", b"[]", b"{", b"\xff", b"[" * 20000, b"1" * 5000:
            with self.subTest(body=body[:20]):
                self.expect(b.hook(body), 400, "JSON")
        hostile = ["-oProxyCommand=x", "ext::sh -c x", "file:///etc", "/etc", "../x"]
        hostile += ["https://h/a\nb", "https://-x/y", "https://h/ x", "git@host:path"]
        hostile += ["ssh://-oProxyCommand=x/y", 1, None, "x", "h\0"]
        for payload, words in (
            *((github_push(repo=url), "repository") for url in hostile),
            *((github_push(after=id_), "commit") for id_ in (1, [], "x", "-" * 40)),
            (github_push(ref=None), "ref"),
            (github_push("-x", default_branch="-x"), "not a branch name"),
        ):
            with self.subTest(payload=payload):
                self.expect(b.hook(payload), 400, words)
        self.expect(b.hook(b"x=1", Content_Type=None), 415, "missing")
        self.expect(b.hook(b"x=1", Content_Type="text/plain"), 415, "text/plain")
        self.expect(b.hook(b"x=1", Content_Type=FORM), 400, "payload")
        self.expect(b.hook(github_push(), None), 400, "X-GitHub-Event", "X-Event-Key")
        unclear = self.deliver(b, "Bitbucket", bitbucket_push("main"))
        self.expect(unclear, 200, '{"ignored": ', "set BOOP_BRANCH")
        vector = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        published = {"X_Hub_Signature_256": f"sha256={vector}"}  # by GitHub, of SECRET
        self.expect(b.hook(b"Hello, World!", **published), 400, "body is not JSON")
        self.assertEqual(b.records(), [])

    def test_a_body_is_asked_for_only_where_its_length_is_good(self) -> None:
        b = self.boop()
        head, _, body = push_request(Expect="100-continue").partition(b"\r\n\r\n")
        with b.connect(head + b"\r\n\r\n") as s:
            self.assertEqual(s.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            s.sendall(body)
            self.assertEqual(statuses(read_all(s)), [202])
        good = re.search(rb"Content-Length: \d+", head)[0]
        for lines, status in (
            (b"X: y", 411),
            (b"Transfer-Encoding: chunked\r\nContent-Length: 2", 411),
            (b"Content-Length: two", 400),
            (b"Content-Length: 2\r\nContent-Length: 3", 400),
            (b"Content-Length: 26214401", 413),
        ):
            with self.subTest(lines=lines):
                answer = b.raw(head.replace(good, lines) + b"\r\n\r\n")
                self.assertTrue(answer.startswith(b"HTTP/1.1 %d " % status), answer)
                self.assertIn(b'{"error": ', answer)


# --- Deployments ----------------------------------------------------------------------


class Queue(Case):
    """Promises 2 and 3: one at a time, a shared queue, the tip wins."""

    def test_a_burst_costs_one_more_run_of_the_newest_and_none_overlap(self) -> None:
        gate = self.gate()
        b = self.boop(f"mkdir ../one || exit 9; {gate.wait}; rmdir ../one")
        self.assertEqual(b.push("1" * 40), 1)
        gate.reached()
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            numbers = set(clients.map(lambda _: b.push("2" * 40), range(200)))
        other = b.hook(github_push(repo="https://h/other", commit="4" * 40))
        self.assertEqual((numbers, other.json["deployment"]), ({2}, 3))
        self.assertEqual(b.push("3" * 40), 2)
        for number, pushes, digit in ((1, 1, "1"), (2, 201, "3"), (3, 1, "4")):
            gate.open()
            record = b.finished(number)
            ran = record["status"], record["pushes"], record["commit"]
            self.assertEqual(ran, ("success", pushes, digit * 40))
        self.assertEqual(b.numbers(), [3, 2, 1])


class Runner(Case):
    """One run of the script, from its environment to its reason."""

    def test_the_log_is_byte_for_byte_what_the_script_wrote_in_order(self) -> None:
        b = self.boop(
            r"""
            printf '\000\377\033[31mred\r\n'
            for i in {1..2000}; do echo o$i; echo e$i >&2; done
            head -c 60000 /dev/zero | tr '\000' x
            """
        )
        b.deploy()
        lines = "".join(f"o{i}\ne{i}\n" for i in range(1, 2001)).encode()
        written = b"\0\xff\33[31mred\r\n" + lines + b"x" * 60000 + b"\n"
        first, _, rest = b.get("/log/1").body.partition(b"\n")
        self.assertRegex(first, rb"^boop: deployment 1: push, branch main")
        self.assertTrue(rest.startswith(written))
        self.assertRegex(rest.removeprefix(written), rb"^boop: success in .*\n$")

    def test_reasons_are_words_that_a_person_understands(self) -> None:
        b = self.boop()
        for script, reason in (
            ("exit 7", "exit status 7"),
            ("exec >&- 2>&-; sleep 0.2; exit 8", "exit status 8"),  # it is waited for
            ("kill -SEGV $$", "killed by SIGSEGV"),
            ("kill -40 $$", "killed by signal 40"),
        ):
            with self.subTest(script):
                record = b.deploy(script)
                self.assertEqual(record, record | {"status": "fail", "reason": reason})
                self.assertTrue(b.log(record["number"]).endswith(f": {reason}\n"))
        b.script.write_text("#!/no/such/interpreter\n")
        self.assertIn("No such file", b.deploy()["reason"])

    def test_the_environment_is_boops_without_its_secrets(self) -> None:
        b = self.boop(
            "env; readlink /proc/self/fd/0; pwd; [ $(ps -o sid= -p $$) = $$ ]",
            BOOP_GITHUB_TOKEN="ghp_tokentoken",
            BOOP_GITHUB_API="http://127.0.0.1:1",
            NOTIFY_SOCKET="/nowhere",
            WATCHDOG_USEC="100000000",
            MINE="kept",
        )
        self.assertEqual(b.deploy()["status"], "success")
        self.assertIn(f"\n/dev/null\n{b.state}/work\n", b.log(1))
        told = f"""
            MINE=kept BOOP_NUMBER=1 BOOP_TRIGGER=push BOOP_BRANCH=main BOOP_EXACT=
            BOOP_COMMIT={"1" * 40} BOOP_REPO={github_push()["repository"]["clone_url"]}
            BOOP_STATE={b.state} BOOP_RESULT={b.state}/result
            """
        told = {"BOOP_MESSAGE=Fix typo", "BOOP_AUTHOR=Ann Author", *told.split()}
        variables = set(b.log(1).splitlines())
        self.assertLessEqual(told, variables)
        names = {variable.partition("=")[0] for variable in variables}
        gone = {"BOOP_SECRET", "BOOP_GITHUB_TOKEN", "NOTIFY_SOCKET", "WATCHDOG_USEC"}
        self.assertEqual(names & gone, set())

    def test_the_record_is_what_the_script_says_of_it_less_nonsense(self) -> None:
        said = self.folder / "said"
        b = self.boop(
            f"[ -f $BOOP_RESULT ] && [ ! -s $BOOP_RESULT ] || exit 9;"
            f"cat {said} > $BOOP_RESULT; exit $((BOOP_NUMBER - 1))"
        )
        live = {"commit": "f" * 40, "message": "The tip", "author": "Ada"}
        live["url"] = "https://example.org/blog/"
        said.write_text("".join(f"{k}={v}\n" for k, v in live.items()) + "reason=none")
        record = b.deploy()
        self.assertEqual(record, record | live | {"status": "success", "reason": None})
        self.assertEqual(b.restart().record(1), record)
        said.write_bytes(
            b'reason=hugo failed: \x1b[31mno "home.html"\n'
            b"commit=main\nurl=javascript:alert(1)\nstatus=success\nwhat\n"
            b"author=A\0da\n\nmessage=\n" + b"x" * 16384 + b"\nauthor=Too late\n"
        )
        kept = {"commit": "1" * 40, "message": "Fix typo", "author": "Ada", "url": None}
        kept |= {"status": "fail", "reason": 'hugo failed: ?[31mno "home.html"'}
        record = b.deploy()
        self.assertEqual(record, record | kept)
        for word in ("commit=main", "url=javascript", "status=success", "what"):
            b.said(f"BOOP_RESULT: ignored: {word}")

    def test_who_is_late_or_left_is_ended_and_who_escapes_holds_nobody_up(self) -> None:
        b, up = (
            self.daemon(BOOP_TIMEOUT="1").patch(GRACE_S=1).start(),
            self.folder / "up",
        )
        tidy, late = "trap 'echo bye; exit' TERM", "timed out after 1 s"
        escape = (
            f"setsid sh -c 'echo $$ > {up}; exec yes' & until [ -s {up} ]; do :; done"
        )
        for script, reason in (
            ("sleep 1000 & echo $!; echo bye", None),
            (f"({tidy}; while :; do sleep .1; done) & echo $!; wait", late),
            ("trap '' TERM; echo $$; echo bye; yes & while :; do echo; done", late),
            (f"echo $$; echo bye; {escape}", None),
        ):
            with self.subTest(script):
                record = b.deploy(script)
                self.assertEqual(record["reason"], reason)
                log = b.log(record["number"])
                self.assertIn("bye\n", log)
                pid = self.kill_later(int(log.splitlines()[1]))
                until(lambda pid=pid: not alive(pid), "its end")
        self.kill_later(int(up.read_text()))


# --- Pages ----------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\x9b31m\u202eevil\x07\ud800"


class Pages(Case):
    """GET: routes, forms, headers, and what is in them."""

    def test_every_page_answers_in_the_form_that_is_asked_for(self) -> None:
        b = self.boop("echo hello")
        b.deploy()
        browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
        text, page = "text/plain; charset=utf-8", "text/html; charset=utf-8"
        program = "application/json"
        for path in ("/", "/log/1", "/nowhere"):
            for accept, kind in (
                ("*/*", text),
                (browser, text if path == "/nowhere" else page),
                ("application/json, text/plain, */*", program),
                ("text/html;q=0.5, application/json", program),
            ):
                with self.subTest(path=path, accept=accept):
                    answer = b.get(path, accept)
                    kinds = answer.headers["Content-Type"], answer.headers["Vary"]
                    self.assertEqual(kinds, (kind, "Accept"))
                    request = (
                        f"HEAD {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
                    )
                    head, _, body = b.raw(request.encode()).partition(b"\r\n\r\n")
                    self.assertEqual((statuses(head), body), ([answer.status], b""))
                    self.assertRegex(head, rb"Content-Length: %d\b" % len(answer.body))
        strict = b.get("/log/1", browser).headers["Content-Security-Policy"]
        self.assertRegex(strict, "^default-src 'none';(?!.*unsafe)")
        answer = b.get("/log/1?text", browser)
        self.assertEqual(answer.headers["Content-Type"], text)
        again = b.get("/log/1", If_None_Match=answer.headers["ETag"])
        self.assertEqual((again.status, again.body), (304, b""))

    def test_unknown_addresses_are_404_and_wrong_methods_405(self) -> None:
        b = self.boop()
        for path in "/x /log/ /log/1 /log/01 /log/-1 /log/latest /../".split():
            self.expect(b.get(path), 404)
        for path, allow in (("/", "GET, HEAD"), ("/deploy", "POST")):
            answer = b.request("PUT", path)
            self.assertEqual((answer.status, answer.headers["Allow"]), (405, allow))

    def test_the_record_has_the_contracts_fields_in_its_order(self) -> None:
        b = self.boop()
        record = b.deploy()
        names = "number status reason trigger repo branch commit message author pushes"
        names += " queued_at started_at finished_at duration url"
        self.assertEqual(list(record), names.split())
        self.assertEqual(b.records(), [record])
        self.assertIsInstance(record["duration"], float)
        for name in ("queued_at", "started_at", "finished_at"):
            self.assertRegex(record[name], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual({k: b.journal()[-1][k] for k in record}, record)

    def test_the_list_as_text_is_aligned_and_fools_no_terminal(self) -> None:
        names = ("reason", "repo", "branch", "commit", "message", "author")
        d = self.with_journal(
            record_of(1, duration=245.0),
            record_of(2, status="fail", **dict.fromkeys(names, HOSTILE)),
            record_of(3, branch="drafts/newsletter", message="word " * 40),
        )
        text = d.start().get("/").text
        self.assertTrue(text.replace("\n", "").isprintable())
        header, long, evil, reason, first = text.splitlines()
        for row in long, evil, first:
            for column in "STATUS", "COMMIT", "MESSAGE":
                self.assertRegex(row[header.index(column) - 2 :], r"\A  [^ ]")
        self.assertTrue(long.endswith(("word " * 40).strip()))  # last, and whole
        self.assertTrue(reason.strip().startswith("<script>"))
        self.assertRegex(first, r"^log/1 +success +2024-05-01 10:01 +4m 05s  main ")

    def test_badge_and_metrics_tell_of_all_also_of_what_was_removed(self) -> None:
        b = self.boop("exit $((BOOP_NUMBER - 1))", BOOP_KEEP="1")
        for word, live in (
            ("no deployments", "0"),
            ("success", r"1\d{9}\.\d+"),
            ("failed", "0"),  # the record of the success is not kept
        ):
            badge, metrics = b.get("/badge.svg"), b.get("/metrics")
            self.assertIn(f">{word}</text>", badge.text)
            self.assertIn("image/svg+xml", badge.headers["Content-Type"])
            self.assertRegex(metrics.text, rf"last_success_timestamp_seconds {live}\n")
            with self.subTest("promtool"):
                command = [tool("promtool", "Debian's prometheus"), "check", "metrics"]
                done = subprocess.run(command, input=metrics.body, capture_output=True)
                self.assertEqual((done.returncode, done.stdout + done.stderr), (0, b""))
            b.deploy()
        metrics = b.get("/metrics").text
        self.assertIn('\nboop_deployments_total{status="success"} 1\n', metrics)
        self.assertIn('\nboop_deployments_total{status="fail"} 2\n', metrics)
        self.assertIn("\nboop_deployment_duration_seconds_count 3\n", metrics)

    def test_the_password_guards_what_it_should(self) -> None:
        b = self.boop(BOOP_PASSWORD="pässword")
        for path in ("/", "/log/1", "/log/1?follow", "/metrics", "/?follow"):
            for login in ("", "Basic !", "Basic QTpi"):
                answer = b.get(path, Authorization=login)
                self.assertEqual(answer.status, 401, (path, login))
                self.assertIn("Basic", answer.headers["WWW-Authenticate"])
        b.said(r"wrong password from 127.0.0.1 \(1 so far\)")
        self.assertNotIn("QTpi", "".join(b.lines))
        login = base64.b64encode("any:pässword".encode()).decode()
        self.expect(b.get("/", Authorization=f"Basic {login}"), 200)
        for path in ("/healthz", "/badge.svg", "/boop.css"):
            self.expect(b.get(path), 200)


class InABrowser(Case):
    """The pages of a real boop in headless Chromium, by way of chromedriver."""

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        command = [tool("chromedriver", "Debian's chromium-driver"), "--port=0"]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        cls.addClassCleanup(driver.communicate, timeout=LIMIT_S)
        cls.addClassCleanup(driver.terminate)
        said = next(line for line in driver.stdout if "successfully on port" in line)
        cls.url = f"http://127.0.0.1:{re.findall('[0-9]+', said)[-1]}/session"
        # root has no sandbox
        args = ["--headless", "--no-sandbox", f"--user-data-dir={folder.name}"]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": args}}}
        cls.url += "/" + cls.call("", capabilities=wanted)["sessionId"]
        cls.addClassCleanup(cls.call, "", "DELETE")

    @classmethod
    def call(cls, path: str, method: str = "POST", **body: object) -> typing.Any:
        sent = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(cls.url + path, sent, method=method)
        with urllib.request.urlopen(request, timeout=4 * LIMIT_S) as answer:
            return json.load(answer)["value"]

    def open(self, b: Daemon, path: str = "") -> None:
        self.call("/url", url="about:blank")
        self.call("/url", url=f"http://127.0.0.1:{b.port}/{path}")

    def js(self, expression: str) -> typing.Any:
        """Its value in the page; $ finds one element there, $$ finds all."""
        find = "const $ = s => document.querySelector(s);"
        find += "const $$ = s => [...document.querySelectorAll(s)];"
        return self.call("/execute/sync", script=f"{find} return {expression}", args=[])

    def each(self, selector: str, value: str = "textContent") -> list[typing.Any]:
        return self.js(f"$$({selector!r}).map(e => e.{value})")

    def lines(self) -> list[str]:
        return self.each("[id^=L]")

    def until(self, expression: str) -> None:
        until(lambda: self.js(expression), expression)

    def shows(self, text: str) -> None:
        self.until(f"document.body.innerText.includes({json.dumps(text)})")

    def titled(self, title: str) -> str:
        """Waits until the tab says so; its icon."""
        self.until(f"document.title.startsWith('{title}')")
        return self.js("$('[rel=icon]').href")

    def finished(self) -> None:
        """Waits until all of a log is drawn, and its end is known."""
        self.until("$('#log:not([aria-busy])')")

    def test_the_list_leads_to_the_first_deployment_and_follows_by_itself(self) -> None:
        gate = self.gate()
        b = self.boop(gate.wait)
        self.open(b)
        self.shows(f"http://127.0.0.1:{b.port}/deploy")
        b.hook(github_push(message="Seen in the list"))
        self.until("/^[1-9] s/.test($('.rows .run')?.textContent)")  # it counts
        self.assertEqual(self.each(".hero a", "pathname"), ["/log/1"])
        gate.open()
        self.titled("✓ success · Hello-World")
        self.js("$('.rows a').focus()")  # the keyboard's place survives an update
        b.push()
        self.until("$$('.rows li').length === 2")
        self.assertEqual(self.each(".rows a:focus"), ["#1 Seen in the list"])
        b.env["BOOP_PORT"] = str(b.port)  # a boop that does not answer is waited for
        b.restart().hook(github_push(message="After the restart"))
        self.shows("After the restart")

    def test_a_log_is_followed_to_its_end_and_the_tab_says_how_it_goes(self) -> None:
        gate = self.gate()
        b = self.boop(f"echo one; {gate.wait}; echo two; exit 7")
        b.push()
        gate.reached()
        b.push()
        self.open(b, "log/latest")
        icons = [self.titled("○ #2 queued · Hello-World")]
        gate.open()
        self.shows("one")
        icons += [self.titled("▶ #2 in progress · Hello-World")]
        self.assertNotIn("two", self.lines())
        b.push()  # a newer one: the page stays with its own
        gate.open()
        self.finished()
        icons += [self.titled("✗ #2 failed · Hello-World")]
        self.assertEqual(len(set(icons)), 3)
        self.assertEqual(self.lines()[1:-1], ["one", "two"])
        self.assertEqual(self.each(".why"), ["exit status 7"])
        self.assertIn("exit status 7", self.js("said.textContent"))  # is read out

    def test_nothing_untrusted_becomes_markup_or_breaks_the_policy(self) -> None:
        evil = "<img src=x onerror=document.title='owned'><script>alert(1)</script>"
        names = ("repo", "branch", "commit", "message", "author", "trigger", "reason")
        fields = dict.fromkeys(names, f"{evil}{HOSTILE}\n\n{evil}{HOSTILE}")
        b = self.with_journal(
            record_of(4, repo="javascript:alert(1)//github.com/a/b"),
            record_of(5, repo="https://github.com/a/b?x=<script>"),
            record_of(6, repo="https://github.com/a/b", commit="../../x"),
            record_of(7, url="javascript:alert(1)", **fields),
            record_of(8, **fields | {"status": "fail"}),
            **{"8.log": f"{evil}\n\33[38;2;1;2;3mrgb\n"},
        ).start()
        self.call("/se/log", type="browser")  # what other tests left there
        for path in "log/8", "":
            self.open(b, path)
            self.shows(evil)
            self.titled("✗")
            odd = self.each("img, script, [onerror], [style]", "tagName")
            self.assertEqual(odd, ["SCRIPT"])  # the page's own
            self.assertNotRegex(self.js("document.body.innerText"), "[\x1b\x9b\u202e]")
            for link in self.each("a", "getAttribute('href')"):
                self.assertRegex(link, r"\A(\.\./|#\w+|(log/)?\d+(\?text)?)\Z")
            said = self.call("/se/log", type="browser")
            self.assertNotIn("SEVERE", [line["level"] for line in said])

    def test_a_commit_leads_to_its_page_on_a_known_forge(self) -> None:
        pages = {
            "https://github.com/ada/site.git": "https://github.com/ada/site/commit/",
            "git@gitea.my.org:a/b.git": "https://gitea.my.org/a/b/commit/",
            "ssh://git@codeberg.org:22/a/b": "https://codeberg.org/a/b/commit/",
            "https://gitlab.com/a/b/c.git": "https://gitlab.com/a/b/c/-/commit/",
            "https://bitbucket.org/a/b": "https://bitbucket.org/a/b/commits/",
            "https://github.com.evil.org/a/b": None,
            "https://evilgithub.com/a/b": None,
            "/srv/git/site.git": None,
        }
        pushes = [record_of(n, repo=repo) for n, repo in enumerate(pages, 1)]
        self.open(self.with_journal(*pushes).start())
        self.until("$('.rows')")
        links = self.each(".rows .meta", "querySelector('a')?.href")[::-1]
        self.assertEqual(links, [page and page + "1" * 40 for page in pages.values()])

    def test_the_list_says_what_the_site_shows_and_leads_there(self) -> None:
        b = self.with_journal(
            record_of(5, url="https://old.example.org/"),
            record_of(6, url="https://example.org/"),
            record_of(7, url="https://example.org/other/", branch="other"),
            record_of(8, status="fail", reason="exit status 7"),
        )
        self.open(b.start())
        self.shows("the site shows #6")
        self.assertEqual(self.each(".hero .why"), ["exit status 7"])
        self.assertEqual(self.each(".state a", "href"), ["https://example.org/"])
        self.assertEqual(self.each("li:has(b.success) div > a > span"), ["#7", "#6"])

    def test_a_logs_bar_leads_to_its_neighbours_and_fits_a_phone(self) -> None:
        repo = "https://github.com/ada/a-site-with-a-name-that-is-long.git"
        records = [record_of(n, repo=repo) for n in (12345677, 12345678, 12345679)]
        self.open(self.with_journal(*records).start(), "log/12345678")
        self.finished()
        self.assertEqual(self.each("nav [rel]"), ["← #12345677", "#12345679 →"])
        self.addCleanup(self.call, "/window/rect", **self.call("/window/rect", "GET"))
        for width in 390, 320:
            self.call("/window/rect", width=width, height=700)
            self.assertEqual(self.js("$('html').scrollWidth"), width)
            self.assertLess(self.js("$('.bar').offsetHeight"), 60)
            parts = self.each(".bar > a, .bar > b", "offsetWidth")  # back, state
            self.assertGreater(min(parts), 60)

    def test_a_log_is_shown_where_it_is_read(self) -> None:
        gate = self.gate()
        parts = ["seq 3000", "seq 1000", "seq 3000", "echo last"]
        b = self.boop(f"; {gate.wait}; ".join(parts))
        b.push()
        self.open(b, "log/1")
        at_end = "scrollY > 999 && scrollY > $('html').scrollHeight - innerHeight - 30"
        self.until(f"$('#L3001') && {at_end}")
        self.js("scrollTo(0, 500)")  # who scrolls up is left alone
        self.until("!$('#end').hidden")
        gate.open()
        self.until("$('#L4001')")
        self.assertEqual(self.js("scrollY"), 500)
        self.js("$('#end').click()")  # and else the end stays in sight
        self.until(at_end)
        gate.open()
        self.until(f"$('#L7001')?.textContent === '3000' && {at_end}")
        self.assertLessEqual(len(self.lines()), 5000)  # of the older ones some are gone
        gate.open()
        self.finished()
        self.open(b, "log/1")  # finished, it is read from its head
        self.finished()
        self.assertEqual(self.js("$('#L7002') && scrollY"), 0)
        self.open(b, "log/1#L7000")  # or from the line that a link names
        top = "$('#L7000:target')?.getBoundingClientRect().top"
        self.until(f"{top} > 0 && {top} < innerHeight - 20")
        self.js("$('#L6999 a').click()")
        self.until("$('#L6999:target')")

    def test_a_log_is_drawn_as_by_a_terminal_however_it_is_cut(self) -> None:
        gate = self.gate()
        b = self.boop(
            rf"printf '10%%\r50%%\r'; {gate.wait}; printf '100%%\r\ndone\r\n';"
            rf"printf 'a \033[32mcaf\303'; {gate.wait}; printf '\251 \360\237';"
            rf"{gate.wait}; printf '\216\211\nover\033[0m \033[1;31mred\033[0m "
            r"\033[38;5;208morange\033[m \033[38;2;1;2;3;4mrgb\033[0m "
            r"\033[2K\033]0;title\007\033[?25l\033(Bend\n\033[44;97mon\033[0m\nno end'"
        )
        b.push()
        self.open(b, "log/1")
        for drawn in "50%", "caf", "café":
            self.shows(drawn)
            self.assertNotIn("10%", "".join(self.lines()))
            gate.open()
        self.finished()
        drawn = ["100%", "done", "a café 🎉", "over red orange rgb end", "on", "no end"]
        self.assertEqual(self.lines()[1:-1], drawn)
        spans = self.each("#log span", "innerText + ': ' + e.className")
        self.assertEqual(spans, ["café 🎉: c2", "over: c2", "red: bold c1", "on: c7"])
        color = "getComputedStyle($('{}')).color".format
        self.assertTrue(self.js(f"{color('.c1')} !== {color('#log')}"))

    def test_of_a_log_of_10_mb_the_last_lines_are_drawn_cut_for_show(self) -> None:
        letters = "".join(f"\\033[3{n % 8}mx" for n in range(300))
        b = self.boop(
            "seq 1 990000; head -c 2000000 /dev/zero | tr '\\0' x; echo;"
            "yes 1% | head -c 600000 | tr '\\n' '\\r'; printf '\\r100%%\\n';"
            f"yes $'{letters}' | head -n 20"
        )
        b.deploy()
        self.open(b, "log/1")
        self.finished()
        lines = self.lines()
        self.assertLessEqual(len(lines), 5000)
        self.assertEqual(lines[-24:-21], ["990000", "x" * 2000 + "…", "100%"])
        self.assertEqual(lines[-21:-1], ["x" * 300] * 20)
        self.assertEqual(self.each("#L990024"), lines[-1:])
        self.shows(f"… {990024 - len(lines):,} earlier lines: as text")
        self.assertEqual(self.each("#earlier a", "search"), ["?text"])


class Following(Case):
    """`?follow`, in curl and below it."""

    def test_lines_come_as_they_are_written_and_boops_last_line_ends_it(self) -> None:
        gate = self.gate()
        script = f"echo one; {gate.wait}; echo $BOOP_NUMBER; {gate.wait}; echo three"
        b = self.daemon(script).patch(LOOK_S=1000).start()  # is told, and does not look
        b.push()
        gate.reached()
        b.push()
        changes, who_leaves = b.follow("/"), b.follow("/log/2")
        who_leaves.close()
        self.assertEqual(b.log("latest"), "boop: deployment 2 is queued\n")
        self.assertRegex(b.get("/").text, r"\nlog/2 +queued .*\nlog/1 +inprogress ")
        self.expect(b.get("/metrics"), 200, "\nboop_queue_length 1\n", "_running 1\n")
        for number, log in enumerate([b.follow("/log/1"), b.follow("/log/2")], 1):
            self.assertRegex(log.readline(), rb"^boop: deployment %d: push" % number)
            self.assertEqual(log.readline(), b"one\n")
            gate.open()
            self.assertEqual(log.readline(), b"%d\n" % number)
            until(lambda n=number: b.footprint().sockets == 4 - n, "who left is gone")
            gate.open()
            self.assertRegex(log.read(), rb"^three\nboop: success in .*\n$")
        for change in b"1 success", b"2 inprogress", b"2 success":
            self.assertEqual(changes.readline(), change + b" main 11111111\n")


# --- Settings, start and stop ---------------------------------------------------------


class Starting(Case):
    """Settings, flags, exit statuses."""

    def run_boop(self, *argv: str, **env: str | None) -> tuple[int, str, str]:
        d = self.daemon(argv=argv, **env).start(listening=False)
        d.process.wait(LIMIT_S)
        out = d.process.stdout.read().decode()
        return d.ended()[0], out, "".join(d.lines)

    def test_every_mistake_is_named_at_once_and_the_exit_status_is_78(self) -> None:
        wrong = {"BOOP_HOST": "ü..x", "BOOP_PORT": "http", "BOOP_SCRIPT": "/no/such"}
        wrong |= {"BOOP_TIMEOUT": "0", "BOOP_KEEP": "x", "GIT_CONFIG_COUNT": "x"}
        status, _, err = self.run_boop(**wrong)
        found = [line.split()[3].strip(":") for line in err.splitlines()]
        self.assertEqual((status, found), (78, list(wrong)))

    def test_a_flag_wins_and_secrets_and_what_is_unknown_are_none(self) -> None:
        for word, why in (
            ("--port=x", "BOOP_PORT 'x'"),
            ("--prot=1", "--prot: no such flag"),
            ("--secret=x", "--secret: no such flag"),
            ("restart", "restart: no such command"),
        ):
            status, _, err = self.run_boop(word, BOOP_PORT="1")
            self.assertEqual((status, len(err.splitlines())), (78, 1), err)
            self.assertIn(why, err)
        b = self.boop(argv=["--port=0", "--host", "::"], BOOP_PORT="1")
        for host in ("127.0.0.1", "::1"):  # :: listens on both families
            socket.create_connection((host, b.port)).close()

    def test_check_looks_at_all_that_boop_will_need(self) -> None:
        checkout, b = site(self.folder), self.boop()
        good = {"BOOP_REPO": str(checkout), "BOOP_SECRET": "sssssssssecret"}
        good["BOOP_STATE"] = str(self.folder / "new")
        for code, words, env in (
            (0, f"ok: {checkout}, branch main, is at", {}),
            (0, "a boop listens on", {"BOOP_PORT": str(b.port)}),
            (0, "no BOOP_SECRET: every hook will be refused", {"BOOP_SECRET": ""}),
            (78, "cannot listen on no.such", {"BOOP_HOST": "no.such.invalid"}),
            (78, "does not appear to be", {"BOOP_REPO": f"{self.folder}/none"}),
            (78, "no branch x", {"BOOP_BRANCH": "x"}),
            (78, "not boop's", {"BOOP_STATE": str(checkout)}),
            (78, "git and aws: not", {"DEPLOY_TO": "s3://x", "PATH": "/nowhere"}),
        ):
            with self.subTest(words):
                status, out, err = self.run_boop("--check", **(good | env))
                self.assertEqual(status, code, err)
                self.assertIn(words, err if code else out + err)
                self.assertNotIn("sssssssssecret", out + err)
        self.assertFalse((self.folder / "new").exists())

    def test_what_keeps_it_from_serving_is_one_line_and_exit_status_1(self) -> None:
        b, elsewhere = self.boop(), str(self.folder / "elsewhere")
        for words, env in (
            (f"port {b.port}", {"BOOP_PORT": str(b.port), "BOOP_STATE": elsewhere}),
            ("/proc/boop", {"BOOP_STATE": "/proc/boop"}),
            ("another boop", {}),  # on the same state
        ):
            with self.subTest(words):
                status, _, err = self.run_boop(**env)
                self.assertEqual((status, len(err.splitlines())), (1, 1), err)
                self.assertIn(words, err)

    def test_help_readme_and_the_table_agree(self) -> None:
        out = self.run_boop("--help")[1]
        for name, setting in boop.SETTINGS.items():
            variable = f"BOOP_{name.upper()}"
            flag = f"--{name.replace('_', '-')} {variable}"
            self.assertEqual(flag in out, setting.check is not boop.Secret)
            self.assertIn(variable, out)
            row = re.search(rf"(?m)^\| `{variable}` \|.*$", README.read_text())[0]
            if str(setting.default).isdecimal():
                self.assertIn(setting.default, row)
                self.assertIn(f"default: {setting.default}", " ".join(out.split()))
        self.assertEqual(self.run_boop("--version")[:2], (0, f"boop {boop.VERSION}\n"))


class Stopping(Case):
    """SIGTERM, SIGINT, and what is left of a deployment."""

    def test_a_running_script_may_clean_up_and_runs_again_after_a_start(self) -> None:
        tidy = "trap 'echo cleaned up; exit' TERM; echo running; sleep 1000 & wait"
        d = self.daemon(f"[ $BOOP_NUMBER != 1 ] || {{ {tidy}; }}")
        d.env["WATCHDOG_USEC"] = "3000"  # an alarm each millisecond
        b = d.patch(DRAIN_S=1000, LOOK_S=1000).start()  # followers are told of its end
        b.push()
        log, changes = b.follow("/log/1"), b.follow("/")
        self.assertRegex(log.readline() + log.readline(), b"running\n$")
        self.assertEqual(b.stop()[0], 0)
        end = rb"^cleaned up\nboop: fail after .*: interrupted: boop was stopped\n$"
        self.assertRegex(log.read(), end)
        self.assertRegex(changes.read(), rb"(?m)^1 fail main .*: boop was stopped$")
        again = b.start().finished(2)
        self.assertEqual(again, again | {"status": "success", "trigger": "interrupted"})
        for signum in (signal.SIGTERM, signal.SIGINT):  # while it is idle
            self.assertEqual(b.stop(signum)[0], 0)
            self.assertEqual(b.start().numbers(), [2, 1])  # and not once more


# --- The whole way, and by hand -------------------------------------------------------


def tree(folder: pathlib.Path | str) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    folder = pathlib.Path(folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class WholeWay(Case):
    """A push, GitHub's hook, deploy.sh: and the site is live."""

    def test_the_site_is_the_last_good_commit_of_the_checkout_it_starts_in(self):
        files = {"index.html": "Hello", "old.html": "old", "kept.html": "kept"}
        b = self.daemon(BOOP_SCRIPT=str(HERE / "deploy.sh"), BOOP_REPO=None)
        b.folder = checkout = site(self.folder, files)
        b.start().said("deployment 1: success")
        git(checkout, "rm", "-q", "old.html")
        tip = commit(checkout, {"index.html": "Hello again", "new.html": "new"})
        record = b.finished(b.push(tip))
        self.assertEqual((record["status"], record["commit"]), ("success", tip))
        live = {"index.html": b"Hello again", "kept.html": b"kept", "new.html": b"new"}
        self.assertEqual(tree(b.state / "public"), live)
        git(checkout, "rm", "-q", "index.html")
        record = b.finished(b.push(commit(checkout, {"new.html": "newer"})))
        self.assertIn("index.html", record["reason"] or "it is a success")
        self.assertEqual(tree(b.state / "public"), live)
        b.stop()
        b.folder = self.folder / "other"
        b.folder.mkdir()
        b.folder = site(b.folder, {"index.html": "Another"})
        b.start().said("deployment 4: success")
        self.assertEqual(tree(b.state / "public"), {"index.html": b"Another"})


class ByHand(Case):
    """`boop.py deploy [COMMIT]` and the signed request behind it."""

    def ask(self, b: Daemon, words: str, **env: str) -> tuple[int, str, str]:
        """Runs a command of boop's beside a running boop: status, stdout, stderr."""
        command = ["bash", "-c", f'"{sys.executable}" "{HERE}/boop.py" {words}']
        env = {**b.env, "BOOP_PORT": str(b.port), **env}
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=LIMIT_S
        )
        return done.returncode, done.stdout, done.stderr

    def boop_with_site(self, script: str) -> tuple[Daemon, str]:
        """A boop that has deployed its site; and the site's tip."""
        checkout = site(self.folder)
        b = self.boop(script, BOOP_REPO=str(self.folder / "origin.git"))
        b.said("deployment 1: success")
        return b, git(checkout, "rev-parse", "HEAD")

    def test_it_prints_the_log_and_exits_by_the_result(self) -> None:
        b, tip = self.boop_with_site("seq 100000; exit $((BOOP_NUMBER > 3))")
        self.assertEqual(self.ask(b, "deploy"), (0, b.log(2), ""))
        made = {"trigger": "manual", "pushes": 0, "commit": tip}
        self.assertEqual(b.record(2), b.record(2) | made)
        # also to who stops reading, or has no stdout
        status, out, err = self.ask(b, "deploy | head -1; exit ${PIPESTATUS[0]}")
        self.assertEqual((status, len(out.splitlines()), err), (0, 1, ""))
        self.assertEqual(self.ask(b, "deploy >&-"), (1, "", ""))
        self.assertEqual(self.ask(b, "deploy"), (1, b.log(5), ""))

    def test_what_is_no_request_by_hand_is_refused_in_one_line(self) -> None:
        b, _ = self.boop_with_site("exit 0")
        for words, env, why in (
            ("deploy", {"BOOP_SECRET": "wrong"}, "401"),
            ("deploy", {"BOOP_SECRET": ""}, "BOOP_SECRET is not set"),
            ("deploy ''", {}, "not a full commit id"),
            ("deploy --force", {"BOOP_PORT": "1"}, "does not answer"),
            ("cancel", {}, "no deployment is running"),
            ("cancel x", {}, "not a deployment's number"),
        ):
            with self.subTest(words=words, env=env):
                status, out, err = self.ask(b, words, **env)
                self.assertEqual((status, out, len(err.splitlines())), (1, "", 1), err)
                self.assertIn(why, err)
        wrong = [{"commit": "abc"}, {"commit": None}, {"cancel": True}, {"cancel": "2"}]
        for wish in (*wrong, {"x": 1}, {"force": 1}, {"cancel": 1, "force": True}):
            self.expect(b.by_hand(**wish), 400)
        self.expect(b.by_hand(cancel=1), 409)
        self.expect(b.by_hand(cancel=9), 404)
        b.env |= {"BOOP_REPO": "", "BOOP_PASSWORD": "hunter2"}
        self.expect(b.restart().by_hand(), 400, "BOOP_REPO")
        del b.env["BOOP_PASSWORD"]
        status, _, err = self.ask(b, "deploy")  # by who would see no log of it
        self.assertEqual((status, "wants the password" in err), (1, True), err)

    def test_a_hung_build_is_cancelled_and_what_waits_behind_it_runs(self) -> None:
        hung = "trap 'echo bye; exit' TERM; echo hung; sleep 1000 & wait"
        b, _ = self.boop_with_site(f"[ $BOOP_NUMBER != 2 ] || {{ {hung}; }}")
        wishes = {}, {"commit": "2" * 40}, {}
        numbers = [b.by_hand(**wish).json["deployment"] for wish in wishes]
        self.assertEqual(numbers, [2, 3, 4])
        log = b.follow("/log/2")
        self.assertRegex(log.readline() + log.readline(), b"hung\n$")
        self.assertEqual(b.by_hand(cancel=3).json, {"cancelled": 3})
        self.assertEqual(b.record(2)["status"], "inprogress")
        self.assertEqual(self.ask(b, "cancel"), (0, "deployment 2 is cancelled\n", ""))
        self.assertRegex(log.read(), b"^bye\nboop: fail after .*: cancelled by hand\n$")
        for log in b.log(3), b.get("/log/3?follow").text:
            self.assertEqual(log, "boop: deployment 3 is fail: cancelled by hand\n")
        ends = [b.finished(number)["status"] for number in (2, 3, 4)]
        self.assertEqual(ends, ["fail", "fail", "success"])
        self.assertIsNone(b.record(3)["started_at"])

    def test_a_cancel_that_comes_as_the_script_ends_is_what_log_and_record_say(self):
        d = self.daemon().patch(
            "real = boop.Runner._watch",
            "def watch(self, script, number, log):",
            "    why = real(self, script, number, log)",
            "    self.cancel(number)",
            "    return why",
            "boop.Runner._watch = watch",
        )
        self.assertEqual(d.start().deploy()["reason"], "cancelled by hand")
        self.assertRegex(d.log(1), "boop: fail after .*: cancelled by hand\n$")

    def test_only_who_wants_the_same_shares_a_deployment(self) -> None:
        gate = self.gate()
        b, tip = self.boop_with_site(
            f"[ $BOOP_NUMBER != 2 ] || {{ {gate.wait}; }};"
            "echo $BOOP_COMMIT exact=$BOOP_EXACT force=$DEPLOY_FORCE"
        )
        self.assertEqual(b.by_hand().json["deployment"], 2)
        gate.reached()
        wishes = {"commit": tip}, {"commit": tip}, {}, {"force": False}
        numbers = [b.by_hand(**wish).json["deployment"] for wish in wishes]
        # which does not say what the default branch is: boop knows it
        bitbucket = b.hook(bitbucket_push("main"), None, X_Event_Key="repo:push")
        numbers += [bitbucket.json["deployment"], b.push(tip)]
        numbers += [b.by_hand(force=True).json["deployment"] for _ in "12"]
        self.assertEqual(numbers, [3, 3, 4, 4, 4, 4, 5, 5])
        gate.open()
        told = "exact= force=", "exact=1 force=", "exact= force=", "exact= force=1"
        for number, words in enumerate(told, 2):
            b.finished(number)
            self.assertIn(f"{tip} {words}\n", b.log(number))


# --- deploy.sh ------------------------------------------------------------------------

DEPLOY = HERE / "deploy.sh"
CONFIG = 'baseURL = "https://example.org/"\nenableGitInfo = true\n'
BLOG = {
    "config.toml": CONFIG,
    "layouts/_default/single.html": '{{ $c := resources.Get "app.css" | fingerprint }}'
    '<link href="{{ $c.RelPermalink }}">{{ .Lastmod }} {{ .Content }}',
    "layouts/_default/list.html": "Posts: {{ range .Pages }}{{ .Title }}{{ end }}",
    "layouts/index.html": "Home: {{ range .Site.RegularPages }}{{ .Title }}{{ end }}",
    "assets/app.css": "body { color: black }",
    "content/post/one.md": "---\ntitle: One\n---\nFirst text\n",
    "content/post/two.md": "---\ntitle: Two\n---\nSecond text\n",
}
PLAIN = {f"p{n}.html": f"page {n}" for n in range(3)}


def repository(path, *options):
    """A new git repository: its path."""
    path.mkdir()
    git(path, "init", "-q", "-b", "main", *options)
    return path


class DeployCase(Case):
    """A repository and a way to run deploy.sh, for each test its own."""

    def setUp(self):
        super().setUp()
        self.bin, self.home = self.folder / "bin", self.folder / "home"
        self.bin.mkdir()
        self.repository = repository(self.folder / "repository")
        self.git = functools.partial(git, self.repository)
        self.commit = functools.partial(commit, self.repository)
        self.state, self.result = self.folder / "state", self.folder / "result"
        self.work, self.target = self.state / "work", self.state / "public"
        self.settings = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": self.home,
            "TZ": "UTC",
            "GIT_ALLOW_PROTOCOL": "file:http",
            "PYENV_ROOT": os.path.expanduser("~/.pyenv"),  # an aws that is a shim of it
            "BOOP_REPO": self.repository,
            "BOOP_STATE": self.state,
            "BOOP_RESULT": self.result,
        }

    def start(self, cwd=None, **settings):
        environment = {**self.settings, **settings}
        self.result.write_text("")
        return subprocess.Popen(
            [DEPLOY],
            cwd=cwd or self.folder,
            env={k: str(v) for k, v in environment.items() if v is not None},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run_it(self, status=0, **settings):
        """Deploys: the log."""
        with self.start(**settings) as process:
            output = process.communicate(timeout=120)[0]
        self.assertEqual(bool(process.returncode), bool(status), output)
        return output

    def results(self):
        """What the last run left for boop."""
        return dict(line.split("=", 1) for line in self.result.read_text().splitlines())

    def refused(self, touches=False, **settings):
        """The reason of a run that fails, which is also what it says last."""
        before = self.live()
        output = self.run_it(status=1, **settings)
        reason = self.results()["reason"]
        self.assertEqual(output.splitlines()[-1], f"deploy: {reason}", output)
        if not touches:
            self.assertEqual(self.live(), before)
        return reason

    def publish(self, files=None, **settings):
        """Commits and deploys a plain site: the log. It is live then, and all of it."""
        tip = self.commit(files)
        output = self.run_it(**settings)
        self.assertEqual(self.live(), self.site())
        self.assertEqual(self.results()["commit"], tip)
        return output

    def site(self):
        names = filter(None, self.git("ls-files", "-z").split("\0"))
        return {name: (self.repository / name).read_bytes() for name in names}

    def live(self):
        return tree(self.target)

    def wrap(self, program, line):
        """Put a line of shell before a program that deploy.sh calls."""
        real = shutil.which(program)
        (self.bin / program).write_text(f'#!/bin/bash\n{line}\nexec {real} "$@"\n')
        (self.bin / program).chmod(0o755)


class DeployToFolder(DeployCase):
    """Publishing to a folder, and all that does not depend on the target."""

    def test_a_hugo_site_has_gits_dates_and_the_log_and_record_say_what_went_live(self):
        tool("hugo", "hugo")
        amend = functools.partial(self.git, "commit", "-q", "--amend", "--date")
        self.commit(BLOG)
        amend("2024-02-03T04:05:06Z", "-mStart")
        self.commit({"content/post/two.md": ""})
        amend("2024-03-04T05:06:07Z", "-mFix = \x1b[31mtypo\x9b " + "x" * 400)
        output = self.run_it(BOOP_COMMIT="f" * 40)
        self.assertIn(b"2024-02-03 04:05:06", self.live()["post/one/index.html"])
        self.assertIn(b"2024-03-04 05:06:07", self.live()["post/two/index.html"])
        steps = re.findall(r"(?m)^(\w+) +\d+\.\d s  .", output)
        self.assertEqual(steps, ["fetch", "build", "publish", "live"])
        said = r"HEAD at [0-9a-f]{7,}: Fix .*typo. x+ \(Ann Author\)\n"
        self.assertRegex(output, rf"^fetch +\d\.\d s  {said}")
        self.assertTrue(output.replace("\n", "").isprintable())  # steers no terminal
        known = self.results()
        self.assertEqual(known["commit"], self.git("rev-parse", "HEAD"))
        self.assertRegex(known["message"], "^Fix = .*typo.* x+$")
        self.assertEqual((known["author"], known["url"]), ("Ann Author", ""))
        url = "https://www.example.net/blog/"  # of example.org, it would be made up
        config = CONFIG.replace("https://example.org/", url)
        self.commit({"content/post/two.md": None, "config.toml": config})
        self.run_it()
        self.assertFalse((self.target / "post/two").exists())  # nor its empty folder
        self.assertEqual(self.results()["url"], url)
        self.run_it(DEPLOY_URL="https://b.example.net")
        self.assertEqual(self.results()["url"], "https://b.example.net")

    def test_only_what_changed_or_was_lost_is_written_and_full_trusts_nothing(self):
        self.publish(PLAIN)
        page = {name: self.target / name for name in PLAIN}
        inodes = {name: page[name].stat().st_ino for name in PLAIN}
        with open(page["p1.html"]) as reader:  # a visitor, in the middle of it
            output = self.publish({"p1.html": "PAGE 1"})  # of the same size
            self.assertEqual(reader.read(), "page 1")
        self.assertIn("1 of 3 files uploaded, 0 deleted", output)
        changed = [name for name in page if page[name].stat().st_ino != inodes[name]]
        self.assertEqual(changed, ["p1.html"])
        page["p0.html"].unlink()
        page["p1.html"].write_text("HACKED")
        page["p2.html"].write_text("other size")
        self.run_it()
        self.assertEqual(self.live(), self.site() | {"p1.html": b"HACKED"})
        self.publish(DEPLOY_FULL=1)
        self.publish({"a": "file", "b/c/d.html": "page"})  # and each becomes the other
        self.publish({"a": None, "b/c/d.html": None, "a/d.html": "page", "b": "file"})

    def test_a_folder_full_of_photos_keeps_them_unless_forced(self):
        photos = {"mine": b"mine"} | {f"2023/{n}.jpg": b"mine" for n in range(15)}
        (self.target / "2023").mkdir(parents=True)
        (self.target / "empty").mkdir()
        for name in (*photos, "p0.html"):  # which the site has, too
            (self.target / name).write_bytes(b"mine")
        self.commit({**PLAIN, "2023/page.html": "x"})
        self.assertIn("17 files here are not boop's: left alone", self.run_it())
        self.commit({"2023/page.html": None})
        self.run_it(DEPLOY_FULL=1)
        self.assertEqual(self.live(), self.site() | photos)
        self.assertTrue((self.target / "empty").exists())
        for name, ours in (("mine", "mine/x.html"), ("2023/1.jpg", "2023")):
            self.commit({ours: "in its way", "p0.html": name})
            self.assertIn(f"{name.split('/')[0]} is not boop's", self.refused())
            self.commit({ours: None})
        full = 'case "$*" in *.boop.new*p0.html*) echo "error: full"; exit 1 ;; esac'
        self.wrap("cp", full)
        self.commit({"a.css": "new", "p0.html": "new"})
        for force in (None, "1"):  # which makes nothing boop's that was not
            self.assertIn("cannot publish", self.refused(DEPLOY_FORCE=force))
        (self.bin / "cp").unlink()
        self.run_it()
        self.assertEqual(self.live(), self.site() | photos)
        self.commit({"mine/x.html": "in its way"})
        self.publish(DEPLOY_FORCE=1)

    def test_what_was_published_is_known_for_each_target_and_lost_with_the_state(self):
        self.publish({**PLAIN, "old.html": "o"})
        self.assertIn("4 of 4 files", self.run_it(DEPLOY_TO="~/www"))
        self.assertIn("1 deleted", self.publish({"old.html": None}))
        www = self.home / "www"
        self.assertIn("0 of 3 files uploaded, 1 deleted", self.run_it(DEPLOY_TO=www))
        self.assertEqual(tree(www), self.site())
        shutil.rmtree(self.work)
        self.commit({"p0.html": None})
        self.assertIn("3 files here are not boop's", self.run_it())
        self.assertIn("p0.html", self.live())

    def test_a_site_that_lost_half_its_files_or_its_home_page_is_not_published(self):
        all_of_it = {**PLAIN, "index.html": "home"}
        self.publish(all_of_it)
        for files, reason in (
            (dict.fromkeys(PLAIN), "the site lost 3 of its 4 files"),
            ({"index.html": None, "new.html": "x"}, "there is no home page"),
            (dict.fromkeys(all_of_it), "the site lost 4 of its 4 files"),
        ):
            self.commit(files)
            for _ in range(2):  # and it does not wear off
                self.assertIn(reason, self.refused())
            self.git("reset", "-q", "--hard", "HEAD~1")
        self.publish({"p0.html": None, "p1.html": None})
        other = repository(self.folder / "other")  # which may take its place
        commit(other, {})
        self.assertIn("the site is empty", self.refused(BOOP_REPO=other))
        self.publish({"p2.html": None, "index.html": None}, DEPLOY_FORCE=1)

    def test_a_failed_fetch_or_build_touches_nothing_and_says_why_in_a_line(self):
        tool("hugo", "hugo")
        self.commit(BLOG)
        self.run_it()
        for settings, why in (
            ({"BOOP_REPO": "/nowhere"}, "^cannot fetch HEAD: .*/nowhere' does not "),
            ({"BOOP_BRANCH": "nope"}, "^cannot fetch nope: fatal: .* nope .*"),
        ):
            self.assertRegex(self.refused(**settings), why)
        home, page = "layouts/index.html", "content/post/one.md"
        for files, why in (
            ({home: "{{ .Nope }"}, f'^hugo failed: .*"{home}:1'),
            ({home: '{{ partial "no.html" }}'}, '"no.html" not found$'),
            ({page: "---\na: ["}, "post/one.md"),
            ({page: 'x {{< ref "nowhere" >}}'}, 'Ref "nowhere"'),
        ):
            tip = self.commit(files, "Typo\n\nBody")
            reason = self.refused()
            self.assertRegex(reason, why)
            self.assertNotIn(str(self.folder), reason)
            known = self.results()
            self.assertEqual((known["commit"], known["message"]), (tip, "Typo"))
            self.git("reset", "-q", "--hard", "HEAD~1")
        shutil.rmtree(self.add_theme())
        self.assertIn("cannot fetch", self.refused())
        self.commit(dict.fromkeys(name for name in BLOG if "layouts" in name))
        self.git("rm", "-q", "theme", ".gitmodules")
        self.commit()  # as if its theme were missing, from the first day on
        self.assertIn("there is no home page", self.refused(BOOP_STATE=self.home))
        alone = (
            "defaultContentLanguageInSubdir = true\n[languages.de]\n[languages.en]\n"
        )
        self.commit({"config.toml": CONFIG + alone})  # an alias leads there
        self.assertIn("there is no home page", self.refused(BOOP_STATE=self.home))

    def add_theme(self):
        """A submodule of another repository, which it gives."""
        theme = repository(self.folder / "theme")
        commit(theme, {"t.css": "one"})
        self.submodule("add", str(theme), "theme")
        self.commit()
        return theme

    def submodule(self, *words):
        self.git("-c", "protocol.file.allow=always", "submodule", "--quiet", *words)

    def test_images_in_git_lfs_go_live_as_images_and_never_as_pointers(self):
        tool("git-lfs", "git-lfs")
        self.settings["GIT_CONFIG_NOSYSTEM"] = "1"  # no "git lfs install" here
        for name in ("smudge", "clean"):
            self.git("config", f"filter.lfs.{name}", f"git-lfs {name} -- %f")
        image = b"\x89PNG" * 1000
        self.commit({".gitattributes": "*.png filter=lfs", "i.png": image})
        self.assertIn("git-lfs", self.git("show", "HEAD:i.png"))
        for path in pathlib.Path("/usr/bin").iterdir():
            if path.name != "git-lfs":
                (self.bin / path.name).symlink_to(path)
        self.assertIn("apt install git-lfs", self.refused(PATH=self.bin))
        self.run_it()  # and after the installation
        self.assertEqual(self.live()["i.png"], image)

    def test_a_repository_without_hugo_is_published_as_it_is_for_all_to_read(self):
        umask = os.umask(0o077)
        self.addCleanup(os.umask, umask)
        files = {"index.html": "x", ".well-known/a": "b", "-dash ü.html": "y"}
        files |= {"config.json": "{}", "hugo.tips.md": "# Tips", "config.toml.md": "x"}
        self.commit(files)
        self.run_it(BOOP_RESULT=None)  # as by hand
        self.assertEqual(self.live(), self.site())
        for path in self.target.rglob("*"):
            mode = 0o755 if path.is_dir() else 0o644
            self.assertEqual(path.stat().st_mode & 0o777, mode)
        self.assertEqual((self.work).stat().st_mode & 0o777, 0o700)

    def test_a_symbolic_link_leads_nobody_out_of_the_repository(self):
        links = {"static/a.txt": "/etc/passwd", "static/b": "/etc/apt"}
        links |= {"static/git.txt": "../.git/config", "content/a.md": "/etc/passwd"}
        for hugo in ({}, BLOG):
            self.commit({**PLAIN, "static/x": "", "content/x": "", **hugo})
            for name, to in links.items():
                (self.repository / name).unlink(missing_ok=True)
                (self.repository / name).symlink_to(to)
            within = self.repository / "static/in.txt"
            within.unlink(missing_ok=True)
            within.symlink_to("x")
            self.commit()
            output = self.run_it(DEPLOY_FORCE=1)
            self.assertEqual("in.txt" in self.live(), bool(hugo))
            for name in links:
                self.assertIn(f"link: removed 'src/{name}'", output)
            names = {name.split("/")[-1] for name in self.live()}
            self.assertFalse(names & {"a.txt", "b", "git.txt", "a.md", "sources.list"})
            self.assertNotIn(b"root:", b"".join(self.live().values()))

    def test_a_file_name_that_no_list_can_hold_is_refused_before_anything(self):
        for name in (b"caf\xe9.html", b"a\nb.html", b"a\x01.html"):
            path = os.fsencode(self.repository) + b"/" + name
            with open(path, "w") as page:
                page.write("x")
            self.commit(PLAIN)
            self.assertIn("is not UTF-8, or not printable", self.refused())
            os.unlink(path)

    def test_it_works_in_its_own_folder_wherever_it_is_started(self):
        other = repository(self.folder / "other")
        commit(other, {"mine.html": "mine"})
        (other / "mine.html").write_text("not committed")
        hooks = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other}
        hooks |= {"GIT_INDEX_FILE": other / ".git/index", "CDPATH": other}
        (other / "src").mkdir()  # where CDPATH would lead to
        self.settings["BOOP_STATE"] = other / "state"
        self.target = other / "state/public"
        self.publish(PLAIN, cwd=other, **hooks)
        git(other, "remote", "add", "origin", str(self.repository))
        # without it, git looks for a repository in the folders above
        (other / "state/work/src/.git/HEAD").unlink()
        self.publish({"p1.html": "new"})
        self.assertEqual((other / "mine.html").read_text(), "not committed")

    def test_a_target_that_would_cost_somebody_their_files_is_refused(self):
        checkout = repository(self.folder / "checkout")
        bare = repository(self.folder / "bare", "--bare")
        self.settings["BOOP_REPO"] = bare
        here = [self.folder, self.home, bare, checkout, self.state]
        work = [self.work, self.work / "site"]
        for target in ("/", "~/", *here, *work, "gs://bucket", "s3://", "s3://b/a|b"):
            with self.subTest(target=target):
                output = self.run_it(status=1, DEPLOY_TO=target)
                self.assertRegex(output, "^deploy: DEPLOY_TO=.*\n$")

    def test_exactly_the_commit_asked_for_is_deployed_and_otherwise_the_tip(self):
        old = self.commit({"i.html": "old"})
        self.git("commit", "-q", "--amend", "-m", "Pushed over")
        self.git("tag", "main", old)
        self.commit({"i.html": "new"})
        for settings, expected in (
            ({"BOOP_EXACT": 1, "BOOP_COMMIT": old}, b"old"),
            ({"BOOP_COMMIT": old, "BOOP_TRIGGER": "push"}, b"new"),
            ({"BOOP_COMMIT": "", "BOOP_EXACT": 1, "BOOP_BRANCH": "main"}, b"new"),
        ):
            self.run_it(**settings)
            self.assertEqual(self.live()["i.html"], expected, settings)
        away = self.folder / "away"
        self.repository.rename(away)  # what is here goes live again all the same
        self.run_it(BOOP_EXACT=1, BOOP_COMMIT=old)
        self.assertEqual(self.live()["i.html"], b"old")
        away.rename(self.repository)
        for commit in ("f" * 40, "--help"):
            reason = self.refused(BOOP_EXACT=1, BOOP_COMMIT=commit)
            self.assertRegex(reason, f"^cannot fetch {commit}: fatal: .*{commit}")

    def test_submodules_are_followed_when_they_change_move_and_go(self):
        theme, other = self.add_theme(), repository(self.folder / "other")
        commit(other, {"t.css": "other"})
        for change, expected in (
            (lambda: None, b"one"),
            (lambda: commit(theme, {"t.css": "two"}), b"two"),
            (lambda: self.submodule("set-url", "theme", str(other)), b"other"),
            (lambda: self.git("rm", "-q", "theme"), None),
        ):
            change()
            self.submodule("update", "--remote")
            self.commit({"index.html": "x"})
            self.run_it()
            self.assertEqual(self.live().pop("theme/t.css", None), expected)
            self.assertLessEqual(len(self.live()), 2)  # no .git, no .gitmodules

    def test_the_clone_follows_any_origin_and_comes_back_from_any_damage(self):
        shallow = (
            "mv repository whole; git clone -q --depth 1 file://$PWD/whole repository;"
            " rm -rf whole"
        )
        new = (
            "rm -rf repository/.git; git init -q -b main --object-format={} repository"
        )
        damages = (
            "touch state/work/src/.git/index.lock",
            "cd state/work/src; rm .git/index; echo 2 >p0.html; echo 2 >p9.html",
            "cd state/work/src; chmod -R u+w .git; truncate -cs 9 .git/objects/*/*",
            "git -C repository reset -q --hard HEAD~1",
            "echo '[broken' >state/work/src/.git/config",
            "rm -r state/work/src/.git",
            "rm -r state/work/src; echo a file >state/work/src",
            "mv state/work/src state/work/src.new",
            shallow,
            shallow,
            new.format("sha256"),
            new.format("sha1"),
        )
        self.publish(PLAIN)
        for number, damage in enumerate(damages):
            with self.subTest(damage):
                subprocess.run(["bash", "-c", damage], cwd=self.folder, check=True)
                self.publish({"p1.html": f"edit {number}"})
        self.git("branch", "other")
        self.commit({"p1.html": "newer"})
        self.assertNotIn("fresh clone", self.run_it(BOOP_BRANCH="other"))
        self.assertEqual(self.live()["p1.html"], b"edit 11")

    def test_pictures_of_a_hugo_that_was_killed_are_not_trusted(self):
        tool("hugo", "hugo")
        self.commit(BLOG)
        self.run_it()
        half = self.work / "src/resources/_gen/half.png"
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text("half")
        self.run_it()
        self.assertTrue(half.exists())
        self.run_it(DEPLOY_FULL=1)
        self.assertFalse(half.exists())
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text("half")
        self.wrap("hugo", "kill -9 $$")
        self.assertEqual(self.refused(), "hugo failed: exit status 137")
        (self.bin / "hugo").unlink()
        self.run_it()
        self.assertFalse(half.exists())
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text("another site's")
        commit(other := repository(self.folder / "other"), {"a.html": "a"})
        self.run_it(BOOP_REPO=other)
        self.assertEqual(self.live(), {"a.html": b"a"})

    def test_a_run_waits_for_what_an_earlier_one_left_running(self):
        self.commit(PLAIN)
        (self.work).mkdir(parents=True)
        with open(self.state / "work/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = self.start()
            self.addCleanup(process.wait)
            self.addCleanup(process.stdout.close)
            self.assertIn("waiting for an earlier run", process.stdout.readline())
            self.assertFalse(self.target.exists())
        self.assertIn("3 of 3 files uploaded", process.stdout.read())

    def test_a_password_in_the_repositorys_address_reaches_its_server_alone(self):
        self.commit(PLAIN)
        self.git("update-server-info")
        header = "Basic " + base64.b64encode(b"ann:s3cr:et").decode()

        class Handler(Quiet):
            def do_GET(handler):
                known = handler.headers.get_all("Authorization") == [header]
                super().do_GET() if known else handler.send_error(401)

        with serving(lambda *a: Handler(*a, directory=self.repository)) as port:
            repo = f"http://ann:s3cr:et@127.0.0.1:{port}/.git"
            b = self.boop(BOOP_SCRIPT=str(DEPLOY), BOOP_REPO=repo)
            b.said("deployment 1: (success|fail)")
        self.assertEqual(self.live(), self.site())
        kept = b.log(1) + (self.work / "src/.git/config").read_text()
        self.assertNotIn("s3cr", kept)
        self.assertNotIn(header.split()[1], kept)


S3_DENIED = 403, {}, b"<Error><Code>AccessDenied</Code></Error>"
MEDIUM, LONG = "public, max-age=600", "public, max-age=31536000, immutable"
S3_TYPES = {  # the types as regular expressions, for machines differ; None: as pages
    "index.html": ("text/html", None),
    "feed.xml": ("(text|application)/xml", None),
    "robots.txt": ("text/plain; charset=utf-8", None),
    "list.json": ("application/json", None),
    "style.css": ("text/css", MEDIUM),
    "f.woff2": ("font/woff2", MEDIUM),
    "i.avif": ("image/avif", MEDIUM),
    "LICENSE": ("binary/octet-stream", MEDIUM),
    f"main.{'0a' * 32}.css": ("text/css", LONG),
    f"photo_hu{'0b' * 16}_10x10_resize.webp": ("image/webp", LONG),
}


class DeployToS3(DeployCase):
    """Publishing to S3 with the real aws; each aws takes half a second."""

    @classmethod
    def setUpClass(cls):
        tool("aws", "awscli")
        cls.s3 = S3Server()
        cls.addClassCleanup(cls.s3.close)

    def setUp(self):
        super().setUp()
        here = {"AWS_ENDPOINT_URL": self.s3.url, "DEPLOY_TO": "s3://bucket"}
        self.settings.update(S3_LOGIN, **here)
        self.s3.forward("POST", "/moto-api/reset")
        self.s3.forward("PUT", "/bucket")

    def run_it(self, status=0, instead=None, **settings):
        """Deploys; `instead` has S3's answers to methods and keys."""
        self.s3.requests.clear()
        answers = (instead or {}).get
        self.s3.before = lambda method, key: answers(method) or answers(key)
        return super().run_it(status, **settings)

    def sent(self, method):
        return sorted(key for name, key in self.s3.requests if name == method)

    def live(self):
        return {key: body for key, (_, body) in self.s3.objects("bucket").items()}

    def test_only_what_changed_is_put_by_few_processes_assets_first_deletions_last(
        self,
    ):
        tool("hugo", "hugo")
        self.commit(BLOG)
        self.run_it()
        calls = self.folder / "calls"
        self.wrap("aws", f'echo "$@" >>{calls}')
        for processes in (2, 1):  # an edit, and nothing
            calls.write_text("")
            before = self.live()
            self.commit({"content/post/one.md": "Of\n\nanother size"})
            self.run_it()
            after = self.live()
            changed = sorted(name for name in after if after[name] != before[name])
            self.assertEqual("post/one/index.html" in changed, processes == 2)
            self.assertEqual(self.sent("PUT"), changed)
            self.assertEqual(calls.read_text().count("\n"), processes)
        assets = {"static/z.css": "new", "assets/app.css": "body { color: red }"}
        self.commit({**assets, "content/post/two.md": None})
        self.run_it()
        methods = [method for method, _ in self.s3.requests]
        kinds = [k.rpartition(".")[2] for m, k in self.s3.requests if m == "PUT"]
        self.assertEqual(methods, ["LIST", *["PUT"] * len(kinds), "DELETE"])
        self.assertEqual(kinds[:2], ["css", "css"])
        self.assertLessEqual(set(kinds[2:]), {"html", "xml"})
        self.assertNotIn("post/two/index.html", self.live())

    def test_killed_at_any_request_the_next_run_ends_with_exactly_the_site(self):
        often = {f"p{n}.html": f"page {n}" for n in range(4)} | {"gone.html": "x"}
        new = {"new.css": "new", "new.html": "new"}
        less = dict.fromkeys(("p2.html", "p3.html"))
        self.publish(often)
        for number, victim in enumerate(("new.css", "DELETE")):  # the first, the last
            self.commit({"p1.html": f"PAGE {number}", "gone.html": None} | new)
            process = self.start()

            def kill(*request):
                if victim in request:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)

            self.s3.before = kill
            process.communicate(timeout=60)
            self.assertEqual(process.returncode, -signal.SIGKILL)
            self.commit(less)
            self.assertIn("lost 3 of its 5", self.refused())
            self.assertEqual({method for method, _ in self.s3.requests}, {"LIST"})
            back = {name: often[name] for name in (*less, "gone.html", "p1.html")}
            self.publish(dict.fromkeys(new) | back)

    def test_what_s3_denies_fails_in_words_and_is_made_up_for(self):
        self.commit({**PLAIN, "old one.html": "x"})
        reason = self.refused(instead={"LIST": S3_DENIED})
        self.assertRegex(reason, "^cannot list s3:.*AccessDenied")
        self.publish()
        self.commit({"a.css": "new", "p1.html": "PAGE", "old one.html": None})
        reason = self.refused(True, instead={"a.css": S3_DENIED})
        self.assertRegex(reason, r"^cannot publish to .*a\.css.*AccessDenied")
        self.assertEqual(self.sent("DELETE") + self.sent("PUT"), ["a.css"])
        self.commit({"a.css": None})  # which boop may have put there
        failed = b"<Error><Key>old one.html</Key><Code>AccessDenied</Code></Error>"
        answer = 200, {}, b"<DeleteResult>" + failed + b"</DeleteResult>"
        reason = self.refused(True, instead={"DELETE": answer})
        self.assertRegex(reason, "^cannot delete in .*AccessDenied.old one.html$")
        self.assertEqual(self.sent("PUT"), ["p1.html"])
        self.assertIn("1 deleted", self.publish())

    def test_every_file_has_its_type_and_time_in_caches_and_keeps_its_odd_name(self):
        names = ["-dash.html", "with space.html", "ünï.html", "a+b&c.css", "100%.html"]
        names += ["quo'te\".html", "back\\slash.html", "$(id).html", "x.", "x.]"]
        names += ["*.html", "[x].css", ".hidden", "dir with space/x.html"]
        self.publish({name: name for name in [*S3_TYPES, *names]})
        self.publish()
        self.assertEqual(self.s3.requests, [("LIST", "")])
        self.s3.forward("DELETE", "/bucket/f.woff2")
        self.publish()
        self.assertEqual(self.sent("PUT"), ["f.woff2"])
        for pages in ("public, max-age=60", "no-cache"):
            for key, (headers, _) in self.s3.objects("bucket").items():
                types, cache = S3_TYPES.get(key, (".*", headers["Cache-Control"]))
                self.assertRegex(headers["Content-Type"], f"^{types}$", key)
                self.assertEqual(headers["Cache-Control"], cache or pages, key)
            self.publish(DEPLOY_CACHE_CONTROL="no-cache")
        self.publish(dict.fromkeys(names), DEPLOY_FORCE=1)

    def test_what_is_not_boops_in_a_bucket_is_neither_read_nor_touched(self):
        theirs = ["a/x", "a/b2/x", "a/b.html", "b/x", *(f"d{n}.sql" for n in range(5))]
        for key in theirs:
            self.s3.forward("PUT", f"/bucket/{key}", b"theirs")
        self.commit({"index.html": "x", "old.html": "o"})
        self.assertNotIn("not boop's", self.run_it(DEPLOY_TO="s3://bucket/a/b/"))
        self.commit({"old.html": None})
        output = self.run_it(DEPLOY_TO="s3://bucket/a/b")
        self.assertIn("0 of 1 files uploaded, 1 deleted", output)
        self.assertEqual(self.s3.requests, [("LIST", "a/b/"), ("DELETE", "")])
        self.assertIn("10 files here are not boop's", self.run_it())
        ours = {"a/b/index.html": b"x", "index.html": b"x"}
        self.assertEqual(self.live(), dict.fromkeys(theirs, b"theirs") | ours)
        self.publish(DEPLOY_FORCE=1, DEPLOY_FULL=1)
        self.assertEqual(self.sent("PUT"), ["index.html"])
        keys = (
            f"<Contents><Key>k{n}</Key><Size>1</Size></Contents>" for n in range(1001)
        )
        many = f"<ListBucketResult>{''.join(keys)}</ListBucketResult>"
        self.run_it(DEPLOY_FORCE=1, instead={"LIST": (200, {}, many.encode())})
        self.assertEqual(len(self.sent("DELETE")), 2)  # a request takes 1000 names

    def test_cloudfront_is_told_once_and_only_when_something_changed(self):
        key, answer = "distribution/ID/invalidation", (201, {}, b"<Invalidation/>")
        settings = {"DEPLOY_CLOUDFRONT": "ID", "instead": {key: answer}}
        self.publish(PLAIN, **settings)
        self.assertEqual(len(self.sent("POST")), 1)
        self.commit({"p1.html": None})
        reason = self.refused(True, DEPLOY_CLOUDFRONT="ID", instead={key: S3_DENIED})
        self.assertRegex(reason, "^cannot invalidate CloudFront: .*AccessDenied")
        for expected in (1, 0):  # the one that failed is made up for
            self.publish(**settings)
            self.assertEqual(len(self.sent("POST")), expected)


# --- The unit, under a real systemd ---------------------------------------------------

WITH_SYSTEMD = pathlib.Path(
    os.environ.get("BOOP_TEST_SYSTEMD") or HERE.parent / "shared" / "with-systemd"
)  # boots systemd in namespaces on a throwaway copy of /, and runs a command in there
HAS_SYSTEMD = os.geteuid() == 0 and os.access(WITH_SYSTEMD, os.X_OK)


def shell(commands: str) -> str:
    """Runs lines of shell, as README gives them; all that they print."""
    words = ["bash", "-ec", f"trap 'journalctl -n 50' ERR; exec 2>&1; {commands}"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=4 * LIMIT_S)
    if done.returncode:
        raise AssertionError(f"{commands}: {done.stdout}")
    return done.stdout


class Unit(Case):
    """boop.service as README installs it, in a system booted for these tests."""

    UNITS = pathlib.Path("/etc/systemd/system")

    @classmethod
    def setUpClass(cls) -> None:
        """Boots; this program starts again in there, and does not come back here."""
        if not os.environ.get("BOOP_TEST_BOOTED"):
            env = [f"{name}={os.environ.get(name, '')}" for name in ("CI", "PATH")]
            env += ["BOOP_TEST_BOOTED=1", sys.executable, f"{HERE}/test_boop.py"]
            os.environ["WS_BIND"] = str(HERE)
            os.execv(WITH_SYSTEMD, [str(WITH_SYSTEMD), *env, *sys.argv[1:]])

    def setUp(self) -> None:
        super().setUp()
        shell(
            f"""
            systemctl stop 'boop*'
            rm -rf /etc/boop* {self.UNITS}/boop* /var/{{lib,cache}}/private/boop*
            rm -rf /opt/boop /srv/git
            mkdir -p /opt/boop /srv/git {self.UNITS}/boop.service.d
            cp {HERE}/{{boop.py,boop.service,deploy.sh}} /opt/boop
            cp /opt/boop/boop.service {self.UNITS}
            /usr/bin/python3 -m compileall -q /opt/boop
            install -m 600 /dev/null /etc/boop.env
            """
        )
        self.client = Daemon(pathlib.Path("/opt/boop"))
        self.client.port, self.client.script = 8080, pathlib.Path("/opt/boop/deploy.sh")

    def start(self, script: str = "", dropin: str = "", **env: str) -> Daemon:
        """With deploy.sh, or a script of the test's own; as a client of it."""
        if script:
            self.client.write_script(script)
        env = {"BOOP_SECRET": f'"{SECRET}"', **env}
        lines = "".join(f"{name}={value}\n" for name, value in env.items())
        pathlib.Path("/etc/boop.env").write_text(lines)
        edited = self.UNITS / "boop.service.d/override.conf"  # by `systemctl edit`
        edited.write_text(f"[Service]\n{dropin}\n")
        shell("systemctl daemon-reload; systemctl start boop")
        return self.client

    def shown(self, name: str) -> str:
        return shell(f"systemctl show -P {name} boop").strip()

    def said(self, priority: int) -> str:
        """What boop said since its last start, of this priority."""
        only = f"-p {priority}..{priority} -o cat -t boop"
        run = f"_SYSTEMD_INVOCATION_ID={self.shown('InvocationID')}"
        return shell(f"journalctl --sync; journalctl {only} {run}")

    def caught_up(self, b: Daemon, number: int = 1) -> dict:
        """Waits for the end of a deployment that nobody pushed; its record."""
        until(lambda: len(b.records()) == number, "the catch-up")
        record = b.finished(number)
        self.assertEqual(record["status"], "success", b.log(number))
        return record

    def test_a_restart_a_crash_and_a_hang_lose_nothing_that_was_accepted(self) -> None:
        work = pathlib.Path("/var/lib/private/boop/work")
        script = """
            [ "$BOOP_TRIGGER" = push ] || exec rm on
            setsid bash -c 'trap "touch hit" TERM; touch on; sleep 1d & wait' >&- 2>&- &
            sleep 1d
        """
        b = self.start(script, "WatchdogSec=1\nRestartSec=10ms")
        fed = self.shown("WatchdogTimestampMonotonic")
        until(lambda: self.shown("WatchdogTimestampMonotonic") != fed, "a sign of life")
        self.assertEqual(self.shown("NRestarts"), "0")
        kill = "kill --kill-who=main --signal"
        for how in "restart", f"{kill}=KILL", f"{kill}=STOP":
            with self.subTest(how):
                number, before = b.push(), self.shown("InvocationID")
                until((work / "on").exists, "the script")
                shell(f"systemctl {how} boop")
                until(lambda: self.shown("InvocationID") != before, "a restart")
                until(lambda: self.shown("ActiveState") == "active", "readiness")
                again = b.finished(number + 1)
                self.assertEqual(again["status"], "success")
                self.assertEqual(again["trigger"], "interrupted")
                self.assertNotIn("sleep", shell("systemctl status boop"))
        self.assertFalse((work / "hit").exists())  # SIGTERM is for boop alone

    def test_bad_settings_are_final_and_a_taken_port_is_tried_until_it_is_free(self):
        with self.assertRaises(AssertionError):
            self.start(dropin="RestartSec=10ms", BOOP_PORT="http", BOOP_KEEP="-1")
        self.assertEqual(self.shown("ExecMainStatus"), "78")
        self.assertEqual(self.shown("ActiveState"), "failed")
        self.assertRegex(self.said(3), "(?s)BOOP_PORT.*BOOP_KEEP")  # errors
        shell("rm /etc/boop.env")  # no settings are no mistake
        with socket.create_server(("127.0.0.1", 8080)):
            shell("systemctl start --no-block boop")
            until(lambda: int(self.shown("NRestarts")) > 7, "more than systemd's limit")
        until(lambda: self.shown("ActiveState") == "active", "readiness")
        self.assertEqual(self.client.hook(github_push()).status, 503)
        self.assertRegex(self.said(4), "(?s)BOOP_SECRET.*BOOP_REPO")  # warnings

    def test_with_the_socket_no_request_is_refused_over_three_restarts(self) -> None:
        b = self.start("exit 0")
        (self.UNITS / "boop.socket").write_text(readme_block("[Socket]"))
        shell("systemctl stop boop; systemctl start boop.socket boop")
        restarts = subprocess.Popen(["bash", "-ec", 3 * "systemctl restart boop;"])

        def ask(_: int) -> None:
            while restarts.poll() is None:
                b.push()

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))  # raises what one of them has met
        self.assertEqual(restarts.returncode, 0)

    def test_status_and_journal_say_what_boop_does_and_a_stop_is_a_success(self):
        b = self.start("exit 3")
        b.deploy()
        b.hook(github_push(), X_Hub_Signature_256="sha256=" + "0" * 64)
        last = "Status: .*1: exit status 3"
        until(lambda: re.search(last, shell("systemctl status boop")), last)
        self.assertRegex(self.said(6), "(?m)^deployment 1: push, branch main")
        self.assertRegex(self.said(5), "(?m)^deployment 1: fail .*exit status 3")
        self.assertRegex(self.said(5), "(?m)^401 to 127.0.0.1: X-Hub-Signature-256")
        shell("systemctl stop boop")
        self.assertEqual(self.shown("Result"), "success")

    def test_systemd_leaves_boop_the_time_that_it_may_take(self) -> None:
        spans = re.findall(r"(?m)^(\w+)Sec=(\d+)$", (HERE / "boop.service").read_text())
        seconds = {name: int(number) for name, number in spans}
        self.assertGreater(seconds["TimeoutStop"], boop.GRACE_S + boop.GIT_TIMEOUT_S)
        self.assertGreater(seconds["Watchdog"] / 2, 2 * boop.GIT_TIMEOUT_S)

    def test_the_script_reaches_nothing_but_its_own(self) -> None:
        shell("ip addr add 169.254.169.254/32 dev lo; echo >/root/x; echo >/home/x")
        self.addCleanup(socket.create_server(("169.254.169.254", 80)).close)
        b = self.start(
            """
            try() { if "$@" >/dev/null 2>&1; then echo "CAN: $*"; fi; }
            try touch /opt/boop/x; try touch /etc/x; try touch /usr/x; try touch /var/x
            try cat /etc/boop.env; try cat /root/x; try cat /home/x
            try cat /proc/1/cmdline; try cat /proc/meminfo; try unshare -U true
            try timeout 1 bash -c ': </dev/tcp/169.254.169.254/80'
            try journalctl -n 1 --quiet; try mount -t tmpfs x /tmp; try chmod u+s .
            touch ok "$HOME/ok" "$XDG_CACHE_HOME/ok" /tmp/ok && echo fine
            id -un
            """
        )
        log = b.log(b.deploy()["number"])
        self.assertNotIn("CAN", log)
        self.assertIn("\nfine\nboop\n", log)
        shell("systemd-analyze security --threshold=12 boop.service")

    def test_from_https_to_the_folder_of_a_web_server(self) -> None:
        tool("hugo", "hugo")
        tool("openssl", "openssl")
        site(pathlib.Path("/srv/git"), BLOG)
        shell(
            f"""
            git -C /srv/git/origin.git update-server-info
            openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost \\
                -addext subjectAltName=DNS:localhost \\
                -keyout /etc/boop.key -out /etc/boop.crt
            {readme_block("systemctl stop boop;")}
            """
        )
        self.addCleanup(shell, "userdel -f boop; rm -r /var/www/site")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("/etc/boop.crt", "/etc/boop.key")
        handler = functools.partial(Quiet, directory="/srv/git/origin.git")
        with serving(handler, context) as port:
            b = self.start(
                dropin="ReadWritePaths=/var/www/site",
                BOOP_REPO=f"https://localhost:{port}/",
                GIT_SSL_CAINFO="/etc/boop.crt",
                DEPLOY_TO="/var/www/site",
            )
            self.caught_up(b)
        self.assertNotIn("warning", b.log(1))
        read = shell("runuser -u www-data cat /var/www/site/index.html")
        self.assertIn("Home: ", read)

    def test_from_ssh_with_a_deploy_key_to_s3_and_again_at_a_reload(self) -> None:
        tool("hugo", "hugo")
        sshd = tool("sshd", "openssh-server")
        s3 = S3Server()
        self.addCleanup(s3.close)
        s3.forward("PUT", "/site")
        checkout = site(pathlib.Path("/srv/git"), BLOG)
        shell(
            f"mkdir -p /run/sshd; ssh-keygen -A; {sshd} -f /dev/null -p 2222"
            " -o UsePAM=no -o StrictModes=no -o AuthorizedKeysFile=/etc/boop.key.pub"
        )
        until(lambda: taken(2222), "sshd")
        shell(readme_block("ssh-keygen").replace("github.com", "-p 2222 127.0.0.1"))
        b = self.start(
            dropin="LoadCredential=deploy_key:/etc/boop.key",
            BOOP_REPO="ssh://root@127.0.0.1:2222/srv/git/origin.git",
            GIT_SSH_COMMAND=re.search("GIT_SSH_COMMAND=(.*)", README.read_text())[1],
            DEPLOY_TO="s3://site/blog",
            AWS_ENDPOINT_URL=s3.url,
            **S3_LOGIN,
        )
        self.caught_up(b)
        self.assertIn(b"Home: ", s3.objects("site")["blog/index.html"][1])
        tip = commit(checkout, {"content/new.md": "---\ntitle: New\n---\n"})
        git(checkout, "push", "-q", "origin", "main")
        shell("systemctl reload boop")
        self.assertEqual(self.caught_up(b, 2)["commit"], tip)
        self.assertIn("blog/new/index.html", s3.objects("site"))
        self.assertEqual(self.shown("NRestarts"), "0")

    def test_a_copied_unit_is_a_second_site_and_takes_its_secret_as_a_credential(self):
        b = self.start("env")
        pathlib.Path("/etc/boop.secret").write_text(SECRET)
        shell(f"sed -i /LoadCredential=BOOP_SECRET/s/^#// {self.UNITS}/boop.service")
        shell(readme_block("sed "))
        second = Daemon(self.folder)
        second.port = 8081
        self.assertEqual(second.finished(second.push())["status"], "success")
        self.assertIn("\nBOOP_NUMBER=1\n", second.log(1))
        self.assertNotRegex(second.log(1), "BOOP_SECRET|NOTIFY_SOCKET|WATCHDOG_USEC")
        self.assertEqual(b.records(), [])


def taken(port: int) -> bool:
    """Does somebody listen there?"""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


README = HERE / "README.md"


def readme_block(start: str) -> str:
    """The indented block of README that holds a line which starts so."""
    blocks = re.findall(r"(?m)(?:^ {4}.*\n|^\n(?= {4}))+", README.read_text())
    for block in blocks:
        if re.search(rf"(?m)^ {{4}}{re.escape(start)}", block):
            return textwrap.dedent(block).strip("\n") + "\n"
    raise AssertionError(f"README has no block with {start!r}")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: typing.Any) -> None:
        pass


# --- Nothing accepted, and nothing missed, is lost ------------------------------------


class Soak:
    """Kills boop at random moments under load, and accounts for every 202.

    A push is lost if no run of the script for its branch, which ended well, started
    after the push was sent. (Not: after the 202 came, as the run may start before.)
    """

    SCRIPT = """
        exec 9>> ../lock
        flock -n 9 || exit 9  # beside another
        trap 'sleep 0.1; exit 1' TERM
        echo "$BOOP_NUMBER $BOOP_BRANCH $EPOCHREALTIME" >> ../started
        sleep 0.$((RANDOM % 10)) & wait $!
        """

    def __init__(self, folder: pathlib.Path) -> None:
        self.boop = Daemon(folder, self.SCRIPT, BOOP_KEEP="1000000")
        self.boop.port = 1  # where nobody listens, until boop does
        self.over = threading.Event()
        self.accepted: list[tuple[int, str, float]] = []  # number, branch, when sent
        self.wrong: list[str] = []
        self.kills = self.lost = self.runs = 0

    def __str__(self) -> str:
        return (
            f"soak: {self.kills} kills, {len(self.accepted)} pushes accepted,"
            f" {self.runs} runs, {self.lost} lost, {len(self.wrong)} wrong"
        )

    def run(self, seconds: float = 0, kills: int = 0) -> Soak:
        """For so long, and until there have been so many kills."""
        end = time.monotonic() + seconds
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            pushers = pool.map(lambda _: self._push(), range(4))
            try:
                while time.monotonic() < end or self.kills < kills:
                    self._live_and_die()
            finally:
                self.over.set()
        list(pushers)  # raises what one of them has raised
        self.boop.start()
        until(self.boop.over, "the end of the last run")
        self._end(signal.SIGTERM)
        self._account()
        return self

    def _live_and_die(self) -> None:
        """One life of boop; some end while it starts, some by SIGTERM."""
        early, stop = random.random() < 0.25, random.random() < 0.2
        self.boop.start(listening=not early)
        time.sleep(random.random() * (0.15 if early else 0.4))
        self.kills += not stop
        self._end(signal.SIGTERM if stop else signal.SIGKILL)

    def _end(self, signum: int) -> None:
        status, said = self.boop.stop(signum)
        # -15: before boop has installed a handler
        if status not in (0, -signum) or re.search("Traceback|Error", said):
            self.wrong.append(f"boop ended with {status}: {said}")

    def _push(self) -> None:
        """A thread: pushes, until it is over."""
        while not self.over.wait(random.random() * 0.02):
            branch = random.choice(("main", "live", "next"))
            sent = time.time()
            try:
                answer = self.boop.hook(github_push(branch, default_branch=branch))
            except (OSError, http.client.HTTPException):
                continue  # between two lives
            if answer.status == 202:
                self.accepted.append((answer.json["deployment"], branch, sent))
            else:
                self.wrong.append(f"answered {answer.status}: {answer.text}")

    def _account(self) -> None:
        records = {d["number"]: d for d in self.boop.journal()}
        last: dict[str, float] = {}  # of each branch: when its last good run started
        for line in (self.boop.state / "started").read_text().splitlines():
            number, branch, when = line.split()
            self.runs += 1
            if records[int(number)]["status"] == "success":
                last[branch] = float(when)
        for number, branch, sent in self.accepted:
            self.lost += sent > last.get(branch, 0)
            if records[number]["branch"] != branch:
                self.wrong.append(f"{number} was promised to {branch}")
        reasons = {d["reason"] for d in records.values() if d["status"] != "success"}
        self.wrong += reasons - {boop.STOPPED, boop.KILLED}


class Promises(Case):
    """kill -9, and what it leaves running."""

    def test_kill_9_at_random_moments_loses_no_202_and_overlaps_no_run(self) -> None:
        tool("flock", "util-linux")
        soak = Soak(self.folder).run(kills=15)
        print(soak, file=sys.stderr)
        self.assertEqual((soak.wrong, soak.lost), ([], 0), soak)
        self.assertGreater(min(len(soak.accepted), soak.runs), 5, soak)

    def test_what_a_killed_boop_was_running_is_ended_and_nothing_else(self) -> None:
        tool("flock", "util-linux")
        b = self.boop(
            """
            if [ "$BOOP_NUMBER" = 1 ]; then
                setsid bash -c 'echo $$ > ../pids; exec sleep 1000' > /dev/null 2>&1 &
                until [ -s ../pids ]; do sleep .01; done
                exit
            fi
            exec 9>> ../lock
            flock -n 9 || echo beside another
            [ "$BOOP_NUMBER" = 2 ] || exit 0
            trap '' TERM
            sleep 1000 &
            setsid sleep 1000 &
            echo $$ $(jobs -p) >> ../pids
            printf half
            wait
            """
        )
        b.deploy()
        b.push()
        until(lambda: "half" in b.log(2), "its output")
        pids = map(int, (b.state / "pids").read_text().split())
        server, *orphans = map(self.kill_later, pids)
        b.stop(signal.SIGKILL)
        self.assertEqual([alive(pid) for pid in orphans], [True] * 3)
        short = self.daemon(BOOP_SCRIPT=str(b.script))  # is killed before it ends them
        short.patch("boop.Runner.run = lambda self: boop.time.sleep(1000)").start()
        short.stop(signal.SIGKILL)
        self.assertEqual(b.start().finished(3)["trigger"], "interrupted")
        self.assertNotIn("beside another", b.log(3))
        self.assertFalse(any(map(alive, orphans)))
        self.assertTrue(alive(server))
        self.assertIn("half\nboop: fail: interrupted: boop was killed\n", b.log(2))


class Damage(Case):
    """State folders that a crash, a full disk or a person may leave."""

    def test_a_damaged_line_is_kept_aside_and_costs_no_other(self) -> None:
        good = record_of(4)
        wrong = [("status", "odd"), ("number", None), ("queued_at", None)]
        wrong += [("queued_at", "today"), ("queued_at", "0001-01-01")]
        wrong += [(name, {"a": 1}) for name in good]
        bad = [json.dumps(good | {name: value}).encode() for name, value in wrong]
        bad += [b"", b"\0" * 4096, bytes(range(11, 256)), b"[4]", b"[" * 200_000]
        bad += [json.dumps(good).encode()[:-40]]
        half = {"deployments.jsonl.new": json.dumps(good)[:60]}  # of a compaction
        d = self.with_journal(record_of(1), *bad, record_of(3), *bad, **half)
        journal = d.state / "deployments.jsonl"
        journal.write_bytes(journal.read_bytes()[:-1])  # the last line is torn
        d.start().said("deployments.jsonl, line 3: damaged, kept aside")
        self.assertEqual(d.numbers(), [3, 1])
        aside = d.state / "deployments.jsonl.damaged"
        self.assertEqual(aside.read_bytes().split(b"\n"), [*bad, *bad, b""])
        self.assertFalse((d.state / "deployments.jsonl.new").exists())
        self.assertNotIn("damaged", "".join(d.restart().lines))
        self.assertEqual(d.deploy()["number"], 5)  # a lost number is not used again
        self.assertEqual(d.restart().numbers(), [5, 3, 1])

    def test_the_newest_are_kept_and_what_is_not_boops_is_left_alone(self) -> None:
        foreign = dict.fromkeys(("notes.txt", "7.json", "99.log"), "mine")
        d = self.with_journal(**foreign).patch(COMPACT_LINES=20)
        d.env["BOOP_KEEP"] = "3"
        d.start()
        for _ in range(12):
            d.deploy()
        self.assertLess(len(d.journal()), 3 + 20 + 3)
        before = d.records()
        self.assertEqual(d.restart().records(), before)
        self.assertEqual([line["number"] for line in d.journal()], [10, 11, 12])
        d.env["BOOP_KEEP"] = "1"
        self.assertEqual(d.restart().records(), before[:1])
        self.assertEqual(d.deploy()["number"], 13)
        d.stop()
        left = {path.name for path in d.state.iterdir() if path.is_file()}
        self.assertEqual(left, {*foreign, "13.log", "deployments.jsonl", "ran"})
        (d.state / "deployments.jsonl").unlink()  # and so the folder is not boop's
        before = tree(d.state)
        status, said = d.start(listening=False).ended()
        self.assertEqual((status, len(said.splitlines())), (1, 1))
        self.assertIn("not boop's", said)
        self.assertEqual(tree(d.state), before)

    def test_what_was_queued_is_run_and_what_was_running_is_run_again(self) -> None:
        left = (
            ("waiting", "queued", None),
            ("running", "inprogress", None),
            ("both", "inprogress", None),
            ("both", "queued", None),
            ("stopped", "fail", boop.STOPPED),  # before it was queued again
            ("one behind it cancelled", "inprogress", None),
            ("one behind it cancelled", "fail", boop.CANCELLED),
            ("run again, and cancelled", "fail", boop.STOPPED),
            ("run again, and cancelled", "fail", boop.CANCELLED, "interrupted"),
        )
        names = "branch", "status", "reason", "trigger"
        how = [dict(zip(names, row)) for row in left]
        records = [record_of(n, **fields) for n, fields in enumerate(how, 1)]
        d = self.with_journal(*records).start()
        until(d.over, "the last run")
        before = d.records()
        again = [(d["number"], d["branch"]) for d in before[:-9]]
        expected = [(10, "running"), (11, "stopped"), (12, "one behind it cancelled")]
        self.assertEqual(again[::-1], expected)
        self.assertEqual(d.restart().records(), before)
        self.assertEqual((d.state / "ran").read_text().split(), "1 4 10 11 12".split())

    def test_on_a_full_disk_hooks_are_503_and_what_runs_is_recorded_later(self) -> None:
        """It is full when boop starts, with a torn journal, and once more."""
        state, gate = self.folder / "state", self.gate()
        state.mkdir()
        own = [tool("unshare", "util-linux"), "-rm", "sh", "-c"]
        mount = f"mount -t tmpfs -o size=256k tmpfs {state}"
        if subprocess.call([*own, mount], stderr=subprocess.DEVNULL):
            self.skipTest("mount namespaces are missing: run this as root")
        fill = "printf '{\"numb' > deployments.jsonl; head -c 300k /dev/zero > filler"
        b = self.boop(
            f"{gate.wait}; seq 9000; {gate.wait}; exit 0",
            prefix=[*own, f'{mount} && cd {state} && {fill}; exec "$@"', "sh"],
        )
        small = pathlib.Path(f"/proc/{b.process.pid}/root{state}")
        journal, filler = small / "deployments.jsonl", small / "filler"
        b.said("cannot write deployments.jsonl: No space left")
        filler.unlink()
        self.expect(b.get("/healthz"), 200, "ok\n")  # by itself
        aside = journal.with_name("deployments.jsonl.damaged")
        self.assertEqual(aside.read_text(), '{"numb\n')
        self.assertEqual(b.push(), 1)
        gate.reached()
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(300_000))
        gate.open()
        b.said("cannot write the deployment's log: No space left")
        room = -journal.stat().st_size % 4096  # in its last block: for half a line
        with open(journal, "ab") as file:
            file.write(b"\n" * (room - 50))
        before = journal.read_bytes()
        for _ in range(2):
            refused = b.hook(github_push())
            self.expect(refused, 503, '{"error": ', "No space left")
            self.assertTrue(refused.headers["Retry-After"])
        self.assertEqual(journal.read_bytes(), before)  # nothing is half recorded
        self.assertFalse(journal.with_name("deployments.jsonl.new").exists())
        gate.open()
        self.assertEqual(b.finished(1)["status"], "success")
        self.expect(b.get("/healthz"), 503, "No space left")
        filler.unlink()
        self.assertEqual(b.deploy("exit 0")["number"], 2)
        newest = {d["number"]: d["status"] for d in b.journal(small)}
        self.assertEqual(newest, {1: "success", 2: "success"})


class CatchUp(Case):
    """Promise 4, and repositories that do not answer."""

    def origin(self, script: str = "exit 0", **env: str) -> Daemon:
        """A boop, not started, of a site; its git notes each look in a file, git(1)."""
        self.checkout, self.bare = site(self.folder), self.folder / "origin.git"
        self.trace = self.folder / "trace"
        self.trace.touch()
        repo = {"BOOP_REPO": str(self.bare), "GIT_TRACE": str(self.trace)}
        return self.daemon(script, **repo | env)

    def moved(self, branch: str = "main", message: str = "Edit") -> str:
        """The branch's new tip."""
        tip = commit(self.checkout, {"index.html": str(time.time())}, message)
        git(self.checkout, "push", "-qf", "origin", f"HEAD:refs/heads/{branch}")
        return tip

    def rests(self, b: Daemon, at: int, asked: bool = True) -> None:
        """One more look at the tip, asked for by SIGHUP, deploys nothing."""
        for _ in range(2):  # the second look begins after the first
            begun = self.trace.read_text().count("git ls-remote")
            if asked:
                b.process.send_signal(signal.SIGHUP)
            until(lambda: self.trace.read_text().count("git ls-remote") > begun, "it")
        self.assertEqual(len(b.records()), at)

    def caught(self, b: Daemon, number: int, trigger: str = "catch-up") -> dict:
        """Waits for a look that deploys the tip: the record, once that has ended."""
        b.said(f"{trigger}: .* is at .*: queued as {number}")
        record = b.finished(number)
        self.assertEqual(record["trigger"], trigger)
        return record

    def test_what_is_not_live_is_deployed_at_start_and_no_second_time(self) -> None:
        ssh = self.folder / "ssh"  # which has something to say
        ssh.write_text('#!/bin/bash\nprintf Welcome. >&2; exec bash -c "${@: -1}"\n')
        ssh.chmod(0o755)
        b = self.origin(BOOP_BRANCH="", GIT_SSH_COMMAND=str(ssh))
        b.env["BOOP_REPO"] = f"ssh://host{self.bare}"
        self.moved("trunk")
        git(self.bare, "symbolic-ref", "HEAD", "refs/heads/trunk")
        changes = (
            lambda: None,  # the default branch is deployed
            lambda: self.moved("trunk"),  # whose push is missed
            lambda: b.env.update(DEPLOY_TO="/srv/www"),
            lambda: b.write_script("exit 0  # in another way"),
            lambda: b.env.update(BOOP_BRANCH="main"),
        )
        for number, change in enumerate(changes, 1):
            change()
            record = self.caught(b.start(), number)
            branch = b.env["BOOP_BRANCH"] or "trunk"
            self.assertEqual(record["commit"], git(self.bare, "rev-parse", branch))
            self.rests(b, number)
            b.stop()
        b.finished(b.start().push(self.moved()))
        self.rests(b.restart(), 6)

    def test_a_failed_tip_is_tried_at_each_start_and_sighup_polled_once(self) -> None:
        b = self.origin("exit 1").start()
        self.caught(b, 1)
        b.finished(b.by_hand().json["deployment"])
        b.process.send_signal(signal.SIGHUP)
        self.caught(b, 3)
        b.env["BOOP_POLL"] = "1"
        self.caught(b.restart(), 4)
        self.caught(b, 5, "poll")
        self.rests(b, 5, asked=False)
        tip = self.moved()
        self.assertEqual(self.caught(b, 6, "poll")["commit"], tip)
        b.write_script("exit 0  # it is mended")
        b.said("deployment 7: success")

    def test_what_somebody_decided_against_waits_until_the_branch_moves(self) -> None:
        gate, shut, none = self.gate(), self.folder / "shut", "f" * 40
        script = f"[ ! -e {shut} ] || {{ {gate.wait}; }}; [ $BOOP_COMMIT != {none} ]"
        b = self.origin(script).start()
        self.caught(b, 1)
        old = git(self.checkout, "rev-parse", "HEAD")
        with self.subTest("rolled back from, and then a rollback that failed"):
            b.finished(b.push(self.moved()))
            b.finished(b.by_hand(commit=old).json["deployment"])
            b.finished(b.by_hand(commit=none).json["deployment"])
            self.rests(b.restart(), 4)
        with self.subTest("rolled back from, while it was out of reach, until moved"):
            b.finished(b.push(self.moved()))
            self.moved()  # which is missed
            away = self.bare.rename(self.folder / "away.git")
            b.finished(b.by_hand(commit=old).json["deployment"])
            away.rename(self.bare)
            self.rests(b.restart(), 6)
            tip = self.moved()
            b.finished(b.by_hand(commit=none).json["deployment"])
            b.process.send_signal(signal.SIGHUP)
            self.assertEqual(self.caught(b, 8)["commit"], tip)
        shut.touch()
        with self.subTest("skipped, while another runs"):
            b.push(self.moved())
            gate.reached()
            tip = self.moved(message="Edit [skip ci]")
            self.expect(b.hook(github_push(commit=tip, message="Edit [skip ci]")), 200)
            gate.open()
            b.finished(9)
            self.rests(b.restart(), 9)
        with self.subTest("cancelled, until it goes another way; and skipped then"):
            b.push(self.moved())
            gate.reached()
            self.expect(b.by_hand(cancel=10), 200)
            b.finished(10)
            self.rests(b.restart(), 10)
            b.write_script(f"{script}  # mended")
            b.process.send_signal(signal.SIGHUP)
            b.said("queued as 11")
            gate.reached()
            tip = self.moved(message="[no ci]")
            self.expect(b.hook(github_push(commit=tip, message="[no ci]")), 200)
            self.expect(b.by_hand(cancel=11), 200)
            b.finished(11)
            self.rests(b.restart(), 11)
        with self.subTest("moved, while a rollback was cut off"):
            b.by_hand(commit=old)
            gate.reached()
            tip = self.moved()
            b.stop(signal.SIGKILL)
            shut.unlink()
            self.assertEqual(self.caught(b.start(), 14)["commit"], tip)
            self.assertEqual(b.record(13)["commit"], old)

    def test_a_repository_out_of_reach_is_one_warning_not_a_flood(self) -> None:
        away = self.folder / "away"
        b = self.origin(BOOP_REPO=str(away)).patch(RETRY_S=0.1, MAX_RETRY_S=0.1).start()
        b.said("cannot look at .*away")
        self.rests(b, 0, asked=False)
        self.assertEqual(sum("cannot look" in line for line in b.lines), 1)
        # Bitbucket does not say the default branch: that push may be sent again
        self.expect(b.hook(bitbucket_push("main"), None, X_Event_Key="repo:push"), 503)
        self.assertEqual(b.push(), 1)
        git(self.folder, "clone", "-q", "origin.git", "clone")
        git(self.folder / "clone", "checkout", "-q", "--detach")  # but has origin/HEAD
        (self.folder / "clone").rename(away)
        b.said("away has checked out no branch: set BOOP_BRANCH")
        git(away, "checkout", "-q", "main")
        b.said("catch-up works again")
        self.assertEqual(b.finished(1)["status"], "success")

    def test_a_git_that_hangs_is_ended_and_delays_no_push_and_no_stop(self) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)
        server.settimeout(LIMIT_S)
        repo = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        d = self.daemon(BOOP_REPO=repo, BOOP_BRANCH="main")
        b = d.patch(GIT_TIMEOUT_S=2).start()
        with server.accept()[0] as look:  # git is there, and waits
            look.settimeout(LIMIT_S)
            self.assertEqual(b.deploy()["status"], "success")
            self.assertNotIn("timed out", "".join(b.lines))
            b.said("timed out after 2 s")
            self.assertIn(b"GET /x/", read_all(look))  # until git-remote-http ends
        b.process.send_signal(signal.SIGHUP)
        with server.accept()[0]:
            self.assertEqual(b.stop()[0], 0)


# --- Too much, too slow, senseless ----------------------------------------------------


class Enormous(Case):
    """Output without end, and readers who do not read it."""

    def test_100_mb_of_output_cost_no_memory_and_block_nobody(self) -> None:
        b = self.boop(MY_SECRET="s" * 40 + "x")
        b.get("/")
        before = b.footprint()
        for script in (
            "yes 'a line of the log' | head -c 100M",
            "head -c 100M /dev/zero | tr '\\0' s",  # one line, nearly a secret
        ):
            b.write_script(f"{script}; exit 0")
            number = b.push()
            while not b.over():
                self.assertEqual(b.get("/healthz").status, 200)
            self.assertEqual(b.record(number)["status"], "success")
            self.assertLess(b.footprint().peak_kb - before.rss_kb, 8_000)
            kept = (b.state / f"{number}.log").read_bytes()
            self.assertLess(len(kept), 10_486_760)
            end = (
                rb"limit of 10485760 bytes .*\n.* 9\d{7} bytes were dropped\n.*success"
            )
            self.assertRegex(kept, end)

    def test_of_those_who_read_100_mb_who_stops_holds_up_nobody(self) -> None:
        script, limit = "yes 0123456789 | head -c 100000000; exit 0", "200000000"
        b = self.daemon(script, BOOP_LOG_LIMIT=limit).patch(SEND_TIMEOUT_S=1).start()
        b.deploy()
        b.push()
        before, stuck = b.footprint().rss_kb, [socket.socket(), socket.socket()]
        for s, path in zip(stuck, ("/log/1", "/log/2?follow")):
            self.addCleanup(s.close)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.settimeout(LIMIT_S)
            s.connect(("127.0.0.1", b.port))
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with concurrent.futures.ThreadPoolExecutor(4) as readers:
            for size in readers.map(lambda _: len(b.get("/log/1").body), range(4)):
                self.assertGreater(size, 100_000_000)
        until(b.over, "the end of the second deployment")
        until(lambda: b.footprint().sockets == 0, "the end of their connections")
        for s in stuck:
            self.assertEqual(statuses(read_all(s)), [200])
        self.assertLess(b.footprint().peak_kb - before, 8_000)


class BadClients(Case):
    """Who is slow, gone, many, or makes no sense."""

    def test_300_that_drip_bytes_are_gone_after_the_deadline(self) -> None:
        b = self.daemon().patch(HEAD_DEADLINE_S=2, BODY_DEADLINE_S=2, LINGER_S=0.5)
        b.start().deploy()
        before = b.footprint()
        forged = push_request(Content_Length="9999", X_Hub_Signature_256="sha256=0")
        beginnings = b"", b"GET / HTTP/1.1\r\nX: ", forged[: forged.index(b"{")]
        slow = [b.connect(sent) for sent in beginnings for _ in range(100)]

        def connected() -> int:
            for s in slow:
                with contextlib.suppress(OSError):
                    s.send(b"x")
            return b.footprint().sockets

        until(lambda: connected() > 290, "the slow")
        until(lambda: b.push() and connected() < 10, "their end")
        self.assertEqual(statuses(read_all(slow[100])), [408])
        self.settled(b, before)

    def test_a_machine_with_no_room_for_threads_costs_one_connection(self) -> None:
        full = self.folder / "full"
        b = self.daemon().patch(
            "real = boop._thread.start_new_thread",
            "def start(*of):",
            f"    if boop.os.path.exists({str(full)!r}):",
            "        raise RuntimeError('no more threads')",
            "    return real(*of)",
            "boop._thread.start_new_thread = start",
        )
        b.start()
        full.touch()
        self.assertEqual(b.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), b"")
        b.said("cannot serve 127.0.0.1: no more threads")
        full.unlink()
        self.expect(b.get("/healthz"), 200)

    def test_more_connections_than_boop_serves_wait_for_a_place(self) -> None:
        """And those that it serves, followers too, fit into 1,024 descriptors."""
        gate, limit = self.gate(), [tool("prlimit", "util-linux"), "--nofile=1024:1024"]
        b = self.daemon(f"[ $BOOP_NUMBER != 1 ] || {{ {gate.wait}; }}", prefix=limit)
        b.start().push()
        gate.reached()
        before = b.footprint()
        follow = b"GET /log/1?follow HTTP/1.1\r\nHost: x\r\n\r\n"
        held = [b.connect(follow) for _ in range(boop.MAX_FOLLOWERS)]
        for s in held:
            self.assertIn(b" 200 ", s.recv(20))
        self.assertEqual(b.get("/log/1?follow").status, 503)
        held += [b.connect() for _ in range(boop.MAX_CONNECTIONS - len(held))]
        until(lambda: b.footprint().sockets >= boop.MAX_CONNECTIONS, "the connections")
        waiting = [b.connect(push_request()) for _ in range(100)]
        held.pop().close()
        for s in waiting:
            self.assertEqual(statuses(read_all(s)), [202])
        self.assertNotIn("cannot accept", "".join(b.lines))
        for s in held:
            s.close()
        gate.open()
        self.settled(b, before)

    def test_without_a_free_descriptor_boop_and_its_deployments_go_on(self) -> None:
        b = self.boop()
        b.deploy()
        pid, limit = b.process.pid, resource.RLIMIT_NOFILE
        plenty = resource.prlimit(pid, limit)
        for room in range(8):
            until(lambda: b.footprint().sockets <= 0, "the end of all connections")
            most = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1 + room
            resource.prlimit(pid, limit, (most, plenty[1]))
            s = b.connect(push_request())
            if room == 0:  # not even for the connection, which waits
                b.said("cannot accept: Too many open files")
                resource.prlimit(pid, limit, plenty)
            self.assertIn(statuses(read_all(s)), ([202], [503]))
            resource.prlimit(pid, limit, plenty)
            until(b.over, "its run")
        for d in b.records():
            self.assertIn("Too many open files", d["reason"] or "Too many open files")
        self.assertEqual(b.deploy()["status"], "success")

    def test_what_makes_no_sense_leaves_no_traceback_and_no_leak(self) -> None:
        b = self.boop()
        b.deploy()
        good, before = push_request(), b.footprint()
        get = b"GET / HTTP/1.1\r\nHost: x\r\n"
        for name, data, expected in (
            ("nothing", b"", []),
            ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, []),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
            ("no path", b"GET\r\n\r\n", [400]),
            ("a long line", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", [431]),
            ("many headers", get + b"X: y\r\n" * 20_000 + b"\r\n", [431]),
            ("only LF", good.replace(b"\r\n", b"\n"), [202]),
            ("a NUL in the path", get.replace(b"/ ", b"/\0 ") + b"\r\n", [400]),
            ("a NUL in a header", get + b"X: \0y\r\n\r\n", [400]),
            ("a bare CR", get + b"X: y\rZ: z\r\n\r\n", [400]),
            ("a folded line", get + b"X: y\r\n z\r\n\r\n", [400]),
            ("two hosts", get + b"Host: y\r\n\r\n", [400]),
            ("no host", b"GET / HTTP/1.1\r\n\r\n", [400]),
            ("no host, as 1.0 may", b"GET / HTTP/1.0\r\n\r\n", [200]),
            ("empty lines first", b"\r\n\n\r\n" + get + b"\r\n", [200]),
            ("half a head", good[:90], []),
            ("half a body", good[:-9], [400]),
            ("a bad address", get.replace(b"/ ", b"http://[x/ ") + b"\r\n", [200]),
            ("absolute", get.replace(b"/ ", b"http://h/ ") + b"\r\n", [200]),
            ("nested", get + b"Content-Length: 27\r\n\r\n" + get + b"\r\n", [200]),
        ):
            with self.subTest(name):
                self.assertEqual(statuses(b.raw(data)), expected)
        answer = b.raw(b"POST /deploy HTTP/1.1\r\nHost x\r\n\r\n")
        self.assertIn(b'{"error": "the request\'s head', answer)
        b.said("400 to 127.0.0.1: the request's head")
        for cut in range(0, len(good), 40):  # vanished clients: RST
            s = b.connect(good[:cut])
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
        self.settled(b, before)

    def test_a_refusal_arrives_though_the_body_is_not_read(self) -> None:
        b, big = self.boop(), b"x" * 9_000_000
        for path, status in (("/", 405), ("/nowhere", 404), ("/deploy", 401)):
            self.expect(b.request("POST", path, big), status)
        answer = b.hook(big, Content_Type=FORM, X_Gitea_Event="push")  # over 1 MiB
        self.expect(answer, 413, "application/json")

    def test_bodies_cost_the_memory_of_two_at_most_and_it_is_given_back(self) -> None:
        b = self.boop()
        b.deploy()
        before, size = b.footprint(), 20 << 20
        push = push_request(Content_Length=str(size), X_Hub_Signature_256="sha256=0")
        request = push[: push.index(b"{")] + b"x" * size
        with concurrent.futures.ThreadPoolExecutor(20) as forgers:
            for answer in forgers.map(b.raw, [request] * 20):
                self.assertEqual(statuses(answer), [401])
                b.push()
        self.assertLess(b.footprint().peak_kb - before.rss_kb, 60_000)
        pid, limit = b.process.pid, resource.RLIMIT_AS
        plenty = resource.prlimit(pid, limit)
        now = int(re.search(r"VmSize:\s+(\d+)", status_of(pid))[1]) << 10
        resource.prlimit(pid, limit, (now + (12 << 20), plenty[1]))
        large = github_push(x="x" * size)
        self.expect(b.hook(large), 503, "no memory")
        resource.prlimit(pid, limit, plenty)
        self.expect(b.hook(large), 202)
        self.settled(b, before)


class Fuzz(Case):
    """Random requests and payloads; the seed is printed, and may be set: SEED=…"""

    def setUp(self) -> None:
        super().setUp()
        self.seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
        self.random = random.Random(self.seed)
        print(f"seed {self.seed}", file=sys.stderr)

    VALUES = [None, True, -1, 1e308, 10**400, "", "x" * 9999, "a\nb", "../..", [], {}]
    VALUES += ["0" * 40, "1" * 64, "G" * 40, "\ud800", "\u202e", "[no ci]", "-x"]
    VALUES += ["refs/heads/" + name for name in "main -x a..b a\0b @{u} x.lock".split()]
    VALUES += ["refs/tags/v1", "https://h/x", "https://h/\nx", "ext::sh", "file:///x"]
    VALUES = [json.dumps(value).encode() for value in VALUES]
    DELIVERIES = (
        ({"X_GitHub_Event": "push"}, github_push()),
        ({"X_Forgejo_Event": "push", "X_Gitea_Event": "push"}, GITEA_PUSH),
        ({"X_Gitlab_Event": "Push Hook"}, GITLAB_PUSH),
        ({"X_Event_Key": "repo:push"}, bitbucket_push("main")),
        ({"X_GitHub_Event": "ping"}, {"zen": "Keep it logically awesome."}),
        ({}, {"commit": "1" * 40}),
    )

    def mutated(self, text: bytes, parts: bytes, others: list[bytes]) -> bytes:
        """Replaces some parts of a text."""
        rate = self.random.choice((0, 0.01, 0.03, 0.1))

        def other(part: re.Match[bytes]) -> bytes:
            same = self.random.random() > rate
            return part[0] if same else self.random.choice(others)

        return re.sub(parts, other, text)

    def test_no_signed_payload_does_more_than_make_a_push_or_a_refusal(self) -> None:
        b, ends = self.boop(BOOP_KEEP="10000"), collections.Counter()
        for i in range(1200):
            headers, payload = self.random.choice(self.DELIVERIES)
            parts = rb'"[^"]*"|\d+|null|true|false|[\[{][^\[\]{}]*[\]}]'
            body = self.mutated(json.dumps(payload).encode(), parts, self.VALUES)
            kind = "application/json"
            if self.random.random() < 0.1:
                body, kind = b"payload=" + urllib.parse.quote(body).encode(), FORM
            with self.subTest(seed=self.seed, i=i, body=body[:300]):
                status = b.hook(body, None, Content_Type=kind, **headers).status
                self.assertIn(status, (200, 202, 400))
                ends[status] += 1
        until(b.over, "the last run")
        for d in b.records():
            with self.subTest(seed=self.seed, record=d):
                self.assertRegex(d["repo"], r"^(https?|ssh|git)://[^\s-]\S*$")
                self.assertRegex(d["branch"], r"^\w[\w./]*$")
                self.assertRegex(d["commit"] or "1" * 40, r"^([0-9a-f]{40}|\w{64})$")
                self.assertLess(len(d["message"] or "") + len(d["author"] or ""), 5000)
                self.assertNotIn("\0", f"{d['message']}{d['author']}")
                self.assertEqual(d["status"], "success")
        self.assertGreater(min(ends[200], ends[202], ends[400]), 50, ends)

    WORDS = b"chunked|-1|%00|HTTP/1.9|HTTP/1.1|\r\n|\r\n\r\n|\n|\0| |:|\xff|".split(
        b"|"
    )
    WORDS += [b"9" * 30, b"x" * 70_000, b"Host: x\r\n", b"Content-Length: 9\r\n"]

    def test_no_request_makes_boop_answer_nonsense_or_stop_answering(self) -> None:
        b = self.boop()
        b.deploy()
        before = b.footprint()
        get = "GET {} HTTP/1.1\r\nHost: x\r\nAccept: text/html;q=.1, */*\r\n\r\n"
        paths = "/", "/log/1", "/log/latest?follow", "/healthz", "/x?y=z#w"
        bases = [push_request()] * 3 + [get.format(path).encode() for path in paths]
        for i in range(3000):
            data = self.mutated(self.random.choice(bases), rb"\r\n|\w+|.", self.WORDS)
            with self.subTest(seed=self.seed, i=i, data=data[:300]):
                nothing_or = rb"\A(\Z|HTTP/1\.1 ([1-4]\d\d|503) )"
                self.assertRegex(b.raw(data), nothing_or)
        self.settled(b, before)


class Masking(Case):
    """Promise 7, wherever the script's writes are cut."""

    def everywhere(self, b: Daemon, number: int) -> str:
        """All that boop shows or keeps."""
        b.finished(number)
        kept = b.state / f"{number}.log", b.state / "deployments.jsonl"
        found = [path.read_text() for path in kept]
        for path in ("/", f"/log/{number}"):
            found += [b.get(path, form).text for form in ("*/*", "application/json")]
        return "".join(found + b.lines)

    def test_a_stream_is_masked_as_its_whole_would_be(self) -> None:
        rng = random.Random(7)
        for _ in range(3000):
            secrets = {"".join(rng.choices("ab", k=rng.randrange(3, 9))) for _ in "123"}
            words = [*sorted(secrets), "a", "b", "ba", "x"]
            text = "".join(rng.choices(words, k=rng.randrange(12)))
            mask, data, out = boop.Mask(dict.fromkeys(secrets, "*")), text.encode(), b""
            while data:
                cut = rng.randrange(1, 5)
                out, data = out + mask.feed(data[:cut]), data[cut:]
            with self.subTest(secrets=secrets, text=text):
                self.assertEqual((out + mask.flush()).decode(), mask.text(text))

    def test_no_secret_is_shown_wherever_it_is_cut(self) -> None:
        secrets = {
            "MY_TOKEN": "tok-1234567890",
            "OTHER_SECRET": "tok-1234567890-and-more",
            "A_PASSWORD": "pässwörd€€",
            "SSH_KEY": "-----BEGIN-----\nline\tone\nline two\n-----END-----",
        }
        gate = self.gate()
        b = self.boop(
            r"""
            LC_ALL=C  # cut within a character, too
            for name in $NAMES; do
                value=${!name}
                printf %s "$name ${value:0:7}"
                eval "$WAIT"
                printf '%s%s\n' "${value:7}" "$value"
            done
            printf tok-
            """,
            NAMES=" ".join(secrets),
            WAIT=gate.wait,
            **secrets,
        )
        number = b.push()
        for name in secrets:
            until(lambda: name.encode() in b.get("/log/1").body, "the first half")
            gate.open()
        found = self.everywhere(b, number)
        for value in secrets.values():
            self.assertNotIn(value, found)
        self.assertNotIn("and-more", found)  # the longest of them is replaced
        log = b.log(1)
        self.assertIn("***\ntok-\nboop: success", log)
        lines = sum(len(value.splitlines()) for value in secrets.values())
        self.assertEqual(log.count("***"), 2 * lines)

    def test_no_secret_of_a_payload_is_shown_also_where_it_is_trimmed(self) -> None:
        secret = "tok-" + "0123456789" * 4
        b = self.boop("exit 1", MY_TOKEN=secret)
        for before in (0, 4060, 4070, 4090):
            push = github_push(message="m" * before + secret)
            push["head_commit"]["author"] = {"name": "n" * (before % 250) + secret}
            found = self.everywhere(b, b.hook(push).json["deployment"])
            self.assertNotIn(secret[:12], found)
        for ref in (f"heads/{secret}", f"tags/{'v' * 220}{secret}"):
            answer = b.hook(github_push(ref=f"refs/{ref}"))
            self.expect(answer, 200)
            self.assertNotIn(secret[:12], answer.text + "".join(b.lines))

    def test_no_part_of_the_repositorys_user_is_shown(self) -> None:
        for url, secret in (
            ("http://ann:hunter2hunter2@", "hunter2hunter2"),
            ("HTTPS://ann:hunter2hunter2@", "hunter2hunter2"),
            ("ssh://git:hunter2hunter2@", "hunter2hunter2"),
            ("http://ghp_tokentokentoken:x-oauth-basic@", "ghp_tokentokentoken"),
            ("http://ann:p%40sswordp%40ss@", "p%40sswordp%40ss"),
        ):
            with self.afresh(url):
                plain, user = urllib.parse.unquote(secret), url.split(":")[1][2:]
                b = self.boop(
                    f'echo "$BOOP_REPO {secret} {plain}"; env;'
                    f" echo \"could not read 'https://{user}@h'\"",
                    BOOP_REPO=f"{url}127.0.0.1:1/a/b.git",
                    BOOP_BRANCH="main",
                )
                b.said("cannot look at")
                found = self.everywhere(b, b.push())
                self.assertNotIn(f"//{user}@", b.log(1))
                self.assertNotIn(secret, found)
                self.assertNotIn(plain, found)
                self.assertNotRegex(found, "Basic [A-Za-z0-9]")


# --- Telling others -------------------------------------------------------------------


class Api(Quiet):
    """A forge's API, which takes commit statuses and answers as it is told to."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.put((self.path, body, self.headers["Authorization"]))
        status = self.server.answers.pop(0)
        if not status:
            self.rfile.read()  # until the client has gone
        self.send_response(status)
        self.send_header("Location", self.server.elsewhere)
        self.end_headers()


class Reporting(Case):
    """Commit statuses and BOOP_NOTIFY: can fail, cannot hurt."""

    def reporting(self, *answers: int, elsewhere: str = "") -> tuple:
        """A boop and what it reports, to an API that answers so; 0: never."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
        server.answers, server.elsewhere = list(answers), elsewhere
        server.taken = queue.SimpleQueue()
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        d = self.daemon(
            BOOP_GITHUB_TOKEN="ghp_0123456789",
            BOOP_GITHUB_API=f"http://127.0.0.1:{server.server_port}",
            BOOP_URL="https://b.example/",
        )
        return d.patch(CLOSE_S=0.5).start(), server.taken

    def test_commit_statuses_come_in_order_and_link_to_the_log(self) -> None:
        b, taken = self.reporting(500, *[201] * 8)  # the first is sent again
        name = "Codertocat/Hello-World"
        for number, states in (1, "pending pending success"), (2, "pending failure"):
            b.write_script(f"exit {number - 1}")
            b.push(commit := f"{number}" * 40)
            for state in states.split():
                path, body, token = taken.get(timeout=LIMIT_S)
                self.assertEqual(path, f"/repos/{name}/statuses/{commit}")
                self.assertEqual((body["state"], body["context"]), (state, "boop"))
                self.assertEqual(body["target_url"], f"https://b.example/log/{number}")
                self.assertEqual(token, "token ghp_0123456789")
        b.write_script("exit 0")
        b.env["BOOP_REPO"] = str(site(self.folder))  # whose name only a push says
        b.restart().said("deployment 3: success")
        b.finished(b.push("4" * 40))
        tip = b.finished(b.by_hand().json["deployment"])["commit"]
        for commit in ("4" * 40, "4" * 40, tip, tip):
            path, _, _ = taken.get(timeout=LIMIT_S)
            self.assertEqual(path, f"/repos/{name}/statuses/{commit}")

    def test_an_api_that_is_ill_slow_or_dead_delays_no_deployment(self) -> None:
        elsewhere = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(elsewhere.close)
        there = f"http://localhost:{elsewhere.getsockname()[1]}/"
        b, taken = self.reporting(403, 302, 0, elsewhere=there)
        for _ in range(5):
            self.assertEqual(b.deploy()["status"], "success")
        for status in (403, 302):
            b.said(f"commit status not sent, .*: {status}")
        until(lambda: taken.qsize() == 3, "the one, of ten, that is never answered")
        self.assertEqual(b.stop()[0], 0)
        self.assertNotIn("ghp_0123456789", "".join(b.lines))
        b.env["BOOP_GITHUB_API"] = "http://127.0.0.1:1"  # nobody is there
        self.assertEqual(b.start().deploy()["status"], "success")
        elsewhere.setblocking(False)
        self.assertRaises(BlockingIOError, elsewhere.accept)  # it took no token there

    def test_a_notification_tells_how_it_went_and_is_no_obstacle(self) -> None:
        notify, child = self.folder / "notify", self.folder / "child"
        notify.write_text(
            f"""#!/bin/bash
            case $BOOP_NUMBER in
            1) trap '' TERM; sleep 1000 ;;
            2) sleep 1000 & echo $! > {child}; exit 4 ;;
            3) echo "$BOOP_STATUS, $BOOP_REASON, $BOOP_DURATION, $BOOP_LOG_URL"
               cat "$BOOP_LOG"; exit 5 ;;
            esac
            """
        )
        notify.chmod(0o755)
        d = self.daemon("exit 2", BOOP_NOTIFY=str(notify), BOOP_URL="https://b.example")
        b = d.patch(NOTIFY_TIMEOUT_S=1).start()
        for _ in range(3):
            b.deploy()
        self.assertNotIn("timed out", "".join(b.lines))  # the first still hangs
        b.said("timed out after 1 s")
        b.said("exit status 4")
        self.kill_later(int(child.read_text()))
        told = r"fail, exit status 2, 0\.\d+, https://b.example/log/3 boop: deployment"
        b.said(f"exit status 5: {told}")


# --- Measuring, and running all of it -------------------------------------------------


def bench_pushes() -> None:
    """What a push costs beside a bare fork and exec of the same script; and 1,000."""
    with tempfile.TemporaryDirectory(prefix="boop-bench-") as folder:
        b = Daemon(pathlib.Path(folder), "echo $EPOCHREALTIME > ../began").start()
        b.deploy()

        def began_after(act: typing.Callable[[], object]) -> float:
            """The milliseconds from the call to the script's first line."""
            called = time.time()
            act()
            return (float((b.state / "began").read_text()) - called) * 1e3

        bare = functools.partial(subprocess.run, [b.script], cwd=b.state / "work")
        pushes, bares = (
            statistics.median(began_after(act) for _ in range(200))
            for act in (b.deploy, bare)
        )
        print(f"a push's script starts after {pushes:.1f} ms; run bare: {bares:.1f} ms")
        b.write_script("sleep 1")
        sent = time.time()
        with concurrent.futures.ThreadPoolExecutor(16) as clients:
            runs = len(set(clients.map(lambda _: b.push(), range(1000))))
        rate, peak = 1000 / (time.time() - sent), b.footprint().peak_kb >> 10
        print(f"1000 pushes: {rate:.0f} a second, {runs} runs; {peak} MB at most")
        b.stop()


THREE_COMMANDS = """
rm -rf plain && git clone -q "$BOOP_REPO" plain && cd plain && hugo --quiet &&
aws --endpoint-url "$AWS_ENDPOINT_URL" s3 sync --quiet --delete public "$DEPLOY_TO"
"""


def bench_deployments(posts: int = 500) -> None:
    """What deploy.sh takes to S3, beside the three commands that it replaces."""
    page = "---\ntitle: Post\n---\n" + "Some words of a post. " * 500
    files = {f"content/post/{n}.md": page for n in range(posts)} | BLOG
    with tempfile.TemporaryDirectory(prefix="boop-bench-") as name:
        folder, s3 = pathlib.Path(name), S3Server()
        checkout = site(folder, files)
        env = {**os.environ, **S3_LOGIN, "AWS_ENDPOINT_URL": s3.url}
        env |= {"BOOP_REPO": f"{folder}/origin.git", "BOOP_STATE": f"{folder}/state"}

        def seconds(*command: str | pathlib.Path, to: str) -> float:
            s3.forward("PUT", f"/{to}")
            began, here = time.time(), env | {"DEPLOY_TO": f"s3://{to}"}
            quiet = subprocess.DEVNULL
            subprocess.run(command, check=True, cwd=folder, env=here, stdout=quiet)
            return time.time() - began

        for what in ("all of it", "one post edited", "nothing changed"):
            if what == "one post edited":
                commit(checkout, {"content/post/1.md": page + "More."})
                git(checkout, "push", "-q", "origin", "main")
            ours = seconds(HERE / "deploy.sh", to="ours")
            plain = seconds("bash", "-c", THREE_COMMANDS, to="plain")
            print(
                f"{posts} posts to S3, {what}: {ours:.1f} s; by clone, hugo and sync:"
                f" {plain:.1f} s"
            )
        s3.close()


# --- Running all of it ----------------------------------------------------------------


def classes() -> list[str]:
    """Those that hold tests; the longest first, so that none is alone at the end."""
    all_ = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    found = {type(test).__name__ for suite in all_ for test in suite}
    if not HAS_SYSTEMD:  # not a skipped test: it needs root and a tool of its own
        print("no with-systemd, or not root: boop.service is not tested")
        found.remove("Unit")
    longest = "DeployToS3 Unit DeployToFolder InABrowser CatchUp".split()
    return sorted(found, key=lambda name: (name not in longest, name))


def run_class(name: str) -> str:
    """Runs a class in a process of its own, and prints all that it said."""
    with tempfile.TemporaryFile() as file:  # a pipe would wait for what a test left
        command, quiet = [sys.executable, __file__, name], subprocess.DEVNULL
        subprocess.call(command, stdin=quiet, stdout=file, stderr=file)
        file.seek(0)
        output = file.read().decode("utf-8", "replace")
    print(f"== {name}\n{output}", flush=True)
    return output


def run_all() -> int:
    """All classes, side by side, as many wait; and a summary in unittest's words."""
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        outputs = list(pool.map(run_class, classes()))
    found = re.findall(r"(?m)^Ran (\d+) test.*\n\n\w+(.*)$", "\n".join(outputs))
    ran = sum(int(number) for number, _ in found)
    ends = collections.Counter(errors=len(outputs) - len(found))  # those that died
    for what, number in re.findall(r"([a-z][a-z ]*)=(\d+)", str(found)):
        ends[what] += int(number)
    print(f"{'-' * 70}\nRan {ran} tests in {time.perf_counter() - began:.3f}s\n")
    ends = +ends  # less the zeros
    word = "FAILED" if ends.keys() - {"skipped"} else "OK"
    details = ", ".join(f"{what}={number}" for what, number in ends.items())
    print(f"{word} ({details})" if details else word)
    return int(word != "OK")


def main() -> None:
    """Tests, --bench, or --soak SECONDS."""
    if sys.argv[1:2] == ["--bench"]:
        bench_pushes()
        bench_deployments()
    elif sys.argv[1:2] == ["--soak"]:
        with tempfile.TemporaryDirectory(prefix="boop-soak-") as folder:
            soak = Soak(pathlib.Path(folder)).run(float(sys.argv[2]))
        print(soak, *soak.wrong[:20], sep="\n  ")
        sys.exit(int(bool(soak.lost or soak.wrong)))
    elif sys.argv[1:]:
        unittest.main()
    else:
        sys.exit(run_all())


if __name__ == "__main__":
    main()
