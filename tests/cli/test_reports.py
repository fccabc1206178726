"""The commands on runs that have ended."""

import json
import subprocess
import sys

from finetune.results.hashes import write_hashes


def test_a_report_is_written_and_what_is_no_run_is_refused(finetune, refused, tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    (tmp_path / "plan.txt").write_text("")
    assert finetune("report", tmp_path).stdout == f"written: {tmp_path}/report.html\n"
    assert "is no run folder" in refused("report", tmp_path / "none")


def test_an_audit_exits_1_where_a_file_has_changed_and_needs_no_tensorflow(without_tensorflow, environment, tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    (tmp_path / "plan.txt").write_text("")
    write_hashes(tmp_path, {})
    command = [sys.executable, "-c", without_tensorflow, "audit", tmp_path]
    for text, code, line in (("", 0, "2 files: every bit is as"), ("x", 1, "changed: plan.txt\n1 of 2 files changed")):
        (tmp_path / "plan.txt").write_text(text)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stdout.startswith(line)) == (code, True), done


def test_the_environment_is_printed_as_json_alone(finetune):
    done = finetune("env", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)) == {"versions", "machine", "devices", "settings"}
