"""What can be set in this app: one row per setting, read from a message and from its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onefed.apps.errors import SettingsError


@dataclass(frozen=True)
class Settings:
    """One run's settings, checked. The defaults stand in bundle/pyproject.toml too."""

    seed: int = 0
    """Start of all randomness: the first model, the shares of the nodes, the order of examples."""
    server_round: int = 0
    """The round that asks, from 1 on; 0 outside of any round."""
    local_epochs: int = 5
    """Passes over the node's examples in one round."""
    batch_size: int = 32
    """Examples in one step of gradient descent."""
    learning_rate: float = 0.3
    """Step length of gradient descent."""
    client_lr: float = 0.0
    """Step length that the strategy wants (FL_CLIENT_LR); 0 leaves it to ``learning_rate``."""
    proximal_mu: float = 0.0
    """Weight of FedProx's proximal term; 0 leaves it out."""
    partition: str = "iid"
    """How the built-in images are shared out: ``iid`` or ``dirichlet`` (label skew)."""
    dirichlet_alpha: float = 0.5
    """Concentration of the label skew: the smaller, the less alike the nodes."""

    @classmethod
    def read(cls, *sources: Mapping[str, object]) -> Settings:
        """Take each setting from the first source that has it; other keys are left alone.

        A key is the field's name with hyphens.
        """
        given: dict[str, object] = {}
        for source in reversed(sources):
            given.update(source)
        values: dict[str, object] = {}
        problems: list[str] = []
        for name, allowed in _ALLOWED.items():
            key = name.replace("_", "-")
            if key not in given:
                continue
            if allowed.accepts(given[key]):
                values[name] = given[key]
            else:
                problems.append(f"{key} must be {allowed}, not {given[key]!r}.")
        if problems:
            raise SettingsError(
                "\n".join(problems),
                hint="Correct the run configuration and start the run again.",
            )
        return cls(**values)  # type: ignore[arg-type]  # every value passed its row's check


@dataclass(frozen=True)
class _Range:
    kind: type[int] | type[float]
    least: float
    most: float

    def accepts(self, value: object) -> bool:
        return (
            isinstance(value, int if self.kind is int else int | float)
            and not isinstance(value, bool)
            and self.least <= value <= self.most
        )

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class _Choice:
    words: tuple[str, ...]

    def accepts(self, value: object) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return " or ".join(self.words)


_ALLOWED: dict[str, _Range | _Choice] = {
    "seed": _Range(int, 0, 2**63 - 1),
    "server_round": _Range(int, 0, 2**31 - 1),
    "local_epochs": _Range(int, 1, 1_000),
    "batch_size": _Range(int, 1, 1_000_000),
    "learning_rate": _Range(float, 1e-9, 1e3),
    "client_lr": _Range(float, 0, 1e3),
    "proximal_mu": _Range(float, 0, 1e9),
    "partition": _Choice(("iid", "dirichlet")),
    "dirichlet_alpha": _Range(float, 1e-3, 1e6),
}
