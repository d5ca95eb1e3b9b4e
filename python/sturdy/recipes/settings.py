"""The settings of one training run: what ``config.json`` holds and ``--resume`` compares."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sturdy.recipes.errors import RecipeError, UsageError, check_name

GENERATED_IMAGES = ("pathfinder", "pathx")
DATA_SETS = ("digits", "fashion-mnist", "cifar10", "cifar100", "tinyimagenet", *GENERATED_IMAGES, "npz", "imagefolder")
TOKEN_DATA_SETS = ("listops", "text")  # sequences of symbols, for networks of sequences alone
GENERATED_DATA_SETS = ("listops", *GENERATED_IMAGES)
TASKS = ("digits", "listops", "pathfinder", "pathx", "text", "image")
IMAGE_MODELS = ("small-cnn", "resnet18", "resnet50", "cct_7_3x1", "cct_14_7x2")
SEQUENCE_MODELS = ("cast", "transformer")  # they read images pixel by pixel
MODELS = (*IMAGE_MODELS, *SEQUENCE_MODELS)
CLUSTERINGS = ("topk", "sa_topk")
NORMS = ("layer", "scale", "batch")
POOLINGS = ("mean", "cls")
PIXELS = ("token", "value")
BACKENDS = ("auto", "reference")
STEMS = ("plain", "pushpull")
RESNET_STEMS = ("auto", "cifar", "tinyimagenet", "imagenet")
GEOMETRIC_AUGMENTATIONS = ("crop", "resized-crop", "flip")
AUXILIARY_AUGMENTATIONS = ("afa",)
PAPER_AUGMENTATIONS = ("afa", "dfmx", "apr", "prime")  # what a baseline does without
AUGMENTATIONS = (*GEOMETRIC_AUGMENTATIONS, *PAPER_AUGMENTATIONS)
OBJECTIVES = ("ce", "pair", "ace", "jsd")
AUXILIARY_OBJECTIVES = ("ace", "jsd")  # those with normalisations for auxiliary images
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "onecycle", "steps", "plateau", "linear")
PRECISIONS = ("fp32", "bf16", "fp16")
PRIME_PRESETS = ("cifar", "imagenet")

# Where the data lie may change between a run and its continuation, and where its masks came from; the rest may not.
FREE_TO_CHANGE = ("data_dir", "dfm_masks", "backend")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the losses of a run. ``docs/recipes.md`` explains each field with its option."""

    preset: str
    data: str
    model: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    schedule: str
    data_dir: str | None = None
    image_size: int = 224
    test_crop: float = 1.0
    limit_train: int | None = None
    limit_test: int | None = None
    val_fraction: float = 0.1
    quick: bool = False
    train_examples: int = 0
    test_examples: int = 0
    min_length: int = 0
    max_length: int = 0
    data_seed: int = 0
    stem: str = "pushpull"
    resnet_stem: str = "auto"
    avg_kernel_size: int = 0
    inhibition: float = 1.0
    trainable_inhibition: bool = False
    depth: int = 2
    heads: int = 2
    width: int = 32
    ff_width: int = 64
    embed_width: int = 0
    clusters: int = 4
    cluster_size: int = 0
    clustering: str = "topk"
    norm: str = "layer"
    norm_first: bool = True
    dropout: float = 0.0
    pooling: str = "mean"
    pixels: str = "token"
    backend: str = "auto"
    augment: tuple[str, ...] = ()
    crop_padding: int | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    afa_strength: float = 10.0
    afa_reference: bool = False
    dfm_masks: str | None = None
    dfm_set: str | None = None
    dfm_p: float = 0.3
    dfm_invert: bool = False
    apr_p: float = 0.6
    prime_preset: str = "cifar"
    prime_reference: bool = False
    objective: str = "ce"
    jsd_lambda: float = 10.0
    ibn: bool = False
    weight_decay: float = 0.0
    norm_weight_decay: bool = True
    momentum: float = 0.9
    beta2: float = 0.999
    nesterov: bool = False
    grad_clip: float = 0.0
    accumulate: int = 1
    min_lr: float = 0.0
    warmup_epochs: int = 0
    warmup_start: float = 0.1
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    pct_start: float = 0.3
    precision: str = "fp32"
    seed: int = 0
    log_every: int = 10

    def __post_init__(self) -> None:
        check_name("data set", self.data, (*DATA_SETS, *TOKEN_DATA_SETS))
        check_name("model", self.model, MODELS)
        check_name("stem", self.stem, STEMS)
        check_name("ResNet stem", self.resnet_stem, RESNET_STEMS)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("precision", self.precision, PRECISIONS)
        check_name("objective", self.objective, OBJECTIVES)
        check_name("strength of prime", self.prime_preset, PRIME_PRESETS)
        check_name("clustering", self.clustering, CLUSTERINGS)
        check_name("normalisation", self.norm, NORMS)
        check_name("pooling", self.pooling, POOLINGS)
        check_name("way to read pixels", self.pixels, PIXELS)
        check_name("backend", self.backend, BACKENDS)
        self._check_sequences()
        for name in self.augment:
            check_name("augmentation", name, AUGMENTATIONS)
        if len(set(self.augment)) != len(self.augment):
            raise UsageError(f"--augment names an augmentation twice: {','.join(self.augment)}")
        agrees = self.objective == "jsd" and "prime" in self.augment
        if self.objective in AUXILIARY_OBJECTIVES and not self.has_auxiliary_view and not agrees:
            needed = "afa or prime" if self.objective == "jsd" else "afa"
            raise UsageError(
                f"--objective {self.objective} needs {needed} among --augment, got {','.join(self.augment)}"
            )
        for name in ("epochs", "batch_size", "image_size", "limit_train", "limit_test", "log_every", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{_option(name)} must be 1 or more, got {value}")
        if not self.lr > 0:
            raise UsageError(f"--lr must be positive, got {self.lr}")
        not_negative = (
            "weight_decay",
            "momentum",
            "afa_strength",
            "jsd_lambda",
            "grad_clip",
            "min_lr",
            "warmup_epochs",
        )
        for name in (*not_negative, "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{_option(name)} must not be negative, got {getattr(self, name)}")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise UsageError(f"--crop-padding must not be negative, got {self.crop_padding}")
        if not 0 < self.test_crop <= 1:
            raise UsageError(f"--test-crop must be above 0 and at most 1, got {self.test_crop}")
        if not 0 <= self.warmup_start <= 1:
            raise UsageError(f"--warmup-start must be in [0, 1], got {self.warmup_start}")
        for name in ("div_factor", "final_div_factor"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{_option(name)} must be positive, got {getattr(self, name)}")
        if not 0 < self.pct_start < 1:
            raise UsageError(f"--pct-start must be above 0 and below 1, got {self.pct_start}")
        if not self.momentum < 1:
            raise UsageError(f"--momentum must be below 1, got {self.momentum}")
        if (
            self.mixes
            and {"afa", "dfmx"} <= set(self.augment)
            and self.augment.index("afa") < self.augment.index("dfmx")
        ):
            raise UsageError("images are mixed before afa, and dfmx must come before that: --augment dfmx,afa")
        for name in ("dfm_p", "apr_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{_option(name)} must be in [0, 1], got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise UsageError(f"--accumulate {self.accumulate} does not divide --batch-size {self.batch_size}")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction must be at least 0 and below 1, got {self.val_fraction}")
        if self.avg_kernel_size < 0 or (self.avg_kernel_size > 0 and self.avg_kernel_size % 2 == 0):
            raise UsageError(f"--avg-kernel-size must be 0 (off) or odd, got {self.avg_kernel_size}")
        for name in ("seed", "data_seed"):
            if not 0 <= getattr(self, name) < 2**63:
                raise UsageError(f"{_option(name)} must be in [0, 2**63), got {getattr(self, name)}")

    def _check_sequences(self) -> None:
        for name in ("depth", "heads", "width", "ff_width", "clusters"):
            if getattr(self, name) < 1:
                raise UsageError(f"{_option(name)} must be 1 or more, got {getattr(self, name)}")
        for name in ("embed_width", "cluster_size", "train_examples", "test_examples", "min_length", "max_length"):
            if getattr(self, name) < 0:
                raise UsageError(f"{_option(name)} must not be negative, got {getattr(self, name)}")
        for name in ("dropout", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{_option(name)} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise UsageError(f"--heads {self.heads} does not divide --width {self.width}")
        if self.data not in TOKEN_DATA_SETS:
            return
        if self.model not in SEQUENCE_MODELS:
            raise UsageError(
                f"--data {self.data} is for the networks {' and '.join(SEQUENCE_MODELS)}, not {self.model}"
            )
        if self.augment or self.mixes:
            raise UsageError(f"--data {self.data}: augmentations and mixing are for images")

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values."""
        return {**dataclasses.asdict(self), "augment": list(self.augment)}

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> Settings:
        """The inverse of :meth:`to_json`; ``source`` names the file in errors."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise RecipeError(f"{source}: unknown setting {unknown[0]!r}; was it written by another version?")
        try:
            return cls(**{**values, "augment": tuple(values.get("augment", ()))})
        except TypeError as error:
            raise RecipeError(f"{source}: a setting is missing ({error})") from None

    def baseline(self) -> Settings:
        """The same run with the plain stem or a Transformer for CAST, and without what the papers add to training."""
        kept = tuple(name for name in self.augment if name not in PAPER_AUGMENTATIONS)
        model = "transformer" if self.model == "cast" else self.model
        return dataclasses.replace(self, model=model, stem="plain", augment=kept, objective="ce", dfm_masks=None)

    @property
    def is_baseline(self) -> bool:
        """True if its baseline would be the run itself."""
        return not self.baseline().differences(self)

    @property
    def reads_sequences(self) -> bool:
        """True if the network takes symbols, or pixels one by one."""
        return self.model in SEQUENCE_MODELS

    @property
    def has_auxiliary_view(self) -> bool:
        """True if some images are for normalisations of their own."""
        return self.objective in AUXILIARY_OBJECTIVES and bool(set(self.augment) & set(AUXILIARY_AUGMENTATIONS))

    @property
    def mixes(self) -> bool:
        """True if images and labels are mixed, by MixUp or CutMix or both in turn."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def finds_masks(self) -> bool:
        """True if the run needs dominant frequency masks that no file holds yet."""
        return "dfmx" in self.augment and self.dfm_masks is None

    def differences(self, other: Settings) -> list[str]:
        """Names of the settings that differ and decide the result."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if field.name not in FREE_TO_CHANGE and getattr(self, field.name) != getattr(other, field.name)
        ]


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
