"""A transformer block in bfloat16 with a cache: prefill, decode by scan, and the gradient of the block."""

import jax
import jax.numpy as jnp
from jax import lax, nn, random

HEADS, WIDTH = 4, 32


def normed(x, scale):
    x = x.astype(jnp.float32)
    return (x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale).astype(jnp.bfloat16)


def rotate(x, position):
    half = x.shape[-1] // 2
    frequency = 1.0 / (10000.0 ** (jnp.arange(half) / half))
    angle = position[:, None] * frequency
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def block(params, x, cache, start):
    h = normed(x, params["norm"])
    q, k, v = (jnp.einsum("td,dhk->thk", h, params[name].astype(jnp.bfloat16)) for name in ("q", "k", "v"))
    position = start + jnp.arange(x.shape[0])
    q, k = rotate(q, position), rotate(k, position)
    keys = lax.dynamic_update_slice(cache[0], k, (start, 0, 0))
    values = lax.dynamic_update_slice(cache[1], v, (start, 0, 0))
    scores = jnp.einsum("qhk,shk->hqs", q, keys, preferred_element_type=jnp.float32) / jnp.sqrt(q.shape[-1])
    mask = position[:, None] >= jnp.arange(keys.shape[0])[None]
    weights = nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(jnp.bfloat16)
    mixed = jnp.einsum("hqs,shk,hkd->qd", weights, values, params["o"].astype(jnp.bfloat16))
    return x + mixed, (keys, values)


def main():
    keys = random.split(random.key(5), 6)
    size = WIDTH // HEADS
    params = {n: random.normal(k, (WIDTH, HEADS, size)) * 0.2 for n, k in zip("qkv", keys, strict=False)}
    params["o"] = random.normal(keys[3], (HEADS, size, WIDTH)) * 0.2
    params["norm"] = jnp.ones(WIDTH)
    x = random.normal(keys[4], (12, WIDTH), dtype=jnp.bfloat16)
    empty = (jnp.zeros((16, HEADS, size), jnp.bfloat16),) * 2
    whole, cache = jax.jit(block, static_argnums=3)(params, x, empty, 0)

    def decode(carry, row):
        cache, place = carry
        y, cache = block(params, row[None], cache, place)
        return (cache, place + 1), y[0]

    (stepped, _), rows = lax.scan(decode, (empty, 0), x)
    gradient = jax.grad(lambda p: jnp.sum(block(p, x, empty, 0)[0].astype(jnp.float32) ** 2))(params)
    return {
        "whole": whole.astype(jnp.float32),
        "rows": rows.astype(jnp.float32),
        "cache": cache[0].astype(jnp.float32),
        "stepped": stepped[1].astype(jnp.float32),
        "norm": jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g * g)), gradient),
    }
