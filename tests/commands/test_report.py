"""`finetune report`, on the folder of a run."""

import shutil
import subprocess
import sys

import pytest

from finetune.commands.report import write_report
from finetune.errors import FinetuneError


def test_a_page_is_written_without_tensorflow_also_of_a_run_that_has_not_ended(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    (tmp_path / "plan.txt").write_text("")
    code = "import sys; from finetune.commands.report import write_report; write_report(sys.argv[1]); "
    code += "print({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
    assert "This run has not come to its end." in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "model_card.md").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FinetuneError, match="is no run folder"):
        write_report(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(FinetuneError, match="is no run folder"):
        write_report(tmp_path)
