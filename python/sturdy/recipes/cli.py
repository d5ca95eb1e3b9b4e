"""Entry point of the ``sturdy`` command."""

from __future__ import annotations

import os
import sys

# Distributions of the ``recipes`` extra by the name they are imported under.
_EXTRA = {"typer", "rich", "torchvision", "sklearn", "matplotlib", "safetensors", "PIL", "numpy"}


def main() -> None:
    """Run the command line; every expected error is one line on stderr and a non-zero exit status."""
    status = _run()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # The threads of torch's gloo may be dropping their last tensors still. They take Python's lock for that, which
        # aborts the process once the interpreter is being torn down; all files are closed, so leave it standing.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run() -> int:
    try:
        from sturdy.recipes.commands import run

        return run()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except ModuleNotFoundError as error:
        if os.environ.get("STURDY_TRACEBACK"):
            raise
        name = (error.name or "").split(".")[0]
        if name == "torch":
            return _fail("torch is not installed; see https://pytorch.org for the command for this machine")
        if name in _EXTRA:
            return _fail(f"{name} is not installed; run: pip install 'sturdy-kernels[recipes]'")
        return _fail(str(error))
    except Exception as error:
        if os.environ.get("STURDY_TRACEBACK"):
            raise
        return _fail(*_explain(error))


def _explain(error: Exception) -> tuple[str, int]:
    """The line and the exit status for an error."""
    text = " ".join(str(error).split()) or type(error).__name__
    status = getattr(error, "exit_code", 1)
    if hasattr(error, "format_message"):  # of the command line parser
        return f"{' '.join(error.format_message().split())} (see sturdy --help)", status
    if hasattr(error, "exit_code"):  # a RecipeError
        return text, status
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or text}", 1
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return f"out of memory; try a smaller --batch-size ({text[:160]})", 1
    return f"internal error: {type(error).__name__}: {text[:300]} (STURDY_TRACEBACK=1 shows where)", 1


def _fail(message: str, status: int = 1) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"sturdy{'' if rank == '0' else f' [rank {rank}]'}: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
