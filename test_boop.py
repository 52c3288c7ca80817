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
import hashlib
import hmac
import html
import http.client
import http.server
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

# --- The fixture ----------------------------------------------------------------------


def tool(name: str, install: str) -> str:
    """The path of a program; skips the test (in CI: fails it) where it is missing."""
    path = shutil.which(name)
    if not path:
        why = f"{name} is missing: install {install}"
        raise AssertionError(why) if os.environ.get("CI") else unittest.SkipTest(why)
    return path


def until(test: typing.Callable[[], typing.Any], what: str) -> typing.Any:
    """For what has no event to wait for (another process's /proc): looks again."""
    end = time.monotonic() + LIMIT_S
    while not (found := test()):
        if time.monotonic() > end:
            raise AssertionError(f"never came: {what}")
        time.sleep(0.01)
    return found


def sign(body: bytes, secret: str = SECRET, algorithm: str = "sha256") -> str:
    """As GitHub signs a delivery."""
    return f"{algorithm}={hmac.new(secret.encode(), body, algorithm).hexdigest()}"


def github_push(branch: str = "main", commit: str = "1" * 40, **more: object) -> dict:
    """GitHub's push payload, less what nobody reads; as published by octokit."""
    head = {
        "id": commit,
        "tree_id": "31b122c26a97cf9af023e9ddab94a82c6e77b0ea",
        "distinct": True,
        "message": "Fix typo",
        "timestamp": "2019-05-15T15:19:25Z",
        "author": {"name": "Ann Author", "email": "ann@example.org"},
        "added": ["README.md"],
        "removed": [],
        "modified": [],
    }
    return {
        "ref": f"refs/heads/{branch}",
        "before": "6113728f27ae82c7b1a177c8d03f9e96e0adf246",
        "after": commit,
        "created": False,
        "deleted": False,
        "forced": False,
        "base_ref": None,
        "commits": [head],
        "head_commit": head,
        "repository": {
            "full_name": "Codertocat/Hello-World",
            "default_branch": "main",
            "clone_url": "https://github.com/Codertocat/Hello-World.git",
        },
        "pusher": {"name": "Codertocat"},
        **more,
    }


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


class Daemon:
    """A boop in a process of its own, with a script and a state folder of its own."""

    def __init__(
        self,
        folder: pathlib.Path,
        script: str = "exit 0",
        argv: typing.Sequence[str] = (),
        prefix: typing.Sequence[str] = (),
        **env: str | None,
    ) -> None:
        self.folder, self.state = folder, folder / "state"
        self.script = folder / "script"
        if not env.get("BOOP_SCRIPT"):
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
        self.lines: list[str] = []

    def patch(self, *lines: str) -> None:
        """Runs boop with some of its constants changed."""
        code = [f"import sys; sys.path.insert(0, {str(HERE)!r}); import boop", *lines]
        at = self.argv.index(str(HERE / "boop.py"))
        code.append("sys.exit(boop.main(sys.argv[1:]))")
        self.argv[at : at + 1] = ["-c", "\n".join(code)]

    def write_script(self, body: str) -> None:
        """A bash script; replaced in one step, as boop may be starting it."""
        new = self.script.with_suffix(".new")
        new.write_text(f"#!/bin/bash\n{textwrap.dedent(body)}\n")
        new.chmod(0o755)
        new.rename(self.script)

    def start(self, listening: bool = True) -> Daemon:
        self.lines = []
        self._more = threading.Condition()
        self.process = subprocess.Popen(
            self.argv,
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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
            with self._more:
                self.lines.append(line.decode("utf-8", "replace"))
                self._more.notify_all()

    def said(self, pattern: str) -> str:
        """Waits for a line on stderr."""
        with self._more:
            ok = self._more.wait_for(
                lambda: any(re.search(pattern, line) for line in self.lines), LIMIT_S
            )
            if not ok:
                raise AssertionError(f"never said {pattern!r}: {self.lines}")
            return next(line for line in self.lines if re.search(pattern, line))

    def ended(self) -> tuple[int, str]:
        """Waits for the end: exit status and all of stderr."""
        status = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        self.process.stdout.close()
        self.process.stderr.close()
        return status, "".join(self.lines)

    def stop(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.ended()

    def restart(self, signum: int = signal.SIGTERM) -> Daemon:
        self.stop(signum)
        return self.start()

    # As a client

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, LIMIT_S)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, path, body, names)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def get(self, path: str, accept: str = "*/*", **headers: str) -> Answer:
        return self.request("GET", path, Accept=accept, **headers)

    def hook(
        self, payload: object, event: str | None = "push", **headers: str | None
    ) -> Answer:
        """A delivery as GitHub makes it; a header of None is left out."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        all_headers = {
            "Content_Type": "application/json",
            "X_GitHub_Event": event,
            "X_Hub_Signature_256": sign(body),
            **headers,
        }
        given = {k: v for k, v in all_headers.items() if v is not None}
        return self.request("POST", "/deploy", body, **given)

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

    def deploy(self) -> dict:
        """A push, and the record once it is deployed."""
        return self.finished(self.push())

    def record(self, number: int) -> dict:
        return self.get(f"/log/{number}", "application/json").json

    def records(self) -> list[dict]:
        return self.get("/", "application/json").json["deployments"]

    def journal(self, state: pathlib.Path | None = None) -> list[dict]:
        """What stands on the disk, line by line."""
        text = ((state or self.state) / "deployments.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines() if line]

    def log(self, number: int) -> str:
        return self.get(f"/log/{number}").text

    def raw(self, data: bytes, timeout: float = LIMIT_S) -> bytes:
        """Sends bytes as they are; all that comes back until boop closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as s:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                s.sendall(data)
            return read_all(s)


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data


class Case(unittest.TestCase):
    """Gives each test a folder and ends what it started."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="boop-test-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def boop(self, script: str = "exit 0", **more: typing.Any) -> Daemon:
        """A running boop."""
        return self.daemon(script, **more).start()

    def daemon(self, script: str = "exit 0", **more: typing.Any) -> Daemon:
        daemon = Daemon(self.folder, script, **more)
        self.addCleanup(self._end, daemon)
        return daemon

    def _end(self, daemon: Daemon) -> None:
        """No test ends with a traceback on boop's stderr, whatever it tested."""
        if hasattr(daemon, "process"):
            if daemon.process.poll() is None:  # so that it ends its script, at once
                daemon.process.send_signal(signal.SIGTERM)
                daemon.process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.process.wait(5)
            _, said = daemon.stop(signal.SIGKILL)
            self.assertNotIn("Traceback", said)

    def gate(self, name: str = "gate") -> pathlib.Path:
        """A FIFO: a script waits for open_gate by `until read < gate; do :; done`
        (again after an end of file: the last one who opened it may not have closed)."""
        path = self.folder / name
        os.mkfifo(path)
        return path

    def open_gate(self, path: pathlib.Path) -> None:
        """Lets one script pass; waits until it is there."""

        def opened() -> int | None:
            with contextlib.suppress(OSError):  # ENXIO: nobody reads it yet
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)

        fd = until(opened, f"a reader of {path}")
        os.write(fd, b"go\n")
        os.close(fd)


