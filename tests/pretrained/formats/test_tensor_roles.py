"""Weights are told from slots, averages, counters and the rest by names, shapes and types."""

import numpy as np
import pytest

from finetune.pretrained.formats.tensor_roles import (
    is_counter,
    is_named_as_average,
    is_named_as_slot,
    is_random_state,
    role_of_path,
    split_by_role,
    with_roles,
)
from finetune.pretrained.formats.weight_file import StoredTensor


def roles(dtype="float32", **shapes):
    """The role of each tensor, and of which weight it is; `a__b` is written for `a/b`."""
    names = {name.replace("__", "/"): shape for name, shape in shapes.items()}
    tensors = {name: StoredTensor(name, shape, dtype, lambda: np.zeros(())) for name, shape in names.items()}
    return {tensor.name: f"{tensor.role} {tensor.of}".strip() for tensor in with_roles(tensors)}


@pytest.mark.parametrize(
    "name",
    ["global_step", "beta1_power", "training/beta2_power_1", "iterations", "iter", "save_counter", "learning_rate"]
    + [
        "dynamic_scale",
        "step_counter",
        "beta_1",
        "bn/num_batches_tracked",
        "decay",
        "w/ExponentialMovingAverage/local_step",
    ],
)
def test_counters_and_rates_of_every_library_are_recognised_below_any_scope(name):
    assert is_counter(name)


@pytest.mark.parametrize("name", ["temperature", "scale", "step_size", "my_iterations", "decay/kernel", "beta"])
def test_a_scalar_weight_is_not_a_counter(name):
    assert not is_counter(name)


@pytest.mark.parametrize(
    "slot",
    [
        "Adam",
        "Adam_1",
        "Momentum",
        "RMSProp",
        "RMSProp_2",
        "Adagrad",
        "Adadelta_1",
        "Ftrl_1",
        "AdamWeightDecay",
        "adam_m",
    ]
    + ["LAMBOptimizer", "ProximalAdagrad", "biased"],
)
def test_what_has_an_optimizer_s_name_and_the_shape_of_the_weight_above_is_its_slot(slot):
    assert is_named_as_slot(f"dense/kernel/{slot}")
    assert (
        roles(dense__kernel=(4, 3), **{f"dense__kernel__{slot}": (4, 3)})[f"dense/kernel/{slot}"] == "slot dense/kernel"
    )


def test_slots_below_the_scopes_of_an_optimizer_are_slots_of_the_weight_behind_the_scopes():
    listed = roles(dense__kernel=(4, 3), train__dense__kernel__RMSProp=(4, 3), a__b__dense__kernel__Adagrad=(4, 3))
    assert listed["train/dense/kernel/RMSProp"] == listed["a/b/dense/kernel/Adagrad"] == "slot dense/kernel"


def test_slots_of_keras_2_in_a_session_and_of_mesh_tensorflow_are_slots():
    listed = roles(
        d__kernel=(4, 3), training__Adam__d__kernel__m=(4, 3), d__kernel_slot_vr=(4,), d__kernel_slot_m=(4, 3)
    )
    assert listed.pop("d/kernel") == "weight"
    assert set(listed.values()) == {"slot d/kernel"}


def test_the_factored_slots_of_adafactor_have_one_axis_less_than_their_weight():
    listed = roles(w=(4, 3), w__Adafactor=(4,), w__Adafactor_1=(3,), w__Adafactor_2=(5,))
    assert [listed[f"w/Adafactor{end}"] for end in ("", "_1", "_2")] == ["slot w", "slot w", "weight"]


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_a_weight_below_a_name_that_is_a_weight_as_well_stays_a_weight(shape):
    listed = roles(scale=(4, 3), scale__bias=shape, shift__scale=(4, 3), shift__scale__gamma=shape)
    assert set(listed.values()) == {"weight"}


