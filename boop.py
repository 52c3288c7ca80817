#!/usr/bin/env python3
"""boop: `git push`, and seconds later your site is live.

A forge's webhook asks for a deployment; boop runs a script, one at a time, and
shows what happened to `curl` and to a browser. Standard library only, Linux.

The way of a push, left to right, and the thread that each part runs in:

    forge --POST /deploy--> Handler --Push--> Deployments --> Runner --> deploy.sh
                            (its own)         (the lock,      (runner)      |
                                               the journal)               N.log
                                                                            |
    curl, browser <-- Handler: list, log, ?follow (its own) <---------------+

Threads: *main* accepts connections, minds signals, and tells systemd that all is well;
each connection has one of its own; *runner* runs the script; *catch-up* asks git for
the branch's tip; *reporters* talk to GitHub and to BOOP_NOTIFY, where these are set.

The rooms, top to bottom; each uses only the rooms above it:

    1. Constants     limits, each with its reason; masking; what is said on stderr
    2. Settings      one table: variable, flag, default, check, help
    3. Pushes        is it signed, and what does it say: bytes in, a Push out
    4. Deployments   the locked dict and its journal on disk
    5. Runner        git and the script: processes, time limit, log
    6. Reporting     commit statuses and notifications: can fail, cannot hurt
    7. Pages         records to text, HTML, JSON, SVG, metrics
    8. HTTP          routes, refusals, followers, connections
    9. main          wiring, signals, systemd; `boop.py deploy`
"""

from __future__ import annotations

import _thread
import base64
import contextlib
import datetime
import email.message
import errno
import fcntl
import functools
import hmac
import importlib
import io
import json
import mmap
import os
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import typing
import urllib.parse

# http.server imports http.client, and that imports ssl if there is one: 4 ms and 1.3 MB
# that only a commit status needs (see _post). argparse and shutil are imported
# where they are used, for the same reason.
sys.modules["ssl"] = None  # type: ignore[assignment]
import http.client
import http.server

del sys.modules["ssl"]

# --- 1. Constants ---------------------------------------------------------------------

VERSION = "1.0"

MAX_BODY_BYTES = 25 << 20  # GitHub sends nothing larger
MAX_FORM_BYTES = 1 << 20  # Gitea's have to be decoded before they are verified
LARGE_BYTES, MAX_LARGE_BODIES = 1 << 20, 2  # at once, in memory, and nobody signed them
MAX_HEAD_BYTES = 64 << 10
HEAD_DEADLINE_S = 10  # for a whole request head, however its bytes trickle in
BODY_DEADLINE_S = 60  # and for a whole body
SEND_TIMEOUT_S = 30  # a reader that takes nothing for so long is gone
LINGER_S = 2  # to read on after a refusal, so that the client sees why
LOOK_S = 1  # between a follower's looks whether its client is there
MAX_CONNECTIONS = 400  # each costs a thread; with a log open, two of 1,024 descriptors
MAX_FOLLOWERS = 200  # of those: they stay, and pushes need a place
BACKLOG = 1024  # socketserver's 5 makes the kernel drop SYNs in a burst

GRACE_S = 10  # between SIGTERM and SIGKILL
DRAIN_S = 1  # for connections that are open when boop ends
CLOSE_S = 2  # for reports that are under way then
NOTIFY_TIMEOUT_S = 60
RETRY_S, MAX_RETRY_S = 15, 3600  # between looks at a repository that is out of reach
GIT_TIMEOUT_S = 20  # for one look at the repository
PIPE_BYTES = 64 << 10  # what is read of the script's output at once
MAX_MESSAGE_CHARS = 4096  # of a commit message: an environment variable is limited
MAX_NAME_CHARS = 250  # of an author or a branch
MAX_RESULT_BYTES = 16 << 10  # of what the script says of its deployment

EX_CONFIG = 78  # sysexits.h; the unit does not restart on it

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6  # sd-daemon(3), as syslog(3) numbers them

# What moves a cursor, starts an escape code, turns text around, hides in it, or
# can't be encoded: C0, DEL, C1, bidi marks and overrides, BOM, lone surrogates.
UNSAFE = (
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    r"\ud800-\udfff]"
)


def one_line(text: str, limit: int = 500) -> str:
    """Untrusted text as one line, masked, safe in a terminal; whole up to limit."""
    text = say.mask.text(text[: 1 << 16])  # before it is cut
    text = re.sub(UNSAFE, "?", " ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Mask:
    """Replaces secrets by `***`, also in a stream, wherever it is cut.

    Not for sharing between threads while it holds a stream; `text` may be shared.
    """

    def __init__(self, shown: typing.Mapping[str, str]) -> None:
        """shown: each secret, of one line, and what stands in its place."""
        self._shown = {os.fsencode(k): os.fsencode(v) for k, v in shown.items()}
        self._secrets = sorted(self._shown, key=len, reverse=True)  # the longest wins
        self._firsts = tuple({secret[:1] for secret in self._secrets})
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)) or b"(?!)")
        self._held = b""

    def text(self, text: str) -> str:
        """The text with every secret replaced."""
        data = text.encode("utf-8", "surrogatepass")
        return self._replace(data).decode("utf-8", "surrogatepass")

    def feed(self, data: bytes) -> bytes:
        """The next part of a stream. Its end is held back where it begins a secret."""
        if not self._secrets:
            return data
        data = self._held + data
        first = max(0, data.rfind(b"\n") + 1, len(data) - len(self._secrets[0]) + 1)
        ends = (i for i in range(first, len(data)) if self._begins(data, i))
        safe = next(ends, len(data))
        for found in self._pattern.finditer(data):
            if found.start() < safe < found.end():
                safe = found.end()
        self._held = data[safe:]
        return self._replace(data[:safe])

    def flush(self) -> bytes:
        """What was held back: nothing more comes."""
        held, self._held = self._held, b""
        return self._replace(held)

    def _begins(self, data: bytes, at: int) -> bool:
        if not data.startswith(self._firsts, at):  # most of a megabyte does not
            return False
        return any(secret.startswith(data[at:]) for secret in self._secrets)

    def _replace(self, data: bytes) -> bytes:
        return self._pattern.sub(lambda found: self._shown[found[0]], data)


class Console:
    """Says things on stderr, a line each. main sets its mask, before any thread starts.

    Under systemd a line carries its priority, sd-daemon(3); elsewhere the time.
    """

    def __init__(self) -> None:
        self.mask, self.journal = Mask({}), False
        with contextlib.suppress(OSError):  # it is closed
            err, journal = os.fstat(2), os.environ.get("JOURNAL_STREAM")
            self.journal = journal == f"{err.st_dev}:{err.st_ino}"

    def __call__(self, text: str, priority: int = INFO) -> None:
        head = f"<{priority}>" if self.journal else time.strftime("%F %T boop: ")
        line = head + one_line(text, 2000) + "\n"
        with contextlib.suppress(OSError):  # of a full disk, a closed terminal
            os.write(2, line.encode("utf-8", "replace"))


say = Console()


# --- 2. Settings ----------------------------------------------------------------------

Environ = typing.Mapping[str, str]
Secret = typing.NewType("Secret", str)  # what has no flag, and may be a credential


class BadSettings(Exception):
    """Its arguments are the mistakes, each a line."""


# What checks a setting's text: its value, or ValueError.


def _whole(least: int, most: int) -> typing.Callable[[str], int]:
    def check(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"not a whole number from {least} to {most}")
        return int(text)

    return check


def _path(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text)) if text else ""


def _executable(text: str) -> str:
    path = _path(text)
    if path and not os.path.isfile(path):
        raise ValueError("no such file")
    if path and not os.access(path, os.X_OK):
        raise ValueError("not executable (chmod +x)")
    return path


def _url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("not an http:// or https:// address")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[\w:%-]{1,63}(\.[\w:%-]{1,63})*\.?", text, re.ASCII):
        raise ValueError("not an address or a host name")
    return text


def _repo(text: str) -> str:
    if text.startswith("-") or "::" in text.split("/")[0] or re.search(UNSAFE, text):
        raise ValueError("not a repository's URL or path")
    is_url = re.match(r"[\w.+-]+://|[^/]+:", text)  # https://… | git@host:path
    return text if is_url else _path(text)


def branch_name(text: str) -> str:
    """The text, if git would take it as a branch, git-check-ref-format(1)."""
    bad = r"^$|^[-/.]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|[/.]$|^@$"
    if re.search(bad, text) or re.search(UNSAFE, text) or len(text) > MAX_NAME_CHARS:
        raise ValueError("not a branch name")
    return text


def _branch(text: str) -> str:
    return branch_name(text.removeprefix("refs/heads/")) if text else ""


# What finds a default out at start.


def _state_folder(environ: Environ) -> str:
    """systemd.exec(5), STATE_DIRECTORY; XDG Base Directory Specification."""
    home = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return environ.get("STATE_DIRECTORY", "").split(":")[0] or f"{home}/boop"


def _checkout(environ: Environ) -> str:
    """The git checkout that boop is started in, or ""."""
    folder = os.path.join(os.getcwd(), "")
    while folder != "/":
        folder = os.path.dirname(folder)
        if os.path.exists(os.path.join(folder, ".git")):
            return folder
    return ""


class Setting(typing.NamedTuple):
    """A row of the table."""

    default: str | typing.Callable[[Environ], str]
    check: typing.Callable[[str], typing.Any]
    help: str
    shown: str = ""  # the default in words, where it is found out


def _row(*row: typing.Any) -> typing.Any:  # of any type, as the value has another
    return Setting(*row)


class Settings:
    """What boop was told, checked: made by read_settings, and never changed.

    And the table of the settings: each has a variable and a flag of its name
    (BOOP_LOG_LIMIT, --log-limit), but a Secret. It has no repr that could show one.
    """

    secret: Secret = _row("", Secret, "shared with the forge; without: no hooks")
    host: str = _row("127.0.0.1", _host, "address to listen on")
    port: int = _row("8080", _whole(0, 65535), "port; 0 takes a free one")
    script: str = _row(
        os.path.join(os.path.dirname(os.path.realpath(__file__)), "deploy.sh"),
        _executable,
        "executable to run",
        "deploy.sh beside boop.py",
    )
    state: str = _row(
        _state_folder,
        _path,
        "where the journal, the logs and the script's work folder live",
        "$STATE_DIRECTORY, $XDG_STATE_HOME/boop or ~/.local/state/boop",
    )
    repo: str = _row(
        _checkout,
        _repo,
        "the site's repository, URL or path; empty: whatever a push names",
        "the git checkout that boop is started in",
    )
    branch: str = _row(
        "", _branch, "branch to deploy", "the repository's default branch"
    )
    timeout: int = _row("600", _whole(1, 10**9), "seconds a deployment may take")
    keep: int = _row("100", _whole(1, 10**9), "finished deployments kept")
    log_limit: int = _row("10485760", _whole(0, 10**12), "bytes kept of one log")
    poll: int = _row(
        "0",
        _whole(0, 10**9),
        "seconds between looks at the branch's tip; 0: at start and on SIGHUP only",
    )
    url: str = _row("", _url, "boop's public address, for links")
    github_token: Secret = _row("", Secret, "to report commit statuses with")
    github_api: str = _row("https://api.github.com", _url, "the forge's API")
    notify: str = _row("", _executable, "executable run after each deployment")
    password: Secret = _row("", Secret, "asked for by the list, logs and metrics")

    environ: Environ  # all of boop's; nobody else reads it
    repo_user: str  # user[:password] of the repository's URL, which is without it

    def log(self, number: int) -> str:
        """Where a deployment's log is, or will be."""
        return os.path.join(self.state, f"{number}.log")

    def link(self, number: int) -> str:
        """To its log, for statuses and notifications; "" without a BOOP_URL."""
        return f"{self.url.rstrip('/')}/log/{number}" if self.url else ""


SETTINGS: dict[str, Setting] = {
    name: row for name, row in vars(Settings).items() if isinstance(row, Setting)
}


def read_settings(environ: Environ, flags: typing.Mapping[str, str]) -> Settings:
    """Flags by name, then credentials and variables, then defaults. What is empty is
    not given, but for the repository.

    Raises BadSettings with every mistake that there is.
    """
    settings, mistakes = Settings(), []
    settings.environ = environ
    for name, row in SETTINGS.items():
        variable, text = f"BOOP_{name.upper()}", flags.get(name)
        try:
            if row.check is Secret:
                text = _credential(variable, environ)
            text = environ.get(variable) if text is None else text
            if text is None or (not text and name != "repo"):
                found = row.default
                text = found(environ) if callable(found) else found
            setattr(settings, name, row.check(text))
        except (ValueError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error)
            shown = "" if row.check is Secret else f" {split_user(text or '')[0]!r}"
            mistakes.append(f"{variable}{shown}: {why}")
    count = environ.get("GIT_CONFIG_COUNT", "")
    if not re.fullmatch("[0-9]{0,4}", count):
        mistakes.append(f"GIT_CONFIG_COUNT {count!r}: not a whole number")
    if mistakes:
        raise BadSettings(*mistakes)
    settings.repo, settings.repo_user = split_user(settings.repo)
    return settings


def _credential(variable: str, environ: Environ) -> str | None:
    """A secret that systemd passes as a file; systemd.exec(5), CREDENTIALS."""
    path = os.path.join(environ.get("CREDENTIALS_DIRECTORY", ""), variable)
    if path == variable or not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read().rstrip("\r\n")


def split_user(repo: str) -> tuple[str, str]:
    """https://user:password@host/x -> https://host/x, user:password; of any scheme.

    ssh needs its user (ssh://git@host) and takes no password: that alone is dropped.
    """
    found = re.match(r"([\w.+-]+://)([^/]*)@(.*)", repo, re.DOTALL)
    if not found:
        return repo, ""
    scheme, user, rest = found[1].lower(), found[2], found[3]
    if "ssh" in scheme:
        return f"{scheme}{user.partition(':')[0]}@{rest}", user if ":" in user else ""
    return scheme + rest, user


def secrets_of(settings: Settings) -> dict[str, str]:
    """What must not be shown, and what stands in its place."""
    named = re.compile("secret|token|password|key", re.IGNORECASE)
    values = [v for k, v in settings.environ.items() if named.search(k)]
    values += [settings.secret, settings.github_token, settings.password]
    user, (name, _, password) = settings.repo_user, settings.repo_user.partition(":")
    parts = [user, name, password, _basic(user)]
    values += parts + [urllib.parse.unquote(part) for part in parts]
    lines = [line for value in values for line in re.split("[\r\n]", value)]
    shown = {line: "***" for line in lines if len(line) >= 8}
    if user:  # also where it is short
        shown |= {f"//{user}@": "//***@", f"//{name}@": "//***@"}
    return shown


def _basic(user: str) -> str:
    """user[:password] of a URL, as RFC 7617 sends it."""
    name, _, password = user.partition(":")
    pair = f"{urllib.parse.unquote(name)}:{urllib.parse.unquote(password)}"
    return base64.b64encode(pair.encode()).decode()


