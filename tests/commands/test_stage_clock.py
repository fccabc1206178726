from finetune.commands.stage_clock import StageClock


def test_times_of_a_stage_add_up_also_while_it_runs():
    clock = StageClock()
    clock.seconds = {"load": 5.0, "save": 1.0}
    with clock("load"):
        assert clock.so_far()["load"] >= 5.0
    assert clock.seconds["load"] >= 5.0
    assert clock.seconds["save"] == 1.0
    assert clock.so_far() == clock.seconds
