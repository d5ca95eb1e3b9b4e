"""The folder of a run: ``config.json``, ``log.jsonl``, ``last/``, ``best/``, ``evaluate/``,
``analyse/`` and perhaps ``baseline/``.

``baseline/`` is a whole run folder of its own, of the same network with the plain stem
and without what the preset adds to training.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from sturdy.recipes.errors import RecipeError, one_line
from sturdy.recipes.files import read_json, write_json
from sturdy.recipes.settings import Settings

FORMAT = 1


class RunFolder:
    """Paths and the configuration of a run; makes nothing by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        """Settings and data set of the run, JSON."""
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        """Events, JSON lines."""
        return self.path / "log.jsonl"

    @property
    def last(self) -> Path:
        """The newest checkpoint, from which a resume continues."""
        return self.path / "last"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the highest validation accuracy."""
        return self.path / "best"

    @property
    def evaluate(self) -> Path:
        """Results of ``sturdy evaluate``."""
        return self.path / "evaluate"

    @property
    def analyse(self) -> Path:
        """Results of ``sturdy analyse``."""
        return self.path / "analyse"

    @property
    def masks(self) -> Path:
        """Dominant frequency masks that the run trains with, if it does."""
        return self.path / "dfms.npz"

    @property
    def baseline(self) -> RunFolder:
        """The run of the same network with the plain stem, trained plainly."""
        return RunFolder(self.path / "baseline")

    def exists(self) -> bool:
        """True if a run was begun here."""
        return self.config.exists()

    def create(self, settings: Settings, data: dict[str, Any]) -> None:
        """Make the folder and write ``config.json``."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"cannot make {self.path}: {error.strerror or one_line(error)}") from None
        write_json(
            self.config,
            {
                "format": FORMAT,
                "versions": {name: _version(name) for name in ("sturdy-kernels", "torch", "torchvision")},
                "settings": settings.to_json(),
                "data": data,
            },
        )

    def read(self) -> tuple[Settings, dict[str, Any]]:
        """The settings and the description of the data set."""
        if not self.config.exists():
            raise RecipeError(f"{self.path} is not the folder of a run (it has no config.json)")
        config = read_json(self.config)
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise RecipeError(f"{self.config} is not of format {FORMAT}; was it written by another version?")
        try:
            return Settings.from_json(config["settings"], str(self.config)), dict(config["data"])
        except KeyError as error:
            raise RecipeError(f"{self.config} lacks {error}") from None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
