"""Rows of which each is made when it is asked for, and none is kept."""

from abc import abstractmethod
from collections.abc import Sequence
from operator import index
from typing import TypeVar, overload

T = TypeVar("T")


class MadeRows(Sequence[T]):
    """A sequence that knows how long it is and how one row is made; slices and places from the end follow."""

    @abstractmethod
    def made(self, row: int) -> T:
        """Return a row, counted from 0."""

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self.made(row) for row in range(*place.indices(len(self)))]
        return self.made(range(len(self))[index(place)])
