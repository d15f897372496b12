"""Folders of weights and of methods of the family that are damaged, contradict themselves, or are others'."""

import json
import os
import shutil
from pathlib import Path

import torch
from command import Command
from commands import ASSEMBLE, DETECT, FRESH, TENSORS, a_folder, a_pipe, change, cut, gone, text, words
from safetensors.torch import load_file, save_file

BY_METHOD = "detect scans/good.nii.gz --out out --method dae --register no"
COMPARE = "compare --data data --out out --set steps=2 --methods "
INDEX, SCHEDULE = "model/model_index.json", "model/scheduler/scheduler_config.json"
AUTOENCODER, DENOISER = "model/autoencoder/config.json", "model/denoiser/config.json"
NAN, INF = float("nan"), float("inf")


def twice(file: str, name: str, value):
    """A name two times in a file's object; the last one would count."""

    def make(folder: Path) -> None:
        content = (folder / file).read_text().rstrip().removesuffix("}")
        (folder / file).write_text(f"{content}, {json.dumps(name)}: {json.dumps(value)}}}")

    return make


def tensors(file: str, edit):
    def make(folder: Path) -> None:
        content = load_file(folder / file)
        edit(content)
        save_file(content, folder / file)

    return make


def first(content: dict) -> str:
    return sorted(k for k, v in content.items() if v.ndim > 1)[0]


def to_nan(content: dict) -> None:
    content[first(content)].view(-1)[0] = NAN


def to_integers(content: dict) -> None:
    content[first(content)] = content[first(content)].to(torch.int32)


def turned(content: dict) -> None:
    content[first(content)] = content[first(content)].transpose(0, 1).contiguous()


def one_more(content: dict) -> None:
    content["backdoor"] = torch.zeros(2)


def one_less(content: dict) -> None:
    del content[first(content)]


