"""What the rest of the program sees: typed, frozen, complete. Nobody else reads the context."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

from onefed.context.outcome import ContextError
from onefed.context.strategies import STRATEGIES
from onefed.context.syntax import Address
from onefed.context.table import VARIABLES
from onefed.context.variable import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onefed.context.outcome import Resolution
    from onefed.context.peers import PeerContact
    from onefed.context.syntax import ConfigValue

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperLinkSettings:
    """Settings of the coordinator."""

    flower_version: str
    """``X.Y.Z``, a tested release (FLOWER_VERSION)."""
    num_rounds: int
    """Rounds of the whole run, at least 1, resumed ones included (FL_NUM_ROUNDS)."""
    strategy: str
    """Aggregation rule, one of ``strategies.STRATEGIES`` (FL_STRATEGY)."""
    strategy_parameters: Mapping[str, ConfigValue]
    """Of that rule, by key of the run_config (FL_PROXIMAL_MU, FL_NUM_MALICIOUS, ...)."""
    min_fit_clients: int
    """Training results that a round needs, at least 1 (FL_MIN_FIT_CLIENTS)."""
    min_evaluate_clients: int
    """Evaluation results that a round needs, at least 1 (FL_MIN_EVALUATE_CLIENTS)."""
    min_available_clients: int
    """Connected nodes that a round waits for, at least 1 (FL_MIN_AVAILABLE_CLIENTS)."""
    seed: int
    """Seed of the run, 0 to 2^63 - 1 (FL_SEED)."""
    round_timeout_s: int
    """After this a round without its quorum is repeated, at least 1 (FL_ROUND_TIMEOUT)."""
    round_timeout_min_s: int
    """With its quorum a round waits so long for the rest, at least 1 (FL_ROUND_TIMEOUT_MIN)."""
    extra_run_config: Mapping[str, ConfigValue]
    """Keys of the app; none is a key that ``run_config`` makes of a field (FL_RUN_CONFIG)."""
    use_case: str
    """Built-in app, one of ``requirements.USE_CASES`` (FL_USE_CASE)."""
    fleet_host: str
    """Where nodes are served: name or IPv4 address; 0.0.0.0 is all (FL_FLEET_API_ADDRESS)."""
    fleet_port: int
    """1 to 65535 (FL_FLEET_API_ADDRESS)."""
    control_port: int
    """On loopback, 1 to 65535; only a gateway listens there (FL_CONTROL_API_ADDRESS)."""
    gateway: bool
    """Whether one stands before the SuperLink (FL_GATEWAY, FL_FLEET_API_ADDRESS)."""
    gateway_connections: int
    """Requests under way from one address, at least 1 (FL_GATEWAY_CONNECTIONS)."""
    firewall: bool
    """Whether the machine drops what nobody asked for (FL_FIREWALL)."""
    keepalive_time_s: int
    """A connection may idle so long before it is probed (FL_GRPC_KEEPALIVE_TIME)."""
    keepalive_timeout_s: int
    """Without an answer it is given up then; less than the time (FL_GRPC_KEEPALIVE_TIMEOUT)."""
    gateway_rate: int
    """Requests per second from one address, at least 1 (FL_GATEWAY_RATE)."""
    superlink_port: int
    """On loopback, 1024 to 65535; the Fleet port where there is no gateway (FL_SUPERLINK_PORT)."""
    isolation: str
    """``process`` or ``subprocess`` (FL_ISOLATION)."""
    database: str
    """Relative path below the coordinator's folder, without ``..`` (FL_DATABASE)."""
    tls_enabled: bool
    """Encryption, certificates and node keys (FL_TLS_ENABLED)."""
    ssl_ca_pem: bytes | None
    """The operator's CA certificate. None: make an authority (FL_SSL_CA_CERTFILE)."""
    ssl_certificate_pem: bytes | None
    """The operator's server certificate; None exactly when the CA is (FL_SSL_CERTFILE)."""
    ssl_key_pem: bytes | None = dataclasses.field(repr=False)
    """Private key of that certificate. Never log, publish or pass it on (FL_SSL_KEYFILE)."""
    node_keys: tuple[str, ...]
    """Lines of OpenSSH public keys of nodes elsewhere that may connect (FL_NODE_KEYS)."""
    cert_key_type: str
    """``ec-p256`` or ``rsa-4096``, of keys that are made (FL_CERT_KEY_TYPE)."""
    cert_extra_san: tuple[str, ...]
    """``IP:<address>`` or ``DNS:<name>``, in normal spelling (FL_CERT_EXTRA_SAN)."""
    checkpoint_enabled: bool
    """Export the model while it trains (FL_CHECKPOINT_ENABLED)."""
    checkpoint_interval_rounds: int
    """Rounds between two exports, at least 1 (FL_CHECKPOINT_INTERVAL)."""
    checkpoint_keep_last: int
    """Newest exports that are kept; 0: all (FL_CHECKPOINT_KEEP_LAST)."""
    checkpoint_keep_every: int
    """Besides them, those of rounds that it divides; 0: none (FL_CHECKPOINT_KEEP_EVERY)."""
    checkpoint_resume: bool
    """Whether a machine without a run takes that of the exports (FL_CHECKPOINT_RESUME)."""
    checkpoint_path: str
    """Absolute folder as a container sees it; on the host it is another (FL_CHECKPOINT_PATH)."""
    metrics_enabled: bool
    """Whether a monitoring system can ask how training goes (FL_METRICS_ENABLED)."""
    metrics_port: int
    """Where it asks, 1024 to 65535 (FL_METRICS_PORT)."""
    log_level: str
    """``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR`` (FL_LOG_LEVEL)."""
    log_format: str
    """``text`` or ``json`` (FL_LOG_FORMAT)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperNodeSettings:
    """Settings of a node."""

    flower_version: str
    """``X.Y.Z``, a tested release (FLOWER_VERSION)."""
    superlink_address: Address | None
    """The coordinator's Fleet API. None: ask OneGate (FL_SUPERLINK_ADDRESS)."""
    node_config: Mapping[str, ConfigValue] | None
    """What the app reads about this node; ``render_pairs`` makes Flower's argument of it.

    None: take the partition from the position in the service. Given pairs replace it completely
    (FL_NODE_CONFIG).
    """
    max_retries: int | None
    """At least 1. None: never give up, leave the flag out (FL_MAX_RETRIES)."""
    max_wait_time_s: int | None
    """At least 1. None: never give up, leave the flag out (FL_MAX_WAIT_TIME)."""
    app_start: str
    """``auto``, ``fork`` or ``fresh``; of no effect where the isolation is ``subprocess``
    (FL_APP_START)."""
    isolation: str
    """``process`` or ``subprocess`` (FL_ISOLATION)."""
    use_case: str
    """Built-in app, one of ``requirements.USE_CASES`` (FL_USE_CASE)."""
    tls_enabled: bool | None
    """None: not set, so the default stands and ``tls.trust`` decides (FL_TLS_ENABLED)."""
    ssl_ca_pem: bytes | None
    """The operator's CA certificate. None: take it from OneGate (FL_SSL_CA_CERTFILE)."""
    firewall: bool
    """Whether the machine drops what nobody asked for (FL_FIREWALL)."""
    keepalive_time_s: int
    """A connection may idle so long before it is probed (FL_GRPC_KEEPALIVE_TIME)."""
    keepalive_timeout_s: int
    """Without an answer it is given up then; less than the time (FL_GRPC_KEEPALIVE_TIMEOUT)."""
    enrolment_token: str | None = dataclasses.field(repr=False)
    """Never log, publish or pass it on (FL_ENROLMENT_TOKEN)."""
    gpu_enabled: bool
    """Look for GPUs at boot, and train on them (FL_GPU_ENABLED)."""
    cuda_visible_devices: str
    """``all``, or indices joined by commas (FL_CUDA_VISIBLE_DEVICES)."""
    gpu_memory_fraction: float
    """Above 0, at most 1; apps read it from their environment (FL_GPU_MEMORY_FRACTION)."""
    dcgm_enabled: bool
    """GPU metrics beside the node (FL_DCGM_ENABLED)."""
    edge_backoff: str
    """``exponential`` or ``fixed`` (FL_EDGE_BACKOFF)."""
    edge_max_backoff_s: int
    """Longest wait between two tries of discovery, at least 1 (FL_EDGE_MAX_BACKOFF)."""
    log_level: str
    """``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR`` (FL_LOG_LEVEL)."""
    log_format: str
    """``text`` or ``json`` (FL_LOG_FORMAT)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """Settings of a peer."""

    flower_version: str
    """``X.Y.Z``, a tested release (FLOWER_VERSION)."""
    num_rounds: int
    """Rounds of the whole run, at least 1 (FL_NUM_ROUNDS)."""
    strategy: str
    """Aggregation rule, one of ``strategies.STRATEGIES`` (FL_STRATEGY)."""
    strategy_parameters: Mapping[str, ConfigValue]
    """Of that rule, by key of the run_config (FL_PROXIMAL_MU, FL_NUM_MALICIOUS, ...)."""
    seed: int
    """Seed of the run, 0 to 2^63 - 1 (FL_SEED)."""
    extra_run_config: Mapping[str, ConfigValue]
    """Keys of the app; none belongs to another variable (FL_RUN_CONFIG)."""
    use_case: str
    """Built-in app, one of ``requirements.USE_CASES`` (FL_USE_CASE)."""
    founders: int
    """Peers that found the group, at least 1 (FL_PEER_FOUNDERS)."""
    listed: tuple[PeerContact, ...]
    """All peers, in the operator's order. Empty: ask OneGate (FL_PEERS)."""
    name: str | None
    """Own name in that list. None: made of the VM's id (FL_PEER_NAME)."""
    port: int
    """Where it listens, 1024 to 65535 (FL_PEER_PORT)."""
    evict_after_rounds: int
    """Without a sign of life a peer loses its vote then; 0: never (FL_PEER_EVICT_AFTER)."""
    topology: str
    """``full``, ``ring``, ``line`` or ``star`` (FL_PEER_TOPOLOGY)."""
    keepalive_time_s: int
    """A connection that idles for so long is probed (FL_GRPC_KEEPALIVE_TIME)."""
    keepalive_timeout_s: int
    """... and given up without an answer (FL_GRPC_KEEPALIVE_TIMEOUT)."""
    firewall: bool
    """Whether the machine drops what nobody asked for (FL_FIREWALL)."""
    checkpoint_enabled: bool
    """Keep checkpoints where people look for them (FL_CHECKPOINT_ENABLED)."""
    checkpoint_keep_last: int
    """Newest rounds of them that are kept; 0: all (FL_CHECKPOINT_KEEP_LAST)."""


