import json
import time

import pytest

from finetune.commands.several_workers import as_worker, check_same_layout, common_clock, find_cluster, join_workers
from finetune.errors import FinetuneError
from finetune.recipe.loader import load_recipe

TWO = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", "index": 1}}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {builder: finetune.examples.networks:mlp, head: {classes: 3}}\ndata: {npz: rows.npz}\n"
        "groups: {by: layer, peak: 0.1, decay: 2.0, optimizer: sgd}\ntrain: {epochs: 1}\n"
    )
    return path


def test_a_process_alone_joins_nobody(recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert join_workers(recipe) is None
    with as_worker(tmp_path, resume=True) as folder:
        assert folder == tmp_path
    assert common_clock() is time.monotonic
    check_same_layout(None, None)


def test_the_environment_names_the_workers(recipe, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(TWO))
    assert find_cluster(load_recipe(recipe)).index == 1
    with pytest.raises(FinetuneError) as caught:
        join_workers(recipe)
    assert str(caught.value) == (
        "All workers of a run are told of the same run folder. TF_CONFIG names 2 workers. Choose the folder with `--out`."
    )


def test_several_workers_do_not_choose_a_type_each_by_its_own_clock(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(TWO))
    with pytest.raises(FinetuneError) as caught:
        join_workers(recipe, ["train.mixed_precision=auto"], out=tmp_path / "out")
    assert str(caught.value) == (
        "--set train.mixed_precision: `train.mixed_precision: auto` measures steps on one machine, and TF_CONFIG names 2 "
        "workers. Write `bfloat16` or `false`; a run or `finetune plan` on one of the machines says which is faster."
    )


def test_a_wrong_cluster_is_an_error_before_anything_is_loaded(recipe, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(FinetuneError, match="it is no JSON"):
        join_workers(recipe)
