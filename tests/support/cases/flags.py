"""Every flag of every entrypoint, each with values that it may and may not have: made from the flags' declarations.

A case starts the entrypoint with a command line that is right but for this one value, up to where a model would be
loaded (a start that gets there is accepted) or, for those that load none, up to the work.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zeroshot_files import suite_files

from cases import ANY, Case, start
from lamra.common.flags import FILE, FILE_OR_FOLDER, FOLDER, LIMITS, OUT_FILE, OUT_FOLDER, UNLIMITED, Flags, Limits
from lamra.train.inherited import NOTED, REFUSED

UNWRITABLE = "/proc/lamra/x"  # also for root
LONG = "x" * 5000
NUMBERS = ("", "nan", "-1", "0", "1e309", "abc", "1,2", "9" * 30)
WORDS = ("", "abc", "1,2", "ü€😀", "a\nb", "\udcff")
SWITCHES = ("", "True ", "2")
FEW = ("", "abc")  # of a flag without a meaning, and of one that was tried with another entrypoint
EMPTY_IS_NONE = ("eval_data_path", "eval_queries")  # as scripts spell a path that is not there


class Accepted(BaseException):
    """The start has come through all its checks."""


def accept(*_: Any, **__: Any) -> None:
    raise Accepted


@dataclass(frozen=True)
class Places:
    """What right command lines name.

    Attributes:
        model: a whole model; adapter, other_adapter: adapters on it.
        world, mbeir, mined: as the fixtures of conftest.py.
        rankings: a folder of rankings of nights_task4, with upstream's three files beside.
        suite: of each set of the zero-shot suite flags that name its files.
    """

    model: Path
    adapter: Path
    other_adapter: Path
    world: Path
    mbeir: Path
    mined: Path
    rankings: Path
    suite: dict[str, dict[str, Path]]


@dataclass(frozen=True)
class Entrypoint:
    """An entrypoint, the dataclasses of its flags, what a right command line names, and what ends an accepted start.

    Attributes:
        own: the fields to try; None: all.
        words: before the flags.
    """

    name: str
    main: Callable[[], None]
    flags: tuple[type[Flags], ...]
    right: dict[str, Any]
    stop: tuple[str, ...]
    own: frozenset[str] | None = None
    words: tuple[Path, ...] = ()


MODEL_IS_LOADED = ("lamra.models.loading.load_model", "lamra.train.build.load_model")


def entrypoints(places: Places) -> list[Entrypoint]:
    import lamra.eval.inference
    import lamra.eval.reporting.ladder
    import lamra.eval.reporting.study
    import lamra.eval.rerank.judge
    import lamra.train.build
    import lamra.train.contrastive_trainer
    import lamra.train.rerank_trainer  # noqa: F401 (once, before the forks)
    from lamra import demo
    from lamra.app import gallery, index
    from lamra.eval import (
        embed,
        eval_mbeir,
        eval_mbeir_global,
        eval_rerank,
        ladder,
        mine_negatives,
        mine_rerank,
        study,
        teacher_scores,
        upstream_rerank,
        vectors,
        zeroshot,
    )
    from lamra.eval.flags import GuestArguments, SearchArguments
    from lamra.eval.rerank import suite
    from lamra.eval.rerank.reranking import RankingFlags
    from lamra.eval.training_files import MiningFlags
    from lamra.eval.zeroshot_sets import SETS
    from lamra.eval.zeroshot_suite import evaluate_set
    from lamra.export import merge_lora, sentence_transformers, soup
    from lamra.scripts import download
    from lamra.train import flags as of_train
    from lamra.train import mbeir_get_rerank_train_data, mine_batches, train_mbeir, train_nli, train_rerank

    training = dict(model_id="miniature", model_local_path=places.model, output_dir="out", report_to="none")
    training |= dict(per_device_train_batch_size=8, dataloader_num_workers=0)
    model, mbeir = dict(model_id=places.model), dict(data_path=places.mbeir)
    captions = dict(image_data_path=places.world / "test/images", text_data_path=places.world / "test/captions.json")
    upstream = {
        "query_data_path": places.mbeir / "query/test/mbeir_nights_task4_test.jsonl",
        "cand_pool_path": places.mbeir / "cand_pool/local/mbeir_nights_task4_cand_pool.jsonl",
        "instructions_path": places.mbeir / "instructions/query_instructions.tsv",
        "image_path_prefix": places.mbeir,
        "ret_query_data_path": places.rankings / "up_query_names.json",
        "ret_cand_data_path": places.rankings / "up_cand_names.json",
        "save_name": "nights_task4_top50",
    }
    mine = model | mbeir | dict(top=6, search_depth=600)

    def names(of: type) -> frozenset[str]:
        return frozenset(argument.name for argument in fields(of))

    of_app = [
        Entrypoint(
            "index",
            index.main,
            (index.IndexArguments,),
            model | dict(source=places.world / "test/images", output_dir="index"),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "gallery",
            gallery.main,
            (gallery.GalleryArguments,),
            dict(index=places.rankings / "index"),
            ("lamra.app.gallery.stay_here",),
        ),
    ]
    if any(find_spec(name) is None for name in ("lancedb", "gradio")):  # both are refused for that alone
        of_app = []

    trained = names(of_train.TrainingFlags) | names(of_train.ModelArguments)
    return [
        Entrypoint(
            "train_nli",
            train_nli.main,
            (of_train.ModelArguments, of_train.DataArguments, of_train.TrainingFlags),
            training | dict(data_path=places.world / "nli.csv"),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "train_mbeir",
            train_mbeir.main,
            (of_train.ModelArguments, of_train.MBEIRDataArguments, of_train.TrainingFlags),
            training | mbeir,
            MODEL_IS_LOADED,
            names(of_train.MBEIRDataArguments) | {"model_id", "seed", "output_dir", "text_max_tokens", "deepspeed"},
        ),
        Entrypoint(
            "train_rerank",
            train_rerank.main,
            (of_train.RerankModelArguments, of_train.RerankDataArguments, of_train.RerankTrainingFlags),
            training | mbeir | dict(mined=places.mined / "mined.jsonl", per_device_train_batch_size=2),
            MODEL_IS_LOADED,
            (names(of_train.RerankDataArguments) - trained)
            | {"temperature", "text_max_tokens", "output_dir", "lora_r"},
        ),
        Entrypoint(
            "eval_mbeir",
            eval_mbeir.main,
            (eval_mbeir.MBEIRArguments,),
            model | mbeir | dict(tasks="nights_task4"),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "eval_mbeir_global",
            eval_mbeir_global.main,
            (eval_mbeir_global.GlobalArguments,),
            model | mbeir | dict(tasks="nights_task4"),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "eval_flickr",
            lambda: zeroshot.evaluate_captions("Flickr30K"),
            (zeroshot.ZeroshotArguments,),
            model | captions,
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "eval_rerank",
            eval_rerank.main,
            (eval_rerank.RerankArguments,),
            model | mbeir | dict(tasks="nights_task4", rankings=places.rankings, depth=5),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "eval_zeroshot_rerank",
            suite.rerank_set,
            (suite.SetFlags, RankingFlags, suite.CaptionArguments),
            model | captions | dict(set="captions", rankings=places.rankings, depth=5),
            MODEL_IS_LOADED,
            names(suite.SetFlags) | names(RankingFlags) | {"image_data_path", "text_data_path", "output_dir"},
        ),
        *(
            Entrypoint(
                f"eval_{name}",
                partial(evaluate_set, name),
                (SETS[name].arguments,),
                model | files,
                MODEL_IS_LOADED,
                names(SETS[name].arguments) - names(SearchArguments),
            )
            for name, files in places.suite.items()
        ),
        Entrypoint(
            "vectors",
            vectors.main,
            (vectors.VectorsArguments,),
            model | captions,
            MODEL_IS_LOADED,
            names(vectors.VectorsArguments) - names(GuestArguments),
        ),
        Entrypoint("mine_rerank", mine_rerank.main, (mine_rerank.MineArguments,), mine, MODEL_IS_LOADED),
        Entrypoint(
            "mine_batches",
            mine_batches.main,
            (mine_batches.BatchArguments,),
            mbeir | dict(mined=places.mined / "mined.jsonl", size=4, skip=0, output="out.jsonl"),
            ("lamra.train.mine_batches.partition",),
        ),
        Entrypoint(
            "mine_negatives",
            mine_negatives.main,
            (mine_negatives.NegativesArguments,),
            model | mbeir | dict(search_depth=600),
            MODEL_IS_LOADED,
            names(mine_negatives.NegativesArguments) - names(MiningFlags) | {"output_dir"},
        ),
        Entrypoint(
            "teacher_scores",
            teacher_scores.main,
            (teacher_scores.TeacherArguments,),
            model | mbeir | dict(mined=places.mined / "mined.jsonl"),
            MODEL_IS_LOADED,
            frozenset({"mined", "queries", "output_dir"}),
        ),
        Entrypoint(
            "mbeir_get_rerank_train_data",
            mbeir_get_rerank_train_data.main,
            (mbeir_get_rerank_train_data.UpstreamMineArguments,),
            mine | dict(save_name="nights_task4"),
            MODEL_IS_LOADED,
            frozenset({"save_name", "queries", "pool", "output_dir"}),
        ),
        Entrypoint(
            "eval_mbeir_rerank_pointwise",
            lambda: upstream_rerank.write_answers("pointwise"),
            (upstream_rerank.AnswerArguments,),
            model | upstream | dict(rank_num=5),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "mbeir_rerank",
            lambda: upstream_rerank.report("pointwise"),
            (upstream_rerank.ReportArguments,),
            mbeir | dict(task_name="nights_task4"),
            ("lamra.eval.upstream_rerank.open_tasks",),
        ),
        Entrypoint(
            "embed",
            embed.main,
            (embed.EmbedArguments,),
            model | dict(input=places.rankings / "items.jsonl", output="out.npz"),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "demo",
            demo.main,
            (demo.DemoArguments,),
            model | dict(folder=places.world / "test/images", text="a red circle"),
            MODEL_IS_LOADED,
        ),
        *of_app,
        Entrypoint(
            "merge_lora",
            merge_lora.main,
            (merge_lora.MergeArguments,),
            dict(model_id=places.adapter, save_path="merged"),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "soup",
            soup.main,
            (soup.SoupArguments,),
            captions | dict(output_dir="soup", greedy=True, eval="captions"),
            MODEL_IS_LOADED,
            words=(places.adapter, places.other_adapter),
        ),
        Entrypoint(
            "export",
            sentence_transformers.main,
            (sentence_transformers.ExportArguments,),
            dict(model_id=places.adapter, save_path="exported"),
            MODEL_IS_LOADED,
        ),
        Entrypoint(
            "study", study.main, (study.StudyArguments,), dict(study="s"), ("lamra.eval.reporting.study.read_results",)
        ),
        Entrypoint(
            "ladder",
            ladder.main,
            (ladder.LadderArguments,),
            dict(study="s"),
            ("lamra.eval.reporting.ladder.read_rungs",),
        ),
        Entrypoint(
            "download",
            download.main,
            (download.DownloadArguments,),
            dict(endpoint="http://localhost:1"),
            ("lamra.scripts.download.Hub.fetch",),
        ),
    ]


def cases(places: Places) -> Iterator[Case]:
    """The table."""
    tried: set[Any] = set()
    for entrypoint in entrypoints(places):
        yield Case(f"{entrypoint.name}", lambda folder, of=entrypoint: begin(of, folder, of.right), None)
        for of in entrypoint.flags:
            hints = get_type_hints(of)
            for argument in fields(of):
                if entrypoint.own is not None and argument.name not in entrypoint.own:
                    continue
                limits = argument.metadata.get(LIMITS, UNLIMITED)
                values = values_of(hints[argument.name], limits)
                declared = argument.name, repr(limits)
                if declared in tried:
                    values = values[:3]
                tried.add(declared)
                for value in values:
                    right = {name: given for name, given in entrypoint.right.items() if name != argument.name}
                    yield Case(
                        f"{entrypoint.name} --{argument.name} {value[:60]!r}",
                        lambda folder, of=entrypoint, right=right, name=argument.name, value=value: begin(
                            of, folder, right | {name: value}
                        ),
                        f"--{argument.name}" if refused(argument, hints[argument.name], limits, value) else ANY,
                    )


def begin(of: Entrypoint, folder: Path, command: dict[str, Any]) -> None:
    """Start it in `folder`, and leave where it is accepted."""
    (folder / "file").write_text("{}\n")
    (folder / "folder").mkdir()
    (folder / "results/s").mkdir(parents=True)
    os.chdir(folder)
    for place in of.stop:
        where, _, name = place.rpartition(".")
        setattr(resolve_name(where), name, accept)
    with suppress(Accepted):
        start(of.main, *of.words, *(part for name, value in command.items() for part in (f"--{name}", value)))


# Entrypoint -> functions of this project that its right start calls.
INTERNAL = {
    "train_nli": (
        "lamra.common.flags.is_a",
        "lamra.common.flags.require_path",
        "lamra.train.flags.listed",
        "lamra.train.inherited.InheritedFlags.set_by_user",
        "lamra.train.arguments.TrainingArguments._fit_to_one_process",
        "lamra.datasets.nli.NLIPairs.__init__",
        "lamra.train.train_nli.file_sha256",
        "lamra.models.settings.family_of",
        "lamra.collators.processing.Processor.__init__",
    ),
    "eval_mbeir": (
        "lamra.eval.eval_mbeir.choose_tasks",
        "lamra.eval.flags.run_name",
        "lamra.eval.eval_mbeir.open_tasks",
        "lamra.datasets.mbeir.rows.Rows.__init__",
    ),
    "embed": ("lamra.eval.flags.local_folder", "lamra.eval.embed.load_items", "lamra.datasets.jsonl.read_parts"),
    "download": ("lamra.scripts.download.download_model", "lamra.common.cli.parser_of"),
}


def bugs(places: Places) -> Iterator[Case]:
    """Right starts in which a function of this project has a bug: each must show its traceback."""

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("a bug")

    def start_with(of: Entrypoint, folder: Path, name: str) -> None:
        where, _, function = name.rpartition(".")
        setattr(resolve_name(where), function, broken)
        begin(of, folder, of.right)

    for entrypoint in entrypoints(places):
        for name in INTERNAL.get(entrypoint.name, ()):
            yield Case(
                f"{entrypoint.name} {name}", lambda folder, of=entrypoint, name=name: start_with(of, folder, name), None
            )


def kinds(hint: Any) -> set[Any]:
    """The types that a flag's annotation allows."""
    return set(get_args(hint)) - {NoneType} if get_args(hint) and get_origin(hint) is not Literal else {hint}


