"""Docker inside machines: each has an engine of its own, with the images that its role finds there.

The image is the tree, imported once. A machine gets a copy of the engine's notes, and what the
image holds is bound into it. It may carry an older version of Flower than it is told to run: each
machine has a registry on its loopback, which holds the coordinator's image of ``VERSION`` and no
node's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from onefed.appliance import container
from onefed.context import Role

from . import tree

VERSION = "1.41.0"
"""Of Flower; FLOWER_VERSION by default."""

OLDER = "1.40.0"
"""What an image may carry; in fact it is the same."""

FRAMEWORK = "pytorch"
"""ML_FRAMEWORK by default; names the image of a node, and no app of ours needs it."""

IMAGES = tuple(
    container.image(role, FRAMEWORK, version)
    for role in (Role.SUPERLINK, Role.SUPERNODE)
    for version in (VERSION, OLDER)
)

NOT_IN_IMAGES = (
    *("usr/bin/docker*", "usr/bin/containerd*", "usr/sbin/dockerd", "usr/bin/ctr", "usr/bin/dnet"),
    *("usr/bin/ovrouter", "usr/share/locale"),
)
"""Of the tree: a quarter of a gigabyte that only a machine needs."""

REGISTRY = "127.0.0.1:5000"

PULLED = "/etc/pulled"
"""A file that only the image of the registry has."""

IMPORT_LIMIT_S = 240.0

_IMPORT = """\
set -eu
dockerd --bridge none --iptables=false >/var/lib/docker/engine.log 2>&1 &
engine=$!
until docker info >/dev/null 2>&1; do kill -0 $engine; sleep 0.1; done
blobs=/var/lib/docker-registry/docker/registry/v2/blobs/sha256
mkdir -p $blobs
tar -C /image --one-file-system {without} -c . | tee $blobs/layer |
    docker import --change 'ENV PATH={path}' - {image} >&2
for other in {others}; do docker tag {image} $other; done

