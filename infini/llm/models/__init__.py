"""Models as pure functions of (params, cache, batch, config).

One decoder serves all families; what differs is data in `Config`, or a block in a family's file. `registry`
says which families there are, `infini.llm.checkpoints` reads their files.
"""

from infini.llm.models.batch import Batch as Batch, Rows as Rows, make as make_batch
from infini.llm.models.cache import bytes_per_token as cache_bytes_per_token, init as init_cache
from infini.llm.models.config import Config as Config
from infini.llm.models.decoder import forward as forward, logits as logits
from infini.llm.models.family import Family as Family
from infini.llm.models.registry import (
    config_from_json as config_from_json,
    family_named as family_named,
    family_of as family_of,
    register as register,
)
from infini.llm.models.weights import Weight as Weight

__all__ = [
    "Batch",
    "Config",
    "Family",
    "Rows",
    "Weight",
    "cache_bytes_per_token",
    "config_from_json",
    "family_named",
    "family_of",
    "forward",
    "init_cache",
    "logits",
    "make_batch",
    "register",
]
