"""Resampling of images with `jax.image`'s names. It loads when it is first used."""

from infini.image.resizing import (
    ResizeMethod as ResizeMethod,
    resize as resize,
    scale_and_translate as scale_and_translate,
)