def superlink_settings(resolution: Resolution) -> SuperLinkSettings:
    """Raises ``ContextError`` with every finding that stops, or none."""
    read = _Reader(resolution, Role.SUPERLINK)
    fleet = read.required("FL_FLEET_API_ADDRESS", Address)
    gateway = read.required("FL_GATEWAY", str) == "always" or not fleet.is_loopback
    return SuperLinkSettings(
        flower_version=read.required("FLOWER_VERSION", str),
        num_rounds=read.required("FL_NUM_ROUNDS", int),
        strategy=(strategy := read.required("FL_STRATEGY", str)),
        strategy_parameters=read.parameters_of(strategy),
        min_fit_clients=read.required("FL_MIN_FIT_CLIENTS", int),
        min_evaluate_clients=read.required("FL_MIN_EVALUATE_CLIENTS", int),
        min_available_clients=read.required("FL_MIN_AVAILABLE_CLIENTS", int),
        seed=read.required("FL_SEED", int),
        round_timeout_s=read.required("FL_ROUND_TIMEOUT", int),
        round_timeout_min_s=read.required("FL_ROUND_TIMEOUT_MIN", int),
        extra_run_config=read.optional("FL_RUN_CONFIG", dict) or {},
        use_case=read.required("FL_USE_CASE", str),
        fleet_host=fleet.host,
        fleet_port=fleet.port,
        control_port=read.required("FL_CONTROL_API_ADDRESS", Address).port,
        gateway=gateway,
        gateway_connections=read.required("FL_GATEWAY_CONNECTIONS", int),
        firewall=read.required("FL_FIREWALL", bool),
        keepalive_time_s=read.required("FL_GRPC_KEEPALIVE_TIME", int),
        keepalive_timeout_s=read.required("FL_GRPC_KEEPALIVE_TIMEOUT", int),
        gateway_rate=read.required("FL_GATEWAY_RATE", int),
        superlink_port=read.required("FL_SUPERLINK_PORT", int) if gateway else fleet.port,
        isolation=read.required("FL_ISOLATION", str),
        database=read.required("FL_DATABASE", str),
        tls_enabled=read.required("FL_TLS_ENABLED", bool),
        ssl_ca_pem=read.optional("FL_SSL_CA_CERTFILE", bytes),
        ssl_certificate_pem=read.optional("FL_SSL_CERTFILE", bytes),
        ssl_key_pem=read.optional("FL_SSL_KEYFILE", bytes),
        node_keys=read.optional("FL_NODE_KEYS", tuple) or (),
        cert_key_type=read.required("FL_CERT_KEY_TYPE", str),
        cert_extra_san=read.optional("FL_CERT_EXTRA_SAN", tuple) or (),
        checkpoint_enabled=read.required("FL_CHECKPOINT_ENABLED", bool),
        checkpoint_interval_rounds=read.required("FL_CHECKPOINT_INTERVAL", int),
        checkpoint_keep_last=read.required("FL_CHECKPOINT_KEEP_LAST", int),
        checkpoint_keep_every=read.required("FL_CHECKPOINT_KEEP_EVERY", int),
        checkpoint_resume=read.required("FL_CHECKPOINT_RESUME", bool),
        checkpoint_path=read.required("FL_CHECKPOINT_PATH", str),
        metrics_enabled=read.required("FL_METRICS_ENABLED", bool),
        metrics_port=read.required("FL_METRICS_PORT", int),
        log_level=read.required("FL_LOG_LEVEL", str),
        log_format=read.required("FL_LOG_FORMAT", str),
    )


