"""The updates of a round, on disk until the last one arrives: only one is in memory at a time."""

import os
from dataclasses import replace
from typing import IO

import numpy as np

from fedsdr.messages.wire import CONTROL_VARIATES
from fedsdr.server.validate import Update


class Spool:
    """Updates in a file, readable in any order."""

    def __init__(self, file: IO[bytes]) -> None:
        """Start with an empty file.

        Args:
            file: A temporary file without a name, which the system deletes with the process, even if that is
                killed.
        """
        self._file = file
        self._places: dict[str, tuple[int, Update, tuple[str, ...]]] = {}

    def add(self, update: Update) -> None:
        """Append an update to the file; everything except its arrays stays in memory."""
        arrays = dict(update.arrays)
        if update.control_variates is not None:
            arrays[CONTROL_VARIATES] = update.control_variates
        light = replace(update, arrays={}, control_variates=None)
        self._places[update.client] = self._file.seek(0, os.SEEK_END), light, tuple(arrays)
        for array in arrays.values():
            np.save(self._file, array)

    def read(self, client: str) -> Update:
        """Read a client's update; its arrays are bit-identical to the added ones."""
        place, light, keys = self._places[client]
        self._file.seek(place)
        arrays = {key: np.load(self._file) for key in keys}
        control_variates = arrays.pop(CONTROL_VARIATES, None)
        return replace(light, arrays=arrays, control_variates=control_variates)
