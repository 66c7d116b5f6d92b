"""The gateway in front of the SuperLink: an nginx whose configuration is made here.

Flower serves Fleet, Control and Runtime on one port and reads a whole request before it asks for
a key (docs/flower.md). So the SuperLink listens on loopback only, and where nodes are elsewhere the
gateway stands between: it ends TLS, passes on what the address is for, and bounds the rest.
Control goes to an address of its own on loopback, Runtime goes nowhere.

A path is passed on by its raw spelling: what has to be decoded, merged or resolved first is
refused, so gateway and SuperLink cannot read it differently.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onefed.errors import ExitCode, OnefedError

ENROLMENT_PATH = "/v1/onefed/enrol"
"""Where a site without OneGate shows its enrolment token; served by the supervisor."""

PART_BODY_BYTES_MAX = 8 * 2**20
"""A part of a message is a chunk of 5 MiB at most, with its envelope."""

FLEET_BODY_BYTES_MAX = 2**20
"""All other requests of a node. The longest names the parts of a reply, 70 bytes each: 15,000 of
them. The SuperLink parses before it asks for a key, and a small body can be many objects."""

CONTROL_BODY_BYTES_MAX = 16 * 2**20
"""An app bundle has 10 MB at most."""

ENROLMENT_BODY_BYTES_MAX = 8 * 2**10

READ_TIMEOUT_S = 10
"""For the whole header, TLS handshake included, and between two reads of a body."""

KEEPALIVE_PROBES = 4
"""Unanswered in a row before a connection is given up."""

KEEP_ALIVE_S = 75
"""An idle node asks at least once a minute."""

SUPERLINK_KEEP_ALIVE_S = 3
"""Less than the 5 s after which the SuperLink (uvicorn) closes an idle connection: a request that
is sent into one that closes is answered with 502."""

STREAM_TIMEOUT_S = 3600
"""Control streams the log of a run, which may be silent for long."""

CONNECTIONS_MAX = 4096
"""Of each of two nginx processes, those to the SuperLink included."""

REFUSALS_PER_S = 5
"""Of paths that nobody serves, for one address: each is a line in the log."""

CHECK_TIMEOUT_S = 30.0

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where an nginx is looked for; users' own PATH often lacks the ``sbin`` folders."""

CIPHERS = (
    *("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    *("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    *("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"),
)
"""Of TLS 1.2: forward secret, AEAD. Those of TLS 1.3 are all of this kind."""

_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}:[0-9]{1,5}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_UNSAFE_IN_QUOTES = re.compile(r"[\"\\$\x00-\x1f\x7f]")


class GatewayError(OnefedError):
    """The gateway cannot be set up."""

    exit_code = ExitCode.BOOT


@dataclass(frozen=True)
class Tls:
    """Material of the gateway, and what it trusts behind itself."""

    ca_certificate: Path
    certificate: Path
    key: Path
    superlink_name: str
    """DNS name in the SuperLink's certificate; nginx compares no IP addresses."""


@dataclass(frozen=True)
class Gateway:
    """Everything that the configuration says."""

    fleet_address: str
    """``host:port`` for nodes."""
    control_address: str
    """``host:port`` for commands: loopback."""
    superlink_address: str
    """``host:port`` of the SuperLink: loopback."""
    tls: Tls | None
    """None: plain HTTP on both sides, as the operator asked for."""
    folder: Path
    """Of the gateway's own files: process id, bodies on their way."""
    access_log: Path
    enrolment_socket: str
    """Path of the supervisor's socket, relative to the folder in which the gateway runs: the
    system takes no path above 107 bytes."""
    connections_per_address: int
    requests_per_s: int
    """From one address, on average. Faster ones wait, far faster ones are told to come back."""
    keepalive_time_s: int
    """A node's connection that idles for so long is probed."""
    keepalive_timeout_s: int
    """And given up after so long without an answer."""
    workers_stay_root: bool = False
    """Where only root may enter the folder, as on a laptop. Else nginx gives root up."""


