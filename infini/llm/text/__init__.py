"""Text and tokens: tokenizers of models, decoding of a stream, chat templates, and what models write in
formats of their own (tool calls, reasoning).

Works on strings and ids alone; nothing here knows arrays or devices. The libraries `tokenizers` and `jinja2`
load when they are first needed.
"""
