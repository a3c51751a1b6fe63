"""Rows of the arrays that a loop over a mesh goes through: on the host, or where the arrays are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from infini.backends.spmd.direct import Column, Stacks
from infini.core.backend import Backend, Device
from infini.core.ir import ArrayType

Row: TypeAlias = Callable[[int], Column]


class Stack(Protocol):
    """Arrays that are made row by row, one per device."""

    def put(self, number: int, column: Column) -> None:
        """Write a row of each."""

    def made(self) -> Column:
        """The arrays."""


def rows(backend: Backend, column: Column, type_: ArrayType, devices: Sequence[Device]) -> Row:
    """A function from the number of a row to that row of each array, which are in memory of nobody's own.

    Args:
        backend: moves bytes.
        column: the arrays.
        type_: of an array.
        devices: where they are.
    """
    if isinstance(backend, Stacks):
        of_row = ArrayType(type_.shape[1:], type_.dtype)
        return lambda number: [backend.row(buffer, of_row, number) for buffer in column]
    hosts = [backend.get(buffer, type_) for buffer in column]
    pairs = list(zip(hosts, devices, strict=True))
    return lambda number: [backend.adopt(host[number, ...], device) for host, device in pairs]


def stack(backend: Backend, type_: ArrayType, length: int, devices: Sequence[Device]) -> Stack:
    """Arrays to be made of rows.

    Args:
        backend: moves bytes.
        type_: of a row.
        length: how many rows there are.
        devices: where the arrays will be.
    """
    made = _Here if isinstance(backend, Stacks) else _OnHost
    return made(backend, type_, length, devices)


class _OnHost:
    def __init__(self, backend: Backend, type_: ArrayType, length: int, devices: Sequence[Device]) -> None:
        self._backend, self._type, self._devices = backend, type_, devices
        self._hosts = [np.empty((length, *type_.shape), type_.dtype) for _ in devices]

    def put(self, number: int, column: Column) -> None:
        """By way of the host."""
        for host, buffer in zip(self._hosts, column, strict=True):
            host[number] = self._backend.get(buffer, self._type)

    def made(self) -> Column:
        """Buffers over the memory of the host where the devices can share it."""
        pairs = zip(self._hosts, self._devices, strict=True)
        return [self._backend.adopt(host, device) for host, device in pairs]


class _Here:
    def __init__(self, backend: Backend, type_: ArrayType, length: int, devices: Sequence[Device]) -> None:
        assert isinstance(backend, Stacks)
        self._backend, self._type = backend, type_
        whole = ArrayType((length, *type_.shape), type_.dtype)
        self._buffers = [backend.empty(whole, device) for device in devices]

    def put(self, number: int, column: Column) -> None:
        """On the devices."""
        for whole, row in zip(self._buffers, column, strict=True):
            self._backend.put_row(whole, self._type, number, row)

    def made(self) -> Column:
        """The buffers."""
        return self._buffers
