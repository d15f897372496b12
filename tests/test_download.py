"""data_download.sh against a server on this machine that can break a connection and lie about its files."""

import hashlib
import io
import os
import re
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "data_download.sh"
ATLAS_MASK = "sub-r{0:03d}s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz"


def archive(names, size=3000, links=()):
    """A tar file of fake scans with reproducible content that does not compress; links: (name, target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(target)
            tar.addfile(link)
        for name in names:
            content = hashlib.shake_128(name.encode()).digest(size)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


IXI = archive([f"IXI{i:03d}-Guys-{i:04d}-T1.nii.gz" for i in range(40)])
IXI_MD5 = hashlib.md5(IXI).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves self.files; self.cut: so many GETs break off halfway; self.ranges: whether it can send the rest
    alone; self.answers: status codes for the next requests, None: a redirect to the same address.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.seen, self.cut, self.ranges = {"/IXI-T1.tar": IXI}, [], 0, True
        self.answers = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def gets(self):
        """The Range header, or None, of each GET so far."""
        return [wanted for method, wanted in self.seen if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        wanted = self.headers.get("Range")
        self.server.seen.append((self.command, wanted))
        if self.server.answers:
            code = self.server.answers.pop(0)
            self.send_response(code or 302)
            if code is None:
                self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            content = content[start:]
            if self.server.cut:
                self.server.cut -= 1
                content = content[: len(content) // 2]
            self.wfile.write(content)


@pytest.fixture
def server():
    with Server() as s:
        thread = threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield s
        s.shutdown()
        thread.join()


@pytest.fixture
def download(server, tmp_path):
    """download("ixi-t1", VARIABLE=value...) runs the script with --out tmp_path/data; it expects IXI_MD5."""

    def run(name="ixi-t1", md5=IXI_MD5, path="", **variables):
        environment = {
            **os.environ,
            "PATH": f"{path}{os.environ['PATH']}",
            "no_proxy": "*",
            "LC_ALL": "C",
            "MADAD_IXI_URL": server.url,
            "MADAD_MSD_URL": server.url,
            "MADAD_MD5": md5,
            **variables,
        }
        command = ["bash", str(SCRIPT), name, "--out", str(tmp_path / "data")]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    run.out = tmp_path / "data"
    return run


def scans(folder):
    return sorted(p.name for p in folder.rglob("*.nii.gz"))


def left_over(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "ixi-t1")


def test_downloads_checks_and_unpacks(server, download):
    done = download()
    assert done.returncode == 0, done.stderr
    assert len(scans(download.out / "ixi-t1")) == 40
    expected = hashlib.shake_128(b"IXI007-Guys-0007-T1.nii.gz").digest(3000)
    assert (download.out / "ixi-t1" / "IXI007-Guys-0007-T1.nii.gz").read_bytes() == expected
    assert left_over(download.out) == []
    assert f"madad prepare {download.out}/ixi-t1" in done.stdout


def test_does_nothing_when_already_done(server, download):
    download()
    before = len(server.seen)
    again = download()
    assert again.returncode == 0
    assert "is there already (40 NIfTI files)" in again.stdout
    assert len(server.seen) == before


def test_a_broken_connection_is_resumed_in_the_same_run(server, download):
    server.cut = 1
    done = download()
    assert done.returncode == 0, done.stderr
    assert server.gets() == [None, f"bytes={len(IXI) // 2}-"]
    assert len(scans(download.out / "ixi-t1")) == 40


def test_a_broken_connection_is_resumed_by_the_next_run(server, download):
    server.cut = 1
    first = download(MADAD_TRIES="1")
    assert first.returncode == 1
    assert "give the same command again to go on" in first.stderr
    assert left_over(download.out) == ["IXI-T1.tar.part"]
    assert not (download.out / "ixi-t1").exists()
    second = download(MADAD_TRIES="1")
    assert second.returncode == 0, second.stderr
    assert server.gets() == [None, f"bytes={len(IXI) // 2}-"]
    assert left_over(download.out) == []


def test_a_server_that_cannot_resume_is_asked_for_the_whole(server, download):
    server.cut, server.ranges = 1, False
    done = download()
    assert done.returncode == 0, done.stderr
    assert server.gets() == [None, f"bytes={len(IXI) // 2}-", None]


def test_complete_but_unpacked_download_is_not_fetched_again(server, download):
    download.out.mkdir()
    (download.out / "IXI-T1.tar.part").write_bytes(IXI)
    assert download().returncode == 0
    assert server.gets() == []


def test_what_an_interrupted_unpacking_left_is_replaced(server, download):
    stale = download.out / ".ixi-t1.unpacking"
    stale.mkdir(parents=True)
    (stale / "half.nii.gz").write_bytes(b"half")
    assert download().returncode == 0
    assert "half.nii.gz" not in scans(download.out)
    assert left_over(download.out) == []


def test_a_damaged_file_is_put_aside_and_the_next_run_starts_anew(server, download):
    damaged = bytearray(IXI)
    damaged[len(damaged) // 3] ^= 1
    server.files["/IXI-T1.tar"] = bytes(damaged)
    first = download()
    assert first.returncode == 1
    assert "damaged" in first.stderr and IXI_MD5 in first.stderr
    assert left_over(download.out) == ["IXI-T1.tar.corrupt"]
    assert not (download.out / "ixi-t1").exists()
    server.files["/IXI-T1.tar"] = IXI
    assert download().returncode == 0
    assert server.gets() == [None, None]  # from the start, not resumed
    assert len(scans(download.out / "ixi-t1")) == 40


def test_the_published_md5_sums_are_the_default(server, download):
    for name, file, md5 in (
        ("ixi-t1", "IXI-T1.tar", "34901a0593b41dd19c1a1f746eac2d58"),
        ("ixi-t2", "IXI-T2.tar", "e3140d78730ecdd32ba92da48c0a9aaa"),
        ("msd-brain", "Task01_BrainTumour.tar", "240a19d752f0d9e9101544901065d872"),
    ):
        server.files[f"/{file}"] = IXI
        done = download(name, md5="")
        assert done.returncode == 1
        assert f"{file}: the file is damaged" in done.stderr and f"expected {md5}" in done.stderr


def test_too_little_space_is_seen_before_the_download(server, download, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    fake = tools / "df"  # 250 KiB free; the archive has 150 KiB and needs 5 % more unpacked
    fake.write_text(
        "#!/bin/sh\necho Filesystem 1024-blocks Used Available Capacity Mounted on\necho /d 9 8 250 9% /\n"
    )
    fake.chmod(0o755)
    refused = download(path=f"{tools}:")
    assert refused.returncode == 1
    assert "0.3 MB are needed and 0.3 MB are free; make room or choose another disk" in refused.stderr
    assert server.gets() == []
    # what is here already need not be downloaded: the other half and the unpacked scans fit
    (download.out / "IXI-T1.tar.part").write_bytes(IXI[: len(IXI) // 2])
    assert download(path=f"{tools}:").returncode == 0


def test_a_file_that_is_not_there(server, download):
    server.files.clear()
    done = download()
    assert done.returncode == 1
    assert "the server answers 404" in done.stderr
    assert len(server.gets()) == 1


def test_a_server_that_sends_in_circles(server, download):
    server.answers = [None] * 500
    done = download()
    assert done.returncode == 1
    assert "the server sends in circles" in done.stderr and "line" not in done.stderr
    assert not download.out.exists() or left_over(download.out) == []


def test_an_empty_file(server, download):
    server.files["/IXI-T1.tar"] = b""
    done = download()
    assert done.returncode == 1
    assert "the server sent an empty file" in done.stderr and "line" not in done.stderr
    assert left_over(download.out) == []


def test_an_error_of_the_server_is_called_so(server, download):
    server.answers = [500] * 500
    done = download(MADAD_TRIES="2")
    assert done.returncode == 1
    assert "the server answers 500, 2 times" in done.stderr and "broke" not in done.stderr + done.stdout
    assert len(server.gets()) == 2
    server.answers = [503, 503]  # to the question for the size, and once more
    done = download(MADAD_TRIES="2")
    assert done.returncode == 0, done.stderr
    assert "the server answers 503: going on" in done.stdout


def test_a_mark_in_the_archive_is_not_written_through(server, download, tmp_path):
    """`.complete` as a link to a file of the user's."""
    own = tmp_path / "own.txt"
    own.write_text("mine")
    server.files["/IXI-T1.tar"] = bad = archive(["a.nii.gz"], links=[(".complete", own)])
    done = download(md5=hashlib.md5(bad).hexdigest())
    assert done.returncode == 0, done.stderr
    assert own.read_text() == "mine"
    mark = download.out / "ixi-t1" / ".complete"
    assert not mark.is_symlink() and server.url in mark.read_text()