def child_environment(settings: Settings) -> dict[str, str]:
    """boop's environment without its secrets and systemd's sockets, for a child.

    git gets the repository's user and password as a header, git-config(1)
    http.extraHeader: what stands in a URL stands in the process list too.
    """
    own = {f"BOOP_{name.upper()}" for name, s in SETTINGS.items() if s.check is Secret}
    own |= {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"}
    own |= {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    env = {k: v for k, v in settings.environ.items() if k not in own}
    env["BOOP_STATE"] = settings.state
    site = re.match("https?://[^/]*/?", settings.repo)
    if settings.repo_user and site:
        count = int(env.get("GIT_CONFIG_COUNT") or 0)
        env["GIT_CONFIG_COUNT"] = str(count + 1)
        env[f"GIT_CONFIG_KEY_{count}"] = f"http.{site[0]}.extraHeader"
        header = f"Authorization: Basic {_basic(settings.repo_user)}"
        env[f"GIT_CONFIG_VALUE_{count}"] = header
    return env


# --- 3. Pushes ------------------------------------------------------------------------


class Push(typing.NamedTuple):
    """What a verified request asks for. Its words are safe to keep and to pass on."""

    repo: str
    branch: str
    commit: str | None = None
    message: str | None = None
    author: str | None = None
    trigger: str = "push"  # or manual; or what in its message says not to deploy it
    exact: bool = False  # exactly the commit, not the branch's tip
    force: bool = False  # whatever deploy.sh thinks of it
    tip: str | None = None  # of an exact one: what it rolls back from, if known
    full_name: str | None = None  # "owner/repository", as the forge's API has it


class Refusal(Exception):
    """An answer other than 202: its status and the sentence that says why."""

    def __init__(self, status: int, why: str, word: str = "error") -> None:
        super().__init__(why)
        self.status, self.why, self.word = status, why, word


def ignored(why: str) -> Refusal:
    """Not wanted, and no mistake: 200, so that GitLab does not disable the hook."""
    return Refusal(200, why, "ignored")


# Headers that prove who sent a body, the strongest first, and what may stand there
# before hex digits. The first that is there decides, also when it is empty: leaving one
# out, or sending a wrong one beside an older one that is right, gets nobody in.
SIGNATURES = {
    "X-Hub-Signature-256": ["sha256="],  # GitHub; Gitea and Forgejo, too
    "X-Forgejo-Signature": [""],
    "X-Gitea-Signature": [""],
    "webhook-signature": [],  # GitLab's signing token: base64
    "X-Gitlab-Token": [],  # the secret itself
    "X-Hub-Signature": ["sha256=", "sha1="],  # Bitbucket | GitHub of old
}
Headers = email.message.Message  # names in any case, as http.server reads them
Body = bytes | memoryview
JSON, FORM = "application/json", "application/x-www-form-urlencoded"


def signature(headers: Headers) -> tuple[str, str]:
    """The header that shall prove who sent a body, and its value; Refusal (401)
    where there is none."""
    header = next((h for h in SIGNATURES if h in headers), "")
    if not header:
        raise Refusal(401, f"no signature: looked for {', '.join(SIGNATURES)}")
    value = headers[header].strip(" \t")
    if not value:
        raise Refusal(401, f"{header} is empty: set the hook's secret")
    return header, value


def verify(secret: str, headers: Headers, body: Body) -> None:
    """Returns if the body was signed with the secret; else Refusal (401), which never
    says what was expected. docs.github.com, "Validating webhook deliveries"."""
    header, value = signature(headers)
    key, sent = os.fsencode(secret), value.encode("latin-1", "replace")
    given = sent.split(b" ") if header == "webhook-signature" else [sent]
    rights = _signed(header, key, headers, body) if key else []
    if not any(hmac.compare_digest(g, r) for g in given for r in rights):
        what = "is not" if header == "X-Gitlab-Token" else "was not made with"
        raise Refusal(401, f"{header} {what} this boop's secret (BOOP_SECRET)")


def _signed(header: str, key: bytes, headers: Headers, body: Body) -> list[bytes]:
    """What the header may say, where who has the key has sent the body."""
    if header == "X-Gitlab-Token":
        return [key]
    if header == "webhook-signature":
        return _standard_webhook(key, headers, body)
    signed: list[Body] = [body]
    gitea = "X-Gitea-Event" in headers or "X-Forgejo-Event" in headers
    if gitea and media_type(headers) == FORM:
        signed.append(form_payload(body))  # they sign the JSON inside it
    return [
        f"{prefix}{hmac.new(key, part, prefix[:-1] or 'sha256').hexdigest()}".encode()
        for prefix in SIGNATURES[header]
        for part in signed
    ]


def _standard_webhook(key: bytes, headers: Headers, body: Body) -> list[bytes]:
    """standardwebhooks.com. Without a look at the clock: a replay can only ask for the
    tip again."""
    if key.startswith(b"whsec_"):
        try:
            key = base64.b64decode(key[len(b"whsec_") :], validate=True)
        except ValueError:
            return []
    names = "webhook-id", "webhook-timestamp"
    head = "".join(f"{headers.get(name, '')}." for name in names)
    mac = hmac.new(key, head.encode("latin-1", "replace"), "sha256")
    mac.update(body)
    return [b"v1," + base64.b64encode(mac.digest())]


def media_type(headers: Headers) -> str:
    """Content-Type without its parameters, in lower case."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def form_payload(body: Body) -> bytes:
    """The JSON that stands in a form's `payload=` field; b"" where there is none."""
    try:
        text = str(body, "ascii")
        fields = urllib.parse.parse_qs(text, errors="strict", max_num_fields=9)
        return fields.get("payload", [""])[0].encode()
    except ValueError:
        return b""


Look = typing.Callable[[bool], "tuple[str, str | None]"]


def parse(headers: Headers, body: Body, settings: Settings, look: Look) -> Push | int:
    """What a verified request asks for, or the number of the deployment that it asks to
    end; Refusal says why it asks for nothing.

    look: asks the configured repository for the branch to deploy and, if True, its tip,
    which is None where it can't be known.
    """
    payload = _json_object(body, media_type(headers))
    for forge in FORGES:
        if forge.event_header in headers:
            return _push(forge, headers, payload, settings, look)
    return _manual(payload, settings, look)


def _json_object(body: Body, kind: str) -> dict[str, typing.Any]:
    if kind not in (JSON, FORM):
        kind = one_line(kind, 60) or "missing"
        raise Refusal(415, f"Content-Type is {kind}, not {JSON} or {FORM}")
    where = "the form's payload field" if kind == FORM else "the body"
    try:
        text = str(body if kind == JSON else form_payload(body), "utf-8")
        value = json.loads(text, object_hook=_without_files)
    except (ValueError, RecursionError):  # also of a number with 5,000 digits
        raise Refusal(400, f"{where} is not JSON") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"{where} is JSON, but not an object")
    return value


def _without_files(value: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Less a commit's lists of files: a push of 20 MB is little else, and this drops
    them as each commit is complete instead of holding all until the end."""
    for name in ("added", "removed", "modified"):
        value.pop(name, None)
    return value


class Change(typing.NamedTuple):
    """A branch or tag that a delivery says has moved; nothing in it is checked."""

    ref: typing.Any
    commit: typing.Any
    deleted: bool
    message: typing.Any
    author: typing.Any
    default_branch: typing.Any
    clone_url: typing.Any


def dig(value: typing.Any, *keys: str) -> typing.Any:
    """value[key][key]…, or None where there is no such thing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _github(payload: typing.Any, repository: str = "repository") -> list[Change]:
    """GitHub, Gitea, Forgejo; GitLab, of a "project": one ref, and its commits."""
    after, commits = dig(payload, "after"), dig(payload, "commits")
    commits = commits if isinstance(commits, list) else []
    newest = next((c for c in commits if dig(c, "id") == after), None)
    head, repo = dig(payload, "head_commit") or newest, dig(payload, repository)
    zeros = isinstance(after, str) and bool(after) and not after.strip("0")
    change = Change(
        ref=dig(payload, "ref"),
        commit=after,
        deleted=dig(payload, "deleted") is True or zeros,
        message=dig(head, "message"),
        author=dig(head, "author", "name") or dig(payload, "user_name"),
        default_branch=dig(repo, "default_branch"),
        clone_url=dig(repo, "clone_url") or dig(repo, "git_http_url"),
    )
    return [change]


def _bitbucket(payload: typing.Any) -> list[Change]:
    """Bitbucket Cloud: several changes in one push; `new` is null on a deletion."""
    changes, name = dig(payload, "push", "changes"), dig(payload, *FULL_NAME)
    return [
        Change(
            ref=f"refs/{_KINDS.get(str(dig(moved, 'type')))}/{dig(moved, 'name')}",
            commit=dig(moved, "target", "hash"),
            deleted=dig(change, "closed") is True or not dig(change, "new"),
            message=dig(moved, "target", "message"),
            author=str(dig(moved, "target", "author", "raw") or "").split(" <")[0],
            default_branch=None,
            clone_url=name and f"https://bitbucket.org/{name}.git",
        )
        for change in (changes if isinstance(changes, list) else ())
        for moved in [dig(change, "new") or dig(change, "old")]
    ]


_KINDS = {"branch": "heads", "tag": "tags"}
FULL_NAME = "repository", "full_name"


class Forge(typing.NamedTuple):
    """How one kind of forge words a push."""

    event_header: str
    push: str  # its value for a push
    ping: str
    read: typing.Callable[[typing.Any], list[Change]]


FORGES = (  # Forgejo and Gitea send the event headers of those they come from, too
    Forge("X-Forgejo-Event", "push", "ping", _github),
    Forge("X-Gitea-Event", "push", "ping", _github),
    Forge("X-GitHub-Event", "push", "ping", _github),
    Forge("X-Gitlab-Event", "Push Hook", "", lambda said: _github(said, "project")),
    Forge("X-Event-Key", "repo:push", "diagnostics:ping", _bitbucket),
)
SKIP_MARKERS = ("[skip ci]", "[ci skip]", "[no ci]", "[skip deploy]")


def _push(
    forge: Forge,
    headers: Headers,
    payload: dict[str, typing.Any],
    settings: Settings,
    look: Look,
) -> Push:
    event = headers[forge.event_header]
    if event == forge.ping:
        raise Refusal(200, clean(payload.get("zen"), 200) or "boop", "pong")
    if event != forge.push:
        raise ignored(f'event "{one_line(event, 60)}": only "{forge.push}" is deployed')
    changes = forge.read(payload)
    if not changes:
        raise Refusal(400, "a push without changes: push.changes is missing or empty")
    wanted = settings.branch or changes[0].default_branch
    if not wanted and settings.repo:
        wanted, _ = look(False)
    whys = [_unwanted(change, wanted) for change in changes]
    if "" not in whys:
        raise ignored("; ".join(dict.fromkeys(whys)))
    change = changes[whys.index("")]
    if change.commit is not None and not is_commit(change.commit):
        raise Refusal(400, "the push's new commit is not a full commit id")
    message = str(change.message).lower()
    return Push(
        repo=settings.repo or clone_url(change.clone_url),
        branch=wanted,
        commit=change.commit and change.commit.lower(),
        message=clean(change.message, MAX_MESSAGE_CHARS),
        author=clean(change.author, MAX_NAME_CHARS),
        trigger=next((mark for mark in SKIP_MARKERS if mark in message), "push"),
        full_name=full_name(dig(payload, *FULL_NAME)),
    )


def _unwanted(change: Change, wanted: typing.Any) -> str:
    """Why a change is not deployed, or "". Refusal (400) where it makes no sense."""
    if not isinstance(change.ref, str):
        raise Refusal(400, 'a push without "ref"')
    ref = one_line(change.ref, MAX_NAME_CHARS)
    if change.deleted:
        return f"{ref} was deleted"
    if change.ref.startswith("refs/tags/"):
        return f"{ref} is a tag: only branches are deployed"
    if not change.ref.startswith("refs/heads/"):
        return f"{ref} is not a branch"
    if not isinstance(wanted, str) or not wanted:
        return "the forge does not say which branch is the default: set BOOP_BRANCH"
    name = change.ref[len("refs/heads/") :]
    if name != wanted:
        name, wanted = one_line(name), one_line(wanted, MAX_NAME_CHARS)
        return f'branch "{name}" is not "{wanted}"'
    try:
        branch_name(name)
    except ValueError as error:
        raise Refusal(400, f'"{ref}" is {error}') from None
    return ""


def _manual(
    payload: dict[str, typing.Any], settings: Settings, look: Look
) -> Push | int:
    """Asked by hand, with no forge's event header: {}, {"commit": "<full sha>"}, both
    also with "force": true, or {"cancel": 7}."""
    number, force = payload.get("cancel"), payload.get("force", False)
    if payload.keys() == {"cancel"} and type(number) is int:
        return number
    if payload.keys() - {"commit", "force"} or type(force) is not bool:
        looked = ", ".join(forge.event_header for forge in FORGES)
        by_hand = '{"commit": …, "force": true} or {"cancel": 7}'
        raise Refusal(400, f"no forge that boop knows ({looked}), nor {by_hand}")
    commit = payload.get("commit")
    if "commit" in payload and not is_commit(commit):
        raise Refusal(400, '"commit" is not a full commit id (40 or 64 hex digits)')
    if not settings.repo:
        raise Refusal(400, "which repository? Set BOOP_REPO to ask by hand")
    branch, tip = look(True)
    push = Push(settings.repo, branch, tip, trigger="manual", force=force)
    if commit is None:
        return push
    return push._replace(commit=commit.lower(), exact=True, tip=tip)


def is_commit(value: typing.Any) -> bool:
    """Is it a full commit id, SHA-1's or SHA-256's?"""
    hex_digits = "[0-9a-fA-F]{40}|[0-9a-fA-F]{64}"
    return isinstance(value, str) and bool(re.fullmatch(hex_digits, value))


def clean(value: typing.Any, limit: int) -> str | None:
    """A payload's text, fit for an environment variable and a file: no NUL, no lone
    surrogate, not endless, no secret. None for what is no text or empty."""
    if not isinstance(value, str):
        return None
    text = value[: 1 << 16].replace("\0", "").encode("utf-8", "replace").decode()
    return say.mask.text(text.strip())[:limit] or None  # masked before it is cut


def full_name(value: typing.Any) -> str | None:
    """owner/repository, if it can be part of a URL's path."""
    pattern = r"\w[\w.-]*/\w[\w.-]*"
    ok = isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII)
    return value[:MAX_NAME_CHARS] if ok else None


def clone_url(value: typing.Any) -> str:
    """A payload's URL, if it can only mean a repository elsewhere; else Refusal (400).

    git runs a command for ext::, reads this machine's files for file:// and paths,
    and takes what begins with a dash as an option.
    """
    host = r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?"
    path = r"[^\s\x00-\x20\x7f-\x9f\u2028-\u202e\ud800-\udfff\\]+"
    pattern = rf"((https?|git)://|ssh://([A-Za-z0-9][\w.-]*@)?){host}/(?!-){path}"
    if isinstance(value, str) and len(value) < 2000 and re.fullmatch(pattern, value):
        return value
    raise Refusal(400, "the push names no repository at an https, ssh or git address")


# --- 4. Deployments -------------------------------------------------------------------

JOURNAL = "deployments.jsonl"
STOPPED, KILLED = "interrupted: boop was stopped", "interrupted: boop was killed"
CANCELLED = "cancelled by hand"
COMPACT_LINES = 1000  # added to the journal before it is written anew


class Deployment(typing.NamedTuple):
    """One run of the script for one (repository, branch). Never changed, replaced.

    A NamedTuple, because `import dataclasses` would add a fifth to boop's start. Times
    are RFC 3339 in UTC with milliseconds, as everybody sees them.
    """

    number: int
    status: str  # queued, inprogress, success, fail
    reason: str | None = None  # of a fail; of one that runs: it is being cancelled
    trigger: str = "push"  # or catch-up, poll, manual, interrupted
    repo: str = ""
    branch: str = ""
    commit: str | None = None
    message: str | None = None
    author: str | None = None
    pushes: int = 0  # that share it
    queued_at: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    duration: float | None = None  # seconds
    url: str | None = None  # where the site is live
    # From here on for boop itself: in the journal, and not in the contract's record.
    exact: bool = False  # exactly `commit`, not the branch's tip
    force: bool = False  # whatever deploy.sh thinks of it
    tip: str | None = None  # to be left alone: what was rolled back from | [skip ci]
    way: str | None = None  # the digest of the script and its settings
    full_name: str | None = None  # "owner/repository", as the forge's API has it

    @property
    def finished(self) -> bool:
        """Has it ended, well or badly?"""
        return self.status in ("success", "fail")

    @property
    def interrupted(self) -> bool:
        """Was it cut short by boop's own end?"""
        return self.status == "fail" and self.reason in (STOPPED, KILLED)

    @property
    def void(self) -> bool:
        """Cancelled, or a rollback that failed: it left all as it was."""
        undone = self.exact and not self.interrupted
        return self.status == "fail" and (undone or self.reason == CANCELLED)

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        seconds = took(self.duration or 0)
        failed = f"fail after {seconds}: {self.reason}"
        return failed if self.reason else f"success in {seconds}"

    def wants(self, push: Push) -> bool:
        """Do both want the branch's tip, or both exactly the same commit?"""
        same = (self.exact, self.force) == (push.exact, push.force)
        return same and (not push.exact or self.commit == push.commit)

    def record(self) -> dict[str, typing.Any]:
        """The contract's JSON record."""
        return dict(list(self._asdict().items())[:15])


KINDS = typing.get_type_hints(Deployment).values()


def from_json(line: bytes) -> Deployment:
    """A deployment from a line of the journal; ValueError where it is none."""
    try:
        d = Deployment(**json.loads(line))
        right = all(map(isinstance, d, KINDS)) and d.number > 0
        for text in filter(None, (d.queued_at, d.started_at, d.finished_at)):
            unix_time(text)
    except (TypeError, AttributeError, ArithmeticError, RecursionError):
        right = False
    if not right or d.status not in ("queued", "inprogress", "success", "fail"):
        raise ValueError("not a deployment")
    return d


def now() -> str:
    """The time, as records have it: RFC 3339 in UTC with milliseconds."""
    moment = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "milliseconds")
    return moment.replace("+00:00", "Z")