def git(folder: pathlib.Path, *args: str) -> str:
    """Runs git with a fixed author; its output."""
    who = ["-c", "user.name=Ann Author", "-c", "user.email=ann@example.org"]
    done = subprocess.run(
        ["git", *who, *args], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(checkout: pathlib.Path, files: dict[str, str], message: str = "Edit") -> str:
    """Writes files, commits them; the commit's id."""
    for name, text in files.items():
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
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


class Signatures(unittest.TestCase):
    """The Pushes room, without a socket."""

    def check(self, body: bytes, secret: str = SECRET, **headers: str) -> None:
        message = boop.Headers()
        for name, value in headers.items():
            message[name.replace("_", "-")] = value
        boop.verify(secret, message, body)

    def refused(self, body: bytes, secret: str = SECRET, **headers: str) -> str:
        with self.assertRaises(boop.Refusal) as caught:
            self.check(body, secret, **headers)
        self.assertEqual(caught.exception.status, 401)
        return caught.exception.why

    def test_githubs_published_vector_verifies(self) -> None:
        digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        self.check(b"Hello, World!", X_Hub_Signature_256=f"sha256={digest}")
        self.refused(b"Hello, World?", X_Hub_Signature_256=f"sha256={digest}")

    def test_sha1_counts_only_where_no_sha256_is_sent(self) -> None:
        body = b"{}"
        self.check(body, X_Hub_Signature=sign(body, algorithm="sha1"))
        for wrong in ("sha256=" + "0" * 64, "", "sha256="):
            self.refused(
                body,
                X_Hub_Signature=sign(body, algorithm="sha1"),
                X_Hub_Signature_256=wrong,
            )

    def test_a_sha1_digest_in_the_sha256_header_is_refused(self) -> None:
        body = b"{}"
        self.refused(body, X_Hub_Signature_256=sign(body, algorithm="sha1"))
        self.refused(body, X_Hub_Signature=sign(body, algorithm="md5"))

    def test_an_empty_secret_verifies_nothing(self) -> None:
        body = b"{}"
        digest = hmac.new(b"", body, hashlib.sha256).hexdigest()
        self.refused(body, "", X_Hub_Signature_256=f"sha256={digest}")

    def test_a_refusal_never_says_what_was_expected(self) -> None:
        why = self.refused(b"{}", X_Hub_Signature_256="sha256=" + "0" * 64)
        self.assertNotIn(sign(b"{}")[7:], why)
        self.assertNotIn(SECRET, why)

    def test_gitlabs_signing_token_is_a_standard_webhook(self) -> None:
        body, sent = (
            b'{"a": 1}',
            {"webhook_id": "msg_1", "webhook_timestamp": "1700000000"},
        )
        for secret, key in (
            (SECRET, SECRET.encode()),
            ("whsec_" + base64.b64encode(b"k" * 24).decode(), b"k" * 24),
        ):
            mac = hmac.digest(key, b"msg_1.1700000000." + body, "sha256")
            good = "v1," + base64.b64encode(mac).decode()
            wrong = "v1," + base64.b64encode(b"x" * 32).decode()
            for value in (good, f"v1a,abc {wrong} {good}"):
                self.check(body, secret, **sent, webhook_signature=value)
            self.check(
                body, secret, **sent, webhook_signature=good, X_Gitlab_Token="no"
            )
            for value in ("", wrong, good[3:], good.replace("v1", "v2"), "\xff"):
                stronger = {
                    **sent,
                    "webhook_signature": value,
                    "X_Gitlab_Token": secret,
                }
                self.refused(body, secret, **stronger)
            later = {**sent, "webhook_timestamp": "1700000001"}
            self.refused(body, secret, **later, webhook_signature=good)
        self.refused(body, "whsec_!", **sent, webhook_signature=good)

    def test_a_signature_that_is_not_ascii_is_refused_not_a_crash(self) -> None:
        self.refused(b"{}", X_Hub_Signature_256="sha256=\xff\xfe")
        self.refused(b"{}", X_Gitlab_Token="\xff")


class Hooks(Case):
    """POST /deploy, answer by answer."""

    def refused(self, answer: Answer, status: int, *words: str) -> None:
        self.assertEqual(answer.status, status, answer.text)
        for word in words:
            self.assertIn(word, answer.json["error"])

    def ignored(self, answer: Answer, *words: str) -> None:
        self.assertEqual(answer.status, 200, answer.text)
        for word in words:
            self.assertIn(word, answer.json["ignored"])

    def test_a_push_is_accepted_and_runs_the_script(self) -> None:
        b = self.boop('echo "$BOOP_BRANCH $BOOP_COMMIT $BOOP_AUTHOR: $BOOP_MESSAGE"')
        answer = b.hook(github_push())
        self.assertEqual(answer.status, 202)
        self.assertEqual(
            answer.json, {"deployment": 1, "status": "queued", "log": "log/1"}
        )
        self.assertEqual(b.finished(1)["status"], "success")
        self.assertIn(f"main {'1' * 40} Ann Author: Fix typo\n", b.log(1))

    def test_a_form_body_is_verified_raw(self) -> None:
        b = self.boop()
        form = urllib.parse.urlencode({"payload": json.dumps(github_push())}).encode()
        kind = "application/x-www-form-urlencoded"
        self.assertEqual(b.hook(form, Content_Type=kind).status, 202)
        self.refused(b.hook(b"nothing=1", Content_Type=kind), 400, "payload")

    def test_what_is_not_signed_runs_nothing_and_leaves_no_record(self) -> None:
        b = self.boop()
        body = json.dumps(github_push()).encode()
        self.refused(b.hook(body, X_Hub_Signature_256=None), 401, "X-Hub-Signature-256")
        self.refused(b.hook(body, X_Hub_Signature_256=""), 401, "empty")
        self.refused(b.hook(body, X_Hub_Signature_256=sign(body, "no")), 401, "secret")
        self.refused(b.hook(b"[", X_Hub_Signature_256=sign(b"{")), 401)
        b.said("401 to 127.0.0.1.*secret")
        self.assertEqual(b.records(), [])
        self.assertEqual(b.journal(), [])

    def test_without_a_secret_every_hook_is_503(self) -> None:
        b = self.boop(BOOP_SECRET="")
        b.said("no BOOP_SECRET")
        body = b"{}"
        digest = hmac.new(b"", body, "sha256").hexdigest()
        answer = b.hook(body, X_Hub_Signature_256=f"sha256={digest}")
        self.refused(answer, 503, "BOOP_SECRET")
        self.assertTrue(answer.headers["Retry-After"])

    def test_a_ping_is_answered_and_runs_nothing(self) -> None:
        b = self.boop()
        answer = b.hook({"zen": "Keep it logically awesome.", "hook_id": 1}, "ping")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.json, {"pong": "Keep it logically awesome."})
        self.assertEqual(b.records(), [])

    def test_what_is_not_wanted_is_ignored_and_says_why(self) -> None:
        b = self.boop()
        self.ignored(b.hook({"action": "opened"}, "issues"), "issues")
        self.ignored(b.hook(github_push("draft")), '"draft"', '"main"')
        tag = {"ref": "refs/tags/v1"}
        self.ignored(b.hook(github_push(**tag)), "refs/tags/v1", "tag")
        gone = {"deleted": True, "after": "0" * 40, "head_commit": None}
        self.ignored(b.hook(github_push(**gone)), "deleted")
        b.said('200 to .*"draft"')
        self.assertEqual(b.records(), [])

    def test_boop_branch_wins_over_the_default_branch(self) -> None:
        b = self.boop(BOOP_BRANCH="live")
        self.ignored(b.hook(github_push("main")), '"main"', '"live"')
        self.assertEqual(b.hook(github_push("live")).status, 202)

    def test_a_content_type_that_is_neither_is_415(self) -> None:
        b = self.boop()
        for kind in (
            "text/plain",
            "multipart/form-data; boundary=x",
            "multipart/mixed",
        ):
            answer = b.hook(github_push(), Content_Type=kind)
            self.refused(answer, 415, kind.partition(";")[0])
        self.refused(b.hook(github_push(), Content_Type=None), 415, "missing")
        charset = "Application/JSON; charset=UTF-8"
        self.assertEqual(b.hook(github_push(), Content_Type=charset).status, 202)

    def test_strange_json_is_400_or_deployed_safely(self) -> None:
        b = self.boop()
        strange = [b"", b"null", b"1", b"[]", b'"x"', b"{", b"\xff", b"[" * 20000]
        strange += [b'{"a":' * 20000, b"{}" * 2, b"1" * 5000, b"NaN"]
        for body in strange:
            with self.subTest(body=body[:20]):
                self.refused(b.hook(body), 400)
        for value in (None, 1, [], {}, "", "x", "refs/heads/", "refs/heads/-x", True):
            with self.subTest(ref=value):
                answer = b.hook(github_push(ref=value))
                self.assertIn(answer.status, (200, 400))
        for value in (1, [], "x", "-" * 40, "g" * 40, {"a": 1}):
            with self.subTest(after=value):
                self.refused(b.hook(github_push(after=value)), 400, "commit")
        self.assertEqual(b.records(), [])

    def test_no_word_of_a_payload_becomes_an_option_or_a_path(self) -> None:
        b = self.boop()
        hostile = ["-oProxyCommand=x", "--upload-pack=x", "ext::sh -c x", "file:///etc"]
        hostile += ["/etc", "../x", "https://h/a\nb", "https://-x/y", "https://h/ x"]
        hostile += ["ssh://-oProxyCommand=x/y", 1, None, "x", "git@host:path", "h\0"]
        for url in hostile:
            with self.subTest(url=url):
                repository = github_push()["repository"] | {"clone_url": url}
                answer = b.hook(github_push(repository=repository))
                self.refused(answer, 400, "repository")
        self.assertEqual(b.records(), [])

    def test_a_message_with_everything_in_it_arrives_or_is_trimmed(self) -> None:
        b = self.boop('printf %s "$BOOP_MESSAGE" > ../message')
        head = github_push()["head_commit"]
        message = "$(touch x) `y`; <script> \"'\n\0 \ud800 é " + "x" * 300_000
        number = b.hook(github_push(head_commit=head | {"message": message})).json
        record = b.finished(number["deployment"])
        self.assertEqual(record["status"], "success")
        kept = (b.state / "message").read_text()
        self.assertTrue(kept.startswith("$(touch x) `y`; <script> \"'\n"))
        self.assertLess(len(kept), 5000)

    def test_lengths_that_are_no_lengths(self) -> None:
        b = self.boop()
        signed = f"X-Hub-Signature-256: {sign(b'{}')}\r\nContent-Type: application/json"
        for lines, status in (
            ("", 411),
            ("Transfer-Encoding: chunked", 411),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2", 411),
            ("Content-Length: -1", 400),
            ("Content-Length: two", 400),
            ("Content-Length: +2", 400),
            ("Content-Length: 2, 2", 400),
            ("Content-Length: 2\r\nContent-Length: 3", 400),
            ("Content-Length: 26214401", 413),
            ("Content-Length: 2\r\nContent-Length: 2", 400),
            ("Content-Length: " + "9" * 17, 413),
            ("Content-Length: " + "9" * 40, 413),
        ):
            with self.subTest(lines=lines):
                head = (
                    f"POST /deploy HTTP/1.1\r\nHost: x\r\n{signed}\r\n{lines}\r\n\r\n"
                )
                answer = b.raw(head.encode().replace(b"\r\n\r\n\r\n", b"\r\n\r\n"))
                self.assertIn(f"HTTP/1.1 {status} ".encode(), answer)
                self.assertIn(b'{"error": ', answer)

    def test_a_body_over_the_limit_is_refused_before_it_is_asked_for(self) -> None:
        b = self.boop()
        head = "POST /deploy HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n"
        head += f"X-Hub-Signature-256: {sign(b'')}\r\nExpect: 100-continue\r\n\r\n"
        answer = b.raw(head.encode())
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer)

    def test_a_body_that_is_waited_for_is_asked_for(self) -> None:
        b = self.boop()
        body = json.dumps(github_push()).encode()
        head = f"POST /deploy HTTP/1.1\r\nContent-Length: {len(body)}\r\nHost: x\r\n"
        head += f"X-Hub-Signature-256: {sign(body)}\r\nExpect: 100-continue\r\n"
        head += "Content-Type: application/json\r\nX-GitHub-Event: push\r\n\r\n"
        with socket.create_connection(("127.0.0.1", b.port), LIMIT_S) as s:
            s.sendall(head.encode())
            self.assertEqual(s.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            s.sendall(body)
            self.assertIn(b" 202 ", s.recv(4096))

    def test_a_body_of_25_mib_is_taken_and_memory_is_given_back(self) -> None:
        b = self.boop()
        push = github_push(x="")
        push["x"] = "x" * ((25 << 20) - len(json.dumps(push)))
        self.assertEqual(b.hook(push).status, 202)
        self.assertLess(resident_kb(b.process.pid), 60_000)


def resident_kb(pid: int) -> int:
    """VmRSS, proc(5)."""
    return int(re.search(r"VmRSS:\s+(\d+)", status_of(pid))[1])


def status_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/status").read_text()


# --- Deployments ----------------------------------------------------------------------


class Queue(Case):
    """Promises 2 and 3: one at a time, a shared queue, the tip wins."""

    def test_pushes_during_a_run_share_one_queued_deployment(self) -> None:
        gate = self.gate()
        b = self.boop(
            f"echo run >> {self.folder}/runs; until read < {gate}; do :; done"
        )
        self.assertEqual(b.push(), 1)
        b.said("deployment 1: push")
        until(lambda: (self.folder / "runs").exists(), "the first run")
        numbers = {b.push(f"{i:040x}") for i in range(1, 21)}
        self.assertEqual(numbers, {2})
        self.open_gate(gate)
        b.finished(1)
        self.open_gate(gate)
        record = b.finished(2)
        self.assertEqual((self.folder / "runs").read_text(), "run\nrun\n")
        self.assertEqual(record["pushes"], 20)
        self.assertEqual(record["commit"], f"{20:040x}")

    def test_a_burst_over_many_connections_costs_two_runs_and_none_overlap(
        self,
    ) -> None:
        gate = self.gate()
        b = self.boop(
            f"mkdir ../alone && until read < {gate}; do :; done; rmdir ../alone"
        )
        b.push()
        until((b.state / "alone").exists, "the first run")
        answers: queue.SimpleQueue[int] = queue.SimpleQueue()

        def pushes() -> None:
            for _ in range(25):
                answers.put(b.push())

        threads = [threading.Thread(target=pushes) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.open_gate(gate)
        b.finished(1)
        self.open_gate(gate)
        self.assertEqual({answers.get() for _ in range(200)}, {2})
        self.assertEqual(b.finished(2)["status"], "success")
        self.assertEqual(b.record(2)["pushes"], 200)
        self.assertEqual(len(b.records()), 2)

    def test_other_branches_queue_on_their_own_and_wait_their_turn(self) -> None:
        b = self.boop('echo "$BOOP_REPO $BOOP_BRANCH" >> ../runs')
        one = github_push()
        other = github_push(repository=one["repository"] | {"clone_url": "https://h/o"})
        numbers = [b.hook(p).json["deployment"] for p in (one, other)]
        self.assertEqual(numbers, [1, 2])
        b.finished(2)
        runs = (b.state / "runs").read_text().splitlines()
        self.assertEqual(
            runs,
            ["https://github.com/Codertocat/Hello-World.git main", "https://h/o main"],
        )

    def test_numbers_and_history_survive_a_restart(self) -> None:
        b = self.boop("echo this is $BOOP_NUMBER")
        b.deploy()
        before = b.records()
        b.restart()
        self.assertEqual(b.records(), before)
        self.assertIn("this is 1", b.log(1))
        self.assertEqual(b.push(), 2)

    def test_boop_repo_is_what_is_deployed_whatever_a_push_names(self) -> None:
        site(self.folder)
        origin = str(self.folder / "origin.git")
        b = self.boop('echo "repo $BOOP_REPO"', BOOP_REPO=origin)
        b.said("deployment 1: catch-up")
        b.finished(1)
        number = b.push()
        self.assertEqual(b.finished(number)["repo"], origin)
        self.assertIn(f"repo {origin}\n", b.log(number))


# --- Runner ---------------------------------------------------------------------------


class Runner(Case):
    """One run of the script, from its environment to its reason."""

    def outcome(self, script: str, **env: str) -> tuple[dict, str]:
        b = self.boop(script, **env)
        record = b.deploy()
        return record, b.log(1)

    def test_the_log_is_byte_for_byte_what_the_script_wrote_in_order(self) -> None:
        _, log = self.outcome("for i in {1..2000}; do echo o$i; echo e$i >&2; done")
        lines = log.splitlines()
        self.assertTrue(lines[0].startswith("boop: deployment 1: push, branch main"))
        self.assertTrue(lines[-1].startswith("boop: success in "))
        self.assertEqual(
            lines[1:-1], [f"{c}{i}" for i in range(1, 2001) for c in ("o", "e")]
        )

    def test_the_last_bytes_of_a_fast_script_are_in_the_log(self) -> None:
        b = self.boop("head -c 60000 /dev/zero | tr '\\0' x; exit 3")
        for number in range(1, 16):
            record = b.deploy()
            self.assertEqual(record["reason"], "exit status 3")
            self.assertEqual(b.log(number).count("x" * 60000), 1)
            self.assertEqual(b.journal()[-1]["status"], "fail")  # not seen before

    def test_a_log_may_hold_any_bytes(self) -> None:
        b = self.boop(r"printf '\000\377\033[31mred\r\n'; printf end")
        b.deploy()
        body = b.get("/log/1").body
        self.assertIn(b"\x00\xff\x1b[31mred\r\nend\nboop: success", body)

    def test_reasons_are_words_that_a_person_understands(self) -> None:
        for script, reason in (
            ("exit 7", "exit status 7"),
            ("kill -SEGV $$", "killed by SIGSEGV"),
            ("kill -KILL $$", "killed by SIGKILL"),
            ("kill -40 $$", "killed by signal 40"),
            ("true", None),
        ):
            with self.subTest(script=script):
                record, log = self.outcome(script)
                self.assertEqual(record["reason"], reason)
                self.assertEqual(record["status"], "fail" if reason else "success")
                self.assertIn(reason or "boop: success", log.splitlines()[-1])
                self.doCleanups()
                self.setUp()

    def test_a_script_that_cannot_be_run_is_a_fail_that_says_so(self) -> None:
        b = self.boop()
        b.script.write_text("#!/no/such/interpreter\n")
        record = b.deploy()
        self.assertEqual(record["status"], "fail")
        self.assertIn("No such file", record["reason"])
        b.script.write_bytes(b"\x00\x01\x02")
        self.assertIn("Exec format error", b.deploy()["reason"])

    def test_the_environment_is_boops_without_its_secrets(self) -> None:
        _, log = self.outcome(
            "env; readlink /proc/self/fd/0; pwd; ps -o sid= -p $$",
            BOOP_GITHUB_TOKEN="ghp_tokentoken",
            BOOP_GITHUB_API="http://127.0.0.1:1",
            NOTIFY_SOCKET="/nowhere",
            WATCHDOG_USEC="100000000",
            MINE="kept",
            BOOP_REPO=None,
        )
        variables = dict(line.partition("=")[::2] for line in log.splitlines())
        for name in ("SECRET", "GITHUB_TOKEN"):
            self.assertNotIn(f"BOOP_{name}", variables)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"):
            self.assertNotIn(name, variables)
        self.assertEqual(variables["MINE"], "kept")
        self.assertEqual(variables["BOOP_NUMBER"], "1")
        self.assertEqual(variables["BOOP_TRIGGER"], "push")
        self.assertEqual(variables["BOOP_MESSAGE"], "Fix typo")
        self.assertIn("\n/dev/null\n", log)
        self.assertIn(f"\n{self.folder}/state/work\n", log)

    def test_the_record_names_what_the_script_says_it_deployed(self) -> None:
        """Two pushes that come out of order: the newest to come is not the tip."""
        live = {"commit": "f" * 40, "message": "The tip", "author": "Ada"}
        live["url"] = "https://example.org/blog/"
        lines = "".join(f"echo '{k}={v}' >> $BOOP_RESULT\n" for k, v in live.items())
        b = self.boop(
            f"[ -f $BOOP_RESULT ] && [ ! -s $BOOP_RESULT ] || exit 9\n{lines}"
            "echo reason=none >> $BOOP_RESULT"
        )
        record = b.deploy()
        self.assertEqual({k: record[k] for k in live}, live)
        self.assertEqual((record["status"], record["reason"]), ("success", None))
        self.assertEqual(b.deploy()["commit"], "f" * 40)  # and it is empty each time
        b.restart()
        self.assertEqual(b.record(1), record)

    def test_a_fail_has_the_scripts_reason_and_nonsense_is_ignored_and_said(
        self,
    ) -> None:
        b = self.boop(
            r"""
            printf 'reason=hugo failed: \e[31mno "home.html"\n' > $BOOP_RESULT
            printf 'commit=main\nurl=javascript:alert(1)\nstatus=success\nwhat\n' >> $BOOP_RESULT
            printf 'author=A\0da\n\nmessage=\n' >> $BOOP_RESULT
            head -c 20000 /dev/zero | tr '\0' x >> $BOOP_RESULT
            exit 2
            """
        )
        record = b.deploy()
        self.assertEqual(record["status"], "fail")
        self.assertEqual(record["reason"], 'hugo failed: ?[31mno "home.html"')
        self.assertIn('no "home.html"\n', b.log(1))
        known = record["commit"], record["message"], record["author"], record["url"]
        self.assertEqual(known, ("1" * 40, "Fix typo", "Ada", None))
        for word in ("commit=main", "url=javascript", "status=success", "what"):
            b.said(f"BOOP_RESULT: ignored: {word}")
        b.write_script("rm $BOOP_RESULT; mkfifo $BOOP_RESULT; exit 3")
        self.assertEqual(b.deploy()["reason"], "exit status 3")
        b.write_script("[ -f $BOOP_RESULT ]")
        self.assertEqual(b.deploy()["status"], "success")

    def test_a_fault_of_boops_own_fails_one_deployment_and_not_the_next(self) -> None:
        b = self.daemon("echo fine")
        b.patch(
            "real = boop.script_environment",
            "def fake(settings, environ, d):",
            "    return real(settings, environ, d) if d.number > 1 else 1 / 0",
            "boop.script_environment = fake",
        )
        b.start()
        record = b.deploy()
        self.assertEqual(
            record["reason"], "boop failed: ZeroDivisionError: division by zero"
        )
        self.assertIn("boop: fail after", b.log(1))
        self.assertEqual(b.deploy()["status"], "success")

    def test_the_time_limit_ends_the_whole_group(self) -> None:
        record, log = self.outcome(
            "trap 'echo cleaning up; exit 0' TERM; sleep 1000 & echo $!; wait",
            BOOP_TIMEOUT="1",
        )
        self.assertEqual(record["reason"], "timed out after 1 s")
        self.assertIn("cleaning up\n", log)
        child = int(log.splitlines()[1])
        self.assertFalse(alive(child))

    def test_who_ignores_sigterm_gets_sigkill(self) -> None:
        record, log = self.outcome(
            "trap '' TERM; echo $$; while :; do sleep 0.1; done", BOOP_TIMEOUT="1"
        )
        self.assertEqual(record["reason"], "timed out after 1 s")
        pid = int(log.splitlines()[1])
        until(lambda: not alive(pid), "the child's end")

    def test_a_child_that_holds_the_output_does_not_hold_boop(self) -> None:
        record, log = self.outcome("sleep 1000 & echo $!; echo done")
        self.assertEqual(record["status"], "success")
        self.assertIn("done\n", log)
        pid = int(log.splitlines()[1])
        until(lambda: not alive(pid), "the child's end")

    def test_who_left_the_group_and_writes_for_ever_does_not_hold_boop(self) -> None:
        up = self.folder / "up"
        b = self.boop(
            f"setsid sh -c 'echo $$ > {up}.new; mv {up}.new {up}; exec yes' &"
            f"until [ -e {up} ]; do :; done; exit 4"
        )
        try:
            self.assertEqual(b.deploy()["reason"], "exit status 4")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(up.read_text()), signal.SIGKILL)

    def test_a_script_that_closes_its_output_is_waited_for(self) -> None:
        gate = self.gate()
        b = self.boop(f"exec >&- 2>&-; until read < {gate}; do :; done; exit 5")
        number = b.push()
        self.open_gate(gate)
        self.assertEqual(b.finished(number)["reason"], "exit status 5")

    def test_a_log_over_its_limit_is_cut_and_says_so(self) -> None:
        record, log = self.outcome("yes | head -c 3000000", BOOP_LOG_LIMIT="1000")
        self.assertEqual(record["status"], "success")
        self.assertLess(len(log), 1500)
        self.assertIn("boop: the log's limit of 1000 bytes", log)
        self.assertIn("boop: 2999000 bytes were dropped\nboop: success", log)


def alive(pid: int) -> bool:
    """Is it a process that is not only waiting to be reaped?"""
    try:
        return "State:\tZ" not in status_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- Pages ----------------------------------------------------------------------------


class Answers(Case):
    """Routes, forms, methods."""

    def test_every_page_answers_in_the_form_that_is_asked_for(self) -> None:
        b = self.boop("echo hello")
        b.deploy()
        browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
        for path in ("/", "/log/1", "/nowhere"):
            text = "text/plain; charset=utf-8"
            for accept, kind in (
                ("*/*", text),
                ("", text),
                (browser, text if path == "/nowhere" else "text/html; charset=utf-8"),
                ("application/json", "application/json"),
                ("application/json, text/plain, */*", "application/json"),
                ("text/html;q=0.5, application/json", "application/json"),
            ):
                with self.subTest(path=path, accept=accept):
                    answer = b.get(path, accept)
                    self.assertEqual(answer.headers["Content-Type"], kind)
                    self.assertIn("Accept", answer.headers["Vary"])
                    head = b.request("HEAD", path, Accept=accept)
                    self.assertEqual(head.status, answer.status)
                    self.assertEqual(head.body, b"")
                    self.assertEqual(
                        head.headers["Content-Length"], str(len(answer.body))
                    )

    def test_the_record_has_the_contracts_fields_in_its_order(self) -> None:
        b = self.boop()
        record = b.deploy()
        self.assertEqual(
            list(record),
            "number status reason trigger repo branch commit message author pushes"
            " queued_at started_at finished_at duration url".split(),
        )
        self.assertEqual(b.records(), [record])
        for name in ("queued_at", "started_at", "finished_at"):
            self.assertRegex(record[name], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertIsInstance(record["duration"], float)
        self.assertEqual({k: b.journal()[-1][k] for k in record}, record)

    def test_the_newest_is_first_and_log_latest_is_its_log(self) -> None:
        b = self.boop("echo number $BOOP_NUMBER")
        self.assertEqual(b.get("/log/latest").status, 404)
        for _ in range(3):
            b.deploy()
        self.assertEqual([d["number"] for d in b.records()], [3, 2, 1])
        self.assertEqual(b.log("latest"), b.log(3))

    def test_unknown_addresses_are_404_and_wrong_methods_405(self) -> None:
        b = self.boop()
        for path in ("/x", "/log/", "/log/1", "/log/01", "/log/x", "/log/-1", "/../"):
            with self.subTest(path=path):
                self.assertEqual(b.get(path).status, 404)
        for method, path, allow in (
            ("POST", "/", "GET, HEAD"),
            ("DELETE", "/healthz", "GET, HEAD"),
            ("GET", "/deploy", "POST"),
            ("BREW", "/", "GET, HEAD"),
        ):
            with self.subTest(method=method, path=path):
                answer = b.request(method, path)
                self.assertEqual(answer.status, 405)
                self.assertEqual(answer.headers["Allow"], allow)

    def test_healthz_is_ok(self) -> None:
        answer = self.boop().get("/healthz")
        self.assertEqual((answer.status, answer.text), (200, "ok\n"))

    def test_a_queued_deployment_has_a_page(self) -> None:
        gate = self.gate()
        b = self.boop(
            f"echo here > {self.folder}/here; until read < {gate}; do :; done"
        )
        b.push()
        until(lambda: (self.folder / "here").exists(), "the first run")
        b.push()
        self.assertEqual(b.log(2), "boop: deployment 2 is queued\n")
        self.assertEqual(b.record(2)["status"], "queued")
        self.assertEqual(b.record(1)["status"], "inprogress")
        self.open_gate(gate)


NOW = 1763938166.12  # 2025-11-23T22:49:26.120Z


def deployment(number: int = 7, **changes: typing.Any) -> boop.Deployment:
    d = boop.Deployment(
        number=number,
        status="success",
        reason=None,
        trigger="push",
        repo="https://github.com/ada/site.git",
        branch="main",
        commit="3f2a1b9" + "0" * 33,
        message="Fix the title\n\nIt was wrong.",
        author="Ada Lovelace",
        pushes=1,
        queued_at="2025-11-23T22:48:26.120Z",
        started_at="2025-11-23T22:48:26.620Z",
        finished_at="2025-11-23T22:48:29.820Z",
        duration=3.2,
    )
    return d._replace(**changes)


HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\x9b31m\u202eevil\x07\ud800"
hostile = deployment(
    status="fail",
    reason=HOSTILE,
    repo=HOSTILE,
    branch=HOSTILE,
    commit=HOSTILE,
    message=HOSTILE + "\n\n" + HOSTILE,
    author=HOSTILE,
)


GROUNDS = ("bg", "panel", "line", "hover", "mark")


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of #rgb or #rrggbb colours."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        )
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


class Records(unittest.TestCase):
    def test_times_are_rfc_3339_in_utc_with_milliseconds(self) -> None:
        self.assertRegex(boop.now(), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(boop.unix_time("2025-11-23T22:49:26.120Z"), NOW)
        self.assertAlmostEqual(boop.unix_time(boop.now()), time.time(), delta=60)

    def test_durations_read_well(self) -> None:
        cases = (0, "0.0 s"), (3.24, "3.2 s"), (9.96, "10 s"), (59.6, "1m 00s")
        for seconds, text in (*cases, (245, "4m 05s"), (3725, "1h 02m")):
            self.assertEqual(boop.took(seconds), text)


class Text(unittest.TestCase):
    def test_the_table_is_aligned_and_messages_come_last_and_whole(self) -> None:
        ds = [
            deployment(1000, message="word " * 40, branch="drafts/newsletter"),
            deployment(999, status="fail", reason="long " * 40, author=None),
            deployment(6, status="queued", commit=None, duration=None, message=None),
            deployment(
                5,
                status="inprogress",
                started_at="2025-11-23T22:48:11.120Z",
                duration=None,
            ),
        ]
        lines = boop.list_text(ds, NOW).splitlines()
        for column in "STATUS", "COMMIT", "MESSAGE":
            for row in (line for line in lines if line.startswith("log/")):
                self.assertRegex(row[lines[0].index(column) - 2 :], r"\A  [\w( ]")
        self.assertTrue(lines[1].endswith("word word"))
        self.assertEqual(len(lines[1].split("word")), 41)
        self.assertEqual(lines[3].strip(), ("long " * 40).strip())
        self.assertTrue(lines[4].endswith("(push)"))
        self.assertIn("1m 15s", lines[5])

    def test_no_record_sends_escape_codes_to_a_terminal(self) -> None:
        text = boop.list_text([hostile, deployment(branch="x\x1b[2J")], NOW)
        self.assertTrue(text.replace("\n", "").isprintable())
        self.assertEqual(len(text.splitlines()), 4)
        text.encode()

    def test_an_empty_list_says_what_is_left_to_do(self) -> None:
        ready = boop.empty_text(True, "/srv/site", "")
        for word in "/deploy", "BOOP_SECRET", "/srv/site", "boop.py deploy", "git push":
            self.assertIn(word, ready)
        self.assertNotIn("openssl", ready)
        self.assertLessEqual(max(map(len, ready.split("\n"))), 80)
        why = "/srv/site is on no branch (detached): set BOOP_BRANCH"
        bare = boop.empty_text(False, "/srv/site", why)
        self.assertIn(f"  1. Mend this first: {why}\n", bare)
        self.assertIn("every push is refused", bare)
        self.assertNotIn("boop.py deploy", bare)


class Html(unittest.TestCase):
    def test_the_page_is_the_same_whatever_was_deployed(self) -> None:
        for root in "./", "../":
            page = boop.page(root)
            self.assertEqual(page.count(f'"{root}boop.'), 2)
            self.assertNotIn("ROOT", page)
            self.assertIn('<a href="?text">', page)

    def test_colours_have_the_contrast_that_wcag_aa_asks_for(self) -> None:
        light, dark = boop.BOOP_CSS.split("prefers-color-scheme: dark")
        for css in light, dark:
            colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", css))
            for name, color in colors.items():
                grounds = ["panel"] if re.match(r"c\d", name) else ["panel", "bg"]
                for ground in grounds if name not in GROUNDS else []:
                    with self.subTest(name=name, on=colors[ground]):
                        self.assertGreater(contrast(color, colors[ground]), 4.5)


class Programs(unittest.TestCase):
    def test_the_badge_is_svg_that_shows_the_status(self) -> None:
        for d, word in (
            (None, "no deployments"),
            (deployment(), "success"),
            (hostile, "failed"),
        ):
            self.assertIn(f">{word}</text>", boop.badge_svg(d))
            self.assertNotIn("alert", boop.badge_svg(d))

    def metrics(self) -> str:
        ds = [deployment(8, status="queued", finished_at=None), deployment()]
        return boop.metrics(ds, {"success": 1, "fail": 2}, 6.4)

    def test_metrics_count_what_was_removed_too(self) -> None:
        text = self.metrics()
        for line in (
            'boop_deployments_total{status="success"} 1',
            'boop_deployments_total{status="fail"} 2',
            "boop_deployment_duration_seconds_sum 6.4",
            "boop_deployment_duration_seconds_count 3",
            "boop_queue_length 1",
            "boop_running 0",
            "boop_last_success_timestamp_seconds 1763938109.82",
        ):
            self.assertIn(line + "\n", text)

    @unittest.skipUnless(shutil.which("promtool"), "needs Debian's prometheus")
    def test_promtool_finds_the_metrics_valid(self) -> None:
        tool("promtool", "Debian's prometheus")
        for text in (self.metrics(), boop.metrics([], {"success": 0, "fail": 0}, 0.0)):
            done = subprocess.run(
                ["promtool", "check", "metrics"],
                input=text.encode(),
                capture_output=True,
                check=False,
            )
            self.assertEqual((done.returncode, done.stdout + done.stderr), (0, b""))


# A real browser, driven through chromedriver's HTTP protocol (W3C WebDriver).

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser:
    """One window of headless Chromium; a context manager that ends it."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        self.stack.callback(self.driver.wait)
        self.stack.callback(self.driver.terminate)
        assert self.driver.stdout
        said = next(s for s in self.driver.stdout if "successfully on port" in s)
        port = said.rstrip(".\n").rpartition(" ")[2]
        self.url = f"http://127.0.0.1:{port}/session"
        options = {"args": [*CHROMIUM_FLAGS, f"--user-data-dir={folder}"]}
        always = {"alwaysMatch": {"goog:chromeOptions": options}}
        self.url += "/" + self.call("", capabilities=always)["sessionId"]
        self.stack.callback(self.call, "", "DELETE")

    def call(self, path: str, method: str = "POST", **body: object) -> typing.Any:
        sent = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.url + path, sent, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def js(self, code: str, *args: object) -> typing.Any:
        return self.call("/execute/sync", script=code, args=args)

    def until(self, code: str, seconds: float = 20) -> typing.Any:
        """Wait in the page until the expression is true; its value."""
        end = time.monotonic() + seconds
        while not (value := self.js(f"return {code}")):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {code}")
            time.sleep(0.02)
        return value


class InABrowser(Case):
    """The pages of a real boop in a real, headless Chromium."""

    browser: Browser

    @classmethod
    def setUpClass(cls) -> None:
        tool("chromedriver", "Debian's chromium-driver")
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.stack.close)

    def setUp(self) -> None:
        super().setUp()
        self.b = self.boop()

    def deploy(self, script: str, message: str = "Fix typo") -> int:
        """Queues a deployment that runs the script: its number."""
        self.b.write_script(script)
        head = github_push()["head_commit"] | {"message": message}
        answer = self.b.hook(github_push(head_commit=head))
        self.b.said(f"deployment {answer.json['deployment']}: push")
        return answer.json["deployment"]

    def wait_for(self, name: str) -> str:
        """In a script: waits until the test calls `go_on` with that name."""
        return f"until test -e {self.folder}/{name}; do sleep 0.05; done;"

    def go_on(self, name: str) -> None:
        (self.folder / name).touch()

    def show(self, *ds: boop.Deployment) -> None:
        """Has boop tell of these deployments, newest first."""
        self.b.stop()
        self.b.patch(
            "from boop import Deployment",
            f"told = {list(ds)!r}",
            "boop.Deployments.newest_first = lambda self: told",
            "boop.Deployments.get = lambda self, n: {d.number: d for d in told}.get(n)",
        )
        self.b.start()

    def resize(self, width: int, height: int) -> None:
        """The window's size; 0: as it was."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.browser.call(
            "/goog/cdp/execute",
            cmd="Emulation.setDeviceMetricsOverride",
            params=size | {"mobile": False},
        )

    def open(self, path: str = "") -> Browser:
        self.browser.call("/url", url="about:blank")
        self.browser.call("/url", url=f"http://127.0.0.1:{self.b.port}/{path}")
        return self.browser

    def each(self, selector: str, value: str = "textContent") -> list[typing.Any]:
        """A property of each element that the selector finds."""
        code = (
            f"return [...document.querySelectorAll({selector!r})].map(e => e.{value})"
        )
        return typing.cast("list[typing.Any]", self.browser.js(code))

    def hrefs(self) -> list[str]:
        return self.each("a", "getAttribute('href')")

    def lines(self) -> list[str]:
        return self.each("[id^=L]")

    def finish(self) -> None:
        """Waits until all of a log is drawn, and its end is known."""
        self.browser.until("document.querySelector('#log:not([aria-busy])')")

    def test_the_list_leads_to_the_first_deployment_and_follows_by_itself(self) -> None:
        b = self.open()
        b.until("document.querySelector('.steps code')")
        deploy = f"http://127.0.0.1:{self.b.port}/deploy"
        self.assertEqual(self.each("code")[0], deploy)
        first = self.deploy(self.wait_for("go"), message="Seen in the list")
        b.until(f"document.querySelector('.hero a[href=\"log/{first}\"]')")
        b.until(
            "/^[1-9] s/.test(document.querySelector('.rows time.run')?.textContent)"
        )
        self.go_on("go")
        b.until("document.title.startsWith('✓')")
        self.assertIn("Seen in the list", b.js("return document.body.innerText"))
        with self.subTest("the keyboard's place survives an update"):
            b.js(f"document.querySelector('.rows a[href=\"log/{first}\"]').focus()")
            later = self.deploy("true")
            b.until(f"document.querySelector('.rows a[href=\"log/{later}\"]')")
            self.assertEqual(
                self.each(".rows a:focus", "getAttribute('href')"), [f"log/{first}"]
            )
        with self.subTest("a boop that does not answer is waited for"):
            port = self.b.port
            self.b.stop()
            self.b.env["BOOP_PORT"] = str(port)
            self.b.start()
            self.deploy("true", message="After the restart")
            b.until("document.body.innerText.includes('After the restart')")

    def test_a_log_is_followed_to_its_end_and_the_tab_says_how_it_went(self) -> None:
        n = self.deploy(f"echo one; {self.wait_for('go')} echo two; exit 7")
        b = self.open("log/latest")
        b.until("document.body.innerText.includes('one')")
        b.until(f"document.title.startsWith('▶ #{n} ')")
        self.assertNotIn("two", self.lines())
        self.b.push()  # a newer one: the page stays with its own
        self.go_on("go")
        b.until(f"document.title.startsWith('✗ #{n} ')")
        self.finish()
        self.assertIn("two", self.lines())
        self.assertIn("exit status 7", b.js("return said.textContent"))
        self.assertIn("exit status 7", b.js("return document.body.innerText"))

    def test_nothing_untrusted_becomes_markup_or_breaks_the_policy(self) -> None:
        evil = "<img src=x onerror=document.title='owned'><script>alert(1)</script>"
        fields = dict.fromkeys(("reason", "branch", "author"), evil + HOSTILE)
        message = f"{evil}{HOSTILE}\n\n{evil}{HOSTILE}"
        more = {"commit": evil, "repo": evil, "trigger": evil, "message": message}
        bad = deployment(8, status="fail", **fields, **more)
        self.show(bad, deployment(7, repo="javascript:alert(1)//github.com/a/b"))
        (self.b.state / "8.log").write_text(f"{evil}\n\33[38;2;1;2;3mrgb\n")
        self.browser.call("/se/log", type="browser")  # what other tests left there
        for path in "", "log/8":
            b = self.open(path)
            b.until(f"document.body.innerText.includes({json.dumps(evil)})")
            b.until("document.title.startsWith('✗')")
            odd = self.each("img, script, [onerror], [style]", "tagName")
            self.assertEqual(odd, ["SCRIPT"])  # the page's own
            self.assertIsNone(
                b.js("return /[\\x1b\\x9b\\u202e]/.exec(document.body.innerText)")
            )
            for link in self.hrefs():
                self.assertRegex(link, r"\A(\.\./|#\w+|(log/)?\d+(\?text)?)\Z")
            found = b.call("/se/log", type="browser")
            self.assertEqual([m for m in found if m["level"] == "SEVERE"], [])
        self.finish()
        self.assertIn(evil, self.lines())

    def test_commits_link_to_the_forge_when_it_is_known(self) -> None:
        sha = "3f2a1b9" + "0" * 33
        known = {
            "https://github.com/ada/site.git": "https://github.com/ada/site/commit/",
            "git@github.com:ada/site.git": "https://github.com/ada/site/commit/",
            "ssh://git@codeberg.org/a/b": "https://codeberg.org/a/b/commit/",
            "ssh://git@gitea.example.org:2222/a/b": (
                "https://gitea.example.org/a/b/commit/"
            ),
            "https://gitlab.com/a/b/c.git": "https://gitlab.com/a/b/c/-/commit/",
            "git@bitbucket.org:a/b.git": "https://bitbucket.org/a/b/commits/",
        }
        unknown = (
            "/srv/git/site.git",
            "https://example.org/a/b",
            "javascript:alert(1)//github.com/a/b",
            "https://github.com/a/b?x=<script>",
            "https://github.com.evil.org/a/b",
            HOSTILE,
        )
        ds = [deployment(n, repo=r) for n, r in enumerate((*known, *unknown), 1)]
        self.show(*ds, deployment(99, commit="../../x"))
        self.open().until("document.querySelector('.rows li:nth-child(13)')")
        links = [link for link in self.hrefs() if not link.startswith("log/")]
        self.assertEqual(links, [url + sha for url in known.values()])

    def test_a_row_without_a_message_says_in_words_what_it_is(self) -> None:
        words = {
            "catch-up": "caught up: 3f2a1b9",
            "poll": "polled: 3f2a1b9",
            "manual": "by hand: 3f2a1b9",
            "interrupted": "run again after an interruption: 3f2a1b9",
        }
        ds = [deployment(n, trigger=t, message=None) for n, t in enumerate(words, 1)]
        self.show(*ds, deployment(9, message=None, commit=None))
        self.open().until("document.querySelector('.rows li')")
        rows = [re.sub(r"#\d+ ", "", text) for text in self.each(".rows div > a")]
        self.assertEqual(rows, [*words.values(), "pushed: main"])

    def test_the_list_says_what_the_site_shows_and_leads_there(self) -> None:
        """The newest success's address, and only if it is one of the web."""
        failed = deployment(8, status="fail", reason="exit status 7").record()
        other = deployment(7, branch="other").record()
        older = deployment(5).record() | {"url": "https://old.example.org/"}
        for url, links in {
            "https://example.org/": ["https://example.org/"],
            "javascript:alert(1)": [],
            "ftp://example.org/": [],
        }.items():
            b = self.open()
            newest = deployment(6).record() | {"url": url}
            body = json.dumps({"deployments": [failed, other, newest, older]})
            b.js(f"window.fetch = async () => new Response({body!r})")
            self.b.push()  # a change: the page fetches again
            b.until("document.querySelector('.rows .fail')")
            self.assertEqual(self.each(".state a", "href"), links)
            live = "return document.querySelector('.rows b.success').closest('li')"
            self.assertIn("#7", b.js(f"{live}.innerText"))
            hero = b.js("return document.querySelector('.hero').innerText")
            self.assertIn("exit status 7", hero)
            self.assertIn("the site shows #6", hero)

    def test_a_logs_tab_shows_its_state_and_its_bar_leads_to_its_neighbours(
        self,
    ) -> None:
        labels = "queued", "in progress", "success", "failed"
        states = dict(zip((12, 9, 7, 4), zip(boop.STATUSES, labels, "○▶✓✗")))
        self.show(*(deployment(n, status=k) for n, (k, _, _) in states.items()))
        icons = set()
        for n, (_, label, glyph) in states.items():
            b = self.open(f"log/{n}")
            b.until(f"document.title === '{glyph} #{n} {label} · site'")
            icons.update(self.each("link[rel=icon]", "href"))
        self.assertEqual(len(icons), 4)
        b = self.open("log/7")
        b.until("document.querySelector('nav')")
        for rel, neighbour in {"prev": "4", "next": "9"}.items():
            found = self.each(f"nav [rel={rel}]", "getAttribute('href')")
            self.assertEqual(found, [neighbour])

    def test_the_bar_of_a_log_is_one_line_on_a_phone(self) -> None:
        name = "https://github.com/ada/a-site-with-a-name-that-is-long.git"
        started = {"started_at": boop.now(), "finished_at": None, "duration": None}
        running = deployment(1234, status="inprogress", repo=name, **started)
        self.show(deployment(1235), running, deployment(1233))
        self.addCleanup(self.resize, width=0, height=0)
        for width in 390, 320:
            self.resize(width=width, height=800)
            b = self.open("log/1234")
            b.until("document.querySelector('.bar nav')")
            self.assertLess(self.each(".bar", "offsetHeight")[0], 60)
            self.assertEqual(self.each("html", "scrollWidth"), [width])
            way_back, state = ".bar a", ".bar b"
            for part in way_back, state:
                self.assertGreater(self.each(part, "offsetWidth")[0], 60)

    def test_a_log_is_shown_where_it_is_read(self) -> None:
        n = self.deploy(
            f"seq 1 3000; {self.wait_for('a')} seq 3001 4000; echo A; "
            f"{self.wait_for('b')} seq 4001 4500"
        )
        b = self.open(f"log/{n}")
        end = "(scrollY > 999 && scrollY >= document.documentElement.scrollHeight"
        end += " - innerHeight - 30)"
        with self.subTest("at its end while it grows"):
            b.until("document.getElementById('L3000')")
            b.until(end)
            self.go_on("a")
            b.until("document.getElementById('L4000')")
            b.until(end)
        with self.subTest("where it is scrolled up to"):
            b.js("scrollTo(0, 500)")
            b.until("!document.getElementById('end').hidden")
            self.go_on("b")
            self.finish()
            b.until("document.getElementById('L4500')")
            self.assertEqual(b.js("return scrollY"), 500)
            b.js("document.getElementById('end').click()")
            b.until(end)
        with self.subTest("at its head once it is finished"):
            b = self.open(f"log/{n}")
            self.finish()
            b.until("document.getElementById('L4500')")
            self.assertEqual(b.js("return scrollY"), 0)
        with self.subTest("at the line that a link names"):
            b = self.open(f"log/{n}#L4000")
            self.finish()
            b.until(
                "(r => r.top > 0 && r.bottom < innerHeight)"
                "(document.querySelector('#L4000:target').getBoundingClientRect())"
            )
            b.js("document.querySelector('#L4002 a').click()")
            b.until("document.querySelector('#L4002:target')")
            self.assertEqual(b.js("return location.hash"), "#L4002")

    def test_a_log_is_drawn_as_a_terminal_would_wherever_the_stream_is_cut(
        self,
    ) -> None:
        n = self.deploy(
            rf"printf '10%%\r50%%\r'; {self.wait_for('a')} printf '100%%\r\ndone\r\n';"
            rf"printf 'caf\303'; {self.wait_for('b')} printf '\251 \360\237';"
            r"sleep 0.1; printf '\216\211\n';"
            r"printf '\033[1;31mred\033[0m \033[38;5;208morange\033[m "
            r"\033[38;2;1;2;3;4mrgb\033[0m \033[2K\033]0;title\007\033[?25l\033(Bend\n"
            r"\033[32mover\nlines\033[0m \033[44;97mon\033[0m\nno end'"
        )
        b = self.open(f"log/{n}")
        b.until("document.querySelector('#log').textContent.includes('50%')")
        self.assertNotIn("10%", "".join(self.lines()))
        self.go_on("a")
        b.until("document.querySelector('#log').textContent.includes('caf')")
        self.go_on("b")
        self.finish()
        self.assertEqual(
            self.lines()[1:-1],
            [
                "100%",
                "done",
                "café 🎉",
                "red orange rgb end",
                "over",
                "lines on",
                "no end",
            ],
        )
        self.assertEqual(
            self.each("#log span", "textContent + ': ' + e.className"),
            ["red: bold c1", "over: c2", "lines: c2", "on: c7"],
        )
        red = b.js("return getComputedStyle(document.querySelector('#log .c1')).color")
        self.assertNotEqual(red, b.js("return getComputedStyle(log).color"))

    def test_a_line_of_many_colours_or_without_end_is_cut_for_show(self) -> None:
        letters = "".join(f"\\033[3{n % 8}mx" for n in range(300))
        n = self.deploy(
            "head -c 4000000 /dev/zero | tr '\\0' x; echo; yes 1% | head -c 900000 | "
            "tr '\\n' '\\r'; printf '\\r100%%\\n'; echo last; "
            f"yes $'{letters}' | head -n 2000"
        )
        b = self.open(f"log/{n}")
        self.finish()
        self.assertEqual(self.lines()[1:4], ["x" * 2000 + "…", "100%", "last"])
        coloured = "document.querySelector('#L2004')"
        self.assertEqual(b.js(f"return {coloured}.textContent"), "x" * 300)
        self.assertLess(b.js(f"return {coloured}.childNodes.length"), 303)
        self.assertLess(len(self.each("#L2004 span")), 50)

    def test_of_a_log_of_10_mb_the_last_lines_are_drawn_at_once(self) -> None:
        n = self.deploy("seq 1 1000000")
        self.b.finished(n)
        b = self.open(f"log/{n}")
        self.finish()
        self.assertLess(b.js("return performance.now()"), 5000)
        lines = self.lines()
        self.assertLessEqual(len(lines), 5000)
        self.assertEqual(lines[-2], "1000000")
        first = 1000003 - len(lines)  # boop's own two are lines, too
        self.assertTrue(b.js(f"return document.querySelector('#L{first}')"))
        said = b.js("return document.querySelector('#earlier').innerText")
        self.assertEqual(said, f"… {first - 1:,} earlier lines: as text")
        self.assertIn(f"{n}?text", self.hrefs())

    def test_a_log_that_grows_keeps_its_numbers_and_not_its_lines(self) -> None:
        n = self.deploy(
            f"seq 2 6000; printf half; {self.wait_for('a')} echo ' line'; "
            f"seq 6002 12000; {self.wait_for('b')} seq 12001 12100"
        )
        b = self.open(f"log/{n}")
        b.until("document.querySelector('#L6001')?.textContent === 'half'")
        self.go_on("a")
        b.until("document.querySelector('#L12000')?.textContent === '12000'")
        self.go_on("b")
        self.finish()
        self.assertEqual(self.lines()[-2], "12100")
        self.assertLessEqual(len(self.lines()), 5000)
        self.assertEqual(b.js("return L12100.textContent"), "12100")


class Following(Case):
    """`?follow`, in curl and below it."""

    def follow(self, b: Daemon, path: str) -> socket.socket:
        """A connection that follows; its response head has been read."""
        s = socket.create_connection(("127.0.0.1", b.port), LIMIT_S)
        self.addCleanup(s.close)
        s.sendall(f"GET {path}?follow HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += s.recv(1)
        self.assertTrue(head.startswith(b"HTTP/1.1 200 "), head)
        return s

    def until_line(self, s: socket.socket, line: bytes) -> bytes:
        data = b""
        while line not in data:
            part = s.recv(65536)
            self.assertTrue(part, f"ended before {line!r}: {data!r}")
            data += part
        return data

    def test_lines_come_as_they_are_written_and_boops_last_line_ends_it(self) -> None:
        gate = self.gate()
        b = self.boop(
            f"echo one; until read < {gate}; do :; done; echo two; until read < {gate}; do :; done; echo three"
        )
        number = b.push()
        s = self.follow(b, f"/log/{number}")
        first = self.until_line(s, b"one\n")
        self.open_gate(gate)
        self.until_line(s, b"two\n")
        self.open_gate(gate)
        rest = read_all(s)
        self.assertTrue(first.startswith(b"boop: deployment 1: push"))
        self.assertRegex(rest, rb"^three\nboop: success in .*\n$")

    def test_a_queued_deployment_is_waited_for(self) -> None:
        gate = self.gate()
        b = self.boop(f"echo number $BOOP_NUMBER; until read < {gate}; do :; done")
        b.push()
        b.said("deployment 1: push")
        s = self.follow(b, f"/log/{b.push()}")
        self.open_gate(gate)
        self.until_line(s, b"number 2\n")
        self.open_gate(gate)
        self.assertIn(b"boop: success", read_all(s))

    def test_fifty_follow_and_those_who_leave_cost_nothing(self) -> None:
        gate = self.gate()
        b = self.boop(
            f"echo first; until read < {gate}; do :; done; seq 1000; until read < {gate}; do :; done"
        )
        b.push()
        b.said("deployment 1: push")
        before = descriptors(b.process.pid)
        stay = [self.follow(b, "/log/1") for _ in range(25)]
        leave = [self.follow(b, "/log/1") for _ in range(25)]
        for s in stay + leave:
            self.until_line(s, b"first\n")
        for s in leave:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            s.close()  # by a reset
        until(lambda: descriptors(b.process.pid) < before + 30, "those who left gone")
        self.open_gate(gate)
        for s in stay:
            self.until_line(s, b"\n1000\n")
        self.open_gate(gate)
        logs = {read_all(s) for s in stay}
        self.assertEqual(len(logs), 1)
        b.finished(1)
        until(lambda: descriptors(b.process.pid) <= before, "descriptors given back")

    def test_a_follower_that_does_not_read_holds_nobody_up(self) -> None:
        gate = self.gate()
        b = self.boop(f"until read < {gate}; do :; done; seq 2000000")
        b.push()
        idle = self.follow(b, "/log/1")
        self.open_gate(gate)
        self.assertEqual(b.finished(1)["status"], "success")
        self.assertTrue(read_all(idle).endswith(b.get("/log/1").body[-1000:]))

    def test_the_list_tells_each_change(self) -> None:
        b = self.boop()
        s = self.follow(b, "/")
        b.push()
        told = self.until_line(s, b"1 success main 11111111\n")
        self.assertIn(b"1 queued main 11111111\n", told)
        self.assertIn(b"1 inprogress main 11111111\n", told)

    def test_stopping_ends_what_is_followed(self) -> None:
        b = self.boop("echo here; sleep 1000")
        b.push()
        s = self.follow(b, "/log/1")
        self.until_line(s, b"here\n")
        listing = self.follow(b, "/")
        b.stop()
        self.assertIn(b"interrupted: boop was stopped\n", read_all(s))
        read_all(listing)


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Caching(Case):
    """ETags, headers, a password."""

    def test_a_finished_log_is_sent_once_and_asked_for_again_each_time(self) -> None:
        b = self.boop("echo hello")
        b.deploy()
        first = b.get("/log/1")
        tag = first.headers["ETag"]
        again = b.get("/log/1", If_None_Match=f'"x", W/{tag}, {tag}')
        self.assertEqual((again.status, again.body), (304, b""))
        self.assertEqual(again.headers["ETag"], tag)
        self.assertEqual(first.headers["Cache-Control"], "no-cache")
        b.stop()
        shutil.rmtree(b.state)  # numbers begin again
        b.start().deploy()
        self.assertEqual(b.get("/log/1", If_None_Match=tag).status, 200)

    def test_a_log_of_100_mb_is_whole_for_all_and_costs_no_memory(self) -> None:
        b = self.boop("yes 0123456789 | head -c 100000000", BOOP_LOG_LIMIT="200000000")
        b.deploy()
        before = resident_kb(b.process.pid)
        sizes: queue.SimpleQueue[int] = queue.SimpleQueue()

        def read() -> None:
            sizes.put(len(b.get("/log/1").body))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertGreater(sizes.get(), 100_000_000)
        self.assertLess(resident_kb(b.process.pid) - before, 4000)

    def test_pages_are_strict(self) -> None:
        b = self.boop()
        b.deploy()
        for path in ("/", "/log/1", "/nowhere", "/badge.svg"):
            headers = b.get(path, "text/html").headers
            policy = headers["Content-Security-Policy"]
            self.assertIn("default-src 'none'", policy)
            self.assertNotIn("unsafe", policy)
            self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
            self.assertEqual(headers["Referrer-Policy"], "no-referrer")

    def test_the_password_guards_what_it_should(self) -> None:
        b = self.boop(BOOP_PASSWORD="pässword")
        b.push()
        for path in ("/", "/log/1", "/log/1?follow", "/metrics", "/?follow"):
            for login in ("", "Basic", "Basic !", "Basic " + "QTpi", "Bearer x"):
                answer = b.get(path, Authorization=login)
                self.assertEqual(answer.status, 401, (path, login))
                self.assertIn("Basic", answer.headers["WWW-Authenticate"])
        b.said(r"wrong password from 127.0.0.1 \(1 so far\)")
        self.assertLess(sum("wrong password" in line for line in b.lines), 5)
        self.assertNotIn("QTpi", "".join(b.lines))
        for path in ("/healthz", "/badge.svg", "/boop.css"):
            self.assertEqual(b.get(path).status, 200)
        for user in ("", "any"):
            login = base64.b64encode(f"{user}:pässword".encode()).decode()
            self.assertEqual(b.get("/", Authorization=f"Basic {login}").status, 200)

    def test_the_badge_and_the_metrics_follow_what_happens(self) -> None:
        b = self.boop("exit $((BOOP_NUMBER - 1))")
        self.assertIn("no deployments", b.get("/badge.svg").text)
        b.deploy()
        self.assertIn("success", b.get("/badge.svg").text)
        b.deploy()
        badge = b.get("/badge.svg")
        self.assertIn("failed", badge.text)
        self.assertEqual(badge.headers["Content-Type"].split(";")[0], "image/svg+xml")
        self.assertEqual(badge.headers["Cache-Control"], "no-cache")
        text = b.get("/metrics").text
        self.assertIn('boop_deployments_total{status="success"} 1\n', text)
        self.assertIn('boop_deployments_total{status="fail"} 1\n', text)

    def test_retention_keeps_the_newest_and_never_reuses_a_number(self) -> None:
        b = self.boop("echo $BOOP_NUMBER", BOOP_KEEP="3")
        for _ in range(5):
            b.deploy()
        self.assertEqual([d["number"] for d in b.records()], [5, 4, 3])
        left = sorted(p.name for p in b.state.iterdir() if p.is_file())
        self.assertEqual(left, ["3.log", "4.log", "5.log", "deployments.jsonl"])
        self.assertEqual(b.get("/log/1").status, 404)
        b.env["BOOP_KEEP"] = "1"
        b.restart()
        self.assertEqual([d["number"] for d in b.records()], [5])
        self.assertEqual(b.push(), 6)


# --- Settings, start and stop ---------------------------------------------------------


class Starting(Case):
    """Settings, flags, exit statuses."""

    def run_boop(self, *argv: str, **env: str | None) -> tuple[int, str, str]:
        d = self.daemon(argv=argv, **env).start(listening=False)
        d.process.wait(LIMIT_S)
        out = d.process.stdout.read().decode()
        status, err = d.ended()
        return status, out, err

    def test_every_mistake_is_named_at_once_and_the_exit_status_is_78(self) -> None:
        status, _, err = self.run_boop(
            BOOP_PORT="http",
            BOOP_TIMEOUT="0",
            BOOP_SCRIPT="/no/such",
            BOOP_KEEP="x",
            GIT_CONFIG_COUNT="x",
        )
        self.assertEqual(status, 78)
        names = "BOOP_PORT BOOP_SCRIPT BOOP_TIMEOUT BOOP_KEEP GIT_CONFIG_COUNT".split()
        lines = err.splitlines()
        self.assertEqual(len(lines), len(names), err)
        for line, name in zip(lines, names):
            self.assertIn(name, line)

    def test_a_flag_wins_over_its_variable(self) -> None:
        status, _, err = self.run_boop("--port", "x", BOOP_PORT="1")
        self.assertEqual(status, 78)
        self.assertIn("'x'", err)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        status, out, _ = self.run_boop("--check", f"--port={port}", BOOP_PORT="1")
        self.assertEqual(status, 0)
        self.assertIn(f"127.0.0.1 port {port}", out)

    def test_unknown_flags_and_secrets_as_flags_are_refused(self) -> None:
        for flag in ("--prot=1", "--prot 1", "--secret=x", "--github-token x"):
            status, _, err = self.run_boop(*flag.split())
            name = re.split("[= ]", flag)[0]
            self.assertEqual((status, len(err.splitlines())), (78, 1), err)
            self.assertIn(f"{name}: no such flag", err)

    def test_check_looks_at_all_that_boop_will_need(self) -> None:
        checkout = site(self.folder)
        status, out, err = self.run_boop(
            "--check", BOOP_SECRET="sssssssssecret", BOOP_REPO=str(checkout)
        )
        self.assertEqual((status, err), (0, ""))
        self.assertNotIn("ssecret", out)
        self.assertIn(f"ok: {checkout}, branch main, is at", out)
        self.assertFalse((self.folder / "state").exists())
        self.assertEqual(self.run_boop("--check", BOOP_PORT="-1")[0], 78)
        b = self.boop()  # before a restart
        status, out, _ = self.run_boop("--check", BOOP_PORT=str(b.port))
        self.assertEqual(status, 0)
        self.assertIn("a boop listens on", out)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            threading.Thread(target=lambda: taken.accept()[0].close()).start()
            for env, words in (
                ({"BOOP_PORT": port}, f"port {port}: Address already in use"),
                ({"BOOP_HOST": "no.such.host.invalid"}, "Name or service not known"),
                ({"BOOP_REPO": str(self.folder / "none")}, "does not appear to be"),
                ({"BOOP_REPO": str(checkout), "BOOP_BRANCH": "x"}, "no branch x"),
                ({"BOOP_STATE": str(checkout)}, "not boop's"),
                ({"DEPLOY_TO": "s3://x", "PATH": "/nowhere"}, "cannot run git"),
            ):
                status, _, err = self.run_boop(
                    "--check", **{"BOOP_REPO": str(checkout), **env}
                )
                self.assertEqual(status, 78, err)
                self.assertIn(words, err)
                self.assertNotIn("Traceback", err)
        status, _, err = self.run_boop("--check", BOOP_SECRET="")
        self.assertEqual(status, 0)
        self.assertIn("no BOOP_SECRET: every hook will be refused", err)

    def test_two_colons_listen_on_both_families(self) -> None:
        b = self.boop(BOOP_HOST="::")
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, b.port)).close()

    def test_help_readme_and_the_table_agree(self) -> None:
        status, out, _ = self.run_boop("--help")
        self.assertEqual(status, 0)
        readme = (HERE / "README.md").read_text()
        for setting in boop.SETTINGS:
            flag = f"--{setting.name.replace('_', '-')}"
            self.assertEqual(flag in out, not setting.secret)
            self.assertIn(setting.variable, out)
            self.assertRegex(readme, rf"(?m)^\| `{setting.variable}` \|")
            if setting.default.isdecimal():
                row = re.search(rf"(?m)^\| `{setting.variable}` \|.*$", readme)[0]
                self.assertIn(setting.default, row)
                self.assertIn(f"default: {setting.default}", " ".join(out.split()))

    def test_version(self) -> None:
        self.assertEqual(self.run_boop("--version")[:2], (0, f"boop {boop.VERSION}\n"))

    def test_a_secret_may_be_a_credential_which_wins(self) -> None:
        (self.folder / "BOOP_SECRET").write_text("from the file\n")
        b = self.boop(CREDENTIALS_DIRECTORY=str(self.folder))
        body = json.dumps(github_push()).encode()
        signed = sign(body, "from the file")
        self.assertEqual(b.hook(body).status, 401)
        self.assertEqual(b.hook(body, X_Hub_Signature_256=signed).status, 202)

    def test_a_taken_port_is_one_line_and_exit_status_1(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            status, _, err = self.run_boop(BOOP_PORT=str(port))
        self.assertEqual((status, len(err.splitlines())), (1, 1), err)
        self.assertIn(f"port {port}", err)

    def test_a_state_that_cannot_be_used_is_one_line_and_exit_status_1(self) -> None:
        (self.folder / "file").write_text("")
        status, _, err = self.run_boop(BOOP_STATE=str(self.folder / "file/state"))
        self.assertEqual((status, len(err.splitlines())), (1, 1), err)
        status, _, err = self.run_boop(BOOP_STATE="/proc/boop")
        self.assertEqual((status, len(err.splitlines())), (1, 1), err)

    def test_a_second_boop_on_the_same_state_is_refused(self) -> None:
        self.boop()
        status, _, err = self.run_boop()
        self.assertEqual((status, len(err.splitlines())), (1, 1), err)
        self.assertIn("another boop", err)

    def test_started_in_a_checkout_it_deploys_the_tip(self) -> None:
        checkout = site(self.folder)
        tip = git(checkout, "rev-parse", "HEAD")
        d = self.daemon('echo "$BOOP_TRIGGER $BOOP_REPO $BOOP_COMMIT"', BOOP_REPO=None)
        d.folder = checkout
        d.start()
        d.said("deployment 1: catch-up")
        self.assertEqual(d.finished(1)["trigger"], "catch-up")
        self.assertIn(f"catch-up {checkout} {tip}\n", d.log(1))

    def test_started_outside_of_any_checkout_it_says_what_it_lacks(self) -> None:
        b = self.boop(BOOP_REPO=None, BOOP_SECRET=None)
        b.said("no BOOP_SECRET")
        b.said("no BOOP_REPO")
        self.assertEqual(b.get("/").status, 200)


class Stopping(Case):
    """SIGTERM, SIGINT, and what is left of a deployment."""

    def test_idle_it_ends_at_once_with_0_and_no_traceback(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            b = self.boop()
            status, err = b.stop(signum)
            self.assertEqual(status, 0)
            self.assertNotIn("Traceback", err)

    def test_a_running_script_may_clean_up_and_is_run_again_at_the_next_start(
        self,
    ) -> None:
        b = self.boop(
            f"""
            echo $$ > {self.folder}/pid.new; mv {self.folder}/pid.new {self.folder}/pid
            [ "$BOOP_NUMBER" = 1 ] || exit 0
            trap 'echo cleaned up; exit 0' TERM
            sleep 1000 & wait
            """
        )
        b.push()
        until((self.folder / "pid").exists, "the script")
        status, _ = b.stop()
        self.assertEqual(status, 0)
        record = b.journal()[-1]
        self.assertEqual(record["status"], "fail")
        self.assertEqual(record["reason"], "interrupted: boop was stopped")
        self.assertIn("cleaned up\n", (b.state / "1.log").read_text())
        b.start()
        again = b.finished(2)
        self.assertEqual(again["status"], "success")
        self.assertEqual(again["trigger"], "interrupted")
        b.restart()
        self.assertEqual(len(b.records()), 2)  # and not once more

    def test_a_log_that_was_cut_off_by_a_kill_has_a_last_line_too(self) -> None:
        on = self.folder / "on"
        b = self.boop(
            f"[ $BOOP_NUMBER = 2 ] || {{ printf half; echo > {on}; sleep 9; }}"
        )
        b.push()
        until(on.exists, "the script")
        until(lambda: b"half" in (b.state / "1.log").read_bytes(), "its output")
        b.restart(signal.SIGKILL)
        self.assertEqual(b.finished(2)["trigger"], "interrupted")
        end = "half\nboop: fail: interrupted: boop was killed\n"
        self.assertTrue(b.log(1).endswith(end), b.log(1))


# --- The whole way --------------------------------------------------------------------

HUGO_SITE = {
    "hugo.toml": "baseURL = 'https://example.org/'\ntitle = 'Example'\n",
    "layouts/index.html": "<h1>{{ .Title }}</h1>{{ range .Pages }}.{{ end }}",
    "layouts/_default/single.html": "<h1>{{ .Title }}</h1>{{ .Content }}\n",
    "layouts/_default/list.html": "{{ range .Pages }}<a>{{ .Title }}</a>{{ end }}\n",
    "content/posts/one.md": "---\ntitle: One\n---\n# Héllo\n",
    "static/style.css": "h1 { color: teal }\n",
}


def tree(folder: pathlib.Path | str) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    folder = pathlib.Path(folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class WholeWay(Case):
    """A push to a bare repository, GitHub's hook, deploy.sh: and the site is live."""

    def built(self, checkout: pathlib.Path) -> dict[str, bytes]:
        """What hugo itself makes of the commit."""
        hugo, clone = tool("hugo", "hugo"), self.folder / "clone"
        shutil.rmtree(clone, ignore_errors=True)
        git(self.folder, "clone", "-q", str(checkout), str(clone))
        run = [hugo, "--quiet", "--destination", str(self.folder / "built")]
        shutil.rmtree(self.folder / "built", ignore_errors=True)
        subprocess.run(run, cwd=clone, check=True, stdout=subprocess.DEVNULL)
        return tree(self.folder / "built")

    def push(self, b: Daemon, checkout: pathlib.Path, files: dict[str, str]) -> None:
        """Commits, pushes, and delivers what GitHub would; waits for the end."""
        tip = commit(checkout, files)
        git(checkout, "push", "-q", "origin", "main")
        record = b.finished(b.push(tip))
        self.assertEqual(record["status"], "success", b.log(record["number"]))
        self.assertEqual(record["commit"], tip)

    def test_a_push_makes_the_folder_what_hugo_makes_of_the_commit(self) -> None:
        tool("hugo", "hugo")
        checkout = site(self.folder, HUGO_SITE)
        b = self.boop(
            BOOP_SCRIPT=str(HERE / "deploy.sh"), BOOP_REPO=f"{self.folder}/origin.git"
        )
        b.said("deployment 1: (success|fail)")
        public = b.state / "public"
        self.assertEqual(tree(public), self.built(checkout), b.log(1))
        self.push(b, checkout, {"content/two.md": "---\ntitle: 2\n---\n2"})
        commit(checkout, {"content/posts/three.md": "---\ntitle: 3\n---\n3"})
        git(checkout, "rm", "-q", "content/posts/one.md")
        self.push(b, checkout, {"static/new.css": "new"})
        self.assertEqual(tree(public), self.built(checkout))
        self.assertNotIn("posts/one/index.html", tree(public))

    def test_a_push_that_does_not_build_leaves_the_site_as_it_is(self) -> None:
        tool("hugo", "hugo")
        checkout = site(self.folder, HUGO_SITE)
        b = self.boop(
            BOOP_SCRIPT=str(HERE / "deploy.sh"), BOOP_REPO=f"{self.folder}/origin.git"
        )
        b.said("deployment 1: success")
        before = tree(b.state / "public")
        commit(checkout, {"layouts/index.html": "{{ broken"})
        git(checkout, "push", "-q", "origin", "main")
        record = b.deploy()
        self.assertEqual(record["status"], "fail")
        self.assertRegex(record["reason"], "^hugo failed: ")
        self.assertIn("broken", b.log(2))
        self.assertEqual(tree(b.state / "public"), before)

    def test_the_first_command_of_the_readme_in_a_fresh_clone(self) -> None:
        site(self.folder)
        clone = self.folder / "fresh"
        git(self.folder, "clone", "-q", "origin.git", "fresh")
        b = self.daemon(
            BOOP_SCRIPT=str(HERE / "deploy.sh"), BOOP_REPO=None, BOOP_SECRET=None
        )
        b.folder = clone
        b.start()
        b.said("deployment 1: success")
        self.assertEqual(tree(b.state / "public"), {"index.html": b"<h1>Hello</h1>\n"})
        self.assertEqual(b.finished(1)["status"], "success")
        self.assertIn("success", b.get("/").text)

    def test_a_second_sites_checkout_has_its_turn_in_boops_own_folder(self) -> None:
        b = self.daemon(
            BOOP_SCRIPT=str(HERE / "deploy.sh"), BOOP_REPO=None, BOOP_SECRET=None
        )
        pages = {name: {f"{name}{n}.html": name for n in range(4)} for name in "ab"}
        for number, name in enumerate("aba", 1):
            b.folder = self.folder / name
            if not b.folder.exists():
                b.folder.mkdir()
                git(b.folder, "init", "-q", "-b", "main")
                commit(b.folder, pages[name])
            b.start()
            b.said(f"deployment {number}: success")
            b.stop()
            self.assertEqual(sorted(tree(b.state / "public")), sorted(pages[name]))


# --- Every forge, every trigger -------------------------------------------------------


class Forges(Case):
    """Gitea, Forgejo, GitLab and Bitbucket, with their oddities."""

    def gitea(self, name: str = "Gitea") -> dict:
        """As Gitea 1.20 sends it: no head_commit, the newest commit first."""
        push = github_push()
        push["commits"] = [push.pop("head_commit"), {"id": "0" * 39 + "1"}]
        return push

    def headers(self, name: str, body: bytes, **more: str | None) -> dict:
        digest = sign(body)[len("sha256=") :]
        return {
            "X_GitHub_Event": "push",
            f"X_{name}_Event": "push",
            f"X_{name}_Signature": digest,
            "X_Hub_Signature_256": None,
            **more,
        }

    def test_gitea_and_forgejo_in_json(self) -> None:
        for name in ("Gitea", "Forgejo"):
            b = self.boop()
            body = json.dumps(self.gitea()).encode()
            answer = b.hook(body, **self.headers(name, body))
            self.assertEqual(answer.status, 202, answer.text)
            record = b.finished(1)
            self.assertEqual(record["message"], "Fix typo")
            self.assertEqual(record["author"], "Ann Author")
            self.doCleanups()
            self.setUp()

    def test_gitea_signs_the_json_also_where_it_sends_a_form(self) -> None:
        b = self.boop()
        inner = json.dumps(self.gitea()).encode()
        form = urllib.parse.urlencode({"payload": inner.decode()}).encode()
        kind = "application/x-www-form-urlencoded"
        for more in ({}, {"X_Hub_Signature_256": sign(inner)}):
            headers = self.headers("Gitea", inner, Content_Type=kind, **more)
            self.assertEqual(b.hook(form, **headers).status, 202)
        # but from no other forge, and not for another body
        self.assertEqual(
            b.hook(form, Content_Type=kind, X_Hub_Signature_256=sign(inner)).status, 401
        )
        headers = self.headers("Gitea", b"{}", Content_Type=kind)
        self.assertEqual(b.hook(form, **headers).status, 401)

    def test_giteas_empty_signature_header_is_refused(self) -> None:
        b = self.boop()
        body = json.dumps(self.gitea()).encode()
        answer = b.hook(body, **self.headers("Gitea", body, X_Gitea_Signature=""))
        self.assertEqual(answer.status, 401)
        self.assertIn("X-Gitea-Signature is empty", answer.json["error"])

    def gitlab(self, **more: object) -> dict:
        return {
            "object_kind": "push",
            "event_name": "push",
            "ref": "refs/heads/main",
            "after": "2" * 40,
            "checkout_sha": "2" * 40,
            "user_name": "Pusher",
            "project": {
                "path_with_namespace": "ann/site",
                "default_branch": "main",
                "git_http_url": "https://gitlab.example/ann/site.git",
            },
            "commits": [
                {"id": "1" * 40, "message": "Older [skip ci]", "author": {"name": "X"}},
                {"id": "2" * 40, "message": "Newest", "author": {"name": "Ann"}},
            ],
            **more,
        }

    def from_gitlab(self, b: Daemon, payload: object, **headers: str | None) -> Answer:
        headers = {"X_Gitlab_Event": "Push Hook", "X_Gitlab_Token": SECRET, **headers}
        return b.hook(payload, None, X_Hub_Signature_256=None, **headers)

    def test_gitlab(self) -> None:
        b = self.boop()
        self.assertEqual(self.from_gitlab(b, self.gitlab()).status, 202)
        record = b.finished(1)
        self.assertEqual(record["repo"], "https://gitlab.example/ann/site.git")
        self.assertEqual((record["message"], record["author"]), ("Newest", "Ann"))
        wrong = self.from_gitlab(b, self.gitlab(), X_Gitlab_Token="no")
        self.assertEqual(wrong.status, 401)
        self.assertIn("X-Gitlab-Token", wrong.json["error"])
        gone = self.gitlab(after="0" * 40, checkout_sha=None, commits=[])
        self.assertIn("deleted", self.from_gitlab(b, gone).json["ignored"])
        other = self.from_gitlab(b, {}, X_Gitlab_Event="Merge Request Hook")
        self.assertEqual(other.status, 200)
        self.assertIn("Merge Request Hook", other.json["ignored"])

    def bitbucket(self, *changes: dict) -> dict:
        return {
            "push": {"changes": list(changes)},
            "repository": {"full_name": "ann/site"},
        }

    def change(self, name: str, kind: str = "branch", letter: str = "3") -> dict:
        target = {
            "hash": letter * 40,
            "message": "Moved",
            "author": {"raw": "Ann <a@b>"},
        }
        return {"new": {"type": kind, "name": name, "target": target}, "closed": False}

    def from_bitbucket(
        self, b: Daemon, payload: dict, event: str = "repo:push"
    ) -> Answer:
        body = json.dumps(payload).encode()
        headers = {"X_Event_Key": event, "X_Hub_Signature": sign(body)}
        return b.hook(body, None, X_Hub_Signature_256=None, **headers)

    def test_bitbucket_takes_the_wanted_one_of_several_changes(self) -> None:
        b = self.boop(BOOP_BRANCH="main")
        changes = [self.change("draft", letter="4"), self.change("main")]
        answer = self.from_bitbucket(b, self.bitbucket(*changes))
        self.assertEqual(answer.status, 202, answer.text)
        record = b.finished(1)
        self.assertEqual(record["commit"], "3" * 40)
        self.assertEqual(record["author"], "Ann")
        self.assertEqual(record["repo"], "https://bitbucket.org/ann/site.git")
        gone = {"new": None, "closed": True, "old": {"type": "branch", "name": "old1"}}
        answer = self.from_bitbucket(b, self.bitbucket(gone, self.change("v1", "tag")))
        self.assertEqual(answer.status, 200)
        self.assertIn("refs/heads/old1 was deleted", answer.json["ignored"])
        self.assertIn("tag", answer.json["ignored"])
        pong = self.from_bitbucket(b, {}, "diagnostics:ping")
        self.assertEqual((pong.status, list(pong.json)), (200, ["pong"]))

    def test_bitbucket_without_boop_branch_takes_the_repositorys_default(self) -> None:
        b = self.boop()
        answer = self.from_bitbucket(b, self.bitbucket(self.change("main")))
        self.assertIn("BOOP_BRANCH", answer.json["ignored"])
        b.stop()
        site(self.folder)
        b.env["BOOP_REPO"] = str(self.folder / "origin.git")
        b.start()
        answer = self.from_bitbucket(b, self.bitbucket(self.change("main")))
        self.assertEqual(answer.status, 202, answer.text)

    def test_a_forge_that_is_not_known_is_told_what_was_looked_for(self) -> None:
        b = self.boop()
        answer = b.hook(github_push(), None)
        self.assertEqual(answer.status, 400)
        for header in ("X-GitHub-Event", "X-Gitlab-Event", "X-Event-Key"):
            self.assertIn(header, answer.json["error"])
        answer = b.hook(github_push(), X_Hub_Signature_256=None)
        self.assertEqual(answer.status, 401)
        for header in ("X-Hub-Signature-256", "X-Gitlab-Token"):
            self.assertIn(header, answer.json["error"])

    def test_a_skip_marker_in_the_newest_message_is_honoured(self) -> None:
        b = self.boop()
        head = github_push()["head_commit"]
        for marker in ("[skip ci]", "[ci skip]", "[no ci]", "[skip deploy]"):
            message = {"message": f"Edit\n\n{marker} now"}
            answer = b.hook(github_push(head_commit=head | message))
            self.assertEqual(answer.status, 200)
            self.assertIn(marker, answer.json["ignored"])
        message = {"message": "Document skip ci"}
        self.assertEqual(b.hook(github_push(head_commit=head | message)).status, 202)

    def test_what_catch_up_leaves_alone(self) -> None:
        """Deployments.catch_up, without a process: what is settled, and what is not."""
        ds = boop.Deployments(str(self.folder / "s"), 100)

        def tip(letter: str, **more: typing.Any) -> boop.Push:
            return boop.Push(
                "/r", "main", letter * 40, **{"trigger": "catch-up", **more}
            )

        def run(push: boop.Push, reason: str | None = None, **known: str) -> None:
            number = ds.add(push).number
            ds.start("way")
            ds.note(number, **known)
            ds.finish(number, reason, 1.0)

        def catch_up(push: boop.Push) -> boop.Deployment | None:
            return ds.catch_up(push, "way")

        run(tip("a"))
        self.assertIsNone(catch_up(tip("a")))  # live
        number = ds.add(tip("a")).number
        ds.start("way")
        ds.skip(tip("b"))  # [skip ci] that comes while one runs
        ds.finish(number, None, 1.0)
        self.assertIsNone(catch_up(tip("b")))
        ds.skip(tip("b"))
        self.assertIsNone(catch_up(tip("b")))  # its message said: skip
        run(tip("c"), "exit status 1")
        run(tip("c", trigger="poll"), "exit status 1")
        self.assertIsNone(catch_up(tip("c", trigger="poll")))  # tried once
        run(tip("c"), "exit status 1")  # but a start or a SIGHUP tries again
        self.assertIsNone(catch_up(tip("c", trigger="poll")))
        run(tip("a", trigger="manual", exact=True), tip="c" * 40)
        self.assertIsNone(catch_up(tip("c")))  # rolled back from
        again = catch_up(tip("d"))  # the branch has moved
        self.assertEqual((again.commit, again.status), ("d" * 40, "queued"))
        self.assertIsNone(catch_up(tip("e")))  # the queued one will deploy it

    def test_a_skipped_tip_is_not_caught_up_with_either(self) -> None:
        checkout = site(self.folder)
        b = self.boop(BOOP_REPO=str(self.folder / "origin.git"))
        b.said("deployment 1: success")
        tip = commit(checkout, {"a": "b"}, "Edit [skip ci]")
        git(checkout, "push", "-q", "origin", "main")
        head = github_push()["head_commit"] | {"message": "Edit [skip ci]", "id": tip}
        answer = b.hook(github_push(commit=tip, head_commit=head))
        self.assertEqual(answer.status, 200)
        b.restart()
        commit(checkout, {"a": "c"}, "And go on")
        git(checkout, "push", "-q", "origin", "main")
        b.process.send_signal(signal.SIGHUP)
        b.said("deployment 2: success")
        self.assertEqual(len(b.records()), 2)


class ByHand(Case):
    """`boop.py deploy [COMMIT]` and the signed request behind it."""

    def ask(
        self, b: Daemon, *argv: str, command: str = "deploy", **env: str
    ) -> tuple[int, str, str]:
        """Runs the command beside a running boop: status, stdout, stderr."""
        done = subprocess.run(
            [sys.executable, str(HERE / "boop.py"), command, *argv],
            env={**b.env, "BOOP_PORT": str(b.port), **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode, done.stdout, done.stderr

    def boop_with_site(self, script: str, **env: str) -> tuple[Daemon, pathlib.Path]:
        checkout = site(self.folder)
        b = self.boop(script, BOOP_REPO=str(self.folder / "origin.git"), **env)
        b.said("deployment 1: (success|fail)")
        b.finished(1)
        return b, checkout

    def test_it_prints_the_log_and_exits_by_the_result(self) -> None:
        b, checkout = self.boop_with_site(
            'echo "exact=$BOOP_EXACT"; exit $((BOOP_NUMBER > 2))'
        )
        status, out, err = self.ask(b)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out, b.log(2))
        self.assertIn("exact=\n", out)
        record = b.record(2)
        self.assertEqual((record["trigger"], record["pushes"]), ("manual", 0))
        self.assertEqual(record["commit"], git(checkout, "rev-parse", "HEAD"))
        status, out, err = self.ask(b)
        self.assertEqual((status, err), (1, ""))
        self.assertIn("boop: fail after ", out)

    def test_who_stops_reading_or_has_no_stdout_still_learns_how_it_ended(self) -> None:
        b, _ = self.boop_with_site("seq 100000; exit $((BOOP_NUMBER > 2))")
        command = f'"{sys.executable}" "{HERE}/boop.py" deploy'
        for number, shell, status in (
            (2, f"{command} | head -1; exit ${{PIPESTATUS[0]}}", 0),
            (3, f"{command} >&-", 1),
        ):
            done = subprocess.run(
                ["bash", "-c", shell],
                env={**b.env, "BOOP_PORT": str(b.port)},
                cwd=self.folder,
                capture_output=True,
            )
            self.assertEqual((done.returncode, done.stderr), (status, b""))
            self.assertIn(b.record(number)["status"], ("success", "fail"))

    def test_errors_are_one_line(self) -> None:
        b, _ = self.boop_with_site("exit 0")
        for argv, env, words in (
            ((), {"BOOP_SECRET": "wrong"}, "401"),
            ((), {"BOOP_SECRET": ""}, "BOOP_SECRET"),
            (("abc",), {}, "not a full commit id"),
            (("",), {}, "not a full commit id"),
            ((), {"BOOP_PORT": "1"}, "does not answer"),
        ):
            status, out, err = self.ask(b, *argv, **env)
            self.assertEqual((status, out, len(err.splitlines())), (1, "", 1), err)
            self.assertIn(words, err)

    def test_a_hung_build_is_cancelled_and_what_waits_behind_it_runs(self) -> None:
        b, checkout = self.boop_with_site(
            "[ $BOOP_NUMBER != 2 ] || { trap 'echo bye; exit' TERM; sleep 1000 & wait; }"
        )
        commit(checkout, {"a": "new"})
        git(checkout, "push", "-q", "origin", "main")
        self.assertEqual(b.hook({}, None).json["deployment"], 2)
        b.said("deployment 2: manual")
        self.assertEqual(b.hook({"commit": "2" * 40}, None).json["deployment"], 3)
        self.assertEqual(b.hook({}, None).json["deployment"], 4)
        answer = b.hook({"cancel": 3}, None)
        self.assertEqual((answer.status, answer.json), (200, {"cancelled": 3}))
        self.assertEqual(b.record(3)["reason"], "cancelled by hand")
        self.assertEqual(b.record(2)["status"], "inprogress")
        status, out, err = self.ask(b, command="cancel")
        self.assertEqual((status, out), (0, "deployment 2 is cancelled\n"), err)
        record = b.finished(2)
        self.assertEqual(
            (record["status"], record["reason"]), ("fail", "cancelled by hand")
        )
        self.assertIn("bye\nboop: fail after", b.log(2))
        self.assertEqual(b.finished(4)["status"], "success")
        for number, code in ((2, 409), (9, 404)):
            self.assertEqual(b.hook({"cancel": number}, None).status, code)
        for wrong in (True, "2", 0, -1, 2.0, None):
            self.assertEqual(b.hook({"cancel": wrong}, None).status, 400)
        self.assertEqual(b.hook({"cancel": 4, "force": True}, None).status, 400)
        status, out, err = self.ask(b, command="cancel")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("no deployment is running", err)
        self.assertEqual(self.ask(b, "x", command="cancel")[0], 1)

    def test_a_cancelled_tip_stays_away_until_somebody_asks(self) -> None:
        gate = self.gate()
        b, checkout = self.boop_with_site(
            f"[ $BOOP_NUMBER != 2 ] || until read < {gate}; do :; done"
        )
        tip = commit(checkout, {"a": "new"})
        git(checkout, "push", "-q", "origin", "main")
        b.push(tip)
        b.said("deployment 2: push")
        self.assertEqual(self.ask(b, "2", command="cancel")[0], 0)
        b.finished(2)
        b.restart(signal.SIGKILL).said("listens on")
        b.process.send_signal(signal.SIGHUP)
        self.assertEqual(self.ask(b, "--force")[0], 0)
        self.assertEqual([d["number"] for d in b.records()], [3, 2, 1])

    def test_a_forced_deployment_tells_the_script_and_nobody_shares_it(self) -> None:
        gate = self.gate()
        b, _ = self.boop_with_site(
            f"echo force=$DEPLOY_FORCE; [ $BOOP_NUMBER != 2 ] || until read < {gate};"
            "do :; done"
        )
        bodies = {}, {"force": True}, {"force": True}, {"force": False}
        numbers = [b.hook(body, None).json["deployment"] for body in bodies]
        b.said("deployment 2: manual")
        self.open_gate(gate)
        b.finished(numbers[-1])
        self.assertEqual(len(set(numbers)), 3, numbers)
        logs = [b.log(n) for n in sorted(set(numbers))]
        self.assertEqual(["force=1\n" in log for log in logs], [False, True, False])
        self.assertEqual(b.hook({"force": 1}, None).status, 400)

    def test_a_rollback_holds_until_the_branch_moves(self) -> None:
        b, checkout = self.boop_with_site('echo "$BOOP_COMMIT$BOOP_EXACT" > ../live')
        old = git(checkout, "rev-parse", "HEAD")
        new = commit(checkout, {"a": "new"})
        git(checkout, "push", "-q", "origin", "main")
        b.finished(b.push(new))
        self.assertEqual(self.ask(b, old)[0], 0)
        self.assertEqual((b.state / "live").read_text(), f"{old}1\n")
        b.restart()
        b.process.send_signal(signal.SIGHUP)
        newer = commit(checkout, {"a": "newer"})
        git(checkout, "push", "-q", "origin", "main")
        b.process.send_signal(signal.SIGHUP)
        b.said("deployment 4: success")
        self.assertEqual((b.state / "live").read_text(), f"{newer}\n")
        self.assertEqual(b.records()[0]["trigger"], "catch-up")

    def test_a_rollback_and_the_tip_do_not_share_a_deployment(self) -> None:
        gate = self.gate()
        b, checkout = self.boop_with_site(
            f"[ $BOOP_NUMBER = 1 ] || until read < {gate}; do :; done"
        )
        tip = git(checkout, "rev-parse", "HEAD")
        by_hand = [b.hook({}, None).json["deployment"]]
        b.said("deployment 2: manual")
        by_hand += [b.hook({"commit": tip}, None).json["deployment"] for _ in range(2)]
        by_hand += [b.hook({}, None).json["deployment"], b.push()]
        self.assertEqual(by_hand, [2, 3, 3, 4, 4])
        for number in (2, 3, 4):
            self.open_gate(gate)
            b.finished(number)

    def test_what_is_no_request_by_hand_is_refused(self) -> None:
        b, _ = self.boop_with_site("exit 0")
        for payload in ({"commit": "abc"}, {"commit": None}, {"commit": 1}, {"x": 1}):
            self.assertEqual(b.hook(payload, None).status, 400)
        b.stop()
        b.env["BOOP_REPO"] = ""
        b.start()
        answer = b.hook({}, None)
        self.assertEqual(answer.status, 400)
        self.assertIn("BOOP_REPO", answer.json["error"])


# --- deploy.sh ------------------------------------------------------------------------

DEPLOY = HERE / "deploy.sh"


class Repository:
    """A git repository that a test writes into."""

    def __init__(self, path, environment, *options):
        self.path, self.environment = pathlib.Path(path), environment
        self.path.mkdir(parents=True)
        self.git("init", "-q", "-b", "main", *options)

    def git(self, *arguments):
        return subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def write(self, files):
        for name, content in files.items():
            path = self.path / name
            if content is None:
                self.git("rm", "-qr", "--", name)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )

    def commit(self, message="Change", files=None, date="2024-05-06T07:08:09Z"):
        self.write(files or {})
        self.git("add", "-A")
        self.environment.update(GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def files(self):
        """What a plain site of it is."""
        names = self.git("ls-files", "-z").split("\0")
        return {name: (self.path / name).read_bytes() for name in names if name}


CONFIG = 'baseURL = "https://example.org/"\ntitle = "Site"\nenableGitInfo = true\n'
LIST = "{{ range .Pages }}<a href='{{ .RelPermalink }}'>{{ .Title }}</a>{{ end }}"
BLOG = {
    "hugo.toml": CONFIG,
    "config.toml": CONFIG,  # for hugo before 0.110
    "layouts/_default/single.html": '{{ $c := resources.Get "app.css" | fingerprint }}'
    '<link href="{{ $c.RelPermalink }}"><h1>{{ .Title }}</h1>{{ .Lastmod }} '
    "{{ with .GitInfo }}{{ .Subject }}{{ end }}{{ .Content }}",
    "layouts/_default/list.html": LIST,
    "layouts/index.html": LIST.replace(".Pages", ".Site.RegularPages"),
    "assets/app.css": "body { color: black }",
    "static/robots.txt": "User-agent: *\n",
    "content/post/one.md": "---\ntitle: One\ndate: 2024-01-01\n---\nFirst text\n",
    "content/post/two.md": "---\ntitle: Two\ndate: 2024-01-02\n---\nSecond text\n",
}
PLAIN = {f"p{n}.html": f"page {n}" for n in range(3)}


class DeployCase(unittest.TestCase):
    """A folder, a repository and a way to run deploy.sh, for each test its own."""

    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = pathlib.Path(holder.name).resolve()
        self.bin, self.home = self.folder / "bin", self.folder / "home"
        self.bin.mkdir()
        self.home.mkdir()
        (self.home / ".gitconfig").write_text(
            "[user]\nname = Ann\nemail = ann@example.org\n"
            '[protocol "file"]\nallow = always\n'
        )
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "TZ": "UTC",
            "GIT_CONFIG_NOSYSTEM": "1",
            "PYENV_ROOT": os.path.expanduser("~/.pyenv"),  # an aws that is a shim of it
        }
        self.repository = self.new_repository("repository")
        self.state = self.folder / "state"
        self.target = self.state / "public"
        self.result = self.folder / "result"
        self.settings = {
            "BOOP_REPO": self.repository.path,
            "BOOP_STATE": self.state,
            "BOOP_RESULT": self.result,
        }

    def new_repository(self, name, *options):
        return Repository(self.folder / name, dict(self.environment), *options)

    def start(self, cwd=None, **settings):
        environment = {**self.environment, **self.settings, **settings}
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
        with self.start(**settings) as process:
            output = process.communicate(timeout=120)[0]
        self.assertEqual(bool(process.returncode), bool(status), output)
        return output

    def results(self):
        """What the last run left for boop."""
        return dict(line.split("=", 1) for line in self.result.read_text().splitlines())

    def refused(self, **settings):
        """The reason of a run that fails, which is also what it says last."""
        output = self.run_it(status=1, **settings)
        reason = self.results()["reason"]
        self.assertEqual(output.splitlines()[-1], f"deploy: {reason}", output)
        return reason

    def live(self):
        return tree(self.target)

    def wrap(self, program, line):
        """Put a line of shell before a program that deploy.sh calls."""
        real = shutil.which(program)
        (self.bin / program).write_text(f'#!/bin/bash\n{line}\nexec {real} "$@"\n')
        (self.bin / program).chmod(0o755)

    def without(self, missing):
        """A PATH that lacks one program."""
        for folder in ("/usr/bin", "/bin"):
            for path in pathlib.Path(folder).iterdir():
                if path.name != missing and not (self.bin / path.name).exists():
                    (self.bin / path.name).symlink_to(path)
        return {"PATH": self.bin}

    def hugo_site(self):
        tool("hugo", "hugo")
        self.repository.commit("Start", BLOG, "2024-02-03T04:05:06Z")

    def hugo_makes(self):
        clone = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        self.repository.git("clone", "-q", ".", str(clone / "src"))
        words = ["hugo", "--quiet", "--destination", clone / "out"]
        subprocess.run(words, cwd=clone / "src", check=True, env=self.environment)
        return tree(clone / "out")


class DeployToFolder(DeployCase):
    """Publishing to a folder, and all that does not depend on the target."""

    def plain(self, files=PLAIN):
        self.repository.commit("Start", files)

    def test_what_is_published_is_byte_for_byte_what_hugo_makes_with_gits_dates(self):
        self.hugo_site()
        two = {"content/post/two.md": "---\ntitle: Two\n---\nNew\n"}
        self.repository.commit("Later", two, "2024-03-04T05:06:07Z")
        self.run_it()
        self.assertEqual(self.live(), self.hugo_makes())
        self.assertIn(b"2024-02-03 04:05:06", self.live()["post/one/index.html"])
        self.assertIn(b"2024-03-04 05:06:07", self.live()["post/two/index.html"])
        one = {"content/post/one.md": "---\ntitle: I\n---\nX\n"}
        for files in (one, two, {"content/post/one.md": None}):
            self.repository.commit("Again", files)
            output = self.run_it()
            self.assertEqual(self.live(), self.hugo_makes())
        self.assertIn(" 1 deleted", output)
        self.assertFalse((self.target / "post/one").exists())  # nor its empty folder

    def test_an_edit_of_the_same_size_is_published_and_no_other_file_is_touched(self):
        self.plain()
        self.run_it()
        before = {path.name: path.stat().st_mtime_ns for path in self.target.iterdir()}
        self.repository.commit("Edit", {"p1.html": "PAGE 1"})
        with open(self.target / "p1.html") as reader:  # a visitor, in the middle of it
            output = self.run_it()
            self.assertEqual(reader.read(), "page 1")
        after = {path.name: path.stat().st_mtime_ns for path in self.target.iterdir()}
        self.assertEqual(self.live()["p1.html"], b"PAGE 1")
        changed = [name for name in after if after[name] != before[name]]
        self.assertEqual(changed, ["p1.html"])
        self.assertEqual(os.stat(self.target / "p1.html").st_nlink, 1)
        self.assertIn("1 uploaded, 0 deleted, 2 unchanged", output)

    def test_assets_are_placed_before_pages_and_deletions_come_last(self):
        old = {"index.html": "old", "k.css": "", "old.css": "o", "old.html": "o"}
        self.plain(old)
        self.run_it()
        seen = self.folder / "seen"
        look = f'(cd {self.target} && echo "$(echo *) = $(cat index.html)") >>{seen}'
        for program in ("cp", "rm", "mv"):
            self.wrap(program, look)
        new = {"index.html": "new", "new.css": "n", "old.css": None, "old.html": None}
        self.repository.commit("New", new)
        self.run_it()
        self.assertEqual(
            list(dict.fromkeys(seen.read_text().splitlines())),
            [
                "index.html k.css old.css old.html = old",
                "index.html k.css new.css old.css old.html = old",
                "index.html k.css new.css old.css old.html = new",
                "index.html k.css new.css = new",
            ],
        )

    def test_a_file_may_become_a_folder_and_a_folder_a_file(self):
        self.plain({"a": "file", "b/c/d.html": "page", "k": "k", "l": "l"})
        self.run_it()
        self.repository.commit("Two", {"a": None, "b/c/d.html": None})
        self.repository.commit("Two", {"a/d.html": "page", "b": "file"})
        self.run_it()
        self.assertEqual(self.live(), self.repository.files())

    def test_a_folder_full_of_photos_keeps_them_unless_forced(self):
        photos = {f"2023/{n}.jpg": b"mine" for n in range(16)}
        for name in photos:
            (self.target / name).parent.mkdir(parents=True, exist_ok=True)
            (self.target / name).write_bytes(b"mine")
        (self.target / "empty").mkdir()
        self.plain({**PLAIN, "2023/page.html": "x"})
        note = "16 files here are not boop's: left alone"
        self.assertIn(note, self.run_it())
        self.repository.commit("Less", {"2023/page.html": None})
        self.assertIn(note, self.run_it(DEPLOY_FULL=1))
        self.assertEqual(self.live(), {**self.repository.files(), **photos})
        self.assertTrue((self.target / "empty").exists())
        for name in ("2023", "p2.html/x"):  # in each other's way
            shutil.rmtree(self.state / "work/manifests")
            (self.target / name).parent.is_file() and (self.target / "p2.html").unlink()
            (self.target / name).parent.mkdir(exist_ok=True)
            (self.target / name).is_dir() or (self.target / name).write_bytes(b"mine")
            self.repository.commit("Clash", {"2023": "a file"})
            self.assertIn("cannot overwrite", self.refused())
            self.assertEqual(self.live() | photos, self.live())
            self.repository.commit("No clash", {"2023": None})
        self.run_it(DEPLOY_FORCE=1)
        self.assertEqual(self.live(), self.repository.files())

    def test_what_was_published_is_known_for_each_target_and_lost_with_the_state(self):
        self.plain({**PLAIN, "old.html": "o"})
        self.run_it()
        other = self.folder / "home/www"
        self.assertIn("4 uploaded", self.run_it(DEPLOY_TO="~/www"))
        self.repository.commit("Less", {"old.html": None})
        self.assertIn("1 deleted", self.run_it())
        self.assertIn("0 uploaded, 1 deleted", self.run_it(DEPLOY_TO=other))
        self.assertEqual(tree(other), self.repository.files())
        shutil.rmtree(self.state / "work")
        self.repository.commit("Less", {"p0.html": None})
        self.assertIn("1 files here are not boop's", self.run_it())
        self.assertIn("p0.html", self.live())

    def test_a_site_that_lost_half_its_files_or_its_home_page_is_not_published(self):
        self.plain({**PLAIN, "index.html": "home"})
        start = self.repository.git("rev-parse", "HEAD")
        self.run_it()
        before = self.live()
        for files, reason in (
            (dict.fromkeys(PLAIN), "the site lost 3 of its 4 files"),
            ({"index.html": None, "new.html": "x"}, "the site lost its home page"),
            (dict.fromkeys(before), "the site is empty"),
        ):
            self.repository.commit("Too much", files)
            for _ in range(2):  # and it does not wear off
                self.assertIn(reason, self.refused())
                self.assertEqual(self.live(), before)
            tip = self.repository.git("rev-parse", "HEAD")
            self.repository.git("reset", "-q", "--hard", start)
        self.repository.commit("Half", {"p0.html": None, "p1.html": None})
        self.run_it()
        self.assertEqual(self.live(), self.repository.files())
        self.repository.git("reset", "-q", "--hard", tip)
        self.run_it(DEPLOY_FORCE=1)
        self.assertEqual(self.live(), {})

    def test_a_hugo_site_whose_theme_is_missing_does_not_replace_the_live_one(self):
        self.hugo_site()
        aliases = "---\naliases: [/old, /index.html]\n---\nx"
        self.repository.commit("Moved", {"content/moved.md": aliases})
        self.run_it()
        before = self.live()
        self.repository.commit("No theme", {"layouts": None})
        self.assertIn("hugo made no home page", self.refused())
        self.assertEqual(self.live(), before)
        first = self.folder / "first"
        self.assertIn("no home page", self.refused(DEPLOY_TO=first, DEPLOY_FULL=1))
        self.assertEqual(tree(first), {})

    def test_a_failed_fetch_or_build_touches_nothing_and_says_why_in_a_line(self):
        self.hugo_site()
        self.run_it()
        before = self.live()
        start = self.repository.git("rev-parse", "HEAD")
        reason = self.refused(BOOP_REPO=self.folder / "nowhere")
        self.assertRegex(
            reason, "^cannot fetch the default branch: .*/nowhere' does not exist$"
        )
        reason = self.refused(BOOP_BRANCH="nope")
        self.assertRegex(reason, "^cannot fetch nope: Remote branch nope not found")
        for files, why in (
            (
                {"layouts/index.html": "{{ .Nope }"},
                '^hugo failed: "layouts/index.html:1',
            ),
            ({"layouts/index.html": '{{ partial "no.html" }}'}, '"no.html" not found$'),
            ({"content/post/one.md": "---\na: ["}, "post/one.md"),
            ({"content/post/one.md": 'x {{< ref "nowhere" >}}'}, 'Ref "nowhere"'),
        ):
            tip = self.repository.commit("Typo\n\nBody", files)
            reason = self.refused()
            self.assertRegex(reason, why)
            self.assertNotIn(str(self.folder), reason)
            self.assertLess(len(reason), 310)
            known = self.results()
            self.assertEqual((known["commit"], known["message"]), (tip, "Typo"))
            self.repository.git("reset", "-q", "--hard", start)
        theme = self.new_repository("theme")
        theme.commit("Theme", {"t.html": "t"})
        self.repository.git("submodule", "--quiet", "add", str(theme.path), "theme")
        self.repository.commit("Theme")
        shutil.rmtree(theme.path)
        self.assertIn("cannot fetch", self.refused())
        self.assertEqual(self.live(), before)

    def test_the_record_gets_what_really_went_live_and_where(self):
        self.hugo_site()
        subject = "Fix = \x1b[31mtypo\x9b " + "x" * 400
        tip = self.repository.commit(subject)
        self.run_it(BOOP_COMMIT="f" * 40)
        known = self.results()
        self.assertEqual((known["commit"], known["author"]), (tip, "Ann"))
        self.assertRegex(known["message"], r"^Fix =  \[31mtypo  x+$")
        self.assertLess(len(known["message"]), 301)
        self.assertNotIn("url", known)  # it is hugo's placeholder
        url = "https://www.example.net/blog/"
        self.repository.commit(
            "Address",
            {n: BLOG[n].replace("https://example.org/", url) for n in list(BLOG)[:2]},
        )
        for settings, expected in (
            ({}, url),
            ({"DEPLOY_URL": "https://b.example.net"}, "https://b.example.net"),
        ):
            self.run_it(**settings)
            self.assertEqual(self.results()["url"], expected)
        self.assertNotIn("reason", self.results())

    def test_a_program_that_is_missing_is_named_with_how_to_install_it(self):
        self.hugo_site()
        self.assertIn("apt install hugo", self.refused(**self.without("hugo")))
        self.assertEqual(self.live(), {})

    def test_images_in_git_lfs_go_live_as_images_and_never_as_pointers(self):
        tool("git-lfs", "git-lfs")
        image = b"\x89PNG" * 1000
        lfs = "filter.lfs.{0}=git-lfs {0} -- %f"
        smudge, clean = lfs.format("smudge"), lfs.format("clean")
        self.repository.write({".gitattributes": "*.png filter=lfs\n", "i.png": image})
        self.repository.git("-c", smudge, "-c", clean, "add", "-A")
        self.repository.git("-c", smudge, "-c", clean, "commit", "-qm", "Image")
        self.assertIn(
            b"git-lfs",
            subprocess.check_output(
                ["git", "show", "HEAD:i.png"], cwd=self.repository.path
            ),
        )
        self.assertIn("apt install git-lfs", self.refused(**self.without("git-lfs")))
        self.assertEqual(self.live(), {})
        self.run_it()  # and after the installation
        self.assertEqual(self.live()["i.png"], image)

    def test_what_hugo_warns_of_and_counts_is_in_the_log(self):
        self.hugo_site()
        self.repository.commit("W", {"layouts/index.html": '{{ warnf "look here" }}x'})
        output = self.run_it()
        self.assertIn("look here", output)
        self.assertRegex(output, r"Static files +\| +1")

    def test_a_repository_without_hugo_is_published_as_it_is_without_git(self):
        theme = self.new_repository("theme")
        theme.commit("Theme", {"t.css": "t"})
        self.repository.git("submodule", "--quiet", "add", str(theme.path), "theme")
        files = {"index.html": "x", ".well-known/a": "b", "-dash ü.html": "y"}
        files |= {"config.json": "{}", "hugo.tips.md": "# Tips", "config.toml.md": "x"}
        self.repository.commit("Start", files)
        umask = os.umask(0o077)
        self.addCleanup(os.umask, umask)
        self.run_it()
        files |= {"theme/t.css": "t"}
        self.assertEqual(self.live(), {k: v.encode() for k, v in files.items()})
        for path in self.target.rglob("*"):
            mode = 0o755 if path.is_dir() else 0o644
            self.assertEqual(path.stat().st_mode & 0o777, mode)
        self.assertEqual((self.state / "work").stat().st_mode & 0o777, 0o700)

    def test_a_symbolic_link_leads_nobody_out_of_the_repository(self):
        (self.folder / "secret").write_text("SECRET")
        links = {
            "static/abs": "/etc/passwd",
            "static/rel": "../../../../secret",
            "static/git": "../.git/config",
            "static/dir": str(self.folder),
            "static/hop": "abs",
            "static/round": "about",
            "static/about": "round",
            "content/post/leak.md": "/etc/passwd",
            "content/more": str(self.folder),
        }
        for hugo in (False, True):
            if hugo:
                self.hugo_site()
            self.repository.write({"static/real.txt": "real"})
            for name, to in {**links, "static/within.txt": "real.txt"}.items():
                path = self.repository.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.symlink_to(to)
            self.repository.commit("Links")
            output = self.run_it(DEPLOY_FORCE=1)
            for name in links:
                self.assertIn(f"left out: {name} is no regular file", output)
            leaves = {name.split("/")[-1] for name in self.live()}
            self.assertFalse(leaves & {name.split("/")[-1] for name in links})
            for content in self.live().values():
                self.assertNotRegex(content, b"SECRET|root:|\\[core\\]")
            self.assertEqual(self.live().get("within.txt"), b"real" if hugo else None)

    def test_a_file_name_that_no_list_can_hold_is_refused_before_anything(self):
        for name in (b"caf\xe9.html", b"a\nb.html", b"a\x01.html"):
            self.plain()
            path = os.fsencode(self.repository.path) + b"/" + name
            with open(path, "w") as page:
                page.write("x")
            self.repository.commit("Odd")
            self.assertIn("is not UTF-8, or holds a line break", self.refused())
            self.assertEqual(self.live(), {})
            os.unlink(path)

    def test_it_works_in_its_own_folder_wherever_it_is_started(self):
        self.plain()
        other = self.new_repository("other")
        other.commit("Mine", {"mine.html": "mine"})
        other.write({"mine.html": "not committed", "new.html": "new"})
        mine = {"GIT_DIR": other.path / ".git", "GIT_WORK_TREE": other.path}
        mine |= {"GIT_INDEX_FILE": other.path / ".git/index", "CDPATH": other.path}
        state = other.path / "state"
        self.run_it(cwd=other.path, BOOP_STATE=state, **mine)
        self.assertEqual(tree(state / "public"), self.repository.files())
        other.git("remote", "add", "origin", str(self.repository.path))
        (
            state / "work/src/.git/HEAD"
        ).unlink()  # git looks for one in the folders above
        self.repository.commit("Edit", {"p1.html": "new"})
        self.run_it(BOOP_STATE=state)
        self.assertEqual(tree(state / "public"), self.repository.files())
        self.assertEqual((other.path / "mine.html").read_text(), "not committed")
        self.assertTrue((other.path / "new.html").exists())

    def test_a_target_that_would_cost_somebody_their_files_is_refused(self):
        self.plain()
        self.new_repository("checkout").commit("x", {"keep": "x"})
        here = [self.folder, self.home, self.repository.path, self.folder / "checkout"]
        state = [self.state, self.state / "work", self.state / "work/src"]
        for target in ("/", "~/", *here, *state, "gs://bucket", "s3://"):
            with self.subTest(target=target):
                self.assertIn("DEPLOY_TO", self.refused(DEPLOY_TO=target))

    def test_exactly_the_commit_asked_for_is_deployed_and_otherwise_the_tip(self):
        old = self.repository.commit("Old", {"i.html": "old"})
        self.repository.git("commit", "-q", "--amend", "-m", "Pushed over")
        self.repository.commit("New", {"i.html": "new"})
        for settings, expected in (
            ({"BOOP_EXACT": 1, "BOOP_COMMIT": old}, b"old"),
            ({"BOOP_COMMIT": old, "BOOP_TRIGGER": "push"}, b"new"),
            ({"BOOP_COMMIT": "", "BOOP_EXACT": 1}, b"new"),
        ):
            self.run_it(**settings)
            self.assertEqual(self.live()["i.html"], expected, settings)
        for commit in ("f" * 40, "--help", "main"):
            reason = self.refused(BOOP_EXACT=1, BOOP_COMMIT=commit)
            self.assertRegex(reason, "cannot fetch f{40}: .|not the name of a commit")
        self.assertEqual(self.live()["i.html"], b"new")

    def test_submodules_are_followed_when_they_change_move_and_go(self):
        theme, other = self.new_repository("theme"), self.new_repository("other")
        theme.commit("One", {"t.css": "one"})
        other.commit("Other", {"t.css": "other"})
        submodule = functools.partial(self.repository.git, "submodule", "--quiet")
        submodule("add", str(theme.path), "theme")
        self.repository.commit("Start", {"index.html": "x"})
        self.run_it()
        self.assertEqual(self.live()["theme/t.css"], b"one")
        theme.commit("Two", {"t.css": "two"})
        submodule("update", "--remote")
        self.repository.commit("Newer theme")
        self.run_it()
        self.assertEqual(self.live()["theme/t.css"], b"two")
        submodule("set-url", "theme", str(other.path))
        submodule("update", "--remote")
        self.repository.commit("Another theme")
        self.run_it()
        self.assertEqual(self.live()["theme/t.css"], b"other")
        self.repository.commit("No theme", {"theme": None})
        self.run_it()
        self.assertEqual(self.live(), {"index.html": b"x"})

    def test_the_clone_comes_back_by_itself_from_anything(self):
        self.plain()
        self.repository.git("branch", "other")
        src = self.state / "work/src"

        def scramble():
            for path in (src / ".git/objects").rglob("*"):
                if path.is_file():
                    path.chmod(0o644)
                    path.write_bytes(b"broken")

        damages = [
            lambda: (src / ".git/index.lock").touch(),
            scramble,
            lambda: self.repository.git("commit", "-q", "--amend", "-m", "Pushed over"),
            lambda: (src / ".git/index").write_bytes(b"broken"),
            lambda: (src / ".git/HEAD").unlink(),
            lambda: (src / ".git/config").write_text("[broken"),
            lambda: (src / "p0.html").write_text("tampered"),
            lambda: (src / "extra.html").write_text("extra"),
            lambda: shutil.rmtree(src / ".git"),
            lambda: (shutil.rmtree(src), src.write_text("a file")),
            lambda: shutil.rmtree(self.state / "work"),
            lambda: (self.state / "work/src.new").mkdir(),
        ]
        self.run_it()
        for number, damage in enumerate(damages):
            with self.subTest(number):
                damage()
                self.repository.commit("Edit", {"p1.html": f"edit {number}"})
                self.run_it()
                self.assertEqual(self.live(), self.repository.files())
        self.run_it(BOOP_BRANCH="other")
        self.assertEqual(self.live()["p1.html"], b"page 1")

    def test_a_repository_of_sha_256_and_one_rewritten_to_it_and_back_are_deployed(
        self,
    ):
        for number, algorithm in enumerate(("sha256", "sha1", "sha256")):
            shutil.rmtree(self.repository.path)
            option = f"--object-format={algorithm}"
            self.repository = self.new_repository("repository", option)
            tip = self.repository.commit("Start", {"index.html": f"{number}"})
            self.run_it()
            self.assertEqual(self.live(), self.repository.files())
            self.assertEqual(self.results()["commit"], tip)

    def test_a_shallow_checkout_can_be_deployed_and_deployed_again(self):
        self.plain()
        self.repository.commit("Second", {"p1.html": "2"})
        shallow, url = str(self.folder / "shallow"), f"file://{self.repository.path}"
        self.repository.git("clone", "-q", "--depth", "1", url, shallow)
        self.run_it(BOOP_REPO=shallow)
        self.repository.commit("Third", {"p1.html": "3"})
        self.repository.git("-C", shallow, "fetch", "-q", "--depth", "1")
        self.repository.git("-C", shallow, "reset", "-q", "--hard", "origin/main")
        self.run_it(BOOP_REPO=shallow)
        self.assertEqual(self.live()["p1.html"], b"3")

    def test_pictures_of_a_hugo_that_was_killed_are_not_trusted(self):
        self.hugo_site()
        self.run_it()
        half = self.state / "work/src/resources/_gen/images/half.png"
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text("half")
        self.run_it()
        self.assertTrue(half.exists())
        self.wrap("hugo", "kill -9 $$")
        self.assertEqual(self.refused(), "hugo failed: exit status 137")
        (self.bin / "hugo").unlink()
        self.run_it()
        self.assertFalse(half.exists())

    def test_a_file_that_was_lost_comes_back_and_a_tampered_one_with_full(self):
        self.plain()
        self.run_it()
        (self.target / "p0.html").unlink()
        (self.target / "p1.html").write_text("PAGE 1")
        (self.target / "p2.html").write_text("other size")
        self.run_it()
        self.assertEqual(self.live(), self.repository.files() | {"p1.html": b"PAGE 1"})
        self.run_it(DEPLOY_FULL=1)
        self.assertEqual(self.live(), self.repository.files())

    def test_a_run_waits_for_what_an_earlier_one_left_running(self):
        self.plain()
        (self.state / "work").mkdir(parents=True)
        with open(self.state / "work/lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = self.start()
            self.addCleanup(process.wait)
            self.addCleanup(process.stdout.close)
            self.assertIn("waiting for an earlier run", process.stdout.readline())
            self.assertFalse(self.target.exists())
        self.assertIn("3 uploaded", process.stdout.read())

    def test_the_log_is_a_report_and_a_subject_cannot_steer_the_terminal(self):
        self.plain()
        self.repository.commit("Fix \x1b[31mtypo\x9b")
        lines = self.run_it(BOOP_RESULT=None).splitlines()
        steps = [line.split()[0] for line in lines]
        self.assertEqual(steps, ["fetch", "build", "compare", "publish", "live"])
        for line in lines:
            self.assertRegex(line, r"^\w+ +\d+\.\d s  .")
            self.assertTrue(line.isprintable(), line)
        self.assertRegex(lines[0], r"HEAD at [0-9a-f]{7,}: Fix .*typo. \(Ann\)")

    def test_the_header_that_boop_hands_to_git_reaches_the_server_alone(self):
        self.plain()
        self.repository.git("update-server-info")
        header = "Basic " + base64.b64encode(b"ann:s3cr:et").decode()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(handler):
                if handler.headers.get_all("Authorization") != [header]:
                    handler.send_error(401)
                else:
                    super().do_GET()

            def log_message(self, *_):
                pass

        with serving(lambda *a: Handler(*a, directory=self.repository.path)) as port:
            output = self.run_it(
                BOOP_REPO=f"http://127.0.0.1:{port}/.git",
                GIT_CONFIG_COUNT=1,
                GIT_CONFIG_KEY_0=f"http.http://127.0.0.1:{port}/.extraHeader",
                GIT_CONFIG_VALUE_0=f"Authorization: {header}",
            )
        self.assertEqual(self.live(), self.repository.files())
        output += (self.state / "work/src/.git/config").read_text()
        self.assertNotIn(header.split()[1], output)


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # killed clients hang up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class S3Server:
    """The S3 server, and before it a proxy that records and can interfere.

    `before(method, key)` is called for each request: what it returns is the answer, a
    status and a body, in the server's place.
    """

    def __init__(self):
        moto = tool("moto_server", "moto[server], from PyPI")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            [moto, "-H", "127.0.0.1", "-p", str(self.port)], **quiet
        )
        until(self.answers, "the S3 server")
        self.requests, self.before = [], lambda method, key: None
        self.stack = contextlib.ExitStack()
        port = self.stack.enter_context(serving(self.handler()))
        self.url = f"http://127.0.0.1:{port}"

    def answers(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True

    def forward(self, method, path, body=b"", headers=None):
        upstream = http.client.HTTPConnection("127.0.0.1", self.port)
        upstream.request(method, path, body, headers or {"Authorization": S3_NOBODY})
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        return answer.status, answer.headers, body

    def objects(self, bucket):
        """All that is in a bucket: each key with its headers and bytes."""
        found = re.findall(b"<Key>(.*?)</Key>", self.forward("GET", f"/{bucket}")[2])
        keys = [html.unescape(key.decode()) for key in found]
        path = f"/{bucket}/%s"
        return {k: self.forward("GET", path % urllib.parse.quote(k))[1:] for k in keys}

    def handler(recorder):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urllib.parse.urlsplit(self.path)
                key = urllib.parse.unquote(url.path).partition("/")[2].partition("/")[2]
                method = "LIST" if self.command == "GET" and not key else self.command
                if self.command == "POST" and "delete" in url.query:
                    method = "DELETE"
                recorder.requests.append((method, key))
                instead = recorder.before(method, key)
                if instead:
                    self.answer(instead[0], {}, instead[1])
                    return
                self.answer(
                    *recorder.forward(self.command, self.path, body, self.headers)
                )

            def answer(self, status, headers, body):
                self.send_response_only(status)
                own = ("connection", "content-length", "transfer-encoding")
                for name, value in headers.items():
                    if name.lower() not in own:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = forward

            def log_message(self, *_):
                pass

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
    "PYENV_ROOT": os.path.expanduser("~/.pyenv"),  # an aws that is a shim of it
}
DENIED = (403, b"<Error><Code>AccessDenied</Code></Error>")
SHORT, MEDIUM = "public, max-age=60", "public, max-age=600"
LONG = "public, max-age=31536000, immutable"
JAVASCRIPT = "(text|application)/javascript"
S3_TYPES = {  # the types as regular expressions, for machines differ
    "index.html": ("text/html", SHORT),
    "feed.xml": ("(text|application)/xml", SHORT),
    "robots.txt": ("text/plain; charset=utf-8", SHORT),
    "list.json": ("application/json", SHORT),
    "site.webmanifest": (r"application/manifest\+json", SHORT),
    "style.css": ("text/css", MEDIUM),
    "app.js": (JAVASCRIPT, MEDIUM),
    "mod.mjs": (JAVASCRIPT, MEDIUM),
    "f.woff2": ("font/woff2", MEDIUM),
    "i.webp": ("image/webp", MEDIUM),
    "i.avif": ("image/avif", MEDIUM),
    "i.svg": (r"image/svg\+xml", MEDIUM),
    "i.png": ("image/png", MEDIUM),
    "favicon.ico": (r"image/(vnd\.microsoft\.icon|x-icon)", MEDIUM),
    "m.wasm": ("application/wasm", MEDIUM),
    "app.js.map": ("application/json", MEDIUM),
    "LICENSE": ("binary/octet-stream", MEDIUM),
    f"main.{'0a' * 32}.css": ("text/css", LONG),
    f"photo_hu{'0b' * 16}_10x10_resize.jpg": ("image/jpeg", LONG),
}
SMALL_SITE = {
    "index.html": "<p>home",
    "feed.xml": "<rss/>",
    "style.css": "a",
    "f.woff2": "f",
}


class DeployToS3(DeployCase):
    """Publishing to S3 with the real aws."""

    number = 0

    @classmethod
    def setUpClass(cls):
        tool("aws", "awscli")
        cls.s3 = S3Server()
        cls.addClassCleanup(cls.s3.close)

    def setUp(self):
        super().setUp()
        DeployToS3.number += 1
        self.bucket = f"bucket{self.number}"
        self.environment.update(S3_LOGIN, AWS_ENDPOINT_URL=self.s3.url)
        self.settings["DEPLOY_TO"] = f"s3://{self.bucket}"
        self.s3.before = lambda method, key: None
        self.s3.forward("PUT", f"/{self.bucket}")

    def aws(self, *arguments):
        command = ["aws", "--endpoint-url", self.s3.url, *arguments]
        return subprocess.check_output(command, env=self.environment, text=True)

    def object(self, key, method="PUT", content=b"theirs"):
        self.s3.forward(method, f"/{self.bucket}/{key}", content)

    def run_it(self, *arguments, **settings):
        self.s3.requests.clear()
        return super().run_it(*arguments, **settings)

    def sent(self, method):
        return sorted(key for name, key in self.s3.requests if name == method)

    def live(self):
        return {key: body for key, (_, body) in self.s3.objects(self.bucket).items()}

    def headers(self, key):
        headers = self.s3.objects(self.bucket)[key][0]
        return headers["Content-Type"], headers["Cache-Control"]

    def test_the_bucket_is_what_hugo_makes_and_only_what_changed_is_put(self):
        self.hugo_site()
        self.run_it()
        before = self.hugo_makes()
        self.assertEqual(self.live(), before)
        one = BLOG["content/post/one.md"].replace("First", "FIRST")
        edit = {"content/post/one.md": one}
        self.repository.commit("Edit", edit, "2024-02-03T04:05:06Z")
        self.run_it()
        after = self.hugo_makes()
        changed = sorted(name for name in after if after[name] != before.get(name))
        self.assertEqual(self.sent("PUT"), changed)
        self.repository.commit("Less", {"content/post/two.md": None})
        self.assertIn(" 1 deleted", self.run_it())
        self.assertEqual(self.live(), self.hugo_makes())

    def test_one_edit_is_one_put_and_two_aws_processes_and_nothing_is_one(self):
        self.repository.commit("Start", SMALL_SITE)
        self.run_it()
        calls = self.folder / "calls"
        self.wrap("aws", f'echo "$@" >>{calls}')
        self.repository.commit("Edit", {"index.html": "<p>HOME"})
        for puts, processes in ((["index.html"], 2), ([], 1)):
            calls.write_text("")
            self.run_it()
            self.assertEqual(self.sent("PUT"), puts)
            self.assertEqual(calls.read_text().count("\n"), processes)
            self.assertEqual(len(self.s3.requests), processes)
            self.assertEqual(self.live(), self.repository.files())

    def test_assets_are_put_before_pages_and_deletions_come_last(self):
        self.repository.commit("Old", {**SMALL_SITE, "old.css": "o", "old.html": "o"})
        self.run_it()
        assets = {"z.css": "new", f"z.{'ab' * 16}.js": "new", "z.woff2": "new"}
        pages = {"a.html": "new", "index.html": "new", "feed.xml": "new"}
        gone = {"old.css": None, "old.html": None}
        self.repository.commit("New", {**assets, **pages, **gone})
        self.run_it()
        order = [key for method, key in self.s3.requests if method == "PUT"]
        self.assertEqual(set(order[:3]), set(assets))
        self.assertEqual(set(order[3:]), set(pages))
        self.assertEqual(self.s3.requests[-1][0], "DELETE")
        self.assertEqual(len(self.sent("DELETE")), 1)
        self.assertEqual(self.live(), self.repository.files())

    def test_killed_at_any_request_the_next_run_ends_with_exactly_the_site(self):
        self.repository.commit("Start", {**SMALL_SITE, "gone.html": "x"})
        self.run_it()
        edit = {name: content.upper() for name, content in SMALL_SITE.items()}
        del edit["f.woff2"]
        edit |= {"gone.html": None, "new.html": "new", "new.css": "new"}
        self.repository.commit("Edit", edit)
        self.repository.git("branch", "edited")
        for victim in ("new.css", "feed.xml", "DELETE"):
            with self.subTest(victim):
                process = self.start()

                def kill(method, key, victim=victim, process=process):
                    if victim in (key if method == "PUT" else "", method):
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGKILL)

                self.s3.before = kill
                process.communicate(timeout=60)
                self.assertEqual(process.returncode, -signal.SIGKILL)
                self.s3.before = lambda method, key: None
                self.repository.git("reset", "-q", "--hard", "HEAD~1")
                self.repository.commit(
                    "Most is gone", dict.fromkeys(list(SMALL_SITE)[1:])
                )
                self.assertIn("lost 3 of its 5", self.refused())
                self.assertEqual(self.sent("PUT") + self.sent("DELETE"), [])
                self.repository.git("reset", "-q", "--hard", "HEAD~1")  # and reverted
                self.run_it()
                self.assertEqual(self.live(), self.repository.files())
                self.repository.git("reset", "-q", "--hard", "edited")

    def test_a_failed_upload_or_deletion_fails_and_is_made_up_for(self):
        self.repository.commit("Start", {**PLAIN, "old one.html": "x", "old.css": "x"})
        self.run_it()
        edit = {
            "a.css": "new",
            "p1.html": "PAGE",
            "old one.html": None,
            "old.css": None,
        }
        self.repository.commit("Edit", edit)
        self.s3.before = lambda method, key: DENIED if key == "a.css" else None
        self.assertRegex(self.refused(), r"^cannot publish to .*a\.css.*AccessDenied")
        self.assertEqual(self.sent("DELETE") + self.sent("PUT"), ["a.css"])
        self.repository.commit("Less", {"a.css": None})  # which boop may have put there
        failed = b"<Error><Key>old one.html</Key><Code>AccessDenied</Code></Error>"
        answer = (200, b"<DeleteResult>" + failed + b"</DeleteResult>")
        self.s3.before = lambda method, key: answer if method == "DELETE" else None
        reason = self.refused()
        self.assertRegex(reason, "^cannot delete in .*AccessDenied.old one.html$")
        self.assertEqual(self.sent("PUT"), ["p1.html"])
        self.s3.before = lambda method, key: None
        self.assertIn("2 deleted", self.run_it())
        self.assertEqual(self.live(), self.repository.files())

    def test_a_bucket_that_cannot_be_listed_fails_before_anything_is_sent(self):
        self.repository.commit("Start", SMALL_SITE)
        self.s3.before = lambda method, key: DENIED if method == "LIST" else None
        self.run_it(status=1)
        self.assertRegex(self.results()["reason"], "^cannot list s3:.*AccessDenied")
        self.assertEqual(self.sent("PUT"), [])

    def test_every_file_has_its_type_and_pages_are_cached_short_fingerprints_long(self):
        self.repository.commit("Start", dict.fromkeys(S3_TYPES, "x"))
        self.run_it()
        self.assertEqual(self.live(), self.repository.files())
        for key, (types, cache) in S3_TYPES.items():
            with self.subTest(key):
                got = self.headers(key)
                self.assertRegex(got[0], f"^{types}$")
                self.assertEqual(got[1], cache)

    def test_a_missing_object_comes_back_with_its_headers_and_full_overrules_the_rest(
        self,
    ):
        self.repository.commit("Start", SMALL_SITE)
        self.run_it()
        self.object("f.woff2", "DELETE")
        self.object("index.html", content=b"<p>HACK")
        self.run_it()
        self.assertEqual(self.sent("PUT"), ["f.woff2"])
        self.assertEqual(self.headers("f.woff2"), ("font/woff2", MEDIUM))
        self.run_it(DEPLOY_CACHE_CONTROL="no-cache")  # the old headers are not trusted
        self.assertEqual(self.headers("index.html")[1], "no-cache")
        self.assertEqual(self.headers("style.css")[1], MEDIUM)
        self.object("index.html", content=b"<p>HACK")
        self.run_it(DEPLOY_CACHE_CONTROL="no-cache", DEPLOY_FULL=1)
        self.assertEqual(self.live(), self.repository.files())

    def test_what_is_not_boops_in_a_bucket_is_neither_read_nor_touched(self):
        theirs = ["a/x", "a/b2/x", "a/b.html", "b/x", *(f"d{n}.sql" for n in range(5))]
        for key in theirs:
            self.object(key)
        self.repository.commit("Start", {"index.html": "x", "old.html": "o"})
        below = {"DEPLOY_TO": f"s3://{self.bucket}/a/b/"}
        self.assertNotIn("not boop's", self.run_it(**below))
        self.repository.commit("Less", {"old.html": None})
        below = {"DEPLOY_TO": f"s3://{self.bucket}/a/b"}
        self.assertIn("0 uploaded, 1 deleted", self.run_it(**below))
        self.assertIn("10 files here are not boop's", self.run_it())
        self.assertIn("1 uploaded", self.run_it(DEPLOY_FULL=1))
        expected = dict.fromkeys(theirs, b"theirs")
        expected |= {"a/b/index.html": b"x", "index.html": b"x"}
        self.assertEqual(self.live(), expected)
        self.run_it(DEPLOY_FORCE=1)
        self.assertEqual(self.live(), self.repository.files())

    def test_odd_names_are_kept_and_deleted(self):
        names = ["-dash.html", "with space.html", "ünï.html", "a+b&c.css", "100%.html"]
        names += ["quo'te\".html", "tab\t.html", "back\\slash.html", "$(id).html"]
        names += ["*.html", "[x].css", ".hidden", "dir with space/x.html", "x.", "x.]"]
        self.repository.commit("Start", {name: name for name in names})
        self.run_it()
        self.assertEqual(self.live(), self.repository.files())
        self.run_it()
        self.assertEqual({method for method, _ in self.s3.requests}, {"LIST"})
        gone = (f":(literal){name}" for name in names[:-1])
        self.repository.git("rm", "-q", "--", *gone)
        self.repository.commit("Less")
        self.run_it(DEPLOY_FORCE=1)
        self.assertEqual(self.live(), {names[-1]: names[-1].encode()})

    def test_cloudfront_is_told_once_and_only_when_something_changed(self):
        self.repository.commit("Start", SMALL_SITE)
        domain = ["--origin-domain-name", "x.s3.amazonaws.com", "--output", "json"]
        made = json.loads(self.aws("cloudfront", "create-distribution", *domain))
        settings = {"DEPLOY_CLOUDFRONT": made["Distribution"]["Id"]}
        self.run_it(**settings)
        self.repository.commit("Less", {"feed.xml": None})
        self.s3.before = lambda _, key: DENIED if "invalidation" in key else None
        self.assertIn("cannot invalidate", self.refused(**settings))
        self.s3.before = lambda method, key: None
        for expected in (1, 0):  # the one that failed is made up for
            self.run_it(**settings)
            self.assertEqual(len(self.sent("POST")), expected)
        self.repository.commit("Edit", {"index.html": "new"})
        self.run_it(**settings)
        self.assertEqual(len(self.sent("POST")), 1)


class WholeWayToS3(Case):
    """The same, to a bucket: whatever is built is in it, and nothing else."""

    built, push = WholeWay.built, WholeWay.push

    def test_a_push_makes_the_bucket_what_hugo_makes_of_the_commit(self) -> None:
        tool("hugo", "hugo")
        tool("aws", "awscli")
        server = S3Server()
        self.addCleanup(server.close)
        server.forward("PUT", "/a-site")
        checkout = site(self.folder, HUGO_SITE)
        b = self.boop(
            BOOP_SCRIPT=str(HERE / "deploy.sh"),
            BOOP_REPO=f"{self.folder}/origin.git",
            DEPLOY_TO="s3://a-site/blog",
            AWS_ENDPOINT_URL=server.url,
            **S3_LOGIN,
        )
        b.said("deployment 1: (success|fail)")
        git(checkout, "rm", "-q", "content/posts/one.md")
        self.push(b, checkout, {"content/two.md": "---\ntitle: Two\n---\nText"})
        live = {f"blog/{name}": body for name, body in self.built(checkout).items()}
        found = server.objects("a-site").items()
        self.assertEqual({key: body for key, (_, body) in found}, live)


# --- The unit, under a real systemd ---------------------------------------------------

BOOTED = "BOOP_TEST_BOOTED"  # set inside of the booted system
WITH_SYSTEMD = pathlib.Path(
    os.environ.get("BOOP_TEST_SYSTEMD") or HERE.parent / "shared" / "with-systemd"
)  # boots systemd in namespaces on a throwaway copy of /, and runs a command in there
HAS_SYSTEMD = os.geteuid() == 0 and os.access(WITH_SYSTEMD, os.X_OK)
SITE = {
    "hugo.toml": 'baseURL = "https://example.org/"\n',
    "config.toml": 'baseURL = "https://example.org/"\n',  # for hugo before 0.110
    "layouts/index.html": "<h1>{{ range .Site.Pages }}{{ .Title }} {{ end }}</h1>\n",
    "layouts/_default/single.html": "{{ .Content }}\n",
    "content/hello.md": "---\ntitle: Hello\n---\nWorld\n",
}


def booted(test: typing.Callable[[Unit], None]) -> typing.Callable[[Unit], None]:
    """Runs a test as root of a system that is booted for it, and thrown away."""
    if os.environ.get(BOOTED):
        return test

    @functools.wraps(test)
    def boot(self: Unit) -> None:
        env = [f"{BOOTED}=1", *(f"{k}={os.environ.get(k, '')}" for k in ("CI", "PATH"))]
        name = f"{type(self).__name__}.{test.__name__}"
        command = [sys.executable, str(HERE / "test_boop.py"), "-v", name]
        done = subprocess.run(
            ["timeout", str(10 * LIMIT_S), WITH_SYSTEMD, *env, *command],
            env={**os.environ, "WS_BIND": str(HERE)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if skipped := re.search(r"skipped '(.*)'", done.stdout):
            self.skipTest(skipped[1])
        self.assertEqual(done.returncode, 0, done.stdout)

    return boot


def systemctl(*args: str, check: bool = True) -> str:
    """systemctl's output; its errors, too."""
    done = subprocess.run(
        ["systemctl", *args],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * LIMIT_S,
    )
    if check and done.returncode:
        raise AssertionError(f"systemctl {args}: {done.stdout}{journal('-n', '50')}")
    return done.stdout


def journal(*args: str) -> str:
    subprocess.run(["journalctl", "--sync"], check=True)
    done = subprocess.run(["journalctl", *args], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode("utf-8", "replace")


class Unit(Case):
    """boop.service as README installs it: /opt/boop, /etc/boop.env."""

    STATE = pathlib.Path("/var/lib/private/boop")
    ENV = pathlib.Path("/etc/boop.env")

    def install(self, script: str = "", dropin: str = "", **settings: str) -> None:
        """Installs boop, with deploy.sh or a script of the test's own."""
        opt = pathlib.Path("/opt/boop")
        opt.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in ("boop.py", "boop.service", "deploy.sh"):
            shutil.copy(HERE / name, opt)
        subprocess.run(["/usr/bin/python3", "-m", "compileall", "-q", opt], check=True)
        shutil.copy(HERE / "boop.service", "/etc/systemd/system")
        if script:
            path = opt / "script"
            path.write_text(f"#!/bin/bash\n{textwrap.dedent(script)}\n")
            path.chmod(0o755)
            settings["BOOP_SCRIPT"] = str(path)
        self.ENV.touch(mode=0o600)
        lines = {"BOOP_SECRET": f'"{SECRET}"', **settings}
        self.ENV.write_text("".join(f"{k}={v}\n" for k, v in lines.items()))
        self.drop_in(dropin)
        self.client = Daemon(self.folder)
        self.client.port = 8080

    def start(self, script: str = "", dropin: str = "", **settings: str) -> Daemon:
        """Installs and starts boop; as a client of it."""
        self.install(script, dropin, **settings)
        systemctl("start", "boop")
        return self.client

    def drop_in(self, text: str) -> None:
        """As `systemctl edit boop` does it."""
        folder = pathlib.Path("/etc/systemd/system/boop.service.d")
        folder.mkdir(exist_ok=True)
        (folder / "override.conf").write_text(f"[Service]\n{textwrap.dedent(text)}\n")
        systemctl("daemon-reload")

    def shown(self, name: str) -> str:
        return systemctl("show", "--property", name, "--value", "boop").strip()

    def journal(self) -> list[dict[str, str]]:
        """boop's own lines."""
        lines = journal("-t", "boop", "-o", "json").splitlines()
        return [json.loads(line) for line in lines]

    def restarted(self) -> None:
        """Waits until systemd has restarted boop, on its own, and it is ready."""
        until(lambda: self.shown("NRestarts") != "0", "a restart")
        until(lambda: self.shown("ActiveState") == "active", "readiness")

    def results(self) -> dict[int, tuple[str, str]]:
        return {d["number"]: (d["status"], d["trigger"]) for d in self.client.records()}

    def served(self, folder: pathlib.Path, port: int) -> str:
        """A folder over https, as plain files; its address."""
        pem = pathlib.Path("/etc/ssl/boop-test.pem")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
        name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
        to = ("-nodes", "-keyout", str(pem), "-out", f"{pem}.crt")
        subprocess.run(
            [tool("openssl", "openssl"), "req", "-x509", *curve, *name, *to],
            check=True,
            capture_output=True,
        )
        pem.write_text(pem.read_text() + pathlib.Path(f"{pem}.crt").read_text())
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"https://localhost:{port}"

    def hugo_site(self) -> pathlib.Path:
        """A bare repository of a Hugo site; root's, as a forge's own user would be."""
        tool("hugo", "hugo")
        folder = pathlib.Path("/srv/git")
        folder.mkdir(mode=0o755)
        self.checkout = site(folder, SITE)
        return folder / "origin.git"

    def caught_up(self) -> dict:
        """The first deployment, which nobody pushed: at its end."""
        until(self.client.records, "the catch-up")
        record = self.client.finished(1)
        log = self.client.log(1)
        self.assertEqual(record["status"], "success", f"{record}\n{log}")
        self.assertEqual(record["trigger"], "catch-up")
        return record

    # Starting and stopping

    @booted
    def test_it_is_ready_when_systemd_says_so(self) -> None:
        self.install()
        for _ in range(3):
            systemctl("restart", "boop")
            self.assertEqual(self.client.get("/healthz").status, 200)
        systemctl("stop", "boop")
        self.assertEqual(self.shown("Result"), "success")
        self.assertEqual(self.shown("ExecMainStatus"), "0")

    @booted
    def test_what_is_killed_comes_back_and_nothing_accepted_is_lost(self) -> None:
        on = self.STATE / "work" / "on"
        b = self.start('[ "$BOOP_NUMBER" != 1 ] || { touch on; sleep 1000; }')
        b.push()
        until(on.exists, "the script")
        b.push("2" * 40)
        systemctl("kill", "--kill-who=main", "--signal=KILL", "boop")
        self.restarted()
        self.assertEqual(b.finished(2)["commit"], "2" * 40)
        self.assertEqual(self.results()[1][0], "fail")
        self.assertEqual(self.results()[2], ("success", "push"))
        self.assertNotIn("sleep", systemctl("status", "boop"))  # nothing was left over

    @booted
    def test_a_run_that_was_killed_is_run_again(self) -> None:
        on = self.STATE / "work" / "on"
        b = self.start('[ "$BOOP_NUMBER" != 1 ] || { touch on; sleep 1000; }')
        b.push()
        until(on.exists, "the script")
        systemctl("kill", "--kill-who=main", "--signal=KILL", "boop")
        self.restarted()
        b.finished(2)
        self.assertEqual(self.results()[2], ("success", "interrupted"))

    @booted
    def test_a_hang_is_ended_by_the_watchdog(self) -> None:
        b = self.start("exit 0", "WatchdogSec=1")
        fed = "WatchdogTimestampMonotonic"
        first = self.shown(fed)
        until(lambda: self.shown(fed) != first, "a sign of life")
        systemctl("kill", "--kill-who=main", "--signal=STOP", "boop")
        self.restarted()
        self.assertIn("Watchdog timeout", journal("-u", "boop"))
        self.assertEqual(b.deploy()["status"], "success")

    @booted
    def test_a_restart_during_a_deployment_loses_nothing(self) -> None:
        on = self.STATE / "work" / "on"
        b = self.start(
            """
            [ "$BOOP_NUMBER" = 1 ] || exit 0
            setsid bash -c 'trap "touch hit" TERM; touch on; sleep 999 & wait' >&- 2>&- &
            trap 'echo cleaned up; exit 0' TERM
            sleep 1000 & wait
            """
        )
        b.push()
        until(on.exists, "the script")
        systemctl("restart", "boop")
        self.assertIn("cleaned up\n", b.log(1))
        self.assertFalse(on.with_name("hit").exists())  # SIGTERM is for boop alone
        self.assertNotIn("sleep", systemctl("status", "boop"))
        self.assertEqual(b.record(1)["reason"], "interrupted: boop was stopped")
        b.finished(2)
        self.assertEqual(self.results()[2], ("success", "interrupted"))
        self.assertEqual(self.shown("Result"), "success")

    @booted
    def test_bad_settings_stop_it_for_good(self) -> None:
        self.install(BOOP_PORT="http", BOOP_KEEP="-1")
        systemctl("start", "boop", check=False)
        self.assertEqual(self.shown("ExecMainStatus"), "78")
        self.assertEqual(self.shown("ActiveState"), "failed")  # not "activating"
        self.assertEqual(self.shown("NRestarts"), "0")
        errors = [x["MESSAGE"] for x in self.journal() if x["PRIORITY"] == "3"]
        self.assertRegex("\n".join(errors), "(?s)BOOP_PORT.*BOOP_KEEP")

    @booted
    def test_without_its_settings_it_starts_and_says_what_it_lacks(self) -> None:
        self.install()
        self.ENV.unlink()
        systemctl("start", "boop")
        self.assertEqual(self.client.hook(github_push()).status, 503)
        warnings = [x["MESSAGE"] for x in self.journal() if x["PRIORITY"] == "4"]
        self.assertRegex("\n".join(warnings), "(?s)BOOP_SECRET.*BOOP_REPO")

    @booted
    def test_a_taken_port_is_tried_until_it_is_free(self) -> None:
        other = socket.create_server(("127.0.0.1", 8080))
        self.install(dropin="RestartSec=10ms")
        systemctl("start", "--no-block", "boop")
        until(lambda: int(self.shown("NRestarts")) > 7, "restarts past systemd's limit")
        other.close()
        until(lambda: self.shown("ActiveState") == "active", "readiness")
        self.assertEqual(self.client.get("/healthz").status, 200)

    @booted
    def test_with_the_socket_no_request_is_refused_over_three_restarts(self) -> None:
        self.install("exit 0")
        unit = readme_block("[Socket]")
        self.assertEqual(len([line for line in unit.splitlines() if line]), 6)
        pathlib.Path("/etc/systemd/system/boop.socket").write_text(unit)
        systemctl("daemon-reload")
        systemctl("start", "boop.socket")
        over, answers, wrong = threading.Event(), [0], []

        def ask() -> None:
            while not over.is_set():
                try:
                    status = self.client.hook(github_push()).status
                    answers[0] += 1
                    if status != 202:
                        wrong.append(status)
                except (OSError, http.client.HTTPException) as error:
                    wrong.append(error)

        self.addCleanup(over.set)
        clients = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for client in clients:
            client.start()
        numbers = []
        for _ in range(3):
            before = answers[0]
            systemctl("restart", "boop")
            numbers.append(self.client.push())
            until(lambda before=before: answers[0] > before + 20, "answers")
        over.set()
        for client in clients:
            client.join()
        self.assertEqual(wrong, [])
        self.assertEqual(numbers, sorted(numbers))

    @booted
    def test_a_reload_looks_at_the_branch(self) -> None:
        origin = self.hugo_site()
        b = self.start("exit 0", BOOP_REPO=str(origin))
        self.caught_up()
        tip = commit(self.checkout, {"content/new.md": "---\ntitle: New\n---\n"})
        git(self.checkout, "push", "-q", "origin", "main")
        systemctl("reload", "boop")
        until(lambda: len(b.records()) > 1, "the catch-up")
        self.assertEqual(b.finished(2)["commit"], tip)
        self.assertEqual(self.shown("ActiveState"), "active")
        self.assertEqual(self.shown("NRestarts"), "0")

    @booted
    def test_the_unit_leaves_boop_the_time_that_it_may_take(self) -> None:
        self.start("exit 0")
        seconds = {"s": 1, "min": 60}

        def span(name: str) -> int:
            parts = re.findall(r"(\d+)(min|s)", self.shown(name))
            return sum(int(number) * seconds[unit] for number, unit in parts)

        self.assertGreater(span("TimeoutStopUSec"), boop.GRACE_S + boop.GIT_TIMEOUT_S)
        self.assertGreater(span("WatchdogUSec") / 2, 2 * boop.GIT_TIMEOUT_S)

    # What is seen of it

    @booted
    def test_status_and_journal_make_sense(self) -> None:
        b = self.start("exit 3")
        b.deploy()
        b.hook(github_push(), X_Hub_Signature_256="sha256=" + "0" * 64)
        until(lambda: "exit status 3" in self.shown("StatusText"), "the last result")
        self.assertRegex(systemctl("status", "boop"), "Status: .*1: exit status 3")
        lines = self.journal()
        said = "\n".join(f"{x['PRIORITY']} {x['MESSAGE']}" for x in lines)
        self.assertRegex(said, r"(?m)^6 deployment 1: push, branch main")
        self.assertRegex(said, r"(?m)^5 deployment 1: fail .*exit status 3")
        self.assertRegex(said, r"(?m)^[45] .*401.*X-Hub-Signature-256")
        self.assertNotRegex(said, r"(?m)^\d (<\d>|\d{4}-\d\d-\d\d)")  # no time, no <6>

    @booted
    def test_the_unit_is_clean_and_its_exposure_at_most_1_2(self) -> None:
        self.install()
        for command in (
            ["verify", "/etc/systemd/system/boop.service"],
            ["security", "--no-pager", "--threshold=12", "boop.service"],
        ):
            done = subprocess.run(
                ["systemd-analyze", *command],
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertNotIn("/boop.service:", done.stdout)  # a name it does not know
        level = re.search(r"exposure level .*: ([\d.]+)", done.stdout)
        self.assertLessEqual(float(level[1]), 1.2)

    # The sandbox

    @booted
    def test_the_script_reaches_nothing_but_its_own(self) -> None:
        subprocess.run(
            "ip addr add 169.254.169.254/32 dev lo && echo >/root/x && echo >/home/x",
            shell=True,
            check=True,
        )
        metadata = socket.create_server(("169.254.169.254", 80))
        self.addCleanup(metadata.close)
        b = self.start(
            """
            try() { if "$@" >/dev/null 2>&1; then echo "CAN: $*"; fi; }
            try touch /opt/boop/x; try touch /etc/x; try touch /usr/x; try touch /var/x
            try cat /etc/boop.env; try cat /root/x; try cat /home/x
            try cat /proc/1/cmdline; try cat /proc/meminfo; try unshare -U true
            try timeout 2 bash -c ': </dev/tcp/169.254.169.254/80'
            try journalctl -n 1 --quiet; try mount -t tmpfs x /tmp; try chmod u+s .
            touch ok "$HOME/ok" "$XDG_CACHE_HOME/ok" /tmp/ok && echo fine
            id -un
            """
        )
        log = b.log(b.deploy()["number"])
        self.assertNotIn("CAN", log)
        self.assertIn("\nfine\nboop\n", log)

    @booted
    def test_the_whole_way_from_https_to_a_folder(self) -> None:
        origin = self.hugo_site()
        git(origin, "update-server-info")
        repo = f"{self.served(origin.parent, 8443)}/origin.git"
        crt = "/etc/ssl/boop-test.pem.crt"
        self.start(BOOP_REPO=repo, GIT_SSL_CAINFO=crt)
        self.caught_up()
        index = self.STATE / "public" / "index.html"
        self.assertIn("Hello", index.read_text())
        self.assertNotIn("warning", self.client.log(1))

    @booted
    def test_the_whole_way_from_ssh_with_a_deploy_key(self) -> None:
        sshd = tool("sshd", "openssh-server")
        keygen = tool("ssh-keygen", "openssh-client")
        origin = self.hugo_site()
        for name in ("/etc/boop.key", "/etc/host.key"):
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", name]
            subprocess.run(command, check=True)
        known = pathlib.Path("/etc/host.key.pub").read_text()
        pathlib.Path("/etc/boop.known_hosts").write_text(f"[localhost]:2222 {known}")
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        options = [
            "Port=2222",
            "HostKey=/etc/host.key",
            "AuthorizedKeysFile=/etc/boop.key.pub",
            "StrictModes=no",
            "UsePAM=no",
        ]
        flags = [x for option in options for x in ("-o", option)]
        subprocess.run([sshd, "-f", "/dev/null", *flags], check=True)
        ssh = (
            "ssh -i $CREDENTIALS_DIRECTORY/deploy_key -o BatchMode=yes"
            " -o UserKnownHostsFile=/etc/boop.known_hosts"
        )
        self.assertIn(f"GIT_SSH_COMMAND='{ssh}'", README.read_text())
        self.start(
            dropin="LoadCredential=deploy_key:/etc/boop.key",
            BOOP_REPO=f"ssh://root@localhost:2222{origin}",
            GIT_SSH_COMMAND=f"'{ssh}'",
        )
        self.caught_up()
        self.assertIn("Hello", (self.STATE / "public" / "index.html").read_text())

    @booted
    def test_the_whole_way_to_s3(self) -> None:
        if not shutil.which("aws", path=os.defpath):
            tool("no aws in /usr/bin", "awscli")
        moto = tool("moto_server", "'moto[server]' (pip)")
        origin = self.hugo_site()
        server = subprocess.Popen(
            [moto, "-p", "5000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        until(lambda: taken(5000), "S3")
        s3 = {
            "AWS_ENDPOINT_URL": "http://127.0.0.1:5000",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "testing!",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

        def aws(*args: str) -> str:
            url = ("--endpoint-url", s3["AWS_ENDPOINT_URL"])
            return subprocess.run(
                ["/usr/bin/aws", *url, *args],
                env={**os.environ, **s3},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout

        aws("s3", "mb", "s3://site")
        self.start(BOOP_REPO=f"file://{origin}", DEPLOY_TO="s3://site/blog", **s3)
        self.caught_up()
        self.assertIn("Hello", aws("s3", "cp", "s3://site/blog/index.html", "-"))
        self.assertNotIn("testing!", self.client.log(1))

    @booted
    def test_a_local_web_server_can_read_the_site(self) -> None:
        origin = self.hugo_site()
        subprocess.run(["groupdel", "boop"], check=False, capture_output=True)
        for command in readme_block("adduser").splitlines():
            subprocess.run(command, shell=True, check=True, capture_output=True)
        self.start(
            dropin="ReadWritePaths=/var/www/site",
            BOOP_REPO=str(origin),
            DEPLOY_TO="/var/www/site",
        )
        self.caught_up()
        reader = ["setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups"]
        read = [*reader, "cat", "/var/www/site/index.html"]
        done = subprocess.run(read, check=True, capture_output=True, text=True)
        self.assertIn("Hello", done.stdout)

    @booted
    def test_a_copied_unit_is_a_second_site(self) -> None:
        b = self.start("exit 0")
        blog = pathlib.Path("/etc/boop-blog.env")
        blog.write_text(self.ENV.read_text() + "BOOP_PORT=8081\n")
        copy = readme_block("sed ").splitlines()[:2]  # cd …, sed …
        subprocess.run("\n".join(copy), shell=True, check=True)
        systemctl("daemon-reload")
        systemctl("start", "boop-blog")
        second = Daemon(self.folder)
        second.port = 8081
        self.assertEqual(second.deploy()["status"], "success")
        self.assertEqual(b.records(), [])
        self.assertTrue(
            pathlib.Path("/var/lib/private/boop-blog/deployments.jsonl").exists()
        )

    @booted
    def test_secrets_may_be_credentials(self) -> None:
        pathlib.Path("/etc/boop.secret").write_text(f"{SECRET}\n")
        self.install("cat /proc/self/environ | tr '\\0' '\\n'")
        self.ENV.write_text("BOOP_SCRIPT=/opt/boop/script\n")
        self.drop_in("LoadCredential=BOOP_SECRET:/etc/boop.secret")
        systemctl("start", "boop")
        record = self.client.deploy()
        self.assertEqual(record["status"], "success")
        for name in ("BOOP_SECRET", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
            self.assertNotIn(name, self.client.log(1))


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


# --- Faults: what the tests share -----------------------------------------------------


class Footprint(typing.NamedTuple):
    """What a process holds, proc(5)."""

    descriptors: int
    threads: int
    rss_kb: int
    peak_kb: int


def footprint(pid: int) -> Footprint:
    text = status_of(pid)
    threads, rss, peak = (
        int(re.search(rf"{name}:\s+(\d+)", text)[1])
        for name in ("Threads", "VmRSS", "VmHWM")
    )
    return Footprint(len(os.listdir(f"/proc/{pid}/fd")), threads, rss, peak)


def sockets_of(b: Daemon) -> int:
    """Connections that boop holds (the listener is not one)."""
    fds = f"/proc/{b.process.pid}/fd"
    links = []
    for fd in os.listdir(fds):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"{fds}/{fd}"))
    return sum(link.startswith("socket:") for link in links) - 1


def patched(daemon: Daemon, **constants: float) -> Daemon:
    """The daemon with other limits, so that nobody waits a minute for a deadline."""
    daemon.patch(*(f"boop.{name} = {value!r}" for name, value in constants.items()))
    return daemon


def over(b: Daemon) -> bool:
    """Has every deployment ended?"""
    return all(d["status"] in ("success", "fail") for d in b.records())


def push_request(payload: object = None, path: str = "/deploy", **more: str) -> bytes:
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
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def elsewhere(repo: str, branch: str) -> dict:
    """A push to a repository and its default branch."""
    repository = github_push()["repository"]
    repository |= {"clone_url": repo, "default_branch": branch}
    return github_push(branch, repository=repository)


GITLAB_PUSH = {
    "ref": "refs/heads/main",
    "after": "1" * 40,
    "user_name": "Ann",
    "project": {"default_branch": "main", "git_http_url": "https://h/a/b.git"},
    "commits": [{"id": "1" * 40, "message": "x", "author": {"name": "Ann"}}],
}
TARGET = {"hash": "1" * 40, "message": "x", "author": {"raw": "A <a@b>"}}
CHANGE = {"closed": False, "new": {"type": "branch", "name": "m", "target": TARGET}}
BITBUCKET_PUSH = {"repository": {"full_name": "a/b"}, "push": {"changes": [CHANGE]}}


def statuses(answer: bytes) -> list[int]:
    """Those of all the responses in what came back."""
    return [int(s) for s in re.findall(rb"(?m)^HTTP/1\.[01] (\d{3}) ", answer)]


class Faults(Case):
    """Stories that are told several times, each with something else going wrong."""

    @contextlib.contextmanager
    def afresh(self, name: object) -> typing.Iterator[None]:
        """A subtest with a folder of its own."""
        with self.subTest(name):
            yield
        self.doCleanups()
        self.setUp()

    def kill_later(self, pid: int) -> int:
        """Ends a process after the test, if boop has not."""

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        self.addCleanup(kill)
        return pid


# --- A 202 is a promise ---------------------------------------------------------------


class Soak:
    """Kills boop at random moments under load, and accounts for every 202.

    A push is lost if no run of the script for its repository and branch, which ended
    well, started after the push was sent. (Not: after its 202 was received. The run
    may start while the 202 is on its way.)
    """

    SCRIPT = """
        exec 9>>../lock
        flock -n 9 || echo "overlap $BOOP_NUMBER - - 0" >> ../ledger
        trap 'sleep 0.1; exit 1' TERM
        echo "start $BOOP_NUMBER $BOOP_REPO $BOOP_BRANCH $EPOCHREALTIME" >> ../ledger
        sleep 0.0$((RANDOM % 10)) & wait $!
        """
    REPOS = "https://h.example/one", "https://h.example/two"
    BRANCHES = "main", "live", "next"

    def __init__(self, folder: pathlib.Path) -> None:
        self.boop = Daemon(folder, self.SCRIPT, BOOP_KEEP="1000000")
        self.boop.port = 1  # where nobody listens, until boop does
        self.over = threading.Event()
        self.accepted: list[tuple[str, str, float, int]] = []
        self.wrong: list[str] = []
        self.kills = self.lost = self.runs = 0

    def __str__(self) -> str:
        return (
            f"soak: {self.kills} kills, {len(self.accepted)} pushes accepted,"
            f" {self.runs} runs, {self.lost} lost, {len(self.wrong)} wrong"
        )

    def run(self, seconds: float) -> Soak:
        pushers = [threading.Thread(target=self._pushes) for _ in range(4)]
        for thread in pushers:
            thread.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                self._live_and_die()
        finally:
            self.over.set()
            for thread in pushers:
                thread.join()
        self.boop.start()
        until(lambda: over(self.boop), "the end of the last run")
        self._note_end(*self.boop.stop())
        self._account()
        return self

    def _live_and_die(self) -> None:
        """One life of boop; some end while it starts, some by SIGTERM."""
        early, stop = random.random() < 0.25, random.random() < 0.2
        self.boop.start(listening=not early)
        self.over.wait(random.random() * (0.15 if early else 0.4))
        self.kills += not stop
        self._note_end(*self.boop.stop(signal.SIGTERM if stop else signal.SIGKILL))

    def _note_end(self, status: int, said: str) -> None:
        """-15: a SIGTERM before boop has installed a handler for it."""
        if status not in (0, -signal.SIGKILL, -signal.SIGTERM):
            self.wrong.append(f"boop ended by itself with {status}: {said}")
        self.wrong += [s for s in said.splitlines() if re.search("Traceback|Error", s)]

    def _pushes(self) -> None:
        while not self.over.wait(random.random() * 0.02):
            repo, branch = random.choice(self.REPOS), random.choice(self.BRANCHES)
            sent = time.time()
            try:
                answer = self.boop.hook(elsewhere(repo, branch))
            except (OSError, http.client.HTTPException):
                continue  # between two lives
            if answer.status == 202:
                number = answer.json["deployment"]
                self.accepted.append((repo, branch, sent, number))
            else:
                self.wrong.append(f"answered {answer.status}: {answer.text}")

    def _account(self) -> None:
        records = {d["number"]: d for d in self.boop.journal()}
        last: dict[tuple[str, str], float] = {}  # when the last good run started
        for line in (self.boop.state / "ledger").read_text().splitlines():
            what, number, repo, branch, when = line.split()
            if what == "overlap":
                self.wrong.append(f"{number} was run beside another")
                continue
            self.runs += 1
            if records[int(number)]["status"] == "success":
                last[repo, branch] = float(when)
        for repo, branch, sent, number in self.accepted:
            self.lost += sent > last.get((repo, branch), 0)
            found = records.get(number, {"repo": None, "branch": None})
            if (found["repo"], found["branch"]) != (repo, branch):
                self.wrong.append(f"{number} was promised to {branch} of {repo}")
        for d in records.values():
            interrupted = (d["reason"] or "").startswith("interrupted")
            if d["status"] != "success" and not interrupted:
                self.wrong.append(f"{d['number']} is {d['status']}: {d['reason']}")
        if sorted(records) != list(range(1, len(records) + 1)):
            self.wrong.append("a number was skipped")


class Promises(Faults):
    """kill -9, and what it leaves running."""

    def test_kill_9_at_random_moments_loses_no_202_and_overlaps_no_run(self) -> None:
        tool("flock", "util-linux")
        soak = Soak(self.folder).run(6)
        print(soak, file=sys.stderr)
        self.assertEqual(soak.wrong, [], soak)
        self.assertEqual(soak.lost, 0, soak)
        self.assertGreater(min(soak.kills, len(soak.accepted), soak.runs), 5, soak)

    def orphan(self, body: str, **constants: float) -> tuple[Daemon, int]:
        """A boop killed while its first run stands in body; the run's process."""
        b = patched(self.daemon(), **constants)
        path = b.state / "orphan"
        b.write_script(
            f"""
            [ "$BOOP_NUMBER" = 1 ] || {{
                grep -qs "^State:.[^Z]" /proc/$(<{path})/status && echo both
                exit 0
            }}
            {body}
            """
        )
        b.start().push()
        until(lambda: path.exists() and path.read_text().endswith("\n"), "the orphan")
        pid = self.kill_later(int(path.read_text()))
        b.stop(signal.SIGKILL)
        self.assertTrue(alive(pid))
        return b, pid

    def rerun(self, b: Daemon, pid: int) -> None:
        record = b.finished(2)
        self.assertEqual(record["trigger"], "interrupted")
        self.assertNotIn("both", b.log(2))
        self.assertFalse(alive(pid))
        self.assertRegex(b.record(1)["reason"], "^interrupted: ")

    def test_an_orphan_is_ended_before_the_new_run_starts(self) -> None:
        for body in (
            "echo $$ > ../orphan; sleep 1000 & wait",
            "sleep 1000 & echo $! > ../orphan; wait",
            "(setsid sleep 1000 & echo $! > ../orphan) & wait; sleep 9",
            "trap 'sleep .3; exit' TERM; echo $$ > ../orphan; while :; do sleep .01; done",
        ):
            with self.afresh(body):
                b, pid = self.orphan(body)
                b.start()
                self.rerun(b, pid)

    def test_an_orphan_that_ignores_sigterm_is_killed_though_boop_is_meanwhile(
        self,
    ) -> None:
        body = "trap '' TERM; echo $$ > ../orphan; while :; do sleep .1; done"
        b, pid = self.orphan(body, GRACE_S=1)
        b.start().said(f"ending process {pid}")
        b.restart(signal.SIGKILL)
        self.rerun(b, pid)

    def test_no_orphan_of_a_finished_deployment_is_touched(self) -> None:
        b = self.boop(
            """
            [ "$BOOP_NUMBER" = 1 ] || exec sleep 0.5
            setsid bash -c 'echo $$ > ../server; exec sleep 1000' > /dev/null 2>&1 &
            until [ -s ../server ]; do sleep .01; done
            """
        )
        b.deploy()
        pid = int((b.state / "server").read_text())
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        b.push()
        b.said("deployment 2: push")
        b.restart(signal.SIGKILL)
        self.assertEqual(b.finished(len(b.records()))["status"], "success")
        self.assertTrue(alive(pid))


# --- What a crash leaves --------------------------------------------------------------


def record_of(number: int, **fields: object) -> dict:
    """A record as the contract has it, of a push that was deployed."""
    names = ("queued_at", "started_at", "finished_at")
    times = dict.fromkeys(names, f"2024-05-01T10:{number:02}:00.000Z")
    pushed = {"repo": "https://h.example/one", "branch": "main", "commit": "1" * 40}
    about = {"message": "Fix typo", "author": "Ann Author", "pushes": 1}
    ended = {"status": "success", "reason": None, "trigger": "push", "duration": 0.5}
    return {"number": number, **pushed, **about, **ended, **times, **fields}


class Damage(Faults):
    """State folders that a crash, a full disk or a person may leave."""

    def state(self, *records: dict | bytes, **files: str) -> Daemon:
        """A boop, not started; its journal holds the records, or lines of bytes."""
        d = self.daemon('echo "$BOOP_NUMBER" >> ../ran')
        d.state.mkdir(exist_ok=True)
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        (d.state / "deployments.jsonl").write_bytes(b"\n".join([*lines, b""]))
        for name, text in files.items():
            (d.state / name).write_text(text)
        return d

    def numbers(self, d: Daemon) -> list[int]:
        return [record["number"] for record in d.records()]

    def test_a_damaged_line_is_kept_aside_and_costs_no_other(self) -> None:
        good = record_of(4)
        bad = [b"", json.dumps(good).encode()[:-40], bytes(range(11, 256))]
        bad += [b"\0" * 4096, b"[4]", b"[" * 200_000]
        wrong = [("status", "odd"), ("number", None), ("queued_at", None)]
        wrong += [("queued_at", "today"), ("queued_at", "0001-01-01")]
        wrong += [(name, {"a": 1}) for name in good]
        bad += [json.dumps(good | {name: value}).encode() for name, value in wrong]
        half = {"deployments.jsonl.new": json.dumps(good)[:60]}  # of a compaction
        d = self.state(record_of(1), *bad, record_of(3), *bad, **half).start()
        self.assertEqual(self.numbers(d), [3, 1])
        aside = d.state / "deployments.jsonl.damaged"
        self.assertEqual(aside.read_bytes().split(b"\n"), [*bad, *bad, b""])
        self.assertFalse((d.state / "deployments.jsonl.new").exists())
        d.said("deployments.jsonl, line 3: damaged, kept aside")
        self.assertEqual(d.push(), 5)  # a number that was lost is not used again
        self.assertEqual(d.finished(5)["status"], "success")
        d.restart()
        self.assertNotIn("damaged", "".join(d.lines))
        self.assertEqual(self.numbers(d), [5, 3, 1])

    def test_a_torn_tail_of_the_journal_costs_nothing_that_was_promised(self) -> None:
        d = self.state(record_of(1))
        path = d.state / "deployments.jsonl"
        for torn in (b"\0" * 100, b'{"number": 2, "status": "su'):
            path.write_bytes(path.read_bytes() + torn)
            d.start()
            number = d.push()
            d.finished(number)
            d.stop(signal.SIGKILL)
            self.assertEqual(d.journal()[-1]["number"], number)
            self.assertNotIn(torn + b"\n", path.read_bytes())

    def test_the_journal_stays_short_and_its_newest_lines_count(self) -> None:
        d = patched(self.daemon(BOOP_KEEP="3"), COMPACT_LINES=20).start()
        for _ in range(12):
            d.deploy()
        self.assertLess(len(d.journal()), 3 + 20 + 3)
        before = d.records()
        self.assertEqual(self.numbers(d), [12, 11, 10])
        d.restart()
        self.assertEqual(d.records(), before)
        self.assertEqual([line["number"] for line in d.journal()], [10, 11, 12])

    def test_what_was_queued_is_run_and_what_was_running_is_run_again(self) -> None:
        running = {"status": "inprogress", "finished_at": None, "duration": None}
        queued = running | {"status": "queued", "started_at": None}
        one = record_of(1, **running)
        stopped = record_of(1, status="fail", reason="interrupted: boop was stopped")
        live = record_of(2, branch="live", **queued)
        for name, records, expected in (
            ("queued", [record_of(1, **queued)], {1: "push"}),
            ("running", [record_of(1, **queued), one], {2: "interrupted"}),
            ("and queued", [one, record_of(2, **queued)], {2: "push"}),
            ("stopped before it was queued again", [stopped], {2: "interrupted"}),
            ("two branches", [one, live], {2: "push", 3: "interrupted"}),
        ):
            with self.afresh(name):
                d = self.state(*records).start()
                for number, trigger in expected.items():
                    record = d.finished(number)
                    self.assertEqual(record["status"], "success")
                    self.assertEqual(record["trigger"], trigger)
                before = d.records()
                self.assertEqual(d.restart().records(), before)
                ran = (d.state / "ran").read_text().split()
                self.assertEqual(ran, [str(number) for number in expected])

    def test_a_folder_in_use_as_state_is_refused_and_nothing_in_it_is_touched(
        self,
    ) -> None:
        d = self.daemon()
        (d.state / "work").mkdir(parents=True)
        files = {"3.log": b"mine", "work/thesis.tex": b"mine", "photo.jpg": b"mine"}
        for name, content in files.items():
            (d.state / name).write_bytes(content)
        status, said = d.start(listening=False).ended()
        self.assertEqual((status, len(said.splitlines())), (1, 1))
        self.assertIn("not boop's", said)
        self.assertEqual(tree(d.state), files)

    def test_foreign_files_are_left_alone_and_move_no_number(self) -> None:
        foreign = ["notes.txt", "x.json", "7.json", "7.log", "20240131.tar.gz"]
        d = self.state(record_of(1), **dict.fromkeys(foreign, "x"))
        d.env["BOOP_KEEP"] = "1"
        self.assertEqual(d.start().push(), 2)
        d.finished(2)
        self.assertEqual(d.restart().push(), 3)
        self.assertLessEqual(set(foreign), {path.name for path in d.state.iterdir()})


# --- The disk is full -----------------------------------------------------------------


class FullDisk(Case):
    """The state on a small file system of its own."""

    def small(self, script: str) -> Daemon:
        """A boop whose state is on a file system of 256 KB; b.small leads there."""
        probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(self.folder)]
        tool("unshare", "util-linux")
        done = subprocess.run(probe, capture_output=True, text=True)
        if done.returncode:
            self.skipTest(f"this test needs mount namespaces: {done.stderr.strip()}")
        mount = 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"'
        state = self.folder / "state"
        state.mkdir()
        b = self.boop(script, prefix=["unshare", "-rm", "sh", "-c", mount, str(state)])
        b.small = pathlib.Path(f"/proc/{b.process.pid}/root{state}")
        return b

    def fill(self, path: pathlib.Path, *sizes: int) -> None:
        """Appends newlines to a file until the disk is full."""
        with open(path, "ab", buffering=0) as file:
            for size in sizes:
                with contextlib.suppress(OSError):
                    while file.write(b"\n" * size):
                        pass

    def test_hooks_are_503_pages_answer_nothing_half_recorded_stays(self) -> None:
        b = self.small("echo hello")
        b.deploy()
        self.fill(b.small / "filler", 4096, 1)
        while (answer := b.hook(github_push())).status == 202:
            b.finished(answer.json["deployment"])  # there was room in its last block
        journal = b.small / "deployments.jsonl"
        before, done = journal.read_bytes(), len(b.records())
        for refused in (answer, b.hook(github_push())):
            self.assertEqual(refused.status, 503)
            self.assertTrue(refused.headers["Retry-After"])
            self.assertIn("No space left", refused.json["error"])
        b.said("503 to .*No space left")
        self.assertEqual(journal.read_bytes(), before)
        self.assertTrue(before.endswith(b"}\n"), before[-200:])
        self.assertIn("hello", b.log(1))
        health = b.get("/healthz")
        self.assertEqual(health.status, 503)
        self.assertIn("No space left", health.text)
        (b.small / "filler").unlink()
        self.assertEqual(b.get("/healthz").status, 200)  # by itself
        self.assertEqual(b.deploy()["number"], done + 1)

    def test_a_running_deployment_goes_on_without_its_log_and_is_recorded_later(
        self,
    ) -> None:
        gate = self.gate()
        wait = f"until read < {gate}; do :; done"
        b = self.small(f"echo > ../on; {wait}; seq 9000; {wait}; exit 0")
        b.push()
        until((b.small / "on").exists, "the script")
        self.fill(b.small / "filler", 4096, 1)
        self.open_gate(gate)
        b.said("cannot write the deployment's log: No space left")
        self.fill(b.small / "deployments.jsonl", 1)  # the last of its block
        self.assertEqual(b.hook(github_push()).status, 503)
        self.open_gate(gate)
        self.assertEqual(b.finished(1)["status"], "success")
        self.assertEqual(b.get("/healthz").status, 503)
        (b.small / "filler").unlink()
        b.write_script("exit 0")
        self.assertEqual(b.deploy()["number"], 2)
        self.assertEqual(b.get("/healthz").status, 200)
        newest = {d["number"]: d["status"] for d in b.journal(b.small)}
        self.assertEqual(newest, {1: "success", 2: "success"})


# --- Missed pushes --------------------------------------------------------------------


class CatchUp(Case):
    """Promise 4, and repositories that do not answer."""

    def origin(self, script: str = "exit 0", **env: str) -> Daemon:
        """A boop, not started, of a site; its git leaves a mark after each look."""
        self.checkout, self.marks = site(self.folder), self.folder / "marks"
        marking = self.folder / "bin/git"
        marking.parent.mkdir()
        marking.write_text(
            f'#!/bin/sh\n"{tool("git", "git")}" "$@"; s=$?\n'
            f"case $1 in ls-remote) echo >> {self.marks};; esac; exit $s\n"
        )
        marking.chmod(0o755)
        path = f"{marking.parent}:{os.environ['PATH']}"
        repo = {"BOOP_REPO": str(self.folder / "origin.git")}
        return self.daemon(script, PATH=path, **repo | env)

    def moved(self, branch: str = "main") -> str:
        """The branch's new tip."""
        tip = commit(self.checkout, {"index.html": str(time.time())})
        git(self.checkout, "push", "-qf", "origin", f"HEAD:refs/heads/{branch}")
        return tip

    def looks(self, number: int, b: Daemon | None = None) -> None:
        """Waits for so many more looks at the tip; asks b for them by SIGHUP."""

        def seen() -> int:
            return self.marks.stat().st_size if self.marks.exists() else 0

        for _ in range(number):
            before = seen()
            if b:
                b.process.send_signal(signal.SIGHUP)
            until(lambda: seen() > before, "a look")

    def test_a_missed_push_is_deployed_at_start_and_what_is_live_is_not_again(
        self,
    ) -> None:
        b = self.origin().start()
        b.said("catch-up: main is at .*: queued as 1")
        self.assertEqual(b.finished(1)["trigger"], "catch-up")
        self.looks(2, b.restart())
        self.assertEqual(len(b.records()), 1)
        b.stop()
        tip = self.moved()
        b.start().said("queued as 2")
        self.assertEqual(b.finished(2)["commit"], tip)
        b.finished(b.push(tip))
        self.looks(2, b.restart())
        self.assertEqual(len(b.records()), 3)

    def test_a_tip_that_fails_is_tried_at_each_start_and_sighup_and_polled_once(
        self,
    ) -> None:
        b = self.origin("exit 1").start()
        b.said("catch-up: .*queued as 1")
        b.finished(1)
        b.process.send_signal(signal.SIGHUP)
        b.said("catch-up: .*queued as 2")
        b.finished(2)
        b.env["BOOP_POLL"] = "1"
        b.restart().said("catch-up: .*queued as 3")
        b.said("poll: .*queued as 4")
        b.finished(4)
        self.looks(2)
        self.assertEqual(len(b.records()), 4)
        tip = self.moved()
        b.said(f"poll: main is at {tip[:8]}: queued as 5")
        self.assertEqual(b.finished(5)["trigger"], "poll")

    def test_a_new_target_script_or_branch_is_deployed_at_the_next_start(self) -> None:
        b = self.origin(BOOP_BRANCH="")
        tip = self.moved("trunk")
        git(self.folder / "origin.git", "symbolic-ref", "HEAD", "refs/heads/trunk")
        b.start().said(f"catch-up: trunk is at {tip[:8]}: queued as 1")
        self.assertEqual(b.finished(1)["branch"], "trunk")
        b.env["DEPLOY_TO"] = "/srv/www"
        b.restart().said("catch-up: .*queued as 2")
        b.finished(2)
        b.write_script("exit 0  # in another way")
        b.restart().said("catch-up: .*queued as 3")
        b.finished(3)
        b.env["BOOP_BRANCH"] = "main"
        b.restart().said("catch-up: main is at .*: queued as 4")
        b.finished(4)
        self.looks(2, b)
        self.assertEqual(len(b.records()), 4)

    def test_a_repository_out_of_reach_is_one_warning_not_a_flood(self) -> None:
        away = self.folder / "away.git"
        b = self.origin(BOOP_REPO=str(away)).start()
        b.said("cannot look at .*away.git")
        self.looks(3, b)
        self.assertEqual(sum("cannot look" in line for line in b.lines), 1)
        # Bitbucket does not say the default branch: that push may be sent again
        answer = b.hook(BITBUCKET_PUSH, None, X_Event_Key="repo:push")
        self.assertEqual(answer.status, 503, answer.text)
        self.assertEqual(b.push(), 1)
        (self.folder / "origin.git").rename(away)
        self.looks(1, b)
        b.said("can be reached again")
        self.assertEqual(b.finished(1)["status"], "success")

    def test_a_git_that_hangs_is_ended_and_delays_no_push_and_no_stop(self) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)
        server.settimeout(LIMIT_S)
        repo = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        d = self.daemon("echo run >> ../ran", BOOP_REPO=repo, BOOP_BRANCH="main")
        b = patched(d, GIT_TIMEOUT_S=2).start()
        with server.accept()[0] as look:  # git is there, and waits
            look.settimeout(LIMIT_S)
            self.assertEqual(b.deploy()["status"], "success")
            self.assertNotIn("no answer within", "".join(b.lines))
            b.said("no answer within 2 s")
            self.assertIn(b"GET /x/", read_all(look))  # until git-remote-http ends
        self.assertEqual(b.hook({}, None).status, 202)  # which has to ask for the tip
        with server.accept()[0] as look:
            look.settimeout(LIMIT_S)
            until(lambda: b.record(2)["status"] == "inprogress", "the deployment")
            self.assertEqual(b.stop()[0], 0)
            read_all(look)
        self.assertEqual((b.state / "ran").read_text(), "run\n")


# --- Endless and enormous -------------------------------------------------------------


class Enormous(Faults):
    """Output without end, and readers who do not read it."""

    def test_100_mb_of_output_cost_no_memory_and_block_nobody(self) -> None:
        for script in (
            "yes 'a line of the log' | head -c 100M",
            "head -c 100M /dev/zero | tr '\\0' s",  # one line, nearly a secret
        ):
            with self.afresh(script):
                b = self.boop(f"{script}; exit 0", MY_SECRET="s" * 40 + "x")
                b.get("/")
                before = footprint(b.process.pid)
                number = b.push()
                while not over(b):
                    self.assertEqual(b.get("/healthz").status, 200)
                self.assertEqual(b.record(number)["status"], "success")
                peak = footprint(b.process.pid).peak_kb
                self.assertLess(peak - before.rss_kb, 8_000)
                kept = (b.state / "1.log").read_bytes()
                self.assertLess(len(kept), 10_486_760)
                self.assertIn(b"boop: the log's limit of 10485760 bytes", kept[-500:])

    def test_output_without_end_is_ended_by_the_time_limit(self) -> None:
        script = "trap '' TERM; yes & while :; do echo; done"
        b = patched(self.daemon(script, BOOP_TIMEOUT="1"), GRACE_S=1).start()
        self.assertEqual(b.deploy()["reason"], "timed out after 1 s")
        self.assertLess(footprint(b.process.pid).peak_kb, 45_000)

    def test_readers_that_stop_reading_hold_up_nothing_and_get_one_answer(self) -> None:
        b = patched(self.daemon("yes | head -c 9000000; exit 0"), SEND_TIMEOUT_S=1)
        b.start().deploy()
        stuck = []
        for path in ("/log/1", "/log/2?follow"):
            s = socket.socket()
            self.addCleanup(s.close)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.settimeout(LIMIT_S)
            if "2" in path:
                b.push()
            s.connect(("127.0.0.1", b.port))
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            stuck.append(s)
        until(lambda: over(b), "the end of the second deployment")
        until(lambda: sockets_of(b) == 0, "the end of their connections")
        for s in stuck:
            self.assertEqual(statuses(read_all(s)), [200])
        self.assertLess(footprint(b.process.pid).peak_kb, 45_000)


# --- Bad clients ----------------------------------------------------------------------


class BadClients(Case):
    """Who is slow, gone, many, or makes no sense."""

    def connect(self, b: Daemon, number: int, sent: bytes = b"") -> list[socket.socket]:
        found = []
        for _ in range(number):
            s = socket.create_connection(("127.0.0.1", b.port), LIMIT_S)
            self.addCleanup(s.close)
            s.sendall(sent)
            found.append(s)
        return found

    def settled(self, b: Daemon, before: Footprint) -> None:
        """Sockets, threads and memory are what they were."""
        until(lambda: over(b), "the last run")
        until(lambda: sockets_of(b) <= 0, "the end of all connections")
        threads = before.threads
        until(lambda: footprint(b.process.pid).threads <= threads, "the threads' end")
        after = footprint(b.process.pid)
        self.assertLessEqual(after.descriptors, before.descriptors + 3)
        self.assertLess(after.rss_kb - before.rss_kb, 16_000)
        self.assertEqual([s for s in b.lines if "a request failed" in s], [])

    def test_300_that_send_a_byte_now_and_then_are_gone_after_the_deadline(
        self,
    ) -> None:
        d = patched(self.daemon(), HEAD_DEADLINE_S=2, BODY_DEADLINE_S=2, LINGER_S=0.5)
        b = d.start()
        b.deploy()
        before = footprint(b.process.pid)
        unsigned = push_request(Content_Length="9999", X_Hub_Signature_256="sha256=0")
        body = unsigned.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        slow = self.connect(b, 100) + self.connect(b, 100, b"GET / HTTP/1.1\r\nX: ")
        slow += self.connect(b, 100, body)
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.2):
                for s in slow:
                    with contextlib.suppress(OSError):
                        s.send(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            until(lambda: sockets_of(b) > 290, "the slow")
            until(lambda: b.push() and sockets_of(b) < 10, "the end of the slow")
        finally:
            ended.set()
            dripping.join()
        self.settled(b, before)

    def test_more_connections_than_boop_serves_wait_for_a_place(self) -> None:
        """And those that it serves, followers too, fit into 1,024 descriptors."""
        gate, limit = self.gate(), [tool("prlimit", "util-linux"), "--nofile=1024:1024"]
        b = self.daemon(f"until read < {gate}; do :; done", prefix=limit).start()
        b.push()
        b.said("deployment 1: push")
        before = footprint(b.process.pid)
        follow = b"GET /log/1?follow HTTP/1.1\r\nHost: x\r\n\r\n"
        held = self.connect(b, boop.MAX_FOLLOWERS, follow)
        for s in held:
            self.assertIn(b" 200 ", s.recv(20))
        self.assertEqual(b.get("/log/1?follow").status, 503)
        self.assertEqual(b.push(), 2)
        held += self.connect(b, boop.MAX_CONNECTIONS - boop.MAX_FOLLOWERS)
        until(lambda: sockets_of(b) >= boop.MAX_CONNECTIONS, "the connections")
        waiting = self.connect(b, 100, push_request())
        held.pop().close()
        for s in waiting:
            self.assertEqual(statuses(read_all(s)), [202])
        self.assertNotIn("cannot accept", "".join(b.lines))
        for s in held:
            s.close()
        until(lambda: sockets_of(b) == 0, "their end")
        for number in (1, 2):
            self.open_gate(gate)
            b.finished(number)
        self.settled(b, before)

    def test_without_a_free_descriptor_boop_and_its_deployments_go_on(self) -> None:
        b = self.boop()
        b.deploy()
        pid = b.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for room in range(8):
            most = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd")) + 1 + room
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))
            (s,) = self.connect(b, 1, push_request())
            if room == 0:  # not even for the connection, which waits
                b.said("cannot accept: Too many open files")
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, hard))
            self.assertIn(statuses(read_all(s)), ([202], [503]))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (1024, hard))
            until(lambda: over(b), "its run")
        for d in b.records():
            self.assertIn("Too many open files", d["reason"] or "Too many open files")
        self.assertEqual(b.deploy()["status"], "success")

    def test_what_makes_no_sense_leaves_no_traceback_and_no_leak(self) -> None:
        b = self.boop()
        b.deploy()
        good, before = push_request(), footprint(b.process.pid)
        head = good.partition(b"\r\n\r\n")[0]
        many = b"".join(b"X-%d: y\r\n" % i for i in range(5000))
        get = b"GET / HTTP/1.1\r\nHost: x\r\n"
        smuggled = b"GET /healthz HTTP/1.1\r\n\r\n"
        for name, data, expected in (
            ("nothing", b"", []),
            ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, []),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505]),
            ("no path", b"GET\r\n\r\n", [400]),
            ("a long line", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", [414]),
            ("a long header", get + b"X: " + b"x" * 100_000, [431]),
            ("many headers", get + many + b"\r\n", [431]),
            ("only LF", good.replace(b"\r\n", b"\n"), [202]),
            ("a NUL in the path", get.replace(b"/ ", b"/\0 ") + b"\r\n", [400]),
            ("a NUL in a header", get + b"X: \0y\r\n\r\n", [400]),
            ("a bare CR", get + b"X: y\rZ: z\r\n\r\n", [400]),
            ("a folded line", get + b"X: y\r\n z\r\n\r\n", [400]),
            ("two hosts", get + b"Host: y\r\n\r\n", [400]),
            ("no host", b"GET / HTTP/1.1\r\n\r\n", [400]),
            ("no host, as 1.0 may", b"GET / HTTP/1.0\r\n\r\n", [200]),
            ("a line that is no header", get + b"X y\r\n\r\n", [400]),
            ("empty lines first", b"\r\n\n\r\n" + get + b"\r\n", [200]),
            ("half a head", head[: len(head) // 2], []),
            ("half a body", good[:-9], [400]),
            ("two pushes", good + good, [202]),
            ("a bad address", get.replace(b"/ ", b"http://[x/ ") + b"\r\n", [200]),
            ("absolute", get.replace(b"/ ", b"http://h/ ") + b"\r\n", [200]),
            ("one in another", get + b"Content-Length: 25\r\n\r\n" + smuggled, [200]),
        ):
            with self.subTest(name):
                (s,) = self.connect(b, 1)
                with contextlib.suppress(OSError):
                    s.sendall(data)
                    s.shutdown(socket.SHUT_WR)
                self.assertEqual(statuses(read_all(s)), expected)
        for cut in range(0, len(good), 40):  # vanished clients: RST
            (s,) = self.connect(b, 1, good[:cut])
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
        self.settled(b, before)
        self.assertEqual(b.deploy()["status"], "success")

    def test_a_refusal_arrives_though_the_body_is_not_read(self) -> None:
        b = self.boop()
        big, kind = b"x" * 9_000_000, "application/x-www-form-urlencoded"
        for path, status in (("/", 405), ("/nowhere", 404), ("/deploy", 401)):
            with self.subTest(path):
                self.assertEqual(b.request("POST", path, big).status, status)
        answer = b.hook(big, Content_Type=kind, X_Gitea_Event="push")  # over 1 MiB
        self.assertEqual(answer.status, 413)
        self.assertIn("application/json", answer.json["error"])

    def test_20_forged_bodies_of_20_mb_at_once_cost_the_memory_of_two(self) -> None:
        b = self.boop()
        b.deploy()
        before = footprint(b.process.pid)
        size, forged = 20 << 20, "sha256=0"
        head = push_request(Content_Length=str(size), X_Hub_Signature_256=forged)
        request = head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + b"x" * size
        with concurrent.futures.ThreadPoolExecutor(20) as forgers:
            for answer in forgers.map(b.raw, [request] * 20):
                self.assertEqual(statuses(answer), [401])
                b.push()
        after = footprint(b.process.pid)
        print(f"20 forged bodies: {before} -> {after}", file=sys.stderr)
        self.assertLess(after.peak_kb - before.rss_kb, 60_000)
        self.settled(b, before)

    def test_a_body_for_which_there_is_no_memory_is_503(self) -> None:
        b = self.boop()
        push = github_push(x="x" * (20 << 20))
        room = int(re.search(r"VmSize:\s+(\d+)", status_of(b.process.pid))[1]) << 10
        _, hard = resource.prlimit(b.process.pid, resource.RLIMIT_AS)
        most = room + (12 << 20)
        resource.prlimit(b.process.pid, resource.RLIMIT_AS, (most, hard))
        answer = b.hook(push)
        self.assertEqual(answer.status, 503)
        self.assertIn("no memory", answer.json["error"])
        resource.prlimit(b.process.pid, resource.RLIMIT_AS, (hard, hard))
        self.assertEqual(b.hook(push).status, 202)


# --- Fuzz -----------------------------------------------------------------------------


class Fuzz(Case):
    """Random requests and payloads; the seed is printed, and may be set: SEED=…"""

    def setUp(self) -> None:
        super().setUp()
        self.seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
        self.random = random.Random(self.seed)
        print(f"seed {self.seed}", file=sys.stderr)

    LEAVES = [None, True, False, 0, -1, 1e308, 10**400, "", "x", "main", "x" * 9999]
    LEAVES += ["0" * 40, "1" * 40, "1" * 64, "G" * 40, "a\nb", "../..", "$(id)"]
    LEAVES += ["refs/heads/" + name for name in "main -x a..b a\0b @{u} x.lock".split()]
    LEAVES += ["refs/tags/v1", "https://h/x", "https://h/\nx", "ext::sh", "file:///x"]
    LEAVES += ["-x", "\ud800", "\u202e", "[no ci]"]
    PING = {"zen": "Keep it logically awesome."}
    DELIVERIES = (
        ({"X_GitHub_Event": "push"}, github_push()),
        ({"X_Forgejo_Event": "push", "X_Gitea_Event": "push"}, github_push()),
        ({"X_Gitlab_Event": "Push Hook"}, GITLAB_PUSH),
        ({"X_Event_Key": "repo:push"}, BITBUCKET_PUSH),
        ({}, {"commit": "1" * 40}),
        ({"X_GitHub_Event": "ping"}, PING),
        ({"X_Event_Key": "diagnostics:ping"}, PING),
        ({"X_GitHub_Event": "\x1b[31m\u00ff"}, None),
    )

    def mutated(self, value: object) -> object:
        """A copy with some of its values replaced, removed, doubled."""
        if self.random.random() < 0.06:
            return self.random.choice([*self.LEAVES, [], {}, [[]], GITLAB_PUSH])
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if self.random.random() > 0.03}
            return {key: self.mutated(v) for key, v in kept.items()}
        if isinstance(value, list):
            items = [self.mutated(v) for v in value]
            return items * self.random.choice((1, 1, 1, 0, 3))
        return value

    def test_no_signed_payload_does_more_than_make_a_push_or_a_refusal(self) -> None:
        b, ends = self.boop(BOOP_KEEP="10000"), collections.Counter()
        for i in range(1200):
            headers, payload = self.random.choice(self.DELIVERIES)
            if self.random.random() < 0.2:  # another forge's
                headers, _ = self.random.choice(self.DELIVERIES)
            ascii_only = self.random.random() < 0.8
            text = json.dumps(self.mutated(payload), ensure_ascii=ascii_only)
            body = text.encode("utf-8", "surrogatepass")
            kind = "application/json"
            if self.random.random() < 0.1:
                kind = "application/x-www-form-urlencoded"
                body = b"payload=" + urllib.parse.quote(body).encode()
            with self.subTest(seed=self.seed, i=i, body=body[:300]):
                status = b.hook(body, None, Content_Type=kind, **headers).status
                self.assertIn(status, (200, 202, 400))
                ends[status] += 1
        until(lambda: over(b), "the last run")
        for d in b.records():
            with self.subTest(seed=self.seed, record=d):
                self.assertRegex(d["repo"], r"^(https?|ssh|git)://[^\s-]\S*$")
                self.assertRegex(d["branch"], r"^\w[\w./]*$")
                self.assertRegex(
                    d["commit"] or "1" * 40, r"^[0-9a-f]{40}([0-9a-f]{24})?$"
                )
                self.assertLess(len(d["message"] or "") + len(d["author"] or ""), 5000)
                self.assertNotIn("\0", f"{d['message']}{d['author']}")
                self.assertEqual(d["status"], "success")
        print(f"answers: {ends}", file=sys.stderr)
        self.assertGreater(min(ends[200], ends[202], ends[400]), 50)

    WORDS = [b"\r\n", b"\n", b"\0", b" ", b":", b"9" * 30, b"-1", b"\xff", b"chunked"]
    WORDS += [b"%00", b"HTTP/1.9", b"HTTP/1.1", b"x" * 70_000, b"\r\n\r\n"]

    def mutant(self, data: bytes) -> bytes:
        """Bytes of a request with some replaced, removed, repeated, shuffled."""
        for _ in range(self.random.choice((0, 1, 1, 2, 5, 20))):
            at = self.random.randrange(len(data) + 1)
            to = at + self.random.choice((1, 2, 40, 400))
            lines = data.split(b"\r\n")
            self.random.shuffle(lines)
            data = self.random.choice(
                (
                    data[:at] + bytes([self.random.randrange(256)]) + data[at + 1 :],
                    data[:at] + data[to:],
                    data[:to] + data[at:],
                    data[:at] + self.random.choice(self.WORDS) + data[at:],
                    data[:at],
                    b"\r\n".join(lines),
                    data + data[:at],
                )
            )
        return data

    def test_no_request_makes_boop_answer_nonsense_or_stop_answering(self) -> None:
        b, ends = self.boop(), collections.Counter()
        b.deploy()
        before = footprint(b.process.pid)
        bases = [push_request(), push_request({})] * 9
        bases += [
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n"
            f'If-None-Match: "x"\r\nAuthorization: Basic eDp5\r\n\r\n'.encode()
            for method in ("GET", "HEAD", "POST", "BREW")
            for path in ("/", "/log/1", "/log/latest?follow", "/healthz", "/x?y=z#w")
            for accept in ("*/*", "text/html", "application/json;q=0.5, text/*;q=.1")
        ]
        for i in range(3000):
            data = self.mutant(self.random.choice(bases))
            with self.subTest(seed=self.seed, i=i, data=data[:300]):
                with socket.create_connection(("127.0.0.1", b.port), LIMIT_S) as s:
                    with contextlib.suppress(OSError):
                        s.sendall(data)
                        s.shutdown(socket.SHUT_WR)
                    answer = read_all(s)
                self.assertTrue(not answer or answer.startswith(b"HTTP/1.1 "), answer)
                ends.update(found := statuses(answer))
                self.assertTrue(all(s < 500 or s in (503, 505) for s in found), answer)
        print(f"answers: {ends}", file=sys.stderr)
        until(lambda: over(b) and sockets_of(b) == 0, "the end of what they asked for")
        after = footprint(b.process.pid)
        self.assertLessEqual(after.descriptors, before.descriptors + 1)
        self.assertLess(after.rss_kb - before.rss_kb, 20_000)
        self.assertNotIn("a request failed", "".join(b.lines))
        self.assertEqual(b.deploy()["status"], "success")


# --- Masking --------------------------------------------------------------------------


class Masking(Faults):
    """Promise 7, wherever the script's writes are cut."""

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

    SECRETS = {
        "MY_TOKEN": "tok-1234567890",
        "OTHER_SECRET": "tok-1234567890-and-more",
        "A_PASSWORD": "pässwörd€€",
        "SSH_KEY": "-----BEGIN-----\nline\tone\nline two\n-----END-----",
        "API_KEY": "aaaaaaaabaaaaaaaab",
    }

    def everywhere(self, b: Daemon, number: int) -> str:
        """All that boop shows or keeps."""
        found = b.get(f"/log/{number}?follow").text
        for path in ("/", f"/log/{number}"):
            for accept in ("*/*", "text/html", "application/json"):
                found += b.get(path, accept).text
        kept = (b.state / f"{number}.log", b.state / "deployments.jsonl")
        return found + "".join([path.read_text() for path in kept] + b.lines)

    def test_no_secret_is_shown_wherever_it_is_cut(self) -> None:
        b = self.boop(
            f"""
            for name in {" ".join(self.SECRETS)}; do
                value=${{!name}}
                LC_ALL=C
                for ((i = 0; i < ${{#value}}; i++)); do printf %s "${{value:i:1}}"; done
                printf ' '
                head -c $((65536 - ${{#value}} / 2)) /dev/zero | tr '\\0' .
                printf '%s' "$value"
                printf '%s%s\\n' "$value" "$value"
                printf '%s' "${{value:0:5}}"; printf '%s|' "$value"
            done
            """,
            **self.SECRETS,
        )
        found = self.everywhere(b, b.push())
        for name, value in self.SECRETS.items():
            self.assertNotIn(value, found, name)
        self.assertNotIn("and-more", found)  # the longest of them is replaced
        log = (b.state / "1.log").read_bytes()
        self.assertEqual(log.count(b"***"), 5 * len(self.SECRETS))

    def test_no_secret_of_a_payload_is_shown_also_where_it_is_trimmed(self) -> None:
        secret = "tok-" + "0123456789" * 4
        b = self.boop("exit 1", MY_TOKEN=secret)
        for before in (0, 4060, 4070, 4090):
            author = {"name": "n" * (before % 250) + secret}
            words = {"message": "m" * before + secret, "author": author}
            head = github_push()["head_commit"] | words
            with self.subTest(before=before):
                answer = b.hook(github_push(head_commit=head))
                found = self.everywhere(b, answer.json["deployment"])
                self.assertNotIn(secret[:12], found)
        for ref in (f"refs/heads/{secret}", "refs/heads/" + "r" * 220 + secret):
            answer = b.hook(github_push(ref=ref))
            self.assertEqual(answer.status, 200)
            self.assertNotIn(secret[:12], answer.text + "".join(b.lines))

    def test_no_part_of_the_repositorys_user_is_shown(self) -> None:
        for scheme, user, parts in (
            ("http", "ann:hunter2hunter2", ["hunter2hunter2"]),
            ("HTTPS", "ann:hunter2hunter2", ["hunter2hunter2"]),
            ("ftp", "ann:hunter2hunter2", ["hunter2hunter2"]),
            ("ssh", "git:hunter2hunter2", ["hunter2hunter2"]),
            ("http", "ghp_tokentokentoken", ["ghp_tokentokentoken"]),
            ("http", "ghp_tokentokentoken:x-oauth-basic", ["ghp_tokentokentoken"]),
            ("http", "ann:p%40sswordp%40ss", ["p%40sswordp%40ss", "p@sswordp@ss"]),
        ):
            with self.afresh(f"{scheme}://{user}"):
                b = self.boop(
                    f'echo "$BOOP_REPO"; env; printf "%s\\n" {" ".join(parts)};'
                    f" echo \"could not read 'https://{user.partition(':')[0]}@h'\"",
                    BOOP_REPO=f"{scheme}://{user}@127.0.0.1:1/a/b.git",
                    BOOP_BRANCH="main",
                )
                b.said("cannot look at")
                found = self.everywhere(b, b.push())
                for part in [user, *parts]:
                    self.assertNotIn(part, found)

    def test_no_line_of_a_private_key_is_shown(self) -> None:
        lines = [
            "-----BEGIN KEY-----",
            "MIIEpAIBAAKCAQEA7",
            "q83vEjRWeJCrze8SNFZ4",
            "x=",
        ]
        b = self.boop('echo "$DEPLOY_KEY" | tac', DEPLOY_KEY="\n".join(lines))
        b.deploy()
        self.assertIn("x=\n***\n***\n***\n", b.log(1))


# --- Telling others -------------------------------------------------------------------


class Api(http.server.BaseHTTPRequestHandler):
    """A forge's API: takes commit statuses, and answers them as its mood is."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.put((self.path, body, self.headers["Authorization"]))
        if self.server.mood == "hangs":
            self.server.over.wait(LIMIT_S)
        self.send_response(302 if self.server.mood == "redirects" else self.server.mood)
        self.send_header("Location", self.server.other)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.taken.put((self.path, None, self.headers["Authorization"]))
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


class Reporting(Faults):
    """Commit statuses and BOOP_NOTIFY: can fail, cannot hurt."""

    def api(self, mood: int | str = 201) -> http.server.ThreadingHTTPServer:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
        server.mood, server.other, server.taken = mood, "", queue.SimpleQueue()
        server.over, server.handle_error = threading.Event(), lambda *_: None
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        for end in (thread.join, server.server_close, server.shutdown, server.over.set):
            self.addCleanup(end)
        return server

    def reporting(self, port: int, script: str = "exit 0") -> Daemon:
        """A boop that reports to a port; it waits half a second for that at its end."""
        d = self.daemon(
            script,
            BOOP_GITHUB_TOKEN="ghp_0123456789",
            BOOP_GITHUB_API=f"http://127.0.0.1:{port}",
            BOOP_URL="https://boop.example/",
        )
        return patched(d, CLOSE_S=0.5).start()

    def test_commit_statuses_come_in_order_and_link_to_the_log(self) -> None:
        server, name = self.api(), "Codertocat/Hello-World"
        b = self.reporting(server.server_port, '[ "$BOOP_NUMBER" != 2 ]')
        for number, end in ((1, "success"), (2, "failure"), (3, "success")):
            commit, link = f"{number}" * 40, f"https://boop.example/log/{number}"
            b.push(commit)
            for state in ("pending", end):
                path, body, token = server.taken.get(timeout=LIMIT_S)
                self.assertEqual(path, f"/repos/{name}/statuses/{commit}")
                self.assertEqual((body["state"], body["context"]), (state, "boop"))
                self.assertEqual(body["target_url"], link)
                self.assertEqual(token, "token ghp_0123456789")

    def test_an_api_that_is_slow_dead_or_ill_delays_no_deployment(self) -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(silent.close)
        for name, port in (
            ("hangs", self.api("hangs").server_port),
            ("does not accept", silent.getsockname()[1]),
            ("dead", 1),
            ("500", self.api(500).server_port),
            ("403", self.api(403).server_port),
        ):
            with self.subTest(name):
                b = self.reporting(port)
                begun = time.monotonic()
                for _ in range(5):
                    self.assertEqual(b.deploy()["status"], "success")
                self.assertLess(time.monotonic() - begun, 5)  # of the tries' 10 s
                if name == "403":
                    b.said("commit status not sent")
                self.assertEqual(b.stop()[0], 0)
                self.assertNotIn("ghp_0123456789", "".join(b.lines))

    def test_the_token_is_not_taken_to_where_an_api_redirects(self) -> None:
        server, other = self.api("redirects"), self.api()
        server.other = f"http://localhost:{other.server_port}/elsewhere"
        b = self.reporting(server.server_port)
        b.deploy()
        b.said("commit status not sent")
        while not other.taken.empty():
            self.assertIsNone(other.taken.get()[2])

    def test_a_notification_that_hangs_or_fails_is_no_obstacle(self) -> None:
        notify, child = self.folder / "notify", self.folder / "child"
        notify.write_text(
            f"""#!/bin/bash
            case $BOOP_NUMBER in
            1) sleep 1000 ;;
            2) trap '' TERM; sleep 1000 ;;
            3) echo what; exit 3 ;;
            4) sleep 1000 & echo $! > {child}; exit 4 ;;
            esac
            """
        )
        notify.chmod(0o755)
        d = self.daemon(BOOP_NOTIFY=str(notify))
        b = patched(d, **{"Reporter.NOTIFY_TIMEOUT_S": 1}).start()
        for _ in range(4):
            self.assertEqual(b.deploy()["status"], "success")
        self.assertLess("".join(b.lines).count("timed out"), 2)  # one still hangs
        b.said("exit status 3: what")
        b.said("exit status 4")
        self.kill_later(int(child.read_text()))
        said = [line for line in b.lines if "timed out after 1 s" in line]
        self.assertEqual(len(said), 2)


# --- Measuring ------------------------------------------------------------------------


def soak_for(seconds: float) -> int:
    """Prints what it did; the exit status is 1 if a push was lost."""
    with tempfile.TemporaryDirectory(prefix="boop-soak-") as folder:
        soak = Soak(pathlib.Path(folder)).run(seconds)
    print(soak, *soak.wrong[:20], sep="\n  ")
    return int(bool(soak.lost or soak.wrong))


def shown(title: str, **rows: list[float]) -> None:
    """Prints the median of each, and what 99 of 100 stay within."""
    print(f"\n{title:<50} {'median':>8} {'p99':>8}")
    for name, values in rows.items():
        low, high = (sorted(values)[len(values) * q // 100] for q in (50, 99))
        print(f"  {name.replace('_', ' '):<48} {low:8.2f} {high:8.2f}", flush=True)


def timed(act: typing.Callable[[], object]) -> float:
    """The milliseconds that it takes."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def bench_pushes() -> None:
    """What a push costs, beside a bare fork and exec of the same script."""
    with tempfile.TemporaryDirectory(prefix="boop-bench-") as name:
        b = Daemon(pathlib.Path(name), "echo $EPOCHREALTIME >> ../marks")
        b.env["BOOP_KEEP"] = "10"
        started = [timed(b.start)]
        marks, work = b.state / "marks", b.state / "work"

        def until_marked(act: typing.Callable[[], object]) -> float:
            """Milliseconds from the call to the script's first line."""
            before = time.time()
            act()
            return (float(marks.read_text().split()[-1]) - before) * 1e3

        acks = [timed(b.push) for _ in range(200) if b.finished(b.push())]
        until(lambda: over(b), "the end of them")
        lines = [until_marked(b.deploy) for _ in range(200)]
        bare = [
            until_marked(lambda: subprocess.run([b.script], cwd=work, check=True))
            for _ in range(200)
        ]
        shown(
            "One push at a time, milliseconds",
            process_start_to_address_printed=started,
            push_to_202=acks,
            push_to_the_first_line_of_the_script=lines,
            the_same_script_by_subprocess=bare,
        )
        b.write_script("sleep 1")
        last = b.push()
        with concurrent.futures.ThreadPoolExecutor(16) as clients:
            began = time.perf_counter()
            burst = list(clients.map(lambda _: timed(b.push), range(1000)))
            seconds = time.perf_counter() - began
        shown("A burst of 1000 pushes over 16 connections", push_to_202=burst)
        until(lambda: over(b), "the last run")
        runs = b.records()[0]["number"] - last + 1
        peak = footprint(b.process.pid).peak_kb / 1024
        print(f"  {1000 / seconds:.0f} a second, {runs} runs; peak {peak:.1f} MB")
        b.stop()


