"""Metrics as Prometheus reads them: text format 0.0.4. The one place that knows its library.

Names, labels and buckets are those of the reference design; the certificates are ours. No label
holds a round, a run, a node, or anything else of which there may be many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from onefed.telemetry.metrics import DURATION_BUCKETS_S, Durations, Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class _Collector(Collector):
    metrics: Metrics
    expiries: Mapping[str, datetime]

    def collect(self) -> Iterator[Metric]:
        return _families(self.metrics, self.expiries)


def text(metrics: Metrics, expiries: Mapping[str, datetime]) -> bytes:
    """A whole answer.

    Args:
        expiries: when each certificate ends, by ``ca`` or ``server``.
    """
    return generate_latest(_Collector(metrics, expiries))


def _families(metrics: Metrics, expiries: Mapping[str, datetime]) -> Iterator[Metric]:
    by_strategy = {
        "fl_round_current": ("Round that is trained, or was last.", metrics.round_current),
        "fl_round_total": ("Rounds that are wanted.", metrics.round_total),
        "fl_aggregated_loss": ("Loss after the latest round.", metrics.loss),
        "fl_aggregated_accuracy": ("Accuracy after the latest round.", metrics.accuracy),
    }
    for name, (help_, value) in by_strategy.items():
        family = GaugeMetricFamily(name, help_, labels=["strategy"])
        family.add_metric([metrics.strategy], value)
        yield family
    yield _durations(metrics)
    plain = {
        "fl_clients_connected": ("Nodes that are connected.", metrics.connected),
        "fl_clients_selected": ("Clients that this round selected.", metrics.selected),
        "fl_clients_responded": ("Clients that answered in this round.", metrics.responded),
        "fl_training_status": (
            "0 idle, 1 running, 2 complete, 3 failed.",
            int(metrics.status),
        ),
    }
    for name, (help_, value) in plain.items():
        yield GaugeMetricFamily(name, help_, value=value)
    yield CounterMetricFamily("fl_clients_failed", "Rounds that clients lost.", metrics.failed)
    yield CounterMetricFamily(
        "fl_checkpoint_saved", "Checkpoints that were exported.", metrics.checkpoints
    )
    if expiries:
        family = GaugeMetricFamily(
            "onefed_certificate_expiry_timestamp_seconds",
            "When a certificate of the coordinator ends, in seconds since 1970.",
            labels=["certificate"],
        )
        for certificate, moment in expiries.items():
            family.add_metric([certificate], moment.timestamp())
        yield family


def _durations(metrics: Metrics) -> Metric:
    family = HistogramMetricFamily(
        "fl_round_duration_seconds", "How long a round took.", labels=["strategy"]
    )
    bounds = [*(f"{bound:.1f}" for bound in DURATION_BUCKETS_S), "+Inf"]
    for strategy, held in {metrics.strategy: Durations(), **metrics.durations}.items():
        below = accumulate(held.counts)
        family.add_metric(
            [strategy], list(zip(bounds, map(float, below), strict=True)), held.total_s
        )
    return family
