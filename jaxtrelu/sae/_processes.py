"""The processes of a training run, and what they tell each other."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
_SMALLEST = 1024  # bytes of a message; each length is a program


class Processes:
    """This process and the others, which make the same calls in the same order.

    Args:
      several: whether there may be others; False: this one is alone.

    Attributes:
      number: which one this is.
      count: how many there are.
    """

    def __init__(self, several: bool = False):
        self.count: int = jax.process_count() if several else 1
        self.number: int = jax.process_index() if several else 0

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.number == 0

    def exchange(self, value: Any) -> list[Any]:
        """The values of all processes, in their order: what JSON can hold, floats to the bit."""
        if self.count == 1:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.ravel(multihost_utils.process_allgather(np.array(len(text), np.int32)))
        padded = np.zeros(max(_SMALLEST, 1 << int(lengths.max() - 1).bit_length()), np.uint8)
        padded[: len(text)] = text
        texts = np.asarray(multihost_utils.process_allgather(padded))
        return [
            json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)
        ]

    def together(self, attempt: Callable[[], T]) -> T:
        """What an attempt gives here, once it has succeeded in every process.

        Raises where it fails in one of them, in every process, so that none is left waiting.
        """
        if self.count == 1:
            return attempt()
        try:
            result = attempt()
        except Exception:
            self.exchange(True)
            raise
        failed = self.exchange(False)
        if True in failed:
            raise ValueError(f"process {failed.index(True)} has stopped, and says why.")
        return result

    def agreed(self, attempt: Callable[[], object]) -> None:
        """What the first process is told to do, and the others wait for."""
        self.together(attempt if self.first else lambda: None)
