#!/usr/bin/env python3
"""boop: `git push`, and seconds later your site is live.

A forge's webhook asks for a deployment; boop runs a script, one at a time, and
shows what happened to `curl` and to a browser. Standard library only, Linux.

The way of a push, left to right, and the thread that each part runs in:

    forge --POST /deploy--> Handler --Push--> Deployments --> Runner --> deploy.sh
                            (worker)          (the lock,      (runner)      |
                                               N.json)                 N.log v
    curl, browser <-- Handler: list, log (worker) <------------------- Followers
                                                                       (follower)

Threads: *main* accepts connections and minds signals and timers; *workers* answer
one connection each (none until the first request); *runner* runs the script;
*follower* feeds all who watch a log (started by the first of them); *catch-up*
asks git for the branch's tip, and ends; *reporter* talks to GitHub and to
BOOP_NOTIFY (only where one of them is set).

The rooms, top to bottom; each uses only the rooms above it:

    1. Constants     limits, each with its reason; what is said on stderr
    2. Settings      one table: variable, flag, default, check, help
    3. Pushes        is it signed, and what does it say: bytes in, a Push out
    4. Deployments   the locked dict and its records on disk
    5. Runner        git and the script: processes, time limit, log
    6. Reporting     commit statuses and notifications: can fail, cannot hurt
    7. Pages         records to text, HTML, JSON, SVG, metrics
    8. HTTP          routes, refusals, followers, connections
    9. main          wiring, signals, systemd; `boop.py deploy`
"""

from __future__ import annotations

import base64
import datetime
import email.message
import fcntl
import hashlib
import hmac
import html
import http.client
import http.server
import io
import json
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing
import urllib.parse

# argparse, urllib.request and unicodedata are imported where they are used: a boop
# that systemd starts needs none of them, and they cost milliseconds at start.

# --- 1. Constants ---------------------------------------------------------------------

VERSION = "1.0"

MAX_BODY_BYTES = 25 << 20  # GitHub sends nothing larger
SPOOL_BYTES = 256 << 10  # a larger body waits on disk until its signature is known
HEAD_DEADLINE_S = 10  # for a whole request head, however its bytes trickle in
BODY_DEADLINE_S = 60  # and for a whole body
SEND_TIMEOUT_S = 30  # a reader that takes nothing for so long is gone
LINGER_S = 2  # to read on after a refusal, so that the client sees why
MAX_CONNECTIONS = 400  # each may cost a thread and two descriptors (of 1,024)
MAX_FOLLOWERS = 200  # of logs and of the list; they cost no thread
SPARE_WORKERS = 8  # threads kept for the next connections
BACKLOG = 1024  # socketserver's 5 makes the kernel drop SYNs in a burst

GRACE_S = 10  # between SIGTERM and SIGKILL
GIT_TIMEOUT_S = 20  # for one look at the repository
PIPE_BYTES = 64 << 10  # what is read of the script's output at once
MAX_MESSAGE_CHARS = 4096  # of a commit message: an environment variable is limited
MAX_NAME_CHARS = 250  # of an author or a branch

EX_CONFIG = 78  # sysexits.h; the unit does not restart on it

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6  # sd-daemon(3), as syslog(3) numbers them

# Control characters, line and paragraph separators, and the overrides of writing
# direction: in a terminal or a log they can lie about what stands there.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str, limit: int = 500) -> str:
    """Untrusted text as one line that is safe in a terminal; whole up to limit."""
    text = _UNSAFE.sub("?", " ".join(text[: limit * 4].split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Mask:
    """Replaces secrets by `***`, also in a stream, wherever it is cut (promise 7).

    Not for sharing between threads while it holds a stream; `text` may be shared.
    """

    def __init__(self, shown: typing.Mapping[str, str]) -> None:
        """shown: each secret, and what stands in its place."""
        self._shown = {os.fsencode(k): os.fsencode(v) for k, v in shown.items()}
        self._secrets = sorted(self._shown, key=len, reverse=True)  # the longest wins
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)) or b"(?!)")
        self._held = b""

    def text(self, text: str) -> str:
        """The text with every secret replaced."""
        if not self._secrets:
            return text
        data = text.encode("utf-8", "surrogateescape")
        return self._replace(data).decode("utf-8", "surrogateescape")

    def feed(self, data: bytes) -> bytes:
        """The next part of a stream; what may be a secret's beginning is held back."""
        if not self._secrets:
            return data
        out: list[bytes] = []
        data, at = self._held + data, 0
        while True:
            found = self._pattern.search(data, at)
            part = self._beginning(data, at)
            if not found or part <= found.start():  # "…s3cr" | "…" and "et" may follow
                break
            out += data[at : found.start()], self._shown[found[0]]
            at = found.end()
        self._held = data[part:]
        return b"".join((*out, data[at:part]))

    def flush(self) -> bytes:
        """What was held back: nothing more comes."""
        held, self._held = self._held, b""
        return self._replace(held)

    def _replace(self, data: bytes) -> bytes:
        return self._pattern.sub(lambda found: self._shown[found[0]], data)

    def _beginning(self, data: bytes, at: int) -> int:
        """Where a suffix of data[at:] starts that begins some secret; else the end."""
        first = len(data)
        for secret in self._secrets:
            i = data.find(secret[:1], max(at, len(data) - len(secret) + 1))
            while 0 <= i < first and not secret.startswith(data[i:]):
                i = data.find(secret[:1], i + 1)
            first = i if 0 <= i < first else first
        return first


class Console:
    """Says things on stderr, a line each. Set up once by main, before any thread.

    Under systemd a line carries its priority, sd-daemon(3); elsewhere the time.
    """

    def __init__(self) -> None:
        self.mask = Mask({})
        try:
            err = os.fstat(2)
            self.journal = os.environ.get("JOURNAL_STREAM") == (
                f"{err.st_dev}:{err.st_ino}"
            )
        except OSError:  # closed stderr
            self.journal = False

    def __call__(self, text: str, priority: int = INFO) -> None:
        head = f"<{priority}>" if self.journal else time.strftime("%F %T boop: ")
        line = head + one_line(self.mask.text(text), 2000) + "\n"
        try:
            os.write(2, line.encode("utf-8", "replace"))
        except OSError:
            pass  # a full disk or a closed terminal is no reason to stop deploying


say = Console()


# --- 2. Settings ----------------------------------------------------------------------

Environ = typing.Mapping[str, str]


class Secret(str):
    """Text that does not show in a repr, a traceback's or a debugger's."""

    def __repr__(self) -> str:
        return "'***'" if self else "''"


class Settings(typing.NamedTuple):
    """What boop was told, checked. Made by read_settings, never changed."""

    secret: Secret
    host: str
    port: int
    script: str  # absolute path
    state: str  # absolute path
    repo: str  # without the user part; "" takes what a push names
    branch: str  # "" takes the repository's default branch
    timeout: int  # seconds
    keep: int
    log_limit: int  # bytes
    poll: int  # seconds; 0: never
    url: str
    github_token: Secret
    github_api: str
    notify: str
    password: Secret
    repo_user: Secret = Secret()  # user[:password] of the repository's URL

    @property
    def full_repo(self) -> str:
        """The repository's URL as it was set: for the script, never to be shown."""
        if not self.repo_user:
            return self.repo
        return self.repo.replace("://", f"://{self.repo_user}@", 1)

    def web(self, path: str) -> str:
        """A link below BOOP_URL for statuses and notifications; "" without one."""
        return f"{self.url.rstrip('/')}/{path}" if self.url else ""


class BadSettings(Exception):
    """Says every mistake, one a line."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def _whole(least: int, most: int) -> typing.Callable[[str], int]:
    def check(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"not a whole number from {least} to {most}")
        return int(text)

    return check


def _executable(text: str) -> str:
    path = os.path.abspath(os.path.expanduser(text)) if text else ""
    if path and not os.path.isfile(path):
        raise ValueError("no such file")
    if path and not os.access(path, os.X_OK):
        raise ValueError("not executable (chmod +x)")
    return path


def _folder(text: str) -> str:
    path = os.path.abspath(os.path.expanduser(text))
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError("not a folder")
    return path


def _url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("not an http:// or https:// address")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[\w.:%-]+", text):
        raise ValueError("not an address or a host name")
    return text


def _repo(text: str) -> str:
    if text.startswith("-") or "::" in text.split("/")[0] or _UNSAFE.search(text):
        raise ValueError("not a repository's URL or path")
    if re.match(r"[\w.+-]+://|[^/]+:", text):  # https://… | git@host:path
        return text
    return os.path.abspath(os.path.expanduser(text)) if text else ""


def branch_name(text: str) -> str:
    """The text, if git would take it as a branch; ValueError otherwise.

    Source: git-check-ref-format(1).
    """
    bad = r"^$|^[-/.]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)|[/.]$|^@$"
    if re.search(bad, text) or _UNSAFE.search(text) or len(text) > MAX_NAME_CHARS:
        raise ValueError("not a branch name")
    return text


class Setting(typing.NamedTuple):
    """A row of the table. The variable's name makes the flag and the field."""

    variable: str
    default: str
    check: typing.Callable[[str], typing.Any]  # ValueError says what is wrong
    help: str
    secret: bool = False  # no flag; may be a systemd credential
    shown: str = ""  # the default in words, where it is found out at start

    @property
    def name(self) -> str:
        """BOOP_LOG_LIMIT -> log_limit, and --log-limit."""
        return self.variable[len("BOOP_") :].lower()


SETTINGS = (
    Setting(
        "BOOP_SECRET",
        "",
        Secret,
        "HMAC secret shared with the forge; without one every hook is answered 503",
        secret=True,
    ),
    Setting("BOOP_HOST", "127.0.0.1", _host, "address to listen on"),
    Setting("BOOP_PORT", "8080", _whole(0, 65535), "port; 0 takes a free one"),
    Setting(
        "BOOP_SCRIPT",
        os.path.join(os.path.dirname(os.path.realpath(__file__)), "deploy.sh"),
        _executable,
        "executable to run",
        shown="deploy.sh beside boop.py",
    ),
    Setting(
        "BOOP_STATE",
        "",
        _folder,
        "where records, logs and the script's work folder live",
        shown="$STATE_DIRECTORY, $XDG_STATE_HOME/boop or ~/.local/state/boop",
    ),
    Setting(
        "BOOP_REPO",
        "",
        _repo,
        "the site's repository, URL or path; empty: whatever a push names",
        shown="the git checkout that boop is started in",
    ),
    Setting(
        "BOOP_BRANCH",
        "",
        lambda text: branch_name(text) if text else "",
        "the branch to deploy",
        shown="the repository's default branch",
    ),
    Setting(
        "BOOP_TIMEOUT", "600", _whole(1, 10**9), "seconds that a deployment may take"
    ),
    Setting("BOOP_KEEP", "100", _whole(1, 10**9), "finished deployments kept"),
    Setting("BOOP_LOG_LIMIT", "10485760", _whole(0, 10**12), "bytes kept of one log"),
    Setting(
        "BOOP_POLL",
        "0",
        _whole(0, 10**9),
        "seconds between looks at the branch's tip; 0: at start and on SIGHUP only",
    ),
    Setting("BOOP_URL", "", _url, "boop's public address, for links"),
    Setting(
        "BOOP_GITHUB_TOKEN",
        "",
        Secret,
        "reports each deployment as a commit status",
        secret=True,
    ),
    Setting("BOOP_GITHUB_API", "https://api.github.com", _url, "the forge's API"),
    Setting("BOOP_NOTIFY", "", _executable, "executable run after each deployment"),
    Setting(
        "BOOP_PASSWORD",
        "",
        Secret,
        "asked for by the list, logs and metrics (any user name)",
        secret=True,
    ),
)


