"""Suggestions: words of other programs and typing mistakes lead to the key that was meant, and never to a wrong one."""

from __future__ import annotations

import pytest

from detector.config.key_check import check_experiment
from detector.config.key_table import key_table
from detector.config.name_suggestions import FOREIGN_KEYS, FOREIGN_KEYS_AT_THE_TOP, FOREIGN_PARTS, near_names, nearest
from detector.errors import ConfigError

FOREIGN = [
    # the ultralytics family
    ("imgsz=640", "here it is input.size"),
    ("epochs=50", "here it is train.epochs"),
    ("batch=16", "here it is loader.batch_size"),
    ("train.batch=16", "here it is loader.batch_size"),
    ("lr0=0.01", "here it is optimizer.lr"),
    ("optimizer.lr0=0.01", "here it is optimizer.lr"),
    ("device=0", "write cuda:0"),
    ("device=[0, 1]", "torchrun --nproc-per-node=2"),
    ("workers=8", "here it is loader.workers"),
    ("patience=10", "here it is train.patience (counted in evaluations)"),
    ("fliplr=0.5", "here it is augment.flip_horizontal"),
    ("augment.flipud=0.5", "here it is augment.flip_vertical"),
    ("mosaic=1.0", "here it is augment.mosaic"),
    ("close_mosaic=10", "here it is augment.closing_share (a share of the run)"),
    ("conf=0.25", "here it is predict.confidence or evaluate.confidence"),
    ("evaluate.conf=0.25", "here it is evaluate.confidence"),
    ("iou=0.7", "here it is predict.iou or evaluate.iou"),
    ("max_det=300", "here it is predict.max_detections or evaluate.max_detections"),
    ("classes=[0]", "here it is predict.classes for a choice of detections; the number of classes comes from the data"),
    ("name=exp", "here it is train.run_name"),
    ("project=runs/mine", "here it is train.project"),
    ("exist_ok=true", "a run never replaces another one; leave it out, or give --continue"),
    ("resume=true", "the option --resume RUN of detector train"),
    ("optimizer=AdamW", "did you mean 'adamw'?"),
    ("optimizer=Adam", "here it is adamw with optimizer.weight_decay=0"),
    ("optimizer=SGD", "did you mean 'sgd'?"),
    # Darknet
    ("width=416", "here it is input.size=[HEIGHT,WIDTH]"),
    ("height=416", "here it is input.size=[HEIGHT,WIDTH]"),
    ("subdivisions=8", "here it is train.accumulate (batches per step)"),
    ("max_batches=6000", "here it is train.iterations"),
    ("burn_in=1000", "here it is schedule.warmup_iterations"),
    # YOLOX
    ("max_epoch=300", "here it is train.epochs"),
    ("mosaic_prob=1.0", "here it is augment.mosaic"),
    ("data_num_workers=4", "here it is loader.workers"),
    ("no_aug_epochs=15", "here it is augment.closing_share (a share of the run)"),
    ("nmsthre=0.65", "here it is evaluate.iou"),
    # torchvision
    ("batch_size=2", "here it is loader.batch_size"),
    ("lr_scheduler=multisteplr", "here it is schedule=NAME"),
    ("box_score_thresh=0.05", "here it is predict.confidence"),
    (
        "data={name: imagefolder}",
        "no file or folder 'imagefolder', and no dataset of that name; check the path",
    ),
]
TYPING_MISTAKES = [
    ("train.epohcs=3", "did you mean 'epochs'?"),
    ("train.epoch=3", "did you mean 'epochs'?"),
    ("trian.epochs=3", "did you mean 'train'?"),
    ("Train.epochs=3", "did you mean 'train'?"),
    ("lr=0.1", "did you mean 'optimizer.lr'?"),
    ("run_name=a", "did you mean 'train.run_name'?"),
    ("confidence=0.3", "did you mean 'evaluate.confidence' or 'predict.confidence'?"),
    ("train.confidence=0.3", "did you mean 'evaluate.confidence' or 'predict.confidence'?"),
    ("loader.batchsize=4", "did you mean 'batch_size'?"),
    ("loader.worker=2", "did you mean 'workers'?"),
    ("optimiser.lr=0.1", "did you mean 'optimizer'?"),
    ("optimizer.learn_rate=0.1", "known: "),
    ("optimizer.weightdecay=0.1", "did you mean 'weight_decay'?"),
    ("optimizer=sdg", "did you mean 'sgd'?"),
    ("schedule=cosin", "did you mean 'cosine'?"),
    ("model.backbone=cspdarknet", "did you mean 'csp_darknet'?"),
    ("model.activation=mihs", "did you mean 'mish'?"),
    ("augment.flip=0.5", "did you mean 'flip_horizontal' or 'flip_vertical'?"),
    ("augment.mosiac=1", "did you mean 'mosaic'?"),
    ("augment.albumentation=[]", "did you mean 'albumentations'?"),
    ("input.Size=320", "did you mean 'size'?"),
    ("predict.max_detection=3", "did you mean 'max_detections'?"),
    ("evaluate.iou_threshold=0.5", "did you mean 'iou'?"),
    ("data.ingore_unknown=true", "did you mean 'ignore_unknown'?"),
    ("data=shape", "did you mean 'shapes'?"),
]
# Answers that were given once and would do harm.
WRONG = {
    "fliplr=0.5": "vertical",
    "batch=16": "sync_batch_norm",
    "optimizer=AdamW": "radam",
    "device=0": "quotes",
    "epochs=50": "patience",
    "optimizer=Adam": "radam",
}


