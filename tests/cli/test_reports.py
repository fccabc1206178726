"""The commands on runs that have ended."""

import json


def test_a_report_is_written_and_what_is_no_run_is_refused(finetune, refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    (tmp_path / "plan.txt").write_text("")
    assert finetune("report", tmp_path).stdout == f"written: {tmp_path}/report.html\n"
    assert "is no run folder" in refused("report", tmp_path / "none")


def test_the_environment_is_printed_as_json_alone(finetune):
    done = finetune("env", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)) == {"versions", "machine", "devices", "settings"}