def state_folder(environ: Environ) -> str:
    """Where boop keeps its state when BOOP_STATE is not set; systemd.exec(5), XDG."""
    if environ.get("STATE_DIRECTORY"):
        return environ["STATE_DIRECTORY"].split(":")[0]
    home = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "boop")


def checkout(folder: str) -> str:
    """The git checkout that a folder is in, or ""."""
    while not os.path.exists(os.path.join(folder, ".git")):
        parent = os.path.dirname(folder)
        if parent == folder:
            return ""
        folder = parent
    return folder


def split_user(repo: str) -> tuple[str, str]:
    """https://user:password@host/x -> https://host/x, user:password.

    ssh's user (git@host) is no secret and stays.
    """
    found = re.match(r"(https?://)([^/@]*(?:@[^/@]*)*)@(.*)", repo, re.DOTALL)
    return (found[1] + found[3], found[2]) if found else (repo, "")


def _credential(variable: str, environ: Environ) -> str | None:
    """A secret that systemd passes as a file; systemd.exec(5), CREDENTIALS."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    path = os.path.join(folder, variable) if folder else ""
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return file.read().rstrip("\r\n")


def read_settings(environ: Environ, flags: typing.Mapping[str, str]) -> Settings:
    """Flags by name, then credentials and variables, then defaults.

    Raises BadSettings with every mistake that there is.
    """
    found = {
        "BOOP_STATE": lambda: state_folder(environ),
        "BOOP_REPO": lambda: checkout(os.getcwd()),
    }
    values, mistakes = {}, []
    for s in SETTINGS:
        text: str | None = flags.get(s.name, environ.get(s.variable))
        try:
            if s.secret:
                text = _credential(s.variable, environ) or text
            if text is None or (text == "" and s.variable != "BOOP_REPO"):
                text = found.get(s.variable, lambda s=s: s.default)()
            values[s.name] = s.check(text)
        except (ValueError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error)
            shown = "" if s.secret else f" {split_user(text or '')[0]!r}"
            mistakes.append(f"{s.variable}{shown}: {why}")
    if mistakes:
        raise BadSettings(mistakes)
    values["repo"], user = split_user(values["repo"])
    return Settings(**values, repo_user=Secret(user))


def secrets_of(settings: Settings, environ: Environ) -> dict[str, str]:
    """What must not be shown, and what stands in its place: promise 7."""
    named = re.compile("secret|token|password|key", re.IGNORECASE)
    values = [v for k, v in environ.items() if named.search(k)]
    values += [settings.secret, settings.github_token, settings.password]
    user = settings.repo_user
    if user:
        values += [user, user.partition(":")[2], _basic(user)]
        values += [urllib.parse.unquote(v) for v in values[-3:]]
    shown = {v: "***" for v in values if len(v) >= 8}
    return {f"//{user}@": "//***@", **shown} if user else shown


def _basic(user: str) -> str:
    """user[:password], as RFC 7617 sends it; "" for none."""
    if not user:
        return ""
    name, _, password = user.partition(":")
    pair = f"{urllib.parse.unquote(name)}:{urllib.parse.unquote(password)}"
    return base64.b64encode(pair.encode()).decode()


def child_environment(settings: Settings, environ: Environ) -> dict[str, str]:
    """boop's environment without its secrets and systemd's sockets, for a child.

    git gets the repository's user and password as a header, git-config(1)
    http.extraHeader: what stands in a URL stands in the process list too.
    """
    own = {s.variable for s in SETTINGS if s.secret}
    own |= {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"}
    own |= {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    env = {k: v for k, v in environ.items() if k not in own}
    env["BOOP_STATE"] = settings.state
    if settings.repo_user:
        site = re.match(r"https?://[^/]*/?", settings.repo)
        count = int(env.get("GIT_CONFIG_COUNT") or 0)
        env["GIT_CONFIG_COUNT"] = str(count + 1)
        env[f"GIT_CONFIG_KEY_{count}"] = f"http.{site[0] if site else ''}.extraHeader"
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
    trigger: str = "push"
    exact: bool = False  # exactly the commit, not the branch's tip


class Refusal(Exception):
    """An answer other than 202: its status and the sentence that says why."""

    def __init__(self, status: int, why: str, word: str = "error") -> None:
        super().__init__(why)
        self.status, self.why, self.word = status, why, word


def ignored(why: str) -> Refusal:
    """Not wanted, and no mistake: 200, so that GitLab does not disable the hook."""
    return Refusal(200, why, "ignored")


# Headers that prove who sent a body, the strongest first. The first that is there
# decides, also when it is empty: leaving one out, or sending a wrong one beside an
# older one that is right, gets nobody in.
SIGNATURE_HEADERS = (
    "X-Hub-Signature-256",  # GitHub; Gitea and Forgejo too: sha256=<hex>
    "X-Forgejo-Signature",  # <hex>
    "X-Gitea-Signature",  # <hex>
    "X-Gitlab-Token",  # the secret itself
    "X-Hub-Signature",  # GitHub before 2020: sha1=<hex>; Bitbucket: sha256=<hex>
)


Headers = email.message.Message  # names in any case, as http.server reads them


class Verifier:
    """Checks one request's signature while its body comes in, RFC 2104.

    Raises Refusal (401) as soon as it is known that the request is not signed. One
    thread. Source: docs.github.com, "Validating webhook deliveries".
    """

    def __init__(self, secret: str, headers: Headers) -> None:
        self._secret = secret.encode("utf-8", "surrogateescape")
        self._headers = headers
        self.header = next((h for h in SIGNATURE_HEADERS if h in headers), "")
        value = headers.get(self.header, "").strip()
        if not secret or not self.header:
            looked = ", ".join(SIGNATURE_HEADERS)
            raise Refusal(401, f"no signature: looked for {looked}")
        if not value:
            raise Refusal(401, f"{self.header} is empty: set the hook's secret")
        if self.header == "X-Gitlab-Token":
            self._mac, self._sent = None, ""
            if not hmac.compare_digest(
                value.encode("latin-1", "replace"), self._secret
            ):
                raise self.wrong()
            return
        algorithm, _, digest = value.rpartition("=")
        expected = {"X-Hub-Signature": ("sha1", "sha256")}.get(
            self.header, ("sha256",) if "Hub" in self.header else ("", "sha256")
        )
        if algorithm not in expected:
            raise Refusal(401, f"{self.header} is not of the form {expected[0]}=<hex>")
        self._sent = digest.lower()
        self._algorithm = algorithm or "sha256"
        self._mac = hmac.new(self._secret, digestmod=self._algorithm)

    def wrong(self) -> Refusal:
        """The refusal of a signature that does not match; never what was expected."""
        what = "is not" if self.header == "X-Gitlab-Token" else "was not made with"
        return Refusal(401, f"{self.header} {what} this boop's secret (BOOP_SECRET)")

    def update(self, part: bytes) -> None:
        """Takes the next part of the raw body."""
        if self._mac:
            self._mac.update(part)

    def check(self, body: typing.IO[bytes]) -> None:
        """Returns if the body, taken in whole by update, was signed."""
        if not self._mac or self._same(self._mac):
            return
        gitea = "X-Gitea-Event" in self._headers or "X-Forgejo-Event" in self._headers
        if gitea and media_type(self._headers) == FORM:  # they sign the JSON inside it
            inner = form_payload(body.read())
            if inner and self._same(hmac.new(self._secret, inner, self._algorithm)):
                return
        raise self.wrong()

    def _same(self, mac: hmac.HMAC) -> bool:
        sent = self._sent.encode("latin-1", "replace")
        return hmac.compare_digest(mac.hexdigest().encode(), sent)


JSON, FORM = "application/json", "application/x-www-form-urlencoded"


def media_type(headers: Headers) -> str:
    """Content-Type without its parameters, in lower case."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def form_payload(body: bytes) -> bytes | None:
    """The JSON that stands in a form's `payload=` field, or None."""
    for field in body.split(b"&"):
        name, _, value = field.partition(b"=")
        if name == b"payload":
            return urllib.parse.unquote_to_bytes(value.replace(b"+", b" "))
    return None


# What is kept of a large payload's objects: a push of 20 MB is long lists of file
# names, dropped as each object is complete instead of held until the end.
_KEPT = frozenset(
    "after author before branch changes checkout_sha clone_url closed commit commits"
    " created default_branch deleted full_name git_http_url hash head_commit id links"
    " html href message name new project push raw ref repository type user_name"
    " username zen".split()
)


def parse(
    headers: Headers,
    body: typing.IO[bytes],
    settings: Settings,
    head: typing.Callable[[], str],
) -> Push:
    """What a verified request asks for; Refusal says why it asks for nothing.

    head: asks for the configured repository's default branch; "" where unknown.
    """
    payload = _json_object(body, media_type(headers))
    for forge in FORGES:
        if forge.event_header in headers:
            return _push(forge, headers, payload, settings, head)
    return _manual(payload, settings, head)


def _json_object(body: typing.IO[bytes], kind: str) -> dict[str, typing.Any]:
    if kind not in (JSON, FORM):
        kind = one_line(kind, 60) or "missing"
        raise Refusal(415, f"Content-Type is {kind}, not {JSON} or {FORM}")
    where = "the form's payload field" if kind == FORM else "the body"
    try:
        raw = body.read()
        text = (raw if kind == JSON else form_payload(raw) or b"").decode()
        del raw
        value = json.loads(text, object_hook=_thin if len(text) > SPOOL_BYTES else None)
    except (ValueError, RecursionError):  # also of a number with 5,000 digits
        raise Refusal(400, f"{where} is not JSON") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"{where} is JSON, but not an object")
    return value


def _thin(value: dict[str, typing.Any]) -> dict[str, typing.Any]:
    return {key: value[key] for key in value.keys() & _KEPT}


class Change(typing.NamedTuple):
    """One branch or tag that a delivery says has moved; nothing in it is checked."""

    ref: typing.Any
    commit: typing.Any
    deleted: bool = False
    message: typing.Any = None
    author: typing.Any = None


class Forge(typing.NamedTuple):
    """How one kind of forge words a push."""

    event_header: str
    push: tuple[str, ...]  # its values for a push
    ping: str
    changes: typing.Callable[[typing.Any], typing.Iterable[Change]]
    default_branch: typing.Callable[[typing.Any], typing.Any]
    clone_url: typing.Callable[[typing.Any], typing.Any]