def message_for(override: str, preset: str = "mish-n") -> str:
    with pytest.raises(ConfigError) as refused:
        check_experiment(preset, [override])
    return str(refused.value)


@pytest.mark.parametrize(("override", "answer"), [*FOREIGN, *TYPING_MISTAKES])
def test_word_leads_to_the_key_that_was_meant(override, answer):
    message = message_for(override)
    assert answer in message
    assert message.count("\n") == 0
    assert WRONG.get(override, "\0") not in message


@pytest.mark.parametrize("override", WRONG)
def test_harmful_answer_is_not_given(override):
    assert WRONG[override] not in message_for(override)


@pytest.mark.parametrize(
    ("preset", "meant"),
    [
        ("yolov8n", "the preset of that size is 'mish-n' here"),
        ("yolov8x.pt", "the preset of that size is 'mish-x' here"),
        ("yolo11m.yaml", "the preset of that size is 'mish-m' here"),
        ("yolov5s", "the preset of that size is 'mish-s' here"),
        ("mihs-n", "did you mean 'mish-n'?"),
        ("Mish-N", "did you mean 'mish-n'?"),
        ("yolov4-tinny.cfg", ""),
        ("picture.jpg", "check the path"),
    ],
)
def test_unknown_preset_leads_to_the_one_that_was_meant(preset, meant):
    if preset.endswith(".cfg"):
        check_experiment(preset, [])  # the reader of .cfg files answers
    else:
        with pytest.raises(ConfigError, match=f"is named '{preset}'") as refused:
            check_experiment(preset, [])
        assert meant in str(refused.value)


def test_every_key_that_is_suggested_exists():
    paths = key_table().paths()
    words = " ".join([*FOREIGN_KEYS.values(), *FOREIGN_KEYS_AT_THE_TOP.values()]).replace("=", " ").split()
    tops = {path.partition(".")[0] for path in paths}
    keys = [word.strip(",;()") for word in words if word.partition(".")[0] in tops and "." in word.strip(".,;")]
    assert len(keys) > 60
    assert [key for key in keys if key not in paths] == []


def test_every_part_that_is_suggested_exists():
    parts = {kind.label: kind.parts for kind in key_table().kinds.values()}
    for label, meant in FOREIGN_PARTS.items():
        assert [name for name in meant.values() if name.split()[0] not in parts[label]] == []
        assert [name for name in meant if name in parts[label]] == []  # an own name needs no translation


def test_foreign_words_are_no_keys_of_the_same_place():
    tops = {path for path in key_table().paths() if "." not in path}
    assert tops & {*FOREIGN_KEYS, *FOREIGN_KEYS_AT_THE_TOP} == set()


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("abc", ["abd", "xyz"], ["abd"]),
        ("acb", ["abc"], ["abc"]),  # two exchanged characters are one mistake
        ("ab", ["xy"], []),
        ("a", ["b"], []),  # nothing of the word remains
        ("Batch-Size", ["batch_size", "batch"], ["batch_size"]),
        ("batch", ["sync_batch_norm"], []),
        ("norm", ["clip_norm", "sync_batch_norm"], ["clip_norm", "sync_batch_norm"]),
        ("iou_threshold", ["iou", "nms"], ["iou"]),
        ("x1", ["x2", "x3", "x4", "x5", "x6", "x7"], []),  # too many to help
        ("", ["a"], []),
    ],
)
def test_near_names(name, known, expected):
    assert near_names(name, known) == expected


def test_all_names_are_listed_when_none_is_near():
    assert nearest("zzzzz", ["b", "a"]) == "; known: a, b"
    assert nearest("zzzzz", []) == "; known: none"
