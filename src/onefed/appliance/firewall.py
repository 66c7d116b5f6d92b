"""What a machine lets in and out, as rules of nftables. Pure.

In: answers, ssh, and what the role is there for; everything else is dropped. Out: everything but
mail, since a machine that trains other people's code should not be able to send any.
Our containers use the host's network, so none of their ports goes around these rules; those of an
operator's own, which Docker forwards, are the operator's, but for mail.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

SSH_PORT = 22
GPU_METRICS_PORT = 9400
MAIL_PORTS = (25, 26, 465, 587, 2525)

TABLE = "onefed"
"""Ours alone: other tables, of Docker or the operator, stay as they are."""

UNIT = "flower-firewall.service"

NFT = "/usr/sbin/nft"

LOGGED_PER_MINUTE = 6
"""Dropped connections in the kernel's log; a scan would fill the disk."""


@dataclass(frozen=True)
class Opening:
    """A TCP port that others may reach."""

    port: int
    purpose: str
    """In a comment of the rules; fixed words, no value of a context."""
    network: ipaddress.IPv4Network | None = None
    """From where; None: from everywhere."""


def rules(openings: Sequence[Opening]) -> str:
    """The whole table, as a file for ``nft -f``; loading it again changes nothing."""
    allowed = "".join(f"    {_rule(each)}\n" for each in openings)
    mail = ", ".join(str(port) for port in MAIL_PORTS)
    return f"""\
# Made by: onefed appliance configure. Changes are overwritten at the next boot.
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    meta l4proto {{ icmp, ipv6-icmp }} accept
    udp sport 67 udp dport 68 accept comment "addresses by DHCP"
    udp sport 547 udp dport 546 accept comment "addresses by DHCP"
{allowed}    limit rate {LOGGED_PER_MINUTE}/minute log prefix "onefed dropped: " level info
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "lo" accept
    tcp dport {{ {mail} }} reject with tcp reset comment "no mail"
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    tcp dport {{ {mail} }} reject with tcp reset comment "no mail"
  }}
}}
"""


def network_of(address: str, mask: str) -> ipaddress.IPv4Network | None:
    """The subnet of an interface, as the platform describes it; None where it does not."""
    try:
        return ipaddress.IPv4Network(f"{address}/{mask}", strict=False)
    except ValueError:
        return None


def _rule(opening: Opening) -> str:
    source = f"ip saddr {opening.network} " if opening.network else ""
    return f'{source}tcp dport {opening.port} accept comment "{opening.purpose}"'
