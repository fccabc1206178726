"""The benchmark of a step: what can be counted without a clock is asserted, and that its parts do what they say."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TORCH, JAX = "torch, fused Adam", "JAX, optax multi_transform"


@pytest.fixture
def bench(script):
    return script("bench_step")


# -- The regression check: counts, no seconds -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(script):
    """The graph of a step of 40 small layers, by system and number of groups."""
    bench, small = script("bench_step"), script("step_workloads").small_layers

    def graph(system, groups):
        model, batch = small(40)
        bench.SYSTEMS[system].prepare(model, groups)
        return bench.step_graph(model, batch)

    cases = [("Keras, one Adam", 1), ("forward and backward alone", 1), *(("finetune", n) for n in (1, 40))]
    return {case: graph(*case) for case in cases}


@pytest.fixture(scope="module")
def operations(graphs):
    return {case: len(graph.get_operations()) for case, graph in graphs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 40])
def test_a_step_has_less_than_three_tenths_of_the_operations_of_keras(operations, groups):
    assert operations["finetune", groups] < 0.3 * operations["Keras, one Adam", 1]


@pytest.mark.slow
def test_operations_do_not_grow_with_the_groups(operations):
    assert operations["finetune", 40] <= 1.02 * operations["finetune", 1]


@pytest.mark.slow
def test_an_update_has_no_more_operations_than_forward_and_backward(operations):
    assert operations["finetune", 40] < 2 * operations["forward and backward alone", 1]


@pytest.mark.slow
def test_a_step_captures_two_fifths_of_the_variables_that_keras_captures_and_as_many_for_40_groups_as_for_1(graphs):
    # A call costs 2 to 3 microseconds for each captured variable, whatever the step does with it.
    captured = {case: len(graph.captures) for case, graph in graphs.items()}
    assert captured["finetune", 1] < 0.4 * captured["Keras, one Adam", 1]
    assert captured["finetune", 40] == captured["finetune", 1]


@pytest.mark.slow
def test_each_system_is_timed_once_a_round(script, bench):
    few = script("step_workloads").Workload(partial(script("step_workloads").small_layers, 3), (1, 3), 2)
    seconds = bench.in_turns(few, [("Keras, one Adam", 1), ("finetune", 3)], {}, 4)
    assert {case: len(rounds) for case, rounds in seconds.items()} == {("Keras, one Adam", 1): 4, ("finetune", 3): 4}
    assert all(second > 0 for rounds in seconds.values() for second in rounds)


# -- Work loads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "groups"), [("small layers", 100), ("resnet", 8), ("resnet", 60)])
def test_groups_hold_every_trained_variable_once_in_the_order_of_the_model(script, name, groups):
    workloads = script("step_workloads")
    model, _ = workloads.WORKLOADS[name].build()
    parts = workloads.parts(model, groups)
    assert len(parts) == groups
    assert [v.path for part in parts for v in part] == [v.path for v in model.trainable_variables]


@pytest.mark.slow
def test_four_layers_and_the_embeddings_are_frozen_for_all_but_the_baseline(script):
    workload = script("step_workloads").WORKLOADS["transformer, four layers frozen"]
    model, _ = workload.build()
    whole, _ = workload.build(plain=True)
    per_layer = 16
    assert len(whole.trainable_variables) == 3 + 6 * per_layer + 2
    assert len(model.trainable_variables) == 2 * per_layer + 2
    assert workload.groups[-1] <= len(model.trainable_variables)


def test_the_policy_of_a_work_load_is_not_that_of_the_baseline_and_is_put_back(script, monkeypatch):
    import keras

    workloads = script("step_workloads")
    mixed = workloads.Workload(workloads.small_layers, (1,), 1, policy="mixed_bfloat16")
    assert mixed.build()[0].layers[0].compute_dtype == "bfloat16"
    assert mixed.build(plain=True)[0].layers[0].compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


# -- Systems and peers ------------------------------------------------------------------------------------------------


def test_a_step_of_a_system_that_makes_many_in_a_call_is_one_of_them(script, bench, monkeypatch):
    calls = []
    many = script("step_systems").System(lambda model, groups: calls.append, steps_per_call=16)
    monkeypatch.setitem(bench.SYSTEMS, "many", many)
    step = bench.start(bench.WORKLOADS["small layers"], "many", 1)[2]
    calls.clear()
    assert [step(40), len(calls)] == [32, 2]
    assert step(1) == 16


def test_of_several_starts_the_one_with_the_usual_seconds_counts(bench, monkeypatch):
    starts = iter([(3.0, 10.0, 5, 1.1), (9.0, 90.0, 5, 1.0), (1.0, 20.0, 5, 1.2), (9.0, 90.0, 5, 1.0)] * 2)
    monkeypatch.setattr(bench, "in_its_own_process", lambda workload, system, groups: next(starts))
    found = bench.usual_starts("small layers", [("one", 1), ("other", 2)], 3)
    assert found == {("one", 1): (3.0, 10.0, 5, 1.1), ("other", 2): (9.0, 90.0, 5, 1.0)}


def test_what_a_peer_lacks_is_said_and_the_others_go_on(script, capsys):
    peers = script("step_peers")
    with peers.running([(TORCH, 1), (TORCH, 10), (JAX, 1)], {"jax": "no/python"}, "small layers") as found:
        assert found == {}
    assert capsys.readouterr().err.splitlines() == [
        f"without {TORCH}: it needs `--peers torch=PYTHON`; see `--help`",
        f"without {JAX}: `--peers jax=no/python` is no file",
    ]


def test_a_peer_that_does_not_start_is_reported_with_its_reason(script, capsys):
    peers = script("step_peers")
    with peers.running([(TORCH, 1)], {"torch": sys.executable}, "no such work load") as found:
        assert found == {}
    told = capsys.readouterr().err
    assert f"without {TORCH}: `{TORCH}` did not start with `{sys.executable}`: " in told
    assert "Error: " in told


@pytest.mark.grid
@pytest.mark.slow
def test_a_peer_makes_steps_when_it_is_asked_to(script):
    peers = script("step_peers")
    with peers.running([("TF1, tf.group of minimize", 2)], {}, "small layers") as found:
        (peer,) = found.values()
        few, many = peer.step(2), peer.step(40)
        assert 0 < few < many
        assert peer.startup_cpu_seconds > 0.1
        assert peer.peak_rss_mb > 100


# -- The page ---------------------------------------------------------------------------------------------------------


def figure(system, groups, ratio, memory=100.0):
    return {
        "workload": "small layers",
        "system": system,
        "groups": groups,
        "ratio": ratio,
        "spread": [ratio - 0.01, ratio + 0.01],
        "step_milliseconds": 10 * ratio,
        "startup_cpu_seconds": 4.0,
        "peak_rss_mb": memory,
        "operations": None,
        "import_cpu_seconds": 3.0,
        "machine": "a machine",
    }


@pytest.mark.slow
def test_the_page_is_filled_from_the_figures_and_filling_it_again_changes_nothing(script, tmp_path):
    figures = [figure("Keras, one Adam", 1, 1.0), figure("finetune", 1, 0.5), figure("finetune", 100, 0.55, 101.0)]
    (tmp_path / "all.json").write_text(json.dumps(figures))
    page = tmp_path / "step.md"
    page.write_text("# Title\n\n<!-- figures -->\n<!-- /figures -->\n\nThe end.\n")
    arguments = [str(tmp_path / "all.json"), "--page", str(page)]
    script("plot_step").main(arguments)
    told = page.read_text()
    assert "Measured on a machine." in told
    assert "| small layers | 100 | 1.10x | 1.00x | 1.01x |" in told
    assert "| finetune | 100 | 0.55x | 0.54 to 0.56 | 5.50 | 4.0 | 3.0 | 101 |  |" in told
    assert told.startswith("# Title\n\n")
    assert told.endswith("\n\nThe end.\n")
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert {"step_groups.svg", "step_small_layers.svg"} <= names
    script("plot_step").main(arguments)
    assert page.read_text() == told


def test_a_page_without_the_place_for_the_figures_is_refused(script):
    with pytest.raises(SystemExit, match="has no `<!-- figures -->` and `<!-- /figures -->`"):
        script("plot_step").fill("# Title\n", "figures", "text")
