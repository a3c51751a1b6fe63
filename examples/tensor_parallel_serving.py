"""One model on several processes, each with a part of every layer, answering many at once.

Run: mpirun -n 2 python examples/tensor_parallel_serving.py MODEL; without mpirun one process has all of it.
As a server that is: mpirun -n 2 infini serve MODEL --tp 2
"""

import argparse
import asyncio
import os

from infini import parallel
from infini.llm import AsyncLLM, SamplingParams

PROMPTS = ["Once upon a time", "The capital of France is", "def fibonacci(n):", "In the beginning"]


async def answer(engine, prompt, params):
    """One answer, as it comes; others are computed in the same steps."""
    stream = engine.generate(prompt, params, output_kind="delta")
    pieces = [output.outputs[0].text async for output in stream]
    print(f"{prompt!r} goes on in {len(pieces)} pieces: {''.join(pieces)!r}")
    return "".join(pieces)


async def answer_all(engine, prompts, params):
    texts = await asyncio.gather(*(answer(engine, prompt, params) for prompt in prompts))
    stats = engine.stats()
    print(f"{stats.generation_tokens} tokens in {stats.num_steps} steps")
    await engine.shutdown()
    return texts


def main(model, max_tokens=32, prompts=PROMPTS, **options):
    # Process 0 schedules and samples. The others end in this line when process 0 has shut its engine down.
    engine = AsyncLLM(model, tensor_parallel_size=parallel.process_count(), **options)
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=max_tokens)
    return asyncio.run(answer_all(engine, prompts, params))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder or a GGUF file")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--expert-parallel", action="store_true", help="divide experts by their number")
    given = parser.parse_args()
    if "PMI_SIZE" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ:  # under mpirun
        parallel.initialize()
    main(given.model, given.max_tokens, enable_expert_parallel=given.expert_parallel)
