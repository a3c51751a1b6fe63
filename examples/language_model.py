"""The demo as code you can change: text, tokenizer, LLaMA, training, and a model that writes.

Run: python examples/language_model.py    (about two minutes; `infini train` is the grown-up version)

It learns from the sources of Python's standard library, which is on every machine that can run this.
"""

import functools
import time

import numpy as np

import infini as inf
from infini import optim, random, tree
from infini.data import batches, tokens
from infini.llm import LLM, SamplingParams
from infini.train import gpt, model_files

LENGTH = 256  # tokens the model sees at once


def main(steps=500, vocab_size=4096, paths=(), prompt="    def __init__(self, name", out="my-model", **sizes):
    # 1. Text becomes numbers. A tokenizer is trained on the text: frequent strings get a number of their own.
    #    The ids lie in a file that is mapped into memory; a few documents are held out to measure on.
    text = tokens.prepare(paths, vocab_size=vocab_size)
    print(f"{len(text.train):,} tokens to train on, {len(text.held_out):,} held out")

    # 2. The model is a pure function of parameters and tokens; `gpt.py` is 300 lines, and worth reading.
    config = gpt.Config(vocab_size=text.tokenizer.vocab_size, **sizes)
    params = inf.jit(functools.partial(gpt.init, config=config))(random.key(0))
    print(f"{sum(leaf.size for leaf in tree.leaves(params)) / 1e6:.1f} M parameters")

    # 3. The optimizer: clipped gradients, AdamW, a learning rate that rises and falls.
    rate = optim.warmup_cosine_decay_schedule(0.0, 1.5e-3, max(steps // 10, 1), steps, 1e-4)
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(rate, b2=0.95, weight_decay=0.1))
    state = optimizer.init(params)

    # 4. One step is one compiled program. Parameters and optimizer state are donated: updated in place.
    @functools.partial(inf.jit, donate_argnums=(0, 1))
    def step(params, state, windows):
        loss, gradients = inf.value_and_grad(gpt.loss)(params, windows, config)
        updates, state = optimizer.update(gradients, state, params)
        return optim.apply_updates(params, updates), state, loss

    measure = inf.jit(functools.partial(gpt.loss, config=config))
    held_out = batches.spaced_windows(text.held_out, count=16, length=min(LENGTH, config.max_length))

    def held_out_loss():
        return float(np.mean([float(measure(params, window[None])) for window in held_out]))

    # 5. The loop. The batch of a step depends on nothing but its number, so a run can be repeated.
    before = held_out_loss()
    data = batches.Batches(text.train, batch_size=4, length=held_out.shape[1] - 1)
    for number in range(steps):
        params, state, loss = step(params, state, data.at(number))
        if (number + 1) % max(steps // 10, 1) == 0:
            print(f"step {number + 1:5}  loss {float(loss):.3f}")
    after = held_out_loss()
    entropy = batches.unigram_entropy(text.held_out)
    print(f"held-out loss {before:.3f} -> {after:.3f}; knowing only how frequent tokens are: {entropy:.3f}")

    # 6. A model folder that transformers and others read, and back from there into an engine.
    model_files.save(out, model_files.Model(config, params, text.tokenizer))
    engine = LLM(out, max_num_seqs=1, enforce_eager=True)

    # 7. Let it write: the prompt is read once, then a compiled step adds one token after the other.
    settings = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=100)
    print(prompt, end="")
    start, count = time.perf_counter(), 0
    for part in engine.stream(prompt, settings):
        count += len(part.outputs[0].token_ids)
        print(part.outputs[0].text, end="", flush=True)
    print(f"\n{count / (time.perf_counter() - start):,.0f} tokens/s, compilation included")
    return before, after


if __name__ == "__main__":
    main()
