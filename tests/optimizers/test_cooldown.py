from finetune.optimizers.cooldown import cooldown_start
from finetune.optimizers.schedules import constant, cosine_decay, warmup_stable_decay, with_warmup


def test_the_earliest_fall_counts_where_all_other_rates_are_constant():
    stable = warmup_stable_decay(0.1, total_steps=20, decay_steps=4)
    earlier = warmup_stable_decay(0.1, total_steps=20, decay_steps=6, warmup_steps=2)
    assert cooldown_start([0.1, stable, constant(0.1), with_warmup(constant(0.1), 3)]) == 16
    assert cooldown_start([stable, earlier]) == 14


def test_rates_that_depend_on_the_length_throughout_have_no_such_step():
    stable = warmup_stable_decay(0.1, total_steps=20, decay_steps=4)
    assert cooldown_start([stable, cosine_decay(0.1, 20)]) is None
    assert cooldown_start([stable, with_warmup(cosine_decay(0.1, 20), 3)]) is None
    assert cooldown_start([0.1, constant(0.1)]) is None
