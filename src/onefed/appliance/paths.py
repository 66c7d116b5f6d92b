"""The files of an appliance (docs/boot.md), below a root folder.

The root is ``/`` in a virtual machine and a folder of the federation on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Where an appliance keeps everything."""

    root: Path

    @property
    def context(self) -> Path:
        """Context variables, written by the platform before the boot."""
        return self.root / "run/one-context/one_env"

    @property
    def token(self) -> Path:
        """The OneGate token; 0600."""
        return self.root / "run/one-context/token.txt"

    @property
    def config(self) -> Path:
        """Generated files; 0750."""
        return self.root / "opt/flower/config"

    @property
    def facts(self) -> Path:
        """What ``configure`` found out and ``bootstrap`` needs; 0600."""
        return self.config / "configure.state"

    @property
    def status(self) -> Path:
        """Outcome of every step of the last boot, as JSON."""
        return self.config / "boot-status.json"

    @property
    def programs(self) -> Path:
        """A description of each program, by name; what a unit of systemd starts. 0750."""
        return self.config / "programs"

    @property
    def firewall(self) -> Path:
        """Rules of nftables."""
        return self.config / "firewall.nft"

    @property
    def units(self) -> Path:
        """Units of systemd."""
        return self.root / "etc/systemd/system"

    @property
    def prebaked(self) -> Path:
        """Version of Flower that the image carries, one line."""
        return self.root / "opt/flower/PREBAKED_VERSION"

    @property
    def keeper(self) -> Path:
        """Held locked by the process that keeps a machine without systemd running."""
        return self.root / "run/onefed/keeper.json"

    @property
    def supervisor(self) -> Path:
        """What the run supervisor is told; 0600."""
        return self.config / "supervisor.json"

    @property
    def gate_token(self) -> Path:
        """SuperLink: the supervisor's copy of the OneGate token; 0600."""
        return self.config / "onegate.token"

    @property
    def superexec_secret(self) -> Path:
        """Shared secret of the SuperLink's Runtime API and the SuperExec; 0600."""
        return self.config / "superexec.secret"

    @property
    def gateway(self) -> Path:
        """SuperLink: files of the gateway, which gives up root; 0755."""
        return self.root / "opt/flower/gateway"

    @property
    def gateway_configuration(self) -> Path:
        return self.config / "gateway.conf"

    @property
    def certificates(self) -> Path:
        """TLS material; 0700."""
        return self.root / "opt/flower/certs"

    @property
    def node_key(self) -> Path:
        """Folder of the node's identity; 0700. Kept over reboots."""
        return self.root / "opt/flower/keys"

    @property
    def state(self) -> Path:
        """SuperLink: Flower's database, the supervisor's state and the recovery store; 0700."""
        return self.root / "opt/flower/state"

    @property
    def recovery(self) -> Path:
        """The recovery store: what an exact resume needs, written every round."""
        return self.state / "recovery"

    @property
    def peer(self) -> Path:
        """What a peer's program is told; 0600."""
        return self.config / "peer.json"

    @property
    def peers(self) -> Path:
        """Peer: its group, as ``onefed peer`` finds it below ``ONEFED_HOME=state``; 0700."""
        return self.state / "peers/machine"

    def peer_node(self, name: str) -> Path:
        """Peer: identity, journal and models of a node of that group."""
        return self.peers / "nodes" / name

    @property
    def peer_roster(self) -> Path:
        """Peer: the founders of its group, pinned; kept over reboots."""
        return self.peers / "roster"

    @property
    def supervisor_state(self) -> Path:
        """What the run supervisor knows of its run."""
        return self.state / "supervisor.json"

    @property
    def requests(self) -> Path:
        """Where people ask a running supervisor for something (``flower.mailbox``); 0700."""
        return self.state / "requests"

    @property
    def stop_request(self) -> Path:
        """While this file exists, the run ends after the round in flight is saved."""
        return self.state / "stop-requested"

    @property
    def task_record(self) -> Path:
        """Which process the ServerApp is; 0600."""
        return self.state / "serverapp.json"

    @property
    def checkpoints(self) -> Path:
        """The operator's checkpoints; a container sees them at ``FL_CHECKPOINT_PATH``."""
        return self.root / "opt/flower/checkpoints"

    @property
    def app(self) -> Path:
        """Bundle that this federation runs instead of a built-in use case."""
        return self.root / "opt/flower/app/app.fab"

    @property
    def data(self) -> Path:
        """SuperNode: training data, read-only for the app."""
        return self.root / "opt/flower/data"

    @property
    def flower_home(self) -> Path:
        """``FLWR_HOME``: where Flower installs app bundles."""
        return self.root / "app/.flwr"

    @property
    def logs(self) -> Path:
        return self.root / "var/log/one-appliance"
