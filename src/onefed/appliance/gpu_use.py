"""Steps SN-09 and SN-14a: the GPUs of a node, where it has some, and who measures them."""

from __future__ import annotations

from collections.abc import Mapping

from onefed import context
from onefed.appliance import gpu, machine, units
from onefed.appliance.machine import Edge
from onefed.appliance.steps import Outcome, done, skipped, unchanged
from onefed.errors import OnefedError
from onefed.telemetry import events

_ASKS: Mapping[str, str] = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""PyTorch asks the driver's library whether there is a GPU, instead of opening it: so a process
that has asked can still fork children that use it, and has nothing open where it sees none."""

WITHOUT: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": "", **_ASKS}
"""What apps read where training runs on the CPU: a GPU that the machine has is not taken by an app
that takes what it finds."""


def detect(edge: Edge, chosen: context.SuperNodeSettings) -> Outcome:
    """Remember which GPUs training may use; without any it uses the CPU, and a warning says why."""
    if not chosen.gpu_enabled:
        machine.save_facts(edge, gpus="")
        return skipped("FL_GPU_ENABLED is NO: training runs on the CPU")
    found = gpu.detect(edge.driver)
    if not found.gpus:
        is_news = machine.save_facts(edge, gpus="")
        edge.emit(events.GpuUnavailable("cpu"))
        edge.warn(f"No GPU, {found.why_not}: training runs on the CPU. See: onefed gpu validate")
        return (done if is_news else unchanged)(f"CPU: {found.why_not}")
    absent = gpu.missing_devices(chosen.cuda_visible_devices, len(found.gpus))
    if absent:
        edge.warn(
            f"FL_CUDA_VISIBLE_DEVICES names {', '.join(absent)}; this node has GPUs 0 to "
            f"{len(found.gpus) - 1}."
        )
    for each in found.gpus:
        edge.emit(events.GpuDetected(each.name, each.memory_mb, each.driver_version))
    is_news = machine.save_facts(edge, gpus=chosen.cuda_visible_devices)
    listed = ", ".join(f"{each.name} ({each.memory_mb} MB)" for each in found.gpus)
    return (done if is_news else unchanged)(listed)


def start_metrics(edge: Edge, chosen: context.SuperNodeSettings) -> Outcome:
    """Start their exporter, if it is wanted; a node trains without it."""
    if not chosen.dcgm_enabled:
        return skipped("FL_DCGM_ENABLED is NO")
    if not edge.facts.get("gpus"):
        edge.warn("FL_DCGM_ENABLED is YES and training uses no GPU: there are no GPU metrics.")
        return skipped("no GPU is used")
    try:
        return edge.platform.sidecar(units.dcgm(context.Role.SUPERNODE), units.DCGM_IMAGE)
    except OnefedError as error:
        edge.warn(f"There are no GPU metrics. {error}")
        return skipped(error.message)


def environment(chosen: context.SuperNodeSettings) -> dict[str, str]:
    """What apps read; ``all`` is no value of CUDA_VISIBLE_DEVICES."""
    devices = chosen.cuda_visible_devices
    return {
        **({} if devices == "all" else {"CUDA_VISIBLE_DEVICES": devices}),
        "FL_GPU_MEMORY_FRACTION": str(chosen.gpu_memory_fraction),
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **_ASKS,
    }
