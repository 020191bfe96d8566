"""Where the windows of convolutions and poolings lie on a map, and what they read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..engine.backend import Array, namespace
from ..engine.threads import scratch
from .layer import Shape, are_positive, each, is_positive, shortest


class Span(NamedTuple):
    """Which of `count` windows in a row read on the map, and what: slices, perhaps empty ones."""

    windows: slice
    read: slice
    count: int

    @property
    def whole(self) -> bool:
        """Return whether all windows read on the map."""
        return self.windows == slice(0, self.count)

    @property
    def outside(self) -> list[slice]:
        """Return which windows do not read on the map, before and after those that do."""
        ends = (0, self.windows.start), (self.windows.stop, self.count)
        return [slice(*some) for some in ends if some[0] < some[1]]


def on_map(length: int, start: int, step: int, count: int) -> Span:
    """Return what is on a map of so many entries where window p reads entry start + p * step."""
    first = min(count, max(0, -(start // step)))
    stop = max(first, min(count, (length - 1 - start) // step + 1))
    if first == stop:
        return Span(slice(first, first), slice(0, 0), count)
    return Span(
        slice(first, stop), slice(start + first * step, start + (stop - 1) * step + 1, step), count
    )


class Grid(NamedTuple):
    """Windows of `size` taps: in each direction tap k reads p * stride + k * dilation - before.

    p counts the positions of the output. `before` and `after` are how many zeros are around a map;
    where they are negative, so many entries are left out instead.
    """

    map_shape: Shape
    output_shape: Shape
    size: Shape
    stride: Shape
    before: Shape
    after: Shape
    dilation: Shape

    @classmethod
    def of(
        cls,
        map_shape: Shape,
        size: object,
        stride: object = 1,
        padding: object = "same",
        dilation: object = 1,
        ceil: bool = False,
    ) -> Grid:
        """Return the windows with these options, each one number or one for each direction.

        Padding is a number, or numbers, or pairs (before, after), or "valid" for none, or "same":
        dilation * (size - 1) in all, the odd one after. With `ceil` a last window may reach out of
        the padding. Raises ValueError for other options, also those of other directions, and for
        maps that no window fits on.
        """
        d, (size, stride, dilation) = len(map_shape), map(shortest, (size, stride, dilation))
        for name, counts in {"size": size, "stride": stride, "dilation": dilation}.items():
            if not are_positive(counts):
                raise ValueError(f"expected a {name} of 1 or more, got {counts!r}")
        padding = usual_padding(size, padding, dilation)
        if not is_padding(padding):
            raise ValueError(
                f'expected padding "same", "valid", or whole numbers of 0 or more, got {padding!r}'
            )
        size, stride = each("size", size, d), each("stride", stride, d)
        dilation = each("dilation", dilation, d)
        before, after = (tuple(side) for side in zip(*_pairs(size, padding, dilation), strict=True))
        output = []
        for n, k, s, low, high, step in zip(
            map_shape, size, stride, before, after, dilation, strict=True
        ):
            free = n + low + high - step * (k - 1) - 1
            if free < 0:
                span, padded = step * (k - 1) + 1, n + low + high
                raise ValueError(f"expected maps of {span} or more, padding included, got {padded}")
            count = free // s + 1
            if ceil and free % s and count * s < n + low:  # it starts on the map, or before it
                count += 1
            output.append(count)
        return cls(tuple(map_shape), tuple(output), size, stride, before, after, dilation)

    @property
    def transposed(self) -> Grid:
        """Return the windows of the transposed convolution, where the stride is 1."""
        around = [k * (n - 1) for k, n in zip(self.dilation, self.size, strict=True)]
        before, after = (
            tuple(total - n for total, n in zip(around, side, strict=True))
            for side in (self.before, self.after)
        )
        return self._replace(
            map_shape=self.output_shape, output_shape=self.map_shape, before=before, after=after
        )

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Return (before, after) in each direction."""
        return tuple(zip(self.before, self.after, strict=True))

    def details(self, padding: object) -> str:
        """Return in words the options that are not the usual ones; `padding` is usual here."""
        found = {"stride": shortest(self.stride)}
        found["padding"] = usual_padding(self.size, self.padding, self.dilation)
        found["dilation"] = shortest(self.dilation)
        usual = {"stride": 1, "padding": padding, "dilation": 1}
        return "".join(f", {name} {some}" for name, some in found.items() if some != usual[name])

    @property
    def taps(self) -> tuple[slice, ...]:
        """Return the box of all taps."""
        return tuple(slice(0, n) for n in self.size)

    @property
    def tiles(self) -> bool:
        """Return whether each entry is read once: the windows are the map, cut up."""
        return all(
            count * k == n and low == 0 and (s == k or count == 1) and (step == 1 or k == 1)
            for n, count, k, s, low, _, step in zip(*self, strict=True)
        )

    @property
    def overlap(self) -> int:
        """Return how many windows read an entry at most."""
        return math.prod(
            min(k, n) if step > 1 else min(-(-k // s), n)
            for k, n, s, step in zip(
                self.size, self.output_shape, self.stride, self.dilation, strict=True
            )
        )

    def read(self, images: Array, fill: float = 0) -> Array:
        """Return what all taps read of images (C, *map_shape, N), as a view (*taps, C, *output, N).

        In the padding they read `fill`. The view is valid until this thread asks for the next one.
        """
        return self._moved(self._padded(images, self._reach(), fill))

    def zeros(self, like: Array, channels: int, samples: int) -> tuple[Array, Array]:
        """Return zeros for padded images, and the view of them that `read` would return."""
        lengths = [high - low for low, high in self._reach()]
        padded = namespace(like).zeros((channels, *lengths, samples), dtype=like.dtype)
        return padded, self._moved(padded)

    def inner(self, padded: Array) -> Array:
        """Return the images (C, *map_shape, N) that are inside the padded ones of `zeros`."""
        spans, lengths = self._reach(), self.map_shape
        inside = [
            slice(max(0, -low), min(high, n) - low)
            for (low, high), n in zip(spans, lengths, strict=True)
        ]
        found = padded[(slice(None), *inside)]
        if found.shape[1:-1] == self.map_shape:
            return namespace(padded).ascontiguousarray(found)
        xp, every = namespace(padded), slice(None)
        images = xp.zeros((len(padded), *lengths, padded.shape[-1]), dtype=padded.dtype)
        places = (
            slice(max(0, low), max(0, low, min(high, n)))
            for (low, high), n in zip(spans, lengths, strict=True)
        )
        images[(every, *places)] = found
        return images

    def reduced(self, images: Array, operation: Callable, fill: float) -> Array:
        """Return sums or maxima over windows of images (C, *map_shape, N), (C, *output, N).

        `operation` is add or maximum, direction by direction; in the padding is `fill`.
        """
        xp, found = namespace(images), images
        for axis, count in enumerate(self.output_shape):
            lines = sorted(self._lines(axis), key=lambda line: line[2], reverse=True)
            (_, first, most), *others = lines  # most of the windows read on the map
            if most == count:
                total = xp.array(found[first], order="C")
            else:
                shape = (*found.shape[: axis + 1], count, *found.shape[axis + 2 :])
                total, others = xp.full(shape, fill, dtype=found.dtype), lines
            for windows, read, _ in others:
                part = total[windows]
                operation(part, found[read], out=part)
            found = total
        return found

    def spread(self, values: Array) -> Array:
        """Return images (C, *map_shape, N) of the sums of the values of all windows there."""
        for axis in reversed(range(len(self.size))):
            shape = (*values.shape[: axis + 1], self.map_shape[axis], *values.shape[axis + 2 :])
            wider = namespace(values).zeros(shape, dtype=values.dtype)
            for windows, read, _ in self._lines(axis):
                wider[read] += values[windows]
            values = wider
        return values

    def _lines(self, axis: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], int]]:
        """Yield for each tap along a direction the windows that read on the map, what, how many."""
        before = (slice(None),) * (axis + 1)
        for windows, read, _ in self.spans(axis, self.taps[axis]):
            if windows.start < windows.stop:
                yield (*before, windows), (*before, read), windows.stop - windows.start

    def spans(self, axis: int, taps: slice) -> list[Span]:
        """Return where each of some taps reads along a direction."""
        n, count, _, s, low, _, step = (sides[axis] for sides in self)
        return [on_map(n, k * step - low, s, count) for k in range(taps.start, taps.stop)]

    def flat_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return starts (P,) and steps (K,): tap k reads the entry starts[p] + steps[k] of a map.

        For what is on the map; entries are numbered row by row.
        """
        whole = np.append(np.cumprod(self.map_shape[:0:-1], dtype=int)[::-1], 1)
        starts, steps = np.zeros(1, dtype=int), np.zeros(1, dtype=int)
        for count, k, s, low, step, n in zip(
            self.output_shape,
            self.size,
            self.stride,
            self.before,
            self.dilation,
            whole,
            strict=True,
        ):
            starts = np.add.outer(starts, n * (np.arange(count) * s - low)).ravel()
            steps = np.add.outer(steps, n * (np.arange(k) * step)).ravel()
        return starts, steps

    def neighbours(self) -> np.ndarray:
        """Return (P, K): the position that tap k reads at position p, -1 in the padding."""
        outputs = np.arange(math.prod(self.output_shape))
        positions = np.stack(np.unravel_index(outputs, self.output_shape))
        taps = np.stack(np.unravel_index(np.arange(math.prod(self.size)), self.size))
        stride, dilation, before, lengths = (
            np.array(v)[:, None, None]
            for v in (self.stride, self.dilation, self.before, self.map_shape)
        )
        read = stride * positions[:, :, None] + dilation * taps[:, None, :] - before
        inside = ((read >= 0) & (read < lengths)).all(axis=0)
        flat = np.ravel_multi_index(tuple(np.where(inside, read, 0)), self.map_shape)
        return np.where(inside, flat, -1)

    def _reach(self) -> list[tuple[int, int]]:
        """Return the first entry that is read in each direction, and the one after the last."""
        return [
            (-low, (count - 1) * s + (k - 1) * step + 1 - low)
            for _, count, k, s, low, _, step in zip(*self, strict=True)
        ]

    def _moved(self, padded: Array) -> Array:
        """Return what is read of padded images."""
        channel, *steps, sample = padded.strides
        apart = (k * step for k, step in zip(self.dilation, steps, strict=True))
        return namespace(padded).lib.stride_tricks.as_strided(
            padded,
            (*self.size, len(padded), *self.output_shape, padded.shape[-1]),
            (*apart, channel, *(s * n for s, n in zip(self.stride, steps, strict=True)), sample),
        )

    def _padded(self, images: Array, spans: list[tuple[int, int]], fill: float) -> Array:
        """Return the images with what is around them: what lies in the spans."""
        source = [
            slice(min(max(0, low), n), min(max(low, high, 0), n))
            for (low, high), n in zip(spans, self.map_shape, strict=True)
        ]
        if all((some.start, some.stop) == span for some, span in zip(source, spans, strict=True)):
            return images[(slice(None), *source)]
        lengths = [high - low for low, high in spans]
        shape = (len(images), *lengths, images.shape[-1])
        own = images.dtype == object  # which no memory of bytes holds
        padded = (
            namespace(images).empty(shape, dtype=object)
            if own
            else scratch(shape, images, "padded")
        )
        inside = []
        for (low, high), some in zip(spans, source, strict=True):
            start = min(max(0, -low), high - low)
            inside.append(slice(start, start + some.stop - some.start))
        for axis, part in enumerate(inside):
            before = (slice(None),) * (axis + 1)
            padded[(*before, slice(0, part.start))] = fill
            padded[(*before, slice(part.stop, None))] = fill
        padded[(slice(None), *inside)] = images[(slice(None), *source)]
        return padded


def is_padding(padding: object) -> bool:
    """Return whether these are numbers of zeros, or in a tuple pairs of numbers, or "same"."""
    if not isinstance(padding, tuple):
        return padding == "same" or is_positive(padding, 0)
    return bool(padding) and all(
        is_positive(n, 0) or (isinstance(n, tuple) and len(n) == 2 and are_positive(n, 0))
        for n in padding
    )


def usual_padding(size: object, padding: object, dilation: object) -> object:
    """Return padding as "same" where it is that, "valid" as 0, and what is none as it is.

    >>> usual_padding(3, 1, 1), usual_padding((2, 3), ((0, 1), 1), 1), usual_padding(3, "valid", 1)
    ('same', 'same', 0)
    """
    padding = 0 if isinstance(padding, str) and padding == "valid" else shortest(padding)
    options = size, padding, dilation
    if not (is_padding(padding) and are_positive(size) and are_positive(dilation)):
        return padding
    counts = {len(option) for option in options if isinstance(option, tuple)} or {1}
    if len(counts) > 1:
        return padding
    sizes, dilations = (each("", option, *counts) for option in (size, dilation))
    given, same = (_pairs(sizes, some, dilations) for some in (padding, "same"))
    return "same" if given == same else padding


def _pairs(size: Shape, padding: object, dilation: Shape) -> list[tuple[int, int]]:
    """Return (before, after) in each direction."""
    if isinstance(padding, str):
        around = [k * (n - 1) for k, n in zip(dilation, size, strict=True)]
        return [(total // 2, total - total // 2) for total in around]
    sides = each("padding", padding, len(size))
    return [side if isinstance(side, tuple) else (side, side) for side in sides]
