"""The optimizers of the groups of a plan become one."""

import keras
import numpy as np

from finetune.groups.selectors import Selector, resolve_groups
from finetune.planning.joined_optimizer import join_optimizers
from finetune.planning.plan import GroupSettings


def test_frozen_groups_have_none_and_biases_and_norms_do_not_decay_unless_asked(tiny):
    model = tiny()
    prefixes = {"stem": ("stem", "bn"), "body": ("body",), "head": ("head",)}
    groups = resolve_groups(model, [Selector(n, prefixes=p, frozen=n == "stem" or None) for n, p in prefixes.items()])
    settings = {
        name: GroupSettings(
            keras.optimizers.SGD(0.1, weight_decay=0.5), "sgd", 0.1, 0.1, decay_bias_and_norm=name == "head"
        )
        for name in ("body", "head")
    }
    optimizer = join_optimizers(groups, settings, global_clipnorm=1.0)
    assert optimizer.group_names == ("body", "head")
    assert optimizer.global_clipnorm == 1.0
    variables = [leaf.variable for group in groups[1:] for leaf in group.trainable]
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    optimizer.apply([np.zeros(variable.shape, "float32") for variable in variables], variables)
    # w - w * weight_decay * rate
    np.testing.assert_allclose([float(np.ravel(variable)[0]) for variable in variables], [0.95, 1.0, 0.95, 0.95])
