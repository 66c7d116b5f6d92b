"""Subject alternative names as an operator writes them."""

from __future__ import annotations

import pytest

from onefed.errors import ExitCode
from onefed.tls import names
from onefed.tls.errors import TlsMaterialError


def test_names_have_one_spelling_and_come_once() -> None:
    assert names.required(["10.0.0.1"], [" IP:10.0.0.1", "DNS:A.Example ", "IP:FE80::0:1"]) == (
        *names.LOOPBACK,
        "IP:10.0.0.1",
        "DNS:a.example",
        "IP:fe80::1",
    )


@pytest.mark.parametrize(
    "entry",
    [
        "10.0.0.1",
        "IP:10.0.0.256",
        "IP:10.0.0.1/24",
        "IP:fe80::1%eth0",
        "DNS:",
        "DNS:a..b",
        "DNS:-a.b",
        "DNS:a b",
        "DNS:a\nb",
        "DNS:*",
        "DNS:a.*.b",
        "DNS:10.0.0.1",
        "DNS:" + "a." * 127 + "a",
        "URI:http://a",
        "dns:a",
    ],
)
def test_bad_entries_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        names.parse(entry)


def test_all_bad_entries_are_reported_together() -> None:
    with pytest.raises(TlsMaterialError) as caught:
        names.required(["nonsense"], ["DNS:a b", "DNS:good.example", "IP:1"])
    assert caught.value.exit_code is ExitCode.CONFIG
    assert caught.value.message.splitlines() == [
        "'nonsense' is not an IP address",
        "'a b' is not a DNS name",
        "'1' is not an IP address",
    ]


def test_the_number_of_names_is_bounded() -> None:
    with pytest.raises(TlsMaterialError, match="at most 100"):
        names.required([], [f"DNS:n{i}.example" for i in range(names.NAMES_MAX)])


def test_a_wildcard_covers_one_label() -> None:
    held = frozenset({"DNS:*.example.com", "IP:10.0.0.1"})
    wanted = ["DNS:a.example.com", "DNS:a.b.example.com", "DNS:example.com", "IP:10.0.0.1"]
    assert names.missing(wanted, held) == ("DNS:a.b.example.com", "DNS:example.com")
