"""App directories: what is wrong with them, and the bundles that become of the good ones."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onefed.errors import ExitCode
from onefed.flower import bundle

Folder = Callable[..., Path]

EXAMPLES = Path(__file__).parents[3] / "examples"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder: contents by path, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def packed(fab: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def problems_of(folder: Path) -> list[str]:
    """The problems that the one error names."""
    with pytest.raises(bundle.AppError) as raised:
        bundle.load(folder)
    assert raised.value.exit_code is ExitCode.APP
    assert str(folder) in raised.value.message
    assert raised.value.hint
    _, *lines = raised.value.message.split("\n")
    return [line.removeprefix("  - ") for line in lines]


FAULTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "no-project": ({"project": None}, "[project] needs a name, as text"),
    "no-version": ({"project": {"name": "tiny"}}, "[project] needs a version, as text"),
    "version-is-a-number": (
        {"project": {"name": "tiny", "version": 1}},
        "[project] needs a version, as text",
    ),
    "name-with-a-blank": (
        {"project": {"name": "my app", "version": "1.0.0"}},
        'name "my app" is invalid',
    ),
    "no-publisher": ({"publisher": None}, 'Property "publisher" missing'),
    "no-components": ({"components": None}, 'components] needs clientapp = "module:attribute"'),
    "components-are-text": ({"components": "x"}, "needs clientapp"),
    "no-clientapp": ({"components": {"serverapp": "server:app"}}, "needs clientapp"),
    "only-an-agentapp": ({"components": {"agentapp": "agent:app"}}, "needs clientapp"),
    "clientapp-is-no-reference": (
        {"components": {"clientapp": "client.app"}},
        "clientapp must read \"module:attribute\", not 'client.app'",
    ),
    "clientapp-is-a-number": ({"components": {"clientapp": 5}}, "clientapp must read"),
    "serverapp-is-no-reference": (
        {"components": {"clientapp": "client:app", "serverapp": "server:"}},
        "serverapp must read",
    ),
    "no-serverapp-and-not-managed": (
        {"components": {"clientapp": "client:app"}, "managed": None},
        'needs serverapp = "module:attribute"',
    ),
    "config-holds-a-list": (
        {"config": {"a": {"b": [1]}}},
        "config] a.b must be text, a number, true or false, not [1]",
    ),
    "rounds-are-text": (
        {"config": {"num-server-rounds": "three"}},
        "num-server-rounds must be a whole number, not 'three'",
    ),
    "seed-is-a-fraction": ({"config": {"seed": 1.5}}, "seed must be a whole number, not 1.5"),
    "switch-is-a-number": (
        {"config": {"checkpoint-enabled": 1}},
        "checkpoint-enabled must be true or false, not 1",
    ),
    "managed-without-a-model": (
        {"managed": {"evaluate": "task:evaluate"}, "components": {"clientapp": "client:app"}},
        'needs initial-arrays = "module:function"',
    ),
    "managed-with-an-unknown-key": (
        {"managed": {"initial-arrays": "task:initial_arrays", "evaluat": "x"}},
        "knows no key 'evaluat'",
    ),
    "model-is-no-reference": (
        {"managed": {"initial-arrays": "task"}},
        "initial-arrays must read \"module:function\", not 'task'",
    ),
    "evaluate-is-a-number": (
        {"managed": {"initial-arrays": "task:initial_arrays", "evaluate": 3}},
        "evaluate must read",
    ),
    "includes-are-text": ({"fab-include": "*.py"}, "fab-include"),
    **{
        f"shadows-{name}": ({"files": {f"{name}.py": ""}}, f"{name} at the top of the app")
        for name in bundle.RESERVED
    },
    "shadows-flwr-with-a-package": ({"files": {"flwr/__init__.py": ""}}, "flwr at the top"),
}


class TestLoad:
    def test_a_managed_app_needs_no_server_app(self, app_folder: Folder) -> None:
        app = bundle.load(app_folder(components={"clientapp": "client:app"}))

        assert (app.name, app.version, app.client_app) == ("tiny", "1.0.0", "client:app")
        assert app.server_app is None
        assert app.managed == bundle.Managed("task:initial_arrays", "task:evaluate")
        assert app.run_config == {"local-epochs": 1, "optimizer.momentum": 0.5}

    def test_an_app_with_its_own_server_app_is_not_managed(self, app_folder: Folder) -> None:
        app = bundle.load(app_folder(managed=None))

        assert app.managed is None
        assert app.server_app == "server:app"

    @pytest.mark.parametrize("fault", FAULTS)
    def test_one_fault_is_one_problem(self, app_folder: Folder, fault: str) -> None:
        changes, expected = FAULTS[fault]

        problems = problems_of(app_folder(**changes))

        assert expected in problems[0]
        assert len(problems) == (2 if fault == "no-project" else 1), problems

    def test_all_faults_are_told_together(self, app_folder: Folder) -> None:
        folder = app_folder(
            project={"name": "9 lives"},
            publisher=None,
            components={"clientapp": "client"},
            config={"seed": "x", "sizes": [1, 2]},
            managed={"initial-arrays": "nowhere", "typo": 1},
            files={"onefed/__init__.py": "", "sitecustomize.py": ""},
        )

        assert len(problems_of(folder)) == 10

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (None, "holds no pyproject.toml"),
            (b"[project\n", "cannot be read"),
            (b"name = '\xff'\n", "cannot be read"),
            (b"", r"has no \[tool.flwr.app\] table"),
            (b"[tool]\nflwr = 5\n", r"has no \[tool.flwr.app\] table"),
        ],
    )
    def test_a_folder_that_is_no_app_says_what_is_missing(
        self, tmp_path: Path, content: bytes | None, expected: str
    ) -> None:
        if content is not None:
            (tmp_path / "pyproject.toml").write_bytes(content)

        with pytest.raises(bundle.AppError, match=expected) as raised:
            bundle.load(tmp_path)
        assert raised.value.hint

    @pytest.mark.parametrize("name", ["missing", "a-file"])
    def test_a_path_that_is_no_folder_is_named(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "a-file").write_text("")

        with pytest.raises(bundle.AppError, match=f"{name} is not a directory"):
            bundle.load(tmp_path / name)

    def test_nothing_of_an_app_is_imported(self, app_folder: Folder) -> None:
        """Flower's own check would: it imports the packages above the modules it looks for."""
        folder = app_folder(
            components={"clientapp": "explosive.client:app"},
            files={"explosive/__init__.py": "raise SystemExit", "explosive/client.py": "app = 1"},
        )

        bundle.load(folder)

        assert "explosive" not in sys.modules

    def test_examples_are_apps(self) -> None:
        assert bundle.load(EXAMPLES / "sklearn-logreg").managed is None
        assert bundle.load(EXAMPLES / "sklearn-logreg-managed").managed is not None


