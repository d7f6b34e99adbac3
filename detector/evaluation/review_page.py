"""Page on which a person accepts, rejects or redraws suspect labels; one file without external resources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.coco import CocoAnnotations
from detector.data.label_decisions import FORMAT, VERSION
from detector.errors import MediaError
from detector.evaluation.label_suspects import Suspect
from detector.media.closeups import part_around, part_jpeg
from detector.media.html import embedded, page_of, text
from detector.media.images import load_image
from detector.structures.boxes import xywh_to_xyxy

# The part of an image that is shown is this many times as wide as the boxes, and at least this share of the image.
_ENLARGED, _LEAST_SHARE = 3.0, 0.3
_MAX_DRAWN_PX = 560
# The page may run its own script and show its own pictures, and load nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_IDS = ("image_id", "category_id", "proposed_category_id")  # strings: numbers of JavaScript have 53 bits
_KEYS = (
    ("accept", "A", "<span id='accept-text'>Accept</span>"),
    ("reject", "R", "Keep the label as it is"),
    ("redraw", "D", "Redraw"),
    ("undo", "U", "Undo"),
    ("back", "&larr;", "Back"),
    ("next", "&rarr;", "Next"),
    ("save", "S", "Save decisions"),
)


def review_page(
    suspects: Sequence[Suspect], annotations: CocoAnnotations, annotations_sha256: str, facts: Sequence[str]
) -> str:
    """Return the page of a list of suspects; its pictures are read from the images.

    Args:
        suspects: the list, at least one.
        annotations: the labels, read with their images; other labels of an image are drawn too.
        annotations_sha256: hash of the bytes of their file, by which decisions are matched with it.
        facts: lines on where the list comes from.
    """
    listed = [each.to_plain() for each in suspects]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "annotations": annotations.annotations.name,
        "annotations_sha256": annotations_sha256,
        "list_sha256": hashlib.sha256(json.dumps([annotations_sha256, listed]).encode()).hexdigest(),
        "categories": [
            {"id": str(i), "name": n} for i, n in zip(annotations.category_ids, annotations.class_names, strict=True)
        ],
        "suspects": list(_with_pictures(suspects, annotations)),
    }
    # In a script element, only the end tag and comments have a meaning: both begin with this character.
    written = json.dumps(content).replace("<", "\\u003c")
    buttons = "".join(f"<button id='{name}'>{title} <kbd>{key}</kbd></button>" for name, key, title in _KEYS)
    style, script = (Path(__file__).with_name(f"review.{kind}").read_text("utf-8") for kind in ("css", "js"))
    body = [
        f"<style>{style}</style>",
        "<h1>Labels that may be wrong</h1>",
        *(f"<p class='soft'>{text(fact)}</p>" for fact in facts),
        "<div class='review'><div class='card'><svg id='picture' role='img' aria-label='Image with its labels'></svg>",
        "</div><div><p class='title' id='question'></p><p class='soft' id='file'></p>",
        f"{buttons}<p><label class='soft' for='class'>Class <kbd>1-9</kbd></label> <select id='class'></select></p>",
        "<p id='progress' aria-live='polite'></p>",
        "<p class='soft'>Green: the label. Red, dashed: the proposed box. Blue: other labels. Drag on the picture to "
        "draw the right box. This browser keeps the decisions; save them for detector labels apply.</p>",
        f"</div></div><script type='application/json' id='suspects'>{written}</script><script>{script}</script>",
    ]
    return page_of(f"Labels that may be wrong: {annotations.annotations.name}", body, _POLICY)


def _with_pictures(suspects: Sequence[Suspect], annotations: CocoAnnotations) -> Iterator[dict[str, Any]]:
    index_of = {int(image_id): index for index, image_id in enumerate(annotations.image_ids.tolist())}
    for number, suspect in enumerate(suspects, start=1):
        index = index_of[suspect.image_id]
        own = slice(int(annotations.offsets[index]), int(annotations.offsets[index + 1]))
        meant = np.array([box for box in (suspect.bbox, suspect.proposed_bbox) if box is not None], np.float64)
        part_xywh, picture = _part(annotations, index, meant)
        others = [box for box in annotations.boxes_xywh[own].tolist() if box != list(suspect.bbox or ())]
        yield {
            "id": number,
            "file_name": annotations.file_names[index],
            **{key: str(v) if key in _IDS and v is not None else v for key, v in suspect.to_plain().items()},
            "others": others,
            "part_xywh": part_xywh,
            "picture": picture,
        }


def _part(annotations: CocoAnnotations, index: int, meant_xywh: npt.NDArray[np.float64]) -> tuple[list[int], str]:
    """Return the part of an image around some boxes, and it as a data URL; an empty one if it cannot be read."""
    meant_xyxy = xywh_to_xyxy(meant_xywh)
    try:
        image = load_image(annotations.path(index), 3).pixels
    except MediaError:
        height, width = annotations.image_hw[index].tolist()
        x1, y1, x2, y2 = part_around(meant_xyxy, (height, width), _ENLARGED, _LEAST_SHARE * max(height, width))
        return [x1, y1, x2 - x1, y2 - y1], ""
    x1, y1, x2, y2 = part_around(meant_xyxy, image.shape[:2], _ENLARGED, _LEAST_SHARE * max(image.shape[:2]))
    return [x1, y1, x2 - x1, y2 - y1], embedded(part_jpeg(image[y1:y2, x1:x2], _MAX_DRAWN_PX), "jpeg")
