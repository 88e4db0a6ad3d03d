"""Models, NLI triplets, LamRA_Eval's pictures, M-BEIR and sets of the zero-shot suite, to where all look for them.

Started by scripts/download.sh, which spells the settings. A file is downloaded beside its place, checked against the
size (and for large files the digest) that the hub or this file states, then renamed: what has its name is complete.
"""

from __future__ import annotations

import fcntl
import json
import posixpath
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from tqdm import tqdm

from lamra.common.archives import Limits, unpack
from lamra.common.cli import parse, run
from lamra.common.errors import UserError
from lamra.common.files import digest, read_jsonl
from lamra.common.flags import OUT_FOLDER, Flags, flag, require
from lamra.datasets.caption import load_captioned_images
from lamra.datasets.zeroshot.multiturn_fashion import CATEGORIES
from lamra.datasets.zeroshot.sugar_crepe import KINDS
from lamra.models.folders import PUBLISHED

T = TypeVar("T")
DEFAULT_NAMES = ("qwen2-vl-7b", "nli", "flickr", "coco")
MODEL_SUFFIXES = {".safetensors", ".json", ".txt", ".jinja"}  # no pickles, no code
# name -> archive in LamRA_Eval, its image folder, its captions
ARCHIVES = {
    "flickr": ("flickr.tar.gz", "images", "flickr_text.json"),
    "coco": ("coco.tar.gz", "coco_images", "coco_text.json"),
}
# M-BEIR's files; its pictures are one archive in parts.
MBEIR = "TIGER-Lab/M-BEIR"
MBEIR_TEXTS = re.compile(r"(query|cand_pool|qrels|instructions)/([\w.-]+/)?[\w.-]+\.(jsonl|txt|tsv)")
MBEIR_TASK = re.compile(r"query/(?:val|test)/mbeir_(\w+_task\d+)_(?:val|test)\.jsonl")
MBEIR_TRAINING = r"query/union_train/.+|cand_pool/global/mbeir_union_train_cand_pool\.jsonl"
MBEIR_PARTS = re.compile(r"mbeir_images\.tar\.gz\.part-(\d+)")
MBEIR_PICTURES = "mbeir_images"


@dataclass(frozen=True)
class Remote:
    """A file of a data set at an address that its authors state.

    Attributes:
        url: {hub} stands for the hub or its mirror.
        target: where it goes, below the data folder; of an archive, where `folder` goes.
        folder: of the archive that it is, "" for a file.
        digest: SHA-256 or MD5, where neither the address nor the server's answer vouches for the content.
    """

    url: str
    target: str
    folder: str = ""
    digest: str = ""


