"""Where results are: one file per run, written whole or not at all, so that an interrupted benchmark goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sglang_nightjar.errors import ConfigError


@dataclass(frozen=True)
class Store:
    """The folder of one benchmark."""

    folder: Path

    def open(self, conditions: dict[str, Any]) -> None:
        """Begin, or go on if ``conditions`` are those of the runs that are here. Raises ConfigError if they are not."""
        file = self.folder / "conditions.json"
        # As they will be read back: tuples become lists.
        conditions = orjson.loads(orjson.dumps(conditions))
        if file.exists():
            there = orjson.loads(file.read_bytes())
            different = [key for key in {**there, **conditions} if there.get(key) != conditions.get(key)]
            if different and any(self._files()):
                key = different[0]
                raise ConfigError(
                    f"{self.folder} holds runs with {key} = {there.get(key)!r}, and now it is {conditions.get(key)!r}: "
                    "runs under different conditions can't be compared. Name another --out, or delete that folder"
                )
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        write_whole(file, orjson.dumps(conditions, option=orjson.OPT_INDENT_2))

    def has(self, name: str) -> bool:
        return self._file(name).exists()

    def save(self, name: str, result: dict[str, Any]) -> None:
        write_whole(self._file(name), orjson.dumps(result))

    def set_aside(self, name: str) -> None:
        """Keep a run's file under another name, so that it is made again. It stays in ``runs`` for the record."""
        number = 1
        while (aside := self.folder / "runs" / f"{name}.aside{number}").exists():
            number += 1
        self._file(name).rename(aside)

    def set_aside_count(self) -> int:
        return len(list((self.folder / "runs").glob("*.aside*")))

    def all(self) -> Iterator[dict[str, Any]]:
        """Every result, by name."""
        for file in self._files():
            yield orjson.loads(file.read_bytes())

    def _files(self) -> list[Path]:
        return sorted((self.folder / "runs").glob("*.json"))

    def _file(self, name: str) -> Path:
        return self.folder / "runs" / f"{name}.json"


def write_whole(file: Path, data: bytes) -> None:
    """Write ``file``, or leave it as it was."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, file)
