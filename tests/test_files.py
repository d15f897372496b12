"""What is written is there whole or not at all, whoever else writes and whatever happens meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from madad_lite.authors import checkpoints
from madad_lite.cli import main
from madad_lite.errors import Refused, RunError, ScanError, one_line
from madad_lite.files import check_json_output, new_file, new_folder, nifti_files, read_json, remove_leftovers


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_there_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.nii.gz"
    for content in ("one", "two"):
        with new_file(path) as part:
            part.write_text(content)
            assert part.name.endswith(".nii.gz") and part.parent == tmp_path
        assert path.read_text() == content and names(tmp_path) == ["a.nii.gz"]
    with pytest.raises(KeyError), new_file(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "two" and names(tmp_path) == ["a.nii.gz"]
    with pytest.raises(RunError, match=r"nowhere/b: cannot be written \(No such file or directory\)"):
        with new_file(tmp_path / "nowhere" / "b") as part:
            part.write_text("")


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (done.append(name), real(*a)))
    with new_file(tmp_path / "a") as part:
        part.write_text("")
    assert done == ["fsync", "replace"]


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    """Also of the longest name that there is."""
    path, together = tmp_path / ("n" * 248 + ".nii.gz"), threading.Barrier(2)
    failed = []

    def write(text):
        try:
            with new_file(path) as part:
                part.write_text(text)
                together.wait()
                assert part.read_text() == text
        except BaseException as error:  # of a thread, pytest would not see it
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_text() in "ab" and names(tmp_path) == [path.name]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom madad_lite.files import new_file\n"
        "with new_file(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")])
    assert killed.returncode == -signal.SIGKILL and len(names(tmp_path)) == 1
    (tmp_path / ".part-mine").touch()  # of someone else
    with new_file(tmp_path / "b") as part:
        part.write_text("")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([".part-mine", part.name])


@pytest.mark.parametrize("one_step", [True, False])
def test_a_folder_is_replaced_as_a_whole(one_step, tmp_path, monkeypatch):
    if not one_step:  # as on a system that cannot
        monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # has no such function
    path = tmp_path / "deep" / "model"
    with new_folder(path) as part:
        (part / "old").touch()
    with pytest.raises(RunError, match="model: exists already"), new_folder(path):
        pass
    with pytest.raises(KeyError), new_folder(path, replace=True) as part:
        (part / "half").touch()
        raise KeyError
    assert names(path) == ["old"] and names(path.parent) == ["model"]
    with new_folder(path, replace=True, ours=["old"]) as part:
        (part / "new").touch()
    assert names(path) == ["new"] and names(path.parent) == ["model"]


def test_a_folder_that_was_set_aside_when_the_exchange_was_interrupted_comes_back(tmp_path):
    (tmp_path / ".old-model").mkdir()
    (tmp_path / ".old-model" / "old").touch()
    with pytest.raises(RunError, match="exists already"), new_folder(tmp_path / "model"):
        pass
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["old"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(RunError), new_folder(tmp_path / "model", replace=True):
        pass
    assert (tmp_path / "model").read_text() == "mine" and names(tmp_path) == ["model"]


def test_results_take_the_place_of_results_only(tmp_path, capsys):
    scan, notes, results = (tmp_path / n for n in ("scan.nii.gz", "notes.json", "results.json"))
    scan.write_text("a scan")
    notes.write_text('["mine"]')
    results.write_text(json.dumps({"methods": {}}))
    check_json_output(results, "methods")
    check_json_output(tmp_path / "new.json", "methods")
    for path, said in ((scan, "ends in .json"), (notes, "not an earlier result")):
        with pytest.raises(Refused, match=said):
            check_json_output(path, "methods")
        before = path.read_bytes()
        assert main(["evaluate", "--data", str(tmp_path), "--out", str(path)]) == 2
        assert said in capsys.readouterr().err and path.read_bytes() == before


def test_a_folder_that_is_no_pipeline_is_not_replaced_by_one(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    parts = ["--autoencoder", "a", "--denoiser", "d", "--data", str(tmp_path)]
    assert main(["assemble", *parts, "--out", str(tmp_path / "out"), "--force"]) == 2
    assert "something else than a pipeline" in capsys.readouterr().err and names(tmp_path / "out") == ["mine"]


def test_an_import_that_fails_leaves_nothing(tmp_path, monkeypatch):
    class Half:
        def save_pretrained(self, folder):
            (folder / "half").touch()
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoints, "read_official", lambda *_: Half())
    with pytest.raises(RunError, match="out: cannot be written"):
        checkpoints.import_official(tmp_path / "file", tmp_path / "out")
    assert not names(tmp_path)


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch, caplog):
    for name in ("b.NII", "closed/c.nii", "sub/a.nii.gz", ".hidden.nii", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(13, os.strerror(13), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [p.name for p in nifti_files(tmp_path)] == ["b.NII", "a.nii.gz"]
    assert f"{tmp_path}/closed: a folder that cannot be read (Permission denied)" in caplog.text


def test_a_folder_with_files_of_others_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    for kept in ("notes.txt", "sub/notes.txt"):
        (out / kept).parent.mkdir(parents=True, exist_ok=True)
        (out / kept).write_text("years of work")
        with (
            pytest.raises(RunError, match=f"out: holds something else than .*{kept}"),
            new_folder(out, replace=True) as part,
        ):
            (part / "weights").touch()
        assert (out / kept).read_text() == "years of work" and sorted(tmp_path.iterdir()) == [out]
        (out / kept).unlink()
    for name in ("weights", "older", ".DS_Store"):  # what comes again, what is known as ours, what is hidden
        (out / name).touch()
    with new_folder(out, replace=True, ours=["old*"]) as part:
        (part / "weights").write_text("new")
    assert [p.name for p in out.iterdir()] == ["weights"] and (out / "weights").read_text() == "new"


def test_a_name_twice_in_an_object_is_refused(tmp_path):
    for text in ('{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ScanError, match=r'x.json: damaged \("a" is there twice\)'):
            read_json(tmp_path / "x.json")


def test_a_long_message_is_shown_by_its_ends():
    said = one_line(ValueError("begin " + "x " * 10_000 + "end"))
    assert said.startswith("begin ") and said.endswith(" end") and len(said) <= 601