def values_of(hint: Any, limits: Limits) -> tuple[str, ...]:
    if not limits.checked:
        return FEW
    if limits.path is not None:
        return ("", "missing", "folder", "file", "file/below", UNWRITABLE, "/dev/null", LONG)
    if kinds(hint) & {int, float} and not kinds(hint) & {str}:
        return NUMBERS
    return SWITCHES if bool in kinds(hint) else WORDS


def refused(argument: Any, hint: Any, limits: Limits, value: str) -> bool:
    """Whether the value must be refused; others may be, for what they mean together with other flags."""
    if argument.name in REFUSED and not limits.checked:
        return value not in ("", str(argument.default))  # empty: as if it were not given
    if argument.name in NOTED:
        return False
    if argument.name == "original_model_id":  # beside a whole model, as in all of upstream's commands
        return value == ""
    if value == "":
        return argument.name not in EMPTY_IS_NONE and not (argument.default == "" and limits.path is None)
    if limits.path is not None:
        wrong = {
            FILE: {"missing", "folder", "file/below"},
            FOLDER: {"missing", "file", "file/below"},
            FILE_OR_FOLDER: {"missing", "file/below"},
            OUT_FILE: {"folder", "file/below"},
            OUT_FOLDER: {"file", "file/below"},
        }[limits.path] | {UNWRITABLE, "/dev/null", LONG, "\udcff"}
        return value in wrong
    if limits.one_of is not None or value == "\udcff":
        return value not in map(str, limits.one_of or ())
    if get_origin(hint) is Literal:
        return value not in get_args(hint)
    if kinds(hint) & {int, float} and not kinds(hint) & {str}:
        try:
            number = int(value) if kinds(hint) == {int} else float(value)
        except ValueError:
            return True
        return not math.isfinite(number) or abs(number) > 2**40 or not limits.admit(number)
    return kinds(hint) == {bool}


