"""What ``configure`` tells the supervisor: the JSON that step SL-06 writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Instructions:
    """What ``configure`` wrote down for the supervisor (step SL-06)."""

    superlink: str
    ca_certificate: Path | None
    onegate_endpoint: str | None
    vm_id: str
    token_file: Path
    bundle: Path
    use_case: str
    run_config: Mapping[str, Any]
    keys_set: frozenset[str]
    """Those keys of ``run_config`` that somebody set; the others are our defaults."""
    min_available_clients: int
    state_file: Path
    stop_request: Path
    run_log: Path
    node_keys: tuple[str, ...] = ()
    """The operator's public keys, a line each (FL_NODE_KEYS)."""
    enrolment_socket: Path | None = None
    """Where nodes with a token are answered, relative to the folder in which the supervisor runs;
    None: there is no gateway that would pass them on."""
    supervised: bool = True
    """Whether the executor is ours, as it is unless ``FL_ISOLATION`` is ``subprocess``."""

    @property
    def task_record(self) -> Path:
        """Where our executor says which process the ServerApp is (``flower.task_record``)."""
        return self.state_file.with_name("serverapp.json")

    @property
    def roster(self) -> Path:
        """Every node key that was admitted or refused."""
        return self.state_file.with_name("nodes.json")

    @property
    def requests(self) -> Path:
        """Where people ask for something (``mailbox``)."""
        return self.state_file.with_name("requests")

    @property
    def recovery(self) -> Path:
        """The recovery store of the run."""
        return self.state_file.with_name("recovery")

    @property
    def runs(self) -> Path:
        """A folder for each run: the app that was submitted, the recovery store once it is over."""
        return self.state_file.with_name("runs")

    @classmethod
    def read(cls, path: Path) -> Instructions:
        """From the JSON that step SL-06 writes."""
        document = json.loads(path.read_text(encoding="utf-8"))
        ca_certificate, socket = document["ca_certificate"], document["enrolment_socket"]
        return cls(
            superlink=document["superlink"],
            ca_certificate=None if ca_certificate is None else Path(ca_certificate),
            onegate_endpoint=document["onegate_endpoint"],
            vm_id=document["vm_id"],
            token_file=Path(document["token_file"]),
            bundle=Path(document["bundle"]),
            use_case=document["use_case"],
            run_config=document["run_config"],
            keys_set=frozenset(document["keys_set"]),
            min_available_clients=document["min_available_clients"],
            state_file=Path(document["state_file"]),
            stop_request=Path(document["stop_request"]),
            run_log=Path(document["run_log"]),
            node_keys=tuple(document["node_keys"]),
            enrolment_socket=None if socket is None else Path(socket),
            supervised=document["supervised"],
        )