def supernode_settings(resolution: Resolution) -> SuperNodeSettings:
    """Raises ``ContextError`` with every finding that stops, or none."""
    read = _Reader(resolution, Role.SUPERNODE)
    tls = read.required("FL_TLS_ENABLED", bool)
    return SuperNodeSettings(
        flower_version=read.required("FLOWER_VERSION", str),
        superlink_address=read.optional("FL_SUPERLINK_ADDRESS", Address),
        node_config=read.optional("FL_NODE_CONFIG", dict),
        max_retries=read.required("FL_MAX_RETRIES", int) or None,
        max_wait_time_s=read.required("FL_MAX_WAIT_TIME", int) or None,
        app_start=read.required("FL_APP_START", str),
        isolation=read.required("FL_ISOLATION", str),
        use_case=read.required("FL_USE_CASE", str),
        tls_enabled=tls if resolution.values["FL_TLS_ENABLED"].is_set else None,
        ssl_ca_pem=read.optional("FL_SSL_CA_CERTFILE", bytes),
        firewall=read.required("FL_FIREWALL", bool),
        keepalive_time_s=read.required("FL_GRPC_KEEPALIVE_TIME", int),
        keepalive_timeout_s=read.required("FL_GRPC_KEEPALIVE_TIMEOUT", int),
        enrolment_token=read.optional("FL_ENROLMENT_TOKEN", str),
        gpu_enabled=read.required("FL_GPU_ENABLED", bool),
        cuda_visible_devices=read.required("FL_CUDA_VISIBLE_DEVICES", str),
        gpu_memory_fraction=read.required("FL_GPU_MEMORY_FRACTION", float),
        dcgm_enabled=read.required("FL_DCGM_ENABLED", bool),
        edge_backoff=read.required("FL_EDGE_BACKOFF", str),
        edge_max_backoff_s=read.required("FL_EDGE_MAX_BACKOFF", int),
        log_level=read.required("FL_LOG_LEVEL", str),
        log_format=read.required("FL_LOG_FORMAT", str),
    )