def unix_time(text: str) -> float:
    """Such a time as seconds since 1970."""
    utc = text.replace("Z", "+00:00")  # Python 3.10 takes no Z
    return datetime.datetime.fromisoformat(utc).timestamp()


def took(seconds: float) -> str:
    """3.2 s, 42 s, 4m 05s, 1h 02m"""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    return f"{minutes // 60}h {minutes % 60:02}m"


def check_state(folder: str) -> None:
    """Raises OSError where a folder is in use, and not by a boop."""
    names = os.listdir(folder)
    if names and JOURNAL not in names:
        raise OSError(None, f"it holds files, and no {JOURNAL}: it is not boop's")


class Deployments:
    """The locked dict, and the only writer of deployments, in memory and on disk.

    The lock's rule: whoever changes holds it, for the sync of a new deployment as
    well, so that a push which shares a queued deployment is never acknowledged before
    that one is safe. Readers take no lock: a dict's get and a list of its values are
    atomic, and what they hold are snapshots.

    On disk, each change is a line appended to the journal; the newest line of a number
    counts. Only a new deployment's is synced, before `add` returns: kill -9 does not
    lose what was written, and a power cut that does costs one more run. The journal
    is written anew, one line for each deployment, at every start, when it has grown
    long, and after a line could not be written: memory holds all that it should hold.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises OSError when the folder can't be used, or another boop uses it."""
        folder, self._settings = settings.state, settings
        self._lock = threading.Lock()
        self._followers: set[News] = set()
        self._records: dict[int, Deployment] = {}  # numbers only grow
        self._last = 0  # the highest number that was ever used
        self._lines = 0  # added to the journal since it was written anew
        self._behind = False  # does it lack what could not be written?
        self.closed = False
        self.last: Deployment | None = None  # that has ended, whatever its number
        self.totals = {"success": 0, "fail": 0}  # finished since boop started, and the
        self.seconds = 0.0  # time they took: they never go down, as old records do
        os.makedirs(folder, mode=0o755, exist_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(None, "another boop is using it") from None
        check_state(folder)
        self._path = os.path.join(folder, JOURNAL)
        self._journal = self._open(self._path)
        self._damaged: list[bytes] = []  # lines that are still to be kept aside
        self._load()
        # Whose scripts may still be there. Of a start, a full disk takes no record; of
        # a stop, a process may have been left that is no more in the script's group.
        cut = (d for d in self._records.values() if not d.finished or d.interrupted)
        self.unfinished = [d.number for d in cut]
        self._requeue()
        ended = (d for d in self._records.values() if d.finished)
        self.last = max(ended, key=lambda d: d.finished_at or "", default=None)
        self._forget()
        try:
            self._compact()
        except OSError as error:  # a full disk
            say(f"cannot write {JOURNAL}: {error.strerror}", ERROR)

    # Reading: no lock.

    def get(self, number: int) -> Deployment | None:
        """The deployment of that number, or None."""
        return self._records.get(number)

    def newest_first(self) -> list[Deployment]:
        """All of them, now."""
        return list(self._records.values())[::-1]

    # News, for those who follow. Any thread, and no lock: what a set or a queue does
    # here is atomic.

    @contextlib.contextmanager
    def news(self) -> typing.Iterator[News]:
        """A queue of what happens from now on: each deployment that changes, and None
        when a log has grown, or boop ends. Refusal (503) where too many follow."""
        if len(self._followers) >= MAX_FOLLOWERS:  # or one more: no lock
            raise Refusal(503, "boop has all the followers it serves")
        news: News = queue.SimpleQueue()
        self._followers.add(news)
        try:
            yield news
        finally:
            self._followers.discard(news)

    def tell(self, changed: Deployment | None = None) -> None:
        """Tells all who follow."""
        for news in tuple(self._followers):
            news.put(changed)

    def close(self) -> None:
        """Lets all who follow go, once they have what there is."""
        self.closed = True
        self.tell()

    # Writing: each takes the lock.

    def add(self, push: Push) -> Deployment:
        """Queues a deployment, or shares the one that is queued; durable on return.

        Raises OSError when it can't be recorded: then it is not queued.
        """
        with self._lock:
            newest, count = self._newest(push), int(push.trigger == "push")
            if newest and newest.status == "queued" and newest.wants(push):
                # It is safe already, and what this adds is no promise: written when
                # it starts.
                new = push.message or push.commit not in (None, newest.commit)
                known = push if new else newest
                return self._put(
                    newest._replace(
                        pushes=newest.pushes + count,
                        commit=known.commit,
                        message=known.message,
                        author=known.author,
                        full_name=push.full_name or newest.full_name,
                    )
                )
            d = self._new(push, count)
            self._append(d, sync=True)
            self._last = d.number
            return self._put(d)

    def catch_up(self, push: Push, way: str) -> Deployment | None:
        """Queues a tip that was looked up, unless it is dealt with. Raises OSError."""
        newest = self._newest(push)
        if newest and newest.exact and newest.status == "success" and not newest.tip:
            self.skip(push)  # which was out of reach when it was rolled back from
        return None if self._settled(push, way) else self.add(push)

    def skip(self, push: Push) -> None:
        """Notes a tip that shall not be deployed, for catch-up to leave it alone."""
        with self._lock:
            if newest := self._newest(push):
                self._change(newest, tip=push.commit)

    def start(self, way: str) -> Deployment | None:
        """Takes the queued deployment of the lowest number; only the runner may."""
        with self._lock:
            queued = (d for d in self._records.values() if d.status == "queued")
            d = next(queued, None)
            return d and self._change(d, status="inprogress", started_at=now(), way=way)

    def cancel(self, number: int) -> Deployment:
        """Ends a queued deployment; one that runs gets a reason, which the runner sees
        and ends it. What it is now; Refusal (404, 409) where nothing is to end."""
        with self._lock:
            d = self._records.get(number)
            if not d:
                raise Refusal(404, f"there is no deployment {number}")
            if d.finished:
                raise Refusal(409, f"deployment {number} has ended")
            if d.status == "queued":
                return self._finish(d, reason=CANCELLED)
            return self._change(d, reason=CANCELLED)

    def finish(
        self, number: int, end: typing.Callable[[str], None], **ended: typing.Any
    ) -> Deployment:
        """Ends a deployment: a success without a reason, else a fail; a cancel that
        came before wins. end: is told how, before anybody sees that it has ended."""
        with self._lock:
            d = self._records[number]
            d = d._replace(**ended | {"reason": d.reason or ended["reason"]})
            end(d.outcome)
            return self._finish(d, d.reason)

    def catch_up_on_disk(self) -> None:
        """Writes what could not be written, if there is any. Raises OSError."""
        with self._lock:
            if self._behind:
                self._compact()

    # Below, the caller holds the lock (or is __init__).

    def _newest(self, push: Push | Deployment) -> Deployment | None:
        """Of the same branch, less those that left all as it was."""
        return next((d for d in self._of(push) if not d.void), None)

    def _of(self, push: Push | Deployment) -> typing.Iterator[Deployment]:
        """Those of the same branch, newest first."""
        branch = push.repo, push.branch
        return (d for d in self.newest_first() if (d.repo, d.branch) == branch)

    def _new(self, push: Push, pushes: int) -> Deployment:
        """The next one. What only a forge's push says of a repository, is kept."""
        names = (d.full_name for d in self.newest_first() if d.repo == push.repo)
        push = push._replace(full_name=push.full_name or next(names, None))
        number, said = self._last + 1, push._asdict()
        return Deployment(number, "queued", **said, pushes=pushes, queued_at=now())

    def _settled(self, push: Push, way: str) -> bool:
        """Is there nothing to do for a tip that was looked up? Where another branch
        went live since, there is; else the newest deployment tells, if not void.

        One that failed is tried again, as a start or a SIGHUP is somebody's wish; but
        by a poll only once for each way, which is a script and its DEPLOY_ variables.
        """
        tip = push.commit
        for d in self.newest_first():
            ours = d.commit == tip and d.way in (None, way)
            if (d.repo, d.branch) != (push.repo, push.branch):
                return False
            if d.void and d.exact:
                continue
            if d.status == "queued" and not d.exact:
                return True  # it will find the tip by itself
            if d.tip == tip != d.commit:
                return True  # to be left alone
            if d.void and not ours:
                continue
            if d.status == "fail" and d.reason != CANCELLED:
                return ours and d.trigger == push.trigger == "poll"
            return ours
        return False

    def _finish(self, d: Deployment, reason: str | None) -> Deployment:
        status = "fail" if reason else "success"
        self.totals[status] += 1
        self.seconds += d.duration or 0
        self.last = self._change(d, status=status, reason=reason, finished_at=now())
        self._forget()
        return self.last

    def _change(self, d: Deployment, **fields: typing.Any) -> Deployment:
        """Replaces a deployment. What can't be written now is, once the disk takes
        records again; no promise hangs on it."""
        d = d._replace(**fields)
        try:
            self._append(d)
        except OSError as error:
            say(f"cannot write {JOURNAL}: {error.strerror}", ERROR)
        return self._put(d)  # last: who sees it finished, finds it so on the disk

    def _put(self, d: Deployment) -> Deployment:
        self._records[d.number] = d
        self.tell(d)
        return d

    def _forget(self) -> None:
        """Removes what is over the number of finished deployments to keep."""
        finished = [d.number for d in self._records.values() if d.finished]
        for number in finished[: -self._settings.keep]:
            with contextlib.suppress(OSError):  # it may have none
                os.unlink(self._settings.log(number))
            del self._records[number]

    # The journal.

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(path, flags, 0o600)

    def _append(self, d: Deployment, sync: bool = False) -> None:
        """Adds a line to the journal. Raises OSError; then nothing of it is there."""
        if self._behind or self._lines > COMPACT_LINES:
            self._compact()
        length = os.lseek(self._journal, 0, os.SEEK_END)
        try:
            self._write(self._journal, [d])
            if sync:
                os.fdatasync(self._journal)
        except OSError:
            os.ftruncate(self._journal, length)
            self._behind = True
            raise
        self._lines += 1

    def _write(self, fd: int, deployments: typing.Iterable[Deployment]) -> None:
        lines = [json.dumps(d._asdict()) + "\n" for d in deployments]
        data = "".join(lines).encode()
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _compact(self) -> None:
        """Writes the journal anew, in one step: old or new, whatever happens. Raises
        OSError."""
        self._behind, path = True, f"{self._path}.new"
        if self._damaged:
            with open(f"{self._path}.damaged", "ab") as aside:
                aside.writelines(self._damaged)
            self._damaged = []
        with contextlib.suppress(FileNotFoundError):  # of a boop that was killed here
            os.unlink(path)
        new = self._open(path)
        try:
            self._write(new, self._records.values())
            os.fsync(new)
            os.rename(path, self._path)
            self._journal, new = new, self._journal
            os.fsync(self._folder)
        finally:
            os.close(new)
            with contextlib.suppress(FileNotFoundError):  # it has its name
                os.unlink(path)
        self._lines, self._behind = 0, False

    def _load(self) -> None:
        """Reads the journal; says and skips each line that is none. Their numbers are
        used, also those of lines that were kept aside before."""
        with open(self._path, "rb") as journal:
            lines = journal.readlines()
        for place, line in enumerate(lines, 1):
            try:
                d = from_json(line)
                self._records[d.number] = d
            except ValueError:
                say(f"{JOURNAL}, line {place}: damaged, kept aside", WARNING)
                self._damaged.append(line.rstrip(b"\n") + b"\n")
        self._records = dict(sorted(self._records.items()))
        with contextlib.suppress(FileNotFoundError):
            with open(f"{self._path}.damaged", "rb") as aside:
                lines += aside.readlines()
        used = re.findall(rb'"number": *([0-9]{1,15})\b', b"".join(lines))
        self._last = max(map(int, used), default=0)

    def _requeue(self) -> None:
        """Queues again what boop's end has cut off, if nothing newer was queued. Its
        log gets the last line that every log has."""
        for d in list(self._records.values()):
            if d.status == "inprogress":
                why = d.reason or KILLED
                d = d._replace(status="fail", reason=why, finished_at=now())
                self._records[d.number] = d
                with contextlib.suppress(OSError):  # a full disk
                    with open(self._settings.log(d.number), "a") as log:
                        log.write(f"\nboop: fail: {why}\n")
            newer = [n for n in self._of(d) if n.number > d.number]
            again = any(n.trigger == "interrupted" or not n.void for n in newer)
            if d.interrupted and not again:
                push = Push(*(getattr(d, name) for name in Push._fields))
                d = self._new(push._replace(trigger="interrupted"), d.pushes)
                self._records[d.number] = d
                self._last = d.number


if typing.TYPE_CHECKING:
    News = queue.SimpleQueue[Deployment | None]


# --- 5. Runner ------------------------------------------------------------------------


def exit_reason(status: int) -> str | None:
    """How a process ended, in words; None for a success."""
    if status >= 0:
        return f"exit status {status}" if status else None
    names = {int(known): known.name for known in signal.Signals}  # no real-time signals
    return f"killed by {names.get(-status, f'signal {-status}')}"


def run_briefly(
    command: list[str], seconds: int, env: dict[str, str]
) -> tuple[str | None, str]:
    """Runs a program that shall not take long: why it failed, or None; and the first
    of what it printed."""
    # timeout(1) ends what it has started, too, which can hold no pipe open.
    late = time.monotonic() + seconds
    with open(os.memfd_create("output"), "w+b") as output:
        try:
            status = subprocess.call(
                ["timeout", "-s", "KILL", str(seconds), *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot run {command[0]}: {error.strerror}", ""
        said = os.pread(output.fileno(), PIPE_BYTES, 0).decode("utf-8", "replace")
    if status == -signal.SIGKILL and time.monotonic() > late:
        return f"timed out after {seconds} s", said
    return exit_reason(status), said


def look(settings: Settings) -> tuple[str, str]:
    """Asks BOOP_REPO for the branch to deploy, and its tip; git-ls-remote(1). Raises
    OSError with the reason: git's words, or what to do."""
    repo, branch, as_owner = settings.repo, settings.branch, []
    if repo.startswith(("/", "file://")):  # it may be another user's: trust it
        as_owner = ["--upload-pack=git -c safe.directory=* upload-pack"]
    ref = f"refs/heads/{branch}" if branch else "HEAD"
    command = ["git", "ls-remote", "--symref", *as_owner, "--", repo, ref]
    env = {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes", "GIT_TERMINAL_PROMPT": "0"}
    env |= child_environment(settings)
    why, said = run_briefly(command, GIT_TIMEOUT_S, env)
    if why:
        why = said.strip().partition("\n")[0] or why
        raise OSError(None, f"cannot look at {repo}: {why}")
    # "ref: refs/heads/main<tab>HEAD", "<commit><tab>HEAD", and of a clone also
    # "<commit><tab>refs/remotes/origin/HEAD"; behind what ssh may have to say
    name = re.search("(?m)ref: refs/heads/(.+)\tHEAD$", said)
    tip = re.search(f"(?m)([0-9a-f]{{40,}})\t{re.escape(ref)}$", said)
    if not tip:
        what = f"has no branch {branch}" if branch else "has no commit yet: push one"
        raise OSError(None, f"{repo} {what}")
    if not branch and not name:
        raise OSError(None, f"{repo} has checked out no branch: set BOOP_BRANCH")
    return branch or (name[1] if name else ""), tip[1]


class CatchUp:
    """The catch-up thread, in which missed pushes are caught: a look at the branch's
    tip at start, when asked to, and every BOOP_POLL seconds; sooner, and ever less
    often, where the last one failed."""

    def __init__(
        self,
        settings: Settings,
        deployments: Deployments,
        wake: typing.Callable[[], None],
    ) -> None:
        """wake: tells the runner that there is something to run."""
        self._settings, self._deployments, self._wake = settings, deployments, wake
        self._asked = threading.Event()
        self.branch = settings.branch  # or what the last good look has found
        self.why = ""  # the last look has failed

    def look(self) -> None:
        """Asks for a look at once. Any thread."""
        self._asked.set()

    def run(self) -> None:
        """The thread. Trouble is said when it begins, when it changes, when it ends."""
        trigger, pause, poll = "catch-up", RETRY_S, self._settings.poll
        while True:
            self._asked.clear()
            why, wait = "", poll or None
            try:
                self._catch_up(trigger)
                pause = RETRY_S
            except OSError as error:
                why, wait = str(error.strerror), min(pause, poll or pause)
                pause = min(2 * pause, MAX_RETRY_S)
            was, self.why = self.why, why
            if why != was:
                say(why or "catch-up works again", WARNING if why else INFO)
            asked = self._asked.wait(wait)
            trigger = "catch-up" if asked or not poll else "poll"

    def _catch_up(self, trigger: str) -> None:
        """Deploys the branch's tip if it was missed. Raises OSError."""
        self.branch, tip = look(self._settings)
        way = way_of(self._settings)
        push = Push(self._settings.repo, self.branch, tip, trigger=trigger)
        try:
            missed = self._deployments.catch_up(push, way)
        except OSError as error:
            raise OSError(None, f"cannot record {tip[:8]}: {error.strerror}") from None
        if missed:
            say(f"{trigger}: {self.branch} is at {tip[:8]}: queued as {missed.number}")
            self._wake()


class Log:
    """A deployment's log file: masked, capped, and never an obstacle. One thread."""

    def __init__(
        self, path: str, limit: int, mask: Mask, grown: typing.Callable[[], None]
    ) -> None:
        self._limit, self._room, self._mask, self._grown = limit, limit, mask, grown
        self._dropped, self._lost, self._at_line_start = 0, "", True
        self._path, self._file = path, -1  # opened when there is something to write

    def output(self, data: bytes) -> None:
        """Takes what the script wrote."""
        self._keep(self._mask.feed(data) if self._room else data)

    def _keep(self, data: bytes) -> None:
        kept, rest = data[: self._room], data[self._room :]
        self._room -= len(kept)
        if kept:
            self._write(kept)
        if rest and not self._dropped:
            limit = f"the log's limit of {self._limit} bytes (BOOP_LOG_LIMIT)"
            self.line(f"{limit} is reached; the rest is dropped")
        self._dropped += len(rest)

    def end(self, text: str) -> None:
        """boop's last line, and what else there is to say. Closes the log."""
        self._keep(self._mask.flush())
        if self._dropped:
            self.line(f"{self._dropped} bytes were dropped")
        if self._lost:
            self.line(f"parts of this log could not be written: {self._lost}")
        self.line(text)
        if self._file >= 0:
            os.close(self._file)

    def line(self, text: str) -> None:
        """A line of boop's own."""
        text = one_line(text, 2000)
        self._write(b"\n" * (not self._at_line_start) + f"boop: {text}\n".encode())

    def _write(self, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            if self._file < 0:
                self._file = os.open(self._path, flags, 0o600)
            while data:
                written = os.write(self._file, data)
                self._at_line_start = data[:written].endswith(b"\n")
                data = data[written:]
        except OSError as error:  # the disk is full: the deployment goes on
            if not self._lost:
                self._lost = error.strerror or str(error)
                say(f"cannot write the deployment's log: {self._lost}", ERROR)
        self._grown()


Report = typing.Callable[[Deployment], None]


class Runner:
    """Runs the script, one deployment after the other, in the thread that calls run.

    Other threads may call wake, stop and cancel. The script is a session and so a
    process group of its own: what ends it, ends all of it, unless a child has made a
    session for itself. It can't be waited for by reading its output to the end (a
    child may hold that open), so select(2) waits for three at once: its output, the
    script's end (pidfd_open(2)), and a ring from another thread (eventfd(2)).
    """

    def __init__(
        self, settings: Settings, deployments: Deployments, report: Report
    ) -> None:
        """report: is told of each deployment that starts or ends."""
        self._settings, self._deployments = settings, deployments
        self._report, self._secrets = report, secrets_of(settings)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._result = os.path.join(settings.state, "result")
        self._stop = False

    def wake(self) -> None:
        """There may be something to run, or to end."""
        os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        """Ends the running script and then the thread."""
        self._stop = True
        self.wake()

    def cancel(self, number: int) -> None:
        """Ends a deployment by hand; or Refusal, see Deployments.cancel."""
        d = self._deployments.cancel(number)
        if d.finished:
            self._report(d)
        self.wake()

    def run(self) -> None:
        """The thread: until stop."""
        try:
            self._end_orphans()
            while not self._stop:
                way = way_of(self._settings)
                if d := self._deployments.start(way):
                    self._deploy(d)
                else:
                    select.select([self._bell], [], [])
                    os.eventfd_read(self._bell)
        except Exception as error:  # noqa: BLE001  the thread's edge
            say(f"boop ends, with its runner: {type(error).__name__}: {error}", ERROR)
            os._exit(1)  # as by kill -9: the next start mends it

    def _deploy(self, d: Deployment) -> None:
        """One deployment, from its start to its record."""
        begun, result = time.monotonic(), dict[str, str]()
        path, limit = self._settings.log(d.number), self._settings.log_limit
        log = Log(path, limit, Mask(self._secrets), self._deployments.tell)
        what = f"commit {d.commit[:8]}" if d.commit else "its tip"
        by = f" by {d.author}" if d.author else ""
        first = f"deployment {d.number}: {d.trigger}, branch {d.branch}, {what}{by}"
        log.line(first)
        say(first)
        self._report(d)
        try:
            script = self._start(d)
            reason = self._watch(script, d.number, log)
            result = read_result(self._result)
            said = result.pop("reason", None)
            status = script.returncode
            reason = reason or (status and said) or exit_reason(status)
        except OSError as error:
            reason = f"cannot run {self._settings.script}: {error.strerror}"
        except Exception as error:  # noqa: BLE001  it fails this one, and not the next
            reason = one_line(f"boop failed: {type(error).__name__}: {error}")
        ended = {"reason": reason, "duration": round(time.monotonic() - begun, 3)}
        d = self._deployments.finish(d.number, log.end, **result, **ended)
        say(f"deployment {d.number}: {d.outcome}", NOTICE if d.reason else INFO)
        self._report(d)

    def _start(self, d: Deployment) -> subprocess.Popen[bytes]:
        work = os.path.join(self._settings.state, "work")
        os.makedirs(work, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW
        with contextlib.suppress(OSError):  # a full disk: the script may not need it
            os.close(os.open(self._result, flags, 0o600))
        return subprocess.Popen(
            [self._settings.script],
            cwd=work,
            env=script_environment(self._settings, d),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )

    def _watch(
        self, script: subprocess.Popen[bytes], number: int, log: Log
    ) -> str | None:
        """The script's life: its output into the log. Why boop ended it, or None."""
        pipe = script.stdout
        assert pipe
        with script:
            try:
                os.set_blocking(pipe.fileno(), False)
                with open(os.pidfd_open(script.pid), "rb", 0) as ended:
                    return self._wait(script.pid, ended, pipe, number, log)
            finally:
                _end_group(script.pid, signal.SIGKILL)  # what it left running, too
                self._read(pipe, log)  # what it wrote before it ended

    def _wait(
        self,
        leader: int,
        ended: typing.IO[bytes],
        pipe: typing.IO[bytes],
        number: int,
        log: Log,
    ) -> str | None:
        """Until the script has ended. Once told to end, it is over when nobody holds
        its output any more: what it has started has its seconds of grace, too."""
        waiting: set[typing.Any] = {pipe, ended}
        why, deadline = None, time.monotonic() + self._settings.timeout
        while ended in waiting or (why and waiting):
            left = deadline - time.monotonic()
            if why and left <= 0:
                break
            late = f"timed out after {self._settings.timeout} s" if left <= 0 else None
            if not why and (why := self._told_to_end(number) or late):
                _end_group(leader, signal.SIGTERM)
                deadline = time.monotonic() + GRACE_S
                continue
            ready, _, _ = select.select([*waiting, self._bell], [], [], left)
            for file in ready:
                if file == self._bell:
                    os.eventfd_read(self._bell)
                elif file is ended or self._read(pipe, log) == b"":
                    waiting.discard(file)
        return why

    def _told_to_end(self, number: int) -> str | None:
        """Why boop ends the deployment, if it does: by a cancel it has a reason."""
        d = self._deployments.get(number)
        return (d and d.reason) or (STOPPED if self._stop else None)

    def _read(self, pipe: typing.IO[bytes], log: Log) -> bytes:
        """Takes output into the log, at once as much as a pipe holds, pipe(7). b"" at
        its end; None, for which there is no type, where there is none now."""
        data = pipe.read(PIPE_BYTES)
        if data:
            log.output(data)
        return data

    def _end_orphans(self) -> None:
        """Ends what is left of scripts that a killed boop was running. Known by their
        environment, proc(5), so that there is no moment at which a script runs and is
        not known. Looks until two looks have found none: a process in the middle of
        exec(2) has no environment. systemd would have killed them with boop, too."""
        state = os.fsencode(f"BOOP_STATE={self._settings.state}")
        marks = {f"BOOP_NUMBER={n}".encode() for n in self._deployments.unfinished}
        quiet = 0
        while marks and quiet < 2 and not self._stop:
            quiet += 1
            for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
                with contextlib.suppress(OSError):  # gone by itself | not ours to end
                    with open(f"/proc/{pid}/environ", "rb") as file:
                        variables = set(file.read().split(b"\0"))
                    if state in variables and marks & variables and pid != os.getpid():
                        os.kill(pid, signal.SIGKILL)
                        say(f"ending process {pid}, left by a killed boop", NOTICE)
                        quiet = 0
            time.sleep(0.02)


def _end_group(leader: int, signum: int) -> None:
    """Signals a process group whose leader has not been reaped: it can't be another."""
    # All are gone | only processes of other users are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signum)


def script_environment(settings: Settings, d: Deployment) -> dict[str, str]:
    """What the script is told: deploy.sh's head and README list it."""
    return {
        **child_environment(settings),
        "BOOP_NUMBER": str(d.number),
        "BOOP_TRIGGER": d.trigger,
        "BOOP_REPO": d.repo,
        "BOOP_BRANCH": d.branch,
        "BOOP_COMMIT": d.commit or "",
        "BOOP_EXACT": "1" if d.exact else "",
        "BOOP_MESSAGE": d.message or "",
        "BOOP_AUTHOR": d.author or "",
        "BOOP_RESULT": os.path.join(settings.state, "result"),
        **({"DEPLOY_FORCE": "1"} if d.force else {}),
    }


def way_of(settings: Settings) -> str:
    """How a tip goes live: one digest of the script and of the DEPLOY_ variables."""
    try:
        with open(settings.script, "rb") as file:
            script = file.read()
    except OSError:
        script = b""  # may be run, and not read
    all_ = settings.environ.items()
    values = sorted((k, v) for k, v in all_ if k.startswith("DEPLOY_"))
    return hmac.digest(script, repr(values).encode(), "sha256").hex()[:16]


RESULTS: dict[str, typing.Callable[[str], str | None]] = {
    "commit": lambda text: text.lower() if is_commit(text) else None,
    "message": lambda text: clean(text, MAX_MESSAGE_CHARS),
    "author": lambda text: clean(text, MAX_NAME_CHARS),
    "url": lambda text: clean(text, 2000) if re.match("https?://[!-~]+$", text) else "",
    "reason": lambda text: one_line(text) or None,
}


def read_result(path: str) -> dict[str, str]:
    """What the script has written to BOOP_RESULT, as `name=value` lines: that which
    can be part of a record. The rest is said."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            data = file.read(MAX_RESULT_BYTES)
        os.unlink(path)
    except OSError:
        return {}
    result, lines = {}, data.decode("utf-8", "replace").split("\n")
    if len(data) == MAX_RESULT_BYTES:
        lines.pop()  # it may have been cut
    for line in filter(None, lines):
        name, _, value = line.partition("=")
        if good := name in RESULTS and RESULTS[name](value):
            result[name] = good
        elif value or name not in RESULTS:
            say(f"BOOP_RESULT: ignored: {one_line(line, 100)}", WARNING)
    return result


# --- 6. Reporting ---------------------------------------------------------------------


class Reporter:
    """Tells somebody how deployments go, one report after the other, in a thread of its
    own. Whatever happens there delays no deployment: it is said, and forgotten."""

    MAX_WAITING = 200  # of a forge that is down for hours; the oldest are dropped

    def __init__(self, tell: Report) -> None:
        self._tell = tell
        self._reports: queue.SimpleQueue[Deployment | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def report(self, d: Deployment) -> None:
        """Reports a deployment's state, in the background. Any thread."""
        self._reports.put(d)

    def close(self) -> None:
        """Lets it come to its end, for a moment."""
        self._reports.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while d := self._reports.get():
            if self._reports.qsize() > self.MAX_WAITING:
                continue
            try:
                self._tell(d)
            except Exception as error:  # noqa: BLE001  the thread's edge
                what = f"{type(error).__name__}: {error}"
                say(f"report of deployment {d.number}: {what}", WARNING)


def commit_status(settings: Settings, d: Deployment) -> None:
    """POST /repos/OWNER/REPO/statuses/SHA; docs.github.com/rest/commits/statuses, and
    the same of Gitea and Forgejo below their /api/v1."""
    name = d.full_name  # or of https://github.com/ada/site.git, git@h:ada/site
    if not name and (url := re.search(r"(?:://.+/|@.+:)(.+?/.+?)(\.git)?/?$", d.repo)):
        name = full_name(url[1])
    if not d.commit or not name:
        return
    state = {"success": "success", "fail": "failure"}.get(d.status, "pending")
    words = d.reason or {"inprogress": "deploying"}.get(d.status, "deployed")
    body = {"state": state, "context": "boop", "description": one_line(words, 140)}
    if link := settings.link(d.number):
        body["target_url"] = link
    api = settings.github_api.rstrip("/")
    _post(settings, f"{api}/repos/{name}/statuses/{d.commit}", json.dumps(body))


def _post(settings: Settings, url: str, body: str) -> None:
    """Tries a few times; nothing follows a redirect, with the token."""
    at, why = urllib.parse.urlsplit(url), ""
    if at.scheme == "https" and not hasattr(http.client, "HTTPSConnection"):
        importlib.reload(http.client)  # now with ssl: see the imports
    http_or_https = getattr(http.client, f"{at.scheme.upper()}Connection")
    headers = {
        "Accept": "application/vnd.github+json",
        "Authorization": f"token {settings.github_token}",
        "Content-Type": JSON,
        "User-Agent": f"boop/{VERSION}",
    }
    for pause in (0, 1, 2):  # seconds
        time.sleep(pause)
        try:
            with contextlib.closing(http_or_https(at.netloc, timeout=10)) as connection:
                connection.request("POST", at.path, body, headers)
                answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
            continue
        if answer.status < 300:
            return
        why = f"{answer.status} {answer.reason}"
        if answer.status < 500 and answer.status != 429:
            break  # it will not like it better the next time
    say(f"commit status not sent, {url}: {why}", WARNING)


def notify(settings: Settings, d: Deployment) -> None:
    """Runs BOOP_NOTIFY, and says why it failed, with its first words."""
    if not d.finished:
        return
    env = {
        **script_environment(settings, d),
        "BOOP_STATUS": d.status,
        "BOOP_REASON": d.reason or "",
        "BOOP_DURATION": "" if d.duration is None else str(d.duration),
        "BOOP_LOG": settings.log(d.number),
        "BOOP_LOG_URL": settings.link(d.number),
    }
    why, said = run_briefly([settings.notify], NOTIFY_TIMEOUT_S, env)
    if why:
        say(f"{settings.notify}: {why}: {one_line(said, 300)}", WARNING)


# --- 7. Pages -------------------------------------------------------------------------
#
# Pure functions from records to text, SVG and metrics, and the one static page whose
# script draws the JSON. Whatever came from outside (message, author, branch, repo,
# reason, commit) passes `shown` before a terminal sees it; a browser gets it as JSON,
# and its script makes text nodes of it, never markup.


def shown(text: str | None) -> str:
    """The first line of a text, as one that can fool no terminal and no reader."""
    return one_line((text or "").strip().partition("\n")[0], MAX_MESSAGE_CHARS)


def page(root: str) -> str:
    """The static page; `root`, "./" or "../", leads from its address to the list's."""
    edition = hmac.digest(BOOP_CSS.encode(), BOOP_JS.encode(), "sha256").hex()[:8]
    return PAGE.replace("ROOT", root).replace("EDITION", edition)


# Text: what `curl` shows. Times are UTC, and never relative.


def list_text(ds: typing.Sequence[Deployment], now: float) -> str:
    """The deployments as a table; `ds` is newest first. A terminal wraps it."""
    header = "", "STATUS", "QUEUED (UTC)", "  TOOK", "BRANCH", "COMMIT", "MESSAGE"
    rows = [text_row(d, now) for d in ds]
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    widths[-1] = 0  # the message comes last, whole
    lines = ["  ".join(map(str.ljust, header, widths))]
    for d, row in zip(ds, rows):
        lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
        if d.reason:
            lines.append(" " * (widths[0] + 2) + shown(d.reason))
    return "\n".join(lines) + "\n"


def text_row(d: Deployment, now: float) -> tuple[str, ...]:
    """A deployment's cells; the first is its log's address below this one."""
    running = d.started_at if d.status == "inprogress" else None
    ran = now - unix_time(running) if running else d.duration
    return (
        f"log/{d.number}",
        d.status,
        d.queued_at[:16].replace("T", " "),
        "" if ran is None else f"{took(ran):>6}",
        shown(d.branch),
        shown(d.commit)[:7],
        shown(d.message) or f"({shown(d.trigger)})",
    )


def no_log(d: Deployment) -> str:
    """What stands for the log of a deployment that has none, or none yet."""
    why = f": {d.reason}" if d.reason else ""
    return f"boop: deployment {d.number} is {d.status}{why}\n"


def empty_text(secret: bool, repo: str, why: str) -> str:
    """The list before the first deployment: what is left to do. `secret`: is one set?
    `repo` is BOOP_REPO; `why` says what is the matter with it, if anything is. The
    page shows this, too: what is between backticks is code."""
    steps = []
    if why:
        steps.append(f"Mend this first: {shown(why)}")
    if not secret:
        steps.append(
            "Give boop a secret: until `BOOP_SECRET` is set, every push is refused.\n"
            "     `openssl rand -hex 32` prints a good one."
        )
    steps += [
        f"On the forge, add a webhook to {shown(repo) or 'the repository'}:\n"
        "     the URL is this address with `/deploy`, the secret that of\n"
        "     `BOOP_SECRET`, the content type `application/json`, push events.",
        "`git push`",
    ]
    lines = "\n".join(f"  {n}. {step}" for n, step in enumerate(steps, 1))
    text = f"No deployments yet. To get the first one:\n\n{lines}\n"
    if repo and not why:
        at_once = "Or now, on boop's own machine" if secret else "Or, once that is set"
        text += f"\n{at_once}: `boop.py deploy`\n"
    return text


# For programs.


def badge_svg(d: Deployment | None) -> str:
    """How the last finished deployment ended; None: there is none."""
    word = {"fail": "failed"}.get(d.status, d.status) if d else "no deployments"
    color = {"success": "#1a7f37", "failed": "#c62828"}.get(word, "#57606a")
    width = 7 * len(word) + 12  # px; textLength makes any font fit
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 40}" height="20" '
        f'role="img" aria-label="boop: {word}"><title>boop: {word}</title>'
        f'<rect width="{width + 40}" height="20" rx="4" fill="#3a3f45"/>'
        f'<path d="M40 0h{width - 4}a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4H40z" '
        f'fill="{color}"/><g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" '
        'font-size="11"><text x="6" y="14" textLength="28">boop</text>'
        f'<text x="46" y="14" textLength="{width - 12}">{word}</text></g></svg>\n'
    )


def metrics(
    ds: typing.Sequence[Deployment], totals: typing.Mapping[str, int], seconds: float
) -> str:
    """Prometheus's text format (version 0.0.4). totals, seconds: those that finished
    since boop started, and the time that they took."""
    status = [d.status for d in ds]
    live = next((d.finished_at for d in ds if d.status == "success"), None)
    python = sys.version.partition(" ")[0]
    return f"""\
# HELP boop_build_info Which boop this is.
# TYPE boop_build_info gauge
boop_build_info{{version="{VERSION}",python="{python}"}} 1
# HELP boop_deployments_total Finished since boop started.
# TYPE boop_deployments_total counter
boop_deployments_total{{status="success"}} {totals["success"]}
boop_deployments_total{{status="fail"}} {totals["fail"]}
# HELP boop_deployment_duration_seconds How long scripts ran.
# TYPE boop_deployment_duration_seconds summary
boop_deployment_duration_seconds_sum {seconds}
boop_deployment_duration_seconds_count {sum(totals.values())}
# HELP boop_queue_length Waiting their turn.
# TYPE boop_queue_length gauge
boop_queue_length {status.count("queued")}
# HELP boop_running Running now.
# TYPE boop_running gauge
boop_running {status.count("inprogress")}
# HELP boop_last_success_timestamp_seconds When the last success ended; 0: never.
# TYPE boop_last_success_timestamp_seconds gauge
boop_last_success_timestamp_seconds {unix_time(live) if live else 0}
"""


# The page, for the list and for a log. Links are relative: boop may live below any path
# of a reverse proxy.
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>boop</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="ROOTboop.css?EDITION">
<script src="ROOTboop.js?EDITION" type="module"></script>
<body data-root="ROOT">
<header></header>
<main><noscript><a href="?text">Without JavaScript: plain text</a></noscript></main>
<p id="said" class="sr" role="status"></p>
"""

# The page's look. Served as boop.css: to change a colour, change it here.
BOOP_CSS = """\
:root {
  --bg: #f4f5f7; --panel: #fff; --line: #dfe2e6; --text: #1c2127; --muted: #59636e;
  --link: #0959b8; --hover: #f7f9fb; --mark: #fff3bf;
  --queued: #636c76; --inprogress: #0a63c9; --success: #1a7a36; --fail: #c4232e;
  --c0: #24292f; --c1: #b3212b; --c2: #1a6e31; --c3: #7d5200; --c4: #0a55b3;
  --c5: #7a35c0; --c6: #0f6673; --c7: #59636e;
}
@media (prefers-color-scheme: dark) { :root {
  --bg: #0e1116; --panel: #161b22; --line: #2b323b; --text: #e3e8ee; --muted: #9aa5b1;
  --link: #79b8ff; --hover: #1b2129; --mark: #4a3c0c;
  --queued: #9aa5b1; --inprogress: #58a6ff; --success: #46c060; --fail: #ff7b72;
  --c0: #8b949e; --c1: #ff7b72; --c2: #56c76b; --c3: #d9a92c; --c4: #79b8ff;
  --c5: #c79bff; --c6: #4fc7d4; --c7: #c2cad3;
} }
* { box-sizing: border-box; margin: 0; }
html { scroll-padding-top: 4rem; }
body {
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  background: var(--bg); color: var(--text); overflow-wrap: anywhere;
}
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
pre { font: inherit; white-space: pre-wrap; }
:focus-visible { outline: 2px solid var(--inprogress); outline-offset: 2px;
  border-radius: 3px; }
code, #log { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas,
  "DejaVu Sans Mono", monospace; font-size: 13px; }
header, main { max-width: 70rem; margin: auto; padding: .8rem 1.25rem; }
header { display: flex; gap: .7rem; align-items: center; }
header .by { color: var(--muted); }
header nav { margin-left: auto; display: flex; gap: 1.1rem; white-space: nowrap; }
h1 { font-size: 1.35rem; line-height: 1.3; font-weight: 650; }
h2 { font-size: .95rem; font-weight: 650; margin: 1.6rem 0 .6rem; }
.sr, .skip:not(:focus) { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
.skip:focus { position: fixed; z-index: 3; padding: .6rem 1rem;
  background: var(--panel); }
.icon { width: 1.05em; height: 1.05em; flex: none; fill: currentColor; }
.spin { transform-origin: 8px 8px; animation: spin 1.2s linear infinite; }
.ring, .cut { fill: none; stroke: currentColor; stroke-width: 2;
  stroke-linecap: round; stroke-linejoin: round; }
.cut { stroke: var(--panel); }
.dim { opacity: .25; }
@keyframes spin { to { transform: rotate(1turn); } }
.queued { --state: var(--queued); } .inprogress { --state: var(--inprogress); }
.success { --state: var(--success); } .fail, .why { --state: var(--fail); }
.icon, .st, .chart path, .rows .success, .why { color: var(--state); }
.meta, figcaption, .when, dt, #earlier { color: var(--muted); font-size: .875rem; }
.meta a { color: inherit; text-decoration: underline var(--line);
  text-underline-offset: 3px; }
time { font-variant-numeric: tabular-nums; }
time.ago { cursor: help; }

.hero, .rows, #log { background: var(--panel); border: 1px solid var(--line);
  border-radius: 12px; }
.hero { display: flex; gap: 1.1rem; padding: 1.4rem 1.5rem;
  box-shadow: inset 5px 0 var(--state, transparent); }
.hero > .icon { width: 2rem; height: 2rem; }
.hero > div { flex: 1; min-width: 0; }
.hero p { margin-top: .3rem; }
.state { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; }
figure { flex: 0 1 22rem; align-self: end; text-align: right; }
.chart { max-width: 100%; height: auto; vertical-align: top; overflow: visible; }
.chart path { fill: currentColor; stroke: currentColor; }
.chart .fail { fill: transparent; }
.chart a:hover path { opacity: .6; }
.steps code { background: var(--bg); padding: .1rem .35rem; border-radius: 4px; }

.rows { list-style: none; padding: 0; overflow: hidden; }
.rows li { display: grid; grid-template-columns: 1.1rem 5.6rem 1fr auto; gap: .6rem;
  padding: .7rem 1.25rem; position: relative; }
.rows li + li { border-top: 1px solid var(--line); }
.rows li:hover { background: var(--hover); }
.rows .icon { margin-top: .22rem; }
.rows div > a { color: var(--text); font-weight: 550; }
.rows div > a::after { content: ""; position: absolute; inset: 0; }
.rows div > a:focus-visible { outline: 0; }
.rows div > a:focus-visible::after { outline: 2px solid var(--inprogress);
  outline-offset: -3px; border-radius: 10px; }
.rows a span { font-weight: 400; color: var(--muted); }
.rows .meta a, .rows time { position: relative; z-index: 1; }
.when { text-align: right; white-space: nowrap; }

.rest { color: var(--muted); margin-top: .5rem; max-height: 12rem; overflow: auto; }
dl { display: flex; flex-wrap: wrap; gap: .7rem 2rem; margin-top: .9rem; }
.bar { position: sticky; top: 0; z-index: 2; max-width: none;
  background: var(--panel); border-bottom: 1px solid var(--line); }
.bar ~ main { max-width: 90rem; }
.bar > a, .bar > b { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar > a { flex: none; max-width: 25%; }
#earlier { margin-top: 1.2rem; }
#log { --number: 4.2em; margin-top: .5rem; padding: .6rem 0; min-height: 4rem;
  overflow: clip; outline: 0; }
#log div { position: relative; padding: 0 1rem 0 calc(var(--number) + 1em);
  min-height: 1.5em; white-space: pre-wrap; tab-size: 8;
  scroll-margin-block: 40vh; }
#log a { position: absolute; left: 0; width: var(--number); text-align: right;
  color: var(--muted); user-select: none; }
#log a::before { content: attr(data-n); }
#log :target { background: var(--mark); }
[data-status=queued] #log:empty::before { content: "Waiting for its turn …";
  padding: 1rem; color: var(--muted); }
