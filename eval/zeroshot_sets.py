"""The sets of the zero-shot suite in one table: the flags of each, and the reader that makes its files tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamra.common.flags import FILE, FILE_OR_FOLDER, FOLDER, OUT_FOLDER, flag
from lamra.datasets.caption import PROTOCOLS
from lamra.datasets.tasks import Reported, RetrievalTask
from lamra.datasets.zeroshot import ccneg, circo, genecis, sugar_crepe
from lamra.datasets.zeroshot.ccneg import ccneg_tasks
from lamra.datasets.zeroshot.circo import circo_tasks
from lamra.datasets.zeroshot.genecis import SUBSETS, genecis_tasks
from lamra.datasets.zeroshot.msrvtt import msrvtt_tasks
from lamra.datasets.zeroshot.msvd import msvd_tasks
from lamra.datasets.zeroshot.multiturn_fashion import CATEGORIES, multiturn_fashion_tasks
from lamra.datasets.zeroshot.sharegpt4v import sharegpt4v_tasks
from lamra.datasets.zeroshot.sugar_crepe import KINDS, sugar_crepe_tasks
from lamra.datasets.zeroshot.urban1k import RELEASED_MAX_PIXELS, urban1k_tasks
from lamra.datasets.zeroshot.visdial import visdial_tasks
from lamra.datasets.zeroshot.vist import vist_tasks
from lamra.eval.flags import SearchArguments

GET = "docs/zeroshot.md says where it is"


@dataclass
class SuiteArguments(SearchArguments):
    protocol: str = flag(
        "released",
        "released: upstream's prompts, with their defects; clean: what the paper describes",
        one_of=PROTOCOLS,
    )
    missing: str = flag(
        "stop",
        "a picture or video that is not there: stop before a model is loaded; skip: go on without its items, counted",
        one_of=("stop", "skip"),
    )
    output_dir: str | None = flag(None, "default: results/<model>/<data>", path=OUT_FOLDER)


@dataclass(frozen=True)
class ZeroshotSet:
    """A data set of the suite.

    Attributes:
        title: as the paper calls it.
        measure: what the measure that counts is called.
        arguments: the dataclass of its flags.
        tasks: its arguments -> what its files hold, see the reader.
        paper_mean: the paper's numbers of the mean over all its tasks, where it has several and reports one number.
        all_tasks: so many tasks the mean is over.
        all_queries: so many they have in the published files: the paper's mean stands beside no other.
        released_max_pixels: the largest picture of protocol released; None: as the checkpoint was trained.
    """

    title: str
    measure: str
    arguments: type[SuiteArguments]
    tasks: Callable[[Any], list[RetrievalTask]]
    paper_mean: Reported | None = None
    all_tasks: int = 1
    all_queries: int = 0
    released_max_pixels: int | None = None


@dataclass
class ShareGPT4VArguments(SuiteArguments):
    image_data_path: str = flag("./data/sharegpt4v/val_data", "its pictures", path=FOLDER, source=GET)
    text_data_path: str = flag("./data/sharegpt4v/datas_for_validation.json", "its captions", path=FILE, source=GET)


@dataclass
class Urban1KArguments(SuiteArguments):
    image_data_path: str = flag("./data/Urban1k/image", "its pictures", path=FOLDER, source=GET)
    text_data_path: str = flag("./data/Urban1k/caption", "folder of its captions", path=FOLDER, source=GET)


@dataclass
class CIRCOArguments(SuiteArguments):
    annotation_path_prefix: str = flag(
        "./data/circo/annotations", "folder of the json files", path=FOLDER, source=circo.GET
    )
    image_path_prefix: str = flag("./data/circo/images/unlabeled2017", "COCO's unlabeled2017", path=FOLDER, source=GET)
    split: str = flag("both", "val is measured here, test by a server", one_of=("both", *circo.SPLITS))


@dataclass
class GeneCISArguments(SuiteArguments):
    annotation_path: str = flag(
        "./data/genecis/annotations", "folder of the json files, or one", path=FILE_OR_FOLDER, source=genecis.GET
    )
    image_path_prefix: str = flag(
        "./data/genecis", "folder above val2017 (COCO's) and vg (Visual Genome's), or either", path=FOLDER, source=GET
    )
    data_type: str = flag("all", "the subset", one_of=("all", *SUBSETS))


@dataclass
class VisDialArguments(SuiteArguments):
    data_path: str = flag("./data/visdial/visdial_1.0_val.json", "the dialogs", path=FILE, source=GET)
    image_path_prefix: str = flag("./data/visdial/VisualDialog_val2018", "its pictures", path=FOLDER, source=GET)


@dataclass
class VISTArguments(SuiteArguments):
    data_path: str = flag("./data/vist/sis/val.story-in-sequence.json", "the stories", path=FILE, source=GET)
    image_path_prefix: str = flag("./data/vist/images/val", "its photos", path=FOLDER, source=GET)


@dataclass
class MultiturnFashionArguments(SuiteArguments):
    query_data_path: str = flag("./data/multiturnfashion/data/all.val.json", "the turns", path=FILE, source=GET)
    cand_data_path: str = flag(
        "./data/multiturnfashion/image_splits/split.all.val.json", "the gallery", path=FILE, source=GET
    )
    image_path_prefix: str = flag(
        "./data/M-BEIR/mbeir_images/fashioniq_images", "FashionIQ's pictures", path=FOLDER, source=GET
    )
    category: str = flag("all", "whose files beside these to read", one_of=CATEGORIES)
    fashioniq_captions: str | None = flag(
        None,
        "folder of FashionIQ's captions: also measures the queries whose last turn is no training pair",
        path=FOLDER,
    )


@dataclass
class CCNegArguments(SuiteArguments):
    data_path: str = flag("./data/ccneg/ccneg_preprocessed.pt", "its pickle, or a jsonl", path=FILE, source=ccneg.GET)
    image_path_prefix: str | None = flag(
        None, "the folder above its pictures' folder; default: where data_path lies", path=FOLDER
    )


@dataclass
class SugarCrepeArguments(SuiteArguments):
    annotation_path_prefix: str = flag(
        "./data/sugar-crepe/data", "folder of the json files", path=FOLDER, source=sugar_crepe.GET
    )
    image_path_prefix: str = flag("./data/sugar-crepe/images/val2017", "COCO's val2017", path=FOLDER, source=GET)
    data_type: str = flag("all", "the file to read", one_of=("all", *KINDS))


@dataclass
class MSRVTTArguments(SuiteArguments):
    data_path: str = flag("./data/msrvtt/annotations/MSRVTT_JSFUSION_test.csv", "its captions", path=FILE, source=GET)
    video_data_path: str = flag("./data/msrvtt/videos", "its clips", path=FOLDER, source=GET)


@dataclass
class MSVDArguments(SuiteArguments):
    video_path_prefix: str = flag("./data/MSVD/YouTubeClips", "its clips", path=FOLDER, source=GET)
    test_video_path: str = flag("./data/MSVD/test_list.txt", "the ids of the clips", path=FILE, source=GET)
    captions_path: str = flag("./data/MSVD/raw-captions.pkl", "its pickle, or a jsonl", path=FILE, source=GET)


# In the paper's order. The names are of folders below results/<model>/, and of TASKS in eval_zeroshot.sh.
SETS = {
    "sharegpt4v": ZeroshotSet(
        "ShareGPT4V",
        "R@1",
        ShareGPT4VArguments,
        lambda args: sharegpt4v_tasks(args.image_data_path, args.text_data_path, args.protocol),
    ),
    "urban1k": ZeroshotSet(
        "Urban1K",
        "R@1",
        Urban1KArguments,
        lambda args: urban1k_tasks(args.image_data_path, args.text_data_path, args.protocol),
        released_max_pixels=RELEASED_MAX_PIXELS,
    ),
    "circo": ZeroshotSet(
        circo.NAME,
        f"mAP@{circo.COUNTED}",
        CIRCOArguments,
        lambda args: circo_tasks(
            args.annotation_path_prefix,
            args.image_path_prefix,
            args.protocol,
            circo.SPLITS if args.split == "both" else (args.split,),
        ),
    ),
    "genecis": ZeroshotSet(
        genecis.NAME,
        "R@1",
        GeneCISArguments,
        lambda args: genecis_tasks(
            args.annotation_path,
            args.image_path_prefix,
            args.protocol,
            None if args.data_type == "all" else args.data_type,
        ),
        genecis.PAPER_MEAN,
        len(SUBSETS),
        sum(SUBSETS.values()),
    ),
    "visdial": ZeroshotSet(
        "VisDial",
        "R@1",
        VisDialArguments,
        lambda args: visdial_tasks(args.data_path, args.image_path_prefix, args.protocol),
    ),
    "vist": ZeroshotSet(
        "VIST",
        "R@1",
        VISTArguments,
        lambda args: vist_tasks(args.data_path, args.image_path_prefix, args.protocol),
    ),
    "multiturn_fashion": ZeroshotSet(
        "MT-FIQ",
        "R@5",
        MultiturnFashionArguments,
        lambda args: multiturn_fashion_tasks(
            args.query_data_path,
            args.cand_data_path,
            args.image_path_prefix,
            args.protocol,
            category=args.category,
            fashioniq_captions=args.fashioniq_captions,
        ),
    ),
    "ccneg": ZeroshotSet(
        "CC-Neg",
        "accuracy",
        CCNegArguments,
        lambda args: ccneg_tasks(args.data_path, args.image_path_prefix or Path(args.data_path).parent, args.protocol),
    ),
    "sugarcrepe": ZeroshotSet(
        "SugarCrepe",
        "accuracy",
        SugarCrepeArguments,
        lambda args: sugar_crepe_tasks(
            args.annotation_path_prefix,
            args.image_path_prefix,
            args.protocol,
            tuple(KINDS) if args.data_type == "all" else (args.data_type,),
        ),
        sugar_crepe.PAPER_MEAN,
        len(KINDS),
        sum(KINDS.values()),
    ),
    "msrvtt": ZeroshotSet(
        "MSR-VTT",
        "R@1",
        MSRVTTArguments,
        lambda args: msrvtt_tasks(args.data_path, args.video_data_path, args.protocol),
    ),
    "msvd": ZeroshotSet(
        "MSVD",
        "R@1",
        MSVDArguments,
        lambda args: msvd_tasks(args.video_path_prefix, args.test_video_path, args.captions_path, args.protocol),
    ),
}
