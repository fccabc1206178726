import pytest

from finetune.distribution.cluster import Cluster
from finetune.distribution.facts import check_equal, fingerprint, keys_of, versions
from finetune.errors import FinetuneError

THREE = Cluster(("a:1", "b:1", "c:1"), 2)


def test_equal_facts_pass():
    check_equal(THREE, [versions("1.0")] * 3)
    assert versions("1.0")["version of keras"].startswith("3.")
    assert fingerprint("a") != fingerprint("b")


def test_what_differs_is_named_with_who_has_it():
    facts = [{"seed": 7, "recipe": "x"}, {"seed": 7, "recipe": "x"}, {"seed": 8}]
    with pytest.raises(FinetuneError) as caught:
        check_equal(THREE, facts)
    assert str(caught.value) == (
        "All 3 workers of a run train the same network, by the same recipe, on the same rows. What they were told differs: "
        "seed: `7` at worker 0, `8` at worker 2; recipe: `x` at worker 0, nothing at worker 2. Begin all of them with the "
        "same command, the same files and the same packages."
    )


def test_many_differences_are_counted():
    facts = [{str(number): 0 for number in range(7)}, {}, {str(number): 0 for number in range(7)}]
    with pytest.raises(FinetuneError, match=r"`0` at worker 0, nothing at worker 1; 2 more\. Begin"):
        check_equal(THREE, facts)
    with pytest.raises(FinetuneError, match=r"seed: `1` at worker 0, `2` at worker 1 and others at 1 more\."):
        check_equal(THREE, [{"seed": 1}, {"seed": 2}, {"seed": 3}])


def test_keys_that_differ_are_named_with_their_values():
    long = {"data": {"class_names": ["a" * 100]}}
    assert keys_of({"groups": [], "train": {}} | long) == {
        "groups": "[]",
        "train": "{}",
        "data.class_names": fingerprint(str(["a" * 100])),
    }
    told = [keys_of({"train": {"epochs": epochs, **more}}) for epochs, more in ((2, {}), (3, {"loss": "mse"}))]
    with pytest.raises(FinetuneError) as caught:
        check_equal(Cluster(("a:1", "b:1"), 0), told)
    assert "train.epochs: `2` at worker 0, `3` at worker 1; train.loss: nothing at worker 0, `mse` at" in str(
        caught.value
    )
