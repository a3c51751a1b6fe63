"""Measuring language models: the server by its clients, the engine alone, single steps, and what a model
knows.

Lines and JSON keys are those of vLLM's `bench`, llama.cpp's `llama-bench` and `llama-batched-bench`, so that
columns can be compared.
"""
