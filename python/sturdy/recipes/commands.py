"""The commands of ``sturdy``. Heavy imports are inside them, so that help and typing errors answer at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sturdy.recipes import presets
from sturdy.recipes.errors import check_name
from sturdy.recipes.settings import (
    AUGMENTATIONS,
    BACKENDS,
    CLUSTERINGS,
    DATA_SETS,
    MODELS,
    NORMS,
    OBJECTIVES,
    OPTIMIZERS,
    PIXELS,
    POOLINGS,
    PRECISIONS,
    PRIME_PRESETS,
    RESNET_STEMS,
    SCHEDULES,
    STEMS,
    TASKS,
    TOKEN_DATA_SETS,
)

app = typer.Typer(
    name="sturdy",
    help="Train robust networks, measure how robust they are, and check this installation.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status, raises what went wrong."""
    words = sys.argv[1:] if arguments is None else arguments
    result = app(args=words or ["--help"], prog_name="sturdy", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _choice(what: str, names: tuple[str, ...]) -> str:
    return f"{what}: {', '.join(names)}."


_DATA, _NETWORK, _TRAINING, _RUNNING = "Data", "Network", "Training", "Running"
_SEQUENCES = "Networks of sequences (cast, transformer)"
_AUGMENTATION = "Augmentation"


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help=_choice("Whose recipe", presets.NAMES))],
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/PRESET-DATA.")] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train the plain network in the plain way too, into OUT/baseline.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT from its last checkpoint.")] = False,
    task: Annotated[
        str | None,
        typer.Option(help=_choice("Task of the presets cast", TASKS) + " Default digits.", rich_help_panel=_DATA),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=_choice("Data set", (*DATA_SETS, *TOKEN_DATA_SETS)) + " Default digits.", rich_help_panel=_DATA
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the data set; for npz the file. Where those that are drawn are kept: ~/.cache/sturdy.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="Fetch a CIFAR or fashion-mnist into --data-dir.", rich_help_panel=_DATA),
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images of an imagefolder; default 224.", rich_help_panel=_DATA)
    ] = None,
    test_crop: Annotated[
        float | None,
        typer.Option(help="Part of the shorter side that is tested on, of an imagefolder.", rich_help_panel=_DATA),
    ] = None,
    limit_train: Annotated[
        int | None, typer.Option(help="Use only so many training images.", rich_help_panel=_DATA)
    ] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use only so many test images.", rich_help_panel=_DATA)] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Part of the training images kept to choose best/.", rich_help_panel=_DATA)
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A small version of the task, for a CPU: presets cast.", rich_help_panel=_DATA),
    ] = False,
    train_examples: Annotated[
        int | None, typer.Option(help="Training examples that are drawn; default LRA's.", rich_help_panel=_DATA)
    ] = None,
    test_examples: Annotated[
        int | None,
        typer.Option(help="Test examples that are drawn, and for validation; default LRA's.", rich_help_panel=_DATA),
    ] = None,
    min_length: Annotated[
        int | None, typer.Option(help="Symbols that ListOps has more than; default 500.", rich_help_panel=_DATA)
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Symbols that ListOps has fewer than, 2000; most bytes of a text, 4000.", rich_help_panel=_DATA
        ),
    ] = None,
    data_seed: Annotated[int | None, typer.Option(help="Of data that are drawn.", rich_help_panel=_DATA)] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help=_choice("Comma-separated augmentations, or none", AUGMENTATIONS), rich_help_panel=_AUGMENTATION
        ),
    ] = None,
    crop_padding: Annotated[
        int | None,
        typer.Option(help="Pixels around the image for crop; default an eighth of it.", rich_help_panel=_AUGMENTATION),
    ] = None,
    mixup: Annotated[
        float | None,
        typer.Option(help="MixUp with shares from Beta(a, a) of this a; 0 is off.", rich_help_panel=_AUGMENTATION),
    ] = None,
    cutmix: Annotated[
        float | None,
        typer.Option(
            help="CutMix with areas from Beta(a, a); with --mixup each batch takes one.", rich_help_panel=_AUGMENTATION
        ),
    ] = None,
    afa_strength: Annotated[
        float | None,
        typer.Option(
            help="Mean strength of the waves of afa; an amplitude of 0.044 each.", rich_help_panel=_AUGMENTATION
        ),
    ] = None,
    afa_reference: Annotated[
        bool | None,
        typer.Option(
            "--afa-reference/--afa-centered",
            help="The grid of the authors' code, for square images, or pixel coordinates.",
            rich_help_panel=_AUGMENTATION,
        ),
    ] = None,
    dfm_masks: Annotated[
        Path | None,
        typer.Option(
            help="File of masks for dfmx; without one the baseline finds them.", rich_help_panel=_AUGMENTATION
        ),
    ] = None,
    dfm_set: Annotated[
        str | None, typer.Option(help="Which masks of that file.", rich_help_panel=_AUGMENTATION)
    ] = None,
    dfm_p: Annotated[float | None, typer.Option(help="Probability of dfmx.", rich_help_panel=_AUGMENTATION)] = None,
    dfm_invert: Annotated[
        bool | None,
        typer.Option(
            "--dfm-invert/--dfm-keep",
            help="Take dominant frequencies away, or keep nothing else.",
            rich_help_panel=_AUGMENTATION,
        ),
    ] = None,
    apr_p: Annotated[
        float | None, typer.Option(help="Probability that apr changes a batch.", rich_help_panel=_AUGMENTATION)
    ] = None,
    prime_preset: Annotated[
        str | None,
        typer.Option(help=_choice("Strength of prime", PRIME_PRESETS), rich_help_panel=_AUGMENTATION),
    ] = None,
    prime_reference: Annotated[
        bool | None,
        typer.Option(
            "--prime-reference/--prime-centered",
            help="The filters of the authors' code, which shift by a pixel, or centred ones.",
            rich_help_panel=_AUGMENTATION,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help=_choice("Loss", OBJECTIVES) + " ace needs afa, jsd afa or prime.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    jsd_lambda: Annotated[
        float | None, typer.Option(help="Weight of agreement with jsd.", rich_help_panel=_TRAINING)
    ] = None,
    ibn: Annotated[
        bool | None,
        typer.Option(
            "--ibn/--no-ibn",
            help="Instance normalisation in the first three stages of a ResNet, with ace and jsd.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help=_choice("Network", MODELS), rich_help_panel=_NETWORK)] = None,
    stem: Annotated[str | None, typer.Option(help=_choice("First layer", STEMS), rich_help_panel=_NETWORK)] = None,
    resnet_stem: Annotated[
        str | None,
        typer.Option(
            help=_choice("Geometry of a ResNet's first layer", RESNET_STEMS) + " auto: cifar or imagenet.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    avg_kernel_size: Annotated[
        int | None,
        typer.Option(help="Pool of the pull response, odd; 0 is off.", rich_help_panel=_NETWORK),
    ] = None,
    inhibition: Annotated[
        float | None, typer.Option(help="Strength of the pull response.", rich_help_panel=_NETWORK)
    ] = None,
    trainable_inhibition: Annotated[
        bool | None,
        typer.Option(
            "--trainable-inhibition/--fixed-inhibition",
            help="Learn one strength per channel, from U(0, 1).",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Encoder layers.", rich_help_panel=_SEQUENCES)] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.", rich_help_panel=_SEQUENCES)] = None,
    width: Annotated[int | None, typer.Option(help="Length of a token.", rich_help_panel=_SEQUENCES)] = None,
    ff_width: Annotated[int | None, typer.Option(help="Width of hidden layers.", rich_help_panel=_SEQUENCES)] = None,
    embed_width: Annotated[
        int | None, typer.Option(help="Length of an embedding; 0 is that of a token.", rich_help_panel=_SEQUENCES)
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="Clusters, for cast.", rich_help_panel=_SEQUENCES)] = None,
    cluster_size: Annotated[
        int | None,
        typer.Option(help="Most tokens of a cluster; 0 shares them out evenly.", rich_help_panel=_SEQUENCES),
    ] = None,
    clustering: Annotated[
        str | None,
        typer.Option(
            help=_choice("Best tokens of each cluster, or each token once", CLUSTERINGS), rich_help_panel=_SEQUENCES
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help=_choice("Normalisation", NORMS), rich_help_panel=_SEQUENCES)] = None,
    norm_first: Annotated[
        bool | None,
        typer.Option(
            "--norm-first/--norm-last", help="Before each branch, or after each sum.", rich_help_panel=_SEQUENCES
        ),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Of embeddings and branches.", rich_help_panel=_SEQUENCES)
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(help=_choice("Mean of all tokens, or a first one", POOLINGS), rich_help_panel=_SEQUENCES),
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(help=_choice("Embed 256 grey levels, or project the value", PIXELS), rich_help_panel=_SEQUENCES),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help=_choice("CAST by its kernels, or in torch's own operations", BACKENDS), rich_help_panel=_SEQUENCES
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", rich_help_panel=_TRAINING)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, over all processes.", rich_help_panel=_TRAINING)
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help=_choice("Optimizer", OPTIMIZERS), rich_help_panel=_TRAINING)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.", rich_help_panel=_TRAINING)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay of the parameters.", rich_help_panel=_TRAINING)
    ] = None,
    norm_weight_decay: Annotated[
        bool | None,
        typer.Option(
            "--norm-weight-decay/--no-norm-weight-decay",
            help="Of the parameters of normalisations too, or not.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="Momentum; for adamw the first beta.", rich_help_panel=_TRAINING)
    ] = None,
    beta2: Annotated[float | None, typer.Option(help="Second beta, for adamw.", rich_help_panel=_TRAINING)] = None,
    nesterov: Annotated[
        bool | None,
        typer.Option("--nesterov/--no-nesterov", help="Nesterov momentum, for sgd.", rich_help_panel=_TRAINING),
    ] = None,
    grad_clip: Annotated[
        float | None, typer.Option(help="Greatest norm of the gradient; 0 is off.", rich_help_panel=_TRAINING)
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Parts of a batch that are computed one after another.", rich_help_panel=_TRAINING),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=_choice("Course of the learning rate", SCHEDULES), rich_help_panel=_TRAINING)
    ] = None,
    min_lr: Annotated[
        float | None, typer.Option(help="Lowest rate of cosine, linear and plateau.", rich_help_panel=_TRAINING)
    ] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="Linear rise before cosine, linear and steps.", rich_help_panel=_TRAINING)
    ] = None,
    warmup_start: Annotated[
        float | None, typer.Option(help="Part of the rate that this rise starts from.", rich_help_panel=_TRAINING)
    ] = None,
    div_factor: Annotated[
        float | None, typer.Option(help="Of onecycle: highest rate by first rate.", rich_help_panel=_TRAINING)
    ] = None,
    final_div_factor: Annotated[
        float | None, typer.Option(help="Of onecycle: first rate by last rate.", rich_help_panel=_TRAINING)
    ] = None,
    pct_start: Annotated[
        float | None,
        typer.Option(help="Part of the steps in which onecycle rises; default 0.3.", rich_help_panel=_TRAINING),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help=_choice("Arithmetic", PRECISIONS), rich_help_panel=_TRAINING)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and augmentation.", rich_help_panel=_TRAINING)
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(help="Steps between two losses in log.jsonl.", rich_help_panel=_RUNNING)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUNNING)] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that decode an imagefolder, or draw data.", rich_help_panel=_RUNNING)
    ] = 2,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0, help="Longest time between two checkpoints.", rich_help_panel=_RUNNING)
    ] = 10.0,
) -> None:
    """Train a network as a paper describes it.

    The preset fills in what is not given here; cast as remembered, not verified against its paper. Interrupt a run at
    any time and continue it with --resume.
    """
    from sturdy.recipes import train as recipe

    chosen: dict[str, Any] = {
        "task": task,
        "data": data,
        "quick": quick or None,
        "train_examples": train_examples,
        "test_examples": test_examples,
        "min_length": min_length,
        "max_length": max_length,
        "data_seed": data_seed,
        "depth": depth,
        "heads": heads,
        "width": width,
        "ff_width": ff_width,
        "embed_width": embed_width,
        "clusters": clusters,
        "cluster_size": cluster_size,
        "clustering": clustering,
        "norm": norm,
        "norm_first": norm_first,
        "dropout": dropout,
        "pooling": pooling,
        "pixels": pixels,
        "backend": backend,
        "beta2": beta2,
        "data_dir": None if data_dir is None else str(data_dir.absolute()),
        "image_size": image_size,
        "test_crop": test_crop,
        "limit_train": limit_train,
        "limit_test": limit_test,
        "val_fraction": val_fraction,
        "augment": None if augment is None else tuple(_words(augment)),
        "crop_padding": crop_padding,
        "mixup": mixup,
        "cutmix": cutmix,
        "afa_strength": afa_strength,
        "afa_reference": afa_reference,
        "dfm_masks": None if dfm_masks is None else str(dfm_masks.absolute()),
        "dfm_set": dfm_set,
        "dfm_p": dfm_p,
        "dfm_invert": dfm_invert,
        "apr_p": apr_p,
        "prime_preset": prime_preset,
        "prime_reference": prime_reference,
        "objective": objective,
        "jsd_lambda": jsd_lambda,
        "ibn": ibn,
        "model": model,
        "stem": stem,
        "resnet_stem": resnet_stem,
        "avg_kernel_size": avg_kernel_size,
        "inhibition": inhibition,
        "trainable_inhibition": trainable_inhibition,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "norm_weight_decay": norm_weight_decay,
        "momentum": momentum,
        "nesterov": nesterov,
        "grad_clip": grad_clip,
        "accumulate": accumulate,
        "schedule": schedule,
        "min_lr": min_lr,
        "warmup_epochs": warmup_epochs,
        "warmup_start": warmup_start,
        "div_factor": div_factor,
        "final_div_factor": final_div_factor,
        "pct_start": pct_start,
        "precision": precision,
        "seed": seed,
        "log_every": log_every,
    }
    check_name("preset", preset, presets.NAMES)
    options = recipe.TrainOptions(
        out=out or Path("runs") / f"{preset}-{presets.data_of_task(task, data)}",
        baseline=baseline,
        resume=resume,
        download=download,
        device=device,
        workers=workers,
        checkpoint_minutes=checkpoint_minutes,
    )
    recipe.train(preset, chosen, options, Console())