def dig(value: typing.Any, *keys: str) -> typing.Any:
    """value[key][key]…, or None where there is no such thing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _moved(payload: typing.Any) -> typing.Iterable[Change]:
    """GitHub, Gitea, Forgejo, GitLab: one ref, and its commits."""
    after = dig(payload, "after")
    commits = dig(payload, "commits")
    head = dig(payload, "head_commit") or next(
        (c for c in commits if dig(c, "id") == after)
        if isinstance(commits, list)
        else iter(()),
        None,
    )
    yield Change(
        ref=dig(payload, "ref"),
        commit=after,
        deleted=dig(payload, "deleted") is True
        or (isinstance(after, str) and bool(after) and not after.strip("0")),
        message=dig(head, "message"),
        author=dig(head, "author", "name") or dig(payload, "user_name"),
    )


def _bitbucket(payload: typing.Any) -> typing.Iterable[Change]:
    """Bitbucket Cloud: several changes in one push; `new` is null on a deletion."""
    changes = dig(payload, "push", "changes")
    for change in changes if isinstance(changes, list) else ():
        new = dig(change, "new")
        kind = {"branch": "heads", "tag": "tags"}.get(str(dig(new, "type")), "other")
        author = dig(new, "target", "author", "raw")
        yield Change(
            ref=f"refs/{kind}/{dig(new, 'name')}" if new else "refs/heads/deleted",
            commit=dig(new, "target", "hash"),
            deleted=dig(change, "closed") is True or not new,
            message=dig(new, "target", "message"),
            author=author.split(" <")[0] if isinstance(author, str) else None,
        )


def _bitbucket_url(payload: typing.Any) -> typing.Any:
    name = dig(payload, "repository", "full_name")
    return f"https://bitbucket.org/{name}.git" if isinstance(name, str) else None


def _at(*keys: str) -> typing.Callable[[typing.Any], typing.Any]:
    return lambda payload: dig(payload, *keys)


_GITHUB_ALIKE = (
    ("push",),
    "ping",
    _moved,
    _at("repository", "default_branch"),
    _at("repository", "clone_url"),
)

FORGES = (  # Forgejo and Gitea send the event headers of those they come from, too
    Forge("X-Forgejo-Event", *_GITHUB_ALIKE),
    Forge("X-Gitea-Event", *_GITHUB_ALIKE),
    Forge("X-GitHub-Event", *_GITHUB_ALIKE),
    Forge(
        "X-Gitlab-Event",
        ("Push Hook", "System Hook"),
        "",
        _moved,
        _at("project", "default_branch"),
        _at("project", "git_http_url"),
    ),
    Forge(
        "X-Event-Key",
        ("repo:push",),
        "diagnostics:ping",
        _bitbucket,
        lambda payload: None,
        _bitbucket_url,
    ),
)

SKIP_MARKERS = ("[skip ci]", "[ci skip]", "[no ci]", "[skip deploy]")


def _push(
    forge: Forge,
    headers: Headers,
    payload: dict[str, typing.Any],
    settings: Settings,
    head: typing.Callable[[], str],
) -> Push:
    event = headers[forge.event_header]
    if event == forge.ping:
        raise Refusal(200, clean(payload.get("zen"), 200) or "boop", "pong")
    if event not in forge.push:
        event = one_line(event, 60)
        raise ignored(f'event "{event}": only "{forge.push[0]}" is deployed')
    wanted = settings.branch or forge.default_branch(payload) or head()
    whys = []
    for change in forge.changes(payload):
        why = _unwanted(change, wanted)
        if not why:
            return _wanted(change, forge.clone_url(payload), settings)
        whys.append(why)
    if not whys:
        raise Refusal(400, "a push without changes: push.changes is missing or empty")
    raise ignored("; ".join(dict.fromkeys(whys)))


def _unwanted(change: Change, wanted: typing.Any) -> str:
    """Why a change is not deployed, or ""."""
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
    if change.ref != f"refs/heads/{wanted}":
        name = ref[len("refs/heads/") :]
        return f'branch "{name}" is not "{one_line(wanted, MAX_NAME_CHARS)}"'
    message = change.message.lower() if isinstance(change.message, str) else ""
    marker = next((m for m in SKIP_MARKERS if m in message), "")
    return f"the commit's message holds {marker}" if marker else ""


def _wanted(change: Change, url: typing.Any, settings: Settings) -> Push:
    try:
        branch = branch_name(change.ref[len("refs/heads/") :])
    except ValueError:
        name = one_line(change.ref, MAX_NAME_CHARS)
        raise Refusal(400, f'"{name}" is {_NOT_A_BRANCH}') from None
    if change.commit is not None and not is_commit(change.commit):
        raise Refusal(400, "the push's new commit is not a full commit id")
    return Push(
        repo=settings.repo or clone_url(url),
        branch=branch,
        commit=change.commit,
        message=clean(change.message, MAX_MESSAGE_CHARS),
        author=clean(change.author, MAX_NAME_CHARS),
    )


_NOT_A_BRANCH = "not a branch name"


def _manual(
    payload: dict[str, typing.Any], settings: Settings, head: typing.Callable[[], str]
) -> Push:
    """Asked by hand: {} or {"commit": "<full sha>"}, with no forge's event header."""
    if payload.keys() - {"commit"}:
        looked = ", ".join(forge.event_header for forge in FORGES)
        raise Refusal(400, f"no forge that boop knows: looked for {looked}")
    commit = payload.get("commit")
    if "commit" in payload and not is_commit(commit):
        raise Refusal(400, '"commit" is not a full commit id (40 or 64 hex digits)')
    if not settings.repo:
        raise Refusal(400, "which repository? Set BOOP_REPO to ask by hand")
    branch = settings.branch or head()
    if not branch:
        raise Refusal(503, "git could not say the default branch; set BOOP_BRANCH")
    exact = commit is not None
    return Push(settings.repo, branch, commit, trigger="manual", exact=exact)


def is_commit(value: typing.Any) -> bool:
    """Is it a full commit id, SHA-1's or SHA-256's?"""
    return isinstance(value, str) and bool(
        re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", value)
    )


def clean(value: typing.Any, limit: int) -> str | None:
    """A payload's text, fit for an environment variable and a file: no NUL, no lone
    surrogate, not endless, no secret. None for what is no text or empty."""
    if not isinstance(value, str):
        return None
    text = value[:limit].replace("\0", "").encode("utf-8", "replace").decode()
    return say.mask.text(text.strip()) or None


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


class Deployment(typing.NamedTuple):
    """One run of the script for one (repository, branch). Never changed, replaced.

    A NamedTuple, because `import dataclasses` would add a fifth to boop's start.
    """

    number: int
    status: str  # queued, inprogress, success, fail
    reason: str | None  # of a fail
    trigger: str  # push, catch-up, poll, manual, interrupted
    repo: str
    branch: str
    commit: str | None
    message: str | None
    author: str | None
    pushes: int  # that share it
    queued_at: float  # Unix time, seconds; so are the next two
    started_at: float | None = None
    finished_at: float | None = None
    duration: float | None = None  # seconds
    exact: bool = False  # exactly `commit`, not the branch's tip
    tip: str | None = None  # the branch's tip that it settles, where not `commit`

    @property
    def finished(self) -> bool:
        """Has it ended, well or badly?"""
        return self.status in ("success", "fail")

    @property
    def interrupted(self) -> bool:
        """Was it cut short by boop's own end?"""
        return self.status == "fail" and (self.reason or "").startswith(INTERRUPTED)


INTERRUPTED = "interrupted"
PUBLIC_FIELDS = Deployment._fields[:14]  # the contract's, in its order
_TIMES = ("queued_at", "started_at", "finished_at")


def rfc3339(seconds: float | None) -> str | None:
    """Unix time as RFC 3339 in UTC with milliseconds; None stays None."""
    if seconds is None:
        return None
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{text}.{thousandths:03}Z"


def as_json(deployment: Deployment) -> dict[str, typing.Any]:
    """The contract's JSON record."""
    record: dict[str, typing.Any] = dict(zip(PUBLIC_FIELDS, deployment, strict=False))
    for name in _TIMES:
        record[name] = rfc3339(record[name])
    return record


def from_json(text: str, number: int) -> Deployment:
    """A record off the disk; ValueError says what is wrong with it."""
    record = json.loads(text)
    if not isinstance(record, dict) or record.get("number") != number:
        raise ValueError("not the record of its number")
    fields = {k: record[k] for k in Deployment._fields if k in record}
    try:
        for name in _TIMES:
            if fields.get(name) is not None:
                when = datetime.datetime.fromisoformat(
                    fields[name].replace("Z", "+00:00")
                )
                fields[name] = when.timestamp()
        deployment = Deployment(**fields)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    kinds = typing.get_type_hints(Deployment)
    for name, value in deployment._asdict().items():
        number_too = (int,) if "float" in str(kinds[name]) else ()
        if not isinstance(value, (kinds[name], *number_too)):
            raise ValueError(f"{name} is {value!r}")
    if deployment.status not in ("queued", "inprogress", "success", "fail"):
        raise ValueError(f"status is {deployment.status!r}")
    return deployment


