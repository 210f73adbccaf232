"""`wdjax convert`, as a user types it."""

import pytest

from wdjax.cli import main


def test_a_keras_penalty_is_twice_as_strong_as_the_decay_of_the_same_number(capsys):
    assert main(["convert", "1e-4", "keras_l2", "torch_adamw"]) == 0
    assert "0.0002" in capsys.readouterr().out


def test_a_schedule_names_its_horizon(capsys):
    words = "convert 0.1 torch_adamw timescale_steps --learning-rate 0.01".split()
    assert main([*words, "--schedule", "cosine", "--num-steps", "100"]) == 0
    assert "100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("1e-4 keras_l3 torch_adamw", "keras_l2"),
        ("x keras_l2 torch_adamw", "must be a number"),
        ("0.1 torch_adamw timescale_steps", "learning_rate"),
        ("0.1 torch_adamw timescale_steps --schedule cosine", "--num-steps"),
        ("-1 keras_l2 torch_adamw", ">= 0"),
    ],
)
def test_a_refusal_is_one_sentence_and_status_2(words, says, capsys):
    assert main(["convert", *words.split()]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
