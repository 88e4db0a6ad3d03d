"""Base models, NLI triplets and LamRA_Eval's pictures, from a Hugging Face hub to where everything looks for them.

Started by scripts/download.sh, which spells the settings. A file is downloaded beside its place, checked against the
size (and for large files the SHA-256) that the hub states, then renamed: what has its name is complete.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

from lamra.datasets.caption import load_captioned_images

DEFAULT_NAMES = ("qwen2-vl-7b", "nli", "flickr", "coco")
MODEL_SUFFIXES = {".safetensors", ".json", ".txt", ".jinja"}  # no pickles, no code
# name -> archive in LamRA_Eval, its image folder, its captions
ARCHIVES = {
    "flickr": ("flickr.tar.gz", "images", "flickr_text.json"),
    "coco": ("coco.tar.gz", "coco_images", "coco_text.json"),
}
GONE = (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError, OfflineModeIsEnabled)


@dataclass(frozen=True)
class Hub:
    """Where from, and how patiently.

    Attributes:
        endpoint: address of the hub or a mirror of it; None is huggingface_hub's own choice.
        max_workers: files of a repository that are downloaded at the same time.
        max_tries, pause: tries for a repository, and the seconds between them.
    """

    endpoint: str | None = None
    max_workers: int = 2
    max_tries: int = 1000
    pause: float = 5

    def fetch(self, repo: str, repo_type: str, folder: Path, names: Sequence[str] = ()) -> None:
        """Download `names` of a repository, or a model's weights and settings, into `folder`; resumes and retries.

        Raises:
            ValueError: the repository or a file is not there, the tries are used up, or the disk refuses.
        """
        for i in range(1, self.max_tries + 1):
            try:
                return self._fetch_once(repo, repo_type, folder, names)
            except GONE as error:
                raise ValueError(f"{repo} cannot be downloaded: {_first_line(error)}") from None
            except (OSError, HTTPError) as error:
                # An error of this machine has an errno, one of the network comes wrapped and has none.
                if getattr(error, "errno", None) is not None:
                    raise ValueError(f"{folder} cannot be written ({error}): see to it and start again") from None
                print(f"{repo}: try {i} of {self.max_tries} failed ({_first_line(error)})", file=sys.stderr)
                if i < self.max_tries:
                    time.sleep(self.pause)
        raise ValueError(
            f"{repo} could not be downloaded in {self.max_tries} tries: check the network, or name a mirror in "
            "HF_ENDPOINT, and start again; what is there is kept"
        )

    def _fetch_once(self, repo: str, repo_type: str, folder: Path, names: Sequence[str]) -> None:
        revision = "main"
        if not names:
            info = HfApi(endpoint=self.endpoint).repo_info(repo, repo_type=repo_type, token=False, timeout=30)
            revision = info.sha
            files = [sibling.rfilename for sibling in info.siblings]
            names = [name for name in files if "/" not in name and Path(name).suffix in MODEL_SUFFIXES]
            if not {".safetensors", ".json"} <= {Path(name).suffix for name in names}:
                raise ValueError(f"{repo} holds no safetensors model: it is not what this project can load")
        folder.mkdir(parents=True, exist_ok=True)
        fetch_file = partial(self._fetch_file, repo, repo_type, revision, folder)
        with ThreadPoolExecutor(self.max_workers) as pool:
            sizes = dict(zip(names, pool.map(fetch_file, names)))
        (folder / _manifest(repo)).write_text(json.dumps(sizes, indent=2))

    def _fetch_file(self, repo: str, repo_type: str, revision: str, folder: Path, name: str) -> int:
        """Download one file unless it is there; its size."""
        url = hf_hub_url(repo, name, repo_type=repo_type, revision=revision, endpoint=self.endpoint)
        remote = get_hf_file_metadata(url, token=False, endpoint=self.endpoint)
        if remote.size is None or remote.etag is None:
            raise ValueError(f"{url} states no size and etag, so this is no hub: check HF_ENDPOINT and proxy")
        target = folder / name
        if target.is_file():
            if target.stat().st_size == remote.size:
                return remote.size
            raise ValueError(f"{target} has {target.stat().st_size} bytes, the hub's {remote.size}: move it away")
        # huggingface_hub's own download starts a file anew after a break; this one goes on from what is there.
        unfinished = folder / f".{name}.{re.sub(r'[^0-9a-zA-Z]', '', remote.etag)[:16]}.incomplete"
        with unfinished.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is downloading {target}: wait for it or end it") from None
            if file.tell() > remote.size:
                file.truncate(0)
            http_get(
                remote.location,
                file,
                resume_size=file.tell(),
                headers={"Accept-Encoding": "identity"},
                expected_size=remote.size,
                displayed_filename=name,
            )
        is_sha256 = re.fullmatch(r"[0-9a-f]{64}", remote.etag)
        if unfinished.stat().st_size != remote.size or (is_sha256 and _sha256(unfinished) != remote.etag):
            unfinished.unlink()
            raise OSError(f"{name} arrived damaged")
        unfinished.replace(target)
        return remote.size


def download_model(hub: Hub, name: str, models_folder: Path) -> None:
    from lamra.models.loading import MODELS  # seconds of imports, which the data sets need not wait for

    _fetch_unless_complete(hub, f"Qwen/{MODELS[name]}", "model", models_folder / MODELS[name], ())


def download_nli(hub: Hub, data_folder: Path) -> None:
    _fetch_unless_complete(hub, "princeton-nlp/datasets-for-simcse", "dataset", data_folder, ["nli_for_simcse.csv"])


def download_captioned_images(hub: Hub, name: str, data_folder: Path) -> None:
    """LamRA_Eval's archive to data_folder/name/{image folder, captions}."""
    archive_name, images, captions = ARCHIVES[name]
    destination = data_folder / name
    if destination.is_dir() and any(destination.iterdir()):
        try:
            load_captioned_images(destination / images, destination / captions)
        except ValueError as error:
            raise ValueError(f"{destination} is not complete: move it away and start again ({error})") from None
        print(f"{name}: already complete in {destination}")
        return
    download_folder = data_folder / ".download" / name
    hub.fetch("code-kunkun/LamRA_Eval", "dataset", download_folder, [archive_name])
    print(f"{name}: extracting {archive_name}")
    extract(download_folder / archive_name, destination, images, captions)
    shutil.rmtree(download_folder)
    print(f"{name}: complete in {destination}")