GITHUB = "https://raw.githubusercontent.com"
SUGAR_CREPE = f"{GITHUB}/RAIVNLab/sugar-crepe/0047054b243992f0fad63d6f64f7544862daf846/data"
CIRCO = f"{GITHUB}/miccunifi/CIRCO/267b5c9087d856ce1b41d2daf8f385ae5b629a3b/annotations"
GENECIS = f"{GITHUB}/facebookresearch/genecis/0c5c968c01b8ccffcc0990af2b430d21d7a12f49/genecis"
FASHION_IQ = f"{GITHUB}/XiaoxiaoGuo/fashion-iq/f71b16c3b09ef03b02c0fed160fa072fb3b8aa16/captions"
COCO = "http://images.cocodataset.org"  # no https: the digests are those that public tools agree on
VAL2017 = "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"
UNLABELED2017, IMAGE_INFO = "7ebc562819fdb32847aab79530457326", "ede38355d5c3e5251bb7f8b68e2c068f"
COCO_PICTURES = "each picture its own, of Flickr; COCO's annotations name them"
NO_COMMERCE = "CC BY-NC 4.0: no commercial use"
# name -> licence, files
ZEROSHOT = {
    "sugarcrepe": ("MIT", [Remote(f"{SUGAR_CREPE}/{kind}.json", f"sugar-crepe/data/{kind}.json") for kind in KINDS]),
    "coco-val2017": (
        COCO_PICTURES,
        [Remote(f"{COCO}/zips/val2017.zip", "sugar-crepe/images/val2017", "val2017", VAL2017)],
    ),
    "circo": (
        f"{NO_COMMERCE}; COCO's list CC BY 4.0",
        [
            Remote(f"{CIRCO}/val.json", "circo/annotations/val.json"),
            Remote(f"{CIRCO}/test.json", "circo/annotations/test.json"),
            Remote(f"{COCO}/annotations/image_info_unlabeled2017.zip", "circo/annotations", "annotations", IMAGE_INFO),
        ],
    ),
    "coco-unlabeled2017": (
        COCO_PICTURES,
        [Remote(f"{COCO}/zips/unlabeled2017.zip", "circo/images/unlabeled2017", "unlabeled2017", UNLABELED2017)],
    ),
    "genecis": (
        NO_COMMERCE,
        [
            Remote(f"{GENECIS}/{what}_{of}.json", f"genecis/annotations/{what}_{of}.json")
            for what in ("change", "focus")
            for of in ("object", "attribute")
        ],
    ),
    "fashioniq": (
        "Community Data License Agreement, https://cdla.io",
        [
            Remote(f"{FASHION_IQ}/cap.{of}.{split}.json", f"fashioniq/captions/cap.{of}.{split}.json")
            for of in CATEGORIES[1:]
            for split in ("train", "val")
        ],
    ),
    "urban1k": (
        NO_COMMERCE,
        [Remote("{hub}/datasets/BeichenZhang/Urban1k/resolve/main/Urban1k.zip", "Urban1k", "Urban1k")],
    ),
}
KNOWN = (*PUBLISHED, "nli", *ARCHIVES, "mbeir", *ZEROSHOT)
LIMITS = Limits(way_out="raise MAX_FILES, MAX_UNPACKED_GB or MAX_RATIO if you trust it")
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

    def fetch(
        self, repo: str, repo_type: str, folder: Path, names: Sequence[str] | Callable[[list[str]], Sequence[str]]
    ) -> dict[str, int]:
        """Download files of a repository into `folder`, and return their sizes; resumes and retries.

        Args:
            names: the files, or a function that chooses them among all.

        Raises:
            UserError: the repository or a file is not there, the tries are used up, or the disk refuses.
        """
        return self._patiently(repo, folder, partial(self._fetch_once, repo, repo_type, folder, names))

    def fetch_file(self, url: str, target: Path, digest: str = "") -> int:
        """Download a file from an address of any server, and return its size; resumes and retries.

        Args:
            digest: its SHA-256 or MD5; "" trusts the address.

        Raises:
            UserError: as fetch.
        """
        url = url.format(hub=self.endpoint or ENDPOINT)
        return self._patiently(url, target.parent, partial(self._fetch_file, url, target, digest))

    def _patiently(self, source: str, folder: Path, step: Callable[[], T]) -> T:
        for i in range(1, self.max_tries + 1):
            try:
                return step()
            except GONE as error:
                raise UserError(f"{source} cannot be downloaded: {_first_line(error)}") from None
            except (OSError, HTTPError) as error:
                # An error of this machine has an errno, one of the network comes wrapped and has none.
                if getattr(error, "errno", None) is not None:
                    raise UserError(f"{folder} cannot be written ({error}): see to it and start again") from None
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status in (403, 404, 410):  # a hub's own answers are GONE; other servers say no more
                    raise UserError(f"{source} cannot be downloaded: {_first_line(error)}") from None
                print(f"{source}: try {i} of {self.max_tries} failed ({_first_line(error)})", file=sys.stderr)
                if i < self.max_tries:
                    time.sleep(self.pause)
        raise UserError(
            f"{source} could not be downloaded in {self.max_tries} tries: check the network, or name a mirror in "
            "HF_ENDPOINT, and start again; what is there is kept"
        )

    def _fetch_once(
        self, repo: str, repo_type: str, folder: Path, names: Sequence[str] | Callable[[list[str]], Sequence[str]]
    ) -> dict[str, int]:
        revision = "main"
        if callable(names):
            info = HfApi(endpoint=self.endpoint).repo_info(repo, repo_type=repo_type, token=False, timeout=30)
            revision = info.sha
            names = names([sibling.rfilename for sibling in info.siblings])
        folder.mkdir(parents=True, exist_ok=True)

        def fetch_file(name: str) -> int:
            url = hf_hub_url(repo, name, repo_type=repo_type, revision=revision, endpoint=self.endpoint)
            return self._fetch_file(url, folder / name)

        with ThreadPoolExecutor(self.max_workers) as pool:
            sizes = dict(zip(names, pool.map(fetch_file, names)))
        (folder / _manifest(repo)).write_text(json.dumps(sizes, indent=2))
        return sizes

    def _fetch_file(self, url: str, target: Path, wanted: str = "") -> int:
        """Download one file unless it is there; its size. It is checked against `wanted`, or what the server states."""
        remote = get_hf_file_metadata(url, token=False, endpoint=self.endpoint)
        if remote.size is None or remote.etag is None:
            raise UserError(f"{url} states no size and etag, so this is no hub: check HF_ENDPOINT and proxy")
        if target.is_file():
            if target.stat().st_size == remote.size:
                return remote.size
            raise UserError(f"{target} has {target.stat().st_size} bytes, the server's {remote.size}: move it away")
        # huggingface_hub's own download starts a file anew after a break; this one goes on from what is there.
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.parent / f".{target.name}.{re.sub(r'[^0-9a-zA-Z]', '', remote.etag)[:16]}.incomplete"
        with unfinished.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is downloading {target}: wait for it or end it") from None
            if file.tell() > remote.size:
                file.truncate(0)
            free, lacking = shutil.disk_usage(target.parent).free, remote.size - file.tell()
            if lacking > free:
                raise UserError(
                    f"{target} needs {lacking / 10**9:.1f} GB more, and {free / 10**9:.1f} GB are free: make room"
                )
            http_get(
                remote.location,
                file,
                resume_size=file.tell(),
                headers={"Accept-Encoding": "identity"},
                expected_size=remote.size,
                displayed_filename=target.name,
            )
        wanted = wanted or (remote.etag if re.fullmatch(r"[0-9a-f]{64}", remote.etag) else "")
        found = digest(unfinished, "sha256" if len(wanted) == 64 else "md5") if wanted else ""
        if unfinished.stat().st_size != remote.size or found != wanted:
            unfinished.unlink()
            raise OSError(f"{target.name} arrived damaged")
        unfinished.replace(target)
        return remote.size