class TestBuild:
    def test_a_managed_app_gets_our_server_app_and_the_keys_of_the_bridge(
        self, app_folder: Folder
    ) -> None:
        built = bundle.build(bundle.load(app_folder(config={"num-server-rounds": 7, "own": "x"})))

        files = packed(built.fab)
        settings = tomllib.loads(files["pyproject.toml"].decode())["tool"]["flwr"]["app"]
        assert settings["components"] == {
            "clientapp": "client:app",
            "serverapp": "onefed_server_app:app",
        }
        assert settings["config"] == built.run_config
        assert built.run_config == {
            **bundle.RUN_CONFIG_DEFAULTS,
            "num-server-rounds": 7,
            "own": "x",
        }
        assert built.managed
        assert {"client.py", "server.py", "task.py", "onefed_server_app.py"} <= files.keys()
        compile(files["onefed_server_app.py"], "onefed_server_app.py", "exec")
        assert b"'task:initial_arrays', 'task:evaluate'" in files["onefed_server_app.py"]

    def test_an_app_with_its_own_server_app_is_packed_as_it_is(self, app_folder: Folder) -> None:
        folder = app_folder(managed=None)

        built = bundle.build(bundle.load(folder))

        files = packed(built.fab)
        assert not built.managed
        assert "onefed_server_app.py" not in files
        assert files["server.py"] == (folder / "server.py").read_bytes()
        assert built.run_config == {"local-epochs": 1, "optimizer.momentum": 0.5}

    @pytest.mark.parametrize("managed", [None, {"initial-arrays": "task:initial_arrays"}])
    def test_the_same_files_give_the_same_bytes_wherever_and_whenever(
        self, app_folder: Folder, tmp_path: Path, managed: Any
    ) -> None:
        folder = app_folder(managed=managed, files={"b/x.py": "", "a/y.py": ""})
        copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
        os.utime(copy / "client.py", (1, 1))

        first, second = (bundle.build(bundle.load(place)) for place in (folder, copy))

        assert first == second

    def test_another_file_is_another_app(self, app_folder: Folder) -> None:
        first, second = (
            bundle.build(bundle.load(app_folder(name, files={"model.py": text})))
            for name, text in (("one", "LAYERS = 1"), ("two", "LAYERS = 2"))
        )

        assert first.sha256 != second.sha256

    @pytest.mark.parametrize("managed", [None, {"initial-arrays": "task:initial_arrays"}])
    def test_a_bundle_tells_what_it_is(self, app_folder: Folder, managed: Any) -> None:
        built = bundle.build(bundle.load(app_folder(managed=managed)))

        assert bundle.unpack(built.fab) == built

    def test_an_app_that_is_too_large_is_told_so(self, app_folder: Folder) -> None:
        folder = app_folder(files={"data.json": os.urandom(6_000_000).hex()})

        with pytest.raises(bundle.AppError, match=r"cannot be packed: FAB size exceeds") as raised:
            bundle.build(bundle.load(folder))
        assert "data folders" in (raised.value.hint or "")

    def test_an_app_that_is_too_deep_is_told_so(self, app_folder: Folder) -> None:
        folder = app_folder(files={"/".join("abcdefghijklmnop") + "/deep.py": ""})

        with pytest.raises(bundle.AppError, match="cannot be packed"):
            bundle.build(bundle.load(folder))


