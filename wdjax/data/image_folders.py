"""A folder of pictures, a folder a class."""

import collections
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wdjax.checks import nearest
from wdjax.data.images import SIDE
from wdjax.extras import need

PARTS = ("train", "test")
ENDINGS = (".png", ".jpg", ".jpeg")
MOST_PIXELS = 64
"""A side up to which pictures of one size are taken as they are."""


class ImageFolder(NamedTuple):
    """The pictures of a folder, of one size."""

    images: np.ndarray
    """uint8 `[example, row, column, channel]`, one channel if all are grey, else three."""
    labels: np.ndarray
    class_names: tuple[str, ...]
    about: str
    """What was done to them, in a sentence; empty if nothing was."""


def has_parts(folder: Path) -> bool:
    """Whether a folder holds `train` and `test`, with folders of classes below."""
    return all(_folders(folder / part) for part in PARTS)


def read_image_folder(folder: Path, part: str | None = None) -> ImageFolder:
    """The pictures of `FOLDER/CLASS/*.png` (or .jpg), of any depth below a class.

    Classes are the names of the folders, sorted. Pictures that are all of one size of at most 64
    pixels a side stay as they are; others are cropped to their central square and resized to 32 x
    32. Where the folder has parts, `FOLDER/train/CLASS/` and `FOLDER/test/CLASS/`, the classes and
    the size are those of both together.

    Args:
      folder: of the classes, or of the parts.
      part: `"train"` or `"test"`; None for a folder without parts.

    Raises:
      ValueError: if it is no folder, or has fewer than two classes; for classes of the test part
        that the training part lacks, an empty class, or pictures that cannot be read, by name.
      ImportError: if pillow is not installed: `pip install "wdjax[cli]"`.
    """
    _check_folder(folder)
    roots = [folder / name for name in PARTS] if part else [folder]
    classes = [path.name for path in _folders(roots[0])]
    if len(classes) < 2:
        raise ValueError(
            f"data 'images:{folder}' has {len(classes)} folder{'s' * (len(classes) != 1)} of "
            "classes; give each class a folder of its own, with its pictures in it."
        )
    new = [path.name for root in roots[1:] for path in _folders(root) if path.name not in classes]
    if new:
        raise ValueError(
            f"data 'images:{folder}' has the class {new[0]!r} in test and not in train."
            f"{nearest(new[0], classes)} Rename it, or give it pictures to train on."
        )
    files = {root: [_pictures(root / name) for name in classes] for root in roots}
    empty = [name for name, found in zip(classes, files[roots[0]], strict=True) if not found]
    if empty:
        raise ValueError(
            f"data 'images:{folder}' has no .png or .jpg in the folder of class {empty[0]!r}; "
            "remove the folder, or put its pictures there."
        )
    size, modes = _sizes(folder, [path for found in files.values() for c in found for path in c])
    wanted = files[roots[0] if part is None else folder / part]
    paths = [path for found in wanted for path in found]
    if not paths:
        raise ValueError(
            f"data 'images:{folder}' has no .png or .jpg in test; remove the folder, or put its "
            "pictures there."
        )
    labels = [label for label, found in enumerate(wanted) for _ in found]
    mode = "L" if modes == {"L"} else "RGB"
    images = _read_all(folder, paths, lambda picture: _pixels(picture, mode, size))
    about = "" if size else f"Cropped to their central square and resized to {SIDE} x {SIDE}."
    return ImageFolder(np.stack(images), np.array(labels), tuple(classes), about)


def _check_folder(folder: Path) -> None:
    try:
        is_folder = folder.is_dir()
    except (OSError, ValueError):  # A name too long, a NUL byte.
        is_folder = False
    if not is_folder:
        raise ValueError(
            f"data 'images:{folder}': there is no such folder; give one that holds a folder a "
            "class."
        )


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))


def _pictures(folder: Path) -> list[Path]:
    found = folder.rglob("*") if folder.is_dir() else ()
    return sorted(p for p in found if p.suffix.lower() in ENDINGS and not p.name.startswith("."))


def _sizes(folder: Path, paths: list[Path]) -> tuple[tuple[int, int] | None, set[str]]:
    """The size of all, if it is one and small; and how they hold colours: `L` is grey."""
    found = _read_all(folder, paths, lambda picture: (_turned_size(picture), _mode(picture)))
    sizes = collections.Counter(size for size, _ in found)
    size = next(iter(sizes))
    is_kept = len(sizes) == 1 and max(size) <= MOST_PIXELS
    return size if is_kept else None, {mode for _, mode in found}


_TURNED = 5
"""From this value of its EXIF orientation (tag 274) on a picture lies on its side."""


def _turned_size(picture: Any) -> tuple[int, int]:
    is_turned = picture.getexif().get(274, 1) >= _TURNED
    return picture.size[::-1] if is_turned else picture.size


def _mode(picture: Any) -> str:
    if picture.mode[:1] in "IF":
        raise OSError(f"it has more than 8 bits a channel (mode {picture.mode}); save it with 8")
    return "L" if picture.mode in ("1", "L", "LA") else "RGB"


def _pixels(picture: Any, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    operations: Any = need("PIL.ImageOps", what="reading pictures")
    picture = operations.exif_transpose(picture).convert(mode)
    if size is None:
        picture = operations.fit(picture, (SIDE, SIDE))
    pixels = np.asarray(picture, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _read_all(folder: Path, paths: list[Path], read: Any) -> list[Any]:
    """What `read` makes of each picture; those that cannot be read are named together."""
    image: Any = need("PIL.Image", what="reading pictures")
    found, broken = [], []
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image.DecompressionBombWarning)
                with image.open(path, formats=("PNG", "JPEG")) as picture:
                    found.append(read(picture))
        except Exception as error:  # A damaged picture makes pillow raise what it likes.
            broken.append(f"{path.relative_to(folder)} ({_reason(error)})")
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ValueError(
            f"data 'images:{folder}': {len(broken)} of {len(paths)} pictures cannot be read: "
            f"{'; '.join(broken[:3])}{more}. Mend or remove them."
        )
    return found


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "no PNG or JPEG"
    return str(error)[:100] or type(error).__name__
