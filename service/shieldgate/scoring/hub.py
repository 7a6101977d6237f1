"""Where the files of a checkpoint are: shipped, in a folder, or at the Hugging Face Hub."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from shieldgate.errors import ModelError

SHIPPED = ("starter", "small")


def locate(model: str, revision: str | None, wanted: Sequence[str]) -> tuple[Path, str | None]:
    """Find a GGUF file, or the folder that has the `wanted` files.

    From the hub they are fetched if they are new, and the commit is given, too. `model` is
    `starter`, `small`, a local folder or file, or a hub id such as `google/shieldgemma-2b`. Raises
    ModelError, in one sentence that says how to mend it.
    """
    if (found := here(model)) is not None:
        return found, None
    return _fetch(model, revision, wanted)


def here(model: str) -> Path | None:
    """Find the folder or file of a model on this machine; None for a hub id.

    Raises ModelError for what is neither, in one sentence that says how to mend it.
    """
    if model in SHIPPED:
        return Path(str(files("shieldgate") / model))
    folder = Path(model).expanduser()
    if folder.is_dir() or (folder.is_file() and folder.suffix == ".gguf"):
        return folder
    if folder.is_absolute() or model.startswith(("./", "../", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{model}: there is no such folder. Give 'starter', 'small', the folder of a "
            "checkpoint, a file that ends in .gguf, or a hub id such as google/shieldgemma-2b."
        )
    return None


def _fetch(model: str, revision: str | None, wanted: Sequence[str]) -> tuple[Path, str]:
    # Here, because only who fetches something waits for its library.
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(
            huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(wanted))
        )
    except GatedRepoError as refused:
        raise ModelError(
            f"{model} is gated. Accept its licence on its page at the hub, then set HF_TOKEN to a "
            "token of that account, or run `hf auth login`."
        ) from refused
    except RevisionNotFoundError as refused:
        raise ModelError(f"{model} has no revision {revision!r}.") from refused
    except RepositoryNotFoundError as refused:
        raise ModelError(
            f"The hub has no model {model}, or it is private. Check the spelling; for a private "
            "model, set HF_TOKEN."
        ) from refused
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as refused:
        raise ModelError(
            f"{model} is not in the local cache and the hub can't be reached. Connect once to "
            "download it, or give the path of a folder that holds it."
        ) from refused
    # A snapshot's folder is named after the commit, which identifies its content.
    return path, path.name