def test_a_part_that_is_a_link_is_not_written_through(server, download, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("mine")
    download.out.mkdir()
    (download.out / "IXI-T1.tar.part").symlink_to(own)
    done = download()
    assert done.returncode == 1
    assert "IXI-T1.tar.part: is a link" in done.stderr
    assert own.read_text() == "mine" and server.seen == []


def test_an_archive_without_scans_is_refused(server, download):
    server.files["/IXI-T1.tar"] = other = archive(["readme.txt"])
    done = download(md5=hashlib.md5(other).hexdigest())
    assert done.returncode == 1
    assert "holds no NIfTI file" in done.stderr
    assert not (download.out / "ixi-t1").exists() and not (download.out / ".ixi-t1.unpacking").exists()


def test_a_folder_of_the_users_own_is_left_alone(server, download):
    own = download.out / "ixi-t1"
    own.mkdir(parents=True)
    (own / "mine.nii.gz").write_bytes(b"mine")
    done = download()
    assert done.returncode == 1
    assert "not from this script" in done.stderr
    assert scans(own) == ["mine.nii.gz"] and server.seen == []


def test_the_single_folder_around_a_data_set_is_dropped(server, download):
    names = [
        "Task01_BrainTumour/dataset.json",
        "Task01_BrainTumour/imagesTr/BRATS_001.nii.gz",
        "._Task01_BrainTumour",
    ]
    server.files["/Task01_BrainTumour.tar"] = msd = archive(names)
    done = download("msd-brain", md5=hashlib.md5(msd).hexdigest())
    assert done.returncode == 0, done.stderr
    assert (download.out / "msd-brain" / "dataset.json").exists()
    assert (download.out / "msd-brain" / "imagesTr" / "BRATS_001.nii.gz").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ixi-t1", "--out", ""],
        ["ixi-t1", "--out="],
        ["oasis"],
        ["ixi-t1", "ixi-t2"],
        ["ixi-t1", "--out"],
        ["--fast"],
    ],
)
def test_wrong_use_names_the_help(arguments, tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert "--help" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_data_set_and_variable():
    done = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    variables = re.findall(r"\$\{(MADAD_\w+)", SCRIPT.read_text())
    for word in ("ixi-t1", "ixi-t2", "msd-brain", "atlas", "brats", *variables):
        assert word in done.stdout


def filled(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_atlas_steps_and_check(download):
    done = download("atlas")
    assert done.returncode == 1
    assert "not there yet" in done.stderr
    assert "openssl aes-256-cbc -md sha256 -d -a -in ATLAS_R2.0_encrypted.tar.gz" in done.stdout

    training = download.out / "atlas" / "ATLAS_2" / "Training"
    masks = [
        training / "R001" / f"sub-r{i:03d}s001" / "ses-1" / "anat" / ATLAS_MASK.format(i) for i in range(655)
    ]
    images = [Path(str(m).replace("_label-L_desc-T1lesion_mask", "_T1w")) for m in masks]
    for path in masks + images:
        filled(path)
    done = download("atlas")
    assert done.returncode == 0, done.stderr
    assert "complete: 655 patients" in done.stdout

    images[3].unlink()
    masks[7].write_bytes(b"")
    done = download("atlas")
    assert done.returncode == 1
    assert "INCOMPLETE, problems: 2" in done.stderr
    assert str(masks[3]) in done.stdout and str(masks[7]) in done.stdout


def test_brats_steps_and_check(download):
    done = download("brats")
    assert done.returncode == 1
    assert "not there yet" in done.stderr
    assert "syn25829067" in done.stdout and "syn27046444" in done.stdout

    patients = [download.out / "brats" / "Training" / f"BraTS2021_{i:05d}" for i in range(1251)]
    for patient in patients:
        for part in ("t1", "t1ce", "t2", "flair", "seg"):
            filled(patient / f"{patient.name}_{part}.nii.gz")
    done = download("brats")
    assert done.returncode == 0, done.stderr
    assert "complete: 1251 patients" in done.stdout

    missing = patients[5] / f"{patients[5].name}_t1ce.nii.gz"
    missing.unlink()
    done = download("brats")
    assert done.returncode == 1
    assert "INCOMPLETE, problems: 1 " in done.stderr
    assert str(missing) in done.stdout