@app.command()
def evaluate(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    checkpoint: Annotated[str, typer.Option(help="last, as the paper does, or best.")] = "last",
    corruptions: Annotated[str | None, typer.Option(help="Comma-separated names; all if left out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the corruptions.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; does not change the result.")] = 256,
    limit_test: Annotated[int | None, typer.Option(min=1, help="Use only so many test images.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode an imagefolder.")] = 2,
) -> None:
    """Measure accuracy on clean and on corrupted test images, of a run and its baseline.

    Writes RUN/evaluate/results.json and pictures of the accuracies and of the learned filters.
    """
    from sturdy.recipes import evaluate as recipe

    options = recipe.EvaluateOptions(
        run=run_folder,
        checkpoint=checkpoint,
        corruptions=_words(corruptions or ""),
        seed=seed,
        batch_size=batch_size,
        limit_test=limit_test,
        data_dir=None if data_dir is None else str(data_dir.absolute()),
        device=device,
        workers=workers,
    )
    recipe.evaluate(options, Console())


@app.command()
def analyse(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    only: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: heatmap, radius, dfm, of networks of sequences clusters, accuracy; all if left out."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="At most so many test images, and validation images for dfm.")
    ] = 200,
    checkpoint: Annotated[str, typer.Option(help="last, or best.")] = "last",
    eps: Annotated[
        float | None, typer.Option(help="L2 norm of the heatmap's waves, for images in [0, 1]; default the paper's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the signs of the waves.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; does not change the result.")] = 256,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode an imagefolder.")] = 2,
) -> None:
    """Find the frequencies that a run and its baseline need, and those that mislead them; for CAST how tokens cluster.

    Writes RUN/analyse/results.json and pictures: a Fourier heatmap, accuracy on low- and high-pass filtered images, and
    the dominant frequencies of each class with a test for shortcuts; of networks of sequences accuracy over time, which
    tokens each cluster takes, and in how many clusters tokens are.
    """
    from sturdy.recipes import analyse as recipe

    options = recipe.AnalyseOptions(
        run=run_folder,
        only=_words(only or ""),
        images=images,
        checkpoint=checkpoint,
        eps=eps,
        seed=seed,
        batch_size=batch_size,
        data_dir=None if data_dir is None else str(data_dir.absolute()),
        device=device,
        workers=workers,
    )
    recipe.analyse(options, Console())


