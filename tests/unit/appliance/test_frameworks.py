"""X18: a framework that was asked for is there, or the boot fails; no other one is tried."""

from __future__ import annotations

import pytest

from onefed.appliance import frameworks, machine, surroundings
from onefed.appliance.steps import BootError
from onefed.context import VARIABLES
from onefed.errors import ExitCode


@pytest.fixture
def ready(node, cloud, supervisor):
    """A node beside a SuperLink without TLS."""
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT="10.0.0.5:9092", FL_TLS="NO")
    node.variables["FL_TLS_ENABLED"] = "NO"
    return node


def test_every_value_has_a_module() -> None:
    assert tuple(frameworks.MODULES) == VARIABLES["ML_FRAMEWORK"].options


@pytest.mark.parametrize(("name", "module"), frameworks.MODULES.items())
def test_one_that_was_asked_for_and_is_there(ready, cloud, name, module) -> None:
    ready.variables["ML_FRAMEWORK"] = name
    ready.modules.add(module)
    ready.boot()
    assert cloud.attributes(ready.vm)["FL_FRAMEWORK"] == name


def test_one_that_was_asked_for_and_is_missing(ready, cloud) -> None:
    ready.variables["ML_FRAMEWORK"] = "tensorflow"
    ready.modules |= {"torch", "sklearn"}
    with pytest.raises(BootError, match="no module tensorflow") as caught:
        ready.boot()
    assert (caught.value.step_id, caught.value.exit_code) == ("SN-10", ExitCode.BOOT)
    assert surroundings.error_code(caught.value) == "image_missing"
    assert ready.started == []
    assert "FL_FRAMEWORK" not in cloud.attributes(ready.vm)


def test_the_default_may_be_missing(ready, cloud) -> None:
    """An app may need none at all."""
    ready.boot()
    assert machine.read_facts(ready.paths)["framework"] == ""
    assert "FL_FRAMEWORK" not in cloud.attributes(ready.vm)


def test_a_peer_is_asked_for_it_as_a_node_is(new_peer, cloud) -> None:
    """It trains, too: in a container the framework names its image."""
    wanted = new_peer(FL_PEER_FOUNDERS="1", ML_FRAMEWORK="sklearn")
    with pytest.raises(BootError, match="no module sklearn") as caught:
        wanted.boot()
    assert caught.value.step_id == "PE-10b"
    wanted.modules.add("sklearn")
    wanted.boot()
    held = cloud.attributes(wanted.vm)
    assert held["FL_FRAMEWORK"] == "sklearn"
