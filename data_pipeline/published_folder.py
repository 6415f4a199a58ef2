"""A folder that somebody published a model in."""

from pathlib import Path


def check_folder(folder: Path) -> None:
    """Refuse what is no folder, and say how to get one for a model's name on the hub.

    Raises:
        ValueError: it is a file, or not there.
    """
    if folder.is_dir():
        return
    if folder.exists():
        raise ValueError(f"{folder} is a file; name the model's folder")
    hub = (
        ""
        if folder.is_absolute() or len(folder.parts) != 2
        else (
            f"; if it is a model's name on the Hugging Face hub, download it: hf download {folder} "
            f"--local-dir models/{folder.name}"
        )
    )
    raise ValueError(f"there is no folder {folder}{hub}")