def extract(archive: Path, destination: Path, images: str, captions: str) -> None:
    """Unpack an archive and give its image folder and captions their place, checked, all at once or not at all.

    Raises:
        ValueError: the archive is damaged, does not hold the two, or wants to write outside the destination.
    """
    if not hasattr(tarfile, "data_filter"):
        raise ValueError(f"Python {sys.version.split()[0]} cannot extract safely: use 3.10.12, 3.11.4 or later")
    try:
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".extracting-") as temporary:
            unpacked, ready = Path(temporary, "unpacked"), Path(temporary, "ready")
            ready.mkdir()
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter=_inside)
            for name in (images, captions):
                found = list(unpacked.rglob(name))
                if len(found) != 1:
                    raise ValueError(f"{archive} holds {len(found)} of {name}, expected 1: is it LamRA_Eval's archive?")
                found[0].rename(ready / name)
            load_captioned_images(ready / images, ready / captions)
            ready.rename(destination)
    except tarfile.FilterError as error:
        raise ValueError(f"{archive} is refused, it may be malicious: {error}") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged ({error}): delete it and start again") from None
    except OSError as error:
        raise ValueError(f"{archive} cannot be extracted ({error}): see to it and start again") from None


def _inside(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """tarfile's data filter, which refuses ../ and links that lead outside, and would make absolute names relative."""
    if PurePosixPath(member.name).is_absolute():
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, path)


def _fetch_unless_complete(hub: Hub, repo: str, repo_type: str, folder: Path, names: Sequence[str]) -> None:
    what = f"{repo} in {folder / names[0] if names else folder}"
    manifest = folder / _manifest(repo)  # name -> size, written when all were there: the second run needs no network
    sizes = json.loads(manifest.read_text()) if manifest.is_file() else {}
    if sizes and all((folder / f).is_file() and (folder / f).stat().st_size == size for f, size in sizes.items()):
        print(f"already complete: {what}")
        return
    hub.fetch(repo, repo_type, folder, names)
    print(f"complete: {what}")


def _manifest(repo: str) -> str:
    return f".{repo.split('/')[-1]}.sizes.json"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _check_names(names: Sequence[str]) -> None:
    if set(names) <= {"nli", *ARCHIVES}:
        return
    from lamra.models.loading import MODELS

    known = [*(name for name in MODELS if name != "miniature"), "nli", *ARCHIVES]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is unknown: choose from {' '.join(known)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to get; default: {' '.join(DEFAULT_NAMES)}")
    parser.add_argument("--endpoint", help="the hub or a mirror of it, https://...")
    parser.add_argument("--max_workers", type=int, default=Hub.max_workers)
    parser.add_argument("--max_tries", type=int, default=Hub.max_tries)
    parser.add_argument("--pause", type=float, default=Hub.pause, help="seconds between tries")
    parser.add_argument("--models_dir", type=Path, default=Path("checkpoints/hf_models"))
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    args = parser.parse_args(arguments)
    names = args.names or DEFAULT_NAMES
    try:
        if args.endpoint and not args.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"HF_ENDPOINT {args.endpoint!r} must start with https:// or http://")
        if min(args.max_workers, args.max_tries) < 1 or args.pause < 0:
            raise ValueError("MAX_WORKERS and MAX_TRIES must be at least 1, and PAUSE at least 0")
        _check_names(names)
        hub = Hub(args.endpoint, args.max_workers, args.max_tries, args.pause)
        for name in names:
            if name == "nli":
                download_nli(hub, args.data_dir)
            elif name in ARCHIVES:
                download_captioned_images(hub, name, args.data_dir)
            else:
                download_model(hub, name, args.models_dir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the threads too; the next start resumes
    sys.exit(main())
