"""Measurements by name that survive an interruption: a file of JSON lines, each written when it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcq.errors import InputError
from mcq_llm.checkpoint import digest


class Ledger:
    """What was measured so far, in memory or also in a file.

    Parameters
    ----------
    cache : Path or None
        Folder of measurements.
    kind : str
        Of what is measured.
    identity : mapping of str to str
        All that decides what is measured. Each has a file of its own, so that several runs may share a folder.
    """

    def __init__(self, cache: Path | None, kind: str, identity: Mapping[str, str]) -> None:
        self.identity, self._found = identity, dict[str, Any]()
        self._path = None if cache is None else cache / f"{kind}-{digest(identity)}.jsonl"
        text = self._path.read_text(encoding="utf-8") if self._path is not None and self._path.exists() else ""
        if not text:
            self._append(json.dumps({"identity": dict(identity)}) + "\n")
        elif not text.endswith("\n"):  # cut off
            self._append("\n")
        for line in text.splitlines()[1:]:
            try:
                self._found.update(json.loads(line))
            except ValueError:  # cut off
                continue

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._found[name] = value
        self._append(json.dumps({name: value}) + "\n")

    def _append(self, text: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; name another folder") from None
