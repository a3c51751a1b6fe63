"""Several tokens in one step of a large model: something cheap guesses them, the large model checks.

Run: python examples/speculative.py MODEL --draft SMALL. Both are folders or GGUF files whose vocabularies are
equal. Without --draft guesses are what the text itself said before, which costs nothing and helps where an
answer repeats its prompt. Either way the answers are those of the large model.
"""

import argparse
import time

from infini.llm import LLM, SamplingParams

PROMPTS = ["Say it again: one two three four five six. One two", "The capital of France is", "def add(a, b):"]


def run(model, prompts, params, **options):
    """Answers, and how many steps of the model and seconds they took."""
    engine = LLM(model, **options)
    start = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    seconds, stats = time.perf_counter() - start, engine.stats()
    engine.close()
    return [output.outputs[0].text for output in outputs], stats, seconds


def main(model, draft=None, count=4, max_tokens=48, prompts=PROMPTS, **options):
    # Greedy, so that answers can be compared. A request with a seed gets the same answer, too; any other
    # keeps the distribution of the large model: guesses are kept by rejection sampling.
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    guessing = {"method": "draft_model", "model": draft} if draft else {"method": "ngram"}
    guessing |= {"num_speculative_tokens": count}

    plain, before, plain_s = run(model, prompts, params, **options)
    guessed, after, guessed_s = run(model, prompts, params, speculative_config=guessing, **options)
    print(f"alone:        {before.num_steps} steps of the model, {plain_s:.2f} s")
    print(f"with guesses: {after.num_steps} steps of the model, {guessed_s:.2f} s")
    print(f"{after.spec_num_accepted_tokens} of {after.spec_num_draft_tokens} guesses were right")
    for place, accepted in enumerate(after.spec_accepted_per_position, 1):
        print(f"  guess {place}: {accepted / after.spec_num_drafts:.0%}")
    print(f"{sum(a == b for a, b in zip(plain, guessed, strict=True))} of {len(prompts)} answers are equal")
    return plain, guessed, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder or a GGUF file")
    parser.add_argument("--draft", help="a smaller model with the same vocabulary")
    parser.add_argument("--count", type=int, default=4, help="guesses in a step")
    parser.add_argument("--max-tokens", type=int, default=48)
    given = parser.parse_args()
    main(given.model, given.draft, given.count, given.max_tokens)
