import signal
import subprocess
import sys

import pytest
import torch

from mcq.errors import InputError
from mcq_llm.storage import as_stored, new_folder


def test_a_finished_folder_takes_its_name(tmp_path):
    (tmp_path / "out").mkdir()  # empty: allowed
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("done")
        assert not list((tmp_path / "out").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "done"


def test_missing_parents_are_made(tmp_path):
    with new_folder(tmp_path / "a" / "b"):
        pass
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_folder_leaves_nothing(tmp_path, error):
    def half_a_run():
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        half_a_run()
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_nothing_under_the_final_name(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from mcq_llm.storage import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'file').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="must not exist or be empty"), new_folder(path):
            pass
    assert (tmp_path / "file").read_text() == "precious"


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*choose another output folder"):
        with new_folder(tmp_path / "file" / "out"):
            pass


def test_stored_precision():
    assert as_stored(torch.ones(2)).dtype == torch.float16
    assert as_stored(torch.tensor([1e6])).dtype == torch.float32
    assert as_stored(torch.tensor([1])).dtype == torch.int64
