"""What the compilers of TPUs and GPUs make of our programs, on a machine that has neither."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from test_decay_counts import BY_WEIGHT, ETA, LAM
from test_lowering import PROGRAMS

from experiments.speed.targets import NEEDS, four_devices, one_of, placed
from wdjax.decay import adamw, decay_to_average, decay_to_initial, decoupled_decay
from wdjax.losses import regularized_loss, squared_error
from wdjax.runners import _norm_before_writing
from wdjax.step import init_state, make_train_step
from wdjax.types import Batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHAPE = (8192, 4096)
NUM_WEIGHTS = 122_570
"""Of the network of the programs: every kernel and bias."""


@pytest.fixture(scope="module", autouse=True)
def nothing_stored(shared_programs):
    """What a compiler without its device has written to the disk, it cannot read back."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    yield
    jax.config.update(option, before)


@pytest.fixture(scope="module", params=NEEDS)
def mesh(request):
    """Four devices of each kind; a kind whose compiler is not installed skips."""
    try:
        return four_devices(request.param)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def compiled(mesh):
    """Each program as this kind of device would run it, compiled when first asked for."""
    made = {}

    def program(name):
        if name not in made:
            made[name] = PROGRAMS[name](mesh).lower().compile()
        return made[name]

    return program


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_compiles_and_calls_nothing_on_the_host(compiled, name):
    text = compiled(name).as_text()
    assert "convolution" in text or "__cudnn$conv" in text
    for word in ("callback", "infeed", "outfeed", "host_compute"):
        assert word not in text, word


@pytest.mark.parametrize("name", ["shard_step", "pmap_step"])
def test_a_sharded_step_combines_its_gradients_in_one_all_reduce(compiled, name):
    """Of the arrays; the sum of the weights, which they are divided by, goes before."""
    reduces = re.findall(r" = (.*?) all-reduce(?:-start)?\(", compiled(name).as_text())
    sizes = [
        [math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[(\d[\d,]*)\]", one)]
        for one in reduces
    ]
    (together,) = [one for one in sizes if one]
    assert sum(together) >= NUM_WEIGHTS


def test_trials_on_four_devices_say_nothing_to_each_other(compiled):
    collective = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    assert not re.findall(rf"(?:{collective})(?:-start)?\(", compiled("wdjax select").as_text())


@pytest.mark.parametrize("decay", [decoupled_decay, decay_to_initial])
def test_a_donated_step_writes_its_state_where_it_was_read(mesh, decay, nans_allowed):
    """As the runners compile it: weights, moments and reference lie where they lay, no copy.
    (JAX donates nothing while it looks for NaNs.)"""
    width, tx = 2048, adamw(ETA, decay(LAM, ETA))
    step = make_train_step(regularized_loss(lambda w, x: x @ w["w"], squared_error), tx)
    state = jax.eval_shape(lambda: init_state({"w": jnp.zeros((width, width))}, tx))
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    batch = Batch(floats(64, width), floats(64, width), floats(64))
    compiled = (
        jax.jit(_norm_before_writing(step), donate_argnums=0)
        .lower(*placed((state, batch), one_of(mesh)))
        .compile()
    )
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= held
    assert not re.findall(rf" = f32\[{width},{width}\]\S* copy\(", compiled.as_text())


ADAM = 7
"""Reads gradient, weights and two moments; writes weights and two moments: no less is possible."""


@pytest.mark.parametrize("tx", [optax.adam(ETA), optax.adamw(ETA)], ids=["adam", "adamw"])
def test_optax_own_move_seven_arrays(mesh, tx):
    assert arrays_moved(mesh, tx) == ADAM


@pytest.mark.parametrize("decay", BY_WEIGHT.values(), ids=BY_WEIGHT)
def test_a_method_without_a_kept_reference_moves_adams_seven_arrays(mesh, decay):
    assert arrays_moved(mesh, adamw(ETA, decay())) == ADAM


def test_a_kept_reference_costs_one_read_more(mesh):
    """It leaves the step as it came, which only a loop spares: left out, as in the count on CPU."""
    kept = arrays_moved(mesh, adamw(ETA, decay_to_initial(LAM, ETA)), lambda s: (s[0], s[1].step))
    assert kept == ADAM + 1


def test_an_average_costs_that_read_and_one_write(mesh):
    assert arrays_moved(mesh, adamw(ETA, decay_to_average(LAM, ETA, 0.99))) == ADAM + 2


def arrays_moved(mesh, tx, returned=lambda state: state):
    """How many arrays of the weights' size an update and `apply_updates` read and write."""

    def step(grads, state, w):
        updates, state = tx.update(grads, state, w)
        return optax.apply_updates(w, updates), returned(state)

    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    w = {"dense": {"kernel": array(*SHAPE), "bias": array(SHAPE[1])}}
    shapes = placed((w, jax.eval_shape(tx.init, w), w), one_of(mesh))
    return arrays_in_and_out(jax.jit(step).lower(*shapes).compile().as_text())


def arrays_in_and_out(program):
    """Of the instructions that run one after another: a fusion is one loop over its operands."""
    large, count = {}, 0
    for line in program[program.index("\nENTRY") :].splitlines()[2:]:
        line = re.sub(r", (metadata|calls|kind|sharding|backend_config|index)=.*", "", line)
        found = re.match(r"\s+(?:ROOT )?(%\S+) = (.*?) ([\w-]+)\((.*)\)", line)
        if not found:
            continue
        name, type_, operation, operands = found.groups()
        large[name] = type_.count(f"f32[{','.join(map(str, SHAPE))}]")
        if operation not in ("parameter", "get-tuple-element", "tuple", "bitcast"):
            count += large[name] + sum(large[read] for read in re.findall(r"%[\w.-]+", operands))
    return count


def test_the_counter_of_arrays_counts():
    assert math.prod(SHAPE) * 4 == 2**27
    program = """
ENTRY %main (a: f32[8192,4096], b: f32[8192,4096]) -> f32[8192,4096] {
  %a = f32[8192,4096]{1,0} parameter(0)
  %b = f32[8192,4096]{1,0} parameter(1)
  %fused.1 = (f32[8192,4096]{1,0}, f32[8192,4096]{1,0}) fusion(%a, %b), kind=kLoop, calls=%f
  %out = f32[8192,4096]{1,0} get-tuple-element(%fused.1), index=0
  ROOT %copy.2 = f32[8192,4096]{1,0} copy(%out)
}"""
    assert arrays_in_and_out(program) == 2 + 2 + 1 + 1