def configuration(wanted: Gateway) -> str:
    """The text of ``nginx.conf``; the same for the same wishes.

    Raises:
        GatewayError: a value could mean something else in the configuration.
    """
    for address in (wanted.fleet_address, wanted.control_address, wanted.superlink_address):
        _require(_ADDRESS.fullmatch(address) is not None, "host:port", address)
    _require(
        re.fullmatch(r"[A-Za-z0-9._/-]+", wanted.enrolment_socket) is not None,
        "a socket",
        wanted.enrolment_socket,
    )
    limits = (
        *(wanted.connections_per_address, wanted.requests_per_s),
        *(wanted.keepalive_time_s, wanted.keepalive_timeout_s),
    )
    _require(min(limits) > 0, "limits above 0", str(limits))
    scheme = "http" if wanted.tls is None else "https"
    listen = "" if wanted.tls is None else " ssl"
    rate = wanted.requests_per_s
    return f"""\
# Made by onefed at every boot; changes here are lost.
{"user root;" if wanted.workers_stay_root else ""}
daemon off;
worker_processes 2;
worker_rlimit_nofile {2 * CONNECTIONS_MAX};
pid {_quoted(wanted.folder / "gateway.pid")};
error_log stderr error;

events {{
    worker_connections {CONNECTIONS_MAX};
}}

http {{
    server_tokens off;
    default_type text/plain;

    # No header is ever logged: whoever reads a node's headers is that node for five minutes.
    log_format refused escape=json '{{"time":"$time_iso8601","address":"$remote_addr",'
        '"port":"$server_port","method":"$request_method","path":"$request_uri",'
        '"status":"$status","superlink":"$upstream_status","bytes":"$request_length"}}';
    map $status $is_refused {{
        default 0;
        "~^[45]" 1;
    }}
    access_log {_quoted(wanted.access_log)} refused if=$is_refused;

    client_header_timeout {READ_TIMEOUT_S}s;
    client_body_timeout {READ_TIMEOUT_S}s;
    send_timeout {READ_TIMEOUT_S}s;
    keepalive_timeout {KEEP_ALIVE_S}s;
    lingering_time 5s;
    lingering_timeout 2s;
    reset_timedout_connection on;
    client_header_buffer_size 4k;
    large_client_header_buffers 4 8k;
    client_body_buffer_size 64k;
    client_max_body_size {ENROLMENT_BODY_BYTES_MAX};

    # A body is complete before the SuperLink hears of it: who sends slowly holds only us.
    client_body_temp_path {_quoted(wanted.folder / "body")};
    proxy_temp_path {_quoted(wanted.folder / "answer")};
    fastcgi_temp_path {_quoted(wanted.folder / "unused")};
    uwsgi_temp_path {_quoted(wanted.folder / "unused")};
    scgi_temp_path {_quoted(wanted.folder / "unused")};

    limit_conn_zone $binary_remote_addr zone=connections:8m;
    limit_req_zone $binary_remote_addr zone=requests:8m rate={rate}r/s;
    limit_req_zone $binary_remote_addr zone=refusals:8m rate={REFUSALS_PER_S}r/s;
    limit_req_zone $binary_remote_addr zone=enrolments:8m rate=1r/s;
    # 503, which is nginx's own choice, is what a Flower node waits at and asks again.
    limit_conn connections {wanted.connections_per_address};
    limit_conn_log_level warn;
    limit_req_log_level warn;
{_tls(wanted.tls)}
    upstream superlink {{
        server {wanted.superlink_address};
        keepalive 32;
        keepalive_timeout {SUPERLINK_KEEP_ALIVE_S}s;
    }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host {wanted.superlink_address};
    proxy_max_temp_file_size 0;

    server {{
        listen {wanted.fleet_address}{listen} so_keepalive={_probes(wanted)};
{_REFUSE_ODD_REQUESTS}
        location ~ "{FLEET_ROUTE}" {{
            if ($request_uri !~ "{FLEET_ROUTE}") {{ return 404; }}
            if ($request_method != POST) {{ return 405; }}
            client_max_body_size {FLEET_BODY_BYTES_MAX};
            limit_req zone=requests burst={10 * rate} delay={2 * rate};
            proxy_pass {scheme}://superlink;
        }}
        location = {PART_PATH} {{
            if ($request_uri != {PART_PATH}) {{ return 404; }}
            if ($request_method != POST) {{ return 405; }}
            client_max_body_size {PART_BODY_BYTES_MAX};
            limit_req zone=requests burst={10 * rate} delay={2 * rate};
            proxy_pass {scheme}://superlink;
        }}
        location = /health {{
            if ($request_uri != /health) {{ return 404; }}
            if ($request_method !~ "^(GET|HEAD)$") {{ return 405; }}
            limit_req zone=requests burst={10 * rate} delay={2 * rate};
            proxy_pass {scheme}://superlink;
        }}
        location = {ENROLMENT_PATH} {{
            if ($request_uri != {ENROLMENT_PATH}) {{ return 404; }}
            if ($request_method != POST) {{ return 405; }}
            limit_req zone=enrolments burst=5;
            proxy_pass http://unix:{wanted.enrolment_socket}:{ENROLMENT_PATH};
        }}
{_REFUSE_THE_REST}
    }}

    server {{
        listen {wanted.control_address}{listen};
{_REFUSE_ODD_REQUESTS}
        location ~ "{CONTROL_ROUTE}" {{
            if ($request_uri !~ "{CONTROL_ROUTE}") {{ return 404; }}
            if ($request_method != POST) {{ return 405; }}
            client_max_body_size {CONTROL_BODY_BYTES_MAX};
            proxy_buffering off;
            proxy_read_timeout {STREAM_TIMEOUT_S}s;
            proxy_pass {scheme}://superlink;
        }}
{_REFUSE_THE_REST}
    }}
}}
"""