class Deployments:
    """The locked dict, and the only writer of deployments, in memory and on disk.

    The lock's rule: whoever changes holds it, for the sync of a new record as well,
    so that a push which shares a queued deployment is never acknowledged before that
    record is safe. Readers take no lock: a dict's get and a list of its values are
    atomic, and what they hold are snapshots. Nothing else is locked or waited for
    while it is held.

    On disk, N.json is replaced by rename(2), so it is old or new, never half. A new
    record is synced, file and folder, before `add` returns. A later state is synced
    before it replaces the record, but the folder is not: losing it to a power cut
    costs one more run. N.log is made as the script starts: a record that is still
    "queued" beside a log is one whose run was cut off before it could be written.
    """

    def __init__(
        self, folder: str, keep: int, changed: typing.Callable[[Deployment], None]
    ) -> None:
        """Raises OSError when the folder can't be used, or another boop uses it."""
        self._lock = threading.Lock()
        self._keep, self._changed = keep, changed
        self._records: dict[int, Deployment] = {}
        self._unsaved: set[int] = set()  # newer here than on disk: it was full
        self.folder = folder
        self.version = 0  # grows with every change
        self.unwritable = ""  # why, while the disk takes no records
        os.makedirs(os.path.join(folder, "work"), mode=0o755, exist_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(None, "another boop is using it") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "it is not writable")
        self._last = 0
        self._load()
        self.unfinished = tuple(
            d.number for d in self._records.values() if not d.finished
        )
        self._requeue()

    # Reading: no lock.

    def get(self, number: int) -> Deployment | None:
        """The deployment of that number, or None."""
        return self._records.get(number)

    def newest_first(self) -> list[Deployment]:
        """All of them, now."""
        return list(self._records.values())[::-1]  # numbers only grow

    def log_path(self, number: int) -> str:
        """Where the deployment's log is, or will be."""
        return os.path.join(self.folder, f"{number}.log")

    # Writing: each takes the lock.

    def add(self, push: Push) -> Deployment:
        """Queues a deployment, or shares the one that is queued; durable on return.

        Raises OSError when it can't be recorded: then it is not queued.
        """
        with self._lock:
            newest = self._newest(push.repo, push.branch)
            wanted = (push.exact, push.exact and push.commit)
            if newest and newest.status == "queued":
                if wanted == (newest.exact, newest.exact and newest.commit):
                    return self._share(newest, push)
            deployment = Deployment(
                self._last + 1,
                "queued",
                None,
                push.trigger,
                push.repo,
                push.branch,
                push.commit,
                push.message,
                push.author,
                pushes=int(push.trigger == "push"),
                queued_at=time.time(),
                exact=push.exact,
            )
            self._write(deployment, sync_folder=True)
            self._last = deployment.number
            return self._put(deployment)

    def catch_up(self, push: Push) -> Deployment | None:
        """Queues a tip that was looked up, unless it is dealt with. Raises OSError."""
        with self._lock:
            settled = self._settled(push)
        return None if settled else self.add(push)

    def start(self) -> Deployment | None:
        """Takes the queued deployment of the lowest number; only the runner may."""
        with self._lock:
            queued = [d for d in self._records.values() if d.status == "queued"]
            if not queued:
                return None
            first = min(queued)
            return self._put(
                first._replace(status="inprogress", started_at=time.time())
            )

    def note(self, number: int, **fields: typing.Any) -> Deployment:
        """Keeps what has become known of an unfinished deployment."""
        with self._lock:
            deployment = self._put(self._records[number]._replace(**fields))
            self._save(deployment)
            return deployment

    def finish(self, number: int, reason: str | None, duration: float) -> Deployment:
        """Ends a deployment: a success without a reason, else a fail."""
        with self._lock:
            deployment = self._records[number]._replace(
                status="fail" if reason else "success",
                reason=reason,
                finished_at=time.time(),
                duration=round(duration, 3),
            )
            self._save(deployment)
            self._put(deployment)
            self._forget()
            return deployment

    # Below, the caller holds the lock (or is __init__).

    def _newest(self, repo: str, branch: str) -> Deployment | None:
        newest_first = reversed(self._records.values())
        return next(
            (d for d in newest_first if (d.repo, d.branch) == (repo, branch)), None
        )

    def _share(self, queued: Deployment, push: Push) -> Deployment:
        """One more push for a queued deployment. Its record is safe already, and what
        this adds to it is no promise: written when it starts."""
        return self._put(
            queued._replace(
                pushes=queued.pushes + (push.trigger == "push"),
                commit=push.commit or queued.commit,
                message=push.message if push.commit else queued.message,
                author=push.author if push.commit else queued.author,
            )
        )

    def _settled(self, push: Push) -> bool:
        """Is the tip live, on its way, or tried once for this trigger already?"""
        tip = push.commit
        for d in self.newest_first():
            if (d.repo, d.branch) != (push.repo, push.branch) or d.interrupted:
                continue
            if d.status == "queued" or (d.status == "inprogress" and d.exact):
                return True  # it will deploy the tip | the next look will know more
            if tip in (d.commit, d.tip) and (
                d.status != "fail" or d.trigger == push.trigger
            ):
                return True
            if d.status == "success":
                return False  # something else is live
        return False

    def _put(self, deployment: Deployment) -> Deployment:
        self._records[deployment.number] = deployment
        self.version += 1
        self._changed(deployment)
        return deployment

    def _forget(self) -> None:
        """Removes what is over the number of finished deployments to keep."""
        finished = sorted(d.number for d in self._records.values() if d.finished)
        for number in finished[: -self._keep]:
            del self._records[number]
            self._unsaved.discard(number)
            for name in (f"{number}.json", f"{number}.log"):
                self._unlink(name)

    def _save(self, deployment: Deployment) -> None:
        """Writes a record that no promise hangs on; a full disk makes it wait."""
        self._unsaved.add(deployment.number)
        records = {**self._records, deployment.number: deployment}
        for number in sorted(self._unsaved):
            try:
                if number in records:
                    self._write(records[number])
            except OSError as error:
                if not self.unwritable:
                    say(f"cannot write {number}.json: {error.strerror}", ERROR)
                self.unwritable = f"cannot write records: {error.strerror}"
                return
            self._unsaved.discard(number)

    def _write(self, deployment: Deployment, sync_folder: bool = False) -> None:
        """Replaces N.json in one step, synced. Raises OSError; then nothing is left."""
        record = as_json(deployment)
        record.update(exact=deployment.exact, tip=deployment.tip)
        name, temporary = f"{deployment.number}.json", f".{deployment.number}.json.new"
        data = json.dumps(record, indent=1).encode() + b"\n"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with open(
                os.open(temporary, flags, 0o600, dir_fd=self._folder), "wb"
            ) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            if sync_folder:
                os.fsync(self._folder)
        except OSError:
            self._unlink(temporary)
            if sync_folder:
                self._unlink(name)  # it was not promised: nobody shall find it
            raise
        self.unwritable = ""

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            say(f"cannot remove {name}: {error.strerror}", WARNING)

    def _load(self) -> None:
        """Reads every record; sets aside what is none; removes what a crash left."""
        names = os.listdir(self.folder)
        records = []
        for name in names:
            if name.startswith(".") and name.endswith(".json.new"):
                self._unlink(name)
            elif found := re.fullmatch(r"([1-9][0-9]{0,17})(\..+)", name):
                self._last = max(self._last, int(found[1]))
                records += [int(found[1])] if found[2] == ".json" else []
        for number in sorted(records):
            self._read(number)
        for name in names:
            stem = name[: -len(".log")]
            kept = {f"{stem}.json", f"{stem}.json.damaged"} & set(names)
            if name.endswith(".log") and stem.isdecimal() and not kept:
                self._unlink(name)  # retention was cut off between the two

    def _read(self, number: int) -> None:
        path = os.path.join(self.folder, f"{number}.json")
        try:
            with open(path, encoding="utf-8") as file:
                self._records[number] = from_json(file.read(1 << 20), number)
        except (OSError, ValueError, RecursionError) as error:
            why = getattr(error, "strerror", None) or str(error)
            say(f"{number}.json is damaged, set aside: {why}", WARNING)
            try:
                os.rename(path, path + ".damaged")
            except OSError as error:
                say(f"cannot rename {path}: {error.strerror}", WARNING)

    def _requeue(self) -> None:
        """Queues again what boop's end has cut off. The new record is written first:
        cut off between the two, the next start finds both, and shares."""
        for d in sorted(self._records.values()):
            if d.status == "inprogress" or (
                d.status == "queued" and os.path.exists(self.log_path(d.number))
            ):
                cut = d._replace(
                    status="fail",
                    reason=f"{INTERRUPTED}: boop was killed",
                    started_at=d.started_at or d.queued_at,
                    finished_at=time.time(),
                )
                self._records[d.number] = cut
                self._again(cut)
                self._save(cut)
            elif d.interrupted:
                self._again(d)
        try:
            os.fsync(self._folder)
        except OSError as error:
            say(f"cannot sync {self.folder}: {error.strerror}", ERROR)

    def _again(self, cut: Deployment) -> None:
        if self._newest(cut.repo, cut.branch) != cut:
            return  # a newer one has done it, or will
        self._last += 1
        again = cut._replace(
            number=self._last,
            status="queued",
            reason=None,
            trigger=INTERRUPTED,
            queued_at=time.time(),
            started_at=None,
            finished_at=None,
            duration=None,
        )
        self._records[again.number] = again
        self._save(again)


# --- 5. Runner ------------------------------------------------------------------------


def _end_group(leader: int, signum: int) -> None:
    """Signals a process group whose leader has not been reaped: it can't be another."""
    try:
        os.killpg(leader, signum)
    except (ProcessLookupError, PermissionError):
        pass  # all gone | only processes of other users left


