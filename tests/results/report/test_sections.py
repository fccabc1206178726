"""The sections on metrics, curves, plan, data and machine."""

from finetune.results.report.run_files import read_run
from finetune.results.report.sections import (
    curves_section,
    data_section,
    machine_section,
    metrics_section,
    plan_section,
    range_section,
    repeat_section,
)


def test_metrics_have_their_interval_and_what_they_are_compared_with(folder):
    made = metrics_section(read_run(folder))
    assert '<td class="n">0.7 to 0.9</td><td class="n">0.3</td><td class="n">0.34</td>' in made
    (folder / "report.json").unlink()
    assert "No intervals: they need predictions that the run has kept." in metrics_section(read_run(folder))


def test_curves_are_of_epochs_and_of_steps_where_these_were_recorded(folder):
    made = curves_section(read_run(folder))
    assert [title in made for title in ("training", "validation", "learning rate of each group", "phase 2")] == [
        True
    ] * 4
    assert "gradient norm" not in made
    (folder / "steps.csv").write_text(
        "step,phase,loss,gradient_norm/head,learning_rate/head\n1,1,2,0.5,0.1\n2,1,1,0.25,0.1\n"
    )
    made = curves_section(read_run(folder))
    assert "gradient norm of each group. head: 0.5 at step 1, 0.25 at 2" in made


def test_the_divergence_of_an_lr_range_test_is_cut_off(folder):
    made = range_section(read_run(folder))
    assert "suggested 1.0e-3" in made
    assert "0.5 at 0.001" in made


def test_the_plan_has_groups_phases_advice_restored_weights_and_the_proof(folder):
    made = plan_section(read_run(folder))
    for text in ("frozen", "1.0e-1, 5.0e-2, 1.0e-2".replace("1.0e-1", "0.1"), "1 of 1", "0 of 1", "<code>a</code>"):
        assert text in made
    assert "1 weights were restored from w.h5; 1 excluded." in made
    assert "All 6 frozen tensors are bit for bit what they were at the start." in made


def test_data_have_their_rows_classes_and_what_was_fitted(folder):
    made = data_section(read_run(folder))
    assert "&lt;i&gt;owl&lt;/i&gt;" in made
    assert "mean 3.25" in made


def test_seconds_memory_versions_and_the_command_are_there(folder):
    run = read_run(folder)
    made = machine_section(run)
    assert "2.5 s" in made
    assert "500 MB" in made
    assert "3.15.1" in made
    assert f"finetune run {folder}/recipe.yaml --out {folder}-again" in repeat_section(run)
    assert "seed: 3 # &lt;b&gt;" in repeat_section(run)
