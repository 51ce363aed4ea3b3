"""Training of the face encoders and the attribute reader, and their figures on unseen people."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from apdm.core.pictures import as_images
from apdm.portraits.attributes import ATTRIBUTES
from apdm.portraits.networks import AttributeNetwork, PatchEncoder, ResidualEncoder
from apdm.portraits.people import VERIFICATION_PEOPLE
from tools.portraits.training_sets import load_or_render


def augment(images: Tensor) -> Tensor:
    """Change images `[B, 3, H, W]` in [0, 1] as a sampler might: soft edges, slight shifts, other light, grain."""
    batch, _, height, _ = images.shape
    shift = torch.zeros(batch, 2, 3)
    shift[:, 0, 0] = shift[:, 1, 1] = 1 + 0.05 * torch.randn(batch)
    shift[:, :, 2] = 0.05 * torch.randn(batch, 2)
    grid = F.affine_grid(shift, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    soft = F.interpolate(F.interpolate(images, scale_factor=0.5, mode="area"), size=(height, height), mode="bilinear")
    share = torch.rand(batch, 1, 1, 1) * (torch.rand(batch, 1, 1, 1) < 0.6)
    images = images + share * (soft - images)
    gain = 1 + 0.08 * torch.randn(batch, 3, 1, 1) * torch.tensor([1.0, 0.5, 1.0]).view(1, 3, 1, 1)
    return (images * gain + 0.03 * torch.rand(batch, 1, 1, 1) * torch.randn_like(images)).clamp(0, 1)


def fit(
    parameters: list[nn.Parameter],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    name: str,
    horizon: int | None = None,
) -> None:
    """Minimise a loss with AdamW, warm-up and cosine decay.

    Args:
        parameters: what is trained.
        loss: (step) -> the loss of a random batch.
        steps: how many steps to take.
        learning_rate: the highest learning rate.
        name: shown by the progress bar.
        horizon: the step at which the decay reaches zero; by default the last one.
    """
    horizon = horizon or steps
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / 200, 1.0) * 0.5 * (1 + math.cos(math.pi * k / horizon))
    )
    bar = tqdm(range(steps), desc=name, mininterval=20)
    for step in bar:
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)


def train_residual(work_dir: Path, steps: int = 2400, batch: int = 64) -> ResidualEncoder:
    """Train portrait-a with ArcFace on 1500 people (Deng et al. 2019, Eq. 3: additive angular margin, scale 24).

    The margin grows from 0 to 0.3 between two fifths and four fifths of the steps. With the margin from the beginning,
    the loss does not fall.
    """
    data = load_or_render(work_dir, "people", range(50_000, 53_000), 12)
    labels = torch.as_tensor(np.unique(data.who, return_inverse=True)[1])[: 1500 * 12]
    pixels = torch.as_tensor(data.pixels)
    model = ResidualEncoder()
    centres = nn.Parameter(torch.randn(int(labels.max()) + 1, 128) * 0.05)

    def loss(step: int) -> Tensor:
        index = torch.randint(len(labels), (batch,))
        with torch.autocast("cpu", torch.bfloat16):
            vectors = model(augment(as_images(pixels[index])))
        cosine = vectors.float() @ F.normalize(centres, dim=1).T
        chosen = cosine.gather(1, labels[index, None]).clamp(-0.999, 0.999)
        margin = 0.3 * min(max(2.5 * step / steps - 1, 0.0), 1.0)
        logits = cosine.scatter(1, labels[index, None], torch.cos(torch.acos(chosen) + margin))
        return F.cross_entropy(24 * logits, labels[index])

    fit([*model.parameters(), centres], loss, steps=steps, learning_rate=2e-3, name="portrait-a")
    return model.eval()


def train_patches(work_dir: Path) -> PatchEncoder:
    """Train portrait-b with a contrastive loss on two photos of each of many people (SupCon with pairs).

    First with 64 people per batch, then with 128. Among more people, the most similar ones are more similar, and these
    decide the threshold at a false match rate of 1e-3.
    """
    model = PatchEncoder()
    scale = nn.Parameter(torch.tensor(math.log(12.0)))
    contrast(model, scale, work_dir, steps=1500, people=64)
    contrast(model, scale, work_dir, steps=1200, people=128)
    return model.eval()


def contrast(model: PatchEncoder, scale: nn.Parameter, work_dir: Path, *, steps: int, people: int) -> None:
    """One stage of `train_patches`.

    Args:
        model: the encoder, which is trained in place.
        scale: logarithm of the inverse temperature, trained too. The inverse temperature is at most 40.
        work_dir: the work folder with the training sets.
        steps: training steps.
        people: people per batch.
    """
    data = load_or_render(work_dir, "people", range(0, 24_000), 2)
    pixels = torch.as_tensor(data.pixels).view(24_000, 2, *data.pixels.shape[1:])

    def loss(step: int) -> Tensor:
        pairs = pixels[torch.randperm(len(pixels))[:people]]
        images = augment(as_images(pairs.flatten(0, 1)))
        first, second = model(images).view(people, 2, -1).unbind(1)
        logits = scale.exp().clamp(max=40) * first @ second.T
        target = torch.arange(people)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    fit([*model.parameters(), scale], loss, steps=steps, learning_rate=1.5e-3, name=f"portrait-b, {people} people")


def not_faces(faces: Tensor, things: Tensor) -> Tensor:
    """Pictures without a face: objects, noise, and faces that are blurred, shuffled, averaged or partly covered.

    Args:
        faces: `[B, 3, H, W]` in [0, 1].
        things: pictures of objects, `[B, 3, H, W]` in [0, 1].

    Returns:
        `[B, 3, H, W]` in [0, 1].
    """
    batch, _, size, _ = faces.shape
    kind = torch.randint(9, (batch,)).tolist()
    result = faces.clone()
    for i, k in enumerate(kind):
        face = faces[i]
        if k <= 1:
            result[i] = things[i]
        elif k == 2:
            scale = int(torch.randint(1, 17, ()))
            result[i] = F.interpolate(torch.rand(1, 3, scale, scale), size=(size, size), mode="bilinear")[0]
        elif k == 3:
            result[i] = (0.5 + 0.35 * torch.randn_like(face)).clamp(0, 1)
        elif k == 4:  # cells in another order: the statistics of a face, but no face
            n = int(torch.randint(2, 5, ()))
            s = size // n
            cells = face[:, : n * s, : n * s].unfold(1, s, s).unfold(2, s, s).reshape(3, n * n, s, s)
            order = torch.randperm(n * n)
            cells = cells[:, order].view(3, n, n, s, s).permute(0, 1, 3, 2, 4).reshape(3, n * s, n * s)
            result[i, :, : n * s, : n * s] = cells
        elif k == 5:  # blurred until no feature is left
            small = F.interpolate(face[None], size=(4, 4), mode="area")
            result[i] = F.interpolate(small, size=(size, size), mode="bilinear")[0]
        elif k == 6:  # the middle of the face replaced by something else
            half, other = size // 4, things[i] if torch.rand(()) < 0.5 else torch.rand_like(face)
            result[i, :, half : 3 * half + 4, half : 3 * half] = other[:, half : 3 * half + 4, half : 3 * half]
        elif k == 7:  # flattened features: skin where eyes and mouth were
            half = size // 4
            patch = F.interpolate(face[None, :, half : 3 * half, half : 3 * half], size=(2, 2), mode="area")
            result[i, :, half : 3 * half, half : 3 * half] = F.interpolate(
                patch, size=(2 * half, 2 * half), mode="bilinear"
            )[0]
        else:  # upside down or a sum of several
            result[i] = face.flip(1) if torch.rand(()) < 0.5 else faces[torch.randint(batch, (6,))].mean(0)
    return (result + 0.04 * torch.rand(batch, 1, 1, 1) * torch.randn_like(result)).clamp(0, 1)


def train_reader(work_dir: Path, steps: int = 2500, batch: int = 64) -> AttributeNetwork:
    """Train the attribute reader on faces, and its face score against objects, noise and broken faces."""
    data = load_or_render(work_dir, "people", range(0, 24_000), 2)
    objects = torch.as_tensor(load_or_render(work_dir, "things", range(0, 6000), 2).pixels)
    pixels, labels = torch.as_tensor(data.pixels), torch.as_tensor(data.labels)
    model = AttributeNetwork()

    def loss(step: int) -> Tensor:
        index = torch.randint(len(labels), (batch,))
        faces = augment(as_images(pixels[index]))
        others = not_faces(faces, augment(as_images(objects[torch.randint(len(objects), (batch,))])))
        logits, face = model(torch.cat([faces, others]))
        total = sum(F.cross_entropy(logits[name][:batch], labels[index, i]) for i, name in enumerate(ATTRIBUTES))
        truth = torch.cat([torch.ones(batch), torch.zeros(batch)])
        return total + 2 * F.binary_cross_entropy_with_logits(face, truth)

    fit(list(model.parameters()), loss, steps=steps, learning_rate=2e-3, name="portrait-face")
    return model.eval()


@torch.no_grad()
def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Embed images `[N, 3, H, W]` in [0, 1] in batches. Returns `[N, D]`."""
    return torch.cat([model(part) for part in images.split(256)])