def ask_tip(settings: Settings, environ: Environ, branch: str) -> tuple[str, str]:
    """The repository's (default branch, tip of the branch), "" where there is none.

    branch "" asks for the default branch's tip. Raises OSError, with git's words,
    when git can't say within GIT_TIMEOUT_S. Source: git-ls-remote(1).
    """
    env = child_environment(settings, environ)
    env["GIT_TERMINAL_PROMPT"] = "0"  # nobody is there to answer
    env.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    names = ["HEAD", f"refs/heads/{branch}"] if branch else ["HEAD"]
    try:
        git = subprocess.Popen(
            ["git", "ls-remote", "--symref", "--", settings.repo, *names],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise OSError(None, f"cannot run git: {error.strerror}") from None
    try:
        out, err = git.communicate(timeout=GIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise OSError(None, f"no answer within {GIT_TIMEOUT_S} s") from None
    finally:
        if git.returncode is None:
            _end_group(git.pid, signal.SIGKILL)  # ssh and git-remote-https, too
            git.communicate()
    if git.returncode:
        words = err.decode("utf-8", "replace").strip().splitlines()
        raise OSError(None, words[0] if words else f"exit status {git.returncode}")
    refs: dict[str, str] = {}
    for line in out.decode("utf-8", "replace").splitlines():
        value, _, name = line.partition("\t")
        refs.setdefault(f"ref: {name}" if value.startswith("ref: ") else name, value)
    head = refs.get("ref: HEAD", "")[len("ref: refs/heads/") :]
    return head, refs.get(f"refs/heads/{branch}" if branch else "HEAD", "")


class Origin:
    """What boop knows of the configured repository, and how it looks for more.

    Any thread may call; looks are made one after the other.
    """

    def __init__(
        self, settings: Settings, environ: Environ, deployments: Deployments
    ) -> None:
        self._settings, self._environ = settings, environ
        self._deployments = deployments
        self._lock = threading.Lock()  # held while git is asked; Deployments' is inside
        self._head = ""
        self._trouble = ""

    def head(self) -> str:
        """The repository's default branch, asked for once; "" where unknown."""
        if self._settings.repo and not self._head:
            with self._lock:
                if not self._head:
                    self._ask("")
        return self._head

    def tip(self, branch: str) -> str:
        """The branch's tip now; "" where unknown."""
        with self._lock:
            return self._ask(branch)

    def catch_up(self, trigger: str) -> None:
        """Deploys the branch's tip if it was missed (promise 4). Raises nothing."""
        with self._lock:
            tip = self._ask(self._settings.branch)
            branch = self._settings.branch or self._head
            if not tip:
                return
            if not branch:
                say("the repository's HEAD is on no branch: set BOOP_BRANCH", WARNING)
                return
            push = Push(self._settings.repo, branch, tip, trigger=trigger)
            try:
                missed = self._deployments.catch_up(push)
            except OSError as error:
                say(f"{trigger}: cannot record {tip[:8]}: {error.strerror}", ERROR)
                return
        if missed:
            say(f"{trigger}: {branch} is at {tip[:8]}: queued as {missed.number}")

    def _ask(self, branch: str) -> str:
        """The tip; trouble is said when it begins, when it changes, when it ends."""
        repo, trouble, tip = self._settings.repo, "", ""
        try:
            head, tip = ask_tip(self._settings, self._environ, branch)
            self._head = head or self._head
            if not tip:
                trouble = f"{repo} has no branch {branch or 'yet'}"
        except OSError as error:
            trouble = f"cannot look at {repo}: {error.strerror}"
        if trouble != self._trouble:
            say(trouble or f"{repo} can be reached again", WARNING if trouble else INFO)
        self._trouble = trouble
        return tip


class Log:
    """A deployment's log file: masked, capped, and never an obstacle. One thread."""

    def __init__(
        self, path: str, limit: int, mask: Mask, grown: typing.Callable[[], None]
    ) -> None:
        self._limit, self._room, self._mask, self._grown = limit, limit, mask, grown
        self._dropped = 0
        self._lost = ""
        self._at_line_start = True
        self._fd = -1
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            self._trouble(error)

    def output(self, data: bytes) -> None:
        """Takes what the script wrote."""
        if self._room > 0:
            data = self._mask.feed(data)
            kept, data = data[: self._room], data[self._room :]
            self._room -= len(kept)
            self._write(kept)
        if data:
            if not self._dropped:
                limit = f"the log's limit of {self._limit} bytes (BOOP_LOG_LIMIT)"
                self.line(f"{limit} is reached; the rest is dropped")
            self._dropped += len(data)

    def end(self, text: str) -> None:
        """boop's last line, and what else there is to say. Closes the log."""
        if self._room > 0:
            self._write(self._mask.flush()[: self._room])
        if self._dropped:
            self.line(f"{self._dropped} bytes were dropped")
        if self._lost:
            self.line(f"parts of this log could not be written: {self._lost}")
        self.line(text)
        if self._fd >= 0:
            os.close(self._fd)

    def line(self, text: str) -> None:
        """A line of boop's own."""
        text = one_line(say.mask.text(text), 2000)
        self._write(b"\n" * (not self._at_line_start) + f"boop: {text}\n".encode())

    def _write(self, data: bytes) -> None:
        if not data or self._fd < 0:
            return
        try:
            rest = data
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self._at_line_start = data.endswith(b"\n")
        except OSError as error:  # the disk is full: the deployment goes on
            self._trouble(error)
        self._grown()

    def _trouble(self, error: OSError) -> None:
        if not self._lost:
            self._lost = error.strerror or str(error)
            say(f"cannot write the deployment's log: {self._lost}", ERROR)


class Wake:
    """An eventfd(2) that poll(2) can wait for; any thread may ring it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """Makes fd readable until hear is called."""
        os.eventfd_write(self.fd, 1)

    def hear(self) -> None:
        """Takes all rings so far."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass


class Runner:
    """Runs the script, one deployment after the other, in the thread that calls run.

    Other threads may call wake, stop and awake. The script is a session and so a
    process group of its own: what ends it, ends all of it, unless a child has made a
    session for itself. It can't be waited for by reading its output to the end (a
    child may hold that open), so poll(2) waits for three things at once: output, the
    script's end (pidfd_open(2)), and a ring from another thread.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Environ,
        deployments: Deployments,
        origin: Origin,
        report: typing.Callable[[Deployment], None],
        clock: typing.Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._environ, self._clock = settings, environ, clock
        self._deployments, self._origin, self._report = deployments, origin, report
        self._secrets = secrets_of(settings, environ)
        self._bell = Wake()
        self._stop = self._stop_now = False
        self._asked = self._heard = 0
        self.grown: typing.Callable[[], None] = lambda: None
        self.done = threading.Event()

    def wake(self) -> None:
        """There may be something to run."""
        self._bell.ring()

    def stop(self, now: bool = False) -> None:
        """Ends the running script (now: without waiting for it) and then the thread."""
        self._stop, self._stop_now = True, self._stop_now or now
        self._bell.ring()

    def awake(self) -> bool:
        """Did the thread hear the last call? Calls it again. For the watchdog."""
        heard = self._heard == self._asked and not self.done.is_set()
        self._asked += 1
        self._bell.ring()
        return heard

    def run(self, ended: typing.Callable[[], None]) -> None:
        """The thread: until stop. Calls ended when it is over."""
        try:
            self._end_orphans(self._deployments.unfinished)
            while not self._stop:
                deployment = self._deployments.start()
                if deployment:
                    self._report(self._deploy(deployment))
                else:
                    select.select([self._bell.fd], [], [])
                    self._hear()
        except Exception as error:  # noqa: BLE001  the thread's edge: say it, and let boop fail
            say(f"the runner ended: {type(error).__name__}: {error}", ERROR)
        finally:
            self.done.set()
            ended()

    def _hear(self) -> None:
        self._bell.hear()
        self._heard = self._asked

    def _deploy(self, deployment: Deployment) -> Deployment:
        """One deployment, from its first line in the log to its record."""
        begun, number = self._clock(), deployment.number
        log = Log(
            self._deployments.log_path(number),
            self._settings.log_limit,
            Mask(self._secrets),
            self.grown,
        )
        log.line(_first_line(deployment))
        say(_first_line(deployment))
        if deployment.trigger == "manual" or (deployment.exact and not deployment.tip):
            tip = self._origin.tip(deployment.branch) or None
            commit = deployment.commit or (None if deployment.exact else tip)
            deployment = self._deployments.note(number, tip=tip, commit=commit)
        self._report(deployment)
        reason = self._script(deployment, log)
        took = self._clock() - begun
        outcome = f"fail after {took:.1f} s: {reason}" if reason else ""
        outcome = outcome or f"success in {took:.1f} s"
        log.end(outcome)
        finished = self._deployments.finish(number, reason, took)
        say(f"deployment {number}: {outcome}", NOTICE if reason else INFO)
        return finished

    def _script(self, deployment: Deployment, log: Log) -> str | None:
        """Runs the script; why it failed, or None."""
        work = os.path.join(self._deployments.folder, "work")
        try:
            os.makedirs(work, exist_ok=True)
            script = subprocess.Popen(
                [self._settings.script],
                cwd=work,
                env=script_environment(self._settings, self._environ, deployment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            return f"cannot run {self._settings.script}: {why}"
        self._deployments.note(deployment.number)  # while the script is under way
        try:
            why_ended = self._watch(script, log)
        finally:
            assert script.stdout
            _end_group(script.pid, signal.SIGKILL)  # what it left running, too
            script.wait()
        self._drain(script.stdout.fileno(), log)
        script.stdout.close()
        return why_ended or _exit_reason(script.returncode)

    def _watch(self, script: subprocess.Popen[bytes], log: Log) -> str | None:
        """Until the script has ended: its output into the log. Why boop ended it, or
        None. Once told to end, it is over when nobody holds its output any more."""
        assert script.stdout
        pipe, ended = script.stdout.fileno(), os.pidfd_open(script.pid)
        os.set_blocking(pipe, False)
        poll = select.poll()
        waiting = {pipe, ended}
        for fd in (pipe, ended, self._bell.fd):
            poll.register(fd, select.POLLIN)
        why, deadline = None, self._clock() + self._settings.timeout
        try:
            while ended in waiting or (why and pipe in waiting):
                left = deadline - self._clock()
                if self._stop_now or (why and left <= 0):
                    return why or f"{INTERRUPTED}: boop was stopped"
                if not why and (self._stop or left <= 0):
                    why = f"timed out after {self._settings.timeout} s"
                    why = f"{INTERRUPTED}: boop was stopped" if self._stop else why
                    _end_group(script.pid, signal.SIGTERM)
                    deadline = self._clock() + GRACE_S
                    continue
                for fd, _ in poll.poll(min(left, 86400) * 1000 + 1):
                    if fd == self._bell.fd:
                        self._hear()
                    elif fd == ended or not self._read(pipe, log):
                        waiting.discard(fd)
                        poll.unregister(fd)
        finally:
            os.close(ended)
        return why

    def _read(self, pipe: int, log: Log) -> int:
        """Takes output into the log: how many bytes; 0 where there is none."""
        try:
            data = os.read(pipe, PIPE_BYTES)
        except BlockingIOError:
            return 0
        log.output(data)
        return len(data)

    def _drain(self, pipe: int, log: Log) -> None:
        """Takes what the script wrote before it ended: no more than a pipe holds, as
        one who has left the group may hold it, and write, for ever."""
        left = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        while left > 0 and (got := self._read(pipe, log)):
            left -= got

    def _end_orphans(self, numbers: tuple[int, ...]) -> None:
        """Ends what is left of scripts that a killed boop was running: SIGTERM, and
        SIGKILL GRACE_S later. Known by their environment, proc(5), so that there is no
        moment at which a script runs and is not known."""
        state = f"BOOP_STATE={self._settings.state}".encode()
        marks = {f"BOOP_NUMBER={number}".encode() for number in numbers}
        deadline, signum = self._clock() + GRACE_S, signal.SIGTERM
        seen: set[int] = set()
        while marks and (orphans := set(_having(state, marks))):
            if self._clock() > deadline or self._stop_now:
                signum, seen = signal.SIGKILL, set()
            for pid in orphans - seen:
                say(f"ending process {pid}, left by a killed boop", NOTICE)
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    pass
            seen |= orphans
            time.sleep(0.02)


def script_environment(
    settings: Settings, environ: Environ, deployment: Deployment
) -> dict[str, str]:
    """What the script is told, as the contract lists it."""
    return {
        **child_environment(settings, environ),
        "BOOP_NUMBER": str(deployment.number),
        "BOOP_TRIGGER": deployment.trigger,
        "BOOP_REPO": settings.full_repo or deployment.repo,
        "BOOP_BRANCH": deployment.branch,
        "BOOP_COMMIT": deployment.commit or "",
        "BOOP_EXACT": "1" if deployment.exact else "",
        "BOOP_MESSAGE": deployment.message or "",
        "BOOP_AUTHOR": deployment.author or "",
    }


def run_notify(program: str, env: dict[str, str], timeout: float) -> str | None:
    """Runs BOOP_NOTIFY; why it failed, with its first words, or None."""
    with tempfile.TemporaryFile() as out:
        try:
            child = subprocess.Popen(
                [program],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return f"cannot be run: {error}"
        try:
            why = _exit_reason(child.wait(timeout))
        except subprocess.TimeoutExpired:
            why = f"timed out after {timeout} s"
            _end_group(child.pid, signal.SIGKILL)
            child.wait()
        out.seek(0)
        words = out.read(300).decode("utf-8", "replace")
        return why and f"{why}: {words}"


def _having(state: bytes, marks: set[bytes]) -> typing.Iterator[int]:
    """The living processes whose environment holds both."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    variables = set(file.read().split(b"\0"))
            except OSError:
                continue  # gone, or not ours
            if state in variables and marks & variables:
                yield int(name)


def _first_line(d: Deployment) -> str:
    what = f"commit {d.commit[:8]}" if d.commit else "its tip"
    by = f" by {d.author}" if d.author else ""
    return f"deployment {d.number}: {d.trigger}, branch {d.branch}, {what}{by}"


def _exit_reason(status: int) -> str | None:
    """Popen.returncode in words; None for a success."""
    if status >= 0:
        return f"exit status {status}" if status else None
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-status}"


# --- 6. Reporting ---------------------------------------------------------------------


class Reporter:
    """Tells GitHub, Gitea or Forgejo, and BOOP_NOTIFY, how deployments go.

    One thread takes them in order. Whatever happens here delays no deployment: it
    is retried a little, said in one line, and forgotten.
    """

    TRIES = 3
    TIMEOUT_S = 10
    NOTIFY_TIMEOUT_S = 60
    MAX_WAITING = 200  # of a forge that is down for hours; the oldest are dropped

    def __init__(
        self, settings: Settings, environ: Environ, deployments: Deployments
    ) -> None:
        self._settings, self._environ = settings, environ
        self._deployments = deployments
        self._queue: queue.SimpleQueue[Deployment | None] = queue.SimpleQueue()
        self._pause = threading.Event()
        self._thread: threading.Thread | None = None
        if settings.github_token or settings.notify:
            self._thread = threading.Thread(
                target=self._run, name="reporter", daemon=True
            )
            self._thread.start()

    def report(self, deployment: Deployment) -> None:
        """Reports a deployment's state, in the background. Any thread."""
        if self._thread:
            self._queue.put(deployment)

    def close(self) -> None:
        """Ends the thread after what it has at hand, at most a moment later."""
        self._pause.set()
        self._queue.put(None)
        if self._thread:
            self._thread.join(2)

    def _run(self) -> None:
        while deployment := self._queue.get():
            if self._queue.qsize() > self.MAX_WAITING:
                continue
            try:
                self._status(deployment)
                if deployment.finished and self._settings.notify:
                    self._notify(deployment)
            except Exception as error:  # noqa: BLE001  the thread's edge
                what = f"{type(error).__name__}: {error}"
                say(f"report of {deployment.number}: {what}", WARNING)

    def _status(self, d: Deployment) -> None:
        """POST /repos/OWNER/REPO/statuses/SHA; docs.github.com/rest/commits/statuses,
        and the same of Gitea and Forgejo below their /api/v1."""
        commit = d.commit if d.exact or not d.tip else d.tip
        path = re.search(r"[:/]([\w.-]+/[\w.-]+?)(\.git)?/?$", d.repo)
        if not self._settings.github_token or not commit or not path:
            return
        state = {"success": "success", "fail": "failure"}.get(d.status, "pending")
        words = {"queued": "waiting", "inprogress": "deploying", "success": "deployed"}
        body = {"state": state, "context": "boop"}
        body["description"] = one_line(d.reason or words.get(d.status, ""), 140)
        link = self._settings.web(f"log/{d.number}")
        body.update({"target_url": link} if link else {})
        api = self._settings.github_api.rstrip("/")
        self._post(
            f"{api}/repos/{path[1]}/statuses/{commit}", json.dumps(body).encode()
        )

    def _post(self, url: str, body: bytes) -> None:
        import urllib.error
        import urllib.request

        headers = {
            "Authorization": f"token {self._settings.github_token}",
            "Accept": "application/vnd.github+json",
            "Content-Type": JSON,
            "User-Agent": f"boop/{VERSION}",
        }
        why = ""
        for attempt in range(self.TRIES):
            try:
                request = urllib.request.Request(url, body, headers)
                urllib.request.urlopen(request, timeout=self.TIMEOUT_S).close()
                return
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}"
                error.close()
                if error.code < 500 and error.code != 429:
                    break  # it will not like it better the next time
            except (OSError, http.client.HTTPException) as error:
                why = str(getattr(error, "reason", error))
            if attempt + 1 < self.TRIES and self._pause.wait(2**attempt):
                break
        say(f"commit status not sent, {url}: {why}", WARNING)

    def _notify(self, d: Deployment) -> None:
        """Runs BOOP_NOTIFY; it has its time, and what it prints goes to our stderr."""
        url = self._settings.web(f"log/{d.number}")
        more = {
            "BOOP_STATUS": d.status,
            "BOOP_REASON": d.reason or "",
            "BOOP_DURATION": str(d.duration),
            "BOOP_LOG": self._deployments.log_path(d.number),
            "BOOP_LOG_URL": url,
        }
        env = {**script_environment(self._settings, self._environ, d), **more}
        why = run_notify(self._settings.notify, env, self.NOTIFY_TIMEOUT_S)
        if why:
            say(f"{self._settings.notify}: {why}", WARNING)


