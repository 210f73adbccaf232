"""A matrix product and a rectifier whose gradients are fast on a CPU."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jaxtyping import Array, Num

FITS_CACHE = 2**17
"""Numbers in an operand that is transposed ahead of its product; a larger one is left alone."""

DERIVATIVE = "derivative_of_relu"
"""What the derivative of `relu` is called in a traced program."""


@jax.custom_jvp
def relu(inputs: Num[Array | np.ndarray, "..."]) -> Array:
    """`max(x, 0)`, elementwise, with derivative `sign(max(x, 0))`: 1 above zero, else 0.

    `jax.nn.relu` selects between the cotangent and zero. A CPU's compiler makes of that a store
    under a mask, which took a twentieth of a small network's step on an AMD processor. A product
    with 0 or 1 gives the same numbers, unless the cotangent is not finite: then it is NaN also
    where the unit is off.
    """
    return jnp.maximum(inputs, 0)


@relu.defjvp
def _relu_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    out = relu(*primals)
    # Not `out > 0`, cast: XLA would turn that product back into the choice. The name tells this
    # sign from one that the run itself takes.
    with jax.named_scope(DERIVATIVE):
        return out, tangents[0] * lax.sign(out)


def dot_general(
    inputs: Num[Array | np.ndarray, "..."],
    kernel: Num[Array | np.ndarray, "..."],
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """`lax.dot_general`, by `product` on a CPU where it is a layer's `inputs @ kernel`.

    Pass it to flax as the argument `dot_general` of `nn.Dense`. Other platforms get
    `lax.dot_general`, chosen at lowering, and so does any other contraction.
    """
    how = (("precision", precision), ("preferred_element_type", preferred_element_type))
    plain = functools.partial(lax.dot_general, dimension_numbers=dimension_numbers, **dict(how))
    (left, right), together = dimension_numbers
    of_layer = (*left,) == (inputs.ndim - 1,) and (*right,) == (0,) and not any(map(len, together))
    if kernel.ndim != 2 or not of_layer:
        return plain(inputs, kernel)

    def by_rows(inputs, kernel):
        *batch, features = inputs.shape
        out = product(inputs.reshape(math.prod(batch), features), kernel, how)
        return out.reshape(*batch, kernel.shape[1])

    return lax.platform_dependent(inputs, kernel, cpu=by_rows, default=plain)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def product(
    inputs: Num[Array, "row feature"],
    kernel: Num[Array, "feature output"],
    how: tuple[tuple[str, Any], ...] = (),
) -> Array:
    """`inputs @ kernel` whose gradient in the kernel, `inputs.T @ g`, is fast on a CPU.

    XLA hands a product with a transposed left side to a slower library than any other. Here the
    smaller of the two operands is transposed on its own before: `(g.T @ inputs).T` where there
    are fewer outputs than features, else `(inputs.T) @ g`; where that operand is too large for a
    cache, the library's way is kept. `how` holds `jnp.matmul`'s further arguments.
    """
    return jnp.matmul(inputs, kernel, **dict(how))


def _product_jvp(how: tuple, primals: tuple, tangents: tuple) -> tuple[Array, Any]:
    (inputs, kernel), (d_inputs, d_kernel) = primals, tangents
    out = product(inputs, kernel, how)
    moved = zero_from_primal(out, symbolic_zeros=True)
    if not isinstance(d_inputs, SymbolicZero):
        moved = jnp.matmul(d_inputs, kernel, **dict(how))
    if not isinstance(d_kernel, SymbolicZero):
        by_kernel = _along_kernel(inputs, d_kernel, dict(how))
        moved = by_kernel if isinstance(moved, SymbolicZero) else moved + by_kernel
    return out, moved


product.defjvp(_product_jvp, symbolic_zeros=True)


def _along_kernel(inputs: Array, d_kernel: Array, how: dict[str, Any]) -> Array:
    """`inputs @ d_kernel`, written so that its transpose, the gradient, is the product wanted.

    The barriers keep XLA from folding a transposition into the product.
    """
    features, outputs = d_kernel.shape
    over_features = lambda axis, other: (((axis,), (other,)), ((), ()))
    small = inputs.size <= FITS_CACHE
    if small and outputs > features:
        transposed = lax.optimization_barrier(inputs.T)
        return lax.dot_general(transposed, d_kernel, over_features(0, 0), **how)
    d_transposed = lax.optimization_barrier(d_kernel.T)
    out = lax.dot_general(d_transposed, inputs, over_features(1, 1), **how)
    return (lax.optimization_barrier(out) if small else out).T