class TestUnpack:
    @settings(
        deadline=None,
        max_examples=60,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_damage_raises_nothing_else(self, app_folder: Folder, data: st.DataObject) -> None:
        folder = app_folder()
        fab = bytearray(bundle.build(bundle.load(folder)).fab)
        for _ in range(data.draw(st.integers(1, 20))):
            fab[data.draw(st.integers(0, len(fab) - 1))] = data.draw(st.integers(0, 255))

        with contextlib.suppress(bundle.AppError):  # and nothing else; not all damage is looked for
            bundle.unpack(bytes(fab))

    @pytest.mark.parametrize("content", [b"", b"PK", b"nonsense", b"\0" * 1000])
    def test_what_is_no_bundle_is_refused(self, content: bytes) -> None:
        with pytest.raises(bundle.AppError, match="The app cannot be read"):
            bundle.unpack(content)

    def test_a_zip_without_an_app_is_refused(self) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("pyproject.toml", "[project]\nname = 'x'\n")

        with pytest.raises(bundle.AppError, match="The app cannot be read"):
            bundle.unpack(file.getvalue())


class TestImports:
    def test_a_good_app_imports(self, app_folder: Folder) -> None:
        bundle.check_imports(bundle.load(app_folder()))
        bundle.check_imports(bundle.load(app_folder("own", managed=None)))

    def test_a_nested_attribute_is_found(self, app_folder: Folder) -> None:
        client = "from flwr.clientapp import ClientApp\nclass holder:\n    app = ClientApp()\n"
        folder = app_folder(
            components={"clientapp": "nested:holder.app"}, files={"nested.py": client}
        )

        bundle.check_imports(bundle.load(folder))

    @pytest.mark.parametrize(
        ("client", "expected"),
        [
            ("raise RuntimeError('no GPU here')", "RuntimeError: no GPU here"),
            ("import a_module_that_nobody_has", "No module named 'a_module_that_nobody_has'"),
            ("import conftest", "No module named 'conftest'"),
            ("application = 1", "has no attribute 'app'"),
            ("app = 5", "app is a int, not an app or a function"),
            ("def app(:\n", "SyntaxError"),
            ("import sys; sys.exit(0)", "SystemExit: 0"),
            ("import os; os._exit(3)", "does not import"),
            ("import os; os.abort()", "does not import"),
        ],
    )
    def test_an_app_that_does_not_import_says_why(
        self,
        app_folder: Folder,
        monkeypatch: pytest.MonkeyPatch,
        client: str,
        expected: str,
    ) -> None:
        monkeypatch.chdir(Path(__file__).parent)  # what lies in the working directory is no help
        folder = app_folder(files={"client.py": client})

        with pytest.raises(bundle.AppError, match="does not import") as raised:
            bundle.check_imports(bundle.load(folder))

        assert expected in raised.value.message
        assert str(folder) in raised.value.message
        assert sys.executable in (raised.value.hint or "")

    def test_every_reference_that_fails_is_named_at_once(self, app_folder: Folder) -> None:
        folder = app_folder(
            managed={"initial-arrays": "task:missing", "evaluate": "metrics:evaluate"},
            files={"client.py": "raise ValueError('of the client')"},
        )

        with pytest.raises(bundle.AppError) as raised:
            bundle.check_imports(bundle.load(folder))

        for words in ("client:app", "of the client", "task:missing", "metrics:evaluate"):
            assert words in raised.value.message

    def test_what_an_app_prints_does_not_flood_the_message(self, app_folder: Folder) -> None:
        noisy = "import sys\nfor _ in range(100_000): print('x' * 99, file=sys.stderr)\n1 / 0\n"
        folder = app_folder(files={"client.py": noisy})

        with pytest.raises(bundle.AppError, match="ZeroDivisionError") as raised:
            bundle.check_imports(bundle.load(folder))

        assert len(raised.value.message) < 2 * bundle.SAID_BYTES_MAX

    def test_an_app_that_hangs_is_ended_with_all_its_processes(
        self, app_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bundle, "IMPORT_CHECK_TIMEOUT_S", 2.0)
        held = tmp_path / "held"
        os.mkfifo(held)
        hanging = f"""
            import subprocess
            with open({str(held)!r}, "w") as file:
                subprocess.Popen(["sleep", "1000"], stdout=file).wait()
        """
        folder = app_folder(files={"client.py": hanging})
        reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)

        with pytest.raises(bundle.AppError, match="took more than 2 s to import"):
            bundle.check_imports(bundle.load(folder))

        os.set_blocking(reader, True)
        assert os.read(reader, 1) == b""  # comes when nobody holds the other end any more
        os.close(reader)

    def test_the_app_folder_stays_as_it_is(
        self, app_folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        folder = app_folder(
            files={"package/__init__.py": "", "client.py": "import package\napp = print"}
        )
        before = tree(folder)

        app = bundle.load(folder)
        bundle.check_imports(app)
        bundle.build(app)

        assert tree(folder) == before


class TestBuiltIn:
    def test_the_built_in_app_loads_imports_and_builds(self) -> None:
        app = bundle.built_in("image-classification")
        bundle.check_imports(app)

        built = bundle.build(app)

        assert built.managed
        assert built.run_config["local-epochs"] == 5
        assert bundle.unpack(built.fab) == built

    def test_an_unknown_use_case_names_those_that_are_known(self) -> None:
        with pytest.raises(bundle.AppError, match="use case 'telepathy'") as raised:
            bundle.built_in("telepathy")
        assert "image-classification" in (raised.value.hint or "")
