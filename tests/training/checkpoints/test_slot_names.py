import keras
import pytest

from finetune import GroupedOptimizer
from finetune.training.checkpoints.model_state import parts_of
from finetune.training.checkpoints.slot_names import (
    STEPS,
    SlotName,
    read_slot_table,
    slot_names,
    slot_table,
    weight_names,
)

RULES = [
    *("SGD", "Adam", "AdamW", "Nadam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Ftrl", "Lion", "Lamb", "Adafactor"),
    *("Muon",),
]


def compiled(rule, **options):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, name="body"), keras.layers.Dense(2, name="head")]
    )
    make = getattr(keras.optimizers, rule)
    groups = {name: (make(1e-3), model.get_layer(name)) for name in ("body", "head")}
    model.compile(GroupedOptimizer(groups, **options), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("rule", RULES)
def test_every_slot_of_every_rule_of_keras_has_one_name_that_no_other_has(rule):
    model = compiled(rule, use_ema=True, gradient_accumulation_steps=2)
    parts = parts_of(model)
    names = slot_names(model.optimizer, weight_names(model))
    unnamed = [v.path for v in parts["optimizer"] if id(v) not in names]
    assert [path.rsplit("/")[-1] for path in unnamed] == ["learning_rate", "learning_rate", "group_starts"]
    here = [names[id(v)] for v in parts["optimizer"] if id(v) in names]
    # A slot of all weights of a group, such as the product of Nadam, is told apart by its group.
    assert len(set(here)) == len(here)
    assert here[0] == ("", STEPS)


def test_weights_that_share_a_path_have_their_names_in_the_layer_tree():
    inputs = keras.Input((4,))

    def branch(name):
        x = keras.Input((4,))
        return keras.Model(x, keras.layers.Dense(4, name="a")(x), name=name)

    branches = [branch("left"), branch("right")]
    network = keras.Model(inputs, keras.layers.Add()([branch(inputs) for branch in branches]))
    optimizer = GroupedOptimizer({"all": (keras.optimizers.Adam(1e-3), network)})
    network.compile(optimizer, "mse")
    optimizer.build(network.trainable_variables)
    parts = parts_of(network)
    table = slot_table(optimizer, weight_names(network), parts["optimizer"])
    assert table["rules"] == {"all": "Adam"}
    kernels = {row[1] for row in read_slot_table(table) if row and row[1].weight.endswith("kernel")}
    assert kernels == {
        SlotName(f"{side}/a/kernel", slot) for side in ("left", "right") for slot in ("_momentums", "_velocities")
    }
    assert read_slot_table({}) == []
