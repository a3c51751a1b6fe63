"""Discrete Fourier transforms with `jax.numpy.fft`'s names.

All are one operation, `lax.fft`, between moves of axes; on the CPU a library computes it, as
`python -m infini.backends --op fft` shows. float32 and float64 keep their precision.
"""

from infini.numpy.fft.frequencies import (
    fftfreq as fftfreq,
    fftshift as fftshift,
    ifftshift as ifftshift,
    rfftfreq as rfftfreq,
)
from infini.numpy.fft.one_axis import (
    fft as fft,
    hfft as hfft,
    ifft as ifft,
    ihfft as ihfft,
    irfft as irfft,
    rfft as rfft,
)
from infini.numpy.fft.several_axes import (
    fft2 as fft2,
    fftn as fftn,
    ifft2 as ifft2,
    ifftn as ifftn,
    irfft2 as irfft2,
    irfftn as irfftn,
    rfft2 as rfft2,
    rfftn as rfftn,
)