THREE_COMMANDS = """
rm -rf plain && git clone -q "$BOOP_REPO" plain && cd plain && hugo --quiet &&
aws s3 sync --quiet --delete public "$DEPLOY_TO"
"""


def bench_deployments(posts: int = 500) -> None:
    """What deploy.sh takes to S3, beside the three commands that it replaces."""
    page = "---\ntitle: Post\n---\n" + "Some words of a post. " * 500
    files = {f"content/post/{n}.md": page for n in range(posts)} | SITE
    with tempfile.TemporaryDirectory(prefix="boop-bench-") as name:
        folder, s3 = pathlib.Path(name), S3Server()
        checkout = site(folder, files)
        env = {**os.environ, **S3_LOGIN, "AWS_ENDPOINT_URL": s3.url}
        env |= {"BOOP_REPO": f"{folder}/origin.git", "BOOP_STATE": f"{folder}/state"}

        def deployed(*command: str | pathlib.Path, to: str) -> float:
            s3.forward("PUT", f"/{to}")
            here = env | {"DEPLOY_TO": f"s3://{to}"}
            run = functools.partial(subprocess.run, command, check=True, cwd=folder)
            return timed(lambda: run(env=here, stdout=subprocess.DEVNULL)) / 1e3

        print(f"\nDeployments of {posts} posts to S3, seconds")
        for what in ("all of it", "one post edited", "nothing changed"):
            if what == "one post edited":
                commit(checkout, {"content/post/1.md": page + "More."})
                git(checkout, "push", "-q", "origin", "main")
            ours = deployed(HERE / "deploy.sh", to="ours")
            plain = deployed("bash", "-c", THREE_COMMANDS, to="plain")
            print(f"  {what:<20} {ours:8.2f}; clone, hugo, aws s3 sync {plain:8.2f}")
        s3.close()


