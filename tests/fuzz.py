"""Coverage-guided fuzzing of the readers with atheris: `make fuzz`, or python tests/fuzz.py READER [libFuzzer options].

Bytes become a file of the reader's kind; whatever they are, reading must end in clips or in a UserError. `planted` is
a reader with a fault, which shows that faults are found: `make fuzz FUZZED=planted` must fail.
"""

import io
import pickle
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["components", "model"]):
    from components.npy import parse_npz
    from components.pickles import load_pickle
    from components.readers import READERS
    from components.torch_files import read_torch_file
    from model.errors import UserError
    from model.ntu import convert_pyskl, parse_skeleton

import numpy as np
import torch
from pose_files import poses, write_coco, write_mediapipe, write_openpose, write_table
from small_run import annotations
from test_readers import raw

from model.layouts import load_layout

LABELS = "clip,label,split\na,x,train\nb,y,test\nwave_1,x,train\n"
NTU = "S001C001P001R001A001"


def saved(write: Callable[[Path], object], name: str) -> list[bytes]:
    """The file that `write` makes in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return [(Path(folder) / name).read_bytes()]


def array(form: Callable[..., None]) -> bytes:
    form(stream := io.BytesIO(), poses(17)["wave_1"])
    return stream.getvalue()


def archive(kind: str) -> bytes:
    stream, content = io.BytesIO(), raw(NTU, 1, 0)
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as made:
            made.writestr(f"{NTU}.skeleton", content)
    else:
        with tarfile.open(fileobj=stream, mode="w") as made_tar:
            info = tarfile.TarInfo("a/" * 60 + f"{NTU}.skeleton")
            info.size = len(content)
            made_tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def checkpoint(old: bool) -> bytes:
    torch.save({"a": torch.ones(2, 3)}, stream := io.BytesIO(), _use_new_zipfile_serialization=not old)
    return stream.getvalue()


@atheris.instrument_func
def planted(content: bytes) -> None:
    if len(content) > 3 and content[0] == 111:
        if content[1] == 111 and content[2] == 112 and content[3] == 115:
            raise ValueError("the planted fault")


def of_reader(reader: str, name: str, **options: object) -> Callable[[bytes], object]:
    """Read the bytes as the file `name` of a folder with labels."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    if reader not in ("annotations", "ntu_raw"):
        (folder / "labels.csv").write_text(LABELS)

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        for clip in READERS[reader](folder, **options).clips:
            assert np.isfinite(clip.joints).all() and clip.joints.size

    return read


def of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    path = Path(tempfile.mkdtemp(prefix="fuzz-")) / name

    def write_and_read(content: bytes) -> None:
        path.write_bytes(content)
        read(path)

    return write_and_read


PENN = list(load_layout("penn13").joints)
# name -> (what to do with the bytes, files to begin with)
TARGETS: dict[str, tuple[Callable[[], Callable[[bytes], object]], Callable[[], list[bytes]]]] = {
    "skeleton": (lambda: lambda content: convert_pyskl(parse_skeleton(content, "clip")), lambda: [raw(NTU, 1, 0)]),
    "zip": (lambda: of_reader("ntu_raw", "a.zip"), lambda: [archive("zip")]),
    "tar": (lambda: of_reader("ntu_raw", "a.tar"), lambda: [archive("tar")]),
    "pickle": (lambda: of_file("a.pkl", load_pickle), lambda: [pickle.dumps(annotations(), n) for n in (2, 4, 5)]),
    "annotations": (lambda: of_reader("annotations", "a.pkl"), lambda: [pickle.dumps(annotations(), 4)]),
    "torch": (lambda: of_file("a.pt", read_torch_file), lambda: [checkpoint(False), checkpoint(True)]),
    "npz": (lambda: lambda content: parse_npz(content, "a.npz"), lambda: [array(np.savez_compressed)]),
    "arrays": (lambda: of_reader("arrays", "a.npy"), lambda: [array(np.save)]),
    "table": (
        lambda: of_reader("table", "a.csv", layout="penn13"),
        lambda: saved(lambda f: write_table(f, PENN, ["x", "y"]), "poses.csv"),
    ),
    "coco": (
        lambda: of_reader("coco", "a.json"),
        lambda: [saved(partial(write_coco, form=form), "wave_1.json")[0] for form in ("results", "mmpose")],
    ),
    "mediapipe": (
        lambda: of_reader("mediapipe", "a.json"), lambda: saved(lambda f: write_mediapipe(f, "json"), "wave_1.json"),
    ),
    "openpose": (
        lambda: of_reader("openpose", "a_000000000000_keypoints.json"),
        lambda: saved(write_openpose, "wave_1/wave_1_000000000000_keypoints.json"),
    ),
    "planted": (lambda: planted, lambda: [b"oo"]),
}  # fmt: skip


def main() -> None:
    name, *options = sys.argv[1:] or ["skeleton"]
    make, begin = TARGETS[name]
    read = make()

    def once(content: bytes) -> None:
        try:
            read(content)
        except UserError:
            pass

    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for number, content in enumerate(begin()):
        (corpus / str(number)).write_bytes(content)
    atheris.Setup([sys.argv[0], f"-artifact_prefix={corpus}/", "-rss_limit_mb=3000", *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
