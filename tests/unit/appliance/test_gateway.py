"""The gateway's configuration as text: what it says, and that no value can say more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import gateway

FOLDER = Path("/srv/a fed/gateway")
WANTED = gateway.Gateway(
    fleet_address="0.0.0.0:9092",
    control_address="127.0.0.1:9093",
    superlink_address="127.0.0.1:9091",
    tls=gateway.Tls(Path("/c/ca.crt"), Path("/c/server.pem"), Path("/c/server.key"), "localhost"),
    folder=FOLDER,
    access_log=Path("/srv/a fed/access.log"),
    enrolment_socket="opt/flower/gateway/enrolment.sock",
    connections_per_address=512,
    requests_per_s=200,
    keepalive_time_s=60,
    keepalive_timeout_s=20,
)

HOSTILE = (
    "x; include /etc/passwd",
    'x"; } server { listen 80',
    "x\n}",
    "x$remote_addr",
    "x\\",
    "$(id)",
    "x\0",
)


def test_every_limit_is_in_it() -> None:
    lines = {line.strip() for line in gateway.configuration(WANTED).splitlines()}
    assert lines >= {
        "client_max_body_size 8388608;",
        "client_max_body_size 16777216;",
        "client_header_timeout 10s;",
        "client_body_timeout 10s;",
        "limit_conn connections 512;",
        "limit_req_zone $binary_remote_addr zone=requests:8m rate=200r/s;",
        "ssl_protocols TLSv1.2 TLSv1.3;",
        "proxy_ssl_verify on;",
        "listen 0.0.0.0:9092 ssl so_keepalive=60s:5s:4;",
        "listen 127.0.0.1:9093 ssl;",
    }
    assert gateway.configuration(WANTED) == gateway.configuration(WANTED)


def test_without_tls_nothing_is_said_about_certificates() -> None:
    text = gateway.configuration(dataclasses.replace(WANTED, tls=None))
    assert "ssl" not in text
    assert "proxy_pass http://superlink;" in text


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
@pytest.mark.parametrize(
    "name", ["fleet_address", "control_address", "superlink_address", "enrolment_socket"]
)
def test_a_text_that_could_say_more_is_refused(name: str, hostile: str) -> None:
    changed: dict[str, Any] = {name: hostile}
    with pytest.raises(gateway.GatewayError):
        gateway.configuration(dataclasses.replace(WANTED, **changed))


@pytest.mark.parametrize("hostile", HOSTILE[1:], ids=ascii)
@pytest.mark.parametrize("name", ["folder", "access_log"])
def test_a_path_that_could_say_more_is_refused(name: str, hostile: str) -> None:
    """Spaces and semicolons are harmless in quotes; what ends them is not."""
    if hostile == "$(id)":
        hostile = "a$(id)"
    changed: dict[str, Any] = {name: Path(f"/srv/{hostile}")}
    with pytest.raises(gateway.GatewayError):
        gateway.configuration(dataclasses.replace(WANTED, **changed))


def test_the_superlink_is_known_by_a_dns_name_of_its_certificate() -> None:
    assert gateway.superlink_name(["IP:127.0.0.1", "DNS:a.example", "DNS:localhost"]) == "localhost"
    assert gateway.superlink_name(["DNS:*.example", "DNS:a.example"]) == "a.example"
    with pytest.raises(gateway.GatewayError, match="no DNS name"):
        gateway.superlink_name(["IP:127.0.0.1", "DNS:*.example"])


def test_nginx_that_refuses_the_configuration_is_quoted(nginx: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.conf"
    file.write_text("events { }\nnonsense on;\n")
    with pytest.raises(gateway.GatewayError, match="nonsense"):
        gateway.check([nginx, *gateway.arguments(tmp_path, file)], tmp_path)


def test_a_missing_nginx_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(gateway.GatewayError) as caught:
        gateway.check([str(tmp_path / "nginx")], tmp_path)
    assert "nginx-light" in str(caught.value.hint)