@app.command()
def summarize(
    run_folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs, as a rule of one seed each.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for summary.md, summary.json and accuracy.png.")],
) -> None:
    """Mean and standard deviation over several evaluated runs, as a Markdown table, JSON and a picture."""
    from sturdy.recipes import summary

    summary.summarize(run_folders, out, Console())


@app.command()
def compare(
    run_folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; their baselines join them.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and accuracy.png.")] = None,
) -> None:
    """Accuracy, time and memory of several runs side by side, from their logs, and accuracy over time as a picture."""
    from sturdy.recipes import compare as recipe

    recipe.compare(run_folders, out, Console())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder; a finished run in it is only evaluated again.")] = Path(
        "runs/demo"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train PushPull and its baseline on handwritten digits and compare them under corruption, in a minute or two."""
    import torch

    from sturdy.recipes import evaluate as evaluation
    from sturdy.recipes import train as training

    torch.set_num_threads(1)  # images of 8 x 8 pixels are too small to share between cores
    console = Console()
    resume = (out / "config.json").exists()
    training.train("pushpull", {}, training.TrainOptions(out, baseline=True, resume=resume, device=device), console)
    evaluation.evaluate(evaluation.EvaluateOptions(out, device=device), console)


@app.command("list")
def list_names() -> None:
    """Names that the other commands know: presets, data sets, networks, corruptions."""
    from sturdy.recipes import corruption

    console = Console()
    for name in presets.NAMES:
        preset = presets.load_preset(name)
        console.print(f"preset {name}: {preset.summary}\n  {preset.source}", highlight=False, soft_wrap=True)
    for what, names in (
        ("data sets", (*DATA_SETS, *TOKEN_DATA_SETS)),
        ("tasks of cast", TASKS),
        ("networks", MODELS),
        ("stems", STEMS),
        ("augmentations", AUGMENTATIONS),
        ("objectives", OBJECTIVES),
        ("corruptions", corruption.NAMES),
    ):
        console.print(f"{what}: {', '.join(names)}", highlight=False, soft_wrap=True)


@app.command()
def info() -> None:
    """What this build contains and what this machine has."""
    from sturdy._info import info_lines

    for line in info_lines():
        typer.echo(line)


@app.command()
def doctor() -> None:
    """Check the installation and say what to do about what is found; exit status 1 if something is wrong."""
    from sturdy._info import doctor as examine

    findings = examine()
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}")
        if not finding.ok and finding.advice:
            typer.echo(f"     {finding.advice}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _words(text: str) -> list[str]:
    """The words of a comma-separated option; ``none`` is an empty list."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [] if words == ["none"] else words
