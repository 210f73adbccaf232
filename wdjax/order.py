"""The order in which an epoch visits the examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def random_order(
    key: Array, num_rows: int, num_examples: int | Array | None = None
) -> Int[Array, " row"]:
    """A random order of `range(num_rows)` that begins with that of the first `num_examples` alone.

        random_order(key, m, n)[:n] = random_order(key, n),   1 <= n <= m, then n, n + 1, ..., m - 1

    Equal keys give equal orders. Row i has a random number of its own, which depends on the key
    and i only, and the rows are sorted by it; those beyond `num_examples` (default: none) go last.
    That holds in each of JAX's random number settings: a key of another kind than threefry seeds
    one, and threefry's numbers are those of `jax_threefry_partitionable=True`.

    Up to 4,096 rows the number has 20 bits, the index below them breaks ties (of 1,150 rows 0.6
    pairs are expected to keep their order for that reason, of 4,096 eight); beyond it has 64.
    """
    num_examples = num_rows if num_examples is None else num_examples
    if jax.random.key_impl(key) != "threefry2x32":
        seed = jax.random.bits(key, (2,), jnp.uint32)
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    with jax.threefry_partitionable(True):
        bits = jax.random.bits(key, (num_rows,), jnp.uint32)
        lower = None
        if num_rows > _FEW_ROWS:
            lower = jax.random.bits(jax.random.fold_in(key, 1), (num_rows,), jnp.uint32)
    index = jnp.arange(num_rows, dtype=jnp.uint32)
    low, highest = jnp.uint32(_FEW_ROWS - 1), jnp.uint32(2**32 - 1)
    active = index < num_examples
    if lower is None:
        # `jax.random.permutation` sorts pairs, which took XLA on a CPU a quarter of a small run.
        # One array sorts several times as fast: each index rides in the low bits of its number.
        # Nothing is equal here, so a stable sort gives no other order. On a CPU it is the one that
        # merges, which takes two thirds of the time of the other.
        numbers = jnp.where(active, bits, highest) & ~low | index
        return (jax.lax.sort(numbers, is_stable=True) & low).astype(jnp.int32)
    # Few rows that are padded to many are ordered as they are alone.
    few = jnp.asarray(num_examples) <= _FEW_ROWS
    upper = jnp.where(few, bits & ~low, bits)
    lower = jnp.where(few, 0, lower)
    keys = tuple(jnp.where(active, word, highest) for word in (upper, lower))
    return jax.lax.sort((*keys, index.astype(jnp.int32)), num_keys=2, is_stable=True)[2]


_FEW_ROWS = 2**12
