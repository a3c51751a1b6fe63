"""Models from hubs: what they offer, how they are fetched, and where they lie on this machine.

`pull` fetches a repository of Hugging Face or ModelScope into the local store, `find` says where a model is.
Nothing is run of what a repository holds, and files with pickles in them are not fetched. The library `httpx`
loads when something is fetched.
"""

from infini.llm.hub.names import Name, parse
from infini.llm.hub.pulling import Progress, pull
from infini.llm.hub.store import Model, find, models, place_of, remove, root

__all__ = ["Model", "Name", "Progress", "find", "models", "parse", "place_of", "pull", "remove", "root"]