def download_model(hub: Hub, name: str, models_folder: Path) -> None:
    repo = PUBLISHED[name]

    def model_files(files: list[str]) -> list[str]:
        names = [file for file in files if "/" not in file and Path(file).suffix in MODEL_SUFFIXES]
        if not {".safetensors", ".json"} <= {Path(file).suffix for file in names}:
            raise UserError(f"{repo} holds no safetensors model: it is not what this project can load")
        return names

    folder = models_folder / repo.split("/")[1]
    _fetch_unless_complete(hub, repo, "model", folder, model_files, folder)


def download_nli(hub: Hub, data_folder: Path) -> None:
    csv = "nli_for_simcse.csv"
    _fetch_unless_complete(hub, "princeton-nlp/datasets-for-simcse", "dataset", data_folder, [csv], data_folder / csv)


def download_captioned_images(hub: Hub, name: str, data_folder: Path, limits: Limits) -> None:
    """LamRA_Eval's archive to data_folder/name/{image folder, captions}."""
    archive_name, images, captions = ARCHIVES[name]
    destination = data_folder / name
    if destination.is_dir() and any(destination.iterdir()):
        try:
            load_captioned_images(destination / images, destination / captions)
        except UserError as error:
            raise UserError(f"{destination} is not complete: move it away and start again ({error})") from None
        print(f"{name}: already complete in {destination}")
        return
    download_folder = data_folder / ".download" / name
    hub.fetch("code-kunkun/LamRA_Eval", "dataset", download_folder, [archive_name])
    print(f"{name}: extracting {archive_name}")
    extract(download_folder / archive_name, destination, images, captions, limits)
    shutil.rmtree(download_folder)
    print(f"{name}: complete in {destination}")


def download_mbeir(hub: Hub, chosen: Sequence[str], data_folder: Path, limits: Limits) -> None:
    """M-BEIR's files and pictures to data_folder/M-BEIR: all, or those of the tasks (or of "train") in `chosen`.

    The pictures of all tasks are one archive. Its parts stay in M-BEIR/.download, where other tasks find them, until
    everything is unpacked.
    """
    folder, wanted = data_folder / "M-BEIR", [name.removesuffix("_test") for name in chosen] or ["all"]
    record = folder / ".complete.json"  # name of a task -> its files and their sizes, written when all were there
    complete = _record(record)
    done = [name for name, sizes in complete.items() if _complete(folder, sizes)]
    if "all" in done or set(wanted) <= set(done):
        print(f"mbeir: already complete in {folder}: {', '.join(wanted)}")
        return
    found = {name: hub.fetch(MBEIR, "dataset", folder, partial(mbeir_files, name)) for name in wanted}
    parts_folder = folder / ".download"
    parts = [parts_folder / name for name in sorted(hub.fetch(MBEIR, "dataset", parts_folder, mbeir_parts))]
    rows = [folder / name for files in found.values() for name in files if name.endswith(".jsonl")]
    print(f"mbeir: unpacking the pictures of {', '.join(wanted)}")
    missing = extract_pictures(parts, folder, None if "all" in wanted else set(pictures(rows)), pictures(rows), limits)
    if missing:
        print(f"mbeir: {len(missing)} pictures that the files name are not in the archive, the first: {missing[0]}")
    record.write_text(json.dumps(complete | found, indent=1))
    if "all" in wanted:
        shutil.rmtree(parts_folder)
    else:
        print(f"mbeir: {parts_folder} keeps the archive for other tasks; delete it if you want none")
    print(f"mbeir: complete in {folder}: {', '.join(wanted)}")


