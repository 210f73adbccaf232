"""What published rules make of a strength found at one size, for a run of another."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from wdjax.checks import check_number
from wdjax.decay import (
    convert_strength,
    mup_strength,
    power_lines_strength,
    sqrt_width_strength,
    timescale_strength,
)

POWER_LINES_CONSTANT = 1.084
"""Of Bergsma et al. 2025, as quoted by others; it was not read in the paper itself."""


class RuleStrength(NamedTuple):
    """A rule's strength for the run, and the learning rate that the rule goes with."""

    rule: str
    strength: float
    learning_rate: float
    source: str


def rule_strengths(
    strength: float,
    learning_rate: float,
    reference: Mapping[str, Any],
    target: Mapping[str, Any],
) -> list[RuleStrength]:
    """Carries a decoupled strength, found at a reference size, to a target by each rule.

        timescale    epochs kept:  lam' = 1 / (eta (1 / (eta lam)) (n' / B') / (n / B))
        muP          eta' = eta / m, lam' = m lam            m = width' / width
        root width   eta' = eta / m, lam' = sqrt(m) lam
        Power Lines  1 / (eta lam T) ~ TPP^-0.527            T steps; TPP: examples seen a param

    Power Lines comes twice: with the constant that the reference has, and with the quoted one.
    Rules of the width are left out where it stays.

    Args:
      strength: > 0, of decoupled decay.
      learning_rate: > 0, beside which it was found.
      reference: `rows` (examples trained on), `epochs`, `batch_size`, `params` (their number), and
        `width` where there is one.
      target: the same.

    Raises:
      ValueError: for a strength, learning rate or size that is not positive.

    Sources: Wang & Aitchison 2024, arXiv:2405.13698; Yang et al. 2022, arXiv:2203.03466; Fan et al.
    2025, arXiv:2510.15262; Bergsma et al. 2025, arXiv:2505.13738.
    """
    check_number("strength", strength, low=0.0, exclusive_low=True)
    check_number("learning_rate", learning_rate, low=0.0, exclusive_low=True)
    for where in (reference, target):
        for name, size in where.items():
            check_number(name, size, low=0.0, exclusive_low=True)
    of_run = lambda where: {"batch_size": where["batch_size"], "num_examples": where["rows"]}
    epochs = convert_strength(
        strength,
        "torch_adamw",
        "timescale_epochs",
        learning_rate=learning_rate,
        **of_run(reference),
    )
    kept = timescale_strength(epochs, learning_rate=learning_rate, **of_run(target))
    found = [RuleStrength("timescale", kept, learning_rate, "Wang & Aitchison 2024")]
    wider = target["width"] / reference["width"] if "width" in reference else 1.0
    if wider != 1:
        slower = learning_rate / wider
        found += [
            RuleStrength("muP", mup_strength(strength, wider), slower, "Yang et al. 2022"),
            RuleStrength(
                "root width", sqrt_width_strength(strength, wider), slower, "Fan et al. 2025"
            ),
        ]
    of_tokens = lambda where: {
        "learning_rate": learning_rate,
        "batch_size": where["batch_size"],
        "num_tokens": where["rows"] * where["epochs"],
        "num_params": where["params"],
    }
    # The strength goes with one over the constant.
    constant = power_lines_strength(1.0, **of_tokens(reference)) / strength
    for name, value in (
        ("Power Lines, fitted at the reference", constant),
        ("Power Lines, constant as quoted", POWER_LINES_CONSTANT),
    ):
        carried = power_lines_strength(value, **of_tokens(target))
        found.append(RuleStrength(name, carried, learning_rate, "Bergsma et al. 2025"))
    return found
