"""Index operations on packed gates: count, rank, select, compaction and back.

A packed gate is one bit per element in 32-bit words, bit ``i % 32`` (least significant first) of
word ``i // 32`` along the last axis. So the words are an index already: a population count per word
and its running sum say where the k-th open entry is, in a few operations per entry *found* instead
of several per element looked at. All functions here work under `jit` and `vmap`, with any leading
shape and any width.
"""

from jaxtrelu.bits.lists import compact, expand, rank, select
from jaxtrelu.bits.words import count, pack, transpose, unpack

__all__ = ["compact", "count", "expand", "pack", "rank", "select", "transpose", "unpack"]