def download_zeroshot(hub: Hub, name: str, data_folder: Path, limits: Limits) -> None:
    """The files of a set of the zero-shot suite to data_folder; what an archive holds beside its folder is left."""
    licence, files = ZEROSHOT[name]
    record = data_folder / _manifest(name)
    sizes = _record(record)  # written when all were there
    if sizes and _complete(data_folder, sizes):
        print(f"{name}: already complete in {data_folder}")
        return
    print(f"{name}: licence {licence}")
    found = {}
    for file in files:
        if not file.folder:
            found[file.target] = hub.fetch_file(file.url, data_folder / file.target, file.digest)
            continue
        archive = data_folder / ".download" / posixpath.basename(file.url)
        hub.fetch_file(file.url, archive, file.digest)
        print(f"{name}: extracting {archive.name}")
        found |= extract_folder(archive, file.folder, data_folder, file.target, limits)
        archive.unlink()
    record.write_text(json.dumps(found))
    print(f"{name}: complete in {data_folder}")


def extract_folder(archive: Path, folder: str, data_folder: Path, target: str, limits: Limits) -> dict[str, int]:
    """Unpack a folder of an archive to `target` below `data_folder`; what is there stays.

    Returns:
        The size of each file, by its path below data_folder.

    Raises:
        UserError: as archives.unpack, or the archive has no such folder.
    """
    sizes: dict[str, int] = {}

    def place(name: str, size: int) -> Path | None:
        if not name.startswith(f"{folder}/"):
            return None
        path = f"{target}/{name.removeprefix(f'{folder}/')}"
        sizes[path] = size
        there = data_folder / path
        return None if there.is_file() and there.stat().st_size == size else there

    _unpack([archive], data_folder, place, limits)
    if not sizes:
        raise UserError(f"{archive} holds no folder {folder}: its authors changed it; unpack it to {target} yourself")
    return sizes


def mbeir_files(name: str, files: list[str]) -> list[str]:
    """Those of M-BEIR's files that belong to a task (val and test), to "train", or to "all".

    Raises:
        UserError: no such task.
    """
    texts = [file for file in files if MBEIR_TEXTS.fullmatch(file)]
    tasks = sorted({match[1] for match in map(MBEIR_TASK.fullmatch, texts) if match})
    if name not in (*tasks, "train", "all"):
        raise UserError(f"mbeir:{name} is unknown: choose train, or of {', '.join(tasks)}")
    if name == "all":
        return texts
    own = MBEIR_TRAINING if name == "train" else rf"(query|qrels|cand_pool)/(val|test|local)/mbeir_{name}_.+"
    return [file for file in texts if re.fullmatch(own, file) or file.startswith("instructions/")]


def mbeir_parts(files: list[str]) -> list[str]:
    """The parts of the pictures' archive.

    Raises:
        UserError: there are none, or one is missing.
    """
    parts = sorted(file for file in files if MBEIR_PARTS.fullmatch(file))
    numbers = [int(MBEIR_PARTS.fullmatch(part)[1]) for part in parts]
    if not parts or numbers != list(range(len(parts))):
        raise UserError(f"{MBEIR} holds the archive's parts {numbers}, and 0, 1, ... are expected: it was changed")
    return parts


def pictures(files: Iterable[Path]) -> Iterator[str]:
    """The pictures that rows of M-BEIR name."""
    for file in files:
        for row in read_jsonl(file):
            if picture := row.get("img_path") or row.get("query_img_path"):
                yield posixpath.normpath(picture)


def extract_pictures(
    parts: list[Path], folder: Path, wanted: set[str] | None, named: Iterable[str], limits: Limits
) -> list[str]:
    """Unpack files of M-BEIR's pictures into `folder`, each whole or not at all; what is there stays.

    Args:
        parts: of the archive, in order.
        wanted: the pictures to take; None takes all.
        named: the pictures that should be there afterwards.

    Returns:
        Those of `named` that are not.

    Raises:
        UserError: as archives.unpack.
    """
    progress = tqdm(unit=" files")

    def place(name: str, size: int) -> Path | None:
        progress.update()
        if not name.startswith(f"{MBEIR_PICTURES}/"):
            raise UserError(f"{parts[0]} is refused, it may be malicious: it holds {name!r}")
        target = folder / name
        there = target.is_file() and target.stat().st_size == size
        return None if there or (wanted is not None and name not in wanted) else target

    with progress:
        _unpack(parts, folder, place, limits)
    return [picture for picture in dict.fromkeys(named) if not (folder / picture).is_file()]