# --- 7. Pages -------------------------------------------------------------------------


def list_text(
    deployments: typing.Sequence[Deployment], now: float, color: bool = False
) -> str:
    """The list for a terminal, newest first."""
    if not deployments:
        return "No deployments yet.\n"
    return "".join(
        f"{d.number:>5}  {d.status:<10}  {(d.commit or '-')[:8]:<8}  "
        f"{one_line(d.reason or d.message or d.trigger, 40)}\n"
        for d in deployments
    )


def list_html(deployments: typing.Sequence[Deployment], now: float) -> str:
    """The list for a browser, newest first."""
    rows = "".join(
        f'<tr><td><a href="log/{d.number}">{d.number}</a><td>{d.status}'
        f"<td>{html.escape(one_line(d.reason or d.message or d.trigger, 80))}"
        for d in deployments
    )
    return f"<!doctype html><title>boop</title><h1>boop</h1><table>{rows}</table>"


def log_html(
    d: Deployment,
    older: int | None,
    newer: int | None,
    tail: str,
    more: bool,
    now: float,
) -> str:
    """One deployment for a browser: what it is, and the end of its log."""
    what = html.escape(_first_line(d))
    return (
        f"<!doctype html><title>{d.number} {d.status}</title><h1>{what}</h1>"
        f'<p>{d.status} {html.escape(d.reason or "")} <a href="../">all</a>'
        f' <a href="{d.number}?text">text</a><pre>{html.escape(tail)}</pre>'
    )


def error_html(status: int, phrase: str, why: str) -> str:
    """A refusal for a browser."""
    title = html.escape(f"{status} {phrase}")
    return f"<!doctype html><title>{title}</title><h1>{title}</h1><p>{html.escape(why)}"


# --- 8. HTTP --------------------------------------------------------------------------


class Deadline(io.RawIOBase):
    """Reads a socket with one deadline for all reads together: a timeout for each
    would let a client send a byte a second for ever. Raises TimeoutError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.at = 0.0  # monotonic seconds

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: typing.Any) -> int:
        """recv_into, until the deadline."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(SEND_TIMEOUT_S)


HEARS = select.POLLIN | select.POLLRDHUP  # it says something, or leaves


