"""What can go wrong in a boot, and what becomes of the machine then.

The classes are those of the appliance design's failure table, and a few of ours. Each is caused in
``tests/unit/appliance/test_failures.py``, on a whole boot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onefed.errors import ExitCode, OnefedError


class KnownFailureError(OnefedError):
    """A boot failed in a way that has a name."""

    exit_code = ExitCode.BOOT
    code: ClassVar[str]
    """``FL_ERROR``."""


@dataclass(frozen=True)
class FailureClass:
    """One kind of failure."""

    name: str
    what: str
    step: str
    """Where it shows."""
    exit_code: ExitCode | None
    """Of the boot; None where it goes on with a warning and the machine becomes ready."""
    error: str | None
    """``FL_ERROR``; None where the boot goes on, or OneGate is what failed."""
    remedy: str

    @property
    def is_fatal(self) -> bool:
        return self.exit_code is not None


_CONFIG, _BOOT = ExitCode.CONFIG, ExitCode.BOOT

CLASSES: tuple[FailureClass, ...] = (
    FailureClass(
        "variable",
        "a variable is not valid, or two do not fit together",
        "SL-04, SN-04, PE-04",
        _CONFIG,
        "config_invalid",
        "mend the context: every mistake is named at once",
    ),
    FailureClass(
        "port",
        "the Fleet port is in use",
        "SL-04",
        ExitCode.IN_USE,
        "port_in_use",
        "free it, or set FL_FLEET_API_ADDRESS",
    ),
    FailureClass(
        "disk",
        "the disk refuses",
        "SL-07",
        ExitCode.STORAGE,
        "storage",
        "free or repair it, and boot again",
    ),
    FailureClass(
        "certificates",
        "the operator's certificate, chain or key is none, or they do not fit",
        "SL-04, SL-07a",
        _CONFIG,
        "config_invalid",
        "mend FL_SSL_CA_CERTFILE, FL_SSL_CERTFILE, FL_SSL_KEYFILE",
    ),
    FailureClass(
        "data",
        "training data cannot be read",
        "SN-05, PE-05",
        ExitCode.DATA,
        "data_unreadable",
        "give the account of onefed permission",
    ),
    FailureClass(
        "discovery",
        "no SuperLink was ready in thirty tries, or there is nobody to ask",
        "SN-07",
        _BOOT,
        "superlink_not_found",
        "look at the SuperLink's boot, or set FL_SUPERLINK_ADDRESS",
    ),
    FailureClass(
        "authority",
        "TLS is wanted and there is no CA certificate",
        "SN-07b",
        _CONFIG,
        "config_invalid",
        "publish it, or set FL_SSL_CA_CERTFILE",
    ),
    FailureClass(
        "registration",
        "the coordinator does not register the node key",
        "SN-07c",
        _BOOT,
        "node_not_registered",
        "the supervisor's log on the SuperLink's machine says why",
    ),
    FailureClass(
        "peers",
        "the founders of a group are not all there in five minutes, or there is nobody to ask",
        "PE-06, PE-08, PE-09",
        _BOOT,
        "peers_not_found",
        "look at the boots of the other peers, and FL_PEER_FOUNDERS",
    ),
    FailureClass(
        "contact",
        "FL_PEERS lists this peer with another certificate than it has",
        "PE-06",
        _CONFIG,
        "config_invalid",
        "list it as the error says",
    ),
    FailureClass(
        "docker",
        "Docker does not answer in 60 s",
        "SL-09, SN-08, PE-10a",
        _BOOT,
        "docker_not_ready",
        "systemctl status docker",
    ),
    FailureClass(
        "image",
        "the image of the framework is neither there nor to be had",
        "SN-10, PE-10b",
        _BOOT,
        "image_missing",
        "take the image for ML_FRAMEWORK, or load it",
    ),
    FailureClass(
        "program",
        "a program or container ends again and again, or is not running after 60 s",
        "SN-12, PE-12",
        _BOOT,
        "health_check_timeout",
        "its last lines are in the error; 126 is permission, 137 memory",
    ),
    FailureClass(
        "superlink",
        "the SuperLink does not answer in 120 s",
        "SL-11",
        _BOOT,
        "health_check_timeout",
        "its last lines are in the error",
    ),
    FailureClass(
        "version",
        "another version of Flower cannot be pulled",
        "SL-10, SN-10, PE-10b",
        None,
        None,
        "the baked one runs",
    ),
    FailureClass(
        "mismatch",
        "node and SuperLink have different versions of Flower",
        "SN-10",
        None,
        None,
        "deploy both with one FLOWER_VERSION",
    ),
    FailureClass(
        "publication",
        "OneGate does not take an attribute",
        "SL-12, SN-13",
        None,
        None,
        "set FL_SUPERLINK_ADDRESS on the nodes",
    ),
    FailureClass(
        "static address",
        "nobody answers at FL_SUPERLINK_ADDRESS",
        "none",
        None,
        None,
        "the node tries again for ever",
    ),
    FailureClass(
        "firewall",
        "nft or systemd refuses the rules of the firewall",
        "SL-08a, SN-06a, PE-07a",
        None,
        None,
        "everything is let in: nft --check --file /opt/flower/config/firewall.nft",
    ),
    FailureClass(
        "metrics",
        "FL_METRICS_PORT is in use, or the exporter does not answer",
        "SL-10a",
        None,
        None,
        "there are none: set another FL_METRICS_PORT, or look at metrics.log",
    ),
    FailureClass("gpu", "there is no GPU", "SN-09", None, None, "training runs on the CPU"),
    FailureClass(
        "gpu metrics",
        "the exporter of GPU metrics cannot start",
        "SN-14a",
        None,
        None,
        "there are none",
    ),
)
"""In the order of the steps, first those that stop a boot."""
