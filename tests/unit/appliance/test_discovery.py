"""A node finds its SuperLink through a real OneGate, waits for it, and believes no nonsense."""

from __future__ import annotations

import itertools

import pytest

from onefed.appliance import discovery
from onefed.errors import ExitCode
from onefed.opennebula import onegate

READY = {"FL_READY": "YES", "FL_ENDPOINT": "10.0.0.5:9092"}


@pytest.fixture
def vm(cloud):
    """The node that looks for its SuperLink."""
    return cloud.add("supernode")


@pytest.fixture
def tries() -> list[tuple[int, str]]:
    """Number and finding of every try that failed."""
    return []


@pytest.fixture
def discover(cloud, vm, time, tries):
    """Discover with the standard schedule, on virtual time."""

    def run(waits=None, gate=None) -> discovery.SuperLink:
        with gate or cloud.gate(vm) as client:
            return discovery.discover(
                client,
                waits=discovery.standard_waits() if waits is None else waits,
                sleep=time.sleep,
                on_try=lambda *told: tries.append(told),
            )

    return run


def test_a_ready_superlink_is_found_with_all_it_published(cloud, discover, tries) -> None:
    cloud.add("superlink", **READY, FL_TLS="YES", FL_CA_CERT="LS0t", FL_VERSION="1.41.0")
    assert discover() == discovery.SuperLink("10.0.0.5:9092", True, "LS0t", "1.41.0")
    assert tries == []


def test_what_was_not_published_is_not_made_up(cloud, discover) -> None:
    cloud.add("superlink", **READY)
    assert discover() == discovery.SuperLink("10.0.0.5:9092", None, None, None)


def test_the_ready_one_of_two_is_taken(cloud, discover) -> None:
    cloud.add("superlink", FL_READY="NO", FL_ENDPOINT="10.0.0.1:9092")
    cloud.add("superlink", **READY)
    assert discover().endpoint == "10.0.0.5:9092"


def test_of_two_ready_ones_the_oldest_is_taken(cloud, discover) -> None:
    cloud.add("superlink", **READY)
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT="10.0.0.9:9092")
    assert {discover().endpoint for _ in range(3)} == {"10.0.0.5:9092"}


def test_a_superlink_that_publishes_nonsense_does_not_hide_a_sound_one(cloud, discover) -> None:
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT="nonsense")
    cloud.add("superlink", **READY)
    assert discover().endpoint == "10.0.0.5:9092"


def test_a_superlink_that_is_not_ready_is_waited_for(cloud, discover, time, tries) -> None:
    link = cloud.add("superlink", FL_ENDPOINT="10.0.0.5:9092")

    def become_ready() -> None:
        if len(tries) == 3:
            cloud.model.update_attributes(link.vm_id, {"FL_READY": "YES"})

    time.after_every_sleep(become_ready)
    assert discover().endpoint == "10.0.0.5:9092"
    assert [number for number, _ in tries] == [1, 2, 3]
    assert {finding for _, finding in tries} == {"the superlink is not ready yet"}
    assert time.slept == [10.0, 10.0, 10.0]


def test_a_service_whose_superlink_is_not_created_yet_is_waited_for(
    cloud, discover, time, tries
) -> None:
    def create() -> None:
        if len(tries) == 2:
            cloud.add("superlink", **READY)

    time.after_every_sleep(create)
    assert discover().endpoint == "10.0.0.5:9092"
    assert {finding for _, finding in tries} == {"the service has no superlink yet"}


def test_the_standard_schedule_gives_up_after_thirty_tries(cloud, discover, time, tries) -> None:
    cloud.add("superlink")
    with pytest.raises(discovery.DiscoveryError, match="after 30 tries") as caught:
        discover()
    assert caught.value.exit_code is ExitCode.BOOT
    assert "FL_SUPERLINK_ADDRESS" in str(caught.value.hint)
    assert len(tries) == 30
    assert time.slept == [10.0] * 29


def test_the_edge_schedule_doubles_up_to_its_cap_and_never_ends() -> None:
    waits = list(itertools.islice(discovery.edge_waits(300), 200))
    assert waits[:8] == [10, 20, 40, 80, 160, 300, 300, 300]
    assert set(waits[8:]) == {300}


def test_a_cap_below_the_first_wait_wins() -> None:
    assert list(itertools.islice(discovery.edge_waits(3), 3)) == [3, 3, 3]


def test_an_edge_node_goes_on_after_thirty_tries(cloud, discover, time, tries) -> None:
    link = cloud.add("superlink", FL_ENDPOINT="10.0.0.5:9092")

    def become_ready() -> None:
        if len(tries) == 35:
            cloud.model.update_attributes(link.vm_id, {"FL_READY": "YES"})

    time.after_every_sleep(become_ready)
    assert discover(waits=discovery.edge_waits(300)).endpoint == "10.0.0.5:9092"
    assert len(time.slept) == 35


def test_a_wrong_token_fails_at_once(cloud, discover, vm, time, tries) -> None:
    cloud.add("superlink", **READY)
    with pytest.raises(onegate.NotAuthorizedError):
        discover(gate=cloud.gate(vm, token="wrong"))
    assert time.slept == []
    assert tries == []


