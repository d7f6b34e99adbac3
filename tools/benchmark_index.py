"""Benchmark of the index of a large COCO file: time and memory to build it and to open it again.

    python tools/benchmark_index.py /tmp/index-benchmark --images 200000 --boxes-per-image 15

The file is generated: random boxes of 365 classes, in the order of the images. Its images are empty files, because an
index looks for each image once. Building and opening run in processes of their own; their memory is the peak of the
resident set as Linux counts it, with the libraries that the package loads and the pages of mapped files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

NUM_CLASSES = 365
_OPEN = """
import resource, sys, time
from pathlib import Path
from detector.data.annotation_index import indexed_coco
imported_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began_s, began_cpu_s = time.perf_counter(), time.process_time()
root = Path(sys.argv[1])
found = indexed_coco(root / "set.json", root / "images", root / "index")
last = found.source_xyxy(len(found) - 1)
elapsed_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{len(found)} images, {found.num_boxes} boxes: {elapsed_s:.2f} s, {cpu_s:.2f} s of CPU, "
      f"peak {peak_kb / 1024:.0f} MB, {(peak_kb - imported_kb) / 1024:.0f} MB of them after the imports")
"""


def generate(root: Path, num_images: int, num_boxes: int) -> None:
    """Write the COCO file and empty images in folders of 1,000."""
    chance = random.Random(0)
    (root / "images").mkdir(parents=True)
    with (root / "set.json").open("w") as file:
        file.write('{"images": [')
        for i in range(num_images):
            folder = root / "images" / f"{i // 1000:05d}"
            if i % 1000 == 0:
                folder.mkdir()
            name = f"{folder.name}/{i:08d}.jpg"
            os.close(os.open(f"{root}/images/{name}", os.O_CREAT | os.O_WRONLY))
            entry = {"id": i + 1, "file_name": name, "height": 512, "width": 640}
            file.write(("," if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for i in range(num_images * num_boxes):
            bits = chance.getrandbits(60)
            x, y, w, h = ((bits >> shift & 0x7FFF) / 128 + 0.5 for shift in (0, 15, 30, 45))
            file.write(
                f'{"," if i else ""}{{"id": {i + 1}, "image_id": {i // num_boxes + 1}, "category_id": '
                f'{i * 7 % NUM_CLASSES + 1}, "bbox": [{x}, {y}, {w}, {h}], "area": {w * h:.2f}, "iscrowd": 0}}'
            )
        categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def main() -> int:
    """Generate the file where it is missing, build the index and open it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the generated file and the index")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--boxes-per-image", type=int, default=15)
    arguments = parser.parse_args()
    root: Path = arguments.folder
    if not root.exists():
        began_s = time.perf_counter()
        generate(root, arguments.images, arguments.boxes_per_image)
        print(f"generated in {time.perf_counter() - began_s:.0f} s")
    print(f"{platform.processor() or platform.machine()}, file of {os.path.getsize(root / 'set.json') / 1e6:.0f} MB")
    for what in ("build", "open"):
        print(f"{what}: ", end="", flush=True)
        subprocess.run([sys.executable, "-c", _OPEN, str(root)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