#end { position: fixed; right: 1.25rem; bottom: 1.25rem; padding: .5rem .9rem;
  font: inherit; color: var(--panel); background: var(--text); border: 0;
  border-radius: 99px; cursor: pointer; }
.bold { font-weight: 700; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.c6 { color: var(--c6); } .c7 { color: var(--c7); }

@media (max-width: 48rem) {
  header, main { padding-inline: .75rem; }
  .hero { flex-wrap: wrap; padding: 1.1rem; gap: .8rem; }
  figure { flex-basis: 100%; text-align: left; }
  .rows li { grid-template-columns: 1.1rem 1fr; padding: .7rem .9rem; row-gap: 0; }
  .rows .st { position: absolute; clip-path: inset(50%); }
  .bar { gap: .5rem; } .bar .by { display: none; } .bar nav { gap: .7rem; }
  .when { grid-column: 2; text-align: left; } .when br { display: none; }
  .when span:not(:empty)::before { content: " · "; }
  code, #log { font-size: 12px; }
  #log { --number: 3em; margin-inline: -.75rem; border-radius: 0; border-inline: 0; }
}
@media (max-width: 30rem) { .bar nav span { display: none; } }
@media (prefers-reduced-motion: reduce) { .spin { animation: none; } }
"""

# The page's behaviour. Served as boop.js. A log reaches the page as text nodes only.
BOOP_JS = r"""// boop's page: it draws the JSON that programs get.
// Whatever a record or a log says becomes text or a checked link, and never markup.
const $ = selector => document.querySelector(selector);
const header = $("header"), main = $("main");
const page = document.body.dataset;  // root: leads to the list; status: what is shown
let here = page.root === "./" ? "" : location.pathname.split("/").pop();  // 7, latest
const live = () => page.status === "queued" || page.status === "inprogress";
const get = async url => {  // ?text and ?follow are text all the same
  const asked = {headers: {Accept: "application/json"}, cache: "no-store"};
  const answer = await fetch(url, asked);
  if (!answer.ok) throw Error(answer.status);
  return answer;
};

// Elements: el("p.meta", {title: "A"}, "text", node, …). What is empty is left out.
function element(namespace, name, ...parts) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElementNS(`http://www.w3.org/${namespace}`, tag);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  for (const part of parts.flat(2).filter(Boolean))
    if (part.constructor !== Object) made.append(part);
    else for (const key in part) made.setAttribute(key, part[key]);
  return made;
}
const el = (...of) => element("1999/xhtml", ...of);
const svg = (...of) => element("2000/svg", ...of);

