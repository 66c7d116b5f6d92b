"""User inputs and CONTEXT of templates: what a form asks for, and what a machine then reads."""

from __future__ import annotations

import pytest

from onefed.context import Role, inputs, parse_context_file, resolve
from onefed.context.inputs import Profile
from onefed.context.table import VARIABLES
from onefed.context.variable import Level


def fields(user_input: str) -> list[str]:
    return user_input.split("|")


@pytest.mark.parametrize("row", VARIABLES.values(), ids=lambda row: row.name)
def test_an_input_has_the_five_fields_of_the_platform(row) -> None:
    mandatory, kind, help_text, options, default = fields(inputs.user_input(row))
    assert mandatory == "O"
    assert kind == row.kind
    assert help_text.endswith(".")
    assert default == row.default
    assert bool(options) == (kind == "list")
    assert '"' not in help_text


@pytest.mark.parametrize("row", VARIABLES.values(), ids=lambda row: row.name)
def test_a_form_offers_only_what_a_boot_accepts(row) -> None:
    for option in filter(None, fields(inputs.user_input(row))[3].split(",")):
        row.parse(option)


@pytest.mark.parametrize("profile", Profile)
def test_no_name_is_asked_for_at_two_levels(profile: Profile) -> None:
    service = inputs.service_inputs(profile)
    for role in inputs.ROLES[profile]:
        assert not service.keys() & inputs.role_inputs(profile, role).keys()


def test_a_single_site_asks_what_the_design_lists() -> None:
    service = inputs.service_inputs(Profile.SINGLE_SITE)
    link = inputs.role_inputs(Profile.SINGLE_SITE, Role.SUPERLINK)
    node = inputs.role_inputs(Profile.SINGLE_SITE, Role.SUPERNODE)
    assert {"FLOWER_VERSION", "FL_TLS_ENABLED", "FL_LOG_LEVEL", "FL_LOG_FORMAT"} <= set(service)
    assert {"FL_NUM_ROUNDS", "FL_STRATEGY", "FL_METRICS_PORT", "FL_CHECKPOINT_PATH"} <= set(link)
    assert set(node) == {
        *("ML_FRAMEWORK", "FL_NODE_CONFIG", "FL_DCGM_ENABLED"),
        *("FL_GPU_ENABLED", "FL_CUDA_VISIBLE_DEVICES", "FL_GPU_MEMORY_FRACTION"),
    }


def test_a_training_site_has_to_say_where_the_coordinator_is_and_whom_to_trust() -> None:
    asked = inputs.role_inputs(Profile.TRAINING_SITE, Role.SUPERNODE)
    mandatory = {name for name, text in asked.items() if text.startswith("M|")}
    assert mandatory == {"FL_SUPERLINK_ADDRESS", "FL_SSL_CA_CERTFILE"}


@pytest.mark.parametrize("profile", Profile)
def test_no_form_asks_for_a_private_key(profile: Profile) -> None:
    asked = set(inputs.service_inputs(profile))
    for role in inputs.ROLES[profile]:
        asked |= set(inputs.role_inputs(profile, role)) | set(inputs.vm_inputs(role))
    # A token works once and expires; it has to get into a machine outside of any service somehow.
    secrets = {name for name in asked if VARIABLES[name].secret}
    assert secrets <= {"FL_ENROLMENT_TOKEN"}


@pytest.mark.parametrize("role", Role)
def test_a_machine_from_the_unchanged_template_boots_with_the_defaults(role: Role) -> None:
    """OpenNebula puts the answers for ``$NAME`` into the context, empty ones included."""
    answers = {name: fields(text)[4] for name, text in inputs.vm_inputs(role).items()}
    lines = [
        f"{name}='{answers.get(value[1:], '')}'\n"
        if value.startswith("$")
        else f"{name}='{value}'\n"
        for name, value in inputs.vm_context(role).items()
    ]
    found = resolve(role, context_file=parse_context_file("".join(lines).encode()))
    assert found.errors == ()
    assert {name: value.text for name, value in found.values.items()} == {
        name: VARIABLES[name].default for name in found.values
    }


FORMS = [
    inputs.vm_inputs,
    lambda role, *frameworks: inputs.role_inputs(Profile.SINGLE_SITE, role, *frameworks),
    lambda role, *frameworks: inputs.role_inputs(Profile.TRAINING_SITE, role, *frameworks),
    lambda role, *frameworks: inputs.role_inputs(Profile.EDGE, role, *frameworks),
]
"""Every one that asks a node for its framework."""


@pytest.mark.parametrize("form", FORMS)
def test_a_form_sends_no_framework_that_the_image_may_lack(form) -> None:
    """X18: a boot ends where one was asked for that is not there."""
    asked = fields(form(Role.SUPERNODE)["ML_FRAMEWORK"])
    assert (asked[3], asked[4]) == ("pytorch,tensorflow,sklearn", "")
    for carried in (("sklearn",), ("tensorflow", "sklearn")):
        asked = fields(form(Role.SUPERNODE, carried)["ML_FRAMEWORK"])
        assert (asked[3], asked[4]) == (",".join(carried), carried[0])


@pytest.mark.parametrize("role", Role)
def test_the_template_has_each_variable_of_the_role_once(role: Role) -> None:
    text = inputs.vm_template(role)
    for name in inputs.vm_inputs(role):
        assert text.count(f"  {name} = ") == 2, "once in CONTEXT, once in USER_INPUTS"
    for row in VARIABLES.values():
        if row.level is Level.PLATFORM:
            assert text.count(f"  {row.name} = ") == 1
    assert 'READY_SCRIPT_PATH = "/opt/flower/scripts/health-check.sh"' in text
