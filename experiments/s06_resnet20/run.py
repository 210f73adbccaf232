"""ResNet-20 with batch normalisation: decay acts through the effective learning rate.

Claim: before a normalisation the size of the weights does not matter to the function, so decay
  can only act by keeping them small and their steps large in angle (with S6).
Source: Zhang et al. 2019, arXiv:1810.12281; Kosson et al. 2024, arXiv:2305.17212: the angle of a
  step settles near `sqrt(2 eta lam)`.
Would change: S6-normalised: all of (`change of the outputs when they are doubled` below 0.05,
  `norm of the convolutions, largest / zero` below 1, `log10 of the radians turned an epoch,
  largest / zero` above 0); S6-resnet: `held-out loss, zero - middle` above 0.
Run: `python -m experiments s06_resnet20` (53 s on 2 CPU devices, jax 0.10.2)
Found: Doubling the convolutions of a ResNet-20 leaves its outputs (to 5 %), and under the largest
  decay they are smaller and turn faster than without (S6-normalised holds, p = 0.00078).
  Undecided: The middle strength lowers the held-out loss of a ResNet-20 (S6-resnet undecided, p =
  0.93).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common, problems
from experiments.claims import Claim, above, all_of, below
from wdjax.decay import decoupled_decay
from wdjax.losses import cross_entropy
from wdjax.models import make_resnet20
from wdjax.parts import matrices_only
from wdjax.training import is_correct, make_fit, make_score


@dataclass(frozen=True)
class Config:
    size: int = 200
    num_epochs: int = 20
    batch_size: int = 50
    learning_rate: float = 0.1
    strengths: tuple[float, ...] = (0.0, 0.03, 0.3)
    num_seeds: int = 5


QUICK = replace(Config(), size=50, num_epochs=2, strengths=(0.0, 0.3), num_seeds=2)


def convolutions(params):
    """The kernels that a normalisation follows, as one vector."""
    named = jax.tree_util.tree_leaves_with_path(params)
    return jnp.concatenate([leaf.ravel() for path, leaf in named if leaf.ndim == 4])


def make_run(c: Config, model):
    """Momentum and decoupled decay; the convolutions of every epoch are kept."""

    def make_tx(h):
        decay = decoupled_decay(h["strength"], c.learning_rate, parts=matrices_only)
        return optax.chain(
            optax.trace(decay=0.9), optax.scale_by_learning_rate(c.learning_rate), decay
        )

    return make_fit(
        model,
        cross_entropy,
        make_tx=make_tx,
        num_epochs=c.num_epochs,
        batch_size=c.batch_size,
        observe=lambda fit: convolutions(fit.params),
    )


def change_when_doubled(model, run, rows):
    """How far the outputs move when the convolutions are doubled, as a share of the largest."""
    doubled = jax.tree.map(lambda leaf: 2 * leaf if leaf.ndim == 4 else leaf, run.params)
    # In training mode the statistics are those of the batch, so a scale drops out at once.
    outputs = [
        model.apply(p, run.model_state, rows, key=None, train=True)[0]
        for p in (run.params, doubled)
    ]
    return jnp.max(jnp.abs(outputs[0] - outputs[1])) / jnp.max(jnp.abs(outputs[0]))


def run_all(c: Config) -> dict[str, np.ndarray]:
    """`[strength, seed, ...]` of every measure; norms and angles have an axis of epochs."""
    pool, held_out = problems.parts_of("digits")
    held_out = jax.tree.map(lambda x: x[:400], held_out)
    model = make_resnet20(10)
    fit = make_run(c, model)
    score = make_score(model, loss=cross_entropy, accuracy=is_correct)

    def one(point, pool, held_out):
        train, key = problems.draw(pool, point["seed"], c.size)
        run = fit({"strength": point["strength"]}, train, key)
        weights = run.history["observed"]
        norms = jnp.linalg.norm(weights, axis=1)
        turned = jnp.sum(weights[1:] * weights[:-1], axis=1) / (norms[1:] * norms[:-1])
        judged = score(run, held_out)
        return {
            "norm": norms,
            "angle": jnp.arccos(jnp.clip(turned, -1, 1)),
            "change": change_when_doubled(model, run, held_out.inputs[:50]),
            "accuracy": judged["accuracy"],
            "loss": judged["loss"],
        }

    axes = {"strength": c.strengths, "seed": range(c.num_seeds)}
    return problems.sweep(one, axes, (pool, held_out))


def measure(c: Config) -> common.Findings:
    scores = run_all(c)
    tail = max(1, c.num_epochs // 4)
    angle, norm = scores["angle"][..., -tail:].mean(axis=2), scores["norm"][..., -1]
    found = [
        common.over_seeds("norm of the convolutions, largest / zero", norm[-1] / norm[0]),
        common.over_seeds(
            "log10 of the radians turned an epoch, largest / zero", np.log10(angle[-1] / angle[0])
        ),
        common.over_seeds(
            "change of the outputs when they are doubled", scores["change"].max(axis=0)
        ),
        common.over_seeds("held-out loss, zero - middle", scores["loss"][0] - scores["loss"][1]),
        common.over_seeds("held-out loss, zero - largest", scores["loss"][0] - scores["loss"][-1]),
    ]
    return common.Findings(
        found,
        {name: common.curve(np.moveaxis(v, 1, -1)) for name, v in scores.items()}
        | {"strengths": c.strengths},
    )


def draw(values, figure):
    for axes, what in zip(figure.subplots(1, 2), ("norm", "angle"), strict=True):
        for row, strength in enumerate(values["strengths"]):
            line = {name: part[row] for name, part in values[what].items()}
            epochs = np.arange(len(line["mean"])) + (1 if what == "norm" else 2)
            common.band(axes, epochs, line, f"strength {strength:g}")
        axes.set_xlabel("epoch")
    axes.set_ylabel("radians turned in the epoch")
    figure.axes[0].set_ylabel("norm of the convolutions")
    axes.legend()


CLAIMS = (
    Claim(
        "S6-normalised",
        "Doubling the convolutions of a ResNet-20 leaves its outputs (to 5 %), and under the "
        "largest decay they are smaller and turn faster than without.",
        all_of(
            below("change of the outputs when they are doubled", 0.05),
            below("norm of the convolutions, largest / zero", 1.0),
            above("log10 of the radians turned an epoch, largest / zero"),
        ),
        "Doubling the convolutions of a ResNet-20 changes its outputs by over 5 %, or under the "
        "largest decay they are larger or turn slower than without.",
    ),
    Claim(
        "S6-resnet",
        "The middle strength lowers the held-out loss of a ResNet-20.",
        above("held-out loss, zero - middle"),
        "The middle strength raises the held-out loss of a ResNet-20.",
    ),
)


if __name__ == "__main__":
    common.main(__file__, measure, draw, Config(), QUICK, CLAIMS)
