"""What all transforms keep: samples, memory format, generators, replay, copies, errors of inputs."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sturdy.transforms import (
    AmplitudeMix,
    DominantFrequencyMix,
    FourierBasisAugment,
    Prime,
    SpectralFilter,
    Transform,
    effective_mask,
)

SIZE = (12, 10)


class WithLabels(torch.nn.Module):
    """DFM-X called with labels that follow from the number of images, so that it can be tested like the others."""

    def __init__(self, **options):
        super().__init__()
        random = torch.Generator().manual_seed(5)
        masks = effective_mask(torch.rand(4, *SIZE, generator=random))
        self.mix = DominantFrequencyMix(masks, **{"p": 0.8, **options})

    def forward(self, x, **options):
        labels = torch.arange(len(x)) % 4 if x.dim() == 4 else 1
        return self.mix(x, labels, **options)[0]

    def make_params(self, inputs, **options):
        x = inputs[0]
        return self.mix.make_params([x], labels=torch.arange(len(x)) % 4 if x.dim() == 4 else 1, **options)


def low_pass(**options):
    rows, columns = (torch.arange(n) - n // 2 for n in SIZE)
    mask = (rows[:, None] ** 2 + columns**2 <= 9).float()
    return SpectralFilter(mask, **{"p": 0.5, **options})


class WithTarget(torch.nn.Module):
    """FDA with a target of as many channels as the images have; partners from the batch are tested by themselves."""

    def __init__(self, **options):
        super().__init__()
        self.options = {"p": 0.8, "window": 0.3, **options}
        target = torch.rand(5, 4, *SIZE, generator=torch.Generator().manual_seed(6))
        self.mixes = {c: AmplitudeMix("fda", target=target[:, :c], **self.options) for c in (1, 3, 4)}

    def forward(self, x, **options):
        return (self.mixes[x.shape[-3]] if isinstance(x, torch.Tensor) else self.mixes[3])(x, **options)

    def make_params(self, inputs, **options):
        return self.mixes[3].make_params(inputs, **options)

    def transform(self, image, params):
        return self.mixes[3].transform(image, params)

    def __repr__(self):
        return repr(self.mixes[3])


MAKE = {"afa": FourierBasisAugment, "dfmx": WithLabels, "filter": low_pass, "fda": WithTarget, "prime": Prime}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=6, dtype=torch.float32):
    return torch.rand((count, 3, *SIZE), generator=seeded(9)).to(dtype)


# ---- random numbers --------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bits(make):
    x = images()
    first, second = make(generator=seeded(3))(x), make()(x, generator=seeded(3))
    assert torch.equal(first, second)
    transform = make(generator=seeded(3))
    assert torch.equal(transform(x), first)
    assert not torch.equal(transform(x), first)


def test_global_generator_is_left_alone_or_used(make):
    x = images()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    make(generator=seeded())(x)
    make()(x, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    drawn = make()(x)
    assert not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(make()(x), drawn)


def test_replay(make):
    x = images()
    transform = make(generator=seeded())
    params = transform.make_params([x])
    first = transform(x, params=params)
    assert torch.equal(transform(x, params=params), first)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(x, params=pickle.loads(pickle.dumps(params))), first)


def test_batch_of_one_is_its_row(make):
    x = images()
    transform = make(generator=seeded())
    params = transform.make_params([x])
    whole = transform(x, params=params)
    for i in range(len(x)):
        row = {key: value[i : i + 1] if len(value) == len(x) else value for key, value in params.items()}
        target = transform.mix if isinstance(transform, WithLabels) else transform
        assert torch.equal(target.transform(x[i : i + 1], row), whole[i : i + 1])
        assert torch.equal(target.transform(x[i], row), whole[i])


def test_same_on_batch(make):
    x = images(1).expand(40, -1, -1, -1)
    apart, together = make(generator=seeded(1))(x), make(generator=seeded(1), same_on_batch=True)(x)
    assert len(set(map(bytes, apart.numpy()))) > 1
    found = {bytes(row) for row in together.numpy()}
    # Of DFM-X all images of other classes take the one mask that was drawn, those of its class stay.
    assert len(found) == 1 or (make is WithLabels and len(found) == 2)


def test_copies_are_independent(make):
    x = images()
    transform = make(generator=seeded(4))
    twins = [copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))]
    wanted = transform(x)
    for twin in twins:
        assert torch.equal(twin(x), wanted)


def test_state_dict_has_no_random_state(make):
    assert all("generator" not in key for key in make(generator=seeded()).state_dict())


def test_generator_on_another_device(make):
    elsewhere = SimpleNamespace(device=torch.device("cuda:1"))
    with pytest.raises(ValueError, match=r"generator is on cuda:1, the images are on cpu"):
        make()(images(), generator=elsewhere)
    with pytest.raises(ValueError, match="cuda:1"):
        make(generator=elsewhere)(images())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuda: no NVIDIA GPU, or a torch without CUDA")
def test_same_parameters_on_cuda(make):
    x = images()
    on_cpu, on_gpu = (make(generator=seeded(2)).to(device)(x.to(device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=5e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuda: no NVIDIA GPU, or a torch without CUDA")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_waits_for_the_device(make, device):
    if make is Prime and device == "cuda":
        pytest.skip("cuda: Prime says that it waits for what a generator on the GPU has drawn")
    transform = make(generator=torch.Generator(device).manual_seed(1)).cuda()
    x = images().cuda()
    transform(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        transform(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- tensors ---------------------------------------------------------------------------------------------------------


def test_memory_format_is_kept(make):
    x = images()
    transform = make(generator=seeded())
    params = transform.make_params([x])
    wanted = transform(x, params=params)
    last = transform(x.to(memory_format=torch.channels_last), params=params)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, wanted)
    wide = torch.full((6, 3, 14, 25), math.nan)
    view = wide[:, :, 1:13, 2:22:2]
    view.copy_(x)
    assert torch.equal(transform(view, params=params), wanted)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(make, channels):
    x = images()[:, :1].expand(-1, channels, -1, -1)
    assert make()(x).shape == x.shape


def test_empty_batch(make):
    assert make()(images()[:0]).shape == (0, 3, *SIZE)


def test_input_is_not_changed(make):
    x = images()
    before = x.clone()
    make()(x)
    assert torch.equal(x, before)


def test_nan_stays_in_its_image(make):
    x = images()
    x[2, 1, 3, 4] = math.nan
    clean = images()
    transform = make(generator=seeded())
    params = transform.make_params([x])
    found, wanted = transform(x, params=params), transform(clean, params=params)
    assert found[2].isnan().any()
    others = [i for i in range(6) if i != 2]
    assert torch.equal(found[others], wanted[others]) and torch.equal(found[2, 0], wanted[2, 0])


@pytest.mark.parametrize(
    ("x", "exception", "text"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.bool), TypeError, "torch.bool"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.complex64), TypeError, "complex"),
        (torch.zeros(4, 4), ValueError, r"\(4, 4\)"),
        (torch.zeros(1, 2, 3, 4, 4), ValueError, r"\(1, 2, 3, 4, 4\)"),
        (torch.zeros(2, 3, 0, 4), ValueError, r"\(2, 3, 0, 4\)"),
    ],
    ids=str,
)
def test_bad_images(x, exception, text):
    for transform in (FourierBasisAugment(), low_pass(), WithLabels().mix):
        with pytest.raises(exception, match=f"{type(transform).__name__}: .*{text}"):
            transform(x, torch.zeros(len(x), dtype=torch.int64))


def test_not_an_image(make):
    for nothing in ("text", 3, None):
        with pytest.raises(TypeError, match="needs an image as a tensor"):
            (FourierBasisAugment() if make is WithLabels else make())(nothing)


def test_validate(make):
    transform = make(validate=True)
    transform(images())
    for bad, text in ((2.0, "0 to 2|to 2"), (-1.0, "-1 to"), (math.nan, "nan"), (math.inf, "inf")):
        x = images()
        x[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match=text):
            transform(x)
        make()(x)


def test_unknown_keywords(make):
    for call in (lambda: make(probability=0.5), lambda: make()(images(), seed=3)):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()


def test_bad_common_options(make):
    with pytest.raises(ValueError, match="p must be in"):
        make(p=1.01)
    with pytest.raises(TypeError, match="floating"):
        make(dtype=torch.uint8)


def test_repr(make):
    assert "p=" in repr(make())


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_first_tensor_is_the_image():
    x, y = images(), torch.arange(6)
    augment = FourierBasisAugment(generator=seeded())
    params = augment.make_params([x])
    wanted = augment(x, params=params)
    found = augment({"image": x, "label": y, "name": "a"}, params=params)
    assert torch.equal(found["image"], wanted) and found["label"] is y and found["name"] == "a"
    out, label = augment(x, y, params=params)
    assert torch.equal(out, wanted) and label is y


def test_torchvision_samples():
    pytest.importorskip("torchvision")
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    image = tv_tensors.Image((images(1)[0] * 255).to(torch.uint8))
    mask = tv_tensors.Mask(torch.ones(SIZE, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=SIZE)
    extra = torch.zeros(3)
    random = torch.Generator().manual_seed(5)
    masks = effective_mask(torch.rand(4, *SIZE, generator=random))
    pipeline = v2.Compose([
        v2.RandomHorizontalFlip(1.0),
        FourierBasisAugment(generator=seeded()),
        DominantFrequencyMix(masks, p=1.0, generator=seeded(1)),
        low_pass(),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    sample = {"first": extra, "image": image, "mask": mask, "boxes": boxes, "labels": 2}
    found = pipeline(sample)
    assert type(found["image"]) is tv_tensors.Image and found["image"].dtype == torch.float32
    assert not torch.equal(found["image"], v2.functional.horizontal_flip(image) / 127.5 - 1)
    assert type(found["mask"]) is tv_tensors.Mask and torch.equal(found["mask"], mask)
    assert type(found["boxes"]) is tv_tensors.BoundingBoxes
    assert found["first"] is extra and found["labels"] == 2
    moved, same_mask = FourierBasisAugment()(image, mask)
    assert type(moved) is tv_tensors.Image and same_mask is mask


def test_two_images_of_a_sample_share_parameters():
    pytest.importorskip("torchvision")
    from torchvision import tv_tensors

    image = tv_tensors.Image(images(1)[0])
    left, right = FourierBasisAugment()(image, tv_tensors.Image(image.clone()))
    assert torch.equal(left, right)


def test_pil_images_are_refused_with_advice():
    image_module = pytest.importorskip("PIL.Image")
    with pytest.raises(TypeError, match="ToImage"):
        FourierBasisAugment()(image_module.new("RGB", (8, 8)))


def test_torchvision_is_not_imported():
    code = "import sys, sturdy.transforms; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_transform_of_ones_own():
    class Brighten(Transform):
        def sample(self, draw, image):
            return {"by": draw()}

        def transform(self, image, params):
            return self._as_float(image) + params["by"].to(image.device, torch.float32)[:, None, None, None]

    x = images()
    brighten = Brighten(generator=seeded())
    params = brighten.make_params([x])
    assert params["by"].shape == (6,)
    torch.testing.assert_close(brighten(x, params=params) - x, params["by"].float()[:, None, None, None].expand_as(x))