def make_places(folder: Path, model: Path, world: Path, mbeir: Path, mined: Path) -> Places:
    """The places that no fixture makes, in an empty folder."""
    import torch

    from lamra.datasets.caption import captioned_tasks, load_captioned_images
    from lamra.datasets.mbeir.layout import INSTRUCTIONS, TASKS
    from lamra.datasets.mbeir.tasks import open_tasks
    from lamra.datasets.rankings import RankedQuery, write_ranking
    from lamra.eval import upstream_files
    from lamra.models.loading import load_model
    from lamra.models.lora import add_lora
    from lamra.models.settings import default_settings

    adapter, rankings = folder / "adapter", folder / "rankings"
    add_lora(load_model(model, dtype=torch.float32), r=1, alpha=1, dropout=0.0).save_pretrained(adapter)
    default_settings(model).write(adapter)
    files = [task.files(mbeir, "test", "local") for task in TASKS if task.name == "nights_task4"]
    (task,) = open_tasks(files, mbeir, mbeir / INSTRUCTIONS)
    ranking = [RankedQuery(row, list(range(6)), [0.9 - 0.1 * i for i in range(6)]) for row in range(len(task.queries))]
    write_ranking(rankings / "ranking_nights_task4.jsonl", task.queries, task.gallery, ranking)
    upstream_files.write_retrieved(rankings / "up", task.queries, task.gallery, ranking, nested=True)
    captions = captioned_tasks(load_captioned_images(world / "test/images", world / "test/captions.json"), "", "")
    for task in captions:
        ranking = [
            RankedQuery(row, list(range(6)), [0.9 - 0.1 * i for i in range(6)]) for row in range(len(task.queries))
        ]
        write_ranking(rankings / f"ranking_{task.name}.jsonl", task.queries, task.gallery, ranking)
    (rankings / "index" / "items.lance").mkdir(parents=True)
    (rankings / "items.jsonl").write_text('{"id": "1", "text": "a"}\n')
    (folder / "suite").mkdir()
    other = shutil.copytree(adapter, folder / "other_adapter")
    return Places(model, adapter, other, world, mbeir, mined, rankings, suite_files(folder / "suite"))


def unlimited(places: Places) -> list[str]:
    """Numbers that are declared without a bound below."""
    return sorted(
        {
            f"{of.__name__}.{argument.name}"
            for entrypoint in entrypoints(places)
            for of in entrypoint.flags
            for argument in fields(of)
            if kinds(get_type_hints(of)[argument.name]) & {int, float}
            and argument.name not in {*REFUSED, *NOTED}
            and (limits := argument.metadata.get(LIMITS, UNLIMITED)).one_of is None
            and limits.low is None
            and limits.above is None
            and argument.default is not MISSING
        }
    )