class Follower:
    """One who watches a log (number) or the list (0) grow; the follower's thread's."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.connection, self.number = connection, number
        self.at = 0  # bytes of the log that it has
        self.log: typing.IO[bytes] | None = None
        self.unsent = b""
        self.stuck_since = 0.0  # its socket takes nothing more; 0: it does


class Followers:
    """Feeds everyone who watches, in one thread: poll(2) waits for news, for those
    who leave, and for those who had been too slow; sendfile(2) copies nothing.

    Any thread may call add, news and close; the rest is the thread's own.
    """

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments
        self._bell = Wake()
        self._lock = threading.Lock()  # for the next three
        self._new: list[Follower] = []
        self._changed: list[Deployment] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._all: dict[int, Follower] = {}  # by descriptor
        self._poll = select.poll()
        self._poll.register(self._bell.fd, select.POLLIN)

    def full(self) -> bool:
        """Are there as many as boop serves?"""
        return len(self._all) + len(self._new) >= MAX_FOLLOWERS

    def add(self, follower: Follower) -> None:
        """Takes over a non-blocking connection whose response head has been sent."""
        with self._lock:
            self._new.append(follower)
            if not self._thread:
                self._thread = threading.Thread(
                    target=self._run, name="follower", daemon=True
                )
                self._thread.start()
        self._bell.ring()

    def news(self, changed: Deployment | None = None) -> None:
        """A log has grown, or a deployment changed. Costs nothing without followers."""
        if self._thread:
            if changed:
                with self._lock:
                    self._changed.append(changed)
            self._bell.ring()

    def close(self) -> None:
        """Lets everyone have what there is, and ends the thread; waits a second."""
        self._closing = True
        self._bell.ring()
        if self._thread:
            self._thread.join(1)

    def _run(self) -> None:
        while not self._closing:
            events = self._poll.poll(1000 if self._any_stuck() else None)
            self._bell.hear()
            with self._lock:
                new, self._new = self._new, []
                changed, self._changed = self._changed, []
            for follower in new:
                self._all[follower.connection.fileno()] = follower
                self._poll.register(follower.connection, HEARS)
            spoke = {fd for fd, event in events if event & ~select.POLLOUT}
            for fd, follower in list(self._all.items()):
                here = fd not in spoke or self._listens(follower)
                if not here or not self._feed(follower, changed):
                    self._drop(fd)

    def _any_stuck(self) -> bool:
        return any(f.stuck_since for f in self._all.values())

    def _listens(self, follower: Follower) -> bool:
        """Is it still there? What it says is of no interest."""
        try:
            return follower.connection.recv(4096) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _drop(self, fd: int) -> None:
        follower = self._all.pop(fd)
        self._poll.unregister(fd)
        if follower.log:
            follower.log.close()
        follower.connection.close()

    def _feed(self, follower: Follower, changed: list[Deployment]) -> bool:
        """Sends what is new; False when that was the last, or nobody takes it."""
        try:
            if not follower.number:
                lines = (f"{_news_line(d)}\n".encode() for d in changed)
                return self._send_lines(follower, b"".join(lines))
            return self._send_log(follower)
        except BlockingIOError:
            return self._is_stuck(follower)
        except OSError:
            return False

    def _is_stuck(self, follower: Follower) -> bool:
        """Waits until its socket takes more; False when that has lasted too long."""
        now = time.monotonic()
        if not follower.stuck_since:
            follower.stuck_since = now
            self._poll.modify(follower.connection, HEARS | select.POLLOUT)
        return now - follower.stuck_since < SEND_TIMEOUT_S

    def _moves(self, follower: Follower) -> None:
        if follower.stuck_since:
            follower.stuck_since = 0.0
            self._poll.modify(follower.connection, HEARS)

    def _send_lines(self, follower: Follower, lines: bytes) -> bool:
        follower.unsent += lines
        while follower.unsent:
            sent = follower.connection.send(follower.unsent)
            follower.unsent = follower.unsent[sent:]
            self._moves(follower)
        return True

    def _send_log(self, follower: Follower) -> bool:
        deployment = self._deployments.get(follower.number)
        over = deployment is None or deployment.finished  # known before the last look
        if not follower.log:
            try:
                path = self._deployments.log_path(follower.number)
                follower.log = open(path, "rb", buffering=0)
            except FileNotFoundError:
                return not over
        out, log = follower.connection.fileno(), follower.log.fileno()
        while sent := os.sendfile(out, log, follower.at, 1 << 20):
            follower.at += sent
            self._moves(follower)
        return not over


def _news_line(d: Deployment) -> str:
    why = f": {d.reason}" if d.reason else ""
    return one_line(f"{d.number} {d.status} {d.branch} {(d.commit or '')[:8]}{why}")


TEXT, HTML = "text/plain", "text/html"

SECURITY_HEADERS = (
    b"X-Content-Type-Options: nosniff\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"X-Frame-Options: DENY\r\n"
    b"Content-Security-Policy: default-src 'none'; script-src 'self';"
    b" style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none';"
    b" form-action 'none'; frame-ancestors 'none'\r\n"
)


def preferred(accept: str) -> str:
    """The form that an Accept header asks for: RFC 9110, 12.5.1. curl gets text."""
    best, form = (0.0, 0), TEXT
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        rank = {TEXT: 1, "text/*": 1, JSON: 2, HTML: 3}.get(kind, 0)
        q = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        weight = float(q) if re.fullmatch(r"[01](\.[0-9]{0,3})?", q) else 0.0
        if rank and weight and (weight, rank) > best:
            best, form = (weight, rank), kind if kind != "text/*" else TEXT
    return form


class Page(typing.NamedTuple):
    """A body that is ready to send."""

    body: bytes
    kind: str
    etag: str = ""
    cache: str = "no-cache"  # Cache-Control: ask each time, by the ETag


class Site:
    """What the handlers share: all of it made by main, none of it theirs to change."""

    def __init__(
        self,
        settings: Settings,
        deployments: Deployments,
        origin: Origin,
        followers: Followers,
        health: typing.Callable[[], str],
    ) -> None:
        self.settings, self.deployments, self.origin = settings, deployments, origin
        self.followers, self.health = followers, health
        self._cache: dict[str, tuple[int, Page]] = {}  # replaced, never changed within

    def cached(
        self, key: str, kind: str, make: typing.Callable[[list[Deployment]], str]
    ) -> Page:
        """A page made of the list, made anew when the list has changed. No lock: two
        who make it at once make the same."""
        version = self.deployments.version
        hit = self._cache.get(key)
        if hit and hit[0] == version:
            return hit[1]
        body = make(self.deployments.newest_first()).encode("utf-8", "replace")
        page = Page(
            body, kind, f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        )
        self._cache[key] = version, page
        return page


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection: any number of requests, one after the other."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = f"boop/{VERSION}", ""
    disable_nagle_algorithm = True
    wbufsize = -1  # the head and the body leave in one piece

    # method, path, what answers it, does BOOP_PASSWORD guard it?
    ROUTES = (
        ("POST", re.compile("/deploy"), "deploy", False),
        ("GET", re.compile("/"), "list", True),
        ("GET", re.compile("/log/(latest|[1-9][0-9]{0,17})"), "log", True),
        ("GET", re.compile("/healthz"), "healthz", False),
    )

    def __init__(
        self, connection: socket.socket, address: typing.Any, site: Site
    ) -> None:
        self.site = site
        super().__init__(connection, address, None)  # type: ignore[arg-type]

    def setup(self) -> None:
        """socketserver's, with a reader that has a deadline."""
        super().setup()
        self.rfile.close()
        self._deadline = Deadline(self.connection)
        self.rfile = io.BufferedReader(self._deadline)

    def handle_one_request(self) -> None:
        """http.server's, within the deadline for a request's head."""
        self._deadline.at = time.monotonic() + HEAD_DEADLINE_S
        self._expects = False
        super().handle_one_request()

    def __getattr__(self, name: str) -> typing.Any:
        """http.server looks for do_GET and the like: every method goes one way."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        """Finds the route; refusals become answers here, and only here."""
        if self.request_version == "HTTP/0.9":  # no head was sent, and none expected
            self.request_version = "HTTP/1.0"
        try:
            self._path, _, query = self.path.partition("?")
            if "://" in self._path:  # absolute-form, RFC 9112, 3.2.2
                self._path = urllib.parse.urlsplit(self._path).path
            self.query = {name.partition("=")[0] for name in query.split("&")}
            self._route()
        except Refusal as refusal:
            self._refuse(refusal)
        except TimeoutError:
            self._refuse(Refusal(408, f"the request took over {BODY_DEADLINE_S} s"))
        if self._path != "/deploy" and (
            "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        ):
            self.close_connection = True  # behind a body that nobody has read

    def _route(self) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        allowed = []
        for wanted, pattern, name, guarded in self.ROUTES:
            found = pattern.fullmatch(self._path)
            if found and wanted == method:
                if guarded:
                    self._check_password()
                getattr(self, f"_{name}")(*found.groups())
                return
            allowed += [wanted] if found else []
        if not allowed:
            raise Refusal(404, f"there is no {one_line(self._path, 100)} here")
        self._allow = "GET, HEAD" if "GET" in allowed else allowed[0]
        raise Refusal(405, f"{one_line(self.command, 20)} is not for this address")

    def _refuse(self, refusal: Refusal) -> None:
        """An answer other than a page's or a 202: to the client, and on stderr."""
        status, why = refusal.status, say.mask.text(refusal.why)
        if self.command == "POST" or self._path == "/deploy":
            who = self.headers.get("X-GitHub-Delivery", "") if self.headers else ""
            who = f" (delivery {one_line(who, 40)})" if who else ""
            say(f"{status} to {self.client_address[0]}{who}: {why}", NOTICE)
        if status >= 400 and self._path == "/deploy":
            self.close_connection = True
        form = preferred(self.headers.get("Accept", "")) if self.headers else TEXT
        if self._path == "/deploy" or form == JSON:
            page = Page(json.dumps({refusal.word: why}).encode() + b"\n", JSON)
        elif form == HTML:
            phrase = http.HTTPStatus(status).phrase
            page = Page(
                error_html(status, phrase, why).encode("utf-8", "replace"), HTML
            )
        else:
            page = Page(f"{why}\n".encode("utf-8", "replace"), TEXT)
        headers = {
            401: ("WWW-Authenticate", 'Basic realm="boop", charset="UTF-8"'),
            405: ("Allow", getattr(self, "_allow", "")),
            503: ("Retry-After", "30"),
        }
        if self._path == "/deploy":
            headers[401] = ("WWW-Authenticate", "Signature")
        self._send(status, page, *([headers[status]] if status in headers else []))
        if self.close_connection and status >= 400:
            self._linger()

    def _linger(self) -> None:
        """Reads on for a moment: closing on unread bytes would reset the connection,
        and the client might never see why it was refused."""
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self._deadline.at = time.monotonic() + LINGER_S
            while self.rfile.read1(PIPE_BYTES):
                pass
        except OSError:
            pass

    def _send(self, status: int, page: Page, *headers: tuple[str, str]) -> None:
        self._head(status, page, len(page.body), *headers)
        if self.command != "HEAD" and status != 304:
            self.wfile.write(page.body)

    def _head(
        self, status: int, page: Page, length: int | None, *headers: tuple[str, str]
    ) -> None:
        self.send_response(status)
        charset = "" if page.kind == JSON else "; charset=utf-8"
        self.send_header("Content-Type", page.kind + charset)
        self.send_header("Vary", "Accept")
        self.send_header("Cache-Control", page.cache)
        if page.etag:
            self.send_header("ETag", page.etag)
        if length is not None and status != 304:
            self.send_header("Content-Length", str(length))
        for name, value in headers:
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self._headers_buffer.append(SECURITY_HEADERS)
        self.end_headers()

    def _page(self, page: Page) -> None:
        """200, or 304 to one who has it: RFC 9110, 13.1.2."""
        tags = re.findall(r'"[^"]*"|\*', self.headers.get("If-None-Match", ""))
        same = page.etag and (page.etag in tags or "*" in tags)
        self._send(304 if same else 200, page)

    def _check_password(self) -> None:
        password = self.site.settings.password
        if not password:
            return
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        try:
            sent = (
                base64.b64decode(value, validate=True)
                if kind.lower() == "basic"
                else b""
            )
        except ValueError:
            sent = b""
        sent = sent.partition(b":")[2]
        if not hmac.compare_digest(sent, password.encode("utf-8", "surrogateescape")):
            raise Refusal(401, "boop wants the password (BOOP_PASSWORD), any user name")

    # What answers the routes.

    def _deploy(self) -> None:
        """POST /deploy: the signature before anything else is done with the body."""
        settings = self.site.settings
        if not settings.secret:
            raise Refusal(503, "no secret is set: boop can't know a push (BOOP_SECRET)")
        length = self._length()
        verifier = Verifier(settings.secret, self.headers)
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as body:
            try:
                self._receive(length, body, verifier)
            except OSError as error:
                if error.errno is None or isinstance(
                    error, ConnectionError | TimeoutError
                ):
                    raise
                raise Refusal(503, f"cannot keep the body: {error.strerror}") from None
            body.seek(0)
            verifier.check(body)
            body.seek(0)
            push = parse(self.headers, body, settings, self.site.origin.head)
        try:
            deployment = self.site.deployments.add(push)
        except OSError as error:
            raise Refusal(503, f"cannot record the push: {error.strerror}") from None
        number = deployment.number
        answer = {"deployment": number, "status": "queued", "log": f"log/{number}"}
        self._send(202, Page(json.dumps(answer).encode() + b"\n", JSON))

    def _length(self) -> int:
        """The body's length, before a byte of it is read: RFC 9112, 6.3."""
        lengths = set(self.headers.get_all("Content-Length", ()))
        if "Transfer-Encoding" in self.headers or not lengths:
            raise Refusal(411, "no Content-Length (chunked bodies are not taken)")
        length = lengths.pop()
        if lengths or not re.fullmatch("[0-9]{1,18}", length):
            raise Refusal(400, "Content-Length is not one whole number")
        if int(length) > MAX_BODY_BYTES:
            raise Refusal(413, f"a body of {length} bytes: over {MAX_BODY_BYTES}")
        return int(length)

    def _receive(self, length: int, body: typing.IO[bytes], verifier: Verifier) -> None:
        if self._expects:
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
        self._deadline.at = time.monotonic() + BODY_DEADLINE_S
        while length:
            part = self.rfile.read1(min(length, PIPE_BYTES))
            if not part:
                raise Refusal(400, f"the body ended {length} bytes early")
            verifier.update(part)
            body.write(part)
            length -= len(part)

    def handle_expect_100(self) -> bool:
        """http.server would ask for the body before its length is looked at."""
        self._expects = True
        return True

    def _list(self) -> None:
        """GET /: the deployments, newest first."""
        if "follow" in self.query:
            self._follow(0, b"boop: whatever changes\n")
            return
        form = preferred(self.headers.get("Accept", ""))
        if form == JSON:
            page = self.site.cached(
                JSON,
                JSON,
                lambda ds: json.dumps({"deployments": [as_json(d) for d in ds]}) + "\n",
            )
        elif form == HTML:
            page = self.site.cached(HTML, HTML, lambda ds: list_html(ds, time.time()))
        else:
            color = "color" in self.query
            page = self.site.cached(
                f"{TEXT} {color}", TEXT, lambda ds: list_text(ds, time.time(), color)
            )
        self._page(page)

    def _log(self, which: str) -> None:
        """GET /log/N: the log, the page around it, or the record."""
        newest = self.site.deployments.newest_first()
        number = newest[0].number if which == "latest" and newest else 0
        deployment = self.site.deployments.get(
            number or int(which.replace("latest", "0"))
        )
        if not deployment:
            raise Refusal(404, f"there is no deployment {which}")
        form = preferred(self.headers.get("Accept", ""))
        if "follow" in self.query:
            self._follow(deployment.number)
        elif form == JSON:
            self._page(Page(json.dumps(as_json(deployment)).encode() + b"\n", JSON))
        elif form == HTML and "text" not in self.query:
            self._page(self._log_page(deployment, newest))
        else:
            self._log_text(deployment, which)

    def _log_page(self, deployment: Deployment, newest: list[Deployment]) -> Page:
        numbers = [d.number for d in newest]
        at = numbers.index(deployment.number)
        newer = numbers[at - 1] if at else None
        older = numbers[at + 1] if at + 1 < len(numbers) else None
        tail, more = b"", False
        try:
            path = self.site.deployments.log_path(deployment.number)
            with open(path, "rb") as log:
                size = os.fstat(log.fileno()).st_size
                more = size > PIPE_BYTES
                log.seek(max(0, size - PIPE_BYTES))
                tail = log.read(PIPE_BYTES)
        except FileNotFoundError:
            pass
        text = tail.decode("utf-8", "replace")
        page = log_html(deployment, older, newer, text, more, time.time())
        return Page(page.encode("utf-8", "replace"), HTML)

    def _log_text(self, deployment: Deployment, which: str) -> None:
        """The log so far, as it is: sendfile(2) from the page cache to the socket."""
        try:
            log = open(self.site.deployments.log_path(deployment.number), "rb", 0)
        except FileNotFoundError:
            waiting = f"boop: deployment {deployment.number} is {deployment.status}\n"
            self._page(Page(waiting.encode(), TEXT))
            return
        with log:
            size = os.fstat(log.fileno()).st_size
            page = Page(b"", TEXT)
            if deployment.finished and which != "latest":  # its number is never reused
                cache = "private, max-age=31536000, immutable"
                page = Page(b"", TEXT, f'"{deployment.number}-{size}"', cache)
            if page.etag and page.etag in self.headers.get("If-None-Match", ""):
                self._head(304, page, None)
                return
            self._head(200, page, size)
            if self.command != "HEAD" and size:
                self.wfile.flush()
                self.connection.sendfile(log, 0, size)

    def _follow(self, number: int, first: bytes = b"") -> None:
        """A response without a length: it ends when the connection does. Followers
        takes the connection over, as a duplicate: the worker closes its own."""
        if self.site.followers.full():
            raise Refusal(503, "boop has all the followers it serves")
        self.close_connection = True
        self._head(200, Page(first, TEXT, cache="no-store"), None, NO_BUFFERING)
        if self.command == "HEAD":
            return
        self.wfile.write(first)
        self.wfile.flush()
        connection = self.connection.dup()
        connection.setblocking(False)
        self.site.followers.add(Follower(connection, number))

    def _healthz(self) -> None:
        """GET /healthz: 200, or 503 and why."""
        why = self.site.health()
        if why:
            raise Refusal(503, why)
        self._page(Page(b"ok\n", TEXT))

    # http.server's own words, in our ways.

    def send_error(
        self, code: int, message: str | None = None, explain: str | None = None
    ) -> None:
        """What http.server refuses itself: a request that is no HTTP."""
        self.close_connection = True
        self._path = ""
        self.command = self.command or "GET"
        if not hasattr(self, "headers") or self.request_version == "HTTP/0.9":
            self.headers = http.client.HTTPMessage()
            self.request_version = "HTTP/1.1"
        self._refuse(Refusal(code, one_line(message or "", 100) or "bad request"))

    def log_message(self, format: str, *args: typing.Any) -> None:
        """No access log: what matters is said where it happens."""


NO_BUFFERING = ("X-Accel-Buffering", "no")  # for an nginx in front

TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 51\r\nRetry-After: 5\r\n"
    b"Content-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"error": "boop has all the connections it serves"}'
)