# --- Running all of it ----------------------------------------------------------------

LONGEST_FIRST = (
    "DeployToS3 Unit DeployToFolder InABrowser Reporting Runner Promises CatchUp"
    " Enormous BadClients Fuzz"
).split()
SUMMARY = re.compile(r"(?m)^Ran (\d+) tests? in .*\n\n\w+(?: \((.*)\))?$")


def classes() -> list[str]:
    """Those that hold tests; the longest first, so that none is alone at the end."""
    load = unittest.defaultTestLoader
    found = {
        name
        for name, value in globals().items()
        if isinstance(value, type) and issubclass(value, unittest.TestCase)
        if load.getTestCaseNames(value)
    }
    if not HAS_SYSTEMD:  # not a skipped test: it needs root and a tool of its own
        print("no with-systemd, or not root: boop.service is not tested")
        found.remove("Unit")
    first = [name for name in LONGEST_FIRST if name in found]
    return first + sorted(found.difference(first))


def run_class(name: str) -> collections.Counter[str]:
    """Runs a class in a process of its own, prints all it said; what came of it."""
    with tempfile.TemporaryFile() as file:  # a pipe would wait for what a test left
        command, quiet = [sys.executable, __file__, name], subprocess.DEVNULL
        done = subprocess.run(command, stdin=quiet, stdout=file, stderr=file)
        file.seek(0)
        output = file.read().decode("utf-8", "replace")
    print(f"== {name}\n{output}", flush=True)
    return counts(output, done.returncode)


