"""Whether protected faces still match their originals, as saved and after what happens to photos.

    python -m benchmarks.real_faces --originals DIR --protected DIR/images --encoders PATH=0.255 --detector PACK

For each encoder and way of looking: the highest and the mean cosine, and the share of faces below the threshold. Faces
are aligned by the landmarks of the clean photo, except where said otherwise.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apdm.data.subjects import find_subjects
from apdm.data.transforms import gaussian_blur, resize_and_back
from apdm.faces import Face, FaceDetector, FaceEncoder, load_detector, load_encoder
from apdm.image_layer.photos import read_photo
from apdm.image_layer.zero_shot import embed_face

SHIFTS = [pair for pair in itertools.product((-1.0, 0.0, 1.0), repeat=2) if any(pair)]


def jpeg(photo: Tensor, quality: int) -> Tensor:
    """What Pillow makes of an 8-bit photo [3, H, W] in [0, 1]."""
    buffer = io.BytesIO()
    Image.fromarray((photo * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


def looks(protected: Tensor, face: Face, detector: FaceDetector) -> Iterator[tuple[str, list[tuple[Tensor, Face]]]]:
    """(name, what an encoder may see): the likeliest match of each list counts."""
    yield "as saved", [(protected, face)]
    yield (
        "landmarks one pixel off",
        [(protected, replace(face, landmarks=face.landmarks + torch.tensor(shift))) for shift in SHIFTS],
    )
    found = detector.detect(protected)
    yield "landmarks found anew", [(protected, other) for other in found if overlap(face, other)]
    for quality in (95, 90, 75, 50):
        yield f"JPEG {quality}", [(jpeg(protected, quality), face)]
    yield "half size and back", [(resize_and_back(protected[None], 0.5)[0], face)]
    yield "blur of one pixel", [(gaussian_blur(protected[None], 1.0)[0], face)]


def overlap(one: Face, other: Face) -> bool:
    """Whether two boxes share their middles."""
    return all(
        a[0] < (b[0] + b[2]) / 2 < a[2] and a[1] < (b[1] + b[3]) / 2 < a[3]
        for a, b in ((one.box, other.box), (other.box, one.box))
    )


@torch.no_grad()
def measure(
    originals: Path, protected: Path, encoders: list[FaceEncoder], detector: FaceDetector
) -> dict[tuple[str, str], list[float]]:
    """{(encoder, look): cosine of each face to its original}."""
    cosines: dict[tuple[str, str], list[float]] = defaultdict(list)
    for subject in find_subjects(originals):
        for path in subject.images:
            clean = read_photo(path).unit
            saved = read_photo(protected / subject.id / f"{path.stem}.png").unit
            for face in detector.detect(clean):
                for encoder in encoders:
                    known = embed_face(encoder, clean, face)
                    for name, seen in looks(saved, face, detector):
                        values = [float(embed_face(encoder, photo, at) @ known) for photo, at in seen]
                        cosines[encoder.name, name].append(max(values, default=0.0))
    return cosines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--originals", type=Path, required=True)
    parser.add_argument("--protected", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", required=True)
    parser.add_argument("--detector", required=True)
    parser.add_argument("--allow_pickle", action="store_true")
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    detector = load_detector(options.detector)
    encoders = [load_encoder(e, detector=detector, allow_pickle=options.allow_pickle) for e in options.encoders]
    thresholds = {encoder.name: encoder.threshold for encoder in encoders}
    print("| encoder | seen | faces | cosine, mean | highest | below threshold |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, look), values in measure(options.originals, options.protected, encoders, detector).items():
        below = sum(value < thresholds[name] for value in values) / len(values)
        print(
            f"| {name} | {look} | {len(values)} | {sum(values) / len(values):.2f} | {max(values):.2f} | {below:.2f} |"
        )


if __name__ == "__main__":
    main()