// Each state has a shape of its own, not only a colour: paths, by how they are drawn.
const DISC = "M16 8A8 8 0 1 1 0 8a8 8 0 1 1 16 0z";
const RING = "M15 8A7 7 0 1 1 1 8a7 7 0 1 1 14 0z";
const STATES = {
  none: {glyph: "boop:", shape: {solid: DISC}},
  queued: {glyph: "○", word: "queued", says: "Waiting to deploy",
    shape: {ring: RING, "ring.hands": "M8 4.5V8l2.5 1.5"}},
  inprogress: {glyph: "▶", word: "in progress", says: "Deploying", shape: {
    "ring.dim": RING, "ring.spin": "M8 1a7 7 0 0 1 7 7", solid: "M6.3 5v6l5-3z"}},
  success: {glyph: "✓", word: "success", says: "The site is live",
    shape: {solid: DISC, cut: "M4.5 8.3 7 10.8l4.5-5"}},
  fail: {glyph: "✗", word: "failed", says: "The last deployment failed",
    shape: {solid: "M5 0h6l5 5v6l-5 5H5l-5-5V5z", cut: "m5 5 6 6m0-6-6 6"}}};
const shapes = status => svg("svg", {viewBox: "0 0 16 16"},
  Object.entries(STATES[status].shape).map(([drawn, d]) => svg(`path.${drawn}`, {d})));
