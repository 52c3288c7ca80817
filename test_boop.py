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

import contextlib
import hashlib
import hmac
import html.parser
import http.client
import io
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import typing
import unicodedata
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
            _, said = daemon.stop(signal.SIGKILL)
            self.assertNotIn("Traceback", said)

    def gate(self, name: str = "gate") -> pathlib.Path:
        """A FIFO: a script that reads it (`read < gate`) waits until open_gate."""
        path = self.folder / name
        os.mkfifo(path)
        return path

    def open_gate(self, path: pathlib.Path) -> None:
        path.write_text("go\n")  # blocks until the script is there to read


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
        verifier = boop.Verifier(secret, message)
        verifier.update(body)
        verifier.check(io.BytesIO(body))

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
        self.assertEqual(list(b.state.glob("*.json")), [])

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
        self.refused(
            b.hook(github_push(), Content_Type="text/plain"), 415, "text/plain"
        )
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
            ("Content-Length: " + "9" * 17, 413),
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
        b = self.boop(f"echo run >> {self.folder}/runs; read < {gate}")
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
        b = self.boop(f"mkdir ../alone && read < {gate}; rmdir ../alone")
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
        self.assertFalse(alive(int(log.splitlines()[1])))

    def test_a_child_that_holds_the_output_does_not_hold_boop(self) -> None:
        record, log = self.outcome("sleep 1000 & echo $!; echo done")
        self.assertEqual(record["status"], "success")
        self.assertIn("done\n", log)
        self.assertFalse(alive(int(log.splitlines()[1])))

    def test_a_child_that_left_the_group_and_writes_for_ever_does_not_hold_boop(
        self,
    ) -> None:
        b = self.boop(f"setsid yes & echo $! > {self.folder}/pid; exit 4")
        try:
            self.assertEqual(b.deploy()["reason"], "exit status 4")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)

    def test_a_script_that_closes_its_output_is_waited_for(self) -> None:
        gate = self.gate()
        b = self.boop(f"exec >&- 2>&-; read < {gate}; exit 5")
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
            for accept, kind in (
                ("*/*", "text/plain; charset=utf-8"),
                ("", "text/plain; charset=utf-8"),
                (browser, "text/html; charset=utf-8"),
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
            " queued_at started_at finished_at duration".split(),
        )
        self.assertEqual(b.records(), [record])
        for name in ("queued_at", "started_at", "finished_at"):
            self.assertRegex(record[name], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertIsInstance(record["duration"], float)
        disk = json.loads((b.state / "1.json").read_text())
        self.assertEqual({k: disk[k] for k in record}, record)

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
        b = self.boop(f"echo here > {self.folder}/here; read < {gate}")
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
        queued_at=NOW - 60,
        started_at=NOW - 59.5,
        finished_at=NOW - 56.3,
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


def columns(text: str) -> int:
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me", "Cf")
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
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


class Parsed(html.parser.HTMLParser):
    """The tags, attributes and links of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [v or "" for k, v in attrs if k in ("href", "src")]


class Records(unittest.TestCase):
    def test_times_are_rfc_3339_in_utc_with_milliseconds(self) -> None:
        self.assertEqual(boop.rfc3339(NOW), "2025-11-23T22:49:26.120Z")
        self.assertEqual(boop.rfc3339(1.9996), "1970-01-01T00:00:02.000Z")
        self.assertIsNone(boop.rfc3339(None))

    def test_durations_read_well(self) -> None:
        cases = (0, "0.0 s"), (3.24, "3.2 s"), (9.96, "10 s"), (59.6, "1m 00s")
        for seconds, text in (*cases, (245, "4m 05s"), (3725, "1h 02m")):
            self.assertEqual(boop.took(seconds), text)


class Text(unittest.TestCase):
    def test_the_table_is_aligned_and_fits_80_columns(self) -> None:
        ds = [
            deployment(1000, message="日本語のページを追加する" * 5, branch="日本/支"),
            deployment(999, status="fail", reason="long " * 40, author=None),
            deployment(8, message="e\u0301" * 90 + "\u0301" * 900),
            deployment(7, message="word " * 40, branch="drafts/newsletter"),
            deployment(6, status="queued", commit=None, duration=None, message=None),
            deployment(5, status="inprogress", started_at=NOW - 75, duration=None),
        ]
        lines = boop.list_text(ds, NOW).splitlines()
        self.assertLessEqual(max(map(columns, lines)), 80)
        rows = [line for line in lines if re.match(r" *\d+ ", line)]
        at = columns(lines[0].partition("COMMIT")[0])
        for row, d in zip(rows, ds, strict=True):
            left = next(i for i in range(len(row)) if columns(row[:i]) >= at)
            self.assertEqual(row[left : left + 7], (d.commit or " " * 7)[:7])
        self.assertIn("1m 15s", lines[-1])
        self.assertIn("(push)", lines[-2])

    def test_a_fail_shows_its_reason(self) -> None:
        text = boop.list_text([deployment(status="fail", reason="exit status 7")], NOW)
        self.assertEqual(text.splitlines()[2], "    exit status 7")

    def test_one_branch_stands_in_the_header(self) -> None:
        self.assertIn("MESSAGE on main\n", boop.list_text([deployment()], NOW))

    def test_no_record_sends_escape_codes_to_a_terminal(self) -> None:
        text = boop.list_text([hostile, deployment(branch="x\x1b[2J")], NOW)
        self.assertTrue(text.replace("\n", "").isprintable())
        self.assertEqual(len(text.splitlines()), 4)
        text.encode()

    def test_colour_comes_only_if_asked(self) -> None:
        self.assertNotIn("\x1b", boop.list_text([deployment()], NOW))
        text = boop.list_text([deployment()], NOW, color=True)
        self.assertIn("\x1b[32msuccess\x1b[0m", text)

    def test_an_empty_list_says_what_to_do_next(self) -> None:
        for text in boop.list_text([], NOW), boop.list_html([], NOW):
            for word in "/deploy", "BOOP_SECRET", "boop.py deploy", "git push":
                self.assertIn(word, text)
        self.assertLessEqual(max(map(len, boop.list_text([], NOW).split("\n"))), 80)


class Html(unittest.TestCase):
    def pages(self) -> dict[str, str]:
        running = deployment(8, status="inprogress", finished_at=None, duration=None)
        queued = deployment(9, status="queued", started_at=None, finished_at=None)
        ds = [queued, running, hostile, deployment(6), deployment(5)]
        return {
            "list": boop.list_html(ds, NOW),
            "several": boop.list_html([hostile, deployment(6, repo="/srv/x")], NOW),
            "empty": boop.list_html([], NOW),
            "log": boop.log_html(
                hostile, 6, 8, HOSTILE + "\n\x1b]0;x\x07ok", True, NOW
            ),
            "queued": boop.log_html(queued, 8, None, "", False, NOW),
            "error": boop.error_html(404, "Not <Found>", HOSTILE, "../"),
        }

    def test_nothing_untrusted_becomes_markup(self) -> None:
        for name, page in self.pages().items():
            with self.subTest(name):
                page.encode()
                parsed = Parsed(page)
                self.assertEqual(parsed.tags.count("script"), 1)
                self.assertNotIn("alert(1)</script>", page)
                self.assertTrue(page.replace("\n", "").isprintable())
                self.assertNotIn("style", parsed.attributes)
                self.assertFalse([a for a in parsed.attributes if a.startswith("on")])

    def test_every_link_is_relative_or_the_forges(self) -> None:
        for name, page in self.pages().items():
            for link in Parsed(page).links:
                with self.subTest(name, link=link):
                    self.assertRegex(
                        link,
                        r"\A(#\w+|\?text|\.?\./(boop\.(css|js))?|\d+(\?text)?|log/\d+"
                        r"|data:image/svg.*|https://github\.com/ada/site/.*)\Z",
                    )

    def test_the_title_and_the_icon_show_the_state(self) -> None:
        for status, glyph in boop.GLYPHS.items():
            page = boop.list_html([deployment(status=status)], NOW)
            self.assertIn(f"<title>{glyph} {boop.LABELS[status]} · site", page)
            self.assertIn(f'href="{boop.favicon(status)}"', page)
        self.assertEqual(len(set(map(boop.favicon, boop.GLYPHS))), 4)

    def test_a_log_without_javascript_is_plain_text_with_its_end(self) -> None:
        page = boop.log_html(
            deployment(), 6, 8, "\x1b[1;31mred\x1b[m\n1%\r9%\r\n<b>", True, NOW
        )
        self.assertIn(
            '<a href="7?text">… the whole log</a>\nred\n9%\n&lt;b&gt;</pre>', page
        )

    def test_a_fail_says_what_the_site_shows_meanwhile(self) -> None:
        bad = deployment(8, status="fail", reason="exit status 7")
        page = boop.list_html([bad, deployment(6, branch="x"), deployment(5)], NOW)
        self.assertIn('the site shows <a href="log/5">#5</a>', page)

    def test_commits_link_to_the_forge_when_it_is_known(self) -> None:
        sha = "3f2a1b9" + "0" * 33
        for repo, url in {
            "https://github.com/ada/site.git": "https://github.com/ada/site/commit/",
            "git@github.com:ada/site.git": "https://github.com/ada/site/commit/",
            "ssh://git@codeberg.org/a/b": "https://codeberg.org/a/b/commit/",
            "ssh://git@gitea.example.org:2222/a/b": (
                "https://gitea.example.org/a/b/commit/"
            ),
            "https://gitlab.com/a/b/c.git": "https://gitlab.com/a/b/c/-/commit/",
            "git@bitbucket.org:a/b.git": "https://bitbucket.org/a/b/commits/",
        }.items():
            self.assertEqual(boop.commit_url(repo, sha), url + sha)
        for repo in (
            "/srv/git/site.git",
            "https://example.org/a/b",
            "javascript:alert(1)//github.com/a/b",
            "https://github.com/a/b?x=<script>",
            "https://github.com.evil.org/a/b",
            HOSTILE,
        ):
            self.assertIsNone(boop.commit_url(repo, sha))
        self.assertIsNone(boop.commit_url("https://github.com/a/b", "../../x"))

    def test_colours_have_the_contrast_that_wcag_aa_asks_for(self) -> None:
        light, dark = boop.BOOP_CSS.split("prefers-color-scheme: dark")
        for css in light, dark:
            colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", css))
            for name, color in colors.items():
                grounds = ["panel"] if re.match(r"c\d", name) else ["panel", "bg"]
                for ground in grounds if name not in GROUNDS else []:
                    with self.subTest(name=name, on=colors[ground]):
                        self.assertGreater(contrast(color, colors[ground]), 4.5)

    def test_a_page_and_its_assets_are_under_30_kb(self) -> None:
        assets = len((boop.BOOP_CSS + boop.BOOP_JS).encode())
        for name, page in self.pages().items():
            self.assertLess(assets + len(page.encode()), 30_000, name)


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
        totals = boop.NO_TOTALS
        for d in deployment(), hostile, deployment(duration=None, status="fail"):
            totals = boop.totals_after(totals, d)
        ds = [deployment(8, status="queued", finished_at=None), deployment()]
        return boop.metrics(ds, totals, '1.0"\\\n', "3.11.2")

    def test_metrics_count_what_was_removed_too(self) -> None:
        text = self.metrics()
        for line in (
            'boop_deployments_total{status="success"} 1',
            'boop_deployments_total{status="fail"} 2',
            'boop_deployment_duration_seconds_bucket{le="2"} 0',
            'boop_deployment_duration_seconds_bucket{le="5"} 2',
            'boop_deployment_duration_seconds_bucket{le="+Inf"} 2',
            "boop_deployment_duration_seconds_sum 6.4",
            "boop_deployment_duration_seconds_count 2",
            "boop_queue_length 1",
            "boop_running 0",
            "boop_last_success_timestamp_seconds 1763938109.82",
        ):
            self.assertIn(line + "\n", text)

    @unittest.skipUnless(shutil.which("promtool"), "needs Debian's prometheus")
    def test_promtool_finds_the_metrics_valid(self) -> None:
        tool("promtool", "Debian's prometheus")
        for text in (self.metrics(), boop.metrics([], boop.NO_TOTALS, "1", "3.10")):
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
        self.base = f"http://127.0.0.1:{self.b.port}/"

    def deploy(self, script: str, message: str = "Fix typo") -> int:
        """Queues a deployment that runs the script: its number."""
        self.b.write_script(script)
        head = github_push()["head_commit"] | {"message": message}
        answer = self.b.hook(github_push(head_commit=head))
        self.b.said(f"deployment {answer.json['deployment']}: push")
        return answer.json["deployment"]

    def gate_file(self) -> str:
        """The name of a file, not there yet, that a script waits for."""
        return tempfile.mktemp(dir=self.folder)

    def wait_for(self, gate: str) -> str:
        return f"while ! test -e {gate}; do sleep 0.05; done; "

    def open(self, path: str = "") -> Browser:
        self.browser.call("/url", url="about:blank")
        self.browser.call("/url", url=self.base + path)
        return self.browser

    def lines(self) -> list[str]:
        got = self.browser.js(
            "return [...document.querySelectorAll('[id^=L]')].map(l => l.textContent)"
        )
        return typing.cast("list[str]", got)

    def finish(self) -> None:
        self.browser.until("!/queued|inprogress/.test(document.body.dataset.status)")

    def test_a_log_is_followed_to_its_end_and_the_tab_says_how_it_went(self) -> None:
        gate = self.gate_file()
        n = self.deploy(f"echo one; {self.wait_for(gate)} echo two; exit 7")
        b = self.open(f"log/{n}")
        b.until("document.body.innerText.includes('one')")
        b.until("document.title.startsWith('▶')")
        self.assertNotIn("two", self.lines())
        icon = b.js("return document.querySelector('link[rel=icon]').href")
        pathlib.Path(gate).touch()
        b.until("document.title.startsWith('✗')")
        self.assertIn("two", self.lines())
        self.assertIn("exit status 7", b.js("return said.textContent"))
        self.assertIn("exit status 7", b.js("return document.body.innerText"))
        self.assertNotEqual(
            icon, b.js("return document.querySelector('link[rel=icon]').href")
        )

    def test_the_list_follows_by_itself(self) -> None:
        b = self.open()
        gate = self.gate_file()
        n = self.deploy(self.wait_for(gate), message="Seen in the list")
        b.until(f"document.querySelector('.hero a[href=\"log/{n}\"]')")
        b.until("document.querySelector('.rows time.run')?.textContent === '1 s'")
        pathlib.Path(gate).touch()
        b.until("document.title.startsWith('✓')")
        self.assertIn("Seen in the list", b.js("return document.body.innerText"))

    def test_the_keyboards_place_in_the_list_survives_an_update(self) -> None:
        n = self.deploy("true")
        b = self.open()
        b.until(f"document.querySelector('.rows a[href=\"log/{n}\"]')")
        b.until("document.title.startsWith('✓')")
        b.js(f"document.querySelector('.rows a[href=\"log/{n}\"]').focus()")
        later = self.deploy("true")
        b.until(f"document.querySelector('.rows a[href=\"log/{later}\"]')")
        self.assertEqual(
            b.js(
                "const a = document.activeElement;"
                "return [a.getAttribute('href'), !!a.closest('.rows')]"
            ),
            [f"log/{n}", True],
        )

    def test_markup_in_records_and_logs_stays_text(self) -> None:
        evil = "<img src=x onerror=document.title='owned'><script>alert(1)</script>"
        n = self.deploy(f'printf "%s\\n" "{evil}"', message=evil)
        for path in "", f"log/{n}":
            b = self.open(path)
            b.until(f"document.body.innerText.includes({json.dumps(evil)})")
            self.assertEqual(b.js("return document.querySelector('img')"), None)
            self.assertNotIn("owned", b.js("return document.title"))
        b.until("[...document.querySelectorAll('#log div')].length > 2")
        self.assertIn(evil, self.lines())

    def test_the_log_stays_at_the_bottom_unless_scrolled_up(self) -> None:
        gates = [self.gate_file() for _ in range(2)]
        n = self.deploy(
            f"seq 1 3000; {self.wait_for(gates[0])} seq 3001 4000; echo A; "
            f"{self.wait_for(gates[1])} seq 4001 5000"
        )
        b = self.open(f"log/{n}")
        end = "(scrollY > 999 && scrollY >= document.documentElement.scrollHeight"
        end += " - innerHeight - 30)"
        b.until("document.getElementById('L3000')")
        b.until(end)
        pathlib.Path(gates[0]).touch()
        b.until("document.getElementById('L4000')")
        b.until(end)
        b.js("scrollTo(0, 500)")
        b.until("!document.getElementById('end').hidden")
        pathlib.Path(gates[1]).touch()
        self.finish()
        b.until("document.getElementById('L5000')")
        self.assertEqual(b.js("return scrollY"), 500)
        b.js("document.getElementById('end').click()")
        b.until(end)

    def test_a_finished_log_opens_at_its_head(self) -> None:
        n = self.deploy("seq 1 3000")
        b = self.open(f"log/{n}")
        self.finish()
        b = self.open(f"log/{n}")
        b.until("document.getElementById('L3000')")
        self.assertEqual(b.js("return scrollY"), 0)

    def test_a_carriage_return_leaves_the_last_state_of_the_line(self) -> None:
        gate = self.gate_file()
        n = self.deploy(
            f"printf '10%%\\r50%%\\r'; {self.wait_for(gate)} "
            "printf '100%%\\r\\ndone\\r\\n'; printf 'no end'"
        )
        b = self.open(f"log/{n}")
        b.until("document.querySelector('#log').textContent.includes('50%')")
        self.assertNotIn("10%", "".join(self.lines()))
        pathlib.Path(gate).touch()
        self.finish()
        self.assertIn("100%", self.lines())
        self.assertIn("done", self.lines())
        self.assertNotIn("50%", "".join(self.lines()))

    def test_ansi_colours_are_drawn_and_other_escapes_swallowed(self) -> None:
        n = self.deploy(
            r"printf '\033[1;31mred\033[0m \033[38;5;208morange\033[m "
            r"\033[38;2;1;2;3;4mrgb\033[0m \033[2K\033]0;title\007\033[?25l\033(Bend\n"
            r"\033[32mover\nlines\033[0m \033[44;97mon\033[0m\n'"
        )
        b = self.open(f"log/{n}")
        self.finish()
        self.assertIn("red orange rgb end", self.lines())
        spans = b.js(
            "return [...document.querySelectorAll('#log span')].map(s => "
            "[s.textContent, s.className, s.style.cssText])"
        )
        self.assertEqual(
            spans,
            [
                ["red", "b f", "--f: var(--c1);"],
                ["orange", "f", "--f: rgb(255,135,0);"],
                ["rgb", "f u", "--f: rgb(1,2,3);"],
                ["over", "f", "--f: var(--c2);"],
                ["lines", "f", "--f: var(--c2);"],
                ["on", "g f", "--f: var(--c15); --g: var(--c4);"],
            ],
        )
        red = b.js("return getComputedStyle(document.querySelector('#log .f')).color")
        self.assertNotEqual(red, b.js("return getComputedStyle(log).color"))

    def test_a_line_link_marks_the_line_and_shows_it(self) -> None:
        n = self.deploy("seq 1 20000")
        b = self.open(f"log/{n}#L9000")
        b.until("document.querySelector('#L9000.on')")
        self.finish()
        seen = "(r => r.top > 0 && r.bottom < innerHeight)"
        b.until(f"{seen}(document.querySelector('.on').getBoundingClientRect())")
        b.js("document.querySelector('#L9002 a').click()")
        b.until("document.querySelector('#L9002.on')")
        self.assertEqual(b.js("return location.hash"), "#L9002")
        self.assertEqual(b.js("return document.querySelectorAll('.on').length"), 1)

    def test_utf_8_is_whole_wherever_the_stream_is_cut(self) -> None:
        gate = self.gate_file()
        n = self.deploy(
            f"printf 'caf\\303'; {self.wait_for(gate)} printf '\\251 \\360\\237'; "
            "sleep 0.1; printf '\\216\\211\\n'"
        )
        b = self.open(f"log/{n}")
        b.until("document.querySelector('#log').textContent.includes('caf')")
        pathlib.Path(gate).touch()
        self.finish()
        self.assertIn("café 🎉", self.lines())

    def test_a_log_of_10_mb_does_not_hang_the_browser(self) -> None:
        n = self.deploy(
            "seq -f 'line %07.0f of a log that is ten megabytes long' 1 200000"
        )
        b = self.open(f"log/{n}")
        b.until("document.getElementById('L200002')", 60)
        self.finish()

    def test_one_endless_line_does_not_hang_the_browser(self) -> None:
        n = self.deploy("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last")
        b = self.open(f"log/{n}")
        self.finish()
        b.until("[...document.querySelectorAll('#log div')].at(-1)")
        self.assertIn("last", self.lines())
        self.assertEqual(len(self.lines()), 4)

    def test_nothing_breaks_the_content_security_policy(self) -> None:
        n = self.deploy("printf '\\033[38;2;1;2;3mrgb\\n'")
        for path in "", f"log/{n}":
            b = self.open(path)
            b.until("document.readyState === 'complete'")
            found = b.call("/se/log", type="browser")
            self.assertEqual([m for m in found if m["level"] == "SEVERE"], [])


# --- Settings, start and stop ---------------------------------------------------------


class Starting(Case):
    """Settings, flags, exit statuses."""

    def run_boop(self, *argv: str, **env: str | None) -> tuple[int, str, str]:
        d = self.daemon(argv=argv, **env).start(listening=False)
        out = d.process.stdout.read().decode()
        status, err = d.ended()
        return status, out, err

    def test_every_mistake_is_named_at_once_and_the_exit_status_is_78(self) -> None:
        status, _, err = self.run_boop(
            BOOP_PORT="http", BOOP_TIMEOUT="0", BOOP_SCRIPT="/no/such", BOOP_KEEP="x"
        )
        self.assertEqual(status, 78)
        lines = err.splitlines()
        self.assertEqual(len(lines), 4, err)
        for line, name in zip(lines, ("PORT", "SCRIPT", "TIMEOUT", "KEEP")):
            self.assertIn(f"BOOP_{name}", line)

    def test_a_flag_wins_over_its_variable(self) -> None:
        status, _, err = self.run_boop("--port", "x", BOOP_PORT="1")
        self.assertEqual(status, 78)
        self.assertIn("'x'", err)
        status, out, _ = self.run_boop("--check", "--port=8123", BOOP_PORT="1")
        self.assertEqual(status, 0)
        self.assertIn("BOOP_PORT=8123", out)

    def test_unknown_flags_and_secrets_as_flags_are_refused(self) -> None:
        for flag in ("--prot=1", "--secret=x", "--password=x", "--github-token=x"):
            status, _, err = self.run_boop(flag)
            self.assertEqual(status, 78, err)
            self.assertIn(flag.split("=")[0], err)

    def test_check_validates_and_shows_no_secret(self) -> None:
        status, out, _ = self.run_boop("--check", BOOP_SECRET="sssssssssecret")
        self.assertEqual(status, 0)
        self.assertNotIn("ssecret", out)
        self.assertEqual(self.run_boop("--check", BOOP_PORT="-1")[0], 78)
        self.assertFalse((self.folder / "state").exists())

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
        record = json.loads((b.state / "1.json").read_text())
        self.assertEqual(record["status"], "fail")
        self.assertEqual(record["reason"], "interrupted: boop was stopped")
        self.assertIn("cleaned up\n", (b.state / "1.log").read_text())
        b.start()
        again = b.finished(2)
        self.assertEqual(again["status"], "success")
        self.assertEqual(again["trigger"], "interrupted")
        b.restart()
        self.assertEqual(len(b.records()), 2)  # and not once more

    def test_a_second_signal_ends_the_script_at_once(self) -> None:
        on = self.folder / "on"
        b = self.boop(f"trap '' TERM; echo > {on}; while :; do sleep 9; done")
        b.push()
        until(on.exists, "the script")
        b.process.send_signal(signal.SIGTERM)
        b.said("stopping")
        status, _ = b.stop()
        self.assertEqual(status, 0)
        self.assertIn("interrupted", (b.state / "1.log").read_text())


# --- The whole way --------------------------------------------------------------------

HUGO_SITE = {
    "hugo.toml": "baseURL = 'https://example.org/'\ntitle = 'Example'\n",
    "layouts/index.html": "<h1>{{ .Title }}</h1>{{ range .Pages }}.{{ end }}",
    "layouts/_default/single.html": "<h1>{{ .Title }}</h1>{{ .Content }}\n",
    "layouts/_default/list.html": "{{ range .Pages }}<a>{{ .Title }}</a>{{ end }}\n",
    "content/posts/one.md": "---\ntitle: One\n---\n# Héllo\n",
    "static/style.css": "h1 { color: teal }\n",
}


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
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

    def push(self, b: Daemon, checkout: pathlib.Path, **files: str) -> None:
        """Commits, pushes, and delivers what GitHub would; waits for the end."""
        tip = commit(checkout, {k.replace("__", "/"): v for k, v in files.items()})
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
        self.push(b, checkout, content__two="x", content__posts__two="no page")
        commit(checkout, {"content/posts/three.md": "---\ntitle: 3\n---\n3"})
        git(checkout, "rm", "-q", "content/posts/one.md")
        self.push(b, checkout, static__new="new")
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
        self.assertRegex(record["reason"], "^exit status")
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
        gone = {"new": None, "closed": True, "old": {"type": "branch", "name": "x"}}
        answer = self.from_bitbucket(b, self.bitbucket(gone, self.change("v1", "tag")))
        self.assertEqual(answer.status, 200)
        self.assertIn("deleted", answer.json["ignored"])
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

    def ask(self, b: Daemon, *argv: str, **env: str) -> tuple[int, str, str]:
        """Runs the command beside a running boop: status, stdout, stderr."""
        done = subprocess.run(
            [sys.executable, str(HERE / "boop.py"), "deploy", *argv],
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

    def test_errors_are_one_line(self) -> None:
        b, _ = self.boop_with_site("exit 0")
        for argv, env, words in (
            ((), {"BOOP_SECRET": "wrong"}, "401"),
            ((), {"BOOP_SECRET": ""}, "BOOP_SECRET"),
            (("abc",), {}, "not a full commit id"),
            ((), {"BOOP_PORT": "1"}, "does not answer"),
        ):
            status, out, err = self.ask(b, *argv, **env)
            self.assertNotEqual(status, 0)
            self.assertEqual((out, len(err.splitlines())), ("", 1), err)
            self.assertIn(words, err)

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
        b, checkout = self.boop_with_site(f"[ $BOOP_NUMBER = 1 ] || read < {gate}")
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


if __name__ == "__main__":
    unittest.main()