def extract(archive: Path, destination: Path, images: str, captions: str, limits: Limits = LIMITS) -> None:
    """Unpack an archive and give its image folder and captions their place, checked, all at once or not at all.

    Raises:
        UserError: as archives.unpack, or the archive does not hold the two.
    """
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".extracting-") as temporary:
        unpacked, ready = Path(temporary, "unpacked"), Path(temporary, "ready")
        unpacked.mkdir()
        ready.mkdir()
        _unpack([archive], destination, lambda name, _size: unpacked / name, limits)
        for name in (images, captions):
            found = list(unpacked.rglob(name))
            if len(found) != 1:
                raise UserError(f"{archive} holds {len(found)} of {name}, expected 1: is it LamRA_Eval's archive?")
            found[0].rename(ready / name)
        load_captioned_images(ready / images, ready / captions)
        ready.rename(destination)


def _unpack(parts: list[Path], folder: Path, place: Callable[[str, int], Path | None], limits: Limits) -> None:
    try:
        unpack(parts, place, limits)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}): see to it and start again") from None


def _fetch_unless_complete(
    hub: Hub, repo: str, repo_type: str, folder: Path, names: Sequence[str] | Callable, where: Path
) -> None:
    sizes = _record(folder / _manifest(repo))  # written when all were there: the second run needs no network
    already = bool(sizes) and _complete(folder, sizes)
    if not already:
        hub.fetch(repo, repo_type, folder, names)
    print(f"{'already ' if already else ''}complete: {repo} in {where}")


def _complete(folder: Path, sizes: dict[str, int]) -> bool:
    return all((folder / f).is_file() and (folder / f).stat().st_size == size for f, size in sizes.items())


def _record(path: Path) -> dict:
    """What was complete; nothing where a kill left no record or half of one, and then the hub is asked again."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _manifest(repo: str) -> str:
    return f".{repo.split('/')[-1]}.sizes.json"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


@dataclass
class DownloadArguments(Flags):
    endpoint: str | None = flag(None, "the hub or a mirror of it, https://...")
    max_workers: int = flag(Hub.max_workers, "files at the same time", low=1, high=64)
    max_tries: int = flag(Hub.max_tries, "for a repository", low=1)
    pause: float = flag(Hub.pause, "seconds between tries", low=0, high=86400)
    max_files: int = flag(LIMITS.files, "of an archive", low=1)
    max_unpacked_gb: float = flag(LIMITS.gigabytes, "that an archive unpacks to", above=0)
    max_ratio: float = flag(LIMITS.ratio, "of that to the archive's own size", low=1)
    models_dir: str = flag("checkpoints/hf_models", "where models go", path=OUT_FOLDER)
    data_dir: str = flag("data", "where data go", path=OUT_FOLDER)

    def __post_init__(self):
        super().__post_init__()
        is_url = self.endpoint is None or re.fullmatch(r"https?://[^\s/]+\S*", self.endpoint)
        require(bool(is_url), "endpoint", self.endpoint, "https://... or http://... (HF_ENDPOINT)")


def main() -> None:
    args, names = parse(DownloadArguments, words="NAME", epilog=f"Without a NAME: {' '.join(DEFAULT_NAMES)}.")
    names = names or DEFAULT_NAMES
    for name in names:
        if name not in KNOWN and not re.fullmatch(r"mbeir:\w+(,\w+)*", name):
            raise UserError(f"{name!r} is unknown: choose from {' '.join(KNOWN)}")
    limits = replace(LIMITS, files=args.max_files, gigabytes=args.max_unpacked_gb, ratio=args.max_ratio)
    models, data = Path(args.models_dir), Path(args.data_dir)
    hub = Hub(args.endpoint, args.max_workers, args.max_tries, args.pause)
    for name in names:
        if name == "nli":
            download_nli(hub, data)
        elif name in ARCHIVES:
            download_captioned_images(hub, name, data, limits)
        elif name in ZEROSHOT:
            download_zeroshot(hub, name, data, limits)
        elif name.startswith("mbeir"):
            download_mbeir(hub, [part for part in name.partition(":")[2].split(",") if part], data, limits)
        else:
            download_model(hub, name, models)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the threads too; the next start resumes
    run(main, online=True)
