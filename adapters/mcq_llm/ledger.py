"""Measurements by name that survive an interruption: a file of JSON lines, each written when it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcq.errors import InputError


class Ledger:
    """What was measured so far, in memory or also in a file.

    Parameters
    ----------
    path : Path or None
        A file whose measurements of the same `identity` are taken over.
    identity : mapping of str to str
        All that decides what is measured. A file of another identity is written anew.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, str]) -> None:
        self.identity, self._path, self._found = identity, path, dict[str, Any]()
        head = json.dumps({"identity": dict(identity)}, sort_keys=True)
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                try:
                    self._found.update(json.loads(line))
                except ValueError:  # cut off
                    continue
        lines = [head, *(json.dumps({name: value}) for name, value in self._found.items())]
        self._write("w", "".join(f"{line}\n" for line in lines))

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._found[name] = value
        self._write("a", json.dumps({name: value}) + "\n")

    def _write(self, mode: str, text: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; name another folder") from None
