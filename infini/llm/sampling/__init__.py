"""Choosing tokens: what a request may ask (`params`), arrays of a step (`state`), kernels, structured output
(`guided`), and speculation (`speculative`)."""

from infini.llm.sampling.features import Features as Features
from infini.llm.sampling.kernels import Sampled as Sampled
from infini.llm.sampling.limits import Limits as Limits
from infini.llm.sampling.params import (
    SamplingParams as SamplingParams,
    StructuredOutputsParams as StructuredOutputsParams,
)
from infini.llm.sampling.rows import Row as Row
from infini.llm.sampling.state import State as State
