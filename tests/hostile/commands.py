"""Commands that make no sense, that would write over something, or whose input is damaged."""

import json
import os
import shutil
from pathlib import Path

from command import Command

TENSORS = "diffusion_pytorch_model.safetensors"
DETECT = "detect scans/good.nii.gz --out out --weights model --register no"
TRAIN = "train autoencoder --data data --out ae --resume --set size=tiny steps=2 batch_size=2 warmup_steps=1"
TRAIN += " validate_every=2 checkpoint_every=2"
FRESH = "train denoiser --data data --out out --autoencoder ae/best"
ASSEMBLE = "assemble --autoencoder ae/best --denoiser dn/best --data data --out out"
REPRODUCE = "reproduce S1 --train data --test data --out out"

USE = [  # the words, what is said
    # names
    ("", "the following arguments are required"),
    ("dtect scans --out out", "invalid choice"),
    ("detect scans", "--out"),
    ("detect --out out", "required: scan"),
    (DETECT + " --outt x", "unrecognized"),
    (DETECT + " --score mean", "invalid choice"),
    ("detect nowhere.nii --out out --weights model", None),
    ("detect @ --out out", "an empty name"),
    ("detect scans --out @", "an empty name"),
    ("detect scans --out out --weights @", "an empty name"),
    ("detect scans --out out --brain @ --weights model", "an empty name"),
    ("detect data --out out --weights model", "no NIfTI file"),
    ("prepare @ --out out", "an empty name"),
    ("prepare nowhere --out out", "no such folder"),
    ("prepare scans/good.nii.gz --out out", "no such folder|is a file"),
    ("prepare data --out out", "no NIfTI file"),
    ("prepare scans --out out --contrast pd", "invalid choice"),
    ("prepare scans --out out --layout dicom", "invalid choice"),
    ("prepare scans --out out --layout ixi", "no t1 scan in the layout"),
    ("detect scans --out out --weights modle", "modle: neither a shipped model"),
    ("detect scans --out out --weights data/modle", "modle: neither a shipped model"),
    ("detect scans --out out --weights notes.txt", "neither a shipped model"),
    ("detect scans --out out --weights scans", "neither a shipped model"),
    ("evaluate --data nowhere --weights model", "no manifest.json"),
    ("evaluate --data notes.txt --weights model", "no manifest.json"),
    ("evaluate --data data data --weights model", "given twice"),
    ("train autoencoder --data nowhere --out out", "no manifest.json"),
    ("train autoencoder --data data data --out out", "given twice"),
    ("train autoencoder --data data --out out --set mixed_precision=fp16", "needs a GPU"),
    ("train encoder --data data --out out", "invalid choice"),
    ("train denoiser --data data --out out", "--autoencoder"),
    ("train denoiser --data data --out out --autoencoder nowhere", "no trained autoencoder"),
    ("train denoiser --data data --out out --autoencoder dn/best", "holds Denoiser"),
    ("train denoiser --data data --out out --autoencoder ae", "no trained|holds None|not an autoencoder"),
    ("assemble --autoencoder dn/best --denoiser ae/best --data data --out out", "config.json: describes"),
    ("assemble --autoencoder ae/best --denoiser nowhere --data data --out out", "no such file"),
    ("assemble --autoencoder ae/best --denoiser dn/best --data nowhere --out out", "no manifest.json"),
    ("recolour nowhere --out out", "no manifest.json"),
    ("import-official nowhere --out out", "no such file"),
    ("import-official scans --out out", "is not a file"),
    ("import-official /dev/zero --out out", "is not a file"),
    ("import-official notes.txt --out out", "cannot be read as a PyTorch file"),
    ("import-official dn/checkpoint.pt --out out", "checkpoint.pt: "),
    ("reproduce S3 --test data --out out", "invalid choice"),
    ("reproduce S1 --test data --out out", "--train"),
    ("reproduce S1 --train data --test data data --out out", "one folder"),
    ("reproduce S2 --test data data --out out", "one folder a contrast"),
    ("reproduce S2 --train data --test data --out out", "one folder a contrast"),
    (REPRODUCE, "no lesion in the val split"),
    # numbers
    *(
        (f"{DETECT} {option}", said)
        for option, said in (
            ("--eta 2", "eta lies between 0 and 1"),
            ("--eta -1", "eta lies between 0 and 1"),
            ("--eta nan", "eta lies between 0 and 1"),
            ("--eta much", "invalid float"),
            ("--steps 0", "1 to 10 reverse steps"),
            ("--steps -5", "1 to 10 reverse steps"),
            ("--steps 11", "1 to 10 reverse steps"),
            ("--steps 2.5", "invalid int"),
            ("--batch-size 0", "whole number from 1"),
            ("--batch-size -1", "whole number from 1"),
            ("--channel -1", "whole number from 0"),
            ("--seed -1", "whole number from 0"),
            ("--seed 99999999999999999999", "whole number from 0"),
            ("--seed x", "invalid whole_number"),
            ("--z-range 5 1", "from low to high"),
            ("--z-range nan nan", "from low to high"),
            ("--z-range 1e9 2e9", "outside of -500 to 500"),
            ("--z-spacing 0", "z_spacing"),
            ("--z-spacing 1e-3", "z_spacing"),
            ("--z-spacing nan", "z_spacing"),
            ("--device foo", "--device foo: cannot be used here"),
            ("--device cuda:99", "--device cuda:99: cannot be used here"),
            ("--resume --force", "choose one"),
            ("--mask --score latent", "a mask needs"),
        )
    ),
    *(
        (f"prepare scans --out out {option}", said)
        for option, said in (
            ("--size 97", "multiple of 8"),
            ("--size 5000", "outside of 8 to 1024"),
            ("--size -8", "outside of 8 to 1024"),
            ("--spacing 1e6", "outside of 0.25 to 20"),
            ("--spacing 0", "outside of 0.25 to 20"),
            ("--spacing nan", "outside of 0.25 to 20"),
            ("--workers 0", "whole number from 1"),
            ("--workers -3", "whole number from 1"),
            ("--seed -1", "whole number from 0"),
            ("--splits nowhere.json", "no such file"),
            ("--splits /dev/zero", "not a file"),
            ("--splits scans", "not a file"),
            ("--splits notes.txt", "notes.txt: damaged"),
            ("--splits results.json", "results.json: must be"),
            ("--png data", "choose another folder"),
            ("--png out", "choose another folder"),
            ("--png notes.txt", "is a file"),
        )
    ),
    *(
        (f"phantom --out out {option}", said)
        for option, said in (
            ("--normal -1", "whole number from 0"),
            ("--normal 0 --patients 0", "at least one subject"),
            ("--spacing 1e-3", "from 0.25 to 10 mm"),
            ("--spacing nan", "from 0.25 to 10 mm"),
            ("--spacing 100", "from 0.25 to 10 mm"),
            ("--seed -5", "whole number from 0"),
        )
    ),
    *(
        (f"{FRESH} --set {setting}", said)
        for setting, said in (
            ("corruption_share=2", "from 0 to 1"),
            ("ema_decay=NaN", "from 0 to 1"),
            ("learning_rate=-1", "1e-12 or more"),
            ("learning_rate=Infinity", "1e-12 or more"),
            ("steps=0", "from 1 to"),
            ("steps=1e400", "from 1 to"),
            ("steps={}", "from 1 to"),
            ("size=huge", "one of nano"),
            ("mask_loss=null", "one of bce, mse"),
            ("dropout=true", "from 0 to 1"),
            ("sped=1", "no such setting: sped"),
            ("steps", "name=value"),
            ("=1", "no such setting"),
        )
    ),
    *(
        (f"{ASSEMBLE} --set {setting}", said)
        for setting, said in (
            ("eta=-1", "eta lies between"),
            ("sigma=-1", "sigma lies between"),
            ("gamma=0", "gamma must be positive"),
            ("mask_threshold=NaN", "mask_threshold lies between"),
            ("decision_threshold=2", "from 0 to 1"),
            ("num_inference_steps=1.5", "whole number"),
            ("squared=1", "true or false"),
            ("reference=scan", "one of"),
        )
    ),
    (REPRODUCE + " --set size=XS", "denoiser.NAME=VALUE"),
    (REPRODUCE + " --set denoiser.size=XXX", "one of nano"),
    (REPRODUCE + " --set evaluation.size=XS", "no such part"),
    (REPRODUCE + " --seed -1", "whole number from 0"),
    ("import-official notes.txt --out out --heads 0", "whole number from 1"),
    ("recolour data --out out --seed -1", "whole number from 0"),
    # what is written over
    ("detect scans --out notes.txt --weights model", "is a file"),
    ("detect scans --out scans/good.nii.gz --weights model", "is a file"),
    ("prepare scans --out data", "was prepared with"),
    ("prepare scans --out scans", "not a prepared folder"),
    ("prepare scans --out model", "not a prepared folder"),
    ("phantom --out data --force", "is not empty"),
    ("phantom --out scans --force", "is not empty"),
    ("train autoencoder --data data --out data", "holds other files than ours"),
    ("train autoencoder --data data --out scans --resume", "holds other files than ours"),
    ("train autoencoder --data data --out model", "holds other files than ours"),
    ("train autoencoder --data data --out ae", "holds a training run already"),
    ("train autoencoder --data data --out ae/best", "config.json: damaged"),
    ("train autoencoder --data data --out dn --resume", "was started with"),
    ("train denoiser --data data --autoencoder ae/best --out ae --resume", "was started with"),
    (ASSEMBLE.replace(" out", " model"), "--force"),
    (ASSEMBLE.replace(" out", " data") + " --force", "something else than a pipeline"),
    (ASSEMBLE.replace(" out", " ae/best") + " --force", "something else than a pipeline"),
    (ASSEMBLE.replace(" out", " ae") + " --force", "something else than a pipeline"),
    ("recolour data --out data", "is not empty"),
    ("recolour data --out scans", "is not empty"),
    ("recolour data --out notes.txt", "is a file"),
    ("evaluate --data data --weights model --out scans/good.nii.gz", "JSON"),
    ("evaluate --data data --weights model --out data/manifest.json", "not an earlier result"),
    ("evaluate --data data --weights model --out results.json", "not an earlier result"),
    ("evaluate --data data --weights model --out data", "JSON"),
    ("import-official dn/checkpoint.pt --out data", "exists already"),
    ("demo --out data", "other files than an earlier demo"),
    ("demo --out notes.txt", "is a file"),
]