const icon = status =>
  svg(`svg.icon.${status}`, {"aria-hidden": "true"}, shapes(status));

// Times
const two = n => String(Math.floor(n)).padStart(2, 0);
const took = (s, digits = 1) => s < 9.95 ? `${Math.max(s, 0).toFixed(digits)} s`
  : (s = Math.round(s)) < 60 ? `${s} s`
  : s < 3600 ? `${Math.floor(s / 60)}m ${two(s % 60)}s`
  : `${Math.floor(s / 3600)}h ${two(s % 3600 / 60)}m`;
const ago = (s, at) => s < 45 ? "just now"
  : s < 5400 ? `${Math.round(s / 60)} min ago`
  : s < 129600 ? `${Math.round(s / 3600)} h ago`
  : s < 2592000 ? `${Math.round(s / 86400)} d ago` : at.slice(0, 10);
function tick(time) {
  const at = time.dateTime, s = (Date.now() - Date.parse(at)) / 1000;
  const text = time.className === "run" ? took(Math.floor(s), 0) : ago(s, at);
  if (time.textContent !== text) time.textContent = text;
  return time;
}
const moment = at => tick(el("time.ago", {datetime: at,
  title: `${at.slice(0, 19).replace("T", " ")} UTC`}));
const ran = d => d.status === "inprogress"
  ? tick(el("time.run", {datetime: d.started_at}))
  : d.duration !== null && took(d.duration);