def test_a_weight_of_another_shape_is_no_slot_whatever_its_name():
    assert roles(x=(4, 3), x__Momentum=(3,))["x/Momentum"] == "weight"
    assert roles(kernel=(4, 3), other__kernel__Adam=(4, 3), Adam__kernel=(4, 3)) == {
        "kernel": "weight",
        "other/kernel/Adam": "slot kernel",  # a scope of the optimizer
        "Adam/kernel": "weight",
    }
    assert roles(dtype="int64", x=(4,), x__Adam=(4,))["x/Adam"] == "weight"


def test_an_optimizer_of_an_unknown_name_is_recognised_below_kernels_and_biases():
    names = {
        f"d__{kind}{end}": shape
        for kind, shape in (("kernel", (4, 3)), ("bias", (3,)))
        for end in ("", "__mine", "__mine_1")
    }
    listed = roles(**names)
    assert sorted(listed.values()) == ["slot d/bias"] * 2 + ["slot d/kernel"] * 2 + ["weight"] * 2
    assert set(roles(d__kernel=(4, 3), d__kernel__mine=(4, 3), e__kernel=(3,), e__kernel__mine=(3,)).values()) == {
        "weight"
    }


def test_averages_know_their_weight_which_may_be_missing():
    end = "__ExponentialMovingAverage"
    listed = roles(
        a=(3,), d__b=(2,), **{f"a{end}": (3,), f"train__d__b{end}": (2,), f"c__w{end}": (3,), f"a{end}__biased": (3,)}
    )
    assert [listed[name] for name in ("a/ExponentialMovingAverage", "train/d/b/ExponentialMovingAverage")] == [
        *("average a", "average d/b"),
    ]
    assert listed["c/w/ExponentialMovingAverage"] == "average c/w"
    assert listed["a/ExponentialMovingAverage/biased"] == "slot a/ExponentialMovingAverage"
    assert roles(a=(3,), a__ema=(3,), b__ema=(3,)) == {"a": "weight", "a/ema": "average a", "b/ema": "weight"}
    assert is_named_as_average("a/ExponentialMovingAverage")
    assert not is_named_as_average("ema")


def test_counters_texts_and_records_are_no_weights():
    assert roles(global_step=(), train__beta1_power=(), temperature=()) == {
        "global_step": "counter",
        "train/beta1_power": "counter",
        "temperature": "weight",
    }
    assert roles(dtype="string", words=(3,))["words"] == "text"
    assert roles(dtype="datetime64[D]", days=(3,))["days"] == "other"
    assert roles(dtype="bfloat16", w=(3,))["w"] == "weight"


def test_states_of_random_generators_are_recognised_anywhere_in_a_name():
    names = ["dropout/seed_generator/state", "seed_generator_state", "a/_random_generator", "random/_state_var"]
    assert all(map(is_random_state, names))
    assert not is_random_state("seeds/kernel")
    assert not is_random_state("my_seed_generator_net/kernel")


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("opt_state/0/kernel", "slot"),
        ("model/optimizer/1", "slot"),
        ("a/_optimizer/b", "slot"),
        ("x/keras_api/y", "metric"),
    ]
    + [("metrics/total", "metric"), ("optimizer_net/kernel", "weight"), ("body/kernel", "weight")]
    + [("body/optimizer", "weight"), ("d/seed_generator/vars/0", "seed"), ("optimizer_weights/Adam/m", "slot")],
)
def test_what_lies_below_an_optimizer_metrics_or_a_random_generator_has_their_role(path, role):
    assert role_of_path(path.split("/"), (2,)) == role


def test_scalars_of_an_optimizer_count_or_scale():
    assert role_of_path(["optimizer", "vars", "0"], ()) == "counter"


def test_tensors_are_split_into_weights_and_the_rest_in_their_order():
    tensors = with_roles({n: StoredTensor(n, (2,), "float32", lambda: 0) for n in ("b", "b/Adam", "a", "a/Adam")})
    weights, others = split_by_role(tensors)
    assert [tensor.name for tensor in weights + others] == ["b", "a", "b/Adam", "a/Adam"]