def text(file: str, content: str | bytes):
    return lambda f: (f / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(file: str, share: float = 0.5):
    return lambda f: os.truncate(f / file, int((f / file).stat().st_size * share))


def gone(file: str):
    return lambda f: (f / file).unlink()


def a_pipe(file: str):
    def make(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return make


def a_folder(file: str):
    def make(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return make


def change(file: str, **values):
    def make(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | values))

    return make


def exchanged(a: str, b: str):
    def make(folder: Path) -> None:
        shutil.move(folder / a, folder / "x")
        shutil.move(folder / b, folder / a)
        shutil.move(folder / "x", folder / b)

    return make


DAMAGE = [  # what is damaged and how, the command, the file that is named, what is said
    *(
        (f"config.json {how}", make, TRAIN, "ae/config.json", said)
        for how, make, said in (
            ("null", text("ae/config.json", "null"), "damaged"),
            ("a list", text("ae/config.json", "[1]"), "damaged"),
            ("cut", cut("ae/config.json"), "damaged"),
            ("empty", text("ae/config.json", ""), "damaged"),
            ("of bytes", text("ae/config.json", b"\xff\x00"), "damaged"),
            ("nested", text("ae/config.json", "[" * 100_000), "damaged"),
            ("a pipe", a_pipe("ae/config.json"), "not a file"),
            ("a folder", a_folder("ae/config.json"), "not a file"),
            ("with steps in words", change("ae/config.json", steps="two"), "steps is"),
            ("with a seed of NaN", change("ae/config.json", seed=float("nan")), "seed is NaN"),
        )
    ),
    *(
        (f"an encoder {how}", make, FRESH, "ae/best", "")
        for how, make in (
            ("cut", cut(f"ae/best/{TENSORS}")),
            ("empty", text(f"ae/best/{TENSORS}", "")),
            ("without tensors", gone(f"ae/best/{TENSORS}")),
            ("without config", gone("ae/best/config.json")),
            ("config null", text("ae/best/config.json", "null")),
            ("config cut", cut("ae/best/config.json")),
            ("of 3000 layers", change("ae/best/config.json", layers_per_block=3000)),
            ("of 1e9 channels", change("ae/best/config.json", latent_channels=10**9)),
            ("that is a denoiser", exchanged("ae/best", "dn/best")),
        )
    ),
    *(
        (f"a model {how}", make, DETECT, named, said)
        for how, make, named, said in (
            ("without index", gone("model/model_index.json"), "model", "neither a shipped model"),
            ("whose index is cut", cut("model/model_index.json"), "model_index.json", "damaged"),
            ("whose index is null", text("model/model_index.json", "null"), "model_index.json", "NoneType"),
            ("whose eta is 2", change("model/model_index.json", eta=2), "model_index.json", "eta"),
            (
                "of a module",
                change("model/model_index.json", denoiser=["evil", "Y"]),
                "model_index.json",
                "must be",
            ),
            ("with code", text("model/evil.py", "raise SystemExit(7)"), "evil.py", "no code"),
            (
                "of 1e10 steps",
                change("model/scheduler/scheduler_config.json", num_train_timesteps=10**10),
                "scheduler_config.json",
                "out of bounds",
            ),
            ("cut", cut(f"model/denoiser/{TENSORS}"), TENSORS, "damaged"),
            ("exchanged", exchanged("model/autoencoder", "model/denoiser"), "config.json", "describes"),
            (
                "without schedule",
                lambda f: shutil.rmtree(f / "model/scheduler"),
                "scheduler_config.json",
                "no such file",
            ),
            ("of a pipe", a_pipe("model/denoiser/config.json"), "config.json", "no such file|not a file"),
        )
    ),
    *(
        (
            f"{name}, a slice {how}",
            make,
            words,
            "a/image.npy" if "evaluate" not in words else "c/image.npy",
            "damaged",
        )
        for name, words in (
            ("train", FRESH),
            ("recolour", "recolour data --out out"),
            ("evaluate", "evaluate --data data --weights model"),
        )
        for how, make in (
            ("cut", lambda f: [os.truncate(f / f"data/scans/{s}/image.npy", 1600) for s in "ac"]),
            ("missing", lambda f: [(f / f"data/scans/{s}/image.npy").unlink() for s in "ac"]),
        )
    ),
    ("a manifest null", text("data/manifest.json", "null"), FRESH, "manifest.json", "damaged"),
    ("a manifest cut", cut("data/manifest.json"), ASSEMBLE, "manifest.json", "damaged"),
    (
        "a manifest empty",
        text("data/manifest.json", ""),
        "evaluate --data data --weights model",
        "manifest.json",
        "damaged",
    ),
    ("no manifest", gone("data/manifest.json"), REPRODUCE, "data", "no manifest.json"),
    (
        "a result of someone",
        text("out.json", "[1]"),
        "evaluate --data data --weights model --out out.json",
        "out.json",
        "not an earlier result",
    ),
    (
        "metrics of someone",
        lambda f: ((f / "out").mkdir(), (f / "out/metrics.json").write_text("[]")),
        REPRODUCE,
        "metrics.json",
        "not an earlier result",
    ),
]


def words(line: str) -> list[str]:
    return ["" if w == "@" else w for w in line.split()]


CASES = [
    *(
        Command(f"madad {line}", words(line), says or "no such file", code=2 if says else 1)
        for line, says in USE
    ),
    *(Command(f"damaged: {name}", words(line), says, file, make) for name, make, line, file, says in DAMAGE),
]