def test_an_unreachable_onegate_is_asked_again(cloud, vm, time, tries) -> None:
    gate = onegate.OneGate("http://127.0.0.1:1", vm.token, vm.vm_id, sleep=lambda _: None)
    with gate, pytest.raises(discovery.DiscoveryError, match="after 3 tries"):
        discovery.discover(
            gate, waits=iter([1.0, 2.0]), sleep=time.sleep, on_try=lambda *told: tries.append(told)
        )
    assert time.slept == [1.0, 2.0]
    assert all(vm.token not in finding for _, finding in tries)


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param("", id="empty"),
        pytest.param("10.0.0.5", id="no port"),
        pytest.param("10.0.0.5:", id="empty port"),
        pytest.param(":9092", id="no host"),
        pytest.param("10.0.0.5:0", id="port 0"),
        pytest.param("10.0.0.5:65536", id="port 65536"),
        pytest.param("10.0.0.5:99999999999", id="long port"),
        pytest.param("10.0.0.5:٩٠٩٢", id="digits of another script"),
        pytest.param("10.0.0.5:9092\n", id="new line"),
        pytest.param("10.0.0.5:9092 --insecure", id="two arguments"),
        pytest.param("--insecure", id="flag"),
        pytest.param("--insecure:9092", id="flag with a port"),
        pytest.param("-x:1", id="short flag with a port"),
        pytest.param(".:9092", id="dot"),
        pytest.param("$(touch x):9092", id="shell"),
        pytest.param("`id`:9092", id="backticks"),
        pytest.param("\x1b[31mred\x1b[0m:9092", id="terminal"),
        pytest.param("<b>host</b>:9092", id="html"),
        pytest.param("user@host:9092", id="user"),
        pytest.param("http://10.0.0.5:9092", id="url"),
        pytest.param("a" * 70_000 + ":9092", id="70 kB"),
    ],
)
def test_a_hostile_endpoint_is_refused_and_shown_escaped(
    cloud, discover, tries, endpoint: str
) -> None:
    link = cloud.add("superlink", FL_READY="YES", FL_ENDPOINT=endpoint)
    assert not discovery.is_endpoint(endpoint)
    with pytest.raises(discovery.DiscoveryError) as caught:
        discover(waits=iter(()))
    [(_, finding)] = tries
    assert f"machine {link.vm_id}" in finding
    for text in (finding, str(caught.value)):
        assert text.replace("\n", "").isprintable()
        assert len(text) < 400
    assert "\n" not in finding


@pytest.mark.parametrize(
    "endpoint", ["10.0.0.5:9092", "fl.example.com:1", "host_1.local:65535", "a:9092"]
)
def test_a_name_or_address_with_a_port_is_an_endpoint(endpoint: str) -> None:
    assert discovery.is_endpoint(endpoint)


def test_only_an_exact_yes_means_tls(cloud, discover) -> None:
    """The node then insists on TLS all the same, and says that the two do not agree."""
    cloud.add("superlink", **READY, FL_TLS="yes please")
    assert discover().tls is False


def test_the_partition_is_the_place_among_the_supernodes(cloud) -> None:
    cloud.add("superlink", **READY)
    nodes = [cloud.add("supernode") for _ in range(3)]
    with cloud.gate(nodes[0]) as gate:
        found = [discovery.partition(gate, vm.vm_id) for vm in nodes]
    assert [each.node_config for each in found if each] == [
        "partition-id=0 num-partitions=3",
        "partition-id=1 num-partitions=3",
        "partition-id=2 num-partitions=3",
    ]


def test_who_is_no_supernode_of_the_service_has_no_partition(cloud) -> None:
    link = cloud.add("superlink", **READY)
    node = cloud.add("supernode")
    with cloud.gate(node) as gate:
        assert discovery.partition(gate, link.vm_id) is None
        assert discovery.partition(gate, "4711") is None


def test_a_claim_is_kept_over_a_reboot_whatever_the_place_is(cloud, time) -> None:
    cloud.add("supernode")
    node = cloud.add("supernode", FL_PARTITION="5")
    with cloud.gate(node) as gate:
        found = discovery.claim_partition(gate, node.vm_id, time.sleep)
    assert found is not None
    assert found.node_config == "partition-id=5 num-partitions=6"
    assert cloud.published(node) == []


def test_a_new_node_takes_what_a_removed_one_has_left(cloud, time) -> None:
    cloud.add("supernode", FL_PARTITION="1")
    node = cloud.add("supernode")
    with cloud.gate(node) as gate:
        found = discovery.claim_partition(gate, node.vm_id, time.sleep)
    assert found is not None
    assert found.node_config == "partition-id=0 num-partitions=2"
    assert cloud.published(node) == [("FL_PARTITION", "0")]


def test_of_two_that_took_the_same_partition_the_younger_moves(cloud, time) -> None:
    """The younger one had looked before the older one had published."""
    older = cloud.add("supernode", FL_PARTITION="0")
    younger = cloud.add("supernode", FL_PARTITION="0")
    with cloud.gate(younger) as gate:
        found = discovery.claim_partition(gate, younger.vm_id, time.sleep)
    assert found is not None
    assert found.id == 1
    with cloud.gate(older) as gate:
        kept = discovery.claim_partition(gate, older.vm_id, time.sleep)
    assert kept is not None
    assert kept.id == 0


@pytest.mark.parametrize(
    ("backoff", "first"),
    [(None, [10, 10, 10, 10]), ("fixed", [10, 10, 10, 10]), ("exponential", [10, 20, 40, 45])],
)
def test_the_schedule_of_a_node(backoff: str | None, first: list[int]) -> None:
    waits = discovery.waits(backoff, 45)
    assert [next(waits) for _ in first] == first
    assert (next(itertools.islice(waits, 100, None), None) is None) == (backoff != "exponential")