def peer_settings(resolution: Resolution) -> PeerSettings:
    """Raises ``ContextError`` with every finding that stops, or none."""
    read = _Reader(resolution, Role.PEER)
    return PeerSettings(
        flower_version=read.required("FLOWER_VERSION", str),
        num_rounds=read.required("FL_NUM_ROUNDS", int),
        strategy=(strategy := read.required("FL_STRATEGY", str)),
        strategy_parameters=read.parameters_of(strategy),
        seed=read.required("FL_SEED", int),
        extra_run_config=read.optional("FL_RUN_CONFIG", dict) or {},
        use_case=read.required("FL_USE_CASE", str),
        founders=read.required("FL_PEER_FOUNDERS", int),
        listed=read.optional("FL_PEERS", tuple) or (),
        name=read.optional("FL_PEER_NAME", str),
        port=read.required("FL_PEER_PORT", int),
        evict_after_rounds=read.required("FL_PEER_EVICT_AFTER", int),
        topology=read.required("FL_PEER_TOPOLOGY", str),
        keepalive_time_s=read.required("FL_GRPC_KEEPALIVE_TIME", int),
        keepalive_timeout_s=read.required("FL_GRPC_KEEPALIVE_TIMEOUT", int),
        firewall=read.required("FL_FIREWALL", bool),
        checkpoint_enabled=read.required("FL_CHECKPOINT_ENABLED", bool),
        checkpoint_keep_last=read.required("FL_CHECKPOINT_KEEP_LAST", int),
    )