// What a record says, in words; of a text the first line, "?" for what fools a reader.
const shown = text => (text ?? "").trim().split("\n")[0]
  .replace(/(?!\u200d)[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu, "?");
const TRIGGERS = {push: "pushed", "catch-up": "caught up", manual: "by hand",
  poll: "polled", interrupted: "run again after an interruption"};
const label = d => `#${d.number} ${STATES[d.status].word}`;
const siteName = d =>  // https://github.com/ada/site.git -> site
  shown(d.repo).replace(/(\.git)?\/*$/, "").split("/").pop() || "site";
const short = d => shown(d.commit).slice(0, 7);
const what = d => shown(d.message)
  || `${TRIGGERS[d.trigger] ?? shown(d.trigger)}: ${short(d) || shown(d.branch)}`;
const why = d => d.reason && el("p.why", shown(d.reason));
const to = (d, ...words) => el("a", {href: `log/${d.number}`}, words);

// The commit, linked to its page on a forge that is known by its host's name:
// https://github.com/ada/site.git, git@gitlab.com:ada/site.git, ssh://git@… alike.
const FORGE = new RegExp(String.raw`^(?:\w+://)?(?:[^@/]+@)?(?<host>github\.com|`
  + String.raw`bitbucket\.org|codeberg\.org|(?:gitea|forgejo|gitlab)\.[\w.-]+)(?::\d+)?`
  + String.raw`[:/]/?(?<path>[\w.~/-]+?)(?:\.git)?/?$`);
const COMMIT_PAGES = {bitbucket: "commits", gitlab: "-/commit"};
function commit(d) {
  const code = d.commit && el("code", short(d)), at = FORGE.exec(d.repo)?.groups;
  if (!at || !/^[0-9a-f]{40,64}$/.test(d.commit)) return code;
  const kind = COMMIT_PAGES[at.host.split(".")[0]] ?? "commit";
  return el("a", {href: `https://${at.host}/${at.path}/${kind}/${d.commit}`}, code);
}

// The list
function drawList(ds) {
  const d = ds.find(d => d.status === "inprogress") ?? ds[0];
  const several = new Set(ds.map(d => d.repo)).size > 1;
  const name = several ? "boop" : siteName(d);
  header.replaceChildren(el("b", name), el("span.by", "deployed by boop"));
  main.replaceChildren(hero(d, ds), el("section", {"aria-labelledby": "all"},
    el("h2", {id: "all"}, "Deployments"),
    el("ol.rows", ds.map(d => row(d, ds, several)))));
  show(d, STATES[d.status].word, name);
}
const liveOf = (d, ds) => ds.find(old => old.status === "success"
  && old.repo === d.repo && old.branch === d.branch);
function hero(d, ds) {
  const time = ran(d), shows = liveOf(d, ds);
  const when = d.status === "inprogress" ? ["running for ", time]
    : !d.finished_at ? ["queued ", moment(d.queued_at)]
    : [moment(d.finished_at), time && `, took ${time}`];
  const visit = /^https?:\/\//i.test(shows?.url) && el("a", {href: shows.url}, "visit");
  return el(`section.hero.${d.status}`, {"aria-label": "State"}, icon(d.status),
    el("div", el("div.state", el("h1", STATES[d.status].says), visit), why(d),
      el("p", to(d, `#${d.number}`), ` ${what(d)}`),
      el("p.meta", when, shows && shows !== d && [" · the site shows ",
        to(shows, `#${shows.number}`), ", ", moment(shows.finished_at)])), chart(ds));
}
function row(d, ds, several) {
  const facts = [several && siteName(d), shown(d.branch), commit(d),
    shown(d.author), d.pushes > 1 ? `${d.pushes} pushes` : shown(d.trigger),
    liveOf(d, ds) === d && el("b.success", "live")].filter(Boolean);
  return el("li", icon(d.status), el(`span.st.${d.status}`, STATES[d.status].word),
    el("div", to(d, el("span", `#${d.number}`), ` ${what(d)}`),
      el("p.meta", facts.flatMap((fact, i) => [i && " · ", fact])), why(d)),
    el("p.when", moment(d.queued_at), el("br"), el("span", ran(d))));
}

// The last runs' durations as bars, oldest left; a fail is red and hollow.
const HEIGHT = 48;  // px
function chart(ds) {
  const runs = ds.filter(d => d.duration).slice(0, 60).reverse();
  if (runs.length < 2) return null;
  const times = runs.map(d => d.duration).sort((a, b) => a - b);
  const longest = times.at(-1), median = times[times.length >> 1];
  const width = 6 * runs.length;
  const bars = runs.map((d, i) => {
    const up = Math.max(3, d.duration / longest * HEIGHT) - 1;
    return svg("a", {href: `log/${d.number}`, tabindex: -1},  // keyboards have the list
      svg("title", `${label(d)}, ${took(d.duration)}`),
      svg(`path.${d.status}`, {d: `M${6 * i + 1.5} ${HEIGHT - .5}v-${up}h3v${up}z`}));
  });
  return el("figure", svg("svg.chart", {"aria-hidden": "true", width, height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`}, bars), el("figcaption",
    `Last ${runs.length} runs: median ${took(median)}, longest ${took(longest)}`));
}

// Nothing yet: the text that curl gets. What stands between backticks is code.
async function drawEmpty() {
  const text = await (await get("?text")).text();
  const words = text.trim().replace("this address with `/deploy`",
    `\`${new URL("deploy", location)}\``).split("`");
  header.replaceChildren(el("b", "boop"));
  main.replaceChildren(el("section.hero",
    el("pre.steps", words.map((part, i) => i % 2 ? el("code", part) : part))));
  show({status: "none"}, "no deployments yet");
}

// A log: what stays in sight, then the facts, then the log itself
const earlier = el("p", {id: "earlier"});
const log = el("div", {id: "log", tabindex: -1, "aria-busy": "true"});
const end = el("button", {id: "end", hidden: ""}, "↓ End");
function drawLog(ds) {  // newest first
  const at = here === "latest" ? 0 : ds.findIndex(d => String(d.number) === here);
  const d = ds[at];
  if (!d) return;  // removed by now: what was drawn stays
  here = String(d.number);  // a later one may be the latest when this one ends
  const name = siteName(d);
  header.replaceChildren(el("a", {href: page.root}, name), icon(d.status),
    el("b", label(d)), el("span.by", ran(d)),
    el("nav", {"aria-label": "Deployments"},
      beside(ds[at + 1], "prev", "← "), beside(ds[at - 1], "next", "", " →"),
      el("a", {href: `${here}?text`}, "plain text")));
  const [, ...rest] = (d.message ?? "").trim().split("\n").map(shown);
  const terms = {Branch: shown(d.branch), Commit: commit(d), Author: shown(d.author),
    Trigger: shown(d.trigger), Pushes: d.pushes > 1 && d.pushes,
    Queued: moment(d.queued_at), Waited: d.started_at
      && took((new Date(d.started_at) - new Date(d.queued_at)) / 1000),
    Ran: ran(d), Repository: shown(d.repo)};
  $("main > section").replaceWith(el("section", el("h1", what(d)), why(d),
    rest.length && el("pre.rest", rest.join("\n").trim()),
    el("dl", Object.entries(terms).map(([term, value]) =>
      value && el("div", el("dt", term), el("dd", value))))));
  show(d, label(d), name);
}
const beside = (d, rel, before, after) => d && el("a", {href: d.number, rel,
  "aria-label": `#${d.number}`}, before, el("span", `#${d.number}`), after);

// The state, where the page's reader is not looking: tab, icon, screen reader
function show(d, ...words) {
  const title = `${STATES[d.status].glyph} ${words.join(" · ")}`;
  if (document.title !== title && document.title !== "boop")  // a change
    $("#said").textContent = ["Deployment", label(d), shown(d.reason)].join(" ");
  document.title = title;
  page.status = d.status;
  const color = getComputedStyle(main).getPropertyValue(`--${d.status}`) || "gray";
  const image = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><style>"
    + `.ring { fill: none; stroke: ${color} } .cut { fill: none; stroke: white }`
    + " * { stroke-width: 2 } .dim { opacity: .25 }</style>"
    + `<g fill='${color}'>${shapes(d.status).innerHTML}</g></svg>`;
  $("link[rel=icon]").href = `data:image/svg+xml,${encodeURIComponent(image)}`;
}

// Fetch and draw again. A link that had the keyboard's focus has it afterwards.
async function refresh() {
  const {deployments} = await (await get(page.root)).json();
  const had = document.activeElement, isRow = a => Boolean(a.closest(".rows"));
  if (here) drawLog(deployments);
  else if (deployments.length) drawList(deployments);
  else await drawEmpty();
  if (!had.isConnected) [...document.links].find(a => a.href === had.href
    && isRow(a) === isRow(had))?.focus({preventScroll: true});
}

// ANSI: the eight colours and bold become classes; every other escape is swallowed.
const SGR = /\x1b\[([\d;:]*)m/;
const SWALLOWED =
  /\x1b[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)|\x1b(\[[0-?]*)?[ -\/]*[0-~]|(?!\t)\p{Cc}/gu;
const PENS = {0: {bold: "", color: ""}, 1: {bold: ".bold"}, 22: {bold: ""},
  39: {color: ""}};
function sgr(codes, pen) {
  for (const code of codes.split(/[;:]/).map(Number)) {
    if (code === 38 || code === 48) return;  // one of 256, or of 16 million
    Object.assign(pen, PENS[code]);
    if (/^[39][0-7]$/.test(code)) pen.color = `.c${code % 10}`;
  }
}
function lineOf(raw, number, pen) {
  const line = el("div", {id: `L${number}`},
    el("a", {href: `#L${number}`, "data-n": number, tabindex: -1}));
  raw.split(SGR).forEach((part, i) => {
    if (i % 2) return sgr(part, pen);
    const text = part.replace(SWALLOWED, ""), style = pen.bold + pen.color;
    if (text) line.append(style ? el(`span${style}`, text) : text);
  });
  return line;
}

// Lines: of a log the last ones, so that none is too much for the browser. What costs
// memory are characters, and as much as 200 a line's elements, as 30 an escape's.
const MOST = 1e6, LONG = 2000;  // characters of a log, and of a line
const weight = raw => Math.max(200, raw.length + 30 * raw.split("\x1b").length);
let lines, first, pen, partial, timer;  // first: number of the first line of `lines`
function cut(raw) {  // less what was drawn over, and what is too long to be shown
  const line = raw.slice(raw.lastIndexOf("\r", raw.length - 2) + 1);
  return line.length > LONG ? `${line.slice(0, LONG)}\x1b[m…` : line;
}
function feed(text) {
  lines = lines.concat((lines.pop() + text).split("\n").map(cut));
  timer ||= setTimeout(drawLines, 30);
}
const bottom = () => document.documentElement.scrollHeight - innerHeight;
const offer = () => { end.hidden = bottom() - scrollY < innerHeight / 2; };
function drawLines() {
  const stuck = live() && bottom() - scrollY < 30;  // scrolled up it is left alone
  timer = 0;
  partial?.remove();  // it may have grown
  let room = MOST;
  const gone = lines.findLastIndex(raw => (room -= weight(raw)) < 0) + 1;
  lines.splice(0, gone).forEach(() => log.firstChild?.remove());
  first += gone;
  const draw = (raw, pen) =>
    log.appendChild(lineOf(raw, first + log.childElementCount, pen));
  lines.slice(log.childElementCount, -1).forEach(raw => draw(raw, pen));
  partial = lines.at(-1) ? draw(lines.at(-1), {...pen}) : null;
  if (first > 1) earlier.replaceChildren(
    `… ${(first - 1).toLocaleString("en")} earlier lines: `,
    el("a", {href: `${here}?text`}, "as text"));
  if (stuck) scrollTo(0, bottom());
  const aim = document.getElementById(location.hash.slice(1));
  if (aim && !aim.matches(":target"))
    location.replace(location.hash);  // now that it is there, the browser finds it
  offer();
}

if (here) {
  header.className = "bar";
  header.before(el("a.skip", {href: "#log"}, "Skip to the log"));
  main.replaceChildren(el("section"), el("h2.sr", "Log"), earlier, log);
  main.after(end);
  end.onclick = () => scrollTo(0, bottom());
  addEventListener("scroll", offer, {passive: true});
}
setInterval(() => document.hidden
  || document.querySelectorAll("time").forEach(tick), 1000);

// Draw, follow, draw again; a log's end is the end. boop's restarts are waited out.
for (let pause = 500; ; pause = Math.min(pause * 2, 30000)) {
  try {
    await refresh();
    const {body} = await get(`${here}?follow`);
    log.replaceChildren();  // it comes whole
    [lines, first, pen] = [[""], 1, {...PENS[0]}];
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let got = {}; !got.done; got = await reader.read()) {
      if (here && got.value) feed(got.value);
      if (!here || page.status === "queued") await refresh();
      pause = 500;
    }
    await refresh();
    if (here && !live()) break;
  } catch (error) {
    console.info(`boop: ${error.message}; trying again`);
    if (!header.firstChild)  // nothing is drawn yet
      header.append("boop does not answer; trying again …");
  }
  await new Promise(done => setTimeout(done, pause));
}
drawLines();
log.removeAttribute("aria-busy");
"""


# --- 8. HTTP --------------------------------------------------------------------------
#
# One connection is one request, one answer and one thread, also where the answer grows
# for an hour. A request's head is read whole, within its deadline, before http.server
# parses it; a body only where its length is allowed and it says that it is signed.

TEXT, HTML = "text/plain", "text/html"
# RFC 9112, 3 and 5: no line without a colon or that goes on with the one before, no NUL
# and no bare CR.
HEAD = re.compile(
    rb"[^\r\n\0 ]+ [^\r\n\0 ]+ HTTP/1\.[0-9]\r?\n"
    rb"(?:[!#$%&'*+.^_`|~\w-]+:[^\r\n\0]*\r?\n)*\r?\n"
)
SECURITY_FIELDS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; script-src 'self';"
    " style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
}


class Door:
    """Takes connections, each in a thread of its own, and holds what those share.

    A connection inherits the listener's options, socket(7): how long a reader may take
    nothing, and that what is sent is sent at once.
    """

    def __init__(
        self,
        listener: socket.socket,
        settings: Settings,
        deployments: Deployments,
        runner: Runner,
        catch_up: CatchUp,
    ) -> None:
        patience = struct.pack("ll", SEND_TIMEOUT_S, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.listener, self.settings, self.deployments = listener, settings, deployments
        self.runner, self.catch_up = runner, catch_up
        self.large_bodies = threading.Semaphore(MAX_LARGE_BODIES)
        self._open: set[socket.socket] = set()
        self._wrong, self._said = 0, 0.0

    def serve(self, until: int) -> None:
        """Takes connections until that descriptor has something to read."""
        while True:
            full = len(self._open) >= MAX_CONNECTIONS
            files: list[typing.Any] = [until] if full else [until, self.listener]
            ready, _, _ = select.select(files, [], [], 0.1 if full else None)
            if until in ready:
                return
            if ready:
                self._take()

    def drain(self) -> None:
        """Gives those who are being answered, and those who have not yet spoken, a
        moment; the others go with boop."""
        deadline = time.monotonic() + DRAIN_S
        while self._open and time.monotonic() < deadline:
            time.sleep(0.01)

    def wrong_password(self, address: str) -> None:
        """Says it, at most once a second, and how many there have been. No lock: a
        number that is one off does no harm."""
        self._wrong, now = self._wrong + 1, time.monotonic()
        if now - self._said >= 1:
            self._said = now
            say(f"wrong password from {address} ({self._wrong} so far)", NOTICE)

    def _take(self) -> None:
        try:
            connection, address = self.listener.accept()
        except OSError as error:  # no descriptors
            say(f"cannot accept: {error.strerror}", WARNING)
            time.sleep(0.1)
            return
        self._open.add(connection)
        try:  # without threading's hand-shake, which costs 0.1 ms
            _thread.start_new_thread(self._answer, (connection, address))
        except RuntimeError as error:
            say(f"cannot serve {address[0]}: {error}", WARNING)
            self._close(connection)

    def _answer(self, connection: socket.socket, address: typing.Any) -> None:
        """The thread of a connection."""
        try:
            Handler(connection, address, self)  # type: ignore[arg-type]
        except OSError:
            pass  # the client is gone
        except Exception as error:  # noqa: BLE001  the thread's edge
            say(f"a request failed: {type(error).__name__}: {error}", ERROR)
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        connection.close()
        self._open.discard(connection)


class Incoming(io.RawIOBase):
    """What a client sends, until a deadline. That is one for many reads: a time-out for
    each would let a client send a byte a second for ever."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._deadline = connection, 0.0

    def within(self, seconds: float) -> None:
        """From now on, that is the deadline."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: typing.Any) -> int:
        """How much has come; 0 at the end. Raises TimeoutError after the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection, and one request on it."""

    protocol_version = "HTTP/1.1"

    # What an answer needs to know of a request, where there was none to parse.
    command, path, request_version = "GET", "", "HTTP/1.1"
    headers = http.client.HTTPMessage()
    query: typing.AbstractSet[str] = frozenset()

    # method, path, what answers it, does BOOP_PASSWORD guard it?
    ROUTES = (
        ("POST", re.compile("/deploy"), "deploy", False),
        ("GET", re.compile("/"), "list", True),
        ("GET", re.compile("/log/(latest|[1-9][0-9]{0,17})"), "log", True),
        ("GET", re.compile(r"/boop\.(css|js)"), "asset", False),
        ("GET", re.compile(r"/badge\.svg"), "badge", False),
        ("GET", re.compile("/metrics"), "metrics", True),
        ("GET", re.compile("/healthz"), "healthz", False),
    )

    def setup(self) -> None:
        """The files to read the request from, and to write the answer to."""
        self.door: Door = self.server  # type: ignore[assignment]  # as Door calls it
        self.deployments, self.connection = self.door.deployments, self.request
        self.incoming = Incoming(self.connection)
        self.rfile = self.body = io.BufferedReader(self.incoming)
        self.wfile = self.connection.makefile("wb")

    def handle(self) -> None:
        """The request. Refusals become answers here, and only here."""
        try:
            self._read_head()
            self._route()
            return
        except Refusal as refusal:
            status, why, word = refusal.status, refusal.why, refusal.word
        except MemoryError:
            status, why, word = 503, "boop has no memory for this request", "error"
        self._refuse(status, why, word)  # out here, where nothing holds the body

    def _read_head(self) -> None:
        self.incoming.within(HEAD_DEADLINE_S)
        head = bytearray()
        try:
            while not head.endswith((b"\n\n", b"\n\r\n")):
                line = self.body.readline(MAX_HEAD_BYTES)
                head += line if head else line.lstrip(b"\r\n")
                self.path = "/deploy" if head.startswith(b"POST /deploy ") else ""
                if len(head) >= MAX_HEAD_BYTES:
                    raise Refusal(431, f"the head is over {MAX_HEAD_BYTES} bytes")
                if not line:
                    raise ConnectionError
        except TimeoutError:
            if not head:
                raise  # it has not asked for anything
            raise Refusal(408, f"the head took over {HEAD_DEADLINE_S} s") from None
        if not HEAD.fullmatch(head):
            raise Refusal(400, "the request's head is not HTTP/1.1: RFC 9112")
        self.rfile = io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        self.parse_request()
        self.path, _, query = self.path.partition("?")
        if self.path[:4].lower() == "http":  # absolute-form, RFC 9112, 3.2.2
            self.path = "/" + "".join(self.path.split("/", 3)[3:])
        self.query = {name.partition("=")[0] for name in query.split("&")}
        hosts = len(self.headers.get_all("Host", []))
        if hosts > 1 or (not hosts and self.request_version != "HTTP/1.0"):
            raise Refusal(400, f"{hosts} Host headers, not one: RFC 9112, 3.2")

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """What parse_request does not like."""
        raise Refusal(code, message or "the request's head is not HTTP/1.1: RFC 9112")

    def handle_expect_100(self) -> bool:
        """Not yet: when the body is wanted."""
        return True

    def version_string(self) -> str:
        """Who answers."""
        return f"boop/{VERSION}"

    def log_request(self, *_: typing.Any) -> None:
        """Nothing: what is worth a line is said where it happens."""

    def _route(self) -> None:
        for method, pattern, name, guarded in self.ROUTES:
            if not (found := pattern.fullmatch(self.path)):
                continue
            if method != ("GET" if self.command == "HEAD" else self.command):
                word = one_line(self.command, 20)
                raise Refusal(405, f"{word} is not for this address")
            if guarded and self.door.settings.password:
                self._check_password()
            getattr(self, f"_{name}")(*found.groups())
            return
        raise Refusal(404, f"there is no {one_line(self.path, 100)} here")

    def _check_password(self) -> None:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        try:
            login = base64.b64decode(value, validate=True)
        except ValueError:
            login = b""
        sent = login.partition(b":")[2] if kind.lower() == "basic" else b""
        if not hmac.compare_digest(sent, os.fsencode(self.door.settings.password)):
            if value:  # a browser asks without one first
                self.door.wrong_password(self.client_address[0])
            raise Refusal(401, "boop wants the password (BOOP_PASSWORD), any user name")

    # How answers are sent.

    def _refuse(self, status: int, why: str, word: str) -> None:
        """An answer other than a page's or a 202: to the client, and on stderr, unless
        it is for somebody who only looked."""
        why, hook = say.mask.text(why), self.path == "/deploy"
        if hook or self.command == "POST":
            said = why if word == "error" else f"{word}: {why}"
            say(f"{status} to {self.client_address[0]}: {said}", NOTICE)
        scheme = "Signature" if hook else 'Basic realm="boop", charset="UTF-8"'
        more = {
            401: {"WWW_Authenticate": scheme},
            405: {"Allow": "POST" if hook else "GET, HEAD"},
            503: {"Retry_After": "30"},
        }.get(status, {})
        if hook or JSON in self.headers.get("Accept", ""):
            self._send_json({word: why}, status, **more)
        else:
            self._send(f"{why}\n", TEXT, status, **more)
        # Read on for a moment: closing on unread bytes would reset the connection, and
        # the client might never see why it was refused.
        self.incoming.within(LINGER_S)
        self.connection.shutdown(socket.SHUT_WR)
        while self.body.read1(PIPE_BYTES):
            pass

    def _send_json(self, value: typing.Any, status: int = 200, **more: str) -> None:
        self._send(json.dumps(value) + "\n", JSON, status, **more)

    def _send(self, text: str, kind: str, status: int = 200, **more: str) -> None:
        body = text.encode("utf-8", "replace")
        self._head(status, kind, Content_Length=str(len(body)), **more)
        self._write(b"" if self.command == "HEAD" else body)

    def _head(self, status: int, kind: str, **more: str) -> None:
        """An answer's head; kind: its Content-Type; more: fields, with _ for -."""
        self.connection.settimeout(None)  # the kernel's holds: see Door
        self.send_response(status)
        fields = {
            "Content-Type": kind if kind == JSON else f"{kind}; charset=utf-8",
            "Connection": "close",
            "Vary": "Accept",
            "Cache-Control": "no-cache",
            **SECURITY_FIELDS,
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, data: bytes) -> None:
        """Sends this, and a head that waits for it."""
        self.wfile.write(data)
        self.wfile.flush()

    def _write_file(self, file: io.FileIO, at: int, end: int) -> int:
        """Sends a part of it, from the page cache to the socket: sendfile(2). How far
        it came."""
        out, source = self.connection.fileno(), file.fileno()
        while at < end and (sent := os.sendfile(out, source, at, end - at)):
            at += sent
        return at

    def _form(self) -> str:
        """The form that the client asks for; curl gets text."""
        asked = next((word for word in ("follow", "text") if word in self.query), "")
        accept = self.headers.get("Accept", "").lower()
        return asked or next((form for form in (JSON, HTML) if form in accept), TEXT)

    def _news(self) -> typing.Iterator[Deployment | None]:
        """Begins an answer without a length, which ends when the connection does, and
        tells when there may be more to send, until boop or the client ends."""
        with self.deployments.news() as news:
            fields = {"Cache_Control": "no-store", "X_Accel_Buffering": "no"}  # nginx's
            self._head(200, TEXT, **fields)
            self.wfile.flush()
            if self.command == "HEAD":
                return
            yield None
            while not (self.deployments.closed and news.empty()):
                with contextlib.suppress(queue.Empty):
                    changed = news.get(timeout=LOOK_S)
                    yield changed
                if self._left():
                    return

    def _left(self) -> bool:
        """Has the client left? What else it may say is of no interest."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(PIPE_BYTES)

    # What answers the routes.

    def _deploy(self) -> None:
        """POST /deploy: the signature before anything else is done with the body."""
        if not self.door.settings.secret:
            raise Refusal(503, "no secret is set: boop can't know a push (BOOP_SECRET)")
        signature(self.headers)
        push = self._push(self._length())
        if isinstance(push, int):
            self.door.runner.cancel(push)
            self._send_json({"cancelled": push})
            return
        if push.trigger in SKIP_MARKERS:
            self.deployments.skip(push)
            raise ignored(f"the commit's message holds {push.trigger}")
        try:
            number = self.deployments.add(push).number
        except OSError as error:
            raise Refusal(503, f"cannot record the push: {error.strerror}") from None
        answer = {"deployment": number, "status": "queued", "log": f"log/{number}"}
        try:  # first, as starting a script holds all threads up a little
            self._send_json(answer, 202)
        finally:
            self.door.runner.wake()

    def _length(self) -> int:
        """The body's length, before a byte of it is read: RFC 9112, 6.3."""
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not lengths:
            raise Refusal(411, "no Content-Length (chunked bodies are not taken)")
        if len(lengths) > 1 or not re.fullmatch("[0-9]{1,99}", lengths[0]):
            raise Refusal(400, "Content-Length is not one whole number")
        form = media_type(self.headers) == FORM
        length, most = int(lengths[0]), MAX_FORM_BYTES if form else MAX_BODY_BYTES
        if length > most:
            instead = ": let the hook send application/json" if form else ""
            raise Refusal(413, f"the body is over {most} bytes{instead}")
        return length

    def _push(self, length: int) -> Push | int:
        """Takes the body in, verifies it, and says what it asks for; a large one when
        fewer than MAX_LARGE_BODIES are there: nobody has signed them yet."""
        large, settings = length > LARGE_BYTES, self.door.settings
        if large and not self.door.large_bodies.acquire(timeout=BODY_DEADLINE_S):
            raise Refusal(503, "boop has all the large bodies it takes at once")
        try:
            body = self._body(length)
            verify(settings.secret, self.headers, body)
            return parse(self.headers, body, settings, self._look)
        finally:
            if large:
                self.door.large_bodies.release()

    def _body(self, length: int) -> memoryview:
        """The body, in pages of its own: malloc(3) would keep them for a next one."""
        if "Expect" in self.headers:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.incoming.within(BODY_DEADLINE_S)
        try:
            body = memoryview(mmap.mmap(-1, length or 1))[:length]
        except OSError:
            raise MemoryError from None
        try:
            missing = length - self.body.readinto(body)
        except TimeoutError:
            raise Refusal(408, f"the body took over {BODY_DEADLINE_S} s") from None
        if missing:
            raise Refusal(400, f"the body ended {missing} bytes early")
        return body

    def _look(self, for_tip: bool) -> tuple[str, str | None]:
        """See parse. A branch that is known will do where git can't be reached."""
        known = self.door.catch_up.branch
        try:
            return look(self.door.settings) if for_tip or not known else (known, None)
        except OSError as error:
            if known:
                return known, None
            raise Refusal(503, str(error.strerror)) from None

    def _list(self) -> None:
        """GET /: the deployments, newest first."""
        newest, form = self.deployments.newest_first(), self._form()
        if form == "follow":
            self._follow_list()
        elif form == JSON:
            self._send_json({"deployments": [d.record() for d in newest]})
        elif form == HTML:
            self._send(page("./"), HTML)
        elif newest:
            self._send(list_text(newest, time.time()), TEXT)
        else:
            settings, why = self.door.settings, self.door.catch_up.why
            text = empty_text(bool(settings.secret), settings.repo, why)
            self._send(text, TEXT)

    def _follow_list(self) -> None:
        """GET /?follow: a line for each change of a deployment."""
        for d in filter(None, self._news()):
            why = f": {d.reason}" if d.reason else ""
            line = f"{d.number} {d.status} {d.branch} {(d.commit or '')[:8]}{why}"
            self._write(one_line(line).encode() + b"\n")

    def _log(self, which: str) -> None:
        """GET /log/N: the log, the page around it, or the record."""
        newest = self.deployments.newest_first()
        number = newest[0].number if newest else 0
        number = number if which == "latest" else int(which)
        d, form = self.deployments.get(number), self._form()
        if not d:
            raise Refusal(404, f"there is no deployment {which}")
        if form == "follow":
            self._follow_log(number)
        elif form == JSON:
            self._send_json(d.record())
        elif form == HTML:
            self._send(page("../"), HTML)
        else:
            self._log_text(d)

    def _log_text(self, d: Deployment) -> None:
        """The log so far. A finished one has an ETag: RFC 9110, 13.1.2."""
        try:
            log = open(self.door.settings.log(d.number), "rb", 0)
        except FileNotFoundError:
            self._send(no_log(d), TEXT)
            return
        with log:
            size = os.fstat(log.fileno()).st_size
            tag = f'"{d.number}-{d.finished_at}-{size}"'
            more = {"ETag": tag} if d.finished else {}
            if d.finished and tag in self.headers.get("If-None-Match", ""):
                self._head(304, TEXT, **more)
                return
            self._head(200, TEXT, Content_Length=str(size), **more)
            if self.command != "HEAD":
                self.wfile.flush()
                self._write_file(log, 0, size)

    def _follow_log(self, number: int) -> None:
        """GET /log/N?follow: what there is, and then what the log grows by, until its
        deployment has ended."""
        at, log = 0, None
        for _ in self._news():
            d = self.deployments.get(number)
            over = d is None or d.finished  # before the last look
            with contextlib.suppress(FileNotFoundError):  # it waits for its turn
                log = log or open(self.door.settings.log(number), "rb", 0)
                at = self._write_file(log, at, os.fstat(log.fileno()).st_size)
            if over and d and not log:  # and was cancelled before that
                self._write(no_log(d).encode())
            if over:
                return

    def _healthz(self) -> None:
        """GET /healthz: 200, or 503 and why."""
        try:
            self.deployments.catch_up_on_disk()
        except OSError as error:
            raise Refusal(503, f"cannot write records: {error.strerror}") from None
        self._send("ok\n", TEXT)

    def _badge(self) -> None:
        """GET /badge.svg: how the last finished deployment ended."""
        self._send(badge_svg(self.deployments.last), "image/svg+xml")

    def _metrics(self) -> None:
        """GET /metrics: for Prometheus."""
        ds = self.deployments
        text = metrics(ds.newest_first(), ds.totals, ds.seconds)
        self._send(text, f"{TEXT}; version=0.0.4")

    def _asset(self, kind: str) -> None:
        """GET /boop.css, /boop.js: each edition of them has an address of its own."""
        kinds = {"css": ("text/css", BOOP_CSS), "js": ("text/javascript", BOOP_JS)}
        media, text = kinds[kind]
        self._send(text, media, Cache_Control="max-age=31536000, immutable")


# --- 9. main --------------------------------------------------------------------------


def sd_notify(settings: Settings, **fields: str | int) -> None:
    """Tells systemd, where it listens; sd_notify(3). Any thread; never raises."""
    path = settings.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    message = "\n".join(f"{k}={one_line(str(v))}" for k, v in fields.items())
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            datagram.sendto(message.encode("utf-8", "replace"), address)
    except OSError as error:
        say(f"cannot notify systemd: {error.strerror}", WARNING)


def watchdog_s(settings: Settings) -> float:
    """How often systemd wants a sign of life, sd_watchdog_enabled(3), with room to
    spare; 0: never."""
    environ, me = settings.environ, str(os.getpid())
    mine = environ.get("WATCHDOG_PID", me) == me
    within = environ.get("WATCHDOG_USEC", "")
    return int(within) / 3e6 if mine and within.isdecimal() else 0


def listen(settings: Settings) -> socket.socket:
    """The socket that systemd passes, sd_listen_fds(3), or one of our own. Raises
    OSError: the port is taken, or not ours to take."""
    environ = settings.environ
    if environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS"):
        listener = socket.socket(fileno=3)
        os.set_inheritable(3, False)
        return listener
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        why = f"cannot listen on {host} port {port}: {error.strerror}"
        raise OSError(error.errno, why) from None


class Boop:
    """The daemon: makes the rooms' parts, and minds them in the main thread."""

    def __init__(self, settings: Settings) -> None:
        """Raises OSError when boop can't serve, with the reason in one line."""
        self._settings = settings
        self._events, event = os.pipe()
        os.set_blocking(event, False)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(signum, lambda *_: None)  # serve reads them off the pipe
        signal.set_wakeup_fd(event, warn_on_full_buffer=False)
        try:
            self._deployments = Deployments(settings)
        except OSError as error:
            why = f"state folder {settings.state}: {error.strerror}"
            raise OSError(None, why) from None
        wanted = (settings.github_token, commit_status), (settings.notify, notify)
        self._reporters = [
            Reporter(functools.partial(tell, settings)) for yes, tell in wanted if yes
        ]
        self._runner = Runner(settings, self._deployments, self._report)
        self._catch_up = CatchUp(settings, self._deployments, self._runner.wake)
        parts = settings, self._deployments, self._runner, self._catch_up
        self._door = Door(listen(settings), *parts)

    def serve(self) -> int:
        """The daemon's life: until a signal ends it. The exit status."""
        running = threading.Thread(target=self._runner.run, daemon=True)
        running.start()
        self._welcome()
        if self._settings.repo:
            threading.Thread(target=self._catch_up.run, daemon=True).start()
        every = watchdog_s(self._settings)
        signal.setitimer(signal.ITIMER_REAL, every, every)
        events = b""
        while signal.SIGTERM not in events and signal.SIGINT not in events:
            self._door.serve(self._events)
            events = os.read(self._events, 4096)
            if signal.SIGALRM in events:
                sd_notify(self._settings, WATCHDOG=1)
            if signal.SIGHUP in events:
                now = time.monotonic_ns() // 1000
                sd_notify(self._settings, RELOADING=1, MONOTONIC_USEC=now)
                self._catch_up.look()
                sd_notify(self._settings, READY=1)
        # Takes no more requests, ends the script, lets everyone have the end.
        signal.setitimer(signal.ITIMER_REAL, 0)
        sd_notify(self._settings, STOPPING=1, STATUS="stopping")
        say("stopping")
        self._door.listener.close()
        self._runner.stop()
        running.join()
        self._deployments.close()
        self._door.drain()
        for reporter in self._reporters:
            reporter.close()
        return 0

    def _report(self, deployment: Deployment) -> None:
        """A deployment has started or ended: the runner says so."""
        for reporter in self._reporters:
            reporter.report(deployment)
        sd_notify(self._settings, STATUS=self._status())

    def _status(self) -> str:
        """What `systemctl status` shows."""
        newest = self._deployments.newest_first()
        last = self._deployments.last
        running = next((d for d in newest if d.status == "inprogress"), None)
        waiting = sum(d.status == "queued" for d in newest)
        result = f"{last.number}: {last.reason or last.status}" if last else "none yet"
        now = f"running {running.number}" if running else "idle"
        return f"{now}, {waiting} waiting; last deployment {result}"

    def _welcome(self) -> None:
        s = self._settings
        host, port = self._door.listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        say(f"boop {VERSION} listens on {address}, state in {s.state}")
        if not (os.isatty(1) or say.journal):  # where it would be read twice
            with contextlib.suppress(OSError):  # whoever started boop does not listen
                os.write(1, f"{address}\n".encode())
        branch = f"branch {s.branch}" if s.branch else "its default branch"
        what = f"{s.repo}, {branch}," if s.repo else ""
        say(f"deploys {what or 'whatever repository a push names'} with {s.script}")
        if not s.secret:
            say("no BOOP_SECRET: every hook is answered 503 until one is set", WARNING)
        if not s.repo:
            say("no BOOP_REPO, nor a git checkout to start in: no catch-up", WARNING)
        sd_notify(self._settings, READY=1, STATUS=self._status())


# What is asked of a running boop.


def call(
    settings: Settings,
    path: str,
    wish: dict[str, typing.Any] | None = None,
    timeout: float | None = None,
) -> http.client.HTTPResponse:
    """Asks the boop that runs with these settings, by a signed request where there is a
    wish: its answer, if that is a 2xx. Raises Refusal, or what by_hand catches."""
    body, headers = None, {"Accept": JSON}
    if settings.password:
        login = base64.b64encode(b"boop:" + os.fsencode(settings.password)).decode()
        headers["Authorization"] = f"Basic {login}"
    if wish:
        body, key = json.dumps(wish).encode(), os.fsencode(settings.secret)
        digest = hmac.new(key, body, "sha256").hexdigest()
        headers |= {"Content-Type": JSON, "X-Hub-Signature-256": f"sha256={digest}"}
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout)
    connection.request("POST" if wish else "GET", path, body, headers)
    answer = connection.getresponse()
    if not answer.headers.get("Server", "").startswith("boop/"):
        raise OSError(None, "it is another program")
    if answer.status >= 300:
        raise Refusal(answer.status, f"{answer.status}: {json.load(answer)['error']}")
    return answer


def cancel(settings: Settings, number: str | None) -> int:
    """`boop.py cancel [N]`: the running deployment, where no number is given."""
    if number is None:
        listed = json.load(call(settings, "/"))["deployments"]
        running = (str(d["number"]) for d in listed if d["status"] == "inprogress")
        number = next(running, None)
    if number is None:
        raise Refusal(409, "no deployment is running")
    if not number.isdecimal():
        raise Refusal(400, f"{number!r} is not a deployment's number")
    call(settings, "/deploy", {"cancel": int(number)})
    print(f"deployment {number} is cancelled")
    return 0


def deploy(settings: Settings, commit: str | None, force: bool) -> int:
    """`boop.py deploy`: prints the log as it grows. 0 on success, 1 on a fail."""
    call(settings, "/")  # before anything has begun: is the password right?
    exactly = {} if commit is None else {"commit": commit}
    answer = call(settings, "/deploy", {**exactly, "force": force})
    path = json.load(answer)["log"]
    log = call(settings, f"/{path}?follow")
    while data := log.read1(PIPE_BYTES):
        # Where nobody reads on, how it ends is the exit status all the same.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(1, data) :]
    return int(json.load(call(settings, f"/{path}"))["status"] != "success")


def by_hand(settings: Settings, flags: dict[str, typing.Any]) -> int:
    """Asks the running boop. The exit status."""
    try:
        if not settings.secret:
            raise Refusal(401, "BOOP_SECRET is not set: boop would not know who asks")
        if flags["command"] == "cancel":
            return cancel(settings, flags["what"])
        return deploy(settings, flags["what"], flags["force"])
    except Refusal as refusal:
        why = f"refused: {refusal.why}"
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        why = f"does not answer: {why}"
    say(f"boop at {settings.host} port {settings.port} {why}", ERROR)
    return 1


# --check: what boop and deploy.sh need. Also beside a running boop.


def check(settings: Settings) -> int:
    """A line for each, "ok" on stdout or what is wrong on stderr. 0, or 78."""
    status = 0
    for look in _look_at_address, _look_at_state, _look_at_repo, _look_for_programs:
        try:
            print(f"ok: {one_line(look(settings))}", flush=True)
        except OSError as error:
            say(error.strerror or str(error), ERROR)
            status = EX_CONFIG
    if settings.secret:
        print("ok: BOOP_SECRET is set")
    else:
        say("no BOOP_SECRET: every hook will be refused", WARNING)
    return status


def _look_at_address(settings: Settings) -> str:
    where = f"{settings.host} port {settings.port}"
    try:
        call(settings, "/badge.svg", timeout=5)
    except (OSError, http.client.HTTPException):  # nobody | another program
        listen(settings).close()
        return f"can listen on {where}"
    return f"a boop listens on {where} now"


def _look_at_state(settings: Settings) -> str:
    folder = there = settings.state
    while not os.path.exists(there):
        there = os.path.dirname(there)
    try:
        if there == folder:
            check_state(folder)
    except OSError as error:
        raise OSError(None, f"state folder {folder}: {error.strerror}") from None
    if not os.access(there, os.W_OK | os.X_OK):
        raise OSError(None, f"state folder {folder}: {there} is not writable")
    return f"state in {folder}"


def _look_at_repo(settings: Settings) -> str:
    if not settings.repo:
        return "no BOOP_REPO: whatever repository a push names is deployed"
    branch, tip = look(settings)
    return f"{settings.repo}, branch {branch}, is at {tip[:8]}"


def _look_for_programs(settings: Settings) -> str:
    import shutil

    to_s3 = settings.environ.get("DEPLOY_TO", "").startswith("s3://")
    needed = ["git", "aws"] if to_s3 else ["git"]
    missing = [name for name in needed if not shutil.which(name)]
    if missing:
        raise OSError(None, f"{' and '.join(missing)}: not installed, or not in PATH")
    hugo = "hugo" if shutil.which("hugo") else "no hugo, which a Hugo site needs"
    return f"programs: {', '.join([*needed, hugo])}"


HELP = """\
git push, and seconds later your site is live.

Without a command, boop listens for a forge's webhook at POST /deploy and runs the
script. `deploy [COMMIT]` asks the running boop for a deployment and follows it: of
the branch's tip, or of exactly COMMIT (a full commit id). `cancel [N]` ends
deployment N, or the one that runs.

variables without a flag, as the process list shows flags to everyone:
"""


def read_flags(argv: list[str]) -> dict[str, typing.Any]:
    """What was asked, by name. Raises BadSettings; --help and --version print, and
    raise SystemExit."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise BadSettings(message)

    parser = Parser(
        "boop.py",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", metavar="deploy|cancel")
    parser.add_argument("what", nargs="?", metavar="COMMIT|N")
    force = "deploy: also what looks like an accident (DEPLOY_FORCE=1)"
    parser.add_argument("--force", action="store_true", help=force)
    parser.add_argument("--version", action="version", version=f"boop {VERSION}")
    check = "check settings, port, state, repository and programs, and exit"
    parser.add_argument("--check", action="store_true", help=check)
    group = parser.add_argument_group("settings (a flag wins over its variable)")
    for name, row in SETTINGS.items():
        flag, variable = f"--{name.replace('_', '-')}", f"BOOP_{name.upper()}"
        default = row.default if isinstance(row.default, str) else ""
        line = f"{row.help} (default: {row.shown or default or 'none'})"
        if row.check is Secret:
            parser.description = f"{parser.description}  {variable}: {row.help}\n"
        else:
            group.add_argument(flag, metavar=variable, dest=name, help=line)
    given, more = parser.parse_known_intermixed_args(argv)
    words = [word.partition("=")[0] for word in more]  # a secret may come after it
    flags = [f"{one_line(word)}: no such flag" for word in words if word[:1] == "-"]
    if flags:
        raise BadSettings(*flags)
    if words or given.command not in (None, "deploy", "cancel"):
        raise BadSettings(f"{one_line([*words, given.command][0])}: no such command")
    return vars(given)


def main(argv: list[str] | None = None) -> int:
    """boop. The exit status: 0, 1 (it can't serve), or 78 (bad settings)."""
    argv = sys.argv[1:] if argv is None else argv
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # it was closed, and a socket would take its number
    os.close(fd)
    try:
        flags = read_flags(argv) if argv else {}  # it takes time to import argparse
        settings = read_settings(dict(os.environ), flags)
        say.mask = Mask(secrets_of(settings))
        if flags.get("check"):
            return check(settings)
        if flags.get("command"):
            return by_hand(settings, flags)
        return Boop(settings).serve()
    except BadSettings as bad:
        for mistake in bad.args:
            say(mistake, ERROR)
        return EX_CONFIG
    except OSError as error:
        say(f"boop can't serve: {error.strerror or error}", ERROR)
        return 1
    except KeyboardInterrupt:  # before the signals are minded, or while asking
        return 130


if __name__ == "__main__":
    sys.exit(main())
