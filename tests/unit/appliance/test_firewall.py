"""What a machine lets in: nft itself takes the rules, and only what is served is in them."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from onefed.appliance import firewall
from onefed.appliance.commands import Done
from onefed.appliance.description import Runtime
from onefed.appliance.firewall import Opening
from onefed.appliance.paths import Paths
from onefed.appliance.platform import FirewallError, Systemd
from onefed.appliance.steps import Status
from onefed.context import Role

SERVED = (
    Opening(22, "ssh"),
    Opening(9092, "nodes"),
    Opening(9400, "GPU metrics", ipaddress.IPv4Network("10.0.0.0/24")),
)


def allowed(rules: str) -> list[str]:
    return re.findall(r"tcp dport (\d+) accept", rules)


def test_only_what_is_served_is_let_in() -> None:
    rules = firewall.rules(SERVED)
    assert allowed(rules) == ["22", "9092", "9400"]
    assert "ip saddr 10.0.0.0/24 tcp dport 9400 accept" in rules
    assert "policy drop" in rules
    assert "{ 25, 26, 465, 587, 2525 } reject" in rules


def test_nft_takes_the_rules_twice(tmp_path: Path) -> None:
    nft = shutil.which("nft") or firewall.NFT
    if not Path(nft).exists():
        pytest.skip("nft is not installed (Debian: nftables); tests/boots loads them for real")
    file = tmp_path / "firewall.nft"
    file.write_text(firewall.rules(SERVED) * 2)
    ended = subprocess.run(
        [nft, "--check", "--file", file], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("address", "mask", "network"),
    [
        ("10.77.0.10", "255.255.255.0", "10.77.0.0/24"),
        ("10.77.0.10", "", None),
        ("", "255.255.255.0", None),
        ("10.77.0.10", "$(reboot)", None),
    ],
)
def test_the_network_of_an_interface(address: str, mask: str, network: str | None) -> None:
    found = firewall.network_of(address, mask)
    assert (None if found is None else str(found)) == network


class Computer:
    """Answers commands, and remembers them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.answers: dict[str, Done] = {"systemctl is-active": Done(3, "inactive")}

    def run(self, argv: Sequence[str], *, timeout_s: float = 0) -> Done:
        self.said.append(" ".join(argv))
        found = (done for start, done in self.answers.items() if self.said[-1].startswith(start))
        return next(found, Done(0, ""))

    def loads(self) -> int:
        return sum(line == f"systemctl reload-or-restart {firewall.UNIT}" for line in self.said)


@pytest.fixture
def computer() -> Computer:
    return Computer()


@pytest.fixture
def systemd(tmp_path: Path, computer: Computer) -> Callable[[], Systemd]:
    return lambda: Systemd(
        role=Role.SUPERLINK,
        runtime=Runtime.PROCESS,
        paths=Paths(tmp_path),
        framework="",
        checkpoint_path=None,
        gpus=lambda: None,
        running_version=lambda: "1.41.0",
        run=computer.run,
    )


def test_rules_are_loaded_once_and_again_when_they_change(systemd, computer) -> None:
    assert systemd().firewall(firewall.rules(SERVED)).status is Status.DONE
    computer.answers["systemctl is-active"] = Done(0, "")
    assert systemd().firewall(firewall.rules(SERVED)).status is Status.UNCHANGED
    assert computer.loads() == 1
    assert systemd().firewall(firewall.rules(SERVED[:1])).status is Status.DONE
    assert computer.loads() == 2


def test_a_firewall_that_is_not_wanted_any_more_is_gone(systemd, computer) -> None:
    assert systemd().firewall(None).status is Status.SKIPPED
    assert computer.said == []
    systemd().firewall(firewall.rules(SERVED))
    assert systemd().firewall(None).status is Status.DONE
    assert computer.said[-1] == f"systemctl disable --now {firewall.UNIT}"
    assert systemd().firewall(None).status is Status.SKIPPED


def test_rules_that_nft_refuses_are_never_loaded(systemd, computer) -> None:
    computer.answers[firewall.NFT] = Done(127, "nft cannot be started: No such file")
    with pytest.raises(FirewallError, match="No such file"):
        systemd().firewall(firewall.rules(SERVED))
    assert computer.loads() == 0