def counts(output: str, status: int) -> collections.Counter[str]:
    """The figures of unittest's summary; a process that died before it is an error."""
    found: collections.Counter[str] = collections.Counter()
    for ran, details in SUMMARY.findall(output)[-1:]:
        figures = re.findall(r"([a-z][a-z ]*)=(\d+)", details)
        found.update(ran=int(ran), **{what: int(number) for what, number in figures})
    if status and not FAILURES & found.keys():
        found["errors"] = 1
    return found


FAILURES = {"failures", "errors", "unexpected successes"}


def run_all() -> int:
    """All classes, and a summary in unittest's words.

    One more at a time than there are cores, as many tests wait for a deadline.
    """
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        total = sum(pool.map(run_class, classes()), collections.Counter())
    seconds = time.perf_counter() - began
    print(f"{'-' * 70}\nRan {total.pop('ran', 0)} tests in {seconds:.3f}s\n")
    word = "FAILED" if FAILURES & total.keys() else "OK"
    details = ", ".join(f"{what}={number}" for what, number in total.items())
    print(f"{word} ({details})" if details else word)
    return int(word != "OK")


def main() -> None:
    """Tests, --bench, or --soak SECONDS."""
    if sys.argv[1:2] == ["--bench"]:
        bench_pushes()
        bench_deployments()
    elif sys.argv[1:2] == ["--soak"]:
        sys.exit(soak_for(float(sys.argv[2])))
    elif sys.argv[1:]:
        unittest.main()
    else:
        sys.exit(run_all())


if __name__ == "__main__":
    main()