class Door:
    """Takes connections and gives each a thread, kept for the next if few are idle.

    accept is called by main; the rest happens in the workers.
    """

    def __init__(self, listener: socket.socket, site: Site) -> None:
        listener.setblocking(False)
        self.listener, self._site = listener, site
        self._lock = threading.Lock()  # for the counts
        self._idle = self._open = 0
        self._queue: queue.SimpleQueue[tuple[socket.socket, typing.Any]]
        self._queue = queue.SimpleQueue()

    def accept(self) -> None:
        """Takes all that wait. Beyond MAX_CONNECTIONS, turns them away."""
        while True:
            try:
                connection, address = self.listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it was gone before it was taken
            except OSError as error:  # no descriptors, no memory
                say(f"cannot accept: {error.strerror}", WARNING)
                time.sleep(0.1)
                return
            if not self._give(connection, address):
                self._turn_away(connection)

    def _give(self, connection: socket.socket, address: typing.Any) -> bool:
        with self._lock:
            if self._open >= MAX_CONNECTIONS:
                return False
            self._open += 1
            idle, self._idle = self._idle, max(0, self._idle - 1)
        if idle:
            self._queue.put((connection, address))
            return True
        thread = threading.Thread(
            target=self._work, args=(connection, address), name="worker", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._release()
            return False
        return True

    def _turn_away(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            connection.send(TOO_MANY)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(PIPE_BYTES)  # unread bytes would turn the close to a reset
        except OSError:
            pass
        connection.close()

    def _release(self) -> None:
        with self._lock:
            self._open -= 1

    def _work(self, connection: socket.socket, address: typing.Any) -> None:
        while True:
            self._serve(connection, address)
            with self._lock:
                if self._idle >= SPARE_WORKERS:
                    return
                self._idle += 1
            connection, address = self._queue.get()

    def _serve(self, connection: socket.socket, address: typing.Any) -> None:
        try:
            Handler(connection, address, self._site)
        except OSError:
            pass  # the client is gone
        except Exception as error:  # noqa: BLE001  the thread's edge
            say(f"a request failed: {type(error).__name__}: {error}", ERROR)
        connection.close()
        self._release()


# --- 9. main --------------------------------------------------------------------------


def sd_notify(environ: Environ, **fields: str | int) -> None:
    """Tells systemd, where it listens; sd_notify(3). Never raises."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    message = "\n".join(f"{k}={one_line(str(v))}" for k, v in fields.items())
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            datagram.sendto(message.encode("utf-8", "replace"), address)
    except OSError as error:
        say(f"cannot notify systemd: {error.strerror}", WARNING)


def listen(settings: Settings, environ: Environ) -> socket.socket:
    """The socket that systemd passes, sd_listen_fds(3), or one of our own.

    Raises OSError: the port is taken, or not ours to take.
    """
    if environ.get("LISTEN_PID") == str(os.getpid()) and environ.get("LISTEN_FDS"):
        listener = socket.socket(fileno=3)
        os.set_inheritable(3, False)
        return listener
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server(
        (settings.host, settings.port), family=family, backlog=BACKLOG
    )


class Timers:
    """When the next look and the next sign of life are due. Without any, main sleeps
    until somebody comes. One thread."""

    def __init__(
        self,
        settings: Settings,
        environ: Environ,
        clock: typing.Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        watchdog = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every = {"poll": float(settings.poll)}  # seconds
        if mine and watchdog.isdecimal():  # sd_watchdog_enabled(3): half of the time
            self._every["watchdog"] = int(watchdog) / 2e6
        self._every = {name: s for name, s in self._every.items() if s}
        self._next = {name: clock() + s for name, s in self._every.items()}

    def wait_ms(self) -> float | None:
        """Milliseconds for poll(2) until the next is due; None: for ever."""
        if not self._next:
            return None
        return max(0.0, min(self._next.values()) - self._clock()) * 1000 + 1

    def due(self, name: str) -> bool:
        """Is it time? If so, the next time is set."""
        if name not in self._next or self._clock() < self._next[name]:
            return False
        self._next[name] = self._clock() + self._every[name]
        return True


class Boop:
    """The daemon: makes the rooms' parts, and minds them in the main thread."""

    def __init__(self, settings: Settings, environ: Environ) -> None:
        """Raises OSError when boop can't serve, with the reason in one line."""
        self._settings, self._environ = settings, environ
        try:
            self._deployments = Deployments(
                settings.state, settings.keep, self._changed
            )
        except OSError as error:
            why = f"state folder {settings.state}: {error.strerror}"
            raise OSError(None, why) from None
        self._origin = Origin(settings, environ, self._deployments)
        self._reporter = Reporter(settings, environ, self._deployments)
        self._followers = Followers(self._deployments)
        self._runner = Runner(
            settings, environ, self._deployments, self._origin, self._reporter.report
        )
        self._runner.grown = self._followers.news
        try:
            listener = listen(settings, environ)
        except OSError as error:
            where = f"{settings.host} port {settings.port}"
            raise OSError(None, f"cannot listen on {where}: {error.strerror}") from None
        site = Site(
            settings, self._deployments, self._origin, self._followers, self._health
        )
        self._door = Door(listener, site)
        self._looking = threading.Lock()  # held by the one catch-up at a time

    def serve(self) -> int:
        """The daemon's life: until a signal ends it. The exit status."""
        self._signals, signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)  # read off the pipe, below
        signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._door.listener, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        threading.Thread(
            target=self._runner.run,
            args=(lambda: os.write(signals, b"\0"),),
            name="runner",
            daemon=True,
        ).start()
        self._welcome()
        self._look("catch-up")
        timers = Timers(self._settings, self._environ)
        while True:
            for fd, _ in poll.poll(timers.wait_ms()):
                if fd != self._signals:
                    self._door.accept()
                elif (status := self._signalled()) is not None:
                    return status
            if timers.due("poll"):
                self._look("poll")
            if timers.due("watchdog") and self._runner.awake():
                sd_notify(self._environ, WATCHDOG=1)

    def _signalled(self) -> int | None:
        """What the signals ask for; an exit status if it is time to end."""
        for signum in os.read(self._signals, 64):
            if signum == signal.SIGHUP:
                now = time.monotonic_ns() // 1000
                sd_notify(self._environ, RELOADING=1, MONOTONIC_USEC=now)
                self._look("catch-up")
                sd_notify(self._environ, READY=1)
            elif signum == 0:
                say("the runner is gone, and so boop ends", ERROR)
                return 1
            else:
                return self._end()
        return None

    def _end(self) -> int:
        """Takes no more requests, ends the script, lets everyone have the end."""
        sd_notify(self._environ, STOPPING=1, STATUS="stopping")
        say("stopping")
        self._door.listener.close()
        self._runner.stop()
        while not self._runner.done.is_set():
            select.select([self._signals], [], [])
            for signum in os.read(self._signals, 64):
                if signum in (signal.SIGTERM, signal.SIGINT):
                    self._runner.stop(now=True)
        self._followers.close()
        self._reporter.close()
        return 0

    def _changed(self, deployment: Deployment) -> None:
        """Deployments calls it, with its lock held: rings bells, and no more."""
        self._followers.news(deployment)
        if deployment.status == "queued":
            self._runner.wake()

    def _health(self) -> str:
        """Why boop can't do its work, or ""."""
        if self._runner.done.is_set():
            return "stopping"
        return self._deployments.unwritable

    def _look(self, trigger: str) -> None:
        """Looks at the branch's tip, in a thread of its own: git may take its time."""
        if self._settings.repo and self._looking.acquire(blocking=False):
            threading.Thread(
                target=self._catch_up, args=(trigger,), name="catch-up", daemon=True
            ).start()

    def _catch_up(self, trigger: str) -> None:
        try:
            self._origin.catch_up(trigger)
        except Exception as error:  # noqa: BLE001  the thread's edge
            say(f"{trigger}: {type(error).__name__}: {error}", ERROR)
        finally:
            self._looking.release()

    def _welcome(self) -> None:
        s = self._settings
        host, port = self._door.listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        say(f"boop {VERSION} listens on {address}, state in {s.state}")
        if not _same_output():
            print(address, flush=True)
        what = f"{s.repo}, branch {s.branch or 'HEAD'}," if s.repo else ""
        say(f"deploys {what or 'whatever repository a push names'} with {s.script}")
        if not s.secret:
            say("no BOOP_SECRET: every hook is answered 503 until one is set", WARNING)
        if not s.repo:
            say("no BOOP_REPO, and this is no git checkout: no catch-up", WARNING)
        sd_notify(self._environ, READY=1)


def _same_output() -> bool:
    """Do stdout and stderr go to one place? Then the address is not printed twice."""
    try:
        return os.path.sameopenfile(1, 2)
    except OSError:
        return True


def ask(settings: Settings, commit: str | None) -> int:
    """`boop.py deploy [COMMIT]`: asks the boop that runs with these settings, prints
    the log as it grows. 0 on success, 1 on a fail or where it can't be asked."""
    body = json.dumps({"commit": commit} if commit else {}).encode()
    digest = hmac.new(settings.secret.encode(), body, "sha256").hexdigest()
    headers = {"Content-Type": JSON, "X-Hub-Signature-256": f"sha256={digest}"}
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    where = f"boop at {host} port {settings.port}"
    if not settings.secret:
        say("BOOP_SECRET is not set: boop would not know who asks", ERROR)
        return 1
    try:
        answer = _request(settings, host, "POST", "/deploy", body, headers)
        log = f"/{answer['log']}"
        _request(settings, host, "GET", f"{log}?follow", copy=True)
        record = _request(settings, host, "GET", log, headers={"Accept": JSON})
    except Refusal as refusal:
        say(f"{where} refused: {refusal.why}", ERROR)
        return 1
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        say(f"{where} does not answer: {why}", ERROR)
        return 1
    return int(record["status"] != "success")


def _request(
    settings: Settings,
    host: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: typing.Mapping[str, str] | None = None,
    copy: bool = False,
) -> typing.Any:
    """One request to a boop. Its JSON, or, with copy, its text to stdout as it comes.

    Raises Refusal for an answer that is no 2xx, OSError, HTTPException, ValueError.
    """
    headers = dict(headers or {})
    if settings.password:
        login = base64.b64encode(b"boop:" + settings.password.encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    connection = http.client.HTTPConnection(host, settings.port, timeout=None)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    if answer.status >= 300:
        text = answer.read(2000).decode("utf-8", "replace").strip()
        why = json.loads(text).get("error") if text.startswith("{") else text
        raise Refusal(answer.status, f"{answer.status}: {one_line(str(why))}")
    if not copy:
        return json.loads(answer.read())
    while data := answer.read1(PIPE_BYTES):
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    return None


HELP = """\
git push, and seconds later your site is live.

Without a command, boop listens for a forge's webhook at POST /deploy and runs the
script. `deploy` asks the running boop for a deployment and follows it: of the
branch's tip, or of exactly COMMIT (a full commit id)."""


def read_flags(argv: list[str]) -> tuple[dict[str, str], typing.Any]:
    """Settings by name, as flags gave them, and what else was asked.

    Raises BadSettings; --help and --version print, and raise SystemExit.
    """
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise BadSettings([message])

    parser = Parser(
        "boop.py",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Secrets have no flag: the process list shows flags to everyone.",
    )
    parser.add_argument("command", nargs="?", choices=["deploy"], metavar="deploy")
    parser.add_argument("commit", nargs="?", metavar="COMMIT", help="a full commit id")
    parser.add_argument("--version", action="version", version=f"boop {VERSION}")
    parser.add_argument(
        "--check", action="store_true", help="check all settings, and exit"
    )
    group = parser.add_argument_group("settings (a flag wins over its variable)")
    secrets = ["\nvariables without a flag:"]
    for s in SETTINGS:
        default = s.shown or s.default or "none"
        if s.secret:
            secrets.append(f"  {s.variable}: {s.help}")
            continue
        group.add_argument(
            f"--{s.name.replace('_', '-')}",
            metavar=s.variable,
            dest=f"setting {s.name}",
            help=f"{s.help} (default: {default})".replace("%", "%%"),
        )
    parser.description = HELP + "\n" + "\n".join(secrets)
    given = parser.parse_args(argv)
    flags = {
        name.removeprefix("setting "): value
        for name, value in vars(given).items()
        if name.startswith("setting ") and value is not None
    }
    return flags, given


def main(argv: list[str] | None = None) -> int:
    """boop. The exit status: 0, 1 (it can't serve), or 78 (bad settings)."""
    environ = dict(os.environ)
    argv = sys.argv[1:] if argv is None else argv
    try:
        flags, given = read_flags(argv) if argv else ({}, None)
        if given and given.commit and not is_commit(given.commit):
            raise BadSettings([f"{given.commit!r} is not a full commit id"])
        settings = read_settings(environ, flags)
    except BadSettings as bad:
        for mistake in bad.mistakes:
            say(mistake, ERROR)
        return EX_CONFIG
    say.mask = Mask(secrets_of(settings, environ))
    if given and given.check:
        for setting in SETTINGS:
            value = getattr(settings, setting.name)
            print(f"{setting.variable}={'***' if setting.secret and value else value}")
        return 0
    if given and given.command == "deploy":
        try:
            return ask(settings, given.commit)
        except KeyboardInterrupt:
            return 130
    try:
        return Boop(settings, environ).serve()
    except OSError as error:
        say(f"boop can't serve: {error.strerror or error}", ERROR)
        return 1


if __name__ == "__main__":
    sys.exit(main())
