"""The updates of a round, on disk until the last has come: the server's memory holds one at a time."""

import os
from dataclasses import replace
from typing import IO

import numpy as np

from fedsdr.messages.wire import CONTROL_VARIATES
from fedsdr.server.validate import Update


class Spool:
    """Updates in a file, to be read in any order."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin with an empty file.

        Args:
            file: A temporary one without a name, which the system removes with the process, even when that
                is killed.
        """
        self._file = file
        self._places: dict[str, tuple[int, Update, tuple[str, ...]]] = {}

    def add(self, update: Update) -> None:
        """Write an update to the end of the file; all but its arrays stays in memory."""
        arrays = dict(update.arrays)
        if update.control_variates is not None:
            arrays[CONTROL_VARIATES] = update.control_variates
        light = replace(update, arrays={}, control_variates=None)
        self._places[update.client] = self._file.seek(0, os.SEEK_END), light, tuple(arrays)
        for array in arrays.values():
            np.save(self._file, array)

    def read(self, client: str) -> Update:
        """Read a client's update; its arrays are those that were added, to the bit."""
        place, light, keys = self._places[client]
        self._file.seek(place)
        arrays = {key: np.load(self._file) for key in keys}
        control_variates = arrays.pop(CONTROL_VARIATES, None)
        return replace(light, arrays=arrays, control_variates=control_variates)