# The registry has the layer as the engine imported it, and the engine knows that: so neither a push
# nor a pull moves a gigabyte, as with any layer that both have already.
digest=$(docker image inspect --format '{{{{index .RootFS.Layers 0}}}}' {image})
hex=${{digest#sha256:}}
place=$blobs/$(echo $hex | cut -c 1-2)/$hex
mkdir -p $place
mv $blobs/layer $place/data
links=/var/lib/docker-registry/docker/registry/v2/repositories/library/{repository}/_layers/sha256
mkdir -p $links/$hex
printf %s $digest >$links/$hex/link
notes=/var/lib/docker/image/overlay2/distribution
mkdir -p $notes/diffid-by-digest/sha256 $notes/v2metadata-by-diffid/sha256
printf %s $digest >$notes/diffid-by-digest/sha256/$hex
source={registry}/library/{repository}
printf '[{{"Digest":"%s","SourceRepository":"%s","HMAC":""}}]' $digest $source \
    >$notes/v2metadata-by-diffid/sha256/$hex

docker-registry serve /registry.yml >/var/lib/docker/registry.log 2>&1 &
registry=$!
until curl --silent --fail http://{registry}/v2/ >&2; do kill -0 $registry; sleep 0.1; done
mkdir /tmp/newer
echo {version} >/tmp/newer/mark
newer=$source:{version}
printf 'FROM {image}\nCOPY mark {pulled}\n' >/tmp/newer/Dockerfile
docker build --quiet --tag $newer /tmp/newer >&2
docker push --quiet $newer >&2
docker rmi --force $newer >&2
kill $registry $engine
wait $engine
chmod -R a+rX /var/lib/docker-registry
"""

REGISTRY_CONFIGURATION = f"""\
version: 0.1
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
http:
  addr: {REGISTRY}
"""

REGISTRY_FIRST = f"""\
[Unit]
Before=docker.service

[Service]
ExecStartPost=curl --silent --fail --output /dev/null --retry 50 --retry-delay 1 \\
    --retry-connrefused http://{REGISTRY}/v2/
"""

CGROUPS = """\
[Service]
ExecStartPre=/bin/sh -c 'for each in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$each"; done'
"""
"""systemd-nspawn shows them read-only, and a virtual machine does not."""

FLAGS = (
    "--capability=all",
    "--system-call-filter=@keyring bpf @clock @module @mount",
)
"""For systemd-nspawn, so that an engine can be in it as in a virtual machine."""

ENVIRONMENT = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}


def bake(folder: Path) -> None:
    """Make ``folder`` an engine's ``/var/lib/docker`` with ``IMAGES`` in it, and a registry's."""
    folder.mkdir()
    stored = _registry(folder)
    stored.mkdir()
    configuration = folder.with_name("registry.yml")
    configuration.write_text(REGISTRY_CONFIGURATION)
    script = _IMPORT.format(
        path=f"{tree.VENV}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        without=" ".join(f"--exclude=./{place}" for place in NOT_IN_IMAGES),
        image=IMAGES[0],
        others=" ".join(IMAGES[1:]),
        repository=IMAGES[0].partition(":")[0],
        version=VERSION,
        registry=REGISTRY,
        pulled=PULLED,
    )
    subprocess.run(
        [
            *("systemd-nspawn", "--quiet", f"--directory={tree.TREE}", "--volatile=overlay"),
            *("--register=no", "--keep-unit", "--private-network", "--as-pid2", "--pipe"),
            *(f"--bind={folder}:/var/lib/docker", f"--bind-ro={tree.TREE}:/image:norbind", *FLAGS),
            *(
                f"--bind={stored}:/var/lib/docker-registry",
                f"--bind-ro={configuration}:/registry.yml",
            ),
            *("sh", "-c", script),
        ],
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=IMPORT_LIMIT_S,
    )


def give(baked: Path, folder: Path, version: str) -> Sequence[str]:
    """Make ``folder`` a machine's ``/var/lib/docker``; gives the flags that bind it in.

    Args:
        version: of the images that it carries.
    """
    for notes in ("image", "overlay2"):
        shutil.copytree(baked / notes, folder / notes, symlinks=True, ignore=_without_content)
    names = folder / "image/overlay2/repositories.json"
    held = json.loads(names.read_text())["Repositories"]
    carried = {
        repository: {name: id_ for name, id_ in tags.items() if name.endswith(f":{version}")}
        for repository, tags in held.items()
    }
    names.write_text(json.dumps({"Repositories": carried}))
    layers = [path.relative_to(baked) for path in baked.glob("overlay2/*/diff")]
    for layer in layers:
        (folder / layer).mkdir()
    return (
        f"--bind={folder}:/var/lib/docker",
        *(f"--bind-ro={baked / layer}:/var/lib/docker/{layer}" for layer in layers),
        f"--bind-ro={_registry(baked)}:/var/lib/docker-registry",
    )


def enable(disk: Path, version: str) -> None:
    """The engine starts with the machine, as in an image that has it, and so does the registry."""
    units = disk / "etc/systemd/system"
    for name in ("docker.service", "containerd.service", "docker-registry.service"):
        (units / "multi-user.target.wants" / name).symlink_to(f"/lib/systemd/system/{name}")
    (units / "docker.service.d").mkdir()
    (units / "docker.service.d/cgroups.conf").write_text(CGROUPS)
    (units / "docker-registry.service.d").mkdir()
    (units / "docker-registry.service.d/first.conf").write_text(REGISTRY_FIRST)
    (disk / "etc/docker/registry/config.yml").write_text(REGISTRY_CONFIGURATION)
    mirrors = {"registry-mirrors": [f"http://{REGISTRY}"]}
    (disk / "etc/docker/daemon.json").write_text(json.dumps(mirrors))
    (disk / "opt/flower/PREBAKED_VERSION").write_text(f"{version}\n")


def _registry(baked: Path) -> Path:
    return baked.with_name(f"{baked.name}-registry")


def _without_content(place: str, names: list[str]) -> set[str]:
    is_layer = Path(place).parent.name == "overlay2"
    return {"diff"} if is_layer and "diff" in names else set()
