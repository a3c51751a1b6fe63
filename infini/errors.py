"""Errors for users, under the names of `infini` and of `jax.errors`. All derive from `InfiniError`.

Each also derives from the built-in exception that JAX raises in the same place.
"""

from infini.core.errors import (
    BufferExchangeError as BufferExchangeError,
    CheckError as CheckError,
    CollectiveError as CollectiveError,
    ConcretizationError as ConcretizationError,
    DeletedBufferError as DeletedBufferError,
    DeviceError as DeviceError,
    DonationError as DonationError,
    IndexOutOfRangeError as IndexOutOfRangeError,
    InfiniError as InfiniError,
    InfiniWarning as InfiniWarning,
    KeyReuseError as KeyReuseError,
    LeakedTracerError as LeakedTracerError,
    LoweringError as LoweringError,
    MissingRuleError as MissingRuleError,
    NonConcreteBooleanIndexError as NonConcreteBooleanIndexError,
    NotFiniteError as NotFiniteError,
    OutOfMemoryError as OutOfMemoryError,
    OutOfRangeError as OutOfRangeError,
    ParseError as ParseError,
    PromotionError as PromotionError,
    TracerArrayConversionError as TracerArrayConversionError,
    TracerBoolConversionError as TracerBoolConversionError,
    TracerIntegerConversionError as TracerIntegerConversionError,
    TypeMismatchError as TypeMismatchError,
    ValueMismatchError as ValueMismatchError,
)

ConcretizationTypeError = ConcretizationError
JAXIndexError = IndexOutOfRangeError
JAXTypeError = TypeMismatchError
UnexpectedTracerError = LeakedTracerError
