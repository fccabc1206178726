"""The work loads in JAX: a jitted step with optax' `multi_transform`, an Adam with its own rate for every label."""

# pyright: reportMissingImports=false
# It runs in an environment of its own.

import jax
import jax.numpy as jnp
import numpy as np
import optax
from serving import cuts, serve, wanted

random = np.random.default_rng(0)


def dense(inputs: int, outputs: int) -> dict:
    limit = (6 / (inputs + outputs)) ** 0.5
    return {"kernel": jnp.asarray(random.uniform(-limit, limit, (inputs, outputs)), "float32"), "bias": zeros(outputs)}


def norm(width: int) -> dict:
    return {"gamma": jnp.ones(width, "float32"), "beta": zeros(width)}


def zeros(*shape: int):
    return jnp.zeros(shape, "float32")


def normal(*shape: int):
    return jnp.asarray(random.standard_normal(shape), "float32")


def apply_dense(p: dict, x):
    return x @ p["kernel"] + p["bias"]


def apply_norm(p: dict, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * p["gamma"] + p["beta"]


def small_layers():
    layers = [dense(64, 64) for _ in range(100)]

    def call(layers, x):
        for layer in layers[:-1]:
            x = jax.nn.relu(apply_dense(layer, x))
        return apply_dense(layers[-1], x)

    return layers, call, (normal(32, 64), normal(32, 64))


def transformer():
    width, heads = 384, 12
    names = ("query", "key", "value", "out")

    def block() -> list:
        made = [*({name: dense(width, width) for name in names}.values()), norm(width)]
        return [*made, dense(width, 1536), dense(1536, width), norm(width)]

    layers = [{"table": normal(30522, width) * 0.05}, norm(width)]
    layers += [part for _ in range(6) for part in block()] + [dense(width, 1)]

    def attend(query, key, value, out, x):
        batch, length, _ = x.shape
        q, k, v = (apply_dense(p, x).reshape(batch, length, heads, width // heads) for p in (query, key, value))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5)
        return apply_dense(out, jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width))

    def call(layers, x):
        x = apply_norm(layers[1], layers[0]["table"][x])
        for at in range(2, len(layers) - 1, 8):
            query, key, value, out, first_norm, up, down, last_norm = layers[at : at + 8]
            x = apply_norm(first_norm, x + attend(query, key, value, out, x))
            x = apply_norm(last_norm, x + apply_dense(down, jax.nn.gelu(apply_dense(up, x), approximate=False)))
        return apply_dense(layers[-1], x.mean(1))

    return layers, call, (jnp.asarray(random.integers(0, 30522, (16, 64))), normal(16, 1))


WORKLOADS = {"small layers": small_layers, "transformer": transformer}


def labels(layers: list, groups: int) -> list:
    """Names a group for every parameter; cuts between layers, or if these are too few between parameters."""
    if groups <= len(layers):
        of_layer = [str(group) for group, cut in enumerate(cuts(len(layers), groups)) for _ in cut]
        return [dict.fromkeys(layer, label) for layer, label in zip(layers, of_layer, strict=True)]
    leaves, tree = jax.tree_util.tree_flatten(layers)
    groups = min(groups, len(leaves))
    of_leaf = [str(group) for group, cut in enumerate(cuts(len(leaves), groups)) for _ in cut]
    return jax.tree_util.tree_unflatten(tree, of_leaf)


def main() -> None:
    name, _, groups = wanted()
    layers, call, batch = WORKLOADS[name]()
    labelled = labels(layers, groups)
    numbers = sorted({int(label) for label in jax.tree_util.tree_leaves(labelled)})
    optimizer = optax.multi_transform({str(i): optax.adam(1e-4 * 0.99**i) for i in numbers}, labelled)

    def step(parameters, state, x, y):
        gradients = jax.grad(lambda p: ((call(p, x) - y) ** 2).mean())(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    held = [layers, optimizer.init(layers)]

    def one_step() -> None:
        held[:] = compiled(*held, *batch)

    serve(one_step, lambda: jax.block_until_ready(held))


main()