def linked(file: str, target: str):
    def make(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(target)

    return make


def head_of(length: int):
    """A safetensors file whose header says that it is so long."""
    return text(f"model/denoiser/{TENSORS}", length.to_bytes(8, "little") + b"{}")


def grid(**values):
    def make(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        content["grid"] |= values
        (folder / INDEX).write_text(json.dumps(content))

    return make


def another_pipeline(folder: Path) -> None:
    """Someone's Stable Diffusion, by the names of its files."""
    change(INDEX, _class_name="StableDiffusionPipeline")(folder)


OF_INDEX = [  # how the index is changed, what is said
    *(
        (f"{k} {ascii(v)[:20]}", change(INDEX, **{k: v}), said)
        for k, v, said in (
            ("eta", [0.5], "eta"),
            ("eta", True, "eta"),
            ("eta", INF, "eta"),
            ("gamma", -1, "gamma"),
            ("gamma", "x", "gamma"),
            ("sigma", 1e5, "sigma"),
            ("sigma", None, "sigma"),
            ("squared", 1, "squared"),
            ("reference", {}, "reference"),
            ("num_inference_steps", 0, "num_inference_steps"),
            ("num_inference_steps", 2.5, "num_inference_steps"),
            ("contrast", "pd", "no such contrast"),
            ("contrast", 5, "no such contrast"),
            ("contrast", ["t1"], ""),
            ("decision_threshold", "0.4", ""),
            ("decision_threshold", 1.5, "between 0 and 1"),
            ("decision_threshold", NAN, "out of bounds"),
            ("colour", 1, "no such setting"),
            ("grid", [96], "no usable grid"),
            ("grid", "96", "no usable grid"),
            ("scheduler", None, "must be"),
            ("safety_checker", [None, None], "no such"),
            ("_class_name", "StableDiffusionPipeline", "describes"),
            ("denoiser", "Denoiser", "must be"),
        )
    ),
    *(
        (f"grid {k} {ascii(v)[:20]}", grid(**{k: v}), "no usable grid|out of bounds")
        for k, v in (
            ("size", 97),
            ("size", 0),
            ("size", 10**9),
            ("size", "16"),
            ("size", None),
            ("spacing", -2),
            ("spacing", NAN),
            ("z_range", [80, -62]),
            ("z_range", [0]),
            ("z_range", "ab"),
            ("z_spacing", 1e-6),
            ("z_spacing", "x"),
        )
    ),
    ("eta twice", twice(INDEX, "eta", 0), "there twice"),
    ("in UTF-16", text(INDEX, "{}".encode("utf-16")), "damaged"),
    ("of 2 MB", text(INDEX, '{"_class_name": "MadAdPipeline", "x": "' + "a" * 2_000_000 + '"}'), "more than"),
    ("nested", text(INDEX, "[" * 100_000), "damaged"),
    ("of a number of 5,000 digits", text(INDEX, '{"eta": ' + "1" * 5000 + "}"), "damaged"),
]
OF_PARTS = [  # the file, how it is changed, what is said
    *(
        (AUTOENCODER, f"{k} {ascii(v)[:24]}", change(AUTOENCODER, **{k: v}))
        for k, v in (
            ("block_out_channels", "abc"),
            ("block_out_channels", []),
            ("block_out_channels", [-16]),
            ("block_out_channels", [16.5]),
            ("norm_num_groups", 0),
            ("norm_num_groups", 7),
            ("act_fn", "evil"),
            ("down_block_types", ["CrossAttnDownBlock2D"]),
            ("down_block_types", ["os.system"]),
            ("down_block_types", None),
            ("scaling_factor", 0),
            ("scaling_factor", -1),
            ("scaling_factor", [1]),
            ("scaling_factor", NAN),
            ("in_channels", 3),
            ("out_channels", 2),
            ("latent_channels", 0),
            ("layers_per_block", -1),
            ("_folding", 5),
            ("_folding", "4"),
            ("_class_name", "UNet2DModel"),
        )
    ),
    *(
        (DENOISER, f"{k} {ascii(v)[:24]}", change(DENOISER, **{k: v}))
        for k, v in (
            ("base_channels", 33),
            ("base_channels", 0),
            ("num_heads", 0),
            ("num_heads", -4),
            ("channel_multipliers", []),
            ("channel_multipliers", [1, 10**6]),
            ("attention_levels", [True]),
            ("attention_levels", "ab"),
            ("layers_per_block", 0),
            ("norm_groups", 0),
            ("latent_channels", 5),
        )
    ),
    *(
        (SCHEDULE, f"{k} {ascii(v)[:24]}", change(SCHEDULE, **{k: v}))
        for k, v in (
            ("beta_schedule", "evil"),
            ("trained_betas", [2.0]),
            ("trained_betas", [0.1] * 3),
            ("trained_betas", [NAN] * 10),
            ("trained_betas", [-0.5] * 10),
            ("timestep_spacing", "foo"),
            ("steps_offset", 100),
            ("steps_offset", -50),
            ("prediction_type", "epsilon"),
            ("clip_sample", True),
            ("thresholding", True),
            ("num_train_timesteps", 0),
            ("num_train_timesteps", 10.5),
            ("num_train_timesteps", "10"),
            ("num_train_timesteps", None),
        )
    ),
    (SCHEDULE, "twice", twice(SCHEDULE, "num_train_timesteps", 3)),
]
OF_TENSORS = [
    *(
        (name, tensors(f"model/{part}/{TENSORS}", edit))
        for part in ("autoencoder", "denoiser")
        for name, edit in (
            (f"a NaN in the {part}", to_nan),
            (f"whole numbers in the {part}", to_integers),
            (f"one more in the {part}", one_more),
            (f"one less in the {part}", one_less),
        )
    ),
    ("an axis exchanged", tensors(f"model/denoiser/{TENSORS}", turned)),
    ("a header of 2^63 bytes", head_of(2**63)),
    ("a header of 100 GB", head_of(10**11)),
    ("a header of 0 bytes", head_of(0)),
    ("a pickle", text(f"model/denoiser/{TENSORS}", b"\x80\x04cos\nsystem\n(S'touch out/x'\ntR.")),
    ("a pipe", a_pipe(f"model/denoiser/{TENSORS}")),
    ("a folder", a_folder(f"model/denoiser/{TENSORS}")),
    ("a link to a device", linked(f"model/denoiser/{TENSORS}", "/dev/zero")),
]
HEALTHY = "model/healthy.json"
OF_HEALTHY = [
    ("null", text(HEALTHY, "null")),
    ("cut", text(HEALTHY, '{"who": "15')),
    ("a pipe", lambda f: os.mkfifo(f / HEALTHY)),
    ("of words", text(HEALTHY, '{"who": "x", "z_mm": ["a"], "lowest": [], "median": [], "highest": []}')),
    (
        "of other lengths",
        text(HEALTHY, '{"who": "x", "z_mm": [1, 2], "lowest": [1], "median": [1], "highest": [1]}'),
    ),
]
METHOD = "dae/method.json"
OF_METHOD = [  # how the folder of a method is changed, what is said
    ("null", text(METHOD, "null"), "damaged"),
    ("cut", cut(METHOD), "damaged"),
    ("a pipe", a_pipe(METHOD), "not a file"),
    ("missing", gone(METHOD), "no such file"),
    ("contrast twice", twice(METHOD, "contrast", "flair"), "there twice"),
    *(
        (f"{k} {ascii(v)[:24]}", change(METHOD, **{k: v}), said)
        for k, v, said in (
            ("method", "evil", "no such method"),
            ("method", ["dae"], "method is"),
            ("settings", [], "settings is"),
            ("settings", {"size": "huge"}, "size="),
            ("settings", {"evil": 1}, "no such setting"),
            ("settings", {"steps": "many"}, "steps="),
            ("contrast", "pd", "contrast is"),
            ("measured", {"a": "x"}, "measured"),
            ("measured", {"a": NAN}, "measured"),
            ("measured", None, "measured"),
            ("grid", {}, ""),
            ("grid", {"size": 96}, ""),
            ("grid", {"size": 97, "spacing": 2.0, "z_range": [0, 9]}, "multiple of 8"),
            ("grid", [1], "grid is"),
        )
    ),
]
OF_NETWORK = [
    ("of another size", change(METHOD, settings={"size": "nano"}), "is not the network"),
    ("cut", cut(f"dae/unet/{TENSORS}"), "damaged"),
    ("with a NaN", tensors(f"dae/unet/{TENSORS}", to_nan), "NaN"),
    ("of 3000 layers", change("dae/unet/config.json", layers_per_block=3000), "out of bounds"),
    ("of an evil block", change("dae/unet/config.json", down_block_types=["evil", "evil"]), "evil"),
    ("missing", lambda f: shutil.rmtree(f / "dae/unet"), "no such file"),
    (
        "that is a denoiser",
        lambda f: shutil.copytree(f / "dn/best", f / "dae/unet", dirs_exist_ok=True),
        "describes",
    ),
]
USE = [  # the words, the file that is named, what is said
    (BY_METHOD.replace("dae", "model"), "model/method.json", "no such file"),
    (BY_METHOD.replace("dae", "nowhere"), "nowhere/method.json", "no such file"),
    (BY_METHOD.replace("dae", "notes.txt"), "notes.txt", "give a folder"),
    (BY_METHOD + " --resume", "", "leave --resume out"),
    (BY_METHOD + " --mask", "", "leave --mask out"),
    (BY_METHOD + " --score mask", "", "leave --score out"),
    (BY_METHOD + " --z-range 9 1", "", "from low to high"),
    (BY_METHOD + " --device foo", "", "cannot be used here"),
    (BY_METHOD.replace("out out", "out scans/good.nii.gz"), "", "is a file"),
    ("train evil --data data --out out", "", "invalid choice"),
    ("train dae --data data --out data", "data", "holds other files"),
    ("train dae --data data --out dae", "dae", "already"),
    ("train dae --data data --out model", "model", "holds other files"),
    ("train dae --data nowhere --out out", "nowhere", "no manifest"),
    ("train dae --data data --out out --set size=huge", "", "must be one of"),
    ("train dae --data data --out out --set evil=1", "", "no such setting"),
    ("train dae --data data --out out --set steps=1e99", "", "steps="),
    ("train dae --data data --out out --recipe authors", "dae", "no recipe"),
    ("train mdps --data data --out out --autoencoder nowhere", "nowhere", ""),
    ("train mdps --data data --out out --autoencoder data", "data", ""),
    (COMPARE + "dae,dae", "", "each once"),
    (COMPARE + ",", "", "no such method|each once"),
    (COMPARE + "evil", "evil", "no such method"),
    (COMPARE + "model", "model", "no such method"),
    (COMPARE + "dae evil=1", "", "unrecognized|no such"),
    (COMPARE.replace("steps=2", "evil=2") + "dae", "evil", "no such setting"),
    (COMPARE.replace("steps=2", "steps=0") + "dae", "", "steps="),
    (COMPARE + "dae --after sigma=-1", "", "sigma"),
    (COMPARE + "dae --after evil=1", "evil", "no such setting"),
    (COMPARE + "dae --after sigma", "", "name=value"),
    (COMPARE.replace("out out", "out notes.txt") + "dae", "notes.txt", "is a file"),
    ("export-onnx nowhere --out out", "nowhere", "neither a shipped model"),
    ("export-onnx ae/best --out out", "ae/best", "neither a shipped model"),
    ("export-onnx model --out data", "data", "something else"),
    ("export-onnx model --out data --force", "data", "something else"),
    ("export-onnx model --out scans/good.nii.gz", "good.nii.gz", "is a file"),
    ("export-onnx model --out model --force", "model", "something else"),
    (ASSEMBLE.replace("dn/best", "dae/unet"), "config.json", "describes"),
    (FRESH.replace("ae/best", "dae/unet"), "dae/unet", "holds UNet2DModel"),
    (FRESH.replace("ae/best", "model/denoiser"), "model/denoiser", "holds Denoiser"),
]
CASES = [
    *(Command(f"index: {n}", words(DETECT), says, INDEX, make) for n, make, says in OF_INDEX),
    *(Command(f"{f}: {n}", words(DETECT), "", "model/", make) for f, n, make in OF_PARTS),
    *(Command(f"tensors: {n}", words(DETECT), "", TENSORS, make) for n, make in OF_TENSORS),
    *(
        Command(f"healthy.json {n}", words(DETECT), "damaged|not a file", HEALTHY, make)
        for n, make in OF_HEALTHY
    ),
    *(Command(f"method.json {n}", words(BY_METHOD), says, METHOD, make) for n, make, says in OF_METHOD),
    *(
        Command(f"a method's network {n}", words(BY_METHOD), says, "dae/unet", make)
        for n, make, says in OF_NETWORK
    ),
    *(Command(f"madad {line}", words(line), says, file) for line, file, says in USE),
]