PART_PATH = "/v1/fleet/push-object"
FLEET_ROUTE = r"^/v1/fleet/[a-z-]{1,64}$"
CONTROL_ROUTE = r"^/v1/control/[a-z-]{1,64}$"

_REFUSE_ODD_REQUESTS = """\
        if ($server_protocol !~ "^HTTP/1[.][01]$") { return 400; }
        if ($http_upgrade) { return 400; }
"""

_REFUSE_THE_REST = f"""\
        # "deny" and not "return": a return would come before the limit.
        location / {{
            limit_req zone=refusals burst={4 * REFUSALS_PER_S} nodelay;
            limit_req_status 429;
            deny all;
            error_page 403 =404 @nothing;
        }}
        location @nothing {{
            internal;
            return 404;
        }}"""


def _probes(wanted: Gateway) -> str:
    """Idle seconds, seconds between probes, number of probes."""
    probes = min(KEEPALIVE_PROBES, wanted.keepalive_timeout_s)
    pause_s = max(1, wanted.keepalive_timeout_s // KEEPALIVE_PROBES)
    return f"{wanted.keepalive_time_s}s:{pause_s}s:{probes}"


def _tls(tls: Tls | None) -> str:
    if tls is None:
        return ""
    _require(_NAME.fullmatch(tls.superlink_name) is not None, "a DNS name", tls.superlink_name)
    return f"""
    ssl_certificate {_quoted(tls.certificate)};
    ssl_certificate_key {_quoted(tls.key)};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_ciphers {":".join(CIPHERS)};
    ssl_prefer_server_ciphers on;
    ssl_session_cache shared:sessions:2m;
    ssl_session_tickets off;
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 4;
    proxy_ssl_trusted_certificate {_quoted(tls.ca_certificate)};
    proxy_ssl_name {tls.superlink_name};
    proxy_ssl_protocols TLSv1.2 TLSv1.3;
"""


def superlink_name(held: Sequence[str]) -> str:
    """The name under which the gateway checks the SuperLink, of those in its certificate.

    Args:
        held: ``DNS:name`` and ``IP:address`` entries.

    Raises:
        GatewayError: there is no DNS name.
    """
    found = [name.removeprefix("DNS:") for name in held if name.startswith("DNS:")]
    plain = [name for name in found if "*" not in name]
    if not plain:
        raise GatewayError(
            "The server certificate holds no DNS name, by which the gateway could check it.",
            hint="Issue it with the subject alternative name DNS:localhost beside its others, "
            "or leave the FL_SSL_* variables empty.",
        )
    return "localhost" if "localhost" in plain else plain[0]


def find_nginx(search_path: str = SEARCH_PATH) -> str | None:
    """The nginx of this machine, or None."""
    return shutil.which("nginx", path=search_path)


def arguments(folder: Path, file: Path) -> tuple[str, ...]:
    """What nginx is told to run the gateway with this configuration."""
    return ("-e", "stderr", "-p", str(folder), "-c", str(file))


def check(argv: Sequence[str], folder: Path) -> None:
    """``nginx -t``: the configuration can be used, its certificates included.

    Args:
        folder: in which the gateway will run.

    Raises:
        GatewayError: it cannot; with nginx's words.
    """
    try:
        done = subprocess.run(
            [*argv, "-t", "-q"],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GatewayError(
            f"nginx -t cannot be run: {error}",
            hint="Install nginx (Debian: nginx-light), or serve this machine only, which needs "
            "none: FL_FLEET_API_ADDRESS=127.0.0.1:PORT.",
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[:2000]
        raise GatewayError(
            f"nginx refuses the gateway's configuration: {said!a}",
            hint=f"Look at it: {argv[-1]}",
        )


def _quoted(path: Path) -> str:
    text = str(path)
    _require(_UNSAFE_IN_QUOTES.search(text) is None, "a path that nginx can hold", text)
    return f'"{text}"'


def _require(condition: bool, wanted: str, given: str) -> None:
    if not condition:
        raise GatewayError(
            f"The gateway needs {wanted}, not {given!r}.",
            hint="Correct the variable, or choose a folder without quotes, dollar signs and "
            "backslashes.",
        )
