"""Checksums before and after every stretch of training prove what was left alone."""

import numpy as np
import pytest

from finetune.errors import TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.training.frozen_proof import FrozenProof, checksums


def leaves_of(model, *layers):
    return [leaf for leaf in layer_tree(model).leaves if leaf.layer in layers]


def nudge(variable):
    """Changes the first value by the smallest step there is."""
    values = np.array(variable.numpy())
    values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
    variable.assign(values)


def test_every_tensor_has_a_checksum_moving_statistics_included(tiny):
    names = ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    assert list(checksums(leaves_of(tiny(), "bn"))) == names


def test_the_proof_holds_while_nothing_changes(tiny):
    proof, leaves = FrozenProof(), leaves_of(tiny(), "stem", "bn")
    record = proof.end("the run", leaves, proof.begin(leaves))
    assert (record.stretch, record.tensors, record.changed) == ("the run", 6, ())
    assert proof.holds
    proof.check()


def test_a_change_of_one_bit_is_named_with_its_stretch(tiny):
    model = tiny()
    proof, leaves = FrozenProof(), leaves_of(model, "stem", "bn")
    before = proof.begin(leaves)
    nudge(model.get_layer("bn").moving_mean)
    assert proof.end("phase 2", leaves, before).changed == ("bn/moving_mean",)
    assert not proof.holds
    with pytest.raises(TrainingError, match=r"stay bit-identical\. 1 of 6 changed in phase 2: `bn/moving_mean`\."):
        proof.check()


def test_a_tensor_that_stays_frozen_may_not_change_between_two_stretches_either(tiny):
    model = tiny()
    proof, stem, both = FrozenProof(), leaves_of(model, "stem"), leaves_of(model, "stem", "bn")
    proof.end("phase 1", stem, proof.begin(stem))
    nudge(model.get_layer("stem").kernel)
    nudge(model.get_layer("bn").gamma)  # was not frozen before: its value at the start of the stretch counts
    assert proof.end("phase 2", both, proof.begin(both)).changed == ("stem/kernel",)


def test_a_tensor_that_trained_in_between_begins_with_its_new_value(tiny):
    model = tiny()
    proof, stem, bn = FrozenProof(), leaves_of(model, "stem"), leaves_of(model, "bn")
    proof.end("phase 1", stem, proof.begin(stem))
    before = proof.begin(bn)
    nudge(model.get_layer("stem").kernel)
    proof.end("phase 2", bn, before)
    assert proof.end("phase 3", stem, proof.begin(stem)).changed == ()


def test_the_run_as_a_whole_is_reported_before_its_phases(tiny):
    model = tiny()
    proof, leaves = FrozenProof(), leaves_of(model, "stem")
    whole, phase = proof.begin(leaves), proof.begin(leaves)
    nudge(model.get_layer("stem").kernel)
    proof.end("phase 1", leaves, phase)
    proof.end("the run", leaves, whole)
    with pytest.raises(TrainingError, match="1 of 2 changed in the run: `stem/kernel`"):
        proof.check()


def test_one_stretch_in_which_a_tensor_changed_is_enough_for_the_proof_to_fail(tiny):
    model = tiny()
    proof, leaves = FrozenProof(), leaves_of(model, "stem")
    proof.end("phase 1", leaves, proof.begin(leaves))
    before = proof.begin(leaves)
    nudge(model.get_layer("stem").kernel)
    proof.end("phase 2", leaves, before)
    proof.end("phase 3", leaves, proof.begin(leaves))
    assert not proof.holds
    with pytest.raises(TrainingError, match=r"1 of 2 changed in phase 2: `stem/kernel`"):
        proof.check()


def test_a_change_between_the_start_of_the_run_and_its_first_phase_belongs_to_the_phase(tiny):
    model = tiny()
    proof, leaves = FrozenProof(), leaves_of(model, "stem")
    proof.begin(leaves)  # of the run as a whole
    nudge(model.get_layer("stem").kernel)
    assert proof.end("phase 1", leaves, proof.begin(leaves)).changed == ("stem/kernel",)
