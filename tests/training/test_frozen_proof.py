"""Checksums before and after every stretch of training prove what was left alone."""

import keras
import numpy as np
import pytest

from finetune.errors import TrainingError
from finetune.groups.layer_tree import layer_tree
from finetune.groups.selectors import Selector, resolve_groups
from finetune.training.fast.fast_loop import FastLoop
from finetune.training.freezing import freeze
from finetune.training.frozen_proof import FrozenProof, FrozenRecord, FrozenRecords, checksums


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
    proof, leaves = FrozenRecords(), leaves_of(tiny(), "stem", "bn")
    record = proof.end("the run", leaves, proof.begin(leaves))
    assert (record.stretch, record.tensors, record.changed) == ("the run", 6, ())
    assert proof.holds
    proof.check()


def test_a_change_of_one_bit_is_named_with_its_stretch(tiny):
    model = tiny()
    proof, leaves = FrozenRecords(), leaves_of(model, "stem", "bn")
    before = proof.begin(leaves)
    nudge(model.get_layer("bn").moving_mean)
    assert proof.end("phase 2", leaves, before).changed == ("bn/moving_mean",)
    assert not proof.holds
    with pytest.raises(TrainingError, match=r"stay bit-identical\. 1 of 6 changed in phase 2: `bn/moving_mean`\."):
        proof.check()


def test_a_tensor_that_stays_frozen_may_not_change_between_two_stretches_either(tiny):
    model = tiny()
    proof, stem, both = FrozenRecords(), leaves_of(model, "stem"), leaves_of(model, "stem", "bn")
    proof.end("phase 1", stem, proof.begin(stem))
    nudge(model.get_layer("stem").kernel)
    nudge(model.get_layer("bn").gamma)  # was not frozen before: its value at the start of the stretch counts
    assert proof.end("phase 2", both, proof.begin(both)).changed == ("stem/kernel",)


def test_a_tensor_that_trained_in_between_begins_with_its_new_value(tiny):
    model = tiny()
    proof, stem, bn = FrozenRecords(), leaves_of(model, "stem"), leaves_of(model, "bn")
    proof.end("phase 1", stem, proof.begin(stem))
    before = proof.begin(bn)
    nudge(model.get_layer("stem").kernel)
    proof.end("phase 2", bn, before)
    assert proof.end("phase 3", stem, proof.begin(stem)).changed == ()


def test_the_run_as_a_whole_is_reported_before_its_phases(tiny):
    model = tiny()
    proof, leaves = FrozenRecords(), leaves_of(model, "stem")
    whole, phase = proof.begin(leaves), proof.begin(leaves)
    nudge(model.get_layer("stem").kernel)
    proof.end("phase 1", leaves, phase)
    proof.end("the run", leaves, whole)
    with pytest.raises(TrainingError, match="1 of 2 changed in the run: `stem/kernel`"):
        proof.check()


def test_one_stretch_in_which_a_tensor_changed_is_enough_for_the_proof_to_fail(tiny):
    model = tiny()
    proof, leaves = FrozenRecords(), leaves_of(model, "stem")
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
    proof, leaves = FrozenRecords(), leaves_of(model, "stem")
    proof.begin(leaves)  # of the run as a whole
    nudge(model.get_layer("stem").kernel)
    assert proof.end("phase 1", leaves, proof.begin(leaves)).changed == ("stem/kernel",)


# -- The callback -----------------------------------------------------------------------------------------------------


def frozen_stem(model):
    stem, rest = Selector("stem", prefixes=("stem", "bn"), frozen=True), Selector("rest", rest=True)
    groups = resolve_groups(model, [stem, rest])
    freeze(model, groups)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return groups


def test_every_fit_gets_a_record(tiny, rows):
    model = tiny()
    proof = FrozenProof(frozen_stem(model))
    model.fit(*rows, verbose=0, callbacks=[proof])
    nudge(model.get_layer("stem").kernel)  # not during a `fit`
    model.fit(*rows, verbose=0, callbacks=[proof])
    assert proof.records == [FrozenRecord("fit 1", 6), FrozenRecord("fit 2", 6)]


def test_a_layer_that_writes_its_weights_although_it_is_frozen_is_caught(rows):
    parts = [keras.layers.SpectralNormalization(keras.layers.Dense(4), name="stem"), keras.layers.Dense(3, name="head")]
    model = keras.Sequential([keras.Input((6,)), *parts])
    groups = resolve_groups(model, [Selector("stem", prefixes="stem", frozen=True), Selector("head", rest=True)])
    freeze(model, groups)
    model.compile("sgd", "mse")
    proof = FrozenProof(groups)
    with pytest.raises(TrainingError) as error:
        model.fit(rows[0], np.eye(3)[rows[1]], verbose=0, callbacks=[proof])
    assert str(error.value) == (
        "Frozen tensors must stay bit-identical. 2 of 3 changed in fit 1: `stem/kernel`, `stem/vector_u`. If no "
        "callback assigns to them, look for a layer that does so in its `call`, as `SpectralNormalization`; phases call "
        "the frozen part in inference mode. Do not trust the trained model."
    )
    assert proof.records[0].changed


def test_what_other_code_froze_is_proven_too(tiny, rows):
    model = tiny()
    model.get_layer("body").enable_lora(2)
    groups = resolve_groups(model, [Selector("all", rest=True)])
    freeze(model, groups)
    model.compile("sgd", "sparse_categorical_crossentropy")
    proof = FrozenProof(groups)
    assert model.fit(*rows, verbose=0, callbacks=[proof])
    assert proof.records == [FrozenRecord("fit 1", 1)]


def test_a_model_that_trains_a_frozen_group_is_an_error_before_the_first_step(tiny, rows):
    model = tiny()
    groups = frozen_stem(model)
    model.get_layer("stem").trainable = True
    before = model.get_weights()
    with pytest.raises(TrainingError) as error:
        model.fit(*rows, verbose=0, callbacks=[FrozenProof(groups)])
    assert str(error.value) == (
        "What the layer groups freeze must be frozen in the model. `tiny` trains `stem/kernel`, `stem/bias`. Call "
        "`finetune.freeze(model, groups)` and then `model.compile`, before `fit`."
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("fast", [False, True])
def test_trainable_that_was_changed_after_the_step_was_compiled_is_an_error_unless_the_step_is_made_anew(
    tiny, rows, fast
):
    model = tiny()
    groups = frozen_stem(model)
    proof = FrozenProof(groups)
    callbacks = [proof, *([FastLoop()] if fast else [])]
    model.fit(*rows, verbose=0, callbacks=callbacks)
    model.get_layer("body").trainable = False
    if fast:  # which makes a function for what is trainable now
        with pytest.warns(UserWarning, match="^`trainable` was changed after `compile`"):
            model.fit(*rows, verbose=0, callbacks=callbacks)
        return
    with pytest.raises(TrainingError) as error:
        model.fit(*rows, verbose=0, callbacks=callbacks)
    assert str(error.value) == (
        "Keras compiles the training step in the first `fit` after `compile`, and ignores later changes of `trainable`. "
        "Since then, it was changed for `tiny/body/bias`, `tiny/body/kernel`. Call `model.compile` again, then `fit`."
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(*rows, verbose=0, callbacks=callbacks)
    assert len(proof.records) == 2