def verification(model: nn.Module, work_dir: Path, people: int = 1000, photos: int = 4) -> dict[str, float]:
    """Measure a face encoder on unseen people.

    The threshold is set at a false match rate (`fmr`) of 1e-3 over all pairs of different people. Two comparisons are
    measured: one photo against one photo (`pair_threshold`, `tar`), and one photo against the mean of the person's
    other photos (`threshold`, `tar_to_mean`), which is how likeness is measured in audits. `tar` is the share of pairs
    of the same person above the threshold.

    Args:
        model: the encoder.
        work_dir: the work folder with the training sets.
        people: how many unseen people.
        photos: photos of each.
    """
    seeds = range(VERIFICATION_PEOPLE.start, VERIFICATION_PEOPLE.start + people)
    data = load_or_render(work_dir, "people", seeds, photos)
    vectors = embed(model, as_images(data.pixels)).view(people, photos, -1)
    first, second = vectors[:, 0], vectors[:, 1]
    off_diagonal = ~torch.eye(people, dtype=torch.bool)
    impostors = (first @ second.T)[off_diagonal]
    threshold = (
        impostors.quantile(1 - 1e-3)
        if impostors.numel() < 16_000_000
        else impostors.sort()[0][-impostors.numel() // 1000]
    )
    genuine = (first * second).sum(1)
    mean = F.normalize(vectors[:, 1:].mean(1), dim=1)
    to_mean, to_other = (first * mean).sum(1), (first @ mean.T)[off_diagonal]
    mean_threshold = to_other.quantile(1 - 1e-3)
    return {
        "threshold": round(float(mean_threshold), 4),
        "fmr": 1e-3,
        "tar": round(float((genuine >= threshold).float().mean()), 4),
        "pair_threshold": round(float(threshold), 4),
        "tar_to_mean": round(float((to_mean >= mean_threshold).float().mean()), 4),
        "genuine_mean": round(float(to_mean.mean()), 4),
        "impostor_mean": round(float(to_other.mean()), 4),
        "impostor_std": round(float(to_other.std()), 4),
        "people": people,
    }


def face_score_figures(model: AttributeNetwork, work_dir: Path) -> dict[str, float]:
    """Measure the face score: its threshold, the face rate on unseen portraits, and false accepts by kind of picture.

    The threshold is the lowest logit, but at least 0, at which at most one picture in two hundred of each kind without
    a face is accepted.
    """
    faces = as_images(
        load_or_render(work_dir, "people", range(VERIFICATION_PEOPLE.start, VERIFICATION_PEOPLE.start + 1000), 4).pixels
    )
    objects = as_images(load_or_render(work_dir, "things", range(2_000_000, 2_000_500), 2).pixels)
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(1000, 3, 6, 6, generator=generator)
    collapsed = faces[torch.randint(len(faces), (1000, 12), generator=generator)].mean(1)
    cells = faces[:1000].unfold(2, 16, 16).unfold(3, 16, 16).reshape(1000, 3, 16, 16, 16)
    cells = cells[:, :, torch.randperm(16, generator=generator)].view(1000, 3, 4, 4, 16, 16)

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(part)[1] for part in images.split(256)])

    scores = logits(faces)
    kinds = {
        "noise": torch.rand(1000, 3, 64, 64, generator=generator),
        "coarse_noise": F.interpolate(rough, size=(64, 64), mode="bilinear"),
        "collapsed": collapsed,
        "shuffled": cells.permute(0, 1, 2, 4, 3, 5).reshape(1000, 3, 64, 64),
        "smeared": F.interpolate(F.interpolate(faces[:1000], size=(4, 4), mode="area"), size=(64, 64), mode="bilinear"),
        "things": objects,
    }
    wrong = {kind: logits(images) for kind, images in kinds.items()}
    threshold = round(max(0.0, *(float(of_kind.quantile(0.995)) for of_kind in wrong.values())), 4)
    rates = {f"false_accept_{kind}": float((of_kind >= threshold).float().mean()) for kind, of_kind in wrong.items()}
    return {
        "threshold": threshold,
        "face_rate": float((scores >= threshold).float().mean()),
        **rates,
    }


def attribute_accuracy(model: AttributeNetwork, work_dir: Path) -> dict[str, float]:
    """The share of right answers on unseen people, by attribute."""
    data = load_or_render(work_dir, "people", range(VERIFICATION_PEOPLE.start, VERIFICATION_PEOPLE.start + 1000), 4)
    with torch.no_grad():
        logits = [model(part)[0] for part in as_images(data.pixels).split(256)]
    truth = torch.as_tensor(data.labels)
    return {
        name: round(float((torch.cat([part[name] for part in logits]).argmax(1) == truth[:, i]).float().mean()), 4)
        for i, name in enumerate(ATTRIBUTES)
    }


def figures(model: nn.Module, work_dir: Path) -> dict[str, Any]:
    """The figures that are written beside a network's weights, its threshold included."""
    if isinstance(model, AttributeNetwork):
        return {**face_score_figures(model, work_dir), "accuracy": attribute_accuracy(model, work_dir)}
    return verification(model, work_dir)


def timed(name: str, train: Callable[[], nn.Module]) -> nn.Module:
    """Train a network and print its size and the time it took."""
    start = time.monotonic()
    model = train()
    print(
        f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return model