def peer_run_config(settings: PeerSettings) -> dict[str, ConfigValue]:
    """What an app and its rule are told without a coordinator."""
    return {
        **settings.extra_run_config,
        "strategy": settings.strategy,
        **settings.strategy_parameters,
        "num-server-rounds": settings.num_rounds,
        "seed": settings.seed,
    }


def run_config(settings: SuperLinkSettings) -> dict[str, ConfigValue]:
    """The bridge from variables to the ServerApp, which sees nothing else of them.

    ``checkpoint-path`` is left to the appliance: only it knows whether a container comes between.
    """
    config: dict[str, ConfigValue] = {
        **settings.extra_run_config,
        "strategy": settings.strategy,
        **settings.strategy_parameters,
        "num-server-rounds": settings.num_rounds,
        "min-fit-clients": settings.min_fit_clients,
        "min-evaluate-clients": settings.min_evaluate_clients,
        "min-available-clients": settings.min_available_clients,
        "seed": settings.seed,
        "round-timeout-s": settings.round_timeout_s,
        "round-timeout-min-s": settings.round_timeout_min_s,
    }
    if settings.checkpoint_enabled:
        config["checkpoint-enabled"] = True
        config["checkpoint-interval"] = settings.checkpoint_interval_rounds
        config["checkpoint-keep-last"] = settings.checkpoint_keep_last
        config["checkpoint-keep-every"] = settings.checkpoint_keep_every
    return config


class _Reader:
    """Typed access to the values of a resolution without errors."""

    def __init__(self, resolution: Resolution, role: Role) -> None:
        assert resolution.role is role
        if resolution.errors:
            raise ContextError(resolution.errors)
        self._values = resolution.values

    def optional(self, name: str, kind: type[_T]) -> _T | None:
        parsed = VARIABLES[name].parse(self._values[name].text)
        assert parsed is None or isinstance(parsed, kind)
        return parsed

    def parameters_of(self, strategy: str) -> dict[str, ConfigValue]:
        """What the strategy is given, by key of the run_config."""
        chosen = STRATEGIES[strategy]
        names = [*chosen.reads, *(n for n in chosen.reads_if_set if self._values[n].is_set)]
        return {VARIABLES[name].run_config_key: self._number(name) for name in names}

    def _number(self, name: str) -> int | float:
        parsed = VARIABLES[name].parse(self._values[name].text)
        assert isinstance(parsed, int | float)
        return parsed

    def required(self, name: str, kind: type[_T]) -> _T:
        """Of a variable that has a default."""
        parsed = self.optional(name, kind)
        assert parsed is not None
        return parsed
