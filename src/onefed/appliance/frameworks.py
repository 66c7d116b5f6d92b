"""Which machine-learning framework a node has: ML_FRAMEWORK is looked for, no other is tried."""

from __future__ import annotations

from collections.abc import Mapping

from onefed import context
from onefed.appliance.machine import Edge
from onefed.appliance.platform import ImageError

MODULES: Mapping[str, str] = {
    "pytorch": "torch",
    "tensorflow": "tensorflow",
    "sklearn": "sklearn",
}
"""What Python calls each value of ML_FRAMEWORK."""


def present(edge: Edge, resolution: context.Resolution) -> str:
    """The framework of this node; empty: the default, and it is not there, which may not matter.

    In a container it is that of the image, and a node without that image does not get so far.

    Raises:
        ImageError: one was asked for that is not there.
    """
    wanted = resolution.values["ML_FRAMEWORK"]
    if edge.platform.in_containers or edge.has_module(MODULES[wanted.text]):
        return wanted.text
    if wanted.is_set:
        raise ImageError(
            f"ML_FRAMEWORK is {wanted.text}, and this machine has no module "
            f"{MODULES[wanted.text]}; no other framework is tried.",
            hint="Install it, use an appliance image that carries it, or set ML_FRAMEWORK to what "
            "the app needs.",
        )
    return ""
